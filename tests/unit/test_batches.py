"""The batch job: every run listed with its measures, bad ones apart, the same with any number of workers."""

from __future__ import annotations

import shutil
from pathlib import Path

import builders
import numpy as np
import pytest

from pipeline import artefact
from pipeline.bold.batches import collect_batches, shard_batch
from pipeline.bold.normalise import Gridding
from pipeline.bold.people import write_people
from pipeline.bold.reader import Shard
from pipeline.bold.shards import verify_shard
from pipeline.bold.template import Template
from pipeline.config import Study
from pipeline.errors import InputError


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
    source = next(cohort.glob("sub-03/ses-2/func/*bold.nii.gz"))
    assert Shard.open(entry["path"]).contract["source_sha256"] == artefact.sha256_file(source)
    assert entry["manifest"] == artefact.sha256_file(Path(entry["path"]) / "manifest.json")


def test_shard_holds_the_run_that_was_simulated(batch: Path, template: Template) -> None:
    entry = artefact.read_json(batch)["runs"][3]
    gridding = Gridding.of(builders.SHAPE, builders.AFFINE, template)
    expected_TV = gridding(np.asfortranarray(builders.bold(24, 22)), lambda stored: stored)
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
