"""SwiFT v1 against a second, plain writing of its specification: loops over windows, attention spelt out."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from torch import Tensor

from pipeline.models import create
from pipeline.models.layers import Merging
from pipeline.models.swift_v1 import SwiftV1

State = dict[str, Tensor]


def plain_window(lengths: list[int], window: list[int], odd: bool) -> tuple[list[int], list[int]]:
    sizes, shifts = [], []
    for length, size in zip(lengths, window, strict=True):
        whole = length <= size
        sizes.append(length if whole else size)
        shifts.append(size // 2 if odd and not whole else 0)
    return sizes, shifts


def plain_label(coordinate: int, length: int, size: int, shift: int) -> int:
    if shift == 0 or coordinate < length - size:
        return 0
    return 1 if coordinate < length - shift else 2


def plain_attention(state: State, key: str, tokens: Tensor, heads: int, window: list[int], odd: bool) -> Tensor:
    """`tokens` (B, x, y, z, t, C) after the norm."""
    lengths = list(tokens.shape[1:5])
    size, shift = plain_window(lengths, window, odd)
    padded = [-(-length // w) * w for length, w in zip(lengths, size, strict=True)]
    full = tokens.new_zeros(len(tokens), *padded, tokens.shape[-1])
    full[:, : lengths[0], : lengths[1], : lengths[2], : lengths[3]] = tokens
    for axis in range(4):
        full = torch.roll(full, -shift[axis], dims=axis + 1)
    out = torch.zeros_like(full)
    for corner in product(*(range(0, length, w) for length, w in zip(padded, size, strict=True))):
        inside = [list(range(start, start + w)) for start, w in zip(corner, size, strict=True)]
        cells = list(product(*inside))
        label = [tuple(plain_label(c[a], padded[a], size[a], shift[a]) for a in range(4)) for c in cells]
        mask = torch.tensor([[0.0 if one == other else -100.0 for other in label] for one in label])
        block = torch.stack([full[:, x, y, z, t] for x, y, z, t in cells], dim=1)
        qkv = block @ state[f"{key}.qkv.weight"].T + state[f"{key}.qkv.bias"]
        q, k, v = qkv.chunk(3, dim=-1)
        width = q.shape[-1] // heads
        parts = []
        for head in range(heads):
            part = slice(head * width, (head + 1) * width)
            scores = (q[..., part] * width**-0.5) @ k[..., part].transpose(1, 2) + mask
            parts.append(torch.softmax(scores, dim=-1) @ v[..., part])
        mixed = torch.cat(parts, dim=-1) @ state[f"{key}.proj.weight"].T + state[f"{key}.proj.bias"]
        for number, (x, y, z, t) in enumerate(cells):
            out[:, x, y, z, t] = mixed[:, number]
    for axis in range(4):
        out = torch.roll(out, shift[axis], dims=axis + 1)
    return out[:, : lengths[0], : lengths[1], : lengths[2], : lengths[3]]


def plain_norm(state: State, key: str, tokens: Tensor) -> Tensor:
    centred = tokens - tokens.mean(-1, keepdim=True)
    scaled = centred / torch.sqrt(centred.pow(2).mean(-1, keepdim=True) + 1e-5)
    return scaled * state[f"{key}.weight"] + state[f"{key}.bias"]


def plain_swift(
    state: State, clip: Tensor, patch: int, heads: list[int], windows: list[list[int]], full_last: bool
) -> Tensor:
    grid = [length // patch for length in clip.shape[2:5]]
    tokens = clip.new_zeros(len(clip), *grid, clip.shape[5], len(state["patch_embed.fc.bias"]))
    for x, y, z in product(*(range(length) for length in grid)):
        at = [slice(patch * i, patch * i + patch) for i in (x, y, z)]
        vectors = clip[:, 0, at[0], at[1], at[2]].reshape(len(clip), patch**3, -1).transpose(1, 2)
        tokens[:, x, y, z] = vectors @ state["patch_embed.fc.weight"].T + state["patch_embed.fc.bias"]
    for stage in range(len(heads)):
        time = state[f"pos_embeds.{stage}.time_embed"][..., : clip.shape[5]]
        tokens = tokens + (state[f"pos_embeds.{stage}.pos_embed"] + time).permute(0, 2, 3, 4, 5, 1)
        last = stage == len(heads) - 1
        window = [*tokens.shape[1:4], windows[stage][3]] if last and full_last else windows[stage]
        block = 0
        while f"layers.{stage}.blocks.{block}.norm1.weight" in state:
            key, odd = f"layers.{stage}.blocks.{block}", block % 2 == 1 and not (last and full_last)
            normed = plain_norm(state, f"{key}.norm1", tokens)
            tokens = tokens + plain_attention(state, f"{key}.attn", normed, heads[stage], window, odd)
            hidden = plain_norm(state, f"{key}.norm2", tokens)
            hidden = hidden @ state[f"{key}.mlp.linear1.weight"].T + state[f"{key}.mlp.linear1.bias"]
            hidden = hidden * 0.5 * (1 + torch.erf(hidden / 2**0.5))
            tokens = tokens + hidden @ state[f"{key}.mlp.linear2.weight"].T + state[f"{key}.mlp.linear2.bias"]
            block += 1
        if not last:
            near = [tokens[:, i::2, j::2, k::2] for i, j, k in product((0, 1), repeat=3)]
            merged = plain_norm(state, f"layers.{stage}.downsample.norm", torch.cat(near, dim=-1))
            tokens = merged @ state[f"layers.{stage}.downsample.reduction.weight"].T
    return tokens.permute(0, 5, 1, 2, 3, 4)


def random_state(model: SwiftV1) -> State:
    """Weights in which every term counts: norms away from 1, biases and positions away from 0."""
    generator = torch.Generator().manual_seed(1)
    state = {}
    for name, value in model.state_dict().items():
        noise = torch.randn(value.shape, generator=generator)
        state[name] = 1 + 0.3 * noise if value.ndim == 1 and name.endswith("weight") else 0.3 * noise
    model.load_state_dict(state)
    return state


# In the last case no axis is a multiple of its window: every axis is padded.
@pytest.mark.parametrize(
    ("grid", "frames", "window", "first", "full_last"),
    [
        ((4, 4, 4), 20, (4, 4, 4, 4), (2, 2, 2, 2), True),
        ((4, 4, 4), 18, (2, 2, 2, 4), (2, 2, 2, 4), True),
        ((4, 4, 4), 18, (2, 2, 2, 4), (4, 4, 4, 4), False),
        ((6, 8, 4), 7, (2, 3, 2, 3), (4, 3, 3, 4), False),
    ],
)
def test_equals_a_plain_writing_of_the_specification(grid, frames, window, first, full_last):
    model = SwiftV1(
        8, (2, 2), (2, 4), grid, patch=(2, 2, 2, 1), window=window, first_window=first, full_last_stage=full_last
    )
    state = {name: value.double() for name, value in random_state(model).items()}
    clip = torch.randn(2, 1, *(2 * length for length in grid), frames, dtype=torch.float64)
    with torch.no_grad():
        expected = plain_swift(state, clip, 2, [2, 4], [list(first), list(window)], full_last)
        features = model.double()(clip)
    assert features.shape == (2, 16, grid[0] // 2, grid[1] // 2, grid[2] // 2, frames)
    assert (features - expected).abs().max() < 1e-5
    assert expected.std() > 0.1


def expected_shapes() -> dict[str, tuple[int, ...]]:
    """Keys and shapes of the released encoders, from the rules of their public code."""
    shapes: dict[str, tuple[int, ...]] = {"patch_embed.fc.weight": (36, 216), "patch_embed.fc.bias": (36,)}
    for stage, (depth, places) in enumerate(zip((2, 2, 6, 2), (16, 8, 4, 2), strict=True)):
        c = 36 * 2**stage
        shapes[f"pos_embeds.{stage}.pos_embed"] = (1, c, places, places, places, 1)
        shapes[f"pos_embeds.{stage}.time_embed"] = (1, c, 1, 1, 1, 20)
        for block in range(depth):
            layers = {"attn.qkv": (3 * c, c), "attn.proj": (c, c), "mlp.linear1": (4 * c, c), "mlp.linear2": (c, 4 * c)}
            for name, shape in layers.items():
                shapes[f"layers.{stage}.blocks.{block}.{name}.weight"] = shape
                shapes[f"layers.{stage}.blocks.{block}.{name}.bias"] = shape[:1]
            for name, kind in product(("norm1", "norm2"), ("weight", "bias")):
                shapes[f"layers.{stage}.blocks.{block}.{name}.{kind}"] = (c,)
        if stage < 3:
            shapes[f"layers.{stage}.downsample.reduction.weight"] = (2 * c, 8 * c)
            shapes |= {f"layers.{stage}.downsample.norm.{kind}": (8 * c,) for kind in ("weight", "bias")}
    return shapes | {"norm.weight": (288,), "norm.bias": (288,)}


def test_paper_size_has_the_keys_and_shapes_of_the_released_encoders():
    with torch.device("meta"):
        model = create("swift_v1", width=36, depths=(2, 2, 6, 2), heads=(3, 6, 12, 24), grid=(16, 16, 16))
        features = model(torch.empty(1, 1, 96, 96, 96, 20))
    shapes = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    assert shapes == expected_shapes()
    assert (len(shapes), sum(value.numel() for value in model.state_dict().values())) == (165, 4_315_212)
    assert features.shape == (1, 288, 2, 2, 2, 20)


def test_merging_concatenates_neighbours_with_x_slowest():
    tokens = torch.randn(1, 4, 4, 2, 3, 5)
    merging = Merging(5)
    merging.norm = torch.nn.Identity()
    for number, (i, j, k) in enumerate(product((0, 1), repeat=3)):
        with torch.no_grad():
            merging.reduction.weight.zero_()
            merging.reduction.weight[:5, 5 * number : 5 * number + 5] = torch.eye(5)
            merged = merging(tokens)
        assert torch.equal(merged[..., :5], tokens[:, i::2, j::2, k::2])


def test_a_clip_longer_than_the_learned_times_is_refused():
    model = SwiftV1(6, (1, 1), (1, 2), (2, 2, 2), patch=(2, 2, 2, 1), context_frames=8)
    assert model(torch.zeros(1, 1, 4, 4, 4, 5)).shape[-1] == 5
    with pytest.raises(ValueError, match="9 token times"):
        model(torch.zeros(1, 1, 4, 4, 4, 9))
