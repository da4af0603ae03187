"""The table of a data set's people: who they are, what their labels mean, what is missing.

Which file, which columns and which codes is said by the data-set file; what comes out is the same for every data set.
"""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.bold.inputs import LABEL
from pipeline.config import Dataset, Phenotype, Study, expand_path
from pipeline.errors import InputError, nearest

if TYPE_CHECKING:
    import pandas as pd

TR_COLUMNS = ("tr_s", "TR")  # seconds; asked by layouts whose files may not state a TR


def require_folder(study: Study, dataset: str) -> Path:
    """The data set's folder, or an InputError that names the key to change."""
    folder = study.data_path(dataset)
    if not folder.is_dir():
        hint = f"Set datasets.{dataset}.path in its data-set file, or make the data there."
        raise InputError(folder, "no such folder", f"the data of '{dataset}'", hint)
    return folder


def table_path(study: Study, dataset: str) -> Path:
    """Where the data set's table of people lies: in its folder, or where an absolute path says."""
    named = expand_path(f"datasets.{dataset}.participants", study.datasets[dataset].participants)
    return study.data_path(dataset) / named


def read_participants(study: Study, dataset: str) -> pd.DataFrame:
    """The table as it stands, every value as text, with a column `subject`: the id without `sub-`.

    A raw BIDS folder may have no table: its people are then its folders sub-*, in the order of their names.

    Raises
    ------
    InputError : no folder, no table, one that is not rectangular, no id column, an id that is not letters and digits
        or stands twice.
    """
    import pandas as pd

    folder, path, settings = require_folder(study, dataset), table_path(study, dataset), study.datasets[dataset]
    if path.is_file():
        table = read_table_of_people(path)
    elif settings.door == "bids" and settings.participants == Dataset.model_fields["participants"].default:
        path = folder / "sub-*"
        table = pd.DataFrame({settings.id_column: sorted(each.name for each in folder.glob("sub-*") if each.is_dir())})
    else:
        hint = f"Set datasets.{dataset}.participants; a single column '{settings.id_column}' will do."
        raise InputError(path, "no such file", "a table of people", hint)
    require_columns(table, [settings.id_column], path)
    table["subject"] = table[settings.id_column].str.removeprefix("sub-")
    _require_ids(table["subject"], settings.id_column, path)
    return table


def read_table_of_people(path: Path) -> pd.DataFrame:
    """A table of text, every value as it stands; by hand, since pandas fills short rows and renames what stands twice.

    Raises
    ------
    InputError : unreadable, a row of another length than the header, or a column that stands twice.
    """
    import pandas as pd

    header, *rows = _lines(path) or [[]]
    for number, fields in enumerate(rows, start=2):
        if len(fields) != len(header):
            found = f"{len(fields)} fields in row {number}"
            raise InputError(path, found, f"{len(header)} as in the header", "Mend that row.")
    twice = [name for name in header if header.count(name) > 1]
    if twice:
        raise InputError(path, f"column '{twice[0]}' twice", "each column once", "Delete or rename one of them.")
    return pd.DataFrame(rows, columns=header, dtype=str)


def _lines(path: Path) -> list[list[str]]:
    """Fields of the lines that are not empty; commas separate them in a .csv, tabs elsewhere."""
    separator = "," if path.suffix.lower() == ".csv" else "\t"
    try:
        with path.open(newline="", encoding="utf-8-sig") as stream:
            return [fields for fields in csv.reader(stream, delimiter=separator, strict=True) if fields]
    except (csv.Error, UnicodeDecodeError) as error:
        kind = "comma-separated" if separator == "," else "tab-separated"
        raise InputError(path, f"an unreadable table ({error})", f"{kind} UTF-8 text", "Mend it.") from error


def _require_ids(subjects: pd.Series[str], column: str, path: Path) -> None:
    for subject in subjects:
        if not re.fullmatch(LABEL, subject):
            hint = "Rename the person in the table and the files, or name another id_column."
            raise InputError(path, f"{column} '{subject}'", "letters and digits, with or without 'sub-'", hint)
    twice = subjects[subjects.duplicated()]
    if len(twice):
        raise InputError(path, f"participant '{twice.iloc[0]}' twice", "one row a person", "Delete one of the rows.")


def require_columns(table: pd.DataFrame, columns: Iterable[str], path: Path) -> None:
    """An InputError for the first column that the table lacks."""
    for column in columns:
        if column not in table:
            hint = nearest(column, list(table.columns))
            raise InputError(path, f"no column '{column}'", "a column named in the data set", hint)


def repetition_times(study: Study, dataset: str) -> dict[str, float]:
    """TR in seconds by person, from a column `tr_s` or `TR` of the table; empty where there is none.

    Raises
    ------
    InputError : as `read_participants`; a TR that is no number.
    """
    table, missing = read_participants(study, dataset), study.datasets[dataset].missing
    column = next((name for name in TR_COLUMNS if name in table), None)
    if column is None:
        return {}
    stated = table.set_index("subject")[column]
    stated = stated[~stated.isin(["", *missing])]
    path = table_path(study, dataset)
    return {str(subject): _number(text, column, str(subject), path, missing) for subject, text in stated.items()}


def _number(text: str, column: str, subject: str, path: Path, missing: Sequence[str]) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        where = f"{path}: participant '{subject}', column '{column}'"
        raise InputError(where, f"'{text}'", f"a number or {_or(missing)}", "Write a plain number, 90 for '>89' say.")
    return number


def _or(words: Sequence[str]) -> str:
    return " or ".join(word or "nothing" for word in words)


def normalised(study: Study, dataset: str, members: Sequence[str]) -> pd.DataFrame:
    """The table of these people in the form that every later stage reads, one row a person, all text.

    Columns: subject, family, site (of the column `site` where no other is named), age, one of 0/1/empty or a number
    a label, and the confounds, which are columns of this table or of the source. A missing value is empty; who has no
    family is one.

    Raises
    ------
    InputError : as `read_participants`; a column is missing, an age is no number, a label has no known value.
    """
    import pandas as pd

    settings, path = study.datasets[dataset], table_path(study, dataset)
    source = read_participants(study, dataset).set_index("subject").loc[[*members]]
    named = [column for column in (settings.family_column, settings.site_column) if column]
    require_columns(source, [*named, *(phenotype.column for phenotype in settings.labels.values())], path)
    people = pd.DataFrame({"subject": source.index}, index=source.index)
    family = _known(source, settings.family_column, settings)
    people["family"] = family.mask(family == "", people["subject"])
    people["site"] = _known(source, settings.site_column or "site", settings)
    people["age"] = _ages(source, settings, path)
    for task, phenotype in settings.labels.items():
        people[task] = _coded(source[phenotype.column], task, phenotype, settings, path)
    columns = {"age": settings.age_column, "site": settings.site_column or "site"}
    more = [column for column in settings.confounds if column not in people]
    require_columns(source, [*more, *(columns[name] for name in settings.confounds if name in columns)], path)
    return people.assign(**{column: _known(source, column, settings) for column in more})


def _known(source: pd.DataFrame, column: str | None, settings: Dataset) -> pd.Series[str]:
    """A column with what is missing made empty; all empty without a column."""
    import pandas as pd

    if column is None or column not in source:
        return pd.Series("", index=source.index, dtype=str)
    return source[column].mask(source[column].isin([*settings.missing]), "")


def _ages(source: pd.DataFrame, settings: Dataset, path: Path) -> pd.Series[str]:
    """Ages as they stand, empty where missing."""
    ages = _known(source, settings.age_column, settings)
    for subject, age in ages[ages != ""].items():
        _number(age, settings.age_column, str(subject), path, settings.missing)
    return ages


def _coded(values: pd.Series[str], task: str, phenotype: Phenotype, settings: Dataset, path: Path) -> pd.Series[str]:
    """1, 0 or empty, or the number as it stands; a value that is neither coded nor missing is refused where labels are
    required.
    """
    if phenotype.number:
        known = values.mask(values.isin([*settings.missing]), "")
        for subject, text in known[known != ""].items():
            _number(text, phenotype.column, str(subject), path, settings.missing)
        return known
    codes = dict.fromkeys(phenotype.negative, "0") | dict.fromkeys(phenotype.positive, "1")
    unknown = values[~values.isin([*codes, *settings.missing])]
    if "evaluate" in settings.roles and len(unknown):
        where = f"{path}: participant '{unknown.index[0]}', column '{phenotype.column}'"
        missing = _or(settings.missing)
        hint = f"Write {missing} if it is missing, or add the value to labels.{task}.positive or .negative."
        found = f"'{unknown.iloc[0]}'" if unknown.iloc[0] else "no label"
        raise InputError(where, found, f"one of {', '.join(codes)} or {missing}", hint)
    return values.map(codes).fillna("")
