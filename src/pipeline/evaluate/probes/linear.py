"""What linear readers find in fixed features of people: a label by L2 logistic regression or ridge, a number by ridge.

A reader learns from the training part of a split alone: it standardises there, chooses its strength by inner folds
there, and fits there. A split costs one product of the features with themselves and one eigendecomposition among the
training people; all of its fits (inner folds x strengths) are then solved at once along their principal axes.

Axes: M people of a task (N: any people), D features, F of them in a block, R axes of the training people, B fits,
K inner folds, C strengths.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal, NamedTuple

import numpy as np
from scipy.linalg import eigh

from pipeline.errors import InputError
from pipeline.evaluate.probes.newton import LOGISTIC, SQUARED, Loss, fit_linear
from pipeline.evaluate.reading import Reader, Reading
from pipeline.evaluate.splits import TRAIN, halving, partition, seeded

Features = np.ndarray | Callable[[np.ndarray], np.ndarray]
Harmonise = Callable[[np.ndarray, np.ndarray], np.ndarray]
Kind = Literal["classes", "number"]
_Fit = Literal["logits", "signs", "number"]

INNER_FOLDS = 3
MIN_NESTED = 5  # fewer training people a class than this cannot choose C; the middle one of the list is taken
_WIDE = 1024  # features from which products are summed in single precision, which moves logits by less than 1e-5
_BLOCK = 2048  # features standardised at once: 657 people x 2048 x 4 B stay in cache


def standardise(features_ND: np.ndarray, train_N: np.ndarray, dtype: type[np.floating] = np.float64) -> np.ndarray:
    """Features in units of the training people's SD about their mean; a missing value (NaN) takes their mean.

    A feature that is constant over the training people carries nothing they could teach, and becomes 0. With `dtype`
    float32, features that are already float32 are never widened.

    Raises
    ------
    InputError : a feature is infinite.
    """
    narrow = dtype is np.float32 and np.asarray(features_ND).dtype == np.float32
    features_ND = fill_missing(np.asarray(features_ND, dtype=np.float32 if narrow else np.float64), train_N)
    share_N = (train_N / train_N.sum()).astype(features_ND.dtype)
    first_D = features_ND[train_N.argmax()]
    centred_ND = features_ND - first_D  # exactly 0 where a feature is constant
    centred_ND -= share_N @ centred_ND
    std_D = np.sqrt(share_N @ (centred_ND * centred_ND))
    varies_D = std_D > (1e-6 if narrow else 1e-9) * np.abs(first_D)
    centred_ND *= np.divide(1, std_D, out=np.zeros_like(std_D), where=varies_D)
    return np.asarray(centred_ND, dtype=dtype)


def fill_missing(features_ND: np.ndarray, train_N: np.ndarray) -> np.ndarray:
    """The same features, NaN replaced by the mean of the training people's known values, 0 where none is known.

    Raises
    ------
    InputError : a feature is infinite.
    """
    if np.isfinite(np.ones(len(features_ND), features_ND.dtype) @ features_ND).all():
        return features_ND
    if np.isinf(features_ND).any():
        hint = "Look for a division by zero where they were computed, or leave these people out."
        raise InputError("features", f"{np.isinf(features_ND).sum()} infinite values", "numbers, or NaN", hint)
    known_ND = ~np.isnan(features_ND)
    sum_D = np.where(known_ND, features_ND, 0)[train_N].sum(0)
    return np.where(known_ND, features_ND, sum_D / np.maximum(known_ND[train_N].sum(0), 1).astype(features_ND.dtype))


def training_span(features_ND: np.ndarray, train_N: np.ndarray) -> np.ndarray:
    """(N, R) standardised features along the training people's principal axes, largest first.

    The solution of a linear fit with an L2 penalty lies in their span, so a reader loses nothing. R is at most D, and
    at most the training people less one.
    """
    if features_ND.shape[1] <= train_N.sum():
        scaled_ND = standardise(features_ND, train_N)
        return np.asarray(scaled_ND @ _principal(scaled_ND[train_N].T @ scaled_ND[train_N], 1e-12)[1])
    wide = features_ND.shape[1] >= _WIDE
    products_NM = _products(features_ND, train_N, np.float32 if wide else np.float64)
    power_R, axes_MR = _principal(products_NM[train_N], 1e-6 if wide else 1e-12)
    return np.asarray(products_NM @ (axes_MR / np.sqrt(power_R)))


def _products(features_ND: np.ndarray, train_N: np.ndarray, dtype: type[np.floating]) -> np.ndarray:
    """(N, M) scalar products of everybody's standardised features with the M training people's, block by block."""
    most = 2 * train_N.sum() > len(train_N)  # all with all is symmetric, and then cheaper
    products = np.zeros((len(train_N), len(train_N) if most else train_N.sum()))
    for start in range(0, features_ND.shape[1], _BLOCK):
        block_NF = standardise(features_ND[:, start : start + _BLOCK], train_N, dtype)
        products += block_NF @ (block_NF if most else block_NF[train_N]).T
    return products[:, train_N] if most else products


def _principal(square: np.ndarray, least: float) -> tuple[np.ndarray, np.ndarray]:
    """Eigenvalues above `least` of the largest, falling, and their vectors in columns."""
    if not len(square):
        return np.zeros(0), np.zeros((0, 0))
    power, axes = eigh(square, driver="evd")
    kept = np.flatnonzero(power > least * max(power[-1], 1e-300))[::-1]
    return power[kept], axes[:, kept]


def fit_logistic(
    features_NR: np.ndarray, labels_N: np.ndarray, weights_BN: np.ndarray, strengths_B: np.ndarray
) -> np.ndarray:
    """(B, N) logits of all people under B logistic regressions; see `newton.fit_linear`."""
    return fit_linear(features_NR, labels_N, weights_BN, strengths_B, LOGISTIC)


def balanced_weights(labels_N: np.ndarray, chosen_BN: np.ndarray) -> np.ndarray:
    """Weights that give both classes the same total among the chosen people, and sum to their number."""
    positive_BN, negative_BN = chosen_BN * (labels_N == 1), chosen_BN * (labels_N == 0)
    total_B1 = chosen_BN.sum(1, keepdims=True) / 2
    return np.asarray(
        positive_BN * total_B1 / np.maximum(positive_BN.sum(1, keepdims=True), 1)
        + negative_BN * total_B1 / np.maximum(negative_BN.sum(1, keepdims=True), 1)
    )


def linear_reader(
    features: Features,
    families_M: np.ndarray,
    penalties: Sequence[float],
    kind: Kind = "classes",
    harmonise: Harmonise | None = None,
) -> Reader:
    """L2 logistic regression with classes weighted equally, or ridge for a number, on fixed features.

    Parameters
    ----------
    features : (M, D), or a callable of the training mask (M,) for features that are themselves fitted there. A missing
        value (NaN) takes the training mean. Wide ones are best held as float32.
    families_M : who may not be divided by the inner folds that choose the strength.
    penalties : strengths C to choose from, as in scikit-learn's logistic regression; a ridge's alpha is 1 / C.
    harmonise : takes features and the training mask, returns features; applied before they are standardised.

    Returns
    -------
    A reader of (target_M, part_M). Scores are logits at equal prevalence, or predictions in the target's unit (while
    fitting it is z-scored in the training part). The strength is the one with the least loss of held-out people over
    inner folds, classes weighted equally. `inner_M` has each training person's score by the inner fit of that strength
    that did not see them, and NaN for everybody else. Where the training part has fewer than `MIN_NESTED` people a
    class (above or below the median with a number), the middle strength is taken and `inner_M` is NaN. A training part
    without both classes, or whose number does not vary, gives NaN for everybody.
    """
    strengths_C = np.sort(np.asarray(penalties, dtype=float))
    return partial(_read, features, families_M, strengths_C, harmonise, "number" if kind == "number" else "logits")


def ridge_reader(
    features: Features,
    families_M: np.ndarray,
    penalties: Sequence[float],
    kind: Kind = "classes",
    harmonise: Harmonise | None = None,
) -> Reader:
    """Ridge on -1 and +1 with classes weighted equally; otherwise as `linear_reader`, and the same for a number.

    Scores are twice the prediction f: the logit of a probability (1 + f) / 2 is about that, and 0 is the threshold.
    """
    strengths_C = np.sort(np.asarray(penalties, dtype=float))
    return partial(_read, features, families_M, strengths_C, harmonise, "number" if kind == "number" else "signs")


class _Problem(NamedTuple):
    """What is fitted to the target, and how a score is read back: `offset + unit * score`."""

    goal_M: np.ndarray
    strata_M: np.ndarray  # 0/1, what inner folds are stratified by
    loss: Loss
    balanced: bool  # both strata have the same weight
    offset: float = 0.0
    unit: float = 1.0

    def weights(self, chosen_BM: np.ndarray) -> np.ndarray:
        return balanced_weights(self.strata_M, chosen_BM) if self.balanced else chosen_BM.astype(float)


def _posed(how: _Fit, target_M: np.ndarray, train_M: np.ndarray) -> _Problem:
    if how == "logits":
        return _Problem(target_M, target_M, LOGISTIC, balanced=True)
    if how == "signs":
        return _Problem(2.0 * target_M - 1, target_M, SQUARED, balanced=True, unit=2.0)
    mean, unit = float(target_M[train_M].mean()), float(target_M[train_M].std())
    above_M = (target_M > halving(target_M[train_M])).astype(int)
    return _Problem((target_M - mean) / unit, above_M, SQUARED, balanced=False, offset=mean, unit=unit)


def _read(
    features: Features,
    families_M: np.ndarray,
    strengths_C: np.ndarray,
    harmonise: Harmonise | None,
    how: _Fit,
    target_M: np.ndarray,
    part_M: np.ndarray,
) -> Reading:
    """What a reader does; the arguments up to `how` are bound when it is made."""
    train_M = part_M == TRAIN
    if len(np.unique(target_M[train_M])) < 2:
        return Reading(np.full(len(target_M), np.nan), np.full(len(target_M), np.nan))
    problem = _posed(how, target_M, train_M)
    features_MD = features(train_M) if callable(features) else features
    features_MD = features_MD if harmonise is None else harmonise(features_MD, train_M)
    held_KM = inner_folds(problem.strata_M, families_M, train_M)
    tried_C = strengths_C if len(held_KM) else strengths_C[[len(strengths_C) // 2]]
    score_M, inner_M, strength = _nested(problem, training_span(features_MD, train_M), train_M, held_KM, tried_C)
    chosen = f"C={strength:g}" if problem.loss is LOGISTIC else f"alpha={1 / strength:g}"
    return Reading(problem.offset + problem.unit * score_M, problem.offset + problem.unit * inner_M, chosen)


def _nested(
    problem: _Problem, span_MR: np.ndarray, train_M: np.ndarray, held_KM: np.ndarray, strengths_C: np.ndarray
) -> tuple[np.ndarray, np.ndarray, float]:
    """Scores by the best strength fitted to all training people, those of held-out people by its inner fits, itself."""
    folds = len(held_KM)
    seen_BM = np.repeat(np.vstack([train_M & ~held_KM, train_M[None]]), len(strengths_C), axis=0)
    weights_BM, strengths_B = problem.weights(seen_BM), np.tile(strengths_C, folds + 1)
    scores_BM = fit_linear(span_MR, problem.goal_M, weights_BM, strengths_B, problem.loss)
    scores_KCM = scores_BM.reshape(folds + 1, len(strengths_C), -1)
    loss_KCM = problem.loss.value(scores_KCM[:folds], problem.goal_M) * problem.weights(held_KM)[:, None]
    best = int(loss_KCM.sum((0, 2)).argmin())
    inner_M = np.where(held_KM, scores_KCM[:folds, best], 0).sum(0)
    return scores_KCM[-1, best], np.where(held_KM.any(0), inner_M, np.nan), float(strengths_C[best])


def inner_folds(strata_N: np.ndarray, families_N: np.ndarray, train_N: np.ndarray) -> np.ndarray:
    """(K, N) who is held out of each inner fit; the same for every system, since it hangs on who is trained on.

    None where a stratum has too few people to choose by; a fold that would leave one without any is left out.
    """
    people = np.flatnonzero(train_N)
    held_KN = np.zeros((INNER_FOLDS, len(train_N)), dtype=bool)
    sizes = [int((strata_N[people] == stratum).sum()) for stratum in (0, 1)]
    if min(sizes) < MIN_NESTED:
        return held_KN[:0]
    rng = seeded("inner folds", people.tolist())
    part = partition(strata_N[people], families_N[people], [1 / INNER_FOLDS] * INNER_FOLDS, rng)
    held_KN[part, people] = True
    seen_KN = train_N & ~held_KN
    usable_K = held_KN.any(1) & (seen_KN & (strata_N == 0)).any(1) & (seen_KN & (strata_N == 1)).any(1)
    return held_KN[usable_K]
