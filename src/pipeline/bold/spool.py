"""Pass one over a run: its blocks go to a scratch file while mean, SD, extremes and a checksum are taken.

Memory holds one block and a few vectors, however long the run. Axes: T frames, t frames of a block, V columns (in-mask
voxels, or parcels), v columns of a slab.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from isal import isal_zlib

from pipeline.bold.chunks import fill, flat_bytes
from pipeline.bold.quality import Quarantined

BLOCK = 16  # frames
SLAB = 8192  # columns: 16 x 8192 float32 are half a megabyte, which stays in a core's own cache
CONSTANT = 1e-6  # of the mean: a smaller SD is the rounding of a constant in float32, not signal


@contextmanager
def spool(blocks: Iterable[np.ndarray], columns: int, folder: Path | None = None) -> Iterator[Spool]:
    """Run (t, V) blocks through to a nameless scratch file in `folder`; it is gone when the context or process ends.

    Raises
    ------
    Quarantined : no frames, or values that are not finite, or too large to square in float32.
    ValueError : a block has another number of columns.
    """
    with tempfile.TemporaryFile(dir=folder, buffering=0) as scratch:  # a buffer would copy every block once more
        spooled = Spool(scratch.fileno(), columns)
        with ThreadPoolExecutor(1) as beside:
            for block in blocks:
                for start in range(0, len(block), BLOCK):
                    part_tV = np.ascontiguousarray(block[start : start + BLOCK], np.float32)
                    written = beside.submit(spooled._write, part_tV)
                    spooled._measure(part_tV)
                    written.result()
        spooled._close()
        yield spooled


class Spool:
    """A run in its own unit, (T, V) float32 on disk, with what one pass over it tells.

    Attributes
    ----------
    frames, columns : T and V.
    mean_V, std_V : mean and population SD of each column, float64; the SD of a constant column is 0.
    low_V, high_V : smallest and largest value of each column, float32.
    minimum : smallest value that is not exactly zero (zero is background, or outside the field of view); 0 if all are.
    maximum : largest value.
    zeros : how many values are exactly zero.
    zero_frames : numbers of the frames that are zero everywhere.
    sha256 : of the CRC-32 of each frame, which stands for the values; SHA-256 of the values themselves would take a
        tenth of the way from NIfTI to shard.
    """

    def __init__(self, descriptor: int, columns: int) -> None:
        """An empty one on an open file; use `spool`."""
        self._descriptor = descriptor
        self.frames, self.columns = 0, columns
        self.mean_V, self.std_V = np.zeros(columns), np.zeros(columns)
        self.low_V, self.high_V = np.full(columns, np.inf, np.float32), np.full(columns, -np.inf, np.float32)
        self.minimum, self.maximum, self.zeros = np.inf, -np.inf, 0
        self.zero_frames: list[int] = []
        self._squares_V = np.zeros(columns)
        self._digest = hashlib.sha256()

    @property
    def sha256(self) -> str:
        """Of each frame's CRC-32, in 64 hexadecimal digits."""
        return self._digest.hexdigest()

    def _write(self, block_tV: np.ndarray) -> None:
        for row_V in block_tV:
            self._digest.update(isal_zlib.crc32(row_V.data).to_bytes(4, "little"))
        rest = flat_bytes(block_tV).data
        while len(rest):
            rest = rest[os.write(self._descriptor, rest) :]

    def _measure(self, block_tV: np.ndarray) -> None:
        if block_tV.shape[1:] != (self.columns,):
            raise ValueError(f"a block of {block_tV.shape[1:]} columns in a run of {self.columns}")
        for start in range(0, self.columns, SLAB):
            self._join(block_tV[:, start : start + SLAB], slice(start, start + SLAB))
        # A few columns tell that most frames are not empty.
        empty = [frame for frame, row_V in enumerate(block_tV) if not row_V[::61].any() and not row_V.any()]
        self.zero_frames += [self.frames + frame for frame in empty]
        self.frames += len(block_tV)

    def _join(self, slab_tv: np.ndarray, where: slice) -> None:
        """Join a slab's moments with those before it.

        Source: Chan, Golub & LeVeque (1983), The American Statistician 37: squares are taken about the slab's own
        mean, so a mean of any size costs no digits; what float32 rounded off that mean is added back. NaN and
        infinity are refused here.
        """
        low_v, high_v = slab_tv.min(axis=0), slab_tv.max(axis=0)
        if not (np.isfinite(low_v).all() and np.isfinite(high_v).all()):  # NaN passes through both
            raise Quarantined(f"frames {self.frames} to {self.frames + len(slab_tv)} hold values that are not finite")
        np.minimum(self.low_V[where], low_v, out=self.low_V[where])
        np.maximum(self.high_V[where], high_v, out=self.high_V[where])
        self._count_zeros(slab_tv, low_v, high_v)
        count, total = len(slab_tv), self.frames + len(slab_tv)
        rough_v = slab_tv.sum(axis=0) / count  # half the time of mean(), and of sums in double precision a quarter
        centred_tv = slab_tv - rough_v
        rest_v = centred_tv.sum(axis=0).astype(np.float64) / count
        squares_v = np.einsum("tv,tv->v", centred_tv, centred_tv) - count * rest_v**2
        step_v = rough_v + rest_v - self.mean_V[where]
        self.mean_V[where] += step_v * (count / total)
        self._squares_V[where] += squares_v + step_v**2 * (self.frames * count / total)

    def _count_zeros(self, slab_tv: np.ndarray, low_v: np.ndarray, high_v: np.ndarray) -> None:
        """Zeros, and the smallest value that is none; only columns whose range holds zero are looked at twice."""
        around_v = (low_v <= 0) & (high_v >= 0)
        rest = low_v[~around_v]
        if around_v.any():
            values = slab_tv[:, around_v]
            rest = np.concatenate([rest, values[values != 0]])
            self.zeros += values.size - int(np.count_nonzero(values))
        self.minimum = min(self.minimum, float(rest.min(initial=np.inf)))

    def _close(self) -> None:
        if not self.frames:
            raise Quarantined("no frames")
        self.std_V = np.sqrt(np.maximum(self._squares_V, 0) / self.frames)
        if not np.isfinite(self.std_V).all():
            raise Quarantined(f"values as large as {np.abs([self.low_V.min(), self.high_V.max()]).max():.3g}")
        self.std_V[(self.std_V <= np.abs(self.mean_V) * CONSTANT) | (self.low_V == self.high_V)] = 0
        self.minimum = self.minimum if np.isfinite(self.minimum) else 0.0
        self.maximum = float(self.high_V.max())

    def rows(self, start: int, stop: int) -> np.ndarray:
        """Frames `start` to `stop`, (t, V) float32 in the run's own unit."""
        block_tV = np.empty((min(stop, self.frames) - start, self.columns), np.float32)
        self._fill(block_tV, start * self.columns * 4)
        return block_tV

    def blocks(self, frames: int = BLOCK) -> Iterator[np.ndarray]:
        """The run in blocks of `frames`, each an array of its own."""
        for start in range(0, self.frames, frames):
            yield self.rows(start, start + frames)

    def z_rows(self, start: int, stop: int) -> np.ndarray:
        """Frames `start` to `stop`, each column to mean 0 and SD 1 over the run, (t, V) float32; constants become 0."""
        block_tV = self.rows(start, stop)
        mean_V = self.mean_V.astype(np.float32)
        rest_V = (self.mean_V - mean_V).astype(np.float32)  # what float32 rounds off a mean far larger than the SD
        inverse_V = np.divide(1, self.std_V, out=np.zeros_like(self.std_V), where=self.std_V > 0).astype(np.float32)
        for first in range(0, self.columns, SLAB):
            slab = slice(first, first + SLAB)
            slab_tv = block_tV[:, slab]
            slab_tv -= mean_V[slab]
            slab_tv -= rest_V[slab]
            slab_tv *= inverse_V[slab]
        return block_tV

    def columns_block(self, start: int, stop: int) -> np.ndarray:
        """Columns `start` to `stop` over the whole run, (T, v) float32."""
        block_Tv = np.empty((self.frames, min(stop, self.columns) - start), np.float32)
        for frame, row_v in enumerate(block_Tv):
            self._fill(row_v, (frame * self.columns + start) * 4)
        return block_Tv

    def _fill(self, values: np.ndarray, offset: int) -> None:
        if missing := fill(self._descriptor, flat_bytes(values), offset):
            raise OSError(f"the scratch file lacks {missing} bytes")
