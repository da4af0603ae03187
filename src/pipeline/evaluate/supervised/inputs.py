"""What networks see of people: one array each, or clips of their scans.

Legend: M people; B people of a step; K scans of a person; T frames; V columns of a scan.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from pipeline.bold.normalise import zscore
from pipeline.errors import InputError
from pipeline.evaluate.supervised.fit import CPU
from pipeline.models.parts.voxels import Raster

TOGETHER = 64  # people scored at once


class Scan(Protocol):
    """A run: a `bold.reader.Shard`, or anything that stands in for one (at another repetition time, say)."""

    @property
    def folder(self) -> Path:
        """What errors name."""

    @property
    def frames(self) -> int:
        """Frames that it has."""

    def read(self, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Frames `start` to `stop`, z-scored by column over the run, (T, V) float32."""


@dataclass(frozen=True, eq=False)
class Arrays:
    """One array a person, always the same."""

    values_M: np.ndarray  # (M, ...)
    device: torch.device = CPU
    at_once: int | None = None

    def drawn(self, people_B: np.ndarray, _draw: np.random.Generator) -> Tensor:
        """Their arrays."""
        return torch.from_numpy(np.asarray(self.values_M[people_B], dtype=np.float32)).to(self.device)

    def whole(self, people_B: np.ndarray) -> Iterator[tuple[np.ndarray, Tensor]]:
        """Their arrays, 64 people at a time."""
        for first in range(0, len(people_B), TOGETHER):
            people = people_B[first : first + TOGETHER]
            yield people, torch.from_numpy(np.asarray(self.values_M[people], dtype=np.float32)).to(self.device)


@dataclass(frozen=True, eq=False)
class Scans:
    """Clips of scans: for training one a person at random, for scoring all that follow each other from the start.

    Attributes
    ----------
    scans_MK : scans of each person; those shorter than a clip are left out.
    raster : where their columns lie in what the network sees; it decides the device.
    context : frames a clip.
    limit : scans end after this many frames, and those alone are z-scored; None: whole runs.
    at_once : clips that are in memory, as the network takes them, at one time.
    keep_bytes : whole scans are kept in memory, those that come first, as long as so many bytes hold them; parcel
        series that are resampled at every reading gain most.

    Raises
    ------
    InputError : a person has no scan of one clip.
    """

    scans_MK: Sequence[Sequence[Scan]]
    raster: Raster
    context: int
    limit: int | None = None
    at_once: int | None = 8
    keep_bytes: int = 1 << 29
    _kept: dict[tuple[int, int], np.ndarray] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        """Refuse people without a clip now, not in the middle of a training."""
        for scans in self.scans_MK:
            if not any(self._frames(scan) >= self.context for scan in scans):
                where = scans[0].folder if scans else "a person's scans"
                found = f"{max(map(self._frames, scans), default=0)} frames"
                hint = "Raise shards.min_frames, or shorten the context."
                raise InputError(where, found, f"at least one clip of {self.context}", hint)

    def drawn(self, people_B: np.ndarray, draw: np.random.Generator) -> Tensor:
        """A clip of each person: every scan that is long enough alike, then every start."""
        return self._lay([self._clip(person, draw) for person in people_B.tolist()])

    def whole(self, people_B: np.ndarray) -> Iterator[tuple[np.ndarray, Tensor]]:
        """All their clips, without overlap; beside those that are kept, one scan is in memory at a time."""
        for person in people_B.tolist():
            for run in self._long(person):
                bold_TV = self._read(person, run, 0, self._frames(self.scans_MK[person][run]))
                starts = range(0, len(bold_TV) - self.context + 1, self.context)
                clips_KTV = [bold_TV[start : start + self.context] for start in starts]
                together = self.at_once or len(clips_KTV)
                for first in range(0, len(clips_KTV), together):
                    part = clips_KTV[first : first + together]
                    yield np.full(len(part), person), self._lay(part)

    def _clip(self, person: int, draw: np.random.Generator) -> np.ndarray:
        runs = self._long(person)
        run = runs[int(draw.integers(len(runs)))]
        start = int(draw.integers(self._frames(self.scans_MK[person][run]) - self.context + 1))
        return self._read(person, run, start, start + self.context)

    def _read(self, person: int, run: int, start: int, stop: int) -> np.ndarray:
        scan = self.scans_MK[person][run]
        kept_TV = self._kept.get((person, run))
        if kept_TV is None:
            bytes_kept = sum(each.nbytes for each in self._kept.values())
            if bytes_kept + 4 * self._frames(scan) * len(self.raster.index_V) > self.keep_bytes:
                return self._scan(scan, start, stop)
            kept_TV = self._kept[person, run] = self._scan(scan, 0, self._frames(scan))
        return kept_TV[start:stop]

    def _scan(self, scan: Scan, start: int, stop: int) -> np.ndarray:
        """Of a scan cut short, the mean and SD are those of what is left, which is why all of that is read."""
        return scan.read(start, stop) if self.limit is None else zscore(scan.read(0, self.limit))[0][start:stop]

    def _long(self, person: int) -> list[int]:
        return [run for run, scan in enumerate(self.scans_MK[person]) if self._frames(scan) >= self.context]

    def _frames(self, scan: Scan) -> int:
        return scan.frames if self.limit is None else min(scan.frames, self.limit)

    def _lay(self, clips: Sequence[np.ndarray]) -> Tensor:
        return self.raster.lay(torch.from_numpy(np.stack(clips)))
