"""Clips: a position names one clip, everybody is equally likely, the cache stays within its bound."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import chisquare

from pipeline.bold.clips import Runs, clip_position
from pipeline.bold.shards import Shard, write_shard
from pipeline.bold.template import Template
from pipeline.errors import InputError


@pytest.fixture(scope="module")
def entries(template: Template, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, object]]:
    """Three runs of two people, 40, 30 and 30 frames."""
    folder = tmp_path_factory.mktemp("shards")
    people = [("01", "1", 40), ("01", "2", 30), ("02", "1", 30)]
    return [
        {"dataset": "cohort", "subject": subject}
        | write_shard(
            folder / f"{subject}-{session}",
            np.random.default_rng(frames).standard_normal((frames, template.voxels)).astype(np.float32),
            template,
            {"tr_s": 1.5},
        )
        for subject, session, frames in people
    ]


def test_clip_is_that_part_of_the_shard(entries: list[dict[str, object]]) -> None:
    runs = Runs(entries, cache_mb=64)
    whole_TV = Shard.open(str(entries[1]["path"])).read()
    assert (len(runs), runs.frames(1)) == (3, 30)
    assert np.array_equal(runs.clip(1, 7, 20), whole_TV[7:27])
    with pytest.raises(IndexError):
        runs.clip(1, 11, 20)


def test_cache_keeps_what_fits_and_the_latest(entries: list[dict[str, object]], template: Template) -> None:
    runs = Runs(entries, cache_mb=1)
    room = 2**20 // (40 * template.voxels * 4)
    assert room >= 2  # two runs fit at a time in the test below only if the bound is honoured
    runs._room = 70 * template.voxels * 4
    for run in (0, 1, 2, 1):
        runs.clip(run, 0, 20)
    assert list(runs._kept) == [2, 1]


def test_contract_is_checked_when_a_run_is_opened(entries: list[dict[str, object]]) -> None:
    runs = Runs(entries, cache_mb=1, expected={"space": "MNI305"})
    with pytest.raises(InputError, match=r"contract\.space"):
        runs.clip(0, 0, 20)


def test_cached_frames_cannot_be_changed_by_a_reader(entries: list[dict[str, object]]) -> None:
    with pytest.raises(ValueError, match="read-only"):
        Runs(entries, cache_mb=1).clip(0, 0, 20)[:] = 0


def test_position_alone_decides_the_clip() -> None:
    counts = [[40, 30], [30], [25]]
    forwards = [clip_position(3, position, counts, 20) for position in range(50)]
    backwards = [clip_position(3, position, counts, 20) for position in reversed(range(50))]
    assert forwards == backwards[::-1]
    assert forwards != [clip_position(4, position, counts, 20) for position in range(50)]


def test_people_then_runs_then_starts_are_equally_likely() -> None:
    counts = [[40, 22, 10], [21]]  # the run of 10 frames is too short for any clip
    drawn = [clip_position(0, position, counts, 20) for position in range(6000)]
    runs = np.array([run for run, _ in drawn])
    assert set(runs) == {0, 1, 3}
    assert chisquare(np.bincount(runs)[[0, 1, 3]], [1500, 1500, 3000]).pvalue > 0.001
    starts = np.bincount([start for run, start in drawn if run == 0])
    assert len(starts) == 21
    assert chisquare(starts).pvalue > 0.001


def test_person_without_a_long_enough_run_is_an_input_error() -> None:
    with pytest.raises(InputError, match="runs of 10, 12 frames"):
        clip_position(0, 0, [[10, 12]], 20)
