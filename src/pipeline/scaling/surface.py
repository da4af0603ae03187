"""Loss over people and frames: L = E + A N^-a + B T^-b, and what a person is worth in frames."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pipeline.intervals import Interval
from pipeline.scaling.forms import FLAT, STEEP, SURFACE, Fit, fit_form
from pipeline.scaling.power_law import exponential


@dataclass(frozen=True)
class Surface:
    """L = irreducible + amplitude_subjects * N^-exponent_subjects + amplitude_frames * T^-exponent_frames."""

    exponent_subjects: Interval
    exponent_frames: Interval
    amplitude_subjects: Interval
    amplitude_frames: Interval
    irreducible: Interval
    conditions: int  # distinct (N, T)
    fit: Fit

    def predict(self, subjects: np.ndarray, frames: np.ndarray) -> np.ndarray:
        """Loss at N and T."""
        subjects, frames = np.broadcast_arrays(np.asarray(subjects, dtype=float), np.asarray(frames, dtype=float))
        x_nD = np.stack([subjects.ravel(), frames.ravel()], axis=1)
        return np.exp(self.fit.log_loss(x_nD, self.fit.theta_P[None])[0]).reshape(subjects.shape)

    def exchange_rate(self, subjects: float, frames: float) -> Interval:
        """Frames that equal a doubling of the people, as a multiple of T, at (N, T); infinite where none do.

        Solves B T'^-b = B T^-b - A N^-a (1 - 2^-a) for T' / T. 2 says that a person is worth as much as his frames;
        more, that a new person is worth more.
        """

        def log_rate(theta_BP: np.ndarray) -> np.ndarray:
            people, time = np.log(subjects) - self.fit.centre_D[0], np.log(frames) - self.fit.centre_D[1]
            _, log_a, a, log_b, b = theta_BP.T
            gain = np.exp(log_a - a * people - log_b + b * time) * (1 - 2.0**-a)  # as a share of the frames' term
            with np.errstate(divide="ignore", invalid="ignore"):
                rate = np.where(gain < 1, -np.log1p(-np.minimum(gain, 1)) / b, np.inf)
            return np.minimum(rate, LOG_INFINITE)

        value, low, high = exponential(self.fit.interval(log_rate))
        endless = [bound >= np.exp(LOG_INFINITE / 2) for bound in (value, low, high)]
        bounds = [np.inf if infinite else bound for bound, infinite in zip((value, low, high), endless, strict=True)]
        return Interval(bounds[0], max(1.0, bounds[1]), bounds[2])

    @property
    def identified(self) -> bool:
        """Whether the cells say anything: three conditions more than parameters, and both' intervals with two ends."""
        intervals = (self.exponent_subjects, self.exponent_frames)
        inside = all(interval.low > 1.5 * FLAT and interval.high < STEEP / 1.5 for interval in intervals)
        return self.conditions >= len(self.fit.theta_P) + 3 and inside


LOG_INFINITE = 50.0


def fit_surface(
    subjects: np.ndarray,
    frames: np.ndarray,
    y: np.ndarray,
    groups: np.ndarray | None = None,
    bootstrap: int = 1000,
    confidence: float = 0.95,
    rng: np.random.Generator | None = None,
) -> Surface:
    """Fit the surface to positive losses of (n,) cells; cells off the diagonal of equal N x T must be among them.

    Raises
    ------
    ValueError : all cells lie on one line of equal tokens, or N or T does not vary.
    """
    x_nD = np.stack([np.asarray(subjects, dtype=float), np.asarray(frames, dtype=float)], axis=1)
    if np.linalg.matrix_rank(np.log(x_nD) - np.log(x_nD).mean(axis=0), tol=1e-6) < 2:
        raise ValueError("found cells on one line of N and T; expected some off that line, to tell them apart")
    fit = fit_form(SURFACE, x_nD, np.asarray(y, dtype=float), groups, bootstrap, confidence, rng)

    def amplitude(axis: int) -> Interval:
        log, exponent = 1 + 2 * axis, 2 + 2 * axis
        return exponential(fit.interval(lambda theta_BP: theta_BP[:, log] + theta_BP[:, exponent] * fit.centre_D[axis]))

    def exponent(column: int) -> Interval:
        value, low, high = fit.interval(lambda theta_BP: theta_BP[:, column])
        return Interval(value, max(FLAT, low), min(STEEP, high))

    return Surface(
        exponent_subjects=exponent(2),
        exponent_frames=exponent(4),
        amplitude_subjects=amplitude(0),
        amplitude_frames=amplitude(1),
        irreducible=exponential(fit.interval(lambda theta_BP: theta_BP[:, 0])),
        conditions=len(np.unique(x_nD, axis=0)),
        fit=fit,
    )
