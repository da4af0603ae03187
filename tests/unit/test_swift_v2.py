"""SwiFT v2 against a plain writing of it, and the four defects of the public copy, which must stay corrected."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from torch import Tensor

from pipeline.errors import InputError
from pipeline.models import create
from pipeline.models.swift_v2 import SwiftV2, across_space, along_time
from pipeline.models.windows import rotate

PAPER = {"depths": (2, 2, 18, 2), "heads": (6, 12, 24, 48), "grid": (16, 16, 16)}


@pytest.mark.parametrize(("width", "millions"), [(36, 9.36), (96, 66.14), (192, 264.12)])
def test_paper_sizes_have_the_published_parameters(width, millions):
    """An MLP stored twice, a lost attention or an unused norm would each move the count."""
    with torch.device("meta"):
        model = create("swift_v2", width=width, **PAPER)
    assert round(sum(value.numel() for value in model.parameters()) / 1e6, 2) == millions


def group(coordinate: int, length: int, size: int, odd: bool) -> int:
    """Window of a coordinate: without wrapping round, a shift of half a window only moves its edges."""
    if length <= size:
        return 0
    return (coordinate - (size // 2 if odd else 0)) // size


def plain_attention(tokens: Tensor, layer: torch.nn.Module, window: list[int], odd: bool, axes: list[int]) -> Tensor:
    """All tokens against all, masked to their windows, turned by their places on the whole grid: (B, n, C)."""
    lengths = tokens.shape[1:5]
    cells = list(product(*(range(length) for length in lengths)))
    windows = torch.tensor([[group(c[a], lengths[a], window[a], odd) for a in range(4)] for c in cells])
    together = (windows[:, None] == windows[None]).all(-1)
    q, k, v = layer.qkv(tokens.flatten(1, 4)).chunk(3, dim=-1)
    width = q.shape[-1] // layer.heads
    pairs = width // (2 * len(axes))
    mixed = []
    for head in range(layer.heads):
        part = slice(head * width, (head + 1) * width)
        turned = []
        for values in (q[..., part], k[..., part]):
            columns = [values[..., i] for i in range(width)]
            for number, axis in enumerate(axes):
                for pair in range(pairs):
                    i = 2 * (number * pairs + pair)
                    angle = torch.tensor([cell[axis] * 10_000.0 ** (-pair / pairs) for cell in cells])
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


def test_spatial_positions_are_axial():
    """A step along x, y or z, or there and back, must not look alike: the public copy knew only x + y + z."""
    torch.manual_seed(0)
    rotation = across_space((3, 3, 3, 1), 6, torch.device("cpu"))
    q, k = (rotate(torch.randn(6).expand(1, 1, 27, 1, 1, 6), rotation)[0, 0, :, 0, 0] for _ in range(2))
    score = (q @ k.T).view(3, 3, 3, 3, 3, 3)
    steps = [score[1, 1, 1, 2, 1, 1], score[1, 1, 1, 1, 2, 1], score[1, 1, 1, 1, 1, 2], score[1, 1, 1, 1, 1, 1]]
    assert min(abs(a - b) for i, a in enumerate(steps) for b in steps[:i]) > 1e-2
    assert torch.allclose(score[0, 0, 0, 1, 0, 2], score[1, 1, 0, 2, 1, 2], atol=1e-5)  # only the difference counts


def test_temporal_positions_are_relative():
    rotation = along_time((1, 1, 1, 9), 8, torch.device("cpu"))
    q, k = (rotate(torch.randn(8).expand(1, 1, 9, 1, 1, 8), rotation)[0, 0, :, 0, 0] for _ in range(2))
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


def test_heads_too_narrow_for_three_axes_are_refused():
    model = SwiftV2(8, (1,), (2,), (2, 2, 2), patch=(2, 2, 2, 1))
    with pytest.raises(ValueError, match="heads of 4 channels"):
        model(torch.zeros(1, 1, 4, 4, 4, 3))
    with pytest.raises(InputError, match="5 heads do not divide 12 channels"):
        create("swift_v2", width=12, depths=(1,), heads=(5,), grid=(2, 2, 2))
