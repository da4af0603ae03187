"""Raw BIDS: BOLD in native space, sidecars by inheritance, the T1w of the same session or of another.

sub-X[/ses-Y]/func/sub-X[_ses-Y]_task-T[_run-N]_bold.nii.gz
sub-X[/ses-Y]/anat/*_T1w.nii.gz
derivatives/*/sub-X[/ses-Y]/anat/*_desc-brain_mask.nii.gz       brain mask on the T1w's grid, where there is one
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.bold.doors.door import Door, Place, Sidecar
from pipeline.bold.doors.names import inherited_sidecar, is_image, parse_entities
from pipeline.bold.doors.patterns import File
from pipeline.bold.inputs import LABEL, open_image
from pipeline.bold.quality import Quarantined
from pipeline.errors import InputError

# desc-brain, or the name of a program that extracts brains (deepbet, hdbet, synthstrip): never desc-lesion, label-GM.
BRAIN_MASK = r"_desc-[a-z0-9]*(brain(?!stem)|bet|strip)[a-z0-9]*_mask\.nii(\.gz)?$"
T1W = r"_T1w\.nii(\.gz)?$"


def bids_sidecar(place: Place, file: File) -> Sidecar:
    """All that the JSON files above and beside a file say of it."""
    return inherited_sidecar(place.folder, file.path)


def runs_of_task(place: Place, files: Sequence[File], **entities: str) -> list[File]:
    """Files of the data set's task (and of `entities`), with the session and run of their names.

    A pattern of the user's own has chosen already, and its {session} and {run} are the labels.

    Raises
    ------
    InputError : a name that is not BIDS, or one of another person or session than its folder's.
    """
    if place.settings.pattern:
        return list(files)
    found = []
    for file in files:
        if not is_image(file.path):
            continue
        named = parse_entities(file.path.name)
        _require_own_folder(file, file.path.parent.relative_to(place.folder), named)
        if {**named, "task": place.settings.task, **entities} == named:
            found.append(replace(file, session=named.get("ses", "1"), run=named.get("run", "1")))
    return found


def _require_own_folder(file: File, inside: Path, named: Mapping[str, str]) -> None:
    folders = dict(part.split("-") for part in inside.parts if re.fullmatch(rf"(sub|ses)-{LABEL}", part))
    for key, label in {**folders, "sub": file.subject}.items():
        if named.get(key, label) != label:
            hint = "Move it to where it belongs, or rename it."
            raise InputError(file.path, f"{key}-{named[key]} in the folder of {key}-{label}", "one label", hint)


def _choose(place: Place, files: Sequence[File]) -> list[File]:
    runs = runs_of_task(place, files)
    for file in runs:
        if re.search(r"_echo-\d+_", file.path.name):
            hint = "Combine the echoes first (tedana, or fMRIPrep and the door fmriprep), or give one by 'pattern'."
            raise InputError(file.path, "one echo of a multi-echo run", "one file a run", hint)
    return [file for file in runs if "_part-phase_" not in file.path.name]


def _companions(place: Place, file: File, sidecar: Sidecar) -> dict[str, Any]:
    t1w = next(_anatomies(place.folder, file, T1W), None)
    return {
        "space": None,
        "t1w": t1w,
        "t1w_mask": _brain_mask(place.folder, file, t1w) if t1w else None,
        "slice_times_s": _slice_times(file, sidecar) if place.settings.slice_timing else None,
    }


def _anatomies(folder: Path, file: File, ending: str, below: str = "") -> Iterator[Path]:
    """A person's anatomical images by name, those of the file's own session first, then those of no session."""
    person = folder / below / f"sub-{file.subject}"
    own, sessions = person / f"ses-{file.session}", sorted(person.glob("ses-*"))
    for anat in [own, person, *(session for session in sessions if session != own)]:
        images = [path for path in sorted((anat / "anat").glob("*")) if is_image(path)]
        yield from (path for path in images if re.search(ending, path.name, re.IGNORECASE))


def _brain_mask(folder: Path, file: File, t1w: Path) -> Path | None:
    """A mask of the brain on the very grid of the T1w, beside it or in a derivative; desc-brain before others."""
    below = ["", *sorted(path.relative_to(folder).as_posix() for path in folder.glob("derivatives/*"))]
    masks = [mask for name in below for mask in _anatomies(folder, file, BRAIN_MASK, name)]
    masks.sort(key=lambda path: "_desc-brain_" not in path.name)
    return next((mask for mask in masks if _same_grid(mask, t1w)), None)


def _same_grid(mask: Path, t1w: Path) -> bool:
    try:
        first, second = open_image(mask), open_image(t1w)
    except Quarantined:
        return True  # the registration opens both and says which is damaged
    return first.shape == second.shape and bool(np.allclose(first.affine, second.affine, atol=1e-3))


def _slice_times(file: File, sidecar: Sidecar) -> tuple[float, ...]:
    """Time of each slice along the third axis, s from the start of its frame."""
    times = sidecar.get("SliceTiming")
    hint = "Give SliceTiming in the sidecar, or set 'slice_timing: false'."
    if not isinstance(times, list) or not all(isinstance(time, int | float) and time >= 0 for time in times):
        raise InputError(file.path, f"SliceTiming {times!r:.60}", "a list of seconds, one a slice", hint)
    direction = sidecar.get("SliceEncodingDirection", "k")
    if direction not in ("k", "k-"):
        raise InputError(file.path, f"SliceEncodingDirection '{direction}'", "slices along the third axis (k)", hint)
    tr_s = sidecar.get("RepetitionTime")
    if isinstance(tr_s, int | float) and max(times, default=0) >= tr_s:
        found = f"a slice {max(times):g} s after the start of a frame of {tr_s:g} s"
        raise InputError(file.path, found, "times below the TR; are they in ms?", hint)
    return tuple(float(time) for time in (times if direction == "k" else reversed(times)))


def _named(place: Place) -> str:
    return f"func/*_task-{place.settings.task}*_bold.nii.gz"


DOOR = Door(
    patterns=("sub-{subject}/func/*_bold.nii*", "sub-{subject}/ses-*/func/*_bold.nii*"),
    companions=_companions,
    choose=_choose,
    sidecar=bids_sidecar,
    named=_named,
)
