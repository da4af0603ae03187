"""Masked autoencoder on tokens: the encoder sees what is visible, a narrower decoder predicts what is hidden.

Source: He et al. (2022), Masked autoencoders are scalable vision learners.

Legend: B clip; r t rows and token times; N = r t tokens; V visible, M hidden and S summary tokens; C channels, D of the
decoder; K coordinates of a row; P values of a token.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from pipeline.models.learners.reconstruction import Reconstructor
from pipeline.models.parts.token_encoder import TokenEncoder, chosen, put_back


class Decoder(nn.Module):
    """Encoded visible tokens to tokens of the whole grid, and their values.

    Parameters
    ----------
    encoder : gives channels and positions.
    width, blocks : of the decoder.
    head : tokens `(..., D)` to values `(..., P)`.
    eps : of the last norm.
    dropout : of tokens with their positions.
    """

    def __init__(
        self,
        encoder: TokenEncoder,
        width: int,
        blocks: Iterable[nn.Module],
        head: nn.Module,
        eps: float = 1e-5,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.embed = nn.Linear(encoder.channels, width)
        self.mask_token = nn.Parameter(nn.init.trunc_normal_(torch.empty(width), std=0.02))
        self.positions = encoder.new_positions(width)
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(blocks)
        self.norm = nn.LayerNorm(width, eps=eps)
        self.head = head

    def forward(self, encoded_BVC: Tensor, number_BV: Tensor, table_RK: Tensor, grid: tuple[int, int]) -> Tensor:
        """`(B, N, D)`, what `head` takes. Summary tokens come first in `encoded_BVC`; they are seen, not returned."""
        tokens_BVD = self.embed(encoded_BVC)
        summary = tokens_BVD.shape[1] - number_BV.shape[1]
        all_BND = put_back(tokens_BVD[:, summary:], number_BV, self.mask_token, grid[0] * grid[1])
        placed_BND = self.dropout(all_BND + self.positions(table_RK, grid))
        tokens = torch.cat([tokens_BVD[:, :summary], placed_BND.to(tokens_BVD.dtype)], dim=1)
        for block in self.blocks:
            tokens = block(tokens)
        return self.norm(tokens[:, summary:])


class MaskedAutoencoder(Reconstructor):
    """An encoder of visible tokens and the decoder that predicts the hidden ones."""

    encoder: TokenEncoder

    def __init__(self, encoder: TokenEncoder, decoder: Decoder) -> None:
        super().__init__()
        self.encoder, self.decoder = encoder, decoder

    def patchify(self, clip: Tensor) -> Tensor:
        """The values of a clip token by token, `(B, r, t, P)`."""
        return self.encoder.values(clip)

    def predict(self, clip: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Values `(M, P)` of the tokens hidden in `(B, r, t)`, and features `(B, C, V)` of those that were visible."""
        number_BV = chosen(~hidden.flatten(1)).to(clip.device)
        encoded_BVC = self.encoder.encode_some(clip, number_BV)
        tokens_BND = self.decoder(encoded_BVC, number_BV, self.encoder.table, self.encoder.grid(clip.shape[-1]))
        token_M = hidden.flatten().nonzero()[:, 0].to(clip.device)
        patches_MP = self.decoder.head(tokens_BND.flatten(0, 1).index_select(0, token_M))
        inside = self.encoder.inside(clip.shape[-1])
        if inside is not None:  # padding is known; what is said of it must cost nothing
            inside_MP = inside.flatten(0, 1).index_select(0, token_M % hidden[0].numel())
            known_MP = self.encoder.values(clip).flatten(0, 2).index_select(0, token_M)
            patches_MP = torch.where(inside_MP > 0, patches_MP, known_MP.to(patches_MP.dtype))
        return patches_MP, encoded_BVC[:, self.encoder.summary :].mT
