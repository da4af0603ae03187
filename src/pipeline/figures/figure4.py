"""Figure 4. The benchmark: every encoder, network, simple system and control on each task, and how far to trust it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from pipeline.config import Study
from pipeline.evaluate.comparison.compare import POOLED, ROLES, SIGNIFICANT, TOLD
from pipeline.evaluate.comparison.lines import GROUPS
from pipeline.evaluate.protocols import FROZEN, LEAVE_SITE_OUT, LOW_SHOT, TRAINED
from pipeline.figures import benchmark_panels as panels
from pipeline.figures import style
from pipeline.figures.benchmark_forest import forest
from pipeline.figures.benchmark_view import TABLES, TaskView, View
from pipeline.figures.select import pick

__all__ = ["TABLES", "draw"]

LINE_INCHES, PANEL_INCHES, GROUP_INCHES = 0.168, 2.2, 0.145
LABEL_INCHES, FOREST_INCHES, SMALL_INCHES = 2.6, 1.95, 2.4


class Panel(NamedTuple):
    """A question that is asked of every task."""

    title: str
    draw: Callable[[Axes, View, TaskView, str, bool], pd.DataFrame]
    height: float


def draw(study: Study, tables: dict[str, pd.DataFrame]) -> tuple[Figure, pd.DataFrame, str]:
    """A forest of all systems a task; with it few labels, calibration, sites and groups, where they were run."""
    view = View.of(study, tables)
    asked = _panels(view)
    figure, axes = _sheet(view, asked)
    plotted = []
    for place, task in enumerate(view.tasks):
        plotted.append(forest(axes[0][place], view, task, "A", place == 0))
        for number, panel in enumerate(asked, start=1):
            plotted.append(panel.draw(axes[number][place], view, task, chr(65 + number), place == 0))
    _titles(view, asked, axes)
    if not view.tasks:
        style.nothing(axes[0][0], "no task with labels")
    style.headline(figure, "Figure 4. The benchmark", view.simulated)
    style.key(figure, _key(view), max(2, int(figure.get_figwidth() // 3.3)))
    compared = _compared(tables["comparisons"])
    caption = style.caption(_caption(view, asked, tables["comparisons"]), view.simulated)
    return figure, pd.concat([*plotted, compared], ignore_index=True), caption


def _panels(view: View) -> list[Panel]:
    """Those that anything was run for."""
    most = max((len(panels.group_names(task)) for task in view.tasks), default=0) if panels.group_lines(view) else 0
    asked = [
        (panels.has_low_shot(view), Panel("Few labelled people", panels.low_shot, PANEL_INCHES)),
        (panels.has_calibration(view), Panel("Calibration", panels.calibration, PANEL_INCHES)),
        (panels.has_sites(view), Panel("Sites", panels.sites, 0.8 + 1.3 * GROUP_INCHES * len(view.highlights))),
        (most > 0, Panel("Groups of people", panels.groups, 0.8 + GROUP_INCHES * most)),
    ]
    return [panel for there, panel in asked if there]


def _sheet(view: View, asked: list[Panel]) -> tuple[Figure, list[list[Axes]]]:
    """Axes by question and task. Up to two tasks: the forest at the left and the rest beside it; more: below it.

    Each question has a part of the figure of its own, because words beside its panels need other room.
    """
    count, heights = max(1, len(view.tasks)), [panel.height for panel in asked]
    tall = LINE_INCHES * (len(view.lines) + len(GROUPS)) + 0.7
    if _beside(view) and asked:
        wide = [LABEL_INCHES + count * (FOREST_INCHES + 0.6), 1.1 + count * SMALL_INCHES]
        figure = style.blank(sum(wide), max(tall, sum(heights)) + 2.0)
        left, right = figure.subfigures(1, 2, squeeze=False, width_ratios=wide)[0]
        parts = [left, *right.subfigures(len(asked), 1, squeeze=False, height_ratios=heights)[:, 0]]
    else:
        figure = style.blank(LABEL_INCHES + FOREST_INCHES * count, tall + sum(heights) + 2.0)
        parts = [*figure.subfigures(len(asked) + 1, 1, squeeze=False, height_ratios=[tall, *heights])[:, 0]]
    return figure, [list(part.subplots(1, count, squeeze=False)[0]) for part in parts]


def _beside(view: View) -> bool:
    return len(view.tasks) <= 2


def _titles(view: View, asked: list[Panel], axes: list[list[Axes]]) -> None:
    """Tasks and their people over the forests; over other panels the letter and question once, and the task."""
    several = len({task.task for task in view.tasks}) < len(view.tasks)
    for place, task in enumerate(view.tasks):
        head = "$\\bf{A}$  " if place == 0 else ""
        axes[0][place].set_title(f"{head}{task.task}, {task.dataset}\n{task.people}", pad=7, fontsize=8.5)
        name = f"{task.task}, {task.dataset}" if several else task.task
        for number, panel in enumerate(asked, start=1):
            question = f"$\\bf{{{chr(65 + number)}}}$  {panel.title}" if place == 0 else ""
            told = [question, name if len(view.tasks) > 1 else ""]
            axes[number][place].set_title(": ".join(filter(None, told)), pad=5, fontsize=8.5)


# --- words ---------------------------------------------------------------------------------------------------------


def _key(view: View) -> list[Any]:
    curves = [Line2D([], [], **panels.curve_style(view, line), ms=4.5, label=line.label) for line in view.highlights]
    blank: dict[str, Any] = {"color": "none"}
    site: dict[str, Any] = {"color": style.INK, "ls": "none"}
    words = [
        Line2D([], [], color=style.GREY, ls="--", lw=0.9, label="chance"),
        Line2D([], [], color=style.INK, ls="-.", lw=0.9, label="A: best simple system of the task (★)"),
        Line2D([], [], **blank, label="A: ▲ ▼ above, below the best simple system (Holm)"),
        Line2D([], [], **blank, label="A: △ ▽ above, below the connectome (Holm)"),
        Line2D([], [], **blank, label="A, right: AUROC gained over confounds; bold: interval above 0"),
    ]
    if any(view.is_trained(line) for line in view.lines):
        words.append(Line2D([], [], **blank, label="† learns from labels itself; declared splits"))
    if panels.has_sites(view):
        words.append(Line2D([], [], **site, marker="o", ms=4.5, label="sites: random splits"))
        words.append(Line2D([], [], **site, marker="s", mfc="white", ms=4.5, label="sites: left out of training"))
        words.append(Line2D([], [], **site, marker="|", ms=7, mew=1.6, label="sites: pairs of one site"))
    return [*curves, *words]


def _compared(comparisons: pd.DataFrame) -> pd.DataFrame:
    """The comparisons in the columns of the other numbers."""
    named = comparisons.rename(columns={"difference": "y"}).drop(columns=["draw", "seed"])
    return named.assign(panel="A, differences", y_is="difference of " + named["metric"], x_is=named["role"])


def _caption(view: View, asked: list[Panel], comparisons: pd.DataFrame) -> str:
    settings, splits = view.study.evaluate, view.declared
    parts = f"{1 - settings.test - settings.validation:.0%}, {settings.validation:.0%}, {settings.test:.0%}"
    words = [
        f"Figure 4. Benchmark of {len(view.lines)} systems on {len(view.tasks)} task{'s' * (len(view.tasks) != 1)}.",
        f"(A) Mean over splits with its {settings.confidence:.0%} interval (bootstrap over families of tested people); "
        "ticks: seeds or draws; open: controls.",
        f"Protocol {FROZEN}: {splits.get(FROZEN, settings.splits)} stratified splits {parts} (training, validation, "
        "test), no family divided, the same for every system.",
    ]
    if TRAINED in splits:
        words.append(f"†: {TRAINED}, the first {splits[TRAINED]} of these splits.")
    tuning = max((int(task.about["tuning"]) for task in view.tasks), default=settings.tuning)
    words += [f"Every system may try {tuning} settings.", _people(view), _tests(comparisons)]
    words += [ASKED[panel.title].format(letter=chr(66 + place), draws=settings.low_shot_draws)
              for place, panel in enumerate(asked)]  # fmt: skip
    words.append("Best N × T: by held-out reconstruction, without labels. A gap: the system does not apply, or failed.")
    return " ".join(filter(None, words))


ASKED = {
    "Few labelled people": f"({{letter}}) {LOW_SHOT}: {{draws}} draws of labelled people, the same for every system; "
    "the largest encoders and the best of each other kind.",
    "Calibration": "({letter}) Share of positive people against predicted probability, bins of equally many people.",
    "Sites": f"({{letter}}) Random splits; {LEAVE_SITE_OUT}; and pairs of people of one site tested in one split.",
    "Groups of people": "({letter}) The best encoder and the best simple system in groups (people): over pairs of "
    "people of a group tested in one split; of a number, by averaged scores.",
}


def _people(view: View) -> str:
    """Who is in each task, and what could be found with them."""
    told = []
    for task in view.tasks:
        least = task.about["detectable"]
        people, _, classes = task.people.partition(" people: ")
        found = f"; .{round(1000 * least):03d}" if np.isfinite(least) else ""
        told.append(f"{task.task} of {task.dataset} " + (f"{people} ({classes}{found})" if classes else people))
    if not told:
        return ""
    what = "classes; smallest difference of two AUROCs found in four of five repeats at p < .05"
    return f"People ({what}): {', '.join(told)}."


def _tests(comparisons: pd.DataFrame) -> str:
    """The family of tests, and what it left of each role."""
    if comparisons.empty:
        return "Nothing could be compared."
    told = []
    for role in ROLES:
        rows = pick(comparisons[comparisons["dataset"] != POOLED], role=role)
        sure = rows[rows["p_holm"] < SIGNIFICANT]
        above, below = int((sure["difference"] > 0).sum()), int((sure["difference"] < 0).sum())
        told += [f"{TOLD[role]}: {above} above, {below} below"] if len(rows) else []
    return (
        "Triangles: mean difference over the splits that both systems ran, corrected t test of Nadeau and Bengio; "
        f"{'; '.join(dict.fromkeys(comparisons['family']))} ({'; '.join(told)}). The best simple system and the best "
        "peer are chosen on the same data: 'above' errs on the safe side, 'below' does not."
    )
