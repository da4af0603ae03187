"""One encoder of the grid through every protocol: its frozen features, and where asked for, fine-tuned or read by
attentive pooling.

Its people are checked first: nobody it was pretrained on may be evaluated, nor anybody of their family.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.artefact import digest, read_json, sha256_file
from pipeline.bold.people import cell_people
from pipeline.bold.reader import Shard
from pipeline.bold.resample import describe_resampling
from pipeline.bold.template import Template, load_template
from pipeline.config import Study
from pipeline.errors import InputError
from pipeline.evaluate import stage
from pipeline.evaluate.cohort import Cohort, Paths, load_cohorts, require_other_scans, require_unseen
from pipeline.evaluate.device import device_of
from pipeline.evaluate.features import Resampled, at_tr, cached, encode_runs, pool
from pipeline.evaluate.judged import Row
from pipeline.evaluate.reading import RunFeatures
from pipeline.evaluate.rows import ATTENTIVE, FINE_TUNED, TIME_SHUFFLED
from pipeline.evaluate.splits import seeded
from pipeline.evaluate.stage import Rows
from pipeline.grid import RANDOM, Cell, cell_datasets, encodes_shuffled, first_of_largest
from pipeline.models.parts.voxels import Raster
from pipeline.pretrain.engine.checkpoint import load_cell
from pipeline.pretrain.rasters import raster_of
from pipeline.stages import VERSIONS
from pipeline.tables import cell_columns


@dataclass(frozen=True, eq=False)
class Frozen:
    """An encoder of the grid, and what its input must be."""

    study: Study
    cell: Cell
    folder: Path
    encoder: Any
    contract: dict[str, Any]
    raster: Raster
    status: str
    trained_on: list[str]  # `dataset/subject`
    features_folder: Path | None

    @property
    def context(self) -> int:
        """Frames of a clip."""
        return self.study.context_frames(self.cell.architecture)

    def shards(self, cohort: Cohort) -> list[Shard]:
        """The runs of a cohort, by the contract of the encoder; another TR is resampled later."""
        expected = {field: value for field, value in self.contract.items() if field != "tr_s"}
        return [Shard.open(path, expected) for path in cohort.folders]

    def require_strangers(self, cohort: Cohort, participants: Paths, raw_manifests: Paths) -> None:
        """Refuse it where it saw an evaluated person, a relative of theirs, or their scan under another name."""
        require_unseen(cohort, self.trained_on, participants, self.folder)
        require_other_scans(cohort, self.trained_on, raw_manifests, self.folder)

    def scans(self, cohort: Cohort) -> list[Shard | Resampled]:
        """The runs at the encoder's TR."""
        return [at_tr(shard, self.contract["tr_s"]) for shard in self.shards(cohort)]

    def features(self, cohort: Cohort, shuffled: bool) -> RunFeatures:
        """Features of every run, encoded once and kept."""
        settings, shuffle = self.study.evaluate, seeded(cohort.key, TIME_SHUFFLED) if shuffled else None
        scan = {"frames": settings.frames, "tr_s": self.contract["tr_s"]}
        sources = [run["manifest"] for run in cohort.runs]
        weights = sha256_file(self.folder / "encoder.safetensors")
        seed = [cohort.key, TIME_SHUFFLED] if shuffled else None
        key = digest([weights, sources, self.context, scan, seed, VERSIONS["benchmark"]])
        name = f"{cohort.dataset}-{TIME_SHUFFLED}.npz" if shuffled else f"{cohort.dataset}.npz"
        kept = None if self.features_folder is None else self.features_folder / name
        shards = self.shards(cohort)  # opened, and so checked, whether features are kept or not
        clips = cached(
            kept, key, lambda: encode_runs(self.encoder, shards, self.raster, self.context, shuffle=shuffle, **scan)
        )
        return pool(clips, self.context, settings.identity_frames)

    def resampled(self, cohort: Cohort) -> dict[str, int]:
        """How runs were brought to the encoder's TR, and how many of them."""
        told: dict[str, int] = {}
        for run in cohort.runs:
            how = describe_resampling(run["tr_s"], self.contract["tr_s"])
            told[how] = told.get(how, 0) + 1
        return told


def evaluate_cell(
    study: Study,
    cell: Cell,
    pretrain_folder: str | Path,
    template_folder: str | Path,
    manifests: Paths,
    raw_manifests: Paths,
    participants: Paths,
    evaluation_set: str | Path,
    probe_out: str | Path,
    benchmark_out: str | Path,
    features_folder: str | Path | None = None,
    flatmap_folder: str | Path | None = None,
) -> None:
    """Put one encoder to every protocol; `manifests`, `participants` hold a file for each evaluation data set.

    `raw_manifests` are those of every data set that serves pretraining or evaluation, before anything is derived of
    their runs. `flatmap_folder` holds flatmap.npz; only encoders of flat maps need it. In `features_folder` features
    are kept. The last of the largest encoders of each architecture is also given its input with frames in random order.

    Raises
    ------
    InputError : it was pretrained on an evaluation person or their family, or for shards of another contract.
    """
    cohorts = load_cohorts(study, manifests, participants, evaluation_set)
    template = load_template(template_folder)
    draws = Path(evaluation_set).with_name("draws.json")
    frozen = open_frozen(study, cell, pretrain_folder, template, draws, features_folder, flatmap_folder)
    rows: list[Rows] = []
    for cohort in cohorts:
        frozen.require_strangers(cohort, participants, raw_manifests)
        rows += _of_cohort(frozen, cohort)
    files = {"encoder": frozen.folder / "encoder.safetensors", "evaluation_set": evaluation_set}
    more = {"resampled": {cohort.dataset: frozen.resampled(cohort) for cohort in cohorts}}
    stage.write(study, stage.merge(rows), cohorts, probe_out, benchmark_out, files, more)


def open_frozen(
    study: Study,
    cell: Cell,
    pretrain_folder: str | Path,
    template: Template,
    draws: Path,
    features_folder: str | Path | None,
    flatmap_folder: str | Path | None,
) -> Frozen:
    """A finished cell, ready to encode, and who it was trained on.

    Raises
    ------
    InputError : the draws are no longer those that it was trained on.
    """
    folder = Path(pretrain_folder)
    model, metadata = load_cell(folder)
    model.to(device_of(study))
    summary = read_json(folder / "summary.json")
    return Frozen(
        study=study,
        cell=cell,
        folder=folder,
        encoder=model.encoder,
        contract=metadata["contract"],
        raster=raster_of(metadata, template, flatmap_folder, next(model.parameters()).device),
        status=summary["status"],
        trained_on=_trained_on(study, cell, summary["people_hash"], draws, folder),
        features_folder=None if features_folder is None else Path(features_folder),
    )


def _trained_on(study: Study, cell: Cell, people_hash: str, draws: Path, folder: Path) -> list[str]:
    """People that the encoder saw, after checking that the draws still say what they said when it was trained."""
    if cell.variant == RANDOM:
        return []
    people = cell_people(draws, cell.draw, cell.subjects, cell_datasets(study, cell))
    if digest(people) != people_hash:
        hint = "The draws have changed since: run the cell again."
        raise InputError(folder / "summary.json", f"people_hash {people_hash}", f"{digest(people)}, of {draws}", hint)
    return people


def _of_cohort(frozen: Frozen, cohort: Cohort) -> Iterator[Rows]:
    study, cell = frozen.study, frozen.cell
    about = stage.about_rows(cohort, cell_columns(cell), frozen.status)
    yield stage.read_features(study, cohort, about, frozen.features(cohort, shuffled=False))
    if encodes_shuffled(study, cell):
        features = frozen.features(cohort, shuffled=True)
        yield stage.read_features(study, cohort, _renamed(about, TIME_SHUFFLED), features)
    settings = study.evaluate.supervised
    if "trained" not in study.evaluate.protocols or frozen.status == "diverged":
        return
    if first_of_largest(study, cell, settings.attentive):
        yield from _attentive(frozen, cohort, _renamed(about, ATTENTIVE))
    if first_of_largest(study, cell, settings.fine_tune):
        yield from _fine_tuned(frozen, cohort, _renamed(about, FINE_TUNED))


def _renamed(about: Mapping[str, Any], how: str) -> Row:
    """The same cell, read in another way."""
    return {**about, "system": f"{about['architecture']}_{how}", "variant": how}


def _attentive(frozen: Frozen, cohort: Cohort, about: Row) -> Iterator[Rows]:
    from pipeline.evaluate.supervised.attentive import attentive_reader, encode_tokens, stack_tokens

    study, settings = frozen.study, frozen.study.evaluate
    tokens_RLD = [
        encode_tokens(frozen.encoder, scan, frozen.raster, frozen.context, frames=settings.frames)
        for scan in frozen.scans(cohort)
    ]
    tokens_NLD = stack_tokens(tokens_RLD, cohort.person_R)
    for task in (task for task in cohort.tasks if stage.learns(study, task)):
        key = digest([task.key, frozen.cell.path, ATTENTIVE])
        reader = attentive_reader(tokens_NLD[task.rows_M], settings.supervised, task.kind, key, device_of(study))
        yield stage.read(study, cohort, task, about, reader, trained=True)


def _fine_tuned(frozen: Frozen, cohort: Cohort, about: Row) -> Iterator[Rows]:
    from pipeline.evaluate.supervised.fine_tune import fine_tune_reader

    study, settings, scans = frozen.study, frozen.study.evaluate, frozen.scans(cohort)
    for task in (task for task in cohort.tasks if stage.learns(study, task)):
        scans_MK = [[scans[run] for run in np.flatnonzero(cohort.person_R == person)] for person in task.rows_M]
        key = digest([task.key, frozen.cell.path, FINE_TUNED])
        seen = frozen.raster, frozen.context, settings.supervised
        reader = fine_tune_reader(frozen.folder, scans_MK, *seen, task.kind, key, frames=settings.frames)
        yield stage.read(study, cohort, task, about, reader, trained=True)
