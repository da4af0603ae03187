"""Registration: planted motion and a planted affine are found, and the right side stays right."""

from __future__ import annotations

from pathlib import Path

import builders
import nibabel as nib
import numpy as np
import pytest

from pipeline import artefact
from pipeline.bold.ingest import shard_batch
from pipeline.bold.inputs import find_runs
from pipeline.bold.normalise import to_template
from pipeline.bold.people import write_people
from pipeline.bold.quality import framewise_displacement
from pipeline.bold.register import (
    Registered,
    affine_to_standard,
    brain_mask,
    estimate_motion,
    register_native,
    rigid_matrix,
    rigid_parameters,
    volume_centre,
)
from pipeline.bold.shards import Shard
from pipeline.bold.template import Template

NATIVE = (32, 36, 28)
# Native space: 4 mm voxels stored right to left, a head that is smaller, turned and off the centre.
AFFINE = np.array([[-4.0, 0, 0, 62], [0, 4.0, 0, -70], [0, 0, 4.0, -54], [0, 0, 0, 1]])
HEAD = rigid_matrix(np.array([4.0, -6, 3, 0.08, -0.05, 0.06]), np.zeros(3)) @ np.diag([0.92, 0.95, 0.9, 1])
MOTION_T6 = np.random.default_rng(0).normal(0, [0.8, 0.8, 0.8, 0.012, 0.012, 0.012], (7, 6))


def _frame(motion_6: np.ndarray) -> np.ndarray:
    """The head of HEAD after it moved, sampled in native space."""
    moved = rigid_matrix(motion_6, volume_centre(NATIVE, AFFINE)) @ HEAD
    return 1000 * builders.volume(NATIVE, np.linalg.inv(moved) @ AFFINE)


@pytest.fixture(scope="module")
def run_XYZT() -> np.ndarray:
    """Seven frames with known motion and 1 % of noise."""
    noise = np.random.default_rng(1).normal(0, 10, (*NATIVE, len(MOTION_T6)))
    return (np.stack([_frame(motion_6) for motion_6 in MOTION_T6], axis=3) + noise).astype(np.float32)


def test_planted_motion_is_recovered(run_XYZT: np.ndarray) -> None:
    # Only motion between frames is defined: the reference may lie anywhere near them.
    centre = volume_centre(NATIVE, AFFINE)
    found, planted = (
        [rigid_matrix(motion_6, centre) @ np.linalg.inv(rigid_matrix(motion_T6[0], centre)) for motion_6 in motion_T6]
        for motion_T6 in (estimate_motion(run_XYZT, AFFINE), MOTION_T6)
    )
    error_T6 = np.abs([rigid_parameters(np.linalg.inv(a) @ b, centre) for a, b in zip(found, planted, strict=True)])
    assert error_T6[:, :3].max() < 0.1  # mm, of voxels of 4 mm
    assert error_T6[:, 3:].max() < 0.005  # radians: 0.2 mm at the rim of the brain


def test_rigid_matrix_and_parameters_are_inverse() -> None:
    centre = np.array([3.0, -5, 8])
    for parameters_6 in MOTION_T6:
        matrix = rigid_matrix(parameters_6, centre)
        assert np.allclose(matrix[:3, :3] @ matrix[:3, :3].T, np.eye(3))
        assert np.linalg.det(matrix[:3, :3]) > 0
        assert np.allclose(rigid_parameters(matrix, centre), parameters_6)


def test_framewise_displacement_of_a_nod_and_a_step() -> None:
    motion_T6 = np.zeros((4, 6))
    motion_T6[1:, 0] = 0.3  # mm
    motion_T6[2:, 3] = 0.01  # rad on a sphere of 50 mm
    assert np.allclose(framewise_displacement(motion_T6), [0, 0.3, 0.5, 0])


def test_planted_affine_is_recovered(standard: dict[str, str]) -> None:
    # Another contrast than the standard's, as an EPI has.
    mean = nib.Nifti1Image(1000 * builders.volume(NATIVE, np.linalg.inv(HEAD) @ AFFINE, contrast=-0.8), AFFINE)
    found = affine_to_standard(mean, brain_mask(mean), nib.load(standard["brain"]))
    assert np.array_equal(found, affine_to_standard(mean, brain_mask(mean), nib.load(standard["brain"])))
    corners = np.array([[x, y, z] for x in (-30, 30) for y in (-36, 36) for z in (-24, 24)])
    distance = nib.affines.apply_affine(found, corners) - nib.affines.apply_affine(HEAD, corners)
    assert np.linalg.norm(distance, axis=1).max() < 2.5  # mm, of voxels of 4 mm


@pytest.fixture(scope="module")
def registered(
    standard: dict[str, str], template: Template, run_XYZT: np.ndarray, tmp_path_factory: pytest.TempPathFactory
) -> Registered:
    """That run through the whole door."""
    folder = tmp_path_factory.mktemp("raw")
    builders.write_raw(folder, run_XYZT, AFFINE)
    study = builders.make_study(standard, folder, {"door": "raw", "people": 1})
    return register_native(find_runs(study, "cohort", ["01"])[0], template, study.template)


def test_brain_lands_on_the_template(registered: Registered) -> None:
    assert registered.overlap > 0.9


def test_the_bright_spot_on_the_right_stays_on_the_right(registered: Registered, template: Template) -> None:
    positions_V3 = nib.affines.apply_affine(template.affine, template.coordinates_V3)
    mean_V = registered.bold_TV.mean(axis=0)
    right = mean_V[np.linalg.norm(positions_V3 - [24, 12, 6], axis=1) < 10].mean()
    left = mean_V[np.linalg.norm(positions_V3 - [-24, 12, 6], axis=1) < 10].mean()
    expected = 1000 * builders.brain(np.array([[24, 12, 6], [-24, 12, 6]]))
    assert right - left > 0.4 * (expected[0] - expected[1])


def test_realigned_frames_agree_where_moved_ones_do_not(
    registered: Registered, run_XYZT: np.ndarray, template: Template
) -> None:
    moved_TV, _ = to_template(nib.Nifti1Image(run_XYZT, AFFINE), template)
    inner_V = np.all(np.abs(template.coordinates_V3 - 5.5) < 3, axis=1)
    assert registered.bold_TV[:, inner_V].std(axis=0).mean() < 0.6 * moved_TV[:, inner_V].std(axis=0).mean()


def test_raw_run_becomes_a_shard(
    standard: dict[str, str], template_folder: Path, run_XYZT: np.ndarray, tmp_path: Path
) -> None:
    builders.write_raw(tmp_path / "raw", run_XYZT, AFFINE)
    study = builders.make_study(
        standard, tmp_path / "raw", {"door": "raw", "people": 1}, shards={"min_frames": 5, "drop_frames": 1}
    )
    write_people(study, "cohort", tmp_path / "people")
    output = tmp_path / "batch-0000.json"
    shard_batch(study, "cohort", 0, tmp_path / "people", template_folder, output)
    (entry,) = artefact.read_json(output)["runs"]
    contract = Shard.open(entry["path"]).contract
    assert (contract["frames"], contract["dropped"], contract["space"]) == (6, 1, builders.SPACE)
    assert "composed" in contract["resampling"]
    assert 0.3 < entry["mean_fd_mm"] < 10
