"""The slope of a spectrum: closed forms, scipy, surrogates, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import signal

from pipeline.bold.noise import fgn_spectrum, fractional_gaussian_noise, hrf
from pipeline.spectral import power_spectrum, slope_of_spectrum, spectral_slope
from pipeline.spectral.spectrum import require_broadband
from pipeline.spectral.surrogates import noise_matched, phase_randomised, smooth_matched, time_shuffled, white_noise


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def fgn_slope(frames, tr_s, hurst):
    freqs_F = np.fft.rfftfreq(frames, tr_s)[1:]
    return float(slope_of_spectrum(freqs_F, fgn_spectrum(freqs_F, hurst, tr_s)))


def r2(truth, other):
    return 1 - np.sum((truth - other) ** 2) / np.sum(truth**2)


@pytest.mark.parametrize("frames", [160, 261])
def test_welch_is_scipy_s_and_multitaper_is_a_mean_of_scipy_periodograms(rng, frames):
    bold_TV = rng.standard_normal((frames, 3)).cumsum(axis=0)
    freqs_F, power_FV = power_spectrum(bold_TV, 1.5, "welch")
    reference = signal.welch(bold_TV, 1 / 1.5, nperseg=round(200 / 1.5), axis=0)
    np.testing.assert_allclose(freqs_F, reference[0][1:])
    np.testing.assert_allclose(power_FV, reference[1][1:])

    freqs_F, power_FV = power_spectrum(bold_TV, 1.5, bandwidth=2.5)
    tapers = signal.windows.dpss(frames, 2.5, Kmax=4)
    centred = bold_TV - bold_TV.mean(axis=0)
    singles = [signal.periodogram(centred, 1 / 1.5, taper, detrend=False, axis=0) for taper in tapers]
    np.testing.assert_allclose(freqs_F, singles[0][0][1:])
    np.testing.assert_allclose(power_FV, np.mean([power for _, power in singles], axis=0)[1:], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("method", ["multitaper", "welch"])
def test_density_integrates_to_the_variance(rng, method):
    freqs_F, power_FV = power_spectrum(3 * rng.standard_normal((1200, 200)), 0.72, method)
    assert power_FV.mean(axis=1).sum() * (freqs_F[1] - freqs_F[0]) == pytest.approx(9, rel=0.02)


@pytest.mark.parametrize("method", ["multitaper", "welch"])
def test_white_noise_is_flat_and_a_random_walk_falls_with_the_square(rng, method):
    noise_TV = rng.standard_normal((1200, 400))
    assert np.mean(spectral_slope(noise_TV, 0.72, method=method)) == pytest.approx(0, abs=0.03)
    steep = spectral_slope(noise_TV.cumsum(axis=0), 0.72, (0.02, 0.1), method)
    assert np.mean(steep) == pytest.approx(2, abs=0.08)


@pytest.mark.parametrize(("frames", "tr_s", "allowed"), [(160, 1.5, 0.08), (260, 1.5, 0.04), (1200, 0.72, 0.02)])
@pytest.mark.parametrize("hurst", [0.6, 0.7, 0.9])
def test_fractional_noise_has_the_slope_of_its_closed_form(rng, frames, tr_s, allowed, hurst):
    slopes_V = spectral_slope(fractional_gaussian_noise(frames, hurst, rng, 3000), tr_s)
    assert np.mean(slopes_V) == pytest.approx(fgn_slope(frames, tr_s, hurst), abs=allowed)


def test_a_line_in_log_log_is_found_exactly():
    freqs_F = np.arange(1, 200) / 300
    power_FV = np.stack([5 * freqs_F**-0.8, 0.1 * freqs_F**1.2], axis=1)
    np.testing.assert_allclose(slope_of_spectrum(freqs_F, power_FV), [0.8, -1.2], rtol=1e-10)
    power_FV[19:22] *= 100  # a line at 0.07 Hz
    assert abs(slope_of_spectrum(freqs_F, power_FV)[0] - 0.8) > 0.05
    np.testing.assert_allclose(slope_of_spectrum(freqs_F, power_FV, exclude_hz=[0.07], half_width_hz=0.006)[0], 0.8)


@settings(max_examples=25, deadline=None)
@given(scale=st.floats(1e-3, 1e6), shift=st.floats(-1e4, 1e4), columns=st.integers(1, 5))
def test_unit_and_offset_do_not_matter(scale, shift, columns):
    bold_TV = fractional_gaussian_noise(200, 0.8, np.random.default_rng(columns), columns)
    slopes_V = spectral_slope(bold_TV, 1.5)
    assert slopes_V.shape == (columns,)
    np.testing.assert_allclose(spectral_slope(scale * (bold_TV + shift), 1.5), slopes_V, atol=1e-6)


def test_constant_and_missing_columns_are_nan_and_the_others_stay(rng):
    bold_TV = rng.standard_normal((200, 4))
    alone_V = spectral_slope(bold_TV, 1.5)
    bold_TV[:, 1], bold_TV[5, 2] = 7.0, np.nan
    np.testing.assert_allclose(spectral_slope(bold_TV, 1.5), [alone_V[0], np.nan, np.nan, alone_V[3]])


def test_too_few_frequencies_are_refused_with_the_reason(rng):
    with pytest.raises(ValueError, match=r"found 6 frequencies in 0.01-0.1 Hz.*at least 8"):
        spectral_slope(rng.standard_normal((50, 2)), 1.5)
    with pytest.raises(ValueError, match="expected 'multitaper' or 'welch'"):
        spectral_slope(rng.standard_normal((200, 2)), 1.5, method="lomb")


def test_band_passed_input_is_refused_and_bold_is_not(rng):
    response = hrf(1.5)
    smooth_TV = signal.lfilter(response, 1, fractional_gaussian_noise(300, 0.9, rng, 200), axis=0)[40:]
    require_broadband(smooth_TV, 1.5)  # even without any noise
    noisy_TV = smooth_TV / smooth_TV.std(axis=0) + 0.5 * rng.standard_normal(smooth_TV.shape)
    for order in (2, 5):
        band = signal.butter(order, [0.01, 0.1], "band", fs=1 / 1.5, output="sos")
        with pytest.raises(ValueError, match="not band-passed"):
            spectral_slope(signal.sosfiltfilt(band, noisy_TV, axis=0), 1.5)
    filtered_TV = signal.sosfiltfilt(band, noisy_TV, axis=0)
    assert np.isfinite(spectral_slope(filtered_TV, 1.5, refuse_filtered=False)).all()


def test_phases_do_not_matter_to_the_slope_and_order_does(rng):
    bold_TV = fractional_gaussian_noise(400, 0.9, rng, 500)
    randomised_TV = phase_randomised(bold_TV, rng)
    _, before_FV = signal.periodogram(bold_TV, axis=0)
    np.testing.assert_allclose(signal.periodogram(randomised_TV, axis=0)[1], before_FV, atol=1e-10)
    assert r2(bold_TV, randomised_TV) < 0  # it is another signal
    slope = np.mean(spectral_slope(bold_TV, 1.5))
    assert np.mean(spectral_slope(randomised_TV, 1.5)) == pytest.approx(slope, abs=0.05)
    assert np.mean(spectral_slope(time_shuffled(bold_TV, rng), 1.5)) == pytest.approx(0, abs=0.05)
    assert np.mean(spectral_slope(white_noise(400, 500, rng), 1.5)) == pytest.approx(0, abs=0.05)
    np.testing.assert_allclose(np.corrcoef(randomised_TV.T), np.corrcoef(bold_TV.T), atol=1e-10)


@pytest.mark.parametrize("wanted", [0.1, 0.5, 0.9])
def test_matched_surrogates_are_as_far_from_the_signal_as_asked(rng, wanted):
    bold_TV = fractional_gaussian_noise(300, 0.8, rng, 300)
    bold_TV = (bold_TV - bold_TV.mean(axis=0)) / bold_TV.std(axis=0)
    assert r2(bold_TV, noise_matched(bold_TV, wanted, rng)) == pytest.approx(wanted, abs=0.02)
    assert r2(bold_TV, smooth_matched(bold_TV, wanted)) == pytest.approx(wanted, abs=1e-6)
