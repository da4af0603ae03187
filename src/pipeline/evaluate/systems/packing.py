"""Symmetric matrices as vectors: what stands on and above the diagonal, row by row.

Axes: P rows and columns, D = P (P + 1) / 2.
"""

from __future__ import annotations

from math import isqrt

import numpy as np


def pack(matrix_PP: np.ndarray, off_diagonal: float = 1.0) -> np.ndarray:
    """(..., D) of symmetric matrices (..., P, P), entries off the diagonal times `off_diagonal`.

    With the square root of 2 scalar products of vectors are those of the matrices.
    """
    rows, columns = np.triu_indices(matrix_PP.shape[-1])
    factor_D = np.where(rows == columns, 1, off_diagonal).astype(matrix_PP.dtype)
    return np.asarray(matrix_PP[..., rows, columns] * factor_D)


def unpack(vector_D: np.ndarray) -> np.ndarray:
    """(..., P, P) symmetric matrices of `pack` with a factor of 1."""
    size = (isqrt(8 * vector_D.shape[-1] + 1) - 1) // 2
    rows, columns = np.triu_indices(size)
    matrix_PP = np.empty((*vector_D.shape[:-1], size, size), vector_D.dtype)
    matrix_PP[..., rows, columns] = vector_D
    matrix_PP[..., columns, rows] = vector_D
    return matrix_PP
