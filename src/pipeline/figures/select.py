"""Which rows a panel shows, and summaries over draws and seeds."""

from __future__ import annotations

import numpy as np
import pandas as pd
from scipy import stats

from pipeline.evaluate.comparison.lines import CELL_FIELDS as CELL_FIELDS
from pipeline.evaluate.comparison.lines import COMPLETED
from pipeline.evaluate.comparison.lines import MISSING as MISSING
from pipeline.evaluate.comparison.lines import best_cells as best_cells
from pipeline.evaluate.comparison.lines import block_rows as block_rows
from pipeline.evaluate.comparison.lines import cells_frame as cells_frame
from pipeline.evaluate.comparison.lines import done as done
from pipeline.evaluate.comparison.lines import pick as pick
from pipeline.evaluate.comparison.lines import records as records
from pipeline.evaluate.comparison.lines import rows_of as rows_of

WHO = ["system", *CELL_FIELDS, "dataset", "task", "protocol", "metric", "split", "group", "status", "simulated"]


def numbers(panel: str, rows: pd.DataFrame, x: str, y: str, low: str = "", high: str = "", n: str = "") -> pd.DataFrame:
    """What a panel plots, in the columns that every figure's CSV shares."""
    named = {"x": x, "y": y, "low": low, "high": high, "n": n}
    columns = {name: rows[column] if column else np.nan for name, column in named.items()}
    who = {name: rows[name] for name in WHO if name in rows}
    return pd.DataFrame({"panel": panel, **who, "x_is": x, "y_is": y, **columns}, index=rows.index)


def incomplete(rows: pd.DataFrame) -> str:
    """`2 of 16 cells not completed (1 diverged, 1 missing)`, or nothing."""
    cells = rows.drop_duplicates(CELL_FIELDS)
    odd = cells.loc[cells["status"] != COMPLETED, "status"].value_counts().sort_index()
    told = ", ".join(f"{count} {status}" for status, count in odd.items())
    return f"{int(odd.sum())} of {len(cells)} cells not completed ({told})" if len(odd) else ""


def mean_interval(values: np.ndarray, confidence: float) -> tuple[float, float, float]:
    """Mean of independent repeats with its t interval; no interval for fewer than three repeats."""
    values = np.asarray(values, dtype=float)
    values = values[np.isfinite(values)]
    mean = float(values.mean()) if values.size else np.nan
    if values.size < 3:
        return mean, np.nan, np.nan
    half = float(stats.t.ppf((1 + confidence) / 2, values.size - 1) * stats.sem(values))
    return mean, mean - half, mean + half


def means(rows: pd.DataFrame, by: list[str], value: str, confidence: float) -> pd.DataFrame:
    """Mean over the remaining repeats (seeds, draws) for each value of `by`, in order of appearance."""
    out = []
    for group, part in rows.groupby(by, sort=False):
        mean, low, high = mean_interval(part[value].to_numpy(), confidence)
        out.append([*group, mean, low, high, len(part)])
    return pd.DataFrame(out, columns=[*by, "value", "low", "high", "repeats"])
