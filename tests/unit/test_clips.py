"""Clips: a position names one clip, everybody is equally likely, and only so many shards stay open."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy.stats import chisquare

from pipeline.bold import clips
from pipeline.bold.clips import Runs, clip_position
from pipeline.bold.reader import Shard
from pipeline.bold.shards import voxel_geometry, write_shard
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
            {"tr_s": 1.5},
            geometry=voxel_geometry(template),
        )
        for subject, session, frames in people
    ]


def test_clip_is_that_part_of_the_shard(entries: list[dict[str, object]]) -> None:
    runs = Runs(entries)
    whole_TV = Shard.open(str(entries[1]["path"])).read()
    assert (len(runs), runs.frames(1)) == (3, 30)
    assert np.array_equal(runs.clip(1, 7, 20), whole_TV[7:27])
    with pytest.raises(IndexError):
        runs.clip(1, 11, 20)


def test_a_clip_belongs_to_who_asked_for_it(entries: list[dict[str, object]]) -> None:
    runs = Runs(entries)
    first_TV = runs.clip(1, 7, 20).copy()
    runs.clip(1, 7, 20)[:] = 0
    assert np.array_equal(runs.clip(1, 7, 20), first_TV)


def test_only_the_latest_runs_stay_open(entries: list[dict[str, object]], monkeypatch: pytest.MonkeyPatch) -> None:
    opened = []
    openly = Shard.open
    monkeypatch.setattr(clips, "MOST_OPEN", 2)
    monkeypatch.setattr(Shard, "open", lambda path, *rest: opened.append(Path(path).name) or openly(path, *rest))
    runs = Runs(entries)
    for run in (0, 1, 0, 2, 0, 1):  # 1 is the one that nobody asked for when 2 came
        runs.clip(run, 0, 20)
    assert opened == ["01-1", "01-2", "02-1", "01-2"]


def test_contract_is_checked_when_a_run_is_opened(entries: list[dict[str, object]]) -> None:
    runs = Runs(entries, expected={"space": "MNI305"})
    with pytest.raises(InputError, match=r"contract\.space"):
        runs.clip(0, 0, 20)


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
