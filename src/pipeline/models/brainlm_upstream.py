"""BrainLM as it was published: a row of tokens with a convolution along it (13 M), and images (111 M and 650 M).

The small model is a Nystroemformer by name. Its library attends in full wherever there are as many landmarks as segment
means, and the published settings have 64 of both, so what remains of it are norms behind the residuals and a
convolution over 65 tokens of the row. The row holds visible tokens only, so the convolution mixes whichever tokens
happen to be kept next to each other. The public code also shuffles the row at random before that, in inference too;
here it stays in the order of parcels and times.

The large ones are image transformers. Parcels in the order of Y and frames form a matrix, centred in a square that is
filled up with -1 and repeated in three channels; a token is a patch of 16 x 16 (or 14 x 14) parcels and frames.

Source: public code of BrainLM, and of the Nystroemformer and ViT-MAE layers that it imports.

Legend: B clip; R parcels; T frames; r t rows and columns of patches; N = r t tokens; V visible tokens; C channels;
H heads; D channels of a head; K coordinates; P values of a token.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from pipeline.models.learners.autoencoder import Decoder
from pipeline.models.parts.layers import Mlp
from pipeline.models.parts.token_encoder import Positions, TokenEncoder
from pipeline.models.parts.transformer import Block, sine_positions

KERNEL, EPS, DROPOUT, FILLING, COLOURS = 65, 1e-12, 0.1, -1.0, 3


class ConvolvedAttention(nn.Module):
    """Attention among all tokens, and a convolution of the values along their row, one kernel a head."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        if channels % heads:
            raise ValueError(f"{heads} heads do not divide {channels} channels")
        self.heads = heads
        self.qkv = nn.Linear(channels, 3 * channels)
        self.conv = nn.Conv2d(heads, heads, (KERNEL, 1), padding=(KERNEL // 2, 0), groups=heads, bias=False)
        self.proj = nn.Linear(channels, channels)

    def forward(self, tokens_BNC: Tensor) -> Tensor:
        """Same shape out."""
        q, k, v = self.qkv(tokens_BNC).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # (B, H, N, D)
        mixed_BHND = functional.scaled_dot_product_attention(q, k, v) + self.conv(v)
        return self.proj(mixed_BHND.transpose(1, 2).flatten(2))

    def own_flops(self, tokens_BNC: Tensor) -> int:
        """Operations beside those of its linear maps and convolution."""
        clips, tokens, channels = tokens_BNC.shape
        return 4 * clips * tokens * tokens * channels


class PostNormBlock(nn.Module):
    """Attention, then an MLP, each with a residual and a norm behind it."""

    def __init__(self, channels: int, heads: int, ratio: int) -> None:
        super().__init__()
        self.attn = ConvolvedAttention(channels, heads)
        self.norm1 = nn.LayerNorm(channels, eps=EPS)
        self.mlp = Mlp(channels, ratio)
        self.norm2 = nn.LayerNorm(channels, eps=EPS)

    def forward(self, tokens_BNC: Tensor) -> Tensor:
        """Same shape out."""
        tokens = self.norm1(tokens_BNC + self.attn(tokens_BNC))
        return self.norm2(tokens + self.mlp(tokens))


class RowPositions(Positions):
    """A linear map of the coordinates as they come, and sines and cosines of the token time by turns."""

    def __init__(self, coordinates: int, width: int) -> None:
        super().__init__()
        self.width = width
        self.place = nn.Linear(coordinates, width)

    def forward(self, table_RK: Tensor, grid: tuple[int, int]) -> Tensor:
        """`(N, width)`."""
        sines_tC = sine_positions(torch.arange(grid[1], device=table_RK.device), self.width)
        sines_t2h = torch.unflatten(sines_tC, 1, (2, -1))
        return (self.place(table_RK)[:, None] + sines_t2h.mT.flatten(1)).flatten(0, 1)


class RowBrainLM(TokenEncoder):
    """The 13 M encoder, of `PostNormBlock`s; `pipeline.models.brainlm.brainlm` builds it."""

    def new_positions(self, width: int) -> Positions:
        """Positions of another width for the same parcels."""
        return RowPositions(self.table.shape[1], width)


class ImagePositions(Positions):
    """Sines of the column in the first half of the channels, of the row in the second."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width

    def forward(self, table_RK: Tensor, grid: tuple[int, int]) -> Tensor:
        """`(N, width)`."""
        rows_rh, columns_th = (
            sine_positions(torch.arange(edge, device=table_RK.device), self.width // 2) for edge in grid
        )
        both = columns_th.expand(grid[0], -1, -1), rows_rh[:, None].expand(-1, grid[1], -1)
        return torch.cat(both, dim=-1).flatten(0, 1)


class ImageBrainLM(TokenEncoder):
    """The 111 M and 650 M encoders; `pipeline.models.brainlm.brainlm` builds them."""

    def new_patch_embedding(self) -> nn.Module:
        """From patches of the three-channel image to channels."""
        return nn.Conv2d(COLOURS, self.width, self.patch, self.patch)

    @property
    def side(self) -> int:
        """Edge of the square image: the first multiple of the patch that the parcels fit in."""
        return -(-len(self.table) // self.patch) * self.patch

    def new_positions(self, width: int) -> Positions:
        """Positions of another width for the same image."""
        return ImagePositions(width)

    def grid(self, frames: int) -> tuple[int, int]:
        """Rows and columns of patches of the whole image, with its padding."""
        for name, length in (("parcels", len(self.table)), ("frames", frames)):
            if length > self.side or (self.side - length) % 2:
                raise ValueError(f"{length} {name}, which cannot be centred in an image of {self.side}")
        return self.side // self.patch, self.side // self.patch

    def image(self, clip_BRT: Tensor) -> Tensor:
        """The square image `(B, side, side)`, parcels in the order of Y, filled up with -1."""
        self.check(clip_BRT)
        self.grid(clip_BRT.shape[-1])
        left, top = (self.side - clip_BRT.shape[-1]) // 2, (self.side - len(self.table)) // 2
        sorted_BRT = clip_BRT.index_select(1, self.table[:, 1].argsort(stable=True))
        return functional.pad(sorted_BRT, (left, left, top, top), value=FILLING)

    def values(self, clip_BRT: Tensor) -> Tensor:
        """The pixels of each patch of the image, padding included, `(B, r, t, P)`."""
        parts = torch.unflatten(self.image(clip_BRT), 1, (-1, self.patch))
        parts = torch.unflatten(parts, 3, (-1, self.patch))
        return parts.transpose(2, 3).flatten(3)

    def inside(self, frames: int) -> Tensor:
        """1 where a pixel belongs to the clip, 0 in padding, `(r, t, P)`."""
        ones = torch.ones(1, *self.input_shape[:1], frames, device=self.table.device)
        return (self.values(2 * ones)[0] > 0).float()

    def embed(self, clip_BRT: Tensor) -> Tensor:
        """Tokens with their positions, `(B, N, C)`."""
        colours = self.image(clip_BRT)[:, None].expand(-1, COLOURS, -1, -1)
        tokens_BNC = self.patch_embed(colours).flatten(2).mT
        return tokens_BNC + self.positions(self.table, self.grid(clip_BRT.shape[-1]))

    def forward(self, clip_BRT: Tensor) -> Tensor:
        """Features `(B, C, r, t)` of the columns that hold any frame; the last axis is time."""
        features_BCrt = super().forward(clip_BRT)
        frames = clip_BRT.shape[-1]
        left = (self.side - frames) // 2
        return features_BCrt[..., left // self.patch : -(-(left + frames) // self.patch)]


class ImageHead(nn.Linear):
    """Pixels of three channels, of which the mean is compared with the clip."""

    def __init__(self, width: int, patch: int) -> None:
        super().__init__(width, patch * patch * COLOURS)

    def forward(self, tokens: Tensor) -> Tensor:
        """Values `(..., P)`."""
        return torch.unflatten(super().forward(tokens), -1, (-1, COLOURS)).mean(-1)


def upstream_decoder(encoder: TokenEncoder) -> Decoder:
    """The decoder that was published with an encoder of this file."""
    width, depth, heads, ratio = encoder.decoder_shape
    if isinstance(encoder, RowBrainLM):
        head = nn.Sequential(nn.Linear(width, width // 2), nn.LeakyReLU(0.1), nn.Linear(width // 2, encoder.patch))
        row_blocks = [PostNormBlock(width, heads, ratio) for _ in range(depth)]
        return Decoder(encoder, width, row_blocks, head, EPS, DROPOUT)
    blocks = [Block(width, heads, ratio, eps=EPS) for _ in range(depth)]
    return Decoder(encoder, width, blocks, ImageHead(width, encoder.patch), EPS)
