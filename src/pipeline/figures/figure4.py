"""Figure 4. The benchmark: every encoder, every simple system and every control, each task, all people and few."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from pipeline.config import Study
from pipeline.evaluate.statistics import holm
from pipeline.figures import style
from pipeline.figures.select import auroc_difference, best_cells, numbers, pick, records, rows_of
from pipeline.grid import Cell, block_cells

TABLES = ("benchmark", "scores", "pretrain")
REFERENCE = "connectome_logistic"
SIGNIFICANT = 0.05  # after Holm
LABELS = {
    REFERENCE: "connectome + logistic",
    "time_averaged": "mean image by parcel + logistic",
    "temporal_sd": "temporal SD + logistic",
    "confounds": "confounds only",
    "chance": "chance",
}


class System(NamedTuple):
    """One line of the benchmark: the cells of an encoder (its seeds), or a system outside the grid."""

    label: str
    look: style.Look
    kind: str  # trained | control | simple
    cells: tuple[Cell, ...] = ()
    slug: str = ""

    def rows(self, table: pd.DataFrame) -> pd.DataFrame:
        """The system's rows of any table."""
        return pick(table, system=self.slug) if self.slug else rows_of(table, list(self.cells))


def draw(study: Study, tables: dict[str, pd.DataFrame]) -> tuple[Figure, pd.DataFrame, str]:
    """For each task: AUROC of every system with its difference from the connectome; AUROC against labelled people."""
    benchmark = pick(tables["benchmark"], metric="auroc", fold=-1)
    lines = systems(study, benchmark, tables["pretrain"])
    tasks = list(dict.fromkeys(zip(benchmark["dataset"], benchmark["task"], strict=True)))
    compared = differences(study, tables["scores"], lines, tasks)
    count, tall = max(1, len(tasks)), 0.21 * len(lines) + 0.6
    figure, axes = style.sheet(2.4 + 3.9 * count, tall + 3.4, nrows=2, ncols=count, height_ratios=[tall, 2.6])
    plotted = []
    for place, (dataset, task) in enumerate(tasks):
        rows, names = pick(benchmark, dataset=dataset, task=task), (chr(65 + place), chr(65 + count + place))
        marks = pick(compared, dataset=dataset, task=task)
        plotted.append(_all_people(axes[0, place], rows, lines, marks, names[0], f"{task}, {dataset}"))
        plotted.append(_few_people(axes[1, place], study, rows, lines, names[1], f"{task}, few labelled people"))
        if place:
            axes[0, place].set_yticklabels([])
    if not tasks:
        style.nothing(axes[0, 0], "no task with labels")
        style.nothing(axes[1, 0], "")
    style.headline(figure, "Figure 4. Benchmark of frozen encoders", benchmark["simulated"])
    style.key(figure, _key(study), 4)
    caption = style.caption(_caption(study, compared), benchmark["simulated"])
    return figure, pd.concat([*plotted, compared], ignore_index=True), caption


def systems(study: Study, benchmark: pd.DataFrame, pretrain: pd.DataFrame) -> list[System]:
    """Encoders from large to small, the best N x T, untrained and shuffled controls, simple systems, chance."""
    lines, controls = [], []
    for name, look in style.looks(study).items():
        trained = [cell for cell in block_cells(study, "scaling") if cell.architecture == name]
        most = max(((cell.subjects, cell.frames) for cell in trained), default=(0, 0))
        for size in reversed(study.architectures[name].sizes):
            cells = tuple(cell for cell in trained if cell.size == size and (cell.subjects, cell.frames) == most)
            lines += [System(f"{look.label}, {size}", look, "trained", cells)] if cells else []
        if best := best_cells(study, "iso_tokens", pretrain, name):
            told = f"{look.label}, {best[0].size}, best N × T ({best[0].subjects} × {best[0].frames})"
            lines.append(System(told, look, "trained", tuple(best)))
        random = tuple(cell for cell in block_cells(study, "random_weights") if cell.architecture == name)
        controls += [System(f"{look.label}, random weights", look, "control", random)] if random else []
        shuffled = f"{name}_time_shuffled"
        if shuffled in set(benchmark["system"]):
            controls.append(System(f"{look.label}, frames shuffled", look, "control", slug=shuffled))
    plain = style.Look("simple", style.INK, "d")
    outside = pick(benchmark, architecture="")["system"].unique()
    simple = [System(LABELS.get(slug, slug.replace("_", " ")), plain, "simple", slug=slug) for slug in outside]
    return [*lines, *controls, *sorted(simple, key=lambda line: line.slug == "chance")]


def differences(study: Study, scores: pd.DataFrame, lines: list[System], tasks: list[tuple[str, str]]) -> pd.DataFrame:
    """AUROC of each system minus the connectome's, paired over people; Holm over every row of the figure."""
    out = []
    for dataset, task in tasks:
        here = pick(scores, dataset=dataset, task=task)
        reference = pick(here, system=REFERENCE)
        for line in lines:
            ours = line.rows(here)
            if line.slug in (REFERENCE, "chance") or ours.empty or reference.empty:
                continue
            difference, low, high, p_value, n = auroc_difference(ours, reference, study)
            named = {"panel": "difference", "system": line.label, "dataset": dataset, "task": task, "n": n}
            out.append(
                {**named, "y_is": f"AUROC - {REFERENCE}", "y": difference, "low": low, "high": high, "p": p_value}
            )
    table = pd.DataFrame(out, columns=["panel", "system", "dataset", "task", "n", "y_is", "y", "low", "high", "p"])
    return table.assign(p_holm=holm(table["p"].to_numpy(dtype=float)))


def _all_people(
    axes: Axes, rows: pd.DataFrame, lines: list[System], marks: pd.DataFrame, letter: str, title: str
) -> pd.DataFrame:
    rows, shown = pick(rows, split="oof"), []
    style.letter(axes, letter, f"{title} (n = {int(rows['n'].max())})")
    for place, line in enumerate(lines):
        part = line.rows(rows)
        style.forest(axes, place, part, line.look, "white" if line.kind == "control" else None)
        _mark(axes, place, pick(marks, system=line.label))
        shown.append(numbers(letter, part, "fold", "value", "low", "high", "n").assign(x_is=line.label))
    style.forest_rows(axes, [line.label for line in lines])
    axes.axvline(0.5, color=style.GREY, ls="--", lw=1)
    reference = pick(rows, system=REFERENCE)["value"]
    axes.axvline(reference.mean(), color=style.INK, ls="-.", lw=1)
    axes.set_xlabel("AUROC")
    return pd.concat(shown)


def _mark(axes: Axes, place: int, difference: pd.DataFrame) -> None:
    """At the right: is the system above or below the connectome beyond chance, after Holm?"""
    for row in records(difference):
        if row["p_holm"] >= SIGNIFICANT or np.isnan(row["p_holm"]):
            continue
        text = "▲" if row["y"] > 0 else "▼"
        axes.text(1.015, place, text, transform=axes.get_yaxis_transform(), ha="left", va="center", fontsize=7.5)


def _few_people(
    axes: Axes, study: Study, rows: pd.DataFrame, lines: list[System], letter: str, title: str
) -> pd.DataFrame:
    """AUROC against labelled people a class, and with all, for the systems that a reader would compare."""
    style.letter(axes, letter, title)
    shots, shown = study.evaluate.low_shot, []
    splits = [*(f"low-shot-{shot}" for shot in shots), "oof"]
    chosen = _chosen(study, lines)
    for rank, (line, drawn) in enumerate(chosen):
        part = line.rows(pick(rows, split=splits))
        part = part.assign(place=part["split"].map(splits.index))
        mean = part.groupby("place")[["value", "low", "high"]].mean()  # of seeds; the interval is that over people
        bars = style.spread(mean["value"], mean["low"], mean["high"])
        at = mean.index + 0.06 * (rank - (len(chosen) - 1) / 2)
        axes.errorbar(at, mean["value"], yerr=bars, color=line.look.colour, ms=4.5, elinewidth=0.9, **drawn)
        shown.append(numbers(letter, part, "place", "value", "low", "high", "n").assign(x_is=line.label))
    axes.axhline(0.5, color=style.GREY, ls="--", lw=1)
    axes.set_xticks(range(len(splits)), [*map(str, shots), "all"])
    axes.set(xlabel="labelled people a class", ylabel="AUROC")
    return pd.concat(shown) if shown else pd.DataFrame()


def _chosen(study: Study, lines: list[System]) -> list[tuple[System, dict[str, Any]]]:
    """The largest size of each architecture, its untrained control, the connectome and the confounds."""
    chosen: list[tuple[System, dict[str, Any]]] = []
    for look in style.looks(study).values():
        ours = [line for line in lines if line.look == look]
        chosen += [(line, {"marker": look.marker, "ls": "-"}) for line in ours if line.kind == "trained"][:1]
        chosen += [
            (line, {"marker": look.marker, "mfc": "white", "ls": ":"}) for line in ours if "random" in line.label
        ]
    kinds: dict[str, dict[str, Any]] = {
        REFERENCE: {"marker": "d", "ls": "-."},
        "confounds": {"marker": ".", "ls": (0, (1, 1))},
    }
    return chosen + [(line, kinds[line.slug]) for line in lines if line.slug in kinds]


def _key(study: Study) -> list[Any]:
    known = style.looks(study).values()
    return [
        *(Line2D([], [], color=x.colour, marker=x.marker, ms=5, label=x.label) for x in known),
        *(
            Line2D([], [], color=x.colour, marker=x.marker, mfc="white", ls=":", label=f"{x.label}, random")
            for x in known
        ),
        Line2D([], [], color=style.INK, marker="d", ls="-.", label="connectome + logistic"),
        Line2D([], [], color=style.INK, marker=".", ls=(0, (1, 1)), label="confounds only"),
        Line2D([], [], color=style.GREY, ls="--", label="chance"),
        Line2D([], [], color="none", label="▲ ▼ above, below the connectome (Holm)"),
    ]


def _caption(study: Study, compared: pd.DataFrame) -> str:
    above = int(((compared["p_holm"] < SIGNIFICANT) & (compared["y"] > 0)).sum())
    below = int(((compared["p_holm"] < SIGNIFICANT) & (compared["y"] < 0)).sum())
    return (
        "Figure 4. AUROC of frozen encoders and of simple systems, out of fold over "
        f"{study.evaluate.splits} stratified splits grouped by family (train, validation, test: "
        f"{1 - study.evaluate.test - study.evaluate.validation:.0%}, {study.evaluate.validation:.0%}, "
        f"{study.evaluate.test:.0%}), L2 logistic with its strength chosen inside the training part. Bars: "
        f"{study.evaluate.confidence:.0%} bootstrap intervals over families; one point a seed or draw; open: controls. "
        f"Triangles: paired difference from the connectome (bootstrap over families, Holm over the {len(compared)} "
        f"comparisons of the figure; {above} above, {below} below). Lower panels: labelled people a class, the same "
        "draws for every system. 'best N x T' is chosen by held-out reconstruction, without labels."
    )
