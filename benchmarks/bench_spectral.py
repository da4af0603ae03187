"""Slope and Whittle exponent of many voxels at once, against a loop of scipy calls over voxels: ratios in one run.

Both sides do the same sums, and must agree. Run `make bench`, or this file.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
from scipy import optimize, signal, stats

from pipeline.bold.noise import fgn_spectrum, fractional_gaussian_noise
from pipeline.spectral import hurst_exponent, spectral_slope

FRAMES, TR_S, VOXELS, LOOP_SLOPE, LOOP_WHITTLE = 1200, 0.72, 20_000, 1000, 60


def seconds_per_voxel(measure: Callable[[np.ndarray], np.ndarray], bold_TV: np.ndarray) -> tuple[float, np.ndarray]:
    start = time.perf_counter()
    found_V = measure(bold_TV)
    return (time.perf_counter() - start) / bold_TV.shape[1], found_V


def loop_slope(bold_TV: np.ndarray) -> np.ndarray:
    tapers, slopes = signal.windows.dpss(FRAMES, 3, Kmax=5), []
    for bold_T in bold_TV.T:
        singles = [signal.periodogram(bold_T, 1 / TR_S, taper, detrend="constant") for taper in tapers]
        freqs_F, power_F = singles[0][0], np.mean([power for _, power in singles], axis=0)
        band = (freqs_F >= 0.01) & (freqs_F <= 0.1)
        slopes.append(-stats.linregress(np.log(freqs_F[band]), np.log(power_F[band])).slope)
    return np.array(slopes)


def loop_whittle(bold_TV: np.ndarray) -> np.ndarray:
    found = []
    for bold_T in bold_TV.T:
        freqs_F, power_F = (part[1:-1] for part in signal.periodogram(bold_T, 1 / TR_S, detrend="constant"))

        def loss(hurst: float, freqs_F: np.ndarray = freqs_F, power_F: np.ndarray = power_F) -> float:
            density_F = fgn_spectrum(freqs_F, hurst, TR_S)
            return float(np.log(np.mean(power_F / density_F)) + np.mean(np.log(density_F)))

        found.append(optimize.minimize_scalar(loss, bounds=(0.01, 0.99), method="bounded").x)
    return np.array(found)


def main() -> None:
    bold_TV = fractional_gaussian_noise(FRAMES, 0.8, np.random.default_rng(0), VOXELS).astype(np.float32)
    cases: list[tuple[str, Callable[[np.ndarray], np.ndarray], Callable[[np.ndarray], np.ndarray], int]] = [
        ("multitaper slope", lambda part_TV: spectral_slope(part_TV, TR_S), loop_slope, LOOP_SLOPE),
        ("Whittle exponent", lambda part_TV: hurst_exponent(part_TV, TR_S), loop_whittle, LOOP_WHITTLE),
    ]
    print(f"{FRAMES} frames, {VOXELS} voxels; the loops see {LOOP_SLOPE} and {LOOP_WHITTLE} of them")
    for name, ours, loop, count in cases:
        fast, found_V = seconds_per_voxel(ours, bold_TV)
        slow, reference_V = seconds_per_voxel(loop, bold_TV[:, :count].astype(float))
        apart = np.abs(found_V[:count] - reference_V).max()
        cost = f"{200_000 * fast:.0f} s for 200,000 voxels"
        print(f"{name}: {slow / fast:.0f} times the loop's speed ({cost}); answers differ by {apart:.1e}")


if __name__ == "__main__":
    main()
