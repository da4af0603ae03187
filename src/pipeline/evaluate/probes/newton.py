"""Many small linear fits under an L2 penalty at once: logistic regression and least squares, by Newton steps.

Along the principal axes of their people (`probes.training_span`) a Hessian is nearly diagonal, so conjugate gradients
solve a step in about ten rounds of two matrix products that all fits share; nothing is cubic in the number of axes.

Axes: N people, R axes or features, B fits.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from scipy.special import expit

_LARGEST_STEP = 3.0  # most that a full step may move a score; larger ones overshoot where classes are separable
_SETTLED = 1e-4  # of the last step in the scores; what is left after it is about 1e-6, as `_INNER` says
_INNER = 0.01  # of the gradient: the residual at which conjugate gradients end within a step


class Loss(NamedTuple):
    """A person's loss by score and target, and its first and second derivative by the score."""

    value: Callable[[np.ndarray, np.ndarray], np.ndarray]
    slope: Callable[[np.ndarray, np.ndarray], np.ndarray]
    curvature: Callable[[np.ndarray], np.ndarray]


LOGISTIC = Loss(
    value=lambda logit, label: np.logaddexp(0, logit) - label * logit,
    slope=lambda logit, label: expit(logit) - label,
    curvature=lambda logit: expit(logit) * expit(-logit),
)
SQUARED = Loss(
    value=lambda score, target: (score - target) ** 2 / 2,
    slope=lambda score, target: score - target,
    curvature=np.ones_like,
)


def fit_linear(
    features_NR: np.ndarray,
    target_N: np.ndarray,
    weights_BN: np.ndarray,
    strengths_B: np.ndarray,
    loss: Loss,
    steps: int = 100,
) -> np.ndarray:
    """(B, N) scores of all people under B linear fits, each minimising C sum w_n loss_n + |beta|^2 / 2.

    Parameters
    ----------
    weights_BN : weight of each person in each fit, 0 for those it must not see; a fit that sees nobody scores 0.
    strengths_B : C of each fit, as in scikit-learn's logistic regression; alpha of its ridge is 1 / C. The intercept is
        not penalised.

    Source: Newton's method with inexact steps (Dembo, Eisenstat & Steihaug 1982); where a full step does not lower the
    loss, the damped one of self-concordant functions does (Bach 2010; Sun & Tran-Dinh 2019).
    """
    seen_N = (weights_BN > 0).any(0)
    design_NR = np.column_stack([features_NR, np.ones(len(features_NR))])
    penalty_R = np.append(np.ones(features_NR.shape[1]), 1e-9)  # the intercept's keeps the Hessian regular
    fits = _Fits(
        np.ascontiguousarray(design_NR[seen_N]),
        target_N[seen_N],
        weights_BN[:, seen_N] * np.asarray(strengths_B, dtype=float)[:, None],
        penalty_R,
        loss,
    )
    beta_BR, score_BN = np.zeros((len(weights_BN), len(penalty_R))), np.zeros(fits.weights_BN.shape)
    still = np.flatnonzero(fits.weights_BN.any(1))
    for _ in range(steps):
        if not len(still):
            break
        step_BR, move_BN, moved_B = fits.among(still).step(beta_BR[still], score_BN[still])
        beta_BR[still] += step_BR
        score_BN[still] += move_BN
        still = still[moved_B > _SETTLED]
    return np.asarray(beta_BR @ design_NR.T)


class _Fits(NamedTuple):
    """Fits of the same people and target, which differ in weights alone (C is in them)."""

    design_NR: np.ndarray
    target_N: np.ndarray
    weights_BN: np.ndarray
    penalty_R: np.ndarray
    loss: Loss

    def among(self, some: np.ndarray) -> _Fits:
        return self._replace(weights_BN=self.weights_BN[some])

    def step(self, beta_BR: np.ndarray, score_BN: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """A step of the coefficients, what it adds to the scores, and the most that a full one would add to any."""
        slope_BR = (self.weights_BN * self.loss.slope(score_BN, self.target_N)) @ self.design_NR
        step_BR = self._solve(self.weights_BN * self.loss.curvature(score_BN), -slope_BR - self.penalty_R * beta_BR)
        move_BN = step_BR @ self.design_NR.T
        moved_B = np.abs(np.where(self.weights_BN > 0, move_BN, 0)).max(1)
        length_B = np.minimum(1, _LARGEST_STEP / np.maximum(moved_B, 1e-300))
        after_B = self._objective(beta_BR + length_B[:, None] * step_BR, score_BN + length_B[:, None] * move_BN)
        lower_B = after_B <= self._objective(beta_BR, score_BN)
        length_B = np.where(lower_B, length_B, np.log1p(moved_B) / np.maximum(moved_B, 1e-300))
        return length_B[:, None] * step_BR, length_B[:, None] * move_BN, moved_B

    def _objective(self, beta_BR: np.ndarray, score_BN: np.ndarray) -> np.ndarray:
        loss_B = (self.weights_BN * self.loss.value(score_BN, self.target_N)).sum(1)
        return np.asarray(loss_B + beta_BR**2 @ self.penalty_R / 2)

    def _solve(self, curvature_BN: np.ndarray, right_BR: np.ndarray) -> np.ndarray:
        """The Newton step by conjugate gradients, preconditioned by the diagonal of the Hessian."""
        inverse_BR = 1 / (curvature_BN @ self.design_NR**2 + self.penalty_R)
        solution_BR, residual_BR = np.zeros_like(right_BR), right_BR.copy()
        direction_BR = inverse_BR * residual_BR
        size_B = (residual_BR * direction_BR).sum(1)
        enough_B = _INNER**2 * size_B
        for _ in range(2 * right_BR.shape[1] + 20):
            if (size_B <= enough_B).all():
                break
            image_BR = (curvature_BN * (direction_BR @ self.design_NR.T)) @ self.design_NR
            image_BR += self.penalty_R * direction_BR
            length_B = size_B / np.maximum((direction_BR * image_BR).sum(1), 1e-300)
            solution_BR += length_B[:, None] * direction_BR
            residual_BR -= length_B[:, None] * image_BR
            scaled_BR, before_B = inverse_BR * residual_BR, size_B
            size_B = (residual_BR * scaled_BR).sum(1)
            direction_BR = scaled_BR + (size_B / np.maximum(before_B, 1e-300))[:, None] * direction_BR
        return solution_BR
