"""Intervals: what every stage that has an estimate reports beside it, from resampled people.

Axes: N people, G groups (families), R resamples. People of one family are never independent, so it is groups that are
drawn. All resamples of a statistic are computed at once from weights, the number of times each person was drawn.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class Interval(NamedTuple):
    """An estimate with the ends of its confidence interval."""

    value: float
    low: float
    high: float


def group_weights(groups: int, resamples: int, rng: np.random.Generator) -> np.ndarray:
    """(R, G) how often each group is drawn when as many as there are are drawn with replacement."""
    return rng.multinomial(groups, np.full(groups, 1 / groups), size=resamples).astype(float)


def family_weights(groups_N: np.ndarray, resamples: int, rng: np.random.Generator) -> np.ndarray:
    """(R, N) how often each person is drawn when whole groups are drawn with replacement."""
    group_N = np.unique(groups_N, return_inverse=True)[1].ravel()
    return group_weights(int(group_N.max()) + 1, resamples, rng)[:, group_N]


def percentile_interval(value: float, resampled_R: np.ndarray, confidence: float = 0.95) -> Interval:
    """The estimate with the percentiles of its resamples; those without a value (one class, say: NaN) are left out."""
    usable = resampled_R[np.isfinite(resampled_R)]
    if not usable.size or not np.isfinite(value):
        return Interval(float(value), np.nan, np.nan)
    low, high = np.quantile(usable, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(float(value), float(low), float(high))


def at_the_edge(value: float, independent: int, confidence: float = 0.95) -> Interval:
    """Interval of a share of exactly 0 or 1, where resamples have no spread: Clopper-Pearson, `independent` trials."""
    bound = ((1 - confidence) / 2) ** (1 / independent)
    return Interval(1.0, bound, 1.0) if value == 1.0 else Interval(0.0, 0.0, 1 - bound)


def bootstrap_interval(
    values_N: np.ndarray,
    groups_N: np.ndarray | None = None,
    confidence: float = 0.95,
    resamples: int = 1000,
    rng: np.random.Generator | None = None,
) -> Interval:
    """Mean over people with its percentile interval over families.

    Where all values are 0 or all are 1 the bootstrap has no spread; the exact binomial bound stands in for it.
    """
    groups_N = np.arange(len(values_N)) if groups_N is None else groups_N
    mean = float(np.mean(values_N))
    if mean in (0.0, 1.0):
        return at_the_edge(mean, len(np.unique(groups_N)), confidence)
    weights_RN = family_weights(groups_N, resamples, rng or np.random.default_rng(0))
    return percentile_interval(mean, weights_RN @ values_N / weights_RN.sum(1), confidence)
