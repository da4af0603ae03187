"""Clips of runs: which clip stands at a position of training, and its frames from the shard.

Axes: T frames, V in-mask voxels.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from threading import Lock
from typing import Any

import numpy as np

from pipeline.bold.reader import Shard
from pipeline.errors import InputError

MOST_OPEN = 1024  # shards whose contract and index are kept, some 20 kB each


class Runs:
    """Runs by number. A clip is read when it is asked for, because that takes a fiftieth of decoding its run.

    Memory: the clips handed out, and what is known of the last 1,024 runs. Threads may share it.
    """

    def __init__(self, entries: Sequence[Mapping[str, Any]], expected: Mapping[str, Any] | None = None) -> None:
        """`entries` are those of a manifest; each shard's contract must agree with `expected` when it is opened."""
        self.entries = list(entries)
        self._expected = dict(expected or {})
        self._opened: OrderedDict[int, Shard] = OrderedDict()
        self._lock = Lock()

    def __len__(self) -> int:
        """Number of runs."""
        return len(self.entries)

    def frames(self, run: int) -> int:
        """Frames of a run."""
        return int(self.entries[run]["frames"])

    def shard(self, run: int) -> Shard:
        """The shard of a run; a chunk of it is verified once while it stays open."""
        with self._lock:
            shard = self._opened.get(run)
            if shard is None:
                shard = self._opened[run] = Shard.open(self.entries[run]["path"], self._expected)
                if len(self._opened) > MOST_OPEN:
                    self._opened.popitem(last=False)
            self._opened.move_to_end(run)
        return shard

    def clip(self, run: int, start: int, frames: int) -> np.ndarray:
        """Frames `start` to `start + frames` of a run, z-scored per voxel over the run, (frames, V) float32."""
        if not 0 <= start <= self.frames(run) - frames:
            raise IndexError(f"frames {start} to {start + frames} of a run of {self.frames(run)}")
        return self.shard(run).read(start, start + frames)


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
