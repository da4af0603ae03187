"""Overlap and likeness of a run and the template: known transforms of a made-up brain, and of a real template."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import builders
import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

from pipeline.bold.placement import brain_of, local_similarity, placement, standard_on_grid
from pipeline.bold.template import Template, build_template
from pipeline.config import Study


@pytest.fixture(scope="module")
def standard_XYZ(study: Study, template: Template) -> np.ndarray:
    return standard_on_grid(study.template, template)


def alike(first_XYZ: np.ndarray, second_XYZ: np.ndarray, template: Template) -> float:
    found = local_similarity(first_XYZ, second_XYZ, template.mask_XYZ & (first_XYZ > 0), template.resolution_mm)
    assert found is not None
    return found


def test_the_standard_brain_lies_on_the_grid(standard_XYZ: np.ndarray, template: Template) -> None:
    points_mm = nib.affines.apply_affine(template.affine, np.moveaxis(np.indices(template.shape), 0, -1))
    expected_XYZ = builders.brain(points_mm)
    assert standard_XYZ.shape == template.shape
    assert not standard_XYZ[~template.mask_XYZ].any()
    inner_XYZ = ndimage.binary_erosion(template.mask_XYZ)  # at the rim a voxel is half background
    np.testing.assert_allclose(standard_XYZ[inner_XYZ], expected_XYZ[inner_XYZ], atol=0.08)


def test_an_image_is_wholly_like_itself_in_any_contrast(standard_XYZ: np.ndarray, template: Template) -> None:
    assert alike(standard_XYZ, standard_XYZ, template) == pytest.approx(1, abs=1e-6)
    assert alike(5000 - 3000 * standard_XYZ, standard_XYZ, template) == pytest.approx(1, abs=1e-6)


def test_an_uneven_coil_costs_little_and_noise_is_unlike(standard_XYZ: np.ndarray, template: Template) -> None:
    x, y, _ = np.indices(template.shape) / template.shape[0]
    assert alike(standard_XYZ * (1 + x + 0.5 * y), standard_XYZ, template) > 0.75
    noise_XYZ = 1000 + np.random.default_rng(0).standard_normal(template.shape)
    assert alike(noise_XYZ, standard_XYZ, template) < 0.45


def test_the_further_off_the_less_alike(standard_XYZ: np.ndarray, template: Template) -> None:
    moved = [ndimage.shift(standard_XYZ, (0, shift, 0), order=1) for shift in (0.0, 0.5, 1.0, 2.0)]
    found = [alike(volume_XYZ, standard_XYZ, template) for volume_XYZ in moved]
    assert found == sorted(found, reverse=True)
    assert found[-1] < 0.75


def test_a_flat_image_is_like_nothing_and_too_few_voxels_tell_nothing(
    standard_XYZ: np.ndarray, template: Template
) -> None:
    flat_XYZ = np.full(template.shape, 700.0)
    assert alike(flat_XYZ, standard_XYZ, template) == 0
    few_XYZ = np.zeros(template.shape, bool)
    few_XYZ[4:8, 4:8, 4:8] = True
    assert local_similarity(standard_XYZ, standard_XYZ, few_XYZ, 8.0) is None


def test_a_large_offset_costs_no_digits(standard_XYZ: np.ndarray, template: Template) -> None:
    assert alike(1e6 + standard_XYZ.astype(np.float64), standard_XYZ, template) == pytest.approx(1, abs=1e-3)


def test_placement_counts_what_is_missing_and_what_never_changes(standard_XYZ: np.ndarray, template: Template) -> None:
    mean_XYZ = np.where(template.mask_XYZ, 1000 * standard_XYZ, 0)
    cut_XYZ = mean_XYZ.copy()
    cut_XYZ[:, :, :5] = 0  # the field of view ends there
    inside_V = (cut_XYZ > 0).ravel()[template.voxel_index_V]
    std_V = np.where(inside_V, 20.0, 0.0)
    std_V[np.flatnonzero(inside_V)[:50]] = 0
    found = placement(cut_XYZ, None, std_V, template, standard_XYZ)
    left = int((cut_XYZ > 0).sum())
    assert found["overlap"] == pytest.approx(2 * left / (left + template.voxels))
    assert found["constant_voxels"] == pytest.approx(50 / left)
    assert found["similarity"] == pytest.approx(1, abs=1e-6)
    nothing = placement(np.zeros(template.shape), None, np.zeros(template.voxels), template, standard_XYZ)
    assert nothing == {"overlap": 0, "similarity": None, "constant_voxels": None}


def test_the_brain_of_a_run_is_its_mask_or_where_it_has_signal() -> None:
    mean_XYZ, mask_XYZ = np.array([[[0.0, 3.0]]]), np.array([[[True, False]]])
    assert brain_of(mean_XYZ, mask_XYZ) is mask_XYZ
    assert brain_of(mean_XYZ, None).tolist() == [[[False, True]]]


@pytest.fixture(scope="module")
def real(study: Study) -> tuple[Template, np.ndarray]:
    """The asymmetric MNI template at 4 mm, and its brain there."""
    root = os.environ.get("PIPELINE_REAL_DATA")
    if not root:
        pytest.skip("PIPELINE_REAL_DATA is not set: no MNI152NLin6Asym template")
    head, mask = sorted((Path(root) / "atlases").glob("tpl-MNI152NLin6Asym_res-02_*.nii.gz"))[::-1]
    image = nib.as_closest_canonical(nib.load(mask))
    inside_XYZ = np.asarray(image.dataobj)[::2, ::2, ::2] > 0
    brain_XYZ = ndimage.gaussian_filter(nib.as_closest_canonical(nib.load(head)).get_fdata(), 0.8)[::2, ::2, ::2]
    affine = image.affine @ np.diag([2, 2, 2, 1])
    geometry = build_template(study.template)
    index_V = np.flatnonzero(inside_XYZ)
    parcel_V = np.zeros(len(index_V), int)
    template = Template(geometry.space, 4.0, affine, inside_XYZ, (1, 1, 1), index_V, parcel_V, "real")
    return template, np.where(inside_XYZ, brain_XYZ, 0)


TURNED: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "8 mm to the right": lambda volume_XYZ: np.roll(volume_XYZ, 2, axis=0),
    "8 mm forward": lambda volume_XYZ: np.roll(volume_XYZ, 2, axis=1),
    "upside down": lambda volume_XYZ: volume_XYZ[:, :, ::-1],
    "back to front": lambda volume_XYZ: volume_XYZ[:, ::-1],
}


@pytest.mark.parametrize("how", TURNED)
def test_a_real_brain_out_of_place_is_less_alike_in_the_contrast_of_bold(
    real: tuple[Template, np.ndarray], how: str
) -> None:
    template, brain_XYZ = real
    # Grey matter brighter than white, fluid the brightest, and a coil that fades towards the front.
    fade_Y = np.linspace(1.2, 0.8, template.shape[1])[None, :, None]
    bold_XYZ = np.where(template.mask_XYZ, (1.3 * brain_XYZ.max() - brain_XYZ) * fade_Y, 0)
    noisy_XYZ = bold_XYZ + 0.05 * bold_XYZ.max() * np.random.default_rng(0).standard_normal(bold_XYZ.shape)
    right, wrong = alike(noisy_XYZ, brain_XYZ, template), alike(TURNED[how](noisy_XYZ), brain_XYZ, template)
    assert right > 0.7
    assert wrong < 0.75 * right
