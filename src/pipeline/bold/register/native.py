"""A native-space run onto the template: every step estimated, all of them composed, the values interpolated once.

    point of the template -> deformation -> affine -> T1w -> rigid -> mean of the run -> head motion -> frame

without a T1w: point of the template -> affine -> mean of the run -> head motion -> frame.
Axes: T frames, t frames of a block, V in-mask voxels of the template, K sampling points in a voxel, M points, X, Y, Z.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import nibabel as nib
import numpy as np
from scipy import ndimage

from pipeline import config
from pipeline.bold.inputs import Frames, Run
from pipeline.bold.motion import framewise_displacement
from pipeline.bold.normalise import Gridded, ToRun, mask_on_grid, sampling_points, volume_on_grid
from pipeline.bold.quality import Quarantined
from pipeline.bold.register.brain import brain_mask, levelled, lowered, t1w_brain
from pipeline.bold.register.deform import deform
from pipeline.bold.register.linear import affine_to_standard, rigid_to_t1w
from pipeline.bold.register.motion import estimate_motion, realigned_mean, rigid_matrix, volume_centre
from pipeline.bold.register.movie import Movie, slice_shift
from pipeline.bold.spool import BLOCK
from pipeline.bold.template import Template, load_brain
from pipeline.errors import InputError

MATCHED_MM = 2.0  # voxels at which a T1w is matched: at 0.7 mm the same takes ten times as long


@dataclass(frozen=True, eq=False)
class Way:
    """From points of the template, in mm, to points of a run's mean image; and what was found beside it."""

    to_run: ToRun
    steps: str
    t1w: Any = None  # brain of the T1w
    to_t1w: ToRun | None = None
    left_right: dict[str, Any] | None = None


@contextmanager
def registered(
    run: Run, frames: Frames, template: Template, settings: config.Template, dataset: config.Dataset, drop: int = 0
) -> Iterator[Gridded]:
    """One run in native space on the template; what it yields can be read while the context lasts.

    The run lies in a scratch file meanwhile, because it is passed over four times; memory holds single frames, the
    T1w and the sampling points.

    Raises
    ------
    InputError, Quarantined : damaged files; also quarantined where no brain is found or a step fails.
    """
    if frames.shape[3] - drop < 2:
        raise Quarantined(f"{frames.shape[3] - drop} frames after dropping {drop}")
    shift_Z = slice_shift(run.slice_times_s if dataset.slice_timing else None, run.tr_s)
    with frames.spooled() as stored_XYZT:
        movie = Movie(frames, stored_XYZT, drop, shift_Z)
        with _quarantining():
            motion_T6 = estimate_motion(movie)
            mean = nib.Nifti1Image(realigned_mean(movie, motion_T6), movie.affine)
            brain = brain_mask(mean)
            way = _way(run, mean, brain, load_brain(settings), dataset.deformable)
        timing = "slices timed, " if shift_Z is not None else ""
        yield Gridded(
            frames=len(movie),
            blocks=lambda: _sampled(movie, motion_T6, template, way.to_run),
            mean_XYZ=lambda: volume_on_grid(np.asarray(mean.dataobj), mean.affine, template, way.to_run),
            brain_XYZ=mask_on_grid(brain, template, way.to_run),
            fd_mm_T=framewise_displacement(motion_T6),
            resampling=f"{timing}motion, {way.steps} composed, cubic spline",
            left_right=way.left_right,
            anatomy_XYZ=_anatomy(way, template),
        )


@contextmanager
def _quarantining() -> Iterator[None]:
    """What ITK, dipy, deepbet and linear algebra raise on a strange image costs that run alone."""
    try:
        yield
    except InputError:
        raise
    except (RuntimeError, ValueError, ArithmeticError, np.linalg.LinAlgError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[-1]
        raise Quarantined(f"registration failed: {reason}") from error


def _way(run: Run, mean: Any, brain: Any, standard: Any, deformable: bool) -> Way:
    epi = levelled(mean, brain)
    if run.t1w is None:
        affine = affine_to_standard(epi, standard)
        return Way(lambda points_M3: nib.affines.apply_affine(affine, points_M3), "affine")
    t1w = t1w_brain(run.t1w, run.t1w_mask)
    coarse = lowered(t1w, MATCHED_MM)
    to_t1w = affine_to_standard(coarse, standard)
    bend: ToRun = deform(t1w, to_t1w, standard) if deformable else _stay
    rigid, as_is = rigid_to_t1w(epi, coarse)
    to_epi = np.linalg.inv(rigid)

    def into_t1w(points_M3: np.ndarray) -> np.ndarray:
        return np.asarray(nib.affines.apply_affine(to_t1w, bend(points_M3)))

    _, mirrored = rigid_to_t1w(_mirrored(epi), coarse)
    return Way(
        to_run=lambda points_M3: nib.affines.apply_affine(to_epi, into_t1w(points_M3)),
        steps="rigid to T1w, affine, deformation" if deformable else "rigid to T1w, affine",
        t1w=t1w,
        to_t1w=into_t1w,
        left_right={"as_is": as_is, "mirrored": mirrored, "against": "T1w"},
    )


def _stay(points_M3: np.ndarray) -> np.ndarray:
    return points_M3


def _mirrored(image: Any) -> Any:
    """The same image with left and right exchanged about the middle of its field of view."""
    middle = float(volume_centre(image.shape, image.affine)[0])
    mirror = np.diag([-1.0, 1.0, 1.0, 1.0])
    mirror[0, 3] = 2 * middle
    return nib.Nifti1Image(np.asarray(image.dataobj), mirror @ image.affine)


def _anatomy(way: Way, template: Template) -> np.ndarray | None:
    if way.t1w is None:
        return None
    return volume_on_grid(np.asarray(way.t1w.dataobj), way.t1w.affine, template, way.to_t1w)


def _sampled(movie: Movie, motion_T6: np.ndarray, template: Template, to_run: ToRun) -> Iterator[np.ndarray]:
    """Each frame at its own moved points, cubic spline, mean over a voxel's points; zero outside the volume."""
    points_VK3 = sampling_points(template, nib.affines.voxel_sizes(movie.affine))
    points_M3 = to_run(points_VK3.reshape(-1, 3))
    inside_V = _inside(movie, points_M3.reshape(points_VK3.shape))
    centre_3, to_voxel = volume_centre(movie.shape, movie.affine), np.linalg.inv(movie.affine)
    for start in range(0, len(movie), BLOCK):
        block_tV = np.zeros((min(BLOCK, len(movie) - start), len(points_VK3)), np.float32)
        for row, row_V in enumerate(block_tV):
            matrix = to_voxel @ rigid_matrix(motion_T6[start + row], centre_3)
            voxel_3M = nib.affines.apply_affine(matrix, points_M3).T
            values_M = ndimage.map_coordinates(movie[start + row], voxel_3M, order=3, mode="nearest")
            row_V[:] = np.where(inside_V, values_M.reshape(points_VK3.shape[:2]).mean(axis=1), 0)
        yield block_tV


def _inside(movie: Movie, native_VK3: np.ndarray) -> np.ndarray:
    """Template voxels that lie in the field of view for at least half of their points, (V,)."""
    voxel_VK3 = nib.affines.apply_affine(np.linalg.inv(movie.affine), native_VK3)
    inside_VK = np.all((voxel_VK3 > -0.5) & (voxel_VK3 < np.array(movie.shape) - 0.5), axis=2)
    return np.asarray(inside_VK.mean(axis=1) >= 0.5)
