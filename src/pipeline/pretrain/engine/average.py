"""A moving average of the weights, which is often better than the weights themselves and costs no training."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from pipeline.pretrain.engine.distributed import local

Tensors = dict[str, Tensor]


class Average:
    """The average of the trained parameters of a learner over its steps, the latest with the largest share.

    Update n, from 0, keeps min(`keep`, (1 + n) / (10 + n)) of the average: else it would hold fresh random weights for
    as many steps as it looks back, which is all of a short training. Weights are float32 whatever the precision of
    products is, and so is their average. Buffers are not averaged: the running statistics of norms are averages
    already, and stay those of the learner.

    Parameters
    ----------
    keep : largest share that an update keeps; .999 looks back about 1,000 steps.

    Attributes
    ----------
    state : the average by the names of the parameters, sharded as they are, and how often it was updated.

    Source: Polyak and Juditsky (1992), Acceleration of stochastic approximation by averaging; the early shares are
    those of TensorFlow's `ExponentialMovingAverage(num_updates)`.
    """

    def __init__(self, learner: nn.Module, keep: float) -> None:
        self.keep = keep
        self.parameters = {name: value for name, value in learner.named_parameters() if value.requires_grad}
        self.state: Tensors = {name: value.detach().clone() for name, value in self.parameters.items()}
        self.state["updates"] = torch.zeros((), dtype=torch.int64)

    @torch.no_grad()
    def update(self) -> None:
        """Take in the weights as they are now."""
        updates = int(self.state["updates"])
        means, values = zip(*self._pairs(), strict=True)
        torch._foreach_lerp_([*means], [*values], 1 - min(self.keep, (1 + updates) / (10 + updates)))
        self.state["updates"] += 1

    @contextmanager
    def swapped(self) -> Iterator[None]:
        """The learner has the averaged weights while the block runs, and its own, bit for bit, after it."""
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    @torch.no_grad()
    def apply(self) -> None:
        """Give the learner the averaged weights for good."""
        for mean, value in self._pairs():
            value.copy_(mean)

    @torch.no_grad()
    def _exchange(self) -> None:
        """One tensor at a time, so that a GPU that holds weights and average needs no room for a third copy."""
        for mean, value in self._pairs():
            own = value.clone()
            value.copy_(mean)
            mean.copy_(own)

    def _pairs(self) -> Iterator[tuple[Tensor, Tensor]]:
        for name, value in self.parameters.items():
            yield local(self.state[name]), local(value)
