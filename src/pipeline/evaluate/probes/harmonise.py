"""Sites of features aligned by ComBat, fitted on the training part of a split alone.

Axes: M people, D features, F of them in a block, S sites of the training people, C covariates, J = S + C columns of the
design.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from pipeline.errors import InputError
from pipeline.evaluate.probes.linear import fill_missing

_SETTLED = 1e-6  # change, in units of the pooled SD, at which the estimates of a site end
_ROUNDS = 1000
_BLOCK = 2048  # features aligned at once: they stay in cache


def combat(
    features_MD: np.ndarray, site_M: np.ndarray, train_M: np.ndarray, covariates_MC: np.ndarray | None = None
) -> np.ndarray:
    """(M, D) features without what sites add and multiply, as learnt from the training people.

    A feature is a mean, plus what covariates do, plus a site's shift, plus noise that the site scales; shifts and
    scales are drawn towards those of the site's other features by empirical Bayes.

    Parameters
    ----------
    features_MD : any unit; missing values (NaN) stay missing.
    site_M : site of each person; those without one ("") count as a site. Whoever comes from a site without training
        people keeps their features: nothing may be learnt of it. So leave-site-out tests what is not aligned, on a
        system that learnt from what is.
    train_M : who is learnt from.
    covariates_MC : what is kept although sites differ in it (age, sex). Never the target: test people's would leak.
        A missing value is the training mean.

    Notes
    -----
    A site of one training person has a shift and no scale. With fewer than two features there is nothing to draw
    towards, and with fewer than two sites, or for a feature that does not vary within them, nothing to align.

    Raises
    ------
    InputError : sites or covariates are not one a person.

    Source: Johnson, Li & Rabinovic (2007), parametric priors; numbers agree with neuroCombat 0.2.12.
    """
    _require_length(features_MD, site_M, train_M, covariates_MC)
    dtype = np.float32 if features_MD.dtype == np.float32 else np.float64
    sites = np.unique(site_M[train_M])
    if len(sites) < 2:
        return features_MD
    indicator_MS = (site_M[:, None] == sites).astype(dtype)
    design_MJ = np.hstack([indicator_MS, _centred(covariates_MC, train_M, dtype)])
    aligned_MD = np.array(features_MD, dtype=dtype)
    blocks = [aligned_MD[:, start : start + _BLOCK] for start in range(0, aligned_MD.shape[1], _BLOCK)]
    learnt = [_learn(fill_missing(block_MF, train_M)[train_M], design_MJ[train_M], len(sites)) for block_MF in blocks]
    effects = _Effects(*(np.concatenate(parts, axis=-1) for parts in zip(*learnt, strict=True)))
    effects = _drawn_together(effects, indicator_MS[train_M].sum(0))
    known_M = indicator_MS.any(1)
    for place, block_MF in enumerate(blocks):
        part = effects.of(slice(place * _BLOCK, (place + 1) * _BLOCK))
        block_MF[known_M] = _without_sites(block_MF[known_M], design_MJ[known_M], part)
    return aligned_MD


def _require_length(features_MD: np.ndarray, *others: np.ndarray | None) -> None:
    lengths = {len(other) for other in others if other is not None}
    if lengths != {len(features_MD)}:
        found, expected = f"sites, parts and covariates of {sorted(lengths)} people", f"{len(features_MD)}, as features"
        raise InputError("combat", found, expected, "Take all of them for the people of the task, in its order.")


def _centred(covariates_MC: np.ndarray | None, train_M: np.ndarray, dtype: type[np.floating]) -> np.ndarray:
    if covariates_MC is None:
        return np.zeros((len(train_M), 0), dtype=dtype)
    filled_MC = fill_missing(np.asarray(covariates_MC, dtype=float), train_M)
    return (filled_MC - filled_MC[train_M].mean(0)).astype(dtype)


class _Effects(NamedTuple):
    """What makes up each feature; sites' parts are in units of the pooled SD."""

    mean_1D: np.ndarray  # over training people of their sites' levels
    covariate_CD: np.ndarray
    unit_1D: np.ndarray  # SD about sites' levels and what covariates do; 0 for a feature that does not vary
    shift_SD: np.ndarray
    variance_SD: np.ndarray

    def of(self, features: slice) -> _Effects:
        return _Effects(*(part[:, features] for part in self))

    def expected(self, design_MJ: np.ndarray) -> np.ndarray:
        """(M, D) what people would have without sites and noise."""
        return np.asarray(self.mean_1D + design_MJ[:, len(self.shift_SD) :] @ self.covariate_CD)


def _learn(features_MF: np.ndarray, design_MJ: np.ndarray, sites: int) -> _Effects:
    """Least squares of training people on sites and covariates, and by how much sites shift and scale the rest."""
    effect_JF = np.linalg.pinv(design_MJ) @ features_MF  # the shortest, where covariates are all one with sites
    rest_MF = features_MF - design_MJ @ effect_JF  # its mean is 0
    unit_F = np.sqrt(np.einsum("mf,mf->f", rest_MF, rest_MF) / len(rest_MF))
    mean_F = design_MJ[:, :sites].mean(0) @ effect_JF[:sites]
    unit_F[unit_F <= 1e-6 * np.abs(mean_F)] = 0
    people_S1 = design_MJ[:, :sites].sum(0)[:, None]
    rest_MF += design_MJ[:, :sites] @ effect_JF[:sites] - mean_F
    rest_MF *= np.divide(1, unit_F, out=np.zeros_like(unit_F), where=unit_F > 0)
    shift_SF = design_MJ[:, :sites].T @ rest_MF / people_S1
    squares_SF = design_MJ[:, :sites].T @ rest_MF**2 - people_S1 * shift_SF**2
    variance_SF = np.maximum(squares_SF, 0) / np.maximum(people_S1 - 1, 1)
    return _Effects(mean_F[None], effect_JF[sites:], unit_F[None], shift_SF, variance_SF)


def _without_sites(features_MF: np.ndarray, design_MJ: np.ndarray, effects: _Effects) -> np.ndarray:
    """Features of people of known sites without the sites' shifts and scales; as they are where they do not vary."""
    expected_MF, site_M = effects.expected(design_MJ), design_MJ[:, : len(effects.shift_SD)].argmax(1)
    aligned_MF = features_MF - expected_MF
    aligned_MF -= (effects.shift_SD * effects.unit_1D)[site_M]
    aligned_MF /= np.sqrt(effects.variance_SD)[site_M]
    aligned_MF += expected_MF
    return np.where(effects.unit_1D > 0, aligned_MF, features_MF)


def _drawn_together(effects: _Effects, people_S: np.ndarray) -> _Effects:
    """Shifts and variances of each site drawn towards those of its other features; of dead features, 0 and 1."""
    shift_SD, variance_SD = np.zeros_like(effects.shift_SD), np.ones_like(effects.variance_SD)
    varies_D = effects.unit_1D[0] > 0
    for site, people in enumerate(people_S):
        learnt = (each[site, varies_D].astype(float) for each in (effects.shift_SD, effects.variance_SD))
        shift_SD[site, varies_D], variance_SD[site, varies_D] = _drawn(float(people), *learnt)
    return effects._replace(shift_SD=shift_SD, variance_SD=variance_SD)


def _drawn(people: float, shift_D: np.ndarray, variance_D: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A site's shifts and variances, drawn towards their distribution over its features.

    Conditional means of the normal and inverse gamma posteriors, in turn until both stand still; the moments of the
    features are the priors (Johnson et al., equations 2 to 4). One feature has no distribution and stays as it is.
    """
    alone = people < 2
    if len(shift_D) < 2:
        return shift_D, np.ones_like(variance_D) if alone or not variance_D.all() else variance_D
    centre, width = shift_D.mean(), shift_D.var(ddof=1)
    if alone:
        return (width * shift_D + centre) / (width + 1), np.ones_like(variance_D)
    level, spread = variance_D.mean(), max(float(variance_D.var(ddof=1)), 1e-12)
    shape, rate = 2 + level**2 / spread, level + level**3 / spread
    new_shift_D, new_variance_D = shift_D, variance_D
    for _ in range(_ROUNDS):
        old_shift_D, old_variance_D = new_shift_D, new_variance_D
        new_shift_D = (width * people * shift_D + old_variance_D * centre) / (width * people + old_variance_D)
        squares_D = (people - 1) * variance_D + people * (shift_D - new_shift_D) ** 2
        new_variance_D = (squares_D / 2 + rate) / (people / 2 + shape - 1)
        moved = max(np.abs(new_shift_D - old_shift_D).max(), np.abs(new_variance_D - old_variance_D).max())
        if moved < _SETTLED:
            break
    return new_shift_D, new_variance_D
