"""Learning rate of a step, and the way through a training of which a schedule may make several end points.

Steps count from 0. A warm-up-stable-decay training has a trunk, and branches that leave it: each cools the rate down to
nothing and ends as if its training had been planned that short, while the trunk goes on at the full rate from where the
branch left it. One training then gives a point of a scaling law at every branch.

Source: Haegele et al. (2024), Scaling laws and compute-optimal training beyond fixed training durations, NeurIPS.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

Schedule = Literal["cosine", "warmup-stable-decay"]


@dataclass(frozen=True)
class Leg:
    """Steps that are taken one after another: `first` to before `last`.

    Attributes
    ----------
    falls_from : step of the last full rate, from which on it falls; None: it does not fall in this leg.
    falls_to : step at which it would be nothing, the one behind the last where it falls in this leg.
    branch : whether the weights at its end are scored and dropped, and the trunk goes on from `first`.
    """

    first: int
    last: int
    falls_from: int | None
    falls_to: int
    branch: bool


def route(
    steps: int, schedule: Schedule, warmup: float, decay: float = 0.2, branches: Sequence[float] = ()
) -> list[Leg]:
    """The legs of a training in the order in which they are taken.

    Parameters
    ----------
    steps : of the trunk.
    warmup : share of the steps with rising rate.
    decay : share with falling rate, of the trunk's steps and of those up to a branch's end.
    branches : shares of the steps at which branches end, in any order; a cosine has none.

    Raises
    ------
    ValueError : two branches that end at one step, or one at the trunk's end; or a rate that would fall before it has
        risen.
    """
    if schedule == "cosine":
        if branches:
            raise ValueError(f"branches {tuple(branches)} of a cosine; only warmup-stable-decay has a trunk")
        return [Leg(0, steps, rising_steps(steps, warmup), steps, branch=False)]
    if steps == 0:
        return [Leg(0, 0, None, 0, branch=False)]
    ends = _ends(steps, branches)
    falls = {end: end - max(1, round(decay * end)) for end in (*ends, steps)}
    for end, start in falls.items():
        if start < (rising := rising_steps(steps, warmup)):
            found = f"a rate that falls from step {start}, to end at step {end}, but rises until step {rising}"
            raise ValueError(f"{found}; choose later branches, or smaller 'warmup' or 'decay'")
    legs, here = [], 0
    for end in ends:
        if here < falls[end]:  # two branches may leave the trunk at one step
            legs.append(Leg(here, falls[end], None, falls[end], branch=False))
        legs.append(Leg(falls[end], end, falls[end], end, branch=True))
        here = falls[end]
    return [*legs, Leg(here, steps, falls[steps], steps, branch=False)]


def _ends(steps: int, branches: Sequence[float]) -> list[int]:
    """Steps at which branches end, in order."""
    ends = sorted(round(share * steps) for share in branches)
    if len({*ends, steps}) <= len(ends):
        raise ValueError(f"branches {tuple(branches)} of {steps} steps end at {[*ends, steps]}, some at the same step")
    return ends


def rising_steps(steps: int, warmup: float) -> int:
    """Steps of the warm-up."""
    return max(1, round(warmup * steps))


def learning_rate(step: int, leg: Leg, steps: int, peak: float, warmup: float, schedule: Schedule) -> float:
    """Linear warm-up over the first `warmup` share of `steps`, then the fall of a schedule.

    A cosine falls over half a wave to the end; else the rate stays, and falls as 1 - root of the share of the fall that
    is over. The rate of the first step is already above zero, that of the last one still is.
    """
    rising = rising_steps(steps, warmup)
    if step < rising:
        return peak * (step + 1) / rising
    if schedule == "cosine":
        return peak * 0.5 * (1 + math.cos(math.pi * (step - rising) / max(1, steps - rising)))
    if leg.falls_from is None or step < leg.falls_from:
        return peak
    return peak * (1 - math.sqrt((step - leg.falls_from) / (leg.falls_to - leg.falls_from)))


def total(legs: Iterable[Leg]) -> int:
    """Optimiser steps over all legs: those of branches come on top of the trunk's."""
    return sum(leg.last - leg.first for leg in legs)
