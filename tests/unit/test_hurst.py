"""Hurst exponents of exact fractional Gaussian noise, and of spectra in closed form."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.bold.noise import fgn_spectrum, fractional_gaussian_noise
from pipeline.spectral import hurst_exponent, hurst_of_spectrum
from pipeline.spectral.hurst import _split_octave
from pipeline.spectral.measure import hurst, slope, voxel_mean_spectrum

SERIES = 800
ALLOWED = {"whittle": 0.02, "local_whittle": 0.02, "dfa": 0.03, "wavelet": 0.03}  # bias


@pytest.fixture(scope="module")
def noise():
    rng = np.random.default_rng(1)
    return {
        (frames, hurst): fractional_gaussian_noise(frames, hurst, rng, SERIES)
        for frames in (160, 1200)
        for hurst in (0.5, 0.6, 0.7, 0.9)
    }


@pytest.mark.parametrize(
    ("method", "allowed"), [("whittle", 0.02), ("local_whittle", 0.02), ("dfa", 0.03), ("wavelet", 0.03)]
)
@pytest.mark.parametrize("planted", [0.5, 0.6, 0.7, 0.9])
def test_bias_on_exact_fractional_noise_is_small(noise, method, allowed, planted):
    for frames in (160, 1200):
        found_V = hurst_exponent(noise[frames, planted], 0.72, method)
        assert found_V.shape == (SERIES,)
        found_V = np.nan_to_num(found_V, nan=0.995)  # 5 % of 160 frames of H 0.9 are beyond the last candidate
        assert np.mean(found_V) == pytest.approx(planted, abs=allowed + 4 * np.std(found_V) / SERIES**0.5)


def test_whittle_is_the_most_precise_and_as_precise_as_theory_says(noise):
    spread = {method: np.std(hurst_exponent(noise[1200, 0.7], 1, method)) for method in ("whittle", "wavelet", "dfa")}
    assert spread["whittle"] == pytest.approx(0.020, abs=0.003)  # maximum likelihood of 1200 frames
    assert spread["whittle"] < spread["wavelet"] < spread["dfa"]


def test_whittle_finds_the_minimum_of_its_likelihood_between_candidates():
    freqs_F = np.fft.rfftfreq(400, 1.5)[1:]
    for planted in (0.5, 0.6123, 0.77, 0.931):
        power_F1 = fgn_spectrum(freqs_F, planted, 1.5)[:, None]
        assert hurst_of_spectrum(freqs_F, power_F1, 1.5)[0] == pytest.approx(planted, abs=1e-3)


def test_units_offsets_and_dead_voxels(noise):
    bold_TV = noise[160, 0.7][:, :3].copy()
    for method in ("whittle", "local_whittle", "dfa", "wavelet"):
        found_V = hurst_exponent(bold_TV, 1.5, method)
        np.testing.assert_allclose(hurst_exponent(50 * bold_TV + 900, 1.5, method), found_V, atol=1e-6)
        dead_TV = np.column_stack([bold_TV, np.full(160, 3.0)]).astype(np.float32)
        np.testing.assert_allclose(hurst_exponent(dead_TV, 1.5, method), [*found_V, np.nan], atol=1e-3)


def test_a_random_walk_is_off_the_scale_of_fractional_noise(noise):
    walk_TV = noise[1200, 0.5][:, :50].cumsum(axis=0)
    assert np.mean(hurst_exponent(walk_TV, 1, "dfa")) == pytest.approx(1.5, abs=0.06)
    assert np.mean(hurst_exponent(walk_TV, 1, "wavelet")) > 1.3
    found_V = hurst_exponent(walk_TV, 1, "whittle")
    assert np.isnan(found_V).mean() > 0.9  # not 0.995, which would read as a measurement
    assert (found_V[np.isfinite(found_V)] > 0.98).all()


def test_an_exponent_beyond_the_candidates_is_no_measurement():
    freqs_F = np.fft.rfftfreq(400, 1.5)[1:]
    steep, flat, blue = (freqs_F[:, None] ** power for power in (-2.0, 0.0, 3.0))
    found = [hurst_of_spectrum(freqs_F, power_F1, 1.5)[0] for power_F1 in (steep, flat, blue)]
    np.testing.assert_allclose(found, [np.nan, 0.5, np.nan], atol=1e-4)


def test_the_wavelet_splits_without_loss_and_ignores_lines():
    signal_TV = np.random.default_rng(0).standard_normal((4096, 1))
    detail_TV, smooth_TV = _split_octave(signal_TV)
    assert np.sum(detail_TV**2) + np.sum(smooth_TV**2) == pytest.approx(np.sum(signal_TV**2), rel=0.01)
    np.testing.assert_allclose(_split_octave(np.arange(64.0)[:, None])[0], 0, atol=1e-10)


def test_voxel_averages_keep_slope_and_exponent_and_bring_an_error(noise):
    """Many voxels in step: the error of one run must cover what its average misses, about 95 times in a hundred."""
    rng, covered = np.random.default_rng(3), []
    for start in range(0, SERIES, 4):
        spectrum = voxel_mean_spectrum(noise[160, 0.7][:, start : start + 4] @ rng.standard_normal((4, 30)), 1.5, 3.0)
        for (value, error), true in ((hurst(spectrum), 0.7), (slope(spectrum, (0.01, 0.1)), 0.43)):
            covered.append(abs(value - true) < 2.26 * error)  # Student, 9 degrees of freedom
    assert 0.88 < np.mean(covered) < 0.985
    whole = voxel_mean_spectrum(noise[160, 0.7], 1.5, 3.0)
    assert hurst(whole)[0] == pytest.approx(0.7, abs=0.01)
    assert slope(whole, (0.01, 0.1))[0] == pytest.approx(0.43, abs=0.04)


def test_what_cannot_be_answered_is_refused():
    bold_TV = np.random.default_rng(0).standard_normal((160, 2))
    with pytest.raises(ValueError, match="found 'rs'; expected one of whittle"):
        hurst_exponent(bold_TV, 1.5, "rs")
    with pytest.raises(ValueError, match="at least 64"):
        hurst_exponent(bold_TV[:50], 1.5)
