"""Loss against one axis: L = E + A x^-alpha with intervals, and the prediction of a size that was not fitted."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pipeline.intervals import Interval
from pipeline.scaling.forms import FLAT, FORMS, SATURATING, STEEP, Fit, fit_form


@dataclass(frozen=True)
class PowerLaw:
    """L = irreducible + amplitude * x^-exponent."""

    exponent: Interval
    irreducible: Interval
    amplitude: Interval
    residual: float  # root mean square of the log residuals
    sizes: int  # distinct x
    fit: Fit

    def predict(self, x: np.ndarray) -> np.ndarray:
        """Loss at x."""
        x = np.asarray(x, dtype=float)
        return np.exp(self.fit.log_loss(x.reshape(-1, 1), self.fit.theta_P[None])[0]).reshape(x.shape)

    def predict_interval(self, x: float) -> Interval:
        """Loss at one x with the interval of the curve there (not of a single new cell)."""
        return exponential(self.fit.interval(lambda theta_BP: self.fit.log_loss(np.array([[x]]), theta_BP)[:, 0]))

    @property
    def identified(self) -> bool:
        """Whether the cells say anything of the exponent: more sizes than parameters, and an interval with two ends."""
        inside = self.exponent.low > 1.5 * FLAT and self.exponent.high < STEEP / 1.5
        return self.sizes > len(self.fit.theta_P) and inside


@dataclass(frozen=True)
class HeldOut:
    """What a form, fitted without the largest size, says of it; `error` is log predicted over observed."""

    x: float
    observed: float
    predicted: float
    error: float


def fit_power_law(
    x: np.ndarray,
    y: np.ndarray,
    groups: np.ndarray | None = None,
    bootstrap: int = 1000,
    confidence: float = 0.95,
    rng: np.random.Generator | None = None,
) -> PowerLaw:
    """Fit L = E + A x^-alpha to positive losses.

    Parameters
    ----------
    x, y : (n,) parameters, FLOPs or unique frames, and losses; both positive.
    groups : cells of one group (e.g. a draw of people) are resampled together.
    bootstrap, confidence : resamples of cells behind each interval, and its nominal coverage.

    Raises
    ------
    ValueError : fewer than two cells, or a value that is not positive and finite.

    Sources: Hoffmann et al. (2022); Besiroglu et al. (2024) on the scale of the objective; arXiv 2603.22339 on starts.
    """
    x, y = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
    if len(x) < 2 or not (np.isfinite(x).all() and np.isfinite(y).all() and (x > 0).all() and (y > 0).all()):
        raise ValueError(f"found {len(x)} cells; expected at least 2, with positive finite x and y")
    fit = fit_form(SATURATING, x[:, None], y, groups, bootstrap, confidence, rng)
    return PowerLaw(
        exponent=_within(fit.interval(lambda theta_BP: theta_BP[:, 2]), FLAT, STEEP),
        irreducible=exponential(fit.interval(lambda theta_BP: theta_BP[:, 0])),
        amplitude=exponential(fit.interval(lambda theta_BP: theta_BP[:, 1] + theta_BP[:, 2] * fit.centre_D[0])),
        residual=float(np.sqrt(np.mean(fit.residual_n**2))),
        sizes=len(np.unique(x)),
        fit=fit,
    )


def predict_largest(x: np.ndarray, y: np.ndarray) -> dict[str, HeldOut]:
    """Each form fitted to all but the largest x, and its error there; forms with too few sizes are left out."""
    x, y = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
    largest = x == x.max()
    observed = float(np.exp(np.log(y[largest]).mean()))
    found = {}
    for name, form in FORMS.items():
        if len(np.unique(x[~largest])) >= len(form.parameters):
            fit = fit_form(form, x[~largest, None], y[~largest])
            predicted = float(np.exp(fit.log_loss(np.array([[x.max()]]), fit.theta_P[None])[0, 0]))
            found[name] = HeldOut(float(x.max()), observed, predicted, float(np.log(predicted / observed)))
    return found


def exponential(interval: Interval) -> Interval:
    """The interval of the exponential of what an interval is about."""
    with np.errstate(over="ignore"):
        value, low, high = (float(np.exp(bound)) for bound in interval)
    return Interval(value, low, high)


def _within(interval: Interval, low: float, high: float) -> Interval:
    """The interval cut to where the parameter was sought."""
    return Interval(interval.value, max(low, interval.low), min(high, interval.high))
