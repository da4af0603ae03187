"""Features of runs: an encoder whose answer is known, and connectomes against numpy."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from small_cohort import CONTRACT, DEMO, small_template
from torch import Tensor, nn

from pipeline.bold.reader import Shard
from pipeline.bold.shards import voxel_geometry, write_shard
from pipeline.bold.template import Template
from pipeline.config import load_study
from pipeline.errors import InputError
from pipeline.evaluate.cohort import Cohort
from pipeline.evaluate.features import at_tr, encode_runs, pool
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


def cohort(**columns: list[object]) -> Cohort:
    people = pd.DataFrame({"family": list("abc"), **columns}, index=["s1", "s2", "s3"])
    runs = [{"mean_fd_mm": value, "session": "1"} for value in (0.1, 0.3, 0.5, None)]
    return of_runs(people, runs, [0, 0, 1, 2])


def of_runs(people: pd.DataFrame, runs: list[dict[str, object]], person_R: list[int]) -> Cohort:
    settings = load_study(DEMO).datasets["simulated"]
    return Cohort("d", settings, False, people, runs, np.array(person_R), [], [], "key", {"d": [*people.index]})


def test_people_are_means_of_their_runs_and_pairs_are_their_first_two_sessions() -> None:
    people = cohort()
    assert people.per_person(np.array([[1.0], [3], [5], [7]])).ravel().tolist() == [2, 5, 7]
    runs = [{"session": session} for session in ("1", "1", "2", "3", "1", "1")]
    several = of_runs(people.people, runs, [0, 0, 0, 0, 1, 2])
    pairs, who = several.session_pairs()
    assert pairs.tolist() == [[0], [2]]
    assert who.tolist() == [0]


def test_a_run_of_another_tr_is_resampled_and_scored_in_units_of_its_new_frames(shard: Shard) -> None:
    assert at_tr(shard, None) is shard
    assert at_tr(shard, shard.tr_s) is shard
    slower = at_tr(shard, 2 * shard.tr_s)
    read_TV = slower.read()
    assert len(read_TV) == slower.frames == (shard.frames + 1) // 2
    alive_V = read_TV.std(0) > 0.5
    np.testing.assert_allclose(read_TV[:, alive_V].std(0), 1, atol=1e-3)
    np.testing.assert_allclose(read_TV[:, alive_V].mean(0), 0, atol=1e-4)
    np.testing.assert_array_equal(slower.read(3, 9), read_TV[3:9])
