"""Views: a peer's own arithmetic on the dense original, met from the shard up to the rounding of its storage."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from pipeline.bold.reader import Shard
from pipeline.bold.shards import voxel_geometry, write_shard
from pipeline.bold.template import Template
from pipeline.bold.views import FSL_AFFINE, swift_volume, view
from pipeline.errors import InputError

FRAMES = 30
CORNER = (8, 11, 5)  # of a box of the FSL grid whose first voxel lies in the brain made below
DTYPES = ["float16", "int8"]


def anatomy_run(voxels: int) -> np.ndarray:
    """(T, V): voxels of very different means and SDs, some outside the field of view, one zero in time."""
    rng = np.random.default_rng(0)
    mean_V, sd_V = rng.uniform(200, 12_000, voxels), rng.uniform(2, 90, voxels)
    bold_TV = (50 + np.abs(mean_V + sd_V * rng.standard_normal((FRAMES, voxels)))).astype(np.float32)
    bold_TV[:, ::50] = 0
    bold_TV[4, 7] = 0
    return bold_TV


@pytest.fixture(scope="module")
def fsl_template() -> Template:
    """A brain of two blocks in the lattice of FSL's 2 mm MNI152, on a RAS grid of its own."""
    mask_XYZ = np.zeros((86, 100, 88), bool)
    mask_XYZ[10:28, 1:30, 2:20] = True  # reaches where SwiFT crops the back of the head
    mask_XYZ[50:78, 60:80, 40:60] = True
    affine = np.diag([2.0, 2, 2, 1])
    affine[:3, 3] = [-86, -122, -70]
    index_V = np.flatnonzero(mask_XYZ)
    return Template("MNI152NLin6Asym", 2.0, affine, mask_XYZ, (2, 2, 2), index_V, np.zeros_like(index_V), "fsl")


@pytest.fixture(scope="module", params=DTYPES)
def stored(request, fsl_template, tmp_path_factory) -> tuple[np.ndarray, Shard]:
    """The dense original of a run, (T, V), and its shard."""
    bold_TV = anatomy_run(fsl_template.voxels)
    folder = tmp_path_factory.mktemp(request.param) / "shard"
    write_shard(folder, bold_TV, {"tr_s": 0.735}, geometry=voxel_geometry(fsl_template), dtype=request.param)
    return bold_TV, Shard.open(folder)


def rounding(bold_TV: np.ndarray, shard: Shard) -> np.ndarray:
    """(V,) most that storage may move a value, in the run's unit."""
    largest_V = np.abs(bold_TV - bold_TV.mean(0)).max(0)
    step_V = shard.step if shard.dtype == np.int8 else 0
    half = largest_V * 2**-11 if shard.dtype == np.float16 else shard.std * step_V / 2
    return half * 1.01 + 1e-6 * np.abs(bold_TV).max(0) + 1e-6


def test_raw_units(stored) -> None:
    bold_TV, shard = stored
    raw = view(shard, "raw")
    assert np.all(np.abs(raw.read(5, 25) - bold_TV[5:25]) <= rounding(bold_TV, shard))
    assert (raw.contract["normalisation"], raw.contract["tr_s"]) == ("raw", 0.735)


def test_voxel_z_is_what_is_stored_and_may_be_clipped(stored) -> None:
    _, shard = stored
    assert np.array_equal(view(shard, "voxel-z").read(3, 9), shard.read(3, 9))
    clipped = view(shard, "voxel-z", clip=2)
    assert np.array_equal(clipped.read(3, 9), shard.read(3, 9).clip(-2, 2))
    assert clipped.contract["clip"] == 2


def swift_z(bold: np.ndarray) -> np.ndarray:
    """SwiFT's preprocessing, as its script does it: zeros are background and take the smallest z of the rest."""
    background = bold == 0
    brain = bold[~background].astype(np.float64)
    z = (bold - brain.mean()) / brain.std()
    z[background] = z[~background].min()
    return z


def test_global_z_is_that_of_all_voxels_and_frames(stored) -> None:
    bold_TV, shard = stored
    found_TV, expected_TV = view(shard, "global-z").read(0, FRAMES), swift_z(bold_TV)
    scale = bold_TV[bold_TV != 0].std(dtype=float)
    assert np.all(np.abs(found_TV - expected_TV) <= rounding(bold_TV, shard) / scale + 1e-5)
    background = bold_TV[0] == 0
    assert background.sum() > 100
    assert np.ptp(found_TV[:, background]) == 0
    assert found_TV[4, 7] == found_TV.min() == found_TV[0, 0], "one zero in time is background too"


def test_voxel_robust_is_about_the_median_in_interquartile_ranges(stored) -> None:
    bold_TV, shard = stored
    low_V, median_V, high_V = np.percentile(bold_TV.astype(float), [25, 50, 75], axis=0)
    range_V = high_V - low_V
    alive_V = range_V > 0
    found_TV = view(shard, "voxel-robust").read(0, FRAMES)
    error_TV = np.abs(found_TV[:, alive_V] * range_V[alive_V] - (bold_TV - median_V)[:, alive_V])
    # The quartiles themselves are rounded, so a value of k ranges moves by up to k + 1 roundings more.
    allowed = rounding(bold_TV, shard)[alive_V] * (3 + np.abs(found_TV[:, alive_V])) * 1.2
    assert np.all(error_TV <= allowed)
    assert not found_TV[:, ~alive_V].any()


@pytest.mark.parametrize("clip", [None, 3.0, 1.0])
def test_frame_z_has_frames_of_mean_0_and_sd_1(stored, clip) -> None:
    bold_TV, shard = stored
    exact = bold_TV.astype(float)
    z_TV = np.divide(exact - exact.mean(0), exact.std(0), out=np.zeros_like(exact), where=exact.std(0) > 0)
    z_TV = z_TV if clip is None else z_TV.clip(-clip, clip)
    expected_TV = (z_TV - z_TV.mean(1, keepdims=True)) / z_TV.std(1, keepdims=True)
    found_TV = view(shard, "frame-z", clip).read(6, 20)
    assert np.abs(found_TV - expected_TV[6:20]).max() < (0.003 if shard.dtype == np.float16 else 0.05)
    assert np.abs(found_TV.mean(1, dtype=float)).max() < 1e-5
    assert np.allclose(found_TV.std(1, dtype=float), 1, atol=1e-5)


def test_an_unknown_normalisation_is_told_the_nearest(stored) -> None:
    with pytest.raises(ValueError, match="Did you mean 'global-z'"):
        view(stored[1], "globalz")  # type: ignore[arg-type]


def dense(bold_TV: np.ndarray, template: Template) -> np.ndarray:
    """The run on FSL's whole grid, (91, 109, 91, T), voxel by voxel from their places in mm."""
    volume = np.zeros((91, 109, 91, len(bold_TV)), np.float32)
    places = nib.affines.apply_affine(template.affine, np.argwhere(template.mask_XYZ))
    for (x, y, z), series_T in zip(places, bold_TV.T, strict=True):
        volume[round((90 - x) / 2), round((y + 126) / 2), round((z + 72) / 2)] = series_T
    return volume


PADS = {"ukb": (3, 2, -7, -6, 3, 2), "abcd": (6, 5, 0, -1, 9, 8), "hcp": (8, 7, 2, 1, 11, 10)}  # F.pad: z, y, x
BOXES = {"ukb": (91, 109, 91), "abcd": (79, 97, 85), "hcp": (75, 93, 81)}


def swift_by_its_own_code(volume: np.ndarray, cohort: str, origin: tuple[int, ...], frames: slice) -> np.ndarray:
    """Normalise, crop to the stored box, stack frames, pad with the first voxel's value."""
    box = tuple(slice(start, start + size) for start, size in zip(origin, BOXES[cohort], strict=True))
    clip = torch.from_numpy(swift_z(volume)[box][..., frames].astype(np.float32))
    padded = torch.nn.functional.pad(clip.permute(3, 0, 1, 2), PADS[cohort], value=float(clip.flatten()[0]))
    return padded.permute(1, 2, 3, 0).numpy()


@pytest.mark.parametrize(("cohort", "origin"), [("ukb", (0, 0, 0)), ("abcd", (6, 3, 3)), ("hcp", CORNER)])
def test_swift_volume_is_swifts_own_input(stored, fsl_template, cohort, origin) -> None:
    bold_TV, shard = stored
    seen = swift_volume(shard, fsl_template, cohort, None if cohort == "ukb" else origin)
    found = seen.read(10, 14)
    expected = swift_by_its_own_code(dense(bold_TV, fsl_template), cohort, origin, slice(10, 14))
    assert found.shape == expected.shape == (96, 96, 96, 4)
    assert found.dtype == np.float32
    scale = bold_TV[bold_TV != 0].std(dtype=float)
    assert np.abs(found - expected).max() <= rounding(bold_TV, shard).max() / scale + 1e-5
    assert seen.contract["normalisation"] == "global-z"
    assert (seen.contract["shape"], seen.contract["tr_s"]) == ([96, 96, 96], 0.735)


def test_a_box_that_begins_in_the_brain_is_padded_with_its_first_voxel(fsl_template, tmp_path) -> None:
    bold_TV = anatomy_run(fsl_template.voxels)
    write_shard(tmp_path / "shard", bold_TV, {"tr_s": 0.72}, geometry=voxel_geometry(fsl_template))
    volume, shard = dense(bold_TV, fsl_template), Shard.open(tmp_path / "shard")
    origin = tuple(int(value) for value in np.argwhere((volume > 0).all(-1))[5000])
    found = swift_volume(shard, fsl_template, "hcp", origin).read(3, 6)
    assert np.unique(found[:11]).size == 1
    assert found[0, 0, 0, 0] == pytest.approx(view(shard, "global-z").read(3, 4)[0, _packed(fsl_template, origin)])
    assert found[0, 0, 0, 0] > found.min()


def _packed(template: Template, fsl_voxel: tuple[int, ...]) -> int:
    place = np.linalg.inv(template.affine) @ FSL_AFFINE @ [*fsl_voxel, 1]
    flat = np.ravel_multi_index(tuple(np.rint(place[:3]).astype(int)), template.shape)
    return int(np.flatnonzero(template.voxel_index_V == flat)[0])


def test_the_contract_of_a_volume_says_where_its_voxels_lie(fsl_template, tmp_path) -> None:
    bold_TV = np.random.default_rng(0).normal(1000, 5, (8, fsl_template.voxels)).astype(np.float32)
    marked = len(bold_TV.T) - 100
    bold_TV[:, marked] += 3000
    write_shard(tmp_path / "shard", bold_TV, {"tr_s": 0.8}, geometry=voxel_geometry(fsl_template))
    where_mm = nib.affines.apply_affine(fsl_template.affine, fsl_template.coordinates_V3[marked])
    assert where_mm[0] > 0, "the mark lies on the right"
    for cohort, origin in (("ukb", None), ("abcd", (6, 6, 3))):
        seen = swift_volume(Shard.open(tmp_path / "shard"), fsl_template, cohort, origin)
        place = np.unravel_index(seen.read(0, 1)[..., 0].argmax(), (96, 96, 96))
        assert nib.affines.apply_affine(np.array(seen.contract["affine"]), place) == pytest.approx(where_mm)
        assert "".join(nib.aff2axcodes(np.array(seen.contract["affine"]))) == seen.contract["orientation"] == "LAS"
        assert place[0] < 48, "in an LAS volume the right comes first"


def test_what_swift_cannot_be_given_is_refused(stored, fsl_template, template, tmp_path: Path) -> None:
    _, shard = stored
    with pytest.raises(ValueError, match="give its origin"):
        swift_volume(shard, fsl_template, "hcp")
    with pytest.raises(ValueError, match="no cohort 'adni'"):
        swift_volume(shard, fsl_template, "adni")
    with pytest.raises(InputError, match=r"contract\.template"):
        swift_volume(shard, template)
    coarse_TV = np.ones((8, template.voxels), np.float32)
    write_shard(tmp_path / "coarse", coarse_TV, {"tr_s": 1.5}, geometry=voxel_geometry(template))
    with pytest.raises(InputError, match=r"found 8 mm.*FSL's 2 mm"):
        swift_volume(Shard.open(tmp_path / "coarse"), template)
