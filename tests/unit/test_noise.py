"""Time courses with known spectra, against closed forms that do not share code with them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.integrate import quad

from pipeline.bold import noise

TR_S = 1.5


@pytest.mark.parametrize("hurst", [0.3, 0.5, 0.7, 0.9])
def test_fractional_noise_has_its_autocovariance(hurst: float) -> None:
    series = noise.fractional_gaussian_noise(64, hurst, np.random.default_rng(1), series=20_000)
    for lag in (0, 1, 2, 5, 20, 63):
        products = (series[: 64 - lag] * series[lag:]).mean(axis=0)
        error = products.std() / np.sqrt(len(products))
        # Mandelbrot & Van Ness: half the second difference of |k|^2H.
        expected = (abs(lag + 1) ** (2 * hurst) - 2 * lag ** (2 * hurst) + abs(lag - 1) ** (2 * hurst)) / 2
        assert products.mean() == pytest.approx(expected, abs=4 * error)


def test_fractional_noise_series_are_independent_and_gaussian() -> None:
    series = noise.fractional_gaussian_noise(200, 0.8, np.random.default_rng(2), series=5)
    assert series.shape == (200, 5)
    ends = noise.fractional_gaussian_noise(8, 0.8, np.random.default_rng(3), series=40_000)
    assert np.corrcoef(ends[0, ::2], ends[0, 1::2])[0, 1] == pytest.approx(0, abs=0.03)
    assert (ends[3] ** 4).mean() == pytest.approx(3, abs=0.15)


@given(hurst=st.floats(0.05, 0.95), lag=st.integers(0, 6))
def test_spectrum_is_the_transform_of_the_autocovariance(hurst: float, lag: int) -> None:
    # Its cosine transform over one period gives the covariance back; f = x^p tames the pole at zero.
    power = 1 / (1 - max(2 * hurst - 1, 0))

    def integrand(x: float) -> float:
        freq_hz = max(x**power, 1e-200)
        density = noise.fgn_spectrum(np.array([freq_hz]), hurst, TR_S)[0]
        return float(density * np.cos(2 * np.pi * freq_hz * TR_S * lag) * power * x ** (power - 1))

    value = quad(integrand, 0, (0.5 / TR_S) ** (1 / power), limit=200)[0]
    assert value == pytest.approx(noise.fgn_autocovariance(np.array([lag]), hurst)[0], abs=1e-5)


def test_spectrum_is_white_at_one_half_and_a_power_law_at_low_frequency() -> None:
    freqs_hz = np.array([0.01, 0.1, 0.3])
    assert noise.fgn_spectrum(freqs_hz, 0.5, TR_S) == pytest.approx(2 * TR_S)
    low, high = noise.fgn_spectrum(np.array([1e-5, 1e-4]), 0.85, TR_S)
    assert np.log10(low / high) == pytest.approx(2 * 0.85 - 1, abs=1e-3)


def test_response_peaks_at_five_seconds_and_undershoots() -> None:
    response = noise.hrf(0.1)
    assert 0.1 * response.argmax() == pytest.approx(5, abs=0.11)
    assert 12 < 0.1 * response.argmin() < 18
    assert response.min() < 0
    assert 0.1 * response.sum() == pytest.approx(5 / 6, abs=1e-3)
    assert 0.1 * noise.hrf(0.1, delay_s=2).argmax() == pytest.approx(7, abs=0.11)


def test_response_spectrum_is_its_fourier_transform() -> None:
    step_s, freqs_hz = 0.01, np.array([0.005, 0.03, 0.1, 0.15])
    response = noise.hrf(step_s)
    waves = np.exp(-2j * np.pi * np.outer(freqs_hz, step_s * np.arange(len(response))))
    power = np.abs(waves @ response * step_s) ** 2 / (np.sum(response**2) * step_s)
    # At a TR of 0.5 s nothing folds back into these frequencies.
    assert noise.hrf_spectrum(freqs_hz, 0.5) == pytest.approx(2 * power, rel=1e-3)
    assert quad(lambda f: noise.hrf_spectrum(np.array([f]), TR_S)[0], 0, 0.5 / TR_S)[0] == pytest.approx(1, abs=1e-6)


def test_events_have_the_response_spectrum_and_unit_variance() -> None:
    frames, networks = 256, 400
    rng = np.random.default_rng(4)
    events = noise.haemodynamic_events(frames, TR_S, np.eye(networks), np.linspace(0, 0.8, networks), rng)
    freqs_hz = np.fft.rfftfreq(frames, TR_S)[1:]
    measured = 2 * TR_S / frames * (np.abs(np.fft.rfft(events, axis=0)[1:]) ** 2).mean(axis=1)
    band = freqs_hz < 0.12  # above it a periodogram sees only the leakage of the power below
    ratio = measured[band] / noise.hrf_spectrum(freqs_hz[band], TR_S)
    assert events.var() == pytest.approx(1, abs=0.06)
    assert np.log(ratio).mean() == pytest.approx(0, abs=0.05)
    assert np.abs(np.log(ratio)).max() < 0.3


def test_events_of_a_common_source_arrive_with_the_delay() -> None:
    rng = np.random.default_rng(5)
    early, late = noise.haemodynamic_events(4000, 0.5, np.ones((2, 1)), np.array([0.0, 2.0]), rng).T
    assert late[4:] == pytest.approx(early[:-4], abs=0.02)
    expected = noise.hrf_autocorrelation(np.array([2.0]))[0]
    assert np.corrcoef(early, late)[0, 1] == pytest.approx(expected, abs=0.03)


@pytest.mark.parametrize(("hurst", "frames"), [(0.6, 96), (0.9, 160)])
def test_variance_that_a_zscore_takes_away(hurst: float, frames: int) -> None:
    rng = np.random.default_rng(6)
    fractional, events, white = noise.mean_variance(frames, TR_S, hurst)
    series = noise.fractional_gaussian_noise(frames, hurst, rng, 8000)
    trains = noise.haemodynamic_events(frames, TR_S, np.eye(2000), np.zeros(2000), rng)
    assert series.mean(axis=0).var() == pytest.approx(fractional, rel=0.08)
    assert trains.mean(axis=0).var() == pytest.approx(events, rel=0.15)
    assert white == 1 / frames


def test_impossible_arguments_are_refused() -> None:
    rng = np.random.default_rng(7)
    for hurst in (0.0, 1.0, -0.2):
        with pytest.raises(ValueError, match="Hurst exponent"):
            noise.fractional_gaussian_noise(10, hurst, rng)
    for freq_hz in (0.0, 0.4):
        with pytest.raises(ValueError, match="frequencies"):
            noise.fgn_spectrum(np.array([freq_hz]), 0.7, TR_S)
