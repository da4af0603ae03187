"""Bad input: one message with what, where, expected and what to do; nothing half-written; a bad run costs that run."""

from __future__ import annotations

import gzip
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import builders
import nibabel as nib
import numpy as np
import pytest
import yaml

from pipeline import artefact
from pipeline.bold.batches import collect_batches, shard_batch
from pipeline.bold.people import write_people
from pipeline.config import Study
from pipeline.errors import InputError


@pytest.fixture
def tree(cohort: Path, tmp_path: Path) -> Path:
    """A copy of the cohort, to be spoilt."""
    shutil.copytree(cohort, tmp_path / "tree")
    return tmp_path / "tree"


@pytest.fixture
def ingest(
    standard: dict[str, str], template_folder: Path, tree: Path, tmp_path: Path
) -> Callable[..., dict[str, Any]]:
    """People and shards of the spoilt tree."""

    def run(**dataset: Any) -> dict[str, Any]:
        study = builders.make_study(standard, tree, dataset)
        write_people(study, "cohort", tmp_path / "out/people")
        people, output = tmp_path / "out/people", tmp_path / "out/shards/batch-0000.json"
        shard_batch(study, "cohort", 0, people, template_folder, output)
        return dict(artefact.read_json(output))

    return run


def _bold(tree: Path, subject: str = "02", session: str = "1") -> Path:
    return next(tree.glob(f"sub-{subject}/ses-{session}/func/*_bold.nii.gz"))


def _left_over(folder: Path) -> list[Path]:
    """Temporary files, and shards without a manifest."""
    shards = [path.parent for path in folder.rglob("shard.zarr") if not (path.parent / "manifest.json").is_file()]
    return [*folder.rglob(".writing-*"), *shards]


def _no_tr(tree: Path) -> None:
    path = _bold(tree)
    path.with_name(path.name.replace(".nii.gz", ".json")).unlink()
    builders.save(path, builders.bold(24, 0), tr_s=None)


def _no_affine(tree: Path) -> None:
    image = nib.load(_bold(tree))
    bare = nib.Nifti1Image(image.get_fdata(dtype=np.float32), None, image.header)
    bare.set_sform(None, code=0)
    bare.set_qform(None, code=0)
    nib.save(bare, _bold(tree))


def _three_dimensional(tree: Path) -> None:
    builders.save(_bold(tree), builders.bold(1, 0)[..., 0])


def _edit_participants(tree: Path, change: Callable[[str], str]) -> None:
    path = tree / "participants.tsv"
    path.write_text(change(path.read_text()))


SPOILT: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no folder": (shutil.rmtree, r"tree: found no such folder; expected the data of 'cohort'.*datasets\.cohort\.path"),
    "no participants": (lambda tree: (tree / "participants.tsv").unlink(), r"participants\.tsv: found no such file"),
    "no label": (
        lambda tree: _edit_participants(tree, lambda text: text.replace("sub-02\tM", "sub-02\t")),
        r"participant '02', column 'sex': found no label; expected one of M, F or n/a.*Write n/a",
    ),
    "unknown label": (
        lambda tree: _edit_participants(tree, lambda text: text.replace("sub-02\tM", "sub-02\tmale")),
        r"participant '02', column 'sex': found 'male'.*labels\.sex\.positive",
    ),
    "no label column": (
        lambda tree: _edit_participants(tree, lambda text: text.replace("\tsex\t", "\tgender\t")),
        r"participants\.tsv: found no column 'sex'",
    ),
    "too few people": (
        lambda tree: _edit_participants(tree, lambda text: text[: text.index("sub-03")]),
        r"found 2 people; expected at least the 3 declared",
    ),
    "a person twice": (
        lambda tree: _edit_participants(tree, lambda text: text.replace("sub-03", "sub-01")),
        r"participant '01' twice",
    ),
    "an odd id": (
        lambda tree: _edit_participants(tree, lambda text: text.replace("sub-03", "sub-../03")),
        r"participant_id '\.\./03'; expected letters and digits",
    ),
    "no run of the task": (
        lambda tree: [_bold(tree, person, session).unlink() for person in ("01", "02", "03") for session in "12"],
        r"sub-01: found no BOLD run; expected func/\*_task-rest",
    ),
    "no displacement": (
        lambda tree: [path.write_text("x\n" + "1\n" * 24) for path in tree.rglob("*timeseries.tsv")],
        r"timeseries\.tsv: found columns x; expected 'framewise_displacement'",
    ),
}


@pytest.mark.parametrize("fault", SPOILT)
def test_bad_data_set_is_refused_with_one_message(
    fault: str, tree: Path, ingest: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    spoil, says = SPOILT[fault]
    spoil(tree)
    with pytest.raises(InputError, match=says):
        ingest()
    assert not (tmp_path / "out/shards/batch-0000.json").exists()
    assert not _left_over(tmp_path / "out")


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-2000])


def _wrong_crc(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-8] ^= 1
    path.write_bytes(content)


def _not_finite(path: Path) -> None:
    data = builders.bold(24, 0)
    data[5, 5, 5, 7] = np.nan
    builders.save(path, data, tr_s=1.5)


def _elsewhere(path: Path) -> None:
    mask = path.with_name(path.name.replace("preproc_bold", "brain_mask"))
    image = nib.load(mask)
    builders.save(mask, np.roll(np.asarray(image.dataobj), 5, axis=1))


LOST: dict[str, tuple[Callable[[Path], Any], str]] = {
    "truncated": (_truncate, "damaged"),
    "wrong CRC": (_wrong_crc, "damaged"),
    "zero bytes": (lambda path: path.write_bytes(b""), "damaged"),
    "not NIfTI": (lambda path: path.write_bytes(gzip.compress(b"hello" * 100)), "damaged"),
    "not finite": (_not_finite, "not finite"),
    "too short": (
        lambda path: builders.write_fmriprep_run(path.parents[3], "02", "1", builders.bold(10, 0)),
        "10 frames",
    ),
    "elsewhere": (_elsewhere, "overlap"),
    "no TR": (lambda path: _no_tr(path.parents[3]), r"sub-02.*bold\.nii\.gz: found no TR.*RepetitionTime"),
    "no affine": (
        lambda path: _no_affine(path.parents[3]),
        r"sub-02.*bold\.nii\.gz: found no affine \(sform_code = qform_code = 0\)",
    ),
    "3D": (
        lambda path: _three_dimensional(path.parents[3]),
        r"sub-02.*bold\.nii\.gz: found 3D data of 14x16x12; expected a 4D BOLD run",
    ),
}


@pytest.mark.parametrize("fault", LOST)
def test_bad_run_is_quarantined_and_the_rest_goes_on(
    fault: str, tree: Path, ingest: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    spoil, says = LOST[fault]
    spoil(_bold(tree))
    listing = ingest()
    (lost,) = listing["quarantined"]
    assert (lost["subject"], lost["session"]) == ("02", "1")
    assert re.search(says, lost["reason"])
    assert len(listing["runs"]) == 5
    assert not (tmp_path / "out/shards/sub-02/ses-1_run-1").exists()
    assert not _left_over(tmp_path / "out")


def test_person_without_files_is_reported_as_lost(tree: Path, ingest: Callable[..., dict[str, Any]]) -> None:
    shutil.rmtree(tree / "sub-03")
    assert ingest()["quarantined"] == [{"subject": "03", "session": "", "run": "", "reason": "no run found"}]


def _spoil_all(tree: Path) -> None:
    for path in tree.glob("sub-*/ses-*/func/*_bold.nii.gz"):
        builders.save(path, builders.bold(1, 0)[..., 0])


@pytest.mark.parametrize("workers", [1, 2])
def test_batch_that_is_lost_whole_ends_with_the_first_fault(
    workers: int, standard: dict[str, str], template_folder: Path, tree: Path, tmp_path: Path
) -> None:
    _spoil_all(tree)
    study = builders.make_study(standard, tree)
    write_people(study, "cohort", tmp_path / "people")
    with pytest.raises(InputError, match=r"found 3D data.*\(5 more runs or people of this batch") as raised:
        shard_batch(study, "cohort", 0, tmp_path / "people", template_folder, tmp_path / "out/b.json", workers)
    assert raised.value.where.endswith("_bold.nii.gz")
    assert not _left_over(tmp_path)


def test_data_under_two_ids_are_quarantined_under_both(
    tree: Path, ingest: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    # Compressed anew: other bytes, the same data.
    path = _bold(tree, "03", "2")
    path.write_bytes(gzip.compress(gzip.decompress(_bold(tree, "01", "1").read_bytes()), compresslevel=1))
    ingest()
    collect_batches([tmp_path / "out/shards/batch-0000.json"], tmp_path / "out/shards/manifest.json")
    manifest = artefact.read_json(tmp_path / "out/shards/manifest.json")
    lost = {(entry["subject"], entry["session"]): entry["reason"] for entry in manifest["quarantined"]}
    assert lost == {
        ("01", "1"): "same data as sub-03 session 2 run 1",
        ("03", "2"): "same data as sub-01 session 1 run 1",
    }
    assert len(manifest["runs"]) == 4


def _command(study: Study, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """`pipeline` as a user types it, in an empty folder."""
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump(study if isinstance(study, dict) else study.model_dump(mode="json")))
    command = [sys.executable, "-m", "pipeline.cli", *arguments, "--config", str(path)]
    source = str(Path(__file__).resolve().parents[2] / "src")
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": source})


@pytest.mark.parametrize("fault", ["no folder", "no label"])
def test_command_ends_with_two_and_one_line(fault: str, standard: dict[str, str], tree: Path, tmp_path: Path) -> None:
    spoil, _ = SPOILT[fault]
    spoil(tree)
    study = builders.make_study(standard, tree)
    outcome = _command(study, tmp_path, "people", "--dataset", "cohort", "--output", "out/people/participants.tsv")
    assert outcome.returncode == 2
    assert "Traceback" not in outcome.stderr
    assert len(outcome.stderr.strip().splitlines()) == 1
    assert not list(tmp_path.glob("out/*.*"))


def test_unknown_key_ends_with_two_and_the_nearest_name(standard: dict[str, str], tree: Path, tmp_path: Path) -> None:
    study = builders.make_study(standard, tree).model_dump(mode="json")
    study["shards"]["min_frame"] = 10
    outcome = _command(study, tmp_path, "config", "check")
    assert outcome.returncode == 2
    assert "shards.min_frame" in outcome.stderr
    assert "Did you mean 'min_frames'?" in outcome.stderr
