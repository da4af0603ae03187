"""What the report says of the data: who and what was lost by what, and how good the runs are."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from pipeline.artefact import read_json
from pipeline.bold.quality import LIMITS
from pipeline.config import Study
from pipeline.layout import QUARANTINE, run_folder
from pipeline.losses import ALL, NAMES

BARS = 28  # of a histogram
MEASURES = {
    "mean_fd_mm": "mean FD, mm",
    "tsnr": "tSNR",
    "overlap": "overlap, Dice",
    "similarity": "similarity",
    "coverage": "coverage",
    "dvars_percent": "DVARS, %",
    "high_frequency": "above 0.1 Hz / white",
}


def dataset_losses(study: Study, losses: pd.DataFrame, results_folder: Path) -> list[dict[str, Any]]:
    """Each data set with its counts: people and runs declared, kept and lost by what, as a whole and by part."""
    found = []
    for name, dataset in study.datasets.items():
        rows = losses[losses["dataset"] == name]
        frames = sum(run["frames"] for run in _manifest(results_folder, name)["runs"])
        found.append(
            {
                "dataset": name,
                "kind": "simulated" if dataset.simulated else "real",
                "roles": ", ".join(dataset.roles),
                "people": _n(rows, ALL, "people", "kept"),
                "runs": _n(rows, ALL, "runs", "kept"),
                "frames": int(frames),
                "lines": [_line(rows, part, unit) for part, unit in _parts(rows)],
            }
        )
    return found


def _manifest(results_folder: Path, dataset: str) -> Mapping[str, Any]:
    manifest: Mapping[str, Any] = read_json(results_folder / "shards" / dataset / "manifest.json")
    return manifest


def _parts(rows: pd.DataFrame) -> list[tuple[str, str]]:
    return list(dict.fromkeys(zip(rows["part"], rows["unit"], strict=True)))


def _n(rows: pd.DataFrame, part: str, unit: str, outcome: str) -> int:
    return int(rows.loc[(rows["part"] == part) & (rows["unit"] == unit) & (rows["outcome"] == outcome), "n"].sum())


def _line(rows: pd.DataFrame, part: str, unit: str) -> dict[str, Any]:
    counts = {outcome: _n(rows, part, unit, outcome) for outcome in ("declared", "kept", "lost")}
    here = rows[(rows["part"] == part) & (rows["unit"] == unit) & ~rows["outcome"].isin(["declared", "kept"])]
    words = {"related": "in the family of an evaluated person", "unlabelled": "without a label:"}
    told = [
        " ".join(filter(None, [words.get(outcome, ""), fault, f"{n:,}"]))
        for outcome, fault, n in zip(here["outcome"], here["fault"], here["n"], strict=True)
    ]
    return {"what": unit if part == ALL else f"{NAMES[part]} {unit}", **counts, "told": "; ".join(told)}


def quality_tables(study: Study, results_folder: Path) -> list[dict[str, Any]]:
    """Each data set whose runs were measured: quantiles and a histogram a measure, and where its pictures lie."""
    tables = []
    for name in study.datasets:
        manifest = _manifest(results_folder, name)
        folder = results_folder / "shards" / name / QUARANTINE
        kept = [entry["quality"] for entry in manifest["runs"] if "quality" in entry]
        lost = [measures for entry in manifest["quarantined"] if (measures := _measures_of(folder, entry))]
        rows = [_distribution(study, name, kept, lost) for name in MEASURES]
        if kept or lost:
            tables.append(
                {
                    "dataset": name,
                    "rows": [row for row in rows if row],
                    "notes": _notes([*kept, *lost]),
                    "pictures": len([*folder.glob("*/*/quality.png")]),
                    "folder": f"shards/{name}/{QUARANTINE}/",
                }
            )
    return tables


def _measures_of(folder: Path, entry: Mapping[str, Any]) -> dict[str, Any] | None:
    """What was measured of a quarantined run; None where it was lost before it could be."""
    path = folder / run_folder(entry["subject"], entry["session"], entry["run"]) / "quality.json"
    return dict(read_json(path)["measures"]) if path.is_file() else None


def _distribution(
    study: Study, measure: str, kept: Sequence[Mapping[str, Any]], lost: Sequence[Mapping[str, Any]]
) -> dict[str, Any] | None:
    """Quantiles and histogram of one measure over runs, those that were lost by their quality included."""
    kept_R, lost_R = _known(kept, measure), _known(lost, measure)
    values_R = np.concatenate([kept_R, lost_R])
    if not values_R.size:
        return None
    bound = next((getattr(study.quality, limit.key) for limit in LIMITS if limit.measure == measure), None)
    lowest, low, middle, high, highest = np.quantile(values_R, [0, 0.05, 0.5, 0.95, 1]).tolist()
    quantiles = {"lowest": lowest, "low": low, "middle": middle, "high": high, "highest": highest}
    bars, line = histogram(kept_R, lost_R, bound)
    return {"name": MEASURES[measure], "n": len(values_R), **quantiles, "bound": bound, "bars": bars, "line": line}


def _known(runs: Iterable[Mapping[str, Any]], measure: str) -> np.ndarray:
    values = (run.get(measure) for run in runs)
    return np.array([value for value in values if value is not None], dtype=float)


def histogram(
    kept_R: np.ndarray, lost_R: np.ndarray, bound: float | None
) -> tuple[list[dict[str, float]], float | None]:
    """Bars of a histogram in shares of its height, lost runs on top of kept ones; and where the threshold stands.

    The threshold, a share of the width, is None where it lies outside the range of the runs.
    """
    low, high = min([*kept_R, *lost_R]), max([*kept_R, *lost_R])
    edges = np.linspace(low, high, BARS + 1) if high > low else np.linspace(low - 0.5, high + 0.5, BARS + 1)
    kept, lost = (np.histogram(values_R, edges)[0] for values_R in (kept_R, lost_R))
    tallest = max(1, int((kept + lost).max()))
    bars = [
        {"at": place / BARS, "kept": float(below / tallest), "lost": float(above / tallest)}
        for place, (below, above) in enumerate(zip(kept, lost, strict=True))
        if below or above
    ]
    share = None if bound is None else (bound - edges[0]) / (edges[-1] - edges[0])
    return bars, float(share) if share is not None and 0 <= share <= 1 else None


def _notes(runs: Sequence[Mapping[str, Any]]) -> str:
    """How many runs were measured as band-passed, and what is known of left and right."""
    known = [run["filtered"] for run in runs if run.get("filtered") is not None]
    sides = Counter(run["left_right"] for run in runs if "left_right" in run)
    told = [f"measured as band-passed: {sum(known):,} of {len(known):,} runs"] if known else []
    told += [f"left and right: {', '.join(f'{side} {n:,}' for side, n in sides.most_common())}"] if sides else []
    return "; ".join(told)
