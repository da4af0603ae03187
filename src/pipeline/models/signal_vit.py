"""Signal ViT: a plain transformer on patches of one-dimensional signals, for the ceilings of known parameters.

What it may be asked is how its patches are embedded (a linear map; a stack of convolutions; a map of windows twice as
long that overlap by half) and how positions are told (learned; sines; rotary; not at all).

Source: Dosovitskiy et al. (2021), ViT; Xiao et al. (2021), early convolutions; Su et al. (2021), rotary positions.

Legend: B signal; L samples; P samples of a patch; t tokens; C channels; H heads; D channels of a head.
"""

from __future__ import annotations

from functools import partial
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from pipeline.models.description import Description
from pipeline.models.encoder import Encoder
from pipeline.models.learners.supervised import Supervised
from pipeline.models.parts.transformer import Attention, Block, sine_positions

Embedding = Literal["linear", "convolution", "window"]
Positions = Literal["learned", "sine", "rotary", "none"]


class LinearEmbedding(nn.Module):
    """One linear map a patch: `(B, L)` to `(B, t, C)`."""

    def __init__(self, patch: int, width: int) -> None:
        super().__init__()
        self.patch = patch
        self.fc = nn.Linear(patch, width)

    def forward(self, signal_BL: Tensor) -> Tensor:
        """Embed every patch."""
        return self.fc(torch.unflatten(signal_BL, 1, (-1, self.patch)))


class WindowEmbedding(nn.Module):
    """One linear map of windows of two patches' length, a patch apart and centred on it; zeros beyond the ends."""

    def __init__(self, patch: int, width: int) -> None:
        super().__init__()
        self.sides = (patch // 2, patch - patch // 2)
        self.conv = nn.Conv1d(1, width, 2 * patch, stride=patch)

    def forward(self, signal_BL: Tensor) -> Tensor:
        """Embed every window."""
        return self.conv(functional.pad(signal_BL, self.sides)[:, None]).transpose(1, 2)


class ConvolutionEmbedding(nn.Module):
    """Convolutions of 3 samples, each halving the samples and doubling the channels, until a patch is one token."""

    def __init__(self, patch: int, width: int) -> None:
        super().__init__()
        steps = patch.bit_length() - 1
        if patch < 2 or 2**steps != patch:
            raise ValueError(f"patches of {patch} samples, where convolutions that halve need a power of two")
        channels = [1, *(max(1, width >> (steps - 1 - step)) for step in range(steps))]
        self.convs = nn.ModuleList(
            nn.Conv1d(before, after, 3, stride=2, padding=1) for before, after in pairwise(channels)
        )
        self.proj = nn.Linear(width, width)

    def forward(self, signal_BL: Tensor) -> Tensor:
        """Embed the signal."""
        maps_BCL = signal_BL[:, None]
        for conv in self.convs:
            maps_BCL = functional.gelu(conv(maps_BCL))
        return self.proj(maps_BCL.transpose(1, 2))


class RotaryAttention(Attention):
    """Attention whose queries and keys are turned by angles that grow with their place.

    A score then depends on the distance of two tokens alone. The first half of a head's channels pairs with the second.
    """

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__(channels, heads)
        if channels // heads % 2:
            raise ValueError(f"heads of {channels // heads} channels, where rotary positions need an even number")

    def forward(self, tokens_BtC: Tensor) -> Tensor:
        """Same shape out."""
        q, k, v = self.qkv(tokens_BtC).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # (B, H, t, D)
        places = torch.arange(tokens_BtC.shape[1], device=tokens_BtC.device)
        sine_tD, cosine_tD = sine_positions(places, q.shape[-1]).to(q.dtype).chunk(2, dim=1)
        mixed_BHtD = functional.scaled_dot_product_attention(
            rotate(q, sine_tD, cosine_tD), rotate(k, sine_tD, cosine_tD), v
        )
        return self.proj(mixed_BHtD.transpose(1, 2).flatten(2))


def rotate(vectors_BHtD: Tensor, sine_tD: Tensor, cosine_tD: Tensor) -> Tensor:
    """Turn each pair of channels (d, d + D/2) by the angle whose sine and cosine, `(t, D/2)`, are given."""
    first, second = vectors_BHtD.chunk(2, dim=-1)
    return torch.cat([first * cosine_tD - second * sine_tD, first * sine_tD + second * cosine_tD], dim=-1)


class SignalViT(Encoder):
    """The encoder.

    Parameters
    ----------
    width, depth, heads : channels, blocks and attention heads.
    patch : samples of a patch.
    length : samples of a signal in training; learned positions reach no farther, others any length.
    embedding : how a patch becomes a token.
    positions : how a token is told its place.

    Raises
    ------
    ValueError : a length that patches do not tile, or heads that do not divide the width.
    """

    pos_embed: nn.Parameter | None

    def __init__(
        self,
        width: int = 256,
        depth: int = 6,
        heads: int = 8,
        patch: int = 16,
        length: int = 1024,
        embedding: Embedding = "linear",
        positions: Positions = "learned",
    ) -> None:
        super().__init__()
        embeddings = {"linear": LinearEmbedding, "convolution": ConvolutionEmbedding, "window": WindowEmbedding}
        if embedding not in embeddings or positions not in ("learned", "sine", "rotary", "none"):
            raise ValueError(f"embedding '{embedding}' with positions '{positions}', which are not among the choices")
        self.patch, self.length, self.positions = patch, length, positions
        self.frames_per_token, tokens = patch, self.token_times(length)
        self.patch_embed = embeddings[embedding](patch, width)
        learned = nn.Parameter(nn.init.trunc_normal_(torch.empty(tokens, width), std=0.02))
        self.register_parameter("pos_embed", learned if positions == "learned" else None)
        attention = RotaryAttention if positions == "rotary" else Attention
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(depth))
        for block in self.blocks:
            block.attn = attention(width, heads)
        self.norm = nn.LayerNorm(width)

    @property
    def channels(self) -> int:
        """Channels of the features."""
        return self.norm.normalized_shape[0]

    @property
    def input_shape(self) -> tuple[int, ...]:
        """`(L,)`, the samples of a signal in training."""
        return (self.length,)

    def token_times(self, samples: int) -> int:
        """Tokens of a signal; ValueError where patches do not tile it."""
        if samples % self.patch:
            raise ValueError(f"a signal of {samples} samples, which patches of {self.patch} do not tile")
        return samples // self.patch

    def embed(self, signal_BL: Tensor) -> Tensor:
        """Tokens `(B, t, C)` before any of them sees another, positions included."""
        tokens = self.token_times(signal_BL.shape[1])
        embedded_BtC: Tensor = self.patch_embed(signal_BL)
        if self.pos_embed is not None:
            if tokens > len(self.pos_embed):
                raise ValueError(f"a signal of {tokens} tokens, but positions were learned for {len(self.pos_embed)}")
            return embedded_BtC + self.pos_embed[:tokens]
        if self.positions == "sine":
            places = torch.arange(tokens, device=signal_BL.device)
            return embedded_BtC + sine_positions(places, self.channels).to(embedded_BtC.dtype)
        return embedded_BtC

    def forward(self, signal_BL: Tensor) -> Tensor:
        """Features `(B, C, t)` of signals `(B, L)`; the last axis is time."""
        tokens = self.embed(signal_BL)
        for block in self.blocks:
            tokens = block(tokens)
        return self.norm(tokens).transpose(1, 2)


DESCRIPTION = Description(
    name="signal_vit",
    input="signal",
    objective="supervised",
    mixing="attention among all tokens of a signal",
    source="Dosovitskiy et al. (2021), ICLR, in one dimension",
    build=SignalViT,
    sizes={
        "0.1m": {"width": 64, "depth": 2, "heads": 2},
        "0.6m": {"width": 128, "depth": 3, "heads": 4},
        "4.8m": {"width": 256, "depth": 6, "heads": 8},
    },
    default="4.8m",
    learner=partial(Supervised, outputs=1),
    published={"4.8m": "about 4.9 M"},
)
