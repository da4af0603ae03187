"""A run that lies in a standard space onto the template's grid, block by block, and its voxels to mean 0 and SD 1.

Axes: T frames, t frames of a block, V in-mask voxels of the template, N voxels of the run's own grid (x fastest), K
sampling points in a voxel, M points.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import nibabel as nib
import numpy as np

from pipeline.bold.inputs import Frames
from pipeline.bold.template import Template

LATTICE_TOLERANCE = 1e-2  # voxels; what rounding of float32 affines leaves over a field of view
MOST_SAMPLES = 4  # along an axis of a template voxel
MEAN_FRAMES = 40  # frames behind a mean image: it is looked at and matched, never stored as signal

ToRun: TypeAlias = Callable[[np.ndarray], np.ndarray]  # (M, 3) mm of the template's space to mm of the run's


@dataclass(frozen=True, eq=False)
class Gridded:
    """A run on the template, not yet read.

    `blocks()` passes once over the signal, (t, V) float32 in the run's own unit, zero outside the field of view.
    `mean_XYZ()` is the mean image on the template's whole grid, known at the latest after that pass.
    """

    frames: int  # after dropping
    blocks: Callable[[], Iterator[np.ndarray]]
    mean_XYZ: Callable[[], np.ndarray]
    brain_XYZ: np.ndarray | None  # brain mask on the whole grid; None: where the mean is above 0
    fd_mm_T: np.ndarray | None  # framewise displacement of the kept frames
    resampling: str  # for the contract
    left_right: dict[str, Any] | None = None  # similarity to the own T1w as the run lies, and mirrored
    anatomy_XYZ: np.ndarray | None = None  # T1w on the whole grid


@dataclass(frozen=True, eq=False)
class Gridding:
    """How volumes of one grid become packed voxels of the template: by index where lattices agree, else by weights."""

    resampling: str
    index_V: np.ndarray | None  # of each voxel in the flat volume, -1 outside it
    weights_VN: Any  # sparse

    @classmethod
    def of(
        cls, shape: tuple[int, ...], affine: np.ndarray, template: Template, to_run: ToRun | None = None
    ) -> Gridding:
        """The way from a grid onto the template.

        Where the two lattices coincide, flipped or permuted axes included, every value is copied as it is. Elsewhere
        the volume is sampled linearly, at several points a voxel where the template is the coarser one (see
        `sampling_points`), whose mean is a box filter against aliasing.
        """
        if to_run is None:
            index_V = lattice_index(shape, affine, template)
            if index_V is not None:
                return cls("none", index_V, None)
        points_VK3 = sampling_points(template, nib.affines.voxel_sizes(affine))
        how = f"linear, {points_VK3.shape[1]} points a voxel"
        if to_run is not None:
            points_VK3 = to_run(points_VK3.reshape(-1, 3)).reshape(points_VK3.shape)
            how = f"warped, {how}"
        return cls(how, None, linear_weights(shape, affine, points_VK3))

    def __call__(self, block_XYZt: np.ndarray, scaled: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
        """(t, V) float32 of a block in Fortran order; `scaled` takes stored values to float32 in the run's unit."""
        frames_tN = block_XYZt.reshape(-1, block_XYZt.shape[-1], order="F").T
        if self.index_V is None:
            return np.ascontiguousarray((self.weights_VN @ scaled(frames_tN).T).T, dtype=np.float32)
        stored_tV = np.empty((len(frames_tN), len(self.index_V)), frames_tN.dtype)
        for frame_N, row_V in zip(frames_tN, stored_tV, strict=True):
            np.take(frame_N, self.index_V, out=row_V, mode="clip")  # half the time of frame_N[self.index_V]
        packed_tV = scaled(stored_tV)
        packed_tV[:, self.index_V < 0] = 0
        return packed_tV


@dataclass(eq=False)
class _Mean:
    """Mean of some forty frames, taken as they pass."""

    total_XYZ: np.ndarray
    chosen: frozenset[int]
    seen: int = field(default=0)

    @classmethod
    def over(cls, shape: tuple[int, ...], frames: int) -> _Mean:
        chosen = np.unique(np.linspace(0, frames - 1, MEAN_FRAMES).astype(int))
        return cls(np.zeros(shape), frozenset(chosen.tolist()))

    def add(self, block_XYZt: np.ndarray, scaled: Callable[[np.ndarray], np.ndarray]) -> None:
        for offset in range(block_XYZt.shape[-1]):
            if self.seen + offset in self.chosen:
                self.total_XYZ += scaled(block_XYZt[..., offset])
        self.seen += block_XYZt.shape[-1]

    @property
    def mean_XYZ(self) -> np.ndarray:
        return (self.total_XYZ / len(self.chosen)).astype(np.float32)


def standard_run(
    frames: Frames,
    template: Template,
    drop: int = 0,
    mask: Any = None,
    fd_mm_T: np.ndarray | None = None,
    to_run: ToRun | None = None,
) -> Gridded:
    """A run in the template's space, or one whose way there is given (`to_run`), with its brain mask if it has one.

    Memory is bounded by a block of frames and the weights of the sampling (100 bytes a template voxel).
    """
    gridding = Gridding.of(frames.shape[:3], frames.affine, template, to_run)
    kept = max(0, frames.shape[3] - drop)
    mean = _Mean.over(frames.shape[:3], kept)

    def blocks() -> Iterator[np.ndarray]:
        seen = 0
        for stored_XYZt in frames.blocks():
            late_XYZt = stored_XYZt[..., max(0, drop - seen) :]
            seen += stored_XYZt.shape[-1]
            if late_XYZt.shape[-1]:
                mean.add(late_XYZt, frames.scaled)
                yield gridding(late_XYZt, frames.scaled)

    return Gridded(
        frames=kept,
        blocks=blocks,
        mean_XYZ=lambda: volume_on_grid(mean.mean_XYZ, frames.affine, template, to_run),
        brain_XYZ=None if mask is None else mask_on_grid(mask, template, to_run),
        fd_mm_T=fd_mm_T,
        resampling=gridding.resampling,
    )


def volume_on_grid(
    volume_XYZ: np.ndarray, affine: np.ndarray, template: Template, to_run: ToRun | None = None
) -> np.ndarray:
    """One volume on the template's whole grid, linear at the voxels' centres, zero outside its field of view."""
    return _at_grid(volume_XYZ, affine, template, to_run, np.zeros(3), order=1)


def mask_on_grid(image: Any, template: Template, to_run: ToRun | None = None) -> np.ndarray:
    """A 3D mask image on the whole template grid, (X, Y, Z) bool: nearest neighbour, where coarser filled by half."""
    filled_XYZ = (np.asarray(image.dataobj) > 0).astype(np.uint8)
    offsets_K3 = _offsets(template, nib.affines.voxel_sizes(image.affine))
    count_XYZ = sum(_at_grid(filled_XYZ, image.affine, template, to_run, offset_3, order=0) for offset_3 in offsets_K3)
    return np.asarray(2 * count_XYZ >= len(offsets_K3)) & (count_XYZ > 0)


def _at_grid(
    volume_XYZ: np.ndarray,
    affine: np.ndarray,
    template: Template,
    to_run: ToRun | None,
    offset_3: np.ndarray,
    order: int,
) -> np.ndarray:
    """A volume at every voxel of the grid, moved by `offset_3` voxels."""
    from scipy.ndimage import map_coordinates

    points_M3 = nib.affines.apply_affine(template.affine, np.indices(template.shape).reshape(3, -1).T + offset_3)
    points_M3 = points_M3 if to_run is None else to_run(points_M3)
    voxel_3M = nib.affines.apply_affine(np.linalg.inv(affine), points_M3).T
    values_M = map_coordinates(volume_XYZ, voxel_3M, order=order, mode="grid-constant", cval=0)
    return np.asarray(values_M).reshape(template.shape)


def lattice_index(shape: tuple[int, ...], affine: np.ndarray, template: Template) -> np.ndarray | None:
    """Flat index, x fastest, of each template voxel in a volume, -1 outside it; None where the lattices differ."""
    voxel_V3 = nib.affines.apply_affine(np.linalg.inv(affine) @ template.affine, template.coordinates_V3)
    whole_V3 = np.rint(voxel_V3)
    if np.abs(voxel_V3 - whole_V3).max() > LATTICE_TOLERANCE:
        return None
    if not np.allclose(nib.affines.voxel_sizes(affine), template.resolution_mm, rtol=LATTICE_TOLERANCE):
        return None  # every second voxel of a finer lattice would alias
    whole_V3 = whole_V3.astype(np.int64)
    inside_V = np.all((whole_V3 >= 0) & (whole_V3 < shape[:3]), axis=1)
    clipped_V3 = np.where(inside_V[:, None], whole_V3, 0)
    return np.where(inside_V, np.ravel_multi_index(tuple(clipped_V3.T), shape[:3], order="F"), -1)


def sampling_points(template: Template, voxel_mm: np.ndarray) -> np.ndarray:
    """Points in mm at which a template voxel samples an image with voxels of `voxel_mm`, (V, K, 3).

    One point, the centre, where the image is the coarser one; else a regular lattice of about the image's spacing
    inside the voxel, at most four along an axis.
    """
    offsets_K3 = _offsets(template, voxel_mm)
    return nib.affines.apply_affine(template.affine, template.coordinates_V3[:, None] + offsets_K3)


def _offsets(template: Template, voxel_mm: np.ndarray) -> np.ndarray:
    """Points inside a template voxel, in voxels from its centre, (K, 3)."""
    counts = np.clip(np.rint(template.resolution_mm / np.asarray(voxel_mm)), 1, MOST_SAMPLES).astype(int)
    axes = [(np.arange(count) + 0.5) / count - 0.5 for count in counts]
    return np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 3)


def linear_weights(shape: tuple[int, ...], affine: np.ndarray, points_VK3: np.ndarray) -> Any:
    """Sparse (V, N) matrix that takes a volume, flat in Fortran order, to the mean of its values at the points.

    A row is zero where more than half of its points lie outside the volume.
    """
    from scipy import sparse

    count, samples = points_VK3.shape[:2]
    voxel_M3 = nib.affines.apply_affine(np.linalg.inv(affine), points_VK3.reshape(-1, 3))
    base_M3 = np.floor(voxel_M3).astype(int)
    rows, columns, weights = [], [], []
    for corner in np.ndindex(2, 2, 2):
        at_M3 = base_M3 + corner
        weight_M = np.prod(1 - np.abs(voxel_M3 - at_M3), axis=1)
        kept = np.all((at_M3 >= 0) & (at_M3 < shape[:3]), axis=1) & (weight_M > 0)
        rows.append(np.flatnonzero(kept) // samples)
        columns.append(np.ravel_multi_index(tuple(at_M3[kept].T), shape[:3], order="F"))
        weights.append(weight_M[kept] / samples)
    place = (np.concatenate(rows), np.concatenate(columns))
    matrix = sparse.csr_array((np.concatenate(weights), place), shape=(count, int(np.prod(shape[:3]))))
    total_V = matrix.sum(axis=1)
    scale_V = np.where(total_V >= 0.5, 1 / np.maximum(total_V, 0.5), 0)
    return (sparse.diags_array(scale_V) @ matrix).astype(np.float32).tocsr()


def zscore(bold_TV: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Each voxel's time course to mean 0 and population SD 1: (z_TV, mean_V, std_V), float32.

    A constant voxel (outside the field of view, say) becomes 0, with SD 0.
    """
    mean_V = bold_TV.mean(axis=0, dtype=np.float64)
    centred_TV = bold_TV - mean_V.astype(np.float32)
    centred_TV -= centred_TV.mean(axis=0)  # what float32 rounded off a mean far larger than the SD
    std_V = np.sqrt(np.einsum("tv,tv->v", centred_TV, centred_TV, dtype=np.float64) / len(bold_TV))
    # Below this the SD is rounding of a constant in float32, not signal.
    std_V[std_V <= np.abs(mean_V) * 1e-6] = 0
    inverse_V = np.divide(1, std_V, out=np.zeros_like(std_V), where=std_V > 0).astype(np.float32)
    return centred_TV * inverse_V, mean_V.astype(np.float32), std_V.astype(np.float32)
