"""One picture a run: where it lies on the template, what its signal does, and how it is judged.

Axes: X, Y, Z of the template's grid, T frames, S columns of the carpet, F frequencies.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.artefact import atomic_file, write_json
from pipeline.bold.quality import HIGH_HZ, LIMITS, Measures, Traces, beyond, mean_spectrum
from pipeline.bold.slices import Field, Outline, draw_row, field_of, mosaic, spaced_cuts, white_level
from pipeline.bold.template import Template
from pipeline.config import Quality

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH, HEIGHT, DPI = 1600, 2000, 100  # pixels
EDGE = 44  # pixels left free at each side
INK, SOFT, LINE = "#1C2227", "#68727C", "#D5DADF"
GOOD, BAD = "#00664A", "#B3202C"
MASK, TISSUE, BRAIN = "#35C3F3", "#FFB000", "#FF4FA0"  # outlines, on grey images on black
SLICES = 7  # a row
MOST_LINES = 4  # of reasons above the slices
TALLEST = 280  # pixels of a row: four of them leave room for the rest
MIXED = {2: 3, 1: 2, 0: 2}  # slices along each axis where an image has but one row
VIEWS = {2: "axial, left is left", 1: "coronal, left is left", 0: "sagittal, front at the right"}

# Measure, its name in the table, and how its value is written.
ROWS = (
    ("seconds", "duration", "{:.0f} s"),
    ("tr_s", "TR", "{:g} s"),
    ("frames", "frames", "{}"),
    ("zero_frames", "empty frames", "{}"),
    ("coverage", "coverage of the mask", "{:.3f}"),
    ("constant_voxels", "constant in the brain", "{:.3f}"),
    ("overlap", "overlap, Dice", "{:.3f}"),
    ("similarity", "similarity to the template", "{:.3f}"),
    ("left_right", "left and right", "{}"),
    ("tsnr", "tSNR, median", "{:z.1f}"),
    ("mean_fd_mm", "FD, mean", "{:.3f} mm"),
    ("max_fd_mm", "FD, largest", "{:.2f} mm"),
    ("moved", "moved frames", "{:.3f}"),
    ("dvars_percent", "DVARS, mean", "{:.2f} %"),
    ("max_dvars", "DVARS, largest / median", "{:.2f}"),
    ("high_frequency", f"above {HIGH_HZ} Hz / white", "{:.3f}"),
    ("filtered", "band-passed", "{}"),
)


@dataclass(frozen=True, eq=False)
class Page:
    """What is on a page.

    `images` are volumes on the template's whole grid by the names under which they are drawn: the first in three
    rows of slices, each further one in one. A run of parcels has neither images nor template.
    """

    title: str
    traces: Traces
    measures: Measures
    settings: Quality | None  # thresholds; None: the run is only looked at
    images: Mapping[str, np.ndarray]
    template: Template | None = None
    standard_XYZ: np.ndarray | None = None  # standard brain: its border of grey and white matter is outlined
    brain_XYZ: np.ndarray | None = None  # the run's own brain
    fd_mm_T: np.ndarray | None = None

    @property
    def reasons(self) -> dict[str, str]:
        """Measures beyond their thresholds, each with the reason in words."""
        return beyond(self.measures, self.settings) if self.settings else {}


def write_quality(folder: Path, page: Page, picture: bool = True) -> None:
    """Write `quality.json`, and the picture `quality.png` where one is wanted, into a folder."""
    content = {"measures": page.measures.plain(), "reasons": list(page.reasons.values())}
    write_json(folder / "quality.json", content)
    if picture:
        draw_page(folder / "quality.png", page)


def draw_page(path: Path, page: Page) -> None:
    """Draw a page of 1600 x 2000 pixels; the same run gives the same bytes."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH / DPI, HEIGHT / DPI), dpi=DPI, facecolor="white")
    top = _header(figure, page)
    if page.template is not None and page.images:
        top = _slices(figure, top, page.template, page)
    _signal(figure, top, page)
    _table(figure, top, page)
    with atomic_file(path) as temporary:
        figure.savefig(temporary, format="png", metadata={"Software": None})


def _place(figure: Figure, left: float, top: float, width: float, height: float) -> Axes:
    """Axes at pixels from the top left corner of the page."""
    return figure.add_axes((left / WIDTH, 1 - (top + height) / HEIGHT, width / WIDTH, height / HEIGHT))


def _write(figure: Figure, left: float, top: float, text: str, size: float = 10, **style: Any) -> None:
    options: dict[str, Any] = {"color": INK, "ha": "left", "va": "top", "fontsize": size} | style
    figure.text(left / WIDTH, 1 - top / HEIGHT, text, **options)


def _header(figure: Figure, page: Page) -> float:
    """Title and verdict; returns where the rest may begin."""
    _write(figure, EDGE, 34, page.title, 17, weight="bold")
    if page.settings is not None:
        word, colour = ("QUARANTINED", BAD) if page.reasons else ("KEPT", GOOD)
        box = {"boxstyle": "round,pad=0.45", "facecolor": colour, "edgecolor": colour}
        _write(figure, WIDTH - EDGE - 8, 40, word, 12, color="white", weight="bold", ha="right", bbox=box)
    lines = [line for reason in page.reasons.values() for line in textwrap.wrap(reason, 130)]
    if len(lines) > MOST_LINES:
        lines[MOST_LINES - 1 :] = [f"and {len(lines) - MOST_LINES + 1} more, red in the table"]
    for place, line in enumerate(lines):
        _write(figure, EDGE, 80 + 22 * place, line, 11, color=BAD, weight="bold")
    return 100.0 + 22 * len(lines)


# --- slices --------------------------------------------------------------------------------------------------------


def _slices(figure: Figure, top: float, template: Template, page: Page) -> float:
    """Every image in rows of slices; returns where the rest may begin."""
    field = field_of(template)
    (name, first_XYZ), *others = page.images.items()
    mixed = [cut for axis, count in MIXED.items() for cut in spaced_cuts(field, axis, count)]
    rows = [(f"{name}, {view}", first_XYZ, spaced_cuts(field, axis, SLICES)) for axis, view in VIEWS.items()]
    rows += [(other, volume_XYZ, mixed) for other, volume_XYZ in others]
    outlines = _outlines(field, page)
    _outline_key(figure, top, outlines)
    for name, volume_XYZ, cuts in rows:
        _write(figure, EDGE, top, name, 10.5, weight="bold", color=SOFT)
        height, width = mosaic(field.mask_xyz, cuts)[0].shape
        scale = min((WIDTH - 2 * EDGE) / width, TALLEST / height)
        axes = _place(figure, EDGE, top + 22, scale * width, scale * height)
        draw_row(axes, field, volume_XYZ[field.box], cuts, outlines)
        top += 32 + scale * height
    return top


def _outlines(field: Field, page: Page) -> list[Outline]:
    """Border of the standard brain's grey and white matter, the run's brain, the template's mask."""
    outlines = [Outline(field.mask_xyz, 0.5, MASK, 1.0)]
    if page.brain_XYZ is not None:
        outlines.insert(0, Outline(page.brain_XYZ[field.box], 0.5, BRAIN, 1.0))
    if page.standard_XYZ is not None:
        tissue_xyz = page.standard_XYZ[field.box]
        outlines.insert(0, Outline(tissue_xyz, white_level(tissue_xyz[field.mask_xyz]), TISSUE, 0.7))
    return outlines


def _outline_key(figure: Figure, top: float, outlines: Sequence[Outline]) -> None:
    """What the outlines are, at the right above the first row."""
    from matplotlib.lines import Line2D

    known = {MASK: "template's mask", TISSUE: "its border of grey and white matter", BRAIN: "brain of the run"}
    handles = [Line2D([], [], color=each.colour, lw=2.5, label=known[each.colour]) for each in reversed(outlines)]
    corner = (1 - EDGE / WIDTH, 1 - (top - 8) / HEIGHT)
    style: dict[str, Any] = {"frameon": False, "fontsize": 10, "labelcolor": SOFT, "borderpad": 0, "borderaxespad": 0}
    figure.legend(handles=handles, loc="upper right", bbox_to_anchor=corner, ncols=len(handles), **style)


# --- signal --------------------------------------------------------------------------------------------------------

COLUMN = 1085  # pixels from the left, where the table begins
LEAST_SPECTRUM = 60  # pixels


def _signal(figure: Figure, top: float, page: Page) -> None:
    """Displacement, change and global signal over time, above the carpet; all on one axis in seconds."""
    traces, left, right = page.traces, EDGE + 92, COLUMN - 40
    seconds_T = (np.arange(traces.frames) + 0.5) * traces.tr_s
    _write(figure, EDGE, top, "signal", 10.5, weight="bold", color=SOFT)
    top += 24
    for name, unit, values_T, line in _curves(page):
        axes = _place(figure, left, top, right - left, 84)
        _curve(axes, seconds_T, values_T, line)
        axes.set_ylabel(f"{name}\n{unit}", fontsize=9, color=INK, rotation=0, ha="right", va="center", labelpad=6)
        axes.yaxis.set_label_coords(-0.055, 0.5)
        axes.set_xlim(0, max(traces.frames, 1) * traces.tr_s)
        axes.tick_params(labelbottom=False)
        top += 94
    axes = _place(figure, left, top, right - left, HEIGHT - top - 62)
    _carpet(axes, page)
    axes.set_xlabel("seconds", fontsize=10, color=INK)


def _curves(page: Page) -> list[tuple[str, str, np.ndarray | None, float | None]]:
    """Name, unit, values and threshold of each trace."""
    traces, spike = page.traces, page.settings.fd_spike_mm if page.settings else None
    level = float(np.mean(traces.global_T)) if traces.frames else 0.0
    typical = float(np.median(traces.dvars_T[1:])) if traces.frames > 1 else 0.0
    # A run whose mean has been taken off has no percent.
    scale, unit = (100 / level, "%") if level > typical else (1.0, "own unit")
    changes_T = np.concatenate([[np.nan], traces.dvars_T[1:]]) * scale
    return [
        ("FD", "mm", page.fd_mm_T, spike),
        ("DVARS", unit, changes_T, None),
        ("global", unit, (traces.global_T - level) * scale, None),
    ]


def _curve(axes: Axes, seconds_T: np.ndarray, values_T: np.ndarray | None, line: float | None) -> None:
    for edge in ("top", "right"):
        axes.spines[edge].set_visible(False)
    for edge in ("left", "bottom"):
        axes.spines[edge].set_color(LINE)
    axes.tick_params(labelsize=8.5, colors=SOFT)
    axes.locator_params(axis="y", nbins=3)
    if values_T is None:
        axes.set_yticks([])
        axes.text(0.5, 0.5, "not known", transform=axes.transAxes, ha="center", va="center", color=SOFT, fontsize=10)
        return
    axes.plot(seconds_T, values_T, color=INK, lw=0.9)
    if line is not None:
        axes.axhline(line, color=BAD, lw=0.9, ls="--")
        moved_T = values_T > line
        axes.plot(seconds_T[moved_T], values_T[moved_T], "o", color=BAD, ms=3.2)
        axes.set_ylim(0, max(1.25 * line, 1.08 * float(values_T.max(initial=0))))


def _carpet(axes: Axes, page: Page) -> None:
    """The sample of columns over time, from the rim of the brain down to its centre, in SD of each column.

    Source: Power (2017), NeuroImage 154, where it is sorted by tissue; depth needs no segmentation.
    """
    traces = page.traces
    order_S, label = _depth_order(page)
    sample_ST = traces.sample_TS.T[order_S].astype(np.float32)
    if sample_ST.size:
        sample_ST = sample_ST - sample_ST.mean(axis=1, keepdims=True)
        sample_ST /= np.maximum(sample_ST.std(axis=1, keepdims=True), 1e-12)
        extent = (0, traces.frames * traces.tr_s, len(sample_ST), 0)
        axes.imshow(sample_ST, cmap="gray", vmin=-2, vmax=2, aspect="auto", extent=extent)
    axes.set_yticks([])
    axes.set_ylabel(label, fontsize=9, color=INK)
    axes.tick_params(labelsize=8.5, colors=SOFT)


def _depth_order(page: Page) -> tuple[np.ndarray, str]:
    place_S, shown = page.traces.place_S, f"{len(page.traces.place_S):,}"
    if page.template is None:
        return np.arange(len(place_S)), f"{shown} columns, ± 2 SD"
    from scipy import ndimage

    depth_XYZ = ndimage.distance_transform_edt(np.pad(page.template.mask_XYZ, 1))[1:-1, 1:-1, 1:-1]
    depth_S = depth_XYZ.ravel()[page.template.voxel_index_V[place_S]]
    return np.argsort(depth_S, kind="stable"), f"centre  ←  {shown} voxels, ± 2 SD  →  rim"


# --- table ---------------------------------------------------------------------------------------------------------


def _table(figure: Figure, top: float, page: Page) -> None:
    """The measures with their thresholds, those beyond them in red; below, the mean spectrum."""
    bounds = {each.measure: (each.floor, getattr(page.settings, each.key)) for each in LIMITS if page.settings}
    _write(figure, COLUMN, top, "measures", 10.5, weight="bold", color=SOFT)
    _write(figure, WIDTH - EDGE, top, "threshold" if bounds else "", 9.5, color=SOFT, ha="right")
    top += 27
    for name, label, form in ROWS:
        style: dict[str, Any] = {"color": BAD, "weight": "bold"} if name in page.reasons else {"color": INK}
        _write(figure, COLUMN, top, label, 10.5, **style)
        _write(figure, COLUMN + 365, top, spoken(getattr(page.measures, name), form), 10.5, ha="right", **style)
        floor, bound = bounds.get(name, (True, None))
        if bound is not None:
            _write(figure, WIDTH - EDGE, top, f"{'≥' if floor else '≤'} {bound:g}", 10.5, ha="right", color=SOFT)
        top += 25
    height = min(HEIGHT - top - 44 - 62, WIDTH - EDGE - COLUMN)  # no taller than wide
    if height > LEAST_SPECTRUM:  # slices of a long, narrow grid leave none
        _spectrum(_place(figure, COLUMN + 52, top + 44, WIDTH - EDGE - COLUMN - 52, height), page)


def spoken(value: Any, form: str = "{}") -> str:
    """A measure as it is read; a dash where it could not be had."""
    if value is None:
        return "–"
    return ("yes" if value else "no") if isinstance(value, bool) else form.format(value)


def _spectrum(axes: Axes, page: Page) -> None:
    """Mean power of the sample's columns, white noise at 1; the shaded part is above 0.1 Hz."""
    frequency_F, power_F = mean_spectrum(page.traces.sample_TS, page.traces.tr_s)
    for edge in ("top", "right"):
        axes.spines[edge].set_visible(False)
    axes.tick_params(labelsize=8.5, colors=SOFT)
    axes.set_title("mean spectrum, white noise = 1", fontsize=10, loc="left", color=SOFT)
    axes.set_xlabel("Hz", fontsize=10, color=INK)
    if not len(frequency_F):
        return
    axes.loglog(frequency_F, np.maximum(power_F, 1e-6), color=INK, lw=1.1)
    axes.axhline(1, color=SOFT, lw=0.8, ls=":")
    axes.set_xlim(frequency_F[0], frequency_F[-1])
    axes.set_ylim(min(0.1, 0.7 * float(power_F.min())), max(10, 1.4 * float(power_F.max())))
    if frequency_F[-1] > HIGH_HZ:
        axes.axvspan(HIGH_HZ, frequency_F[-1], color=MASK, alpha=0.13, lw=0)
    for axis, ticks in ((axes.xaxis, (0.001, 0.003, 0.01, 0.03, 0.1, 0.3)), (axes.yaxis, 10.0 ** np.arange(-6, 4))):
        low, high = axis.get_view_interval()
        inside = [tick for tick in ticks if low <= tick <= high]
        axis.set_ticks(inside, labels=[f"{tick:g}" for tick in inside])
        axis.set_ticks([], minor=True)
