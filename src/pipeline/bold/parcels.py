"""Parcel series: which voxels of the template belong to which parcel of an atlas, and what the parcels are called.

Axes: V in-mask voxels of the template, R parcels of an atlas in the order of their codes.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from pipeline import artefact
from pipeline.bold.template import Template
from pipeline.errors import InputError

INDEX_COLUMNS = ("index", "roi number", "roi", "id", "value", "code", "label")
NAME_COLUMNS = ("name", "label", "region", "roi name", "label_name")


@dataclass(frozen=True, eq=False)
class Parcellation:
    """An atlas on a template: `weights_RV` (sparse, R x V) takes packed voxels to the means of parcels.

    `codes_R` are the atlas's numbers, `labels` its names, `voxels_R` how many packed voxels a parcel has; a parcel that
    has none, because it lies outside the mask or is smaller than a voxel, is a row of zeros. `centres_R3` are the mean
    places of the atlas's own voxels of each parcel, mm.
    """

    name: str
    sha256: str
    codes_R: np.ndarray
    labels: tuple[str, ...]
    voxels_R: np.ndarray
    centres_R3: np.ndarray
    weights_RV: Any


def load_parcellation(name: str, path: Path, template: Template) -> Parcellation:
    """An atlas file on a template; each packed voxel has the label nearest to its centre.

    Raises
    ------
    InputError : no 3D NIfTI of whole, non-negative labels; a table of labels that cannot be right; or no parcel has a
        voxel on the template.
    """
    label_V, codes_R, labels, centres_R3 = _read_atlas(path, template)
    row_V = np.searchsorted(codes_R, label_V)
    inside_V = label_V > 0
    voxels_R = np.bincount(row_V[inside_V], minlength=len(codes_R))
    if not voxels_R.any():
        hint = f"Use an atlas in {template.space}; its affine must place it on the brain."
        raise InputError(path, "no label on the template's brain", "an atlas in the template's space", hint)
    weights_RV = _means(row_V, inside_V, voxels_R)
    return Parcellation(name, artefact.sha256_file(path), codes_R, labels, voxels_R, centres_R3, weights_RV)


def _means(row_V: np.ndarray, inside_V: np.ndarray, voxels_R: np.ndarray) -> Any:
    from scipy import sparse

    rows, columns = row_V[inside_V], np.flatnonzero(inside_V)
    weights = (1 / voxels_R[rows]).astype(np.float32)
    return sparse.csr_array((weights, (rows, columns)), shape=(len(voxels_R), len(row_V)))


def _read_atlas(path: Path, template: Template) -> tuple[np.ndarray, np.ndarray, tuple[str, ...], np.ndarray]:
    """Label of each packed voxel, (V,); all codes but 0, ascending; their names; and their centres, mm."""
    label_XYZ, affine = _label_image(path)
    codes_R = np.unique(label_XYZ)
    codes_R = codes_R[codes_R > 0]
    to_voxel = np.linalg.inv(affine) @ template.affine
    voxel_V3 = np.rint(nib.affines.apply_affine(to_voxel, template.coordinates_V3)).astype(np.int64)
    inside_V = np.all((voxel_V3 >= 0) & (voxel_V3 < label_XYZ.shape), axis=1)
    label_V = np.zeros(template.voxels, np.int64)
    label_V[inside_V] = label_XYZ[tuple(voxel_V3[inside_V].T)]
    return label_V, codes_R, _names(path, codes_R), _centres(label_XYZ, affine, codes_R)


def _centres(label_XYZ: np.ndarray, affine: np.ndarray, codes_R: np.ndarray) -> np.ndarray:
    voxels_N3 = np.argwhere(label_XYZ > 0)
    row_N = np.searchsorted(codes_R, label_XYZ[label_XYZ > 0])
    sums_R3 = np.stack([np.bincount(row_N, weights=axis, minlength=len(codes_R)) for axis in voxels_N3.T], axis=1)
    return nib.affines.apply_affine(affine, sums_R3 / np.bincount(row_N, minlength=len(codes_R))[:, None])


def _label_image(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Labels as int64, whatever type they are stored in, (X, Y, Z), and the affine."""
    try:
        image: Any = nib.load(path)
        values = np.asarray(image.dataobj)
    except (OSError, EOFError, nib.filebasedimages.ImageFileError) as error:
        raise InputError(path, f"{error}", "a NIfTI image of labels", "Check the path and the file.") from error
    if image.header.get("sform_code", 1) == 0 and image.header.get("qform_code", 1) == 0:
        hint = "Write its sform; without one nobody knows where its labels lie."
        raise InputError(path, "no affine (sform and qform codes are 0)", "an affine to the template's space", hint)
    if values.ndim == 4 and values.shape[3] == 1:
        values = values[..., 0]
    if values.ndim != 3:
        hint = "A probabilistic atlas must be made a 3D image of labels first."
        raise InputError(path, f"an image of {values.ndim} dimensions", "3: one whole label a voxel", hint)
    if not np.isfinite(values).all() or np.any(values < 0) or np.any(values != np.rint(values)):
        hint = "Use the image of labels, resampled with nearest neighbour, not one of probabilities or of intensities."
        raise InputError(path, "values that are negative, broken or not finite", "whole labels from 0", hint)
    if not values.any():
        raise InputError(path, "an image of zeros", "labels above 0", "Check that this is the atlas.")
    return values.astype(np.int64), image.affine


def _names(path: Path, codes_R: np.ndarray) -> tuple[str, ...]:
    """Name of each code from the table beside the atlas; `parcel-<code>` where there is none."""
    table = label_table(path)
    names = {} if table is None else read_label_table(table)
    if names and not names.keys() & set(codes_R.tolist()):
        hint = "Put the atlas's own table there, or remove it: parcels are then named by their code."
        raise InputError(str(table), "none of the atlas's labels", f"names of {codes_R[0]} to {codes_R[-1]}", hint)
    return tuple(names.get(int(code), f"parcel-{code}") for code in codes_R)


def label_table(path: Path) -> Path | None:
    """The .csv or .tsv beside an atlas that has its name but for the words atlas, labels and dseg; or None.

    `aal/atlas.nii.gz` has `aal/labels.csv`; `cc200_roi_atlas.nii.gz` has `CC200_ROI_labels.csv`.
    """
    tables = sorted(table for table in path.parent.glob("*.[ct]sv") if _kernel(table) == _kernel(path))
    if len(tables) > 1:
        found = ", ".join(table.name for table in tables)
        raise InputError(path, f"{len(tables)} tables of labels: {found}", "at most one", "Remove the others.")
    return tables[0] if tables else None


def _kernel(path: Path) -> str:
    stem = path.name.lower().split(".")[0]
    return re.sub(r"[-_ ]*(atlas|labels?|dseg)(?=[-_ ]|$)", "", stem).strip("-_ ")


def read_label_table(path: Path) -> dict[int, str]:
    """Names by code, from a table with a column of codes and, if it names parcels, a column of names.

    Some tables number their rows from 1 and begin with the background: codes then count from the background's row.

    Raises
    ------
    InputError : not a table, no column of whole codes, or a code that occurs twice.
    """
    import pandas as pd

    try:
        table = pd.read_csv(path, sep="\t" if path.suffix == ".tsv" else ",", dtype=str, skipinitialspace=True)
    except (OSError, ValueError) as error:
        raise InputError(path, f"{error}", "a table of labels", "Mend it, or remove it.") from error
    columns = {str(column).strip().lower(): column for column in table.columns}
    index = _first(INDEX_COLUMNS, columns)
    if index is None:
        hint = "Rename its column of labels, or remove the table: parcels are then named by their label."
        raise InputError(path, f"columns {', '.join(columns)}", f"one of {', '.join(INDEX_COLUMNS)}", hint)
    codes = _codes(path, table[columns[index]])
    name = _first([column for column in NAME_COLUMNS if column != index], columns)
    if name is None:
        return {}
    names = [str(value).strip() for value in table[columns[name]]]
    background = next((code for code, each in zip(codes, names, strict=True) if each.lower() == "background"), 0)
    return {code - background: each for code, each in zip(codes, names, strict=True)}


def _first(wanted: Sequence[str], columns: dict[str, Any]) -> str | None:
    return next((column for column in wanted if column in columns), None)


def _codes(path: Path, column: Any) -> list[int]:
    try:
        codes = [int(value) for value in column]
    except (TypeError, ValueError) as error:
        raise InputError(path, f"{error}", "whole numbers as labels", "Mend it, or remove it.") from error
    twice = sorted({code for code in codes if codes.count(code) > 1})
    if twice:
        found = f"label {', '.join(map(str, twice[:5]))} more than once"
        raise InputError(path, found, "each label once", "Remove the duplicates.")
    return codes


def parcel_geometry(
    atlas: str, labels: Sequence[str], sha256: str | None = None, space: str | None = None
) -> dict[str, Any]:
    """The part of a contract that says what the columns of parcel series are.

    `sha256` is of the atlas file and `space` where it lies: both None for series that a user gives.
    """
    return {
        "kind": "parcels",
        "atlas": atlas,
        "atlas_sha256": sha256,
        "space": space,
        "labels": list(labels),
    }
