"""Masked reconstruction: hidden tokens are replaced by a learned one, everything is encoded, voxels are predicted.

Source: Xie et al. (2022), SimMIM. The decoder is the same for every encoder: it undoes the mergings one by one with
linear maps and pixel shuffles, then one linear map predicts the voxels of each patch.

Legend: B clip; X Y Z T voxels and frames; x y z t places and token times; C channels; P voxels of a patch.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from pipeline.models.encoder import Encoder, VoxelEncoder
from pipeline.models.parts.layers import Grid, Patch, patchify, unpatchify


class Reconstructor(nn.Module, ABC):
    """An encoder and what predicts the tokens that were hidden from it.

    `hidden` is `(B, *tokens)`, True where hidden, with equally many hidden tokens M / B in every clip.
    """

    encoder: Encoder

    @abstractmethod
    def patchify(self, clip: Tensor) -> Tensor:
        """The values of a clip token by token, `(B, *tokens, P)`: what is predicted."""

    @abstractmethod
    def predict(self, clip: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Values `(M, P)` of the hidden tokens, in the order of `hidden` flattened, and features `(B, C, ...)`."""


class Splitting(nn.Module):
    """Each place becomes 2 x 2 x 2 places of half the channels: a linear map and a pixel shuffle."""

    def __init__(self, channels: int, grid: Grid) -> None:
        super().__init__()
        self.grid = grid
        self.norm = nn.LayerNorm(channels)
        self.expansion = nn.Linear(channels, 4 * channels)

    def forward(self, tokens_BxyztC: Tensor) -> Tensor:
        """Tokens on `grid`, the finer one."""
        x, y, z = self.grid
        parts = self.expansion(self.norm(tokens_BxyztC)).unflatten(-1, (2, 2, 2, -1)).permute(0, 1, 5, 2, 6, 3, 7, 4, 8)
        return parts.flatten(5, 6).flatten(3, 4).flatten(1, 2)[:, :x, :y, :z]


class Decoder(nn.Module):
    """Features to the voxels of every patch."""

    def __init__(self, widths: list[int], grids: list[Grid], patch: Patch) -> None:
        super().__init__()
        pairs = zip(reversed(widths[1:]), reversed(grids[:-1]), strict=True)
        self.stages = nn.ModuleList(Splitting(channels, grid) for channels, grid in pairs)
        self.norm = nn.LayerNorm(widths[0])
        self.head = nn.Linear(widths[0], patch[0] * patch[1] * patch[2] * patch[3])
        # Start near the zero predictor: from torch's own start R^2 is -0.3 and the first 100 steps go into undoing it.
        nn.init.trunc_normal_(self.head.weight, std=0.02)
        nn.init.zeros_(self.head.bias)

    def forward(self, features_BCxyzt: Tensor) -> Tensor:
        """What the head maps to voxels, one row a token: `(B, x, y, z, t, C)`."""
        tokens = features_BCxyzt.movedim(1, -1)
        for stage in self.stages:
            tokens = stage(tokens)
        normed: Tensor = self.norm(tokens)
        return normed


class MaskedReconstruction(Reconstructor):
    """A voxel encoder with a mask token and a decoder."""

    encoder: VoxelEncoder

    def __init__(self, encoder: VoxelEncoder) -> None:
        super().__init__()
        self.encoder = encoder
        self.mask_token = nn.Parameter(nn.init.trunc_normal_(torch.empty(encoder.widths[0]), std=0.02))
        self.decoder = Decoder(encoder.widths, encoder.grids, encoder.patch)

    def features(self, clip_B1XYZT: Tensor, hidden_Bxyzt: Tensor) -> Tensor:
        """Features `(B, C, x, y, z, t)` of a clip some of whose tokens are hidden (True)."""
        if self.encoder.overlapping:  # else its neighbours would show what is hidden
            seen_BxyztP = self.patchify(clip_B1XYZT) * ~hidden_Bxyzt[..., None]
            clip_B1XYZT = unpatchify(seen_BxyztP, self.encoder.patch)
        tokens_BCxyzt = self.encoder.embed(clip_B1XYZT)
        mask_token = self.mask_token[:, None, None, None, None]
        return self.encoder.encode(torch.where(hidden_Bxyzt[:, None], mask_token, tokens_BCxyzt))

    def patches(self, features_BCxyzt: Tensor, token_M: Tensor) -> Tensor:
        """Predicted voxels `(M, P)` of the tokens `token_M`, which index the flattened `(B, x, y, z, t)`."""
        return self.decoder.head(self.decoder(features_BCxyzt).flatten(0, 4).index_select(0, token_M))

    def patchify(self, clip: Tensor) -> Tensor:
        """The voxels of each patch, `(B, x, y, z, t, P)`."""
        return patchify(clip, self.encoder.patch)

    def predict(self, clip: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Voxels `(M, P)` of the hidden tokens, and features `(B, C, x, y, z, t)`."""
        features_BCxyzt = self.features(clip, hidden)
        return self.patches(features_BCxyzt, hidden.flatten().nonzero()[:, 0]), features_BCxyzt

    def forward(self, clip_B1XYZT: Tensor, hidden_Bxyzt: Tensor) -> Tensor:
        """The whole predicted clip, of the shape of the one that came in."""
        tokens_BxyztC = self.decoder(self.features(clip_B1XYZT, hidden_Bxyzt))
        return unpatchify(self.decoder.head(tokens_BxyztC), self.encoder.patch)
