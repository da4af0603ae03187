"""Covariances seen from the training people's mean: the tangent space of positive definite matrices.

Axes: N people, M people of a task, P parcels, D = P (P + 1) / 2.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from scipy.linalg import eigh

from pipeline.evaluate.systems.packing import pack, unpack
from pipeline.evaluate.systems.readers import logistic

if TYPE_CHECKING:
    from pipeline.evaluate.cohort import Task
    from pipeline.evaluate.reading import Reader
    from pipeline.evaluate.systems.material import Material

_LEAST = 1e-6  # eigenvalue; single precision leaves 1e-7 of the largest


def tangent_logistic(material: Material, task: Task) -> Reader:
    """Tangent vectors, their reference fitted in the training part of each split, with L2 logistic regression."""
    covariance_MD = material.covariance_ND[task.rows_M]
    logarithm_MD = logarithms(covariance_MD)
    return logistic(material, task, lambda train_M: tangent_vectors(covariance_MD, logarithm_MD, train_M))


def logarithms(covariance_ND: np.ndarray) -> np.ndarray:
    """(N, D) matrix logarithms of packed positive definite matrices, float32."""
    return pack(_logarithms(unpack(covariance_ND.astype(np.float32))))


def tangent_vectors(covariance_ND: np.ndarray, logarithm_ND: np.ndarray, train_N: np.ndarray) -> np.ndarray:
    """(N, D) logarithms of covariances whitened by the log-Euclidean mean of the training people, float32.

    With reference G = exp(mean log C) a person's vector is log(G^-1/2 C G^-1/2), off-diagonal entries times the square
    root of 2. Nobody's vector depends on anybody outside the training part but on their own covariance.

    Memory: 4 B x people x parcels squared. For 200 parcels a person takes 3 ms, two thirds of it the eigenvectors.

    Source: Varoquaux et al. (2010), MICCAI; the mean as in Arsigny et al. (2006), Magn. Reson. Med. 56, 411-421.
    """
    power_P, axes_PP = eigh(unpack(logarithm_ND[train_N].mean(0, dtype=np.float64)), driver="evd")
    whitening_PP = ((axes_PP * np.exp(-power_P / 2)) @ axes_PP.T).astype(np.float32)
    whitened_NPP = whitening_PP @ unpack(covariance_ND.astype(np.float32)) @ whitening_PP
    return pack(_logarithms(whitened_NPP), np.sqrt(2))


def _logarithms(matrix_NPP: np.ndarray) -> np.ndarray:
    """Logarithms of symmetric matrices, in place; an eigenvalue below 1e-6 of the largest is taken for that.

    LAPACK's divide and conquer in single precision takes 1.5 ms for 200 parcels, numpy's eigh 3 ms.
    """
    for matrix_PP in matrix_NPP:
        power_P, axes_PP = eigh(matrix_PP, check_finite=False, driver="evd")
        matrix_PP[:] = (axes_PP * np.log(np.maximum(power_P, _LEAST * power_P[-1]))) @ axes_PP.T
    return matrix_NPP
