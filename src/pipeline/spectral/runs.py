"""Which runs are analysed, and which are refused."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.artefact import read_json
from pipeline.bold.reader import Shard
from pipeline.config import Study
from pipeline.errors import InputError
from pipeline.evaluate.cohort import hidden_name
from pipeline.spectral.spectrum import require_broadband

FILTERED_WORDS = ("bandpass", "band-pass", "lowpass", "low-pass")


@dataclass(frozen=True, eq=False)
class PersonRun:
    """One run of one person; `index` numbers the runs of a job, and seeds what is drawn for this one."""

    dataset: str
    person: str
    index: int
    bold_TV: np.ndarray
    tr_s: float
    tsnr: float


def person_runs(
    study: Study,
    manifests: Mapping[str, str | Path],
    evaluation_set: str | Path,
    contract: Mapping[str, Any],
    people: int,
    every_run: bool,
) -> Iterator[PersonRun]:
    """Runs of the first `people`, person after person: evaluation people where a data set has them, else everybody."""
    evaluated, index = read_json(evaluation_set)["people"], 0
    for dataset, manifest in manifests.items():
        if study.datasets[dataset].door == "parcels":
            continue  # series without volumes have no template, hence no shared places to average over
        entries = _entries(study, Path(manifest), evaluated.get(dataset), people)
        for entry in (run for runs in entries for run in (runs if every_run else runs[:1])):
            shard = Shard.open(entry["path"], contract)
            bold_TV = shard.read()
            _refuse_filtered(study, shard, bold_TV)
            person = hidden_name(study, dataset, entry["subject"])
            yield PersonRun(dataset, person, index, bold_TV, shard.tr_s, entry["tsnr"])
            index += 1


def _entries(study: Study, manifest: Path, evaluated: list[str] | None, people: int) -> list[list[dict[str, Any]]]:
    """Long enough runs of each of the first `people` who have one."""
    listed = sorted(read_json(manifest)["runs"], key=lambda entry: (entry["subject"], entry["session"], entry["run"]))
    long_enough = [entry for entry in listed if entry["frames"] * entry["tr_s"] >= study.spectral.min_seconds]
    wanted = sorted(evaluated) if evaluated is not None else list(dict.fromkeys(entry["subject"] for entry in listed))
    runs = {subject: [entry for entry in long_enough if entry["subject"] == subject] for subject in wanted}
    found_runs = [entries for entries in runs.values() if entries][:people]
    if people and not found_runs:
        found = f"none of {len(listed)} runs of at least {study.spectral.min_seconds:g} s"
        hint = "Use longer runs: a slope from 0.01 Hz needs 200 s."
        raise InputError(manifest, found, "a run that is long enough", hint)
    return found_runs


def _refuse_filtered(study: Study, shard: Shard, bold_TV: np.ndarray) -> None:
    """Band-passed data have no slope: refused by what they are called, and by measurement."""
    hint = "Use the data before temporal filtering."
    denoising = str(shard.contract.get("denoising", ""))
    if any(word in denoising.lower() for word in FILTERED_WORDS):
        raise InputError(f"{shard.folder}: contract.denoising", f"'{denoising}'", "unfiltered data", hint)
    try:
        require_broadband(bold_TV, shard.tr_s, study.spectral.band_hz)
    except ValueError as error:
        raise InputError(shard.folder, found_part(error), "unfiltered data", hint) from error


def found_part(error: ValueError) -> str:
    """What an error of this package says was found, without what it expected."""
    return str(error).removeprefix("found ").partition(";")[0]
