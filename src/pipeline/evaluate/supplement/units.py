"""What a store's columns are summed up by: parcels, and the network that each parcel belongs to.

Names come from an atlas where one names networks (Schaefer, Yeo); a simulated cohort has its planted networks; for want
of both a parcel lies in an eighth of the brain.

Axes: V in-mask voxels of the template, C columns of a store, P parcels, N networks.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from pipeline.bold.flatmap import load_flatmap
from pipeline.bold.parcels import Parcellation, load_parcellation
from pipeline.bold.simulate.anatomy import NETWORKS as PLANTED
from pipeline.bold.template import Template
from pipeline.config import Study, expand_path

YEO7 = ("visual", "somatomotor", "dorsal attention", "ventral attention", "limbic", "frontoparietal", "default")
SCHAEFER = {
    "Vis": "visual",
    "SomMot": "somatomotor",
    "DorsAttn": "dorsal attention",
    "SalVentAttn": "ventral attention",
    "Limbic": "limbic",
    "Cont": "frontoparietal",
    "Default": "default",
    "TempPar": "temporoparietal",
}
OTHER = "other"
FAR = 2.0  # SDs of a planted network's blob beyond which a parcel belongs to none


@dataclass(frozen=True, eq=False)
class Units:
    """Parcels of the columns of a store.

    `parcel_C` is the parcel of each column and `parcel_V` of each voxel of the template, -1 where it has none;
    `centres_P3` in mm, NaN where it is not known. `source` says where the networks come from.
    """

    parcel_C: np.ndarray
    parcel_V: np.ndarray
    names: tuple[str, ...]
    networks: tuple[str, ...]
    centres_P3: np.ndarray
    source: str

    def network_sums(self, values_xP: np.ndarray) -> tuple[list[str], np.ndarray]:
        """Names of the networks, and (..., N) sums over the parcels of each."""
        names = list(dict.fromkeys(self.networks))
        member_PN = np.array([[network == name for name in names] for network in self.networks], dtype=float)
        return names, np.asarray(values_xP @ member_PN)


def network_of(label: str) -> str | None:
    """The network that a parcel's name holds: `7Networks_LH_Vis_1`, `17Networks_RH_ContA_PFCl_2`, `7Networks_3`."""
    if yeo := re.fullmatch(r"7Networks_([1-7])", label):
        return YEO7[int(yeo[1]) - 1]
    found = re.search(r"(?:^|_)[LR]H_([A-Za-z]+)", label)
    if not found:
        return None
    known = sorted((name for name in SCHAEFER if found[1].startswith(name)), key=len)
    return SCHAEFER[known[-1]] if known else None


def units_of(
    study: Study,
    dataset: str,
    contract: Mapping[str, Any],
    template: Template | None,
    flatmap_folder: str | Path | None = None,
) -> Units:
    """Parcels and networks of the store that an encoder of this `contract` reads.

    Raises
    ------
    InputError : an atlas, or the flat map, cannot be read.
    """
    kind = contract.get("kind", "voxels")
    if kind == "parcels":
        return _of_series(study, contract["atlas"], contract["labels"], template)
    assert template is not None, "only parcel series go without a template"
    voxels = _of_voxels(study, dataset, template)
    if kind == "voxels":
        return voxels
    weights_CV = load_flatmap(Path(flatmap_folder or "flatmaps")).weights_PV.tocsr()
    nearest_C = np.asarray(weights_CV.argmax(axis=1)).ravel()  # the voxel that a pixel takes most from
    parcel_C = np.where(np.diff(weights_CV.indptr) > 0, voxels.parcel_C[nearest_C], -1)
    return Units(parcel_C, voxels.parcel_V, voxels.names, voxels.networks, voxels.centres_P3, voxels.source)


def _of_series(study: Study, atlas: str, labels: Sequence[str], template: Template | None) -> Units:
    """A store whose columns are the parcels of an atlas; they have a place where the study has the atlas's file."""
    networks = tuple(network_of(label) or OTHER for label in labels)
    centres_P3, parcel_V = np.full((len(labels), 3), np.nan), np.full(0 if template is None else template.voxels, -1)
    if template is not None and atlas in study.atlases:
        found = load_parcellation(atlas, expand_path(f"atlases.{atlas}", study.atlases[atlas]), template)
        if list(found.labels) == list(labels):
            centres_P3, parcel_V = found.centres_R3, _rows_of_voxels(found, template)
    return Units(np.arange(len(labels)), parcel_V, tuple(labels), networks, centres_P3, f"names of {atlas}")


def _rows_of_voxels(atlas: Parcellation, template: Template) -> np.ndarray:
    """(V,) parcel of each voxel, -1 where it has none."""
    member = atlas.weights_RV.tocoo()
    parcel_V = np.full(template.voxels, -1)
    parcel_V[member.col] = member.row
    return parcel_V


def _of_voxels(study: Study, dataset: str, template: Template) -> Units:
    """Parcels of the first atlas of the study that names networks, else the template's cubes."""
    for name, path in study.atlases.items():
        atlas = load_parcellation(name, expand_path(f"atlases.{name}", path), template)
        if any(network_of(label) for label in atlas.labels):
            parcel_V = _rows_of_voxels(atlas, template)
            networks = tuple(network_of(label) or OTHER for label in atlas.labels)
            return Units(parcel_V, parcel_V, atlas.labels, networks, atlas.centres_R3, f"atlas {name}")
    centres_P3 = _cube_centres(template)
    planted = study.datasets[dataset].simulation is not None
    networks = tuple(planted_network(centre) if planted else eighth(centre) for centre in centres_P3)
    names = tuple(f"cube-{parcel:03d}" for parcel in range(template.parcels))
    source = "networks of the simulation" if planted else "eighths of the brain"
    return Units(template.parcel_V, template.parcel_V, names, networks, centres_P3, source)


def _cube_centres(template: Template) -> np.ndarray:
    place_V3 = nib.affines.apply_affine(template.affine, template.coordinates_V3)
    counts_P = np.bincount(template.parcel_V, minlength=template.parcels)
    return np.stack([np.bincount(template.parcel_V, axis) / counts_P for axis in place_V3.T], axis=1)


def planted_network(centre_mm: np.ndarray) -> str:
    """The simulated network whose blob a place lies in deepest."""
    mirrored = np.array([abs(centre_mm[0]), centre_mm[1], centre_mm[2]])
    far = {name: float(np.linalg.norm(mirrored - one.centre_mm)) / one.extent_mm for name, one in PLANTED.items()}
    nearest = min(far, key=lambda name: far[name])
    return nearest.replace("_", " ") if far[nearest] <= FAR else OTHER


def eighth(centre_mm: np.ndarray) -> str:
    """Side, front or back, top or bottom, about the middle of the MNI152 brain."""
    x, y, z = centre_mm
    side, depth = ("left" if x < 0 else "right"), ("front" if y > -18 else "back")
    return f"{side} {depth} {'top' if z > 9 else 'bottom'}"
