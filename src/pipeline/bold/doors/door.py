"""What a layout of files has of its own; everything else is shared."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from pipeline.bold.doors.names import own_sidecar
from pipeline.bold.doors.patterns import File
from pipeline.bold.inputs import header_tr_s
from pipeline.config import Dataset, Template

Sidecar: TypeAlias = Mapping[str, Any]


@dataclass(frozen=True)
class Place:
    """Where a door looks, and what the configuration says of it."""

    dataset: str
    folder: Path
    settings: Dataset
    template: Template


def every_file(_place: Place, files: Sequence[File]) -> list[File]:
    """All files that the patterns let through."""
    return list(files)


def sidecar_beside(_place: Place, file: File) -> Sidecar:
    """The JSON file of the same name."""
    return own_sidecar(file.path)


def existing(path: Path) -> Path | None:
    """The path, where there is such a file."""
    return path if path.is_file() else None


@dataclass(frozen=True)
class Door:
    """One layout: where its files lie and how what belongs to a run is found.

    `companions` gives the fields of `inputs.Run` that this layout knows, from the place, the file and its sidecar.
    """

    patterns: tuple[str, ...]
    companions: Callable[[Place, File, Sidecar], Mapping[str, Any]]
    choose: Callable[[Place, Sequence[File]], list[File]] = every_file  # of one person's, those that are runs
    sidecar: Callable[[Place, File], Sidecar] = sidecar_beside
    header_tr_s: Callable[[Path], float | None] = header_tr_s
    named: Callable[[Place], str] | None = None  # how a run of the data set is named, for messages; None: the patterns
    session: str = "1"  # where the path names none
    table_states_tr: bool = False  # the table of people may have a column of repetition times
