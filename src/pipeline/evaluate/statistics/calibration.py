"""Whether a probability means what it says, and how far a predicted number is from the measured one.

Axes: N people, R resamples (rows of weights: how often each person was drawn), K bins.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy import special

NEVER = 1e-9  # a probability of exactly 0 or 1 has no logit; nobody's data tell it from this
TOLERANCE = 1e-10  # of coefficients
NO_SPREAD = 1e-12  # a variance below this share of the mean square is rounding


class Recalibration(NamedTuple):
    """Logit of the observed frequency = intercept + slope x logit of the predicted one: (1, 0) is calibrated."""

    slope: float
    intercept: float


class CalibrationCurve(NamedTuple):
    """(K,) mean predicted probability, observed share of the positive class and people, a bin."""

    predicted_K: np.ndarray
    observed_K: np.ndarray
    n_K: np.ndarray


def brier(labels_N: np.ndarray, probability_N: np.ndarray, weights_RN: np.ndarray | None = None) -> np.ndarray:
    """(R,) mean squared distance of the probability from the label (0 or 1); R = 1 without weights.

    NaN where nobody has weight, or somebody's probability is NaN.

    Raises
    ------
    ValueError : lengths differ, labels other than 0 and 1, a probability outside [0, 1].

    Source: Brier (1950) Mon Weather Rev 78:1.
    """
    labels_N, probability_N = _probabilities(labels_N, probability_N)
    return _weighted_means((labels_N - probability_N) ** 2, weights_RN)


def calibration(labels_N: np.ndarray, probability_N: np.ndarray, steps: int = 100) -> Recalibration:
    """Slope and intercept of the logistic regression of the label on the logit of the probability.

    A slope below 1 says that the probabilities are too extreme, an intercept below 0 that they are too high. NaN where
    no finite slope exists: one class absent, one probability for all, classes that the probability separates, or a
    probability that is NaN.

    Raises
    ------
    ValueError : lengths differ, labels other than 0 and 1, a probability outside [0, 1].

    Source: Cox (1958) Biometrika 45:562; maximum likelihood by Newton's method, no step of which may lose
    likelihood.
    """
    labels_N, probability_N = _probabilities(labels_N, probability_N)
    logit_N = special.logit(np.clip(probability_N, NEVER, 1 - NEVER))
    if not _overlap(logit_N[labels_N == 1], logit_N[labels_N == 0]):
        return Recalibration(np.nan, np.nan)
    centre, spread = logit_N.mean(), logit_N.std()
    beta_2 = _logistic_fit(np.column_stack([np.ones(len(logit_N)), (logit_N - centre) / spread]), labels_N, steps)
    slope = beta_2[1] / spread
    return Recalibration(float(slope), float(beta_2[0] - slope * centre))


def calibration_curve(labels_N: np.ndarray, probability_N: np.ndarray, bins: int = 10) -> CalibrationCurve:
    """Observed share against predicted probability in bins that hold equally many people.

    Ties never straddle two bins, so there may be fewer bins than asked for; none is empty.

    Raises
    ------
    ValueError : lengths differ, labels other than 0 and 1, a probability outside [0, 1] or NaN.
    """
    labels_N, probability_N = _probabilities(labels_N, probability_N)
    if np.isnan(probability_N).any():
        raise ValueError("a probability is NaN: a curve needs people who all have one; leave the others out")
    if not len(labels_N):
        return CalibrationCurve(np.empty(0), np.empty(0), np.empty(0, dtype=int))
    edges = np.quantile(probability_N, np.arange(1, bins) / bins)
    bin_N = np.unique(np.searchsorted(edges, probability_N), return_inverse=True)[1]
    n_K = np.bincount(bin_N)
    return CalibrationCurve(np.bincount(bin_N, probability_N) / n_K, np.bincount(bin_N, labels_N) / n_K, n_K)


def regression_scores(
    target_N: np.ndarray,
    predicted_N: np.ndarray,
    weights_RN: np.ndarray | None = None,
    baseline: float | np.ndarray | None = None,
) -> dict[str, np.ndarray]:
    """(R,) `mse`, `mae`, `pearson_r` and `r2` of a predicted number under each row of weights; R = 1 without weights.

    Parameters
    ----------
    target_N, predicted_N : in one unit, which `mae` has too.
    baseline : what R^2 compares with: the mean target of the people who were trained on (one number, or one a person
        where splits differ), which a prediction has to beat; None: the mean of these people under the weights.

    NaN where nobody has weight, a value is NaN, or (r, R^2) where there is no variance.

    Raises
    ------
    ValueError : lengths differ.
    """
    target_N, predicted_N = _same_length(target_N, predicted_N, "targets", "predictions")
    weights_RN = np.ones((1, len(target_N))) if weights_RN is None else weights_RN
    error_N = predicted_N - target_N
    mse_R = _weighted_means(error_N**2, weights_RN)
    spread_R = _variance(target_N, target_N, weights_RN)
    if baseline is not None:
        spread_R = _weighted_means((target_N - baseline) ** 2, weights_RN)
    product_R = _variance(target_N, target_N, weights_RN) * _variance(predicted_N, predicted_N, weights_RN)
    with np.errstate(invalid="ignore", divide="ignore"):
        pearson_R = _variance(target_N, predicted_N, weights_RN) / np.sqrt(np.where(product_R > 0, product_R, np.nan))
        r2_R = 1 - mse_R / np.where(spread_R > 0, spread_R, np.nan)
    mae_R = _weighted_means(np.abs(error_N), weights_RN)
    return {"mse": mse_R, "mae": mae_R, "pearson_r": np.clip(pearson_R, -1, 1), "r2": r2_R}


def _same_length(first: np.ndarray, second: np.ndarray, one: str, other: str) -> tuple[np.ndarray, np.ndarray]:
    first_N, second_N = np.asarray(first, dtype=float), np.asarray(second, dtype=float)
    if first_N.ndim != 1 or first_N.shape != second_N.shape:
        raise ValueError(f"{one} have shape {first_N.shape}, {other} {second_N.shape}: both must be (people,)")
    return first_N, second_N


def _probabilities(labels: np.ndarray, probability: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    labels_N, probability_N = _same_length(labels, probability, "labels", "probabilities")
    if not np.isin(labels_N, (0, 1)).all():
        raise ValueError(f"labels are {np.unique(labels_N)[:5]}: they must be 0 and 1; code the positive class as 1")
    outside = probability_N[(probability_N < 0) | (probability_N > 1)]
    if len(outside):
        raise ValueError(f"{len(outside)} probabilities lie outside [0, 1], {outside[0]:g} is one: are they logits?")
    return labels_N, probability_N


def _overlap(positive_P: np.ndarray, negative_Q: np.ndarray) -> bool:
    """Whether the likelihood of a logistic regression on one number has a maximum; false where a value is NaN."""
    if not len(positive_P) or not len(negative_Q):
        return False
    return bool(positive_P.max() > negative_Q.min() and negative_Q.max() > positive_P.min())


def _logistic_fit(design_N2: np.ndarray, labels_N: np.ndarray, steps: int) -> np.ndarray:
    """(2,) maximum-likelihood coefficients, which must exist."""

    def loss(beta_2: np.ndarray) -> float:
        return float(np.logaddexp(0, (1 - 2 * labels_N) * (design_N2 @ beta_2)).sum())

    beta_2 = np.zeros(2)
    for _ in range(steps):
        chance_N = special.expit(design_N2 @ beta_2)
        hessian_22 = (design_N2.T * (chance_N * (1 - chance_N))) @ design_N2
        step_2 = np.linalg.lstsq(hessian_22, design_N2.T @ (labels_N - chance_N), rcond=None)[0]
        while loss(beta_2 + step_2) > loss(beta_2) and np.abs(step_2).max() > TOLERANCE:
            step_2 /= 2
        beta_2 = beta_2 + step_2
        if np.abs(step_2).max() <= TOLERANCE * max(1.0, np.abs(beta_2).max()):
            break
    return beta_2


def _weighted_means(values_N: np.ndarray, weights_RN: np.ndarray | None) -> np.ndarray:
    """(R,) weighted means; NaN where nobody has weight."""
    weights_RN = np.ones((1, len(values_N))) if weights_RN is None else np.asarray(weights_RN, dtype=float)
    total_R = weights_RN.sum(1)
    return np.asarray(weights_RN @ values_N / np.where(total_R > 0, total_R, np.nan))


def _variance(first_N: np.ndarray, second_N: np.ndarray, weights_RN: np.ndarray) -> np.ndarray:
    """(R,) weighted covariance; a variance that is rounding is 0."""
    first_N, second_N = first_N - np.mean(first_N), second_N - np.mean(second_N)
    product_R = _weighted_means(first_N, weights_RN) * _weighted_means(second_N, weights_RN)
    variance_R = _weighted_means(first_N * second_N, weights_RN) - product_R
    scale = np.sqrt(np.mean(first_N**2) * np.mean(second_N**2))
    return np.where(np.abs(variance_R) <= NO_SPREAD * scale, 0.0, variance_R)
