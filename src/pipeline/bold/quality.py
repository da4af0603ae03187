"""What a run's quality is measured by, and the one way a bad run leaves the study: quarantine."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from pipeline.errors import InputError

HEAD_RADIUS_MM = 50.0  # Power et al. 2012: rotations count as arcs on a sphere of this radius


class Quarantined(Exception):
    """This run is left out, with a reason; the rest of the study goes on."""


def dice(first: np.ndarray, second: np.ndarray) -> float:
    """Overlap of two masks, 0 to 1; two empty masks overlap by 0."""
    total = int(first.sum()) + int(second.sum())
    return 2 * int(np.sum(first & second)) / total if total else 0.0


def temporal_snr(mean_V: np.ndarray, std_V: np.ndarray) -> float:
    """Median over voxels of mean over SD in time; constant voxels do not count."""
    alive_V = std_V > 0
    return float(np.median(mean_V[alive_V] / std_V[alive_V])) if alive_V.any() else 0.0


def framewise_displacement(motion_T6: np.ndarray) -> np.ndarray:
    """Framewise displacement in mm, (T,), first frame 0, from translations (mm) and rotations (radians).

    Source: Power et al. (2012), NeuroImage 59: sum of absolute differences, rotations at 50 mm.
    """
    scaled_T6 = motion_T6 * np.array([1, 1, 1, HEAD_RADIUS_MM, HEAD_RADIUS_MM, HEAD_RADIUS_MM])
    return np.concatenate([[0.0], np.abs(np.diff(scaled_T6, axis=0)).sum(axis=1)])


def mean_displacement(confounds: Path, frames: int, drop: int) -> float:
    """Mean framewise displacement in mm of an fMRIPrep confounds table, without the dropped frames.

    Raises
    ------
    InputError : the table has no such column.
    Quarantined : it has another number of frames than the run.
    """
    import pandas as pd

    table = pd.read_csv(confounds, sep="\t", na_values="n/a")
    if "framewise_displacement" not in table:
        hint = "Point the data set at fMRIPrep's own confounds."
        raise InputError(confounds, f"columns {', '.join(table.columns[:6])}", "'framewise_displacement'", hint)
    if len(table) != frames:
        raise Quarantined(f"{confounds.name} has {len(table)} rows, the run {frames} frames")
    return float(table["framewise_displacement"].iloc[drop:].fillna(0.0).mean())


def require(frames: int, min_frames: int, overlap: float, min_overlap: float) -> None:
    """Quarantine a run that is too short or does not lie on the template's brain."""
    if frames < min_frames:
        raise Quarantined(f"{frames} frames, fewer than shards.min_frames = {min_frames}")
    if overlap < min_overlap:
        raise Quarantined(f"overlap {overlap:.3f} with the template, less than shards.min_overlap = {min_overlap}")
