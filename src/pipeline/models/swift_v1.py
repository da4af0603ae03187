"""SwiFT v1: a 4D Swin transformer whose shifted windows mix space and time together.

Every quirk of the released encoders is kept, because their weights need it: absolute positions are added at the entry
of each stage, the zeros that fill up a window are attended to, masked scores are lowered by 100, the windows of the
last stage span all of space but only `window[3]` token times, and the final norm exists but is never applied.

Source: Kim et al. (2023), SwiFT: Swin 4D fMRI Transformer, NeurIPS. State-dict keys are those of its public code.

Legend: B clip; X Y Z T voxels and frames; x y z t places and token times; C channels.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pipeline.models.encoder import VoxelEncoder
from pipeline.models.layers import Grid, Mlp, Stage
from pipeline.models.windows import WindowAttention

WITHOUT_GRADIENT = ("norm.weight", "norm.bias")


class Positions(nn.Module):
    """A learned vector a place and a learned vector a time."""

    def __init__(self, channels: int, grid: Grid, times: int) -> None:
        super().__init__()
        self.pos_embed = nn.Parameter(nn.init.trunc_normal_(torch.empty(1, channels, *grid, 1), std=0.02))
        self.time_embed = nn.Parameter(nn.init.trunc_normal_(torch.empty(1, channels, 1, 1, 1, times), std=0.02))

    def forward(self, tokens_BxyztC: Tensor) -> Tensor:
        """Add both; a clip shorter than the context takes the first times."""
        times = tokens_BxyztC.shape[4]
        if times > self.time_embed.shape[-1]:
            known = self.time_embed.shape[-1]
            raise ValueError(f"a clip of {times} token times, but positions were learned for {known}")
        return tokens_BxyztC + (self.pos_embed + self.time_embed[..., :times]).movedim(1, -1)


class Block(nn.Module):
    """Attention in 4D windows, then an MLP, each behind a norm and beside a residual."""

    def __init__(self, channels: int, heads: int, window: Sequence[int], shifted: bool) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(channels)
        self.attn = WindowAttention(channels, heads, window, shifted)
        self.norm2 = nn.LayerNorm(channels)
        self.mlp = Mlp(channels)

    def forward(self, tokens_BxyztC: Tensor) -> Tensor:
        """Same shape out."""
        tokens = tokens_BxyztC + self.attn(self.norm1(tokens_BxyztC))
        return tokens + self.mlp(self.norm2(tokens))


class SwiftV1(VoxelEncoder):
    """The encoder.

    Parameters
    ----------
    width, depths, heads, grid, patch : see `VoxelEncoder`.
    context_frames : longest clip; shorter ones take the first of the learned times.
    window, first_window : windows along x, y, z, t, and those of the first stage where they differ.
    full_last_stage : windows of the last stage span all of space and are not shifted.
    """

    def __init__(
        self,
        width: int,
        depths: Sequence[int],
        heads: Sequence[int],
        grid: Sequence[int],
        patch: Sequence[int] = (6, 6, 6, 1),
        context_frames: int = 20,
        window: Sequence[int] = (4, 4, 4, 4),
        first_window: Sequence[int] | None = None,
        full_last_stage: bool = True,
    ) -> None:
        super().__init__(width, depths, heads, grid, patch, context_frames, embedding_norm=False)
        last, times = len(depths) - 1, context_frames // self.patch[3]
        windows = [tuple(first_window or window), *[tuple(window)] * last]
        if full_last_stage:
            windows[last] = (*self.grids[last], window[3])
        self.pos_embeds, self.layers = nn.ModuleList(), nn.ModuleList()
        for i, channels in enumerate(self.widths):
            shifts = [block % 2 == 1 and not (full_last_stage and i == last) for block in range(depths[i])]
            blocks = [Block(channels, heads[i], windows[i], shifted) for shifted in shifts]
            self.pos_embeds.append(Positions(channels, self.grids[i], times))
            self.layers.append(Stage(blocks, channels, i == last))
        self.norm = nn.LayerNorm(self.channels)

    def encode(self, tokens_BCxyzt: Tensor) -> Tensor:
        """Features `(B, C, x, y, z, t)` of tokens."""
        tokens = tokens_BCxyzt.movedim(1, -1)
        for positions, stage in zip(self.pos_embeds, self.layers, strict=True):
            tokens = stage(positions(tokens))
        return tokens.movedim(-1, 1)
