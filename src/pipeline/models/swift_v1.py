"""SwiFT v1: a 4D Swin transformer whose shifted windows mix space and time together.

Every quirk of the released encoders is kept, because their weights need it: absolute positions are added at the entry
of each stage, the zeros that fill up a window are attended to, masked scores are lowered by 100, the windows of the
last stage span all of space but only `window[3]` token times, and the final norm exists but is never applied.

Source: Kim et al. (2023), SwiFT: Swin 4D fMRI Transformer, NeurIPS. State-dict keys are those of its public code.

Legend: B clip; X Y Z T voxels and frames; x y z t places and token times; C channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.models.description import Description
from pipeline.models.encoder import VoxelEncoder
from pipeline.models.learners.reconstruction import MaskedReconstruction
from pipeline.models.parts import pieces
from pipeline.models.parts.layers import Grid, LayerScale, Mlp, Stage
from pipeline.models.parts.windows import WindowAttention


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

    def __init__(self, channels: int, attention: WindowAttention, layer_scale: float | None) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(channels)
        self.attn = attention
        self.norm2 = nn.LayerNorm(channels)
        self.mlp = Mlp(channels)
        self.ls1 = nn.Identity() if layer_scale is None else LayerScale(channels, layer_scale)
        self.ls2 = nn.Identity() if layer_scale is None else LayerScale(channels, layer_scale)

    def forward(self, tokens_BxyztC: Tensor) -> Tensor:
        """Same shape out."""
        tokens = tokens_BxyztC + self.ls1(self.attn(self.norm1(tokens_BxyztC)))
        if pieces.serve(tokens, *self.mlp.modules()):
            return pieces.in_pieces(self._map_tokens, tokens)
        return self._map_tokens(tokens)

    def _map_tokens(self, tokens: Tensor) -> Tensor:
        return tokens + self.ls2(self.mlp(self.norm2(tokens)))


class SwiftV1(VoxelEncoder):
    """The encoder.

    Parameters
    ----------
    width, depths, heads, grid, patch : see `VoxelEncoder`.
    context_frames : longest clip; shorter ones take the first of the learned times.
    window, first_window : windows along x, y, z, t, and those of the first stage where they differ.
    full_last_stage : windows of the last stage span all of space and are not shifted.
    qk_norm, attention_scale : see `WindowAttention`, the scale one for all stages or one a stage; the released encoders
        have neither.
    layer_scale : start of a learned scale a channel on both branches of a block; None: none, as released.
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
        qk_norm: bool = False,
        attention_scale: float | Sequence[float] | None = None,
        layer_scale: float | None = None,
    ) -> None:
        super().__init__(width, depths, heads, grid, patch, context_frames, embedding_norm=False)
        last, times = len(depths) - 1, context_frames // self.patch[3]
        windows = [tuple(first_window or window), *[tuple(window)] * last]
        if full_last_stage:
            windows[last] = (*self.grids[last], window[3])
        scales = attention_scale if isinstance(attention_scale, Sequence) else [attention_scale] * len(depths)
        if len(scales) != len(depths):
            raise ValueError(f"attention_scale of {len(scales)} stages, where depths have {len(depths)}")
        self.pos_embeds, self.layers = nn.ModuleList(), nn.ModuleList()
        for i, channels in enumerate(self.widths):
            shifts = [block % 2 == 1 and not (full_last_stage and i == last) for block in range(depths[i])]
            attentions = [
                WindowAttention(channels, heads[i], windows[i], shifted, qk_norm=qk_norm, scale=scales[i])
                for shifted in shifts
            ]
            blocks = [Block(channels, attention, layer_scale) for attention in attentions]
            self.pos_embeds.append(Positions(channels, self.grids[i], times))
            self.layers.append(Stage(blocks, channels, i == last))
        self.norm = nn.LayerNorm(self.channels)

    def encode(self, tokens_BCxyzt: Tensor) -> Tensor:
        """Features `(B, C, x, y, z, t)` of tokens."""
        tokens = tokens_BCxyzt.movedim(1, -1)
        for positions, stage in zip(self.pos_embeds, self.layers, strict=True):
            tokens = stage(positions(tokens))
        return tokens.movedim(-1, 1)


WIDTHS = (24, 36, 48, 72, 96, 132, 144, 192, 288, 384)


def _paper(width: int) -> dict[str, Any]:
    """Arguments of the paper's script at a width."""
    return {"width": width, "depths": (2, 2, 6, 2), "heads": (3, 6, 12, 24), "grid": (16, 16, 16)}


DESCRIPTION = Description(
    name="swift_v1",
    input="voxels",
    objective="masked reconstruction",
    mixing="4D shifted windows",
    source="Kim et al. (2023), NeurIPS",
    build=SwiftV1,
    sizes={"paper" if width == 36 else f"e{width}": _paper(width) for width in WIDTHS},
    default="paper",
    learner=MaskedReconstruction,
    published={
        "e24": "1.97 M, encoder",
        "paper": "4,315,212, encoder",
        "e48": "7.56 M, encoder",
        "e72": "16.8 M, encoder",
        "e96": "29.6 M, encoder",
        "e132": "55.7 M, encoder",
        "e144": "66.2 M, encoder",
        "e192": "117.2 M, encoder",
        "e288": "262.7 M, encoder",
        "e384": "466.2 M, encoder",
    },
    without_gradient={"norm.": "the released encoders hold a final norm that they never apply"},
)
