"""Where each number came from: the record inside every table."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pipeline.artefact import read_provenance


def table_records(tables_folder: Path) -> list[dict[str, Any]]:
    """Name and provenance of each table, in the order of their names."""
    return [{"table": path.stem, **read_provenance(path)} for path in sorted(tables_folder.glob("*.parquet"))]
