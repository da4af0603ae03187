"""Simulated brains: displaced anatomy, individual network maps, individual coupling between networks.

Every trait is half the family's draw and half the person's own, so that siblings correlate 0.5; people without a
sibling are families of one. Axes: V voxels of the head, K networks, F common factors, D = 3 directions.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

import nibabel as nib
import numpy as np
from scipy.ndimage import binary_dilation, gaussian_filter, map_coordinates

from pipeline.errors import InputError

SIBLING_SHARE = 0.5
DISPLACEMENT_MM, DISPLACEMENT_SCALE_MM = 3.0, 24.0  # SD and smoothness of the anatomy's displacement
CENTRE_MM = 4.0  # SD of a network's centre beside it, each hemisphere on its own
LOG_EXTENT, LOG_SIDE, LOG_AMPLITUDE, COUPLING = 0.12, 0.15, 0.20, 0.20  # SD of traits between people
SESSION_LOG_AMPLITUDE, SESSION_COUPLING = 0.05, 0.08  # SD of what changes from session to session
WHITE_MATTER = 0.35  # its signal amplitude, grey matter's being 1

# Draws something once for the family and once for the person, and adds the two.
Trait: TypeAlias = Callable[[Callable[[np.random.Generator], np.ndarray]], np.ndarray]


class Network(NamedTuple):
    """A pair of mirrored blobs: right centre in mm MNI, Gaussian SD in mm, delay of its response in s, loadings.

    `sex` and `diagnosis` are log amplitude ratios, of M over F and of patients over controls; `sex_coupling` and
    `diagnosis_coupling` are differences of the loading on the factors named in `COUPLED_FACTOR`.
    """

    centre_mm: tuple[float, float, float]
    extent_mm: float
    delay_s: float
    loadings: tuple[float, float, float, float]  # on FACTORS
    sex: float = 0.0
    sex_coupling: float = 0.0
    diagnosis: float = 0.0
    diagnosis_coupling: float = 0.0


FACTORS = ("global", "sensory", "attention", "default")
COUPLED_FACTOR = {"sex": FACTORS.index("default"), "diagnosis": FACTORS.index("global")}
SEX_LOG_EXTENT, DIAGNOSIS_LOG_EXTENT = 0.14, -0.08  # log ratio of every network's extent
NETWORKS = {
    "visual_medial": Network((9, -80, 4), 17, 0.0, (0.5, 0.7, 0.0, 0.0), sex=0.30, diagnosis_coupling=-0.25),
    "visual_lateral": Network((36, -74, -2), 17, 0.2, (0.5, 0.7, 0.1, 0.0), sex=0.30),
    "motor_hand": Network((38, -24, 54), 17, 0.3, (0.5, 0.6, 0.1, -0.1), sex=-0.20, diagnosis_coupling=-0.35),
    "motor_face": Network((54, -6, 28), 16, 0.3, (0.5, 0.6, 0.0, -0.1), diagnosis_coupling=-0.35),
    "auditory": Network((54, -26, 10), 16, 0.1, (0.5, 0.5, 0.0, 0.1), diagnosis=0.25, diagnosis_coupling=-0.35),
    "dorsal_attention": Network((26, -58, 52), 16, 0.5, (0.4, 0.2, 0.6, -0.2), sex_coupling=0.45),
    "salience": Network((36, 16, 4), 17, 0.4, (0.4, 0.1, 0.6, -0.1), diagnosis=0.25, diagnosis_coupling=0.20),
    "frontoparietal": Network((40, 36, 26), 17, 0.7, (0.4, -0.1, 0.6, 0.2), sex_coupling=0.45),
    "default_posterior": Network((8, -54, 28), 17, 0.6, (0.4, 0.0, -0.1, 0.7), sex=-0.30),
    "default_angular": Network((46, -64, 32), 16, 0.7, (0.4, 0.0, 0.0, 0.7), sex=-0.30),
    "default_frontal": Network((9, 52, 8), 18, 0.8, (0.4, -0.1, 0.0, 0.7), sex=-0.20, sex_coupling=-0.30),
    "temporal": Network((50, -12, -22), 18, 0.8, (0.4, 0.0, 0.0, 0.5), sex_coupling=-0.45),
    "thalamus": Network((13, -16, 6), 15, 0.2, (0.4, 0.2, 0.2, 0.0), diagnosis=-0.30, diagnosis_coupling=0.40),
    "cerebellum": Network((26, -62, -36), 19, 0.4, (0.4, 0.3, 0.2, 0.0), diagnosis=-0.25),
}
DELAYS_S = np.array([network.delay_s for network in NETWORKS.values()])


@dataclass(frozen=True)
class Atlas:
    """The standard brain on the grid that is written: tissue probabilities, brain mask, and the head around it."""

    affine: np.ndarray
    resolution_mm: float
    grey_XYZ: np.ndarray
    white_XYZ: np.ndarray
    mask_XYZ: np.ndarray
    head_XYZ: np.ndarray

    @property
    def in_mask_V(self) -> np.ndarray:
        """Which voxels of the head lie in the standard brain mask."""
        return self.mask_XYZ[self.head_XYZ]


@dataclass(frozen=True)
class Brain:
    """One person's anatomy and networks in one session, over the voxels of the head.

    `intensity_V` is 1 in grey matter, `gradient_DV` its change a mm. `mixing_KS` turns independent sources into network
    courses of unit variance, `maps_KV` these into signal, whose variance has mean one over grey matter.
    """

    intensity_V: np.ndarray
    gradient_DV: np.ndarray
    mask_V: np.ndarray
    maps_KV: np.ndarray
    mixing_KS: np.ndarray


def load_atlas(resolution_mm: float) -> Atlas:
    """The MNI152 tissue maps inside nilearn at a resolution; the head is the brain and one voxel around it.

    Raises
    ------
    InputError : the resolution is not a whole number of mm.
    """
    from nilearn import datasets

    if resolution_mm != int(resolution_mm):
        hint = "nilearn resamples the MNI152 brain to whole millimetres only."
        raise InputError("simulation.resolution_mm", f"{resolution_mm:g}", "a whole number of mm", hint)

    loaders = (datasets.load_mni152_gm_template, datasets.load_mni152_wm_template, datasets.load_mni152_brain_mask)
    images: list[nib.Nifti1Image] = [load(resolution=int(resolution_mm)) for load in loaders]
    grey, white, mask = (np.asarray(image.dataobj, dtype=np.float32) for image in images)
    inside = mask > 0
    return Atlas(np.asarray(images[0].affine), resolution_mm, grey, white, inside, binary_dilation(inside))


def make_brain(
    atlas: Atlas,
    male: float,
    patient: float,
    family: np.random.Generator,
    own: np.random.Generator,
    session: np.random.Generator,
) -> Brain:
    """Draw one person's brain in one session. `male` and `patient` are 0 or 1; the generators carry everything else."""

    def trait(draw: Callable[[np.random.Generator], np.ndarray]) -> np.ndarray:
        return np.sqrt(SIBLING_SHARE) * draw(family) + np.sqrt(1 - SIBLING_SHARE) * draw(own)

    shift_DXYZ = trait(lambda rng: _smooth_displacement(atlas, rng))
    standard = (atlas.grey_XYZ, atlas.white_XYZ, atlas.mask_XYZ.astype(np.float32))
    grey, white, brain = (_displaced(image, shift_DXYZ / atlas.resolution_mm) for image in standard)
    inside = brain > 0.5
    grey, white = grey * inside, white * inside
    intensity = np.where(inside, grey + 0.8 * white + 0.7 * (1 - grey - white).clip(0), 0.2)
    gradient_DXYZ = np.stack(np.gradient(gaussian_filter(intensity, 0.5), atlas.resolution_mm))

    head = atlas.head_XYZ
    position_VD = nib.affines.apply_affine(atlas.affine, np.argwhere(head)) + shift_DXYZ[:, head].T
    shape_KV = _network_shapes(position_VD, male, patient, trait) * (grey + WHITE_MATTER * white)[head]
    maps_KV = _amplitudes(male, patient, trait, session)[:, None] * shape_KV
    mixing_KS = _mixing(male, patient, trait, session)
    maps_KV /= np.sqrt(variance(maps_KV, mixing_KS @ mixing_KS.T)[grey[head] > 0.5].mean())
    return Brain(intensity[head], gradient_DXYZ[:, head], inside[head], maps_KV, mixing_KS)


def variance(weights_KV: np.ndarray, covariance_KK: np.ndarray) -> np.ndarray:
    """Variance at each voxel of a weighted sum of courses with this covariance."""
    return ((covariance_KK @ weights_KV) * weights_KV).sum(axis=0)


def _network_shapes(position_VD: np.ndarray, male: float, patient: float, trait: Trait) -> np.ndarray:
    """Two Gaussian blobs a network, each moved, scaled and weighted by the person's own draw."""
    count = len(NETWORKS)
    move_KSD = CENTRE_MM * trait(lambda rng: rng.standard_normal((count, 2, 3)))
    log_extent_K = LOG_EXTENT * trait(lambda rng: rng.standard_normal(count))
    log_extent_K += (male - 0.5) * SEX_LOG_EXTENT + (patient - 0.5) * DIAGNOSIS_LOG_EXTENT
    log_side_K = LOG_SIDE * trait(lambda rng: rng.standard_normal(count))
    shapes = np.zeros((count, len(position_VD)))
    for k, network in enumerate(NETWORKS.values()):
        for side, sign in enumerate((1, -1)):
            centre_D = np.array(network.centre_mm) * (sign, 1, 1) + move_KSD[k, side]
            distance = np.linalg.norm(position_VD - centre_D, axis=1) / (network.extent_mm * np.exp(log_extent_K[k]))
            shapes[k] += np.exp(sign * log_side_K[k] - distance**2 / 2)
    return shapes


def _amplitudes(male: float, patient: float, trait: Trait, session: np.random.Generator) -> np.ndarray:
    """Amplitude of each network, log-normal between people, shifted by sex and diagnosis."""
    log_K = LOG_AMPLITUDE * trait(lambda rng: rng.standard_normal(len(NETWORKS)))
    log_K += SESSION_LOG_AMPLITUDE * session.standard_normal(len(NETWORKS))
    shift = [(male - 0.5) * one.sex + (patient - 0.5) * one.diagnosis for one in NETWORKS.values()]
    return np.exp(log_K + shift)


def _mixing(male: float, patient: float, trait: Trait, session: np.random.Generator) -> np.ndarray:
    """Loadings of the networks on common factors and on a source of their own, in rows of unit length."""
    loading_KF = np.array([network.loadings for network in NETWORKS.values()])
    loading_KF += COUPLING * trait(lambda rng: rng.standard_normal(loading_KF.shape))
    loading_KF += SESSION_COUPLING * session.standard_normal(loading_KF.shape)
    loading_KF[:, COUPLED_FACTOR["sex"]] += (male - 0.5) * np.array([one.sex_coupling for one in NETWORKS.values()])
    patients = np.array([one.diagnosis_coupling for one in NETWORKS.values()])
    loading_KF[:, COUPLED_FACTOR["diagnosis"]] += (patient - 0.5) * patients
    mixing_KS = np.concatenate([loading_KF, 0.6 * np.eye(len(NETWORKS))], axis=1)
    return mixing_KS / np.linalg.norm(mixing_KS, axis=1, keepdims=True)


def _smooth_displacement(atlas: Atlas, rng: np.random.Generator) -> np.ndarray:
    """A smooth random vector field in mm, SD `DISPLACEMENT_MM` an axis."""
    white = rng.standard_normal((3, *atlas.mask_XYZ.shape))
    sigma = DISPLACEMENT_SCALE_MM / atlas.resolution_mm
    field = np.stack([gaussian_filter(one, sigma, mode="wrap") for one in white])
    return DISPLACEMENT_MM * field / field.std()


def _displaced(image_XYZ: np.ndarray, shift_DXYZ: np.ndarray) -> np.ndarray:
    """The image seen at positions moved by a field in voxels, trilinear."""
    return map_coordinates(image_XYZ, np.indices(image_XYZ.shape) + shift_DXYZ, order=1, mode="nearest")
