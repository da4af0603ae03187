"""The people under evaluation: who they are, which of their runs are used, and each task's labels and splits.

Axes: N people of a cohort, in the order of their ids; R runs; S splits. Splits are drawn inside the evaluation set that
was fixed before any pretraining, from the study's seed and that set's hash, so they are the same for every system.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
import pandas as pd

from pipeline.artefact import digest, read_json
from pipeline.bold.people import kin, read_people
from pipeline.config import Dataset, Phenotype, Study
from pipeline.errors import InputError
from pipeline.evaluate.splits import draw_splits, halving, seeded

Paths = Mapping[str, str | Path]
Kind: TypeAlias = Literal["classes", "number"]


class Task(NamedTuple):
    """One label of a cohort: whom it is known for, and who is in which part of each split."""

    name: str
    kind: Kind
    rows_M: np.ndarray  # rows of the cohort's people whose label is known
    target_M: np.ndarray  # 0/1, or numbers
    families_M: np.ndarray
    site_M: np.ndarray  # "" where unknown
    parts_SM: np.ndarray
    key: str  # seeds all else that is drawn for this task; the same for every system

    @property
    def labels_M(self) -> np.ndarray:
        """0/1: the class, or whether a number lies in the upper half; splits are balanced on it."""
        return stratum(self.target_M, self.kind)

    @property
    def splits_hash(self) -> str:
        """Stands for who is in which part of every split."""
        return digest([self.key, self.parts_SM.tolist()])

    def alone(self, parts_SM: np.ndarray) -> Task:
        """The same people on other splits."""
        return self._replace(parts_SM=parts_SM)


def stratum(target_M: np.ndarray, kind: Kind) -> np.ndarray:
    """0/1 of a class, or whether a number lies in the upper half."""
    return (target_M > halving(target_M) if kind == "number" else target_M).astype(int)


@dataclass(frozen=True, eq=False)
class Cohort:
    """Evaluation people of one data set with at least one usable run; or of two, told apart by what they did there."""

    dataset: str
    settings: Dataset
    simulated: bool
    people: pd.DataFrame  # indexed by subject: family, site, age, labels, confounds
    runs: list[dict[str, Any]]  # their entries in the shards' manifest, person after person
    person_R: np.ndarray  # row of `people` that each run belongs to
    excluded: list[str]  # evaluation people without a usable run; only their number is reported
    tasks: list[Task]
    key: str  # seeds what is drawn for no task
    members: Mapping[str, list[str]]  # data set -> its evaluation people, those without a run too
    same_people: tuple[str, ...] = ()  # data sets in which the same people may also be, under the same ids

    @property
    def aliases(self) -> list[str]:
        """Data sets under whose names its people go: its own, and those of the same people."""
        return sorted({*self.members, *self.same_people})

    @property
    def subjects(self) -> set[str]:
        """Ids of everybody evaluated."""
        return {subject for people in self.members.values() for subject in people}

    @property
    def names(self) -> list[str]:
        """`dataset/subject` of everybody evaluated, under the name of every data set of the same people."""
        return sorted(f"{dataset}/{subject}" for dataset in self.aliases for subject in self.subjects)

    @property
    def folders(self) -> list[Path]:
        """Shard folders of the runs."""
        return [Path(run["path"]) for run in self.runs]

    def per_person(self, runs_RD: np.ndarray) -> np.ndarray:
        """(N, D) mean over a person's runs."""
        total_ND = np.zeros((len(self.people), runs_RD.shape[1]))
        np.add.at(total_ND, self.person_R, runs_RD)
        return np.asarray(total_ND / np.bincount(self.person_R, minlength=len(self.people))[:, None])

    @property
    def motion_N(self) -> np.ndarray:
        """(N,) mean framewise displacement, mm: of the runs, else of the table's confounds; NaN where neither says."""
        stated = np.array(
            [np.nan if run["mean_fd_mm"] is None else run["mean_fd_mm"] for run in self.runs], dtype=float
        )
        of_runs_N = self.per_person(stated[:, None])[:, 0]
        named = [column for column in self.people.columns if "fd" in re.split(r"[^a-z]+", column.lower())]
        if np.isfinite(of_runs_N).any() or not named:
            return of_runs_N
        return pd.to_numeric(self.people[named[0]], errors="coerce").to_numpy(dtype=float)

    def known(self, task: Task) -> dict[str, np.ndarray]:
        """(M,) what groups of a task's people are formed by: sex, age, site and motion, where known."""
        people, found = self.people.iloc[task.rows_M], {"motion": self.motion_N[task.rows_M]}
        for column in ("sex", "age", "site"):
            if column in people:
                phenotype = self.settings.labels.get(column)
                found[column] = _as_groups(people[column], phenotype)
        return {name: value_M for name, value_M in found.items() if name != task.name}

    def first_runs(self) -> list[int]:
        """Each person's first run."""
        return [int(run) for run in np.unique(self.person_R, return_index=True)[1]]

    def session_pairs(self) -> tuple[np.ndarray, np.ndarray]:
        """(2, M) the runs that open the first two sessions of each person who has two, and (M,) those people."""
        opening: dict[int, dict[str, int]] = {}
        for index, (person, run) in enumerate(zip(self.person_R, self.runs, strict=True)):
            opening.setdefault(int(person), {}).setdefault(run["session"], index)
        pairs = {person: list(first.values())[:2] for person, first in opening.items() if len(first) > 1}
        return np.array(list(pairs.values()), dtype=int).reshape(-1, 2).T, np.array(list(pairs), dtype=int)


def _as_groups(values: pd.Series[Any], phenotype: Phenotype | None) -> np.ndarray:
    """Numbers as they are; text, and classes by the values that they stand for, as text, "" where unknown."""
    if phenotype is not None and not phenotype.number:
        names = {1.0: "/".join(phenotype.positive), 0.0: "/".join(phenotype.negative)}
        return values.map(names).fillna("").to_numpy(dtype=str)
    numbers = pd.to_numeric(values, errors="coerce")
    if numbers.notna().any():
        return numbers.to_numpy(dtype=float)
    return values.fillna("").astype(str).to_numpy(dtype=str)


def load_cohorts(study: Study, manifests: Paths, participants: Paths, evaluation_set: str | Path) -> list[Cohort]:
    """Evaluation people, runs and tasks of every evaluation data set; `manifests`, `participants` hold a file for each.

    Raises
    ------
    InputError : none of the people has a usable run, somebody has no row, or a class has too few people.
    """
    chosen = read_json(evaluation_set)
    names = study.with_role("evaluate")
    cohorts = {name: _load(study, name, chosen, Path(manifests[name]), Path(participants[name])) for name in names}
    states = study.evaluate.states.items()
    told_apart = [_state(study, name, cohorts[state.positive], cohorts[state.negative]) for name, state in states]
    return [*cohorts.values(), *told_apart]


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
        settings=study.datasets[dataset],
        members={dataset: people},
        same_people=tuple(study.same_people(dataset)),
        simulated=study.datasets[dataset].simulated,
        people=table.loc[subjects],
        runs=runs,
        person_R=np.searchsorted(subjects, [run["subject"] for run in runs]),
        excluded=[subject for subject in people if subject not in subjects],
        tasks=[
            _task(study, f"datasets.{dataset}.labels.{name}", name, _kind(label), table.loc[subjects], key)
            for name, label in study.datasets[dataset].labels.items()
        ],
        key=key,
    )


def _state(study: Study, name: str, positive: Cohort, negative: Cohort) -> Cohort:
    """Runs of two data sets, each person's of each as one sample; who is in both stays on one side of every split."""
    both, key = (positive, negative), digest([study.seed, positive.key, negative.key, name])
    frames = [each.people.set_axis([f"{each.dataset}_{row}" for row in each.people.index]) for each in both]
    people = pd.concat(frames).drop(columns=[*positive.settings.labels, *negative.settings.labels], errors="ignore")
    people[name] = np.repeat([1, 0], [len(frame) for frame in frames])
    settings = positive.settings.model_copy(update={"labels": {}})
    return Cohort(
        dataset=study.evaluate.states[name].joined,
        settings=settings,
        members={**positive.members, **negative.members},
        same_people=positive.same_people,
        simulated=positive.simulated or negative.simulated,
        people=people,
        runs=[*positive.runs, *negative.runs],
        person_R=np.concatenate([positive.person_R, negative.person_R + len(positive.people)]),
        excluded=[f"{each.dataset}_{subject}" for each in both for subject in each.excluded],
        tasks=[_task(study, f"evaluate.states.{name}", name, "classes", people, key)],
        key=key,
    )


def _kind(label: Phenotype) -> Kind:
    return "number" if label.number else "classes"


def _task(study: Study, where: str, name: str, kind: Kind, people: pd.DataFrame, key: str) -> Task:
    label_N = people[name].to_numpy(dtype=float)
    rows_M = np.flatnonzero(np.isfinite(label_N))
    target_M, families_M = label_N[rows_M], people["family"].to_numpy()[rows_M]
    key, settings = digest([key, name]), study.evaluate
    if kind == "number" and len(np.unique(target_M)) < 2:
        found, hint = f"{len(target_M)} known values, all alike", "Drop this label, or name another column."
        raise InputError(where, found, "numbers that differ between people", hint)
    labels_M, rng = stratum(target_M, kind), seeded(key, "splits")
    parts_SM = draw_splits(labels_M, families_M, settings.splits, settings.test, settings.validation, rng, where)
    site_M = people["site"].astype(str).to_numpy()[rows_M]
    return Task(name, kind, rows_M, target_M, families_M, site_M, parts_SM, key)


def require_unseen(cohort: Cohort, trained_on: Sequence[str], participants: Paths, where: str | Path) -> None:
    """Refuse an encoder pretrained on an evaluation person or their family, in any data set of the same people.

    Parameters
    ----------
    trained_on : people as `dataset/subject`.
    participants : tables of people; families are taken from those of the cohort and of data sets of the same people.
    """
    tables = [read_people(Path(participants[dataset])) for dataset in cohort.aliases if dataset in participants]
    unseen = kin(tables, cohort.subjects)
    if seen := sorted({f"{dataset}/{subject}" for dataset in cohort.aliases for subject in unseen} & set(trained_on)):
        found = f"{len(seen)} evaluation people or relatives of theirs, '{seen[0]}' among them"
        hint = "Run the split, then the cell again."
        raise InputError(where, found, "nobody of their families pretrained on", hint)


def require_other_scans(cohort: Cohort, trained_on: Sequence[str], manifests: Paths, where: str | Path) -> None:
    """Refuse an encoder that was pretrained on a scan of an evaluated person under another name or in another data set.

    Parameters
    ----------
    trained_on : people as `dataset/subject`.
    manifests : lists of the runs that all else is derived from, of every data set that serves pretraining or
        evaluation; scans are known again by the hashes of their content and of the file that they came from.
    """
    runs = [run for path in manifests.values() for run in read_json(path)["runs"]]
    evaluated = set(cohort.names)
    whose = {mark: person for run in runs if (person := _person(run)) in evaluated for mark in _marks(run)}
    trained = set(trained_on)
    for run in runs:
        if _person(run) in trained and (seen := _marks(run) & whose.keys()):
            found = f"pretrained on '{_person(run)}', whose scan is that of '{whose[min(seen)]}', who is evaluated"
            hint = "Take one of them out of its table of people, then run the split and the cell again."
            raise InputError(where, found, "nobody's scan on both sides", hint)


def _person(run: Mapping[str, Any]) -> str:
    return f"{run['dataset']}/{run['subject']}"


def _marks(run: Mapping[str, Any]) -> set[str]:
    """Hashes by which the same scan is known again."""
    return {str(run.get(name, "")) for name in ("content", "source")} - {""}


def hidden_name(study: Study, dataset: str, name: str) -> str:
    """A pseudonym that joins tables: twelve digits of SHA-256 over the study's seed and the id.

    Whoever knows the ids can work it out: it keeps names out of tables and pictures, it does not anonymise.
    """
    return hashlib.sha256(f"{study.seed}:{dataset}/{name}".encode()).hexdigest()[:12]
