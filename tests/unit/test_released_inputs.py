"""The input that imported encoders get from our shards, and the runs that they are refused.

Axes: T frames, V in-mask voxels, R parcels, H W rows and columns of pixels, X Y Z voxels.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from pipeline.bold.reader import Shard
from pipeline.bold.shards import voxel_geometry, write_shard
from pipeline.bold.template import Template
from pipeline.errors import InputError
from pipeline.pretrain.released import SYSTEMS, check_contract
from pipeline.pretrain.released.inputs import clips

FRAMES = 46  # two clips of 20 and a rest
CORNER_MM = (-60, -100, -50)


def metadata(system: str, **run: Any) -> dict[str, Any]:
    """What the record of an import says; `run` changes what it asks of a run."""
    contract = SYSTEMS[system].contract
    return {"contract": {"run": {**contract["run"], **run}, "input": dict(contract["input"])}}


def small_template(shape: tuple[int, int, int] = (40, 50, 30)) -> Template:
    """A brain of one block on a RAS grid in the lattice of FSL's 2 mm MNI152."""
    mask_XYZ = np.zeros(shape, bool)
    mask_XYZ[3:30, 2:45, 4:25] = True
    affine = np.diag([2.0, 2, 2, 1])
    affine[:3, 3] = CORNER_MM
    index_V = np.flatnonzero(mask_XYZ)
    return Template("MNI152NLin6Asym", 2.0, affine, mask_XYZ, (2, 2, 2), index_V, np.zeros_like(index_V), "small")


@pytest.fixture(scope="module")
def template() -> Template:
    return small_template()


@pytest.fixture(scope="module")
def bold_TV(template: Template) -> np.ndarray:
    """Voxels of different means and SDs in the unit of a scanner, some of them background."""
    rng = np.random.default_rng(0)
    mean_V, sd_V = rng.uniform(300, 9000, template.voxels), rng.uniform(5, 80, template.voxels)
    values_TV = (mean_V + sd_V * rng.standard_normal((FRAMES, template.voxels))).astype(np.float32)
    values_TV[:, ::40] = 0
    return values_TV


def shard(folder: Path, bold_TV: np.ndarray, geometry: dict[str, Any], tr_s: float = 0.8) -> Shard:
    write_shard(folder / "shard", bold_TV, {"tr_s": tr_s}, geometry=geometry)
    return Shard.open(folder / "shard")


def by_hand(bold_TV: np.ndarray, template: Template, first_y: int, frames: slice) -> np.ndarray:
    """The peer's own steps on a dense volume: z over all that is not 0, background to the smallest, pad or crop."""
    volume_XYZT = np.zeros((91, 109, 91, len(bold_TV)), np.float32)  # FSL's grid: x runs from right to left
    for (x, y, z), series_T in zip(template.coordinates_V3, bold_TV.T, strict=True):
        mm = nib.affines.apply_affine(template.affine, (x, y, z))
        volume_XYZT[int((90 - mm[0]) / 2), int((mm[1] + 126) / 2), int((mm[2] + 72) / 2)] = series_T
    signal = volume_XYZT[volume_XYZT != 0].astype(np.float64)
    z_XYZT = (volume_XYZT - signal.mean()) / signal.std()
    smallest = z_XYZT[volume_XYZT != 0].min()
    z_XYZT[volume_XYZT == 0] = smallest
    cube_XYZT = np.full((96, 96, 96, frames.stop - frames.start), smallest, np.float32)
    cube_XYZT[3:94, :, 3:94] = z_XYZT[:, first_y : first_y + 96, :, frames]
    return cube_XYZT


@pytest.mark.parametrize(("system", "first_y"), [("swift-contrastive", 7), ("neurostorm", 6)])
def test_volumes_are_the_peers_own_input(bold_TV, template, tmp_path, system, first_y) -> None:
    run = shard(tmp_path, bold_TV, voxel_geometry(template))
    found = list(clips(run, metadata(system), template))
    assert [tuple(clip.shape) for clip in found] == [(1, 1, 96, 96, 96, 20)] * 2
    expected = by_hand(bold_TV, template, first_y, slice(20, 40))
    # float16 of a z-score is good to 2^-11 of it, and voxels spread over 3 SD of the whole brain.
    assert np.abs(found[1][0, 0].numpy() - expected).max() < 2e-3
    assert np.abs(found[0][0, 0].numpy() - expected).max() > 0.01, "clips differ"


def test_left_and_right_are_swifts(template, tmp_path) -> None:
    bold_TV = np.random.default_rng(1).normal(1000, 5, (20, template.voxels)).astype(np.float32)
    right = int(np.argmax(template.coordinates_V3[:, 0]))
    assert nib.affines.apply_affine(template.affine, template.coordinates_V3[right])[0] == -2
    bold_TV[:, right] += 5000
    (clip,) = clips(shard(tmp_path, bold_TV, voxel_geometry(template)), metadata("swift-contrastive"), template)
    x = int(np.unravel_index(int(clip[0, 0, ..., 0].argmax()), (96, 96, 96))[0])
    assert x == 3 + (90 + 2) // 2, "x falls towards the right in LAS"


def parcel_shard(folder: Path, parcels: int = 424, frames: int = 210, tr_s: float = 0.735) -> tuple[np.ndarray, Shard]:
    series_TR = np.random.default_rng(2).normal(50, 4, (frames, parcels)).astype(np.float32)
    geometry = {"kind": "parcels", "space": "MNI152NLin6Asym", "codes": list(range(1, parcels + 1))}
    return series_TR, shard(folder, series_TR, geometry, tr_s)


def test_parcels_are_about_their_median_in_interquartile_ranges(tmp_path: Path) -> None:
    series_TR, run = parcel_shard(tmp_path)
    (clip,) = clips(run, metadata("brainlm"))
    low_R, median_R, high_R = np.percentile(series_TR, [25, 50, 75], axis=0)
    expected_RT = ((series_TR - median_R) / (high_R - low_R))[:200].T
    assert clip.shape == (1, 424, 200)
    assert np.abs(clip[0].numpy() - expected_RT).max() < 5e-3
    scaled = metadata("brainlm")
    scaled["contract"]["input"]["divisor"] = 4.0
    (quarter,) = clips(run, scaled)
    assert np.allclose(4 * quarter, clip, atol=1e-6)


def test_flat_maps_lie_on_their_raster_with_frames_of_mean_0_and_sd_1(tmp_path: Path) -> None:
    cortex_HW = np.zeros((224, 560), bool)
    cortex_HW[50:60, 100:130] = True
    series_TP = np.random.default_rng(3).normal(9, 2, (35, 300)).astype(np.float32)
    geometry = {"kind": "flatmap", "mesh": "fs_LR 64k", "raster": [224, 560]}
    run = shard(tmp_path, series_TP, geometry, tr_s=1.0)
    found = list(clips(run, metadata("cortexmae"), cortex_HW=cortex_HW))
    assert [tuple(clip.shape) for clip in found] == [(1, 1, 224, 560, 16)] * 2
    z_TP = ((series_TP - series_TP.mean(0)) / series_TP.std(0)).clip(-3, 3)
    z_TP = (z_TP - z_TP.mean(1, keepdims=True)) / z_TP.std(1, keepdims=True)
    assert np.abs(found[1][0, 0, 50:60, 100:130].reshape(300, 16).numpy() - z_TP[16:32].T).max() < 5e-3
    assert not found[1][0, 0][~cortex_HW].any()
    with pytest.raises(InputError, match="a map of 0 pixels"):
        list(clips(run, metadata("cortexmae")))


@pytest.mark.parametrize(
    ("system", "change", "message"),
    [
        ("swift-contrastive", {"tr_s": 2.0}, r"contract\.tr_s: found 2\.0; expected 0\.72 to 0\.8 s\..*resample_tr_s"),
        ("swift-contrastive", {"tr_s": 0.7}, r"contract\.tr_s: found 0\.7;"),
        ("swift-contrastive", {"space": "native"}, r"contract\.space: found 'native'.*family MNI152"),
        ("swift-contrastive", {"resolution_mm": 3.0}, r"contract\.resolution_mm: found 3\.0; expected 2 mm"),
        ("swift-contrastive", {"frames": 19}, r"contract\.frames: found 19; expected at least one clip of 20"),
        ("swift-contrastive", {"kind": "parcels"}, r"contract\.kind: found 'parcels'; expected 'voxels'"),
        ("neurostorm", {"tr_s": 0.72}, r"contract\.tr_s: found 0\.72; expected 0\.8 to 0\.8 s"),
        ("neurostorm", {"minimum": -4.0}, r"contract\.minimum: found -4\.0; expected no value below 0"),
        ("brainlm", {"codes": [1, 2, 3]}, r"contract\.parcels: found 3; expected 424 parcels"),
        (
            "cortexmae",
            {"mesh": "fsaverage5"},
            r"contract\.mesh: found 'fsaverage5'; expected flat maps of",
        ),
    ],
)
def test_runs_that_an_encoder_was_not_made_for_are_refused(system, change, message) -> None:
    fitting = {
        "kind": {"brainlm": "parcels", "cortexmae": "flatmap"}.get(system, "voxels"),
        "space": "MNI152NLin6Asym",
        "resolution_mm": 2.0,
        "tr_s": {"brainlm": 0.735, "cortexmae": 1.0}.get(system, 0.8),
        "frames": 200,
        "minimum": 3.5,
        "normalisation": "voxel-z",
        "codes": list(range(424)),
        "mesh": "fs_LR 64k",
        "raster": [224, 560],
    }
    check_contract(metadata(system), fitting)
    with pytest.raises(InputError, match=message):
        check_contract(metadata(system), fitting | change)


def test_the_repetition_times_of_the_training_sets_are_accepted() -> None:
    fitting = {"kind": "voxels", "space": "MNI152NLin6Asym", "resolution_mm": 2, "frames": 490}
    for tr_s in (0.72, 0.7200001, 0.735, 0.8):
        check_contract(metadata("swift-hcp-sex"), fitting | {"tr_s": tr_s})


def test_a_shard_that_breaks_the_contract_gives_no_clip(bold_TV, template, tmp_path) -> None:
    run = shard(tmp_path, bold_TV, voxel_geometry(template), tr_s=2.0)
    with pytest.raises(InputError, match=r"shard: contract\.tr_s"):
        next(clips(run, metadata("swift-contrastive"), template))
    with pytest.raises(InputError, match="no template"):
        next(clips(run, metadata("swift-contrastive", tr_s=[1.9, 2.1])))
