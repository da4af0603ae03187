"""Who is who across two sessions: people matched by correlation of features, or by a discriminant of clips.

Axes: N people, K clips of a scan, D features, M = N K clips.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from pipeline.evaluate.probes.linear import standardise

SHRINKAGE = 0.01  # of the covariance within a person; 1, 10, 30 % gave mean ranks .72, .70, .69 in the demo


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
