"""What a folder that no configuration describes is found to be; everything inferred here is printed."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from pipeline.bold.participants import read_table_of_people
from pipeline.config import ProtocolName
from pipeline.errors import InputError
from pipeline.evaluate.folder.columns import Columns, read_columns, without_missing
from pipeline.evaluate.folder.labels import Label, read_label
from pipeline.evaluate.folder.matching import Match, match_people
from pipeline.evaluate.folder.scans import Scans, find_scans, sites_by_place, stated_times
from pipeline.evaluate.folder.series import Series, list_series

TABLES = ("participants.tsv", "participants.csv")
# A person is kept with three parcels of four dead: their edges are 0. Of 657 people of ABIDE at CC200 the worst two
# have 59 and 40 % dead, the next 7 %. To lose people by field of view is to choose them by how they were scanned.
MIN_COVERAGE = 0.25
MIN_FRAMES = 20  # frames; correlations over fewer are noise
RESERVED = ("subject", "family")  # columns of the study's own table
TAG = 4  # hexadecimal digits that tell ids apart which differ only by signs or case


@dataclass(frozen=True)
class Options:
    """What the command line says; what is None or empty is inferred."""

    dataset: Path
    task: str
    systems: tuple[str, ...]
    output: Path
    splits: int = 100
    protocols: tuple[ProtocolName, ...] = ()
    positive: tuple[str, ...] = ()
    negative: tuple[str, ...] = ()
    number: bool = False
    participants: Path | None = None
    id_column: str | None = None
    site_column: str | None = None
    confounds: tuple[str, ...] | None = None
    tr_s: float | None = None
    min_frames: int = MIN_FRAMES
    min_coverage: float = MIN_COVERAGE
    seed: int = 0
    workers: int = 1
    work: Path | None = None

    @property
    def work_folder(self) -> Path:
        """Where shards and everything else lie between two calls."""
        return (self.work or self.output.with_suffix(".work")).absolute()

    @property
    def name(self) -> str:
        """Of the data set: the folder's, made of letters, digits, '_' and '-'."""
        return slug(self.dataset.absolute().name)

    @property
    def label(self) -> str:
        """Of the task: its column's name, made of the same signs."""
        name = slug(self.task)
        if name in RESERVED:
            raise InputError("--task", f"'{name}'", "a column of labels", "Rename the column if it is one.")
        return name

    @property
    def table(self) -> Path:
        """The table of people; an InputError where there is none."""
        if not self.dataset.is_dir():
            raise InputError(self.dataset, "no such folder", "a folder of parcel series", "Check --dataset.")
        if not any(self.dataset.iterdir()):
            raise InputError(self.dataset, "an empty folder", "parcel series and a table of people", "Check --dataset.")
        named = self.participants
        paths = [named, self.dataset / named] if named else [self.dataset / name for name in TABLES]
        for path in paths:
            if path.is_file():
                return path
        hint = "Write one, with a column of ids and one of labels, or name it with --participants."
        raise InputError(paths[0], "no such file", f"a table of people ({' or '.join(TABLES)})", hint)


@dataclass(frozen=True)
class Folder:
    """Who and what is in a folder; `found` says it in words, line by line."""

    table: pd.DataFrame  # by the names that later stages use: subject, family, site, age, sex, the task, confounds
    scans: Scans
    strangers: list[Series]  # series of nobody in the table
    label: Label
    confounds: tuple[str, ...]
    found: dict[str, str]


def read_folder(options: Options) -> Folder:
    """Everything that is inferred, before anything is computed.

    Raises
    ------
    InputError : no folder, table, series, column or label, as `list_series`, `match_people`, `read_columns` and
        `read_label` say; two people of one id; two series of one person that nothing tells apart.
    """
    path = options.table
    series = list_series(options.dataset, [options.work_folder, path])
    table, codes = without_missing(_read_table(path))
    label = read_label(table, options.task, path, options.positive, options.negative, options.number)
    match = match_people(table, series, path, options.dataset, options.id_column)
    columns = read_columns(table, path, options.task, options.site_column, options.confounds)
    table = table.assign(subject=_subjects(table[match.column], path, match.column))
    _require_own_series(match, table, series, path)
    people = {
        str(subject): [series[index] for index in match.rows.get(row, ())]
        for row, subject in enumerate(table["subject"])
    }
    scans = find_scans(options.name, people, *stated_times(table, columns.tr, options.tr_s))
    site, site_told = _sites(table, columns, people)
    own, confounds = _own_table(table, columns, site, label, options.label)
    used = {index for indices in match.rows.values() for index in indices}
    found = {
        "people": f"{len(table)} rows of {path.name}, {len(match.rows)} of them with a series",
        "ids": f"column '{match.column}', found as {match.part.told()}: {_example(match, table, series)}",
        f"task '{options.task}'": label.told,
        "missing": f"written as {', '.join(map(repr, codes))}" if codes else "no code but empty fields",
        "repetition time": scans.told,
        "site": site_told,
        **_told(columns),
    }
    strangers = [one for index, one in enumerate(series) if index not in used]
    return Folder(own, scans, strangers, label, confounds, found)


def _read_table(path: Path) -> pd.DataFrame:
    """The table as it stands; an InputError where it cannot be opened, has nobody, or a single column."""
    try:
        table = read_table_of_people(path)
    except OSError as error:
        raise InputError(path, f"a file that cannot be opened ({error.strerror})", "a table", "Mend it.") from error
    if len(table.columns) < 2:
        found = f"one column, '{table.columns[0][:60]}'" if len(table.columns) else "an empty table"
        expected = "a column of ids and one of labels, separated by commas (.csv) or tabs (any other name)"
        raise InputError(path, found, expected, "Separate them so, or rename the file.")
    if table.empty:
        raise InputError(path, "a header and no rows", "one row a person", "Write them.")
    return table


def _require_own_series(match: Match, table: pd.DataFrame, series: Sequence[Series], path: Path) -> None:
    """No series belongs to two rows: `1` and `sub-01` are one id."""
    owner: dict[int, int] = {}
    for row, indices in match.rows.items():
        for index in indices:
            first = owner.setdefault(index, row)
            if first != row:
                one, two = table[match.column].iloc[first], table[match.column].iloc[row]
                found = f"{match.column} '{one}' and '{two}', which both name {series[index].name}"
                raise InputError(path, found, "one row a person", "Delete one of the rows.")


def slug(text: str) -> str:
    """Text as the name of a data set."""
    return re.sub(r"[^A-Za-z0-9_-]+", "-", text).strip("-") or "folder"


def _subjects(ids: pd.Series[str], path: Path, column: str) -> pd.Series[str]:
    """Labels of letters and digits, as folders are called; an InputError for an id that is missing or stands twice."""
    if (ids == "").any():
        row = int((ids == "").to_numpy().argmax()) + 2
        raise InputError(path, f"no {column} in row {row}", "an id for each person", "Complete it, or drop the row.")
    if ids.duplicated().any():
        twice, hint = ids[ids.duplicated()].iloc[0], "Delete one of the rows, or name another --id-column."
        raise InputError(path, f"{column} '{twice}' twice", "one row a person", hint)
    labels = ids.str.removeprefix("sub-").str.replace(r"[^A-Za-z0-9]", "", regex=True)
    unclear = labels.str.lower().duplicated(keep=False) | (labels == "")
    tags = ids.map(lambda text: hashlib.sha256(text.encode()).hexdigest()[:TAG])
    return labels.where(~unclear, labels + "x" + tags)


def _sites(table: pd.DataFrame, columns: Columns, people: Mapping[str, Sequence[Series]]) -> tuple[pd.Series[str], str]:
    """Site of each person, "" where unknown: of a column, else of where the series lie."""
    if columns.site is not None:
        found = table[columns.site]
        return found, f"column '{columns.site}', {found[found != ''].nunique()} sites"
    places = dict(sites_by_place(people))
    found = table["subject"].map(lambda subject: places.get(subject, ""))
    if places:
        return found, f"the archive or folder that a series lies in, {len({*places.values()})} sites"
    return found, "no column of that meaning: one site"


def _own_table(
    table: pd.DataFrame, columns: Columns, site: pd.Series[str], label: Label, task: str
) -> tuple[pd.DataFrame, tuple[str, ...]]:
    """The table that the study reads, by the names that every later stage uses; and which columns are confounds."""
    named = {"family": columns.family, "age": columns.age, "sex": columns.sex, "mean_fd": columns.motion}
    own = {"subject": table["subject"], "site": site}
    own |= {name: table[column] for name, column in named.items() if column is not None}
    own.setdefault("family", table["subject"])
    more = {f"{name}_" if name in own or name == task else name: name for name in columns.confounds}
    own |= {new: table[name] for new, name in more.items()}
    first = [name for name in ("age", "site", "sex", "mean_fd") if name in own]
    return pd.DataFrame(own | {task: label.values}), (*first, *more)


def _told(columns: Columns) -> dict[str, str]:
    """What is said of the confounds, and of what was left out of them."""
    named = {"age": columns.age, "sex": columns.sex, "head motion": columns.motion, "family": columns.family}
    told = {what: f"column '{name}'" if name else "no column of that meaning" for what, name in named.items()}
    if columns.confounds:
        told["other confounds"] = ", ".join(columns.confounds)
    if columns.recoded:
        told["left out"] = f"{', '.join(columns.recoded)}: the same as the task in other words"
    return told


def _example(match: Match, table: pd.DataFrame, series: Sequence[Series]) -> str:
    row, (first, *_) = next(iter(match.rows.items()))
    return f"'{table[match.column].iloc[row]}' has {series[first].name}"


def runs_a_person(scans: Scans) -> int:
    """The most that anybody has."""
    return max(Counter(run.subject for run in scans.runs).values(), default=1)
