"""Parcel series: no volumes, one column a parcel.

    <SITE>.npz/<ID>         an array (T, R), or quantised as <ID>/q, <ID>/mean, <ID>/step: series = q * step + mean
    <ID>.1D, .csv, .tsv     rows of numbers, T frames by R parcels, with or without a header of names
    <ID>.ptseries.nii       CIFTI, which states its TR

Any other naming is a `pattern` of the data-set file. The TR is that of the CIFTI file, of the data-set file, or of a
column of the table of people.
"""

from __future__ import annotations

from typing import Any

from pipeline.bold.doors.door import Door, Place, Sidecar
from pipeline.bold.doors.patterns import File
from pipeline.bold.doors.series import CIFTI, series_tr_s


def _companions(place: Place, file: File, _sidecar: Sidecar) -> dict[str, Any]:
    return {"space": place.settings.space, "series": file.member or ""}


DOOR = Door(
    patterns=("*.npz/{subject}", "{subject}.1D", "{subject}.csv", "{subject}.tsv", f"{{subject}}{CIFTI}"),
    companions=_companions,
    header_tr_s=series_tr_s,
    table_states_tr=True,
)
