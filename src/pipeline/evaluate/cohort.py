"""The people under evaluation: who they are, which of their runs are used, and each task's labels and splits.

Axes: N people of a cohort, in the order of their ids; R runs; S splits. Splits are drawn inside the evaluation set that
was fixed before any pretraining, from the study's seed and that set's hash, so they are the same for every system.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from pipeline.artefact import digest, read_json
from pipeline.bold.people import read_people
from pipeline.config import Study
from pipeline.errors import InputError
from pipeline.evaluate.splits import draw_splits, seeded

Paths = Mapping[str, str | Path]


class Task(NamedTuple):
    """One label of a cohort: whom it is known for, and who is in which part of each split."""

    name: str
    rows_M: np.ndarray  # rows of the cohort's people whose label is known
    labels_M: np.ndarray
    families_M: np.ndarray
    parts_SM: np.ndarray
    key: str  # seeds all else that is drawn for this task; the same for every system

    @property
    def splits_hash(self) -> str:
        """Stands for who is in which part of every split."""
        return digest([self.key, self.parts_SM.tolist()])


@dataclass(frozen=True, eq=False)
class Cohort:
    """Evaluation people of one data set with at least one usable run."""

    dataset: str
    simulated: bool
    people: pd.DataFrame  # indexed by subject: family, site, age, labels, confounds
    runs: list[dict[str, Any]]  # their entries in the shards' manifest, person after person
    person_R: np.ndarray  # row of `people` that each run belongs to
    excluded: list[str]  # evaluation people without a usable run; only their number is reported
    tasks: list[Task]
    key: str  # seeds what is drawn for no task

    @property
    def folders(self) -> list[Path]:
        """Shard folders of the runs."""
        return [Path(run["path"]) for run in self.runs]

    def per_person(self, runs_RD: np.ndarray) -> np.ndarray:
        """(N, D) mean over a person's runs."""
        total_ND = np.zeros((len(self.people), runs_RD.shape[1]))
        np.add.at(total_ND, self.person_R, runs_RD)
        return np.asarray(total_ND / np.bincount(self.person_R, minlength=len(self.people))[:, None])

    def session_pairs(self) -> tuple[np.ndarray, np.ndarray]:
        """(2, M) the runs that open the first two sessions of each person who has two, and (M,) those people."""
        opening: dict[int, dict[str, int]] = {}
        for index, (person, run) in enumerate(zip(self.person_R, self.runs, strict=True)):
            opening.setdefault(int(person), {}).setdefault(run["session"], index)
        pairs = {person: list(first.values())[:2] for person, first in opening.items() if len(first) > 1}
        return np.array(list(pairs.values()), dtype=int).reshape(-1, 2).T, np.array(list(pairs), dtype=int)


def load_cohorts(study: Study, manifests: Paths, participants: Paths, evaluation_set: str | Path) -> list[Cohort]:
    """Evaluation people, runs and tasks of every evaluation data set; `manifests`, `participants` hold a file for each.

    Raises
    ------
    InputError : none of the people has a usable run, somebody has no row, or a class has too few people.
    """
    chosen = read_json(evaluation_set)
    names = study.with_role("evaluate")
    return [_load(study, name, chosen, Path(manifests[name]), Path(participants[name])) for name in names]


def _load(study: Study, dataset: str, chosen: Mapping[str, Any], manifest: Path, participants: Path) -> Cohort:
    people = sorted(chosen["people"].get(dataset, []))
    listed = [run for run in read_json(manifest)["runs"] if run["subject"] in set(people)]
    runs = sorted(listed, key=lambda run: (run["subject"], run["session"], run["run"]))
    if not runs:
        hint = "Read the reasons under 'quarantined'."
        raise InputError(manifest, f"no usable run of the {len(people)} evaluation people", "at least one", hint)
    subjects = sorted({run["subject"] for run in runs})
    table = read_people(participants).set_index("subject")
    if missing := [subject for subject in subjects if subject not in table.index]:
        hint = "Run `pipeline people` again, then the shards."
        raise InputError(participants, f"no row for '{missing[0]}'", "a row for everybody with a run", hint)
    key = digest([study.seed, chosen["hash"], dataset])
    return Cohort(
        dataset=dataset,
        simulated=study.datasets[dataset].simulated,
        people=table.loc[subjects],
        runs=runs,
        person_R=np.searchsorted(subjects, [run["subject"] for run in runs]),
        excluded=[subject for subject in people if subject not in subjects],
        tasks=[_task(study, dataset, name, table.loc[subjects], key) for name in study.datasets[dataset].labels],
        key=key,
    )


def _task(study: Study, dataset: str, name: str, people: pd.DataFrame, key: str) -> Task:
    label_N = people[name].to_numpy(dtype=float)
    rows_M = np.flatnonzero(np.isfinite(label_N))
    labels_M, families_M = label_N[rows_M].astype(int), people["family"].to_numpy()[rows_M]
    key, where, settings = digest([key, name]), f"datasets.{dataset}.labels.{name}", study.evaluate
    rng = seeded(key, "splits")
    parts_SM = draw_splits(labels_M, families_M, settings.splits, settings.test, settings.validation, rng, where)
    return Task(name, rows_M, labels_M, families_M, parts_SM, key)


def require_unseen(cohort: Cohort, trained_on: Sequence[str], participants: Paths, where: str | Path) -> None:
    """Refuse an encoder that was pretrained on an evaluation person, or on somebody of their family.

    Parameters
    ----------
    trained_on : people as `dataset/subject`.
    """
    table = read_people(Path(participants[cohort.dataset])).set_index("subject")
    evaluated = [*cohort.people.index, *cohort.excluded]
    families = table["family"].reindex(evaluated).dropna()
    kin = [*evaluated, *table.index[table["family"].isin(families)]]
    if seen := sorted({f"{cohort.dataset}/{subject}" for subject in kin} & set(trained_on)):
        found = f"{len(seen)} evaluation people or relatives of theirs, '{seen[0]}' among them"
        raise InputError(where, found, "nobody of their families pretrained on", "Run the split, then the cell again.")


def hidden_name(study: Study, dataset: str, name: str) -> str:
    """A pseudonym that joins tables: twelve digits of SHA-256 over the study's seed and the id.

    Whoever knows the ids can work it out: it keeps names out of tables and pictures, it does not anonymise.
    """
    return hashlib.sha256(f"{study.seed}:{dataset}/{name}".encode()).hexdigest()[:12]
