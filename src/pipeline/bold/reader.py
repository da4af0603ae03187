"""A shard for reading: its contract, and its frames by any of three back ends that give identical bits.

| back end | what it is | in a forked child |
|---|---|---|
| `pread` | this package's own, the fastest; sees a damaged, lost or exchanged chunk | works |
| `zarr` | zarr-python, the reference | works |
| `tensorstore` | optional (`pip install tensorstore`) | refused: it would abort the process |

Axes: T frames, V columns (in-mask voxels of the template, or parcels).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol, TypeAlias

import numpy as np

from pipeline import artefact
from pipeline.bold.chunks import REMAKE, ChunkFile, Sums, read_vector
from pipeline.bold.halves import widen
from pipeline.errors import InputError

Backend: TypeAlias = Literal["pread", "zarr", "tensorstore"]

ZARR = "shard.zarr"
DATA = f"{ZARR}/bold/c/0/0"
LOST = {"float16": np.nan, "int8": -128, "float32": np.nan}  # what zarr gives for a chunk that is not there
BLOCK = 8  # frames decoded at a time


class Source(Protocol):
    """Where a back end takes arrays from."""

    def frames(self, start: int, stop: int, out_TV: np.ndarray) -> None:
        """Stored frames into all of `out_TV`; InputError where they are damaged."""

    def vector(self, name: str) -> np.ndarray:
        """One of the (V,) float32 arrays beside them."""


@dataclass(frozen=True, eq=False)
class Shard:
    """A readable run. It can be pickled, and read from several threads and processes."""

    folder: Path
    contract: dict[str, Any]
    voxels: int
    source: Source

    @classmethod
    def open(cls, folder: str | Path, expected: Mapping[str, Any] | None = None, backend: Backend = "pread") -> Shard:
        """Open a shard after checking its files' sizes and, field by field, its contract.

        Raises
        ------
        InputError : a file is missing or of another size, or the contract differs from `expected`.
        """
        folder = Path(folder)
        manifest = artefact.read_json(folder / "manifest.json")
        for name, listed in manifest["files"].items():
            path = folder / name
            size = path.stat().st_size if path.is_file() else None
            if size != listed["size"]:
                found = "no such file" if size is None else f"{size} bytes"
                raise InputError(path, found, f"{listed['size']} bytes, as its manifest says", REMAKE)
        require_contract(folder, manifest["contract"], expected or {})
        return cls(folder, manifest["contract"], manifest["shape"][1], SOURCES[backend](folder, manifest))

    @property
    def frames(self) -> int:
        """T, the frames stored."""
        return int(self.contract["frames"])

    @property
    def tr_s(self) -> float:
        """Repetition time in seconds."""
        return float(self.contract["tr_s"])

    @property
    def dtype(self) -> np.dtype:
        """As which frames are stored: float16 or int8."""
        return np.dtype(self.contract["dtype"])

    @property
    def minimum(self) -> float:
        """Smallest value of the run before normalisation that is not exactly zero."""
        return float(self.contract["minimum"])

    @property
    def mean(self) -> np.ndarray:
        """(V,) mean of each column before normalisation, float32."""
        return self.source.vector("voxel_mean")

    @property
    def std(self) -> np.ndarray:
        """(V,) SD of each column before normalisation, float32; 0 where it was constant."""
        return self.source.vector("voxel_std")

    @property
    def step(self) -> np.ndarray:
        """(V,) SD that one unit of int8 stands for, float32."""
        return self.source.vector("voxel_step")

    def read_stored(self, start: int = 0, stop: int | None = None, out: np.ndarray | None = None) -> np.ndarray:
        """Frames `start` to `stop` as they are stored, (T, V) float16 or int8; checksums are verified.

        `out`, C-ordered and of the stored dtype, is filled from its first row and that part of it returned: a buffer
        that is used again saves the page faults of a new one, which take as long as the read.

        Raises
        ------
        InputError : a chunk is damaged or lost.
        """
        start, stop, _ = slice(start, stop).indices(self.frames)
        count = max(0, stop - start)
        if out is None:
            out = np.empty((count, self.voxels), self.dtype)
        if out.dtype != self.dtype or out.shape[1:] != (self.voxels,) or len(out) < count or not out.flags.c_contiguous:
            raise ValueError(f"a buffer of {out.dtype} {out.shape} for {self.dtype} {(count, self.voxels)}")
        if count:
            self.source.frames(start, stop, out[:count])
        return out[:count]

    def read(self, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Frames `start` to `stop`, z-scored per column over the run, (T, V) float32; checksums are verified.

        Raises
        ------
        InputError : a chunk is damaged or lost.
        """
        start, stop, _ = slice(start, stop).indices(self.frames)
        z_TV = np.empty((max(0, stop - start), self.voxels), np.float32)
        stored = np.empty((min(BLOCK, len(z_TV)), self.voxels), self.dtype)
        step_V = self.step if self.dtype == np.int8 else None
        for first in range(0, len(z_TV), BLOCK):
            block_TV = z_TV[first : first + BLOCK]
            self.read_stored(start + first, start + first + len(block_TV), stored)
            if step_V is None:
                widen(stored[: len(block_TV)], block_TV)
            else:
                np.multiply(stored[: len(block_TV)], step_V, out=block_TV)
        return z_TV


class PreadSource:
    """One read a chunk, straight to its place."""

    def __init__(self, folder: Path, manifest: Mapping[str, Any]) -> None:
        frames, self._voxels = manifest["shape"]
        self._folder, dtype = folder, np.dtype(manifest["contract"]["dtype"])
        shape, chunk = (frames, self._voxels), manifest["frames_per_chunk"]
        sums = [Sums(**listed) for listed in manifest["chunks"]]
        self._file = ChunkFile(folder / DATA, shape, dtype, chunk, sums)

    def frames(self, start: int, stop: int, out_TV: np.ndarray) -> None:
        """As `ChunkFile.read`."""
        self._file.read(start, stop, out_TV)

    def vector(self, name: str) -> np.ndarray:
        """As `read_vector`."""
        return read_vector(self._folder / ZARR / name / "c/0", self._voxels)


class ZarrSource:
    """zarr-python. Its metadata files are checked, because a wrong dtype there would be believed."""

    def __init__(self, folder: Path, manifest: Mapping[str, Any]) -> None:
        self.folder = folder
        self._metadata = {name: file for name, file in manifest["files"].items() if name.endswith("zarr.json")}
        self._arrays: dict[str, Any] = {}

    def __getstate__(self) -> dict[str, Any]:
        """Without open arrays: another process opens its own."""
        return {**self.__dict__, "_arrays": {}}

    def frames(self, start: int, stop: int, out_TV: np.ndarray) -> None:
        """Through zarr's own codecs; a row of fill values is what it gives for a lost chunk."""
        out_TV[...] = self._part("bold", slice(start, stop))
        first_T = out_TV[:, 0]
        if np.any(first_T == LOST["int8"] if out_TV.dtype == np.int8 else np.isnan(first_T)):
            raise InputError(self.folder / DATA, "a lost chunk", "every chunk that was written", REMAKE)

    def vector(self, name: str) -> np.ndarray:
        """Through zarr's own codecs."""
        values_V = self._part(name, slice(None))
        if np.isnan(values_V).any():
            raise InputError(self.folder / ZARR / name, "a lost chunk", "every chunk that was written", REMAKE)
        return values_V

    def _part(self, name: str, where: slice) -> np.ndarray:
        try:
            if name not in self._arrays:
                self._check_metadata()
                self._arrays[name] = self._open(name)
            return self._get(self._arrays[name], where)
        except (ValueError, OSError, KeyError) as error:
            if isinstance(error, InputError):
                raise
            found = f"damaged data ({error})"
            raise InputError(self.folder / ZARR / name, found, "what its manifest lists", REMAKE) from error

    def _check_metadata(self) -> None:
        for name, listed in self._metadata.items():
            if artefact.sha256_file(self.folder / name) != listed["sha256"]:
                raise InputError(self.folder / name, "damaged metadata", "the SHA-256 of its manifest", REMAKE)

    def _open(self, name: str) -> Any:
        import zarr

        return zarr.open_array(self.folder / ZARR / name, mode="r")

    def _get(self, array: Any, where: slice) -> np.ndarray:
        return np.asarray(array[where])


class TensorstoreSource(ZarrSource):
    """tensorstore. Its threads do not survive a fork, so a child forked after the first use is refused."""

    used_by: ClassVar[int | None] = None  # process that used it first, of a family of forks

    def _part(self, name: str, where: slice) -> np.ndarray:
        TensorstoreSource.used_by = TensorstoreSource.used_by or os.getpid()
        if TensorstoreSource.used_by != os.getpid():
            hint = "Start workers by spawn or forkserver, or open shards with backend='pread'."
            raise InputError(self.folder, "tensorstore in a forked process", "a process that it was born in", hint)
        return super()._part(name, where)

    def _open(self, name: str) -> Any:
        try:
            import tensorstore
        except ImportError as error:
            hint = "Install it (pip install tensorstore), or open shards with backend='pread'."
            raise InputError("tensorstore", "no such package", "the back end asked for", hint) from error
        store = {"driver": "file", "path": str((self.folder / ZARR / name).resolve())}
        return tensorstore.open({"driver": "zarr3", "kvstore": store}, read=True, open=True).result()

    def _get(self, array: Any, where: slice) -> np.ndarray:
        return np.asarray(array[where].read().result())


SOURCES: dict[str, Callable[[Path, Mapping[str, Any]], Source]] = {
    "pread": PreadSource,
    "zarr": ZarrSource,
    "tensorstore": TensorstoreSource,
}


def require_contract(where: Path, found: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    """An InputError that names the first field in which a contract differs from what is expected."""
    for field, value in expected.items():
        if field not in found or found[field] != value:
            hint = "Use shards made for this study's template, or run the shards stage again."
            raise InputError(f"{where}: contract.{field}", repr(found.get(field)), repr(value), hint)
