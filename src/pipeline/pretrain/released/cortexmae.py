"""Released encoders of CortexMAE-F: masked autoencoders on flat maps of cortex, HCP.

Source: Lane et al. (2026), ICML; weights at huggingface.co/medarc/CortexMAE. The file is a torch dictionary with
`model`, the whole autoencoder, and `args`, the options of its training. Query, key and value are three maps there and
one map here.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from pipeline.errors import InputError
from pipeline.pretrain.released.reading import Checkpoint, joined, require
from pipeline.pretrain.released.release import Converted, Release

HEAD_CHANNELS = 64  # of every released encoder: ViT-S, ViT-B, and the ladder of depths
RASTER = (224, 560)
NEEDS = {"cortex_HW": "(H, W) bool, pixels on cortex, without which tokens that hold none would be attended to"}

CONTRACT: dict[str, Any] = {
    "run": {
        "kind": "flatmap",
        "mesh": "fs_LR 64k",
        "raster": list(RASTER),
        "tr_s": [0.9, 1.1],
        "frames": 16,
        "normalisation": "voxel-z",
    },
    "input": {
        "layout": "flat map",
        "shape": [1, *RASTER],
        "normalisation": "frame-z",
        "clip": 3.0,
        "background": "0; tokens without a pixel of cortex are dropped",
        "frames": 16,
    },
}


def convert(checkpoint: Checkpoint) -> Converted:
    """The encoder of a flat-map autoencoder; sizes are read off its shapes and its options.

    Raises
    ------
    InputError : an encoder of parcels or volumes, or one with register tokens, which the registry does not have.
    """
    space = checkpoint.options.get("input_space", "flat")
    if space != "flat":
        hint = "Use one of the cortex_mae_flat files."
        raise InputError(f"{checkpoint.path}: args.input_space", f"'{space}'", "'flat'", hint)
    tensors = {
        name.removeprefix("encoder."): tensor
        for name, tensor in checkpoint.tensors.items()
        if name.startswith("encoder.")
    }
    width, values = require(checkpoint.path, tensors, "patch_embed.weight", 2)
    times = require(checkpoint.path, tensors, "pos_embed.weight_temporal", 3)[0]
    edge, frames = _patch(checkpoint, values)
    depth = len({name.split(".")[1] for name in tensors if name.startswith("blocks.")})
    spec = {
        "width": width,
        "depth": depth,
        "heads": max(1, width // HEAD_CHANNELS),
        "raster": list(_raster(checkpoint, tensors, edge)),
        "patch": [edge, edge, frames],
        "context_frames": times * frames,
    }
    return Converted("flatmap_mae", spec, _renamed(tensors), NEEDS)


def _patch(checkpoint: Checkpoint, values: int) -> tuple[int, int]:
    """Edge in pixels and frames of a patch; 16 and what remains of `values` where the options do not say."""
    edge = int(checkpoint.options.get("patch_size", 16))
    frames = values // edge**2
    if frames * edge**2 != values:
        found, hint = f"patches of {values} values", "Check that the file is whole."
        raise InputError(f"{checkpoint.path}: patch_embed.weight", found, f"frames of {edge} x {edge} pixels", hint)
    return edge, frames


def _raster(checkpoint: Checkpoint, tensors: dict[str, Tensor], edge: int) -> tuple[int, int]:
    """The published raster, which must have as many places as positions were learned for."""
    places = require(checkpoint.path, tensors, "pos_embed.weight_spatial", 3)[1]
    height, width = checkpoint.options.get("img_size", RASTER)
    if (height // edge) * (width // edge) != places:
        found, expected = f"positions of {places} places", f"those of {height} x {width} pixels in patches of {edge}"
        raise InputError(f"{checkpoint.path}: pos_embed.weight_spatial", found, expected, "Check --system.")
    return int(height), int(width)


def _renamed(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Names of the registry: three maps become one, `mlp.fc` becomes `mlp.linear`."""
    renamed = {name.replace(".mlp.fc", ".mlp.linear"): tensor for name, tensor in tensors.items()}
    return joined(renamed, (".attn.q.", ".attn.k.", ".attn.v."))


RELEASE = Release(
    about="CortexMAE-F, a masked autoencoder on flat maps, pretrained on HCP.",
    source="huggingface.co/medarc/CortexMAE, input_space_v3/flat_lr1e-3_1/pretrain/checkpoint-last.pth",
    licence="CC BY-NC 4.0 (the code is Apache-2.0): no commercial use",
    citation="Lane et al. (2026), ICML",
    sha256={},
    contract=CONTRACT,
    convert=convert,
)
