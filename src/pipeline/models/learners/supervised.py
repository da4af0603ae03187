"""Supervised training: the mean of an encoder's features, dropout, one linear map; and losses an encoder adds.

Legend: B clip; C channels; K outputs.
"""

from __future__ import annotations

from abc import abstractmethod

from torch import Tensor, nn

from pipeline.models.encoder import Encoder


class RegularisedEncoder(Encoder):
    """An encoder with losses of its own, which a supervised objective adds to its error."""

    @abstractmethod
    def regularised(self, clip: Tensor, class_B: Tensor | None) -> tuple[Tensor, Tensor]:
        """Features as `forward` gives them, and the encoder's own loss, a scalar; `class_B` is None for numbers."""


class Supervised(nn.Module):
    """An encoder and a linear map from its mean feature to the outputs.

    Parameters
    ----------
    encoder : any encoder of the registry; its features are averaged over all axes after the channels.
    outputs : 1 for a number or two classes, else one for each number or class.
    dropout : share of the mean feature's channels that is dropped in training.
    """

    encoder: Encoder
    head: nn.Module

    def __init__(self, encoder: Encoder, outputs: int = 1, dropout: float = 0.0) -> None:
        super().__init__()
        self.encoder, self.outputs = encoder, outputs
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(encoder.channels, outputs)

    def forward(self, clip: Tensor) -> Tensor:
        """Outputs `(B, K)` of clips, as the encoder takes them: logits, or z-scored numbers."""
        return self.read(self.encoder(clip))

    def read(self, features: Tensor) -> Tensor:
        """Outputs `(B, K)` of features `(B, C, ...)`."""
        features_BC = features.flatten(2).mean(-1) if features.ndim > 2 else features
        return self.head(self.dropout(features_BC))

    def regularised(self, clip: Tensor, class_B: Tensor | None) -> tuple[Tensor, Tensor]:
        """Outputs `(B, K)`, and the encoder's own loss: 0 where it has none."""
        if isinstance(self.encoder, RegularisedEncoder):
            features, loss = self.encoder.regularised(clip, class_B)
            return self.read(features), loss
        outputs_BK = self(clip)
        return outputs_BK, outputs_BK.new_zeros(())
