"""Registration: planted motion and a planted affine are found, and the right side stays right."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import builders
import nibabel as nib
import numpy as np
import pytest

from pipeline import artefact
from pipeline.bold.batches import shard_batch
from pipeline.bold.doors import find_runs
from pipeline.bold.inputs import Frames, open_frames
from pipeline.bold.motion import framewise_displacement
from pipeline.bold.normalise import Gridded, Gridding
from pipeline.bold.people import write_people
from pipeline.bold.placement import brain_of
from pipeline.bold.quality import Quarantined, dice, side
from pipeline.bold.reader import Shard
from pipeline.bold.register import registered
from pipeline.bold.register.brain import brain_mask, levelled, lowered, t1w_brain
from pipeline.bold.register.deform import deform
from pipeline.bold.register.linear import affine_to_standard
from pipeline.bold.register.motion import estimate_motion, rigid_matrix, rigid_parameters, volume_centre
from pipeline.bold.register.movie import Movie, slice_shift
from pipeline.bold.template import Template, load_brain
from pipeline.errors import InputError

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


@pytest.fixture(scope="module")
def raw(run_XYZT: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """That run as a raw BIDS tree."""
    folder = tmp_path_factory.mktemp("raw")
    builders.write_raw(folder, run_XYZT, AFFINE)
    return folder


def _frames(standard: dict[str, str], folder: Path) -> Frames:
    study = builders.make_study(standard, folder, {"door": "bids", "people": 1})
    return open_frames(find_runs(study, "cohort", ["01"])[0])


@pytest.fixture
def movie(standard: dict[str, str], raw: Path) -> Iterator[Movie]:
    """Its frames by number."""
    frames = _frames(standard, raw)
    with frames.spooled() as stored_XYZT:
        yield Movie(frames, stored_XYZT, 0, None)


def test_planted_motion_is_recovered(movie: Movie) -> None:
    # Only motion between frames is defined: the reference may lie anywhere near them.
    centre = volume_centre(NATIVE, AFFINE)
    found, planted = (
        [rigid_matrix(motion_6, centre) @ np.linalg.inv(rigid_matrix(motion_T6[0], centre)) for motion_6 in motion_T6]
        for motion_T6 in (estimate_motion(movie), MOTION_T6)
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
    brain = nib.Nifti1Image(np.asarray(mean.dataobj) * np.asarray(brain_mask(mean).dataobj), AFFINE)
    found = affine_to_standard(brain, nib.load(standard["brain"]))
    assert np.array_equal(found, affine_to_standard(brain, nib.load(standard["brain"])))
    corners = np.array([[x, y, z] for x in (-30, 30) for y in (-36, 36) for z in (-24, 24)])
    distance = nib.affines.apply_affine(found, corners) - nib.affines.apply_affine(HEAD, corners)
    assert np.linalg.norm(distance, axis=1).max() < 2.5  # mm, of voxels of 4 mm


@dataclass(frozen=True, eq=False)
class Done:
    """A run through the whole door."""

    gridded: Gridded
    bold_TV: np.ndarray
    mean_XYZ: np.ndarray


def _through(standard: dict[str, str], folder: Path, template: Template, **dataset: object) -> Done:
    study = builders.make_study(standard, folder, {"door": "bids", "people": 1, **dataset})
    (run,) = find_runs(study, "cohort", ["01"])
    with registered(run, open_frames(run), template, study.template, study.datasets["cohort"]) as gridded:
        return Done(gridded, np.concatenate(list(gridded.blocks())), gridded.mean_XYZ())


@pytest.fixture(scope="module")
def done(standard: dict[str, str], raw: Path, template: Template) -> Done:
    """That run, without a T1w."""
    return _through(standard, raw, template)


def test_brain_lands_on_the_template(done: Done, template: Template) -> None:
    assert dice(brain_of(done.mean_XYZ, done.gridded.brain_XYZ), template.mask_XYZ) > 0.9
    assert done.gridded.left_right is None


def _spot(mean_V: np.ndarray, template: Template) -> tuple[float, float]:
    """How much brighter the right is than the left where one spot was planted, found and expected."""
    positions_V3 = nib.affines.apply_affine(template.affine, template.coordinates_V3)
    right = mean_V[np.linalg.norm(positions_V3 - [24, 12, 6], axis=1) < 10].mean()
    left = mean_V[np.linalg.norm(positions_V3 - [-24, 12, 6], axis=1) < 10].mean()
    expected = 1000 * builders.brain(np.array([[24, 12, 6], [-24, 12, 6]]))
    return float(right - left), float(expected[0] - expected[1])


def test_the_bright_spot_on_the_right_stays_on_the_right(done: Done, template: Template) -> None:
    found, expected = _spot(done.bold_TV.mean(axis=0), template)
    assert found > 0.4 * expected


def test_realigned_frames_agree_where_moved_ones_do_not(done: Done, run_XYZT: np.ndarray, template: Template) -> None:
    gridding = Gridding.of(NATIVE, AFFINE, template)
    moved_TV = gridding(np.asfortranarray(run_XYZT), lambda stored: stored)
    inner_V = np.all(np.abs(template.coordinates_V3 - 5.5) < 3, axis=1)
    assert done.bold_TV[:, inner_V].std(axis=0).mean() < 0.6 * moved_TV[:, inner_V].std(axis=0).mean()


# --- through a T1w -------------------------------------------------------------------------------------------------

T1W_SHAPE = (56, 64, 48)
T1W_AFFINE = np.array([[2.0, 0, 0, -58], [0, 2.0, 0, -66], [0, 0, 2.0, -44], [0, 0, 0, 1]])
SCANNED = rigid_matrix(np.array([-3.0, 5, 2, -0.05, 0.04, 0.06]), np.zeros(3))  # the head between the two scans


def _write_t1w(folder: Path, mirrored: bool = False) -> None:
    """The head of HEAD before it moved to the BOLD scan, and its brain mask."""
    data = builders.volume(T1W_SHAPE, np.linalg.inv(SCANNED @ HEAD) @ T1W_AFFINE)
    affine = np.diag([-1.0, 1, 1, 1]) @ T1W_AFFINE if mirrored else T1W_AFFINE
    builders.save(folder / "sub-01/anat/sub-01_T1w.nii.gz", data, affine)
    builders.save(folder / "sub-01/anat/sub-01_desc-brain_mask.nii.gz", (data > 0).astype(np.uint8), affine)


@pytest.fixture(scope="module")
def through_t1w(
    standard: dict[str, str], run_XYZT: np.ndarray, template: Template, tmp_path_factory: pytest.TempPathFactory
) -> Done:
    """That run through a T1w of the same head, affine and deformable."""
    folder = tmp_path_factory.mktemp("with_t1w")
    builders.write_raw(folder, run_XYZT, AFFINE)
    _write_t1w(folder)
    return _through(standard, folder, template)


def test_a_run_lands_on_the_template_through_its_t1w(through_t1w: Done, template: Template) -> None:
    gridded = through_t1w.gridded
    assert dice(brain_of(through_t1w.mean_XYZ, gridded.brain_XYZ), template.mask_XYZ) > 0.9
    assert gridded.anatomy_XYZ is not None
    assert dice(gridded.anatomy_XYZ > 0.1, template.mask_XYZ) > 0.9
    found, expected = _spot(through_t1w.bold_TV.mean(axis=0), template)
    assert found > 0.4 * expected
    assert "deformation" in gridded.resampling


def test_the_t1w_tells_left_from_right(
    through_t1w: Done, standard: dict[str, str], run_XYZT: np.ndarray, template: Template, tmp_path: Path
) -> None:
    assert side(through_t1w.gridded.left_right) == "as it lies"
    builders.write_raw(tmp_path, run_XYZT, AFFINE)
    _write_t1w(tmp_path, mirrored=True)
    assert side(_through(standard, tmp_path, template, deformable=False).gridded.left_right) == "mirrored"


def test_a_planted_deformation_is_found(standard: dict[str, str]) -> None:
    image = nib.load(standard["brain"])
    points_3 = np.moveaxis(np.indices(image.shape), 0, -1)
    places_mm = nib.affines.apply_affine(image.affine, points_3)
    bent_mm = places_mm + 4 * np.exp(-np.sum((places_mm - [20, 10, 5]) ** 2, axis=-1, keepdims=True) / 400)
    # The person's brain at x + bend(x) is the standard brain at x; the inverse of a bend is, to first order, -bend.
    person = builders.brain(2 * places_mm - bent_mm).astype(np.float32)
    found = deform(nib.Nifti1Image(person, image.affine), np.eye(4), image)
    inside = builders.brain(places_mm) > 0
    before = np.linalg.norm((bent_mm - places_mm)[inside], axis=1)
    left = np.linalg.norm(found(places_mm[inside]) - bent_mm[inside], axis=1)
    near = before > 3
    assert left[near].mean() < 0.6 * before[near].mean()
    assert found.volume_XYZ.min() > 0.2


def test_an_empty_frame_is_quarantined_and_told_as_such(
    standard: dict[str, str], template_folder: Path, run_XYZT: np.ndarray, tmp_path: Path
) -> None:
    data = run_XYZT.copy()
    data[..., 2] = 0
    builders.write_raw(tmp_path / "raw", data, AFFINE)
    study = builders.make_study(
        standard, tmp_path / "raw", {"door": "bids", "people": 1}, shards={"min_frames": 5}, quality={"pictures": "all"}
    )
    write_people(study, "cohort", tmp_path / "people")
    shard_batch(study, "cohort", 0, tmp_path / "people", template_folder, tmp_path / "batch-0000.json")
    listing = artefact.read_json(tmp_path / "batch-0000.json")
    (lost,) = listing["quarantined"]
    assert lost["reason"].startswith("1 frames that are zero everywhere, more than quality.max_zero_frames = 0")
    kept = tmp_path / "quarantine/sub-01/ses-1_run-1"
    assert artefact.read_json(kept / "quality.json")["measures"]["zero_frames"] == 1
    assert (kept / "quality.png").read_bytes()[:4] == b"\x89PNG"
    assert not (tmp_path / "sub-01").exists()


def test_the_coils_unevenness_is_taken_off() -> None:
    x_mm = nib.affines.apply_affine(AFFINE, np.moveaxis(np.indices(NATIVE), 0, -1))[..., 0]
    even = 1000 * builders.volume(NATIVE, np.linalg.inv(HEAD) @ AFFINE)
    uneven = nib.Nifti1Image((even * np.exp(x_mm / 60)).astype(np.float32), AFFINE)
    inside = nib.Nifti1Image((even > 300).astype(np.uint8), AFFINE)
    ratio = np.log(np.asarray(levelled(uneven, inside).dataobj)[even > 300] / even[even > 300])
    before = np.log(np.asarray(uneven.dataobj)[even > 300] / even[even > 300])
    assert ratio.std() < 0.3 * before.std()


def test_a_t1w_that_does_not_say_where_it_lies_is_refused(tmp_path: Path) -> None:
    image = nib.Nifti1Image(builders.volume(builders.SHAPE, builders.AFFINE), None)
    nib.save(image, tmp_path / "T1w.nii.gz")
    with pytest.raises(InputError, match=r"T1w\.nii\.gz: found no affine"):
        t1w_brain(tmp_path / "T1w.nii.gz", None)


def test_a_t1w_without_a_brain_is_quarantined(tmp_path: Path) -> None:
    path = builders.save(tmp_path / "T1w.nii.gz", builders.volume(builders.SHAPE, builders.AFFINE))
    mask = builders.save(tmp_path / "mask.nii.gz", np.zeros(builders.SHAPE, np.uint8))
    with pytest.raises(Quarantined, match="a brain of 0 ml in T1w"):
        t1w_brain(path, mask)


def test_lowering_keeps_places_and_levels() -> None:
    fine = nib.Nifti1Image(np.fromfunction(lambda x, y, z: x + 2 * y - z, (40, 42, 44)).astype(np.float32), np.eye(4))
    coarse = lowered(fine, 2.0)
    inner = np.argwhere(np.ones(coarse.shape))[(np.argwhere(np.ones(coarse.shape)) > 3).all(1)]
    inner = inner[(inner < np.array(coarse.shape) - 4).all(1)]
    x, y, z = nib.affines.apply_affine(coarse.affine, inner).T
    assert np.allclose(np.asarray(coarse.dataobj)[tuple(inner.T)], x + 2 * y - z, atol=1e-3)


def test_slices_are_moved_to_one_time(tmp_path: Path, standard: dict[str, str]) -> None:
    # A slow sine sampled by each slice at its own time: afterwards all slices show the same course.
    times_Z, tr_s, frames = np.linspace(0, 1.8, 10, endpoint=False), 2.0, 60
    seconds_ZT = np.arange(frames) * tr_s + times_Z[:, None]
    course_ZT = 1000 + 100 * np.sin(2 * np.pi * 0.05 * seconds_ZT)
    data = np.broadcast_to(course_ZT, (8, 9, 10, frames)).astype(np.float32)
    builders.write_raw(tmp_path, data, AFFINE, tr_s)
    frames_of = _frames(standard, tmp_path)
    with frames_of.spooled() as stored_XYZT:
        timed = Movie(frames_of, stored_XYZT, 0, slice_shift(tuple(times_Z), tr_s))
        inner = np.stack([timed[number] for number in range(6, frames - 6)], axis=-1)[0, 0]
    middle_s = np.arange(6, frames - 6) * tr_s + times_Z.mean()
    expected_T = 1000 + 100 * np.sin(2 * np.pi * 0.05 * middle_s)
    assert np.abs(inner - expected_T).max() < 2  # of an amplitude of 100; unmoved slices are off by up to 28
    assert np.abs(data[0, 0, :, 6:-6] - expected_T).max() > 20


def test_the_standard_brain_ends_at_its_mask(standard: dict[str, str]) -> None:
    study = builders.make_study(standard, Path())
    image = load_brain(study.template)
    assert np.asarray(image.dataobj).max() > 0
    corner = np.asarray(image.dataobj)[:2]
    assert not corner.any()


def test_raw_run_becomes_a_shard(
    standard: dict[str, str], template_folder: Path, run_XYZT: np.ndarray, tmp_path: Path
) -> None:
    builders.write_raw(tmp_path / "raw", run_XYZT, AFFINE)
    study = builders.make_study(
        standard, tmp_path / "raw", {"door": "bids", "people": 1}, shards={"min_frames": 5, "drop_frames": 1}
    )
    write_people(study, "cohort", tmp_path / "people")
    output = tmp_path / "batch-0000.json"
    shard_batch(study, "cohort", 0, tmp_path / "people", template_folder, output)
    (entry,) = artefact.read_json(output)["runs"]
    contract = Shard.open(entry["path"]).contract
    assert (contract["frames"], contract["dropped"], contract["space"]) == (6, 1, builders.SPACE)
    assert "composed" in contract["resampling"]
    assert 0.3 < entry["mean_fd_mm"] < 10
