"""The head of contrastive training: a clip, or each of its token times, becomes a vector of length 1.

Source: SwiFT's embedding head (Kim et al., 2023, NeurIPS): the mean over tokens, a linear map, a batch norm.

Legend: B clip; C channels; t token times; K numbers of an embedding.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

from pipeline.models.encoder import Encoder


class ContrastiveHead(nn.Module):
    """Vectors of features to embeddings of length 1; it has no bias, for the norm behind it would undo one."""

    def __init__(self, channels: int, width: int = 128) -> None:
        super().__init__()
        self.fc = nn.Linear(channels, width, bias=False)
        self.norm = nn.BatchNorm1d(width)

    def forward(self, vectors_NC: Tensor) -> Tensor:
        """`(N, K)`; in training over the statistics of the N vectors, of which it needs two."""
        return functional.normalize(self.norm(self.fc(vectors_NC)).float(), dim=1)


class Contrastive(nn.Module):
    """An encoder and the head that its features are compared behind.

    Parameters
    ----------
    encoder : any encoder of the registry.
    width : K, numbers of an embedding.
    """

    encoder: Encoder

    def __init__(self, encoder: Encoder, width: int = 128) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = ContrastiveHead(encoder.channels, width)

    def of_clips(self, features: Tensor) -> Tensor:
        """One embedding a clip, `(B, K)`, of features `(B, C, ...)`."""
        return self.head(features.flatten(2).mean(-1) if features.ndim > 2 else features)

    def of_times(self, features: Tensor) -> Tensor:
        """One embedding a token time, `(B, t, K)`, of features `(B, C, ..., t)`.

        Raises
        ------
        ValueError : features without an axis of time.
        """
        if features.ndim < 3:
            raise ValueError(f"features of shape {tuple(features.shape)} have no time: compare whole clips")
        means_BtC = features.flatten(2, -2).mean(2).transpose(1, 2) if features.ndim > 3 else features.transpose(1, 2)
        return self.head(means_BtC.flatten(0, 1)).unflatten(0, means_BtC.shape[:2])

    def forward(self, clip: Tensor) -> Tensor:
        """One embedding a clip, `(B, K)`."""
        return self.of_clips(self.encoder(clip))
