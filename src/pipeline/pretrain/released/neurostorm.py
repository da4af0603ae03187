"""Released encoders of NeuroSTORM: window Mamba, pretrained by masked reconstruction on five cohorts.

Source: CUHK-AIM-Group/NeuroSTORM; weights at huggingface.co/zxcvb20001/NeuroSTORM. A Lightning file of the whole
autoencoder, 7,712,892 numbers; the mask token there is one vector for each of the 256 places of a window.
"""

from __future__ import annotations

from typing import Any

from pipeline.pretrain.released.reading import Checkpoint, require, without
from pipeline.pretrain.released.release import Converted, Release

DECODER = (
    "mask_token",
    "window_mask_token",
    "atlas_mask_token",
    "atlas_map",
    "first_patch_expanding.",
    "layers_up.",
    "norm_up.",
    "decoder_pred.",
)
HEADS = ("head.", "emb_mlp.", "clf.", "reg.", "output_head.")

CONTRACT: dict[str, Any] = {
    "run": {
        "kind": "voxels",
        "space": "MNI152",
        "resolution_mm": 2.0,
        "tr_s": [0.8, 0.8],
        "frames": 20,
        "minimum": 0.0,  # negative values were set to 0 before the z-score; shards without any need no such step
    },
    "input": {
        "layout": "swift-ukb",
        "origin": [0, -1, 0],  # keeps voxels 6 to 101 along y, where SwiFT keeps 7 to 102
        "orientation": "LAS",
        "shape": [96, 96, 96],
        "normalisation": "global-z",
        "background": "smallest z of the run",
        "frames": 20,
    },
}


def convert(checkpoint: Checkpoint) -> Converted:
    """The encoder; sizes are read off its shapes."""
    tensors = {name.removeprefix("model."): tensor for name, tensor in checkpoint.tensors.items()}
    tensors = without(tensors, *DECODER, *HEADS)
    width, voxels = require(checkpoint.path, tensors, "patch_embed.fc.weight", 2)
    grid = require(checkpoint.path, tensors, "pos_embeds.0.pos_embed", 6)[2:5]
    times = require(checkpoint.path, tensors, "pos_embeds.0.time_embed", 6)[5]
    edge = round(voxels ** (1 / 3))
    stages = sorted({int(name.split(".")[1]) for name in tensors if name.startswith("layers.")})
    depths = [
        len({name.split(".")[3] for name in tensors if name.startswith(f"layers.{stage}.blocks.")}) for stage in stages
    ]
    spec = {
        "width": width,
        "depths": depths,
        "grid": list(grid),
        "patch": [edge, edge, edge, 1],
        "context_frames": times,
        "window": [4, 4, 4, 4],
        "first_window": [4, 4, 4, 4],
        "full_last_stage": True,
        "variant": "upstream",
    }
    return Converted("neurostorm", spec, tensors)


RELEASE = Release(
    about="NeuroSTORM, a window Mamba, pretrained by masked reconstruction on HCP, HCP-A, HCP-D, ABCD and UK Biobank.",
    source="huggingface.co/zxcvb20001/NeuroSTORM, pretraining/pt_neurostorm_mae_5ds.ckpt",
    licence="Apache-2.0 by its LICENSE file; its README and model card say MIT",
    citation="Wang et al. (2026), Towards a general-purpose foundation model for fMRI analysis, Nature BME",
    sha256={},
    contract=CONTRACT,
    convert=convert,
)
