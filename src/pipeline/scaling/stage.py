"""The scaling stage: every fit of Figures 1 to 3 from the table of cells, one row a number.

Loss is the unexplained variance 1 - R^2 of held-out people, which all objectives share. Few cells never fail a fit: its
rows say in `note` what they are worth, "law" or "trend", and whether the exponents are identified.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from pipeline.artefact import digest, provenance, read_table, write_table
from pipeline.config import Study
from pipeline.grid import Block, block_cells
from pipeline.intervals import Interval
from pipeline.scaling.collapse import larger_worse, rises
from pipeline.scaling.power_law import PowerLaw, fit_power_law, predict_largest
from pipeline.scaling.surface import Surface, fit_surface
from pipeline.stages import VERSIONS
from pipeline.tables import SCALING_SCHEMA

AXES: dict[str, tuple[Block, str]] = {
    "loss_parameters": ("scaling", "parameters"),
    "loss_flops": ("scaling", "train_flops"),
    "loss_frames": ("data", "unique_frames"),
}
SURFACE_BLOCKS: tuple[Block, ...] = ("iso_tokens", "off_diagonal", "data")
CURVE_POINTS = 12
NO_INTERVAL = (np.nan, np.nan)

Row = dict[str, Any]


def fit_scaling(study: Study, pretrain_table: str | Path, output: str | Path) -> None:
    """Fit every law to the table of pretraining and write SCALING_SCHEMA; the same seed gives the same table."""
    table = read_table(pretrain_table)
    table["unexplained"] = 1 - table["val_r2"]
    rows: list[Row] = []
    for architecture in study.architectures:
        own = table[table["architecture"] == architecture]
        for fit, (block, axis) in AXES.items():
            rows += _named(_law_rows(study, fit, _cells(study, own, block), axis), fit, architecture, axis)
        cells = pd.concat([_cells(study, own, block) for block in SURFACE_BLOCKS]).drop_duplicates("cell_hash")
        rows += _named(_surface_rows(study, _arm(study, cells)), "surface", architecture, "subjects_frames")
        rows += _named(_collapse_rows(study, _cells(study, own, "scaling")), "collapse", architecture, "parameters")
    record = provenance("scaling", VERSIONS["scaling"], study.scaling.model_dump(), {"pretrain": pretrain_table})
    write_table(output, pd.DataFrame(rows), SCALING_SCHEMA, record)


def _cells(study: Study, table: pd.DataFrame, block: Block) -> pd.DataFrame:
    """The table's rows of a block's cells, whatever became of them."""
    keys = ["architecture", "size", "subjects", "frames", "draw", "variant", "seed"]
    wanted = pd.DataFrame([vars(cell) for cell in block_cells(study, block)], columns=keys)
    return table.merge(wanted, on=keys)


def _arm(study: Study, cells: pd.DataFrame) -> pd.DataFrame:
    """Cells of the diagonal's arm, of the largest size that it has: a surface is of one size and one arm."""
    diagonal = block_cells(study, "iso_tokens")
    if not diagonal:
        return cells
    return cells[(cells["size"] == diagonal[-1].size) & (cells["variant"] == diagonal[-1].variant)]


def _completed(cells: pd.DataFrame) -> pd.DataFrame:
    usable = (cells["status"] == "completed") & (cells["unexplained"] > 0)
    return cells[usable & np.isfinite(cells["unexplained"])]


def _law_rows(study: Study, name: str, cells: pd.DataFrame, axis: str) -> Iterator[Row]:
    """Parameters, curve and held-out prediction of one law."""
    cells = _completed(cells)
    x, y, worth = cells[axis].to_numpy(float), cells["unexplained"].to_numpy(float), _worth(study, cells, axis)
    if len(np.unique(x)) < 2:
        yield _row("cells", len(cells), f"{worth}, not identified: too few sizes", *NO_INTERVAL, n=len(cells))
        return
    law = _fit(study, name, x, y)
    note = _note(worth, law.identified)
    for statistic in ("exponent", "irreducible", "amplitude"):
        yield _row(statistic, *_spread(getattr(law, statistic), note), n=len(x))
    yield _row("residual", law.residual, note, *NO_INTERVAL, n=len(x))
    for statistic, value in (("x_min", x.min()), ("x_max", x.max())):
        yield _row(statistic, value, note, *NO_INTERVAL, n=len(x))
    for point in np.geomspace(x.min(), x.max(), CURVE_POINTS):
        yield _row(f"predicted@{point:.6g}", *_spread(law.predict_interval(point), note), n=len(x))
    yield from _held_out_rows(study, name, x, y, note)


def _held_out_rows(study: Study, name: str, x: np.ndarray, y: np.ndarray, note: str) -> Iterator[Row]:
    """The largest size, predicted by every form from the others; the form with the smallest error is called best."""
    found, smaller = predict_largest(x, y), x < x.max()
    best = min(found, key=lambda form: abs(found[form].error))
    yield _row("heldout_x", found[best].x, note, *NO_INTERVAL, n=len(x))
    yield _row("heldout_observed", found[best].observed, note, *NO_INTERVAL, n=int((~smaller).sum()))
    if len(np.unique(x[smaller])) > 1:
        law = _fit(study, f"{name} held out", x[smaller], y[smaller])
        yield _row("heldout_predicted", *_spread(law.predict_interval(x.max()), note), n=int(smaller.sum()))
    for form, held_out in found.items():
        which = f"{note}, best form" if form == best else note
        yield _row(f"heldout_error_{form}", held_out.error, which, *NO_INTERVAL, n=int(smaller.sum()))


def _surface_rows(study: Study, cells: pd.DataFrame) -> Iterator[Row]:
    """Parameters of the N x T surface, and the exchange rate at its centre."""
    cells = _completed(cells)
    subjects, frames = (cells[column].to_numpy(float) for column in ("subjects", "frames"))
    worth = _worth(study, cells, ["subjects", "frames"])
    try:
        surface = fit_surface(subjects, frames, cells["unexplained"].to_numpy(float), **_resampling(study, "surface"))
    except ValueError as error:
        yield _row("cells", len(cells), f"{worth}, not identified: {error}", *NO_INTERVAL, n=len(cells))
        return
    note = _note(worth, surface.identified)
    for statistic, interval in _parameters(surface).items():
        yield _row(statistic, *_spread(interval, note), n=len(cells))
    centre = {"subjects": _middle(subjects), "frames": _middle(frames)}
    for axis, value in centre.items():
        yield _row(f"centre_{axis}", value, note, *NO_INTERVAL, n=len(cells))
    yield _row("exchange_rate", *_spread(surface.exchange_rate(**centre), note), n=len(cells))


def _parameters(surface: Surface) -> dict[str, Interval]:
    names = ("exponent_subjects", "exponent_frames", "amplitude_subjects", "amplitude_frames", "irreducible")
    return {name: getattr(surface, name) for name in names}


def _collapse_rows(study: Study, cells: pd.DataFrame) -> Iterator[Row]:
    """Cells that failed, and whether the largest is worse than a smaller one beyond the noise of seeds."""
    completed, worth = _completed(cells), _worth(study, cells, "parameters")
    for status in ("diverged", "collapsed"):
        yield _row(status, int((cells["status"] == status).sum()), worth, *NO_INTERVAL, n=len(cells))
    yield _row("non_monotone", rises(completed), worth, *NO_INTERVAL, n=len(completed))
    yield _row("larger_worse", *_spread(larger_worse(completed, study.evaluate.confidence), worth), n=len(completed))


def _fit(study: Study, name: str, x: np.ndarray, y: np.ndarray) -> PowerLaw:
    return fit_power_law(x, y, **_resampling(study, name))


def _resampling(study: Study, name: str) -> dict[str, Any]:
    rng = np.random.default_rng(int(digest([study.seed, name]), 16))
    return {"bootstrap": study.scaling.bootstrap, "confidence": study.evaluate.confidence, "rng": rng}


def _worth(study: Study, cells: pd.DataFrame, axis: str | list[str]) -> str:
    """`law` where there are enough sizes (of two axes: conditions) and repeats of each, else `trend`, with counts."""
    conditions = cells.groupby(axis).size()
    count, repeats = len(conditions), int(conditions.min()) if len(conditions) else 0
    enough = count >= study.scaling.law_sizes and repeats >= study.scaling.law_seeds
    what = "sizes" if isinstance(axis, str) else "conditions"
    return f"{'law' if enough else 'trend'}: {count} {what}, at least {repeats} repeats"


def _note(worth: str, identified: bool) -> str:
    return worth if identified else f"{worth}, not identified"


def _middle(values: np.ndarray) -> float:
    return float(np.exp(np.log(np.unique(values)).mean()))


def _spread(interval: Interval, note: str) -> tuple[float, str, float, float]:
    """Value, note and ends of an interval; one without two ends is left empty and told in the note."""
    value, low, high = interval
    if not np.isfinite([low, high]).all():
        note, low, high = f"{note}, unbounded", np.nan, np.nan
    return value if np.isfinite(value) else np.nan, note, low, high


def _row(statistic: str, value: float, note: str, low: float, high: float, n: int) -> Row:
    return {"statistic": statistic, "value": float(value), "low": low, "high": high, "n": n, "note": note}


def _named(rows: Iterator[Row], fit: str, architecture: str, axis: str) -> list[Row]:
    return [{"fit": fit, "architecture": architecture, "x": axis, **row} for row in rows]
