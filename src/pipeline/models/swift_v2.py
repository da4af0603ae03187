"""SwiFT v2: a factorised transformer; each block attends along time, then across space, then maps each token.

The public copy has four defects, corrected here: its MLP ran twice with the same weights; its spatial angles were a
function of x + y + z, which confounds the axes; its features were relabelled as time-last, not transposed; options
were accepted and ignored. Positions are rotary and relative, so clips of any length run on the same weights, and the
zeros that fill up a window are seen by nobody.

Legend: B clip; X Y Z T voxels and frames; x y z t places and token times; C channels; N tokens of a window.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor, nn

from pipeline.models.encoder import VoxelEncoder
from pipeline.models.layers import LayerScale, Mlp, Stage
from pipeline.models.windows import Lengths, WindowAttention

ROTARY_BASE = 10_000.0
WHOLE_CLIP = 1 << 30  # a window longer than any clip: all times see each other


@lru_cache(maxsize=32)
@torch.inference_mode(False)  # see windows.window_mask
def axial_rotation(window: Lengths, head_channels: int, axes: tuple[int, ...], device: torch.device) -> Tensor:
    """Rotations `(N, pairs)` inside a window, as complex numbers, where each of `axes` turns channels of its own.

    The largest multiple of 2 * len(axes) channels of a head turns, the rest stays. The first pair of an axis turns by
    1 radian a step, later ones ever slower.
    """
    turning = head_channels // (2 * len(axes))
    if head_channels % 2 or not turning:
        raise ValueError(f"heads of {head_channels} channels, where {len(axes)} rotary axes need {2 * len(axes)}, even")
    rates = ROTARY_BASE ** (-torch.arange(turning, device=device) / turning)
    places = torch.stack(torch.meshgrid(*(torch.arange(size, device=device) for size in window), indexing="ij"))
    turns = [places[axis].flatten()[:, None] * rates for axis in axes]
    still = torch.zeros(places[0].numel(), head_channels // 2 - turning * len(axes), device=device)
    angles = torch.cat([*turns, still], dim=-1)
    return torch.polar(torch.ones_like(angles), angles)


def along_time(window: Lengths, head_channels: int, device: torch.device) -> Tensor:
    """Rotation of temporal attention."""
    return axial_rotation(window, head_channels, (3,), device)


def across_space(window: Lengths, head_channels: int, device: torch.device) -> Tensor:
    """Rotation of spatial attention."""
    return axial_rotation(window, head_channels, (0, 1, 2), device)


class Block(nn.Module):
    """Temporal attention, spatial attention, MLP: each behind a norm, scaled, beside a residual."""

    def __init__(
        self,
        channels: int,
        heads: int,
        window: Sequence[int],
        temporal_window: int,
        shifted: bool,
        layer_scale: Sequence[float],
    ) -> None:
        super().__init__()
        times, places = (1, 1, 1, temporal_window), (*window, 1)
        self.norm_t1 = nn.LayerNorm(channels)
        self.temporal_attn = WindowAttention(channels, heads, times, shifted, see_padding=False, rotary=along_time)
        self.ls_t = LayerScale(channels, layer_scale[0])
        self.norm_s1 = nn.LayerNorm(channels)
        self.spatial_attn = WindowAttention(channels, heads, places, shifted, see_padding=False, rotary=across_space)
        self.ls_s = LayerScale(channels, layer_scale[1])
        self.norm2 = nn.LayerNorm(channels)
        self.mlp = Mlp(channels)
        self.ls_mlp = LayerScale(channels, layer_scale[2])

    def forward(self, tokens_BxyztC: Tensor) -> Tensor:
        """Same shape out."""
        tokens = tokens_BxyztC + self.ls_t(self.temporal_attn(self.norm_t1(tokens_BxyztC)))
        tokens = tokens + self.ls_s(self.spatial_attn(self.norm_s1(tokens)))
        return tokens + self.ls_mlp(self.mlp(self.norm2(tokens)))


class SwiftV2(VoxelEncoder):
    """The encoder.

    Parameters
    ----------
    width, depths, heads, grid, patch : see `VoxelEncoder`.
    context_frames : clips of any other length run too.
    window : spatial windows along x, y, z, shifted in every second block where the grid is longer.
    temporal_window : token times that see each other, shifted likewise; None: the whole clip.
    layer_scale : start of the learned scales of temporal attention, spatial attention and MLP.
    """

    def __init__(
        self,
        width: int,
        depths: Sequence[int],
        heads: Sequence[int],
        grid: Sequence[int],
        patch: Sequence[int] = (6, 6, 6, 1),
        context_frames: int = 20,
        window: Sequence[int] = (4, 4, 4),
        temporal_window: int | None = None,
        layer_scale: Sequence[float] = (0.9, 0.1, 1.0),
    ) -> None:
        super().__init__(width, depths, heads, grid, patch, context_frames, embedding_norm=True)
        self.layers = nn.ModuleList()
        for i, channels in enumerate(self.widths):
            times, shifts = temporal_window or WHOLE_CLIP, [block % 2 == 1 for block in range(depths[i])]
            blocks = [Block(channels, heads[i], window, times, shifted, layer_scale) for shifted in shifts]
            self.layers.append(Stage(blocks, channels, i == len(depths) - 1))
        self.norm = nn.LayerNorm(self.channels)

    def encode(self, tokens_BCxyzt: Tensor) -> Tensor:
        """Features `(B, C, x, y, z, t)` of tokens."""
        tokens = tokens_BCxyzt.movedim(1, -1)
        for stage in self.layers:
            tokens = stage(tokens)
        return self.norm(tokens).movedim(-1, 1)
