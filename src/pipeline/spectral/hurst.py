"""Hurst exponent of many signals at once, by four estimators.

Axes: T frames, V voxels (or any columns), F frequencies, G candidates of a grid.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Literal

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from scipy import special

from pipeline.spectral.spectrum import by_columns, periodogram, require_broadband

HurstMethod = Literal["whittle", "local_whittle", "dfa", "wavelet"]

HURST_G = np.linspace(0.005, 0.995, 199)
LOCAL_HURST_G = np.linspace(-0.5, 1.5, 201)
# Daubechies' filter with two vanishing moments, in closed form: enough for every H below 1.5.
DAUBECHIES = np.array([1 + 3**0.5, 3 + 3**0.5, 3 - 3**0.5, 1 - 3**0.5]) / (4 * 2**0.5)
DFA_SCALES = 14
DFA_SHORTEST = 10  # frames


def hurst_exponent(
    bold_TV: np.ndarray, tr_s: float, method: HurstMethod = "whittle", refuse_filtered: bool = True
) -> np.ndarray:
    """Hurst exponent H of fractional Gaussian noise, one per voxel; white noise has 0.5, and beta = 2 H - 1.

    Parameters
    ----------
    bold_TV : (T, V) signal in any unit; constant columns give NaN.
    tr_s : sampling interval in seconds.
    method : "whittle" (exact spectral density of fractional Gaussian noise, NaN outside 0.005 to 0.995),
        "local_whittle" (only that the spectrum is a power law at the lowest T^0.65 frequencies), "dfa" (detrended
        fluctuation analysis, linear, windows of 10 frames to T / 4) or "wavelet" (variance of Daubechies details).
    refuse_filtered : raise where the power above 0.1 Hz was filtered away.

    Raises
    ------
    ValueError : unknown method, fewer than 64 frames, or the input was band-passed.

    Sources: Beran (1994), Robinson (1995), Peng et al. (1994), Abry & Veitch (1998).
    """
    if method not in ESTIMATORS:
        raise ValueError(f"method: found '{method}'; expected one of {', '.join(ESTIMATORS)}")
    if len(bold_TV) < 64:
        raise ValueError(f"found {len(bold_TV)} frames; expected at least 64. Use longer runs.")
    if refuse_filtered:
        require_broadband(bold_TV, tr_s)
    return by_columns(ESTIMATORS[method], bold_TV)


def hurst_of_spectrum(freqs_F: np.ndarray, power_FV: np.ndarray, tr_s: float) -> np.ndarray:
    """Whittle's H of spectra that are already there, e.g. averages over voxels or a closed form; one per column.

    freqs_F lie evenly between 0 and the Nyquist frequency; the latter is left out.
    """
    inside_F = freqs_F < 0.5 / tr_s * (1 - 1e-9)
    power = power_FV[inside_F]
    estimate = _likeliest(
        power.reshape(len(power), -1), HURST_G, _fgn_log_density((freqs_F[inside_F] * tr_s).tobytes())
    )
    return estimate.reshape(power.shape[1:])


def _whittle(bold_TV: np.ndarray) -> np.ndarray:
    return hurst_of_spectrum(*periodogram(bold_TV, 1.0), 1.0)


def _local_whittle(bold_TV: np.ndarray) -> np.ndarray:
    freqs_F, power_FV = periodogram(bold_TV, 1.0)
    lowest = slice(int(len(bold_TV) ** 0.65))
    log_density_GF = (1 - 2 * LOCAL_HURST_G)[:, None] * np.log(freqs_F[lowest])
    return _likeliest(power_FV[lowest], LOCAL_HURST_G, log_density_GF)


@lru_cache(maxsize=64)
def _fgn_log_density(freqs: bytes) -> np.ndarray:
    """Log spectral density (G, F) of fractional Gaussian noise up to a constant; frequencies in cycles a frame.

    The sum over aliases of |f + j|^(-2H - 1) is a pair of Hurwitz zeta functions. Source: Beran (1994), eq. 2.17.
    """
    power_G1, freqs_F = 2 * HURST_G[:, None] + 1, np.frombuffer(freqs)
    aliases_GF = special.zeta(power_G1, freqs_F) + special.zeta(power_G1, 1 - freqs_F)
    return np.log(2 - 2 * np.cos(2 * np.pi * freqs_F)) + np.log(aliases_GF)


def _likeliest(power_FV: np.ndarray, grid_G: np.ndarray, log_density_GF: np.ndarray) -> np.ndarray:
    """Minimum of Whittle's likelihood with the scale profiled out: a matrix product, then a parabola at the minimum.

    NaN where the smallest value is the first or the last candidate's: the minimum lies beyond them, if there is one.
    """
    log_density_GF = log_density_GF - log_density_GF.mean(axis=1, keepdims=True)
    with np.errstate(divide="ignore"):
        loss_GV = np.log(np.exp(-log_density_GF) @ power_FV)
    lowest_V = loss_GV.argmin(axis=0)
    best_V = lowest_V.clip(1, len(grid_G) - 2)
    below_V, at_V, above_V = (loss_GV[best_V + step, np.arange(len(best_V))] for step in (-1, 0, 1))
    with np.errstate(invalid="ignore", divide="ignore"):
        offset_V = 0.5 * (below_V - above_V) / (below_V - 2 * at_V + above_V)
    estimate_V = grid_G[best_V] + offset_V.clip(-1, 1) * (grid_G[1] - grid_G[0])
    return np.where(lowest_V == best_V, estimate_V, np.nan)


def _dfa(bold_TV: np.ndarray) -> np.ndarray:
    """Slope of log fluctuation against log window, windows laid from both ends."""
    profile_TV = np.cumsum(bold_TV - bold_TV.mean(axis=0), axis=0)
    longest = len(bold_TV) // 4
    scales = np.unique(np.geomspace(DFA_SHORTEST, longest, DFA_SCALES).round().astype(int))
    log_variance_SV = np.log([_detrended_variance(profile_TV, scale) for scale in scales])
    return 0.5 * _line(np.log(scales), log_variance_SV, np.ones(len(scales)))


def _detrended_variance(profile_TV: np.ndarray, scale: int) -> np.ndarray:
    """Mean squared residual of lines fitted in windows of `scale` frames."""
    count = len(profile_TV) // scale
    line_n = np.arange(scale) - (scale - 1) / 2
    variances = []
    for part_TV in (profile_TV[: count * scale], profile_TV[-count * scale :]):
        window_WnV = part_TV.reshape(count, scale, -1)
        window_WnV = window_WnV - window_WnV.mean(axis=1, keepdims=True)
        trend_WV = np.einsum("n,wnv->wv", line_n, window_WnV)
        squares_V = np.einsum("wnv,wnv->v", window_WnV, window_WnV) - (trend_WV**2).sum(axis=0) / (line_n @ line_n)
        variances.append(squares_V / (count * scale))
    return np.mean(variances, axis=0)


def _wavelet(bold_TV: np.ndarray) -> np.ndarray:
    """Weighted slope of log2 detail variance over octaves; each log is freed of its bias, weights are its precision."""
    smooth_TV, octaves, logs, weights = bold_TV - bold_TV.mean(axis=0), [], [], []
    for octave in range(1, 32):
        if len(smooth_TV) < 2 * len(DAUBECHIES):
            break
        detail_TV, smooth_TV = _split_octave(smooth_TV)
        half = len(detail_TV) / 2
        octaves.append(octave)
        logs.append(np.log2((detail_TV**2).mean(axis=0)) - (special.digamma(half) - np.log(half)) / np.log(2))
        weights.append(1 / special.zeta(2, half))
    return 0.5 * (_line(np.array(octaves), np.array(logs), np.array(weights)) + 1)


def _split_octave(smooth_TV: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Detail and smooth part, half as many samples each, without any that touch an end."""
    window_TVn = sliding_window_view(smooth_TV, len(DAUBECHIES), axis=0)[::2]
    alternating = DAUBECHIES[::-1] * (-1.0) ** np.arange(len(DAUBECHIES))
    return window_TVn @ alternating, window_TVn @ DAUBECHIES


def _line(x_S: np.ndarray, y_SV: np.ndarray, weights_S: np.ndarray) -> np.ndarray:
    """Slope of the weighted least-squares line."""
    centred_S = weights_S * (x_S - np.average(x_S, weights=weights_S))
    return centred_S @ y_SV / (centred_S @ x_S)


ESTIMATORS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "whittle": _whittle,
    "local_whittle": _local_whittle,
    "dfa": _dfa,
    "wavelet": _wavelet,
}
