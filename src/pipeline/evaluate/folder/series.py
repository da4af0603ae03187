"""What a folder of parcel series holds: one entry a series, whether it is a file or lies inside an archive.

Nothing is decoded here: archives are asked for their names, and a header is read only where two arrays of one archive
could both be a person's series.
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.bold.doors.series import CIFTI, SEPARATORS, archive_keys
from pipeline.errors import InputError

ARCHIVE = ".npz"
ENDINGS = (CIFTI, ARCHIVE, *SEPARATORS)
# Tables and texts that lie beside series and are none: BIDS's own, C-PAC's and fMRIPrep's.
BESIDE = re.compile(
    r"^(participants|phenotyp|readme|license|licence|changes|dataset_description)|confounds|_events", re.I
)
FORMS = ".npz (an array a person, or <ID>/q, mean and step), .1D, .txt, .csv, .tsv (frames x parcels), .ptseries.nii"


@dataclass(frozen=True)
class Series:
    """A parcel series: its file, its key inside an archive ("" for the file itself), and where it lies.

    `place` are the names from the folder down to it, without endings: ("NYU", "NYU_0050952"), say.
    """

    path: Path
    member: str
    place: tuple[str, ...]

    @property
    def name(self) -> str:
        """For messages."""
        return f"{self.path.name}/{self.member}" if self.member else self.path.name

    def label(self, entity: str) -> str:
        """The label of a BIDS entity (`ses`, `run`) in its place; "1" where it names none."""
        found = re.search(rf"(?:^|[_/]){entity}-([A-Za-z0-9]+)", "/".join(self.place))
        return found[1] if found else "1"


def list_series(folder: Path, ignored: Collection[Path] = ()) -> list[Series]:
    """Every series below a folder, in the order of their paths; hidden files and folders in `ignored` are passed over.

    Raises
    ------
    InputError : no such folder, no series in it, or an archive that cannot be read.
    """
    if not folder.is_dir():
        raise InputError(folder, "no such folder", "a folder of parcel series", "Check --dataset.")
    found = [series for path in _files(folder, ignored) for series in _series_of(folder, path)]
    if not found:
        names = sorted(path.name for path in folder.iterdir())
        there = f"no parcel series (there: {', '.join(names[:4])})" if names else "an empty folder"
        raise InputError(folder, there, FORMS, "Check --dataset; voxels come in by a study (docs/data.md).")
    return found


def _files(folder: Path, ignored: Collection[Path]) -> Iterator[Path]:
    for path in sorted(folder.rglob("*")):
        inside = path.relative_to(folder)
        hidden = any(part.startswith(".") for part in inside.parts)
        if hidden or BESIDE.search(path.name) or any(path.is_relative_to(other) for other in ignored):
            continue
        if path.name.lower().endswith(ENDINGS) and path.is_file():
            yield path


def _series_of(folder: Path, path: Path) -> Iterator[Series]:
    inside = path.relative_to(folder)
    stem = path.name[: -len(next(ending for ending in ENDINGS if path.name.lower().endswith(ending)))]
    place = (*inside.parts[:-1], stem)
    if path.suffix.lower() != ARCHIVE:
        yield Series(path, "", place)
        return
    for key in archive_keys(path):
        yield Series(path, key, (*place, *filter(None, key.split("/"))))


def is_matrix(series: Series) -> bool:
    """Whether a series could be frames x parcels, by its header: the arrays `tr` or `labels` of an archive are not."""
    if not series.member:
        return True
    with zipfile.ZipFile(series.path) as archive:
        names = {name.removesuffix(".npy"): name for name in archive.namelist()}
        if series.member not in names:
            return True  # a group of quantised arrays
        with archive.open(names[series.member]) as stream:
            np.lib.format.read_magic(stream)
            shape, _, dtype = np.lib.format.read_array_header_1_0(stream)
    return len(shape) == 2 and dtype.kind in "iuf"
