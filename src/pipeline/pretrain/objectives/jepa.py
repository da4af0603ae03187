"""JEPA: features of blocks of parcels and times, predicted from a block that shares neither with them.

Some parcels are observed, in one window of times. Three blocks are predicted: other parcels at observed times, observed
parcels at other times, and other parcels at other times. Their sizes are the same for every clip, so that a mask is a
function of its sample alone and none has to be cut to the shortest of a batch, as the public code does.

Source: Dong et al. (2024), Brain-JEPA, section 3.3. The shares are the means that its public ranges come to once the
predicted parcels and times are taken out of the observed block.

Legend: B clip; R parcels; t token times.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from pipeline.models.learners.joint_embedding import JointEmbedding
from pipeline.pretrain.objectives.batch import Batch

Shares = tuple[float, float]  # of parcels, of token times
MOMENTUM = (0.996, 1.0)


def _is_pair(value: Any) -> bool:
    """Two numbers; a configuration gives them as a list."""
    return (
        isinstance(value, list | tuple)
        and len(value) == 2
        and all(isinstance(each, int | float) and not isinstance(each, bool) for each in value)
    )


@dataclass(frozen=True)
class BlockMasks:
    """Which tokens are seen and which are predicted.

    Attributes
    ----------
    parcels, times : the grid of tokens.
    observed : shares of all parcels and of all times that are seen.
    across_parcels : of all parcels and times, predicted at other parcels and observed times.
    across_times : predicted at observed parcels and other times.
    across_both : predicted at other parcels and other times.

    Every share comes to at least one parcel and one time, and to no more than there are.

    Raises
    ------
    ValueError : nothing would be left to predict, or shares that are no pair above 0 and up to 1.
    """

    parcels: int
    times: int
    observed: Shares = (0.45, 0.6)
    across_parcels: Shares = (0.5, 0.4)
    across_times: Shares = (0.1, 0.3)
    across_both: Shares = (0.12, 0.3)

    def __post_init__(self) -> None:
        if self.parcels < 2 or self.times < 2:
            raise ValueError(f"a grid of {self.parcels} parcels and {self.times} times, where both need two at least")
        for name in ("observed", "across_parcels", "across_times", "across_both"):
            shares = getattr(self, name)
            if not _is_pair(shares) or not all(0 < share <= 1 for share in shares):
                raise ValueError(f"{name} {shares!r}, where two shares above 0 and up to 1 are needed: parcels, times")

    def size(self, shares: Shares, parcels: int, times: int) -> tuple[int, int]:
        """Parcels and times of a block that has so many to choose from."""
        wanted = round(shares[0] * self.parcels), round(shares[1] * self.times)
        return min(max(1, wanted[0]), parcels), min(max(1, wanted[1]), times)

    @property
    def seen(self) -> tuple[int, int]:
        """Parcels and times of the observed block; one of each at least is left over."""
        return self.size(self.observed, self.parcels - 1, self.times - 1)

    def draw(self, draw: np.random.Generator) -> tuple[Tensor, Tensor]:
        """Masks of the observed and of the predicted tokens, `(R, t)` each; they have no token in common."""
        parcels, times = self.seen
        order_R = draw.permutation(self.parcels)
        first = int(draw.integers(self.times - times + 1))
        seen_R, other_R = order_R[:parcels], order_R[parcels:]
        seen_t = np.arange(first, first + times)
        other_t = np.setdiff1d(np.arange(self.times), seen_t)
        visible_Rt, predicted_Rt = np.zeros((2, self.parcels, self.times), dtype=bool)
        visible_Rt[np.ix_(seen_R, seen_t)] = True
        blocks = (
            (self.across_parcels, other_R, seen_t),
            (self.across_times, seen_R, other_t),
            (self.across_both, other_R, other_t),
        )
        for shares, parcel_R, time_t in blocks:
            rows, columns = self.size(shares, len(parcel_R), len(time_t))
            chosen_R = draw.choice(parcel_R, rows, replace=False)
            if time_t is seen_t:  # other times are what the window leaves, on both sides of it
                start = int(draw.integers(len(seen_t) - columns + 1))
                chosen_t = seen_t[start : start + columns]
            else:
                chosen_t = draw.choice(time_t, columns, replace=False)
            predicted_Rt[np.ix_(chosen_R, chosen_t)] = True
        return torch.from_numpy(visible_Rt), torch.from_numpy(predicted_Rt)


@dataclass(frozen=True, eq=False)
class JepaObjective:
    """Predict the teacher's features of hidden blocks; the teacher follows the encoder.

    Attributes
    ----------
    momentum : what the teacher keeps of itself at a step, at the start and at the end of training.

    Raises
    ------
    ValueError : a momentum that is no pair from 0 to 1.
    """

    learner: JointEmbedding
    masks: BlockMasks
    momentum: tuple[float, float] = field(default=MOMENTUM)

    def __post_init__(self) -> None:
        if not _is_pair(self.momentum) or not all(0 <= share <= 1 for share in self.momentum):
            found = f"momentum {self.momentum!r}"
            raise ValueError(f"{found}, where two numbers from 0 to 1 are needed: at the start, at the end")

    def loss(self, batch: Batch) -> Tensor:
        """Mean Huber error of the predicted features, whose true values have variance 1."""
        drawn = [self.masks.draw(draw) for draw in batch.draws]
        visible, targets = (torch.stack(masks) for masks in zip(*drawn, strict=True))
        taught_BMC = self.learner.taught(batch.clip, targets)
        predicted_BMC = self.learner.predict(batch.clip, visible, targets)
        return functional.smooth_l1_loss(predicted_BMC.float(), taught_BMC.float())

    def after_step(self, progress: float) -> None:
        """Move the teacher towards the encoder."""
        first, last = self.momentum
        self.learner.follow(first + (last - first) * progress)
