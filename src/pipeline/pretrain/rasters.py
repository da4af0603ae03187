"""Where the columns of a store's shards lie in what a model sees."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipeline.bold.flatmap import load_flatmap
from pipeline.bold.template import Template
from pipeline.errors import InputError
from pipeline.models.parts.voxels import Raster


def raster_of(
    metadata: Mapping[str, Any], template: Template, flatmap_folder: str | Path | None, device: torch.device
) -> Raster:
    """The raster of an encoder by its `contract` and `spec`.

    `flatmap_folder` holds flatmap.npz; only encoders of flat maps need it.

    Raises
    ------
    InputError : the flat map is missing, or another than the one that the encoder was trained on.
    """
    kind = metadata["contract"].get("kind", "voxels")
    if kind == "parcels":
        return parcel_raster(metadata["spec"]["parcels"], device)
    if kind == "flatmap":
        flatmap = load_flatmap(Path(flatmap_folder or "flatmaps"))
        if flatmap.key != metadata["contract"]["flatmap"]:
            hint = "Run the flatmap stage again with the settings that the cell was trained with."
            raise InputError(f"{flatmap_folder}: key", flatmap.key, metadata["contract"]["flatmap"], hint)
        mask_HW = flatmap.raster.mask_HW
        return Raster(mask_HW.shape, torch.from_numpy(np.flatnonzero(mask_HW)).to(device))
    return voxel_raster(template, device)


def voxel_raster(template: Template, device: torch.device | str = "cpu") -> Raster:
    """In-mask voxels in the box of a template."""
    return Raster(template.shape, torch.from_numpy(template.voxel_index_V).to(device))


def parcel_raster(parcels: int, device: torch.device | str = "cpu") -> Raster:
    """Parcels in the order of their columns."""
    return Raster((parcels,), torch.arange(parcels, device=device), channel=False)
