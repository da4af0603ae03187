"""Whether a family of models hits a wall: measured, not asserted."""

from __future__ import annotations

import numpy as np
import pandas as pd
from scipy import stats

from pipeline.intervals import Interval


def larger_worse(cells: pd.DataFrame, confidence: float) -> Interval:
    """Log loss of the largest size over that of the best smaller one; above 0 the largest is the worse.

    Parameters
    ----------
    cells : completed cells with columns parameters and unexplained, one row a seed.

    The interval is Student's over seeds, with one variance for all sizes; without two seeds it has no ends.
    """
    logs = np.log(cells["unexplained"]).groupby(cells["parameters"])
    means = logs.mean().sort_index()
    if len(means) < 2:
        return Interval(np.nan, np.nan, np.nan)
    best = means.iloc[:-1].idxmin()
    largest = means.index[-1]
    difference = float(means[largest] - means[best])
    freedom = len(cells) - len(means)
    if freedom < 1:
        return Interval(difference, np.nan, np.nan)
    variance = float(((np.log(cells["unexplained"]) - logs.transform("mean")) ** 2).sum()) / freedom
    counts = logs.size()
    error = np.sqrt(variance * (1 / counts[largest] + 1 / counts[best]))
    half = float(stats.t.ppf((1 + confidence) / 2, freedom) * error)
    return Interval(difference, difference - half, difference + half)


def rises(cells: pd.DataFrame) -> int:
    """How many steps from one size to the next raise the mean loss."""
    means = cells.groupby("parameters")["unexplained"].mean().sort_index()
    return int((np.diff(means) > 0).sum())
