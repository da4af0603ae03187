"""What may be concluded from numbers that are there: repeated splits, data sets to pool, many tests, too few people.

Axes: S splits, D data sets, M tests.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy import special

NO_ERROR = 1e-9  # a standard error below this is rounding


class RepeatedTest(NamedTuple):
    """Mean difference over splits, its interval, t, two-sided p, and splits with a value."""

    mean: float
    low: float
    high: float
    statistic: float
    p_value: float
    splits: int


class PooledEffect(NamedTuple):
    """Mean effect over data sets, its interval, and the variance of the true effects between them."""

    mean: float
    low: float
    high: float
    tau2: float


def corrected_repeated_cv_test(
    differences_S: np.ndarray, n_train: float, n_test: float, confidence: float = 0.95
) -> RepeatedTest:
    """t test of a mean difference over repeated random splits, whose training and test parts overlap.

    The variance of the mean is (1/S + n_test/n_train) s^2 instead of s^2/S; S - 1 degrees of freedom. So more splits
    do not make a difference significant that the people do not support.

    Parameters
    ----------
    differences_S : score of one system minus another's, a split; NaN (a split that one could not run) is left out.
    n_train, n_test : people that a split learns from (without those it is tuned on) and that it is tested on.

    Fewer than two splits: NaN. Splits that do not differ at all have no standard error: no ends, no t, and p is 1
    where both systems are the same, else NaN.

    Raises
    ------
    ValueError : no people to train on or to test on.

    Source: Nadeau & Bengio (2003) Mach Learn 52:239, eq. 9 and the corrected resampled t test.
    """
    if not (n_train > 0 and n_test > 0):
        raise ValueError(f"{n_train} people to train on and {n_test} to test on: both must be above 0")
    values_S = np.asarray(differences_S, dtype=float).ravel()
    values_S = values_S[np.isfinite(values_S)]
    splits = len(values_S)
    mean = float(values_S.mean()) if splits else np.nan
    if splits < 2:
        return RepeatedTest(mean, np.nan, np.nan, np.nan, np.nan, splits)
    error = float(values_S.std(ddof=1) * np.sqrt(1 / splits + n_test / n_train))
    if error < NO_ERROR:
        return RepeatedTest(mean, np.nan, np.nan, np.nan, 1.0 if abs(mean) < NO_ERROR else np.nan, splits)
    statistic = mean / error
    half = float(special.stdtrit(splits - 1, (1 + confidence) / 2)) * error
    p_value = 2 * float(special.stdtr(splits - 1, -abs(statistic)))
    return RepeatedTest(mean, mean - half, mean + half, statistic, p_value, splits)


def minimal_detectable_difference(
    positive: float,
    negative: float,
    auroc: float = 0.75,
    correlation: float = 0.6,
    power: float = 0.8,
    significance: float = 0.05,
) -> float:
    """Smallest difference of two AUROCs of the same people that a two-sided test finds with the given power.

    Parameters
    ----------
    positive, negative : people of each class (families, where families are what is independent).
    auroc : of both systems, about; `correlation` : of their two estimates, which is a little below that of the scores.

    The two classes may be swapped: with unequal ones the model's two terms are averaged, for it would give another
    value otherwise (equal classes: exactly Hanley and McNeil's). NaN where a class has nobody. More than 1 - `auroc`
    says that no difference at all could be found.

    Raises
    ------
    ValueError : `auroc` or `power` or `significance` outside (0, 1), `correlation` outside [-1, 1).

    Source: variance of an area by Hanley & McNeil (1982) Radiology 143:29 (negative exponential), of the difference
    of two correlated ones by Hanley & McNeil (1983) Radiology 148:839: 2 (1 - r) of it where both are equal.
    """
    for name, share in (("auroc", auroc), ("power", power), ("significance", significance)):
        if not 0 < share < 1:
            raise ValueError(f"{name} is {share}: it must lie between 0 and 1")
    if not -1 <= correlation < 1:
        raise ValueError(f"correlation is {correlation}: it must be at least -1 and below 1")
    if positive <= 0 or negative <= 0:
        return np.nan
    # Two people of one class on the right side of one person of the other, beyond chance: mean of the two sides.
    twice = (auroc / (2 - auroc) + 2 * auroc**2 / (1 + auroc)) / 2 - auroc**2
    pairs = auroc * (1 - auroc) + (positive + negative - 2) * twice
    error = np.sqrt(2 * (1 - correlation) * pairs / (positive * negative))
    return float((special.ndtri(1 - significance / 2) + special.ndtri(power)) * error)


def pooled_effect(estimates_D: np.ndarray, errors_D: np.ndarray, confidence: float = 0.95) -> PooledEffect:
    """Random-effects mean of one effect over data sets, each with its standard error.

    The interval is Hartung and Knapp's (t with D - 1 degrees of freedom), never narrower than their variance gives
    without the correction: with few data sets the usual normal interval covers far too rarely. Data sets without an
    estimate or error (NaN) are left out; one alone keeps its own normal interval and tau^2 NaN; none: NaN.

    Raises
    ------
    ValueError : lengths differ, an error that is not above 0.

    Source: DerSimonian & Laird (1986) Control Clin Trials 7:177; Hartung & Knapp (2001) Stat Med 20:3875, with the
    lower bound of Roever et al. (2015) BMC Med Res Methodol 15:99.
    """
    estimates_D, errors_D = np.asarray(estimates_D, dtype=float), np.asarray(errors_D, dtype=float)
    if estimates_D.ndim != 1 or estimates_D.shape != errors_D.shape:
        raise ValueError(
            f"estimates have shape {estimates_D.shape}, errors {errors_D.shape}: both must be (data sets,)"
        )
    known_D = np.isfinite(estimates_D) & np.isfinite(errors_D)
    estimates_D, errors_D = estimates_D[known_D], errors_D[known_D]
    if (errors_D <= 0).any():
        raise ValueError(f"a standard error is {errors_D.min():g}: all must be above 0; leave such a data set out")
    count = len(estimates_D)
    if count < 2:
        mean, error = (float(estimates_D[0]), float(errors_D[0])) if count else (np.nan, np.nan)
        half = float(special.ndtri((1 + confidence) / 2)) * error
        return PooledEffect(mean, mean - half, mean + half, np.nan)
    tau2 = _between_variance(estimates_D, errors_D)
    weight_D = 1 / (errors_D**2 + tau2)
    mean = float(weight_D @ estimates_D / weight_D.sum())
    inflation = max(1.0, float(weight_D @ (estimates_D - mean) ** 2) / (count - 1))
    half = float(special.stdtrit(count - 1, (1 + confidence) / 2) * np.sqrt(inflation / weight_D.sum()))
    return PooledEffect(mean, mean - half, mean + half, tau2)


def holm(p_values_M: np.ndarray) -> np.ndarray:
    """(M,) p values adjusted for M tests by Holm (1979); NaN stays NaN and is not counted as a test."""
    p_values_M = np.asarray(p_values_M, dtype=float)
    adjusted, tested = np.full(p_values_M.shape, np.nan), np.flatnonzero(np.isfinite(p_values_M))
    order = tested[np.argsort(p_values_M[tested], kind="stable")]
    steps = p_values_M[order] * np.arange(len(order), 0, -1)
    adjusted[order] = np.minimum(1, np.maximum.accumulate(steps)) if len(order) else steps
    return adjusted


def _between_variance(estimates_D: np.ndarray, errors_D: np.ndarray) -> float:
    """DerSimonian and Laird's tau^2 by moments; 0 where the estimates differ by no more than their errors."""
    weight_D = errors_D**-2.0
    mean = weight_D @ estimates_D / weight_D.sum()
    excess = weight_D @ (estimates_D - mean) ** 2 - (len(estimates_D) - 1)
    return max(0.0, float(excess / (weight_D.sum() - (weight_D**2).sum() / weight_D.sum())))
