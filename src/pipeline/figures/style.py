"""How every figure looks: colours, markers, axes, badges. Nothing here knows what a figure shows."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib

matplotlib.use("Agg")  # jobs have no display

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator

from pipeline.config import Study

# Okabe & Ito (2008): told apart with any common colour blindness. Architectures also differ in marker.
ARCHITECTURE_COLOURS = ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
ARCHITECTURE_MARKERS = ("s", "o", "D", "^", "v", "P")
CHARACTERS_PER_INCH = 16  # of the footer's letters
INK, GREY, PALE = "#222222", "#7A7A7A", "#C9C9C9"

SETTINGS: dict[str, Any] = {
    "font.family": "DejaVu Sans",  # ships with matplotlib: the same letters on every machine
    "font.size": 9,
    "axes.titlesize": 9.5,
    "axes.titlelocation": "left",
    "axes.labelsize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": GREY,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#E9E9E9",
    "grid.linewidth": 0.6,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "legend.fontsize": 8,
    "legend.frameon": False,
    "lines.linewidth": 1.5,
    "lines.markersize": 5,
    "errorbar.capsize": 2,
    "pdf.fonttype": 42,
    "svg.hashsalt": "pipeline",
}
matplotlib.rcParams.update(SETTINGS)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Look:
    """How one architecture is drawn in every figure."""

    label: str
    colour: str
    marker: str


def looks(study: Study) -> dict[str, Look]:
    """The look of each architecture, by its place in the configuration."""
    return {
        name: Look(architecture.label, ARCHITECTURE_COLOURS[place % 6], ARCHITECTURE_MARKERS[(place + place // 6) % 6])
        for place, (name, architecture) in enumerate(study.architectures.items())
    }


def blank(width: float, height: float) -> Figure:
    """An empty figure (inches) whose panels make room for each other's words."""
    layout = ConstrainedLayoutEngine(w_pad=0.08, h_pad=0.08, wspace=0.03, hspace=0.05)
    return Figure(figsize=(width, height), layout=layout)


def sheet(width: float, height: float, **grid: Any) -> tuple[Figure, np.ndarray]:
    """An empty figure of panels (inches) in our style; `grid` goes to `Figure.subplots`."""
    figure = blank(width, height)
    axes = figure.subplots(squeeze=False, **grid)
    return figure, axes


def letter(axes: Axes, name: str, title: str) -> None:
    """Panel letter and title."""
    axes.set_title(f"$\\bf{{{name}}}$  {title}", pad=7)


def whose(simulated: pd.Series) -> str:
    """`Simulated cohort` where any drawn row is of one, with `and real data` where others are not; else nothing."""
    known = simulated.dropna().astype(bool)  # a missing cell is of nobody
    if not known.any():
        return ""
    return "Simulated cohort" if known.all() else "Simulated cohort and real data"


def caption(text: str, simulated: pd.Series, gaps: str = "") -> str:
    """A caption: what is drawn, what is missing from it, and last whether the people were simulated."""
    return " ".join([text, *(f"{told}." for told in (gaps, whose(simulated)) if told)])


def badge(figure: Figure, simulated: pd.Series) -> None:
    """Say in the top right corner whose numbers these are, from the column `simulated` of the rows drawn."""
    text = whose(simulated)
    colour, ground = ("#8A4B00", "#FFF3E0") if text else ("#00573F", "#E3F3EC")
    text = text.upper() or "REAL DATA"
    box = {"boxstyle": "round,pad=0.35", "facecolor": ground, "edgecolor": colour}
    figure.text(0.995, 0.99, text, ha="right", va="top", fontsize=7.5, color=colour, weight="bold", bbox=box)


def headline(figure: Figure, text: str, simulated: pd.Series) -> None:
    """Title of the figure at the left, badge at the right."""
    figure.suptitle(text, x=0.008, ha="left", fontsize=11.5, weight="bold")
    badge(figure, simulated)


def key(figure: Figure, entries: Iterable[Any], columns: int = 6) -> None:
    """One legend for all panels, below them, where no data can be."""
    handles = list(entries)
    figure.legend(handles=handles, loc="outside lower center", ncols=min(columns, max(1, len(handles))), fontsize=8.5)


def footer(figure: Figure, text: str) -> None:
    """Small text at the foot of the whole figure, above the entries of its legend, where the layout leaves room."""
    legend = figure.legends[-1] if figure.legends else figure.legend(handles=[], loc="outside lower center")
    wide = int(figure.get_figwidth() * CHARACTERS_PER_INCH)
    legend.set_title(textwrap.fill(text, wide), prop=FontProperties(size=7.5))
    legend.get_title().set_color(GREY)


def log_axis(axes: Axes, which: str, form: Callable[[float], str] | None = None) -> None:
    """A logarithmic axis with plain numbers: at 1, 2, 5 over a decade or so, evenly spaced within less."""
    axis, (low, high) = (axes.xaxis, axes.get_xlim()) if which == "x" else (axes.yaxis, axes.get_ylim())
    axes.set(**{f"{which}scale": "log"})
    span = np.log10(high / low) if low > 0 else np.inf
    subs = (1.0,) if span > 2.5 else (1.0, 3.0) if span > 1.3 else (1.0, 2.0, 5.0)
    axis.set_major_locator(LogLocator(subs=subs) if span > 0.75 else MaxNLocator(4, steps=[1, 2, 2.5, 5, 10]))
    axis.set_major_formatter(FuncFormatter(lambda value, _: (form or "{:.3g}".format)(value)))
    axis.set_minor_locator(NullLocator())


def ticks_at(axes: Axes, which: str, values: Sequence[float], form: Any = "{:,.0f}".format) -> None:
    """Ticks at the values that were measured and nowhere else."""
    axis = axes.xaxis if which == "x" else axes.yaxis
    axis.set_ticks(list(values), labels=[form(value) for value in values])
    axis.set_minor_locator(NullLocator())
    axis.set_minor_formatter(NullFormatter())


def short_count(value: float) -> str:
    """`28.4k`, `9.4M`: a count in three figures."""
    for unit, size in (("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(value) >= size:
            return f"{value / size:.3g}{unit}"
    return f"{value:.3g}"


def power_of_ten(value: float) -> str:
    """`2x10^11` as it is printed."""
    exponent = int(np.floor(np.log10(value)))
    lead = f"{value / 10**exponent:.2g}"
    return f"$10^{{{exponent}}}$" if lead == "1" else f"${lead}{{\\times}}10^{{{exponent}}}$"


def spread(value: Any, low: Any, high: Any) -> np.ndarray:
    """(2, n) lengths of error bars; no length where there is no finite interval."""
    value = np.asarray(value, dtype=float)
    lengths = np.vstack([value - np.asarray(low, dtype=float), np.asarray(high, dtype=float) - value])
    return np.where(np.isfinite(lengths), lengths, 0).clip(min=0)


def forest(axes: Axes, row: float, part: pd.DataFrame, look: Look, fill: str | None = None) -> None:
    """Each repeat (seed) of one system as a point with its interval, on one line of a forest plot."""
    part = part.dropna(subset=["value"])
    if part.empty:
        axes.text(
            0.5, row, "gap", transform=axes.get_yaxis_transform(), ha="center", va="center", color=GREY, fontsize=7.5
        )
    for place, one in enumerate(part.to_dict("records")):
        at = row + 0.22 * (place - (len(part) - 1) / 2)
        bar = spread([one["value"]], [one["low"]], [one["high"]])
        marks: dict[str, Any] = {
            "fmt": look.marker,
            "ms": 4.5,
            "elinewidth": 1.1,
            "capsize": 0,
            "mfc": fill or look.colour,
        }
        axes.errorbar(one["value"], at, xerr=bar, color=look.colour, **marks)


def forest_rows(axes: Axes, labels: Sequence[str]) -> None:
    """Names of the lines of a forest plot, the first on top, every second line shaded."""
    axes.set_yticks(range(len(labels)), labels)
    axes.set_ylim(len(labels) - 0.5, -0.5)
    axes.tick_params(axis="y", length=0)
    axes.grid(False, axis="y")
    for row in range(0, len(labels), 2):
        axes.axhspan(row - 0.5, row + 0.5, color="#F7F7F7", lw=0, zorder=0)


def nothing(axes: Axes, text: str) -> None:
    """Mark a panel without rows as a gap, in words."""
    axes.set_axis_off()
    axes.text(0.5, 0.5, text, transform=axes.transAxes, ha="center", va="center", color=GREY, fontsize=9)


def gap_note(axes: Axes, text: str) -> None:
    """Tell between the panel and its title what is not in it."""
    if text:
        axes.set_title(axes.get_title(loc="left"), loc="left", pad=17)
        at: dict[str, Any] = {"xycoords": "axes fraction", "xytext": (0, 4), "textcoords": "offset points"}
        axes.annotate(text, (0, 1), **at, fontsize=7, color="#B00020")


def failed(axes: Axes, rows: pd.DataFrame, x: str, y: str, colour: str) -> None:
    """Cells that ended otherwise than completed: a cross at their value, or at the panel's top where they have none."""
    odd = rows[~rows["status"].isin(["completed", "missing"])].dropna(subset=[x])
    finite = np.isfinite(odd[y].astype(float))
    axes.plot(odd.loc[finite, x], odd.loc[finite, y], "x", color=colour, ms=7, mew=2, zorder=4)
    top = odd.loc[~finite, x]
    axes.plot(top, np.full(len(top), 0.97), "x", color=colour, ms=7, mew=2, transform=axes.get_xaxis_transform())
