"""Connectomes: correlations and partial correlations between parcels, and the linear systems that read them.

A parcel without variance correlates 0 with everything, and nothing here is ever NaN. Axes: M people of a task, N people
of a cohort, T frames, P parcels, A parcels with variance, E edges = P (P - 1) / 2 in the order of
`numpy.triu_indices(P, 1)`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from pipeline.evaluate.systems.readers import logistic, ridge

if TYPE_CHECKING:
    from pipeline.evaluate.cohort import Task
    from pipeline.evaluate.reading import Reader, RunFeatures
    from pipeline.evaluate.systems.material import Material

MOST = 0.999999  # correlation whose Fisher z (7.3) stands for that of identical parcels
LEAST_SHRINKAGE = 1e-4  # so that identical parcels in a long run do not make a covariance singular


def units(parcels_TP: np.ndarray) -> np.ndarray:
    """Centred columns of length 1; 0 for parcels without variance, float64."""
    centred_TP = parcels_TP - parcels_TP.mean(0)
    length_P = np.linalg.norm(centred_TP, axis=0)
    scale_P = np.maximum(1.0, np.abs(parcels_TP).max(0)) * np.sqrt(len(parcels_TP))
    alive_P = length_P > 1e-9 * scale_P
    return np.asarray(centred_TP * np.divide(1, length_P, out=np.zeros_like(length_P), where=alive_P))


def pearson(parcels_TP: np.ndarray) -> np.ndarray:
    """(E,) Fisher z of Pearson correlations between parcels; 0 for parcels without variance."""
    units_TP = units(parcels_TP)
    return fisher_z(units_TP.T @ units_TP)


def fisher_z(correlation_PP: np.ndarray) -> np.ndarray:
    """(E,) inverse hyperbolic tangent of what stands above the diagonal."""
    edges = np.triu_indices(len(correlation_PP), 1)
    return np.asarray(np.arctanh(np.clip(correlation_PP[edges], -MOST, MOST)))


def shrunk_covariance(parcels_TP: np.ndarray) -> np.ndarray:
    """(P, P) covariance of parcels at unit variance, shrunk towards the identity; 1 on the whole diagonal.

    A parcel without variance stands alone: 0 beside its 1.

    Source: Ledoit & Wolf (2004), J. Multivariate Analysis 88, 365-411.
    """
    scaled_TP = units(parcels_TP) * np.sqrt(len(parcels_TP))
    alive_P = scaled_TP.any(0)
    frames, covariance_PP = len(scaled_TP), scaled_TP.T @ scaled_TP / len(scaled_TP)
    square = (covariance_PP**2).sum()
    distance = square - alive_P.sum()  # from the identity: its trace is the number of parcels with variance
    noise = ((scaled_TP**2).sum(1) ** 2).sum() / frames**2 - square / frames
    shrinkage = np.clip(noise / distance, LEAST_SHRINKAGE, 1) if distance > 1e-12 else 1.0
    return np.asarray((1 - shrinkage) * covariance_PP * (1 - np.eye(len(alive_P))) + np.eye(len(alive_P)))


def partial_correlation(covariance_PP: np.ndarray) -> np.ndarray:
    """(E,) Fisher z of the correlation of each two parcels given all others, from an invertible covariance."""
    precision_PP = np.linalg.inv(covariance_PP)
    scale_P = 1 / np.sqrt(np.diag(precision_PP))
    return fisher_z(-precision_PP * scale_P[:, None] * scale_P)


def pearson_logistic(material: Material, task: Task) -> Reader:
    """The connectome with L2 logistic regression."""
    return logistic(material, task, material.edges_NE[task.rows_M])


def pearson_ridge(material: Material, task: Task) -> Reader | None:
    """The connectome with ridge; None for a number that connectome_logistic, ridge there, predicts already."""
    named = material.study.evaluate.systems
    if task.kind == "number" and (not named or "connectome_logistic" in named):
        return None
    return ridge(material, task, material.edges_NE[task.rows_M])


def partial_logistic(material: Material, task: Task) -> Reader:
    """Partial correlations with L2 logistic regression."""
    return logistic(material, task, material.partial_NE[task.rows_M])


def identity(material: Material) -> RunFeatures | None:
    """The connectome of each run, whole and short."""
    return material.of_runs(material.runs.edges_RE, material.runs.short_edges_RE)
