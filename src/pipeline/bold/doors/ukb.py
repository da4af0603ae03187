"""UK Biobank resting state (field 20227): cleaned by ICA-FIX, in native space, with FNIRT's way to MNI.

    X_20227_2_0/fMRI/rfMRI.ica/filtered_func_data_clean.nii.gz      or X/fMRI/rfMRI.ica/...
                               mask.nii.gz
                               mc/prefiltered_func_data_mcf.par
                               reg/example_func2standard_warp.nii.gz
                fMRI/rfMRI.json

The instance (2: first imaging visit, 3: the repeat) is the session. A run without its warp is quarantined when it is
opened.
"""

from __future__ import annotations

from typing import Any

from pipeline.bold.doors.door import Door, Place, Sidecar, existing
from pipeline.bold.doors.names import read_sidecar
from pipeline.bold.doors.patterns import File

SPACE = "MNI152NLin6Asym"  # the warp leads to FSL's MNI152_T1_2mm
BOLD = "fMRI/rfMRI.ica/filtered_func_data_clean.nii.gz"


def _sidecar(_place: Place, file: File) -> Sidecar:
    path = existing(file.path.parent.with_name("rfMRI.json"))
    return read_sidecar(path) if path else {}


def _companions(place: Place, file: File, _sidecar: Sidecar) -> dict[str, Any]:
    folder = file.path.parent
    return {
        "space": place.settings.space or SPACE,
        "mask": existing(folder / "mask.nii.gz"),
        "motion": existing(folder / "mc/prefiltered_func_data_mcf.par"),
        "motion_form": "fsl",
        "warp": folder / "reg/example_func2standard_warp.nii.gz",
    }


DOOR = Door(
    patterns=(f"{{subject}}_20227_{{session}}_0/{BOLD}", f"{{subject}}/{BOLD}"),
    companions=_companions,
    sidecar=_sidecar,
    session="2",
)
