"""The plain transformer on a row of tokens that parcel, flat-map and signal encoders share.

Legend: B clip; N tokens; C channels; H heads; D channels of a head.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from pipeline.models.parts.layers import DropPath, Mlp


class Attention(nn.Module):
    """Multi-head attention among all tokens of a clip, through the fused kernel."""

    def __init__(self, channels: int, heads: int, bias: bool = True) -> None:
        super().__init__()
        if channels % heads:
            raise ValueError(f"{heads} heads do not divide {channels} channels")
        self.heads = heads
        self.qkv = nn.Linear(channels, 3 * channels, bias=bias)
        self.proj = nn.Linear(channels, channels)

    def forward(self, tokens_BNC: Tensor) -> Tensor:
        """Same shape out."""
        q, k, v = self.qkv(tokens_BNC).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # (B, H, N, D)
        mixed_BHND = functional.scaled_dot_product_attention(q, k, v)
        return self.proj(mixed_BHND.transpose(1, 2).flatten(2))

    def own_flops(self, tokens_BNC: Tensor) -> int:
        """Operations beside those of its linear maps: scores and their product with the values."""
        clips, tokens, channels = tokens_BNC.shape
        return 4 * clips * tokens * tokens * channels


class Block(nn.Module):
    """Attention, then an MLP, each behind a norm and beside a residual."""

    def __init__(
        self, channels: int, heads: int, ratio: int = 4, bias: bool = True, eps: float = 1e-5, drop_path: float = 0.0
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(channels, eps=eps)
        self.attn = Attention(channels, heads, bias)
        self.norm2 = nn.LayerNorm(channels, eps=eps)
        self.mlp = Mlp(channels, ratio)
        self.drop_path = DropPath(drop_path)

    def forward(self, tokens_BNC: Tensor) -> Tensor:
        """Same shape out."""
        tokens = tokens_BNC + self.drop_path(self.attn(self.norm1(tokens_BNC)))
        return tokens + self.drop_path(self.mlp(self.norm2(tokens)))


def sine_positions(places: Tensor, channels: int) -> Tensor:
    """Fixed positions `(N, channels)` of places `(N,)`: sines, then cosines, of wavelengths from 2 pi to 20,000 pi.

    Source: Vaswani et al. (2017), Attention is all you need.
    """
    if channels % 2:
        raise ValueError(f"{channels} channels, where sines and cosines need an even number")
    rates = 10_000.0 ** (-torch.arange(channels // 2, device=places.device) / (channels / 2))
    angles = places[:, None].float() * rates
    return torch.cat([angles.sin(), angles.cos()], dim=1)
