"""Shards: what is written is read, a contract that differs is named, no damage passes unnoticed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import builders
import nibabel as nib
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline import artefact
from pipeline.bold.ingest import collect_batches, shard_batch
from pipeline.bold.normalise import to_template
from pipeline.bold.people import write_people
from pipeline.bold.shards import Shard, verify_shard, write_shard
from pipeline.bold.template import Template
from pipeline.config import Study
from pipeline.errors import InputError

CONTRACT = {"dataset": "cohort", "subject": "01", "session": "1", "run": "1", "tr_s": 1.5, "denoising": "none"}


@pytest.fixture(scope="module")
def run_TV(template: Template) -> np.ndarray:
    """A run of 21 frames, which is no whole number of chunks, with one constant voxel."""
    bold_TV = np.random.default_rng(0).normal(1000, 20, (21, template.voxels)).astype(np.float32)
    bold_TV[:, 3] = 500
    return bold_TV


@pytest.fixture
def shard(run_TV: np.ndarray, template: Template, tmp_path: Path) -> Path:
    """That run as a shard."""
    write_shard(tmp_path / "sub-01/ses-1_run-1", run_TV, template, CONTRACT)
    return tmp_path / "sub-01/ses-1_run-1"


def test_raw_units_come_back_from_z_mean_and_sd(shard: Path, run_TV: np.ndarray) -> None:
    stored = Shard.open(shard)
    restored_TV = stored.read() * stored.std + stored.mean
    assert np.abs(restored_TV - run_TV).max() < 20 * 4 * 2**-10  # half precision of four SD
    assert (stored.frames, stored.tr_s) == (21, 1.5)


@given(st.integers(0, 21), st.integers(0, 21))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=20, deadline=None)
def test_any_part_of_a_run_is_that_part_of_the_whole(shard: Path, start: int, stop: int) -> None:
    stored = Shard.open(shard)
    assert np.array_equal(stored.read(start, stop), stored.read()[start:stop])


def test_contract_says_where_and_what_the_voxels_are(shard: Path, template: Template) -> None:
    contract = Shard.open(shard, {"template": template.key, "normalisation": "voxel-z"}).contract
    assert contract | CONTRACT == contract
    assert contract["affine"] == template.affine.tolist()
    assert (contract["space"], contract["orientation"], contract["frames"]) == (builders.SPACE, "RAS", 21)


@pytest.mark.parametrize(("field", "value"), [("template", "another"), ("tr_s", 0.72), ("atlas", "schaefer")])
def test_contract_that_differs_is_refused_by_field(shard: Path, field: str, value: object) -> None:
    with pytest.raises(InputError, match=rf"contract\.{field}: found .*; expected {value!r}"):
        Shard.open(shard, {field: value})


def _data(shard: Path) -> Path:
    return shard / "shard.zarr/bold/c/0/0"


def _flip(path: Path, offset: int) -> None:
    content = bytearray(path.read_bytes())
    content[offset] ^= 0x10
    path.write_bytes(content)


def test_missing_and_truncated_files_are_seen_on_opening(shard: Path) -> None:
    whole = _data(shard).read_bytes()
    _data(shard).write_bytes(whole[:-8])
    with pytest.raises(InputError, match=f"found {len(whole) - 8} bytes; expected {len(whole)} bytes"):
        Shard.open(shard)
    _data(shard).unlink()
    with pytest.raises(InputError, match="no such file"):
        Shard.open(shard)


@given(st.floats(0, 1, exclude_max=True))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=25, deadline=None)
def test_one_flipped_bit_anywhere_is_seen_on_reading(shard: Path, where: float) -> None:
    # Also in the index at the end of the file, where zarr alone would take a chunk for lost and give its fill value.
    offset = int(where * _data(shard).stat().st_size)
    _flip(_data(shard), offset)
    try:
        with pytest.raises(InputError, match=r"damaged data|lost chunk"):
            Shard.open(shard).read()
        with pytest.raises(InputError, match="other bytes"):
            verify_shard(shard)
    finally:
        _flip(_data(shard), offset)


def test_chunk_deleted_after_opening_is_not_read_as_values(shard: Path) -> None:
    stored = Shard.open(shard)
    _data(shard).unlink()
    with pytest.raises(InputError, match="lost chunk"):
        stored.read()


def test_shard_that_nobody_touched_verifies(shard: Path) -> None:
    on_disk = [path for path in shard.rglob("*") if path.is_file() and path.name != "manifest.json"]
    assert verify_shard(shard) == len(on_disk) > 3, "every file but the manifest itself is checked"


def test_failure_while_writing_leaves_nothing(run_TV: np.ndarray, template: Template, tmp_path: Path) -> None:
    with pytest.raises(TypeError):
        write_shard(tmp_path / "sub-02/ses-1_run-1", run_TV, template, {**CONTRACT, "odd": {1, 2}})
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


@pytest.fixture
def batch(study: Study, template_folder: Path, tmp_path: Path) -> Path:
    """The list of the shards of the whole cohort."""
    write_people(study, "cohort", tmp_path / "people")
    output = tmp_path / "shards/batch-0000.json"
    shard_batch(study, "cohort", 0, tmp_path / "people", template_folder, output)
    return output


def test_batch_lists_every_run_with_its_measures(batch: Path, cohort: Path) -> None:
    listing = artefact.read_json(batch)
    assert [(entry["subject"], entry["session"]) for entry in listing["runs"]] == [
        (subject, session) for subject in ("01", "02", "03") for session in ("1", "2")
    ]
    entry = listing["runs"][-1]
    verify_shard(entry["path"])
    assert entry["mean_fd_mm"] == pytest.approx(0.03 * 23 / 24)  # the first frame has none
    assert entry["overlap"] == 1.0
    assert entry["tsnr"] == pytest.approx(50, rel=0.1)  # 2 % of noise
    assert entry["content"] == artefact.sha256_file(next(cohort.glob("sub-03/ses-2/func/*bold.nii.gz")))
    assert entry["manifest"] == artefact.sha256_file(Path(entry["path"]) / "manifest.json")


def test_shard_holds_the_run_that_was_simulated(batch: Path, template: Template) -> None:
    entry = artefact.read_json(batch)["runs"][3]
    expected_TV, _ = to_template(nib.Nifti1Image(builders.bold(24, 22), builders.AFFINE), template)
    stored = Shard.open(entry["path"])
    assert np.allclose(stored.read() * stored.std + stored.mean, expected_TV, atol=0.1)


def test_two_workers_write_what_one_writes(batch: Path, study: Study, template_folder: Path, tmp_path: Path) -> None:
    shard_batch(study, "cohort", 0, tmp_path / "people", template_folder, tmp_path / "two/batch-0000.json", workers=2)
    alone, together = artefact.read_json(batch)["runs"], artefact.read_json(tmp_path / "two/batch-0000.json")["runs"]
    assert [entry["manifest"] for entry in alone] == [entry["manifest"] for entry in together]


def test_dropped_frames_are_gone_and_recorded(study: Study, template_folder: Path, tmp_path: Path) -> None:
    shorter = study.model_copy(update={"shards": study.shards.model_copy(update={"drop_frames": 3})})
    write_people(shorter, "cohort", tmp_path / "people")
    output = tmp_path / "batch-0000.json"
    shard_batch(shorter, "cohort", 0, tmp_path / "people", template_folder, output)
    contract = Shard.open(artefact.read_json(output)["runs"][0]["path"]).contract
    assert (contract["frames"], contract["dropped"]) == (21, 3)


def test_collected_batches_hold_all_runs_and_refuse_one_twice(batch: Path, tmp_path: Path) -> None:
    collect_batches([batch], tmp_path / "manifest.json")
    assert artefact.read_json(tmp_path / "manifest.json")["runs"] == artefact.read_json(batch)["runs"]
    shutil.copy(batch, tmp_path / "again.json")
    with pytest.raises(InputError, match="in two batches"):
        collect_batches([batch, tmp_path / "again.json"], tmp_path / "manifest.json")


def test_manifest_is_plain_json_with_a_checksum_a_file(shard: Path) -> None:
    manifest = json.loads((shard / "manifest.json").read_text())
    on_disk = {path.relative_to(shard).as_posix() for path in shard.rglob("*") if path.is_file()}
    assert set(manifest["files"]) == on_disk - {"manifest.json"}
