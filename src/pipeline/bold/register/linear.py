"""Linear registration by mutual information: a brain on the standard brain, and a mean EPI on its T1w.

Axes: X, Y, Z of an image's own grid.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import nibabel as nib
import numpy as np
from scipy import ndimage

from pipeline.bold.register.itk import ras_matrix, to_itk

BINS = 64
# Voxel size of the fixed image, coarse to fine, smoothed by half of that, and the share of its voxels that is compared:
# a tenth of the coarsest grid are some hundred voxels, from which a head pitched by 25 degrees was not found.
LEVELS_MM = {8.0: 1.0, 4.0: 0.4, 2.0: 0.1}
RIGID_LEVELS_MM = {8.0: 1.0, 4.0: 0.5, 2.0: 0.3}
AROUND_BRAIN_MM = 6.0  # enough background for the outline; all of it, and the outline outweighs the anatomy inside
SAMPLING_SEED = 1  # ITK jitters even a regular sample, from the clock where no seed is given


def affine_to_standard(brain: Any, standard: Any) -> np.ndarray:
    """(4, 4) matrix from mm of the standard space to mm of a brain image, whose background is 0.

    Mattes mutual information in and around the standard brain, coarse to fine, rigid first and then twelve parameters,
    from the centres of mass. An unmasked EPI would be scaled onto the scalp: only the brain is matched.

    Raises
    ------
    RuntimeError : the optimiser loses the brain.
    """
    import SimpleITK as sitk

    fixed, moving = to_itk(standard.get_fdata(dtype=np.float32), standard.affine), _image(brain)
    near = _around(standard)
    rigid = _centred(fixed, moving)
    _optimise(fixed, moving, near, rigid, LEVELS_MM)
    affine = sitk.AffineTransform(3)
    affine.SetCenter(rigid.GetCenter())
    affine.SetMatrix(rigid.GetMatrix())
    affine.SetTranslation(rigid.GetTranslation())
    _optimise(fixed, moving, near, affine, LEVELS_MM)
    return ras_matrix(affine)


def rigid_to_t1w(epi_brain: Any, t1w_brain: Any) -> tuple[np.ndarray, float]:
    """(4, 4) matrix from mm of a mean EPI to mm of the T1w of the same head, and the mutual information reached.

    The EPI's brain is the fixed image, because it is often cut: every voxel of it has its place in the T1w.

    Raises
    ------
    RuntimeError : the optimiser loses the brain.
    """
    fixed, moving = _image(epi_brain), _image(t1w_brain)
    rigid = _centred(fixed, moving)
    metric = _optimise(fixed, moving, _around(epi_brain), rigid, RIGID_LEVELS_MM)
    return ras_matrix(rigid), -metric


def _image(brain: Any) -> Any:
    return to_itk(np.asarray(brain.dataobj, dtype=np.float32), brain.affine)


def _centred(fixed: Any, moving: Any) -> Any:
    """A rigid transform that lays centre of mass on centre of mass."""
    import SimpleITK as sitk

    mode = sitk.CenteredTransformInitializerFilter.MOMENTS
    return sitk.Euler3DTransform(sitk.CenteredTransformInitializer(fixed, moving, sitk.Euler3DTransform(), mode))


def _around(image: Any) -> Any:
    """The brain of a masked image and what lies around it."""
    import SimpleITK as sitk

    data_XYZ = np.asarray(image.dataobj, dtype=np.float32)
    outside_XYZ = data_XYZ <= 0.2 * data_XYZ.max()
    distance_XYZ = ndimage.distance_transform_edt(outside_XYZ, sampling=nib.affines.voxel_sizes(image.affine))
    return sitk.Cast(to_itk(distance_XYZ <= AROUND_BRAIN_MM, image.affine), sitk.sitkUInt8)


def _optimise(fixed: Any, moving: Any, near: Any, transform: Any, levels_mm: Mapping[float, float]) -> float:
    """Improve the transform in place: the metric reached; `near` is the part of the fixed image that counts."""
    import SimpleITK as sitk

    method = sitk.ImageRegistrationMethod()
    method.SetMetricAsMattesMutualInformation(BINS)
    method.SetMetricFixedMask(near)
    method.SetMetricSamplingStrategy(method.REGULAR)
    method.SetMetricSamplingPercentagePerLevel(list(levels_mm.values()), SAMPLING_SEED)
    method.SetInterpolator(sitk.sitkLinear)
    method.SetOptimizerAsGradientDescentLineSearch(1.0, 100, 1e-6, 10)
    method.SetOptimizerScalesFromPhysicalShift()
    voxel_mm = min(fixed.GetSpacing())
    method.SetShrinkFactorsPerLevel([max(1, round(level_mm / voxel_mm)) for level_mm in levels_mm])
    method.SetSmoothingSigmasPerLevel([level_mm / 2 for level_mm in levels_mm])
    method.SmoothingSigmasAreSpecifiedInPhysicalUnitsOn()
    method.SetInitialTransform(transform, inPlace=True)
    # Each work unit adds up its part of the metric; with one the sum does not depend on the number of cores.
    method.SetNumberOfWorkUnits(1)
    method.Execute(fixed, moving)
    return float(method.GetMetricValue())
