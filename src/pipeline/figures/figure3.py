"""Figure 3. The N x T surface: what a person and what a frame are worth, and at what rate they exchange."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator

from pipeline.config import Study
from pipeline.figures import style
from pipeline.figures.select import CELL_FIELDS, block_rows, done, incomplete, means, numbers, pick, records

TABLES = ("pretrain", "scaling")
COLOURS = "viridis_r"  # lighter is better: even steps of lightness, safe for colour-blind readers
EVEN = 2.0  # exchange rate at which a doubling of people is worth exactly a doubling of frames


def draw(study: Study, tables: dict[str, pd.DataFrame]) -> tuple[Figure, pd.DataFrame, str]:
    """One map an architecture, then exponents and exchange rates."""
    count = len(study.architectures)
    figure, axes = style.sheet(4.2 * count + 4.4, 4.3, ncols=count + 2, width_ratios=[1.5] * count + [1, 1])
    rows, surface = surface_rows(study, tables["pretrain"]), pick(tables["scaling"], fit="surface")
    loss = done(rows)["unexplained"]
    norm = Normalize(loss.min(), loss.max())
    for place, (name, look) in enumerate(style.looks(study).items()):
        fit = pick(surface, architecture=name)
        _map(axes[0, place], study, pick(rows, architecture=name), fit, norm, (chr(65 + place), look.label))
    colours = axes[0, 0].collections[0]
    figure.colorbar(colours, ax=list(axes[0, :count]), label="unexplained variance, $1 - R^2$", shrink=0.9, pad=0.015)
    _exponents(axes[0, count], study, surface, chr(65 + count))
    _exchange(axes[0, count + 1], study, surface, chr(66 + count))
    style.headline(figure, f"Figure 3. People against frames: {_verdict(surface)}", done(rows)["simulated"])
    style.key(figure, _key(study))
    caption = style.caption(_caption(study, rows), done(rows)["simulated"], incomplete(rows))
    return figure, _plotted(rows, surface), caption


def surface_rows(study: Study, pretrain: pd.DataFrame) -> pd.DataFrame:
    """Cells of the diagonal and of its surroundings, each once: one arm, and the largest size that has the diagonal."""
    table = pretrain.assign(unexplained=1 - pretrain["val_r2"])
    diagonal, *others = (block_rows(study, block, table) for block in ("iso_tokens", "off_diagonal", "data"))
    rows = pd.concat([diagonal, *others]).drop_duplicates(CELL_FIELDS)
    return pick(rows, size=list(diagonal["size"])[-1:], variant=list(diagonal["variant"])[-1:])


def _map(
    axes: Axes, study: Study, rows: pd.DataFrame, fit: pd.DataFrame, norm: Normalize, title: tuple[str, str]
) -> None:
    style.letter(axes, *title)
    mean = means(done(rows), ["subjects", "frames"], "unexplained", study.evaluate.confidence)
    axes.scatter(
        mean["subjects"],
        mean["frames"],
        c=mean["value"],
        s=430,
        marker="s",
        cmap=COLOURS,
        norm=norm,
        edgecolor="white",
        zorder=3,
    )
    for cell in records(mean):
        ink = "white" if norm(cell["value"]) > 0.55 else style.INK
        text, place = f"{cell['value']:.3f}".removeprefix("0"), (cell["subjects"], cell["frames"])
        axes.annotate(text, place, ha="center", va="center", fontsize=7, color=ink, zorder=4)
    if rows.empty:
        style.nothing(axes, "no such cells in this study")
        return
    subjects, frames = sorted(rows["subjects"].unique()), sorted(rows["frames"].unique())
    gaps = rows[["subjects", "frames"]].drop_duplicates().merge(mean, how="left").query("value.isna()")
    axes.plot(gaps["subjects"], gaps["frames"], "x", color="#B00020", ms=9, mew=2)
    axes.set(xscale="log", yscale="log", xlabel="people, $N$", ylabel="frames a run, $T$")
    axes.set(xlim=(subjects[0] / 1.6, subjects[-1] * 1.6), ylim=(frames[0] / 1.6, frames[-1] * 1.6))
    style.ticks_at(axes, "x", subjects)
    style.ticks_at(axes, "y", frames)
    axes.grid(False)
    _tokens(axes, sorted({n * t for n, t in zip(rows["subjects"], rows["frames"], strict=True)}))
    _contours(axes, fit, norm)
    style.gap_note(axes, incomplete(rows))


def _tokens(axes: Axes, products: list[int]) -> None:
    """Lines of equal N x T: along one, people are traded for frames at no cost."""
    low, high = axes.get_xlim()
    n = np.geomspace(low, high, 50)
    for product in products:
        axes.plot(n, product / n, ls=(0, (4, 3)), color=style.PALE, lw=0.9, zorder=1)
    axes.set_xlim(low, high)


def _contours(axes: Axes, fit: pd.DataFrame, norm: Normalize) -> None:
    """Level lines of the fitted surface E + A N^-a + B T^-b."""
    value = fit.set_index("statistic")["value"]
    needed = ["irreducible", "amplitude_subjects", "exponent_subjects", "amplitude_frames", "exponent_frames"]
    if not set(needed) <= set(value.index) or not np.isfinite(value[needed]).all():
        return
    e, a, alpha, b, beta = value[needed]
    n, t = np.meshgrid(np.geomspace(*axes.get_xlim(), 60), np.geomspace(*axes.get_ylim(), 60))
    axes.contour(n, t, e + a * n**-alpha + b * t**-beta, levels=9, cmap=COLOURS, norm=norm, linewidths=1.1, zorder=2)


def _exponents(axes: Axes, study: Study, surface: pd.DataFrame, letter: str) -> None:
    style.letter(axes, letter, "Exponents")
    lines = [
        (f"{name}", pick(surface, architecture=architecture, statistic=f"exponent_{axis}"), look, fill)
        for architecture, look in style.looks(study).items()
        for axis, name, fill in (("subjects", "people, a", None), ("frames", "frames, b", "white"))
    ]
    for row, (_, part, look, fill) in enumerate(lines):
        style.forest(axes, row, part, look, fill)
    style.forest_rows(axes, [name for name, *_ in lines])
    axes.axvline(0, color=style.GREY, ls="--", lw=1)
    axes.set_xlabel("exponent of the surface")


def _exchange(axes: Axes, study: Study, surface: pd.DataFrame, letter: str) -> None:
    style.letter(axes, letter, "Exchange rate")
    known, rate = style.looks(study), pick(surface, statistic="exchange_rate")
    for row, (architecture, look) in enumerate(known.items()):
        part = pick(rate, architecture=architecture)
        style.forest(axes, row, part, look)
        if part["value"].notna().any() and part["note"].str.contains("unbounded").any():
            where = axes.get_yaxis_transform()
            axes.text(0.98, row + 0.12, "interval unbounded", transform=where, ha="right", fontsize=7, color=style.GREY)
    style.forest_rows(axes, [""] * len(known))
    axes.axvline(EVEN, color=style.GREY, ls="--", lw=1)
    _, high = axes.get_xlim()
    axes.set_xscale("log", base=2)
    axes.set_xlim(0.1, min(max(high, 8.0), 512.0))
    axes.xaxis.set_major_locator(LogLocator(base=4))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.set_xlabel("factor on $T$ that is worth\ntwice the people")
    for x, side, text in ((0.02, "left", "frames\nworth more"), (0.98, "right", "people\nworth more")):
        axes.text(x, 0.02, text, transform=axes.transAxes, ha=side, va="bottom", fontsize=7.5, color=style.GREY)


def _verdict(surface: pd.DataFrame) -> str:
    notes = surface["note"].astype(str)
    word = "a law" if len(notes) and notes.str.startswith("law").all() else "a trend, not a law"
    return word + (", not identified" if notes.str.contains("not identified").any() else "")


def _key(study: Study) -> list[Any]:
    known = [
        Line2D([], [], color=x.colour, marker=x.marker, lw=0, ms=6, label=x.label) for x in style.looks(study).values()
    ]
    return [
        *known,
        Line2D([], [], color=style.PALE, ls="--", label="equal $N × T$"),
        Line2D([], [], color="#2A788E", label="fitted surface, equal loss"),
        Line2D([], [], color="#B00020", marker="x", lw=0, label="missing or not completed"),
    ]


def _plotted(rows: pd.DataFrame, surface: pd.DataFrame) -> pd.DataFrame:
    cells = numbers("maps", rows, "subjects", "unexplained", n="n_validation_people")
    fits = surface.rename(columns={"statistic": "y_is", "value": "y", "fit": "panel"}).drop(columns=["x"])
    return pd.concat([cells, fits], ignore_index=True)


def _caption(study: Study, rows: pd.DataFrame) -> str:
    people, size = int(done(rows)["n_validation_people"].max()), ", ".join(rows["size"].unique())
    return (
        f"Figure 3. Unexplained variance of held-out people (n = {people}) over N people and T frames, size {size}, "
        "mean over draws and seeds. Dashed lines: equal N x T. Coloured lines: levels of the fitted surface "
        "E + A N^-a + B T^-b. Then the surface's exponents, and the exchange rate: by what multiple runs would have to "
        "be longer to be worth a doubling of the people, at the centre of the grid; 2 is an even exchange. Bars: "
        f"{study.evaluate.confidence:.0%} bootstrap intervals."
    )
