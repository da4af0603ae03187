"""Tiny trees in the form of each layout that data come in, for the tests of the doors.

Every run is made by `small_run`; what a door must find beside it is written with known content.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import builders
import nibabel as nib
import numpy as np

SHAPE = (4, 5, 3)


def small_run(frames: int = 4, seed: int = 0, shape: tuple[int, int, int] = SHAPE) -> np.ndarray:
    """A run of a few voxels, int16."""
    return np.random.default_rng(seed).integers(100, 1000, (*shape, frames)).astype(np.int16)


def write_run(path: Path, tr_s: float | None = 2.0, frames: int = 4, voxel_mm: float = 8.0) -> Path:
    """A small run with voxels of `voxel_mm` and a TR in its header (None: none)."""
    affine = np.diag([voxel_mm, voxel_mm, voxel_mm, 1])
    return builders.save(path, small_run(frames), affine, tr_s)


def write_json(path: Path, content: Mapping[str, Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return path


def write_table(path: Path, columns: Mapping[str, Sequence[object]]) -> Path:
    """A table of people; commas for .csv, tabs elsewhere."""
    separator = "," if path.suffix == ".csv" else "\t"
    rows = [[*columns], *([str(value) for value in row] for row in zip(*columns.values(), strict=True))]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(separator.join(row) + "\n" for row in rows))
    return path


def write_bids(folder: Path, sessions: Sequence[str] = ("",), runs: Sequence[str] = ("1",), task: str = "rest") -> Path:
    """Raw BIDS of sub-01: BOLD with the TR in one sidecar at the top, a T1w in the first session."""
    for session in sessions:
        below = f"sub-01/ses-{session}" if session else "sub-01"
        name = f"sub-01_ses-{session}" if session else "sub-01"
        for run in runs:
            write_run(folder / below / f"func/{name}_task-{task}_run-{run}_bold.nii.gz", tr_s=None)
    first = f"sub-01/ses-{sessions[0]}/anat" if sessions[0] else "sub-01/anat"
    name = f"sub-01_ses-{sessions[0]}" if sessions[0] else "sub-01"
    builders.save(folder / first / f"{name}_T1w.nii.gz", small_run()[..., 0])
    write_json(folder / f"task-{task}_bold.json", {"RepetitionTime": 2.0})
    write_table(folder / "participants.tsv", {"participant_id": ["sub-01"]})
    return folder


def write_hcp(folder: Path, subject: str = "100307", cleaned: bool = True, names: Sequence[str] = ()) -> Path:
    """Runs REST1_LR, ... of a person, with mask and movement in degrees."""
    for name in names or ("REST1_LR", "REST1_RL", "REST2_LR", "REST2_RL"):
        results = folder / subject / f"MNINonLinear/Results/rfMRI_{name}"
        write_run(results / f"rfMRI_{name}{'_hp2000_clean' if cleaned else ''}.nii.gz", tr_s=0.72)
        builders.save(results / "brainmask_fs.2.nii.gz", np.ones(SHAPE, np.uint8))
        np.savetxt(results / "Movement_Regressors.txt", np.zeros((4, 12)))
    write_table(folder / "participants.csv", {"Subject": [subject], "Gender": ["F"], "Age": ["26-30"]})
    return folder


def write_ukb(folder: Path, subject: str = "1000011", instance: str = "2") -> Path:
    """A person's instance of field 20227; the TR is in rfMRI.json."""
    run = folder / f"{subject}_20227_{instance}_0/fMRI/rfMRI.ica"
    write_run(run / "filtered_func_data_clean.nii.gz", tr_s=None)
    write_json(run.with_name("rfMRI.json"), {"RepetitionTime": 0.735})
    builders.save(run / "mask.nii.gz", np.ones(SHAPE, np.uint8))
    builders.save(run / "reg/example_func2standard_warp.nii.gz", np.zeros((2, 2, 2, 3), np.float32))
    (run / "mc").mkdir()
    np.savetxt(run / "mc/prefiltered_func_data_mcf.par", np.zeros((4, 6)))
    write_table(folder / "participants.tsv", {"eid": [subject]})
    return run


def write_abide(folder: Path, strategy: str = "nofilt_noglobal", tr_s: float | None = 2.0) -> Path:
    """Two people of two sites, one with an underscore in the site's name, and the phenotypes."""
    for name in ("Pitt_0050003", "UCLA_1_0051201"):
        write_run(folder / f"Outputs/cpac/{strategy}/func_preproc/{name}_func_preproc.nii.gz", tr_s)
        builders.save(folder / f"Outputs/cpac/{strategy}/func_mask/{name}_func_mask.nii.gz", np.ones(SHAPE, np.uint8))
    columns = {"SUB_ID": [50003, 51201], "DX_GROUP": [1, 2], "SITE_ID": ["PITT", "UCLA_1"], "AGE_AT_SCAN": [24.5, 9]}
    return write_table(folder / "phenotypes.csv", {**columns, "FIQ": [-9999, 110], "TR": [2.0, 2.0]})


def write_adhd200(folder: Path, prefix: str = "snwmrda") -> Path:
    """One person of the Athena pipeline with two runs, and the maps that lie beside them."""
    person = folder / "KKI/0010001"
    for run in "12":
        write_run(person / f"{prefix}0010001_session_1_rest_{run}.nii.gz", tr_s=2.5)
    for other in ("fc_snwmrda", "falff_", "wmean_mrda"):
        write_run(person / f"{other}0010001_session_1_rest_1.nii.gz")
    return write_table(folder / "participants.tsv", {"ScanDir ID": ["10001"], "DX": ["0"]})


def write_development(folder: Path, people: Sequence[str] = ("pixar001", "pixar123")) -> Path:
    """What nilearn's fetch_development_fmri leaves in its folder; the header's TR is not that of the run."""
    for subject in people:
        start = folder / f"sub-{subject}_task-pixar"
        write_run(Path(f"{start}_space-MNI152NLin2009cAsym_desc-preproc_bold.nii.gz"), tr_s=3.0)
        lines = ["framewise_displacement\tcsf", "nan\t0.1", *["0.25\t0.1"] * 3]
        for kind in ("confounds", "reducedConfounds"):
            Path(f"{start}_desc-{kind}_regressors.tsv").write_text("\n".join(lines) + "\n")
    ages = {"Age": [4.77, 27.0][: len(people)], "Child_Adult": ["child", "adult"][: len(people)]}
    write_table(folder / "participants.tsv", {"participant_id": [f"sub-{name}" for name in people], **ages})
    return folder


def quantised(frames: int = 6, parcels: int = 3, seed: int = 0) -> dict[str, np.ndarray]:
    """q, mean and step of a parcel series whose second parcel is dead."""
    rng = np.random.default_rng(seed)
    q_TR = rng.integers(-3000, 3000, (frames, parcels)).astype(np.int16)
    q_TR[:, 1] = 0
    return {"q": q_TR, "mean": rng.normal(size=parcels).astype(np.float32), "step": np.full(parcels, 0.01, np.float32)}


def write_archives(folder: Path) -> Path:
    """Two sites with quantised series of three people, and a table that states each TR."""
    folder.mkdir(parents=True, exist_ok=True)
    people = {"PITT": ["Pitt_0050003", "Pitt_0050004"], "UCLA_1": ["UCLA_1_0051201"]}
    for site, names in people.items():
        members = {f"{name}/{part}": value for name in names for part, value in quantised().items()}
        np.savez_compressed(folder / f"{site}.npz", **members)
    write_table(folder / "participants.tsv", {"SUB_ID": [50003, 50004, 51201], "TR": [1.5, 1.5, 3.0]})
    return folder


def write_cifti(path: Path, series_TR: np.ndarray, tr_s: float = 0.72, frames_first: bool = True) -> Path:
    """A CIFTI parcel series; its axes in either order."""
    frames, parcels = series_TR.shape
    time = nib.cifti2.SeriesAxis(start=0, step=tr_s, size=frames, unit="SECOND")
    named = [f"p{number}" for number in range(parcels)]
    voxels = [np.array([[number, 0, 0]]) for number in range(parcels)]
    where = nib.cifti2.ParcelsAxis(
        named, voxels, [{} for _ in named], affine=np.eye(4), volume_shape=(parcels, 1, 1), nvertices={}
    )
    axes, data = ((time, where), series_TR) if frames_first else ((where, time), series_TR.T)
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Cifti2Image(data.astype(np.float32), axes), path)
    return path
