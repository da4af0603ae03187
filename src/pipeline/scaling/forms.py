"""Forms of a loss curve and their fit: Huber on log residuals, Levenberg-Marquardt from many starts, all at once.

Parameters are logs of the terms, as in Hoffmann et al. (2022), so that no term turns negative; starts solve the terms
for a grid of exponents (variable projection), because only exponents make the problem hard.
Axes: B fits at once, n cells, P parameters, D axes of a cell (size; or people and frames), R resamples.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import product

import numpy as np

from pipeline.intervals import Interval

HUBER_DELTA = 1e-3  # smallest; Hoffmann et al. (2022)
FLAT, STEEP = 0.01, 3.0  # exponents are sought between them
BREAK_WIDTH = 0.3  # of the bend between two power laws, natural log of x
ITERATIONS = 40
EXPONENTS = (0.05, 0.15, 0.4, 1.0, 2.0)
FLOORS = (0.02, 0.5, 0.9, 0.99)  # shares of the smallest loss at which the irreducible part is tried


@dataclass(frozen=True)
class Form:
    """A loss as a function of x: names of its parameters, log prediction (theta_BP, logx_nD) -> (B, n), starts."""

    name: str
    parameters: tuple[str, ...]
    log_loss: Callable[[np.ndarray, np.ndarray], np.ndarray]
    starts: Callable[[np.ndarray, np.ndarray], list[list[float]]]
    low: tuple[float, ...]
    high: tuple[float, ...]


@dataclass(frozen=True)
class Fit:
    """A fitted form. x is centred at `centre_D` (mean log) inside; `groups` counts what was resampled."""

    form: Form
    theta_P: np.ndarray
    draws_RP: np.ndarray
    centre_D: np.ndarray
    residual_n: np.ndarray
    groups: int
    confidence: float

    def log_loss(self, x_nD: np.ndarray, theta_BP: np.ndarray) -> np.ndarray:
        """Log loss (B, n) at x for any parameters."""
        return self.form.log_loss(theta_BP, np.log(x_nD) - self.centre_D)

    def interval(self, statistic: Callable[[np.ndarray], np.ndarray]) -> Interval:
        """A function of the parameters (B, P) -> (B,) with its interval.

        Percentiles of the draws, stretched by sqrt(g / (g - P)) because g groups paid for P parameters.
        """
        value = float(statistic(self.theta_P[None])[0])
        draws_R = statistic(self.draws_RP)
        if not len(draws_R):
            return Interval(value, np.nan, np.nan)
        if self.groups <= len(self.theta_P):
            return Interval(value, -np.inf, np.inf)
        stretch = np.sqrt(self.groups / (self.groups - len(self.theta_P)))
        tail = (1 - self.confidence) / 2
        low, high = np.quantile(value + stretch * (draws_R - value), [tail, 1 - tail])
        return Interval(value, float(low), float(high))


def fit_form(
    form: Form,
    x_nD: np.ndarray,
    y_n: np.ndarray,
    groups_n: np.ndarray | None = None,
    bootstrap: int = 0,
    confidence: float = 0.95,
    rng: np.random.Generator | None = None,
) -> Fit:
    """Fit a form to positive losses.

    Parameters
    ----------
    x_nD, y_n : (n, D) positive axes and (n,) positive losses.
    groups_n : cells of one group are resampled together; None: each by itself.
    bootstrap : resamples, each with Dirichlet weights on the groups: unlike draws with replacement, none of them loses
        a whole size, which would leave few cells without a curve. Source: Rubin (1981).

    The Huber threshold is 1.345 robust standard deviations of the residuals, and at least 0.001.
    """
    logx_nD, logy_n = np.log(x_nD), np.log(y_n)
    centre_D = logx_nD.mean(axis=0)
    u_nD = logx_nD - centre_D
    starts_SP = np.array(form.starts(u_nD, y_n))
    even_1n = np.ones((1, len(y_n)))
    theta_P, delta = starts_SP[0], HUBER_DELTA
    for _ in range(2):  # first for the scale of the residuals, then with the threshold that follows from it
        theta_SP, cost_S = _minimise(form, starts_SP, u_nD, logy_n, even_1n, delta)
        theta_P = theta_SP[np.argmin(cost_S)]
        residual_n = logy_n - form.log_loss(theta_P[None], u_nD)[0]
        delta = max(HUBER_DELTA, 1.345 * 1.4826 * float(np.median(np.abs(residual_n))))
    member_n = np.arange(len(y_n)) if groups_n is None else np.unique(groups_n, return_inverse=True)[1].ravel()
    groups = int(member_n.max()) + 1
    rng = rng or np.random.default_rng(0)
    weights_Rn = rng.dirichlet(np.ones(groups), bootstrap)[:, member_n] * groups
    draws_RP = _resampled(form, theta_P, theta_SP, u_nD, logy_n, weights_Rn, delta) if bootstrap else theta_P[None][:0]
    return Fit(form, theta_P, draws_RP, centre_D, residual_n, groups, confidence)


def _resampled(
    form: Form,
    theta_P: np.ndarray,
    others_SP: np.ndarray,
    u_nD: np.ndarray,
    logy_n: np.ndarray,
    weights_Rn: np.ndarray,
    delta: float,
) -> np.ndarray:
    """Best fit to each resample, from the estimate and from the minimum found farthest from it."""
    farthest = np.argmax(np.abs(others_SP - theta_P).max(axis=1))
    found = [_minimise(form, start, u_nD, logy_n, weights_Rn, delta) for start in (theta_P, others_SP[farthest])]
    thetas_2RP, costs_2R = (np.array(part) for part in zip(*found, strict=True))
    return thetas_2RP[np.argmin(costs_2R, axis=0), np.arange(len(weights_Rn))]


def _minimise(
    form: Form, start: np.ndarray, u_nD: np.ndarray, logy_n: np.ndarray, weights_Bn: np.ndarray, delta: float
) -> tuple[np.ndarray, np.ndarray]:
    """Levenberg-Marquardt on many problems at once, Huber by reweighting; parameters (B, P) and costs (B,)."""
    fits = max(len(weights_Bn), len(np.atleast_2d(start)))
    theta_BP = np.clip(np.broadcast_to(start, (fits, len(form.parameters))), form.low, form.high)
    cost_B, residual_Bn = _cost(form, theta_BP, u_nD, logy_n, weights_Bn, delta)
    damping_B = np.full(fits, 1e-3)
    for _ in range(ITERATIONS):
        slope_BnP = _jacobian(form, theta_BP, u_nD)
        downweighted_BnP = slope_BnP * _influence(residual_Bn, weights_Bn, delta)[..., None]
        normal_BPP = np.swapaxes(downweighted_BnP, 1, 2) @ slope_BnP
        gradient_BP = np.einsum("bnp,bn->bp", downweighted_BnP, residual_Bn)
        diagonal_BP = np.einsum("bpp->bp", normal_BPP)
        diagonal_BP += damping_B[:, None] * diagonal_BP + 1e-12
        step_BP = np.linalg.solve(normal_BPP, gradient_BP[..., None])[..., 0].clip(-2, 2)
        trial_BP = np.clip(theta_BP - step_BP, form.low, form.high)
        trial_cost_B, trial_residual_Bn = _cost(form, trial_BP, u_nD, logy_n, weights_Bn, delta)
        better_B = trial_cost_B < cost_B
        theta_BP = np.where(better_B[:, None], trial_BP, theta_BP)
        residual_Bn = np.where(better_B[:, None], trial_residual_Bn, residual_Bn)
        cost_B = np.minimum(cost_B, trial_cost_B)
        damping_B = np.where(better_B, damping_B * 0.2, damping_B * 5).clip(1e-9, 1e9)
    return theta_BP, cost_B


def _cost(
    form: Form, theta_BP: np.ndarray, u_nD: np.ndarray, logy_n: np.ndarray, weights_Bn: np.ndarray, delta: float
) -> tuple[np.ndarray, np.ndarray]:
    """Weighted Huber cost in units of delta squared, and the residuals."""
    residual_Bn = form.log_loss(theta_BP, u_nD) - logy_n
    size_Bn = np.abs(residual_Bn) / delta
    huber_Bn = np.where(size_Bn <= 1, 0.5 * size_Bn**2, size_Bn - 0.5)
    return (weights_Bn * huber_Bn).sum(axis=1), residual_Bn


def _influence(residual_Bn: np.ndarray, weights_Bn: np.ndarray, delta: float) -> np.ndarray:
    return weights_Bn * np.minimum(1, delta / np.maximum(np.abs(residual_Bn), 1e-300))


def _jacobian(form: Form, theta_BP: np.ndarray, u_nD: np.ndarray) -> np.ndarray:
    """Central differences: exact to 1e-9 for these smooth forms."""
    step = 1e-5
    columns = []
    for unit_P in np.eye(theta_BP.shape[1]) * step:
        difference_Bn = form.log_loss(theta_BP + unit_P, u_nD) - form.log_loss(theta_BP - unit_P, u_nD)
        columns.append(difference_Bn / (2 * step))
    return np.stack(columns, axis=2)


def _sum_of_powers(theta_BP: np.ndarray, u_nD: np.ndarray) -> np.ndarray:
    """Log of E + sum over axes of A_d x_d^-a_d; theta is (log E, log A_1, a_1, log A_2, a_2 ...)."""
    terms = [np.broadcast_to(theta_BP[:, :1], (len(theta_BP), len(u_nD)))]
    for axis, u_n in enumerate(u_nD.T):
        terms.append(theta_BP[:, 1 + 2 * axis, None] - theta_BP[:, 2 + 2 * axis, None] * u_n)
    total = terms[0]
    for term in terms[1:]:
        total = np.logaddexp(total, term)
    return total


def _starts_of_powers(u_nD: np.ndarray, y_n: np.ndarray) -> list[list[float]]:
    """For each floor and exponents, amplitudes that share evenly what is above the floor."""
    starts = []
    for floor, *exponents in product(FLOORS, *[EXPONENTS] * u_nD.shape[1]):
        rest = np.log(y_n - floor * y_n.min()).mean() - np.log(u_nD.shape[1])
        terms = [[rest, exponent] for exponent in exponents]
        starts.append([float(np.log(floor * y_n.min())), *np.concatenate(terms).tolist()])
    return starts


def _broken(theta_BP: np.ndarray, u_nD: np.ndarray) -> np.ndarray:
    """Two power laws with a smooth bend. Source: Caballero et al. (2023), one break."""
    amplitude, exponent, change, place = (column[:, None] for column in theta_BP.T)
    bend = BREAK_WIDTH * np.logaddexp(0, (u_nD.T - place) / BREAK_WIDTH)
    return amplitude - exponent * u_nD.T - change * bend


def _starts_of_broken(u_nD: np.ndarray, y_n: np.ndarray) -> list[list[float]]:
    places = np.quantile(u_nD[:, 0], [0.3, 0.5, 0.7]).tolist()
    level = float(np.log(y_n).mean())
    return [[level, first, change, place] for first in (0.05, 0.4) for change in (-0.3, 0.0, 0.3) for place in places]


WIDE = 40.0  # bound of the logs of terms
POWER = Form(
    "power",
    ("log_amplitude", "exponent"),
    lambda theta_BP, u_nD: theta_BP[:, :1] - theta_BP[:, 1:] * u_nD[:, 0],
    lambda _, y_n: [[float(np.log(y_n).mean()), 0.0]],  # the problem is linear but for Huber: one start is enough
    (-WIDE, -STEEP),  # a loss that rises with size is a fact that this form can tell
    (WIDE, STEEP),
)
SATURATING = Form(
    "saturating",
    ("log_irreducible", "log_amplitude", "exponent"),
    _sum_of_powers,
    _starts_of_powers,
    (-WIDE, -WIDE, FLAT),
    (WIDE, WIDE, STEEP),
)
BROKEN = Form(
    "broken",
    ("log_amplitude", "exponent", "change", "place"),
    _broken,
    _starts_of_broken,
    (-WIDE, -STEEP, -STEEP, -WIDE),
    (WIDE, STEEP, STEEP, WIDE),
)
CONSTANT = Form(
    "constant",
    ("log_irreducible",),
    lambda theta_BP, u_nD: np.broadcast_to(theta_BP, (len(theta_BP), len(u_nD))),
    lambda _, y_n: [[float(np.log(y_n).mean())]],
    (-WIDE,),
    (WIDE,),
)
SURFACE = Form(
    "surface",
    ("log_irreducible", "log_amplitude_1", "exponent_1", "log_amplitude_2", "exponent_2"),
    _sum_of_powers,
    _starts_of_powers,
    (-WIDE, -WIDE, FLAT, -WIDE, FLAT),
    (WIDE, WIDE, STEEP, WIDE, STEEP),
)
FORMS = {form.name: form for form in (POWER, SATURATING, BROKEN, CONSTANT)}
