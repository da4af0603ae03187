"""SwiFT v1 against a second, plain writing of its specification: loops over windows, attention spelt out."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from torch import Tensor

from pipeline.models import create, describe
from pipeline.models.learners.reconstruction import MaskedReconstruction
from pipeline.models.parts import pieces
from pipeline.models.parts.layers import Merging
from pipeline.models.parts.windows import WindowAttention
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


# The last two have axes that are no multiple of their window: all four of them in the last.
CASES = [
    (grid, frames, window, first, full_last)
    for first in ((2, 2, 2, 2), (4, 4, 4, 4))
    for full_last in (True, False)
    for frames in (18, 20)
    for grid, window in [((4, 4, 4), (2, 2, 2, 4))]
] + [((6, 4, 6), 9, (2, 2, 3, 4), (4, 3, 4, 4), True), ((6, 10, 6), 7, (2, 3, 2, 3), (4, 4, 4, 4), False)]


def pair(grid, frames, window, first, full_last) -> tuple[SwiftV1, Tensor, Tensor]:
    """A model in float64, a clip, and the plain writing's features of it."""
    model = SwiftV1(
        8, (2, 2), (2, 4), grid, patch=(2, 2, 2, 1), window=window, first_window=first, full_last_stage=full_last
    )
    state = {name: value.double() for name, value in random_state(model).items()}
    generator = torch.Generator().manual_seed(2)
    clip = torch.randn(2, 1, *(2 * length for length in grid), frames, dtype=torch.float64, generator=generator)
    with torch.no_grad():
        expected = plain_swift(state, clip, 2, [2, 4], [list(first), list(window)], full_last)
    return model.double(), clip, expected


@pytest.mark.parametrize("in_pieces", [True, False])
@pytest.mark.parametrize(("grid", "frames", "window", "first", "full_last"), CASES)
def test_equals_a_plain_writing_of_the_specification(monkeypatch, in_pieces, grid, frames, window, first, full_last):
    model, clip, expected = pair(grid, frames, window, first, full_last)
    if not in_pieces:
        monkeypatch.setattr(pieces, "serve", lambda *_: False)
    with torch.no_grad():
        features = model(clip)
    assert features.shape == (2, 16, *(-(-length // 2) for length in grid), frames)
    assert (features - expected).abs().max() < 1e-5
    assert expected.std() > 0.1


def gradients(model: SwiftV1, clip: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    clip = clip.clone().requires_grad_()
    model(clip).pow(3).sum().backward()
    found = {name: value.grad for name, value in model.named_parameters() if value.grad is not None}
    return {**{name: value.clone() for name, value in found.items()}, "clip": clip.grad}


def test_gradients_in_pieces_are_those_of_the_modules(monkeypatch):
    """Pieces have a backward pass written by hand; small ones here, the last of them unequal."""
    monkeypatch.setattr(pieces, "SCORES", 20_000)
    monkeypatch.setattr(pieces, "ROWS", 700)
    model, clip, _ = pair((6, 10, 6), 7, (2, 3, 2, 3), (4, 4, 4, 4), False)
    ours = gradients(model, clip)
    monkeypatch.setattr(pieces, "serve", lambda *_: False)
    plain = gradients(model, clip)
    assert ours.keys() == plain.keys()
    for name, value in plain.items():
        assert (ours[name] - value).abs().max() < 1e-9 * value.abs().max().clamp(min=1), name
    assert min(value.abs().max() for value in plain.values()) > 1e-6


def test_hand_written_gradient_is_that_of_finite_differences():
    attention = WindowAttention(4, 2, (2, 2, 2, 2), shifted=True).double()
    tokens = torch.randn(1, 3, 2, 4, 3, 4, dtype=torch.float64, requires_grad=True)
    assert pieces.serve(tokens, attention.qkv)
    assert torch.autograd.gradcheck(attention, (tokens,))


def test_heads_filled_up_inside_the_kernel_change_nothing(monkeypatch):
    """What CUDA does with heads of 3 channels, forced on the CPU; the scores keep the scale of 3."""
    monkeypatch.setattr(pieces, "serve", lambda *_: False)
    attention = WindowAttention(6, 2, (2, 2, 2, 2), shifted=True).double()
    tokens = torch.randn(2, 4, 4, 4, 4, 6, dtype=torch.float64)
    plain = attention(tokens)
    monkeypatch.setattr(WindowAttention, "head_multiple", 8)
    assert (attention(tokens) - plain).abs().max() < 1e-12


def test_query_norm_and_scale_of_the_scores_against_a_plain_writing():
    attention = WindowAttention(6, 2, (2, 2, 2, 2), shifted=False, qk_norm=True, scale=0.7)
    with torch.no_grad():
        for norm in (attention.q_norm, attention.k_norm):
            norm.weight.copy_(torch.rand(3) + 0.5)
            norm.bias.copy_(torch.randn(3))
    tokens = torch.randn(1, 2, 2, 2, 2, 6)
    state = attention.state_dict()
    q, k, v = (tokens.view(16, 6) @ state["qkv.weight"].T + state["qkv.bias"]).view(16, 3, 2, 3).unbind(1)
    q, k = (plain_norm(state, f"{name}_norm", part) for name, part in (("q", q), ("k", k)))
    heads = [(0.7 * q[:, h] @ k[:, h].T).softmax(-1) @ v[:, h] for h in range(2)]
    expected = torch.cat(heads, -1) @ state["proj.weight"].T + state["proj.bias"]
    assert (attention(tokens).view(16, 6) - expected).abs().max() < 1e-6


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
        model = create("swift_v1")
        features = model(torch.empty(1, 1, 96, 96, 96, 20))
    shapes = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    assert shapes == expected_shapes()
    assert (len(shapes), sum(value.numel() for value in model.state_dict().values())) == (165, 4_315_212)
    assert features.shape == (1, 288, 2, 2, 2, 20)


# Millions that the authors' code counts, at the width of each size.
COUNTS = {"e24": "1.97", "paper": "4.315", "e48": "7.56", "e72": "16.8", "e96": "29.6", "e132": "55.7"}
COUNTS |= {"e144": "66.2", "e192": "117.2", "e288": "262.7", "e384": "466.2"}


@pytest.mark.parametrize(("size", "millions"), COUNTS.items())
def test_sizes_have_the_published_parameters(size, millions):
    with torch.device("meta"):
        count = sum(value.numel() for value in create("swift_v1", size).parameters())
    assert f"{count / 1e6:.{len(millions.split('.')[1])}f}" == millions


def test_final_norm_alone_is_without_gradient():
    model = MaskedReconstruction(
        create("swift_v1", width=6, depths=(2, 1), heads=(1, 2), grid=(4, 4, 4), patch=(2, 2, 2, 2))
    )
    hidden = torch.rand(1, 4, 4, 4, 10) < 0.5
    patches_MP, features = model.predict(torch.randn(1, 1, 8, 8, 8, 20), hidden)
    patches_MP.square().sum().backward()
    assert features.shape == (1, 12, 2, 2, 2, 10)
    without = [name for name, value in model.encoder.named_parameters() if value.grad is None]
    assert without == ["norm.weight", "norm.bias"]
    assert all(name.startswith(tuple(describe("swift_v1").without_gradient)) for name in without)


def test_stability_options_add_their_own_parameters_and_nothing_else():
    """Scales that start at 1 leave a block as it is; at 0 they leave it out."""
    spec = {
        "width": 8,
        "depths": (2, 2),
        "heads": (2, 4),
        "grid": (4, 4, 4),
        "patch": (2, 2, 2, 1),
        "context_frames": 4,
    }
    clip = torch.randn(1, 1, 8, 8, 8, 4)
    bare, one, none = (create("swift_v1", **spec, layer_scale=start) for start in (None, 1.0, 0.0))
    for model in (one, none):
        missing, unexpected = model.load_state_dict(bare.state_dict(), strict=False)
        assert not unexpected
        assert {name.split(".", 4)[4] for name in missing} == {"ls1.gamma", "ls2.gamma"}
    with torch.no_grad():
        assert torch.allclose(one(clip), bare(clip), atol=1e-6)
        tokens = none.patch_embed(clip)
        merged = none.pos_embeds[1](none.layers[0].downsample(none.pos_embeds[0](tokens)))
        assert torch.allclose(none(clip), merged.movedim(-1, 1), atol=1e-6)
    normed = create("swift_v1", **spec, qk_norm=True)
    assert len(normed.state_dict()) == len(bare.state_dict()) + 4 * 4


def test_a_change_of_one_frame_stays_in_its_windows_of_time():
    """Unshifted windows of 4 frames: frame 5 is seen by frames 4 to 7 and by no other."""
    model = create(
        "swift_v1", width=8, depths=(1, 1), heads=(2, 4), grid=(4, 4, 4), patch=(2, 2, 2, 1), context_frames=12
    )
    clip = torch.randn(1, 1, 8, 8, 8, 12)
    other = clip.clone()
    other[..., 5] += 1
    with torch.no_grad():
        changed = (model(other) - model(clip)).abs().amax(dim=(0, 1, 2, 3, 4))
    assert changed[4:8].min() > 1e-4
    assert changed[[0, 1, 2, 3, 8, 9, 10, 11]].max() == 0


def test_bfloat16_is_close_to_float32():
    torch.manual_seed(0)
    model = create(
        "swift_v1", width=16, depths=(2, 2), heads=(2, 4), grid=(4, 4, 4), patch=(2, 2, 2, 1), context_frames=8
    )
    clip = torch.randn(2, 1, 8, 8, 8, 8)
    with torch.no_grad():
        full = model(clip)
        half = model.bfloat16()(clip.bfloat16()).float()
    assert (half - full).abs().max() < 0.05 * full.abs().max()


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
