"""What linear readers find in fixed features of people: a label by L2 logistic regression, an identity by correlation.

Axes: N people, D features, R directions of the training part (R <= people in it), B fits solved at once, S splits,
K inner folds. A split of small cohorts needs about 16 tiny fits (inner folds x penalties); solving them as one batch of
Newton steps is what lets 100 splits of 48 people take under half a second on one thread.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.special import expit

from pipeline.evaluate.splits import TEST, TRAIN, partition, seeded

INNER_FOLDS = 3
MIN_NESTED = 5  # fewer labelled people a class than this cannot choose C; the middle one of the list is taken
SHRINKAGE = 0.01  # of the covariance within a person; 1, 10, 30 % gave mean ranks .72, .70, .69 in the demo
_LARGEST_STEP = 3.0  # most that a Newton step may move a logit; larger steps overshoot where classes are separable
_SETTLED = 1e-4  # Newton squares its error: a last step of 1e-4 in the logits leaves about 1e-8


def standardise(features_ND: np.ndarray, train_N: np.ndarray) -> np.ndarray:
    """Features in units of the training people's SD about their mean; a missing value (NaN) takes their mean.

    A feature that is constant over the training people carries nothing they could teach, and becomes 0.
    """
    features_ND = np.asarray(features_ND, dtype=float)
    missing_ND = np.isnan(features_ND)
    if missing_ND.any():
        known = ~missing_ND[train_N]
        sum_D = np.where(known, features_ND[train_N], 0).sum(0)
        features_ND = np.where(missing_ND, sum_D / np.maximum(known.sum(0), 1), features_ND)
    mean_D, std_D = features_ND[train_N].mean(0), features_ND[train_N].std(0)
    varies_D = std_D > 1e-9 * np.maximum(1e-300, np.abs(mean_D))
    return np.asarray((features_ND - mean_D) * np.divide(1, std_D, out=np.zeros_like(std_D), where=varies_D))


def training_span(features_ND: np.ndarray, train_N: np.ndarray) -> np.ndarray:
    """(N, R) the same people in the span of the training people, where an L2 solution lies; exact, and small."""
    if features_ND.shape[1] <= train_N.sum():
        return features_ND
    products_NM = features_ND @ features_ND[train_N].T
    power, basis = np.linalg.eigh(products_NM[train_N])
    kept = power > 1e-10 * max(power[-1], 1e-300)
    return np.asarray(products_NM @ (basis[:, kept] / np.sqrt(power[kept])))


def fit_logistic(
    features_NR: np.ndarray, labels_N: np.ndarray, weights_BN: np.ndarray, strengths_B: np.ndarray, steps: int = 100
) -> np.ndarray:
    """(B, N) logits of all people under B logistic regressions, each minimising C sum w_n loss_n + |beta|^2 / 2.

    Parameters
    ----------
    weights_BN : weight of each person in each fit, 0 for those it must not see.
    strengths_B : C of each fit, as in scikit-learn. The intercept is not penalised.
    """
    people, directions = features_NR.shape
    design = np.column_stack([features_NR, np.ones(people)])
    penalty = np.append(np.ones(directions), 1e-9)  # the intercept's keeps the Hessian regular
    weights_BN = weights_BN * np.asarray(strengths_B)[:, None]
    beta_BR, logits_BN = np.zeros((len(weights_BN), directions + 1)), np.zeros(weights_BN.shape)
    for _ in range(steps):
        chance_BN = expit(logits_BN)
        slope_BR = (weights_BN * (chance_BN - labels_N)) @ design + penalty * beta_BR
        curvature_BN = weights_BN * chance_BN * (1 - chance_BN)
        hessian_BRR = (design.T * curvature_BN[:, None]) @ design + np.diag(penalty)
        step_BR = np.linalg.solve(hessian_BRR, slope_BR[..., None])[..., 0]
        moved_B = np.abs(np.where(weights_BN > 0, step_BR @ design.T, 0)).max(1)
        beta_BR -= step_BR * np.minimum(1, _LARGEST_STEP / np.maximum(moved_B, 1e-300))[:, None]
        logits_BN = beta_BR @ design.T
        if moved_B.max() < _SETTLED:
            break
    return logits_BN


def balanced_weights(labels_N: np.ndarray, chosen_BN: np.ndarray) -> np.ndarray:
    """Weights that give both classes the same total among the chosen people, and sum to their number."""
    positive_BN, negative_BN = chosen_BN * (labels_N == 1), chosen_BN * (labels_N == 0)
    total_B1 = chosen_BN.sum(1, keepdims=True) / 2
    return np.asarray(
        positive_BN * total_B1 / np.maximum(positive_BN.sum(1, keepdims=True), 1)
        + negative_BN * total_B1 / np.maximum(negative_BN.sum(1, keepdims=True), 1)
    )


def split_scores(
    features_ND: np.ndarray,
    labels_N: np.ndarray,
    families_N: np.ndarray,
    train_N: np.ndarray,
    penalties: Sequence[float],
) -> np.ndarray:
    """(N,) logits of all people under a probe that saw the training people alone, in units of their SD over those.

    C is the one with the least balanced log loss over inner folds of the training people. The unit makes splits with
    different C comparable, so that a person's scores can be averaged over splits; 0 stays the decision threshold.
    """
    features_NR = training_span(standardise(features_ND, train_N), train_N)
    strength = np.sort(np.asarray(penalties, dtype=float))
    per_class = min(int((labels_N[train_N] == label).sum()) for label in (0, 1))
    if per_class < MIN_NESTED or len(strength) == 1:
        strength, folds = strength[[len(strength) // 2]], 0
    else:
        folds = INNER_FOLDS
    held_KN = _inner_folds(labels_N, families_N, train_N, folds)
    seen_KN = np.vstack([train_N & ~held_KN, train_N[None]])
    weights_BN = np.repeat(balanced_weights(labels_N, seen_KN), len(strength), axis=0)
    logits_BN = fit_logistic(features_NR, labels_N, weights_BN, np.tile(strength, folds + 1))
    logits_KCN = logits_BN.reshape(folds + 1, len(strength), -1)
    loss_KCN = np.logaddexp(0, (1 - 2 * labels_N) * logits_KCN[:folds])
    loss_C = (loss_KCN * balanced_weights(labels_N, held_KN)[:, None]).sum((0, 2))
    best_N = logits_KCN[-1, int(loss_C.argmin())]
    spread = best_N[train_N].std()
    return np.asarray(best_N / spread if spread > 1e-9 else np.zeros_like(best_N))


def _inner_folds(labels_N: np.ndarray, families_N: np.ndarray, train_N: np.ndarray, folds: int) -> np.ndarray:
    """(K, N) who is held out of each inner fit; the same for every system, since it hangs on who is trained on."""
    held_KN = np.zeros((folds, len(labels_N)), dtype=bool)
    if folds:
        people = np.flatnonzero(train_N)
        rng = seeded("inner folds", people.tolist())
        held_KN[partition(labels_N[people], families_N[people], [1 / folds] * folds, rng), people] = True
    return held_KN


def out_of_split_scores(
    features_ND: np.ndarray,
    labels_N: np.ndarray,
    families_N: np.ndarray,
    parts_SN: np.ndarray,
    penalties: Sequence[float],
) -> np.ndarray:
    """(S, N) scores of each split's test people, NaN for everybody else."""
    scores_SN = np.full(parts_SN.shape, np.nan)
    for score_N, part_N in zip(scores_SN, parts_SN, strict=True):
        tested = part_N == TEST
        score_N[tested] = split_scores(features_ND, labels_N, families_N, part_N == TRAIN, penalties)[tested]
    return scores_SN


def mean_score(scores_SN: np.ndarray) -> np.ndarray:
    """(N,) mean over the splits that tested a person; NaN for those never tested."""
    tested_SN = np.isfinite(scores_SN)
    count_N = tested_SN.sum(0)
    return np.where(count_N > 0, np.where(tested_SN, scores_SN, 0).sum(0) / np.maximum(count_N, 1), np.nan)


class Identity(NamedTuple):
    """How well people are told apart: a value a person, means over both directions of matching."""

    top1_N: np.ndarray  # 1 where the person's other scan is the most similar one
    rank_N: np.ndarray  # share of the other people who are less similar than the person's own other scan


def similarity(first_ND: np.ndarray, second_ND: np.ndarray) -> np.ndarray:
    """(N, N) correlation of each first with each second scan, features standardised over people in each session.

    Features without variance correlate 0 with everything, which leaves identity at chance.
    """
    everybody = np.ones(len(first_ND), dtype=bool)
    units = []
    for features_ND in (first_ND, second_ND):
        scaled = standardise(features_ND, everybody)
        scaled = scaled - scaled.mean(1, keepdims=True) if scaled.shape[1] > 1 else scaled
        length = np.linalg.norm(scaled, axis=1, keepdims=True)
        units.append(np.divide(scaled, length, out=np.zeros_like(scaled), where=length > 1e-12))
    return np.asarray(units[0] @ units[1].T)


def discriminant(first_NKD: np.ndarray, second_NKD: np.ndarray) -> np.ndarray:
    """(N, N) nearness of each first to each second scan under a linear discriminant fitted on the first alone.

    Parameters
    ----------
    first_NKD, second_NKD : features of K >= 2 clips of each person's scan. Clips of one scan differ by what is not the
        person; their pooled covariance is the metric, minus the squared distance of means the nearness.

    Source: Fisher (1936), with the covariance shrunk by 1 % towards a multiple of the identity.
    """
    centre_D, scale_D = first_NKD.mean((0, 1)), first_NKD.std((0, 1))
    scale_D = np.where(scale_D > 1e-12, scale_D, 1.0)
    first_NKD, second_NKD = (first_NKD - centre_D) / scale_D, (second_NKD - centre_D) / scale_D
    within_MD = (first_NKD - first_NKD.mean(1, keepdims=True)).reshape(-1, first_NKD.shape[2])
    people, clips, features = first_NKD.shape
    covariance_DD = within_MD.T @ within_MD / (people * (clips - 1))
    level = np.trace(covariance_DD) / features or 1.0
    shrunk_DD = (1 - SHRINKAGE) * covariance_DD + SHRINKAGE * level * np.eye(features)
    whitening_DD = np.linalg.inv(np.linalg.cholesky(shrunk_DD)).T
    first_ND, second_ND = first_NKD.mean(1) @ whitening_DD, second_NKD.mean(1) @ whitening_DD
    return np.asarray(-((first_ND[:, None] - second_ND[None]) ** 2).sum(-1))


def identify(similarity_NN: np.ndarray, own_N: np.ndarray | None = None) -> Identity:
    """Match every scan to the most similar one of the other session; ties share the hit.

    `own_N` is the row of the second session that counts as a person's own: a permutation of it is the chance control.
    """
    own_N = np.arange(len(similarity_NN)) if own_N is None else own_N
    permuted_NN = similarity_NN[:, own_N]
    ways = [_match(matrix) for matrix in (permuted_NN, permuted_NN.T)]
    return Identity(*(np.mean(pair, axis=0) for pair in zip(*ways, strict=True)))


def _match(similarity_NN: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    own_N1 = np.diag(similarity_NN)[:, None]
    higher_N, equal_N = (similarity_NN > own_N1).sum(1), (similarity_NN == own_N1).sum(1)
    top1_N = np.where(higher_N == 0, 1 / equal_N, 0.0)
    others = max(len(similarity_NN) - 1, 1)
    return top1_N, 1 - (higher_N + (equal_N - 1) / 2) / others
