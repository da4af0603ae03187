"""Shards: what is written is read, zarr agrees byte for byte, the contract says what it is, memory stays bounded."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import builders
import numpy as np
import pytest
import zarr
from zarr.codecs import Crc32cCodec

from pipeline import artefact
from pipeline.bold.reader import DATA, Shard
from pipeline.bold.shards import verify_all, verify_shard, voxel_geometry, write_shard
from pipeline.bold.spool import spool
from pipeline.bold.template import Template
from pipeline.errors import InputError

CONTRACT = {"dataset": "cohort", "subject": "01", "session": "1", "run": "1", "tr_s": 1.5, "denoising": "none"}
PARCELS = {"kind": "parcels", "atlas": "made-up"}


@pytest.fixture(scope="module")
def run_TV(template: Template) -> np.ndarray:
    """A run of 21 frames, which is no whole number of chunks, with one constant voxel and one outlier."""
    bold_TV = np.random.default_rng(0).normal(1000, 20, (21, template.voxels)).astype(np.float32)
    bold_TV[:, 3] = 500
    bold_TV[7, 5] = 4000
    return bold_TV


@pytest.fixture
def shard(run_TV: np.ndarray, template: Template, tmp_path: Path) -> Path:
    """That run as a shard."""
    write_shard(tmp_path / "sub-01/ses-1_run-1", run_TV, CONTRACT, geometry=voxel_geometry(template))
    return tmp_path / "sub-01/ses-1_run-1"


@pytest.mark.parametrize(("dtype", "rounding"), [("float16", 2**-11), ("int8", 1 / 48)])
def test_raw_units_come_back_from_z_mean_and_sd(run_TV, template, tmp_path, dtype, rounding) -> None:
    write_shard(tmp_path / "shard", run_TV, CONTRACT, geometry=voxel_geometry(template), dtype=dtype)
    stored = Shard.open(tmp_path / "shard")
    exact = run_TV.astype(float)
    largest_V = np.abs(exact - exact.mean(0)).max(0) / np.maximum(exact.std(0), 1e-9)
    error_TV = np.abs(stored.read() * stored.std + stored.mean - run_TV)
    # Half a step of int8 at least, relative to the largest z of float16; the outlier of 4.4 SD is not clipped.
    assert np.all(error_TV <= stored.std * rounding * np.maximum(1, largest_V) + 1e-3)
    assert (stored.frames, stored.tr_s, stored.dtype) == (21, 1.5, dtype)
    assert not stored.read()[:, 3].any()


def test_int8_steps_are_as_fine_as_an_outlier_allows(tmp_path: Path) -> None:
    bold_TV = np.random.default_rng(0).normal(1000, 20, (600, 3)).astype(np.float32)
    bold_TV[300, 1] = 1600  # 20 SD
    write_shard(tmp_path / "shard", bold_TV, CONTRACT, geometry=PARCELS, dtype="int8")
    stored = Shard.open(tmp_path / "shard")
    exact = (bold_TV - bold_TV.mean(0, dtype=float)) / bold_TV.std(0, dtype=float)
    assert np.allclose(stored.step, np.maximum(1 / 24, np.abs(exact).max(0) / 127), rtol=1e-5)
    assert np.all(np.abs(stored.read() - exact) <= stored.step / 2 + 1e-5)
    assert stored.read_stored().min() > -128, "the marker of a lost chunk is never written as data"


@pytest.mark.parametrize("dtype", ["float16", "int8"])
@pytest.mark.parametrize(("frames", "chunk"), [(21, 8), (24, 8), (5, 8), (40, 4), (3, 1)])
def test_the_file_is_the_one_that_zarr_would_have_written(tmp_path, dtype, frames, chunk) -> None:
    bold_TV = np.random.default_rng(0).normal(1000, 20, (frames, 37)).astype(np.float32)
    write_shard(tmp_path / "ours", bold_TV, CONTRACT, geometry=PARCELS, frames_per_chunk=chunk, dtype=dtype)
    whole = -(-frames // chunk) * chunk
    reference = zarr.open_group(tmp_path / "zarrs", mode="w").create_array(
        "bold",
        shape=bold_TV.shape,
        dtype=dtype,
        chunks=(chunk, 37),
        shards=(whole, 37),
        compressors=[Crc32cCodec()],
        filters=None,
        fill_value=-128 if dtype == "int8" else np.nan,
    )
    reference[...] = Shard.open(tmp_path / "ours").read_stored()
    ours = zarr.open_array(tmp_path / "ours/shard.zarr/bold", mode="r")
    assert np.array_equal(ours[...], reference[...])
    assert (tmp_path / "ours" / DATA).read_bytes() == (tmp_path / "zarrs/bold/c/0/0").read_bytes()


def test_contract_says_where_and_what_the_voxels_are(shard: Path, template: Template, run_TV: np.ndarray) -> None:
    contract = Shard.open(shard, {"template": template.key, "normalisation": "voxel-z"}).contract
    assert contract | CONTRACT == contract
    assert contract["affine"] == template.affine.tolist()
    assert (contract["space"], contract["orientation"], contract["frames"]) == (builders.SPACE, "RAS", 21)
    assert (contract["kind"], contract["dtype"], contract["minimum"]) == ("voxels", "float16", run_TV.min())
    assert set(contract["software"]) == {"pipeline", "python", "nibabel", "numpy", "zarr"}


def test_the_same_values_have_the_same_content_under_any_name(run_TV, template, tmp_path) -> None:
    geometry = voxel_geometry(template)
    write_shard(tmp_path / "one", run_TV, CONTRACT, geometry=geometry)
    write_shard(tmp_path / "two", run_TV, {**CONTRACT, "subject": "02"}, geometry=geometry, dtype="int8")
    write_shard(tmp_path / "other", run_TV + 1, CONTRACT, geometry=geometry)
    content = [Shard.open(tmp_path / name).contract["content_sha256"] for name in ("one", "two", "other")]
    assert content[0] == content[1] != content[2]


def test_a_spooled_run_gives_the_bytes_of_the_array(run_TV, template, tmp_path) -> None:
    geometry = voxel_geometry(template)
    at_once = write_shard(tmp_path / "at-once", run_TV, CONTRACT, geometry=geometry)
    with spool((run_TV[start : start + 5] for start in range(0, 21, 5)), template.voxels) as kept:
        streamed = write_shard(tmp_path / "streamed", kept, CONTRACT, geometry=geometry)
    assert (tmp_path / "at-once" / DATA).read_bytes() == (tmp_path / "streamed" / DATA).read_bytes()
    assert streamed["tsnr"] == pytest.approx(at_once["tsnr"], rel=1e-6)


def test_memory_does_not_grow_with_the_number_of_frames(tmp_path: Path) -> None:
    def blocks(frames: int) -> Iterator[np.ndarray]:
        rng = np.random.default_rng(0)
        for _ in range(frames // 8):
            yield rng.normal(1000, 20, (8, 5000)).astype(np.float32)

    def peak(frames: int) -> int:
        tracemalloc.start()
        with spool(blocks(frames), 5000) as kept:
            write_shard(tmp_path / str(frames), kept, CONTRACT, geometry=PARCELS)
        held = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return held

    peak(16)  # imports
    assert peak(1024) < peak(64) + 8 * 5000 * 4, "sixteen times the frames for less than one block more"


def test_shard_that_nobody_touched_verifies(shard: Path) -> None:
    on_disk = [path for path in shard.rglob("*") if path.is_file() and path.name != "manifest.json"]
    assert verify_shard(shard) == len(on_disk) > 3, "every file but the manifest itself is checked"


def test_manifest_is_plain_json_with_a_checksum_a_file(shard: Path) -> None:
    manifest = json.loads((shard / "manifest.json").read_text())
    on_disk = {path.relative_to(shard).as_posix() for path in shard.rglob("*") if path.is_file()}
    assert set(manifest["files"]) == on_disk - {"manifest.json"}
    for name, listed in manifest["files"].items():
        assert listed == {"size": (shard / name).stat().st_size, "sha256": artefact.sha256_file(shard / name)}


def test_what_extras_write_is_part_of_the_shard(run_TV, template, tmp_path) -> None:
    def extras(building: Path) -> None:
        (building / "quality.json").write_text("{}")

    write_shard(tmp_path / "shard", run_TV, CONTRACT, geometry=voxel_geometry(template), extras=extras)
    assert "quality.json" in json.loads((tmp_path / "shard/manifest.json").read_text())["files"]
    (tmp_path / "shard/quality.json").write_text("[]")
    with pytest.raises(InputError, match=r"quality\.json: found other bytes"):
        verify_shard(tmp_path / "shard")


def test_failure_while_writing_leaves_nothing(run_TV: np.ndarray, template: Template, tmp_path: Path) -> None:
    def extras(_: Path) -> None:
        raise RuntimeError("no picture today")

    geometry = voxel_geometry(template)
    with pytest.raises(RuntimeError, match="no picture"):
        write_shard(tmp_path / "sub-02/ses-1_run-1", run_TV, CONTRACT, geometry=geometry, extras=extras)
    with pytest.raises(TypeError):
        write_shard(tmp_path / "sub-02/ses-1_run-1", run_TV, {**CONTRACT, "odd": {1, 2}}, geometry=geometry)
    assert list((tmp_path / "sub-02").iterdir()) == []


@pytest.fixture
def entries(tmp_path: Path) -> list[dict[str, object]]:
    """Five small shards."""
    rng = np.random.default_rng(0)
    return [
        write_shard(
            tmp_path / f"sub-{number}", rng.normal(9, 1, (12, 50)).astype(np.float32), CONTRACT, geometry=PARCELS
        )
        for number in range(5)
    ]


@pytest.mark.parametrize("workers", [1, 3])
def test_all_shards_are_verified_and_every_damage_is_counted(entries, workers, capsys) -> None:
    files = sum(verify_shard(str(entry["path"])) for entry in entries)
    assert verify_all(entries, workers, progress=False) == (5, files)
    assert capsys.readouterr().err == ""
    for number in (1, 3):
        data = Path(str(entries[number]["path"])) / DATA
        data.write_bytes(data.read_bytes()[:-1] + b"\0")
    with pytest.raises(InputError, match=r"sub-1.*other bytes.* 1 more of 5 shards are damaged"):
        verify_all(entries, workers, progress=True)
    assert "5/5" in capsys.readouterr().err


def test_a_shard_made_again_since_it_was_listed_is_not_the_listed_one(entries, tmp_path) -> None:
    write_shard(tmp_path / "sub-2", np.ones((12, 50), np.float32), CONTRACT, geometry=PARCELS)
    assert verify_shard(tmp_path / "sub-2")
    with pytest.raises(InputError, match="another manifest"):
        verify_all(entries)
