"""The evaluation stage: one cell, or all simple systems, through protocol frozen-v1 on every evaluation data set.

Each run writes `probe.parquet` (summaries of each label, and identity), `benchmark.parquet` (every row of each label)
and, beside that, `scores.parquet` (a score a person, under hashed names), from which systems are compared in pairs.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from pipeline.artefact import digest, provenance, read_json, write_table
from pipeline.bold.people import cell_people
from pipeline.bold.reader import Shard
from pipeline.bold.template import Template, load_template
from pipeline.config import Study
from pipeline.errors import InputError
from pipeline.evaluate import baselines
from pipeline.evaluate.benchmark import PERMUTED, PROTOCOL, SUMMARY, Row, identity_rows, label_rows, missing_rows
from pipeline.evaluate.cohort import Cohort, Paths, Task, hidden_name, load_cohorts, require_unseen
from pipeline.evaluate.features import RunFeatures, encode_runs, pool
from pipeline.evaluate.splits import seeded
from pipeline.grid import RANDOM, Cell, cell_datasets, encodes_shuffled
from pipeline.pretrain.engine.checkpoint import load_cell
from pipeline.pretrain.rasters import raster_of
from pipeline.stages import VERSIONS
from pipeline.tables import RESULT_SCHEMA, SCORES_SCHEMA, cell_columns, system_columns

SHUFFLED = "time_shuffled"
UNITS = {"top1": "share of people", "mean_rank": "share of other people"}


class Rows(NamedTuple):
    """Rows of the three tables."""

    probe: list[Row]
    benchmark: list[Row]
    scores: list[Row]


def evaluate_cell(
    study: Study,
    cell: Cell,
    pretrain_folder: str | Path,
    template_folder: str | Path,
    manifests: Paths,
    participants: Paths,
    evaluation_set: str | Path,
    probe_out: str | Path,
    benchmark_out: str | Path,
    flatmap_folder: str | Path | None = None,
) -> None:
    """Probe one frozen encoder; `manifests` and `participants` hold a file for each data set.

    `flatmap_folder` holds flatmap.npz; only encoders of flat maps need it.
    The largest encoder of each architecture is also given its input with frames in random order, as a control.

    Raises
    ------
    InputError : it was pretrained on an evaluation person or their family, or for shards of another contract.
    """
    folder, context = Path(pretrain_folder), study.context_frames(cell.architecture)
    model, metadata = load_cell(folder)
    summary, template = read_json(folder / "summary.json"), load_template(template_folder)
    cohorts = load_cohorts(study, manifests, participants, evaluation_set)
    trained_on = _trained_on(study, cell, summary["people_hash"], Path(evaluation_set).with_name("draws.json"), folder)
    raster = raster_of(metadata, template, flatmap_folder, next(model.parameters()).device)
    rows = []
    for cohort in cohorts:
        require_unseen(cohort, trained_on, participants, folder)
        shards = [Shard.open(path, metadata["contract"]) for path in cohort.folders]
        for columns, shuffle in _inputs(study, cell, cohort):
            frames = study.evaluate.frames
            clips = encode_runs(model.encoder, shards, raster, context, frames=frames, shuffle=shuffle)
            about = _about(cohort, columns, summary["status"])
            rows.append(_read_out(study, cohort, about, pool(clips, context, study.evaluate.identity_frames)))
    files = {"encoder": folder / "encoder.safetensors", "evaluation_set": evaluation_set}
    _write(study, rows, cohorts, probe_out, benchmark_out, files)


def evaluate_baselines(
    study: Study,
    template_folder: str | Path,
    manifests: Paths,
    participants: Paths,
    evaluation_set: str | Path,
    probe_out: str | Path,
    benchmark_out: str | Path,
) -> None:
    """Every simple system on the same people, splits and draws as the encoders."""
    template = load_template(template_folder)
    cohorts = load_cohorts(study, manifests, participants, evaluation_set)
    rows = [
        found
        for cohort in cohorts
        for found in chain(_from_bold(study, cohort, template), _without_bold(study, cohort))
    ]
    _write(study, rows, cohorts, probe_out, benchmark_out, {"evaluation_set": evaluation_set})


def _trained_on(study: Study, cell: Cell, people_hash: str, draws: Path, folder: Path) -> list[str]:
    """People that the encoder saw, after checking that the draws still say what they said when it was trained."""
    if cell.variant == RANDOM:
        return []
    people = cell_people(draws, cell.draw, cell.subjects, cell_datasets(study, cell))
    if digest(people) != people_hash:
        hint = "The draws have changed since: run the cell again."
        raise InputError(folder / "summary.json", f"people_hash {people_hash}", f"{digest(people)}, of {draws}", hint)
    return people


def _inputs(study: Study, cell: Cell, cohort: Cohort) -> Iterator[tuple[Row, np.random.Generator | None]]:
    """Inputs that the encoder is given: as they are, and for the largest one also with their frames shuffled."""
    yield cell_columns(cell), None
    if encodes_shuffled(study, cell):
        columns = cell_columns(cell, f"{cell.architecture}_{SHUFFLED}")
        yield {**columns, "variant": SHUFFLED}, seeded(cohort.key, SHUFFLED)


def _about(cohort: Cohort, columns: Row, status: str = "completed") -> Row:
    return {**columns, "dataset": cohort.dataset, "simulated": cohort.simulated, "status": status}


def _from_bold(study: Study, cohort: Cohort, template: Template) -> Iterator[Rows]:
    shards = (Shard.open(path, {"template": template.key}) for path in cohort.folders)
    lengths = study.evaluate.identity_frames, study.evaluate.frames
    for system, features in baselines.run_features(shards, template, *lengths).items():
        yield _read_out(study, cohort, _about(cohort, system_columns(system)), features)


def _without_bold(study: Study, cohort: Cohort) -> Iterator[Rows]:
    named = study.datasets[cohort.dataset].confounds
    confounds = _about(cohort, system_columns(baselines.CONFOUNDS))
    for task in cohort.tasks:
        yield _label(study, cohort, task, confounds, baselines.confound_features(cohort, named, task.name))
    nothing_RD = baselines.no_features(len(cohort.runs))
    chance = _about(cohort, system_columns(baselines.CHANCE))
    yield _read_out(study, cohort, chance, RunFeatures(nothing_RD, nothing_RD[:, None]))


def _read_out(study: Study, cohort: Cohort, about: Row, features: RunFeatures) -> Rows:
    """All that is read from one system's features of runs: every label, and identity."""
    person_ND = cohort.per_person(features.full_RD)
    labels = [_label(study, cohort, task, about, person_ND) for task in cohort.tasks]
    return _merge([*labels, _identity(study, cohort, about, features.short_RKD)])


def _label(study: Study, cohort: Cohort, task: Task, about: Row, person_ND: np.ndarray) -> Rows:
    features_MD = person_ND[task.rows_M]
    if about["architecture"] and not np.isfinite(features_MD).all():
        gaps = _complete(about, missing_rows(task.name, ("auroc", "balanced_accuracy"), len(features_MD)))
        return Rows(gaps, gaps, [])
    found, score_M = label_rows(features_MD, task, study.evaluate)
    rows = _complete(about, found)
    summaries = [row for row in rows if row["split"] in (SUMMARY, PERMUTED)]
    return Rows(summaries, rows, _score_rows(study, cohort, task, about, score_M))


def _identity(study: Study, cohort: Cohort, about: Row, short_RKD: np.ndarray) -> Rows:
    """Identity across sessions; no rows where fewer than two people have two."""
    (first, second), person_M = cohort.session_pairs()
    if len(person_M) < 2:
        return Rows([], [], [])
    if np.isfinite(short_RKD).all():
        families_M = cohort.people["family"].to_numpy()[person_M]
        found = identity_rows(short_RKD[first], short_RKD[second], families_M, study.evaluate, cohort.key)
    else:
        found = missing_rows("identity", tuple(UNITS), len(person_M))
    return Rows(_complete(about, found), [], [])


def _complete(about: Row, rows: Iterable[Row]) -> list[Row]:
    return [{**about, "unit": UNITS.get(row["metric"], "1"), **row} for row in rows]


def _score_rows(study: Study, cohort: Cohort, task: Task, about: Row, score_M: np.ndarray) -> list[Row]:
    shared = {name: value for name, value in about.items() if name in SCORES_SCHEMA.names}
    people = zip(cohort.people.index[task.rows_M], task.families_M, task.labels_M, score_M, strict=True)
    return [
        {
            **shared,
            "task": task.name,
            "person": hidden_name(study, cohort.dataset, subject),
            "family": hidden_name(study, cohort.dataset, f"family/{family}"),
            "label": int(label),
            "score": float(score),
        }
        for subject, family, label, score in people
        if np.isfinite(score)
    ]


def _merge(parts: Iterable[Rows]) -> Rows:
    return Rows(*([*chain.from_iterable(lists)] for lists in zip(*parts, strict=True)))


def _write(
    study: Study,
    parts: list[Rows],
    cohorts: list[Cohort],
    probe_out: str | Path,
    benchmark_out: str | Path,
    files: dict[str, str | Path],
) -> None:
    """The three tables, with the protocol, the hash of each task's splits and the exclusions in their record."""
    rows = _merge([Rows([], [], []), *parts])
    record = provenance("benchmark", VERSIONS["benchmark"], study.evaluate.model_dump(), files)
    record["protocol"] = PROTOCOL
    record["splits"] = {f"{each.dataset}/{task.name}": task.splits_hash for each in cohorts for task in each.tasks}
    record["people"] = {each.dataset: len(each.people) for each in cohorts}
    record["people_without_runs"] = {each.dataset: len(each.excluded) for each in cohorts}
    for path, found, schema in (
        (Path(benchmark_out).with_name("scores.parquet"), rows.scores, SCORES_SCHEMA),
        (probe_out, rows.probe, RESULT_SCHEMA),
        (benchmark_out, rows.benchmark, RESULT_SCHEMA),
    ):
        write_table(path, pd.DataFrame(found, columns=schema.names), schema, record)
