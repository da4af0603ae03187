"""The one data file of a shard: chunks of whole frames, each with its crc32c, then the index of all of them.

The layout is that of zarr v3's sharding codec with an index at the end, so zarr reads the file too; it is written and
read here because zarr holds the whole shard in memory to write it, and takes 3-6 times as long to read a clip.

    chunk 0 | crc32c | chunk 1 | crc32c | ... | (offset, length) of each chunk, little-endian uint64 | crc32c

Axes: T frames, V columns.
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import IO, NamedTuple

import google_crc32c
import numpy as np
from isal import isal_zlib

from pipeline.errors import InputError

REMAKE = "Delete it and run its shard job again."
CRC_BYTES = 4
PIECE = 2**19  # read and summed at a time: a whole chunk would outgrow a core's own cache
ENTRY = np.dtype("<u8")  # of the index
LOST = np.iinfo(ENTRY).max  # marks in it a chunk that was never written


class _Unwanted(threading.local):
    """Where bytes go that are only summed, over and over: one array a thread, because a new one costs page faults."""

    def __init__(self) -> None:
        self.piece = np.empty(PIECE, np.uint8)


UNWANTED = _Unwanted()


class Sums(NamedTuple):
    """Checksums of a chunk's values: zarr's, which stands behind them in the file, and zlib's, in the manifest alone.

    Reading takes zlib's, because isal sums 57 GB/s where crc32c sums 28, and that is a fifth of a clip's first read.
    """

    crc32c: int
    crc32: int


class Written(NamedTuple):
    """What a manifest says of a data file; a chunk that stands in another's place has other sums than are listed."""

    size: int
    sha256: str
    sums: list[Sums]


def write_chunks(path: Path, chunks: Iterable[np.ndarray]) -> Written:
    """Write equally large C-ordered arrays as one file and flush it to disk; two of them are in memory at a time.

    The SHA-256 is taken of the bytes handed to the system, not of the file read back: a hash of what the disk returned
    would agree with a bad write.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("xb") as stream, ThreadPoolExecutor(1) as beside:
        writing = _Writing(stream)
        waited = beside.submit(lambda: None)
        for chunk_cV in chunks:  # one is summed and written while the next is made
            waited.result()
            waited = beside.submit(writing.add, flat_bytes(chunk_cV))
        waited.result()
        writing.add_index()
        stream.flush()
        os.fsync(stream.fileno())
    return Written(writing.size, writing.digest.hexdigest(), writing.sums)


class _Writing:
    """A data file as far as it is written."""

    def __init__(self, stream: IO[bytes]) -> None:
        self.stream, self.digest, self.size = stream, hashlib.sha256(), 0
        self.sums: list[Sums] = []
        self.index: list[tuple[int, int]] = []

    def add(self, values: np.ndarray) -> None:
        self.sums.append(Sums(google_crc32c.value(values), isal_zlib.crc32(values.data)))
        self.index.append((self.size, values.size + CRC_BYTES))
        self._put(values.data)
        self._put(_stored(self.sums[-1].crc32c))

    def add_index(self) -> None:
        index = np.array(self.index, ENTRY).tobytes()
        self._put(index + _stored(google_crc32c.value(index)))

    def _put(self, content: bytes | memoryview) -> None:
        self.stream.write(content)
        self.digest.update(content)
        self.size += len(content)


def _stored(checksum: int) -> bytes:
    return checksum.to_bytes(CRC_BYTES, "little")


def flat_bytes(values: np.ndarray) -> np.ndarray:
    """The bytes of a C-ordered array, (N,) uint8 without a copy; google_crc32c takes arrays, not memoryviews."""
    return values.reshape(-1).view(np.uint8)


class ChunkFile:
    """A data file for reading: (T, V) of `dtype`, in chunks of `frames_per_chunk` frames.

    It is opened for each read (4 microseconds on a local disk), so that one object serves threads, forked and spawned
    processes alike, and a study of 41,000 runs holds no descriptors. `sums` are those of the manifest.
    """

    def __init__(
        self, path: Path, shape: tuple[int, int], dtype: np.dtype, frames_per_chunk: int, sums: Sequence[Sums]
    ) -> None:
        self.path, self.shape, self.dtype = path, shape, dtype
        self.frames_per_chunk, self.sums = frames_per_chunk, sums
        self._identity: tuple[int, ...] | None = None
        self._offset_K: list[int] | None = None
        self._verified_K = [False] * len(sums)

    def read(self, start: int, stop: int, out_TV: np.ndarray) -> None:
        """Frames `start` to `stop` into the first rows of `out_TV`, C-ordered and of the file's dtype.

        A chunk is read whole and verified the first time that it is touched, and from then on only the frames asked
        for.

        Raises
        ------
        InputError : a chunk is damaged, lost or not the one of its place; the file is truncated or was replaced.
        """
        rows = flat_bytes(out_TV).reshape(len(out_TV), -1)
        with self._opened() as descriptor:
            if self._offset_K is None:
                self._offset_K = self._read_index(descriptor)
            for chunk in range(start // self.frames_per_chunk, -(-stop // self.frames_per_chunk)):
                first = chunk * self.frames_per_chunk
                low, high = max(start, first), min(stop, first + self.frames_per_chunk)
                wanted = rows[low - start : high - start].reshape(-1)
                offset, before = self._offset_K[chunk], (low - first) * rows.shape[1]
                if self._verified_K[chunk]:
                    self._fill(wanted, descriptor, offset + before)
                else:
                    self._verify(chunk, wanted, before, descriptor, offset)
                    self._verified_K[chunk] = True

    def _verify(self, chunk: int, wanted: np.ndarray, before: int, descriptor: int, offset: int) -> None:
        """Read a whole chunk, `wanted` bytes of it to their place, and hold it and its crc32c against the manifest."""
        found = 0
        for piece in _pieces(before, wanted, self._chunk_bytes - before - wanted.size):
            self._fill(piece, descriptor, offset)
            found = isal_zlib.crc32(piece.data, found)  # while the bytes are in the core's own cache
            offset += piece.size
        stored = np.empty(CRC_BYTES, np.uint8)
        self._fill(stored, descriptor, offset)
        if Sums(int.from_bytes(stored.tobytes(), "little"), found) != self.sums[chunk]:
            raise self._damaged(f"damaged data in chunk {chunk}", "the checksums of its manifest")

    def _fill(self, part: np.ndarray, descriptor: int, offset: int) -> None:
        if fill(descriptor, part, offset):
            raise self._damaged("damaged data: it ends inside a chunk", "whole chunks")

    @property
    def _chunk_bytes(self) -> int:
        return self.frames_per_chunk * self.shape[1] * self.dtype.itemsize

    @contextmanager
    def _opened(self) -> Iterator[int]:
        try:
            descriptor = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError as error:
            raise self._damaged("no such file", "the data of its manifest") from error
        try:
            status = os.fstat(descriptor)
            identity = (status.st_ino, status.st_size, status.st_mtime_ns)
            self._identity = self._identity or identity
            if self._identity != identity:
                hint = "Start this job again, after the shards job has ended."
                raise InputError(self.path, "another file than at the first read", "a shard nobody writes", hint)
            yield descriptor
        finally:
            os.close(descriptor)

    def _read_index(self, descriptor: int) -> list[int]:
        """Where each chunk begins."""
        size, tail = os.fstat(descriptor).st_size, len(self.sums) * 2 * ENTRY.itemsize + CRC_BYTES
        length = self._chunk_bytes + CRC_BYTES
        whole = len(self.sums) * length + tail
        if size < whole:
            raise self._damaged(f"a truncated file of {size} bytes", f"at least {whole} bytes")
        content = os.pread(descriptor, tail, size - tail)
        if google_crc32c.value(content[:-CRC_BYTES]) != int.from_bytes(content[-CRC_BYTES:], "little"):
            raise self._damaged("damaged data in the index of chunks", "an index of the right crc32c")
        offset_K, length_K = np.frombuffer(content[:-CRC_BYTES], ENTRY).reshape(-1, 2).T
        if (offset_K == LOST).any():
            raise self._damaged(f"a lost chunk, number {offset_K.argmax()}", "every chunk that was written")
        if (length_K != length).any() or offset_K.max() > size - tail - length:
            raise self._damaged("damaged data: chunks of another length", f"{length} bytes each")
        return offset_K.tolist()

    def _damaged(self, found: str, expected: str) -> InputError:
        return InputError(self.path, found, expected, REMAKE)


def _pieces(before: int, wanted: np.ndarray, after: int) -> Iterator[np.ndarray]:
    """Places for the bytes of a chunk, one after the other: before those that are wanted, those, and after them."""
    yield from (UNWANTED.piece[: before - first] for first in range(0, before, PIECE))
    yield from (wanted[first : first + PIECE] for first in range(0, wanted.size, PIECE))
    yield from (UNWANTED.piece[: after - first] for first in range(0, after, PIECE))


def fill(descriptor: int, part: np.ndarray, offset: int) -> int:
    """Read from `offset` on into a flat array of bytes; returns how many bytes were not there.

    A file system on a network may return less than it was asked for, and is asked again.
    """
    rest = part.data
    while len(rest) and (got := os.preadv(descriptor, (rest,), offset)):
        offset, rest = offset + got, rest[got:]
    return len(rest)


def read_vector(path: Path, size: int) -> np.ndarray:
    """A float32 array that zarr stored as one uncompressed chunk with a crc32c, (size,).

    Raises
    ------
    InputError : the file is missing or damaged.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError as error:
        raise InputError(path, "no such file", "the data of its manifest", REMAKE) from error
    values, stored = content[:-CRC_BYTES], content[-CRC_BYTES:]
    if len(values) != 4 * size or google_crc32c.value(values) != int.from_bytes(stored, "little"):
        raise InputError(path, "damaged data", f"{size} values with their crc32c", REMAKE)
    return np.frombuffer(values, "<f4")
