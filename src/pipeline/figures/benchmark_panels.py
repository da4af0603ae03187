"""Panels of Figure 4 beside the forest: few labels, calibration, sites, groups; a task each, with its numbers."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from pipeline.evaluate.comparison.lines import REFERENCE, Line, main_rows, pick
from pipeline.evaluate.protocols import LEAVE_SITE_OUT, LOW_SHOT
from pipeline.evaluate.rows import ALL, MEAN, WITHIN_SITE
from pipeline.evaluate.statistics import calibration_curve
from pipeline.figures import style
from pipeline.figures.benchmark_view import AXIS, CHANCE, TaskView, View, gap_of, mean_of
from pipeline.figures.select import numbers

NOBODY_SHOWN = "no system to show"
MOST_SITES = 12  # in the panel of groups, those with most people
MOST_BINS, BIN_PEOPLE = 10, 20  # of predicted probability; people a bin, at least
NETWORK_COLOUR, CONNECTOME_COLOUR, CONFOUND_COLOUR = "#7B4B2A", "#5B6770", "#9A9A9A"


def curve_style(view: View, line: Line) -> dict[str, Any]:
    """Colour, marker and dash of a line in every panel of curves and in the key."""
    if line.kind == "encoder":
        look = style.looks(view.study)[line.architecture]
        return {"color": look.colour, "marker": look.marker, "ls": "-"}
    if line.architecture:  # fine-tuned, or read otherwise
        look = style.looks(view.study)[line.architecture]
        return {"color": look.colour, "marker": look.marker, "mfc": "white", "ls": (0, (5, 1.5))}
    if line.kind == "network":
        return {"color": NETWORK_COLOUR, "marker": "P", "ls": (0, (5, 1.5))}
    if line.kind == "control":
        return {"color": CONFOUND_COLOUR, "marker": ".", "ls": (0, (1, 1.2))}
    if line.slug == REFERENCE and line != view.best("simple"):
        return {"color": CONNECTOME_COLOUR, "marker": "d", "mfc": "white", "ls": ":"}
    return {"color": style.INK, "marker": "d", "ls": "-."}


# --- few labelled people -------------------------------------------------------------------------------------------


def has_low_shot(view: View) -> bool:
    """Whether any task was learnt from few people by a system that curves show."""
    return any(with_values(view, pick(each.rows, protocol=LOW_SHOT)) for each in view.tasks)


def with_values(view: View, rows: pd.DataFrame) -> list[Line]:
    """The systems that curves show which have a value among these rows."""
    return [line for line in view.highlights if line.rows(rows)["value"].notna().any()]


def low_shot(axes: Axes, view: View, task: TaskView, letter: str, first: bool) -> pd.DataFrame:
    """AUROC against labelled people a class on a logarithmic axis, and with everybody in the training part."""
    shots, rows = list(view.study.evaluate.low_shot), pick(task.rows, protocol=LOW_SHOT)
    lines = with_values(view, rows)
    if not lines:
        style.nothing(axes, "not run with few people" if rows["value"].isna().all() else NOBODY_SHOWN)
        return pd.DataFrame()
    everybody, shown = 3.0 * max(shots), []
    for rank, line in enumerate(lines):
        dodge = 1.045 ** (rank - (len(lines) - 1) / 2)
        parts = [pick(line.rows(rows), split=f"low-shot-{shot}") for shot in shots]
        points = [*(mean_of(part, line) for part in parts), task.value(line)]
        x, y = np.array([*shots, everybody]) * dodge, np.array([point.value for point in points])
        bars = style.spread(y, [point.low for point in points], [point.high for point in points])
        drawn = curve_style(view, line)
        axes.plot(x, y, **drawn, ms=4, lw=1.2)
        axes.errorbar(x, y, yerr=bars, fmt="none", ecolor=drawn["color"], elinewidth=0.7, capsize=0, alpha=0.55)
        shown += [part.assign(shots=shot, line=line.label) for part, shot in zip(parts, shots, strict=True)]
    axes.axhline(CHANCE[task.metric], color=style.GREY, ls="--", lw=0.9)
    axes.axvline(1.7 * max(shots), color=style.PALE, lw=0.8)
    axes.set_xscale("log")
    style.ticks_at(axes, "x", [*shots, everybody])
    axes.set_xticks([*shots, everybody], [*map(str, shots), "all"])
    axes.set(xlabel="labelled people a class", ylabel=AXIS[task.metric] if first else "")
    rows = pd.concat(shown)
    return numbers(letter, rows, "shots", "value", "low", "high", "n").assign(line=rows["line"])


# --- calibration ---------------------------------------------------------------------------------------------------


def has_calibration(view: View) -> bool:
    """Whether any system says how probable a class is."""
    return any(each.scores["probability"].notna().any() for each in view.tasks)


def calibration(axes: Axes, view: View, task: TaskView, letter: str, first: bool) -> pd.DataFrame:
    """Share of people who are positive, against the probability that they were given; the first repeat of a line."""
    shown, chosen = [], [view.best("encoder"), view.best("network"), view.best("simple"), view.system("confounds")]
    axes.plot([0, 1], [0, 1], color=style.GREY, ls="--", lw=0.9)
    for line in (each for each in chosen if each is not None):
        rows = main_rows(line, task.scores).dropna(subset=["probability"])
        if rows.empty:
            continue
        rows = rows[rows["seed"] == rows["seed"].iloc[0]]
        bins = max(3, min(MOST_BINS, len(rows) // BIN_PEOPLE))
        curve = calibration_curve(rows["label"].to_numpy(), rows["probability"].to_numpy(), bins)
        axes.plot(curve.predicted_K, curve.observed_K, **curve_style(view, line), ms=4, lw=1.2)
        found = {"x": curve.predicted_K, "y": curve.observed_K, "n": curve.n_K, "system": line.slug}
        shown.append(pd.DataFrame({**found, "line": line.label, "dataset": task.dataset, "task": task.task}))
    if not shown:
        style.nothing(axes, "a number: no classes" if task.metric != "auroc" else "no probabilities")
        return pd.DataFrame()
    low, high = (min(0.4, *(part["x"].min() for part in shown)), max(0.6, *(part["x"].max() for part in shown)))
    axes.set(xlim=(low - 0.04, high + 0.04), ylim=(-0.04, 1.04), xlabel="predicted probability")
    axes.set_ylabel("observed share" if first else "")
    simulated = bool(task.rows["simulated"].any())
    return pd.concat(shown).assign(panel=letter, x_is="predicted", y_is="observed", simulated=simulated)


# --- sites ---------------------------------------------------------------------------------------------------------


def has_sites(view: View) -> bool:
    """Whether any task has people of several sites, and a value of a system that curves show."""
    return any(with_values(view, _site_rows(each)) for each in view.tasks)


def _site_rows(task: TaskView) -> pd.DataFrame:
    return task.rows[(task.rows["protocol"] == LEAVE_SITE_OUT) | (task.rows["group"] == WITHIN_SITE)]


def sites(axes: Axes, view: View, task: TaskView, letter: str, first: bool) -> pd.DataFrame:
    """Of each line: random splits, sites that nobody was trained on, and pairs of people of one site."""
    if not with_values(view, _site_rows(task)):
        style.nothing(axes, "people of one site" if _site_rows(task).empty else NOBODY_SHOWN)
        return pd.DataFrame()
    lines, shown = view.highlights, []
    for place, line in enumerate(lines):
        others = line.rows(_site_rows(task))
        parts = {
            "o": task.summary(line),
            "s": pick(others, protocol=LEAVE_SITE_OUT, split=MEAN, metric=task.metric),
            "|": pick(others, group=WITHIN_SITE, split=MEAN, metric=task.metric),
        }
        values = [mean_of(part, line).value for part in parts.values()]
        colour = curve_style(view, line)["color"]
        if np.isfinite(values).any():
            axes.plot([np.nanmin(values), np.nanmax(values)], [place, place], color=colour, lw=1, alpha=0.5)
        for value, marker in zip(values, parts, strict=True):
            fill = "white" if marker == "s" else colour
            axes.plot(
                value,
                place,
                marker,
                color=colour,
                mfc=fill,
                ms=7 if marker == "|" else 5,
                mew=1.6 if marker == "|" else 1,
            )
        if not np.isfinite(values).any():
            _gap(axes, place, task.gap(line))
        shown += [part.assign(place=place, line=line.label) for part in parts.values()]
    style.forest_rows(axes, [_short(line) for line in lines])
    axes.tick_params(axis="y", labelsize=7, labelleft=first)
    axes.axvline(CHANCE[task.metric], color=style.GREY, ls="--", lw=0.9)
    axes.set_xlabel(AXIS[task.metric])
    rows = pd.concat(shown)
    return numbers(letter, rows, "place", "value", "low", "high", "n").assign(line=rows["line"])


def _short(line: Line) -> str:
    """A label that fits beside a small panel: without what stands in brackets."""
    return re.sub(r" \([^)]*\)", "", line.label) if len(line.label) > 26 else line.label


def _gap(axes: Axes, place: float, told: str) -> None:
    at: dict[str, Any] = {"transform": axes.get_yaxis_transform(), "ha": "center", "va": "center"}
    axes.text(0.5, place, told, **at, color=style.GREY, fontsize=6)


# --- groups of people ----------------------------------------------------------------------------------------------


def group_names(task: TaskView) -> list[tuple[str, int]]:
    """Groups of people of a task and how many are in each: sex, age, motion, then the largest sites."""
    rows = task.rows[~task.rows["group"].isin([ALL, WITHIN_SITE])]
    counts = rows.groupby("group", sort=False)["n"].max()
    sites = [name for name in counts.index if name.startswith("site ")]
    large = set(counts[sites].nlargest(MOST_SITES).index) if sites else set()
    others = [name for name in counts.index if name not in sites]
    return [(name, int(counts[name])) for name in (*others, *(site for site in sites if site in large))]


def group_lines(view: View) -> list[Line]:
    """The best encoder and the best simple system over all tasks."""
    return [line for line in (view.best("encoder"), view.best("simple")) if line is not None]


def groups(axes: Axes, view: View, task: TaskView, letter: str, _first: bool) -> pd.DataFrame:
    """Value of `group_lines` in each group of people: for classes over pairs inside a split."""
    named, lines, shown = group_names(task), group_lines(view), []
    gaps: dict[int, dict[float, str]] = {}
    if not named or not lines:
        style.nothing(axes, NOBODY_SHOWN if named else "nothing is known of its people")
        return pd.DataFrame()
    for rank, line in enumerate(lines):
        drawn, rows = curve_style(view, line), main_groups(line, task)
        for place, (name, _) in enumerate(named):
            part = pick(rows, group=name)
            point, at = mean_of(part, line), place + 0.3 * (rank - (len(lines) - 1) / 2)
            bar = style.spread([point.value], [point.low], [point.high])
            axes.errorbar(
                point.value, at, xerr=bar, fmt=drawn["marker"], color=drawn["color"], ms=3.2, elinewidth=0.8, capsize=0
            )
            shown.append(part.assign(place=place, line=line.label))
            if not np.isfinite(point.value):
                gaps.setdefault(place, {})[at] = gap_of(part) if len(part) else task.gap(line)
    for place, told in gaps.items():
        common = len(told) == len(lines)  # one word in the middle, where there would be two over each other
        for at, why in {place: ", ".join(dict.fromkeys(told.values()))}.items() if common else told.items():
            _gap(axes, at, why)
    style.forest_rows(axes, [f"{name} ({n:,})" for name, n in named])
    axes.tick_params(axis="y", labelsize=6.5)
    axes.axvline(CHANCE[task.metric], color=style.GREY, ls="--", lw=0.9)
    axes.set_xlabel(AXIS[task.metric])
    rows = pd.concat(shown)
    return numbers(letter, rows, "place", "value", "low", "high", "n").assign(line=rows["line"])


def main_groups(line: Line, task: TaskView) -> pd.DataFrame:
    """A line's rows of groups."""
    return pick(line.rows(task.rows), split=MEAN, metric=task.metric)
