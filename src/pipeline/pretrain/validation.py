"""Held-out loss and R^2 on clips and masks that are the same for every cell, with intervals over people.

Legend: B clip of a batch; K clip; M hidden tokens; P values of a patch; C channels; I people; R resamples.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.intervals import Interval, group_weights, percentile_interval
from pipeline.pretrain.objectives.batch import Batch, Objective
from pipeline.pretrain.objectives.reconstruction import Loss, MaskedObjective, Reconstruction
from pipeline.tables import VALIDATION_CONFIDENCE

CLIPS_AT_ONCE = 8
# No part of the configuration: nobody should train a cell again for the sake of another interval.
RESAMPLES, BOOTSTRAP_SEED = 1000, 0


@dataclass(frozen=True)
class Validation:
    """What a model scores on held-out people."""

    loss: Interval
    r2: Interval
    effective_rank: float
    people: int


def validate(
    objective: Objective, encoder: nn.Module, batch: Callable[[range], Batch], person_K: Sequence[str]
) -> Validation:
    """Score a model.

    Parameters
    ----------
    objective : what it was trained by; one that does not reconstruct has a loss a batch, without interval, and no R^2
        (NaN).
    encoder : its frozen part, whose features' rank is measured.
    batch : held-out clips by number.
    person_K : whose clip each is.

    Returns
    -------
    Loss; R^2 = 1 - (squared error) / (squared truth), the share of the signal that is explained beyond predicting 0,
    the mean of a z-scored voxel; both pooled over voxels and people. Effective rank of the mean features of clips.
    """
    sums, pooled = [], []
    with torch.inference_mode():
        for start in range(0, len(person_K), CLIPS_AT_ONCE):
            clips = batch(range(start, min(start + CLIPS_AT_ONCE, len(person_K))))
            if isinstance(objective, MaskedObjective):
                found = objective.reconstruct(clips)
                sums.append(_sums(found, objective.error))
                features = found.features
            else:
                sums.append(_sums_of_loss(objective.loss(clips), len(clips.clip)))
                features = encoder(clips.clip)
            pooled.append(features.flatten(2).mean(-1))
    people, number_K = np.unique(person_K, return_inverse=True)
    totals_I4 = np.zeros((len(people), 4))
    np.add.at(totals_I4, number_K, torch.cat(sums).numpy())
    held_out_loss, r2 = bootstrap(totals_I4)
    if not isinstance(objective, MaskedObjective):  # one number a batch: nothing to resample
        held_out_loss = Interval(held_out_loss.value, np.nan, np.nan)
    return Validation(held_out_loss, r2, effective_rank(torch.cat(pooled)), len(people))


def _sums(found: Reconstruction, loss: Loss) -> Tensor:
    """Of each clip: error in the unit of the loss, squared error, squared truth, voxels; `(B, 4)`."""
    error_MP = found.predicted_MP - found.true_MP
    squared_M = error_MP.square().sum(1)
    error_M = squared_M if loss == "mse" else error_MP.abs().sum(1)
    columns_M4 = torch.stack((error_M, squared_M, found.true_MP.square().sum(1), found.inside_MP.sum(1)), 1)
    sums_B4 = torch.zeros(len(found.features), 4, dtype=torch.float64)
    return sums_B4.index_add_(0, found.clip_M.cpu(), columns_M4.double().cpu())


def _sums_of_loss(loss: Tensor, clips: int) -> Tensor:
    """The same columns where there is but one loss for all clips of a batch, and nothing is reconstructed."""
    row_4 = torch.tensor([loss.item(), torch.nan, torch.nan, 1.0], dtype=torch.float64)
    return row_4.expand(clips, 4)


def bootstrap(totals_I4: np.ndarray) -> tuple[Interval, Interval]:
    """Loss and R^2 over all people, with percentile intervals over resampled people."""
    rng = np.random.default_rng(BOOTSTRAP_SEED)
    resampled_R4 = group_weights(len(totals_I4), RESAMPLES, rng) @ totals_I4

    def interval(score: Callable[[np.ndarray], np.ndarray]) -> Interval:
        return percentile_interval(float(score(totals_I4.sum(0))), score(resampled_R4), VALIDATION_CONFIDENCE)

    return interval(lambda sums: sums[..., 0] / sums[..., 3]), interval(lambda sums: 1 - sums[..., 1] / sums[..., 2])


def effective_rank(features_KC: Tensor) -> float:
    """Exponent of the entropy of the normalised singular values of the centred features; 1 where they are constant,
    NaN where one is not finite.

    Source: Roy and Vetterli (2007), The effective rank.
    """
    centred = (features_KC - features_KC.mean(0)).double()
    if not centred.isfinite().all():
        return float("nan")
    values = torch.linalg.svdvals(centred)
    if not values.sum() > 0:
        return 1.0
    share = values / values.sum()
    return float(torch.exp(torch.special.entr(share).sum()))
