"""Systems without dynamics between parcels: mean and SD over time, parcel by parcel or as principal components.

Axes: M people of a task, N people, P parcels, K components.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from pipeline.evaluate.systems.components import components
from pipeline.evaluate.systems.readers import logistic

if TYPE_CHECKING:
    from pipeline.evaluate.cohort import Task
    from pipeline.evaluate.reading import Reader, RunFeatures
    from pipeline.evaluate.systems.material import Material

COMPONENTS = 20  # of mean and SD images


def time_averaged(material: Material, task: Task) -> Reader | None:
    """The mean image by parcel; None for series from which the mean was taken away."""
    return logistic(material, task, material.image_NP[task.rows_M]) if material.image_NP.any() else None


def temporal_sd(material: Material, task: Task) -> Reader:
    """SD over time by parcel."""
    return logistic(material, task, material.sd_NP[task.rows_M])


def parcel_mean_sd(material: Material, task: Task) -> Reader | None:
    """Mean and SD by parcel; None where there is no mean, and temporal_sd says all."""
    if not material.image_NP.any():
        return None
    return logistic(material, task, np.hstack([material.image_NP, material.sd_NP])[task.rows_M])


def principal_components(material: Material, task: Task) -> Reader:
    """Principal components of mean and SD images, each of the two with the same total variance in the training part."""
    products_2MM = material.image_products_2NN[:, task.rows_M][:, :, task.rows_M]
    return logistic(material, task, lambda train_M: components(products_2MM, train_M, COMPONENTS))


def time_averaged_identity(material: Material) -> RunFeatures | None:
    """The mean image of each run, that of a short scan being the whole run's; None for series without a mean."""
    runs = material.runs
    if not runs.image_RP.any():
        return None
    return material.of_runs(runs.image_RP, runs.image_RP[: len(runs.short_sd_RP)])


def temporal_sd_identity(material: Material) -> RunFeatures | None:
    """SD by parcel of each run, whole and short."""
    return material.of_runs(material.runs.sd_RP, material.runs.short_sd_RP)
