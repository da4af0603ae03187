"""Damaged shards: flipped bits, lost, exchanged and cut chunks, a full disk. Each is one error; nothing is read."""

from __future__ import annotations

import errno
import importlib.util
import json
import os
import resource
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import pytest
import zarr

from pipeline.bold import chunks
from pipeline.bold.reader import DATA, Shard
from pipeline.bold.shards import verify_shard, write_shard
from pipeline.bold.spool import spool
from pipeline.errors import InputError

FRAMES, CHUNK, VOXELS = 21, 8, 31
WITHOUT = pytest.mark.skipif(not importlib.util.find_spec("tensorstore"), reason="tensorstore is not installed")
BACKENDS = ["pread", "zarr", pytest.param("tensorstore", marks=WITHOUT)]
LENGTH = CHUNK * VOXELS * 2 + 4  # of a chunk and its crc32c
INDEX = 3 * LENGTH  # where the index begins


def run_TV() -> np.ndarray:
    return np.random.default_rng(0).normal(1000, 20, (FRAMES, VOXELS)).astype(np.float32)


@pytest.fixture
def shard(tmp_path: Path) -> Path:
    """Three chunks, the last of them filled up."""
    write_shard(tmp_path / "sub-01", run_TV(), {"tr_s": 1.5}, geometry={"kind": "parcels"})
    return tmp_path / "sub-01"


def flip(path: Path, bit: int) -> None:
    content = bytearray(path.read_bytes())
    content[bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)


def set_index(path: Path, entries: list[tuple[int, int]]) -> None:
    """Another index, with the right checksum."""
    index = np.array(entries, "<u8").tobytes()
    path.write_bytes(path.read_bytes()[:INDEX] + index + google_crc32c.value(index).to_bytes(4, "little"))


@pytest.mark.parametrize("backend", BACKENDS)
def test_one_flipped_bit_anywhere_is_seen_on_reading_and_by_verify(shard: Path, backend: Any) -> None:
    data = shard / DATA
    bits = 8 * data.stat().st_size
    in_index = range(8 * INDEX, bits, 37)  # its checksum too
    in_sums = [8 * (LENGTH * chunk + LENGTH - byte) for chunk in range(3) for byte in (1, 4)]
    anywhere = np.random.default_rng(0).integers(0, 8 * INDEX, 50).tolist()
    for bit in [0, bits - 1, *in_index, *in_sums, *anywhere]:
        flip(data, bit)
        with pytest.raises(InputError, match=r"damaged data|lost chunk"):
            Shard.open(shard, backend=backend).read()
        with pytest.raises(InputError, match="other bytes"):
            verify_shard(shard)
        flip(data, bit)
    assert Shard.open(shard, backend=backend).read().shape == (FRAMES, VOXELS)


@pytest.mark.parametrize("name", ["voxel_mean", "voxel_std"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_one_flipped_bit_in_mean_or_sd_is_seen(shard: Path, backend: Any, name: str) -> None:
    path = shard / f"shard.zarr/{name}/c/0"
    for bit in (0, 8 * 60 + 3, 8 * path.stat().st_size - 1):
        flip(path, bit)
        with pytest.raises(InputError, match="damaged data"):
            getattr(Shard.open(shard, backend=backend), name.removeprefix("voxel_"))
        flip(path, bit)


@pytest.mark.parametrize("backend", BACKENDS)
def test_damage_elsewhere_does_not_spoil_an_undamaged_chunk(shard: Path, backend: Any) -> None:
    expected_TV = Shard.open(shard).read(8, 16)
    flip(shard / DATA, 8 * 100)
    assert np.array_equal(Shard.open(shard, backend=backend).read(8, 16), expected_TV)


def test_missing_and_truncated_files_are_seen_on_opening(shard: Path) -> None:
    whole = (shard / DATA).read_bytes()
    (shard / DATA).write_bytes(whole[:-8])
    with pytest.raises(InputError, match=f"found {len(whole) - 8} bytes; expected {len(whole)} bytes"):
        Shard.open(shard)
    (shard / DATA).unlink()
    with pytest.raises(InputError, match="no such file"):
        Shard.open(shard)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kept", [0, 3, LENGTH, INDEX])
def test_a_file_cut_after_opening_is_not_read_as_values(shard: Path, backend: Any, kept: int) -> None:
    stored = Shard.open(shard, backend=backend)
    (shard / DATA).write_bytes((shard / DATA).read_bytes()[:kept])
    with pytest.raises(InputError, match=r"damaged data|truncated file|lost chunk"):
        stored.read()


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_file_deleted_after_opening_is_not_read_as_values(shard: Path, backend: Any) -> None:
    stored = Shard.open(shard, backend=backend)
    shutil.rmtree(shard / "shard.zarr/bold/c")
    with pytest.raises(InputError, match=r"no such file|lost chunk"):
        stored.read()


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_chunk_missing_from_the_index_is_lost_not_zero(shard: Path, backend: Any) -> None:
    set_index(shard / DATA, [(0, LENGTH), (2**64 - 1, 2**64 - 1), (2 * LENGTH, LENGTH)])
    with pytest.raises(InputError, match="a lost chunk"):
        Shard.open(shard, backend=backend).read()
    with pytest.raises(InputError, match="other bytes"):
        verify_shard(shard)


def test_exchanged_chunks_are_seen_though_each_has_its_checksum(shard: Path) -> None:
    """By verify, and on reading by `pread` alone: zarr and tensorstore cannot know which chunk was meant."""
    data, content = shard / DATA, (shard / DATA).read_bytes()
    data.write_bytes(content[LENGTH : 2 * LENGTH] + content[:LENGTH] + content[2 * LENGTH :])
    with pytest.raises(InputError, match="damaged data in chunk 0"):
        Shard.open(shard).read()
    with pytest.raises(InputError, match="other bytes"):
        verify_shard(shard)
    data.write_bytes(content)
    set_index(data, [(LENGTH, LENGTH), (0, LENGTH), (2 * LENGTH, LENGTH)])
    with pytest.raises(InputError, match="damaged data in chunk 0"):
        Shard.open(shard).read()
    with pytest.raises(InputError, match="other bytes"):
        verify_shard(shard)


@pytest.mark.parametrize("entry", [(LENGTH, LENGTH - 1), (2**40, LENGTH), (2**63, 2**63)])
def test_an_index_that_points_elsewhere_is_refused(shard: Path, entry: tuple[int, int]) -> None:
    set_index(shard / DATA, [(0, LENGTH), entry, (2 * LENGTH, LENGTH)])
    with pytest.raises(InputError, match="chunks of another length"):
        Shard.open(shard).read()


@pytest.mark.parametrize("backend", BACKENDS[1:])
@pytest.mark.parametrize(("word", "instead"), [("float16", "bfloat8"), ('"end"', '"old"'), ("{", "["), ("16", "32")])
def test_damaged_metadata_are_not_believed(shard: Path, backend: Any, word: str, instead: str) -> None:
    path = shard / "shard.zarr/bold/zarr.json"
    path.write_text(path.read_text().replace(word, instead, 1))
    with pytest.raises(InputError, match="damaged metadata"):
        Shard.open(shard, backend=backend).read()
    with pytest.raises(InputError, match="other bytes"):
        verify_shard(shard)


def test_manifest_that_is_damaged_or_missing_is_an_input_error(shard: Path) -> None:
    path = shard / "manifest.json"
    path.write_text(path.read_text()[:-20])
    with pytest.raises(InputError, match="damaged JSON"):
        Shard.open(shard)
    path.unlink()
    with pytest.raises(InputError, match="no such file"):
        verify_shard(shard)


def test_contract_in_the_manifest_that_differs_from_the_one_in_zarr_is_seen(shard: Path) -> None:
    manifest = json.loads((shard / "manifest.json").read_text())
    manifest["contract"]["tr_s"] = 0.72
    (shard / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(InputError, match=r"contract\.tr_s: found 1\.5; expected 0\.72"):
        verify_shard(shard)


@pytest.fixture
def limited() -> Iterator[Callable[[int], None]]:
    """Files may grow to so many bytes: the system then writes a part and refuses the rest, as a full disk does."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_disk_that_fills_up_leaves_the_former_shard_and_no_rest(tmp_path: Path, limited) -> None:
    wide_TV, folder = np.tile(run_TV(), 100), tmp_path / "sub-01"
    write_shard(folder, wide_TV, {"tr_s": 1.5}, geometry={"kind": "parcels"})
    with spool([wide_TV + 1], wide_TV.shape[1]) as kept:
        limited(60_000)  # inside the second chunk
        with pytest.raises(OSError, match="File too large"):
            write_shard(folder, kept, {"tr_s": 1.5}, geometry={"kind": "parcels"})
    assert [path.name for path in tmp_path.iterdir()] == ["sub-01"]
    assert verify_shard(folder)
    assert Shard.open(folder).mean == pytest.approx(wide_TV.mean(0), rel=1e-5)


def test_a_disk_that_fills_up_under_the_scratch_file_is_an_error(limited) -> None:
    limited(1000)
    with pytest.raises(OSError, match="File too large"), spool([run_TV()], VOXELS):
        pytest.fail("half a run must not be handed out")


def test_a_server_that_reports_a_full_disk_at_the_end_leaves_nothing(tmp_path: Path, monkeypatch) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(chunks.os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_shard(tmp_path / "sub-01", run_TV(), {"tr_s": 1.5}, geometry={"kind": "parcels"})
    assert list(tmp_path.iterdir()) == []


def test_zarr_alone_would_have_read_a_lost_chunk_as_its_marker(shard: Path) -> None:
    """Why a chunk that is not there is looked for: zarr says nothing."""
    shutil.rmtree(shard / "shard.zarr/bold/c")
    assert np.isnan(zarr.open_array(shard / "shard.zarr/bold", mode="r")[...]).all()
