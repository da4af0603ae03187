"""The true input of an imported encoder, rebuilt from one of our shards.

Shards hold each voxel's z with its mean and SD, so the peer's own normalisation is rebuilt from them exactly (see
`pipeline.bold.views`); nothing is resampled here.

Legend: T frames; R parcels; P pixels on cortex; X Y Z voxels; H W rows and columns of pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline.bold.reader import Shard, require_contract
from pipeline.bold.template import Template
from pipeline.bold.views import swift_volume, view
from pipeline.errors import InputError
from pipeline.pretrain.released.contract import check_contract

Reader = Callable[[int, int], np.ndarray]


def clips(
    shard: Shard,
    metadata: Mapping[str, Any],
    template: Template | None = None,
    cortex_HW: np.ndarray | None = None,
    cohort: str = "ukb",
    origin: tuple[int, int, int] | None = None,
) -> Iterator[Tensor]:
    """Clips of a run for an imported encoder, `(1, ...)` float32: one after the other without overlap, a rest dropped.

    Parameters
    ----------
    metadata : of `load_released`.
    template : the shard's, for encoders of voxels.
    cortex_HW : pixels on cortex, for encoders of flat maps.
    cohort, origin : see `swift_volume`: SwiFT's pads for the whole FSL grid (ukb), or for a box of it.

    Raises
    ------
    InputError : the run breaks the encoder's data contract, or what describes its columns is not given.
    """
    check_contract(metadata, shard.contract, shard.folder)
    made = metadata["contract"]["input"]
    if made["layout"] == "swift-ukb":
        read = _volumes(shard, made, template, cohort, origin)
    elif made["layout"] == "flat map":
        read = _flat_maps(shard, made, cortex_HW)
    else:
        read = _parcels(shard, made)
    for start in range(0, shard.frames - made["frames"] + 1, made["frames"]):
        yield torch.from_numpy(np.ascontiguousarray(read(start, start + made["frames"]), dtype=np.float32))[None]


def _volumes(
    shard: Shard,
    made: Mapping[str, Any],
    template: Template | None,
    cohort: str,
    origin: tuple[int, int, int] | None,
) -> Reader:
    """(1, X, Y, Z, T): global z, flipped to LAS, padded with the background to SwiFT's cube."""
    if template is None:
        hint = "Give the template that the shard was made on."
        raise InputError(shard.folder, "no template", "where its voxels lie", hint)
    whole = cohort == "ukb" and origin is None
    seen = swift_volume(shard, template, cohort, tuple(made["origin"]) if whole else origin)
    require_contract(shard.folder, seen.contract, {key: made[key] for key in ("orientation", "shape", "normalisation")})
    return lambda start, stop: seen.read(start, stop)[None]


def _parcels(shard: Shard, made: Mapping[str, Any]) -> Reader:
    """(R, T)."""
    seen = view(shard, made["normalisation"])
    return lambda start, stop: seen.read(start, stop).T / made.get("divisor", 1.0)


def _flat_maps(shard: Shard, made: Mapping[str, Any], cortex_HW: np.ndarray | None) -> Reader:
    """(1, H, W, T), 0 where a pixel is not on cortex."""
    pixels = 0 if cortex_HW is None else int(cortex_HW.sum())
    if cortex_HW is None or pixels != shard.voxels or list(cortex_HW.shape) != made["shape"][1:]:
        found, expected = f"a map of {pixels} pixels on cortex", f"one of {shard.voxels} in {made['shape'][1:]}"
        raise InputError(shard.folder, found, expected, "Give the raster that the shard was made on.")
    seen = view(shard, made["normalisation"], made["clip"])

    def read(start: int, stop: int) -> np.ndarray:
        map_HWT = np.zeros((*cortex_HW.shape, stop - start), np.float32)
        map_HWT[cortex_HW] = seen.read(start, stop).T
        return map_HWT[None]

    return read
