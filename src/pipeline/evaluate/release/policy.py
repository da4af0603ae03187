"""Weights leave the house: the policy of docs/release.md, and the folder that somebody else gets.

The folder holds encoder.safetensors as the cell has it, what says where its inputs lie (template.npz or flatmap.npz),
model_card.md, and release.json for programs. Nobody is named in it.
"""

from __future__ import annotations

import re
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.artefact import atomic_folder, code_version, read_json, sha256_file, write_json, write_text
from pipeline.config import Study
from pipeline.errors import InputError
from pipeline.evaluate.device import device_of
from pipeline.evaluate.release.card import released_card, results_of
from pipeline.evaluate.release.licences import conditions, require_compatible, require_known
from pipeline.evaluate.release.memorisation import PEOPLE, Memorisation, check_cell
from pipeline.grid import Cell
from pipeline.layout import Layout

FILES = ("encoder.safetensors", "model_card.md", "release.json", "template.npz", "flatmap.npz")
GEOMETRY = {"voxels": "template.npz", "flatmap": "flatmap.npz"}  # what a user needs beside the weights


def release_cell(
    study: Study,
    layout: Layout,
    cell: Cell,
    output: str | Path,
    licence: str,
    statement: str | Path | None = None,
    people: int = PEOPLE,
) -> dict[str, Any]:
    """Check a finished cell of a study and release it into a new folder; returns the content of release.json.

    Parameters
    ----------
    licence : of the weights, by its SPDX name.
    statement : a text that says for each restricted data set who allows weights trained on it to be given away.
    people : of each side in the memorisation check, at most.

    Raises
    ------
    InputError : the policy does not allow it, the cell is not finished or was not evaluated, or the folder is not free.
    """
    folder = layout.cell("pretrain", cell)
    # Before the check of memorisation, which may take minutes.
    terms = terms_of(study, read_json(folder / "summary.json"))
    require_terms(terms, licence, _read_statement(statement))
    require_free(Path(output))
    results_of(layout.table("benchmark"), cell)
    found = check(study, layout, cell, people)
    geometry = layout.flatmap.parent if study.architectures[cell.architecture].input == "flat map" else layout.template
    return release(study, cell, folder, output, licence, found, layout.table("benchmark"), statement, geometry)


def check(study: Study, layout: Layout, cell: Cell, people: int = PEOPLE) -> Memorisation:
    """The memorisation check of a finished cell of a study, on the device that there is."""

    from pipeline.bold.template import load_template
    from pipeline.pretrain.engine.checkpoint import load_cell
    from pipeline.pretrain.rasters import raster_of

    device = device_of(study)
    learner, metadata = load_cell(layout.cell("pretrain", cell))
    raster = raster_of(metadata, load_template(layout.template), layout.flatmap.parent, device)
    manifests = layout.store(cell.architecture, "pretrain")
    participants = layout.participants("pretrain")
    return check_cell(study, cell, learner.to(device), metadata, raster, manifests, participants, layout.draws, people)


def release(
    study: Study,
    cell: Cell,
    cell_folder: str | Path,
    output: str | Path,
    licence: str,
    memorisation: Memorisation,
    benchmark: str | Path,
    statement: str | Path | None = None,
    geometry: str | Path | None = None,
) -> dict[str, Any]:
    """Write the released folder, or refuse; see `release_cell`.

    Parameters
    ----------
    cell_folder : encoder.safetensors and summary.json of the cell.
    memorisation : of `check`.
    benchmark : the study's table.
    geometry : folder of the study's template.npz or flatmap.npz; encoders of parcels need none.
    """
    folder, output = Path(cell_folder), Path(output)
    summary, said = read_json(folder / "summary.json"), _read_statement(statement)
    terms = terms_of(study, summary)
    require_finished(folder, summary)
    require_terms(terms, licence, said)
    require_forgotten(terms, memorisation, cell)
    require_free(output)
    rows, encoder = results_of(benchmark, cell), folder / FILES[0]
    record = {
        "cell": cell.path,
        "cell_hash": summary["cell_hash"],
        "people_hash": summary["people_hash"],
        "contract": summary["contract"],
        "licence": licence,
        "datasets": terms,
        "statement": said,
        "memorisation": memorisation.numbers,
        "benchmark_sha256": sha256_file(benchmark),
        "encoder_sha256": sha256_file(encoder),
        "code": code_version(),
    }
    context = study.context_frames(cell.architecture)
    card = released_card(summary, context, licence, terms, rows, memorisation.numbers, said, record["encoder_sha256"])
    with atomic_folder(output) as new:
        shutil.copyfile(encoder, new / encoder.name)
        if (name := GEOMETRY.get(summary["contract"]["kind"])) is not None:
            shutil.copyfile(_geometry(geometry, name), new / name)
        write_json(new / "release.json", record)
        write_text(new / "model_card.md", card)
    return record


def terms_of(study: Study, summary: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What each data set that a cell was trained on says of itself, and how many of its people there were."""
    people = Counter(name.split("/")[0] for name in summary["people"])
    terms = []
    for name in summary["datasets"]:
        dataset = study.datasets[name]
        said = {"licence": dataset.licence, "weights": dataset.weights, "simulated": dataset.simulated}
        terms.append({"dataset": name, "people": people[name], **said})
    return terms


def require_terms(terms: Sequence[Mapping[str, Any]], licence: str, statement: str | None) -> None:
    """Refuse what a data set does not allow.

    Raises
    ------
    InputError : weights of a data set are never released; its licence forbids that of the weights, or is not known
        though they are free; or it is restricted and the statement does not name it.
    """
    require_known(licence)
    for each in terms:
        where = f"datasets.{each['dataset']}"
        if each["weights"] == "never":
            hint = "Train on other data sets to release weights; results may be published."
            raise InputError(f"{where}.weights", "'never'", "a data set whose weights may be released", hint)
        if each["weights"] == "free" and conditions(each["licence"]) is None:
            hint = "Write its SPDX name, or set weights: restricted and give --statement."
            raise InputError(f"{where}.licence", f"'{each['licence']}'", "a licence that allows it", hint)
        require_compatible(licence, each["licence"], f"{where}.licence")
        named = re.search(rf"(?<![\w-]){re.escape(each['dataset'])}(?![\w-])", statement or "")
        if each["weights"] == "restricted" and not named:
            found = "a statement that does not name it" if statement else "no statement"
            hint = f"Give --statement FILE: a text that says who allows weights trained on '{each['dataset']}' to go."
            raise InputError(f"{where}.weights: restricted", found, "who allows the release", hint)


def require_forgotten(terms: Sequence[Mapping[str, Any]], found: Memorisation, cell: Cell) -> None:
    """Refuse weights of restricted data that may remember people.

    Raises
    ------
    InputError : the check has not passed.
    """
    restricted = [each["dataset"] for each in terms if each["weights"] == "restricted"]
    if not restricted or found.passed:
        return
    told = f"{found.verdict} (AUROC {found.membership.value:.3f} by {found.statistic}, {found.nearness.value:.3f} by"
    told += f" distance, {found.copies} copies; {found.people_trained} and {found.people_held_out} people)"
    hint = "Train on more people or for fewer steps; where too few were asked, keep more for evaluation."
    expected = f"no sign of memorisation, as {', '.join(restricted)} is restricted"
    raise InputError(f"cell {cell.path}: memorisation", told, expected, hint)


def require_finished(folder: Path, summary: Mapping[str, Any]) -> None:
    """Refuse weights that did not become an encoder.

    Raises
    ------
    InputError : training diverged, collapsed or was stopped.
    """
    if summary["status"] != "completed":
        hint = "Release a cell whose training completed."
        raise InputError(folder / "summary.json", f"status '{summary['status']}'", "'completed'", hint)


def require_free(output: Path) -> None:
    """Refuse a folder that holds anything but an earlier release.

    Raises
    ------
    InputError : it does.
    """
    strangers = sorted({path.name for path in output.iterdir()} - {*FILES}) if output.is_dir() else []
    if strangers or (output.exists() and not output.is_dir()):
        found = f"'{strangers[0]}' in it" if strangers else "a file of that name"
        raise InputError(output, found, "a new folder, or one of an earlier release", "Choose another --output.")


def _read_statement(path: str | Path | None) -> str | None:
    if path is None:
        return None
    try:
        text = Path(path).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(path, f"{error}", "a text", "Write who allows the release.") from error
    if not text:
        raise InputError(path, "an empty file", "who allows the release", "Name each restricted data set in it.")
    return text


def _geometry(folder: str | Path | None, name: str) -> Path:
    path = Path(folder or ".") / name
    if not path.is_file():
        hint = "Give the study's folder of it: nobody could lay inputs out without."
        raise InputError(path, "no such file", "where the encoder's inputs lie", hint)
    return path
