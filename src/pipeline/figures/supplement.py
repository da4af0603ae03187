"""Figure S1. What encoders keep and what their features rest on: connectivity, frames, parts, memory, places."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from pipeline.artefact import read_table
from pipeline.config import Study
from pipeline.figures import save_figure, style
from pipeline.figures.select import numbers, pick, records, rows_of
from pipeline.grid import Cell, block_cells, largest
from pipeline.intervals import bootstrap_interval

TABLES = ("spectral", "scores", "supplement", "attribution")
SIGNIFICANT = 0.05  # over the parts of a level, by the largest |z|
CONNECTIVITY = {"fc_r_others": "another person's connectome", "fc_r_smooth_noise": "noise as smooth as the run"}
KEPT = {
    "covariance_kept": "variance of parcels",
    "spectrum_kept": "variance along leading directions",
    "dimension_ratio": "number of directions",
    "covariance_r": "covariances, r",
    "coskewness_r": "co-skewness, r",
    "coskewness_r_gaussian": "co-skewness, r, of a Gaussian signal",
    "fc_specificity": "own minus others' connectome, r",
}
MODEL_COLOURS = dict(
    zip(("swift_v1", "swift_4d", "swift_v2", "neurostorm", "brainmt", "tff"), style.ARCHITECTURE_COLOURS, strict=True)
)


def write_supplement(study: Study, tables_folder: Path, png: Path) -> None:
    """Draw Figure S1 and write its PNG, PDF, numbers and caption."""
    tables = {name: read_table(tables_folder / f"{name}.parquet") for name in TABLES}
    save_figure(study, *draw(study, tables), png)


def draw(study: Study, tables: dict[str, pd.DataFrame]) -> tuple[Figure, pd.DataFrame, str]:
    """Connectivity with its controls, what else is kept, memory; AUROC by frames, by parts, attribution by network."""
    spectral, supplement = _with_families(study, tables["spectral"], tables["scores"]), tables["supplement"]
    attribution = pick(tables["attribution"], level="network")
    lines = max(7, len(study.architectures) * 2 + 2)
    networks = max(10, attribution["part"].nunique())
    figure, axes = style.sheet(
        13.5, 1.8 + 0.24 * (lines + networks) + 1.8, nrows=2, ncols=3, height_ratios=[lines, networks]
    )
    plotted = [
        _connectivity(axes[0, 0], study, spectral),
        _kept(axes[0, 1], study, spectral),
        _memory(axes[0, 2], pick(supplement, task="memory")),
        _frames(axes[1, 0], study, supplement),
        _parts(axes[1, 1], study, supplement),
        _networks(axes[1, 2], study, attribution),
    ]
    shown = [pick(table, dataset=_dataset(study, table)) for table in (spectral, supplement, attribution)]
    simulated = pd.concat([table["simulated"] for table in shown])
    style.headline(figure, "Figure S1. What is kept, and what features rest on", simulated)
    style.key(figure, _key(study), 6)
    return figure, pd.concat(plotted, ignore_index=True), style.caption(_caption(study, attribution), simulated)


def _with_families(study: Study, spectral: pd.DataFrame, scores: pd.DataFrame) -> pd.DataFrame:
    """Rows of connectivity, one a cell and metric, with intervals over families in place of those over people."""
    rows = pick(spectral, task="connectivity")
    known = scores.drop_duplicates(["dataset", "person"]).set_index(["dataset", "person"])["family"]
    alone = rows[rows["split"].str.startswith("person-")]
    alone = alone.assign(person=alone["split"].str.removeprefix("person-"))
    names = ["system", "architecture", "size", "variant", "draw", "seed", "dataset", "metric"]
    people = dict(iter(alone.groupby(names, sort=False)))
    found = []
    for row in records(pick(rows, split="all")):
        part = people.get(tuple(row[name] for name in names))
        if part is not None and len(part) > 1 and np.isfinite(part["value"]).all():
            keys = zip(part["dataset"], part["person"], strict=True)
            families = np.array([known.get(key, key[1]) for key in keys])
            resamples, rng = study.evaluate.bootstrap, np.random.default_rng(study.seed)
            interval = bootstrap_interval(part["value"].to_numpy(), families, study.evaluate.confidence, resamples, rng)
            row |= interval._asdict()
        found.append(row)
    return pd.DataFrame(found, columns=rows.columns)


def _untrained(study: Study, architecture: str) -> list[Cell]:
    return [cell for cell in block_cells(study, "random_weights") if cell.architecture == architecture]


def _dataset(study: Study, table: pd.DataFrame) -> str:
    """The data set that panels show: the first that is evaluated, else the first there is."""
    there = [name for name in study.datasets if name in set(table["dataset"])]
    return next((name for name in there if "evaluate" in study.datasets[name].roles), there[0] if there else "")


def _connectivity(axes: Axes, study: Study, spectral: pd.DataFrame) -> pd.DataFrame:
    dataset, drawn = _dataset(study, spectral), []
    lines: list[tuple[str, pd.DataFrame, style.Look, str | None]] = []
    here = pick(spectral, dataset=dataset)
    people = int(here["n"].max()) if len(here) else 0
    style.letter(axes, "A", f"Reconstructed connectome, {dataset} (n = {people})")
    for name, look in style.looks(study).items():
        trained, random = rows_of(here, largest(study, name)), rows_of(here, _untrained(study, name))
        lines.append((", ".join([look.label, *trained["size"].unique()]), pick(trained, metric="fc_r"), look, None))
        size = ", ".join(["random weights", *random["size"].unique()])
        lines.append((size, pick(random, metric="fc_r"), look, "white"))
    anybody = here.drop_duplicates("metric")  # these controls are of the runs, the same for every encoder
    plain = style.Look("control", style.GREY, "d")
    lines += [(label, pick(anybody, metric=metric), plain, "white") for metric, label in CONNECTIVITY.items()]
    for place, (label, rows, look, fill) in enumerate(lines):
        style.forest(axes, place, rows, look, fill)
        drawn.append(numbers("A", rows, "seed", "value", "low", "high", "n").assign(x_is=label))
    if here.empty:
        style.nothing(axes, "no reconstruction")
        return pd.DataFrame()
    style.forest_rows(axes, [line[0] for line in lines])
    axes.axvline(0, color=style.GREY, ls="--", lw=1, zorder=0)
    axes.set_xlabel("r of edges with the measured connectome")
    return pd.concat(drawn)


def _kept(axes: Axes, study: Study, spectral: pd.DataFrame) -> pd.DataFrame:
    dataset, drawn = _dataset(study, spectral), []
    here, looks = pick(spectral, dataset=dataset), style.looks(study)
    style.letter(axes, "B", "What else is kept")
    for place, metric in enumerate(KEPT):
        for rank, (name, look) in enumerate(looks.items()):
            rows = pick(rows_of(here, largest(study, name)), metric=metric).dropna(subset=["value"])
            at = place + 0.26 * (rank - (len(looks) - 1) / 2) + 0.06 * np.arange(len(rows))
            bars = style.spread(rows["value"], rows["low"], rows["high"])
            axes.errorbar(
                rows["value"], at, xerr=bars, fmt=look.marker, ms=4, color=look.colour, elinewidth=1, capsize=0
            )
            drawn.append(numbers("B", rows, "seed", "value", "low", "high", "n").assign(x_is=KEPT[metric]))
    style.forest_rows(axes, list(KEPT.values()))
    for value, line in ((0, "--"), (1, ":")):
        axes.axvline(value, color=style.GREY, ls=line, lw=1, zorder=0)
    axes.set_xlabel("share of the run's, or r with it")
    return pd.concat(drawn) if drawn else pd.DataFrame()


def _memory(axes: Axes, memory: pd.DataFrame) -> pd.DataFrame:
    style.letter(axes, "C", "Memory of one clip in training")
    if memory.empty:
        style.nothing(axes, "memory was not counted")
        return pd.DataFrame()
    memory = memory.assign(scan=memory["split"].str.removeprefix("T").astype(int), gigabytes=memory["value"] / 1000)
    for name, part in memory.groupby("system", sort=False):
        part = part.sort_values("scan")
        slope = np.polyfit(np.log(part["scan"]), np.log(part["value"]), 1)[0] if len(part) > 1 else np.nan
        colour = MODEL_COLOURS.get(str(name), style.INK)
        axes.plot(part["scan"], part["gigabytes"], marker=".", color=colour, label=f"{name} ($T^{{{slope:.2f}}}$)")
    axes.set(xlabel="frames of a clip, T", ylabel="GB, float32, fused attention")
    style.log_axis(axes, "x")
    axes.set(yscale="log", ylim=(None, 12 * memory["gigabytes"].max()))  # the names stand above the lines
    style.log_axis(axes, "y", "{:,g}".format)
    style.ticks_at(axes, "x", sorted(memory["scan"].unique()))
    axes.legend(loc="upper left", fontsize=7, handlelength=1.2, ncols=2)
    return numbers("C", memory, "scan", "gigabytes")


def _frames(axes: Axes, study: Study, supplement: pd.DataFrame) -> pd.DataFrame:
    rows = supplement[supplement["split"].str.fullmatch(r"T\d+") & (supplement["task"] != "memory")]
    rows = rows.assign(scan=rows["split"].str.removeprefix("T").astype(int))
    dataset = _dataset(study, rows)
    rows = pick(rows, dataset=dataset)
    metric = rows["metric"].iloc[0] if len(rows) else ""
    style.letter(axes, "D", f"Length of the probed scan, {dataset}")
    if rows.empty:
        style.nothing(axes, "no scan length was probed")
        return pd.DataFrame()
    rows, tasks = pick(rows, metric=metric), list(dict.fromkeys(pick(rows, metric=metric)["task"]))
    looks, scans = style.looks(study), sorted(rows["scan"].unique())
    for rank, ((name, task), part) in enumerate(rows.groupby(["architecture", "task"], sort=False)):
        look, part = looks[str(name)], part.sort_values("scan")
        at = [scans.index(scan) + 0.05 * (rank - 1.5) for scan in part["scan"]]
        bars = style.spread(part["value"], part["low"], part["high"])
        kind: dict[str, Any] = {"ls": style_of(tasks.index(task)), "marker": look.marker, "ms": 4, "elinewidth": 0.9}
        axes.errorbar(at, part["value"], yerr=bars, color=look.colour, **kind)
    axes.set_xticks(range(len(scans)), [str(scan) for scan in scans])
    axes.axhline(0.5 if metric == "auroc" else 0, color=style.GREY, ls="--", lw=1)
    axes.set(xlabel="frames from the start of a run", ylabel=_told(metric))
    told = [Line2D([], [], color=style.INK, ls=style_of(place), label=task) for place, task in enumerate(tasks)]
    axes.legend(handles=told, loc="best", fontsize=7.5)
    return numbers("D", rows, "scan", "value", "low", "high", "n")


def style_of(place: int) -> Any:
    """Line style of the task at a place."""
    return ("-", ":", "-.", (0, (1, 1)), (0, (5, 1)))[place % 5]


def _told(metric: str) -> str:
    return {"auroc": "AUROC", "pearson_r": "r with the label"}.get(metric, metric.replace("_", " "))


def _parts(axes: Axes, study: Study, supplement: pd.DataFrame) -> pd.DataFrame:
    rows = supplement[supplement["metric"].str.endswith("_change")]
    dataset = _dataset(study, rows)
    rows, looks, drawn = pick(rows, dataset=dataset), style.looks(study), []
    style.letter(axes, "E", "Parts taken out of the trained encoder")
    if rows.empty:
        style.nothing(axes, "nothing was taken out")
        return pd.DataFrame()
    lines = list(dict.fromkeys(zip(rows["task"], rows["split"], strict=True)))
    lines.sort(key=lambda line: list(rows["task"]).index(line[0]))
    for place, (task, split) in enumerate(lines):
        for rank, (name, look) in enumerate(looks.items()):
            part = pick(rows, task=task, split=split, architecture=name)
            bars = style.spread(part["value"], part["low"], part["high"])
            at = np.full(len(part), place + 0.26 * (rank - (len(looks) - 1) / 2))
            axes.errorbar(
                part["value"], at, xerr=bars, fmt=look.marker, ms=4, color=look.colour, elinewidth=1, capsize=0
            )
            drawn.append(numbers("E", part, "seed", "value", "low", "high", "n").assign(x_is=f"{task}, {split}"))
    style.forest_rows(axes, [f"{task}, {split}" for task, split in lines])
    axes.axvline(0, color=style.GREY, ls="--", lw=1, zorder=0)
    axes.set_xlabel(f"change of {_told(str(rows['metric'].iloc[0]).removesuffix('_change'))}, paired over people")
    return pd.concat(drawn)


def _networks(axes: Axes, study: Study, attribution: pd.DataFrame) -> pd.DataFrame:
    """The first task; the others are in the numbers beside the figure."""
    dataset = _dataset(study, attribution)
    here, looks = pick(attribution, dataset=dataset), style.looks(study)
    if here.empty:
        style.letter(axes, "F", "Attribution by network")
        style.nothing(axes, "nothing was explained")
        return pd.DataFrame()
    task = here["task"].iloc[0]
    shown = pick(here, task=task)
    style.letter(axes, "F", f"Where {task} is read from (n = {int(shown['n'].max())})")
    order = shown.groupby("part")["share"].mean().sort_values(ascending=False).index.tolist()
    for place, part in enumerate(order):
        for rank, (name, look) in enumerate(looks.items()):
            at = place + 0.3 * (rank - (len(looks) - 1) / 2)
            for row in records(pick(shown, part=part, architecture=name)):
                axes.plot(
                    [row["chance_low"], row["chance_high"]], [at, at], color=style.PALE, lw=5, solid_capstyle="butt"
                )
                full = row["p"] < SIGNIFICANT
                axes.plot(
                    row["effect"], at, look.marker, ms=4.5, color=look.colour, mfc=look.colour if full else "white"
                )
    style.forest_rows(axes, order)
    axes.axvline(0, color=style.GREY, ls="--", lw=1, zorder=0)
    axes.set_xlabel("class difference in attribution (SD)")
    return numbers("F", here, "share", "effect", "chance_low", "chance_high", "n").assign(
        p=here["p"], x_is=here["part"]
    )


def _key(study: Study) -> list[Any]:
    return [
        *(
            Line2D([], [], color=look.colour, marker=look.marker, label=look.label)
            for look in style.looks(study).values()
        ),
        Line2D([], [], color=style.GREY, marker="o", mfc="white", lw=0, label="A: untrained, controls"),
        Patch(color=style.PALE, lw=0, label="F: read-outs of shuffled labels"),
        Line2D([], [], color=style.GREY, marker="o", lw=0, label=f"F: filled: p < {SIGNIFICANT:g} over all networks"),
    ]


def _caption(study: Study, attribution: pd.DataFrame) -> str:
    settings, sources = study.supplement, ", ".join(dict.fromkeys(attribution["source"]))
    confidence = f"{study.evaluate.confidence:.0%}"
    return (
        "Figure S1. (A) Correlation of edges (Fisher z) between the connectome of a full-run reconstruction of hidden "
        "tokens and the measured one, by person; open: untrained weights, the connectomes of other people, and noise "
        "that is white in time and as smooth in space as the run. (B) What else the reconstruction has of the run, "
        "between parcels; a Gaussian signal has the run's covariance and none of its co-skewness. (C) What the "
        "gradient of one clip keeps in memory, counted at the size that the authors published; the exponent is its "
        "growth with frames. (D) The frozen probe on the first frames of a run. (E) Change of the probe where a part "
        "of the trained encoder is taken out, or frames are shuffled; the probe is fitted anew, the encoder is not. "
        "(F) Difference of the classes in signed Integrated Gradients of a read-out of "
        f"{settings.components} components of the features, which saw other people, by network ({sources}); grey: the "
        f"middle {confidence} of what read-outs of {settings.shuffles} shuffled labels give; filled: p < "
        f"{SIGNIFICANT:g} by the largest |z| over all networks. Bars: {confidence} bootstrap intervals over families."
    )
