"""The transformer block of 2017 and of BERT, with its norms after the residual sums, that TFF and BrainNetTF use.

Legend: B clip; N tokens; C channels; H heads; D channels of a head.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn
from torch.nn import functional


class PostNormBlock(nn.Module):
    """Attention and an MLP, each added to its input and normed after that.

    Parameters
    ----------
    hidden : channels between the two linear maps of the MLP.
    activation : relu, with dropout after it, as Vaswani et al. (2017) have it; gelu, without, as BERT does.
    dropout : rate on attention weights and on both branches.
    """

    def __init__(
        self,
        channels: int,
        heads: int,
        hidden: int,
        activation: Literal["relu", "gelu"],
        dropout: float = 0.1,
        eps: float = 1e-5,
    ) -> None:
        super().__init__()
        if channels % heads:
            raise ValueError(f"{heads} heads do not divide {channels} channels")
        self.heads, self.activation = heads, activation
        self.qkv = nn.Linear(channels, 3 * channels)
        self.proj = nn.Linear(channels, channels)
        self.norm1 = nn.LayerNorm(channels, eps=eps)
        self.linear1 = nn.Linear(channels, hidden)
        self.linear2 = nn.Linear(hidden, channels)
        self.norm2 = nn.LayerNorm(channels, eps=eps)
        self.dropout = nn.Dropout(dropout)

    def forward(self, tokens_BNC: Tensor) -> Tensor:
        """Same shape out."""
        tokens = self.norm1(tokens_BNC + self.dropout(self._attend(tokens_BNC)))
        hidden = self.linear1(tokens)
        hidden = self.dropout(functional.relu(hidden)) if self.activation == "relu" else functional.gelu(hidden)
        return self.norm2(tokens + self.dropout(self.linear2(hidden)))

    def own_flops(self, tokens_BNC: Tensor) -> int:
        """Operations beside those of its linear maps: scores and their product with the values."""
        clips, tokens, channels = tokens_BNC.shape
        return 4 * clips * tokens * tokens * channels

    def _attend(self, tokens_BNC: Tensor) -> Tensor:
        q, k, v = self.qkv(tokens_BNC).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # (B, H, N, D)
        rate = self.dropout.p if self.training else 0.0
        mixed_BHND = functional.scaled_dot_product_attention(q, k, v, dropout_p=rate)
        return self.proj(mixed_BHND.transpose(1, 2).flatten(2))
