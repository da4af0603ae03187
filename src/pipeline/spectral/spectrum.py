"""Power spectra, and the slope of their 1/f^beta line.

Axes: T frames, V voxels (or any columns), F frequencies, K tapers.
Power is one-sided, in squared units of the signal per Hz.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Literal

import numpy as np
from scipy import fft

SpectrumMethod = Literal["multitaper", "welch"]

MIN_FREQUENCIES = 8
WELCH_SEGMENT_S = 200.0  # shorter segments put a detrended bin inside the band: at 100 s beta is low by 0.17
COLUMNS_AT_ONCE = 4096  # 1,200 frames x 200,000 voxels then needs 0.3 GB beside the signal
# A second-order band-pass at 0.1 Hz leaves at most 0.017 of the power that 1/f noise has above it; the haemodynamic
# response without any noise leaves at least 0.04 (fGn with H 0.7 and 0.9; TR 0.72 s, 1.5 s and 2 s).
FILTERED_SHARE = 0.03


def power_spectrum(
    bold_TV: np.ndarray, tr_s: float, method: SpectrumMethod = "multitaper", bandwidth: float = 3.0
) -> tuple[np.ndarray, np.ndarray]:
    """Power spectral density of each column.

    Parameters
    ----------
    bold_TV : (T, V) signal in any unit; each column's mean is removed.
    tr_s : sampling interval in seconds.
    method : "multitaper" (mean over 2 NW - 1 Slepian tapers) or "welch" (Hann segments of 200 s, half overlapping).
    bandwidth : time-bandwidth product NW of the tapers; a line is smeared over +-NW / duration.

    Returns
    -------
    freqs_F, power_FV : frequencies in Hz without zero, and density in unit^2 / Hz.

    Sources: Thomson (1982); Welch (1967).
    """
    if method == "welch":
        segment = min(len(bold_TV), max(8, round(WELCH_SEGMENT_S / tr_s)))
        from scipy.signal import welch  # scipy.signal takes a second to import

        freqs_F, power_FV = welch(bold_TV, 1 / tr_s, nperseg=segment, axis=0)
        return freqs_F[1:], power_FV[1:]
    if method != "multitaper":
        raise ValueError(f"method: found '{method}'; expected 'multitaper' or 'welch'")
    return tapered_spectrum(bold_TV, tr_s, _slepian_tapers(len(bold_TV), bandwidth))


def periodogram(bold_TV: np.ndarray, tr_s: float) -> tuple[np.ndarray, np.ndarray]:
    """Untapered density, whose neighbouring frequencies are nearly independent; see `power_spectrum`."""
    return tapered_spectrum(bold_TV, tr_s, np.full((1, len(bold_TV)), len(bold_TV) ** -0.5))


def tapered_spectrum(bold_TV: np.ndarray, tr_s: float, tapers_KT: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Frequencies without zero, and the mean over tapers of unit norm of the densities (F, V)."""
    frames = len(bold_TV)
    centred_VT = np.ascontiguousarray((bold_TV - bold_TV.mean(axis=0)).T)
    sides_F = np.full(frames // 2 + 1, 2.0)  # one-sided: both signs of a frequency, but zero and Nyquist have one
    sides_F[0] = 1.0
    if frames % 2 == 0:
        sides_F[-1] = 1.0
    power_VF = np.zeros((centred_VT.shape[0], len(sides_F)))
    for taper_T in tapers_KT:
        amplitude_VF = fft.rfft(centred_VT * taper_T, axis=1)
        power_VF += amplitude_VF.real**2 + amplitude_VF.imag**2
    power_VF *= sides_F * tr_s / len(tapers_KT)
    return np.fft.rfftfreq(frames, tr_s)[1:], power_VF.T[1:]


@lru_cache(maxsize=8)
def _slepian_tapers(frames: int, bandwidth: float) -> np.ndarray:
    from scipy.signal import windows

    return windows.dpss(frames, bandwidth, Kmax=round(2 * bandwidth) - 1)


def spectral_slope(
    bold_TV: np.ndarray,
    tr_s: float,
    band_hz: tuple[float, float] = (0.01, 0.1),
    method: SpectrumMethod = "multitaper",
    bandwidth: float = 3.0,
    refuse_filtered: bool = True,
) -> np.ndarray:
    """Exponent beta of a 1/f^beta power spectrum, one per voxel.

    Parameters
    ----------
    bold_TV : (T, V) signal in any unit; constant columns give NaN.
    tr_s : sampling interval in seconds.
    band_hz : frequencies the line is fitted over, inclusive; those below 2 / duration are left out.
    method, bandwidth : see `power_spectrum`.
    refuse_filtered : raise where the power above the band was filtered away.

    Raises
    ------
    ValueError : fewer than eight frequencies fall inside `band_hz`, or the input was band-passed.

    Source: the fit is least squares in log-log, so white noise gives 0 and a random walk 2.
    """
    if refuse_filtered:
        require_broadband(bold_TV, tr_s, band_hz)

    def slopes(columns_TV: np.ndarray) -> np.ndarray:
        return slope_of_spectrum(*power_spectrum(columns_TV, tr_s, method, bandwidth), band_hz)

    return by_columns(slopes, bold_TV)


def slope_of_spectrum(
    freqs_F: np.ndarray,
    power_FV: np.ndarray,
    band_hz: tuple[float, float] = (0.01, 0.1),
    exclude_hz: Sequence[float] = (),
    half_width_hz: float = 0.0,
) -> np.ndarray:
    """Exponent beta of spectra that are already there, e.g. averages over voxels; one per column.

    Parameters
    ----------
    freqs_F : evenly spaced frequencies in Hz, the first of them 1 / duration.
    power_FV : (F, ...) density; a column with a zero or missing power in the band gives NaN.
    exclude_hz, half_width_hz : lines that are left out, with everything nearer to them than the half width.

    Raises
    ------
    ValueError : fewer than eight frequencies are left.
    """
    keep_F = band_bins(freqs_F, band_hz, exclude_hz, half_width_hz)
    return log_log_slope(freqs_F[keep_F], power_FV[keep_F])


def log_log_slope(freqs_F: np.ndarray, power_FV: np.ndarray) -> np.ndarray:
    """Least-squares exponent beta over all the frequencies given, one per column."""
    with np.errstate(divide="ignore", invalid="ignore"):
        log_power = np.where(power_FV > 0, np.log(power_FV), np.nan)
    weights_F = np.log(freqs_F) - np.log(freqs_F).mean()
    return -np.tensordot(weights_F, log_power, axes=1) / (weights_F @ weights_F)


def band_bins(
    freqs_F: np.ndarray, band_hz: tuple[float, float], exclude_hz: Sequence[float] = (), half_width_hz: float = 0.0
) -> np.ndarray:
    """Which frequencies a slope is fitted over, as a mask; see `slope_of_spectrum`."""
    step = freqs_F[1] - freqs_F[0]
    low, high = max(band_hz[0], 2 * step), band_hz[1]
    keep_F = (freqs_F >= low * (1 - 1e-9)) & (freqs_F <= high * (1 + 1e-9))
    keep_F &= apart(freqs_F, exclude_hz, half_width_hz)
    if keep_F.sum() < MIN_FREQUENCIES:
        found = f"{keep_F.sum()} frequencies in {band_hz[0]:g}-{band_hz[1]:g} Hz at a spacing of {step:.4g} Hz"
        raise ValueError(f"found {found}; expected at least {MIN_FREQUENCIES}. Use longer runs or a wider band.")
    return keep_F


def apart(freqs_F: np.ndarray, lines_hz: Sequence[float], half_width_hz: float) -> np.ndarray:
    """Which frequencies are farther than `half_width_hz` from every line, as a mask."""
    distance_FL = np.abs(freqs_F[:, None] - np.asarray(lines_hz, dtype=float))
    return (distance_FL > half_width_hz * (1 + 1e-9)).all(axis=1)


def require_broadband(bold_TV: np.ndarray, tr_s: float, band_hz: tuple[float, float] = (0.01, 0.1)) -> None:
    """Raise ValueError where a filter removed what lies above `band_hz`: slope and Hurst exponent mean nothing there.

    The power from 1.25 times the upper edge to Nyquist is compared with what the line fitted inside the band promises.
    Nothing is judged where less than a fifth of the spectrum lies above the band (TR over 4 s at 0.1 Hz).
    """
    sample_TV = bold_TV[:, :: -(-bold_TV.shape[1] // 1000)].astype(np.float64)
    sample_TV = sample_TV[:, sample_TV.std(axis=0) > 0]
    if not sample_TV.shape[1]:
        return
    freqs_F, power_FV = power_spectrum(sample_TV / sample_TV.std(axis=0), tr_s)
    above_F, inside_F = freqs_F > 1.25 * band_hz[1], band_bins(freqs_F, band_hz)
    if above_F.sum() < 0.2 * len(freqs_F):
        return
    power_F = power_FV.mean(axis=1)
    slope, level = np.polyfit(np.log(freqs_F[inside_F]), np.log(power_F[inside_F]), 1)
    promised_F = np.exp(level) * freqs_F[above_F] ** slope
    share = power_F[above_F].sum() / promised_F.sum()
    if share < FILTERED_SHARE:
        found = f"{share:.1%} of the power above {band_hz[1]:g} Hz that 1/f noise has"
        raise ValueError(f"found {found}; expected {FILTERED_SHARE:.0%} or more. Use data that were not band-passed.")


def by_columns(measure: Callable[[np.ndarray], np.ndarray], bold_TV: np.ndarray) -> np.ndarray:
    """`measure` of the columns in double precision, a few thousand at a time; constant or missing columns give NaN."""
    values_V = np.full(bold_TV.shape[1], np.nan)
    for start in range(0, bold_TV.shape[1], COLUMNS_AT_ONCE):
        columns_TV = bold_TV[:, start : start + COLUMNS_AT_ONCE].astype(np.float64)
        alive_V = np.isfinite(columns_TV).all(axis=0) & (np.ptp(columns_TV, axis=0) > 0)
        if alive_V.any():
            values_V[start : start + COLUMNS_AT_ONCE][alive_V] = measure(columns_TV[:, alive_V])
    return values_V
