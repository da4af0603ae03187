"""Human Connectome Project, minimally processed volumes in MNI space.

    X/MNINonLinear/Results/rfMRI_REST1_LR/rfMRI_REST1_LR_hp2000_clean.nii.gz     ICA-FIX, or rfMRI_REST1_LR.nii.gz
                                          brainmask_fs.2.nii.gz
                                          Movement_Regressors.txt

REST1 and REST2 are the sessions, LR and RL the runs. The data-set file's `denoising` says which file is meant: anything
but `none` the cleaned one. A run that has only the other one is refused, because a data set must not mix them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pipeline.bold.doors.door import Door, Place, Sidecar, existing
from pipeline.bold.doors.patterns import File
from pipeline.errors import InputError

SPACE = "MNI152NLin6Asym"
NAME = "rfMRI_REST{session}_{run}"
CLEANED = "_hp2000_clean"


def _choose(place: Place, files: Sequence[File]) -> list[File]:
    if place.settings.pattern:
        return list(files)
    wants = place.settings.denoising != "none"
    chosen = [file for file in files if (CLEANED in file.path.name) == wants]
    there = {(file.session, file.run) for file in chosen}
    for file in files:
        if (file.session, file.run) not in there:
            found = f"only {file.path.name} where denoising is '{place.settings.denoising}'"
            hint = f"Get it, correct datasets.{place.dataset}.denoising, or set its 'pattern' to leave such runs out."
            ending = f"{CLEANED}.nii.gz" if wants else "the file without '_hp2000_clean'"
            raise InputError(file.path.parent, found, f"{ending}, as for the other runs", hint)
    return chosen


def _companions(place: Place, file: File, _sidecar: Sidecar) -> dict[str, Any]:
    return {
        "space": place.settings.space or SPACE,
        "mask": existing(file.path.with_name("brainmask_fs.2.nii.gz")),
        "motion": existing(file.path.with_name("Movement_Regressors.txt")),
        "motion_form": "hcp",
    }


DOOR = Door(
    patterns=(
        f"{{subject}}/MNINonLinear/Results/{NAME}/{NAME}{CLEANED}.nii.gz",
        f"{{subject}}/MNINonLinear/Results/{NAME}/{NAME}.nii.gz",
    ),
    companions=_companions,
    choose=_choose,
)
