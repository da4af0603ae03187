"""Points of the template to points of a run that comes with its own way there: a FNIRT field or an ITK transform.

Axes: M points in mm (RAS), X, Y, Z of a field's grid.
"""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path

import nibabel as nib
import numpy as np
from scipy import ndimage

from pipeline import config
from pipeline.bold.inputs import Frames, Run, open_image, reading
from pipeline.bold.normalise import ToRun
from pipeline.errors import InputError

FSL_FIELD = 2006  # NIfTI intent codes that FNIRT writes: displacements, and coefficients of splines or cosines
FSL_COEFFICIENTS = (2007, 2008, 2009)


def way_to_run(run: Run, frames: Frames, template_space: str, dataset: config.Dataset) -> ToRun | None:
    """How points of the template become points of a run in standard space; None where the two spaces are one.

    Raises
    ------
    InputError : the run lies in (or its warp leads to) another space, and the data set gives no transform.
    """
    between = None
    if run.space != template_space:
        between = _between(run, template_space, dataset)
    if run.warp is None:
        return between
    into_run = fnirt_way(run.warp, frames.shape[:3], frames.affine)
    return into_run if between is None else lambda points_M3: into_run(between(points_M3))


def _between(run: Run, template_space: str, dataset: config.Dataset) -> ToRun:
    key = f"datasets.{run.dataset}.to_template"
    if dataset.to_template is None:
        hint = f"Give TemplateFlow's tpl-{template_space}_from-{run.space}_mode-image_xfm.h5, or set 'space'."
        raise InputError(key, f"a run in {run.space}", f"a way to the template's {template_space}", hint)
    path = config.expand_path(key, dataset.to_template)
    named = re.match(r"tpl-([^_]+)_from-([^_]+)_", path.name)
    if named and named.groups() != (template_space, run.space):
        expected = f"tpl-{template_space}_from-{run.space}_..., which maps the template's points to the run's"
        raise InputError(key, f"'{path.name}'", expected, "The other direction would be some millimetres off.")
    return itk_way(path)


def itk_way(path: Path) -> ToRun:
    """An ITK transform file (.h5, .mat, .txt) as a map of points; ITK's world is LPS.

    TemplateFlow's `tpl-A_from-B_mode-image_xfm.h5` resamples images of B onto A, so it maps points of A to points of B.

    Raises
    ------
    InputError : no such file, or none that ITK reads.
    """
    import SimpleITK as sitk

    if not path.is_file():
        raise InputError(path, "no such file", "an ITK transform", "Check datasets.<name>.to_template.")
    try:
        transform = sitk.ReadTransform(str(path))
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1]
        raise InputError(path, f"a file that ITK does not read ({reason})", "an ITK transform", "Check it.") from error
    return partial(_through_itk, transform)


def _through_itk(transform: object, points_M3: np.ndarray) -> np.ndarray:
    lps = np.array([-1.0, -1.0, 1.0])
    moved = [transform.TransformPoint(point) for point in (points_M3 * lps).tolist()]  # type: ignore[attr-defined]
    return np.array(moved) * lps


def fnirt_way(path: Path, run_shape: tuple[int, ...], run_affine: np.ndarray) -> ToRun:
    """A FNIRT displacement field, on a grid of the standard space, as a map from its points to the run's.

    FSL counts in its own mm: voxel times voxel size, x mirrored where the affine's determinant is positive. The field
    holds at each voxel either the displacement or the place itself; as FSL's applywarp does, the one whose values
    spread less is taken for the displacement.

    Raises
    ------
    InputError : not a field of displacements (coefficients must be converted by `fnirtfileutils`).
    Quarantined : a damaged file.
    """
    image = open_image(path)
    intent = int(image.header["intent_code"])
    if intent in FSL_COEFFICIENTS or len(image.shape) != 4 or image.shape[3] != 3:
        found = f"an image of {'x'.join(map(str, image.shape))} (intent {intent})"
        hint = "Convert coefficients first: fnirtfileutils --in=WARP --ref=REFERENCE --out=FIELD."
        raise InputError(path, found, "a displacement field, three values a voxel", hint)
    with reading(path):
        field_XYZ3 = image.get_fdata(dtype=np.float32)
    to_fsl = fsl_mm(image.shape[:3], image.affine)
    own_XYZ3 = nib.affines.apply_affine(to_fsl, np.moveaxis(np.indices(image.shape[:3]), 0, -1))
    if _spread(field_XYZ3) > _spread(field_XYZ3 - own_XYZ3):
        field_XYZ3 = field_XYZ3 - own_XYZ3.astype(np.float32)
    from_fsl = np.asarray(run_affine) @ np.linalg.inv(fsl_mm(run_shape, run_affine))
    return partial(_through_field, field_XYZ3, image.affine, to_fsl, from_fsl)


def _spread(field_XYZ3: np.ndarray) -> float:
    return float(np.std(field_XYZ3, axis=(0, 1, 2)).sum())


def _through_field(
    field_XYZ3: np.ndarray, affine: np.ndarray, to_fsl: np.ndarray, from_fsl: np.ndarray, points_M3: np.ndarray
) -> np.ndarray:
    voxel_M3 = nib.affines.apply_affine(np.linalg.inv(affine), points_M3)
    parts = [
        ndimage.map_coordinates(part, voxel_M3.T, order=1, mode="nearest") for part in np.moveaxis(field_XYZ3, -1, 0)
    ]
    return np.asarray(
        nib.affines.apply_affine(from_fsl, nib.affines.apply_affine(to_fsl, voxel_M3) + np.stack(parts, 1))
    )


def fsl_mm(shape: tuple[int, ...], affine: np.ndarray) -> np.ndarray:
    """(4, 4) matrix from voxels to FSL's mm: scaled by voxel size, x mirrored for a positive determinant."""
    edges_mm = nib.affines.voxel_sizes(affine)
    matrix = np.diag([*edges_mm, 1.0])
    if np.linalg.det(affine[:3, :3]) > 0:
        matrix[0, 0] = -edges_mm[0]
        matrix[0, 3] = (shape[0] - 1) * edges_mm[0]
    return matrix
