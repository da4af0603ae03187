"""Figure 2. Wide or deep: conditions of equal tokens, N people x T frames, and what encoders know of new people."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from pipeline.config import Study
from pipeline.figures import style
from pipeline.figures.select import block_rows, done, incomplete, mean_interval, numbers, pick
from pipeline.grid import RANDOM, block_cells
from pipeline.tables import VALIDATION_CONFIDENCE

TABLES = ("pretrain", "probe")


class Panel(NamedTuple):
    """One measure of what an encoder knows."""

    letter: str
    title: str
    task: str
    metric: str
    axis: str
    chance: float


PANELS = (
    Panel("A", "Sex", "sex", "auroc", "AUROC", 0.5),
    Panel("B", "Identity, first choice", "identity", "top1", "share of people matched", 0.0),  # chance is 1/n
    Panel("C", "Identity, rank", "identity", "mean_rank", "share of others ranked below", 0.5),
    Panel("D", "Reconstruction", "reconstruction", "r2", "held-out $R^2$", 0.0),
)
FLOOR = "connectome_logistic"


def draw(study: Study, tables: dict[str, pd.DataFrame]) -> tuple[Figure, pd.DataFrame, str]:
    """Sex, identity and held-out R^2 of each condition, each architecture, each draw of people."""
    probe = pick(tables["probe"], split="oof")
    dataset = next((name for name in study.datasets if name in set(probe["dataset"])), "")
    probe, pretrain = pick(probe, dataset=dataset), _reconstruction(tables["pretrain"])
    sets = condition_sets(study)
    figure, axes = style.sheet(11.5, 1.0 + 3.1 * max(1, len(sets)), nrows=max(1, len(sets)), ncols=4)
    plotted = []
    for line, (tokens, size) in zip(axes, sets, strict=False):
        for panel, place in zip(PANELS, line, strict=True):
            table = pretrain if panel.task == "reconstruction" else pick(probe, task=panel.task, metric=panel.metric)
            rows = block_rows(study, "iso_tokens", table)
            rows = rows[(rows["subjects"] * rows["frames"] == tokens) & (rows["size"] == size)]
            _panel(place, study, panel, rows, table)
            plotted.append(numbers(panel.letter, rows, "subjects", "value", "low", "high", "n"))
        line[0].set_title(f"$\\bf{{A}}$  {PANELS[0].title}, size {size}")
    drawn = pd.concat(plotted, ignore_index=True) if plotted else pd.DataFrame()
    simulated = drawn["simulated"] if len(drawn) else pretrain["simulated"]
    style.headline(figure, "Figure 2. Wide or deep, at equal tokens", simulated)
    style.key(figure, _key(study))
    gaps = incomplete(pick(drawn, panel="D")) if len(drawn) else ""
    return figure, drawn, style.caption(_caption(study, drawn, dataset), simulated, gaps)


def condition_sets(study: Study) -> list[tuple[int, str]]:
    """Sets of conditions that compare: equal N x T, one size."""
    cells = block_cells(study, "iso_tokens")
    return list(dict.fromkeys((cell.subjects * cell.frames, cell.size) for cell in cells))


def _reconstruction(pretrain: pd.DataFrame) -> pd.DataFrame:
    names = {"val_r2": "value", "val_r2_low": "low", "val_r2_high": "high", "n_validation_people": "n"}
    return pretrain.rename(columns=names).assign(task="reconstruction", metric="r2")


def _panel(axes: Axes, study: Study, panel: Panel, rows: pd.DataFrame, table: pd.DataFrame) -> None:
    style.letter(axes, panel.letter, panel.title)
    if done(rows)["value"].isna().all():
        style.nothing(axes, f"no {panel.metric} of {panel.task}")
        return
    people = int(done(rows)["n"].max())
    axes.axhline(1 / people if panel.metric == "top1" else panel.chance, color=style.GREY, ls="--", lw=1)
    for system, line in ((pick(table, system=FLOOR), "-."), (pick(table, variant=RANDOM), ":")):
        if system["value"].notna().any():
            axes.axhline(system["value"].mean(), color=style.INK, ls=line, lw=1)
    _conditions(axes, study, rows)
    axes.set_ylabel(f"{panel.axis} (n = {people})")


def _conditions(axes: Axes, study: Study, rows: pd.DataFrame) -> None:
    """Conditions side by side; in each, the architectures, and in each of those its draws and their mean."""
    conditions, known = _pairs(rows), style.looks(study)
    for place, (subjects, frames) in enumerate(conditions):
        for rank, (architecture, look) in enumerate(known.items()):
            x = place + 0.34 * (rank - (len(known) - 1) / 2)
            part = pick(rows, subjects=subjects, frames=frames, architecture=architecture)
            _repeats(axes, x, part, look, study.evaluate.confidence)
    axes.set_xlim(-0.5, len(conditions) - 0.5)
    labels = [f"{n} × {t}\n({chr(65 + place)})" for place, (n, t) in enumerate(conditions)]
    axes.set_xticks(range(len(conditions)), labels)
    axes.set_xlabel("people × frames")
    axes.grid(False, axis="x")
    style.gap_note(axes, incomplete(rows))


def _pairs(rows: pd.DataFrame) -> list[tuple[int, int]]:
    return list(dict.fromkeys(zip(rows["subjects"], rows["frames"], strict=True)))


def _repeats(axes: Axes, x: float, part: pd.DataFrame, look: style.Look, confidence: float) -> None:
    """Each draw with its interval over people; their mean, with its interval over draws from three draws on."""
    good = done(part).dropna(subset=["value"])
    if good.empty:
        axes.text(x, 0.03, "×", color=look.colour, ha="center", transform=axes.get_xaxis_transform(), fontsize=12)
        return
    at = x + 0.05 * (np.arange(len(good)) - (len(good) - 1) / 2)
    marks: dict[str, Any] = {
        "fmt": look.marker,
        "mfc": "white",
        "ms": 3.5,
        "elinewidth": 0.8,
        "capsize": 0,
        "alpha": 0.7,
    }
    axes.errorbar(
        at, good["value"], yerr=style.spread(good["value"], good["low"], good["high"]), color=look.colour, **marks
    )
    mean, low, high = mean_interval(good["value"].to_numpy(), confidence)
    axes.hlines(mean, x - 0.13, x + 0.13, color=look.colour, lw=2.2, zorder=3)
    axes.errorbar(x, mean, yerr=style.spread([mean], [low], [high]), color=look.colour, lw=0, elinewidth=2)


def _key(study: Study) -> list[Any]:
    known = [
        Line2D([], [], color=look.colour, marker=look.marker, lw=2, label=look.label)
        for look in style.looks(study).values()
    ]
    return [
        *known,
        Line2D([], [], color=style.GREY, marker="o", mfc="white", lw=0, ms=4, label="one draw of people"),
        Line2D([], [], color=style.INK, ls="-.", lw=1, label="connectome"),
        Line2D([], [], color=style.INK, ls=":", lw=1, label="random weights"),
        Line2D([], [], color=style.GREY, ls="--", lw=1, label="chance"),
    ]


def _caption(study: Study, drawn: pd.DataFrame, dataset: str) -> str:
    draws, conditions = drawn["draw"].nunique(), _pairs(drawn) if len(drawn) else []
    told = "; ".join(f"{n} people x {t} frames" for n, t in conditions)
    spread = "its interval over draws" if draws > 2 else "without an interval over so few draws"
    return (
        f"Figure 2. Conditions of equal tokens, optimiser steps and FLOPs ({told}; {draws} nested draws of people). "
        f"Frozen encoders, people of '{dataset}' never seen in pretraining: (A) AUROC of sex (L2 logistic probe, out "
        "of fold), (B) share of people whose second session is matched to their first, (C) share of others ranked "
        "below the right one (encoders: a linear discriminant fitted on the clips of session 1; the connectome: by "
        "correlation), (D) voxelwise R^2 of masked voxels. Small markers: one draw with its interval over people "
        f"({study.evaluate.confidence:.0%} in A to C, {VALIDATION_CONFIDENCE:.0%} in D); bars: mean over draws, "
        f"{spread}. Dashed: chance."
    )
