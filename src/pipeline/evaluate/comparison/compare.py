"""Paired comparisons of the benchmark's lines: against the connectome, the best simple system, and the best peer.

On each task the best simple system is the simple one with the highest mean over its splits, and the best peer of a line
is so among pretrained encoders and systems trained on labels, those of the line's own architecture left out. Both are
chosen by the very values that are compared, so the chosen one is flattered: `above` errs on the safe side, `below` is a
statement about the system that happened to be best.

A difference is the mean, over the splits that both lines ran, of the difference of their values (means over seeds and
draws). Its test is that of Nadeau & Bengio (2003), because splits share people. Beside it stands a bootstrap over
families of each person's averaged score, where both averaged as many splits.

All tests of the figure are one family for Holm. A pair of lines on one task is one test, however many roles it fills
(where the connectome is the best simple system, or two lines are each other's opponent).

Axes: S splits that both ran, R resamples of families (row 0: the sample itself), N people.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from scipy import special

from pipeline.artefact import provenance, read_table, write_table
from pipeline.config import Study
from pipeline.errors import InputError
from pipeline.evaluate.comparison.lines import REFERENCE, Kind, Line, key_of, lineup, main_rows, pick, records
from pipeline.evaluate.comparison.paired import NOBODY, People, Resampled, difference_of, resample
from pipeline.evaluate.protocols import FROZEN, TRAINED
from pipeline.evaluate.rows import ALL, HEADLINE
from pipeline.evaluate.statistics import corrected_repeated_cv_test, holm, pooled_effect
from pipeline.stages import VERSIONS, stage_settings
from pipeline.tables import COMPARISONS_SCHEMA, NONE

Role = Literal["connectome", "best simple", "best peer"]
ROLES: tuple[Role, ...] = ("connectome", "best simple", "best peer")
TOLD: dict[Any, str] = {role: "best simple system" if role == "best simple" else role for role in ROLES}
PEERS: tuple[Kind, ...] = ("encoder", "network")
SIGNIFICANT = 0.05  # after Holm
POOLED = "pooled"  # the data set of a comparison over all data sets that have a task of one name
TABLES = ("benchmark", "scores", "tasks", "pretrain")

Row = dict[str, Any]


def write_comparisons(study: Study, tables_folder: Path, output: Path) -> None:
    """Compare what lies in a study's tables and write COMPARISONS_SCHEMA.

    Raises
    ------
    InputError : a table is missing, or a task has no row in `tasks`.
    """
    paths: dict[str, str | Path] = {name: tables_folder / f"{name}.parquet" for name in TABLES}
    benchmark, scores, tasks, pretrain = (read_table(path) for path in paths.values())
    record = provenance("comparisons", VERSIONS["comparisons"], stage_settings(study, "comparisons"), paths)
    write_table(output, compare(study, benchmark, scores, tasks, pretrain), COMPARISONS_SCHEMA, record)


def compare(
    study: Study,
    benchmark: pd.DataFrame,
    scores: pd.DataFrame,
    tasks: pd.DataFrame,
    pretrain: pd.DataFrame | None = None,
) -> pd.DataFrame:
    """Rows of COMPARISONS_SCHEMA: every line but chance, every task, every role; then each pooled over data sets.

    `pretrain` is needed for the line of the N x T that reconstructs best. A line without a value on a task has no row
    there; one that lacks a seed on a split is not compared on it.

    Raises
    ------
    InputError : a task of the benchmark has no row in `tasks`.
    """
    rows: list[Row] = []
    lines = lineup(study, benchmark, pretrain)
    for dataset, task in task_names(benchmark):
        where = {"dataset": dataset, "task": task}
        rows += _task_rows(Contestants(study, lines, *(pick(table, **where) for table in (benchmark, scores, tasks))))
    found = pd.DataFrame(rows, columns=COMPARISONS_SCHEMA.names)
    pooled = pd.DataFrame(list(_pooled(found, study.evaluate.confidence)), columns=COMPARISONS_SCHEMA.names)
    return one_family(pd.concat([found, pooled], ignore_index=True) if len(pooled) else found)


def task_names(benchmark: pd.DataFrame) -> list[tuple[str, str]]:
    """Data set and task of each label of the benchmark, in the order of the table."""
    headlines = pick(benchmark, metric=tuple(HEADLINE.values()))
    return list(dict.fromkeys(zip(headlines["dataset"], headlines["task"], strict=True)))


def one_family(table: pd.DataFrame) -> pd.DataFrame:
    """The table with p adjusted by Holm over its distinct tests, pooled ones among them; `family` says which they are.

    Rows of one pair of lines on one task and as many people are one test, whatever their roles and their order.
    """
    if table.empty:
        return table
    test = pd.Series([_test(row) for row in records(table)], index=table.index)
    p_by_test = table["p"].astype(float).groupby(test).max()  # equal but for rounding
    p_holm = pd.Series(holm(p_by_test.to_numpy()), index=p_by_test.index)
    return table.assign(p_holm=test.map(p_holm), family=_told(table, test[table["p"].notna()]))


def _test(row: Row) -> str:
    """Names what a row tests; `n` tells data sets apart that were pooled."""
    pair = sorted([key_of(row), str(row["against"])])
    return repr((row["dataset"], row["task"], row["n"], *pair))


def _told(table: pd.DataFrame, test: pd.Series[str]) -> str:
    """A family in words."""
    pooled = test[table.loc[test.index, "dataset"] == POOLED].nunique()
    tasks = len(table.loc[table["dataset"] != POOLED, ["task", "dataset"]].drop_duplicates())
    against = ", ".join(f"the {TOLD[role]}" for role in ROLES if role in set(table["role"]))
    against = " and ".join(against.rsplit(", ", 1))
    return (
        f"Holm over all {test.nunique()} tests of the figure, against {against} on {tasks} task{'s' * (tasks != 1)}"
        f"{f', {pooled} of them pooled over data sets' if pooled else ''}; a pair of systems is one test a task"
    )


class Contestants:
    """Every line on one task: values by split, and resampled values of averaged scores, each computed once."""

    def __init__(
        self, study: Study, lines: list[Line], benchmark: pd.DataFrame, scores: pd.DataFrame, tasks: pd.DataFrame
    ) -> None:
        self.study, self.scores, self.tasks = study, scores, tasks
        self.dataset, self.task = (str(benchmark[name].iloc[0]) for name in ("dataset", "task"))
        self.simulated = bool(benchmark["simulated"].any())
        self.metric = next(metric for metric in HEADLINE.values() if metric in set(benchmark["metric"]))
        rows = pick(benchmark, metric=self.metric, group=ALL, protocol=(FROZEN, TRAINED))
        found = {line.key: main_rows(line, rows) for line in lines}
        self.splits = {line.key: split_values(line, found[line.key]) for line in lines}
        self.lines = [line for line in lines if line.kind != "chance" and len(self.splits[line.key])]
        self.means = {line.key: float(self.splits[line.key]["value"].mean()) for line in self.lines}
        self.protocols = {line.key: str(found[line.key]["protocol"].iloc[0]) for line in self.lines}
        self._resampled: dict[str, Resampled] = {}

    def best(self, among: Iterable[Line]) -> Line | None:
        """The line with the highest mean over its splits; the first of equal ones."""
        return max(among, key=lambda line: self.means[line.key], default=None)

    def opponents(self, line: Line) -> Iterator[tuple[Role, Line]]:
        """Whom a line is compared with, and why; never with itself."""
        found = {
            "connectome": self.best(other for other in self.lines if other.slug == REFERENCE),
            "best simple": self.best(other for other in self.lines if other.kind == "simple"),
            "best peer": self.best(other for other in self.lines if _is_peer(line, other)),
        }
        for role in ROLES:
            other = found[role]
            if other is not None and other.key != line.key:
                yield role, other

    def people(self, first: Line, second: Line) -> People:
        """Difference over people of averaged scores; nobody's where the lines averaged other splits, or people."""
        if not self.splits[first.key].index.equals(self.splits[second.key].index):
            return NOBODY
        ours, theirs = (self._scores(line) for line in (first, second))
        if not len(ours.people) or not np.array_equal(ours.people, theirs.people):
            return NOBODY
        return difference_of(ours.value_R - theirs.value_R, self.study, len(ours.people))

    def _scores(self, line: Line) -> Resampled:
        if line.key not in self._resampled:
            self._resampled[line.key] = resample(main_rows(line, self.scores), self.metric, self.study)
        return self._resampled[line.key]


def _is_peer(line: Line, other: Line) -> bool:
    """Another model that learnt from data: pretrained, or trained on labels."""
    mine, theirs = (each.architecture or each.slug for each in (line, other))
    return other.kind in PEERS and mine != theirs


def split_values(line: Line, rows: pd.DataFrame) -> pd.DataFrame:
    """By split (the index: its fold), the mean over the line's repeats and the people tested; only where all have one.

    `rows` are the line's, of one metric. A repeat that failed has no splits; the mean of those that are left would be a
    choice by their result, so the line then has none at all.
    """
    repeats = max(len(rows.drop_duplicates(["draw", "seed"])), len(line.cells))
    splits = rows[rows["fold"] >= 0].dropna(subset=["value"]).groupby("fold").agg(
        value=("value", "mean"), n=("n", "mean"), repeats=("value", "size")
    )  # fmt: skip
    return splits[splits["repeats"] == repeats]


def _task_rows(there: Contestants) -> Iterator[Row]:
    for line in there.lines:
        for role, other in there.opponents(line):
            shared = there.splits[line.key].index.intersection(there.splits[other.key].index)
            if len(shared):
                yield _row(there, line, other, role, shared)


def _row(there: Contestants, line: Line, other: Line, role: Role, shared: pd.Index[Any]) -> Row:
    ours, theirs = (there.splits[each.key].loc[shared] for each in (line, other))
    protocol, dataset, task = there.protocols[line.key], there.dataset, there.task
    n, settings = _task_people(there.tasks, dataset, task, protocol), there.study.evaluate
    tested = float(ours["n"].mean())
    train = n * (1 - settings.test - settings.validation)
    difference_S = (ours["value"] - theirs["value"]).to_numpy()
    found = corrected_repeated_cv_test(difference_S, train, tested, settings.confidence)
    people = there.people(line, other)
    return {
        **_who(line),
        **{"dataset": dataset, "task": task, "protocol": protocol, "metric": there.metric},
        **{"against": other.key, "role": role, "n": n, "splits": found.splits, "simulated": there.simulated},
        **{"difference": found.mean, "low": found.low, "high": found.high, "p": found.p_value},
        **{"people_low": people.low, "people_high": people.high, "people_p": people.p_value},
    }


def _who(line: Line) -> Row:
    """The columns of a cell; draw and seed are those of none, because a line is the mean over them."""
    cell = line.cells[0] if line.cells else None
    condition = {"size": "", "subjects": NONE, "frames": NONE, "variant": ""}
    condition = {name: getattr(cell, name) if cell else empty for name, empty in condition.items()}
    return {"system": line.slug, "architecture": line.architecture, **condition, "draw": NONE, "seed": NONE}


def _task_people(tasks: pd.DataFrame, dataset: str, task: str, protocol: str) -> int:
    rows = pick(tasks, protocol=protocol)
    if rows.empty:
        found, hint = f"no row of {protocol} on {task} of {dataset}", "Run `pipeline tables` again."
        raise InputError("tables/tasks.parquet", found, "a row a task and protocol", hint)
    return int(rows["n"].iloc[0])


# --- over data sets ------------------------------------------------------------------------------------------------


def _pooled(table: pd.DataFrame, confidence: float) -> Iterator[Row]:
    """Each line's difference on a task of several data sets, by random effects over them."""
    keys = ["system", "architecture", "size", "subjects", "frames", "variant", "task", "metric", "role"]
    for _, part in table.dropna(subset=["low", "high"]).groupby(keys, sort=False):
        if part["dataset"].nunique() > 1:
            yield {**records(part)[0], **_pool(part, confidence)}


def _pool(part: pd.DataFrame, confidence: float) -> Row:
    tail = (1 + confidence) / 2
    error_D = ((part["high"] - part["low"]) / 2 / special.stdtrit(part["splits"] - 1, tail)).to_numpy()
    mean, low, high, _ = pooled_effect(part["difference"].to_numpy(), error_D, confidence)
    freedom = len(part) - 1  # of the t in the pooled interval, from which its standard error comes back
    error = (high - low) / 2 / special.stdtrit(freedom, tail)
    return {
        "dataset": POOLED,
        "protocol": ", ".join(dict.fromkeys(part["protocol"])),
        "against": ", ".join(dict.fromkeys(part["against"])),
        "n": int(part["n"].sum()),
        "splits": int(part["splits"].min()),
        **{"difference": mean, "low": low, "high": high, "p": 2 * float(special.stdtr(freedom, -abs(mean / error)))},
        **dict.fromkeys(["people_low", "people_high", "people_p"], np.nan),
        "simulated": bool(part["simulated"].any()),
    }
