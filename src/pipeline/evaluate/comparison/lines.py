"""The lines of the benchmark: each an encoder with its repeats, or a system outside the grid; and their rows of tables.

Comparisons, Figure 4 and the report list the same lines in the same order.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd

from pipeline.config import MAIN, Study
from pipeline.evaluate.protocols import FROZEN, TRAINED
from pipeline.evaluate.rows import ALL, ATTENTIVE, FINE_TUNED, TIME_SHUFFLED
from pipeline.evaluate.systems import SYSTEMS
from pipeline.grid import Block, Cell, block_cells

CELL_FIELDS = ["architecture", "size", "subjects", "frames", "draw", "variant", "seed"]
LINE_FIELDS = ["system", "architecture", "size", "subjects", "frames", "variant"]  # all but what repeats it
MISSING, COMPLETED = "missing", "completed"

Kind = Literal["encoder", "network", "simple", "control", "chance"]
# In the order in which they are listed, with the heading of each group.
GROUPS: dict[Kind, str] = {
    "encoder": "Encoders, frozen",
    "network": "Trained on labels",
    "simple": "Connectomes and other simple systems",
    "control": "Controls",
    "chance": "Chance",
}
REFERENCE = "connectome_logistic"
# How an encoder's input or read-out may be other than its own, by what its system's slug ends in.
ENDINGS = {
    TIME_SHUFFLED: "frames shuffled",
    FINE_TUNED: "fine-tuned",
    ATTENTIVE: "attentive read-out",
    "global_z": "global z-scores",
}


class Line(NamedTuple):
    """One line: the cells of an encoder (its seeds and draws), or a system outside the grid."""

    label: str
    kind: Kind
    slug: str
    architecture: str = ""
    cells: tuple[Cell, ...] = ()

    @property
    def key(self) -> str:
        """Names the line in tables: a slug, and of an encoder its condition."""
        if not self.cells:
            return self.slug
        return key_of({"system": self.slug, "architecture": self.architecture, **vars(self.cells[0])})

    def rows(self, table: pd.DataFrame) -> pd.DataFrame:
        """Its rows of any table."""
        ours = pick(table, system=self.slug)
        if not self.cells:
            return ours
        wanted = {tuple(vars(cell)[name] for name in CELL_FIELDS) for cell in self.cells}
        theirs = zip(*(ours[name] for name in CELL_FIELDS), strict=True)
        return ours[np.array([row in wanted for row in theirs], dtype=bool)]


def key_of(row: Mapping[str, Any]) -> str:
    """`Line.key` of whom a row of a table is about."""
    condition = f"{row['size']}/N{row['subjects']}-T{row['frames']}/{row['variant']}"
    return f"{row['system']}/{condition}" if row["architecture"] else str(row["system"])


def lineup(study: Study, benchmark: pd.DataFrame, pretrain: pd.DataFrame | None = None) -> list[Line]:
    """Every line of a study, group after group; an encoder of the grid is listed whether it has rows or not.

    Encoders: each size of the scaling block with the most people and frames, and the N x T that reconstructs held-out
    people best (needs `pretrain`; labels have no part in the choice). Whatever else the table has follows.
    """
    planned = [*_encoders(study, pretrain), *_untrained(study)]
    lines = [*planned, *_derived(study, benchmark), *_outside(benchmark)]
    return [line for kind in GROUPS for line in lines if line.kind == kind]


def _encoders(study: Study, pretrain: pd.DataFrame | None) -> list[Line]:
    lines = []
    for name, architecture in study.architectures.items():
        trained = [cell for cell in block_cells(study, "scaling") if cell.architecture == name]
        most = max(((cell.subjects, cell.frames) for cell in trained), default=(0, 0))
        for size in reversed(architecture.sizes):
            for cells in _by_variant([c for c in trained if c.size == size and (c.subjects, c.frames) == most]):
                arm = "" if cells[0].variant == MAIN else f", {cells[0].variant}"
                lines.append(Line(f"{architecture.label}, {size}{arm}", "encoder", name, name, cells))
        best = tuple(best_cells(study, "iso_tokens", pretrain, name)) if pretrain is not None else ()
        if best and best not in [line.cells for line in lines]:
            told = f"{architecture.label}, {best[0].size}, best N × T ({best[0].subjects} × {best[0].frames})"
            lines.append(Line(told, "encoder", name, name, best))
    return lines


def _by_variant(cells: list[Cell]) -> list[tuple[Cell, ...]]:
    variants = dict.fromkeys(cell.variant for cell in cells)
    return [tuple(cell for cell in cells if cell.variant == variant) for variant in variants]


def _untrained(study: Study) -> list[Line]:
    found: dict[tuple[str, str], list[Cell]] = {}
    for cell in block_cells(study, "random_weights"):
        found.setdefault((cell.architecture, cell.size), []).append(cell)
    several = {name for name, _ in found if sum(other == name for other, _ in found) > 1}
    return [
        Line(_told(study, name, size if name in several else "", "random weights"), "control", name, name, tuple(cells))
        for (name, size), cells in found.items()
    ]


def _derived(study: Study, benchmark: pd.DataFrame) -> list[Line]:
    """Encoders read or fed otherwise, or trained further on labels: their systems are `<architecture>_<ending>`."""
    rows = benchmark[(benchmark["architecture"] != "") & (benchmark["system"] != benchmark["architecture"])]
    lines = []
    for (slug, name, size, *_), part in rows.groupby(LINE_FIELDS, sort=False):
        ending = str(slug).removeprefix(f"{name}_")
        trained = TRAINED in set(part["protocol"])
        cells = tuple(Cell(**row) for row in records(part[CELL_FIELDS].drop_duplicates()))
        label = _told(study, str(name), str(size), ENDINGS.get(ending, ending.replace("_", " ")))
        lines.append(Line(label, "network" if trained else "control", str(slug), str(name), cells))
    return lines


def _told(study: Study, architecture: str, size: str, how: str) -> str:
    label = study.architectures[architecture].label if architecture in study.architectures else architecture
    return ", ".join(filter(None, [label, size, how]))


def _outside(benchmark: pd.DataFrame) -> list[Line]:
    """Systems outside the grid that have a row, in the order of the registry; one that it does not know is last."""
    rows = benchmark[benchmark["architecture"] == ""]
    trained = set(pick(rows, protocol=TRAINED)["system"])
    found = set(rows["system"])
    slugs = [*(slug for slug in SYSTEMS if slug in found), *sorted(found - set(SYSTEMS))]
    return [_outside_line(slug, slug in trained) for slug in slugs]


def _outside_line(slug: str, trained: bool) -> Line:
    if slug in SYSTEMS:
        return Line(SYSTEMS[slug].label, SYSTEMS[slug].kind, slug)
    return Line(slug.replace("_", " "), "network" if trained else "simple", slug)


def main_rows(line: Line, table: pd.DataFrame) -> pd.DataFrame:
    """Rows of a line over all people under the protocol that it is compared by: frozen, or trained on labels."""
    rows = line.rows(pick(table, protocol=(FROZEN, TRAINED)))
    rows = pick(rows, group=ALL) if "group" in rows else rows
    frozen = pick(rows, protocol=FROZEN)
    return frozen if len(frozen) else rows


# --- rows of tables ------------------------------------------------------------------------------------------------


def records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """Rows as plain mappings from column to value."""
    return [{str(name): value for name, value in row.items()} for row in frame.to_dict("records")]


def pick(table: pd.DataFrame, **where: Any) -> pd.DataFrame:
    """Rows whose columns have these values; a list, tuple or set means any of them."""
    keep = np.ones(len(table), dtype=bool)
    for column, wanted in where.items():
        values = wanted if isinstance(wanted, (list, tuple, set)) else [wanted]
        keep &= table[column].isin(list(values)).to_numpy()
    return table[keep]


def cells_frame(cells: list[Cell]) -> pd.DataFrame:
    """One row a cell, in the order of the configuration."""
    return pd.DataFrame([vars(cell) for cell in cells], columns=CELL_FIELDS)


def block_rows(study: Study, block: Block, table: pd.DataFrame) -> pd.DataFrame:
    """The table's rows of a block's cells; a cell without a row keeps its place with status `missing`.

    So a panel shows a gap where a cell is missing, and never draws a line through it.
    """
    rows = cells_frame(block_cells(study, block)).merge(table, on=CELL_FIELDS, how="left")
    return rows.assign(status=rows["status"].fillna(MISSING))


def done(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows of cells that were trained to the end."""
    return pick(rows, status=COMPLETED)


def rows_of(table: pd.DataFrame, cells: list[Cell]) -> pd.DataFrame:
    """Rows of an encoder's own cells (not of its controls, which carry another system)."""
    rows = cells_frame(cells).merge(table, on=CELL_FIELDS, how="inner")
    return rows[rows["system"] == rows["architecture"]]


def best_cells(study: Study, block: Block, pretrain: pd.DataFrame, architecture: str | None = None) -> list[Cell]:
    """Repeats of a block's condition with the highest mean held-out R^2; labels have no part in the choice."""
    rows = done(block_rows(study, block, pretrain)).dropna(subset=["val_r2"])
    rows = rows if architecture is None else pick(rows, architecture=architecture)
    if rows.empty:
        return []
    keys = ["architecture", "size", "subjects", "frames"]
    mean = rows.groupby(keys, sort=False)["val_r2"].mean().reset_index()
    best = records(mean.nlargest(1, "val_r2")[keys])[0]
    return [cell for cell in block_cells(study, block) if best.items() <= vars(cell).items()]
