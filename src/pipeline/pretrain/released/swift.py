"""Released encoders of SwiFT: contrastive on HCP, ABCD and UKB; and trained from scratch to tell sex in HCP.

Source: Kim et al. (2023), NeurIPS; github.com/Transconnectome/SwiFT, folder pretrained_models. Both have width 36 and
keep heads of older code beside the encoder, which is why that repository's own strict loader refuses them.
"""

from __future__ import annotations

from typing import Any

from pipeline.bold.views import SWIFT_GRIDS
from pipeline.errors import InputError
from pipeline.pretrain.released.reading import Checkpoint, without
from pipeline.pretrain.released.release import Converted, Release

SPEC: dict[str, Any] = {
    "width": 36,
    "depths": [2, 2, 6, 2],
    "heads": [3, 6, 12, 24],
    "grid": [16, 16, 16],
    "patch": [6, 6, 6, 1],
    "context_frames": 20,
    "window": [4, 4, 4, 4],
    "first_window": [4, 4, 4, 4],
    "full_last_stage": True,
}
EMBEDDING = (36, 216)  # tells the released width from others: every other shape follows from it
HEADS = ("head.", "emb_mlp.", "clf.", "reg.", "output_head.")

CONTRACT: dict[str, Any] = {
    "run": {"kind": "voxels", "space": "MNI152", "resolution_mm": 2.0, "tr_s": [0.72, 0.8], "frames": 20},
    "input": {
        "layout": "swift-ukb",
        "origin": [0, 0, 0],
        "orientation": "LAS",
        "shape": [96, 96, 96],
        "normalisation": "global-z",
        "background": "smallest z of the run",
        "frames": 20,
        "pads": {"x".join(map(str, grid.shape)): [list(pad) for pad in grid.pads] for grid in SWIFT_GRIDS.values()},
    },
}


def convert(checkpoint: Checkpoint) -> Converted:
    """The 165 tensors of the encoder, heads dropped.

    Names begin with `model.` in a Lightning file; where none does, as in safetensors files of the encoder alone, they
    are taken as they are.

    Raises
    ------
    InputError : the patch embedding is of another width than the released one.
    """
    tensors = checkpoint.tensors
    if any(name.startswith("model.") for name in tensors):
        tensors = {name.removeprefix("model."): tensor for name, tensor in tensors.items()}
    tensors = without(tensors, *HEADS)
    found = tuple(tensors["patch_embed.fc.weight"].shape) if "patch_embed.fc.weight" in tensors else None
    if found not in (None, EMBEDDING):
        hint = "Encoders of another width were not released; train one with `pipeline pretrain`."
        raise InputError(f"{checkpoint.path}: patch_embed.fc.weight", f"shape {found}", f"{EMBEDDING}", hint)
    return Converted("swift_v1", SPEC, tensors)


CONTRASTIVE = Release(
    about="SwiFT, pretrained by contrast on HCP, ABCD and UK Biobank.",
    source="github.com/Transconnectome/SwiFT, pretrained_models/contrastive_pretrained.ckpt",
    licence="Apache-2.0",
    citation="Kim et al. (2023), SwiFT: Swin 4D fMRI Transformer, NeurIPS",
    sha256={
        "5922c84b31b4e59de1c26ed4839689234ce401216f5a2a4fbbf6a4d5940cce3e": (
            "the download record of a public study (main branch, 2026-09-23, 52,998,337 bytes); not by the authors"
        )
    },
    contract=CONTRACT,
    convert=convert,
)
HCP_SEX = Release(
    about="SwiFT, trained from scratch to tell sex in HCP; the people it saw are in split_hcp.txt beside it.",
    source="github.com/Transconnectome/SwiFT, pretrained_models/hcp_sex_classification.ckpt",
    licence="Apache-2.0",
    citation="Kim et al. (2023), SwiFT: Swin 4D fMRI Transformer, NeurIPS",
    sha256={},
    contract=CONTRACT,
    convert=convert,
)
