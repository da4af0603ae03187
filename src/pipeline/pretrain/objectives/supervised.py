"""Supervised training: the error of an encoder's outputs against a person's class or number.

Legend: B clip; K outputs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from pipeline.models.learners.supervised import Supervised
from pipeline.pretrain.objectives.batch import Batch

Target = Literal["binary", "classes", "number"]


@dataclass(frozen=True, eq=False)
class SupervisedObjective:
    """Binary cross-entropy, cross-entropy, or mean squared error, and what the encoder adds.

    Attributes
    ----------
    learner : with one output for two classes, one a class for several, and one a number.
    target : binary: 0 or 1; classes: the class's number; number: z-scored over the training people. `(B,)` or, where
        several are learned at once, `(B, K)`; NaN where a person's is missing, which is left out of the mean. Integers
        do where none is missing.
    mixup : alpha of the Beta distribution by which two clips and their targets are blended in training; 0: not at all.
        Source: Zhang et al. (2018), mixup; BrainNetTF trains with alpha 1.
    class_weights : of the errors of class 0 and of class 1, where there are two.
    """

    learner: Supervised
    target: Target = "binary"
    mixup: float = 0.0
    class_weights: tuple[float, float] = (1.0, 1.0)

    def loss(self, batch: Batch) -> Tensor:
        """Mean error over the targets that are known, and the encoder's own loss.

        Raises
        ------
        ValueError : the batch has no target.
        """
        if batch.target is None:
            raise ValueError("a batch without targets, which supervised training needs")
        clip, target = batch.clip, batch.target.to(batch.clip.device)
        target = target if target.is_floating_point() else target.float()
        known = target.isfinite()
        class_B = None if self.target == "number" or target.ndim > 1 else target.masked_fill(~known, -1).long()
        target = self._soft(target.masked_fill(~known, 0.0))
        if self.mixup and self.learner.training:
            share, partner_B = self._draw(batch, known)
            clip = share * clip + (1 - share) * clip[partner_B]
            target = share * target + (1 - share) * target[partner_B]
            known = known & known[partner_B]
            class_B = class_B if share >= 0.5 or class_B is None else class_B[partner_B]
        outputs_BK, own = self.learner.regularised(clip, class_B)
        error = self._error(outputs_BK, target)
        return torch.where(known, error, 0.0).sum() / known.sum().clamp(min=1) + own

    def after_step(self, progress: float) -> None:
        """Nothing follows the weights."""

    def _soft(self, target: Tensor) -> Tensor:
        """Targets that can be blended: a class becomes a probability each."""
        if self.target != "classes":
            return target
        return functional.one_hot(target.long(), self.learner.outputs).to(target.dtype)

    def _draw(self, batch: Batch, known: Tensor) -> tuple[float, Tensor]:
        """Share of each clip in its blend, and the clip it is blended with: one with a target, for those with one."""
        draw = batch.draws[0]
        share = float(draw.beta(self.mixup, self.mixup))
        able = (known if known.ndim == 1 else known.any(1)).nonzero()[:, 0]
        partner_B = torch.arange(len(known), device=known.device)
        partner_B[able] = able[torch.from_numpy(draw.permutation(len(able))).to(able.device)]
        return share, partner_B

    def _error(self, outputs_BK: Tensor, target: Tensor) -> Tensor:
        """Error of each target, of the shape of `known`."""
        if self.target == "classes":
            return -(outputs_BK.log_softmax(1) * target).sum(1)
        outputs = outputs_BK[:, 0] if target.ndim == 1 else outputs_BK
        if self.target == "binary":
            negative, positive = self.class_weights
            ratio = outputs.new_tensor(positive / negative)
            return negative * functional.binary_cross_entropy_with_logits(
                outputs, target, reduction="none", pos_weight=ratio
            )
        return (outputs - target).square()
