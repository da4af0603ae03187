"""The one grid on which every shard lies: its brain mask, the order of its voxels, its parcels.

Axes: X, Y, Z of the grid (RAS), T frames, V in-mask voxels in patch-major order, P parcels.
"""

from __future__ import annotations

import json
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from scipy.ndimage import affine_transform

from pipeline import artefact, config
from pipeline.errors import InputError

MIN_PARCEL_VOXELS = 4  # smaller cubes lie at the rim; their means would be mostly noise


@dataclass(frozen=True, eq=False)
class Template:
    """Geometry of every shard.

    `affine` (4, 4) takes a voxel index to mm; `voxel_index_V` are flat C-order indices into the grid; `parcel_V`
    is the parcel 0..P-1 of each packed voxel; `key` stands for all that decides where a packed voxel lies.
    """

    space: str
    resolution_mm: float
    affine: np.ndarray
    mask_XYZ: np.ndarray
    patch: tuple[int, int, int]
    voxel_index_V: np.ndarray
    parcel_V: np.ndarray
    key: str

    @property
    def shape(self) -> tuple[int, int, int]:
        """Voxels along x, y, z."""
        x, y, z = self.mask_XYZ.shape
        return x, y, z

    @property
    def voxels(self) -> int:
        """V, the in-mask voxels."""
        return len(self.voxel_index_V)

    @property
    def parcels(self) -> int:
        """P, the parcels."""
        return int(self.parcel_V.max()) + 1

    @property
    def coordinates_V3(self) -> np.ndarray:
        """(V, 3) grid coordinates of the packed voxels."""
        return np.stack(np.unravel_index(self.voxel_index_V, self.shape), axis=1)


def build_template(settings: config.Template) -> Template:
    """The template of a study: mask cropped or padded to `shape` with the brain in the centre.

    Raises
    ------
    InputError : the mask has another voxel size, the brain does not fit, or patches do not tile the grid.
    """
    mask_XYZ, affine = _load_mask(settings)
    filled = np.argwhere(mask_XYZ)
    low, size = filled.min(axis=0), np.ptp(filled, axis=0) + 1
    shape = np.array(settings.shape)
    if np.any(size > shape):
        hint = f"Use at least {_by(size)} voxels, or a larger resolution_mm."
        raise InputError("template.shape", _by(shape), f"a grid that holds the brain of {_by(size)} voxels", hint)
    if np.any(shape % settings.patch):
        hint = "Change template.shape or template.patch."
        raise InputError("template.patch", _by(settings.patch), f"a patch that tiles {_by(shape)} voxels", hint)
    centred_XYZ = np.zeros(settings.shape, bool)
    centred_XYZ[tuple((filled - low + (shape - size) // 2).T)] = True
    affine = affine.copy()
    affine[:3, 3] += affine[:3, :3] @ (low - (shape - size) // 2)
    return _assemble(settings, centred_XYZ, affine)


def _by(shape: Any) -> str:
    return "x".join(str(int(length)) for length in shape)


def _load_mask(settings: config.Template) -> tuple[np.ndarray, np.ndarray]:
    if settings.mask is None:
        from nilearn.datasets import load_mni152_brain_mask

        if settings.resolution_mm != int(settings.resolution_mm):
            found, hint = f"{settings.resolution_mm}", "Or give template.mask, a mask of that resolution."
            raise InputError("template.resolution_mm", found, "whole mm for the mask inside nilearn", hint)
        image = load_mni152_brain_mask(resolution=int(settings.resolution_mm))
    else:
        image = _load_image(config.expand_path("template.mask", settings.mask), "template.mask")
    image = nib.as_closest_canonical(image)
    if not np.allclose(image.affine[:3, :3], np.eye(3) * settings.resolution_mm, atol=1e-3):
        found = f"voxels of {np.round(nib.affines.voxel_sizes(image.affine), 3)} mm in {settings.mask}"
        hint = "Resample the mask, or set template.resolution_mm."
        raise InputError("template.mask", found, f"unrotated voxels of {settings.resolution_mm} mm", hint)
    return np.asarray(image.dataobj) > 0, image.affine


def load_brain(settings: config.Template) -> Any:
    """T1w image in the template's space, 0 outside its mask; the one inside nilearn at 2 mm."""
    if settings.brain is None:
        from nilearn.datasets import load_mni152_template

        return load_mni152_template(resolution=2)
    image = _load_image(config.expand_path("template.brain", settings.brain), "template.brain")
    if settings.mask is None:
        return image
    mask = _load_image(config.expand_path("template.mask", settings.mask), "template.mask")
    to_mask = np.linalg.inv(mask.affine) @ image.affine
    filled_XYZ = (np.asarray(mask.dataobj) > 0).astype(np.uint8)
    inside_XYZ = affine_transform(filled_XYZ, to_mask, output_shape=image.shape, order=0, mode="grid-constant")
    return nib.Nifti1Image(np.where(inside_XYZ, image.get_fdata(dtype=np.float32), 0), image.affine)


def _load_image(path: Path, key: str) -> Any:
    try:
        return nib.load(path)
    except (FileNotFoundError, nib.filebasedimages.ImageFileError) as error:
        raise InputError(key, f"{path}: {error}", "a NIfTI file", "Check the path; it is taken from here.") from error


def _assemble(settings: config.Template, mask_XYZ: np.ndarray, affine: np.ndarray) -> Template:
    index_V = _patch_major(mask_XYZ, settings.patch)
    geometry = [settings.space, settings.patch, mask_XYZ.shape, affine.round(4).tolist(), index_V.tolist()]
    return Template(
        space=settings.space,
        resolution_mm=settings.resolution_mm,
        affine=affine,
        mask_XYZ=mask_XYZ,
        patch=settings.patch,
        voxel_index_V=index_V,
        parcel_V=_cubic_parcels(np.stack(np.unravel_index(index_V, mask_XYZ.shape), axis=1), settings.parcel_voxels),
        key=artefact.digest(geometry),
    )


def _patch_major(mask_XYZ: np.ndarray, patch: tuple[int, int, int]) -> np.ndarray:
    """Flat indices of in-mask voxels, patch after patch, so that a patch is one block of columns of a shard."""
    voxels_V3 = np.argwhere(mask_XYZ)
    places_V3, within_V3 = voxels_V3 // patch, voxels_V3 % patch
    order = np.lexsort([*within_V3.T[::-1], *places_V3.T[::-1]])
    return np.ravel_multi_index(tuple(voxels_V3[order].T), mask_XYZ.shape).astype(np.int64)


def _cubic_parcels(voxels_V3: np.ndarray, edge: int) -> np.ndarray:
    """Parcel of each voxel: its cube of `edge` voxels; a cube too small for a mean joins the nearest one."""
    _, parcel_V, counts_P = np.unique(voxels_V3 // edge, axis=0, return_inverse=True, return_counts=True)
    parcel_V = parcel_V.ravel()
    centres_P3 = np.stack([np.bincount(parcel_V, axis) / counts_P for axis in voxels_V3.T], axis=1)
    large_P = counts_P >= min(MIN_PARCEL_VOXELS, counts_P.max())
    # Only small cubes are compared with all large ones: every pair would be 6 GB at 2 mm.
    distance = np.linalg.norm(centres_P3[~large_P][:, None] - centres_P3[large_P], axis=2)
    joined_P = np.cumsum(large_P) - 1
    joined_P[~large_P] = distance.argmin(axis=1)
    return joined_P[parcel_V].astype(np.int64)


def save_template(template: Template, folder: Path) -> None:
    """Write `template.npz`, and `template.json` to be read by eye."""
    arrays = {
        "mask_XYZ": template.mask_XYZ,
        "affine": template.affine,
        "patch": np.array(template.patch),
        "voxel_index_V": template.voxel_index_V,
        "parcel_V": template.parcel_V,
    }
    summary = {
        "space": template.space,
        "resolution_mm": template.resolution_mm,
        "key": template.key,
        "shape": template.shape,
        "patch": template.patch,
        "affine": template.affine.tolist(),
        "voxels": template.voxels,
        "parcels": template.parcels,
    }
    named = json.dumps({name: summary[name] for name in ("space", "resolution_mm", "key")})
    with artefact.atomic_file(Path(folder) / "template.npz") as path:
        np.savez_compressed(path, allow_pickle=False, named=np.array(named), **arrays)
    artefact.write_json(Path(folder) / "template.json", summary)


def load_template(folder: str | Path) -> Template:
    """Read what `save_template` wrote."""
    path = Path(folder) / "template.npz"
    try:
        with np.load(path, allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in stored.files}
    except FileNotFoundError as error:
        raise InputError(path, "no such file", "a template", "Run `pipeline template` first.") from error
    except (ValueError, OSError, zipfile.BadZipFile) as error:
        raise InputError(path, f"a damaged file ({error})", "a template", "Delete it and run it again.") from error
    named, patch = json.loads(str(arrays.pop("named"))), arrays.pop("patch").tolist()
    return Template(patch=(patch[0], patch[1], patch[2]), **named, **arrays)


def pack(volume_XYZT: np.ndarray, template: Template) -> np.ndarray:
    """In-mask voxels of a run on the template's grid, (T, V) float32, in patch-major order.

    Raises
    ------
    ValueError : the volume does not lie on the template's grid.
    """
    if volume_XYZT.shape[:3] != template.shape:
        raise ValueError(f"volume of {volume_XYZT.shape[:3]} on a template of {template.shape}")
    # NIfTI data arrive in Fortran order, where a frame is contiguous: gather frame by frame, without a copy.
    index_V = np.ravel_multi_index(tuple(template.coordinates_V3.T), template.shape, order="F")
    frames_TN = volume_XYZT.reshape(-1, volume_XYZT.shape[3], order="F").T
    return np.ascontiguousarray(frames_TN[:, index_V], dtype=np.float32)


def parcel_means(bold_TV: np.ndarray, template: Template) -> np.ndarray:
    """Mean of each parcel's voxels, (T, P)."""
    order = np.argsort(template.parcel_V, kind="stable")
    counts_P = np.bincount(template.parcel_V)
    starts_P = np.concatenate([[0], np.cumsum(counts_P)[:-1]])
    return np.add.reduceat(bold_TV[:, order], starts_P, axis=1) / counts_P.astype(bold_TV.dtype)
