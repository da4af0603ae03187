"""The benchmark's part of the report: what was run on whom, every value, every comparison. All from tables."""

from __future__ import annotations

from typing import Any

import pandas as pd

from pipeline.config import Study
from pipeline.evaluate.comparison.compare import POOLED, ROLES
from pipeline.evaluate.comparison.lines import GROUPS, REFERENCE, Line, key_of, pick, records
from pipeline.evaluate.protocols import MEANING
from pipeline.figures.benchmark_view import TaskView, View
from pipeline.losses import EVALUATE

BESIDE = ("balanced_accuracy", "brier", "auroc_gain")  # means over splits beside the headline metric


def benchmark_section(study: Study, tables: dict[str, pd.DataFrame]) -> dict[str, Any]:
    """What the template shows: protocols, tasks, exclusions, lines by task, pooled comparisons, families of tests."""
    view = View.of(study, tables)
    comparisons = tables["comparisons"]
    return {
        "protocols": _protocols(tables["tasks"]),
        "tasks": records(tables["tasks"]),
        "tuning": study.evaluate.tuning,
        "exclusions": exclusions(study, tables["losses"], tables["tasks"]),
        "lines": [_line(task, line) for task in view.tasks for line in view.lines],
        "pooled": _pooled(view, comparisons),
        "families": [family for family in dict.fromkeys(comparisons["family"]) if family],
    }


def _protocols(tasks: pd.DataFrame) -> list[dict[str, Any]]:
    """Each protocol that was run, and what it means."""
    return [{"name": name, "meaning": MEANING.get(name, "")} for name in dict.fromkeys(tasks["protocol"])]


def exclusions(study: Study, losses: pd.DataFrame, tasks: pd.DataFrame) -> list[dict[str, Any]]:
    """Of each task: evaluation people declared, those without a usable run, without its label, and in the task."""
    rows = []
    people = losses[(losses["part"] == EVALUATE) & (losses["unit"] == "people")]
    for dataset, task in dict.fromkeys(zip(tasks["dataset"], tasks["task"], strict=True)):
        members = _members(study, dataset, task)
        here = pick(people, dataset=members)
        faults = pick(here, outcome="lost").groupby("fault", sort=False)["n"].sum()
        declared, lost = int(pick(here, outcome="declared")["n"].sum()), int(faults.sum())
        # Everybody has done what a state asks for: it needs no label.
        without = pick(here, outcome="unlabelled", fault=task) if members == [dataset] else here.iloc[:0]
        unlabelled, n = int(without["n"].sum()), int(pick(tasks, dataset=dataset, task=task)["n"].max())
        note = f"people of {' and of '.join(members)}; who is in both counts twice" if len(members) > 1 else ""
        about = {"dataset": dataset, "task": task, "declared": declared, "lost": lost, "note": note, "n": n}
        about |= {"told": "; ".join(f"{fault} {count}" for fault, count in faults.items())}
        rows.append({**about, "unlabelled": unlabelled, "other": declared - lost - unlabelled - n})
    return rows


def _members(study: Study, dataset: str, task: str) -> list[str]:
    """The data sets that a task's people are of: two, where it tells runs of both apart."""
    state = study.evaluate.states.get(task)
    return [state.positive, state.negative] if state is not None and dataset == state.joined else [dataset]


def _line(task: TaskView, line: Line) -> dict[str, Any]:
    rows, value = task.summary(line), task.value(line)
    about: dict[str, Any] = {"task": f"{task.task}, {task.dataset}", "system": line.label, "group": GROUPS[line.kind]}
    about |= {"metric": task.metric, "reference": line.slug == REFERENCE, "repeats": len(rows)}
    about |= {"protocol": ", ".join(dict.fromkeys(rows["protocol"])), "gap": task.gap(line), **value._asdict()}
    about |= {metric: task.value(line, metric).value for metric in BESIDE}
    return {**about, "comparisons": [_compared(task, line, role) for role in ROLES]}


def _compared(task: TaskView, line: Line, role: Any) -> dict[str, Any] | None:
    found = task.verdict(line, role)
    if found is None:
        return None
    return {"against": found.against, **found.difference._asdict(), "p_holm": found.p_holm, "splits": found.splits}


def _pooled(view: View, comparisons: pd.DataFrame) -> list[dict[str, Any]]:
    """Comparisons over several data sets, by the label of the line."""
    rows = pick(comparisons, dataset=POOLED)
    labels = {line.key: line.label for line in view.lines}
    keys = [key_of(row) for row in records(rows)]
    return [{**row, "label": labels.get(key, key)} for row, key in zip(records(rows), keys, strict=True)]
