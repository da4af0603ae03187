"""Figure 5. Physics of the signal: spectra, slopes and Hurst exponents of BOLD and of what models reconstruct of it."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from pipeline.config import Study
from pipeline.figures import style
from pipeline.figures.select import cells_frame, numbers, pick, rows_of
from pipeline.grid import Cell, block_cells, largest

TABLES = ("spectral", "spectra", "truths")
RAW = style.Look("raw BOLD", style.INK, "P")
CONTROL = style.Look("control", style.GREY, "d")
OUTSIDE = {
    "raw": "raw BOLD",
    "phase_randomised": "phases randomised",
    "time_shuffled": "frames shuffled",
    "white_noise": "white noise",
    "known_slope": "1/f noise of known slope",
}
SURROGATES = {
    "constant_input": "constant input",
    "noise_matched": "noise of equal R²",
    "smooth_matched": "smoothing of equal R²",
    "features": "features",
}


class Line(NamedTuple):
    """One line of the forest plots: which rows, which metrics."""

    label: str
    look: style.Look
    fill: str | None
    rows: pd.DataFrame
    suffix: str = ""


def draw(study: Study, tables: dict[str, pd.DataFrame]) -> tuple[Figure, pd.DataFrame, str]:
    """Spectra of two data sets, planted against measured slopes, then every slope, exponent and difference."""
    spectral, spectra = pick(tables["spectral"], split="all"), tables["spectra"]
    present = [name for name in study.datasets if name in set(spectra["dataset"])]
    shown = sorted(present, key=lambda name: "evaluate" not in study.datasets[name].roles)[:2]
    lines = forest_lines(study, spectral)
    height = 0.2 * len(lines) + 0.9
    figure, axes = style.sheet(11.5, 3.9 + height, nrows=2, ncols=3, height_ratios=[3.2, height])
    plotted = [_spectra(axes[0, place], study, spectra, name, "AB"[place]) for place, name in enumerate(shown)]
    for place in range(len(shown), 2):
        style.nothing(axes[0, place], "no second data set")
    plotted.append(_planted(axes[0, 2], tables.get("truths")))
    for place, (metric, title) in enumerate((("beta", "Slope β"), ("hurst", "Hurst exponent"))):
        plotted.append(_forest(axes[1, place], study, lines, shown, metric, "DE"[place], title))
        for rank, reference in enumerate(references(study, spectral, shown, metric)):
            axes[1, place].axvline(reference, color=style.INK, alpha=_fade(rank), ls="-.", lw=0.9, zorder=0)
    axes[1, 1].set_yticklabels([])
    plotted.append(_distance(axes[1, 2], study, spectral, shown))
    simulated = pick(spectra, dataset=shown)["simulated"]
    style.headline(figure, "Figure 5. Physics of the signal, and of its reconstruction", simulated)
    style.key(figure, _key(study, shown), 5)
    caption = style.caption(_caption(study, spectral, spectra, shown), simulated)
    return figure, pd.concat(plotted, ignore_index=True), caption


def untrained(study: Study, architecture: str) -> list[Cell]:
    """An architecture's cells with random weights."""
    return [cell for cell in block_cells(study, "random_weights") if cell.architecture == architecture]


def forest_lines(study: Study, spectral: pd.DataFrame) -> list[Line]:
    """Raw signal and controls; then each architecture's reconstruction, its random weights and its surrogates."""
    outside = pick(spectral, architecture="")
    lines = [
        Line(label, RAW if slug == "raw" else CONTROL, None, pick(outside, system=slug))
        for slug, label in OUTSIDE.items()
    ]
    for name, look in style.looks(study).items():
        trained = rows_of(spectral, largest(study, name))
        lines.append(Line(f"{look.label}, reconstruction", look, None, trained))
        lines.append(Line("random weights", look, "white", rows_of(spectral, untrained(study, name))))
        for suffix, label in SURROGATES.items():
            lines.append(Line(label, look, "white", trained, f"_{suffix}"))
    return [line for line in lines if len(line.rows) and line.rows["metric"].isin([f"beta{line.suffix}"]).any()]


def references(study: Study, spectral: pd.DataFrame, shown: list[str], metric: str) -> list[float]:
    """Slope or exponent of the very runs that the largest encoders reconstructed, comb left out; one a data set.

    The line "raw BOLD" is of other people, runs and frequencies, so reconstructions are not held against it.
    """
    cells = [cell for name in study.architectures for cell in largest(study, name)]
    raw = pick(rows_of(spectral, cells), metric=f"{metric}_raw")
    return [float(pick(raw, dataset=dataset)["value"].mean()) for dataset in shown]


def _spectra(axes: Axes, study: Study, spectra: pd.DataFrame, dataset: str, letter: str) -> pd.DataFrame:
    here, shown = pick(spectra, dataset=dataset), []
    style.letter(axes, letter, f"Spectra, {_who(here)}")
    axes.axvspan(*study.spectral.band_hz, color="#F1F1F1", lw=0, zorder=0)
    raw_drawn = False
    for name, look in style.looks(study).items():
        for cells, system, line in (
            (largest(study, name), name, {"color": look.colour}),
            (untrained(study, name), name, {"color": look.colour, "ls": ":"}),
            (largest(study, name), "raw", {"color": style.INK, "lw": 2}),
        ):
            curve = cells_frame(cells[:1]).merge(pick(here, system=system)).sort_values("frequency_hz")
            if curve.empty or (system == "raw" and raw_drawn):
                continue
            raw_drawn |= system == "raw"
            axes.plot(curve["frequency_hz"], curve["power"], **line)
            axes.fill_between(curve["frequency_hz"], curve["low"], curve["high"], color=line["color"], alpha=0.15, lw=0)
            shown.append(numbers(letter, curve, "frequency_hz", "power", "low", "high", "n"))
    axes.set(xscale="log", yscale="log", xlabel="frequency (Hz)", ylabel="power (z² / Hz)")
    return pd.concat(shown) if shown else pd.DataFrame()


def _who(rows: pd.DataFrame) -> str:
    kind = "simulated cohort" if rows["simulated"].any() else "real data"
    raw = pick(rows, system="raw")
    beside = raw[raw["architecture"] != ""]  # the runs that the encoders reconstructed
    people = int((beside if len(beside) else raw)["n"].max() if len(raw) else 0)
    return f"{kind} (n = {people})" if people != 1 else f"{kind}, one run (n = 1)"


def _planted(axes: Axes, truths: pd.DataFrame | None) -> pd.DataFrame:
    """Slope of each simulated person: what their spectrum was made to be, and what was measured."""
    style.letter(axes, "C", "Planted and measured slope")
    people = pick(truths, truth="slope_of_person") if truths is not None else pd.DataFrame()
    if people.empty:
        style.nothing(axes, "no planted truth:\nreal data only")
        return pd.DataFrame()
    axes.plot(people["planted"], people["found"], "o", color=style.INK, mfc="none", ms=4, alpha=0.8)
    both = np.concatenate([people["planted"], people["found"]])
    ends = [both.min() - 0.05, both.max() + 0.05]
    axes.plot(ends, ends, color=style.GREY, ls="--", lw=1)
    correlation, error = np.corrcoef(people["planted"], people["found"])[0, 1], people["found"] - people["planted"]
    told = f"n = {len(people)} simulated people\nr = {correlation:.2f}, mean error {error.mean():+.3f}"
    axes.text(0.97, 0.03, told, transform=axes.transAxes, ha="right", va="bottom", fontsize=7.5, color=style.GREY)
    axes.set(xlabel="expected slope of the planted spectrum", ylabel="measured slope β")
    return numbers("C", people.assign(simulated=True), "planted", "found", n="n")


def _forest(
    axes: Axes, study: Study, lines: list[Line], shown: list[str], metric: str, letter: str, title: str
) -> pd.DataFrame:
    """Each data set on its own height within a line: the first above, the second below and paler."""
    style.letter(axes, letter, title)
    drawn = []
    for place, line in enumerate(lines):
        rows = pick(line.rows, metric=f"{metric}{line.suffix}")
        for rank, dataset in enumerate(shown):
            part = pick(rows, dataset=dataset)
            if len(part):
                _points(axes, place + 0.3 * (rank - (len(shown) - 1) / 2), part, line, rank)
            drawn.append(numbers(letter, part, "seed", "value", "low", "high", "n").assign(x_is=line.label))
        planted = pick(line.rows, metric=f"{metric}_planted")["value"]
        axes.plot(planted.iloc[:1], [place] * len(planted.iloc[:1]), "|", color="#B00020", ms=11, mew=2, zorder=1)
    style.forest_rows(axes, [line.label for line in lines])
    _frame(axes, lines, metric)
    axes.axvline(0.0 if metric == "beta" else 0.5, color=style.GREY, ls="--", lw=1, zorder=0)
    low, high = study.spectral.band_hz
    axes.set_xlabel(
        f"slope β over {low:g}-{high:g} Hz (white noise: 0)" if metric == "beta" else "H (white noise: 0.5)"
    )
    return pd.concat(drawn) if drawn else pd.DataFrame()


def _frame(axes: Axes, lines: list[Line], metric: str) -> None:
    """Frame the signals themselves; a surrogate that lies outside is told by its number at the edge."""
    signals = [pick(line.rows, metric=metric) for line in lines if not line.suffix]
    ends = pd.concat(signals)[["value", "low", "high"]].to_numpy(dtype=float).ravel() if signals else np.array([])
    ends = ends[np.isfinite(ends)]
    if not len(ends):
        return
    pad = 0.08 * (float(np.ptp(ends)) or 1.0)
    low, high = float(ends.min()) - pad, float(ends.max()) + pad
    axes.set_xlim(low, high)
    for place, line in enumerate(lines):
        values = pick(line.rows, metric=f"{metric}{line.suffix}")["value"].dropna()
        outside = values[(values < low) | (values > high)]
        if len(outside):
            right = outside.mean() > high
            text = f"{outside.mean():.1f} ▸" if right else f"◂ {outside.mean():.1f}"
            box = {"facecolor": "white", "edgecolor": "none", "pad": 0.6}
            ends_at: dict[str, Any] = {"ha": "right" if right else "left", "va": "center", "fontsize": 7.5, "bbox": box}
            axes.text(high if right else low, place, text, **ends_at)


def _fade(rank: int) -> float:
    """The second data set is paler."""
    return 0.5 if rank else 1.0


def _points(axes: Axes, at: float, part: pd.DataFrame, line: Line, rank: int) -> None:
    part = part.dropna(subset=["value"])
    offsets = 0.1 * (np.arange(len(part)) - (len(part) - 1) / 2)
    bars = style.spread(part["value"], part["low"], part["high"])
    marks: dict[str, Any] = {
        "fmt": line.look.marker,
        "ms": 3.6,
        "elinewidth": 0.9,
        "capsize": 0,
        "mfc": line.fill or line.look.colour,
    }
    axes.errorbar(part["value"], at + offsets, xerr=bars, color=line.look.colour, alpha=_fade(rank), **marks)


def _distance(axes: Axes, study: Study, spectral: pd.DataFrame, shown: list[str]) -> pd.DataFrame:
    """How far each reconstruction is from the raw signal, paired over people."""
    style.letter(axes, "F", "Distance from the raw signal")
    lines = []
    for name, look in style.looks(study).items():
        for label, cells, fill in (("", largest(study, name), None), (", random", untrained(study, name), "white")):
            for metric, symbol in (("beta_difference", "|Δβ|"), ("hurst_difference", "|ΔH|")):
                rows = pick(rows_of(spectral, cells), metric=metric)
                lines.append(Line(f"{symbol}{label}", look, fill, rows))
    drawn = []
    for place, line in enumerate(lines):
        for rank, dataset in enumerate(shown):
            part = pick(line.rows, dataset=dataset)
            _points(axes, place + 0.3 * (rank - (len(shown) - 1) / 2), part, line, rank)
            drawn.append(numbers("F", part, "seed", "value", "low", "high", "n").assign(x_is=line.label))
    style.forest_rows(axes, [line.label for line in lines])
    axes.axvline(0, color=style.GREY, ls="--", lw=1, zorder=0)
    axes.set_xlabel("|reconstruction − raw|")
    return pd.concat(drawn) if drawn else pd.DataFrame()


def _key(study: Study, shown: list[str]) -> list[Any]:
    known = style.looks(study).values()
    told = [f"above: {shown[0]}", f"below, paler: {shown[1]}"] if len(shown) > 1 else []
    return [
        Line2D([], [], color=style.INK, marker=RAW.marker, lw=2, label="raw BOLD"),
        *(Line2D([], [], color=x.colour, marker=x.marker, label=f"{x.label}, reconstruction") for x in known),
        Line2D([], [], color=style.GREY, marker="o", mfc="white", ls=":", label="random weights, surrogates"),
        Line2D([], [], color=CONTROL.colour, marker=CONTROL.marker, lw=0, label="control"),
        Line2D([], [], color="#B00020", marker="|", ms=10, mew=2, lw=0, label="what went in"),
        Patch(color="#E4E4E4", lw=0, label="band of the slope"),
        *(Line2D([], [], color="none", label=text) for text in told),
    ]


def _people(study: Study, spectral: pd.DataFrame, dataset: str) -> str:
    """How many people are behind raw signals and controls, and behind reconstructions."""
    slopes = pick(spectral, dataset=dataset, metric="beta")
    cells = [cell for name in study.architectures for cell in largest(study, name)]
    counts = [part["n"].max() if len(part) else 0 for part in (pick(slopes, system="raw"), rows_of(slopes, cells))]
    return f"{dataset}: {counts[0]} and {counts[1]}"


def _caption(study: Study, spectral: pd.DataFrame, spectra: pd.DataFrame, shown: list[str]) -> str:
    told = "; ".join(f"{name}: {_who(pick(spectra, dataset=name))}" for name in shown)
    people = "; ".join(_people(study, spectral, name) for name in shown)
    low, high = study.spectral.band_hz
    return (
        f"Figure 5. Power spectra (A, B) of raw BOLD and of full-run reconstructions of masked frames ({told}), "
        "averaged over voxels and then over people, with their interval over people; one seed of the largest size. "
        "(C) Slopes of the simulated people: the slope expected of each planted spectrum, and the one measured. "
        f"(D) Slope β of the averaged spectrum (multitaper, {low:g}-{high:g} Hz), (E) Hurst exponent (Whittle), each "
        "seed, with the signal's own controls, and for each architecture untrained weights, a constant input, and "
        "surrogates of equal R^2 through the identical path; no H where the likelihood has no minimum inside its "
        f"range. n of raw signals with their controls, every run, and of reconstructions, first runs: {people}. "
        "Dash-dotted: raw signal of the runs that were reconstructed, without the comb of the clips, the second data "
        "set paler. (F) Absolute difference from it, paired over people. Bars: "
        f"{study.evaluate.confidence:.0%} intervals over people; for one run alone, from leaving out every tenth "
        "frequency of its periodogram."
    )
