"""Encoders that their authors released, as ours: read without running anything, renamed, checked, and written.

Only encoders are taken over. What a release holds beside (decoders, heads, optimiser states) is dropped, and the record
of the written file says so.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from pipeline.artefact import atomic_folder, write_text
from pipeline.errors import InputError, nearest
from pipeline.models import build
from pipeline.models.encoder import Encoder
from pipeline.pretrain.engine.checkpoint import checksum, read_tensors, write_tensors
from pipeline.pretrain.released import brainlm, cortexmae, neurostorm, swift
from pipeline.pretrain.released.contract import check_contract
from pipeline.pretrain.released.reading import check_sha256, match, read_checkpoint
from pipeline.pretrain.released.release import Release

__all__ = ["SYSTEMS", "check_contract", "import_checkpoint", "load_released"]

SYSTEMS: Mapping[str, Release] = {
    "swift-contrastive": swift.CONTRASTIVE,
    "swift-hcp-sex": swift.HCP_SEX,
    "neurostorm": neurostorm.RELEASE,
    "brainlm": brainlm.RELEASE,
    "cortexmae": cortexmae.RELEASE,
}
FILES = ("encoder.safetensors", "model_card.md")


def import_checkpoint(system: str, source: str | Path, output: str | Path, sha256: str | None = None) -> dict[str, Any]:
    """Write a released encoder as `encoder.safetensors` and `model_card.md` in the folder `output`; returns its record.

    Parameters
    ----------
    system : one of `SYSTEMS`.
    source : the released file: a torch checkpoint or safetensors.
    output : a new folder, or one that this function wrote; it appears complete or not at all.
    sha256 : the hash of the file that is meant, where it is not the pinned one.

    Raises
    ------
    InputError : unknown system, another hash, a file that needs more than tensors to be read, or weights that are not
        those of the encoder.
    """
    if system not in SYSTEMS:
        raise InputError("--system", f"'{system}'", "a released system", nearest(system, SYSTEMS))
    source, output, release = Path(source), Path(output), SYSTEMS[system]
    _require_free(output)
    checkpoint = read_checkpoint(source, check_sha256(source, release.sha256, sha256, release.source))
    converted = release.convert(checkpoint)
    with torch.device("meta"):  # shapes alone
        expected = dict(build(converted.model, converted.spec).named_parameters())
    tensors = match(source, converted.tensors, expected)
    record = {
        "model": converted.model,
        "spec": converted.spec,
        "needs": converted.needs,
        "contract": {**release.contract, "input": {**release.contract["input"], **converted.input}},
        "checksum": checksum(tensors),
        "released": {
            "system": system,
            "about": release.about,
            "source": release.source,
            "licence": release.licence,
            "citation": release.citation,
            "sha256": checkpoint.sha256,
            "vouched_by": release.sha256.get(checkpoint.sha256, "whoever gave --sha256"),
            "decoder": False,
        },
    }
    with atomic_folder(output) as folder:
        write_tensors(folder / FILES[0], tensors, record)
        write_text(folder / FILES[1], _card(record, sum(tensor.numel() for tensor in tensors.values())))
    return record


def _require_free(output: Path) -> None:
    strangers = sorted({path.name for path in output.iterdir()} - {*FILES}) if output.is_dir() else []
    if strangers or (output.exists() and not output.is_dir()):
        found = f"'{strangers[0]}' in it" if strangers else "a file of that name"
        raise InputError(output, found, "a new folder, or one of an earlier import", "Choose another --output.")


def load_released(folder: str | Path, **given: Any) -> tuple[Encoder, dict[str, Any]]:
    """An imported encoder in evaluation mode, and its record (`model`, `spec`, `needs`, `contract`, `released`).

    Parameters
    ----------
    folder : where `import_checkpoint` wrote it.
    given : the arguments that the record's `needs` names, all of them; None stands for the encoder's own stand-in.

    Raises
    ------
    InputError : there is none, it is damaged or of another version, or `given` is not what it needs.
    """
    path = Path(folder) / FILES[0]
    if not path.is_file():
        raise InputError(path, "no such file", "an imported encoder", "Run `pipeline import-checkpoint` first.")
    try:
        tensors, record = read_tensors(path)
        if "released" not in record or checksum(tensors) != record["checksum"]:
            raise ValueError("not an import, or other bytes than were written")
        _require_given(path, record["needs"], given)
        encoder = build(record["model"], {**record["spec"], **given})
        encoder.load_state_dict({**dict(encoder.named_buffers()), **tensors})
    except (SafetensorError, KeyError, ValueError, RuntimeError) as error:
        if isinstance(error, InputError):
            raise
        hint = "Import the released file again."
        raise InputError(path, f"a file that does not load ({error})", "an imported encoder", hint) from error
    return encoder.eval(), record


def _require_given(path: Path, needs: Mapping[str, str], given: Mapping[str, Any]) -> None:
    for name in sorted(needs.keys() ^ given.keys()):
        found, expected = ("nothing", needs[name]) if name in needs else ("a value", "nothing of that name")
        hint = "Arguments that a release does not hold are given to `load_released` by name."
        raise InputError(f"{path}: {name}", found, expected, hint)


def _card(record: Mapping[str, Any], numbers: int) -> str:
    """Markdown that says what the weights are, whose, and what they may be fed."""
    released, contract = record["released"], record["contract"]
    run = "\n".join(f"- {field}: {value}" for field, value in contract["run"].items())
    made = "\n".join(f"- {field}: {value}" for field, value in contract["input"].items())
    needs = "\n".join(f"- {name}: {what}" for name, what in record["needs"].items()) or "- nothing"
    return f"""# {released["system"]}

{released["about"]} Encoder only: no decoder and no head came with it.

- model: `{record["model"]}`, {numbers:,} numbers
- licence of the weights: {released["licence"]}
- source: {released["source"]}
- cite: {released["citation"]}
- SHA-256 of the released file: `{released["sha256"]}`, vouched for by: {released["vouched_by"]}

## Data contract
Input that differs from this means nothing to the encoder, and is refused.

The run must be:
{run}

The input is then made of it:
{made}

The released file does not hold, so that `load_released` must be given:
{needs}
"""
