"""A run onto the template's grid, and its voxels to zero mean and unit SD.

Axes: T frames, V in-mask voxels of the template, N voxels of the run's own grid, K sampling points in a voxel.
"""

from __future__ import annotations

from typing import Any

import nibabel as nib
import numpy as np

from pipeline.bold.template import Template, pack

LATTICE_TOLERANCE = 1e-3  # voxels; what rounding of float32 affines leaves over a field of view
MOST_SAMPLES = 4  # along an axis of a template voxel


def to_template(image: Any, template: Template) -> tuple[np.ndarray, str]:
    """Signal of a 4D image at the template's in-mask voxels, (T, V) float32 in its own unit, and how it got there.

    Where the two lattices coincide the image is cropped and padded with zeros, and no value changes. Elsewhere it
    is sampled linearly, at several points a voxel where the template is the coarser one (see `sampling_points`),
    whose mean is a box filter against aliasing. Voxels outside the field of view are zero. Memory is bounded by the
    run in float32 once, beside the result.
    """
    image = nib.as_closest_canonical(image)
    volume_XYZT = np.asarray(image.dataobj, dtype=np.float32)
    shift = lattice_shift(image.affine, template)
    if shift is not None:
        return pack(crop_or_pad(volume_XYZT, shift, template.shape), template), "none"
    points_VK3 = sampling_points(template, nib.affines.voxel_sizes(image.affine))
    weights_VN = linear_weights(volume_XYZT.shape[:3], image.affine, points_VK3)
    frames_NT = volume_XYZT.reshape(-1, volume_XYZT.shape[3], order="F")
    bold_TV = np.ascontiguousarray((weights_VN @ frames_NT).T, dtype=np.float32)
    return bold_TV, f"linear, {points_VK3.shape[1]} points a voxel"


def mask_to_grid(image: Any, template: Template) -> np.ndarray:
    """A 3D mask on the whole template grid, nearest neighbour, (X, Y, Z) bool; outside its field of view False."""
    to_voxel = np.linalg.inv(image.affine) @ template.affine
    grid_N3 = np.indices(template.shape).reshape(3, -1).T
    voxel_N3 = np.rint(nib.affines.apply_affine(to_voxel, grid_N3)).astype(int)
    inside_N = np.all((voxel_N3 >= 0) & (voxel_N3 < image.shape[:3]), axis=1)
    found_N = np.zeros(len(grid_N3), bool)
    found_N[inside_N] = np.asarray(image.dataobj)[tuple(voxel_N3[inside_N].T)] > 0
    return found_N.reshape(template.shape)


def lattice_shift(affine: np.ndarray, template: Template) -> np.ndarray | None:
    """Whole voxels from the template's origin to the image's, or None where the lattices differ."""
    relative = np.linalg.inv(template.affine) @ affine
    shift = np.rint(relative[:3, 3])
    same = np.allclose(relative[:3, :3], np.eye(3), atol=LATTICE_TOLERANCE)
    return shift.astype(int) if same and np.allclose(relative[:3, 3], shift, atol=LATTICE_TOLERANCE) else None


def crop_or_pad(volume_XYZT: np.ndarray, shift: np.ndarray, shape: tuple[int, int, int]) -> np.ndarray:
    """The volume in a box of `shape` whose origin lies `shift` voxels before the volume's; zeros elsewhere."""
    boxed_XYZT = np.zeros((*shape, volume_XYZT.shape[3]), volume_XYZT.dtype, order="F")
    source, target = [], []
    for move, size, room in zip(shift, volume_XYZT.shape[:3], shape, strict=True):
        low, high = max(0, int(move)), min(room, int(move) + size)
        target.append(slice(low, max(low, high)))
        source.append(slice(low - int(move), max(low, high) - int(move)))
    boxed_XYZT[tuple(target)] = volume_XYZT[tuple(source)]
    return boxed_XYZT


def sampling_points(template: Template, voxel_mm: np.ndarray) -> np.ndarray:
    """Points in mm at which a template voxel samples an image with voxels of `voxel_mm`, (V, K, 3).

    One point, the centre, where the image is the coarser one; else a regular lattice of about the image's spacing
    inside the voxel, at most four along an axis.
    """
    counts = np.clip(np.rint(template.resolution_mm / np.asarray(voxel_mm)), 1, MOST_SAMPLES).astype(int)
    axes = [(np.arange(count) + 0.5) / count - 0.5 for count in counts]
    offsets_K3 = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 3)
    return nib.affines.apply_affine(template.affine, template.coordinates_V3[:, None] + offsets_K3)


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
        kept = np.all((at_M3 >= 0) & (at_M3 < shape), axis=1) & (weight_M > 0)
        rows.append(np.flatnonzero(kept) // samples)
        columns.append(np.ravel_multi_index(tuple(at_M3[kept].T), shape, order="F"))
        weights.append(weight_M[kept] / samples)
    place = (np.concatenate(rows), np.concatenate(columns))
    matrix = sparse.csr_array((np.concatenate(weights), place), shape=(count, int(np.prod(shape))))
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
