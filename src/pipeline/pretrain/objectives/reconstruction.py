"""Masked reconstruction: the error of hidden values inside the brain.

Legend: B clip; X Y Z T voxels and frames; M hidden tokens; P values of a patch; C channels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from pipeline.models.learners.reconstruction import Reconstructor
from pipeline.pretrain.objectives.batch import Batch, Total

Loss = Literal["mse", "l1"]
Hide = Callable[[np.random.Generator], Tensor]  # draw of a sample -> its hidden tokens, True where hidden


@dataclass(frozen=True)
class Reconstruction:
    """Hidden tokens, what was predicted for them and what they were; both are 0 outside the brain."""

    clip_M: Tensor  # number of the clip in the batch
    predicted_MP: Tensor
    true_MP: Tensor
    inside_MP: Tensor  # 1 where the value is in the brain
    features: Tensor  # (B, C, ...)


def reconstruct(learner: Reconstructor, clip: Tensor, hidden: Tensor, inside: Tensor | None) -> Reconstruction:
    """Predict the hidden tokens of clips.

    Parameters
    ----------
    clip, hidden : as `Reconstructor` takes them; values outside the brain are 0.
    inside : which values are real, broadcast to `(*tokens, P)`; None: all.
    """
    token_M = hidden.flatten().nonzero()[:, 0]
    tokens = hidden[0].numel()
    predicted_MP, features = learner.predict(clip, hidden)
    true_MP = learner.patchify(clip).flatten(0, -2).index_select(0, token_M)
    if inside is None:
        inside_MP = torch.ones_like(true_MP)
    else:
        inside_NP = inside.expand(*hidden.shape[1:], inside.shape[-1]).flatten(0, -2)
        inside_MP = inside_NP.index_select(0, token_M % tokens).to(clip.dtype)
    clip_M = token_M.div(tokens, rounding_mode="floor")
    return Reconstruction(clip_M, predicted_MP * inside_MP, true_MP * inside_MP, inside_MP, features)


def masked_total(found: Reconstruction, loss: Loss) -> Total:
    """Summed error over hidden values inside the brain, and their number."""
    error_MP = found.predicted_MP.float() - found.true_MP
    total = error_MP.square().sum() if loss == "mse" else error_MP.abs().sum()
    return Total(total, found.inside_MP.sum())


def masked_loss(found: Reconstruction, loss: Loss) -> Tensor:
    """Mean error over hidden values inside the brain."""
    total, weight = masked_total(found, loss)
    return total / weight


@dataclass(frozen=True, eq=False)
class MaskedObjective:
    """Hide tokens, predict them, compare."""

    learner: Reconstructor
    hide: Hide
    error: Loss = "mse"

    def hidden(self, batch: Batch) -> Tensor:
        """Which tokens of a batch are hidden; drawn once, as draws move on."""
        if batch.hidden is not None:
            return batch.hidden
        return torch.stack([self.hide(draw) for draw in batch.draws]).to(batch.clip.device)

    def reconstruct(self, batch: Batch) -> Reconstruction:
        """What the learner predicts for the tokens hidden in a batch."""
        return reconstruct(self.learner, batch.clip, self.hidden(batch), batch.inside)

    def loss(self, batch: Batch) -> Tensor:
        """Mean error over hidden values inside the brain."""
        return masked_loss(self.reconstruct(batch), self.error)

    def after_step(self, progress: float) -> None:
        """Nothing follows the weights."""
