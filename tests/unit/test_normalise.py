"""Onto the grid: no value changes where lattices coincide; elsewhere linear fields come out exactly; z-scores are z."""

from __future__ import annotations

from typing import Any

import builders
import nibabel as nib
import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from pipeline.bold.normalise import Gridding, mask_on_grid, zscore
from pipeline.bold.template import Template


def on_template(image: Any, template: Template) -> tuple[np.ndarray, str]:
    """Packed signal of an image in memory, and how it got there."""
    gridding = Gridding.of(image.shape[:3], image.affine, template)
    return gridding(np.asfortranarray(image.dataobj), lambda stored: stored.astype(np.float32)), gridding.resampling


def test_a_shifted_grid_is_cropped_without_interpolation(template: Template) -> None:
    data = builders.bold(4, seed=1)
    plain, how = on_template(nib.Nifti1Image(data, builders.AFFINE), template)
    moved = builders.AFFINE.copy()
    moved[:3, 3] += 8 * np.array([2, -1, 1])
    padded = np.zeros((*builders.SHAPE, 4), np.float32)
    padded[:-2, 1:, :-1] = data[2:, :-1, 1:]
    again, _ = on_template(nib.Nifti1Image(padded, moved), template)
    assert how == "none"
    assert np.array_equal(plain, again)


def test_axes_stored_in_another_order_give_the_same_values(template: Template) -> None:
    image = nib.Nifti1Image(builders.bold(3, seed=2), builders.AFFINE)
    turned = image.as_reoriented([[1, 1], [0, -1], [2, -1]])
    assert nib.aff2axcodes(turned.affine) != nib.aff2axcodes(image.affine)
    assert np.array_equal(on_template(image, template)[0], on_template(turned, template)[0])


def test_linear_fields_survive_resampling_to_a_coarser_grid(template: Template) -> None:
    # A field linear in space is its own box mean and its own linear interpolation: the answer is exact.
    affine = np.diag([3.0, 3.0, 3.0, 1.0])
    affine[:3, 3] = [-70, -75, -70]
    places = np.moveaxis(np.indices((48, 52, 48)), 0, -1)
    field = nib.affines.apply_affine(affine, places) @ np.array([1.0, -2.0, 0.5]) + 10
    bold_TV, how = on_template(nib.Nifti1Image(field[..., None].astype(np.float32), affine), template)
    expected = nib.affines.apply_affine(template.affine, template.coordinates_V3) @ np.array([1.0, -2.0, 0.5]) + 10
    assert how == "linear, 27 points a voxel"
    assert np.allclose(bold_TV[0], expected, atol=1e-3)


def test_voxels_outside_the_field_of_view_are_zero(template: Template) -> None:
    affine = np.diag([3.0, 3.0, 3.0, 1.0])
    affine[:3, 3] = [-70, -75, 0]  # the lower half of the brain was not scanned
    bold_TV, _ = on_template(nib.Nifti1Image(np.full((48, 52, 20, 2), 7, np.float32), affine), template)
    height_V = nib.affines.apply_affine(template.affine, template.coordinates_V3)[:, 2]
    assert np.all(bold_TV[:, height_V < -5] == 0)
    assert np.allclose(bold_TV[:, height_V > 5], 7)


def test_fine_patterns_do_not_alias_into_a_coarse_grid(template: Template) -> None:
    affine = np.diag([2.0, 2.0, 2.0, 1.0])
    affine[:3, 3] = [-63, -71, -55]
    checker = (np.indices((64, 72, 56)).sum(axis=0) % 2).astype(np.float32)[..., None]
    bold_TV, _ = on_template(nib.Nifti1Image(checker, affine), template)
    assert np.allclose(bold_TV, 0.5, atol=0.02)


def test_mask_on_the_grid_is_the_mask(template: Template, standard: dict[str, str]) -> None:
    assert np.array_equal(mask_on_grid(nib.load(standard["mask"]), template), template.mask_XYZ)


@given(st.integers(0, 2**32 - 1), st.floats(-1e4, 1e4), st.floats(0.1, 100))
def test_zscore_can_be_undone(seed: int, level: float, spread: float) -> None:
    bold_TV = (level + spread * np.random.default_rng(seed).standard_normal((50, 4))).astype(np.float32)
    bold_TV[:, 2] = level
    z_TV, mean_V, std_V = zscore(bold_TV)
    assert std_V[2] == 0
    assert np.all(z_TV[:, 2] == 0)
    alive = [0, 1, 3]
    assert np.allclose(z_TV[:, alive].mean(axis=0), 0, atol=1e-3)
    assert np.allclose(z_TV[:, alive].std(axis=0), 1, atol=1e-3)
    assert np.allclose(z_TV * std_V + mean_V, bold_TV, atol=1e-3 * max(spread, abs(level)))
