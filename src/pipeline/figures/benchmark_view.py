"""The benchmark as Figure 4 and the report show it: each task's lines with their values and comparisons.

A line's value is its mean over the splits of its protocol; with several seeds or draws it is their mean, and so are the
ends of its interval, because the people whom the interval is over are the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import pandas as pd

from pipeline.config import Study
from pipeline.evaluate.comparison.compare import SIGNIFICANT, Role, task_names
from pipeline.evaluate.comparison.lines import COMPLETED, REFERENCE, Kind, Line, lineup, main_rows, pick
from pipeline.evaluate.protocols import FROZEN, TRAINED
from pipeline.evaluate.rows import ALL, HEADLINE, MEAN
from pipeline.intervals import Interval

TABLES = ("benchmark", "scores", "tasks", "comparisons", "pretrain")
AXIS = {"auroc": "AUROC", "pearson_r": "Pearson r"}
CHANCE = {"auroc": 0.5, "pearson_r": 0.0}
CURVES = 4  # encoders in panels of curves, at most


class Verdict(NamedTuple):
    """A line against another: its key, the difference, p after Holm."""

    against: str
    difference: Interval
    p_holm: float
    splits: int

    @property
    def side(self) -> int:
        """1 above, -1 below, 0 where Holm leaves it open."""
        return int(np.sign(self.difference.value)) if self.p_holm < SIGNIFICANT else 0


@dataclass(frozen=True, eq=False)
class TaskView:
    """One task of one data set."""

    dataset: str
    task: str
    rows: pd.DataFrame
    scores: pd.DataFrame
    counts: pd.DataFrame
    compared: pd.DataFrame

    @cached_property
    def metric(self) -> str:
        """What the task is judged by."""
        return next(metric for metric in HEADLINE.values() if metric in set(self.rows["metric"]))

    @property
    def about(self) -> pd.Series:
        """The task's row under the protocol of frozen features, or whatever there is."""
        rows = pick(self.counts, protocol=FROZEN)
        return (rows if len(rows) else self.counts).iloc[0]

    @property
    def people(self) -> str:
        """`48 people: 24 + 24`."""
        told = f"{int(self.about['n']):,} people"
        classes = self.about["kind"] == "classes"
        return f"{told}: {self.about['positive']:,} + {self.about['negative']:,}" if classes else told

    @cached_property
    def _means(self) -> pd.DataFrame:
        return pick(self.rows, split=MEAN, group=ALL)

    @cached_property
    def _summaries(self) -> dict[tuple[str, str], pd.DataFrame]:
        """By line and metric, as they are asked for: a figure asks for each many times."""
        return {}

    @cached_property
    def _values(self) -> dict[tuple[str, str], Interval]:
        return {}

    def summary(self, line: Line, metric: str = "") -> pd.DataFrame:
        """A row for each repeat of a line: its mean over splits."""
        key = (line.key, metric or self.metric)
        if key not in self._summaries:
            self._summaries[key] = main_rows(line, pick(self._means, metric=key[1], system=line.slug))
        return self._summaries[key]

    def value(self, line: Line, metric: str = "") -> Interval:
        """Of a line; NaN where a repeat has none."""
        key = (line.key, metric or self.metric)
        if key not in self._values:
            self._values[key] = mean_of(self.summary(line, metric), line)
        return self._values[key]

    def gap(self, line: Line) -> str:
        """Why a line has no value here: the status of its rows, or that it was not run."""
        return gap_of(self.summary(line))

    def best(self, lines: list[Line], *kinds: Kind) -> Line | None:
        """The line of these kinds with the highest value here."""
        able = [line for line in lines if line.kind in kinds and np.isfinite(self.value(line).value)]
        return max(able, key=lambda line: self.value(line).value, default=None)

    def verdict(self, line: Line, role: Role) -> Verdict | None:
        """How a line compares; None where it is itself what others are compared with, or was not run."""
        cell = line.cells[0] if line.cells else None
        who = {"system": line.slug}
        who |= {name: getattr(cell, name) for name in ("size", "subjects", "frames", "variant")} if cell else {}
        rows = pick(self.compared, role=role, **who)
        if rows.empty:
            return None
        row = rows.iloc[0]
        difference = Interval(row["difference"], row["low"], row["high"])
        return Verdict(row["against"], difference, float(row["p_holm"]), int(row["splits"]))


def gap_of(rows: pd.DataFrame) -> str:
    """`gap (too few people)`: by the statuses of rows without a value."""
    odd = [str(status) for status in dict.fromkeys(rows["status"]) if status != COMPLETED]
    return f"gap ({', '.join(odd).replace('_', ' ')})" if odd else "gap"


def mean_of(rows: pd.DataFrame, line: Line) -> Interval:
    """Mean over repeats of a value and of the ends of its interval; NaN where a repeat is missing or has none."""
    if len(rows) < max(1, len(line.cells)) or rows["value"].isna().any():
        return Interval(np.nan, np.nan, np.nan)
    return Interval(*(float(rows[name].mean()) for name in ("value", "low", "high")))


@dataclass(frozen=True, eq=False)
class View:
    """A study's benchmark."""

    study: Study
    lines: list[Line]
    tasks: list[TaskView]
    simulated: pd.Series

    @classmethod
    def of(cls, study: Study, tables: dict[str, pd.DataFrame]) -> View:
        """From the tables of TABLES."""
        benchmark = tables["benchmark"]
        tasks = []
        for dataset, task in task_names(benchmark):
            where = {"dataset": dataset, "task": task}
            tasks.append(TaskView(dataset, task, *(pick(tables[name], **where) for name in TABLES[:4])))
        return cls(study, lineup(study, benchmark, tables["pretrain"]), tasks, benchmark["simulated"])

    @cached_property
    def _overall(self) -> dict[str, float]:
        """Mean over tasks of how far each line is above chance; tasks without it are left out."""
        above = {line.key: [each.value(line).value - CHANCE[each.metric] for each in self.tasks] for line in self.lines}
        known = {key: [value for value in values if np.isfinite(value)] for key, values in above.items()}
        return {key: float(np.mean(values)) for key, values in known.items() if values}

    def best(self, *kinds: Kind) -> Line | None:
        """The line of these kinds that is best over all tasks; curves show the same systems everywhere."""
        able = [line for line in self.lines if line.kind in kinds and line.key in self._overall]
        return max(able, key=lambda line: self._overall[line.key], default=None)

    def system(self, slug: str) -> Line | None:
        """A system outside the grid."""
        return next((line for line in self.lines if line.slug == slug and not line.cells), None)

    def _largest(self) -> list[Line]:
        """The largest encoder of each architecture; the best of them where there are many."""
        first: dict[str, Line] = {}
        for line in self.lines:
            if line.kind == "encoder":
                first.setdefault(line.architecture, line)
        known = [line for line in first.values() if line.key in self._overall]
        chosen = sorted(known, key=lambda line: self._overall[line.key], reverse=True)[:CURVES]
        return [line for line in first.values() if line in chosen]

    @cached_property
    def highlights(self) -> list[Line]:
        """What curves show: the largest encoders, the best network, best simple system, the connectome, confounds."""
        singles = [self.best("network"), self.best("simple"), self.system(REFERENCE), self.system("confounds")]
        chosen = [*self._largest(), *(line for line in singles if line is not None)]
        return list({line.key: line for line in chosen}.values())

    @cached_property
    def declared(self) -> dict[str, int]:
        """How many splits each protocol of random splits has, of any task."""
        counts = pd.concat([each.counts for each in self.tasks]) if self.tasks else pd.DataFrame()
        return {
            name: int(pick(counts, protocol=name)["splits"].max())
            for name in (FROZEN, TRAINED)
            if len(counts) and name in set(counts["protocol"])
        }

    def is_trained(self, line: Line) -> bool:
        """Whether a line learns from labels itself, on the declared splits."""
        return any(TRAINED in set(each.summary(line)["protocol"]) for each in self.tasks)
