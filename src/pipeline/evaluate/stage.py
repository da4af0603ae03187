"""The evaluation stage: one frozen encoder, or systems outside the grid, through every protocol of every data set.

Writes the probe's table (summaries and identity), the benchmark's (every split too), averaged scores of people, and
what each protocol was run on.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from pipeline.artefact import provenance, read_json, write_table
from pipeline.bold.template import load_template
from pipeline.config import Study
from pipeline.evaluate.benchmark import complete, missing_rows, protocol_of, read_task
from pipeline.evaluate.cohort import Cohort, Paths, Task, hidden_name, load_cohorts
from pipeline.evaluate.fingerprint import identity_rows, missing_identity
from pipeline.evaluate.judged import Contest, Judged, Row
from pipeline.evaluate.probes.linear import linear_reader
from pipeline.evaluate.protocols import VERSIONS as PROTOCOLS
from pipeline.evaluate.reading import Reader, RunFeatures
from pipeline.evaluate.rows import ALL, MEAN, NOT_FINITE, OOF, PERMUTED
from pipeline.evaluate.splits import leave_site_out
from pipeline.evaluate.statistics import minimal_detectable_difference
from pipeline.evaluate.systems import System
from pipeline.evaluate.systems.material import Material
from pipeline.evaluate.systems.people import confound_features
from pipeline.evaluate.systems.readers import harmonisation
from pipeline.stages import VERSIONS
from pipeline.tables import BENCHMARK_SCHEMA, RESULT_SCHEMA, SCORES_SCHEMA, TASKS_SCHEMA, system_columns


class Rows(NamedTuple):
    """Rows of the tables."""

    probe: list[Row]
    benchmark: list[Row]
    scores: list[Row]
    tasks: list[Row]


def evaluate_systems(
    study: Study,
    systems: Mapping[str, Sequence[System]],
    template_folder: str | Path | None,
    manifests: Paths,
    participants: Paths,
    evaluation_set: str | Path,
) -> tuple[Rows, list[Cohort]]:
    """Systems outside the grid on every evaluation data set: those named for each, on the encoders' people and splits.

    Raises
    ------
    InputError : as `load_cohorts`.
    """
    template = None if template_folder is None else load_template(template_folder)
    cohorts = load_cohorts(study, manifests, participants, evaluation_set)
    parts = [Rows([], [], [], [*task_rows(study, cohorts, evaluation_set)])]
    for cohort in cohorts:
        material = Material(study, cohort, template)
        for system in systems.get(cohort.dataset, ()):
            parts += _of_system(study, cohort, system, material)
    return merge(parts), cohorts


def _of_system(study: Study, cohort: Cohort, system: System, material: Material) -> Iterator[Rows]:
    about = about_rows(cohort, system_columns(system.name))
    for task in cohort.tasks:
        if system.trained and not learns(study, task):
            continue
        reader = system.make(material, task)
        if reader is not None:
            yield read(study, cohort, task, about, reader, system.trained)
    features = system.identity(material)
    if features is not None:
        yield read_identity(study, cohort, about, features.short_RKD)


def learns(study: Study, task: Task) -> bool:
    """Whether systems that are trained learn a task."""
    named = study.evaluate.supervised.tasks
    return not named or task.name in named


def about_rows(cohort: Cohort, columns: Row, status: str = "completed") -> Row:
    """The columns that say whose rows are, but for the task."""
    return {**columns, "dataset": cohort.dataset, "simulated": cohort.simulated, "status": status}


def read(study: Study, cohort: Cohort, task: Task, about: Row, reader: Reader, trained: bool = False) -> Rows:
    """One system on one task by every protocol."""
    found, judged = read_task(contest_of(study, cohort, task, trained), reader)
    rows = complete(about, found)
    summaries = [row for row in rows if row["split"] in (MEAN, OOF, PERMUTED) and row["group"] == ALL]
    scores = _score_rows(study, cohort, task, {**about, "protocol": protocol_of(trained)}, judged)
    return Rows(summaries, rows, scores, [])


def read_features(study: Study, cohort: Cohort, about: Row, features: RunFeatures) -> Rows:
    """All that is read from one encoder's features of runs: every label, and identity."""
    person_ND = cohort.per_person(features.full_RD)
    parts = []
    for task in cohort.tasks:
        features_MD = person_ND[task.rows_M]
        if np.isfinite(features_MD).all():
            harmonise = harmonisation(study, cohort, task)
            reader = linear_reader(features_MD, task.families_M, study.evaluate.penalties, task.kind, harmonise)
            parts.append(read(study, cohort, task, about, reader))
        else:
            why = NOT_FINITE if about["status"] == "completed" else about["status"]
            gaps = complete({**about, "status": why}, missing_rows(task, protocol_of(False)))
            parts.append(Rows(gaps, gaps, [], []))
    return merge([*parts, read_identity(study, cohort, about, features.short_RKD)])


def read_identity(study: Study, cohort: Cohort, about: Row, short_RKD: np.ndarray) -> Rows:
    """Identity across sessions; no rows where fewer than two people have two, nor of a state."""
    (first, second), person_M = cohort.session_pairs()
    if len(person_M) < 2 or len(cohort.members) > 1:
        return Rows([], [], [], [])
    if np.isfinite(short_RKD).all():
        families_M = cohort.people["family"].to_numpy()[person_M]
        found = identity_rows(short_RKD[first], short_RKD[second], families_M, study.evaluate, cohort.key)
    else:
        found = missing_identity(len(person_M))
    return Rows(complete(about, found), [], [], [])


def contest_of(study: Study, cohort: Cohort, task: Task, trained: bool) -> Contest:
    """What a system is put to on a task."""
    confounds_MD = confound_features(cohort, task)
    return Contest(task, study.evaluate, protocol_of(trained), cohort.known(task), confounds_MD)


def task_rows(study: Study, cohorts: Sequence[Cohort], evaluation_set: str | Path) -> Iterator[Row]:
    """What every protocol is run on: people, splits and their hashes, the tuning budget, what could be found."""
    settings, chosen = study.evaluate, read_json(evaluation_set)["hash"]
    for cohort in cohorts:
        for task in cohort.tasks:
            positive = int(task.labels_M.sum())
            negative = len(task.labels_M) - positive
            numbers = {"n": len(task.target_M), "families": len(np.unique(task.families_M)), "positive": positive}
            numbers |= {"negative": negative, "tuning": settings.tuning}
            independent = [len(np.unique(task.families_M[task.labels_M == label])) for label in (1, 0)]
            found = minimal_detectable_difference(*independent) if task.kind == "classes" else np.nan
            for name in settings.protocols:
                if name == "trained" and not learns(study, task):
                    continue
                of_protocol = _splits(study, task, name)
                if of_protocol[0] < 2:
                    continue  # a single site cannot be left out
                yield {
                    **{"dataset": cohort.dataset, "task": task.name, "protocol": PROTOCOLS[name], "kind": task.kind},
                    **{"splits": of_protocol[0], "splits_hash": of_protocol[1], "evaluation_hash": chosen},
                    **{"detectable": found, "simulated": cohort.simulated, **numbers},
                }


def _splits(study: Study, task: Task, protocol: str) -> tuple[int, str]:
    """How many splits a protocol has, and their hash."""
    settings = study.evaluate
    if protocol == "trained":
        task = task._replace(parts_SM=task.parts_SM[: settings.declared_splits])
    elif protocol == "leave_site_out":
        parts = leave_site_out(task.labels_M, task.families_M, task.site_M, settings.validation, task.key)
        task = task._replace(parts_SM=np.array([*parts.values()]))
    elif protocol == "low_shot":
        return settings.low_shot_draws, ""
    return len(task.parts_SM), task.splits_hash


def _score_rows(study: Study, cohort: Cohort, task: Task, about: Row, judged: Judged) -> list[Row]:
    shared = {name: value for name, value in about.items() if name in SCORES_SCHEMA.names}
    said_M = judged.probability_M if task.kind == "classes" else np.full(len(task.target_M), np.nan)
    subjects = cohort.people.index[task.rows_M]
    people = zip(subjects, task.families_M, task.target_M, judged.score_M, said_M, strict=True)
    return [
        {
            **shared,
            "task": task.name,
            "person": hidden_name(study, cohort.dataset, subject),
            "family": hidden_name(study, cohort.dataset, f"family/{family}"),
            "label": float(label),
            "score": float(score),
            "probability": float(said),
        }
        for subject, family, label, score, said in people
        if np.isfinite(score)
    ]


def merge(parts: Iterable[Rows]) -> Rows:
    """One set of rows."""
    return Rows(*([*chain.from_iterable(lists)] for lists in zip(*parts, strict=True)))


def write(
    study: Study,
    rows: Rows,
    cohorts: Sequence[Cohort],
    probe_out: str | Path,
    benchmark_out: str | Path,
    files: Mapping[str, str | Path],
    more: Mapping[str, Any] | None = None,
) -> None:
    """The tables, with the protocols, the hash of each task's splits and what was resampled in their record."""
    record = provenance("benchmark", VERSIONS["benchmark"], study.evaluate.model_dump(), dict(files))
    record["protocols"] = [PROTOCOLS[name] for name in study.evaluate.protocols]
    record["splits"] = {f"{each.dataset}/{task.name}": task.splits_hash for each in cohorts for task in each.tasks}
    record["people"] = {each.dataset: len(each.people) for each in cohorts}
    record["people_without_runs"] = {each.dataset: len(each.excluded) for each in cohorts}
    record |= more or {}
    beside = Path(benchmark_out)
    for path, found, schema in (
        (beside.with_name("tasks.parquet"), rows.tasks, TASKS_SCHEMA),
        (beside.with_name("scores.parquet"), rows.scores, SCORES_SCHEMA),
        (probe_out, [{name: row[name] for name in RESULT_SCHEMA.names} for row in rows.probe], RESULT_SCHEMA),
        (beside, rows.benchmark, BENCHMARK_SCHEMA),
    ):
        if found or schema is not TASKS_SCHEMA:
            write_table(path, pd.DataFrame(found, columns=schema.names), schema, record)
