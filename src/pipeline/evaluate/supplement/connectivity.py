"""Does a reconstruction keep how parcels go together? Connectivity, covariance and co-skewness, beside controls.

A run and what a model fills in for it while it could not see it (`spectral.reconstruct`) are compared parcel by parcel.
A high correlation of edges alone says little: smooth noise has one, because neighbours go together, and so has anybody
else's connectome. So each value stands beside that of noise as smooth as the run, and of other people.

Axes: T frames, V voxels, P parcels, E edges = P (P - 1) / 2, N people.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy.ndimage import gaussian_filter

from pipeline.bold.template import Template

LARGEST_R = 0.999999  # beyond it Fisher's z is a matter of rounding
DIRECTIONS = 20  # leading directions of covariance whose variances are compared; 160 frames hold no more with a signal


class Kept(NamedTuple):
    """What a reconstruction keeps of a run; correlations are NaN where either side does not vary.

    Attributes
    ----------
    fc_r : correlation of edges (Fisher z) of reconstruction and run.
    covariance_r : correlation of covariances between different parcels.
    covariance_kept : total variance of parcels, as a share of the run's.
    spectrum_r : correlation of the log variances along the leading directions of each; any two steep spectra have a
        high one, untrained networks .97.
    dimension_ratio : effective number of directions (participation ratio of the spectrum) over that of the run.
    spectrum_kept : variance of the reconstruction along the run's own leading directions, as a share of the run's.
    coskewness_r : correlation of E[x_i^2 x_j], i not j, of z-scored parcels.
    coskewness_kept : slope of the reconstruction's co-skewness on the run's; 1 keeps it, 0 is Gaussian.
    """

    fc_r: float
    covariance_r: float
    covariance_kept: float
    spectrum_r: float
    dimension_ratio: float
    spectrum_kept: float
    coskewness_r: float
    coskewness_kept: float


def compare(run_TP: np.ndarray, made_TP: np.ndarray, directions: int = DIRECTIONS) -> Kept:
    """What `made_TP` keeps of `run_TP`, the same parcels and frames.

    Raises
    ------
    ValueError : other shapes, or fewer than three frames or parcels.
    """
    if run_TP.shape != made_TP.shape or min(run_TP.shape) < 3:
        raise ValueError(
            f"found {run_TP.shape} and {made_TP.shape}; expected one shape of 3 frames and parcels at least"
        )
    pairs = _pairs(run_TP.shape[1])
    covariances = [np.cov(signal_TP, rowvar=False) for signal_TP in (run_TP, made_TP)]
    skews = [coskewness(signal_TP) for signal_TP in (run_TP, made_TP)]
    apart_PP = ~np.eye(run_TP.shape[1], dtype=bool)
    return Kept(
        fc_r=correlation(edges(run_TP), edges(made_TP)),
        covariance_r=correlation(covariances[0][pairs], covariances[1][pairs]),
        covariance_kept=_ratio(np.trace(covariances[1]), np.trace(covariances[0])),
        **_spectra(covariances[0], covariances[1], min(directions, len(run_TP) - 1, run_TP.shape[1])),
        coskewness_r=correlation(skews[0][apart_PP], skews[1][apart_PP]),
        coskewness_kept=_ratio((skews[0] * skews[1])[apart_PP].sum(), (skews[0] ** 2)[apart_PP].sum()),
    )


def edges(parcels_TP: np.ndarray) -> np.ndarray:
    """(E,) Fisher z of the correlations between parcels; 0 for a parcel that does not vary."""
    z_TP = standard(parcels_TP)
    r_PP = z_TP.T @ z_TP / len(z_TP)
    return np.asarray(np.arctanh(np.clip(r_PP[_pairs(z_TP.shape[1])], -LARGEST_R, LARGEST_R)))


def standard(parcels_TP: np.ndarray) -> np.ndarray:
    """Each parcel in units of its SD about its mean; 0 throughout for one that does not vary. NaN stays NaN."""
    centred_TP = parcels_TP - parcels_TP.mean(0)
    sd_P = centred_TP.std(0)
    constant_P = sd_P <= 1e-9 * np.max(sd_P, initial=1e-300, where=np.isfinite(sd_P))
    return np.asarray(np.divide(centred_TP, sd_P, out=np.zeros_like(centred_TP), where=~constant_P))


def coskewness(parcels_TP: np.ndarray) -> np.ndarray:
    """(P, P) E[x_i^2 x_j] of z-scored parcels: how j deviates when i does either way. 0 for Gaussian signals."""
    z_TP = standard(parcels_TP)
    return np.asarray((z_TP**2).T @ z_TP / len(z_TP))


def correlation(first: np.ndarray, second: np.ndarray) -> float:
    """Pearson's r; NaN where either side is constant."""
    one, two = first - first.mean(), second - second.mean()
    return _ratio(float(one @ two), float(np.linalg.norm(one) * np.linalg.norm(two)))


def _ratio(part: float, whole: float) -> float:
    return float(part / whole) if whole > 1e-12 else float("nan")


def _pairs(parcels: int) -> tuple[np.ndarray, np.ndarray]:
    first, second = np.triu_indices(parcels, k=1)
    return first, second


def _spectra(run_PP: np.ndarray, made_PP: np.ndarray, count: int) -> dict[str, float]:
    if not np.isfinite(made_PP).all():  # the reconstruction of an encoder that diverged
        return dict.fromkeys(("spectrum_r", "dimension_ratio", "spectrum_kept"), float("nan"))
    power_P, basis_PP = np.linalg.eigh(run_PP)
    leading_K, basis_PK = power_P[::-1][:count], basis_PP[:, ::-1][:, :count]
    made_P = np.linalg.eigvalsh(made_PP)[::-1]
    made_K, along_K = made_P[:count], ((made_PP @ basis_PK) * basis_PK).sum(0)
    usable_K = (leading_K > 1e-12 * max(leading_K[0], 1e-300)) & (made_K > 1e-12 * max(made_K[0], 1e-300))
    logs = np.log(leading_K[usable_K]), np.log(made_K[usable_K])
    return {
        "spectrum_r": correlation(*logs) if usable_K.sum() > 2 else float("nan"),
        "dimension_ratio": _ratio(_dimensions(made_P), _dimensions(power_P)),
        "spectrum_kept": _ratio(along_K.sum(), leading_K.sum()),
    }


def _dimensions(power_P: np.ndarray) -> float:
    return _ratio(power_P.sum() ** 2, (power_P**2).sum())


# --- controls --------------------------------------------------------------------------------------------------------


def smoothness(bold_TV: np.ndarray, template: Template) -> float:
    """SD in voxels of the Gaussian that makes white noise as smooth as the run: by the mean correlation of neighbours.

    Noise under a Gaussian of SD s has correlation exp(-d^2 / 4 s^2) at distance d. 0: neighbours do not go together.
    """
    z_TV = standard(np.asarray(bold_TV, dtype=float))
    place_XYZ = np.full(template.shape, -1)
    place_XYZ[tuple(template.coordinates_V3.T)] = np.arange(template.voxels)
    products = []
    for axis in range(3):
        behind, before = (
            np.take(place_XYZ, np.arange(start, stop), axis) for start, stop in _neighbours(place_XYZ, axis)
        )
        both = (behind >= 0) & (before >= 0)
        products.append((z_TV[:, behind[both]] * z_TV[:, before[both]]).mean(0))
    r = float(np.concatenate(products).mean())
    return float(np.sqrt(-0.25 / np.log(min(r, LARGEST_R)))) if r > 0 else 0.0


def _neighbours(place_XYZ: np.ndarray, axis: int) -> tuple[tuple[int, int], tuple[int, int]]:
    length = place_XYZ.shape[axis]
    return (0, length - 1), (1, length)


def smooth_noise(frames: int, sigma: float, template: Template, rng: np.random.Generator) -> np.ndarray:
    """(T, V) noise white in time, under a Gaussian of SD `sigma` voxels in space: what distance alone lets agree."""
    where = tuple(template.coordinates_V3.T)
    noise_TV = np.empty((frames, template.voxels), np.float32)
    for noise_V in noise_TV:
        noise_V[:] = gaussian_filter(rng.standard_normal(template.shape).astype(np.float32), sigma, mode="wrap")[where]
    return noise_TV


class Individuality(NamedTuple):
    """Whose connectome a reconstruction has, by person (N,).

    Attributes
    ----------
    others_r_N : mean correlation of the person's measured edges with those of every other person.
    specificity_N : correlation of the reconstruction's edges with its own person's, minus the mean with others'.
    """

    others_r_N: np.ndarray
    specificity_N: np.ndarray


def individuality(measured_NE: np.ndarray, made_NE: np.ndarray) -> Individuality:
    """How far reconstructions tell people apart; ValueError for fewer than two people."""
    if len(measured_NE) < 2:
        raise ValueError(f"found {len(measured_NE)} person; expected two at least")
    measured_NN, made_NN = _between(measured_NE, measured_NE), _between(made_NE, measured_NE)
    others = len(measured_NE) - 1
    others_r_N = (measured_NN.sum(1) - np.diag(measured_NN)) / others
    own_N = np.diag(made_NN)
    return Individuality(others_r_N, own_N - (made_NN.sum(1) - own_N) / others)


def _between(first_NE: np.ndarray, second_NE: np.ndarray) -> np.ndarray:
    units = []
    for edges_NE in (first_NE, second_NE):
        centred_NE = edges_NE - edges_NE.mean(1, keepdims=True)
        length_N1 = np.linalg.norm(centred_NE, axis=1, keepdims=True)
        nothing = np.full_like(centred_NE, np.nan)  # a reconstruction that does not vary has nobody's connectome
        units.append(np.divide(centred_NE, length_N1, out=nothing, where=length_N1 > 1e-12))
    return np.asarray(units[0] @ units[1].T)
