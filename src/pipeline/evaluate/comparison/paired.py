"""Differences of two systems over people: each person's averaged score, resampled by families, the same for both.

Axes: N people, R resamples of families (row 0: the sample itself), S repeats (seeds, draws) of a system.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy import special

from pipeline.config import Study
from pipeline.evaluate.comparison.lines import CELL_FIELDS
from pipeline.evaluate.statistics import regression_scores, weighted_auroc
from pipeline.intervals import family_weights, percentile_interval


class People(NamedTuple):
    """A difference over people: estimate, interval, two-sided p, and how many people."""

    difference: float
    low: float
    high: float
    p_value: float
    n: int


NOBODY = People(np.nan, np.nan, np.nan, np.nan, 0)


class Resampled(NamedTuple):
    """Pseudonyms of the people, and the (R,) values of a system under resampled families."""

    people: np.ndarray
    value_R: np.ndarray


def people_difference(ours: pd.DataFrame, other: pd.DataFrame, study: Study, metric: str = "auroc") -> People:
    """One system's value (mean over its repeats) minus another's, paired over the people whom both scored.

    `ours` and `other` are rows of SCORES_SCHEMA of one task. The interval is a bootstrap over families.
    """
    both = pd.concat([ours, other])
    counts = both.groupby("person").size()
    shared = set(counts.index[counts == counts.max()])
    first, second = (resample(rows[rows["person"].isin(shared)], metric, study) for rows in (ours, other))
    return difference_of(first.value_R - second.value_R, study, len(first.people))


def difference_of(difference_R: np.ndarray, study: Study, n: int) -> People:
    """What (R,) resampled differences say: percentiles, and p from their standard error."""
    interval = percentile_interval(float(difference_R[0]), difference_R[1:], study.evaluate.confidence)
    known_R = difference_R[1:][np.isfinite(difference_R[1:])]
    error = float(known_R.std(ddof=1)) if len(known_R) > 1 else np.nan
    # Not from ranks: 1,000 resamples cannot give a p below 0.002, which Holm over 30 rows would always make 0.06.
    p_value = 2 * float(special.ndtr(-abs(interval.value) / error)) if error > 0 else float(interval.value == 0)
    return People(*interval, p_value, n)


def resample(rows: pd.DataFrame, metric: str, study: Study) -> Resampled:
    """Mean over repeats of the value under resampled families; the same resamples for the same people."""
    if rows.empty:
        return Resampled(np.empty(0), np.empty(0))
    people = rows.drop_duplicates("person").set_index("person")[["family", "label"]].sort_index()
    keys = [name for name in ("system", *CELL_FIELDS) if name in rows]
    score_SN = rows.pivot_table(index=keys, columns="person", values="score", sort=False)[people.index].to_numpy()
    label_N, rng = people["label"].to_numpy(dtype=float), np.random.default_rng(study.seed)
    drawn_RN = family_weights(people["family"].to_numpy(), study.evaluate.bootstrap, rng)
    weights_RN = np.vstack([np.ones(len(people)), drawn_RN])
    value_SR = [_value(metric, label_N, score_N, weights_RN) for score_N in score_SN]
    return Resampled(people.index.to_numpy(), np.mean(value_SR, axis=0))


def _value(metric: str, label_N: np.ndarray, score_N: np.ndarray, weights_RN: np.ndarray) -> np.ndarray:
    if metric == "auroc":
        return weighted_auroc(label_N, score_N, weights_RN)
    return regression_scores(label_N, score_N, weights_RN)[metric]
