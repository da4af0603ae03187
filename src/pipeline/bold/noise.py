"""Time courses whose spectra are known in closed form: fractional Gaussian noise and haemodynamic events.

Spectra are one-sided, in variance per Hz, of processes of unit variance, so each integrates to one up to Nyquist.
Axes: T frames, S series, K networks.
"""

from __future__ import annotations

import numpy as np
from scipy.special import gammaln, zeta

# Double gamma of SPM and FSL in seconds: response, undershoot, undershoot's share.
PEAK_SHAPE, UNDERSHOOT_SHAPE, UNDERSHOOT = 6.0, 16.0, 1 / 6
RESPONSE_S = 32.0
EVENT_RATE_HZ = 0.2
EVENT_STEP_S = 0.1  # the finest time at which an event may begin


def fgn_autocovariance(lags: np.ndarray, hurst: float) -> np.ndarray:
    """Autocovariance of unit-variance fractional Gaussian noise. Source: Mandelbrot & Van Ness (1968)."""
    k = np.abs(np.asarray(lags, dtype=float))
    return (np.abs(k + 1) ** (2 * hurst) - 2 * k ** (2 * hurst) + np.abs(k - 1) ** (2 * hurst)) / 2


def fgn_spectrum(freqs_hz: np.ndarray, hurst: float, tr_s: float) -> np.ndarray:
    """One-sided spectral density of unit-variance fractional Gaussian noise sampled every `tr_s`.

    The sum over aliases is exact: a pair of Hurwitz zeta functions. At low frequency it goes as f^(1 - 2 hurst).

    Raises
    ------
    ValueError : `hurst` outside (0, 1), or a frequency outside (0, Nyquist].

    Source: Sinai (1976); Paxson (1997), equation 3.
    """
    _check_hurst(hurst)
    cycles = _cycles_per_frame(freqs_hz, tr_s)
    power = 2 * hurst + 1
    aliases = (zeta(power, cycles) + zeta(power, 1 - cycles)) / (2 * np.pi) ** power
    scale = 8 * tr_s * np.sin(np.pi * hurst) * np.exp(gammaln(power))
    return scale * np.sin(np.pi * cycles) ** 2 * aliases


def fractional_gaussian_noise(frames: int, hurst: float, rng: np.random.Generator, series: int = 1) -> np.ndarray:
    """Independent series of fractional Gaussian noise, exact in covariance, variance one.

    Returns
    -------
    noise_TS : (frames, series).

    Source: Davies & Harte (1987); the circulant embedding is non-negative for every hurst in (0, 1).
    """
    _check_hurst(hurst)
    covariance = fgn_autocovariance(np.arange(frames + 1), hurst)
    eigenvalues = np.fft.fft(np.concatenate([covariance, covariance[-2:0:-1]])).real.clip(min=0)
    pairs = (len(eigenvalues), (series + 1) // 2)
    white = rng.standard_normal(pairs) + 1j * rng.standard_normal(pairs)
    paths = np.fft.fft(np.sqrt(eigenvalues / len(eigenvalues))[:, None] * white, axis=0)[:frames]
    return np.concatenate([paths.real, paths.imag], axis=1)[:, :series]


def hrf(step_s: float, delay_s: float = 0.0) -> np.ndarray:
    """Canonical double-gamma haemodynamic response, sampled every `step_s` for 32 s after its delay; area 5/6."""
    since_s = np.arange(0, RESPONSE_S + delay_s, step_s) - delay_s
    since_s = np.maximum(since_s, 0)
    peak, undershoot = (
        since_s ** (shape - 1) * np.exp(-since_s - gammaln(shape)) for shape in (PEAK_SHAPE, UNDERSHOOT_SHAPE)
    )
    return np.asarray(peak - UNDERSHOOT * undershoot)


def hrf_autocorrelation(lag_s: np.ndarray) -> np.ndarray:
    """Autocorrelation of the response at lags in seconds: how alike two networks' events are if one comes later."""
    response = hrf(EVENT_STEP_S)
    correlation = np.convolve(response, response[::-1])[len(response) - 1 :]
    lags_s = EVENT_STEP_S * np.arange(len(correlation))
    return np.interp(np.abs(lag_s), lags_s, correlation / correlation[0])


def hrf_spectrum(freqs_hz: np.ndarray, tr_s: float) -> np.ndarray:
    """One-sided spectral density of unit-variance haemodynamic events, sampled every `tr_s`, whatever its delay.

    Events at random times with zero-mean sizes are white, so the density is the squared transfer function.
    """
    cycles = _cycles_per_frame(freqs_hz, tr_s)
    alias = np.arange(-8, 9)[:, None]  # the ninth is below 1e-12 of the first
    return 2 * (np.abs(_transfer((cycles + alias) / tr_s)) ** 2).sum(axis=0) / _energy()


def mean_variance(frames: int, tr_s: float, hurst: float) -> tuple[float, float, float]:
    """Variance of the mean of a run of unit-variance fractional noise, of events and of white noise.

    A z-score takes it away; at hurst 0.9 and 160 frames it is 0.36 of fractional noise. Events: to first order in
    the inverse of the run's length.
    """
    events = float(np.abs(_transfer(np.zeros(1))[0]) ** 2 / _energy() / (frames * tr_s))
    return float(frames ** (2 * hurst - 2)), events, 1 / frames


def haemodynamic_events(
    frames: int, tr_s: float, mixing_KS: np.ndarray, delays_s: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """Spontaneous events of independent sources, mixed into networks, each seen through its own delayed response.

    Parameters
    ----------
    mixing_KS : rows of unit length; networks with common sources have common events.

    Returns
    -------
    events_TK : unit variance in expectation, spectrum `hrf_spectrum`.
    """
    substeps = max(1, round(tr_s / EVENT_STEP_S))
    step_s = tr_s / substeps
    lead = round((RESPONSE_S + delays_s.max()) / step_s)
    shape = (lead + frames * substeps, mixing_KS.shape[1])
    chance = EVENT_RATE_HZ * step_s
    sources = (rng.standard_normal(shape) * (rng.random(shape) < chance)) @ mixing_KS.T
    responses = [hrf(step_s, delay) for delay in delays_s]
    from scipy.signal import fftconvolve  # scipy.signal takes a second to import

    seen = [fftconvolve(source, response)[: len(source)] for source, response in zip(sources.T, responses, strict=True)]
    sizes = [np.sqrt(chance * np.sum(response**2)) for response in responses]
    return np.stack(seen, axis=1)[lead::substeps] / sizes


def _transfer(freqs_hz: np.ndarray) -> np.ndarray:
    """Fourier transform of the response."""
    pole = 1 + 2j * np.pi * freqs_hz
    return pole**-PEAK_SHAPE - UNDERSHOOT * pole**-UNDERSHOOT_SHAPE


def _energy() -> float:
    """Integral of the squared response."""

    def overlap(a: float, b: float) -> float:
        return float(np.exp(gammaln(a + b - 1) - gammaln(a) - gammaln(b) - (a + b - 1) * np.log(2)))

    peak, undershoot = PEAK_SHAPE, UNDERSHOOT_SHAPE
    return (
        overlap(peak, peak)
        - 2 * UNDERSHOOT * overlap(peak, undershoot)
        + UNDERSHOOT**2 * overlap(undershoot, undershoot)
    )


def _cycles_per_frame(freqs_hz: np.ndarray, tr_s: float) -> np.ndarray:
    cycles = np.asarray(freqs_hz, dtype=float) * tr_s
    if np.any(cycles <= 0) or np.any(cycles > 0.5 + 1e-9):
        raise ValueError(f"frequencies must lie in (0, {0.5 / tr_s:g}] Hz for a TR of {tr_s:g} s")
    return cycles


def _check_hurst(hurst: float) -> None:
    if not 0 < hurst < 1:
        raise ValueError(f"Hurst exponent {hurst:g} is outside (0, 1)")
