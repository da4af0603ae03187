"""The forest of Figure 4: all lines of a task in their groups; beside them what tests and confounds leave of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from pipeline.evaluate.comparison.compare import Role
from pipeline.evaluate.comparison.lines import GROUPS, Line
from pipeline.figures import style
from pipeline.figures.benchmark_panels import NETWORK_COLOUR
from pipeline.figures.benchmark_view import AXIS, CHANCE, TaskView, View
from pipeline.figures.select import numbers

# Above it, below it, and the system itself.
MARKS: dict[Role, tuple[str, str, str]] = {"best simple": ("▲", "▼", "★"), "connectome": ("△", "▽", "☆")}


def _places(view: View) -> tuple[dict[str, int], dict[int, str]]:
    """Row of each line, by its key, and of each group's heading."""
    at: dict[str, int] = {}
    headings: dict[int, str] = {}
    row = 0
    for kind, heading in GROUPS.items():
        lines = [line for line in view.lines if line.kind == kind]
        if lines and kind != "chance":
            headings[row] = heading
            row += 1
        for line in lines:
            at[line.key] = row
            row += 1
    return at, headings


def forest(axes: Axes, view: View, task: TaskView, letter: str, named: bool) -> pd.DataFrame:
    """Mean over splits of every line, with what Holm leaves of its differences, and its gain over confounds."""
    at, headings = _places(view)
    shown = []
    for line in view.lines:
        rows = task.summary(line)
        _point(axes, at[line.key], view, task, line)
        _margin(axes, at[line.key], view, task, line)
        shown.append(numbers(letter, rows, "fold", "value", "low", "high", "n").assign(line=line.label))
    _rows(axes, view, at, headings, named)
    best = task.best(view.lines, "simple")
    if best is not None:
        axes.axvline(task.value(best).value, color=style.INK, ls="-.", lw=0.9, zorder=1)
    axes.axvline(CHANCE[task.metric], color=style.GREY, ls="--", lw=0.9, zorder=1)
    axes.set_xlabel(AXIS[task.metric])
    axes.set_xlim(*_limits(view, task.metric))
    return pd.concat(shown) if shown else pd.DataFrame()


def _limits(view: View, metric: str) -> tuple[float, float]:
    """The same for every task of a metric."""
    ends = [end for task in view.tasks if task.metric == metric for line in view.lines for end in task.value(line)[1:]]
    known = [end for end in ends if np.isfinite(end)] or [CHANCE[metric], 1.0]
    return min(CHANCE[metric], *known) - 0.02, max(known) + 0.02


def _point(axes: Axes, row: int, view: View, task: TaskView, line: Line) -> None:
    point = task.value(line)
    if not np.isfinite(point.value):
        at: dict[str, Any] = {"transform": axes.get_yaxis_transform(), "ha": "center", "va": "center"}
        axes.text(0.5, row, task.gap(line), **at, color=style.GREY, fontsize=6.5)
        return
    look = look_of(view, line)
    repeats = task.summary(line)["value"]
    bar = style.spread([point.value], [point.low], [point.high])
    fill = "white" if line.kind == "control" else look.colour
    axes.errorbar(
        point.value, row, xerr=bar, fmt=look.marker, color=look.colour, mfc=fill, ms=4, elinewidth=1, capsize=0
    )
    if len(repeats) > 1:
        axes.plot(repeats, np.full(len(repeats), row), "|", color=look.colour, ms=5, mew=0.7)


def look_of(view: View, line: Line) -> style.Look:
    """That of its architecture, or of its group."""
    known = style.looks(view.study)
    if line.architecture in known:
        return known[line.architecture]
    colour, marker = {"network": (NETWORK_COLOUR, "P"), "control": (style.GREY, "o")}.get(line.kind, (style.INK, "d"))
    return style.Look(line.label, colour, marker)


def _margin(axes: Axes, row: int, view: View, task: TaskView, line: Line) -> None:
    """Right of the axes: above or below the best simple system, and the connectome; the gain over confounds."""
    at: dict[str, Any] = {"xycoords": axes.get_yaxis_transform(), "textcoords": "offset points", "va": "center"}
    for place, (role, (above, below, itself)) in enumerate(MARKS.items()):
        verdict = task.verdict(line, role)
        mark = {1: above, -1: below}.get(verdict.side, "") if verdict else ""
        if role == "best simple" and line == task.best(view.lines, "simple"):
            mark = itself
        axes.annotate(mark, (1, row), xytext=(7 + 9 * place, 0), **at, ha="center", fontsize=7)
    gain = task.value(line, "auroc_gain")
    if np.isfinite(gain.value):
        weight = "bold" if gain.low > 0 else "normal"
        told = f"{gain.value:+.2f}".replace("+0.", "+.").replace("-0.", "−.")
        axes.annotate(told, (1, row), xytext=(39, 0), **at, ha="right", fontsize=6.2, weight=weight)


def _rows(axes: Axes, view: View, at: dict[str, int], headings: dict[int, str], named: bool) -> None:
    last = max([*at.values(), 0])
    labels = {at[line.key]: line.label + (" †" if view.is_trained(line) else "") for line in view.lines} | headings
    axes.set_yticks(sorted(labels), [labels[row] for row in sorted(labels)] if named else [])
    for row, text in zip(sorted(labels), axes.get_yticklabels(), strict=bool(named)):
        text.set(fontsize=7.5, weight="bold" if row in headings else "normal")
    for row in headings:
        axes.axhline(row - 0.5, color=style.PALE, lw=0.7)
    for row in list(at.values())[::2]:
        axes.axhspan(row - 0.5, row + 0.5, color="#F7F7F7", lw=0, zorder=0)
    axes.set_ylim(last + 0.6, -0.6)
    axes.tick_params(axis="y", length=0)
    axes.grid(False, axis="y")
