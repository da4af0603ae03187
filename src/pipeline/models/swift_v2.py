"""SwiFT v2: a factorised transformer; each block attends along time, then across space, then maps each token.

The public copy has four defects (`DEFECTS`), corrected here unless `variant` is "upstream". Positions are rotary and
counted inside a window, so clips of any length run on the same weights. Where a temporal window is cut by the end of a
clip it is filled up with zeros that nobody sees; a clip no longer than its window is one window.

Source: CCN 2025 abstract and poster; Su et al. (2021), RoFormer; Dehghani et al. (2023) for norms of queries and keys.

Legend: B clip; X Y Z T voxels and frames; x y z t places and token times; C channels; N tokens of a window.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor, nn

from pipeline.models.description import Description, Variant
from pipeline.models.encoder import VoxelEncoder
from pipeline.models.ladder import WIDTHS, ladder
from pipeline.models.learners.reconstruction import MaskedReconstruction
from pipeline.models.mup import attention_scales
from pipeline.models.parts.layers import LayerScale, Mlp, Stage
from pipeline.models.parts.windows import Lengths, WindowAttention

ROTARY_BASE = 10_000.0
WHOLE_CLIP = 1 << 30  # a window longer than any clip: all times see each other
UPSTREAM_TEMPORAL_WINDOW = 10
DEFECTS = {
    "MLP twice": "the MLP runs twice with the same weights, first without, then with its learned scale",
    "confounded axes": "spatial angles depend on x + y + z alone, so steps along different axes look alike",
    "relabelled features": "features ordered (t, x, y, z) are named (x, y, z, t) without being transposed",
    "ignored options": "base_width and qk_norm are taken and not used: scores are scaled by 1 / root of the head",
}


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


def along_the_diagonal(window: Lengths, head_channels: int, device: torch.device) -> Tensor:
    """Rotation of spatial attention upstream: every pair of a head turns by a multiple of x + y + z."""
    rates = ROTARY_BASE ** (-torch.arange(head_channels // 2, device=device) / (head_channels // 2))
    x, y, z, t = (torch.arange(size, device=device) for size in window)
    steps = x[:, None, None, None] + y[:, None, None] + z[:, None] + 0 * t
    angles = steps.flatten()[:, None] * rates
    return torch.polar(torch.ones_like(angles), angles)


class Block(nn.Module):
    """Temporal attention, spatial attention, MLP: each behind a norm, scaled, beside a residual.

    Parameters
    ----------
    window, temporal_window : of spatial attention along x, y, z; of temporal attention along t.
    shifted : move both windows by half their length.
    layer_scale : start of the learned scales of temporal attention, spatial attention and MLP; None: no scales.
    qk_norm, scale : see `WindowAttention`.
    upstream : the MLP runs twice and spatial angles confound the axes.
    """

    def __init__(
        self,
        channels: int,
        heads: int,
        window: Sequence[int],
        temporal_window: int,
        shifted: bool,
        layer_scale: Sequence[float] | None,
        qk_norm: bool = False,
        scale: float | None = None,
        upstream: bool = False,
    ) -> None:
        super().__init__()
        times, places = (1, 1, 1, temporal_window), (*window, 1)
        turned = along_the_diagonal if upstream else across_space
        self.upstream = upstream
        self.norm_t1 = nn.LayerNorm(channels)
        self.temporal_attn = WindowAttention(
            channels, heads, times, shifted, see_padding=False, rotary=along_time, qk_norm=qk_norm, scale=scale
        )
        self.norm_s1 = nn.LayerNorm(channels)
        self.spatial_attn = WindowAttention(
            channels, heads, places, shifted, see_padding=False, rotary=turned, qk_norm=qk_norm, scale=scale
        )
        self.norm2 = nn.LayerNorm(channels)
        self.mlp = Mlp(channels)
        starts = layer_scale or (None, None, None)
        self.ls_t, self.ls_s, self.ls_mlp = [_layer_scale(channels, start) for start in starts]

    def forward(self, tokens_BxyztC: Tensor) -> Tensor:
        """Same shape out."""
        tokens = tokens_BxyztC + self.ls_t(self.temporal_attn(self.norm_t1(tokens_BxyztC)))
        tokens = tokens + self.ls_s(self.spatial_attn(self.norm_s1(tokens)))
        if self.upstream:
            tokens = tokens + self.mlp(self.norm2(tokens))
        return tokens + self.ls_mlp(self.mlp(self.norm2(tokens)))


def _layer_scale(channels: int, start: float | None) -> nn.Module:
    return nn.Identity() if start is None else LayerScale(channels, start)


class SwiftV2(VoxelEncoder):
    """The encoder.

    Parameters
    ----------
    width, depths, heads, grid, patch : see `VoxelEncoder`; a head has an even number of channels, 6 at least.
    context_frames : clips of any other length run too.
    window : spatial windows along x, y, z, shifted in every second block where the grid is longer.
    temporal_window : token times that see each other, shifted likewise; None: the whole clip (upstream: 10).
    layer_scale : start of the learned scales of temporal attention, spatial attention and MLP; None: no scales.
    qk_norm : whether queries and keys are normed, head by head.
    base_width : where muP's learning rate was found: scores are scaled as usual there, and by 1 / channels
        of a head elsewhere (`mup.attention_scale`); None: as usual everywhere.
    base_heads : of each stage at the base width; None: as many as `heads`.
    variant : "upstream" reproduces `DEFECTS`.
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
        layer_scale: Sequence[float] | None = (0.9, 0.1, 1.0),
        qk_norm: bool = False,
        base_width: int | None = None,
        base_heads: Sequence[int] | None = None,
        variant: Variant = "corrected",
    ) -> None:
        super().__init__(width, depths, heads, grid, patch, context_frames, embedding_norm=True)
        self.upstream = upstream = variant == "upstream"
        times = temporal_window or (UPSTREAM_TEMPORAL_WINDOW if upstream else WHOLE_CLIP)
        if upstream:
            qk_norm, base_width = False, None
        scales: Sequence[float | None] | None = attention_scales(width, heads, base_width, base_heads)
        scales = scales or [None] * len(depths)
        self.layers = nn.ModuleList()
        for i, channels in enumerate(self.widths):
            if channels // heads[i] % 2 or channels // heads[i] < 6:
                found = f"heads of {channels // heads[i]} channels in stage {i}"
                raise ValueError(f"{found}, where three rotary axes need 6 or more, and an even number")
            blocks = [
                Block(channels, heads[i], window, times, number % 2 == 1, layer_scale, qk_norm, scales[i], upstream)
                for number in range(depths[i])
            ]
            self.layers.append(Stage(blocks, channels, i == len(depths) - 1))
        self.norm = nn.LayerNorm(self.channels)

    def encode(self, tokens_BCxyzt: Tensor) -> Tensor:
        """Features `(B, C, x, y, z, t)` of tokens."""
        tokens = tokens_BCxyzt.movedim(1, -1)
        for stage in self.layers:
            tokens = stage(tokens)
        features = self.norm(tokens)
        if self.upstream:
            features = features.movedim(4, 1).reshape(features.shape)
        return features.movedim(-1, 1)


PLACES = (16, 16, 16)  # patches of 6 voxels in a box of 96
PUBLISHED = {36: "9m", 96: "66m", 192: "264m"}  # names of those widths
DESCRIPTION = Description(
    name="swift_v2",
    input="voxels",
    objective="masked reconstruction",
    mixing="time, then 3D shifted windows",
    source="CCN 2025 abstract and poster, factorised encoder (ver11)",
    build=SwiftV2,
    sizes={PUBLISHED.get(width, f"w{width}"): {**ladder(width), "grid": PLACES} for width in WIDTHS},
    default="9m",
    learner=MaskedReconstruction,
    published={"9m": "9.36 M, encoder", "66m": "66.14 M, encoder", "264m": "264.12 M, encoder"},
    defects=DEFECTS,
)
