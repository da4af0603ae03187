"""Connectomes of two classes that differ in a few edges, and training on them."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.models.learners.supervised import Supervised
from pipeline.pretrain.objectives.batch import Batch
from pipeline.pretrain.objectives.supervised import SupervisedObjective

PARCELS = 12


def connectomes(seed: int, people: int, effect: float = 0.5) -> tuple[Tensor, Tensor]:
    """Symmetric (B, R, R) of noise (sd 0.3), 1 on the diagonal, and the class (B,) of each.

    The ten planted edges are raised and lowered by turns, the other way round in the other class, so that the two
    classes have the same distribution of values: only where they stand tells.
    """
    rng = np.random.default_rng(seed)
    count = PARCELS * (PARCELS - 1) // 2
    class_B = np.arange(people) % 2
    edges_BE = rng.normal(0, 0.3, (people, count))
    edges_BE[:, :10] += effect * np.outer(2 * class_B - 1, np.tile([1, -1], 5))
    return full(torch.from_numpy(edges_BE).float()), torch.from_numpy(class_B).float()


def full(edges_BE: Tensor) -> Tensor:
    """Upper triangles as symmetric matrices with 1 on the diagonal."""
    i, j = np.triu_indices(PARCELS, 1)
    matrix_BRR = torch.eye(PARCELS).repeat(len(edges_BE), 1, 1)
    matrix_BRR[:, i, j] = edges_BE
    matrix_BRR[:, j, i] = edges_BE
    return matrix_BRR


def shuffled(matrix_BRR: Tensor, seed: int) -> Tensor:
    """The edges of each connectome in an order of its own."""
    rng = np.random.default_rng(seed)
    i, j = np.triu_indices(PARCELS, 1)
    edges = [row[torch.from_numpy(rng.permutation(len(i)))] for row in matrix_BRR[:, i, j]]
    return full(torch.stack(edges))


def batch_of(clip: Tensor, target: Tensor, seed: int = 0) -> Batch:
    return Batch(clip, [np.random.default_rng([seed, n]) for n in range(len(clip))], target=target)


def fit(learner: Supervised, clip: Tensor, target: Tensor, steps: int, lr: float = 3e-3) -> list[float]:
    """Train on all clips at once; the loss of each step, without dropout's noise in the first and the last."""
    objective = SupervisedObjective(learner)
    optimiser = torch.optim.Adam(learner.parameters(), lr=lr)
    losses = []
    for step in range(steps):
        learner.train()
        optimiser.zero_grad()
        loss = objective.loss(batch_of(clip, target, step))
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    return losses


@torch.no_grad()
def accuracy(learner: Supervised, clip: Tensor, target: Tensor) -> float:
    learner.eval()
    return float(((learner(clip)[:, 0] > 0) == (target > 0.5)).float().mean())


def without_gradient(learner: nn.Module) -> list[str]:
    """Parameters that the last backward left without any."""
    return [name for name, value in learner.named_parameters() if value.grad is None or not value.grad.any()]


class Learned(NamedTuple):
    """Loss of each step, and the share of held-out people told apart: by the model, and by one of shuffled edges."""

    losses: list[float]
    told: float
    guessed: float


def learn(build: Callable[[], Supervised], steps: int = 60, lr: float = 3e-3) -> Learned:
    """Train on planted edges, and on the same edges in an order of their own in every connectome."""
    clip, target = connectomes(0, 160)
    held_clip, held_target = connectomes(1, 200)
    torch.manual_seed(0)
    learner = build()
    losses = fit(learner, clip, target, steps, lr)
    told = accuracy(learner, held_clip, held_target)
    torch.manual_seed(0)
    blind = build()
    fit(blind, shuffled(clip, 2), target, steps, lr)
    return Learned(losses, told, accuracy(blind, shuffled(held_clip, 3), held_target))
