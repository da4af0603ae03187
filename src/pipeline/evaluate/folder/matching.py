"""Whose series is whose: which column of the table of people, and which part of the series' names, say the same.

Tables write `50003` or `sub-01` where files are called `Pitt_0050003` or `0050003_rois_cc200`. Every column of ids is
held against every part of the names (the whole, some words of it, the folder above); the pair that finds most people
is taken, and it must be the only one.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from pipeline.errors import InputError, nearest
from pipeline.evaluate.folder.series import Series

WORDS = 5  # of a name, from either end, that may begin an id
LONGEST = 3  # words of an id
LEVELS = 3  # names looked into: the series' own, and those of the file and folders above it
UNIQUE = 0.9  # share of different values above which a column may hold ids; a repeated id is told as such
REPEATED = 0.3  # the same of a table with several rows a person, which is told as such too
FOUND = 0.5  # share of the people, or of the series if they are fewer, that must be found
STANDARD = "participant_id"  # BIDS's column, which goes before others that fit as well


class Part(NamedTuple):
    """A part of a series' name; `level` 0 is the series' own, 1 the file or folder above it."""

    level: int
    start: int | None = None  # words, as of a slice; None: the whole name
    stop: int | None = None
    number: bool = False  # only the digits at its end

    @property
    def rank(self) -> int:
        """How far-fetched it is."""
        return 2 * self.level + (0 if self.start is None else 1) + 2 * self.number

    def told(self) -> str:
        """In words."""
        name = ("name", "file or folder", "folder above")[self.level]
        part = f"the {name}" if self.start is None else f"a part of the {name}"
        return f"the digits of {part}" if self.number else part


@dataclass(frozen=True)
class Match:
    """A column of ids, the part of names that has them, and the series of each row of the table."""

    column: str
    part: Part
    of_value: str  # what of the column's values: "whole", "last word" or "digits"
    rows: Mapping[int, tuple[int, ...]]  # row of the table -> series

    @property
    def order(self) -> tuple[int, int, int]:
        """The best first: most people, then BIDS's column, then the plainest reading."""
        standard = _plain(self.column) == STANDARD
        return -len(self.rows), int(not standard), self.part.rank + (0, 1, 3)[VALUES.index(self.of_value)]


VALUES = ("whole", "last word", "digits")


def match_people(
    table: pd.DataFrame, series: Sequence[Series], path: Path, folder: Path, column: str | None = None
) -> Match:
    """The one way in which rows of the table and series belong together.

    Raises
    ------
    InputError : no column `column`; nobody or hardly anybody has a series; or two columns fit as well and disagree.
    """
    if column is not None and column not in table:
        hint = nearest(column, list(table.columns))
        raise InputError(path, f"no column '{column}'", "the column of --id-column", hint)
    columns = [column] if column else [str(name) for name in table if _may_be_ids(table[name])]
    matches = sorted(_matches(table, columns, _parts(series)), key=lambda match: match.order)
    least = FOUND * min(len(table), len(series)) if column is None else 1
    if not matches or len(matches[0].rows) < least:
        _require_one_row(table, series, path)
        raise _nobody(table, columns, series, path, folder, len(matches[0].rows) if matches else 0)
    best = matches[0]
    rivals = [match for match in matches if match.order == best.order and match.rows != best.rows]
    if rivals:
        other = rivals[0]
        found = f"two ways to give {len(best.rows)} people their series: {_told(best, table, series)}"
        hint = "Name the column of ids: --id-column."
        raise InputError(path, f"{found}; or {_told(other, table, series)}", "one", hint)
    return best


def _require_one_row(table: pd.DataFrame, series: Sequence[Series], path: Path) -> None:
    """An InputError where a column would be that of ids but for the rows that a person has in it."""
    columns = [str(name) for name in table if _may_be_ids(table[name], REPEATED)]
    for match in sorted(_matches(table, columns, _parts(series)), key=lambda match: match.order):
        ids = table[match.column]
        found = ids.iloc[[*match.rows]]
        if found.duplicated().any() and found.nunique() >= FOUND * min(ids.nunique(), len(series)):
            twice = found[found.duplicated()].iloc[0]
            raise InputError(path, f"{match.column} '{twice}' twice", "one row a person", "Keep one row of each.")


def _told(match: Match, table: pd.DataFrame, series: Sequence[Series]) -> str:
    row, (first, *_) = next(iter(match.rows.items()))
    return f"column '{match.column}' '{table[match.column].iloc[row]}' has {series[first].name}"


def _nobody(
    table: pd.DataFrame, columns: Sequence[str], series: Sequence[Series], path: Path, folder: Path, count: int
) -> InputError:
    """Both sides with examples."""
    shown = columns or list(table.columns)[:3]
    ids = "; ".join(f"{name}: {', '.join(map(repr, table[name].head(2)))}" for name in shown[:4])
    names = ", ".join(f"'{each.name}'" for each in series[:3])
    who = f"{count} of {len(table)} people" if count else "nobody"
    found = f"{who} with a series in {folder} (the table has {ids}; the folder has {names})"
    hint = "Name the column with --id-column, or write the names of the series into a column of the table."
    return InputError(path, found, "ids that are the names of series, or stand in them", hint)


def _may_be_ids(values: pd.Series[str], unique: float = UNIQUE) -> bool:
    """Hardly a value twice (a share of `unique` different ones), and no fractions."""
    known = values[values != ""]
    fractions = known.str.fullmatch(r"-?\d*\.\d*[1-9]\d*(e-?\d+)?")
    return len(known) > 0 and not fractions.any() and known.nunique() >= unique * len(known)


def _matches(
    table: pd.DataFrame, columns: Sequence[str], parts: Mapping[Part, Mapping[str, tuple[int, ...]]]
) -> Iterator[Match]:
    for column in columns:
        for of_value, keys in _readings_of_values(table[column]).items():
            for part, series_of in parts.items():
                rows = {row: series_of[key] for row, key in enumerate(keys) if key in series_of}
                if rows:
                    yield Match(column, part, of_value, rows)


def _readings_of_values(values: pd.Series[str]) -> dict[str, list[str]]:
    whole = [_plain(value) for value in values]
    found = {"whole": whole}
    others = {"last word": [_plain(_words(value)[-1]) if _words(value) else "" for value in values]}
    others["digits"] = [_digits(key) for key in whole]
    for name, keys in others.items():
        if keys not in found.values() and len({*keys}) == len({*whole}):  # ids must stay different
            found[name] = keys
    return found


def _parts(series: Sequence[Series]) -> dict[Part, dict[str, tuple[int, ...]]]:
    """Every part of the names that differs between series: key -> those that have it."""
    found: dict[Part, dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
    for index, each in enumerate(series):
        for level, name in enumerate(reversed(each.place[-LEVELS:])):
            for part, text in _parts_of(level, name):
                key = _plain(text)
                for shown, number in ((key, False), (_digits(key), True)):
                    if shown and (not number or shown != key):
                        found[part._replace(number=number)][shown].append(index)
    return {
        part: {key: tuple(at) for key, at in keys.items()}
        for part, keys in found.items()
        if len(keys) > 1 or len(series) == 1
    }


def _parts_of(level: int, name: str) -> Iterator[tuple[Part, str]]:
    words = _words(name)
    yield Part(level), name
    for start in range(min(WORDS, len(words))):
        for stop in range(start + 1, min(start + LONGEST, len(words)) + 1):
            yield Part(level, start, stop), "_".join(words[start:stop])
            yield Part(level, -stop, -start or None), "_".join(words[len(words) - stop : len(words) - start])


def _words(text: str) -> list[str]:
    return re.findall(r"[A-Za-z0-9]+", text)


def _plain(text: str) -> str:
    """What is compared: lower case, without `sub-`, one sign between words, no zeros before a number."""
    text = re.sub(r"^(-?\d+)\.0+$", r"\1", text.strip().lower())
    text = re.sub(r"^sub(?:[-_ ]+(?=.)|(?=\d))", "", text)
    text = "_".join(_words(text))
    return text.lstrip("0") or "0" if text.isdecimal() else text


def _digits(key: str) -> str:
    """The number at the end of letters; "" where there is none."""
    found = re.fullmatch(r"[a-z_]+?0*(\d+)", key)
    return found[1] if found else ""
