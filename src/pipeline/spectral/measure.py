"""From runs to rows: a run's spectrum averaged over voxels, slope and Hurst exponent with an error, means over people.

Spectra are averaged before a line is fitted, because a voxel's own slope has a standard deviation of 0.3 at 160 frames.
Axes: F frequencies, N signals, P people, R resamples.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from scipy import special

from pipeline.intervals import bootstrap_interval, family_weights
from pipeline.spectral.hurst import hurst_of_spectrum
from pipeline.spectral.spectrum import (
    COLUMNS_AT_ONCE,
    apart,
    band_bins,
    log_log_slope,
    periodogram,
    power_spectrum,
)

GROUPS = 10  # of frequencies, left out in turn

Statistic = Callable[[np.ndarray, np.ndarray], np.ndarray]  # (freqs_F, power_FN) -> one value a column


@dataclass(frozen=True)
class Spectrum:
    """Spectrum of one run, averaged over its voxels.

    `power_F` is the multitaper estimate, in which a line is smeared over `half_width_hz` to either side;
    `periodogram_F` is the untapered one, whose frequencies are nearly independent, for errors alone.
    """

    freqs_F: np.ndarray
    power_F: np.ndarray
    periodogram_F: np.ndarray
    tr_s: float
    half_width_hz: float


@dataclass(frozen=True)
class Finding:
    """One number of one run of one person; `error` is its standard error, NaN where there is none."""

    dataset: str
    system: str
    person: str
    task: str
    metric: str
    value: float
    error: float = np.nan


@dataclass(frozen=True)
class Curve:
    """One spectrum of one run of one person."""

    dataset: str
    system: str
    person: str
    spectrum: Spectrum


def voxel_mean_spectrum(bold_TV: np.ndarray, tr_s: float, bandwidth: float) -> Spectrum:
    """Mean spectrum over columns that are neither constant nor missing; NaN where none is left."""
    alive_V = np.isfinite(bold_TV).all(axis=0) & (np.ptp(bold_TV, axis=0) > 0)
    used_TV = bold_TV[:, alive_V] if alive_V.any() else np.full((len(bold_TV), 1), np.nan)
    power_F, periodogram_F = np.zeros((2, len(bold_TV) // 2))
    for start in range(0, used_TV.shape[1], COLUMNS_AT_ONCE):
        part_TV = used_TV[:, start : start + COLUMNS_AT_ONCE]
        power_F += power_spectrum(part_TV, tr_s, "multitaper", bandwidth)[1].sum(axis=1) / used_TV.shape[1]
        periodogram_F += periodogram(part_TV, tr_s)[1].sum(axis=1) / used_TV.shape[1]
    freqs_F = np.fft.rfftfreq(len(bold_TV), tr_s)[1:]
    return Spectrum(freqs_F, power_F, periodogram_F, tr_s, bandwidth / (len(bold_TV) * tr_s))


def slope(spectrum: Spectrum, band_hz: tuple[float, float], comb_hz: Sequence[float] = ()) -> tuple[float, float]:
    """Slope beta and its error; lines of a comb are left out as far as the tapers smear them, and so is zero.

    The mean is gone at zero: with the frequency at the tapers' width, white noise of 240 s has a slope of -0.01.
    """
    keep_F = band_bins(spectrum.freqs_F, band_hz, (0.0, *comb_hz), spectrum.half_width_hz)
    return _with_error(spectrum, keep_F, log_log_slope)


def hurst(spectrum: Spectrum, comb_hz: Sequence[float] = ()) -> tuple[float, float]:
    """Whittle's H and its error; the comb and zero are left out as in `slope`."""
    statistic = partial(hurst_of_spectrum, tr_s=spectrum.tr_s)
    return _with_error(spectrum, apart(spectrum.freqs_F, (0.0, *comb_hz), spectrum.half_width_hz), statistic)


def _with_error(spectrum: Spectrum, keep_F: np.ndarray, statistic: Statistic) -> tuple[float, float]:
    """A statistic of the multitaper spectrum, with the error from leaving out every tenth frequency of the periodogram.

    It is the only error that a single run has. Tapers left out in turn would not do: what two of them say of
    neighbouring frequencies is the same, and the error came out at less than half of what it is.
    """
    freqs_F, power_F, periodogram_F = (
        part[keep_F] for part in (spectrum.freqs_F, spectrum.power_F, spectrum.periodogram_F)
    )
    if not (np.isfinite(power_F).all() and (power_F > 0).all()):
        return np.nan, np.nan
    without = []
    for group in range(GROUPS):
        others_F = np.arange(len(freqs_F)) % GROUPS != group
        without.append(statistic(freqs_F[others_F], periodogram_F[others_F, None])[0])
    return float(statistic(freqs_F, power_F[:, None])[0]), float(np.sqrt((GROUPS - 1) * np.var(without)))


def finite_mean(values: np.ndarray) -> float:
    """Mean of the values that are numbers; NaN where none is."""
    finite = values[np.isfinite(values)]
    return float(finite.mean()) if finite.size else float("nan")


def per_person(findings: Iterable[Finding]) -> dict[tuple[str, str, str, str], dict[str, tuple[Finding, int]]]:
    """Means over each person's runs, and how many, keyed by (dataset, system, task, metric) and then by person."""
    runs: dict[tuple[str, str, str, str], dict[str, list[Finding]]] = defaultdict(lambda: defaultdict(list))
    for finding in findings:
        runs[finding.dataset, finding.system, finding.task, finding.metric][finding.person].append(finding)
    return {
        key: {person: (_mean_finding(group), len(group)) for person, group in people.items()}
        for key, people in runs.items()
    }


def _mean_finding(group: list[Finding]) -> Finding:
    errors = np.array([finding.error for finding in group])
    value = float(np.mean([finding.value for finding in group]))
    return replace(group[0], value=value, error=float(np.sqrt((errors**2).sum()) / len(errors)))


def result_rows(
    findings: Iterable[Finding], confidence: float, resamples: int, rng: np.random.Generator
) -> list[dict[str, Any]]:
    """Rows of RESULT_SCHEMA without who made them: split "all" over people, and one row a person.

    The interval is a bootstrap over people; one person alone has that of the run (Student, 9 degrees).
    """
    rows = []
    for (dataset, system, task, metric), people in per_person(findings).items():
        name = {"dataset": dataset, "system": system, "task": task, "metric": metric}
        values_P = np.array([finding.value for finding, _ in people.values()])
        if len(values_P) > 1:
            value, low, high = bootstrap_interval(values_P, None, confidence, resamples, rng)
        else:
            (only, _), *_ = people.values()
            reach = float(special.stdtrit(GROUPS - 1, (1 + confidence) / 2)) * only.error
            value, low, high = only.value, only.value - reach, only.value + reach
            if metric.endswith("_difference"):
                low = max(low, 0.0)  # the size of a difference, which has no sign
        rows.append({**name, "split": "all", "value": value, "low": low, "high": high, "n": len(values_P)})
        for person, (finding, runs) in people.items():
            alone = {"split": f"person-{person}", "value": finding.value, "low": np.nan, "high": np.nan, "n": runs}
            rows.append({**name, **alone})
    return rows


def spectra_rows(
    curves: Iterable[Curve], confidence: float, resamples: int, rng: np.random.Generator
) -> list[dict[str, Any]]:
    """Rows of SPECTRA_SCHEMA without who made them: mean spectrum over people, with a bootstrap interval over them."""
    groups: dict[tuple[str, str], list[Curve]] = defaultdict(list)
    for curve in curves:
        groups[curve.dataset, curve.system].append(curve)
    rows = []
    for (dataset, system), group in groups.items():
        freqs_F, power_PF = _people_spectra(group)
        low_F = high_F = np.full(len(freqs_F), np.nan)
        if len(power_PF) > 1:
            resampled_RF = family_weights(np.arange(len(power_PF)), resamples, rng) @ power_PF / len(power_PF)
            low_F, high_F = np.quantile(resampled_RF, [(1 - confidence) / 2, (1 + confidence) / 2], axis=0)
        for freq, power, low, high in zip(freqs_F, power_PF.mean(axis=0), low_F, high_F, strict=True):
            name = {"dataset": dataset, "system": system, "frequency_hz": freq}
            rows.append({**name, "power": power, "low": low, "high": high, "n": len(power_PF)})
    return rows


def _people_spectra(curves: list[Curve]) -> tuple[np.ndarray, np.ndarray]:
    """Each person's mean spectrum over runs, at the frequencies of the shortest run."""
    freqs_F = min((curve.spectrum.freqs_F for curve in curves), key=len)
    people: dict[str, list[np.ndarray]] = defaultdict(list)
    for curve in curves:
        people[curve.person].append(np.interp(freqs_F, curve.spectrum.freqs_F, curve.spectrum.power_F))
    return freqs_F, np.array([np.mean(runs, axis=0) for runs in people.values()])
