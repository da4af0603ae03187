"""The grid: the brain is centred, packing loses nothing, a patch is one block of columns, parcels tile the mask."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline import config
from pipeline.bold.template import (
    MIN_PARCEL_VOXELS,
    Template,
    _cubic_parcels,
    _patch_major,
    build_template,
    load_template,
    pack,
    parcel_means,
    save_template,
)
from pipeline.errors import InputError
from pipeline.models.parts.voxels import scatter_voxels


def test_brain_keeps_its_place_in_space_and_is_centred(standard: dict[str, str], template: Template) -> None:
    original = nib.load(standard["mask"])
    where = nib.affines.apply_affine(original.affine, np.argwhere(np.asarray(original.dataobj) > 0))
    found = nib.affines.apply_affine(template.affine, template.coordinates_V3)
    assert sorted(map(tuple, where)) == sorted(map(tuple, found))
    margins = [(filled.argmax(), filled[::-1].argmax()) for filled in _profiles(template.mask_XYZ)]
    assert all(abs(before - after) <= 1 for before, after in margins)


def _profiles(mask_XYZ: np.ndarray) -> list[np.ndarray]:
    return [mask_XYZ.any(axis=axes) for axes in [(1, 2), (0, 2), (0, 1)]]


def test_a_mask_stored_left_to_right_or_right_to_left_gives_the_same_template(
    standard: dict[str, str], study: config.Study, template: Template, tmp_path: Path
) -> None:
    flipped = nib.load(standard["mask"]).as_reoriented([[0, -1], [1, 1], [2, 1]])
    assert nib.aff2axcodes(flipped.affine)[0] == "L"
    nib.save(flipped, tmp_path / "las.nii.gz")
    other = build_template(study.template.model_copy(update={"mask": tmp_path / "las.nii.gz"}))
    assert other.key == template.key


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("shape", (8, 12, 12), "template.shape: found 8x12x12"),
        ("patch", (5, 4, 4), "template.patch: found 5x4x4"),
        ("resolution_mm", 4.0, "template.mask"),
        ("mask", Path("/nowhere/mask.nii.gz"), "template.mask: found /nowhere/mask.nii.gz"),
    ],
)
def test_settings_that_do_not_fit_are_refused_by_name(study: config.Study, field: str, value: Any, says: str) -> None:
    with pytest.raises(InputError, match=says):
        build_template(study.template.model_copy(update={field: value}))


def test_saved_template_reads_back(template: Template, tmp_path: Path) -> None:
    save_template(template, tmp_path)
    read = load_template(tmp_path)
    for name, value in vars(template).items():
        assert np.array_equal(getattr(read, name), value), name


def test_damaged_template_is_an_input_error(template: Template, tmp_path: Path) -> None:
    save_template(template, tmp_path)
    whole = (tmp_path / "template.npz").read_bytes()
    (tmp_path / "template.npz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match="damaged"):
        load_template(tmp_path)


@given(st.integers(0, 2**32 - 1), st.sampled_from([(2, 2, 2), (3, 2, 1), (6, 6, 6)]))
def test_patch_major_order_holds_every_voxel_once_and_patches_in_blocks(seed: int, patch: tuple[int, int, int]) -> None:
    mask_XYZ = np.random.default_rng(seed).random((6, 6, 6)) < 0.4
    index_V = _patch_major(mask_XYZ, patch)
    assert sorted(index_V) == list(np.flatnonzero(mask_XYZ))
    places_V3 = np.stack(np.unravel_index(index_V, (6, 6, 6)), axis=1) // patch
    assert places_V3.tolist() == sorted(places_V3.tolist())


def test_packed_voxels_scatter_back_to_where_they_were(template: Template) -> None:
    import torch

    volume_XYZT = np.random.default_rng(0).standard_normal((*template.shape, 3)).astype(np.float32)
    volume_XYZT *= template.mask_XYZ[..., None]
    for order in ("C", "F"):
        bold_TV = pack(np.array(volume_XYZT, order=order), template)
        clip = scatter_voxels(torch.from_numpy(bold_TV)[None], torch.from_numpy(template.voxel_index_V), template.shape)
        assert np.array_equal(clip[0, 0].numpy(), volume_XYZT)


@given(st.integers(0, 2**32 - 1), st.integers(2, 4))
def test_parcels_are_large_enough_and_their_means_are_means(seed: int, edge: int) -> None:
    voxels_V3 = np.argwhere(np.random.default_rng(seed).random((8, 8, 8)) < 0.5)
    parcel_V = _cubic_parcels(voxels_V3, edge)
    counts_P = np.bincount(parcel_V)
    assert counts_P.min() >= MIN_PARCEL_VOXELS
    # voxels of one cube are never separated
    for cube in np.unique(voxels_V3 // edge, axis=0):
        assert len(set(parcel_V[np.all(voxels_V3 // edge == cube, axis=1)])) == 1


def test_parcel_means_are_the_means_of_their_voxels(template: Template) -> None:
    bold_TV = np.random.default_rng(0).standard_normal((5, template.voxels)).astype(np.float32)
    expected = [bold_TV[:, template.parcel_V == parcel].mean(axis=1) for parcel in range(template.parcels)]
    assert np.allclose(parcel_means(bold_TV, template), np.stack(expected, axis=1), atol=1e-6)
