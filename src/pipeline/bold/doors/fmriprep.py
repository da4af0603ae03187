"""fMRIPrep derivatives: BOLD in a standard space, its brain mask, its table of confounds.

sub-X[/ses-Y]/func/*_task-T[_run-N]_space-S[_res-R]_desc-preproc_bold.nii.gz
                   *_space-S[_res-R]_desc-brain_mask.nii.gz
                   *_desc-confounds_timeseries.tsv     (before fMRIPrep 20.2: *_desc-confounds_regressors.tsv)
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import nibabel as nib

from pipeline.bold.doors.bids import bids_sidecar, runs_of_task
from pipeline.bold.doors.door import Door, Place, Sidecar, existing
from pipeline.bold.doors.names import stem
from pipeline.bold.doors.patterns import File
from pipeline.bold.inputs import open_image
from pipeline.bold.quality import Quarantined

CONFOUNDS = ("_desc-confounds_timeseries.tsv", "_desc-confounds_regressors.tsv")


def _space(place: Place) -> str:
    return place.settings.space or place.template.space


def _choose(place: Place, files: Sequence[File]) -> list[File]:
    """Runs in the wanted space; of one run at several resolutions the file nearest to the template's.

    That is the coarsest of those at least as fine as the template, so that the least is thrown away by resampling
    twice; where all are coarser, the finest.
    """
    runs = [file for file in runs_of_task(place, files, space=_space(place)) if "_echo-" not in file.path.name]
    runs.sort(key=_without_resolution)
    return [_nearest([*same], place.template.resolution_mm) for _, same in groupby(runs, _without_resolution)]


def _without_resolution(file: File) -> str:
    return re.sub(r"_res-[^_]+", "", str(file.path))


def _nearest(same: Sequence[File], wanted_mm: float) -> File:
    if len(same) == 1:
        return same[0]
    edges_mm = {file: _voxel_mm(file.path) for file in same}
    fine = {file: edge for file, edge in edges_mm.items() if edge <= wanted_mm * 1.01}
    return max(fine, key=lambda file: fine[file]) if fine else min(edges_mm, key=lambda file: edges_mm[file])


def _voxel_mm(path: Path) -> float:
    """Longest edge of a voxel; infinite where the file cannot say, so that any other is preferred."""
    try:
        return float(max(nib.affines.voxel_sizes(open_image(path).affine)))
    except Quarantined:
        return math.inf


def _companions(place: Place, file: File, _sidecar: Sidecar) -> dict[str, Any]:
    mask = file.path.with_name(file.path.name.replace("_desc-preproc_bold", "_desc-brain_mask"))
    start = re.sub(r"(_space-[^_]+)?(_res-[^_]+)?_desc-preproc_bold$", "", stem(file.path))
    tables = [existing(file.path.with_name(start + ending)) for ending in CONFOUNDS]
    return {
        "space": _space(place),
        "mask": existing(mask) if mask != file.path else None,
        "motion": next((table for table in tables if table), None),
        "motion_form": "fmriprep",
    }


def _named(place: Place) -> str:
    return f"func/*_task-{place.settings.task}*_space-{_space(place)}*_desc-preproc_bold.nii.gz"


DOOR = Door(
    patterns=(
        "sub-{subject}/func/*_desc-preproc_bold.nii*",
        "sub-{subject}/ses-*/func/*_desc-preproc_bold.nii*",
    ),
    companions=_companions,
    choose=_choose,
    sidecar=bids_sidecar,
    named=_named,
)
