"""What a system said of the people of a task, split by split, and the numbers that sum it up.

Axes: M people of a task, S splits, R resamples (weights of people).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from pipeline.config import Evaluate
from pipeline.evaluate.cohort import Kind, Task
from pipeline.evaluate.rows import ALL
from pipeline.evaluate.splits import TEST, seeded
from pipeline.evaluate.statistics import brier, regression_scores, weighted_auroc, weighted_balanced_accuracy
from pipeline.intervals import Interval, family_weights
from pipeline.tables import NONE

Row = dict[str, Any]

EDGES = {"auroc", "balanced_accuracy"}  # shares, whose resamples have no spread at 0 and 1
UNITS = {"top1": "share of people", "mean_rank": "share of other people", "mse": "label squared", "mae": "label"}


def metrics(kind: Kind) -> tuple[str, ...]:
    """Metrics of a kind of task, the headline first."""
    return ("auroc", "balanced_accuracy", "brier") if kind == "classes" else ("pearson_r", "r2", "mse", "mae")


def unit_of(metric: str) -> str:
    """Unit of a metric."""
    return UNITS.get(metric, "1")


def row(
    task: Task | str,
    protocol: str,
    metric: str,
    split: str,
    value: Interval | float,
    n: int,
    fold: int = NONE,
    group: str = ALL,
) -> Row:
    """The columns of a result that a protocol knows; the stage adds the system."""
    interval = value if isinstance(value, Interval) else Interval(value, np.nan, np.nan)
    name = task if isinstance(task, str) else task.name
    what = {"task": name, "protocol": protocol, "metric": metric, "split": split, "group": group}
    return {**what, "fold": fold, "n": n, **interval._asdict()}


@dataclass(frozen=True, eq=False)
class Contest:
    """What a system is put to: a task under one protocol, and what is known of its people beside the target."""

    task: Task
    settings: Evaluate
    protocol: str
    known: Mapping[str, np.ndarray]  # what groups are formed by, (M,) each: sex, age, site, motion
    confounds_MD: np.ndarray

    @cached_property
    def weights_RM(self) -> np.ndarray:
        """How often each person is drawn in each resample of families, after a first row of ones; for every system the
        same.
        """
        drawn_RM = family_weights(self.task.families_M, self.settings.bootstrap, seeded(self.task.key, "bootstrap"))
        return np.vstack([np.ones(len(self.task.target_M)), drawn_RM])


@dataclass(frozen=True, eq=False)
class Judged:
    """Scores of the test people of each split.

    `said_SM` is a class's probability at the prevalence of the training part, or the mean of a number in it, which R^2
    is measured against. `unit_S` is what scores of a split are divided by before they are averaged.
    """

    kind: Kind
    target_M: np.ndarray
    parts_SM: np.ndarray
    score_SM: np.ndarray
    said_SM: np.ndarray
    inner_SM: np.ndarray
    unit_S: np.ndarray
    chosen: list[str]

    @cached_property
    def tested_M(self) -> np.ndarray:
        """Who was scored by any split."""
        return np.asarray(np.isfinite(self.score_SM).any(0))

    @cached_property
    def score_M(self) -> np.ndarray:
        """Mean score of each person over the splits that tested them, in the splits' units; NaN for the others."""
        return _mean_of_tested(self.score_SM / self.unit_S[:, None])

    @cached_property
    def probability_M(self) -> np.ndarray:
        """Mean probability of each person (classes), or the mean that R^2 is measured against (numbers)."""
        return _mean_of_tested(self.said_SM)

    def split_metrics(self, split: int, weights_RM: np.ndarray, only: str | None = None) -> dict[str, np.ndarray]:
        """Metric -> (R,) of one split's test people under each row of weights; all metrics, or `only` one."""
        tested = np.flatnonzero(self.parts_SM[split] == TEST)
        return self._metrics(tested, self.score_SM[split], self.said_SM[split], weights_RM, only)

    def worth(self, split: int, weights_RM: np.ndarray) -> np.ndarray:
        """(R,) what a split can tell: pairs of a tested positive and a negative, or tested people of a number."""
        tested = np.flatnonzero(self.parts_SM[split] == TEST)
        weights, target = weights_RM[:, tested], self.target_M[tested]
        if self.kind == "number":
            return weights.sum(1)
        return np.asarray((weights @ target) * (weights @ (1 - target)))

    def averaged_metrics(self, weights_RM: np.ndarray, among_M: np.ndarray | None = None) -> dict[str, np.ndarray]:
        """Metric -> (R,) of averaged scores under each row of weights, of everybody tested or of those `among_M`."""
        tested = np.flatnonzero(self.tested_M if among_M is None else self.tested_M & among_M)
        return self._metrics(tested, self.score_M, self.probability_M, weights_RM)

    def _metrics(
        self,
        who: np.ndarray,
        score_M: np.ndarray,
        said_M: np.ndarray,
        weights_RM: np.ndarray,
        only: str | None = None,
    ) -> dict[str, np.ndarray]:
        target, score, said, weights = self.target_M[who], score_M[who], said_M[who], weights_RM[:, who]
        asked = metrics(self.kind) if only is None else (only,)
        if not np.isfinite(score).all():
            return {metric: np.full(len(weights_RM), np.nan) for metric in asked}
        if self.kind == "number":
            found = regression_scores(target, score, weights, said)
            return {metric: found[metric] for metric in asked}
        made: dict[str, Any] = {
            "auroc": weighted_auroc,
            "brier": brier,
            "balanced_accuracy": weighted_balanced_accuracy,
        }
        return {metric: made[metric](target, said if metric == "brier" else score, weights) for metric in asked}


def weighed(value_SR: np.ndarray, worth_SR: np.ndarray) -> np.ndarray:
    """(R,) mean over splits by their worth; those without a value count for nothing, and NaN where none has one."""
    worth_SR = np.where(np.isfinite(value_SR), worth_SR, 0)
    total_R = worth_SR.sum(0)
    return np.where(
        total_R > 0, (np.nan_to_num(value_SR) * worth_SR).sum(0) / np.where(total_R > 0, total_R, 1), np.nan
    )


def _mean_of_tested(value_SM: np.ndarray) -> np.ndarray:
    tested_SM = np.isfinite(value_SM)
    count_M = tested_SM.sum(0)
    return np.where(count_M > 0, np.where(tested_SM, value_SM, 0).sum(0) / np.maximum(count_M, 1), np.nan)
