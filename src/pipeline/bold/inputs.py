"""A BOLD run on disk: its header is checked before anything is allocated, its frames are streamed.

The doors (`pipeline.bold.doors`) find the runs. Axes: X, Y, Z voxels of the run's own grid, T all its frames, t those
of a block.
"""

from __future__ import annotations

import errno
import math
import tempfile
import zipfile
import zlib
from collections.abc import Generator, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import IO, Any, Literal, TypeAlias, cast

import nibabel as nib
import numpy as np
from isal import igzip

from pipeline.bold.quality import Quarantined
from pipeline.errors import InputError
from pipeline.layout import run_folder

MotionForm: TypeAlias = Literal["fmriprep", "fsl", "hcp"]

LABEL = r"[A-Za-z0-9]+"
TIME_UNITS_S = {8: 1.0, 16: 1e-3, 24: 1e-6}  # by the bits of NIfTI's xyzt_units that say the unit of time
TIME_UNIT_BITS = 0b111000
LONGEST_TR_S = 30.0  # a larger number is milliseconds
SHORTEST_TR_S = 0.02
TR_TOLERANCE = 1e-3  # of TR; headers hold float32, sidecars a few decimals
# fMRIPrep 23.2.0, C-PAC and several AFNI programs leave this in the header whatever the TR was.
PLACEHOLDER_TR_S = 1.0
VOXEL_MM = (0.2, 20.0)
AFFINE_TOLERANCE = 0.1  # voxels at a corner; float32 quaternions near half a turn are wrong by up to 0.05
DEFLATE_RATIO = 1100  # zlib's best is 1,032 : 1
MOST_VOXELS = 512**3  # of a frame; more is a damaged header

DAMAGE = (
    OSError,
    EOFError,
    ValueError,
    OverflowError,
    zlib.error,
    zipfile.BadZipFile,
    nib.filebasedimages.ImageFileError,
    nib.spatialimages.HeaderDataError,
    nib.spatialimages.HeaderTypeError,
)


@dataclass(frozen=True)
class Run:
    """One BOLD run on disk and what lies beside it; `doors.find_runs` makes them."""

    dataset: str
    subject: str
    session: str
    run: str
    bold: Path
    tr_s: float  # NaN where the file is too damaged to say; it is quarantined when it is opened
    space: str | None  # standard space that it lies in or that `warp` leads to; None: native
    mask: Path | None = None  # brain mask on the run's own grid
    motion: Path | None = None  # `motion_form` says how it is read; fmriprep: the whole table of confounds
    motion_form: MotionForm | None = None
    t1w: Path | None = None
    t1w_mask: Path | None = None  # on the T1w's grid
    warp: Path | None = None  # FNIRT displacement field: template grid -> run
    slice_times_s: tuple[float, ...] | None = None  # one a slice along the third axis, from the start of the frame
    series: str | None = None  # parcel series: key inside an archive, "" for the file itself; None: a volume

    @property
    def folder(self) -> str:
        """Folder of its shard, below the data set's."""
        return run_folder(self.subject, self.session, self.run)


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn what a reader raises on a damaged file into a quarantine.

    Raises
    ------
    Quarantined : the content is damaged.
    InputError : the file cannot be read at all (no permission, a failing disk), which says nothing of its content.
    """
    try:
        yield
    except DAMAGE as error:
        if isinstance(error, OSError) and _of_the_system(error):
            hint, why = "Check the disk and the permissions, and run again.", error.strerror or error
            raise InputError(path, f"a file that cannot be read ({why})", "a readable file", hint) from error
        raise Quarantined(f"{path.name} is damaged: {error}") from error


def _of_the_system(error: OSError) -> bool:
    """Whether the disk refused, rather than a decoder, which gives no number or that of a seek to nowhere."""
    # nibabel raises FileNotFoundError without a number for whatever it may not open.
    return isinstance(error, FileNotFoundError) or error.errno not in (None, errno.EINVAL)


def open_image(path: Path) -> Any:
    """A NIfTI image whose data are not read yet.

    Raises
    ------
    InputError, Quarantined : see `reading`.
    """
    with reading(path):
        return nib.load(path)


def header_tr_s(path: Path) -> float | None:
    """TR of a 4D file's header in seconds; None where it is 0 or has no unit, since writers leave 1.0 there.

    Raises
    ------
    InputError : not a 4D file.
    Quarantined : a damaged file.
    """
    image = open_image(path)
    _require_4d(path, image.shape)
    unit = TIME_UNITS_S.get(int(image.header["xyzt_units"]) & TIME_UNIT_BITS)
    stated = float(image.header.get_zooms()[3])
    return stated * unit if unit and stated > 0 else None


def repetition_time(bold: Path, stated: Mapping[str, Any], hint: str) -> float:
    """TR in seconds, from all who state one, who must agree.

    `stated` maps who says so (sidecar, header, ...) to what they say, None for nothing. A header's 1.0 s does not count
    against another statement: it is what many writers leave there.

    Raises
    ------
    InputError : nobody states a TR, it is no time in seconds, or two differ.
    """
    known = {who: _seconds(bold, who, value, hint) for who, value in stated.items() if value is not None}
    if len(known) > 1 and known.get("header") == PLACEHOLDER_TR_S:
        del known["header"]
    if not known:
        raise InputError(bold, f"no TR in {', '.join(stated)}", "a repetition time", hint)
    (first, tr_s), *others = known.items()
    for who, other in others:
        if abs(other - tr_s) > TR_TOLERANCE * tr_s:
            found = f"TR {tr_s:g} s in the {first}, {other:g} s in the {who}"
            raise InputError(bold, found, "one TR", "Correct the one that is wrong.")
    return tr_s


def _seconds(bold: Path, who: str, value: Any, hint: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
        raise InputError(bold, f"RepetitionTime {value!r} in the {who}", "a number of seconds", hint)
    if not SHORTEST_TR_S <= value <= LONGEST_TR_S:
        expected = f"{SHORTEST_TR_S:g} to {LONGEST_TR_S:g} s; is it in ms?"
        raise InputError(bold, f"a TR of {value:g} s in the {who}", expected, hint)
    return float(value)


@dataclass(frozen=True, eq=False)
class Frames:
    """A 4D NIfTI whose header has been checked and whose frames have not been read; `open_frames` makes it."""

    path: Path
    shape: tuple[int, int, int, int]  # X, Y, Z, T
    affine: np.ndarray  # (4, 4) float64, voxels to mm
    tr_s: float
    dtype: np.dtype[Any]  # of the file, byte order included
    slope: float
    intercept: float
    offset: int  # bytes before the first voxel

    def blocks(self, frames: int = 16) -> Iterator[np.ndarray]:
        """All frames once, (X, Y, Z, t) with t at most `frames`, in the file's own type and order, unscaled.

        A block is decoded while the one before it is worked on (1.6 times as fast where the work takes as long), so two
        are in memory.

        Raises
        ------
        Quarantined : the file ends too early or too late, or its checksum is wrong; raised at the latest after the
            last block, because a gzip stream carries its checksum at its end.
        """
        with closing(self._decoded(frames)) as pieces, ThreadPoolExecutor(1) as ahead:
            following = ahead.submit(next, pieces, None)
            while (block := following.result()) is not None:
                following = ahead.submit(next, pieces, None)
                yield block

    def _decoded(self, frames: int) -> Generator[np.ndarray]:
        total = self.shape[3]
        with reading(self.path), self._stream() as stream:
            _discard(stream, self.offset)
            for start in range(0, total, frames):
                block = np.empty((*self.shape[:3], min(frames, total - start)), self.dtype, order="F")
                _fill(stream, block)
                yield block
            if stream.read(1):  # the attempt makes a gzip stream check its CRC
                raise EOFError("it goes on after its last frame")

    def _stream(self) -> IO[bytes]:
        # On 210 MB of int16 BOLD, one core: gzip 270 MB of payload a second, igzip 560. igzip_threaded is no faster and
        # can lose the last block to a race between its queue and its thread.
        if self.path.suffix == ".gz":
            return cast(IO[bytes], igzip.IGzipFile(self.path))  # type: ignore[no-untyped-call]
        return self.path.open("rb")

    def scaled(self, values: np.ndarray) -> np.ndarray:
        """Stored values in the run's own unit, float32, with the header's slope and intercept."""
        if (self.slope, self.intercept) == (1, 0):
            return values.astype(np.float32)
        exact = np.dtype("f4" if self.dtype.itemsize <= 2 or self.dtype.kind == "f" else "f8")
        scaled = values.astype(exact)
        scaled *= exact.type(self.slope)
        scaled += exact.type(self.intercept)
        return scaled.astype(np.float32, copy=False)

    @contextmanager
    def spooled(self, folder: Path | None = None) -> Iterator[np.ndarray]:
        """All frames as one read-only memory map (X, Y, Z, T), unscaled, for what reads a run more than once.

        A compressed file is decoded to a scratch file in `folder` (None: the system's), which has no name and so goes
        with the process, whatever ends it. What `blocks` raises is raised before anything is yielded.
        """
        if self.path.suffix != ".gz":
            yield np.memmap(self.path, self.dtype, "r", self.offset, self.shape, order="F")
            return
        with tempfile.TemporaryFile(dir=folder) as scratch:
            for block in self.blocks():
                scratch.write(_bytes(block))
            scratch.flush()
            yield np.memmap(scratch, self.dtype, "r", 0, self.shape, order="F")


def _bytes(block: np.ndarray) -> memoryview:
    """The block's memory, first axis fastest."""
    return block.reshape(-1, order="F").view(np.uint8).data


def _fill(stream: IO[bytes], block: np.ndarray) -> None:
    view = _bytes(block)
    while view:
        count = stream.readinto(view)  # type: ignore[attr-defined]
        if not count:
            raise EOFError(f"it ends {len(view)} bytes before the end of a block")
        view = view[count:]


def _discard(stream: IO[bytes], count: int) -> None:
    while count:
        piece = stream.read(min(count, 1 << 20))
        if not piece:
            raise EOFError("it ends inside its header")
        count -= len(piece)


def open_frames(run: Run) -> Frames:
    """Check a run's header and make its frames readable.

    Raises
    ------
    InputError : not 4D, values that are not real numbers, no affine or one that cannot be meant, sform and qform that
        disagree, a slice time too few or too many.
    Quarantined : a damaged file, one too small for what its header says, or no warp where the layout has one.
    """
    if run.warp is not None and not run.warp.is_file():
        raise Quarantined(f"no {run.warp.name} beside {run.bold.name}")
    image = open_image(run.bold)
    _require_4d(run.bold, image.shape)
    data = image.dataobj
    _require_real(run.bold, data.dtype)
    require_affine(run.bold, image.header, image.shape[:3])
    if run.slice_times_s is not None and len(run.slice_times_s) != image.shape[2]:
        found = f"{len(run.slice_times_s)} slice times for {image.shape[2]} slices"
        raise InputError(run.bold, found, "one time a slice", "Correct SliceTiming in the sidecar.")
    frames = Frames(
        path=run.bold,
        shape=image.shape,
        affine=np.asarray(image.affine, np.float64),
        tr_s=run.tr_s,
        dtype=data.dtype,
        slope=float(data.slope),
        intercept=float(data.inter),
        offset=int(data.offset),
    )
    _require_room(frames)
    return frames


def _require_4d(path: Path, shape: tuple[int, ...]) -> None:
    if len(shape) != 4:
        found = f"{len(shape)}D data of {'x'.join(map(str, shape))}"
        raise InputError(path, found, "a 4D BOLD run (x, y, z, time)", "Is it a mask, or one volume of a run?")


def _require_real(path: Path, dtype: np.dtype[Any]) -> None:
    if dtype.kind not in "iuf" or dtype.itemsize > 8:
        kind = {"c": "complex", "V": "colour"}.get(dtype.kind, str(dtype))
        raise InputError(path, f"{kind} values", "real numbers of 8 to 64 bits", "Export the magnitude image.")


def _require_room(frames: Frames) -> None:
    """Quarantine a file that cannot hold what its header says, before anything is allocated for it."""
    if min(frames.shape) < 1:
        raise Quarantined(f"{frames.path.name} is damaged: dimensions {'x'.join(map(str, frames.shape))}")
    needed = frames.offset + math.prod(frames.shape) * frames.dtype.itemsize
    size = frames.path.stat().st_size
    fits = needed <= size * DEFLATE_RATIO if frames.path.suffix == ".gz" else needed == size
    if not fits or math.prod(frames.shape[:3]) > MOST_VOXELS:
        shape = "x".join(map(str, frames.shape))
        raise Quarantined(f"{frames.path.name} is damaged: {size} bytes do not hold the {shape} voxels of its header")


def require_affine(path: Path, header: Any, shape: tuple[int, ...]) -> None:
    """An InputError where a header says nothing, or two things, of where the voxels lie."""
    codes = {"sform": int(header["sform_code"]), "qform": int(header["qform_code"])}
    if not any(codes.values()):
        hint = "Convert it from DICOM again, or remove it: where the voxels lie cannot be guessed."
        raise InputError(path, "no affine (sform_code = qform_code = 0)", "a NIfTI affine", hint)
    forms = {name: _form(path, header, name) for name, code in codes.items() if code}
    if len(forms) == 2:
        _require_agreement(path, forms["sform"], forms["qform"], shape)


def _form(path: Path, header: Any, name: str) -> np.ndarray:
    """The sform or qform; an InputError where it cannot be that of a brain scan."""
    try:
        affine = np.asarray(header.get_sform() if name == "sform" else header.get_qform(), np.float64)
    except ValueError:  # a quaternion longer than 1
        affine = np.full((4, 4), np.nan)
    hint = "Convert it from DICOM again."
    if not np.isfinite(affine).all():
        raise InputError(path, f"a {name} with values that are not finite", "an affine", hint)
    edges_mm = nib.affines.voxel_sizes(affine)
    if not all(VOXEL_MM[0] <= edge <= VOXEL_MM[1] for edge in edges_mm):
        found = f"a {name} with voxels of {' x '.join(f'{edge:g}' for edge in edges_mm)} mm"
        raise InputError(path, found, f"{VOXEL_MM[0]:g} to {VOXEL_MM[1]:g} mm", hint)
    if abs(np.linalg.det(affine[:3, :3])) < 1e-3 * np.prod(edges_mm):
        raise InputError(path, f"a {name} whose axes lie in one plane", "three directions", hint)
    return affine


def _require_agreement(path: Path, sform: np.ndarray, qform: np.ndarray, shape: tuple[int, ...]) -> None:
    corners = np.array(list(product(*[(0, size - 1) for size in shape])))
    elsewhere = nib.affines.apply_affine(np.linalg.inv(sform) @ qform, corners)
    apart = float(np.linalg.norm(elsewhere - corners, axis=1).max())
    if apart <= AFFINE_TOLERANCE:
        return
    hint = "Set the code of the wrong one to 0 (nibabel: set_sform or set_qform with code=0), or convert again."
    mirrored = np.linalg.det(sform[:3, :3]) * np.linalg.det(qform[:3, :3]) < 0
    names = f"a sform ({_axes(sform)}) and a qform ({_axes(qform)})"
    if mirrored:
        raise InputError(path, f"{names} that are mirror images", "one that says which side is left", hint)
    raise InputError(path, f"{names} that are {apart:.3g} voxels apart", "two that agree", hint)


def _axes(affine: np.ndarray) -> str:
    """Where the voxel axes point, `LAS` say."""
    return "".join(nib.aff2axcodes(affine))
