"""Who a cell is trained on and who is held out, as entries of manifests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.artefact import digest, read_json
from pipeline.bold.people import cell_people
from pipeline.config import Study
from pipeline.errors import InputError
from pipeline.grid import Cell, cell_datasets, sweep_rate

Entry = Mapping[str, Any]
Paths = Mapping[str, str | Path]


@dataclass(frozen=True)
class People:
    """Who is trained on, by their first run, and who is held out, by all runs."""

    trained: list[Entry]
    held_out: list[Entry]

    @property
    def names(self) -> list[str]:
        """`dataset/subject` of those trained on."""
        return [person(entry) for entry in self.trained]


def person(entry: Entry) -> str:
    """`dataset/subject` of a run."""
    return f"{entry['dataset']}/{entry['subject']}"


def choose_people(study: Study, cell: Cell, manifests: Paths, draws: str | Path, evaluation_set: str | Path) -> People:
    """Who is trained on and who is held out.

    Raises
    ------
    InputError : too few people, or a first run shorter than `cell.frames`.
    """
    runs, needed = _runs_by_person(manifests), study.least_frames(cell.architecture)
    datasets = cell_datasets(study, cell)
    names = cell_people(Path(draws), cell.draw, cell.subjects, datasets)
    if sweep_rate(cell) is None:
        kept = read_json(evaluation_set)["people"]
        candidates = [f"{name}/{subject}" for name in datasets for subject in kept.get(name, [])]
        held_out = sorted(candidates, key=digest)
    else:
        everyone = [name for name in read_json(draws)[str(cell.draw)] if name.split("/")[0] in datasets]
        held_out = [name for name in everyone if name not in names]
    long_enough = {
        name: [entry for entry in runs[name] if entry["frames"] >= needed] for name in held_out if name in runs
    }
    held_out = [name for name in held_out if long_enough.get(name)][: study.pretrain.validation_people]
    if not held_out:
        hint = "Give a pretraining data set evaluation_people; leave people over in grid.learning_rate.subjects."
        expected = f"people with runs of {needed} frames for the validation loss"
        raise InputError(f"cell {cell.path}", "nobody held out", expected, hint)
    trained = [_first_run(runs, name, cell.frames) for name in names]
    return People(trained, [entry for name in held_out for entry in long_enough[name]])


def _runs_by_person(manifests: Paths) -> dict[str, list[Entry]]:
    runs: dict[str, list[Entry]] = {}
    for manifest in manifests.values():
        for entry in sorted(read_json(manifest)["runs"], key=lambda entry: (entry["session"], entry["run"])):
            runs.setdefault(person(entry), []).append(entry)
    return runs


def _first_run(runs: Mapping[str, Sequence[Entry]], name: str, frames: int) -> Entry:
    if name not in runs:
        hint = "A derived store may have lost the run: see `quarantined` in its manifest."
        raise InputError(f"person {name}", "no run in the manifests", "a run", hint)
    entry = runs[name][0]
    if entry["frames"] < frames:
        hint = "Lower T in the grid, or raise shards.min_frames so that short runs are quarantined."
        raise InputError(entry["path"], f"{entry['frames']} frames", f"at least T = {frames}", hint)
    return entry
