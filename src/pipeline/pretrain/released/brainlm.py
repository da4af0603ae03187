"""Released encoders of BrainLM: masked autoencoders on 424 parcels, UK Biobank and HCP.

Source: Ortega Caro et al. (2024), ICLR; the first model in github.com/vandijklab/BrainLM, all of them at
huggingface.co/vandijklab/brainlm. Both forms have the names of the library that they were written with: the first
model is a row of tokens (Nystroemformer layers), the later ones are image transformers (ViT-MAE layers).
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from pipeline.errors import InputError
from pipeline.models import build
from pipeline.models.parts.token_encoder import TokenEncoder
from pipeline.pretrain.released.reading import Checkpoint, joined, require
from pipeline.pretrain.released.release import Converted, Release

PARCELS, FRAMES, DECIMALS = 424, 200, 1e-3
IMAGE_HEADS = {768: 12, 1280: 16}  # of ViT-B and ViT-H; nothing in the shapes tells
IMAGE_DIVISOR = 5.6430855  # largest robust score of the training set, by which pixels were brought into -1 to 1

_ROW = {
    "attention.self.conv": "attn.conv",
    "attention.output.dense": "attn.proj",
    "attention.output.LayerNorm": "norm1",
    "intermediate.dense": "mlp.linear1",
    "output.dense": "mlp.linear2",
    "output.LayerNorm": "norm2",
}
_IMAGE = {
    "layernorm_before": "norm1",
    "attention.output.dense": "attn.proj",
    "layernorm_after": "norm2",
    "intermediate.dense": "mlp.linear1",
    "output.dense": "mlp.linear2",
}
_EMBEDDINGS = {
    "embeddings.signal_embedding_projection.": "patch_embed.",
    "embeddings.patch_embeddings.projection.": "patch_embed.",
    "embeddings.xyz_embedding_projection.": "positions.place.",
    "embeddings.cls_token": "cls_token",
    "layernorm.": "norm.",
}
NEEDS = {"coordinates": "(424, 3), x, y and z of the parcels of A424 in mm: A424_Coordinates.dat beside the weights"}

CONTRACT: dict[str, Any] = {
    "run": {"kind": "parcels", "parcels": PARCELS, "tr_s": [0.72, 0.735], "frames": FRAMES, "normalisation": "voxel-z"},
    "input": {
        "layout": "parcels",
        "atlas": "A424, in the order of its codes",
        "shape": [PARCELS, FRAMES],
        "normalisation": "voxel-robust",  # of the run: median and range of the training set were not released
        "frames": FRAMES,
    },
}


def convert(checkpoint: Checkpoint) -> Converted:
    """The encoder, whichever of the two forms it has; sizes are read off its shapes.

    Raises
    ------
    InputError : its positions are not the published sines, which the registry computes anew.
    """
    tensors = {
        name.removeprefix("vit."): tensor for name, tensor in checkpoint.tensors.items() if name.startswith("vit.")
    }
    image = "embeddings.patch_embeddings.projection.weight" in tensors
    spec = (_image_spec if image else _row_spec)(checkpoint, tensors)
    stored = tensors.pop("embeddings.position_embeddings" if image else "embeddings.pos_embedding.pe", None)
    if stored is not None:
        _check_positions(checkpoint, spec, stored, image)
    renamed = {_renamed(name, image): tensor for name, tensor in tensors.items()}
    if "cls_token" in renamed:
        renamed["cls_token"] = renamed["cls_token"].squeeze(0)
    extra = {"divisor": IMAGE_DIVISOR} if image else {}
    return Converted("brainlm", spec, joined(renamed, (".attn.query.", ".attn.key.", ".attn.value.")), NEEDS, extra)


def _row_spec(checkpoint: Checkpoint, tensors: dict[str, Tensor]) -> dict[str, Any]:
    width, patch = require(checkpoint.path, tensors, "embeddings.signal_embedding_projection.weight", 2)
    heads = require(checkpoint.path, tensors, "encoder.layer.0.attention.self.conv.weight", 4)[0]
    return {**_spec(checkpoint, tensors, width, heads), "patch": patch}


def _image_spec(checkpoint: Checkpoint, tensors: dict[str, Tensor]) -> dict[str, Any]:
    shape = require(checkpoint.path, tensors, "embeddings.patch_embeddings.projection.weight", 4)
    return {**_spec(checkpoint, tensors, shape[0], IMAGE_HEADS.get(shape[0], 1)), "image_patch": shape[2]}


def _spec(checkpoint: Checkpoint, tensors: dict[str, Tensor], width: int, heads: int) -> dict[str, Any]:
    inner = require(checkpoint.path, tensors, "encoder.layer.0.intermediate.dense.weight", 2)[0]
    layers = {name.split(".")[2] for name in tensors if name.startswith("encoder.layer.")}
    return {
        "width": width,
        "depth": len(layers),
        "heads": heads,
        "ratio": inner // width,
        "parcels": PARCELS,
        "frames": FRAMES,
        "variant": "upstream",
    }


def _check_positions(checkpoint: Checkpoint, spec: dict[str, Any], stored: Tensor, image: bool) -> None:
    """Stored sines against those of the registry; in a row, the part of them that does not come from coordinates."""
    encoder = build("brainlm", {**spec, "depth": 1})
    assert isinstance(encoder, TokenEncoder)
    rows, times = encoder.grid(FRAMES)
    if image:
        expected, found = encoder.new_positions(spec["width"])(encoder.table, (rows, times)), stored[0, 1:]
    else:
        positions = encoder.new_positions(spec["width"])
        for parameter in positions.parameters():
            parameter.data.zero_()
        expected, found = positions(encoder.table, (rows, times))[:times], stored[:times]
    if expected.shape != found.shape or (expected - found).abs().max() > DECIMALS:
        hint = "This is a BrainLM of another form than those that were published."
        raise InputError(f"{checkpoint.path}: positions", f"shape {tuple(stored.shape)}", "the published sines", hint)


def _renamed(name: str, image: bool) -> str:
    if name.startswith("encoder.layer."):
        _, _, number, rest = name.split(".", 3)
        rest = rest.replace("attention.attention.", "attn.").replace("attention.self.conv", "attn.conv")
        rest = rest.replace("attention.self.", "attn.")
        for old, new in (_IMAGE if image else _ROW).items():
            if rest.startswith(f"{old}."):
                rest = rest.replace(old, new, 1)
        return f"blocks.{number}.{rest}"
    for old, new in _EMBEDDINGS.items():
        if name.startswith(old):
            return name.replace(old, new, 1)
    return name


RELEASE = Release(
    about="BrainLM, a masked autoencoder on parcels, pretrained on UK Biobank and HCP.",
    source="github.com/vandijklab/BrainLM, pretrained_models; huggingface.co/vandijklab/brainlm",
    licence="in conflict: the LICENSE file is Apache-2.0, README and model card say CC BY-NC-ND 4.0. Ask the authors.",
    citation="Ortega Caro et al. (2024), BrainLM: a foundation model for brain activity recordings, ICLR",
    sha256={
        "e647c70b2af023d945bfd61b4187c4fdf1700fbb4433a0818e982520564493c5": (
            "the download record of a public study (commit eded39c, 30,471,369 bytes, first model); not by the authors"
        )
    },
    contract=CONTRACT,
    convert=convert,
)
