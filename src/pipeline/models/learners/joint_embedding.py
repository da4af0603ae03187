"""Joint-embedding prediction: features of hidden tokens are predicted from visible ones, in the space of a teacher.

The teacher is the encoder itself, a moving average of it over the steps; it sees the whole clip and takes no gradient.

Source: Assran et al. (2023), I-JEPA; Dong et al. (2024), Brain-JEPA.

Legend: B clip; N tokens of the grid; V visible, M predicted and S summary tokens; C channels of the encoder, D of the
predictor; K coordinates of a row.
"""

from __future__ import annotations

from copy import deepcopy

import torch
from torch import Tensor, nn
from torch.nn import functional

from pipeline.models.parts.token_encoder import TokenEncoder, chosen, take
from pipeline.models.parts.transformer import Block

EPS = 1e-6


class Predictor(nn.Module):
    """Encoded visible tokens to the features of other tokens, which enter as a learned vector at their position."""

    def __init__(self, encoder: TokenEncoder) -> None:
        super().__init__()
        width, depth, heads, ratio = encoder.decoder_shape
        self.embed = nn.Linear(encoder.channels, width)
        self.mask_token = nn.Parameter(nn.init.trunc_normal_(torch.empty(width), std=0.02))
        self.positions = encoder.new_positions(width)
        self.blocks = nn.ModuleList(Block(width, heads, ratio, eps=EPS) for _ in range(depth))
        self.norm = nn.LayerNorm(width, eps=EPS)
        self.proj = nn.Linear(width, encoder.channels)

    def forward(self, encoded_BVC: Tensor, number_BV: Tensor, number_BM: Tensor, positions_ND: Tensor) -> Tensor:
        """Predicted features `(B, M, C)`; summary tokens come first in `encoded_BVC` and have no position."""
        positions_BND = positions_ND.expand(len(encoded_BVC), -1, -1)
        tokens_BVD = self.embed(encoded_BVC)
        summary = tokens_BVD.shape[1] - number_BV.shape[1]
        visible_BVD = tokens_BVD[:, summary:] + take(positions_BND, number_BV)
        hidden_BMD = self.mask_token + take(positions_BND, number_BM)
        parts = tokens_BVD[:, :summary], visible_BVD, hidden_BMD
        tokens = torch.cat([part.to(tokens_BVD.dtype) for part in parts], dim=1)
        for block in self.blocks:
            tokens = block(tokens)
        return self.proj(self.norm(tokens[:, -number_BM.shape[1] :]))


class JointEmbedding(nn.Module):
    """An encoder, its teacher and the predictor between them."""

    def __init__(self, encoder: TokenEncoder, predictor: Predictor) -> None:
        super().__init__()
        self.encoder, self.predictor = encoder, predictor
        self.teacher = deepcopy(encoder).requires_grad_(False)
        self.teacher.eval()

    def train(self, mode: bool = True) -> JointEmbedding:
        """The teacher never drops anything out."""
        super().train(mode)
        self.teacher.eval()
        return self

    def predict(self, clip: Tensor, visible: Tensor, targets: Tensor) -> Tensor:
        """Features `(B, M, C)` of the tokens in `targets`, from those in `visible`, both masks `(B, r, t)`."""
        number_BV, number_BM = (chosen(mask.flatten(1)).to(clip.device) for mask in (visible, targets))
        positions_ND = self.predictor.positions(self.encoder.table, self.encoder.grid(clip.shape[-1]))
        return self.predictor(self.encoder.encode_some(clip, number_BV), number_BV, number_BM, positions_ND)

    @torch.no_grad()
    def taught(self, clip: Tensor, targets: Tensor) -> Tensor:
        """Features `(B, M, C)` that the teacher gives those tokens, each scaled to mean 0 and variance 1."""
        encoded_BNC = self.teacher.encode(self.teacher.embed(clip))[:, self.teacher.summary :]
        scaled_BNC = functional.layer_norm(encoded_BNC, encoded_BNC.shape[-1:])
        return take(scaled_BNC, chosen(targets.flatten(1)).to(clip.device))

    @torch.no_grad()
    def follow(self, momentum: float) -> None:
        """The teacher keeps `momentum` of itself and takes the rest from the encoder."""
        for mean, value in zip(self.teacher.parameters(), self.encoder.parameters(), strict=True):
            mean.lerp_(value, 1 - momentum)
