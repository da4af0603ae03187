"""Reading shards: every back end gives the same bits, in any process, and touches no more than it must."""

from __future__ import annotations

import importlib.util
import multiprocessing
import os
import pickle
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.bold.reader import Shard
from pipeline.bold.shards import write_shard
from pipeline.errors import InputError

CONTRACT = {"tr_s": 1.5, "template": "here"}
GEOMETRY = {"kind": "parcels"}
VOXELS = 23
WITHOUT = pytest.mark.skipif(not importlib.util.find_spec("tensorstore"), reason="tensorstore is not installed")
BACKENDS = ["zarr", pytest.param("tensorstore", marks=WITHOUT)]


def make(folder: Path, frames: int = 21, chunk: int = 8, dtype: str = "float16") -> Path:
    bold_TV = np.random.default_rng(frames).normal(1000, 20, (frames, VOXELS)).astype(np.float32)
    path = folder / f"{frames}-{chunk}-{dtype}"
    if not path.exists():
        write_shard(path, bold_TV, CONTRACT, geometry=GEOMETRY, frames_per_chunk=chunk, dtype=dtype)
    return path


@pytest.mark.parametrize("backend", BACKENDS)
@given(st.sampled_from([1, 7, 16, 21]), st.sampled_from([1, 4, 8, 30]), st.sampled_from(["float16", "int8"]), st.data())
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_back_ends_give_identical_bits(tmp_path, backend, frames, chunk, dtype, data) -> None:
    path = make(tmp_path, frames, chunk, dtype)
    ours, theirs = Shard.open(path), Shard.open(path, backend=backend)
    for _ in range(3):  # the later reads find chunks that are verified already
        start, stop = data.draw(st.integers(0, frames)), data.draw(st.none() | st.integers(0, frames))
        stored_TV = ours.read_stored(start, stop)
        assert stored_TV.dtype == np.dtype(dtype)
        assert stored_TV.tobytes() == theirs.read_stored(start, stop).tobytes()
        assert ours.read(start, stop).tobytes() == theirs.read(start, stop).tobytes()
        assert ours.read(start, stop).tobytes() == Shard.open(path).read()[start:stop].tobytes()
    for name in ("mean", "std") + ("step",) * (dtype == "int8"):
        assert getattr(ours, name).tobytes() == getattr(theirs, name).tobytes()


def test_a_buffer_is_filled_from_its_first_row_and_a_wrong_one_refused(tmp_path: Path) -> None:
    shard = Shard.open(make(tmp_path))
    buffer = np.full((10, VOXELS), 7, np.float16)
    part_TV = shard.read_stored(5, 11, buffer)
    assert np.shares_memory(part_TV, buffer)
    assert np.array_equal(part_TV, shard.read_stored()[5:11])
    assert (buffer[6:] == 7).all()
    too_small, other_type, gaps = buffer[:5], buffer.astype(np.float32), np.empty((10, 2 * VOXELS), np.float16)[:, ::2]
    for wrong in (too_small, other_type, gaps):
        with pytest.raises(ValueError, match="a buffer of"):
            shard.read_stored(5, 11, wrong)


def test_only_the_touched_chunks_are_read_and_once_verified_only_the_frames(tmp_path, monkeypatch) -> None:
    shard, sizes, preadv = Shard.open(make(tmp_path, 40, 8)), [], os.preadv

    def counted(descriptor: int, parts: Any, offset: int) -> int:
        sizes.append(preadv(descriptor, parts, offset))
        return sizes[-1]

    def read(start: int, stop: int) -> int:
        sizes.clear()
        shard.read_stored(start, stop)
        return sum(sizes)

    monkeypatch.setattr(os, "preadv", counted)
    frame = VOXELS * 2
    assert read(13, 18) == 2 * (8 * frame + 4)
    assert read(13, 18) == 5 * frame
    assert read(20, 30) == 4 * frame + 8 * frame + 4


def _read(shard: Shard) -> bytes:
    return shard.read(3, 19).tobytes()


# In an interpreter of its own: whatever threads and signal handlers other tests have left must not be forked.
FORKED = """
import multiprocessing, sys
from pipeline.bold.reader import Shard

def read(shard):
    return shard.read(3, 19).tobytes()

shard = Shard.open(sys.argv[1], backend=sys.argv[2])
expected = read(shard)
with multiprocessing.get_context("fork").Pool(1) as pool:
    assert pool.apply(read, (shard,)) == expected
"""


def _in_forked_child(shard: Path, backend: str) -> subprocess.CompletedProcess[str]:
    """A child forked after a first read, by a process that does nothing else."""
    command = [sys.executable, "-c", FORKED, str(shard), backend]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.parametrize("backend", ["pread", "zarr"])
def test_a_child_forked_after_a_read_reads_on(tmp_path: Path, backend: Any) -> None:
    done = _in_forked_child(make(tmp_path), backend)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("backend", ["pread", *BACKENDS])
def test_a_spawned_worker_is_given_an_open_shard(tmp_path: Path, backend: Any) -> None:
    shard = Shard.open(make(tmp_path), backend=backend)
    expected = _read(shard)
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(_read, (shard,)) == expected
    assert _read(pickle.loads(pickle.dumps(shard))) == expected


@WITHOUT
def test_tensorstore_in_a_forked_child_is_refused_before_it_aborts(tmp_path: Path) -> None:
    done = _in_forked_child(make(tmp_path), "tensorstore")
    assert done.returncode == 1
    assert re.search(r"tensorstore in a forked process.*spawn or forkserver", done.stderr)


def test_a_back_end_that_is_not_installed_says_what_to_install(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "tensorstore", None)
    with pytest.raises(InputError, match="pip install tensorstore"):
        Shard.open(make(tmp_path), backend="tensorstore").read()


def test_many_threads_read_one_shard(tmp_path: Path) -> None:
    shard = Shard.open(make(tmp_path, 40, 4))
    whole_TV = Shard.open(make(tmp_path, 40, 4)).read()
    with ThreadPoolExecutor(8) as pool:
        parts = list(pool.map(lambda start: shard.read(start % 30, start % 30 + 10), range(120)))
    assert all(np.array_equal(part_TV, whole_TV[start % 30 :][:10]) for start, part_TV in enumerate(parts))


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="no /proc to count open files in")
def test_reading_holds_no_file_open(tmp_path: Path) -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    shards = [Shard.open(make(tmp_path)) for _ in range(20)]
    for shard in shards:
        shard.read()
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_a_shard_written_anew_under_a_reader_is_refused(tmp_path: Path) -> None:
    path = make(tmp_path)
    shard = Shard.open(path)
    shard.read(0, 8)
    write_shard(path, np.ones((21, VOXELS), np.float32), CONTRACT, geometry=GEOMETRY)
    with pytest.raises(InputError, match="another file than at the first read"):
        shard.read(8, 16)
    assert not Shard.open(path).read().any()


@pytest.mark.parametrize(("field", "value"), [("template", "another"), ("tr_s", 0.72), ("atlas", "schaefer")])
def test_contract_that_differs_is_refused_by_field(tmp_path: Path, field: str, value: object) -> None:
    with pytest.raises(InputError, match=rf"contract\.{field}: found .*; expected {value!r}"):
        Shard.open(make(tmp_path), {field: value})
