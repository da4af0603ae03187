"""Principal components of a training part, by the scalar products of people, for everybody.

Axes: N people, K components, B kinds of features.
"""

from __future__ import annotations

import numpy as np
from scipy.linalg import eigh

_LEAST = 1e-8  # of the largest variance; smaller ones are rounding
_NOTHING = 1e-12  # of the sum of squares; less variance than this is rounding


def components(products_BNN: np.ndarray, train_N: np.ndarray, most: int) -> np.ndarray:
    """(N, K) scores of everybody on the first components of the training people, at most as many as they span.

    Parameters
    ----------
    products_BNN : scalar products of people's features, one matrix a kind; kinds are given the same total variance
        among the training people.
    """
    centred_NN = np.sum([_centred(each_NN, train_N) for each_NN in products_BNN], axis=0)
    power, axes = eigh(centred_NN[np.ix_(train_N, train_N)], check_finite=False, driver="evd")
    kept = np.flatnonzero(power > _LEAST * max(power[-1], 1e-300))[::-1][:most]
    return np.asarray(centred_NN[:, train_N] @ (axes[:, kept] / np.sqrt(power[kept])))


def _centred(products_NN: np.ndarray, train_N: np.ndarray) -> np.ndarray:
    """Scalar products about the training people's mean, in units of their total variance; 0 where that is rounding."""
    to_mean_N = products_NN[:, train_N].mean(1)
    centred_NN = products_NN - to_mean_N[:, None] - to_mean_N + to_mean_N[train_N].mean()
    total, before = np.diag(centred_NN)[train_N].sum(), np.diag(products_NN)[train_N].sum()
    return np.asarray(centred_NN / total if total > _NOTHING * before else np.zeros_like(centred_NN))
