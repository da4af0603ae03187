"""Derived stores: the shards of a batch as parcel series, or as cortical flat maps; one derived shard a run.

A column of a derived store is a weighted mean of its parent's voxels in the scanner's unit, over those that have signal
in this run. Axes: T frames, t frames of a block, V voxels of the parent, C columns (parcels or pixels).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from pipeline import artefact, config
from pipeline.bold.flatmap import MIN_COVERAGE, Flatmap, load_flatmap
from pipeline.bold.parcels import Parcellation, label_table, load_parcellation, parcel_geometry
from pipeline.bold.reader import Shard
from pipeline.bold.shards import voxel_geometry, write_shard
from pipeline.bold.spool import BLOCK, spool
from pipeline.bold.template import Template, load_template
from pipeline.bold.workers import each
from pipeline.config import Study
from pipeline.errors import InputError, nearest
from pipeline.stages import VERSIONS

REMAKE = "Run the shards stage again, then this one."

Entry: TypeAlias = dict[str, Any]
Outcome: TypeAlias = tuple[Entry, str | None]  # what is said of a run, and why it was lost


@dataclass(frozen=True, eq=False)
class Projection:
    """Columns of one run: its z-scores times `weights_CV` (sparse), plus `offset_C`; both hold its means and SDs.

    `coverage_C` is the share of a column's weights that lies on voxels with signal; at 0 the column is constant.
    """

    weights_CV: Any
    offset_C: np.ndarray
    coverage_C: np.ndarray

    def blocks(self, shard: Shard) -> Iterator[np.ndarray]:
        """The columns of a run, (t, C) float32, in the unit of the scanner."""
        for start in range(0, shard.frames, BLOCK):
            z_Vt = np.ascontiguousarray(shard.read(start, min(start + BLOCK, shard.frames)).T)
            yield (self.weights_CV @ z_Vt).T + self.offset_C


def project(mean_V: np.ndarray, std_V: np.ndarray, weights_CV: Any, least: float = 0.0) -> Projection:
    """How a run's voxels become columns; `weights_CV` (sparse) has rows that sum to 1, or to 0 for a column of nothing.

    A voxel has signal where its SD is above 0. Columns whose coverage is not above `least` are constant zeros.
    """
    from scipy import sparse

    alive_V = (std_V > 0).astype(np.float64)
    covered_C = weights_CV @ alive_V
    coverage_C = np.where(covered_C > least, covered_C, 0)
    scale_C = np.divide(1, coverage_C, out=np.zeros_like(coverage_C), where=coverage_C > 0)
    means_CV = sparse.diags_array(scale_C) @ weights_CV @ sparse.diags_array(alive_V)
    folded_CV = (means_CV @ sparse.diags_array(std_V.astype(np.float64))).astype(np.float32).tocsr()
    return Projection(folded_CV, (means_CV @ mean_V.astype(np.float64)).astype(np.float32), coverage_C)


def parcels_batch(
    study: Study, dataset: str, atlas: str, batch: Path, template_folder: Path, output: Path, workers: int = 1
) -> None:
    """Parcel series of every shard in the listing `batch`, beside `output`, and last `output`, the list of them.

    `atlas` is a name under the study's `atlases`. Parcels without signal in a run are constant; its contract has the
    coverage of each.

    Raises
    ------
    InputError : the atlas is unknown or unusable, or a parent is missing, damaged or of another template.
    """
    if atlas not in study.atlases:
        raise InputError("atlas", f"'{atlas}'", "a name under `atlases`", nearest(atlas, study.atlases))
    path = config.expand_path(f"atlases.{atlas}", study.atlases[atlas])
    template = load_template(template_folder)
    parcellation = load_parcellation(atlas, path, template)
    make = partial(_parcels_of, study.shards, template, parcellation, Path(output).parent)
    inputs = {"batch": batch, "atlas": path, "template": Path(template_folder) / "template.npz"}
    if table := label_table(path):
        inputs["labels"] = table
    _write_batch("parcels", study, dataset, make, inputs, output, workers)


def flatmaps_batch(
    study: Study, dataset: str, batch: Path, template_folder: Path, flatmap_folder: Path, output: Path, workers: int = 1
) -> None:
    """Cortical flat maps of every shard in the listing `batch`, beside `output`, and last `output`, the list of them.

    Raises
    ------
    InputError : the flat map is of another template, or a parent is missing, damaged or of another template.
    """
    template, flatmap = load_template(template_folder), load_flatmap(flatmap_folder)
    if flatmap.template != template.key:
        found = f"a flat map of template {flatmap.template}"
        raise InputError(flatmap_folder, found, f"one of {template.key}", "Run the flatmap stage again.")
    make = partial(_flatmap_of, study.shards, template, Path(flatmap_folder), Path(output).parent)
    inputs = {"batch": batch, "flatmap": Path(flatmap_folder) / "flatmap.npz"}
    _write_batch("flatmaps", study, dataset, make, inputs, output, workers)


def _write_batch(
    stage: str,
    study: Study,
    dataset: str,
    make: Callable[[Entry], Outcome],
    inputs: Mapping[str, Path],
    output: Path,
    workers: int,
) -> None:
    """One derived shard a run of a batch; who was lost before stays on the list of the lost."""
    parents = artefact.read_json(inputs["batch"])
    strangers = sorted({entry["dataset"] for entry in parents["runs"]} - {dataset})
    if strangers:
        raise InputError(inputs["batch"], f"runs of {', '.join(strangers)}", f"runs of {dataset}", "Check --input.")
    outcomes = list(each(make, parents["runs"], workers, __name__))
    listing = {
        "runs": [entry for entry, reason in outcomes if reason is None],
        "quarantined": [
            *parents["quarantined"],
            *({**entry, "reason": reason} for entry, reason in outcomes if reason is not None),
        ],
        "provenance": artefact.provenance(stage, VERSIONS[stage], study.shards.model_dump(), dict(inputs)),
    }
    artefact.write_json(output, listing)


def _parcels_of(
    settings: config.Shards, template: Template, parcellation: Parcellation, folder: Path, entry: Entry
) -> Outcome:
    parent = open_parent(entry, template)
    projection = project(parent.mean, parent.std, parcellation.weights_RV)
    geometry = {
        **parcel_geometry(parcellation.name, parcellation.labels, parcellation.sha256, template.space),
        "codes": parcellation.codes_R.tolist(),
        "centres_mm": parcellation.centres_R3.round(2).tolist(),
        "parcel_voxels": parcellation.voxels_R.tolist(),
        "coverage": projection.coverage_C.round(4).tolist(),
    }
    return _derived(settings, template, parent, projection, geometry, folder, entry)


def _flatmap_of(
    settings: config.Shards, template: Template, flatmap_folder: Path, folder: Path, entry: Entry
) -> Outcome:
    # Read in the worker: its weights are tens of MB, which would otherwise be pickled for every run.
    flatmap: Flatmap = load_flatmap(flatmap_folder)
    parent = open_parent(entry, template)
    projection = project(parent.mean, parent.std, flatmap.weights_PV, MIN_COVERAGE)
    return _derived(settings, template, parent, projection, flatmap.geometry, folder, entry)


def open_parent(entry: Entry, template: Template) -> Shard:
    """The voxel shard that a listing names.

    Raises
    ------
    InputError : it is missing, damaged, of another template, or another one than when the listing was written.
    """
    path = Path(entry["path"])
    parent = Shard.open(path, {"kind": "voxels", "template": template.key})
    if artefact.sha256_file(path / "manifest.json") != entry["manifest"]:
        raise InputError(path / "manifest.json", "other bytes", "the SHA-256 in the list of shards", REMAKE)
    return parent


def _derived(
    settings: config.Shards,
    template: Template,
    parent: Shard,
    projection: Projection,
    geometry: Mapping[str, Any],
    folder: Path,
    entry: Entry,
) -> Outcome:
    """Write one derived shard: its entry, or the run's name and the reason why there is none."""
    if not projection.coverage_C.any():
        name = {key: entry[key] for key in ("dataset", "subject", "session", "run")}
        return name, f"no column of the {geometry['kind']} has a voxel with signal"
    contract = {**_inherited(parent, template), "parent": {"template": template.key, "manifest": entry["manifest"]}}
    own = Path(*Path(entry["path"]).parts[-2:])  # sub-X/ses-Y_run-Z
    chunk, dtype = settings.frames_per_chunk, settings.dtype
    with spool(projection.blocks(parent), len(projection.coverage_C)) as spooled:
        written = write_shard(folder / own, spooled, contract, geometry=geometry, frames_per_chunk=chunk, dtype=dtype)
        dead = int(np.sum(spooled.std_V == 0))
    measured = {"column_coverage": round(float(projection.coverage_C.mean()), 4), "dead_columns": dead}
    return {**entry, **written, "quality": {**entry.get("quality", {}), **measured}}, None


def _inherited(parent: Shard, template: Template) -> dict[str, Any]:
    """What a parent's contract says of its run, without what it says of its columns."""
    of_voxels = {*voxel_geometry(template), "dtype", "software"}
    return {field: value for field, value in parent.contract.items() if field not in of_voxels}
