"""Peers' inputs, rebuilt from a shard when it is read: their normalisations, and SwiFT's volume of 96 x 96 x 96.

A view never changes what is stored. Each has the shard's contract with what it changed in it, so that a model trained
on one view is refused another. Axes: T frames, V in-mask voxels, X Y Z voxels of a volume.

| normalisation | peer | rule |
|---|---|---|
| `voxel-z` | ours | each voxel to mean 0, SD 1 over the run: what is stored |
| `raw` | | the unit of the scanner |
| `global-z` | SwiFT | one mean and SD over the run's voxels that are not background and all frames |
| `voxel-robust` | after BrainLM | each voxel less its median, over its interquartile range |
| `frame-z` | CortexMAE | each voxel to mean 0, SD 1, clipped at 3; then each frame to mean 0, SD 1 over voxels |
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypeAlias

import nibabel as nib
import numpy as np

from pipeline.bold.reader import Shard, require_contract
from pipeline.bold.template import Template
from pipeline.errors import InputError, nearest

Normalisation: TypeAlias = Literal["voxel-z", "raw", "global-z", "voxel-robust", "frame-z"]
Reader: TypeAlias = Callable[[int, int], np.ndarray]

COLUMNS = 4096  # sorted at a time


@dataclass(frozen=True, eq=False)
class View:
    """A run as a peer's model sees it: `read(start, stop)` gives frames, float32, and `contract` says what they are."""

    contract: dict[str, Any]
    read: Reader


def view(shard: Shard, normalisation: Normalisation, clip: float | None = None) -> View:
    """The columns of a shard, (T, V), in another normalisation.

    `clip` cuts what lies beyond +-clip: in `frame-z` the voxels' z, as CortexMAE does at 3, elsewhere the result.

    Raises
    ------
    ValueError : no such normalisation.
    """
    if normalisation not in RULES:
        raise ValueError(f"no normalisation '{normalisation}'. {nearest(normalisation, RULES)}")
    limit = np.inf if clip is None else clip
    return View({**shard.contract, "normalisation": normalisation, "clip": clip}, RULES[normalisation](shard, limit))


def _voxel_z(shard: Shard, clip: float) -> Reader:
    return lambda start, stop: np.clip(shard.read(start, stop), -clip, clip)


def _raw(shard: Shard, clip: float) -> Reader:
    mean_V, std_V = shard.mean, shard.std
    return lambda start, stop: np.clip(shard.read(start, stop) * std_V + mean_V, -clip, clip)


def _global_z(shard: Shard, clip: float) -> Reader:
    """SwiFT's: background, exactly zero, takes the smallest z.

    Nothing lies below the smallest value, so cutting there also catches zeros in time, where no value is negative.
    """
    scale, mean_V, std_V = global_scale(shard), shard.mean, shard.std
    gain_V = (std_V / scale.std).astype(np.float32)
    offset_V = ((mean_V.astype(np.float64) - scale.mean) / scale.std).astype(np.float32)
    offset_V[(mean_V == 0) & (std_V == 0)] = scale.floor
    low = np.float32(scale.floor)

    def read(start: int, stop: int) -> np.ndarray:
        z_TV = shard.read(start, stop)
        z_TV *= gain_V
        z_TV += offset_V
        return np.clip(np.maximum(z_TV, low, out=z_TV), -clip, clip, out=z_TV)

    return read


def _voxel_robust(shard: Shard, clip: float) -> Reader:
    """Of the run. (BrainLM and Brain-JEPA take median and range over their training sets.)"""
    median_V, gain_V = robust_scale(shard)
    return lambda start, stop: np.clip((shard.read(start, stop) - median_V) * gain_V, -clip, clip)


def _frame_z(shard: Shard, clip: float) -> Reader:
    def read(start: int, stop: int) -> np.ndarray:
        z_TV = np.clip(shard.read(start, stop), -clip, clip)
        z_TV -= z_TV.mean(axis=1, keepdims=True, dtype=np.float64).astype(np.float32)
        std_T1 = np.sqrt(np.mean(np.square(z_TV), axis=1, keepdims=True, dtype=np.float64)).astype(np.float32)
        return np.divide(z_TV, std_T1, out=z_TV, where=std_T1 > 0)

    return read


RULES: dict[str, Callable[[Shard, float], Reader]] = {
    "voxel-z": _voxel_z,
    "raw": _raw,
    "global-z": _global_z,
    "voxel-robust": _voxel_robust,
    "frame-z": _frame_z,
}


@dataclass(frozen=True)
class GlobalScale:
    """Mean and SD over all voxels and frames that are not exactly zero, and the smallest such value as a z."""

    mean: float
    std: float
    floor: float


def global_scale(shard: Shard) -> GlobalScale:
    """SwiFT's mean and SD of a run in closed form, from each voxel's mean and SD and the number of zeros.

    What SwiFT sees outside the template's mask is not in a shard and does not count.
    """
    mean_V, std_V = shard.mean.astype(np.float64), shard.std.astype(np.float64)
    zeros = int(shard.contract["zeros"])
    count = shard.frames * mean_V.size - zeros
    if not count:
        raise InputError(shard.folder, "a run of zeros", "a signal", "Leave this run out.")
    mean = shard.frames * mean_V.sum() / count
    squares = shard.frames * np.sum(std_V**2 + (mean_V - mean) ** 2) - zeros * mean**2  # zeros lie `mean` from it
    std = float(np.sqrt(max(squares, 0) / count)) or 1.0
    return GlobalScale(float(mean), std, (shard.minimum - float(mean)) / std)


def robust_scale(shard: Shard) -> tuple[np.ndarray, np.ndarray]:
    """(V,) median of each voxel's z over the run, and 1 / interquartile range, 0 where that is 0; both float32.

    Memory: the run as it is stored.
    """
    stored_TV = shard.read_stored()
    quartiles_3V = np.empty((3, shard.voxels), np.float32)
    for start in range(0, shard.voxels, COLUMNS):
        slab_Tv = stored_TV[:, start : start + COLUMNS].astype(np.float32)
        quartiles_3V[:, start : start + COLUMNS] = np.percentile(slab_Tv, [25, 50, 75], axis=0, overwrite_input=True)
    if shard.dtype == np.int8:
        quartiles_3V *= shard.step
    range_V = quartiles_3V[2] - quartiles_3V[0]
    return quartiles_3V[1], np.divide(1, range_V, out=np.zeros_like(range_V), where=range_V > 0)


@dataclass(frozen=True)
class SwiftGrid:
    """How SwiFT lays one cohort into its cube: a box of the FSL grid, padded, or cropped where a pad is negative.

    `origin` is the box's first voxel, None where nobody says which it was. The pads are those of SwiFT's loader.
    """

    shape: tuple[int, int, int]
    pads: tuple[tuple[int, int], tuple[int, int], tuple[int, int]]
    origin: tuple[int, int, int] | None = None


SWIFT_EDGE = 96
SWIFT_GRIDS = {
    "ukb": SwiftGrid((91, 109, 91), ((3, 2), (-7, -6), (3, 2)), (0, 0, 0)),
    "abcd": SwiftGrid((79, 97, 85), ((9, 8), (0, -1), (6, 5))),
    "hcp": SwiftGrid((75, 93, 81), ((11, 10), (2, 1), (8, 7))),
}
FSL_AFFINE = np.array([[-2.0, 0, 0, 90], [0, 2, 0, -126], [0, 0, 2, -72], [0, 0, 0, 1]])  # 91 x 109 x 91, 2 mm, LAS


def swift_volume(
    shard: Shard, template: Template, cohort: str = "ukb", origin: tuple[int, int, int] | None = None
) -> View:
    """SwiFT's own input: `read(start, stop)` gives (96, 96, 96, T) float32, x y z in FSL's order (LAS), time last.

    Global z as in `global-z`; background and everything outside the template's mask is the smallest z; the margin is
    the value of the box's first voxel in the first frame read. The TR stays the run's own (SwiFT saw 0.72-0.8 s).

    Parameters
    ----------
    cohort : ukb (the whole FSL grid), abcd or hcp (a box of it).
    origin : first voxel of the box in the FSL grid. Nowhere is it written for abcd and hcp, so it must be given there.

    Raises
    ------
    InputError : the template does not lie on the FSL grid of 2 mm, or is not the shard's.
    ValueError : no such cohort, or its box has no known origin.
    """
    require_contract(shard.folder, shard.contract, {"kind": "voxels", "template": template.key})
    if cohort not in SWIFT_GRIDS:
        raise ValueError(f"no cohort '{cohort}'. {nearest(cohort, SWIFT_GRIDS)}")
    grid = SWIFT_GRIDS[cohort]
    first = origin if origin is not None else grid.origin
    if first is None:
        raise ValueError(f"'{cohort}' is a box of {grid.shape} voxels of the FSL grid: give its origin")
    cube = _cube(_fsl_voxels(template) - np.array(first), grid)
    affine = FSL_AFFINE.copy()
    affine[:3, 3] = nib.affines.apply_affine(FSL_AFFINE, np.array(first) - [low for low, _ in grid.pads])
    globally = view(shard, "global-z")
    said = {"kind": "volumes", "layout": f"swift-{cohort}", "shape": [SWIFT_EDGE] * 3, "orientation": "LAS"}
    contract = {**globally.contract, **said, "affine": affine.tolist()}
    floor = np.float32(global_scale(shard).floor)

    def read(start: int, stop: int) -> np.ndarray:
        z_TV = globally.read(start, stop)
        cubes_TN = np.full((len(z_TV), SWIFT_EDGE**3), floor)
        if cube.corner is not None:
            cubes_TN[:, cube.margin_N] = z_TV[:1, cube.corner]
        cubes_TN[:, cube.place_v] = z_TV[:, cube.voxel_v]
        return np.moveaxis(cubes_TN.reshape(-1, SWIFT_EDGE, SWIFT_EDGE, SWIFT_EDGE), 0, -1)

    return View(contract, read)


class _Cube(NamedTuple):
    """Where the packed voxels that SwiFT sees lie in its cube, flat with z fastest; v of V are inside."""

    voxel_v: np.ndarray
    place_v: np.ndarray
    margin_N: np.ndarray  # what its padding made
    corner: int | None  # the packed voxel that is the box's first, whose value pads


def _fsl_voxels(template: Template) -> np.ndarray:
    """(V, 3) voxel of the FSL grid of each packed voxel; it may lie outside."""
    exact = np.linalg.inv(FSL_AFFINE) @ template.affine
    whole = np.rint(exact).astype(int)
    if not np.allclose(exact, whole, atol=1e-3) or np.any(whole[:3, :3] != np.diag([-1, 1, 1])):
        found = f"{template.resolution_mm:g} mm, origin {template.affine[:3, 3].tolist()}"
        raise InputError("template", found, "the lattice of FSL's 2 mm MNI152", "Use a template of 2 mm in MNI space.")
    return nib.affines.apply_affine(whole, template.coordinates_V3)


def _cube(box_V3: np.ndarray, grid: SwiftGrid) -> _Cube:
    before_3, edge = np.array([low for low, _ in grid.pads]), SWIFT_EDGE
    place_V3 = box_V3 + before_3
    seen_V = np.all((box_V3 >= 0) & (box_V3 < grid.shape) & (place_V3 >= 0) & (place_V3 < edge), axis=1)
    margin_XYZ = np.ones((edge, edge, edge), bool)
    margin_XYZ[
        tuple(slice(max(0, low), max(0, low + size)) for low, size in zip(before_3, grid.shape, strict=True))
    ] = 0
    corners = np.flatnonzero((box_V3 == 0).all(axis=1))
    place_v = np.ravel_multi_index(tuple(place_V3[seen_V].T), (edge, edge, edge))
    corner = int(corners[0]) if corners.size else None
    return _Cube(np.flatnonzero(seen_V), place_v, margin_XYZ.ravel(), corner)
