"""Preprocessed Connectomes Project: ABIDE, and ADHD-200 by the Athena pipeline, in MNI space.

    Outputs/<pipeline>/<strategy>/func_preproc/<SITE>_<id, 7 digits>_func_preproc.nii.gz        ABIDE, 3 mm
    <site>/<id, 7 digits>/snwmrda<id>_session_1_rest_1.nii.gz                                   ADHD-200, 4 mm

Band-passed variants are known by their names (`filt_global`, `sfnwmrda`). The data-set file's `filtered` says which are
meant, and one that is not is never taken. The TR may be a column of the table of people.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipeline.bold.doors.door import Door, Place, Sidecar, existing
from pipeline.bold.doors.patterns import File
from pipeline.errors import InputError

SPACE = "MNI152NLin6Asym"


def band_passed(path: Path) -> bool | None:
    """Whether the name of the file or of its strategy says that it was band-passed; None where neither says."""
    for part in reversed(path.parts):
        if match := re.match(r"(no)?filt_(no)?global\b", part):
            return not match[1]
        if match := re.match(r"s?(f?)nwmrda", part):
            return bool(match[1])
    return None


def _choose(place: Place, files: Sequence[File]) -> list[File]:
    # fc_snwmrda..., falff_... and reho_... lie beside the runs of ADHD-200.
    runs = [file for file in files if place.settings.pattern or not re.match(r"[a-z]+_", file.path.name)]
    wanted = [file for file in runs if band_passed(file.path) in (None, place.settings.filtered)]
    if runs and not wanted:
        found = "a run that is band-passed" if band_passed(runs[0].path) else "a run that is not band-passed"
        hint = f"Get the other variant, or correct datasets.{place.dataset}.filtered."
        raise InputError(runs[0].path, found, f"filtered: {str(place.settings.filtered).lower()}, as declared", hint)
    return wanted


def _companions(place: Place, file: File, _sidecar: Sidecar) -> dict[str, Any]:
    name = file.path.name.replace("func_preproc", "func_mask")
    masks = [existing(folder / name) for folder in (file.path.parent.with_name("func_mask"), file.path.parent)]
    return {
        "space": place.settings.space or SPACE,
        "mask": next((mask for mask in masks if mask and mask != file.path), None),
    }


DOOR = Door(
    patterns=(
        "Outputs/*/*/func_preproc/*_{subject:07}_func_preproc.nii.gz",
        "*/{subject:07}/*wmrda{subject:07}_session_{session}_rest_{run}.nii.gz",
    ),
    companions=_companions,
    choose=_choose,
    table_states_tr=True,
)
