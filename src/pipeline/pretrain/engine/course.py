"""How far a training is: its counters, its history, and whether it has diverged.

A training is a line of optimiser steps. With branches (`schedule`) parts of that line leave the trunk and come back to
it, so a step has two numbers: `taken`, its place in the line, and its step in the schedule.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice
from math import isfinite
from typing import Any, Literal

import torch
from torch import Tensor

from pipeline.pretrain.engine.schedule import Leg

Status = Literal["completed", "diverged", "collapsed", "stopped_early"]

# One row a step taken; `pretrain.stage` adds what follows from these.
COLUMNS = (
    "branch",
    "step",
    "loss",
    "learning_rate",
    "grad_norm",
    "val_loss",
    "val_r2",
    "clips",
    "seconds",
    "data_seconds",
    "peak_memory_mb",
    "energy_j",
)
COLUMN = {name: number for number, name in enumerate(COLUMNS)}
SMOOTHED_STEPS = 10  # steps whose mean loss is compared with the lowest such mean so far
MAX_SKIPPED = 0.02  # share of all steps, but at least 5, that may be non-finite before a cell counts as diverged


@dataclass
class Training:
    """A training so far.

    Attributes
    ----------
    legs : the stretches of its line.
    history : a row of COLUMNS a step taken, NaN for what a step does not have.
    taken : steps done, over all legs.
    clips : samples that went through the model, counted as they did, over all processes.
    lowest : of the smoothed loss.
    recent : losses that are smoothed, None where a step was skipped: it is kept as JSON, which has no NaN.
    aside : lowest and recent of the trunk, while a branch is trained.
    points : what was scored at the end of each branch.
    seconds, data_seconds, energy_j : spent over all starts: in all, waiting for clips, and joules (None where the
        machine does not tell).
    """

    legs: Sequence[Leg]
    history: Tensor
    taken: int = 0
    skipped: int = 0
    clips: int = 0
    lowest: float = sys.float_info.max
    recent: list[float | None] = field(default_factory=list)
    aside: dict[str, Any] = field(default_factory=dict)
    points: list[dict[str, Any]] = field(default_factory=list)
    status: Status | None = None
    seconds: float = 0.0
    data_seconds: float = 0.0
    energy_j: float | None = None

    @classmethod
    def fresh(cls, legs: Sequence[Leg]) -> Training:
        """Nothing done yet."""
        rows = sum(leg.last - leg.first for leg in legs)
        return cls(legs, torch.full((rows, len(COLUMNS)), torch.nan, dtype=torch.float64))

    @property
    def over(self) -> bool:
        """Whether every leg is done."""
        return self.taken == len(self.history)

    @property
    def now(self) -> tuple[int, int]:
        """Number of the leg that the next step belongs to, and its step in the schedule."""
        before = 0
        for number, leg in enumerate(self.legs):
            if self.taken < before + leg.last - leg.first:
                return number, leg.first + self.taken - before
            before += leg.last - leg.first
        raise ValueError("every leg is done")

    @property
    def step(self) -> int:
        """Steps of the trunk that are done: those that the finished encoder has taken."""
        return int((self.history[: self.taken, COLUMN["branch"]] == 0).sum())

    @property
    def losses(self) -> Tensor:
        """Loss of each step of the trunk."""
        rows = self.history[: self.taken]
        return rows[rows[:, COLUMN["branch"]] == 0, COLUMN["loss"]]

    def to_come(self) -> Iterator[int]:
        """Steps in the schedule of those that are still to be taken, in their order."""
        steps = chain.from_iterable(range(leg.first, leg.last) for leg in self.legs)
        return islice(steps, self.taken, None)

    def branch(self, number: int) -> int:
        """0 for a leg of the trunk, else which branch it is, from 1."""
        return sum(leg.branch for leg in self.legs[: number + 1]) if self.legs[number].branch else 0

    def write(self, **values: float) -> None:
        """Put values into the row of the last step taken."""
        row = self.history.numpy()[self.taken - 1]  # the same memory; an element of a tensor takes 5 us
        for name, value in values.items():
            row[COLUMN[name]] = value

    def smooth(self, loss: float) -> float:
        """Take in the loss of a step; the mean over the last steps."""
        self.recent = [*self.recent[1 - SMOOTHED_STEPS :], loss if isfinite(loss) else None]
        finite = [value for value in self.recent if value is not None]
        return sum(finite) / len(finite) if finite else float("nan")


# What a checkpoint holds of a training beside its history; all of it JSON.
COUNTERS = (
    *("taken", "skipped", "clips", "lowest", "recent", "aside", "points", "status"),
    *("seconds", "data_seconds", "energy_j"),
)


def has_diverged(training: Training, loss: float, above: float, falls_to_nothing: bool) -> bool:
    """Whether too many steps were skipped, or the smoothed loss stands far above the lowest it has reached.

    A loss that can fall to nothing may rise tenfold from there: it diverges only above where it started, too.
    """
    if training.skipped > max(5, MAX_SKIPPED * len(training.history)):
        return True
    recent = training.smooth(loss)
    training.lowest = min(training.lowest, recent)
    limit = above * training.lowest
    if falls_to_nothing:
        first = training.history[: min(training.taken, 10 * SMOOTHED_STEPS), COLUMN["loss"]]
        limit = max(limit, first[first.isfinite()][:SMOOTHED_STEPS].mean().item())
    return recent > limit
