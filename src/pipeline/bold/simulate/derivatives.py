"""How a simulated cohort lies on disk: the files of fMRIPrep's derivatives, and the truth beside them.

Axes: T frames, V voxels of the head.
"""

from __future__ import annotations

import gzip
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from pipeline import __version__
from pipeline.artefact import write_json
from pipeline.bold.simulate.anatomy import Atlas

SPACE = "MNI152NLin2009aSym"
STANDARD_SPACE_CODE = 4  # NIfTI: normalised to MNI 152

PARTICIPANTS = {
    "family_id": {"Description": "People of one family are siblings"},
    "sex": {"Description": "Sex", "Levels": {"M": "male", "F": "female"}},
    "age": {"Description": "Age", "Units": "years"},
    "diagnosis": {"Description": "Group", "Levels": {"patient": "patient", "control": "control"}},
    "site": {"Description": "Scanner site"},
}
TRUTH = {
    "participant_id": "the person, the same in every session",
    "sex": "changes amplitude and coupling of networks",
    "diagnosis": "changes amplitude and coupling of networks, less than sex does, and motion",
    "site": "changes image intensity and thermal noise",
    "hurst": "Hurst exponent of the fractional Gaussian noise in every network",
    "beta": "its low-frequency spectral exponent, 2 hurst - 1",
    "event_share": "share of haemodynamic events in the variance of each network's course",
    "frames": "frames of a run",
    "snr": "mean variance of the network signal over grey matter, over the variance of thermal noise",
    "share_fractional": "share of fractional Gaussian noise in the variance of a z-scored voxel",
    "share_events": "share of haemodynamic events in the same",
    "share_motion": "share of head motion in the same; white in time",
    "share_noise": "share of thermal noise in the same; white in time",
    "mean_fd_mm": "mean framewise displacement, mm",
}
CLOSED_FORM = {
    "spectrum": "share_fractional S_fgn(f; hurst) / (1 - frames^(2 hurst - 2)) + share_events S_hrf(f) / (1 - m)"
    " + (share_motion + share_noise) 2 TR / (1 - 1 / frames), variance per Hz, one-sided",
    "S_fgn": "exact spectrum of fractional Gaussian noise of unit variance, aliases summed (Paxson 1997)",
    "S_hrf": "squared transfer function of the double-gamma response, aliases summed, scaled to unit variance",
    "m": "variance of a run's mean of unit-variance events",
    "shares": "means over the voxels of the MNI152 brain mask, then over the person's runs; they add to one",
}


def write_run(
    tree: Path,
    subject: str,
    session: int,
    atlas: Atlas,
    bold_TV: np.ndarray,
    mask_V: np.ndarray,
    confounds: Mapping[str, np.ndarray],
    tr_s: float,
) -> None:
    """BOLD with its sidecar, brain mask and confounds of one run, under fMRIPrep's names."""
    folder = tree / f"sub-{subject}" / f"ses-{session}" / "func"
    folder.mkdir(parents=True)
    stem = f"sub-{subject}_ses-{session}_task-rest_run-1"
    grid = f"{stem}_space-{SPACE}_res-{atlas.resolution_mm:g}"
    write_nifti(folder / f"{grid}_desc-preproc_bold.nii.gz", atlas, bold_TV.astype(np.int16), tr_s)
    write_nifti(folder / f"{grid}_desc-brain_mask.nii.gz", atlas, mask_V.astype(np.uint8))
    sidecar = {"RepetitionTime": tr_s, "TaskName": "rest", "SkullStripped": False, "Simulated": True}
    write_json(folder / f"{grid}_desc-preproc_bold.json", sidecar)
    rows = (dict(zip(confounds, row, strict=True)) for row in zip(*confounds.values(), strict=True))
    write_tsv(folder / f"{stem}_desc-confounds_timeseries.tsv", rows)


def write_nifti(path: Path, atlas: Atlas, values: np.ndarray, tr_s: float | None = None) -> None:
    """Head voxels as an image on the atlas' grid: (V,) a volume, (T, V) a run sampled every `tr_s`."""
    # Filled frame by frame and turned, because NIfTI's fastest axis is x and its slowest is time.
    x, y, z = atlas.head_XYZ.shape
    volume = np.zeros((*values.shape[:-1], z, y, x), values.dtype)
    volume.T[atlas.head_XYZ] = values.T
    image = nib.Nifti1Image(volume.T, atlas.affine)
    image.header.set_xyzt_units("mm", "sec")
    image.header.set_zooms((*[atlas.resolution_mm] * 3, *([] if tr_s is None else [tr_s])))
    image.set_sform(atlas.affine, code=STANDARD_SPACE_CODE)
    image.set_qform(atlas.affine, code=STANDARD_SPACE_CODE)
    # No time stamp, so that the same cohort is the same bytes.
    path.write_bytes(gzip.compress(image.to_bytes(), compresslevel=1, mtime=0))


def write_tsv(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """A BIDS table: tabs, and `n/a` for NaN."""
    rows = list(rows)
    lines = [list(rows[0]), *([_cell(value) for value in row.values()] for row in rows)]
    path.write_text("".join("\t".join(line) + "\n" for line in lines), encoding="utf-8")


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return "n/a" if np.isnan(value) else f"{value:.6f}"
    return str(value)


def write_cohort(tree: Path, participants: list[dict[str, Any]]) -> None:
    """The files at the top of the tree that a real study has too."""
    generator = {"Name": "fmri-blueprint", "Version": __version__, "Description": "Simulated: nobody was scanned"}
    description = {"Name": "Simulated cohort", "BIDSVersion": "1.10.0", "DatasetType": "derivative"}
    write_json(tree / "dataset_description.json", description | {"GeneratedBy": [generator]})
    write_tsv(tree / "participants.tsv", participants)
    write_json(tree / "participants.json", PARTICIPANTS)


def write_truth(tree: Path, rows: list[dict[str, Any]], constants: dict[str, Any]) -> None:
    """What was planted: truth.tsv, one row a person, and truth.json, which explains it."""
    write_tsv(tree / "truth.tsv", rows)
    write_json(tree / "truth.json", {"columns": TRUTH, "closed_form": CLOSED_FORM, "constants": constants})
