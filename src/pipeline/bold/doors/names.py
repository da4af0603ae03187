"""BIDS names: what a file's name says, and the JSON sidecars that it inherits from the folders above it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from itertools import combinations
from pathlib import Path
from typing import Any

from pipeline.bold.inputs import LABEL
from pipeline.errors import InputError


def parse_entities(name: str) -> dict[str, str]:
    """BIDS entities of a file name, `sub-01_task-rest_bold.nii.gz` -> {"sub": "01", "task": "rest"}.

    Raises
    ------
    InputError : a part is not `key-label` with a label of letters and digits, or a key stands twice.
    """
    entities: dict[str, str] = {}
    for part in name.split("_")[:-1]:
        match = re.fullmatch(rf"([a-z]+)-({LABEL})", part)
        if not match or match[1] in entities:
            form = "parts like 'sub-01', letters and digits after the dash, each key once"
            raise InputError(name, f"'{part}' in a file name", form, "Rename the file as BIDS asks.")
        entities[match[1]] = match[2]
    return entities


def stem(path: Path) -> str:
    """Name of a file without its extension."""
    return path.name.removesuffix(".gz").removesuffix(".nii")


def is_image(path: Path) -> bool:
    """A NIfTI file; what macOS leaves beside one (`._sub-01...`) is none."""
    return path.name.endswith((".nii", ".nii.gz")) and not path.name.startswith(".")


def read_sidecar(path: Path) -> dict[str, Any]:
    """A JSON sidecar.

    Raises
    ------
    InputError : it is not a JSON object.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(path, f"text that is not JSON ({error})", "a JSON object", "Mend it.") from error
    if not isinstance(content, dict):
        raise InputError(path, type(content).__name__, "a JSON object", "Mend it.")
    return content


def own_sidecar(path: Path) -> dict[str, Any]:
    """The JSON file of the same name; empty where there is none."""
    sidecar = path.with_name(f"{stem(path)}.json")
    return read_sidecar(sidecar) if sidecar.is_file() else {}


def inherited_sidecar(folder: Path, path: Path) -> dict[str, Any]:
    """All that the JSON files from `folder` down to the file's own say of it; the nearest and the most specific wins.

    Source: the inheritance principle of BIDS 1.10: a sidecar holds for the files below it with the same suffix whose
    names have every entity of its own.
    """
    try:
        mine = parse_entities(path.name)
    except InputError:
        return own_sidecar(path)
    suffix = stem(path).rsplit("_", 1)[-1]
    merged: dict[str, Any] = {}
    for level in [_at_top(folder, suffix, mine), *(_that_hold(below, suffix, mine) for below in _levels(folder, path))]:
        for sidecar in sorted(level, key=lambda each: (each.name.count("_"), each.name)):
            merged |= read_sidecar(sidecar)
    return merged


def _at_top(folder: Path, suffix: str, mine: Mapping[str, str]) -> Iterator[Path]:
    """Sidecars of the whole data set, asked for by name: its folder may list 41,000 people."""
    shared = [f"{key}-{label}" for key, label in mine.items() if key not in ("sub", "ses")]
    for count in range(len(shared) + 1):
        for parts in combinations(shared, count):
            sidecar = folder / f"{'_'.join([*parts, suffix])}.json"
            if sidecar.is_file():
                yield sidecar


def _levels(folder: Path, path: Path) -> list[Path]:
    """Folders below the data set's, down to the file's."""
    inside = path.parent.relative_to(folder)
    return [folder / Path(*inside.parts[: depth + 1]) for depth in range(len(inside.parts))]


def _that_hold(level: Path, suffix: str, mine: Mapping[str, str]) -> Iterator[Path]:
    for sidecar in level.glob(f"*{suffix}.json"):
        parts = sidecar.stem.split("_")
        if parts[-1] == suffix and all(_is_one_of(part, mine) for part in parts[:-1]):
            yield sidecar


def _is_one_of(part: str, entities: Mapping[str, str]) -> bool:
    key, _, label = part.partition("-")
    return entities.get(key) == label
