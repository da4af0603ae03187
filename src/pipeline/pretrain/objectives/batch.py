"""What an objective is given, and what it must be able to do.

Legend: B clip; P values of a patch; R parcels; L channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
from torch import Tensor, nn


@dataclass(frozen=True, eq=False)
class Batch:
    """Clips of one optimiser step, or of a part of the held-out ones.

    Attributes
    ----------
    clip : what the encoder takes, `(B, ...)`.
    draws : one generator a sample, a function of the cell's seed and the sample's position; every mask, noise and
        augmentation comes from them, so that a resumed run draws the same.
    progress : how far the training is, 0 at its first step, 1 at its end.
    inside : which values are real, `(*tokens, P)` as the learner's `patchify` lays them out: 0 outside the brain.
    pair : a second clip of the same run that does not overlap the first; only where the objective compares clips.
    hidden : masks that were drawn ahead (`objectives.drawn`); None: they are drawn when the loss is taken.
    target : what a supervised objective predicts, one row a clip.
    person : whose clip each is, a number a person, `(B,)`; samples of one person are never each other's negatives;
        None: all different.
    """

    clip: Tensor
    draws: Sequence[np.random.Generator]
    progress: float = 0.0
    inside: Tensor | None = None
    pair: Tensor | None = None
    target: Tensor | None = None
    person: Tensor | None = None
    hidden: Tensor | None = None


class Total(NamedTuple):
    """A loss as a sum and what it is divided by, so that those of parts of a batch add up."""

    total: Tensor
    weight: Tensor | float


class Objective(Protocol):
    """A loss over batches, and the module whose parameters it trains."""

    @property
    def learner(self) -> nn.Module:
        """Encoder, and whatever the objective adds; all state lies in its parameters and buffers."""

    def loss(self, batch: Batch) -> Tensor:
        """Mean loss of a batch, a scalar with a gradient."""

    def after_step(self, progress: float) -> None:
        """Called after each optimiser step: a moving average follows, a phase begins."""
