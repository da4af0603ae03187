"""Real data that anybody may have: a run out of a public wheel, as a raw BIDS tree, and nilearn's film watchers."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

from pipeline import artefact
from pipeline.bold.inputs import LABEL
from pipeline.config import PackagedRun
from pipeline.errors import InputError


def cache_folder() -> Path:
    """Where downloads are kept between studies: `PIPELINE_CACHE`, or the user's cache folder."""
    from platformdirs import user_cache_path

    chosen = os.environ.get("PIPELINE_CACHE")
    return Path(chosen) if chosen else user_cache_path("fmri-blueprint")


def fetch_packaged(packaged: PackagedRun, folder: Path) -> None:
    """Write the run as a raw BIDS tree into `folder`, which appears complete or not at all.

    Raises
    ------
    InputError : the wheel cannot be downloaded, has another checksum, or lacks the run.
    """
    if not re.fullmatch(LABEL, packaged.subject):
        hint = "BIDS allows no other characters."
        raise InputError("packaged.subject", f"'{packaged.subject}'", "letters and digits", hint)
    wheel = _wheel(packaged)
    with artefact.atomic_folder(folder) as building:
        stem = f"sub-{packaged.subject}/func/sub-{packaged.subject}_task-{packaged.task}_bold"
        _extract(wheel, packaged.member, building / f"{stem}.nii.gz")
        artefact.write_json(building / f"{stem}.json", {"RepetitionTime": packaged.tr_s, "TaskName": packaged.task})
        artefact.write_text(building / "participants.tsv", f"participant_id\nsub-{packaged.subject}\n")
        description = {
            "Name": f"{Path(packaged.member).name} of {packaged.requirement}",
            "BIDSVersion": "1.9.0",
            "DatasetType": "raw",
            "SourceDatasets": [{"URL": f"pkg:pypi/{packaged.requirement.replace('==', '@')}"}],
        }
        artefact.write_json(building / "dataset_description.json", description)


def fetch_development(folder: Path, people: int) -> None:
    """Write nilearn's `development_fmri` of so many people into `folder`, which appears complete or not at all.

    nilearn chooses children and adults in their proportion and keeps its downloads in our cache, so that an interrupted
    one goes on; the folder holds links to them where the file system allows, and a table of just these people.

    Raises
    ------
    InputError : nilearn cannot download them.
    """
    from nilearn.datasets import fetch_development_fmri

    kept = cache_folder() / "nilearn"
    kept.mkdir(parents=True, exist_ok=True)
    try:
        fetched = fetch_development_fmri(n_subjects=people, data_dir=str(kept), verbose=0)
    except (OSError, ValueError) as error:
        hint = "Connect to the network and run again; what came is kept."
        raise InputError("development_fmri", f"a failed download ({error})", "data from osf.io", hint) from error
    with artefact.atomic_folder(folder) as building:
        for path in map(Path, [*fetched.func, *fetched.confounds]):
            _link_or_copy(path, building / path.name)
        table = fetched.phenotypic.to_csv(sep="\t", index=False, na_rep="n/a")
        artefact.write_text(building / "participants.tsv", table)


def _link_or_copy(source: Path, target: Path) -> None:
    try:
        target.hardlink_to(source)
    except OSError:  # another file system
        shutil.copyfile(source, target)


def _wheel(packaged: PackagedRun) -> Path:
    """The wheel in the cache, downloaded if it is not there yet; its checksum is verified every time."""
    kept = cache_folder() / packaged.sha256 / "package.whl"
    if not kept.is_file():
        with artefact.atomic_folder(kept.parent) as building:
            _download(packaged.requirement, building).rename(building / kept.name)
    found = artefact.sha256_file(kept)
    if found != packaged.sha256:
        kept.unlink()
        hint = "It is not the pinned file and was deleted. Run again; if it stays so, ask who changed the package."
        raise InputError(packaged.requirement, f"SHA-256 {found}", packaged.sha256, hint)
    return kept


def _download(requirement: str, folder: Path) -> Path:
    """One wheel through pip, which knows the user's index, proxy and certificates."""
    options = ["--no-deps", "--only-binary=:all:", "--disable-pip-version-check", "--quiet", "--no-input"]
    command = [sys.executable, "-m", "pip", "download", *options, "--dest", str(folder), requirement]
    outcome = subprocess.run(command, capture_output=True, text=True)
    wheels = list(folder.glob("*.whl"))
    if outcome.returncode or len(wheels) != 1:
        reason = (outcome.stderr.strip().splitlines() or ["no wheel came"])[-1]
        hint = "Connect to the network (or set PIP_INDEX_URL to a mirror) and run again; it is kept afterwards."
        raise InputError(requirement, f"a failed download ({reason})", "a wheel from the package index", hint)
    return wheels[0]


def _extract(wheel: Path, member: str, target: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        if member not in archive.namelist():
            hint = "Correct 'member' in the data-set file."
            raise InputError(wheel, f"no '{member}'", "the run inside the wheel", hint)
        with artefact.atomic_file(target) as path, archive.open(member) as source, path.open("wb") as sink:
            while piece := source.read(1 << 20):
                sink.write(piece)
