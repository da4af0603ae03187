"""The figures of the paper: one module each, which reads tables, draws, and returns the numbers that it drew.

Each module has TABLES, the tables that it reads, and `draw(study, tables)` -> (picture, plotted numbers, caption).
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.artefact import atomic_file, read_table, write_text
from pipeline.config import Study
from pipeline.errors import InputError
from pipeline.losses import sentence

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

NUMBERS = (1, 2, 3, 4, 5)
# Parts of the study whose people a figure counts; its foot and its caption tell who of them was lost.
PARTS = {
    1: ("pretrain", "evaluate"),
    2: ("pretrain", "evaluate"),
    3: ("pretrain", "evaluate"),
    4: ("evaluate",),
    5: ("evaluate", "spectra"),
}


def draw_figure(study: Study, number: int, tables_folder: Path) -> tuple[Figure, pd.DataFrame, str]:
    """One figure, the numbers in it, and its caption; both end with the people whom the study lost.

    Raises
    ------
    InputError : there is no such figure, or a table that it reads is missing.
    """
    if number not in NUMBERS:
        known = ", ".join(map(str, NUMBERS))
        raise InputError("--number", str(number), f"one of {known}", "`pipeline figure` draws one figure.")
    from pipeline.figures.style import footer

    module = import_module(f"{__name__}.figure{number}")
    paths = {name: tables_folder / f"{name}.parquet" for name in module.TABLES}
    # Truths exist only where a cohort was simulated.
    tables = {name: read_table(path) for name, path in paths.items() if name != "truths" or path.exists()}
    figure, plotted, caption = module.draw(study, tables)
    lost = sentence(read_table(tables_folder / "losses.parquet"), PARTS[number])
    footer(figure, lost)
    return figure, plotted, f"{caption} {lost}"


def write_figure(study: Study, number: int, tables_folder: Path, png: Path) -> None:
    """Draw a figure and write its PNG, and beside it the PDF, the numbers in it (CSV) and its caption (TXT)."""
    save_figure(study, *draw_figure(study, number, tables_folder), png)


def save_figure(study: Study, figure: Figure, plotted: pd.DataFrame, caption: str, png: Path) -> None:
    """The same tables give the same bytes: no date and no version is written into the pictures."""
    with atomic_file(png) as temporary:
        figure.savefig(temporary, format="png", dpi=study.figures.dpi, metadata={"Software": None})
    figure.set_layout_engine("none")  # the PDF takes the PNG's layout: it is the dearest part of drawing
    with atomic_file(png.with_suffix(".pdf")) as temporary:
        figure.savefig(temporary, format="pdf", metadata={"CreationDate": None, "Producer": None, "Creator": None})
    with atomic_file(png.with_suffix(".csv")) as temporary:
        plotted.to_csv(temporary, index=False, float_format="%.6g")
    write_text(png.with_suffix(".txt"), caption + "\n")
