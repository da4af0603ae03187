"""What every system of the benchmark is: something that learns a target from some people and then scores everybody.

Axes: M people whose target is known, in one order for every system. A part of a split is TRAIN, VALIDATION or TEST
(`evaluate.splits`).
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import numpy as np


class Reading(NamedTuple):
    """What a system says of everybody after it has learnt from the training part of one split.

    For two classes scores are logits at equal prevalence of both (a reader weighs classes equally), so that 0 is the
    threshold; for a number they are predictions in its own unit. NaN: the system cannot say.
    """

    score_M: np.ndarray
    inner_M: np.ndarray  # scores of people outside the test part by fits that did not see them; NaN for the others
    chosen: str = ""  # the setting that tuning chose, for the record


class RunFeatures(NamedTuple):
    """What stands for each run: its mean, and the clips of its first frames one by one (for identity).

    R runs, K clips, D features.
    """

    full_RD: np.ndarray
    short_RKD: np.ndarray


class Reader(Protocol):
    """A system on one task. It may look at the targets of TRAIN; to choose and to stop, at those of VALIDATION."""

    def __call__(self, target_M: np.ndarray, part_M: np.ndarray) -> Reading:
        """Learn from TRAIN of one split; `target_M` is 0/1, or a number."""
