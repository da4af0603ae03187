"""What the columns of a table of people mean, by their names and by what stands in them.

Every conclusion is printed, and every one of them has an option that overrules it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from pipeline.errors import InputError, nearest

# What stands for a missing value, in lower case; `none` is not among them: it is the name of a class in some tables.
MISSING = ("", "n/a", "na", "nan", "null", "#n/a", ".", "-999", "-9999", "-999.0", "-9999.0")
# Names of columns, letters and digits alone, the likeliest first.
TR = ("trs", "tr", "repetitiontime", "trsec", "trseconds")
SITE = (
    "site",
    "siteid",
    "scansite",
    "acquisitionsite",
    "center",
    "centre",
    "centerid",
    "centreid",
    "scanner",
    "scannerid",
)
AGE = ("age", "ageatscan", "ageyears", "ageyrs", "agescan", "agemri")
SEX = ("sex", "gender")
FAMILY = ("family", "familyid", "famid", "relfamilyid", "household", "householdid")
MOTION = (
    *("meanfdmm", "meanfd", "funcmeanfd", "fdmean", "fd", "meanfdjenkinson", "meanfdpower", "fdpower"),
    *("meanframewisedisplacement", "framewisedisplacement", "framewisedisplacementmean", "meanmotion", "motion"),
)
BRAIN_SIZE = ("brainvolume", "brainsize", "icv", "etiv", "tiv", "intracranialvolume", "totalintracranialvolume")
SAME, SAME_NUMBERS = 0.9999, 10  # correlation above which two columns of more different numbers than this say the same
SITE_LEAST = 2.0  # people a site, on average, above which a column may name sites


class Columns(NamedTuple):
    """Columns of the table by what they say; None where there is none."""

    tr: str | None
    site: str | None
    age: str | None
    sex: str | None
    family: str | None
    motion: str | None
    confounds: tuple[str, ...]  # beside age, site, sex and motion: brain size, or those that the user named
    recoded: tuple[str, ...]  # columns that would be one of these but say the same as the task


def without_missing(table: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
    """The table stripped, every code for a missing value made empty, and the codes that stood in it."""
    stripped = table.apply(lambda column: column.str.strip())
    missing = stripped.apply(lambda column: column.str.lower().isin(MISSING))
    found = {value for name in stripped for value in stripped.loc[missing[name], name]} - {""}
    return stripped.mask(missing, ""), sorted(found)


def read_columns(
    table: pd.DataFrame, path: Path, task: str, site: str | None = None, confounds: Sequence[str] | None = None
) -> Columns:
    """What each column is; `site` and `confounds` are what the user says.

    Raises
    ------
    InputError : a column that the user names is not there, or a confound is the task.
    """
    for option, name in [("--site-column", site), *(("--confounds", name) for name in confounds or ())]:
        if name is not None and name not in table:
            raise InputError(path, f"no column '{name}'", f"the column of {option}", nearest(name, list(table.columns)))
        if name is not None and name == task and option == "--confounds":
            raise InputError("--confounds", f"'{name}', which is the task", "other columns", "Leave it out.")
        if option == "--confounds" and name is not None and _is_recoded(table[name], table[task]):
            raise InputError("--confounds", f"'{name}', which is '{task}' in other words", "other columns", "Drop it.")
    recoded = tuple(str(name) for name in table if name != task and _is_recoded(table[name], table[task]))
    others = table.drop(columns=[task, *recoded])
    if confounds is None:
        confounds = tuple(filter(None, [_named(others, BRAIN_SIZE, _is_number)]))
        motion = _named(others, MOTION, _is_number)
    else:
        motion = _named(others[[name for name in confounds if name in others]], MOTION, _is_number)
    return Columns(
        tr=_named(table, TR, _is_number),
        site=site or _named(others, SITE, _may_be_site),
        age=_named(others, AGE, _is_number),
        sex=_named(others, SEX, _is_text) or _named(others, SEX, _may_be_sex),
        family=_named(table, FAMILY, lambda values: bool((values != "").any())),
        motion=motion,
        confounds=tuple(name for name in dict.fromkeys(confounds) if name != motion),
        recoded=tuple(name for name in recoded if _plain(name) in (*SITE, *AGE, *SEX, *MOTION)),
    )


def _is_recoded(values: pd.Series[str], task: pd.Series[str]) -> bool:
    """Whether a column says of everybody what the task's says, in other words or another unit."""
    known = (values != "") & (task != "")
    if _is_number(values[known]) and _is_number(task[known]) and task[known].nunique() > SAME_NUMBERS:
        both = np.array([numbers(values[known]), numbers(task[known])])
        return values[known].nunique() > SAME_NUMBERS and abs(np.corrcoef(both)[0, 1]) > SAME
    pairs = pd.DataFrame({"column": values[known], "task": task[known]}).drop_duplicates()
    return len(pairs) > 1 and pairs["column"].is_unique and pairs["task"].is_unique and len(pairs) < known.sum()


def _named(table: pd.DataFrame, names: Iterable[str], fits: Callable[[pd.Series], bool]) -> str | None:
    """The first column of one of these names whose values fit."""
    columns = [str(column) for column in table.columns]
    fitting = (column for name in names for column in columns if _plain(column) == name and fits(table[column]))
    return next(fitting, None)


def _plain(name: str) -> str:
    return "".join(letter for letter in name.lower() if letter.isalnum())


def numbers(values: pd.Series[str]) -> pd.Series[float]:
    """Values as numbers; NaN where empty or no number."""
    found = pd.to_numeric(values.mask(values == ""), errors="coerce").astype(float)
    return found.where(np.isfinite(found))


def _is_number(values: pd.Series[str]) -> bool:
    known = values[values != ""]
    return len(known) > 0 and bool(numbers(known).notna().all())


def _may_be_site(values: pd.Series[str]) -> bool:
    known = values[values != ""]
    return known.nunique() > 1 and len(known) >= SITE_LEAST * known.nunique()


def _is_text(values: pd.Series[str]) -> bool:
    return _may_be_sex(values) and not _is_number(values)


def _may_be_sex(values: pd.Series[str]) -> bool:
    return 1 <= values[values != ""].nunique() <= 3
