"""Encoders that see any subset of a clip's tokens: what they share, and how hidden tokens are left out and put back.

A token is one row (a parcel, or a group of them) at one token time. Attention costs what is visible only, since hidden
tokens never enter the encoder; a decoder or predictor receives them again as a learned vector at their position.

Source: He et al. (2022), Masked autoencoders are scalable vision learners.

Legend: B clip; R parcels; T frames; r t rows and token times; N = r t tokens; V visible tokens; S summary tokens;
C channels; K coordinates of a row.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from pipeline.models.encoder import Encoder


def chosen(mask_BN: Tensor) -> Tensor:
    """Numbers `(B, V)` of the tokens that a mask chooses, in their order, on the device of the mask.

    Raises
    ------
    ValueError : clips with different numbers of them, which cannot lie in one batch.
    """
    counts = mask_BN.sum(1)
    if not torch.equal(counts, counts[:1].expand_as(counts)):
        raise ValueError(f"{counts.tolist()} tokens chosen, where each clip of a batch needs the same number")
    return mask_BN.nonzero()[:, 1].view(len(mask_BN), -1)


def take(tokens_BNC: Tensor, number_BV: Tensor) -> Tensor:
    """The tokens `(B, V, C)` of those numbers."""
    return tokens_BNC.gather(1, number_BV[..., None].expand(-1, -1, tokens_BNC.shape[-1]))


def put_back(visible_BVC: Tensor, number_BV: Tensor, filling_C: Tensor, tokens: int) -> Tensor:
    """All tokens `(B, N, C)`: the visible ones at their places, `filling_C` everywhere else."""
    filling_BNC = filling_C.to(visible_BVC.dtype).expand(len(visible_BVC), tokens, -1)
    return filling_BNC.scatter(1, number_BV[..., None].expand_as(visible_BVC), visible_BVC)


Table = Tensor | Sequence[Sequence[float]]


def as_table(table: Table, parcels: int, columns: int) -> Tensor:
    """A table `(R, K)` of one row a parcel; ValueError where it has another shape."""
    table_RK = torch.as_tensor(table, dtype=torch.float32)
    if table_RK.shape != (parcels, columns):
        raise ValueError(f"a table of {tuple(table_RK.shape)}, where parcels need {(parcels, columns)}")
    return table_RK


class Positions(nn.Module, ABC):
    """Vectors of one width for all places of a grid; encoder, decoder and predictor have one each."""

    @abstractmethod
    def forward(self, table_RK: Tensor, grid: tuple[int, int]) -> Tensor:
        """`(N, width)` for `grid` rows and times, the times of a row next to each other."""


class DecoderShape(NamedTuple):
    """Channels, blocks, heads and MLP ratio of the decoder or predictor that a learner adds to an encoder."""

    width: int
    depth: int
    heads: int
    ratio: int


class TokenEncoder(Encoder, ABC):
    """A transformer on tokens of one parcel and one patch of frames, whichever of them are visible.

    Parameters
    ----------
    width, blocks : channels, and the blocks that keep them.
    patch : frames of a token.
    frames : of a clip in pretraining; other numbers of patches will do as well, unless a class says otherwise.
    table_RK : where each parcel lies; what `Positions` reads. It is kept with the weights.
    decoder_shape : of what the learner adds.
    summary : number S of learned tokens that `encode` puts before the others.
    eps : of the last norm.
    dropout : of tokens with their positions.
    """

    table: Tensor

    def __init__(
        self,
        width: int,
        blocks: Iterable[nn.Module],
        patch: int,
        frames: int,
        table_RK: Tensor,
        decoder_shape: DecoderShape,
        summary: int = 1,
        eps: float = 1e-5,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.width, self.patch, self.frames, self.decoder_shape = width, patch, frames, decoder_shape
        self.summary, self.frames_per_token = summary, patch
        self.register_buffer("table", table_RK)
        self.grid(frames)
        self.patch_embed = self.new_patch_embedding()
        self.positions = self.new_positions(width)
        self.dropout = nn.Dropout(dropout)
        if summary:
            self.cls_token = nn.Parameter(nn.init.trunc_normal_(torch.empty(summary, width), std=0.02))
        self.blocks = nn.ModuleList(blocks)
        self.norm = nn.LayerNorm(width, eps=eps)

    @property
    def channels(self) -> int:
        """Channels of the features."""
        return self.width

    @property
    def input_shape(self) -> tuple[int, int]:
        """`(R, T)` of a clip in pretraining."""
        return len(self.table), self.frames

    @abstractmethod
    def new_positions(self, width: int) -> Positions:
        """Positions of another width for the same parcels."""

    def new_patch_embedding(self) -> nn.Module:
        """From `values` of a token to its channels."""
        return nn.Linear(self.patch, self.width)

    def grid(self, frames: int) -> tuple[int, int]:
        """Rows and token times of a clip of so many frames; ValueError where they do not fit."""
        if frames % self.patch:
            raise ValueError(f"clips of {frames} frames, which patches of {self.patch} do not tile")
        return len(self.table), frames // self.patch

    def values(self, clip_BRT: Tensor) -> Tensor:
        """What each token holds, `(B, r, t, P)`."""
        self.check(clip_BRT)
        return torch.unflatten(clip_BRT, -1, (self.grid(clip_BRT.shape[-1])[1], self.patch))

    def check(self, clip_BRT: Tensor) -> None:
        """ValueError where a clip has other parcels than the table."""
        if clip_BRT.shape[1] != len(self.table):
            raise ValueError(f"clips of {clip_BRT.shape[1]} parcels, but places are known for {len(self.table)}")

    def inside(self, frames: int) -> Tensor | None:  # noqa: ARG002 - a padded grid depends on it
        """Which values are real, `(r, t, P)`, 0 in padding; None: all of them."""
        return None

    def embed(self, clip_BRT: Tensor) -> Tensor:
        """Tokens with their positions, `(B, N, C)`, before any of them sees another."""
        tokens_BNC = self.patch_embed(self.values(clip_BRT)).flatten(1, 2)
        return self.dropout(tokens_BNC + self.positions(self.table, self.grid(clip_BRT.shape[-1])))

    def encode(self, tokens_BVC: Tensor) -> Tensor:
        """`(B, S + V, C)` of tokens."""
        tokens = tokens_BVC
        if self.summary:
            summary_BSC = self.cls_token.to(tokens.dtype).expand(len(tokens), -1, -1)
            tokens = torch.cat([summary_BSC, tokens], dim=1)
        for block in self.blocks:
            tokens = block(tokens)
        return self.norm(tokens)

    def encode_some(self, clip_BRT: Tensor, number_BV: Tensor) -> Tensor:
        """`(B, S + V, C)` of the tokens of those numbers; the others are never seen."""
        return self.encode(take(self.embed(clip_BRT), number_BV.to(clip_BRT.device)))

    def forward(self, clip_BRT: Tensor) -> Tensor:
        """Features `(B, C, r, t)` of a clip `(B, R, T)`; the last axis is time."""
        tokens_BNC = self.encode(self.embed(clip_BRT))[:, self.summary :]
        return torch.unflatten(tokens_BNC.mT, -1, self.grid(clip_BRT.shape[-1]))
