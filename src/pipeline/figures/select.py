"""Which rows a panel shows: cells of a block beside the table, summaries over draws and seeds, paired differences."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from pipeline.config import Study
from pipeline.evaluate.statistics import weighted_auroc
from pipeline.grid import Block, Cell, block_cells
from pipeline.intervals import family_weights, percentile_interval

CELL_FIELDS = ["architecture", "size", "subjects", "frames", "draw", "variant", "seed"]
WHO = ["system", *CELL_FIELDS, "dataset", "task", "metric", "split", "status", "simulated"]
MISSING, COMPLETED = "missing", "completed"


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


def numbers(panel: str, rows: pd.DataFrame, x: str, y: str, low: str = "", high: str = "", n: str = "") -> pd.DataFrame:
    """What a panel plots, in the columns that every figure's CSV shares."""
    named = {"x": x, "y": y, "low": low, "high": high, "n": n}
    columns = {name: rows[column] if column else np.nan for name, column in named.items()}
    who = {name: rows[name] for name in WHO if name in rows}
    return pd.DataFrame({"panel": panel, **who, "x_is": x, "y_is": y, **columns}, index=rows.index)


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


def incomplete(rows: pd.DataFrame) -> str:
    """`2 of 16 cells not completed (1 diverged, 1 missing)`, or nothing."""
    cells = rows.drop_duplicates(CELL_FIELDS)
    odd = cells.loc[cells["status"] != COMPLETED, "status"].value_counts().sort_index()
    told = ", ".join(f"{count} {status}" for status, count in odd.items())
    return f"{int(odd.sum())} of {len(cells)} cells not completed ({told})" if len(odd) else ""


def best_cells(study: Study, block: Block, pretrain: pd.DataFrame, architecture: str | None = None) -> list[Cell]:
    """Repeats of a block's condition with the highest mean held-out R^2; labels have no part in the choice."""
    rows = done(block_rows(study, block, pretrain)).dropna(subset=["val_r2"])
    rows = rows if architecture is None else pick(rows, architecture=architecture)
    if rows.empty:
        return []
    keys = ["architecture", "size", "subjects", "frames"]
    mean = means(rows, keys, "val_r2", study.evaluate.confidence)
    best = records(mean.nlargest(1, "value")[keys])[0]
    return [cell for cell in block_cells(study, block) if best.items() <= vars(cell).items()]


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


def score_matrix(scores: pd.DataFrame) -> tuple[pd.DataFrame, np.ndarray]:
    """People (family, label by person) and (S, N) their scores by each system, or each seed of one."""
    people = scores.drop_duplicates("person").set_index("person")[["family", "label"]]
    keys = [column for column in ("system", *CELL_FIELDS) if column in scores]
    wide = scores.pivot_table(index=keys, columns="person", values="score", sort=False)
    return people, wide[people.index].to_numpy()


def auroc_difference(ours: pd.DataFrame, other: pd.DataFrame, study: Study) -> tuple[float, float, float, float, int]:
    """AUROC of one system (mean over its seeds) minus another's, paired over people.

    Returns the difference, the ends of its interval (bootstrap over families), two-sided p (from the bootstrap's
    standard error), and people compared.
    """
    both = pd.concat([ours, other])
    counts = both.groupby("person").size()
    both = both[both["person"].isin(counts.index[counts == counts.max()])]
    people, scores_SN = score_matrix(both)
    mine = len(score_matrix(ours)[1])
    labels_N, rng = people["label"].to_numpy(), np.random.default_rng(study.seed)
    weights_RN = family_weights(people["family"].to_numpy(), study.evaluate.bootstrap, rng)
    weights_RN = np.vstack([np.ones(len(people)), weights_RN])  # row 0: the sample itself
    area_SR = np.stack([weighted_auroc(labels_N, scores_N, weights_RN) for scores_N in scores_SN])
    difference_R = area_SR[:mine].mean(0) - area_SR[mine:].mean(0)
    interval = percentile_interval(float(difference_R[0]), difference_R[1:], study.evaluate.confidence)
    error = float(np.nanstd(difference_R[1:], ddof=1))
    # Not from ranks: 1,000 resamples cannot give a p below 0.002, which Holm over 30 rows would always make 0.06.
    p_value = 2 * float(stats.norm.sf(abs(interval.value) / error)) if error > 0 else float(interval.value == 0)
    return interval.value, interval.low, interval.high, p_value, len(people)


def rows_of(table: pd.DataFrame, cells: list[Cell]) -> pd.DataFrame:
    """Rows of an encoder's own cells (not of its controls, which carry another system)."""
    rows = cells_frame(cells).merge(table, on=CELL_FIELDS, how="inner")
    return rows[rows["system"] == rows["architecture"]]
