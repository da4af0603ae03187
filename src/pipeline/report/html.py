"""The report: one HTML file with figures, captions, truths, claims, the benchmark, losses and provenance inside it."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from pipeline.artefact import code_version, read_table, write_text
from pipeline.config import Study, dump_study
from pipeline.errors import InputError
from pipeline.figures import NUMBERS
from pipeline.figures.select import block_rows, records
from pipeline.grid import Block, all_cells
from pipeline.report.benchmark import benchmark_section
from pipeline.report.losses import dataset_losses, quality_tables
from pipeline.report.provenance import table_records
from pipeline.report.truths import PERSON, required
from pipeline.tables import VALIDATION_CONFIDENCE

TEMPLATE = "report.html"
TABLES = ("pretrain", "benchmark", "scores", "tasks", "comparisons", "claims", "losses")
DASH = "–"


def write_report(study: Study, results_folder: Path, output: Path) -> None:
    """Put together results/<study>/ into one page that needs no other file.

    Raises
    ------
    InputError : a table or a figure is missing.
    """
    tables_folder = results_folder / "tables"
    tables = {name: read_table(tables_folder / f"{name}.parquet") for name in TABLES}
    truths = tables_folder / "truths.parquet"
    page = _environment().get_template(TEMPLATE)
    content = {
        "study": study,
        "code": code_version(),
        "simulated": [name for name, dataset in study.datasets.items() if dataset.simulated],
        "figures": [_figure(results_folder / "figures" / f"figure{number}.png", number) for number in NUMBERS],
        "truths": _truths(read_table(truths)) if truths.exists() else [],
        "claims": records(tables["claims"]),
        "tally": tables["claims"]["verdict"].value_counts().to_dict(),
        "benchmark": benchmark_section(study, tables),
        "cells": _cell_counts(study, tables["pretrain"]),
        "planned": len(all_cells(study)),
        "datasets": dataset_losses(study, tables["losses"], results_folder),
        "quality": quality_tables(study, results_folder),
        "records": table_records(tables_folder),
        "configuration": dump_study(study),
        "confidence": f"{study.evaluate.confidence:.0%}",
        "validation_confidence": f"{VALIDATION_CONFIDENCE:.0%}",
    }
    write_text(output, page.render(content))


def _environment() -> Environment:
    loader = FileSystemLoader(Path(__file__).parent)
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters.update(number=number, signed=signed, interval=interval, thousands=lambda count: f"{count:,}")
    return environment


def number(value: float | None, digits: int = 3) -> str:
    """A number as it is read; a dash where there is none."""
    if value is None or not np.isfinite(value):
        return DASH
    return f"{value:.{digits}f}" if abs(value) < 1000 else f"{value:,.0f}"


def signed(value: float | None) -> str:
    """A difference with its sign; a dash where there is none."""
    return DASH if value is None or not np.isfinite(value) else f"{value:+.3f}"


def interval(row: dict[str, Any], digits: int = 3) -> str:
    """`[low, high]` of a row; a dash where it has none."""
    low, high = row["low"], row["high"]
    return f"[{number(low, digits)}, {number(high, digits)}]" if np.isfinite([low, high]).all() else DASH


def _figure(png: Path, place: int) -> dict[str, Any]:
    caption = png.with_suffix(".txt")
    for path in (png, caption):
        if not path.is_file():
            raise InputError(path, "no such file", f"figure {place}", f"Run `pipeline figure --number {place}` first.")
    picture = base64.b64encode(png.read_bytes()).decode()
    head, _, rest = caption.read_text(encoding="utf-8").strip().partition(". ")
    return {"number": place, "name": png.stem, "picture": picture, "caption": f"{head}. {rest}"}


def _truths(table: pd.DataFrame) -> list[dict[str, Any]]:
    rows = table[table["truth"] != PERSON]
    return records(rows.assign(required=rows.index.isin(required(rows).index)))


def _cell_counts(study: Study, pretrain: pd.DataFrame) -> list[dict[str, Any]]:
    """Cells of each block by what became of them."""
    counts = []
    for block in get_args(Block):
        statuses = block_rows(study, block, pretrain)["status"]
        counts.append(
            {"block": block.replace("_", " "), "planned": len(statuses), "ended": statuses.value_counts().to_dict()}
        )
    return counts
