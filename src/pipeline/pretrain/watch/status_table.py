"""The table of `pipeline status`: a row a cell, what is counted above it, what a screen has no room for below it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal, get_args

State = Literal[
    "failed",
    "running",
    "interrupted",
    "requeued",
    "queued",
    "waiting",
    "done",
    "diverged",
    "collapsed",
    "stopped_early",
]
STATES: tuple[State, ...] = get_args(State)
LISTED = STATES[:5]  # what a person may have to do something about; the others are counted where they fill the screen
FINISHED: dict[str, State] = {
    "completed": "done",
    "diverged": "diverged",
    "collapsed": "collapsed",
    "stopped_early": "stopped_early",
}

COLOURS = {"running": 32, "failed": 31, "interrupted": 33, "requeued": 33, "diverged": 35, "collapsed": 35}
BAR = 10
HEADINGS = ("cell", "state", "step", "loss", "clips/s", "left", "job", "note")
NUMERIC = frozenset(("loss", "clips/s", "left"))


@dataclass(frozen=True)
class Row:
    """A cell as it is now; None where something is not known.

    Attributes
    ----------
    step, steps : optimiser steps done and to do, over all branches.
    clips_per_s, left_s : over the last half minute of a training, and what that leaves, s.
    job : SLURM's number of the job that trains it or is to.
    note : where it runs, what it waits for, how it failed, which of its files is damaged.
    """

    cell: str
    state: State
    step: int | None = None
    steps: int | None = None
    loss: float | None = None
    clips_per_s: float | None = None
    left_s: float | None = None
    job: str | None = None
    note: str = ""


@dataclass(frozen=True)
class Screen:
    """What a table has to fit into.

    Attributes
    ----------
    columns, lines : its size; None where nothing is cut.
    colours : whether states are coloured.
    full : whether the table must not be longer than the screen.
    """

    columns: int | None = None
    lines: int | None = None
    colours: bool = False
    full: bool = False


def render(title: str, rows: Sequence[Row], screen: Screen, everything: bool = False, remark: str = "") -> list[str]:
    """Lines of the whole picture: what is counted, the table, what was left out of it."""
    counts = Counter(row.state for row in rows)
    ended = sum(counts[state] for state in FINISHED.values())
    head = [
        f"{title}: {len(rows)} cells, {ended} finished {_bar(ended, len(rows))} {datetime.now():%H:%M:%S}",
        ", ".join(f"{counts[state]} {state}" for state in STATES if counts[state]),
        *([remark] if remark else []),
        "",
    ]
    listed = list(rows)
    # Beside the head there are headings, and a line of what is left out.
    room = None if screen.lines is None else max(0, screen.lines - len(head) - 2)
    if room is not None and len(rows) > room and not everything:
        listed = sorted((row for row in rows if row.state in LISTED), key=lambda row: LISTED.index(row.state))
    if screen.full:
        listed = listed[:room]
    left_out = Counter(row.state for row in rows) - Counter(row.state for row in listed)
    foot = [f"not listed: {_counted(left_out)}"] if left_out else []
    return [_clip(line, screen) for line in head] + _table(listed, screen) + [_clip(line, screen) for line in foot]


def _counted(counts: Mapping[State, int]) -> str:
    return ", ".join(f"{counts[state]} {state}" for state in STATES if counts.get(state)) + " (--all lists them)"


def _table(rows: Sequence[Row], screen: Screen) -> list[str]:
    """Headings and a line a row; a column in which nothing stands is left out."""
    texts = [_texts(row) for row in rows]
    shown = [name for number, name in enumerate(HEADINGS) if any(text[number] for text in texts)]
    numbers = [HEADINGS.index(name) for name in shown]
    widths = [max(len(name), *(len(text[at]) for text in texts)) for name, at in zip(shown, numbers, strict=True)]

    def line(values: Iterable[str], state: str | None) -> str:
        pairs = zip(shown, values, widths, strict=True)
        padded = [value.rjust(width) if name in NUMERIC else value.ljust(width) for name, value, width in pairs]
        text = _clip("  ".join(padded).rstrip(), screen)
        return _coloured(text, state, widths[0] + 2) if screen.colours and state else text

    body = [line([text[at] for at in numbers], row.state) for text, row in zip(texts, rows, strict=True)]
    return [line(shown, None), *body] if body else []


def _texts(row: Row) -> tuple[str, ...]:
    """What stands in the columns of HEADINGS."""
    done = "" if row.step is None else f"{row.step}" if not row.steps else f"{row.step}/{row.steps}"
    if row.state == "running" and row.step is not None and row.steps:
        done = f"{_bar(row.step, row.steps)} {done}"
    left = "" if row.left_s is None else str(timedelta(seconds=round(row.left_s)))
    loss, speed = ("" if value is None else f"{value:.4g}" for value in (row.loss, row.clips_per_s))
    return row.cell, row.state, done, loss, speed, left, printable(row.job or ""), printable(row.note)


def _bar(done: int, whole: int) -> str:
    filled = BAR * max(0, min(done, whole)) // max(1, whole)
    return f"[{'#' * filled}{'-' * (BAR - filled)}]"


def printable(text: str) -> str:
    """One line without control characters, in letters that any terminal has."""
    return "".join(letter if letter.isprintable() else " " for letter in text).encode("ascii", "replace").decode()


def _clip(text: str, screen: Screen) -> str:
    return text if screen.columns is None else text[: screen.columns]


def _coloured(text: str, state: str, start: int) -> str:
    end, colour = start + len(state), COLOURS.get(state)
    return f"{text[:start]}\x1b[{colour}m{text[start:end]}\x1b[0m{text[end:]}" if colour else text
