"""Controls that read no BOLD: confounds, motion alone, site alone, and chance.

Axes: M people of a task, N people of a cohort, R runs, D features.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from pipeline.config import Dataset
from pipeline.evaluate.probes.linear import linear_reader

if TYPE_CHECKING:
    from pipeline.evaluate.cohort import Cohort, Task
    from pipeline.evaluate.reading import Reader, RunFeatures
    from pipeline.evaluate.systems.material import Material

ALWAYS = ("age", "site", "sex")  # columns that are confounds wherever they are known


def confounds(material: Material, task: Task) -> Reader:
    """Everything known of a person but BOLD and the label."""
    return _read(material, task, confound_features(material.cohort, task))


def motion_only(material: Material, task: Task) -> Reader | None:
    """Mean framewise displacement; None where nobody's is known."""
    motion_M1 = material.cohort.motion_N[task.rows_M, None]
    return _read(material, task, motion_M1) if np.isfinite(motion_M1).any() else None


def site_only(material: Material, task: Task) -> Reader | None:
    """The site; None where fewer than two are known."""
    sites = pd.Series(task.site_M).replace("", None)
    return _read(material, task, columns_of(sites)) if sites.nunique() > 1 else None


def chance(material: Material, task: Task) -> Reader:
    """Nothing: the reader is left with its intercept, the same for everybody."""
    return _read(material, task, np.zeros((len(task.rows_M), 0)))


def chance_identity(material: Material) -> RunFeatures | None:
    """No features: every scan is as similar to every other."""
    nothing_RD = np.zeros((len(material.cohort.runs), 0))
    two_sessions = len(material.cohort.session_pairs()[1]) > 1
    return material.of_runs(nothing_RD, nothing_RD if two_sessions else nothing_RD[:0])


def _read(material: Material, task: Task, features_MD: np.ndarray) -> Reader:
    """Never harmonised: sites are what these systems read."""
    return linear_reader(features_MD, task.families_M, material.study.evaluate.penalties, task.kind)


def confound_features(cohort: Cohort, task: Task) -> np.ndarray:
    """(M, D) motion, age, site, sex and the columns that the data set names, for a task's people, without its label.

    Text becomes one column a level. Levels are those of everybody, which tells a reader nothing: one that no training
    person has is constant there. A missing value is NaN, and takes the training people's mean.
    """
    parts = [cohort.motion_N[task.rows_M, None]]
    for column in _columns(cohort, task):
        parts.append(columns_of(cohort.people[column].iloc[task.rows_M]))
    features_MD = np.hstack(parts)
    return features_MD[:, np.isfinite(features_MD).any(0)]


def kept_covariates(cohort: Cohort, task: Task) -> np.ndarray:
    """(M, C) age and sex where they are known and not the label: what sites may differ in without being aligned."""
    known = [name for name in _columns(cohort, task) if name in ("age", "sex")]
    parts = [columns_of(cohort.people[name].iloc[task.rows_M]) for name in known]
    covariates_MC = np.hstack([np.zeros((len(task.rows_M), 0)), *parts])
    return covariates_MC[:, np.isfinite(covariates_MC).any(0)]


def _columns(cohort: Cohort, task: Task) -> Iterator[str]:
    """Confounds that are not the label in any form."""
    label = _forms(cohort.settings, task.name)
    for column in dict.fromkeys((*ALWAYS, *cohort.settings.confounds)):
        if column in label or column not in cohort.people:
            continue
        copied = column not in ALWAYS and _copies(cohort.people[column].to_numpy()[task.rows_M], task)
        if not copied:
            yield column


def _forms(settings: Dataset, task: str) -> set[str]:
    """Columns that hold a label: its own, the one it is coded from, and all that are coded from that one."""
    if task not in settings.labels:  # a state, which no column of people holds
        return {task}
    source = settings.labels[task].column
    forms = {task, source, *(name for name, other in settings.labels.items() if other.column == source)}
    forms |= {"age"} if source == settings.age_column else set()
    return forms | ({"site"} if source == (settings.site_column or "site") else set())


def _copies(values_M: np.ndarray, task: Task) -> bool:
    """Whether a column of two values is the label in another coding: each value goes with one class alone."""
    known = ~pd.isna(values_M)
    pairs = {*zip(values_M[known].tolist(), task.target_M[known].tolist(), strict=True)}
    return task.kind == "classes" and len(pairs) == 2 and len({a for a, _ in pairs}) == len({b for _, b in pairs}) == 2


def columns_of(values: pd.Series) -> np.ndarray:
    """(M, 1) numbers, or (M, levels) indicators where any known value is text; NaN where a value is missing."""
    values = values.replace("", None)
    numbers = pd.to_numeric(values, errors="coerce")
    if (numbers.notna() | values.isna()).all():
        return numbers.to_numpy(dtype=float)[:, None]
    indicators = pd.get_dummies(values.astype("string"), dtype=float).to_numpy()
    return np.where(values.isna().to_numpy()[:, None], np.nan, indicators)
