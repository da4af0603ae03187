"""NeuroSTORM, BrainLM and CortexMAE: what an imported encoder computes equals a naive writing on the released names.

Legend: N tokens; C channels; H heads; D channels of a head.
"""

from __future__ import annotations

import hashlib
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import released_files as files
import torch
from torch import Tensor
from torch.nn import functional

from pipeline.errors import InputError
from pipeline.models import create
from pipeline.pretrain.released import import_checkpoint, load_released

Weights = dict[str, Tensor]


def take_over(system: str, path: Path, output: Path) -> dict[str, Any]:
    return import_checkpoint(system, path, output, hashlib.sha256(path.read_bytes()).hexdigest())


def apply(weights: Weights, name: str, tokens: Tensor) -> Tensor:
    return functional.linear(tokens, weights[f"{name}.weight"], weights[f"{name}.bias"])


def normalise(weights: Weights, name: str, tokens: Tensor, eps: float) -> Tensor:
    centred = tokens - tokens.mean(-1, keepdim=True)
    scaled = centred / (centred.square().mean(-1, keepdim=True) + eps).sqrt()
    return scaled * weights[f"{name}.weight"] + weights[f"{name}.bias"]


def heads_of(tokens_NC: Tensor, heads: int) -> Tensor:
    return torch.stack(tokens_NC.chunk(heads, dim=-1))


def attend(q_HND: Tensor, k_HND: Tensor, v_HND: Tensor) -> Tensor:
    scores = torch.einsum("hnd,hmd->hnm", q_HND, k_HND) / math.sqrt(q_HND.shape[-1])
    above_zero = (scores - scores.amax(-1, keepdim=True)).exp()  # coordinates in mm give scores of hundreds
    return torch.einsum("hnm,hmd->hnd", above_zero / above_zero.sum(-1, keepdim=True), v_HND)


def test_the_lists_that_the_files_are_made_from_count_as_published() -> None:
    def numbers(shapes: files.Shapes) -> int:
        return sum(math.prod(shape) for shape in shapes.values())

    encoder, decoder = files.neurostorm(36, (2, 2, 6, 2), 16, 20, 6)
    assert numbers(encoder | decoder) == 7_712_892
    row = files.brainlm_row(256, 1024, 4, 4, 2, 20)
    assert (len(row), numbers(row)) == (124, 7_607_724)


# --- NeuroSTORM ------------------------------------------------------------------------------------------------------


def test_neurostorm(tmp_path: Path) -> None:
    encoder, decoder = files.neurostorm(8, (2, 2), 6, 5, 2)
    weights = files.random(encoder)
    path = tmp_path / "pt_neurostorm_mae_5ds.ckpt"
    options = {"model": "swin4d_mae", "embed_dim": 8, "depth": [2, 2], "use_mae": True}
    files.lightning(path, weights | files.random(decoder, 1), options)
    record = take_over("neurostorm", path, tmp_path / "out")
    assert record["spec"]["depths"] == [2, 2]
    assert record["spec"]["variant"] == "upstream"
    found, _ = load_released(tmp_path / "out")
    sizes = {"width": 8, "depths": (2, 2), "grid": (6, 6, 6), "patch": (2, 2, 2, 1), "context_frames": 5}
    direct = create("neurostorm", **sizes, variant="upstream")
    direct.load_state_dict(weights)
    clip = torch.randn(2, 1, 12, 12, 12, 5, generator=torch.Generator().manual_seed(2))
    with torch.inference_mode():
        assert torch.equal(found(clip), direct.eval()(clip))


def test_the_published_width_of_neurostorm_is_taken_over_whole(tmp_path: Path) -> None:
    encoder, decoder = files.neurostorm(36, (2, 2, 6, 2), 16, 20, 6)
    path = files.lightning(tmp_path / "whole.ckpt", files.random(encoder | decoder), {"model": "swin4d_mae"})
    record = take_over("neurostorm", path, tmp_path / "out")
    assert record["spec"]["context_frames"] == 20
    loaded, _ = load_released(tmp_path / "out")
    assert sum(parameter.numel() for parameter in loaded.parameters()) == sum(map(math.prod, encoder.values()))


def test_a_swift_file_is_no_neurostorm(tmp_path: Path) -> None:
    path = files.swift_file(tmp_path / "swift.ckpt", files.random(files.swift()))
    with pytest.raises(InputError, match=r"no tensor 'layers\.0\.blocks\.0\.mamba\.A_log'"):
        take_over("neurostorm", path, tmp_path / "out")


# --- BrainLM ---------------------------------------------------------------------------------------------------------

COORDINATES = np.random.default_rng(3).uniform(-70, 70, (424, 3)).astype(np.float32)


def row_weights(width: int = 16) -> Weights:
    weights = files.random(files.brainlm_row(width, 2 * width, 2, 2, 1, 20))
    for side in ("vit.embeddings", "decoder"):
        weights[f"{side}.pos_embedding.pe"] = files.alternating_sines(width)
    return weights


def row_by_hand(weights: Weights, clip_RT: Tensor, heads: int, layers: int) -> Tensor:
    """Summary and tokens, (1 + N, C), of the first model."""
    parcels, times = len(clip_RT), clip_RT.shape[1] // 20
    places_RC = apply(weights, "vit.embeddings.xyz_embedding_projection", torch.from_numpy(COORDINATES))
    rows = [weights["vit.embeddings.cls_token"][0, 0]]
    for parcel in range(parcels):
        for time in range(times):
            signal_P = clip_RT[parcel, 20 * time : 20 * (time + 1)]
            token = apply(weights, "vit.embeddings.signal_embedding_projection", signal_P)
            rows.append(token + places_RC[parcel] + weights["vit.embeddings.pos_embedding.pe"][time])
    tokens = torch.stack(rows)
    for layer in range(layers):
        name = f"vit.encoder.layer.{layer}"
        q, k, v = (
            heads_of(apply(weights, f"{name}.attention.self.{part}", tokens), heads)
            for part in ("query", "key", "value")
        )
        mixed_HND = attend(q, k, v)
        for head in range(heads):
            kernel = weights[f"{name}.attention.self.conv.weight"][head, 0, :, 0]
            padded = functional.pad(v[head], (0, 0, 32, 32))
            for number in range(len(tokens)):
                mixed_HND[head, number] += (kernel[:, None] * padded[number : number + 65]).sum(0)
        mixed = apply(weights, f"{name}.attention.output.dense", torch.cat(list(mixed_HND), dim=-1))
        tokens = normalise(weights, f"{name}.attention.output.LayerNorm", mixed + tokens, 1e-12)
        inner = functional.gelu(apply(weights, f"{name}.intermediate.dense", tokens))
        wide = apply(weights, f"{name}.output.dense", inner)
        tokens = normalise(weights, f"{name}.output.LayerNorm", wide + tokens, 1e-12)
    return normalise(weights, "vit.layernorm", tokens, 1e-12)


def test_the_first_brainlm(tmp_path: Path) -> None:
    weights, path = row_weights(), tmp_path / "pytorch_model.bin"
    torch.save(weights, path)
    record = take_over("brainlm", path, tmp_path / "out")
    assert (record["spec"]["heads"], record["spec"]["depth"], record["spec"]["ratio"]) == (2, 2, 2)
    encoder, _ = load_released(tmp_path / "out", coordinates=COORDINATES)
    clip_RT = torch.randn(424, 40, generator=torch.Generator().manual_seed(4))
    with torch.inference_mode():
        found = encoder(clip_RT[None])
        expected = row_by_hand(weights, clip_RT, heads=2, layers=2)[1:].T.reshape(16, 424, 2)
    assert (found[0] - expected).abs().max() < 1e-4


def test_coordinates_must_be_given(tmp_path: Path) -> None:
    path = tmp_path / "pytorch_model.bin"
    torch.save(row_weights(), path)
    take_over("brainlm", path, tmp_path / "out")
    with pytest.raises(InputError, match=r"coordinates: found nothing; expected \(424, 3\)"):
        load_released(tmp_path / "out")
    with pytest.raises(InputError, match="colour: found a value"):
        load_released(tmp_path / "out", coordinates=COORDINATES, colour="red")


def test_other_positions_than_the_published_ones_are_refused(tmp_path: Path) -> None:
    weights, path = row_weights(), tmp_path / "pytorch_model.bin"
    weights["vit.embeddings.pos_embedding.pe"] = torch.randn(5000, 16)
    torch.save(weights, path)
    with pytest.raises(InputError, match="expected the published sines"):
        take_over("brainlm", path, tmp_path / "out")


def image_by_hand(weights: Weights, image: Tensor, layers: int, heads: int, patch: int) -> Tensor:
    """Summary and tokens, (1 + N, C), of a later model; `image` is square, one colour."""
    positions = weights["vit.embeddings.position_embeddings"][0]
    kernel = weights["vit.embeddings.patch_embeddings.projection.weight"]
    rows = [weights["vit.embeddings.cls_token"][0, 0] + positions[0]]
    for row in range(0, len(image), patch):
        for column in range(0, len(image), patch):
            square = image[row : row + patch, column : column + patch]
            rows.append((kernel * square).sum((1, 2, 3)) + weights["vit.embeddings.patch_embeddings.projection.bias"])
            rows[-1] = rows[-1] + positions[len(rows) - 1]
    tokens = torch.stack(rows)
    for layer in range(layers):
        name = f"vit.encoder.layer.{layer}"
        before = normalise(weights, f"{name}.layernorm_before", tokens, 1e-12)
        q, k, v = (
            heads_of(apply(weights, f"{name}.attention.attention.{part}", before), heads)
            for part in ("query", "key", "value")
        )
        mixed = torch.cat(list(attend(q, k, v)), dim=-1)
        tokens = tokens + apply(weights, f"{name}.attention.output.dense", mixed)
        after = normalise(weights, f"{name}.layernorm_after", tokens, 1e-12)
        inner = functional.gelu(apply(weights, f"{name}.intermediate.dense", after))
        tokens = tokens + apply(weights, f"{name}.output.dense", inner)
    return normalise(weights, "vit.layernorm", tokens, 1e-12)


def test_a_later_brainlm(tmp_path: Path) -> None:
    width, patch, edge = 16, 16, 27
    weights = files.random(files.brainlm_image(width, 2, edge, patch))
    weights["vit.embeddings.position_embeddings"] = files.image_sines(width, edge)
    path = tmp_path / "pytorch_model.bin"
    torch.save(weights, path)
    record = take_over("brainlm", path, tmp_path / "out")
    assert record["contract"]["input"]["divisor"] == pytest.approx(5.643, abs=1e-3)
    encoder, _ = load_released(tmp_path / "out", coordinates=COORDINATES)
    clip_RT = torch.rand(424, 200, generator=torch.Generator().manual_seed(5)) - 0.5
    image = torch.full((432, 432), -1.0)
    image[4:428, 116:316] = clip_RT[torch.from_numpy(np.argsort(COORDINATES[:, 1], kind="stable"))]
    with torch.inference_mode():
        found = encoder(clip_RT[None])[0]
        tokens = image_by_hand(weights, image, layers=2, heads=1, patch=patch)[1:]
    expected = tokens.T.reshape(width, edge, edge)[:, :, 116 // 16 : -(-316 // 16)]
    assert found.shape == expected.shape
    assert (found - expected).abs().max() < 1e-4


# --- CortexMAE -------------------------------------------------------------------------------------------------------

ARGS = {"input_space": "flat", "patch_size": 4, "t_patch_size": 2, "num_frames": 6, "img_size": [8, 12]}


def cortexmae_file(path: Path, weights: Weights, **options: Any) -> Path:
    content = {"model": weights, "optimizer": {"state": {}, "param_groups": []}, "epoch": 99, "args": ARGS | options}
    torch.save(content, path)
    return path


def cortexmae_by_hand(weights: Weights, clip_HWT: Tensor, cortex_HW: Tensor, depth: int, heads: int) -> Tensor:
    """Features (C, h, w, t), frame by frame and patch by patch; a token without cortex is left out and stays 0."""
    height, width, frames = (size // edge for size, edge in zip(clip_HWT.shape, (4, 4, 2), strict=True))
    rows, where = [weights["encoder.cls_token"][0, 0]], []
    for time in range(frames):
        for row in range(height):
            for column in range(width):
                box = slice(4 * row, 4 * row + 4), slice(4 * column, 4 * column + 4)
                if not cortex_HW[box].any():
                    continue
                part = (clip_HWT * cortex_HW[..., None])[(*box, slice(2 * time, 2 * time + 2))]
                token = apply(weights, "encoder.patch_embed", part.permute(2, 0, 1).flatten())
                token = token + weights["encoder.pos_embed.weight_spatial"][0, row * width + column]
                rows.append(token + weights["encoder.pos_embed.weight_temporal"][time, 0])
                where.append((row, column, time))
    tokens = torch.stack(rows)
    for block in range(depth):
        name = f"encoder.blocks.{block}"
        before = normalise(weights, f"{name}.norm1", tokens, 1e-6)
        q, k, v = (heads_of(apply(weights, f"{name}.attn.{part}", before), heads) for part in "qkv")
        tokens = tokens + apply(weights, f"{name}.attn.proj", torch.cat(list(attend(q, k, v)), dim=-1))
        inner = functional.gelu(apply(weights, f"{name}.mlp.fc1", normalise(weights, f"{name}.norm2", tokens, 1e-6)))
        tokens = tokens + apply(weights, f"{name}.mlp.fc2", inner)
    tokens = normalise(weights, "encoder.norm", tokens, 1e-6)
    features = torch.zeros(tokens.shape[1], height, width, frames)
    for token, (row, column, time) in zip(tokens[1:], where, strict=True):
        features[:, row, column, time] = token
    return features


def test_cortexmae(tmp_path: Path) -> None:
    weights = files.random(files.cortexmae(128, 2, 6, 3, 32, 32))
    path = cortexmae_file(tmp_path / "checkpoint-last.pth", weights)
    record = take_over("cortexmae", path, tmp_path / "out")
    assert (record["spec"]["patch"], record["spec"]["context_frames"]) == ([4, 4, 2], 6)
    cortex_HW = torch.ones(8, 12, dtype=torch.bool)
    cortex_HW[4:, :5] = False
    encoder, _ = load_released(tmp_path / "out", cortex_HW=cortex_HW)
    clip_HWT = torch.randn(8, 12, 6, generator=torch.Generator().manual_seed(6))
    with torch.inference_mode():
        found = encoder(clip_HWT[None, None])[0]
        expected = cortexmae_by_hand(weights, clip_HWT, cortex_HW, depth=2, heads=2)
    assert (found - expected).abs().max() < 1e-4
    assert not found[:, 1, 0].any()


def test_other_encoders_of_cortexmae_are_refused(tmp_path: Path) -> None:
    weights = files.random(files.cortexmae(64, 1, 6, 3, 32, 32))
    parcels = cortexmae_file(tmp_path / "parcels.pth", weights, input_space="schaefer400")
    with pytest.raises(InputError, match=r"input_space: found 'schaefer400'; expected 'flat'"):
        take_over("cortexmae", parcels, tmp_path / "out")
    registers = weights | {"encoder.reg_token": torch.zeros(1, 1, 64)}
    with pytest.raises(InputError, match="an unknown tensor 'reg_token'"):
        take_over("cortexmae", cortexmae_file(tmp_path / "reg.pth", registers), tmp_path / "out")
    with pytest.raises(InputError, match="positions of 6 places; expected those of 8 x 16 pixels"):
        take_over("cortexmae", cortexmae_file(tmp_path / "wide.pth", weights, img_size=[8, 16]), tmp_path / "out")


@pytest.mark.parametrize("system", ["neurostorm", "brainlm", "cortexmae"])
def test_a_file_of_another_system_is_refused(tmp_path: Path, system: str) -> None:
    path = tmp_path / "other.pth"
    torch.save({"weight": torch.zeros(3)}, path)
    with pytest.raises(InputError, match="no such tensor"):
        take_over(system, path, tmp_path / "out")
