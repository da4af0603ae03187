"""One optimiser step: the parts of a batch, their gradients added up, clipped, applied, or skipped.

Gradients are of sums, and are divided by the summed weight at the end, so that the same number comes out however the
batch is cut into parts and shared out among processes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import NamedTuple

import torch
from torch import Tensor, nn

from pipeline.errors import InputError
from pipeline.pretrain.engine.average import Average
from pipeline.pretrain.engine.distributed import (
    World,
    accumulate,
    average_buffers,
    gradient_norm,
    sum_gradients,
)
from pipeline.pretrain.engine.optimiser import Optimiser
from pipeline.pretrain.objectives.batch import Total

LossOf = Callable[[range], Total | Tensor]  # sample positions -> their loss; a tensor is the mean over them


@dataclass(frozen=True)
class How:
    """Settings that change how fast a step is, and its numbers by rounding alone.

    Attributes
    ----------
    micro_batch : clips that a process computes at once; None: all of its share.
    sharded : whether each process holds a part of the weights (FSDP2).
    """

    micro_batch: int | None = None
    sharded: bool = False


class Moved(NamedTuple):
    """What a step came to: mean loss and gradient norm (both NaN where it was skipped), samples, votes of all ranks."""

    loss: float
    norm: float
    clips: int
    votes: list[bool]


class Stepper:
    """What takes steps: a learner with what moves it.

    Parameters
    ----------
    root : whose forward pass FSDP2 watches; the learner itself elsewhere.
    """

    def __init__(
        self,
        learner: nn.Module,
        optimiser: Optimiser,
        average: Average | None,
        clip_norm: float,
        world: World,
        how: How,
        root: nn.Module,
    ) -> None:
        self.learner, self.optimiser, self.average, self.root = learner, optimiser, average, root
        self.clip_norm, self.world, self.how = clip_norm, world, how
        # Kept, because to walk through the modules of a small learner takes a fiftieth of its step each time.
        self.parameters = [value for value in learner.parameters() if value.requires_grad]
        self.buffers = [value for value in learner.buffers() if value.is_floating_point()]

    def take(self, loss_of: LossOf, parts: list[range], rate: float, votes: Callable[[], Sequence[bool]]) -> Moved:
        """Take one step; `votes` are asked of this process after its gradients, and come back true where any said so.

        A step whose loss or gradient is not finite moves nothing, running means included.
        """
        buffers = [value.clone() for value in self.buffers]
        total, weight = self._gradients(loss_of, parts)
        clips = sum(map(len, parts))
        said = torch.tensor([0.0, 0.0, clips, *votes()], dtype=torch.float64, device=total.device)
        said[0], said[1] = total, weight
        loss_sum, divisor, seen, *voted = self.world.sum(said).tolist()
        if not self.how.sharded:
            sum_gradients(self.parameters, self.world)
        loss, norm = loss_sum / divisor, gradient_norm(self.parameters, self.world).item() / divisor
        if isfinite(loss) and isfinite(norm):
            self.optimiser.step(rate, min(1.0, self.clip_norm / (norm + 1e-6)) / divisor)
            if self.average:
                self.average.update()
            average_buffers(self.learner, self.world)
        else:
            loss = norm = float("nan")
            for value, before in zip(self.buffers, buffers, strict=True):
                value.copy_(before)
        return Moved(loss, norm, round(seen), [vote > 0 for vote in voted])

    def _gradients(self, loss_of: LossOf, parts: list[range]) -> tuple[Tensor, Tensor]:
        """Leave the gradients of the summed loss in the parameters; the sum, and what it is to be divided by."""
        for value in self.parameters:
            value.grad = None
        totals, weights = [], []
        for number, positions in enumerate(parts):
            accumulate(self.root, last=number == len(parts) - 1)
            found = loss_of(positions)
            if not isinstance(found, Total):
                found = Total(found * len(positions), len(positions))
            torch.autograd.backward(found.total)
            totals.append(found.total.detach())
            weights.append(torch.as_tensor(found.weight, device=found.total.device, dtype=totals[-1].dtype))
        return torch.stack(totals).sum(), torch.stack(weights).sum()


def parts_of(batch: int, step: int, world: World, micro_batch: int | None) -> list[range]:
    """Sample positions that this process sees at a step, in parts that are computed at once.

    The parts of a step are the same however many processes share them, so that what is drawn by part is the same too.

    Raises
    ------
    InputError : the batch cannot be shared out evenly.
    """
    share = share_of(batch, world.size, micro_batch)
    size = micro_batch or share
    start = step * batch + world.rank * share
    return [range(at, at + size) for at in range(start, start + share, size)]


def share_of(batch: int, processes: int, micro_batch: int | None, where: str = "pretrain.batch_clips") -> int:
    """Clips of a step that each process sees.

    Raises
    ------
    InputError : they, or their parts, are not alike; it names `where`.
    """
    share, left = divmod(batch, processes)
    if left or share % (micro_batch or share):
        found = f"{batch} clips, {processes} process(es), {micro_batch or 'no'} micro batch"
        hint = "Change pretrain.batch_clips, compute.gpus, compute.nodes or compute.micro_batch_clips."
        raise InputError(where, found, "a batch that divides evenly", hint)
    return share
