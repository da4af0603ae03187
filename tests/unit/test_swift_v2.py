"""SwiFT v2 against a plain writing of it, and the four defects of the public copy, which must stay corrected."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from torch import Tensor

from pipeline.errors import InputError
from pipeline.models import create
from pipeline.models.parts import pieces
from pipeline.models.swift_v2 import DESCRIPTION, SwiftV2, across_space, along_the_diagonal, along_time


def arithmetic(width: int, depths: tuple[int, ...]) -> int:
    """Weights of the encoder by its formula: a block has 16 C^2 + 22 C, a merging 16 C^2 + 16 C."""
    channels = [width * 2**stage for stage in range(4)]
    blocks = sum(depth * (16 * c * c + 22 * c) for depth, c in zip(depths, channels, strict=True))
    mergings = sum(16 * c * c + 16 * c for c in channels[:3])
    return 216 * width + 3 * width + blocks + mergings + 2 * channels[3]


@pytest.mark.parametrize("variant", ["corrected", "upstream"])
def test_every_size_has_the_parameters_of_the_formula(variant):
    """An MLP stored twice, a lost attention or an unused norm would each move the count."""
    for size, spec in DESCRIPTION.sizes.items():
        with torch.device("meta"):
            model = create("swift_v2", size, variant=variant)
        assert sum(value.numel() for value in model.parameters()) == arithmetic(spec["width"], spec["depths"]), size


@pytest.mark.parametrize(("size", "millions"), [("9m", 9.36), ("66m", 66.14), ("264m", 264.12), ("w372", 990.62)])
def test_published_sizes_have_the_published_parameters(size, millions):
    with torch.device("meta"):
        model = create("swift_v2", size)
    assert round(sum(value.numel() for value in model.parameters()) / 1e6, 2) == millions


def test_sizes_grow_and_none_has_two_names():
    """Parameters by the formula, which the models themselves are held to above."""
    counts = [arithmetic(spec["width"], spec["depths"]) for spec in DESCRIPTION.sizes.values()]
    assert counts == sorted(set(counts))
    assert {"w24", "9m", "66m", "264m", "w744"} <= set(DESCRIPTION.sizes)


def group(coordinate: int, length: int, size: int, odd: bool) -> int:
    """Window of a coordinate: without wrapping round, a shift of half a window only moves its edges."""
    if length <= size:
        return 0
    return (coordinate - (size // 2 if odd else 0)) // size


def plain_attention(
    tokens: Tensor, layer: torch.nn.Module, window: list[int], odd: bool, axes: list[int], summed: bool = False
) -> Tensor:
    """All tokens against all, masked to their windows, turned by their places on the whole grid: (B, n, C).

    `summed`: the one angle of all pairs is that of the sum of the axes.
    """
    lengths = tokens.shape[1:5]
    cells = list(product(*(range(length) for length in lengths)))
    windows = torch.tensor([[group(c[a], lengths[a], window[a], odd) for a in range(4)] for c in cells])
    together = (windows[:, None] == windows[None]).all(-1)
    q, k, v = layer.qkv(tokens.flatten(1, 4)).chunk(3, dim=-1)
    width = q.shape[-1] // layer.heads
    turns = [axes] if summed else [[axis] for axis in axes]
    pairs = width // (2 * len(turns))
    mixed = []
    for head in range(layer.heads):
        part = slice(head * width, (head + 1) * width)
        turned = []
        for values in (q[..., part], k[..., part]):
            columns = [values[..., i] for i in range(width)]
            for number, together_axes in enumerate(turns):
                for pair in range(pairs):
                    i = 2 * (number * pairs + pair)
                    steps = [sum(cell[axis] for axis in together_axes) for cell in cells]
                    angle = torch.tensor([step * 10_000.0 ** (-pair / pairs) for step in steps])
                    one, two = columns[i], columns[i + 1]
                    columns[i] = one * angle.cos() - two * angle.sin()
                    columns[i + 1] = one * angle.sin() + two * angle.cos()
            turned.append(torch.stack(columns, dim=-1))
        scores = turned[0] @ turned[1].transpose(1, 2) * width**-0.5
        mixed.append(scores.masked_fill(~together, -torch.inf).softmax(-1) @ v[..., part])
    return layer.proj(torch.cat(mixed, dim=-1)).view(tokens.shape)


# 14 channels a head: 12 turn in space, 2 stay; the axes need padding, the windows of odd blocks are shifted.
@pytest.mark.parametrize(("grid", "times", "temporal_window"), [((4, 4, 4), 6, None), ((5, 4, 3), 7, 3)])
def test_block_equals_a_plain_writing(grid, times, temporal_window):
    torch.manual_seed(0)
    model = SwiftV2(28, (2,), (2,), grid, patch=(1, 1, 1, 1), window=(2, 3, 2), temporal_window=temporal_window)
    tokens = torch.randn(2, *grid, times, 28)
    window = [1, 1, 1, temporal_window or times]
    with torch.no_grad():
        expected = tokens
        for number, block in enumerate(model.layers[0].blocks):
            odd = number == 1
            mixed = plain_attention(block.norm_t1(expected), block.temporal_attn, window, odd, [3])
            expected = expected + 0.9 * mixed
            mixed = plain_attention(block.norm_s1(expected), block.spatial_attn, [2, 3, 2, 1], odd, [0, 1, 2])
            expected = expected + 0.1 * mixed
            expected = expected + block.mlp(block.norm2(expected))
        features = model.encode(tokens.movedim(-1, 1))
        assert (features - model.norm(expected).movedim(-1, 1)).abs().max() < 1e-5


def turned(vector: Tensor, rotation: Tensor) -> Tensor:
    """One vector at every place of a window: each pair of channels is a complex number that is turned."""
    return torch.view_as_real(torch.view_as_complex(vector.view(-1, 2)) * rotation).flatten(1)


@pytest.mark.parametrize("temporal_window", [None, 4])
def test_pieces_give_what_the_modules_give_and_the_same_gradients(monkeypatch, temporal_window):
    torch.manual_seed(0)
    spec = {"width": 12, "depths": (2, 1), "heads": (2, 4), "grid": (3, 4, 5), "patch": (2, 2, 2, 1)}
    encoder = SwiftV2(**spec, window=(2, 2, 2), temporal_window=temporal_window).double()
    clip = torch.randn(2, 1, 6, 8, 10, 10, dtype=torch.float64)

    def gradients() -> list[torch.Tensor]:
        encoder.zero_grad()
        features = encoder(clip)
        (features * torch.linspace(-1, 1, features.numel(), dtype=torch.float64).view(features.shape)).sum().backward()
        return [features.detach(), *(value.grad.clone() for value in encoder.parameters())]

    monkeypatch.setattr(pieces, "SCORES", 900)  # several pieces, the last of them shorter
    by_pieces = gradients()
    monkeypatch.setattr(pieces, "serve", lambda *_: False)
    for one, other in zip(by_pieces, gradients(), strict=True):
        assert torch.allclose(one, other, atol=1e-9)


def test_spatial_positions_are_axial():
    """A step along x, y or z, or there and back, must not look alike: the public copy knew only x + y + z."""
    torch.manual_seed(0)
    rotation = across_space((3, 3, 3, 1), 6, torch.device("cpu"))
    q, k = (turned(torch.randn(6), rotation) for _ in range(2))
    score = (q @ k.T).view(3, 3, 3, 3, 3, 3)
    steps = [score[1, 1, 1, 2, 1, 1], score[1, 1, 1, 1, 2, 1], score[1, 1, 1, 1, 1, 2], score[1, 1, 1, 1, 1, 1]]
    assert min(abs(a - b) for i, a in enumerate(steps) for b in steps[:i]) > 1e-2
    assert torch.allclose(score[0, 0, 0, 1, 0, 2], score[1, 1, 0, 2, 1, 2], atol=1e-5)  # only the difference counts


def test_temporal_positions_are_relative():
    rotation = along_time((1, 1, 1, 9), 8, torch.device("cpu"))
    q, k = (turned(torch.randn(8), rotation) for _ in range(2))
    score = q @ k.T
    assert torch.allclose(score[:-3, :-3], score[3:, 3:], atol=1e-5)
    assert not torch.allclose(score[0, 1], score[0, 2], atol=1e-3)


def test_last_axis_of_features_is_time():
    """The public copy relabelled (t, x, y, z) as (x, y, z, t): a change of one frame showed at all of them."""
    model = SwiftV2(12, (1, 1), (2, 4), (4, 4, 4), patch=(2, 2, 2, 1), temporal_window=1)
    clip = torch.randn(1, 1, 8, 8, 8, 5)
    other = clip.clone()
    other[..., 3] += torch.randn(8, 8, 8)
    with torch.no_grad():
        changed = (model(other) - model(clip)).abs().amax(dim=(0, 1, 2, 3, 4))
    assert changed[3] > 1e-2
    assert changed[[0, 1, 2, 4]].max() == 0


def test_mlp_runs_once():
    model = SwiftV2(12, (1,), (2,), (2, 2, 2), patch=(2, 2, 2, 1), layer_scale=(0.0, 0.0, 1.0))
    tokens = torch.randn(1, 12, 2, 2, 2, 3)
    block = model.layers[0].blocks[0]
    with torch.no_grad():
        last = tokens.movedim(1, -1)
        expected = model.norm(last + block.mlp(block.norm2(last))).movedim(-1, 1)
        assert torch.allclose(model.encode(tokens), expected, atol=1e-6)


def test_any_clip_length_runs_on_the_same_weights():
    model = SwiftV2(12, (2, 2), (2, 4), (4, 4, 4), patch=(2, 2, 2, 1), context_frames=20, temporal_window=10)
    for frames in (3, 20, 31):
        assert model(torch.zeros(1, 1, 8, 8, 8, frames)).shape == (1, 24, 2, 2, 2, frames)


def test_frames_reach_those_of_their_windows_and_no_others():
    """Windows of 3 frames in even blocks, moved by one in odd ones, on 8 frames: the last window is cut."""
    torch.manual_seed(0)
    model = SwiftV2(12, (2,), (2,), (2, 2, 2), patch=(1, 1, 1, 1), temporal_window=3)
    clip = torch.randn(1, 1, 2, 2, 2, 8)
    together = [
        torch.tensor([[group(s, 8, 3, odd) == group(t, 8, 3, odd) for t in range(8)] for s in range(8)])
        for odd in (False, True)
    ]
    reaches = (together[0].float() @ together[1].float()) > 0
    with torch.no_grad():
        for frame in range(8):
            other = clip.clone()
            other[..., frame] += 1 + torch.randn(2, 2, 2)
            changed = (model(other) - model(clip)).abs().amax(dim=(0, 1, 2, 3, 4))
            assert torch.equal(changed > 1e-6, reaches[frame])
            assert changed[~reaches[frame]].max() == 0


def test_clips_of_any_length_agree_where_their_windows_do():
    """No position reaches across windows: the first frames of a longer clip have the features of the shorter one."""
    model = SwiftV2(12, (1, 1), (2, 4), (4, 4, 4), patch=(2, 2, 2, 1), temporal_window=5)
    clip = torch.randn(1, 1, 8, 8, 8, 15)
    with torch.no_grad():
        whole, later = model(clip), model(clip.roll(5, dims=-1))
        assert torch.allclose(model(clip[..., :10]), whole[..., :10], atol=1e-6)
        assert torch.allclose(later[..., 5:], whole[..., :10], atol=1e-6)


def test_norms_of_queries_and_keys_bound_the_scores():
    """With them attention does not see the length of queries; without, it does."""
    clip = torch.randn(1, 1, 4, 4, 4, 3)
    for qk_norm in (True, False):
        torch.manual_seed(0)
        model = SwiftV2(12, (1,), (2,), (2, 2, 2), patch=(2, 2, 2, 1), layer_scale=(1, 1, 1), qk_norm=qk_norm)
        with torch.no_grad():
            before = model(clip)
            for attention in (model.layers[0].blocks[0].temporal_attn, model.layers[0].blocks[0].spatial_attn):
                attention.qkv.weight[:12] *= 30
                attention.qkv.bias[:12] *= 30
            assert ((model(clip) - before).abs().max() < 1e-3) == qk_norm


def test_scales_can_be_left_out():
    """Without them a branch weighs 1."""
    tokens = torch.randn(1, 12, 2, 2, 2, 3)
    models = []
    for layer_scale in (None, (1.0, 1.0, 1.0)):
        torch.manual_seed(0)
        models.append(SwiftV2(12, (2,), (2,), (2, 2, 2), patch=(2, 2, 2, 1), layer_scale=layer_scale))
    assert not any("ls_" in name for name, _ in models[0].named_parameters())
    with torch.no_grad():
        assert torch.equal(models[0].encode(tokens), models[1].encode(tokens))


def test_scores_of_a_wide_head_fall_with_its_channels():
    """24 channels a head against 6 at the base: scores of 1/24 * root 6, half of 1 / root 24."""
    torch.manual_seed(0)
    model = SwiftV2(48, (1,), (2,), (3, 3, 3), patch=(1, 1, 1, 1), base_width=12)
    usual = SwiftV2(48, (1,), (2,), (3, 3, 3), patch=(1, 1, 1, 1))
    usual.load_state_dict(model.state_dict())
    clip = torch.randn(1, 1, 3, 3, 3, 4)
    with torch.no_grad():
        assert (model(clip) - usual(clip)).abs().max() > 1e-4
        for attention in (usual.layers[0].blocks[0].temporal_attn, usual.layers[0].blocks[0].spatial_attn):
            attention.qkv.weight[:48] /= 2
            attention.qkv.bias[:48] /= 2
        assert torch.allclose(model(clip), usual(clip), atol=1e-6)


def test_upstream_block_runs_its_mlp_twice_and_sums_the_axes():
    torch.manual_seed(0)
    grid, times = (4, 3, 2), 4
    model = SwiftV2(28, (2,), (2,), grid, (1, 1, 1, 1), window=(2, 3, 2), temporal_window=2, variant="upstream")
    tokens = torch.randn(2, *grid, times, 28)
    with torch.no_grad():
        expected = tokens
        for number, block in enumerate(model.layers[0].blocks):
            odd = number == 1
            mixed = plain_attention(block.norm_t1(expected), block.temporal_attn, [1, 1, 1, 2], odd, [3])
            expected = expected + 0.9 * mixed
            args = (block.spatial_attn, [2, 3, 2, 1], odd, [0, 1, 2])
            expected = expected + 0.1 * plain_attention(block.norm_s1(expected), *args, summed=True)
            for _ in range(2):
                expected = expected + block.mlp(block.norm2(expected))
        truth = model.norm(expected)
        features = model.encode(tokens.movedim(-1, 1))
        # Cell n of (x, y, z, t) in raster order holds cell n of (t, x, y, z).
        for place, (t, x, y, z) in zip(
            product(*map(range, (*grid, times))), product(*map(range, (times, *grid))), strict=True
        ):
            assert (features[(slice(None), slice(None), *place)] - truth[:, x, y, z, t]).abs().max() < 1e-5


def test_upstream_angles_confound_the_axes():
    rotation = along_the_diagonal((2, 2, 2, 1), 6, torch.device("cpu")).view(2, 2, 2, 3)
    assert torch.equal(rotation[1, 0, 0], rotation[0, 1, 0])
    assert torch.equal(rotation[1, 0, 0], rotation[0, 0, 1])
    assert not torch.allclose(rotation[1, 0, 0], rotation[1, 1, 0])


def test_upstream_ignores_its_options():
    spec = {"width": 48, "depths": (1,), "heads": (2,), "grid": (2, 2, 2), "patch": (1, 1, 1, 1), "variant": "upstream"}
    plain, optioned = SwiftV2(**spec), SwiftV2(**spec, qk_norm=True, base_width=12)
    optioned.load_state_dict(plain.state_dict())
    clip = torch.randn(1, 1, 2, 2, 2, 10)
    with torch.no_grad():
        assert torch.equal(plain(clip), optioned(clip))


def test_heads_that_rotary_axes_cannot_turn_are_refused():
    for width, heads, found in (
        (8, 2, "heads of 4 channels"),
        (14, 2, "heads of 7 channels"),
        (12, 5, "5 heads do not"),
    ):
        with pytest.raises(InputError, match=found):
            create("swift_v2", width=width, depths=(1,), heads=(heads,), grid=(2, 2, 2))
