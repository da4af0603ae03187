"""Clips of runs: which clip stands at a position of training, and its frames from a bounded cache.

Axes: T frames, V in-mask voxels.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pipeline.bold.shards import Shard
from pipeline.errors import InputError


class Runs:
    """Runs by number, each decoded once and kept while there is room.

    Memory is bounded by `cache_mb` of float32 frames, or by one run where that is larger.
    """

    def __init__(
        self, entries: Sequence[Mapping[str, Any]], cache_mb: int, expected: Mapping[str, Any] | None = None
    ) -> None:
        """`entries` are those of a manifest; each shard's contract must agree with `expected` when it is opened."""
        self.entries = list(entries)
        self._expected = dict(expected or {})
        self._room = cache_mb * 2**20
        self._kept: OrderedDict[int, np.ndarray] = OrderedDict()

    def __len__(self) -> int:
        """Number of runs."""
        return len(self.entries)

    def frames(self, run: int) -> int:
        """Frames of a run."""
        return int(self.entries[run]["frames"])

    def run(self, run: int) -> np.ndarray:
        """All frames of a run, z-scored per voxel over the run, (T, V) float32; not to be written to."""
        if run not in self._kept:
            bold_TV = Shard.open(self.entries[run]["path"], self._expected).read()
            bold_TV.flags.writeable = False
            self._kept[run] = bold_TV
            while len(self._kept) > 1 and sum(kept.nbytes for kept in self._kept.values()) > self._room:
                self._kept.popitem(last=False)
        self._kept.move_to_end(run)
        return self._kept[run]

    def clip(self, run: int, start: int, frames: int) -> np.ndarray:
        """Frames `start` to `start + frames` of a run, (frames, V) float32."""
        if not 0 <= start <= self.frames(run) - frames:
            raise IndexError(f"frames {start} to {start + frames} of a run of {self.frames(run)}")
        return self.run(run)[start : start + frames]


def clip_position(seed: int, position: int, frame_counts: Sequence[Sequence[int]], context: int) -> tuple[int, int]:
    """Run and first frame of the clip at a global sample position; the same for the same arguments, always.

    Every person is equally likely, then every run of the person that is long enough, then every start.
    `frame_counts` holds the frames of each person's runs; runs are numbered through, person after person.

    Raises
    ------
    InputError : a person has no run of `context` frames.
    """
    rng = np.random.Generator(np.random.Philox(key=[seed % 2**64, position]))
    person = int(rng.integers(len(frame_counts)))
    long_enough = [run for run, frames in enumerate(frame_counts[person]) if frames >= context]
    if not long_enough:
        found = f"runs of {', '.join(map(str, frame_counts[person]))} frames"
        hint = "Raise shards.min_frames, or shorten pretrain.context_frames."
        raise InputError(f"person {person}", found, f"a run of {context} frames", hint)
    run = long_enough[int(rng.integers(len(long_enough)))]
    start = int(rng.integers(frame_counts[person][run] - context + 1))
    return sum(len(runs) for runs in frame_counts[:person]) + run, start
