"""Which run each series is: whose, of which session, at which TR."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import pandas as pd

from pipeline.bold.doors.series import CIFTI, series_tr_s
from pipeline.bold.inputs import Run, repetition_time
from pipeline.bold.quality import Quarantined
from pipeline.errors import InputError
from pipeline.evaluate.folder.columns import numbers
from pipeline.evaluate.folder.series import Series, is_matrix

ASSUMED_TR_S = 2.0  # where nobody states one; no connectome depends on it
TR_HINT = "Correct the table's column of repetition times (seconds), or say --tr SECONDS."


class Lost(NamedTuple):
    """A person, or a run of theirs, that cannot be used, and why; session and run are "" for a person."""

    subject: str
    session: str
    run: str
    fault: Exception


@dataclass(frozen=True)
class Scans:
    """Runs in the order of people, and what is lost before any of them is read."""

    runs: list[Run]
    lost: list[Lost]
    told: str  # of the TR


def find_scans(
    dataset: str,
    people: Mapping[str, Sequence[Series]],
    stated: Mapping[str, float],
    told: str,
) -> Scans:
    """Runs of everybody; a person without series is lost, and so is a run whose TR cannot be right.

    Parameters
    ----------
    people : everybody's series, none for whom none was found.
    stated : TR by person in seconds, as a table or the user says; may lack anybody.

    Raises
    ------
    InputError : two series of one person that nothing tells apart.
    """
    runs, lost, assumed = [], [], 0
    for subject, series in people.items():
        if not series:
            lost.append(Lost(subject, "", "", Quarantined("no series")))
        for one in _told_apart(series):
            name = subject, one.label("ses"), one.label("run")
            try:
                tr_s = _tr_s(one, stated.get(subject))
            except InputError as fault:
                lost.append(Lost(*name, fault))
                continue
            assumed += tr_s is None
            runs.append(_run(dataset, name, one, ASSUMED_TR_S if tr_s is None else tr_s))
    if runs and not stated and assumed < len(runs):
        told = f"{told}; the CIFTI files do"
    if assumed:
        told = f"{told}; {ASSUMED_TR_S:g} s is ASSUMED for {assumed} runs (--tr SECONDS; connectomes do not need it)"
    return Scans(runs, lost, told)


def _run(dataset: str, name: tuple[str, str, str], series: Series, tr_s: float) -> Run:
    subject, session, run = name
    path = series.path.absolute()
    return Run(dataset, subject, session, run, path, tr_s, space=None, series=series.member)


def _tr_s(series: Series, stated: float | None) -> float | None:
    """TR in seconds, NaN of a damaged file; None where nobody states one."""
    header = None
    if series.path.name.endswith(CIFTI):
        try:
            header = series_tr_s(series.path)
        except Quarantined:
            return math.nan  # whoever reads it says what is wrong
    if header is None and stated is None:
        return None
    return repetition_time(series.path, {"table of people, or --tr": stated, "header": header}, TR_HINT)


def _told_apart(found: Sequence[Series]) -> list[Series]:
    """A person's series by session and run; of two with the same labels one that is no matrix is left out."""
    labels = Counter((one.label("ses"), one.label("run")) for one in found)
    if len(labels) < len(found):
        found = [one for one in found if is_matrix(one)]
    by_label: dict[tuple[str, str], Series] = {}
    for one in found:
        other = by_label.setdefault((one.label("ses"), one.label("run")), one)
        if other is not one:
            hint = "Keep one of them, or tell them apart by `ses-` and `run-` in their names."
            raise InputError(one.path, f"{other.name} and {one.name} of one person", "one series a run", hint)
    return [by_label[key] for key in sorted(by_label)]


def stated_times(table: pd.DataFrame, column: str | None, said_s: float | None) -> tuple[dict[str, float], str]:
    """TR by person, and where it comes from; who has none in a table that states it has the commonest one."""
    if said_s is not None:
        return dict.fromkeys(table["subject"], said_s), f"{said_s:g} s, as you say"
    if column is None:
        return {}, "no column states it"
    known = numbers(table[column])
    told = f"column '{column}', {known.min():g} to {known.max():g} s"
    if missing := int(known.isna().sum()):
        usual = float(known.mode().iloc[0])
        known, told = known.fillna(usual), f"{told}; {missing} people without one are taken to have {usual:g} s"
    return dict(zip(table["subject"], known.tolist(), strict=True)), told


def sites_by_place(people: Mapping[str, Sequence[Series]]) -> Iterator[tuple[str, str]]:
    """Person and the archive or folder that their series lies in, where these could be sites; else nothing."""
    above = {subject: _above(series[0]) for subject, series in people.items() if series}
    places = {*above.values()}
    if len(places) > 1 and "" not in places and len(above) >= 2 * len(places):
        yield from above.items()


def _above(series: Series) -> str:
    return series.place[0] if len(series.place) > 1 else ""
