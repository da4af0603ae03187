"""What a benchmark of a folder prints and writes."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from textwrap import wrap
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from pipeline.artefact import provenance, write_table
from pipeline.config import ProtocolName, Study
from pipeline.evaluate.cohort import Kind, Task
from pipeline.evaluate.comparison.compare import compare
from pipeline.evaluate.comparison.lines import records
from pipeline.evaluate.judged import Row
from pipeline.evaluate.protocols import FROZEN, LEAVE_SITE_OUT, LOW_SHOT, MEANING, TRAINED, VERSIONS
from pipeline.evaluate.rows import ALL, HEADLINE
from pipeline.evaluate.splits import TEST, leave_site_out
from pipeline.evaluate.systems import System
from pipeline.stages import VERSIONS as STAGES
from pipeline.tables import BENCHMARK_SCHEMA, COMPARISONS_SCHEMA, NONE, SCORES_SCHEMA, TASKS_SCHEMA

FEW = 3  # people of a class in a test part, below which its value hangs on single people
NAMES = re.compile(r"sub-.*|\S+\.(npz|1D|csv|tsv|txt|nii)\S*")  # in a reason; a table names nobody
NAMED = 6  # people named of one reason, before the rest are counted
COLUMNS: dict[Kind, tuple[str, ...]] = {
    "classes": ("auroc", "balanced_accuracy", "brier"),
    "number": ("pearson_r", "r2", "mae"),
}
TOLD = {
    "auroc": "AUROC",
    "balanced_accuracy": "balanced accuracy",
    "brier": "Brier score",
    "pearson_r": "Pearson r",
    "r2": "R^2",
    "mae": "mean absolute error",
}


class Tables(NamedTuple):
    """The tables of one benchmark, by the schemas of `pipeline.tables`."""

    benchmark: pd.DataFrame
    scores: pd.DataFrame
    tasks: pd.DataFrame
    comparisons: pd.DataFrame
    made: frozenset[str]  # systems that ran, under whichever protocol

    def of(self, protocol: str) -> pd.DataFrame:
        """Rows of everybody under one protocol."""
        rows = self.benchmark
        return rows[(rows["protocol"] == protocol) & (rows["group"] == ALL)]

    @property
    def splits(self) -> pd.DataFrame:
        """The rows of single splits."""
        return self.benchmark[(self.benchmark["fold"] != NONE) & (self.benchmark["group"] == ALL)]


def tables_of(
    study: Study, asked: Iterable[ProtocolName], benchmark: list[Any], scores: list[Any], tasks: list[Any]
) -> Tables:
    """Tables of the rows that the core gives, and comparisons; without protocols that were not asked for."""
    kept = {VERSIONS[name] for name in asked}
    frames = [
        pd.DataFrame(rows, columns=schema.names)
        for rows, schema in ((benchmark, BENCHMARK_SCHEMA), (scores, SCORES_SCHEMA), (tasks, TASKS_SCHEMA))
    ]
    compared = compare(study, *frames) if len(frames[1]) else pd.DataFrame(columns=COMPARISONS_SCHEMA.names)
    made = frozenset(frames[0]["system"])
    found, scored, ran, differences = (table[table["protocol"].isin(kept)] for table in (*frames, compared))
    return Tables(found[found["task"].isin(ran["task"])], scored, ran, differences, made)


def few_tested(study: Study, task: Task) -> dict[str, str]:
    """Protocol -> a warning where test parts hold fewer than `FEW` people of a class (of a number: twice as many)."""
    settings = study.evaluate
    sites = leave_site_out(task.labels_M, task.families_M, task.site_M, settings.validation, task.key)
    parts = {FROZEN: task.parts_SM, TRAINED: task.parts_SM[: settings.declared_splits]}
    if sites:
        parts[LEAVE_SITE_OUT] = np.array([*sites.values()])
    return {protocol: told for protocol, parts_SM in parts.items() if (told := _few(parts_SM == TEST, task))}


def _few(tested_SM: np.ndarray, task: Task) -> str:
    size_S = tested_SM.sum(1)
    if task.kind == "number":
        few, what = int((size_S < 2 * FEW).sum()), f"{2 * FEW} people"
    else:
        smaller_S = np.minimum(tested_SM @ task.labels_M, tested_SM @ (1 - task.labels_M))
        few, what = int((smaller_S < FEW).sum()), f"{FEW} people of a class"
    many = f"{size_S.min()} to {size_S.max()}" if size_S.min() < size_S.max() else str(size_S.min())
    told = f"{few} of {len(size_S)} test parts hold fewer than {what} ({many} people each)"
    return f"WARNING: {told}: values hang on single people, and intervals are too narrow." if few else ""


def write_tables(
    output: Path, work: Path, tables: Tables, study: Study, files: dict[str, str | Path], reasons: Iterable[str]
) -> list[Path]:
    """Rows of single splits in `output`, summaries beside it, everything else in `work`; the paths of the first two.

    The record inside each says which protocols were run on which splits, and how many people or runs were excluded for
    each of `reasons`.
    """
    record = provenance("benchmark", STAGES["benchmark"], study.model_dump(mode="json"), files)
    record["protocols"] = {name: MEANING[name] for name in tables.tasks["protocol"]}
    record["splits"] = dict(zip(tables.tasks["protocol"], tables.tasks["splits_hash"], strict=True))
    record["excluded"] = Counter(NAMES.sub("another", reason) for reason in reasons)
    summary = output.with_suffix(".summary.parquet")
    rest = tables.benchmark.drop(tables.splits.index)
    for path, frame, schema in (
        (output, tables.splits, BENCHMARK_SCHEMA),
        (summary, rest, BENCHMARK_SCHEMA),
        (work / "tables" / "scores.parquet", tables.scores, SCORES_SCHEMA),
        (work / "tables" / "tasks.parquet", tables.tasks, TASKS_SCHEMA),
        (work / "tables" / "comparisons.parquet", tables.comparisons, COMPARISONS_SCHEMA),
    ):
        write_table(path, frame, schema, record)
    return [output, summary]


# --- in words ------------------------------------------------------------------------------------------------------


def found_lines(found: dict[str, str]) -> Iterator[str]:
    """What was inferred, a line each."""
    width = max(map(len, found))
    yield "Inferred (every line can be overruled, see `pipeline benchmark --help`):"
    yield from (f"  {what:<{width}}  {told}" for what, told in found.items())


def exclusion_lines(reasons: Iterable[tuple[str, str]]) -> Iterator[str]:
    """Reasons and whom they are of, the commonest first."""
    by_reason: dict[str, list[str]] = {}
    for reason, who in reasons:
        by_reason.setdefault(reason, []).append(who)
    yield f"Excluded: {sum(map(len, by_reason.values())) or 'nobody'}"
    for reason, people in sorted(by_reason.items(), key=lambda item: -len(item[1])):
        more = f" and {len(people) - NAMED} more" if len(people) > NAMED else ""
        yield f"  {len(people):>5}  {reason}  ({', '.join(people[:NAMED])}{more})"


def no_use(protocol: str, kind: Kind, systems: Sequence[System]) -> str:
    """Why a protocol is nothing to a task or to any of the systems; "" where it applies."""
    if protocol == LOW_SHOT and kind == "number":
        return "a number has no classes to draw people of"
    if protocol == TRAINED and not any(system.trained for system in systems):
        return "none of these systems is trained"
    if protocol != TRAINED and all(system.trained for system in systems):
        return "systems that are trained run under 'trained' alone"
    return ""


def result_lines(tables: Tables, systems: Sequence[System], few: Mapping[str, str]) -> Iterator[str]:
    """For every protocol that was asked for a table of the systems, what it was run on, and the warnings `few`."""
    for task in records(tables.tasks):
        rows = tables.of(task["protocol"])
        yield ""
        yield f"{task['task']}, {task['protocol']} (means over splits, 95 % intervals over people)"
        yield from wrap(MEANING[task["protocol"]], 116, initial_indent="  ", subsequent_indent="  ")
        if rows.empty:
            why = no_use(task["protocol"], task["kind"], systems)
            yield f"  does not apply: {why}" if why else "  no value: too few sites or people for any split"
            continue
        yield from _of_protocol(tables, task, rows, [system.name for system in systems])
        if task["protocol"] in few:
            yield f"  {few[task['protocol']]}"
    yield from (f"\nNo row of {system.name}: {why}." for system in systems if (why := _no_row(tables, system)))


def _no_row(tables: Tables, system: System) -> str:
    """Why a system has no row; "" where it has, or no protocol gave any."""
    asked = set(tables.tasks["protocol"])
    if system.trained and TRAINED not in asked:
        return "it is trained, and 'trained' is not among the protocols asked for"
    if not system.trained and asked == {TRAINED}:
        return "it is not trained, and only 'trained' is asked for"
    if system.name in tables.made:
        return ""
    if system.name == "connectome_ridge" and "connectome_logistic" in tables.made:
        return "of a number connectome_logistic is ridge already"
    return "this folder has nothing that it reads (head motion, several sites, or means of series)"


def _of_protocol(tables: Tables, task: Row, rows: pd.DataFrame, systems: Sequence[str]) -> Iterator[str]:
    kind: Kind = task["kind"]
    if task["protocol"] == LOW_SHOT:
        yield from _grid(_low_shot(rows, systems))
    else:
        yield from _grid(_means(tables, rows, kind, systems, compared=task["protocol"] != LEAVE_SITE_OUT))
        yield from (f"  {line}" for line in _permuted(rows, kind, systems))
    yield f"  {_about(task)}"


def _means(
    tables: Tables, rows: pd.DataFrame, kind: Kind, systems: Sequence[str], compared: bool
) -> Iterator[list[str]]:
    metrics, means = COLUMNS[kind], _by(rows[rows["split"] == "mean"], "system", "metric")
    reference = _reference(tables.comparisons) if compared else ""
    gain = any(metric == "auroc_gain" for _, metric in means)
    heads = ["system", *(TOLD[metric] for metric in metrics), *([f"minus {reference}"] if reference else [])]
    yield [*heads, *(["beyond confounds"] if gain else []), "tested"]
    for system in systems:
        if (system, metrics[0]) not in means:
            continue
        cells = [_interval(means[system, metric]) for metric in metrics]
        if reference:
            cells.append(_difference(tables.comparisons, system))
        if gain:
            cells.append(_interval(means[system, "auroc_gain"]) if (system, "auroc_gain") in means else "")
        yield [system, *cells, str(means[system, metrics[0]]["n"])]


def _reference(comparisons: pd.DataFrame) -> str:
    against = comparisons.loc[comparisons["role"] == "connectome", "against"]
    return "" if against.empty else str(against.iloc[0]).split("/")[0]


def _difference(comparisons: pd.DataFrame, system: str) -> str:
    rows = comparisons[(comparisons["role"] == "connectome") & (comparisons["system"] == system)]
    if rows.empty:
        return ""
    (row,) = records(rows)
    if not np.isfinite(row["low"]):
        return f"{row['difference']:+.3f}"  # the splits do not differ, so there is no standard error
    adjusted = f", Holm {_p_value(row['p_holm'])}" if np.isfinite(row["p_holm"]) else ""
    return f"{row['difference']:+.3f} [{row['low']:+.3f}, {row['high']:+.3f}] p {_p_value(row['p'])}{adjusted}"


def _p_value(value: float) -> str:
    return f"{value:.3f}" if value >= 0.001 else "< .001"


def _low_shot(rows: pd.DataFrame, systems: Sequence[str]) -> Iterator[list[str]]:
    splits = list(dict.fromkeys(rows["split"]))
    yield ["system", *(f"AUROC, {split.removeprefix('low-shot-')} a class" for split in splits)]
    found = _by(rows, "system", "split")
    for system in systems:
        if (system, splits[0]) in found:
            yield [system, *(_interval(found[system, split]) for split in splits)]


def _permuted(rows: pd.DataFrame, kind: Kind, systems: Sequence[str]) -> Iterator[str]:
    metric = HEADLINE[kind]
    found = _by(rows[rows["metric"] == metric], "system", "split")
    told = [f"{name} {_interval(found[name, 'permuted'])}" for name in systems if (name, "permuted") in found]
    if told:
        yield f"{TOLD[metric]} with shuffled labels: " + "; ".join(told)


def _about(task: Row) -> str:
    people = f"{task['n']} people of {task['families']} families"
    if task["kind"] == "classes":
        people += f" ({task['positive']} positive, {task['negative']} negative)"
    told = [people, f"{task['splits']} splits" + (f", hash {task['splits_hash']}" if task["splits_hash"] else "")]
    told += [f"evaluation set {task['evaluation_hash']}", f"{task['tuning']} candidate settings for every system"]
    if np.isfinite(task["detectable"]):
        told.append(f"smallest detectable difference of AUROC {task['detectable']:.3f}")
    return "; ".join(told)


def _by(rows: pd.DataFrame, *columns: str) -> dict[tuple[str, ...], Row]:
    """Rows by what stands in some columns."""
    return {tuple(str(row[column]) for column in columns): row for row in records(rows)}


def _interval(row: Row) -> str:
    if not np.isfinite(row["value"]):
        return f"- ({row['status']})" if row["status"] != "completed" else "-"
    ends = f" [{_number(row['low'])}, {_number(row['high'])}]" if np.isfinite(row["low"]) else ""
    return f"{_number(row['value'])}{ends}"


def _number(value: float) -> str:
    return f"{value:.3f}" if abs(value) < 10 else f"{value:.3g}"


def _grid(lines: Iterable[list[str]]) -> Iterator[str]:
    cells = list(lines)
    widths = [max(len(line[column]) for line in cells) for column in range(len(cells[0]))]
    for line in cells:
        yield "  " + "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
