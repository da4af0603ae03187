"""Signals whose slope is known before it is measured: the controls of Figure 5, beside `bold.noise`.

Axes: T frames, V voxels, F frequencies.
"""

from __future__ import annotations

import numpy as np
from scipy import fft, optimize


def white_noise(frames: int, series: int, rng: np.random.Generator) -> np.ndarray:
    """(T, V) white noise: slope 0, Hurst exponent 0.5."""
    return rng.standard_normal((frames, series))


def time_shuffled(bold_TV: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Frames in random order, the same for all voxels: space and amplitudes stay, the slope becomes 0."""
    return bold_TV[rng.permutation(len(bold_TV))]


def phase_randomised(bold_TV: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Same periodogram, random phases, the same shift for all voxels, so that their correlations stay too.

    Source: Prichard & Theiler (1994).
    """
    spectrum_FV = fft.rfft(bold_TV, axis=0)
    phase_F = rng.uniform(0, 2 * np.pi, len(spectrum_FV))
    phase_F[0] = 0
    if len(bold_TV) % 2 == 0:
        phase_F[-1] = 0  # the Nyquist frequency of a real signal has no phase
    return fft.irfft(spectrum_FV * np.exp(1j * phase_F)[:, None], n=len(bold_TV), axis=0)


def noise_matched(bold_TV: np.ndarray, r2: float, rng: np.random.Generator) -> np.ndarray:
    """z-scored signal plus white noise, as far from the signal as a reconstruction with this R^2 (below 1)."""
    noisy_TV = rng.standard_normal(bold_TV.shape)
    noisy_TV *= np.sqrt((1 - r2) * np.mean(np.square(bold_TV, dtype=np.float64)))
    noisy_TV += bold_TV
    return noisy_TV


def smooth_matched(bold_TV: np.ndarray, r2: float) -> np.ndarray:
    """z-scored signal under a Gaussian in time, wide enough that its R^2 is that of a reconstruction (0 to 1).

    What an optimal but blind smoother keeps: a slope that is steeper than this is more than smoothing.
    """
    spectrum_FV = fft.rfft(bold_TV, axis=0)
    power_F = (spectrum_FV.real**2 + spectrum_FV.imag**2).mean(axis=1)[1:]
    if len(bold_TV) % 2 == 0:
        power_F[-1] /= 2  # of the two signs of a frequency, Nyquist has one
    cycles_F = np.fft.rfftfreq(len(bold_TV))[1:]

    def excess(log_width: float) -> float:
        lost_F = 1 - np.exp(-((cycles_F * np.exp(log_width)) ** 2))
        return float(1 - r2 - (lost_F**2 @ power_F) / power_F.sum())

    widest = np.log(10.0 * len(bold_TV))
    log_width = widest if excess(widest) > 0 else optimize.brentq(excess, -10.0, widest)
    gain_F = np.exp(-((np.concatenate([[0.0], cycles_F]) * np.exp(log_width)) ** 2))
    return fft.irfft(spectrum_FV * gain_F[:, None], n=len(bold_TV), axis=0)
