"""The doors by which data come in: one file a layout, and what all of them share.

A new layout is a new file with a `DOOR`, an entry below, and a data-set file under config/datasets/.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from itertools import islice, pairwise
from typing import NamedTuple

from pipeline.bold.doors import bids, development, fmriprep, hcp, parcels, pcp, ukb
from pipeline.bold.doors.door import Door, Place
from pipeline.bold.doors.names import stem
from pipeline.bold.doors.patterns import File, check_pattern, find_files
from pipeline.bold.doors.series import read_series
from pipeline.bold.inputs import PLACEHOLDER_TR_S, Run, repetition_time
from pipeline.bold.participants import repetition_times, require_folder
from pipeline.bold.quality import Quarantined
from pipeline.config import Study
from pipeline.errors import InputError

__all__ = ["DOORS", "Found", "find_runs", "nothing_found", "read_series", "require_folder", "runs_of_person"]

DOORS: dict[str, Door] = {
    "bids": bids.DOOR,
    "fmriprep": fmriprep.DOOR,
    "hcp": hcp.DOOR,
    "ukb": ukb.DOOR,
    "pcp": pcp.DOOR,
    "development_fmri": development.DOOR,
    "parcels": parcels.DOOR,
}


def find_runs(study: Study, dataset: str, subjects: Iterable[str]) -> list[Run]:
    """Runs of these people in the order of person, session and run, at most `runs` a person.

    A person without files has no runs here; that none of them has any is an InputError. A damaged file is a run like
    any other: whoever opens it learns why it is quarantined.

    Raises
    ------
    InputError : no data, a pattern that is none, two files of one run, or what the layout's companions cannot be.
    """
    subjects = list(subjects)
    found = [found for subject in subjects for found in runs_of_person(study, dataset, subject)]
    if subjects and not found:
        raise nothing_found(study, dataset, subjects[0])
    for each in found:
        if isinstance(each.run, InputError):
            raise each.run
    return [each.run for each in found if isinstance(each.run, Run)]


class Found(NamedTuple):
    """A file that is a run, and the run, or what somebody must mend before it is one."""

    file: File
    run: Run | InputError


def runs_of_person(study: Study, dataset: str, subject: str) -> list[Found]:
    """Runs of one person in the order of session and run, as many as are used; a faulty one does not cost the others.

    Raises
    ------
    InputError : no data, a pattern that is none, names that are none, two files of one run.
    """
    place = _place(study, dataset)
    door = DOORS[place.settings.door]
    if place.settings.pattern:
        check_pattern(f"datasets.{dataset}.pattern", place.settings.pattern)
    files = _files(place, door, subject)
    table_s = repetition_times(study, dataset) if files and door.table_states_tr else {}
    return [Found(file, _run_or_fault(place, door, file, table_s)) for file in files]


def _place(study: Study, dataset: str) -> Place:
    return Place(dataset, require_folder(study, dataset), study.datasets[dataset], study.template)


def _run_or_fault(place: Place, door: Door, file: File, table_s: Mapping[str, float]) -> Run | InputError:
    try:
        return _run(place, door, file, table_s)
    except InputError as fault:
        return fault


def _patterns(place: Place, door: Door) -> tuple[str, ...]:
    return (place.settings.pattern,) if place.settings.pattern else door.patterns


def _files(place: Place, door: Door, subject: str) -> list[File]:
    """The files of a person's runs, as many as are used."""
    found = [
        file for pattern in _patterns(place, door) for file in find_files(place.folder, pattern, subject, door.session)
    ]
    files = sorted(door.choose(place, found), key=_natural_order)
    for file, other in pairwise(files):
        if (file.session, file.run) == (other.session, other.run):
            hint = f"Keep one, or tell them apart by {{session}}, {{run}} in datasets.{place.dataset}.pattern."
            named = f"a second file of session {file.session}, run {file.run}, beside {_name(file)}"
            raise InputError(other.path, named, "one file a run", hint)
    return files[: place.settings.runs]


def _name(file: File) -> str:
    return f"{file.path.name}/{file.member}" if file.member else file.path.name


def _natural_order(file: File) -> list[tuple[int, str]]:
    """Numbers by value before words: runs 1, 2, 10."""
    numbered = [(int(label), "") if label.isdecimal() else (2**31, label) for label in (file.session, file.run)]
    return [*numbered, (0, _name(file))]


def _run(place: Place, door: Door, file: File, table_s: Mapping[str, float]) -> Run:
    sidecar = door.sidecar(place, file)
    stated = {
        "sidecar": sidecar.get("RepetitionTime"),
        "data-set file": place.settings.tr_s,
        "table of people": table_s.get(file.subject),
    }
    return Run(
        dataset=place.dataset,
        subject=file.subject,
        session=file.session,
        run=file.run,
        bold=file.path,
        tr_s=_tr_s(place, door, file, stated),
        **door.companions(place, file, sidecar),
    )


def _tr_s(place: Place, door: Door, file: File, stated: Mapping[str, object]) -> float:
    try:
        header = door.header_tr_s(file.path)
    except Quarantined:
        return math.nan  # `open_frames` says what is wrong with the file
    if door.table_states_tr and header == PLACEHOLDER_TR_S:
        header = None  # what preprocessing leaves in these archives whatever the TR was
    stated = {**stated, "header": header}
    hint = f'Write "RepetitionTime" in seconds into {stem(file.path)}.json, or set datasets.{place.dataset}.tr_s.'
    return repetition_time(file.path, stated, hint)


def nothing_found(study: Study, dataset: str, subject: str) -> InputError:
    """Where a person's files should be, and what lies there instead."""
    place = _place(study, dataset)
    door = DOORS[place.settings.door]
    patterns = _patterns(place, door)
    own = re.sub(r"\{subject.*?\}", subject, patterns[-1]).split("/")[0]
    own_folder = bool(re.fullmatch(r"[\w-]+", own))
    near = place.folder / own if own_folder else place.folder
    ending = "*_bold.nii*" if door.named else "*.nii*"
    others = sorted(path.name for path in islice(near.glob(f"**/{ending}" if own_folder else ending), 64))
    found = f"no such run (there: {', '.join(others[:4])})" if others else "no BOLD run"
    hint = f"Check door, task, path, pattern and space of '{place.dataset}'."
    named = door.named(place) if door.named and not place.settings.pattern else " or ".join(patterns)
    return InputError(near, found, named, hint)
