"""Where each number came from: the record inside every table, and the people and runs that were lost on the way."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from pipeline.artefact import read_json, read_provenance
from pipeline.config import Study


def table_records(tables_folder: Path) -> list[dict[str, Any]]:
    """Name and provenance of each table, in the order of their names."""
    return [{"table": path.stem, **read_provenance(path)} for path in sorted(tables_folder.glob("*.parquet"))]


def dataset_counts(study: Study, results_folder: Path) -> list[dict[str, Any]]:
    """For each data set: people declared, people and runs that became shards, and what was quarantined and why."""
    counts = []
    for name, dataset in study.datasets.items():
        path = results_folder / "shards" / name / "manifest.json"
        manifest = read_json(path) if path.exists() else {"runs": [], "quarantined": []}
        reasons = [_reason(entry) for entry in manifest["quarantined"]]
        counts.append(
            {
                "dataset": name,
                "kind": "simulated" if dataset.simulated else "real",
                "roles": ", ".join(dataset.roles),
                "declared": dataset.people,
                "people": len({run["subject"] for run in manifest["runs"]}),
                "runs": len(manifest["runs"]),
                "frames": sum(run["frames"] for run in manifest["runs"]),
                "quarantined": len(reasons),
                "reasons": {reason: reasons.count(reason) for reason in dict.fromkeys(reasons)},
            }
        )
    return counts


def _reason(entry: dict[str, Any]) -> str:
    """The reason without the file and the numbers that differ from run to run, so that like reasons count together."""
    return re.sub(r"\d+(\.\d+)?", "#", re.sub(r"\S*sub-\S+", "a file", str(entry["reason"])))
