"""Parcel series on disk: archives of arrays, tables of text, CIFTI.

Axes: T frames, R parcels.
"""

from __future__ import annotations

import io
import math
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any
from xml.parsers.expat import ExpatError

import nibabel as nib
import numpy as np
from nibabel.cifti2.cifti2 import Cifti2HeaderError
from nibabel.cifti2.cifti2_axes import ParcelsAxis, SeriesAxis

from pipeline.bold.inputs import Run, reading
from pipeline.bold.quality import Quarantined
from pipeline.errors import InputError

QUANTISED = ("q", "mean", "step")  # arrays of a group: series = q * step + mean
SEPARATORS = {".csv": ",", ".tsv": "\t", ".1d": None, ".txt": None}  # None: any white space
CIFTI = ".ptseries.nii"
LARGEST_MEMBER = 2**31  # bytes; a series of 1,000 parcels and 100,000 frames has 0.4 GB
# What the readers of zip and CIFTI let through on damaged bytes, beside what `inputs.reading` knows.
FOREIGN_DAMAGE = (
    ArithmeticError,
    AttributeError,
    Cifti2HeaderError,
    ExpatError,
    LookupError,
    MemoryError,
    RuntimeError,  # zip: an encrypted member, or a compression that Python does not know
    TypeError,
)


@contextmanager
def _parsing(path: Path) -> Iterator[None]:
    """`reading`, for formats whose readers raise anything on damaged bytes."""
    with reading(path):
        try:
            yield
        except FOREIGN_DAMAGE as error:
            raise ValueError(f"{type(error).__name__}: {error}") from error


def read_series(run: Run) -> np.ndarray:
    """The parcel series of a run, (T, R) float32 in its own unit, every parcel kept, dead ones too.

    Raises
    ------
    InputError : a kind of file that is not known, or a CIFTI file that is no parcel series.
    Quarantined : a damaged file, an array that is not (T, R), or values that are not finite.
    """
    series_TR = _read(run.bold, run.series or "")
    name = f"{run.bold.name}/{run.series}" if run.series else run.bold.name
    if series_TR.ndim != 2 or series_TR.dtype.kind not in "iuf" or min(series_TR.shape) < 1:
        raise Quarantined(f"{name} holds {series_TR.dtype} of shape {series_TR.shape}, not frames x parcels")
    if not np.isfinite(series_TR).all():
        raise Quarantined(f"{name} has values that are not finite")
    return np.ascontiguousarray(series_TR, dtype=np.float32)


def _read(path: Path, key: str) -> np.ndarray:
    if path.name.endswith(CIFTI):
        return _cifti_TR(path)
    suffix = path.suffix.lower()
    if suffix == ".npz":
        with _parsing(path):
            return _archived(path, key)
    if suffix in SEPARATORS:
        with reading(path):
            return _table(path, SEPARATORS[suffix])
    raise InputError(path, f"a file of kind '{suffix}'", f".npz, {', '.join(SEPARATORS)} or {CIFTI}", "Convert it.")


def archive_keys(path: Path) -> tuple[str, ...]:
    """Names under which an archive keeps series: its arrays, and its groups of quantised ones.

    Raises
    ------
    InputError : not an archive; nobody's series could be found in it.
    """
    about = path.stat()
    return _archive_keys(path, about.st_mtime_ns, about.st_size)


@lru_cache(maxsize=256)  # the site's archive is asked for each of its people
def _archive_keys(path: Path, _changed_ns: int, _size: int) -> tuple[str, ...]:
    try:
        with _parsing(path), zipfile.ZipFile(path) as archive:
            names = [name.removesuffix(".npy") for name in archive.namelist()]
    except Quarantined as reason:
        raise InputError(path, f"a damaged archive ({reason})", "an .npz file", "Get it again.") from reason
    groups = {name.rpartition("/")[0] for name in names if name.rpartition("/")[2] == QUANTISED[0]}
    parts = {f"{group}/{part}".lstrip("/") for group in groups for part in QUANTISED}
    return tuple(sorted((groups | {*names}) - parts))


def _archived(path: Path, key: str) -> np.ndarray:
    with zipfile.ZipFile(path) as archive:
        names = {name.removesuffix(".npy"): name for name in archive.namelist()}
        quantised = [f"{key}/{part}".lstrip("/") for part in QUANTISED]
        if all(name in names for name in quantised):
            q_TR, mean_R, step_R = (_array(archive, names[name]) for name in quantised)
            return q_TR.astype(np.float32) * step_R.astype(np.float32) + mean_R.astype(np.float32)
        if not key and len(names) == 1:
            return _array(archive, next(iter(names.values())))
        if key not in names:
            raise ValueError(f"no array '{key}' and no {', '.join(quantised)}")
        return _array(archive, names[key])


def _array(archive: zipfile.ZipFile, name: str) -> np.ndarray:
    """One array of an archive, checked by the archive's CRC; nothing is unpickled or allocated on its header's word."""
    size = archive.getinfo(name).file_size
    if size > LARGEST_MEMBER:
        raise ValueError(f"{name} would have {size} bytes")
    stream = io.BytesIO(archive.read(name))
    version = np.lib.format.read_magic(stream)
    read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = read_header(stream)
    if dtype.hasobject:
        raise ValueError(f"{name} holds Python objects, not numbers")
    return np.frombuffer(stream.read(), dtype, math.prod(shape)).reshape(shape, order="F" if fortran else "C")


def _table(path: Path, separator: str | None) -> np.ndarray:
    """Rows of numbers; lines with # and a header of names are left out, and so is the index that pandas writes."""
    lines = [line for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip() and line[0] != "#"]
    if not lines:
        raise ValueError("no numbers")
    header = lines[0].split(separator)
    named = not all(_is_number(word) for word in header)
    table_TR = np.loadtxt(lines[named:], delimiter=separator, ndmin=2)
    return table_TR[:, 1:] if named and not header[0] else table_TR


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True


def _cifti_TR(path: Path) -> np.ndarray:
    axes = _cifti_axes(path)
    with _parsing(path):
        image: Any = nib.load(path)
        data: np.ndarray = image.get_fdata(dtype=np.float32)
    return data if isinstance(axes[0], SeriesAxis) else data.T


def _cifti_axes(path: Path) -> list[Any]:
    with _parsing(path):
        image: Any = nib.load(path)
        axes = [image.header.get_axis(axis) for axis in range(image.ndim)] if hasattr(image, "nifti_header") else []
    kinds = {type(axis) for axis in axes}
    if kinds != {SeriesAxis, ParcelsAxis}:
        hint = "Parcellate the dense series first (wb_command -cifti-parcellate)."
        found = ", ".join(sorted(kind.__name__ for kind in kinds)) or "no CIFTI file"
        raise InputError(path, found, "a parcel series (SeriesAxis, ParcelsAxis)", hint)
    return axes


def series_tr_s(path: Path) -> float | None:
    """TR of a CIFTI file's series axis in seconds; None for every other kind of file.

    Raises
    ------
    InputError : the axis does not count seconds.
    """
    if not path.name.endswith(CIFTI):
        return None
    (axis,) = [axis for axis in _cifti_axes(path) if isinstance(axis, SeriesAxis)]
    if axis.unit != "SECOND":
        raise InputError(path, f"a series in {axis.unit}", "a series in SECOND", "Is it a spectrum?")
    return float(axis.step)
