"""nilearn's `development_fmri`: 155 adults and children who watch a film, fMRIPrep derivatives in one flat folder.

    sub-pixarN_task-pixar_space-MNI152NLin2009cAsym_desc-preproc_bold.nii.gz
    sub-pixarN_task-pixar_desc-reducedConfounds_regressors.tsv      or desc-confounds, where nilearn did not reduce them
    participants.tsv

`pipeline fetch` writes such a folder; nilearn's own is nilearn_data/development_fmri/development_fmri. The headers are
not asked for the TR (2 s), because the files were resampled: the data-set file states it.
"""

from __future__ import annotations

from typing import Any

from pipeline.bold.doors.door import Door, Place, Sidecar, existing
from pipeline.bold.doors.patterns import File

SPACE = "MNI152NLin2009cAsym"
CONFOUNDS = ("reducedConfounds", "confounds")


def _companions(place: Place, file: File, _sidecar: Sidecar) -> dict[str, Any]:
    start = file.path.name.partition("_space-")[0]
    tables = [existing(file.path.with_name(f"{start}_desc-{kind}_regressors.tsv")) for kind in CONFOUNDS]
    return {
        "space": place.settings.space or SPACE,
        "motion": next((table for table in tables if table), None),
        "motion_form": "fmriprep",
    }


def _no_header_tr(_path: object) -> None:
    return None


DOOR = Door(
    patterns=(f"sub-{{subject}}_task-*_space-{SPACE}_desc-preproc_bold.nii.gz",),
    companions=_companions,
    header_tr_s=_no_header_tr,
)
