"""A run in time: at another TR, and without its confounds. Both are asked for in the configuration and recorded.

Frame k of a run lies k TR after its first frame, before and after. Where both are asked for, confounds are regressed
out first, at the run's own TR. Axes: T frames, t frames of a block, V columns (voxels or parcels), v columns of a slab,
K regressors, R of them that are independent.
"""

from __future__ import annotations

import math
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO

import numpy as np

from pipeline.bold.quality import Quarantined
from pipeline.bold.spool import BLOCK, Spool
from pipeline.errors import InputError

SAME_TR = 1e-6  # relative; closer TRs are one TR
FILTER_ORDER, FILTER_DB = 8, 20.0  # Chebyshev II; run forwards and backwards the stop band is 40 dB down
PADDED = 10  # frames of the new TR by which a run is continued at each end while it is filtered
BLOCK_VALUES = 1_000_000  # of a slab of columns in float64: 8 MB, of which about a dozen live at once


def resampled_frames(frames: int, tr_s: float, to_tr_s: float) -> int:
    """Frames of a run at the new TR: all that lie between its first and its last frame, so none is extrapolated."""
    return math.floor((frames - 1) * tr_s / to_tr_s + SAME_TR) + 1


def resample_in_time(bold_TV: np.ndarray, tr_s: float, to_tr_s: float) -> np.ndarray:
    """A run at another TR, (T', V) float32 in its own unit: shape-preserving cubic interpolation (pchip).

    Frame k of the result lies at k `to_tr_s` from the first frame; the last one not after the run's last frame. Towards
    a longer TR frequencies above its Nyquist frequency are removed first, by a zero-phase Chebyshev II filter: 40 dB
    down from there on (23 dB where the TRs differ by 2 %), within 1 % of 1 below four fifths of it; the run is
    continued at its ends by point reflection. Interpolation keeps slow signals to 1 % and damps those near the run's
    own Nyquist frequency (0.72 s to 0.8 s: by 1 % at 0.31 Hz, 8 % at 0.44 Hz). Equal TRs change no value.

    Raises
    ------
    ValueError : a TR is not positive, or fewer than two frames are given.

    Source: pchip as Brainmarks (fmri-fm); Fritsch and Butland (1984), SIAM J. Sci. Stat. Comput. 5.
    """
    if min(tr_s, to_tr_s) <= 0 or len(bold_TV) < 2:
        raise ValueError(f"{len(bold_TV)} frames from TR {tr_s} s to {to_tr_s} s")
    if math.isclose(tr_s, to_tr_s, rel_tol=SAME_TR):
        return bold_TV.astype(np.float32)
    from scipy.interpolate import PchipInterpolator

    mean_V = bold_TV.mean(axis=0, dtype=np.float64)
    signal_TV = bold_TV - mean_V  # filtered about its mean, which so comes out exactly
    if to_tr_s > tr_s:
        signal_TV = _below_nyquist(signal_TV, tr_s, to_tr_s)
    times_T = np.arange(resampled_frames(len(bold_TV), tr_s, to_tr_s)) * to_tr_s
    own_T = np.arange(len(bold_TV)) * tr_s
    signal_TV = PchipInterpolator(own_T, signal_TV)(np.minimum(times_T, own_T[-1]))
    return (signal_TV + mean_V).astype(np.float32)


def _below_nyquist(signal_TV: np.ndarray, tr_s: float, to_tr_s: float) -> np.ndarray:
    from scipy.signal import cheby2, sosfiltfilt

    sections = cheby2(FILTER_ORDER, FILTER_DB, tr_s / to_tr_s, output="sos")
    padded = min(len(signal_TV) - 1, math.ceil(PADDED * to_tr_s / tr_s))
    return sosfiltfilt(sections, signal_TV, axis=0, padtype="odd", padlen=padded)


def describe_resampling(tr_s: float, to_tr_s: float) -> str:
    """What `resample_in_time` does, for the contract."""
    if math.isclose(tr_s, to_tr_s, rel_tol=SAME_TR):
        return "none"
    low_pass = f", low-pass {0.5 / to_tr_s:.4g} Hz" if to_tr_s > tr_s else ""
    return f"pchip, TR {tr_s:g} s to {to_tr_s:g} s{low_pass}"


def resampled(spooled: Spool, tr_s: float, to_tr_s: float, folder: Path | None = None) -> Iterator[np.ndarray]:
    """A spooled run at another TR, in blocks (t, V) float32; see `resample_in_time`.

    Columns are resampled in blocks and go through a second scratch file in `folder`: memory does not grow with the
    number of frames.
    """
    frames, columns = resampled_frames(spooled.frames, tr_s, to_tr_s), spooled.columns
    width = max(1, BLOCK_VALUES // max(spooled.frames, frames))
    with tempfile.TemporaryFile(dir=folder) as scratch:
        for start in range(0, columns, width):
            block_Tv = spooled.columns_block(start, min(start + width, columns))
            _write_columns(scratch, resample_in_time(block_Tv, tr_s, to_tr_s), start, columns)
        scratch.seek(0)
        for first in range(0, frames, BLOCK):
            count = min(BLOCK, frames - first)
            yield np.frombuffer(scratch.read(4 * count * columns), np.float32).reshape(count, columns)


def _write_columns(scratch: IO[bytes], block_Tv: np.ndarray, start: int, columns: int) -> None:
    for frame, row_v in enumerate(np.ascontiguousarray(block_Tv, np.float32)):
        scratch.seek(4 * (frame * columns + start))
        scratch.write(row_v.data)


def regress_out(spooled: Spool, regressors_TK: np.ndarray) -> Iterator[np.ndarray]:
    """A spooled run without the part along its regressors, in blocks (t, V) float32; each column keeps its mean.

    Least squares in two passes over the run; regressors are demeaned, and dependent ones count once. Memory holds the
    R coefficients of every column.

    Raises
    ------
    Quarantined : the regressors have another number of frames, values that are not finite, or leave no frame free.
    """
    basis_TR = _orthonormal(regressors_TK, spooled.frames)
    mean_V = spooled.mean_V.astype(np.float32)
    weights_RV = np.zeros((basis_TR.shape[1], spooled.columns))
    for first, block_tV in _with_place(spooled.blocks(BLOCK)):
        weights_RV += basis_TR[first : first + len(block_tV)].T @ (block_tV - mean_V)
    along_RV = weights_RV.astype(np.float32)
    for first, block_tV in _with_place(spooled.blocks(BLOCK)):
        yield block_tV - basis_TR[first : first + len(block_tV)] @ along_RV


def _with_place(blocks: Iterator[np.ndarray]) -> Iterator[tuple[int, np.ndarray]]:
    first = 0
    for block_tV in blocks:
        yield first, block_tV
        first += len(block_tV)


def _orthonormal(regressors_TK: np.ndarray, frames: int) -> np.ndarray:
    """An orthonormal basis of the demeaned regressors, (T, R) float32."""
    if len(regressors_TK) != frames:
        raise Quarantined(f"confounds of {len(regressors_TK)} frames for a run of {frames}")
    if not np.isfinite(regressors_TK).all():
        raise Quarantined("confounds with missing values inside the run")
    centred_TK = regressors_TK - regressors_TK.mean(axis=0, dtype=np.float64)
    norm_K = np.linalg.norm(centred_TK, axis=0)
    # A constant leaves rounding behind when it is demeaned, which must not become a regressor.
    varying_K = norm_K > 1e-9 * np.linalg.norm(regressors_TK, axis=0)
    left_TR, size_R, _ = np.linalg.svd(centred_TK[:, varying_K] / norm_K[varying_K], full_matrices=False)
    basis_TR = left_TR[:, size_R > 1e-8]
    if basis_TR.shape[1] >= frames - 1:
        raise Quarantined(f"{basis_TR.shape[1]} independent confounds for {frames} frames leave no signal")
    return basis_TR.astype(np.float32)


def describe_regression(strategy: Sequence[str]) -> str:
    """What was regressed out, for the contract's `denoising`."""
    return f"regressed: {', '.join(strategy)}"


def load_regressors(bold: Path, strategy: Sequence[str]) -> tuple[np.ndarray, list[str]]:
    """Confounds beside an fMRIPrep run by nilearn's names of their kinds: (T, K) float64 as in the table, and names.

    Every frame of the run is there, the dropped ones too. Each kind is taken in nilearn's default extent (motion: 24
    parameters); ICA-AROMA's noise components are regressors. The undefined first value of a derivative is its second.
    nilearn's sample mask is not used: no frame is left out (non-steady-state volumes are `shards.drop_frames`'s task).

    Raises
    ------
    InputError : a combination of kinds that has no meaning.
    Quarantined : the run has no such confounds, or its table is damaged.
    """
    from nilearn.interfaces.fmriprep import load_confounds

    if "compcor" in strategy and "high_pass" not in strategy:
        hint = "Add high_pass: fMRIPrep's components were taken from high-passed data."
        raise InputError("confounds_strategy", "compcor without high_pass", "both", hint)
    name = str(bold) if str(bold).endswith(".gz") else f"{bold}.gz"  # only the name is read, and nilearn knows .nii.gz
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            table, _ = load_confounds(name, strategy=tuple(strategy), demean=False, ica_aroma="basic")
    except (ValueError, OSError, KeyError) as error:
        raise Quarantined(f"confounds {', '.join(strategy)}: {' '.join(str(error).split())}") from error
    if not len(table.columns):
        raise Quarantined(f"confounds {', '.join(strategy)}: the table has none of them")
    table = table[sorted(table.columns)]  # nilearn's order goes through a set: it differs from process to process
    return table.to_numpy(np.float64), [str(column) for column in table.columns]
