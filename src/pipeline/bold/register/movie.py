"""Frames of a native run by number, each slice at the middle of its frame in time where that is asked for.

Axes: X, Y, Z of the run's own grid, T frames.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.bold.inputs import Frames
from pipeline.bold.quality import Quarantined

TAPS = 8  # frames on which a slice is interpolated in time


@dataclass(frozen=True, eq=False)
class Movie:
    """The kept frames of a run; memory holds those that are asked for.

    `stored_XYZT` is the memory map of the file, `shift_Z` how many frames later than its own time each slice is
    wanted, None where slices stay as they were taken.
    """

    frames: Frames
    stored_XYZT: np.ndarray
    drop: int
    shift_Z: np.ndarray | None

    def __len__(self) -> int:
        """Frames that are kept."""
        return self.stored_XYZT.shape[3] - self.drop

    @property
    def shape(self) -> tuple[int, int, int]:
        """Voxels along x, y, z."""
        return self.frames.shape[:3]

    @property
    def affine(self) -> np.ndarray:
        """(4, 4), voxels to mm."""
        return self.frames.affine

    def __getitem__(self, frame: int) -> np.ndarray:
        """(X, Y, Z) float32, in the run's own unit."""
        if self.shift_Z is None:
            return self._stored(frame)
        first = max(0, min(frame - TAPS // 2 + 1, len(self) - TAPS))
        near_XYZt = np.stack([self._stored(number) for number in range(first, min(first + TAPS, len(self)))], axis=-1)
        return _at_times(near_XYZt, frame - first + self.shift_Z)

    def _stored(self, frame: int) -> np.ndarray:
        volume_XYZ = self.frames.scaled(np.asarray(self.stored_XYZT[..., self.drop + frame]))
        if not np.isfinite(volume_XYZ).all():
            raise Quarantined(f"{self.frames.path.name} has values that are not finite")
        return volume_XYZ


def slice_shift(slice_times_s: Sequence[float] | None, tr_s: float) -> np.ndarray | None:
    """Frames from when each slice was taken to the middle of the slices' times, (Z,); None without times."""
    if slice_times_s is None:
        return None
    times_Z = np.asarray(slice_times_s, np.float64)
    return ((times_Z.min() + times_Z.max()) / 2 - times_Z) / tr_s


def _at_times(near_XYZt: np.ndarray, time_Z: np.ndarray) -> np.ndarray:
    """Each slice at its own time, in frames, by the cubic spline through its neighbours in time."""
    from scipy.interpolate import make_interp_spline

    if near_XYZt.shape[-1] < 4:
        return near_XYZt[..., round(float(np.median(time_Z)))]
    # A spline is linear in its values: one weight a frame, the same for every voxel of a slice.
    taps = near_XYZt.shape[-1]
    weights_Zt = make_interp_spline(np.arange(taps), np.eye(taps), k=3)(np.clip(time_Z, 0, taps - 1))
    return np.einsum("xyzt,zt->xyz", near_XYZt, weights_Zt.astype(np.float32))
