"""Rows of slices through a template's grid, with outlines on them.

Slices are drawn as the grid lies (RAS): the left of the picture is the left of the person. Axes: x, y, z of the part of
the grid that is drawn, A across and U up a row.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import nibabel as nib
import numpy as np

from pipeline.bold.template import Template

if TYPE_CHECKING:
    from matplotlib.axes import Axes

AROUND_MM = 8.0  # of the mask that is drawn too, so that a brain beyond it is seen
COARSE_MM = 4.0  # from larger voxels on, outlines are drawn wider
AXIS_NAMES = "xyz"
ENDS = (("L", "R"), ("P", "A"), ("I", "S"))

Cut: TypeAlias = tuple[int, int]  # axis, index


class Field(NamedTuple):
    """The part of the grid that is drawn: the mask and what lies near it."""

    box: tuple[slice, slice, slice]
    affine: np.ndarray  # of its first voxel
    mask_xyz: np.ndarray


class Outline(NamedTuple):
    """Where a volume crosses a level."""

    volume_xyz: np.ndarray
    level: float
    colour: str
    width: float


def field_of(template: Template) -> Field:
    """The mask and what lies within 8 mm of it."""
    filled = np.argwhere(template.mask_XYZ)
    around = max(1, round(AROUND_MM / template.resolution_mm))
    low = np.maximum(filled.min(axis=0) - around, 0)
    high = np.minimum(filled.max(axis=0) + around + 1, template.shape)
    x, y, z = (slice(int(first), int(last)) for first, last in zip(low, high, strict=True))
    affine = template.affine.copy()
    affine[:3, 3] = nib.affines.apply_affine(template.affine, low)
    return Field((x, y, z), affine, template.mask_XYZ[x, y, z])


def spaced_cuts(field: Field, axis: int, count: int) -> list[Cut]:
    """Evenly spaced slices through the mask, without its ends; one or two lie off the middle, where there is more."""
    first, last = np.flatnonzero(field.mask_xyz.any(axis=tuple({0, 1, 2} - {axis})))[[0, -1]]
    shares = np.linspace(0, 1, count + 4)[2:-2] if count > 2 else np.array([0.35, 0.65])[:count]
    return [(axis, int(index)) for index in np.rint(first + shares * (last - first))]


def mosaic(volume_xyz: np.ndarray, cuts: Sequence[Cut]) -> tuple[np.ndarray, list[int]]:
    """Slices side by side at one height, (U, A) float32, and where each begins; between and above them some black."""
    parts_UA: list[np.ndarray] = [volume_xyz.take(index, axis).T.astype(np.float32) for axis, index in cuts]
    tallest = max(part_UA.shape[0] for part_UA in parts_UA)
    gap, above = max(1, tallest // 40), max(1, tallest // 12)
    raised, starts, at = [], [], 0
    for part_UA in parts_UA:
        missing = tallest - part_UA.shape[0]
        raised.append(np.pad(part_UA, ((missing // 2, missing - missing // 2 + above), (0, gap))))
        starts.append(at)
        at += raised[-1].shape[1]
    return np.concatenate(raised, axis=1), starts


def draw_row(
    axes: Axes, field: Field, volume_xyz: np.ndarray, cuts: Sequence[Cut], outlines: Sequence[Outline]
) -> None:
    """Slices in grey with outlines, each with its place in mm and the sides of the person."""
    image_UA, starts = mosaic(volume_xyz, cuts)
    low, high = _window(volume_xyz, field.mask_xyz)
    axes.set_axis_off()
    axes.imshow(image_UA, cmap="gray", vmin=low, vmax=high, origin="lower", aspect="auto", interpolation="nearest")
    wider = 1.6 if field.affine[0, 0] > COARSE_MM else 1.0
    for outline in outlines:
        shape_UA, _ = mosaic(outline.volume_xyz, cuts)
        if shape_UA.min() < outline.level < shape_UA.max():
            style: dict[str, Any] = {"colors": [outline.colour], "linewidths": wider * outline.width, "alpha": 0.9}
            axes.contour(shape_UA, levels=[outline.level], **style)
    _label(axes, field, cuts, starts, image_UA.shape[0])


def _window(volume_xyz: np.ndarray, mask_xyz: np.ndarray) -> tuple[float, float]:
    """Intensities drawn black and white: wide enough that the darkest tissue stays apart from the background."""
    inside = volume_xyz[mask_xyz & (volume_xyz > 0)]
    if not inside.size:
        return 0.0, 1.0
    low, high = (float(value) for value in np.percentile(inside, [2, 99]))
    return max(0.0, low - 0.35 * (high - low)), max(high, np.nextafter(low, np.inf))


def _label(axes: Axes, field: Field, cuts: Sequence[Cut], starts: Sequence[int], height: int) -> None:
    style: dict[str, Any] = {"color": "white", "fontsize": 9, "va": "top"}
    for (axis, index), start in zip(cuts, starts, strict=True):
        mm = field.affine[axis, axis] * index + field.affine[axis, 3]
        across = 1 if axis == 0 else 0
        width = field.mask_xyz.shape[across]
        axes.text(start + width / 2, height - 1, f"{AXIS_NAMES[axis]} = {mm:.0f}", ha="center", **style)
        low, high = ENDS[across]
        axes.text(start, height / 2, low, ha="left", weight="bold", **style)
        axes.text(start + width - 1, height / 2, high, ha="right", weight="bold", **style)


def white_level(values: np.ndarray, classes: int = 3, rounds: int = 30) -> float:
    """Intensity between the two brightest of three classes of a T1w, that is between grey and white matter.

    k-means in one dimension, started at quantiles.
    """
    values = np.sort(values[values > 0].astype(np.float64))
    if values.size < classes:
        return np.inf
    centres = np.quantile(values, (np.arange(classes) + 0.5) / classes)
    for _ in range(rounds):
        edges = np.searchsorted(values, (centres[1:] + centres[:-1]) / 2)
        parts = np.split(values, edges)
        centres = np.array([part.mean() if part.size else old for part, old in zip(parts, centres, strict=True)])
    return float(centres[-2:].mean())
