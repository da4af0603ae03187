"""Files of the forms in which encoders are released, with random weights: key lists and shapes are the published ones.

Nothing here imports the converters: names and shapes are written down a second time.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

Shapes = dict[str, tuple[int, ...]]


def random(shapes: Shapes, seed: int = 0) -> dict[str, Tensor]:
    """Weights of a plausible size, so that features neither vanish nor overflow; those of norms lie about 1."""
    generator = torch.Generator().manual_seed(seed)
    weights = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    for name, weight in weights.items():
        weight.mul_(0.1 if weight.ndim < 2 else 0.5 / math.sqrt(weight.shape[-1]))
        if weight.ndim == 1 and name.endswith(".weight"):
            weight.add_(1)
    return weights


def lightning(path: Path, tensors: dict[str, Tensor], options: Any, **beside: Any) -> Path:
    """As Lightning writes: weights under `model.`, options, optimiser and loops."""
    moments = {number: {"step": torch.tensor(3.0), "exp_avg": torch.zeros(2)} for number in range(2)}
    content = {
        "epoch": 9,
        "global_step": 1000,
        "pytorch-lightning_version": "1.9.1",
        "state_dict": {f"model.{name}": tensor for name, tensor in tensors.items()} | beside,
        "loops": {"fit_loop": {"state_dict": {}}},
        "callbacks": {"ModelCheckpoint{'monitor': 'valid_loss'}": {"best_model_score": torch.tensor(0.3)}},
        "optimizer_states": [{"state": moments, "param_groups": [{"lr": 5e-5, "params": [0, 1]}]}],
        "lr_schedulers": [],
        "hparams_name": "kwargs",
        "hyper_parameters": options,
    }
    torch.save(content, path)
    return path


def norm(name: str, width: int) -> Shapes:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def linear(name: str, inputs: int, outputs: int) -> Shapes:
    return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}


def swift() -> Shapes:
    """The 165 tensors of the encoder of width 36, as published."""
    shapes = linear("patch_embed.fc", 216, 36) | norm("norm", 288)
    for stage, (depth, width, places) in enumerate([(2, 36, 16), (2, 72, 8), (6, 144, 4), (2, 288, 2)]):
        shapes[f"pos_embeds.{stage}.pos_embed"] = (1, width, places, places, places, 1)
        shapes[f"pos_embeds.{stage}.time_embed"] = (1, width, 1, 1, 1, 20)
        for block in range(depth):
            name = f"layers.{stage}.blocks.{block}"
            shapes |= norm(f"{name}.norm1", width) | norm(f"{name}.norm2", width)
            shapes |= linear(f"{name}.attn.qkv", width, 3 * width) | linear(f"{name}.attn.proj", width, width)
            shapes |= linear(f"{name}.mlp.linear1", width, 4 * width) | linear(f"{name}.mlp.linear2", 4 * width, width)
        if stage < 3:
            shapes |= norm(f"layers.{stage}.downsample.norm", 8 * width)
            shapes[f"layers.{stage}.downsample.reduction.weight"] = (2 * width, 8 * width)
    return shapes


SWIFT_OPTIONS = argparse.Namespace(embed_dim=36, depth=[2, 2, 6, 2], model="swin4d_ver7", use_scheduler=False)


def swift_file(path: Path, tensors: dict[str, Tensor]) -> Path:
    """With the heads of older code."""
    heads = {
        "model.head.weight": torch.zeros(2, 288),
        "model.head.bias": torch.zeros(2),
        "emb_mlp.linear.weight": torch.zeros(128, 288),
        "clf.head.weight": torch.zeros(1, 288),
        "reg.head.bias": torch.zeros(1),
        "output_head.hidden.weight": torch.zeros(1152, 288),
    }
    return lightning(path, tensors, SWIFT_OPTIONS, **heads)


def mamba(name: str, width: int) -> Shapes:
    inner, rank = 2 * width, math.ceil(width / 16)
    return {
        f"{name}.A_log": (inner, 16),
        f"{name}.D": (inner,),
        f"{name}.in_proj.weight": (2 * inner, width),
        f"{name}.conv1d.weight": (inner, 1, 4),
        f"{name}.conv1d.bias": (inner,),
        f"{name}.x_proj.weight": (rank + 32, inner),
        **linear(f"{name}.dt_proj", rank, inner),
        f"{name}.out_proj.weight": (width, inner),
    }


def _mamba_block(name: str, width: int) -> Shapes:
    mlp = linear(f"{name}.mlp.linear1", width, 4 * width) | linear(f"{name}.mlp.linear2", 4 * width, width)
    return norm(f"{name}.norm1", width) | mamba(f"{name}.mamba", width) | norm(f"{name}.norm2", width) | mlp


def neurostorm(width: int, depths: tuple[int, ...], grid: int, frames: int, edge: int) -> tuple[Shapes, Shapes]:
    """Encoder and decoder."""
    encoder = linear("patch_embed.fc", edge**3, width)
    for stage, depth in enumerate(depths):
        wide, places = width * 2**stage, grid // 2**stage
        encoder[f"pos_embeds.{stage}.pos_embed"] = (1, wide, places, places, places, 1)
        encoder[f"pos_embeds.{stage}.time_embed"] = (1, wide, 1, 1, 1, frames)
        for block in range(depth):
            encoder |= _mamba_block(f"layers.{stage}.blocks.{block}", wide)
        if stage < len(depths) - 1:
            encoder |= norm(f"layers.{stage}.downsample.norm", 8 * wide)
            encoder[f"layers.{stage}.downsample.reduction.weight"] = (2 * wide, 8 * wide)
    decoder: Shapes = {"mask_token": (256, width)} | _expanding("first_patch_expanding", width * 2 ** (len(depths) - 1))
    for number, stage in enumerate(reversed(range(len(depths) - 1))):
        for block in range(depths[stage]):
            decoder |= _mamba_block(f"layers_up.{number}.blocks.{block}", width * 2**stage)
        if stage:
            decoder |= _expanding(f"layers_up.{number}.upsample", width * 2**stage)
    return encoder, decoder | norm("norm_up", width) | linear("decoder_pred", width, edge**3)


def _expanding(name: str, width: int) -> Shapes:
    return {f"{name}.expand.weight": (4 * width, width)} | norm(f"{name}.norm", width // 2)


def _nystroem(name: str, width: int, inner: int, heads: int) -> Shapes:
    maps = [linear(f"{name}.attention.self.{part}", width, width) for part in ("query", "key", "value")]
    return {
        **maps[0] | maps[1] | maps[2],
        f"{name}.attention.self.conv.weight": (heads, 1, 65, 1),
        **linear(f"{name}.attention.output.dense", width, width),
        **norm(f"{name}.attention.output.LayerNorm", width),
        **linear(f"{name}.intermediate.dense", width, inner),
        **linear(f"{name}.output.dense", inner, width),
        **norm(f"{name}.output.LayerNorm", width),
    }


def brainlm_row(width: int, inner: int, heads: int, layers: int, decoder_layers: int, patch: int) -> Shapes:
    """The first model; its decoder has the encoder's width."""
    shapes: Shapes = {
        "vit.embeddings.cls_token": (1, 1, width),
        **linear("vit.embeddings.signal_embedding_projection", patch, width),
        **linear("vit.embeddings.xyz_embedding_projection", 3, width),
        "vit.embeddings.pos_embedding.pe": (5000, width),
    }
    for layer in range(layers):
        shapes |= _nystroem(f"vit.encoder.layer.{layer}", width, inner, heads)
    shapes |= norm("vit.layernorm", width)
    shapes |= {"decoder.mask_token": (1, 1, width), "decoder.pos_embedding.pe": (5000, width)}
    shapes |= linear("decoder.decoder_embed", width, width) | norm("decoder.decoder_norm", width)
    shapes |= linear("decoder.decoder_pred", width, 768) | linear("decoder.decoder_xyz_projection", 3, width)
    for layer in range(decoder_layers):
        shapes |= _nystroem(f"decoder.decoder_layers.{layer}", width, inner, heads)
    return shapes | linear("decoder.decoder_pred1", width, width // 2) | linear("decoder.decoder_pred2", width // 2, 20)


def alternating_sines(width: int, length: int = 5000) -> Tensor:
    """Sine and cosine by turns, wavelengths from 2 pi to 20,000 pi."""
    table = torch.zeros(length, width)
    for position in range(length):
        for pair in range(width // 2):
            angle = position / 10_000 ** (2 * pair / width)
            table[position, 2 * pair], table[position, 2 * pair + 1] = math.sin(angle), math.cos(angle)
    return table


def brainlm_image(width: int, layers: int, edge: int, patch: int) -> Shapes:
    """A later model: an image transformer, here with a decoder of one layer."""
    shapes: Shapes = {
        "vit.embeddings.cls_token": (1, 1, width),
        "vit.embeddings.position_embeddings": (1, edge * edge + 1, width),
        "vit.embeddings.patch_embeddings.projection.weight": (width, 3, patch, patch),
        "vit.embeddings.patch_embeddings.projection.bias": (width,),
    }
    for layer in range(layers):
        shapes |= _vit(f"vit.encoder.layer.{layer}", width)
    shapes |= norm("vit.layernorm", width) | {"decoder.mask_token": (1, 1, 32)}
    shapes |= {"decoder.decoder_pos_embed": (1, edge * edge + 1, 32)} | linear("decoder.decoder_embed", width, 32)
    shapes |= _vit("decoder.decoder_layers.0", 32) | norm("decoder.decoder_norm", 32)
    return shapes | linear("decoder.decoder_pred", 32, 3 * patch * patch)


def _vit(name: str, width: int) -> Shapes:
    maps = [linear(f"{name}.attention.attention.{part}", width, width) for part in ("query", "key", "value")]
    shapes = maps[0] | maps[1] | maps[2] | linear(f"{name}.attention.output.dense", width, width)
    shapes |= linear(f"{name}.intermediate.dense", width, 4 * width) | linear(f"{name}.output.dense", 4 * width, width)
    return shapes | norm(f"{name}.layernorm_before", width) | norm(f"{name}.layernorm_after", width)


def image_sines(width: int, edge: int) -> Tensor:
    """(1, 1 + edge^2, width): zeros for the summary, then the column in half of the channels, the row in the rest."""
    table = torch.zeros(1, edge * edge + 1, width)
    quarter = width // 4
    for row in range(edge):
        for column in range(edge):
            for channel in range(quarter):
                rate = 1 / 10_000 ** (channel / quarter)
                place = table[0, 1 + row * edge + column]
                place[channel], place[quarter + channel] = math.sin(column * rate), math.cos(column * rate)
                place[2 * quarter + channel], place[3 * quarter + channel] = math.sin(row * rate), math.cos(row * rate)
    return table


def cortexmae(width: int, depth: int, places: int, times: int, values: int, decoder_width: int) -> Shapes:
    """A flat-map autoencoder with one block of decoder."""
    shapes: Shapes = {
        "encoder.cls_token": (1, 1, width),
        **linear("encoder.patch_embed", values, width),
        "encoder.pos_embed.weight_spatial": (1, places, width),
        "encoder.pos_embed.weight_temporal": (times, 1, width),
    }
    for block in range(depth):
        shapes |= _separate(f"encoder.blocks.{block}", width)
    shapes |= norm("encoder.norm", width)
    shapes |= {"decoder.cls_token": (1, 1, decoder_width), "decoder.mask_token": (1, 1, decoder_width)}
    shapes |= linear("decoder.proj", width, decoder_width) | _separate("decoder.blocks.0", decoder_width)
    return shapes | norm("decoder.norm", decoder_width) | linear("decoder.head", decoder_width, values // 2)


def _separate(name: str, width: int) -> Shapes:
    shapes = norm(f"{name}.norm1", width) | norm(f"{name}.norm2", width)
    for part in ("q", "k", "v", "proj"):
        shapes |= linear(f"{name}.attn.{part}", width, width)
    return shapes | linear(f"{name}.mlp.fc1", width, 4 * width) | linear(f"{name}.mlp.fc2", 4 * width, width)
