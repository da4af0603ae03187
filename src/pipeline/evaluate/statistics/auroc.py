"""Scores of people: AUROC and balanced accuracy under the weights of a bootstrap, their intervals, paired comparisons.

Axes: N people, R resamples; P people of the positive class, Q of the negative one.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np
from scipy import special

from pipeline.evaluate.statistics.inference import NO_ERROR
from pipeline.intervals import Interval, at_the_edge, family_weights


class Comparison(NamedTuple):
    """AUROC of the first scores minus that of the second, its interval, two-sided p, and people compared."""

    difference: float
    low: float
    high: float
    p_value: float
    n: int


def weighted_auroc(labels_N: np.ndarray, scores_N: np.ndarray, weights_RN: np.ndarray) -> np.ndarray:
    """(R,) AUROC under each row of weights; ties count half; NaN where a class has no weight or a score is NaN.

    One sort serves all rows, so the cost is linear in people and resamples.
    """
    positive, scores_N = np.asarray(labels_N).astype(bool), np.asarray(scores_N)
    if np.isnan(scores_N.astype(float)).any():
        return np.full(len(weights_RN), np.nan)
    negative_Q = np.flatnonzero(~positive)
    negative_Q = negative_Q[np.argsort(scores_N[negative_Q], kind="stable")]
    below_RQ = np.zeros((len(weights_RN), len(negative_Q) + 1))  # weight of the lowest 0, 1, .. Q negative people
    np.cumsum(weights_RN[:, negative_Q], axis=1, out=below_RQ[:, 1:])
    weights_RP = weights_RN[:, positive]
    first_P, last_P = (np.searchsorted(scores_N[negative_Q], scores_N[positive], side) for side in ("left", "right"))
    won_R = np.einsum("rp,rp->r", weights_RP, below_RQ[:, first_P])
    if not np.array_equal(first_P, last_P):  # ties
        won_R = (won_R + np.einsum("rp,rp->r", weights_RP, below_RQ[:, last_P])) / 2
    pairs_R = weights_RP.sum(1) * below_RQ[:, -1]
    return np.asarray(won_R / np.where(pairs_R > 0, pairs_R, np.nan))


def auroc(labels_N: np.ndarray, scores_N: np.ndarray) -> float:
    """Area under the ROC curve; NaN where a class is absent or a score is NaN."""
    return float(weighted_auroc(labels_N, scores_N, np.ones((1, len(labels_N))))[0])


def weighted_balanced_accuracy(labels_N: np.ndarray, scores_N: np.ndarray, weights_RN: np.ndarray) -> np.ndarray:
    """(R,) mean of sensitivity and specificity at a score of 0, under each row of weights; NaN without a class."""
    positive, called = labels_N.astype(bool), np.asarray(scores_N) >= 0
    with np.errstate(invalid="ignore"):
        hits = [weights_RN @ (side & (called == side_is)) for side, side_is in ((positive, True), (~positive, False))]
        return np.asarray((hits[0] / (weights_RN @ positive) + hits[1] / (weights_RN @ ~positive)) / 2)


def balanced_accuracy(labels_N: np.ndarray, scores_N: np.ndarray) -> float:
    """Mean of sensitivity and specificity at a score of 0."""
    return float(weighted_balanced_accuracy(labels_N, scores_N, np.ones((1, len(labels_N))))[0])


def smaller_class(labels_N: np.ndarray, groups_N: np.ndarray) -> int:
    """Families of the class that has fewer of them."""
    return min(len(np.unique(groups_N[labels_N == label])) for label in (0, 1))


def auroc_interval(
    labels_N: np.ndarray,
    scores_N: np.ndarray,
    groups_N: np.ndarray | None = None,
    method: Literal["bootstrap", "delong_logit"] = "bootstrap",
    confidence: float = 0.95,
    resamples: int = 1000,
    rng: np.random.Generator | None = None,
) -> Interval:
    """AUROC with its interval, which is symmetric on the logit scale.

    Parameters
    ----------
    groups_N : family of each person; None where all are independent.
    method : where the standard error is from: "bootstrap" over families, or "delong_logit" (DeLong's variance; people
        must be independent).

    Perfect separation has no spread under either; the exact binomial bound of the smaller class stands in for it.
    NaN where a class is absent; no ends where a class is one person, or one family. Percentiles of the resamples are
    not used: at AUROC .9 with 20 + 20 people they covered 92.8 %, plain DeLong 89.5 %, and these two 96 %.

    Raises
    ------
    ValueError : lengths differ, labels other than 0 and 1, a score that is NaN; "delong_logit" with families of more
        than one person.

    Source: DeLong (1988) Biometrics 44:837; Qin & Hotilovac (2008) Stat Methods Med Res 17:207 for the logit.
    """
    labels_N, groups_N, (scores_N,) = _people(labels_N, groups_N, scores_N)
    area = auroc(labels_N, scores_N)
    if area in (0.0, 1.0):
        return at_the_edge(area, smaller_class(labels_N, groups_N), confidence)
    if not np.isfinite(area):
        return Interval(np.nan, np.nan, np.nan)
    if method == "delong_logit":
        error = _delong_error(labels_N, groups_N, scores_N)
    else:
        error = _bootstrap_error(labels_N, groups_N, scores_N, resamples=resamples, rng=rng)
    return logit_interval(area, error, confidence)


def logit_interval(share: float, error: float, confidence: float = 0.95) -> Interval:
    """Interval of a share that is neither 0 nor 1 by its standard error, symmetric on the logit scale."""
    half = special.ndtri((1 + confidence) / 2) * error / (share * (1 - share))
    low, high = special.expit(special.logit(share) + np.array([-half, half]))
    return Interval(share, float(low), float(high))


def resampled_error(resampled_R: np.ndarray, families: int) -> float:
    """Standard error by resamples of families; NaN with fewer than two of them."""
    usable = resampled_R[np.isfinite(resampled_R)]
    if families < 2 or len(usable) < 2:
        return np.nan
    return float(np.std(usable, ddof=1) * np.sqrt(families / (families - 1)))  # the spread is of G, not of G - 1


def compare_aurocs(
    labels_N: np.ndarray,
    first_N: np.ndarray,
    second_N: np.ndarray,
    groups_N: np.ndarray | None = None,
    method: Literal["delong", "bootstrap"] | None = None,
    confidence: float = 0.95,
    resamples: int = 1000,
    rng: np.random.Generator | None = None,
) -> Comparison:
    """Difference of the AUROCs of two scores of the same people, first minus second.

    Parameters
    ----------
    groups_N : family of each person; None where all are independent.
    method : where the standard error is from: "delong" (people must be independent), or "bootstrap" over families;
        None: DeLong where every family is one person.

    Interval and p are both of the normal distribution with that error, so that p < .05 and a 95 % interval without 0
    are one statement. Where the people show no spread at all (two perfect systems, say) the exact binomial bound of
    the smaller class stands in for it. NaN where a class is absent; no ends and no p where a class is one person, or
    one family.

    Raises
    ------
    ValueError : lengths differ, labels other than 0 and 1, a score that is NaN; "delong" with families of more than
        one person.

    Source: DeLong (1988) Biometrics 44:837; midranks as Sun & Xu (2014) IEEE SPL 21:1389, so O(N log N).
    """
    labels_N, groups_N, scores = _people(labels_N, groups_N, first_N, second_N)
    difference = auroc(labels_N, scores[0]) - auroc(labels_N, scores[1])
    if not np.isfinite(difference):
        return Comparison(np.nan, np.nan, np.nan, np.nan, len(labels_N))
    if method == "delong" or (method is None and len(np.unique(groups_N)) == len(groups_N)):
        error = _delong_error(labels_N, groups_N, *scores)
    else:
        error = _bootstrap_error(labels_N, groups_N, *scores, resamples=resamples, rng=rng)
    if error < NO_ERROR:
        return _without_spread(difference, smaller_class(labels_N, groups_N), confidence, len(labels_N))
    half = special.ndtri((1 + confidence) / 2) * error
    low, high = np.clip([difference - half, difference + half], -1, 1)
    # Not from ranks of resamples: 1,000 of them cannot give a p below .002, which Holm over 30 rows always makes .06.
    p_value = 2 * float(special.ndtr(-abs(difference) / error))
    return Comparison(difference, float(low), float(high), p_value, len(labels_N))


def _people(
    labels: np.ndarray, groups: np.ndarray | None, *scores: np.ndarray
) -> tuple[np.ndarray, np.ndarray, list[np.ndarray]]:
    """Labels, families and scores as arrays of one length, labels 0 and 1, scores numbers; ValueError else."""
    labels_N = np.asarray(labels)
    groups_N = np.arange(len(labels_N)) if groups is None else np.asarray(groups)
    scores_SN = [np.asarray(scores_N, dtype=float) for scores_N in scores]
    shapes = {array.shape for array in (labels_N, groups_N, *scores_SN)}
    if len(shapes) > 1 or labels_N.ndim != 1:
        raise ValueError(f"labels, families and scores have shapes {sorted(shapes)}: all must be one (people,)")
    if labels_N.dtype.kind not in "biuf" or not np.isin(labels_N, (0, 1)).all():
        raise ValueError(f"labels are {np.unique(labels_N)[:5]}: they must be 0 and 1; code the positive class as 1")
    missing = sum(int(np.isnan(scores_N).sum()) for scores_N in scores_SN)
    if missing:
        raise ValueError(f"{missing} scores of {len(labels_N)} people are NaN; leave out who has no score")
    return labels_N, groups_N, scores_SN


def _bootstrap_error(
    labels_N: np.ndarray,
    groups_N: np.ndarray,
    scores_N: np.ndarray,
    minus_N: np.ndarray | None = None,
    *,
    resamples: int,
    rng: np.random.Generator | None,
) -> float:
    """Standard error of an AUROC, or of its difference to another, over families; NaN where a class is one family."""
    if smaller_class(labels_N, groups_N) < 2:
        return np.nan
    weights_RN = family_weights(groups_N, resamples, rng or np.random.default_rng(0))
    resampled_R = weighted_auroc(labels_N, scores_N, weights_RN)
    if minus_N is not None:
        resampled_R = resampled_R - weighted_auroc(labels_N, minus_N, weights_RN)
    return resampled_error(resampled_R, len(np.unique(groups_N)))


def _delong_error(
    labels_N: np.ndarray, groups_N: np.ndarray, scores_N: np.ndarray, minus_N: np.ndarray | None = None
) -> float:
    """DeLong's standard error of an AUROC, or of its difference to another; NaN where a class has one person."""
    if len(np.unique(groups_N)) < len(groups_N):
        raise ValueError("DeLong needs independent people; use method='bootstrap' where families have several")
    if smaller_class(labels_N, groups_N) < 2:
        return np.nan
    sides = _placements(labels_N, scores_N)
    if minus_N is not None:  # a person's difference: its variance holds the covariance of the two areas
        sides = tuple(one - other for one, other in zip(sides, _placements(labels_N, minus_N), strict=True))
    return float(np.sqrt(sum(placed.var(ddof=1) / len(placed) for placed in sides)))


def _placements(labels_N: np.ndarray, scores_N: np.ndarray) -> tuple[np.ndarray, ...]:
    """(P,) share of negative people below each positive one, (Q,) of positive ones above each negative; ties half."""
    positive = labels_N.astype(bool)
    pos, neg = int(positive.sum()), int((~positive).sum())
    rank_N = _midranks(scores_N)
    above_P = (rank_N[positive] - _midranks(scores_N[positive])) / neg
    above_Q = 1 - (rank_N[~positive] - _midranks(scores_N[~positive])) / pos
    return above_P, above_Q


def _midranks(values_N: np.ndarray) -> np.ndarray:
    """Ranks from 1; ties share their mean rank. (scipy.stats has them too, but takes a second to import.)"""
    level_N, count_L = np.unique(values_N, return_inverse=True, return_counts=True)[1:]
    return np.asarray((np.cumsum(count_L) - (count_L - 1) / 2)[level_N])


def _without_spread(difference: float, independent: int, confidence: float, n: int) -> Comparison:
    """Every person shows the same difference: at most a share of 1 - (alpha/2)^(1/m) differs, by as much as they can.

    That share is Clopper-Pearson's bound for none of m independent people, as in `intervals.at_the_edge`.
    """
    odd = 1 - ((1 - confidence) / 2) ** (1 / independent)
    p_value = min(1.0, 2 * (1 + abs(difference)) ** -independent)  # where the interval's end touches 0
    low, high = difference - odd * (1 + difference), difference + odd * (1 - difference)
    return Comparison(difference, low, high, p_value, n)
