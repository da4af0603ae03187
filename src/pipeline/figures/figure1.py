"""Figure 1. Scaling: held-out loss against size, compute and data; and whether a wall is there or was made.

y is the variance that is left unexplained, 1 - R^2 (masked in-brain voxels of held-out people, run-wise voxel z,
against the zero predictor): the one axis on which objectives with different losses compare.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from pipeline.config import Study
from pipeline.figures import style
from pipeline.figures.select import block_rows, done, incomplete, means, numbers, pick
from pipeline.grid import Block, largest
from pipeline.tables import VALIDATION_CONFIDENCE

TABLES = ("pretrain", "history", "scaling")
UNEXPLAINED = "unexplained variance, $1 - R^2$"
SMOOTH = 0.05  # share of the steps in the running mean of a training curve


def draw(study: Study, tables: dict[str, pd.DataFrame]) -> tuple[Figure, pd.DataFrame, str]:
    """Loss against parameters, FLOPs and frames with fits; training curves; learning-rate sweep; feature rank."""
    pretrain = _with_unexplained(tables["pretrain"])
    figure, axes = style.sheet(11.5, 7.2, nrows=2, ncols=3)
    top, bottom = axes
    scaling = tables["scaling"]
    panels = [
        _loss(top[0], study, pretrain, scaling, "A", "scaling", "parameters"),
        _loss(top[1], study, pretrain, scaling, "B", "scaling", "train_flops"),
        _loss(top[2], study, pretrain, scaling, "C", "data", "unique_frames"),
        _curves(bottom[0], study, tables["history"]),
        _sweep(bottom[1], study, pretrain),
        _rank(bottom[2], study, pretrain),
    ]
    verdict, plotted = verdict_of(scaling), pd.concat(panels, ignore_index=True)
    style.headline(figure, f"Figure 1. Scaling: {verdict}", plotted["simulated"])
    style.key(figure, _key(study))
    gaps = incomplete(block_rows(study, "scaling", pretrain))
    return figure, plotted, style.caption(_caption(study, pretrain, verdict), plotted["simulated"], gaps)


def verdict_of(scaling: pd.DataFrame) -> str:
    """`a law` only if every fit says so; too few sizes or seeds make it a trend."""
    notes = pick(scaling, fit=["loss_parameters", "loss_flops", "loss_frames"])["note"].astype(str)
    return "a law" if len(notes) and notes.str.startswith("law").all() else "a trend, not a law"


def _with_unexplained(pretrain: pd.DataFrame) -> pd.DataFrame:
    ends = {"unexplained_low": 1 - pretrain["val_r2_high"], "unexplained_high": 1 - pretrain["val_r2_low"]}
    return pretrain.assign(unexplained=1 - pretrain["val_r2"], **ends)


AXES: dict[str, tuple[str, str, Any]] = {
    "parameters": ("Size", "parameters", style.short_count),
    "train_flops": ("Compute", "training FLOPs", style.power_of_ten),
    "unique_frames": ("Data, at equal steps", "unique frames trained on", style.short_count),
}


def _loss(
    axes: Axes, study: Study, pretrain: pd.DataFrame, scaling: pd.DataFrame, name: str, block: Block, x: str
) -> pd.DataFrame:
    title, label, form = AXES[x]
    style.letter(axes, name, title)
    rows = block_rows(study, block, pretrain)
    if rows["unexplained"].isna().all():
        style.nothing(axes, "no such cells in this study" if rows.empty else "no cell has a held-out loss")
        return pd.DataFrame()
    for architecture, look in style.looks(study).items():
        _seeds(axes, pick(rows, architecture=architecture), x, look, study.evaluate.confidence)
        _fit(axes, pick(scaling, architecture=architecture, x=x), look)
    axes.set(xlabel=label, ylabel=UNEXPLAINED)
    style.log_axis(axes, "x", form)
    style.log_axis(axes, "y")
    style.gap_note(axes, "; ".join(filter(None, [incomplete(rows), _unsure(study, pick(scaling, x=x))])))
    return numbers(name, rows, x, "unexplained", "unexplained_low", "unexplained_high", "n_validation_people")


def _seeds(axes: Axes, rows: pd.DataFrame, x: str, look: style.Look, confidence: float) -> None:
    """Each seed with its interval over people; the mean over seeds of each rung."""
    good = done(rows)
    bars = style.spread(good["unexplained"], good["unexplained_low"], good["unexplained_high"])
    aside = 1.03 ** (good["seed"] - good["seed"].mean())  # seeds of one rung stand side by side
    marks: dict[str, Any] = {
        "fmt": look.marker,
        "mfc": "white",
        "ms": 4,
        "lw": 0,
        "elinewidth": 0.8,
        "capsize": 0,
        "alpha": 0.65,
    }
    axes.errorbar(good[x] * aside, good["unexplained"], yerr=bars, color=look.colour, **marks)
    mean = means(good, ["size", x], "unexplained", confidence)
    axes.plot(mean[x], mean["value"], look.marker, color=look.colour, ms=6, zorder=3)
    style.failed(axes, rows, x, "unexplained", look.colour)


def _fit(axes: Axes, fits: pd.DataFrame, look: style.Look) -> None:
    """The fitted law through the measured range and on to the size that was held out of it."""
    curve = fits[fits["statistic"].str.startswith("predicted@")]
    x = curve["statistic"].str.removeprefix("predicted@").astype(float).to_numpy()
    order = np.argsort(x)
    x, curve = x[order], curve.iloc[order].replace([np.inf, -np.inf], np.nan)  # infinite: the interval says nothing
    axes.plot(x, curve["value"], color=look.colour, lw=1.2, alpha=0.9)
    axes.fill_between(x, curve["low"], curve["high"], color=look.colour, alpha=0.13, lw=0)


def _unsure(study: Study, fits: pd.DataFrame) -> str:
    """Whose fit says nothing certain about its exponent."""
    names = fits.loc[fits["note"].astype(str).str.contains("not identified"), "architecture"].unique()
    labels = [study.architectures[name].label for name in names]
    if len(labels) == len(study.architectures):
        return "exponents not identified"
    return f"exponent not identified: {', '.join(labels)}" if labels else ""


def _curves(axes: Axes, study: Study, history: pd.DataFrame) -> pd.DataFrame:
    style.letter(axes, "D", "Training curves of the largest size")
    rows = block_rows(study, "scaling", history.assign(status="completed"))
    shown = []
    for architecture, look in style.looks(study).items():
        sizes = {cell.size for cell in largest(study, architecture)}
        trunk = pick(rows, architecture=architecture, size=sizes, branch=0)
        for _, curve in trunk.dropna(subset=["loss"]).groupby("seed"):
            window = max(1, round(SMOOTH * len(curve)))
            smooth = curve["loss"].rolling(window, center=True, min_periods=1).mean()
            axes.plot(curve["step"], curve["loss"], color=look.colour, lw=0.5, alpha=0.25)
            axes.plot(curve["step"], smooth, color=look.colour, lw=1.4)
            shown.append(curve)
    if not shown:
        style.nothing(axes, "no training curve")
        return pd.DataFrame()
    axes.set(xlabel="optimiser step", ylabel=f"training loss ({study.pretrain.loss.upper()}, masked voxels)")
    return numbers("D", pd.concat(shown), "step", "loss")


def _sweep(axes: Axes, study: Study, pretrain: pd.DataFrame) -> pd.DataFrame:
    style.letter(axes, "E", f"Learning-rate sweep at {study.grid.learning_rate.size}")
    if not study.grid.learning_rate.rates:
        style.nothing(axes, "no sweep configured")
        return pd.DataFrame()
    rows = block_rows(study, "learning_rate", pretrain)
    for architecture, look in style.looks(study).items():
        part = done(pick(rows, architecture=architecture)).sort_values("learning_rate")
        bars = style.spread(part["unexplained"], part["unexplained_low"], part["unexplained_high"])
        line: dict[str, Any] = {"color": look.colour, "marker": look.marker, "elinewidth": 0.8}
        axes.errorbar(part["learning_rate"], part["unexplained"], yerr=bars, **line)
        best = part.nsmallest(1, "unexplained")
        axes.plot(best["learning_rate"], best["unexplained"], "o", ms=12, mfc="none", color=look.colour)
        style.failed(axes, pick(rows, architecture=architecture), "learning_rate", "unexplained", look.colour)
    axes.set(xlabel="peak learning rate", ylabel=UNEXPLAINED)
    axes.set_xscale("log")
    style.ticks_at(axes, "x", study.grid.learning_rate.rates, "{:g}".format)
    axes.margins(x=0.15)
    style.gap_note(axes, incomplete(rows))
    return numbers(
        "E", rows, "learning_rate", "unexplained", "unexplained_low", "unexplained_high", "n_validation_people"
    )


def _rank(axes: Axes, study: Study, pretrain: pd.DataFrame) -> pd.DataFrame:
    style.letter(axes, "F", "Have the features collapsed?")
    rows = block_rows(study, "scaling", pretrain)
    for architecture, look in style.looks(study).items():
        part = pick(rows, architecture=architecture)
        good = done(part)
        axes.plot(good["parameters"], good["effective_rank"], look.marker, mfc="white", ms=4, color=look.colour)
        mean = means(good, ["parameters"], "effective_rank", study.evaluate.confidence).sort_values("parameters")
        axes.plot(mean["parameters"], mean["value"], look.marker, ls="-", color=look.colour, ms=6)
        style.failed(axes, part, "parameters", "effective_rank", look.colour)
    axes.axhline(study.pretrain.collapsed_rank, color=style.GREY, ls=":", lw=1.2)
    axes.set(xlabel="parameters", ylabel="effective rank of features", ylim=(0, None))
    style.log_axis(axes, "x", style.short_count)
    return numbers("F", rows, "parameters", "effective_rank")


def _key(study: Study) -> list[Any]:
    known = [
        Line2D([], [], color=look.colour, marker=look.marker, ms=6, label=look.label)
        for look in style.looks(study).values()
    ]
    return [
        *known,
        Line2D([], [], color=style.GREY, marker="o", mfc="white", lw=0, ms=4, label="one seed, interval over people"),
        Patch(color=style.GREY, alpha=0.2, lw=0, label="fit and its interval"),
        Line2D([], [], color=style.GREY, ls=":", label="collapse threshold"),
        Line2D([], [], color=style.GREY, marker="x", lw=0, label="not completed"),
    ]


def _caption(study: Study, pretrain: pd.DataFrame, verdict: str) -> str:
    cells = block_rows(study, "scaling", pretrain)
    people, seeds = int(pretrain["n_validation_people"].max()), cells["seed"].nunique()
    sizes = cells.groupby("architecture")["size"].nunique().min()
    return (
        f"Figure 1. Scaling ({verdict}: {sizes} sizes, {seeds} seed(s); a law needs {study.scaling.law_sizes} sizes, "
        f"{study.scaling.law_seeds} seeds). Unexplained variance of masked in-brain voxels of {people} held-out people "
        "(run-wise voxel z, against the zero predictor) against (A) parameters, (B) measured training FLOPs and (C) "
        "unique frames at equal optimiser steps. Open markers: one seed with its interval over people "
        f"({VALIDATION_CONFIDENCE:.0%}); filled: mean over seeds; line and band: fit of E + A x^-a and its bootstrap "
        f"interval ({study.evaluate.confidence:.0%}). (D) Training curves of the largest size, each seed, with a "
        "running mean. (E) The learning-rate sweep on people of the pretraining part; a ring marks the lowest loss. "
        "(F) Effective rank of features; dotted: the rank below which they count as collapsed."
    )
