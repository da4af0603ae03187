"""Small data sets of known content for the tests: a brain, NIfTI runs, fMRIPrep and raw BIDS trees, a study."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from pipeline.config import Study

SPACE = "MNI152NLin2009aSym"
SHAPE = (14, 16, 12)  # 8 mm; the ellipsoid brain below is 10 x 12 x 8 voxels
RESOLUTION_MM = 8.0
AFFINE = np.array([[8.0, 0, 0, -52], [0, 8.0, 0, -60], [0, 0, 8.0, -44], [0, 0, 0, 1]])
RADII_MM = (40.0, 48.0, 32.0)


def brain(points_mm: np.ndarray, contrast: float = 1.0) -> np.ndarray:
    """Intensity of a made-up brain at points (..., 3) in mm: an ellipsoid, ventricles, and one spot on the right."""
    inside = np.sum((points_mm / RADII_MM) ** 2, axis=-1) < 1
    values = 0.7 + 0.06 * contrast * np.sin(points_mm / 11.0).sum(axis=-1)
    for centre, radius, change in [((9, 5, 4), 9, -0.4), ((-9, 5, 4), 9, -0.4), ((24, 12, 6), 8, 0.5)]:
        values += change * contrast * np.exp(-np.sum((points_mm - np.array(centre)) ** 2, axis=-1) / radius**2)
    return np.where(inside, values, 0.0)


def volume(shape: tuple[int, int, int], affine: np.ndarray, contrast: float = 1.0) -> np.ndarray:
    """The brain sampled on a grid, each voxel the mean of eight points."""
    corners = np.stack(np.meshgrid(*[[-0.25, 0.25]] * 3, indexing="ij"), axis=-1).reshape(-1, 3)
    voxels = np.moveaxis(np.indices(shape), 0, -1)
    parts = [brain(nib.affines.apply_affine(affine, voxels + corner), contrast) for corner in corners]
    return np.mean(parts, axis=0).astype(np.float32)


def save(path: Path, data: np.ndarray, affine: np.ndarray = AFFINE, tr_s: float | None = None) -> Path:
    """A NIfTI file with its affine in sform and qform, and the TR in the header where one is given."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nib.Nifti1Image(data, affine)
    image.set_sform(affine, code=1)
    image.set_qform(affine, code=1)
    if tr_s is not None:
        image.header.set_zooms((*image.header.get_zooms()[:3], tr_s))
        image.header.set_xyzt_units("mm", "sec")
    nib.save(image, path)
    return path


def bold(frames: int, seed: int, affine: np.ndarray = AFFINE, shape: tuple[int, int, int] = SHAPE) -> np.ndarray:
    """A run: the brain times 1,000 with 2 % of noise inside."""
    mean = volume(shape, affine)[..., None]
    noise = np.random.default_rng(seed).standard_normal((*shape, frames))
    return (1000 * mean * (1 + 0.02 * noise)).astype(np.float32)


def write_standard(folder: Path) -> dict[str, str]:
    """Mask (8 mm) and skull-stripped brain (4 mm) of the standard space; returns their paths for `template`."""
    fine = AFFINE @ np.diag([0.5, 0.5, 0.5, 1])
    fine[:3, 3] -= 2
    mask = save(folder / "mask.nii.gz", (volume(SHAPE, AFFINE) > 0).astype(np.uint8))
    standard = save(folder / "brain.nii.gz", volume((28, 32, 24), fine), fine)
    return {"mask": str(mask), "brain": str(standard)}


def write_participants(folder: Path, people: int, **columns: Callable[[int], str]) -> Path:
    """participants.tsv with sub-01, sub-02, ...; each further column is a function of the person's number."""
    folder.mkdir(parents=True, exist_ok=True)
    columns = {"sex": lambda n: "MF"[n % 2], "age": lambda n: str(20 + n), "family_id": lambda n: f"f{n}"} | columns
    rows = ["\t".join(["participant_id", *columns])]
    rows += ["\t".join([f"sub-{n:02d}", *(value(n) for value in columns.values())]) for n in range(1, people + 1)]
    path = folder / "participants.tsv"
    path.write_text("\n".join(rows) + "\n")
    return path


def write_fmriprep(folder: Path, people: int = 3, sessions: int = 2, frames: int = 24, tr_s: float = 1.5) -> Path:
    """An fMRIPrep tree on the 8 mm grid; run seeds are 10 x person + session, mean FD is 0.01 x person."""
    write_participants(folder, people)
    for person in range(1, people + 1):
        for session in range(1, sessions + 1):
            write_fmriprep_run(folder, f"{person:02d}", str(session), bold(frames, 10 * person + session), person, tr_s)
    return folder


def write_fmriprep_run(
    folder: Path, subject: str, session: str, data: np.ndarray, displacement: float = 1, tr_s: float = 1.5
) -> Path:
    """One run with mask, sidecar and confounds; returns the path of the BOLD file."""
    stem = folder / f"sub-{subject}/ses-{session}/func/sub-{subject}_ses-{session}_task-rest_run-1"
    path = save(Path(f"{stem}_space-{SPACE}_desc-preproc_bold.nii.gz"), data, tr_s=tr_s)
    mask = (np.asarray(data[..., 0]) > 0).astype(np.uint8)
    save(Path(f"{stem}_space-{SPACE}_desc-brain_mask.nii.gz"), mask)
    sidecar = Path(f"{stem}_space-{SPACE}_desc-preproc_bold.json")
    sidecar.write_text(json.dumps({"RepetitionTime": tr_s}))
    lines = ["n/a", *[str(0.01 * displacement)] * (data.shape[-1] - 1)]
    Path(f"{stem}_desc-confounds_timeseries.tsv").write_text("\n".join(["framewise_displacement", *lines]) + "\n")
    return path


def write_raw(folder: Path, data: np.ndarray, affine: np.ndarray, tr_s: float = 1.5) -> Path:
    """A raw BIDS tree with one run of sub-01; returns the path of the BOLD file."""
    write_participants(folder, 1)
    path = save(folder / "sub-01/func/sub-01_task-rest_bold.nii.gz", data, affine, tr_s)
    path.with_name("sub-01_task-rest_bold.json").write_text(json.dumps({"RepetitionTime": tr_s}))
    return path


def make_study(standard: Mapping[str, str], data: Path, dataset: Mapping[str, Any] | None = None, **over: Any) -> Study:
    """A small study of one data set, `cohort`, on the 8 mm grid; `dataset` changes its fields, `over` the study's."""
    cohort = {
        "door": "fmriprep",
        "path": str(data),
        "people": 3,
        "runs": 2,
        "roles": ["pretrain", "evaluate"],
        "evaluation_people": 1,
        "labels": {"sex": {"column": "sex", "positive": ["F"], "negative": ["M"]}},
        "confounds": ["age"],
    }
    model = {"model": "swift_v2", "label": "SwiFT v2", "sizes": {"s": {"width": 6, "depths": [1], "heads": [1]}}}
    study = {
        "name": "small",
        "template": {"space": SPACE, "resolution_mm": 8, "shape": [12, 12, 12], "patch": [4, 4, 4], **standard},
        "datasets": {"cohort": cohort | dict(dataset or {})},
        "shards": {"frames_per_chunk": 8, "min_frames": 20},
        "quality": {"pictures": "none"},  # a second a page
        "architectures": {"swift_v2": model},
        "grid": {
            "scaling": [{"subjects_frames": [[2, 20]], "draws": [0, 1]}],
            "learning_rate": {"size": "s", "subjects": 2, "frames": 20},
        },
    }
    return Study.model_validate(study | over)
