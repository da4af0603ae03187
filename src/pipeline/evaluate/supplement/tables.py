"""Which cells the supplement looks into, and its tables, collected from theirs. No torch: the workflow asks too."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pipeline.artefact import digest, provenance, sha256_file
from pipeline.config import Study
from pipeline.grid import Cell, all_cells, first_of_largest
from pipeline.layout import Layout
from pipeline.stages import VERSIONS
from pipeline.tables import ATTRIBUTION_SCHEMA, RESULT_SCHEMA, collect


def supplemented_cells(study: Study) -> list[Cell]:
    """One seed of the largest size of each architecture, in the blocks that `supplement.blocks` names."""
    return [cell for cell in all_cells(study) if first_of_largest(study, cell, study.supplement.blocks)]


def collect_supplement(study: Study, folder: Path) -> None:
    """`supplement.parquet`, with the counted memory at its end, and `attribution.parquet`.

    Raises
    ------
    InputError : a part is missing or of another version.
    """
    layout, cells = Layout(study), supplemented_cells(study)
    memory = layout.root / "supplement" / "memory.parquet"
    for table, schema, more in (("supplement", RESULT_SCHEMA, [memory]), ("attribution", ATTRIBUTION_SCHEMA, [])):
        parts = [*(layout.cell("supplement", cell) / f"{table}.parquet" for cell in cells), *more]
        collect(parts, schema, folder / f"{table}.parquet", _record(cells, parts))


def _record(cells: Sequence[Cell], parts: Sequence[Path]) -> dict[str, object]:
    parts_hash = digest([sha256_file(part) for part in parts if part.is_file()])
    record = provenance("tables", VERSIONS["tables"], [cell.path for cell in cells], {})
    return {**record, "inputs": {f"{len(parts)} files": parts_hash}}
