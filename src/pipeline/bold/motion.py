"""Head motion of a run that came preprocessed: framewise displacement from what its door brings.

Axes: T frames, 6 parameters of a rigid motion (translations x, y, z, then rotations x, y, z).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from pipeline.bold.inputs import Run, reading
from pipeline.bold.quality import Quarantined
from pipeline.errors import InputError

HEAD_RADIUS_MM = 50.0  # Power et al. 2012: rotations count as arcs on a sphere of this radius
COLUMN = "framewise_displacement"


def framewise_displacement(motion_T6: np.ndarray) -> np.ndarray:
    """Framewise displacement in mm, (T,), first frame 0, from translations (mm) and rotations (radians).

    Source: Power et al. (2012), NeuroImage 59: sum of absolute differences, rotations at 50 mm.
    """
    scaled_T6 = motion_T6 * np.array([1, 1, 1, HEAD_RADIUS_MM, HEAD_RADIUS_MM, HEAD_RADIUS_MM])
    return np.concatenate([[0.0], np.abs(np.diff(scaled_T6, axis=0)).sum(axis=1)])


def displacement(run: Run, frames: int, drop: int) -> np.ndarray | None:
    """Framewise displacement in mm of the frames that are kept, (frames - drop,); None where the run brings no motion.

    `frames` counts those of the file. The first kept frame has moved since the last dropped one; without any it is 0.
    Forms: fMRIPrep's own column; FSL's .par (rotations in radians, then mm); HCP's Movement_Regressors (mm, then
    degrees, then derivatives).

    Raises
    ------
    InputError : a table of confounds without displacement.
    Quarantined : another number of rows than frames, values that are no numbers.
    """
    if run.motion is None:
        return None
    if run.motion_form == "fmriprep":
        fd_T = _of_confounds(run.motion)
    else:
        fd_T = framewise_displacement(_parameters(run.motion, run.motion_form == "hcp"))
    if len(fd_T) != frames:
        raise Quarantined(f"{run.motion.name} has {len(fd_T)} rows, the run {frames} frames")
    if not np.isfinite(fd_T).all():
        raise Quarantined(f"{run.motion.name} has motion that is not finite")
    return fd_T[drop:]


def _of_confounds(path: Path) -> np.ndarray:
    """The column of an fMRIPrep table, whose first value is n/a."""
    import pandas as pd

    with reading(path):
        table = pd.read_csv(path, sep="\t", na_values="n/a")
    if COLUMN not in table:
        hint = "Point the data set at fMRIPrep's own confounds."
        raise InputError(path, f"columns {', '.join(map(str, table.columns[:6]))}", f"'{COLUMN}'", hint)
    with reading(path):
        fd_T = table[COLUMN].to_numpy(np.float64, copy=True)
    fd_T[:1] = np.nan_to_num(fd_T[:1])
    return fd_T


def _parameters(path: Path, hcp: bool) -> np.ndarray:
    """Translations in mm and rotations in radians of a table of numbers, (T, 6)."""
    with reading(path):
        table = np.loadtxt(path, ndmin=2)
    if table.shape[1] < 6:
        raise Quarantined(f"{path.name} has {table.shape[1]} columns, not the 6 of a rigid motion")
    if hcp:
        return np.concatenate([table[:, :3], np.deg2rad(table[:, 3:6])], axis=1)
    return np.concatenate([table[:, 3:6], table[:, :3]], axis=1)
