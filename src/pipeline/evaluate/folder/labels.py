"""What is predicted: how the values of the task's column become two classes, or a number."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from pipeline.config import Phenotype
from pipeline.errors import InputError, nearest
from pipeline.evaluate.folder.columns import numbers
from pipeline.evaluate.splits import MIN_CLASS

# Values of controls, in lower case.
CONTROL = {
    *("0", "-1", "no", "none", "false", "negative", "unaffected"),
    *("tc", "td", "tdc", "nt", "hc", "hcs", "cn", "nc", "cu", "con", "ctl", "ctrl", "control", "controls"),
    *("healthy", "normal", "typical", "neurotypical", "healthy control", "normal control", "typically developing"),
}
FEMALE, MALE = ("f", "female", "woman", "girl"), ("m", "male", "man", "boy")
MOST_VALUES = 10  # numbers of more different values are a quantity


class Label(NamedTuple):
    """The task's coding, its values as they go into the study's table ("" where missing), and why."""

    phenotype: Phenotype
    values: pd.Series
    told: str
    neither: dict[int, str]  # rows whose value the user left out of both classes, and that value


def read_label(
    table: pd.DataFrame,
    task: str,
    path: Path,
    positive: Sequence[str] = (),
    negative: Sequence[str] = (),
    number: bool = False,
) -> Label:
    """How the task's column is coded.

    Two values: one is the positive class. `positive` alone: every other value is negative; with `negative`: other
    values count as missing. More than `MOST_VALUES` different numbers, or `number`: a quantity.

    Raises
    ------
    InputError : no such column; nobody has a value; one class alone; more than two values and nothing said of them;
        a class with fewer people than splits need.
    """
    if task not in table:
        hint = nearest(task, list(table.columns))
        raise InputError(path, f"no column '{task}'", "the column of --task", hint)
    where, values = f"{path}: column '{task}'", table[task].map(_canonical)
    counts = values[values != ""].value_counts()
    if counts.empty:
        raise InputError(where, "no label of anybody", "a value for each person", "Name another column as --task.")
    if number or not (positive or negative):
        known = numbers(values[values != ""])
        if number or (known.notna().all() and known.nunique() > MOST_VALUES):
            return _quantity(values, task, where)
    chosen, told = _classes(counts, where, positive, negative)
    return _coded(values, task, where, chosen, told)


def _canonical(value: str) -> str:
    """1.0 and 1 are one value."""
    try:
        number = float(value)
    except ValueError:
        return value
    return f"{number:.12g}" if value else ""


def _quantity(values: pd.Series, task: str, where: str) -> Label:
    known = values[values != ""]
    odd = known[numbers(known).isna()]
    if len(odd):
        hint = "Correct it, or write n/a."
        raise InputError(where, f"'{odd.iloc[0]}' of row {odd.index[0] + 2}", "numbers", hint)
    told = f"a number, {len(known)} people, {numbers(known).min():g} to {numbers(known).max():g}: predicted by ridge"
    return Label(Phenotype(column=task, number=True), values, told, {})


def _classes(
    counts: pd.Series, where: str, positive: Sequence[str], negative: Sequence[str]
) -> tuple[tuple[list[str], list[str]], str]:
    """(positive, negative) values, and why."""
    known = [str(value) for value in counts.index]
    positive, negative = [_canonical(each) for each in positive], [_canonical(each) for each in negative]
    for value in (*positive, *negative):
        if value not in known:
            raise InputError(where, f"nobody with '{value}'", f"one of {_list(counts)}", nearest(value, known))
    if both := sorted({*positive} & {*negative}):
        raise InputError("--positive, --negative", f"'{both[0]}' in both", "each value once", "Drop it from one.")
    if positive or negative:
        rest = [value for value in known if value not in (*positive, *negative)]
        if not rest and not (positive and negative):
            raise InputError(where, f"nobody with another value than {_list(counts)}", "two classes", "Name fewer.")
        return (positive or rest, negative or rest), "as you say"
    if len(known) == 1:
        hint = "The other class is absent: name another column as --task."
        raise InputError(where, f"'{known[0]}' alone ({counts.iloc[0]} people)", "two classes", hint)
    if len(known) > 2:
        hint = "Say which are compared: --positive A --negative B (commas between several), or --number for a quantity."
        raise InputError(where, f"{len(known)} values: {_list(counts)}", "two", hint)
    return _guess(known)


def _guess(known: list[str]) -> tuple[tuple[list[str], list[str]], str]:
    first, second = sorted(known)
    if {first.lower() in FEMALE, second.lower() in FEMALE} == {True, False} and (
        {first.lower(), second.lower()} & {*MALE}
    ):
        female = first if first.lower() in FEMALE else second
        return ([female], [second if female == first else first]), "female is positive"
    controls = [value for value in (first, second) if value.lower() in CONTROL]
    if len(controls) == 1:
        patients = second if controls[0] == first else first
        return ([patients], controls), f"'{controls[0]}' is a word for controls"
    return ([second], [first]), f"guessed: '{second}' comes last in order; --positive overrules"


def _coded(values: pd.Series, task: str, where: str, chosen: tuple[list[str], list[str]], told: str) -> Label:
    positive, negative = chosen
    n_positive, n_negative = int(values.isin(positive).sum()), int(values.isin(negative).sum())
    if min(n_positive, n_negative) < MIN_CLASS:
        found = f"{n_positive} people with {_words(positive)} and {n_negative} with {_words(negative)}"
        hint = "Add people, or name other values with --positive and --negative."
        raise InputError(where, found, f"at least {MIN_CLASS} of each", hint)
    out = values[~values.isin([*positive, *negative, ""])]
    told = f"positive {_words(positive)} ({n_positive}), negative {_words(negative)} ({n_negative}); {told}"
    phenotype = Phenotype(column=task, positive=tuple(positive), negative=tuple(negative))
    neither = {int(position): str(values.iloc[position]) for position in np.flatnonzero(values.index.isin(out.index))}
    return Label(phenotype, values.drop(out.index).reindex(values.index, fill_value=""), told, neither)


def _words(values: Collection[str]) -> str:
    return " or ".join(f"'{value}'" for value in values)


def _list(counts: pd.Series) -> str:
    shown = ", ".join(f"'{value}' ({count})" for value, count in counts.head(8).items())
    return f"{shown}, ..." if len(counts) > 8 else shown
