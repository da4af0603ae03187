"""Cortical flat maps: packed voxels of the template to pixels of one raster that shows both hemispheres.

The mesh is fsaverage5 as it ships inside nilearn. Row 0 of the raster is dorsal. The left hemisphere fills the left
half, its frontal pole at the left edge; the right hemisphere fills the right half, its frontal pole at the right edge:
occipital cortex meets in the middle. Medial wall and cuts are no pixels.

Axes: V in-mask voxels of the template, N vertices (left hemisphere's 10242, then right's), F triangles, D depths, P
pixels of the raster in the order of rows, H and W its height and width, M pairs of triangle and pixel, T frames.
"""

from __future__ import annotations

import json
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from pipeline import artefact, config
from pipeline.bold.normalise import linear_weights
from pipeline.bold.template import Template
from pipeline.errors import InputError

MESH = "fsaverage5"
HEMISPHERES = ("left", "right")
DEPTHS = (0.1, 0.3, 0.5, 0.7, 0.9)  # from white to pial surface: the middles of five layers
MOST_STRETCH = 5.0  # a triangle whose edge is so much longer when flat bridges a notch of the outline: 29 of 37,444
MIN_COVERAGE = 0.5  # share of a pixel's weights that must lie on voxels with signal

# fsaverage lies in MNI305. Without this, midway between the surfaces grey matter of the MNI152 is .64, with it .65, and
# its lead over white matter .33 and .36. Source: FreeSurfer wiki, CoordinateSystems, 8 (mni152.register.dat).
MNI305_TO_MNI152 = np.array(
    [
        [0.9975, -0.0073, 0.0176, -0.0429],
        [0.0146, 1.0009, -0.0024, 1.5496],
        [-0.0130, -0.0093, 0.9971, 1.1840],
        [0, 0, 0, 1],
    ]
)


@dataclass(frozen=True, eq=False)
class Raster:
    """Where pixels lie on the flat meshes: pixel = the barycentric mean of a triangle's three vertices."""

    mask_HW: np.ndarray
    pixel_mm: float
    vertices_P3: np.ndarray
    shares_P3: np.ndarray


@dataclass(frozen=True, eq=False)
class Flatmap:
    """A raster and its way from a template: `weights_PV` (sparse, P x V), a row of zeros where the mask has no cortex.

    `key` stands for all that decides what a pixel shows; `template` is the key of the template.
    """

    raster: Raster
    template: str
    space: str
    weights_PV: Any
    key: str

    @property
    def pixels(self) -> int:
        """P, the pixels on cortex."""
        return len(self.raster.vertices_P3)

    @property
    def geometry(self) -> dict[str, Any]:
        """The part of a contract that says what the columns of a flat-map store are."""
        return {
            "kind": "flatmap",
            "mesh": MESH,
            "space": self.space,
            "raster": list(self.raster.mask_HW.shape),
            "pixel_mm": self.raster.pixel_mm,
            "pixels": self.pixels,
            "flatmap": self.key,
            "sampling": f"linear, {len(DEPTHS)} depths from white to pial",
            "orientation": "row 0 dorsal; left hemisphere in the left half; occipital poles in the middle",
        }


def load_surface(kind: str) -> tuple[np.ndarray, np.ndarray]:
    """Vertices (N, 3) in mm and triangles (F, 3) of both hemispheres of fsaverage5: `white`, `pial` or `flat`.

    Flat meshes keep the numbering of vertices, but lack the triangles of the medial wall and of the cuts.
    """
    from nilearn.datasets import fetch_surf_fsaverage

    files = fetch_surf_fsaverage(MESH)  # this mesh ships inside nilearn: nothing is fetched
    images: list[Any] = [nib.load(files[f"{kind}_{side}"]) for side in HEMISPHERES]
    (left_N3, left_F3), (right_N3, right_F3) = [[array.data for array in image.darrays] for image in images]
    return np.concatenate([left_N3, right_N3]).astype(float), np.concatenate([left_F3, right_F3 + len(left_N3)])


def build_flatmap(settings: config.Flatmap, template: Template) -> Flatmap:
    """The flat map of a template.

    Works on coarse templates too, where a voxel covers several folds of cortex and the map is accordingly blurred.

    Raises
    ------
    InputError : the template's mask has no cortex.
    """
    raster = rasterise(settings.height, settings.width)
    weights_NV = sample_surface(template)
    weights_PV = _barycentric(raster, weights_NV.shape[0]) @ weights_NV
    total_P = weights_PV.sum(axis=1)
    if not np.any(total_P > MIN_COVERAGE):
        hint = "Flat maps need a template of the whole brain in MNI space."
        raise InputError("template.mask", "no cortex of fsaverage5 inside it", "cerebral cortex", hint)
    weights_PV = _scaled_rows(weights_PV, np.where(total_P > MIN_COVERAGE, total_P, np.inf))
    key = artefact.digest([MESH, settings.height, settings.width, DEPTHS, MOST_STRETCH, MIN_COVERAGE, template.key])
    return Flatmap(raster, template.key, template.space, weights_PV, key)


def _scaled_rows(weights: Any, divisor: np.ndarray) -> Any:
    from scipy import sparse

    scaled = (sparse.diags_array(1 / divisor) @ weights).astype(np.float32).tocsr()
    scaled.eliminate_zeros()
    return scaled


def sample_surface(template: Template) -> Any:
    """Sparse (N, V): each vertex's mean over the depths of linearly interpolated packed voxels.

    What lies outside the mask is left out of a row, whose sum is the share inside.
    """
    white_N3, _ = load_surface("white")
    pial_N3, _ = load_surface("pial")
    points_ND3 = np.stack([white_N3 + depth * (pial_N3 - white_N3) for depth in DEPTHS], axis=1)
    points_ND3 = nib.affines.apply_affine(MNI305_TO_MNI152, points_ND3)
    index_V = np.ravel_multi_index(tuple(template.coordinates_V3.T), template.shape, order="F")
    return linear_weights(template.shape, template.affine, points_ND3)[:, index_V]


def _barycentric(raster: Raster, vertices: int) -> Any:
    from scipy import sparse

    rows_P3 = np.repeat(np.arange(len(raster.vertices_P3)), 3)
    place = (rows_P3, raster.vertices_P3.ravel())
    return sparse.csr_array((raster.shares_P3.ravel(), place), shape=(len(raster.vertices_P3), vertices))


def rasterise(height: int, width: int) -> Raster:
    """Square pixels of one size for both hemispheres, as large as fits; a pixel belongs to the triangle at its centre.

    Raises
    ------
    InputError : the raster is too small to hold a pixel of each hemisphere.
    """
    flat_N3, triangles_F3 = load_surface("flat")
    triangles_F3 = triangles_F3[_stretch(flat_N3, triangles_F3) <= MOST_STRETCH]
    places_N2, pixel_mm = _place(flat_N3[:, :2], triangles_F3, height, width)
    row_M, column_M, face_M = _candidates(places_N2, triangles_F3)
    shares_M3 = _shares(places_N2, triangles_F3[face_M], np.stack([row_M, column_M], axis=1))
    inside_M = np.all(shares_M3 >= -1e-9, axis=1)
    pixel_P, first_P = np.unique((row_M * width + column_M)[inside_M], return_index=True)
    mask_HW = np.zeros((height, width), bool)
    mask_HW.flat[pixel_P] = True
    if not (mask_HW[:, : width // 2].any() and mask_HW[:, width // 2 :].any()):
        raise InputError("flatmap", f"{height} x {width} pixels", "room for two hemispheres", "Try 224 x 560.")
    chosen_P = np.flatnonzero(inside_M)[first_P]
    return Raster(mask_HW, pixel_mm, triangles_F3[face_M[chosen_P]].astype(np.int64), shares_M3[chosen_P])


def _stretch(flat_N3: np.ndarray, triangles_F3: np.ndarray) -> np.ndarray:
    """How many times longer the most stretched edge of each triangle is when flat than midway in cortex, (F,)."""
    middle_N3 = (load_surface("white")[0] + load_surface("pial")[0]) / 2
    flat_N2 = flat_N3[:, :2]  # the flat files' third coordinate is a remnant of flattening
    return np.max(_edges(flat_N2, triangles_F3) / _edges(middle_N3, triangles_F3), axis=1)


def _edges(points_N3: np.ndarray, triangles_F3: np.ndarray) -> np.ndarray:
    return np.linalg.norm(points_N3[triangles_F3] - points_N3[np.roll(triangles_F3, 1, axis=1)], axis=2)


def _place(flat_N2: np.ndarray, triangles_F3: np.ndarray, height: int, width: int) -> tuple[np.ndarray, float]:
    """(row, column) of each vertex, a pixel's centre being a whole number, and the edge of a pixel in mm."""
    half, sides = width // 2, np.array_split(np.arange(len(flat_N2)), 2)
    used = [np.intersect1d(side, triangles_F3) for side in sides]
    lows, highs = np.array([(flat_N2[each].min(axis=0), flat_N2[each].max(axis=0)) for each in used]).swapaxes(0, 1)
    room = np.array([max(half, 1), height])
    pixel_mm = float(np.max((highs - lows) / room))
    places_N2 = np.empty_like(flat_N2)
    for side, low, high, left in zip(sides, lows, highs, (0, half), strict=True):
        x_N, y_N = ((flat_N2[side] - (low + high) / 2) / pixel_mm).T
        places_N2[side] = np.stack([(height - 1) / 2 - y_N, left + (half - 1) / 2 + x_N], axis=1)
    return places_N2, pixel_mm


def _candidates(places_N2: np.ndarray, triangles_F3: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Row, column and triangle of every pixel centre inside the bounding box of a triangle, (M,) each."""
    corners_F32 = places_N2[triangles_F3]
    low_F2 = np.ceil(corners_F32.min(axis=1) - 1e-9).astype(int)
    size_F2 = np.floor(corners_F32.max(axis=1) + 1e-9).astype(int) - low_F2 + 1
    count_F = size_F2.prod(axis=1)
    face_M = np.repeat(np.arange(len(triangles_F3)), count_F)
    place_M = np.arange(count_F.sum()) - np.repeat(np.cumsum(count_F) - count_F, count_F)
    row_M, column_M = np.divmod(place_M, size_F2[face_M, 1])
    return low_F2[face_M, 0] + row_M, low_F2[face_M, 1] + column_M, face_M


def _shares(places_N2: np.ndarray, vertices_M3: np.ndarray, points_M2: np.ndarray) -> np.ndarray:
    """Barycentric coordinates of points in triangles, (M, 3); all are at least 0 inside."""
    first_M2, second_M2, third_M2 = np.moveaxis(places_N2[vertices_M3], 1, 0)
    one_M2, two_M2, point_M2 = second_M2 - first_M2, third_M2 - first_M2, points_M2 - first_M2
    area_M = _cross(one_M2, two_M2)
    shares_2M = np.stack([_cross(point_M2, two_M2), _cross(one_M2, point_M2)]) / area_M
    return np.stack([1 - shares_2M.sum(axis=0), *shares_2M], axis=1)


def _cross(one_M2: np.ndarray, two_M2: np.ndarray) -> np.ndarray:
    return one_M2[:, 0] * two_M2[:, 1] - one_M2[:, 1] * two_M2[:, 0]


def vertices_to_raster(series_TN: np.ndarray, raster: Raster) -> np.ndarray:
    """Series of fsaverage5's vertices, left hemisphere then right, as packed pixels, (T, P) float32.

    Raises
    ------
    ValueError : not the vertices of both hemispheres.
    """
    expected = len(load_surface("white")[0])
    if series_TN.shape[1] != expected:
        raise ValueError(f"{series_TN.shape[1]} vertices; both hemispheres of {MESH} have {expected}")
    return np.asarray((_barycentric(raster, expected) @ series_TN.T).T, dtype=np.float32)


def to_picture(values_TP: np.ndarray, raster: Raster, outside: float = np.nan) -> np.ndarray:
    """Packed pixels as pictures, (T, H, W), with `outside` where there is no cortex."""
    picture_THW = np.full((len(values_TP), *raster.mask_HW.shape), outside, np.float32)
    picture_THW[:, raster.mask_HW] = values_TP
    return picture_THW


def save_flatmap(flatmap: Flatmap, folder: Path) -> None:
    """Write `flatmap.npz`, to which flat-map stores refer, and `flatmap.json` to be read by eye."""
    weights_PV = flatmap.weights_PV
    arrays = {
        "mask_HW": flatmap.raster.mask_HW,
        "vertices_P3": flatmap.raster.vertices_P3,
        "shares_P3": flatmap.raster.shares_P3,
        "weight": weights_PV.data,
        "voxel": weights_PV.indices,
        "row_start": weights_PV.indptr,
    }
    uncovered = int(np.sum(np.diff(weights_PV.indptr) == 0))
    summary = {**flatmap.geometry, "template": flatmap.template, "voxels": weights_PV.shape[1], "uncovered": uncovered}
    with artefact.atomic_file(Path(folder) / "flatmap.npz") as path:
        np.savez(path, allow_pickle=False, summary=np.array(json.dumps(summary)), **arrays)
    artefact.write_json(Path(folder) / "flatmap.json", summary)


def load_flatmap(folder: str | Path) -> Flatmap:
    """Read what `save_flatmap` wrote.

    Raises
    ------
    InputError : it is missing or damaged.
    """
    from scipy import sparse

    path = Path(folder) / "flatmap.npz"
    try:
        with np.load(path, allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in stored.files}
        summary = json.loads(str(arrays["summary"]))
        shape = (summary["pixels"], summary["voxels"])
        weights_PV = sparse.csr_array((arrays["weight"], arrays["voxel"], arrays["row_start"]), shape=shape)
    except FileNotFoundError as error:
        raise InputError(path, "no such file", "a flat map", "Run `pipeline flatmap` first.") from error
    except (KeyError, ValueError, OSError, zipfile.BadZipFile) as error:
        raise InputError(path, f"a damaged file ({error})", "a flat map", "Delete it and run it again.") from error
    raster = Raster(arrays["mask_HW"], summary["pixel_mm"], arrays["vertices_P3"], arrays["shares_P3"])
    return Flatmap(raster, summary["template"], summary["space"], weights_PV, summary["flatmap"])
