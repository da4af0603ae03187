"""Features of runs: an encoder whose answer is known, and connectomes against numpy."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from small_cohort import CONTRACT, small_template
from torch import Tensor, nn

from pipeline.bold.reader import Shard
from pipeline.bold.shards import voxel_geometry, write_shard
from pipeline.bold.template import Template, parcel_means
from pipeline.errors import InputError
from pipeline.evaluate import baselines
from pipeline.evaluate.cohort import Cohort
from pipeline.evaluate.features import encode_runs, pool
from pipeline.pretrain.rasters import voxel_raster

FRAMES, CONTEXT = 50, 20


class PowerAndLag(nn.Module):
    """Two features: the mean square of the clip, and the product of a voxel with itself one frame later."""

    def __init__(self) -> None:
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(1))
        self.batches: list[int] = []

    def forward(self, clip_B1XYZT: Tensor) -> Tensor:
        self.batches.append(len(clip_B1XYZT))
        lagged = clip_B1XYZT * clip_B1XYZT.roll(1, dims=-1)
        return torch.cat([clip_B1XYZT.square(), lagged], dim=1)


@pytest.fixture(scope="module")
def template() -> Template:
    return small_template()


@pytest.fixture(scope="module")
def shard(tmp_path_factory: pytest.TempPathFactory, template: Template) -> Shard:
    rng, folder = np.random.default_rng(0), tmp_path_factory.mktemp("shards") / "run"
    walk_TV = np.cumsum(rng.normal(0, 1, (FRAMES, template.voxels)), axis=0)
    write_shard(folder, (500 + walk_TV).astype(np.float32), CONTRACT, geometry=voxel_geometry(template))
    return Shard.open(folder)


def test_a_run_is_cut_into_clips_and_each_is_the_mean_over_its_tokens(shard: Shard, template: Template) -> None:
    (clips_KD,) = encode_runs(PowerAndLag(), [shard], voxel_raster(template), CONTEXT)
    bold_TV, box = shard.read(), template.mask_XYZ.size
    expected = [(bold_TV[start : start + CONTEXT] ** 2).sum() / box / CONTEXT for start in (0, 20)]
    assert clips_KD.shape == (2, 2)  # the ten frames left over are dropped
    assert np.allclose(clips_KD[:, 0], expected, rtol=1e-5)


def test_the_batch_bounds_what_is_encoded_at_once_and_changes_nothing(shard: Shard, template: Template) -> None:
    one, all_at_once = PowerAndLag(), PowerAndLag()
    small = encode_runs(one, [shard], voxel_raster(template), 5, batch=4)
    large = encode_runs(all_at_once, [shard], voxel_raster(template), 5, batch=64)
    assert max(one.batches) == 4
    assert np.allclose(small, large, atol=1e-6)


def test_fewer_frames_give_the_first_clips(shard: Shard, template: Template) -> None:
    (whole,) = encode_runs(PowerAndLag(), [shard], voxel_raster(template), 10)
    (first,) = encode_runs(PowerAndLag(), [shard], voxel_raster(template), 10, frames=25)
    assert len(first) == 2
    assert first.mean() != pytest.approx(whole[:2].mean()), "the short scan is z-scored over its own frames"


def test_shuffled_input_keeps_every_frame_and_loses_their_order(shard: Shard, template: Template) -> None:
    (straight,) = encode_runs(PowerAndLag(), [shard], voxel_raster(template), FRAMES)
    (shuffled,) = encode_runs(PowerAndLag(), [shard], voxel_raster(template), FRAMES, shuffle=np.random.default_rng(0))
    assert shuffled[0, 0] == pytest.approx(straight[0, 0], rel=1e-5)
    assert abs(shuffled[0, 1]) < 0.5 * straight[0, 1]


def test_a_run_shorter_than_a_clip_is_refused(shard: Shard, template: Template) -> None:
    with pytest.raises(InputError, match="found 50 frames; expected at least one clip of 60"):
        encode_runs(PowerAndLag(), [shard], voxel_raster(template), 60)


def test_the_short_scan_is_its_first_clips() -> None:
    clips = [np.arange(8.0)[:, None], np.full((4, 1), 2.0)]
    found = pool(clips, context=20, short_frames=60)
    assert found.full_RD.ravel() == pytest.approx([3.5, 2])
    assert found.short_RKD[:, :, 0].tolist() == [[0, 1, 2], [2, 2, 2]]


def test_a_connectome_is_fisher_z_of_pearson_and_a_dead_parcel_is_zero() -> None:
    parcels_TP = np.random.default_rng(1).normal(0, 1, (80, 5))
    parcels_TP[:, 1] += parcels_TP[:, 0]
    parcels_TP[:, 4] = 3.0
    edges = baselines.connectome(parcels_TP)
    expected = np.arctanh(np.corrcoef(parcels_TP[:, :4].T)[np.triu_indices(4, 1)])
    alive = [4 not in pair for pair in zip(*np.triu_indices(5, 1), strict=True)]
    assert np.allclose(edges[alive], expected)
    assert (edges[np.logical_not(alive)] == 0).all()


def test_simple_systems_see_the_run_whole_and_short(shard: Shard, template: Template) -> None:
    found = baselines.run_features([shard], template, short_frames=30)
    parcels_TP = parcel_means(shard.read(), template)
    assert np.allclose(found["connectome_logistic"].full_RD[0], baselines.connectome(parcels_TP), atol=1e-5)
    assert np.allclose(found["connectome_logistic"].short_RKD[0, 0], baselines.connectome(parcels_TP[:30]), atol=1e-5)
    raw_TV = shard.read() * shard.std + shard.mean
    expected = parcel_means(raw_TV, template).std(0) / raw_TV.mean()
    assert np.allclose(found["temporal_sd"].full_RD[0], expected, rtol=1e-2)
    assert found["time_averaged"].full_RD.mean() == pytest.approx(1, abs=0.01)


def cohort(**columns: list[object]) -> Cohort:
    people = pd.DataFrame({"family": list("abc"), **columns}, index=["s1", "s2", "s3"])
    runs = [{"mean_fd_mm": value, "session": "1"} for value in (0.1, 0.3, 0.5, None)]
    return Cohort("d", False, people, runs, np.array([0, 0, 1, 2]), [], [], "key")


def test_confounds_are_motion_age_site_and_whatever_is_named_but_never_the_task() -> None:
    people = cohort(age=[30, np.nan, 50], site=["A", "B", "A"], sex=["M", "F", "M"], handed=[1, 0, 1])
    assert baselines.confound_features(people, ["handed"], "dx").shape == (3, 1 + 1 + 2 + 2 + 1)
    assert baselines.confound_features(people, ["handed"], "sex").shape == (3, 1 + 1 + 2 + 1)
    motion = baselines.confound_features(people, [], "sex")[:, 0]
    assert np.allclose(motion, [0.2, 0.5, np.nan], equal_nan=True)


def test_people_are_means_of_their_runs_and_pairs_are_their_first_two_sessions() -> None:
    people = cohort()
    assert people.per_person(np.array([[1.0], [3], [5], [7]])).ravel().tolist() == [2, 5, 7]
    runs = [{"session": session} for session in ("1", "1", "2", "3", "1", "1")]
    several = Cohort("d", False, people.people, runs, np.array([0, 0, 0, 0, 1, 2]), [], [], "key")
    pairs, who = several.session_pairs()
    assert pairs.tolist() == [[0], [2]]
    assert who.tolist() == [0]
