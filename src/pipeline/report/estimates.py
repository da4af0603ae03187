"""What decides a claim: each estimator reads tables by selectors and gives an effect with its interval and its n.

An estimator's keyword arguments are the selectors that config/claims.yaml may use; a `Literal` lists what they may be.
It yields (name, Estimate): several where a claim is about each task, else one under "". A study that lacks what a claim
is about gives an Estimate without a value, which is inconclusive and says why.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd
from scipy import stats

from pipeline.config import Study
from pipeline.evaluate.comparison.paired import people_difference
from pipeline.evaluate.protocols import FROZEN, LOW_SHOT, TRAINED
from pipeline.evaluate.rows import HEADLINE, OOF
from pipeline.evaluate.statistics import holm
from pipeline.figures.figure2 import PANELS
from pipeline.figures.select import block_rows, done, mean_interval, pick, rows_of
from pipeline.grid import RANDOM, Cell, evaluated_cells, largest

Tables = dict[str, pd.DataFrame]


@dataclass(frozen=True)
class Estimate:
    """An effect, the ends of its interval, and what it rests on."""

    effect: float
    low: float
    high: float
    n: int
    test: str
    decided_by: str
    p_value: float = np.nan
    note: str = ""
    simulated: bool = False


Estimates = Iterator[tuple[str, Estimate]]


def _nothing(test: str, decided_by: str, note: str) -> Estimate:
    return Estimate(np.nan, np.nan, np.nan, 0, test, decided_by, note=note)


def _architectures(study: Study, model: str) -> list[str]:
    return [name for name, architecture in study.architectures.items() if architecture.model == model]


def _any_simulated(rows: pd.DataFrame) -> bool:
    return bool(rows["simulated"].any()) if len(rows) else False


def fit_parameter(
    study: Study,
    tables: Tables,
    *,
    fit: Literal["loss_parameters", "loss_flops", "loss_frames", "surface"],
    model: str,
    statistic: Literal["exponent", "irreducible", "exchange_rate", "exponent_subjects", "exponent_frames"],
    worth: Literal["trend", "law"] = "trend",
) -> Estimates:
    """One number of a fit in the table `scaling`; `worth: law` asks for as many sizes and seeds as a law needs."""
    for name in _architectures(study, model):
        where, test = f"scaling: fit {fit}, architecture {name}, statistic {statistic}", "bootstrap over cells"
        rows = pick(tables["scaling"], fit=fit, architecture=name, statistic=statistic)
        if rows.empty:
            yield "", _nothing(test, where, "no such fit: too few cells")
            continue
        row, simulated = rows.iloc[0], _any_simulated(pick(tables["pretrain"], architecture=name))
        unknown = "not identified" in row["note"] or (worth == "law" and not row["note"].startswith("law"))
        low, high = (np.nan, np.nan) if unknown else (row["low"], row["high"])
        note = row["note"] + (", where the claim asks for a law" if unknown and worth == "law" else "")
        yield "", Estimate(row["value"], low, high, int(row["n"]), test, where, note=note, simulated=simulated)


def largest_against_smaller(study: Study, tables: Tables, *, model: str) -> Estimates:
    """Is the largest size worse than smaller ones? Positive where it is.

    Where a seed of it diverged or collapsed: the share of its seeds that did, less that of the smaller sizes', with
    Newcombe's interval. Else the log loss of the largest over the best smaller size, from the table `scaling`.
    """
    for name in _architectures(study, model):
        cells = pick(block_rows(study, "scaling", tables["pretrain"]), architecture=name)
        failed = cells["status"].isin(["diverged", "collapsed"])
        top = cells["size"].isin([cell.size for cell in largest(study, name)])
        ours, others = failed[top], failed[~top]
        simulated = _any_simulated(tables["pretrain"])
        if ours.any() and len(others):
            effect, low, high = _difference_of_shares(ours.to_numpy(), others.to_numpy(), study.evaluate.confidence)
            where, note = (
                f"pretrain: status, architecture {name}",
                f"{ours.sum()} of {len(ours)} seeds of {cells.loc[top, 'size'].iloc[0]} failed",
            )
            test = "difference of shares that failed, Newcombe"
            yield "", Estimate(effect, low, high, len(cells), test, where, note=note, simulated=simulated)
            continue
        where, test = f"scaling: fit collapse, architecture {name}, larger_worse", "Student's interval over seeds"
        rows = pick(tables["scaling"], fit="collapse", architecture=name, statistic="larger_worse")
        if rows.empty:
            yield "", _nothing(test, where, "no completed cells")
            continue
        row = rows.iloc[0]
        values = (row["value"], row["low"], row["high"], int(row["n"]), test, where)
        yield "", Estimate(*values, note=row["note"], simulated=simulated)


def _difference_of_shares(ours: np.ndarray, others: np.ndarray, confidence: float) -> tuple[float, float, float]:
    """Source: Newcombe (1998) Statistics in Medicine 17:873, method 10: Wilson intervals combined."""
    a, b = float(ours.mean()), float(others.mean())
    (a_low, a_high), (b_low, b_high) = (
        stats.binomtest(int(x.sum()), len(x)).proportion_ci(confidence, "wilson") for x in (ours, others)
    )
    return a - b, a - b - float(np.hypot(a - a_low, b_high - b)), a - b + float(np.hypot(a_high - a, b - b_low))


def difference_of_conditions(
    study: Study, tables: Tables, *, measure: Literal["sex", "identity", "reconstruction"]
) -> Estimates:
    """The deepest minus the widest of conditions with equal tokens, paired by draw of people; n = draws.

    Probes give one estimate a data set: its people are other people, and its rows are no further draws.
    """
    panel = next(panel for panel in PANELS if panel.task == measure)
    test = "paired t over draws"
    where = f"{'pretrain' if measure == 'reconstruction' else 'probe'}: {measure} {panel.metric}, cells of iso_tokens"
    table = tables["pretrain"].assign(value=tables["pretrain"]["val_r2"])
    if measure != "reconstruction":
        table = pick(tables["probe"], task=panel.task, metric=panel.metric, split=OOF)
    rows = done(block_rows(study, "iso_tokens", table)).dropna(subset=["value"])
    rows = rows.assign(tokens=rows["subjects"] * rows["frames"])
    if rows.empty:
        yield "", _nothing(test, where, "no such cells")
    for name, of_dataset, part in _by_dataset(study, rows):
        # The set with most draws decides.
        part = part[part["tokens"] == part.groupby("tokens")["draw"].nunique().idxmax()]
        deep, wide = part[part["frames"] == part["frames"].max()], part[part["frames"] == part["frames"].min()]
        pairs = deep.merge(wide, on=["architecture", "size", "draw", "variant", "seed"], suffixes=("", "_wide"))
        draws = (pairs["value"] - pairs["value_wide"]).groupby(pairs["draw"]).mean().to_numpy()
        effect, low, high = mean_interval(draws, study.evaluate.confidence)
        p_value = float(stats.ttest_1samp(draws, 0).pvalue) if len(draws) > 2 else np.nan
        told = f"{where}{of_dataset}, {_condition(deep)} minus {_condition(wide)}"
        yield name, Estimate(effect, low, high, len(draws), test, told, p_value, simulated=_any_simulated(part))


def _by_dataset(study: Study, rows: pd.DataFrame) -> Iterator[tuple[str, str, pd.DataFrame]]:
    """Rows of each data set with its name and how `decided_by` tells it; the name is "" where a study evaluates one."""
    if len(rows) and "dataset" not in rows:
        yield "", "", rows
        return
    for dataset, part in rows.groupby("dataset", sort=False) if len(rows) else ():
        yield _dataset_name(study, str(dataset)), f" of {dataset}", part


def _dataset_name(study: Study, dataset: str) -> str:
    return dataset if len(study.with_role("evaluate")) > 1 else ""


def _condition(rows: pd.DataFrame) -> str:
    return f"{rows['subjects'].iloc[0]} x {rows['frames'].iloc[0]}" if len(rows) else "none"


def compare_systems(study: Study, tables: Tables, *, model: str, against: str, task: str = "each") -> Estimates:
    """The headline metric of the largest encoder (mean over seeds) minus another system's, paired over people.

    `against` is a system's slug or a model; `task` a label of the study or "each". Scores that were averaged over other
    splits are not compared. Holm over tasks.
    """
    test, found = "paired bootstrap over families, Holm over tasks", []
    for name, dataset, label, scores in _tasks(pick(tables["scores"], protocol=(FROZEN, TRAINED)), task):
        ours, other = _largest_rows(study, model, scores), _system_rows(study, against, scores)
        where = f"scores: {label} of {dataset}, largest {model} minus {against}"
        if ours.empty or other.empty or set(ours["protocol"]) != set(other["protocol"]):
            absent = model if ours.empty else against
            told = f"no scores of {absent}" if ours.empty or other.empty else f"{against} ran on other splits"
            found.append((name, _nothing(test, where, told)))
            continue
        of_task = pick(tables["benchmark"], dataset=dataset, task=label, metric=tuple(HEADLINE.values()))
        difference = people_difference(ours, other, study, of_task["metric"].iloc[0])
        effect, low, high, p_value, n = difference
        found.append((name, Estimate(effect, low, high, n, test, where, p_value, simulated=_any_simulated(scores))))
    if not found:
        yield "", _nothing(test, "scores", f"no scores of task '{task}'")
    adjusted = holm(np.array([estimate.p_value for _, estimate in found]))
    for (name, estimate), p_value in zip(found, adjusted, strict=True):
        yield name, Estimate(**{**vars(estimate), "p_value": float(p_value)})


def _tasks(table: pd.DataFrame, task: str) -> Iterator[tuple[str, str, str, pd.DataFrame]]:
    """Name of an estimate, data set, task and its rows; the name tells the data set where several have such a task."""
    pairs = list(dict.fromkeys(zip(table["dataset"], table["task"], strict=True)))
    labels = [label for _, label in pairs]
    for dataset, label in pairs:
        if task in ("each", label) and label != "identity":
            name = f"{label}, {dataset}" if labels.count(label) > 1 else label
            yield name, dataset, label, pick(table, dataset=dataset, task=label)


def _largest_rows(study: Study, model: str, table: pd.DataFrame) -> pd.DataFrame:
    cells: list[Cell] = [cell for name in _architectures(study, model) for cell in largest(study, name)]
    return rows_of(table, cells)


def _system_rows(study: Study, system: str, table: pd.DataFrame) -> pd.DataFrame:
    if _architectures(study, system):
        return _largest_rows(study, system, table)
    return pick(table, system=system)


def few_shot_difference(study: Study, tables: Tables, *, model: str, against: str, task: str = "each") -> Estimates:
    """AUROC with the fewest labelled people: largest encoder (mean over seeds) minus another system.

    The two intervals are added as if independent; people are the same in both, so this is wider than a paired one.
    """
    test = "difference of two intervals, root of summed squares"
    split = f"low-shot-{min(study.evaluate.low_shot)}"
    table, shown = pick(tables["benchmark"], protocol=LOW_SHOT, split=split, metric="auroc"), False
    for name, dataset, label, rows in _tasks(table, task):
        shown = True
        where = f"benchmark: {label} of {dataset}, {split}, largest {model} minus {against}"
        ours, other = _largest_rows(study, model, rows), _system_rows(study, against, rows)
        if ours.empty or other.empty:
            yield name, _nothing(test, where, f"no row of {model if ours.empty else against}")
            continue
        a, b = (part[["value", "low", "high"]].mean() for part in (ours, other))
        effect = a["value"] - b["value"]
        below, above = (
            np.hypot(a["value"] - a["low"], b["high"] - b["value"]),
            np.hypot(a["high"] - a["value"], b["value"] - b["low"]),
        )
        n, simulated = int(ours["n"].min()), _any_simulated(ours)
        yield name, Estimate(effect, effect - below, effect + above, n, test, where, simulated=simulated)
    if not shown:
        yield "", _nothing(test, "benchmark", f"no rows of task '{task}' with few labelled people")


def rank_correlation(study: Study, tables: Tables, *, task: str) -> Estimates:
    """Spearman correlation over completed encoders of held-out R^2 with the AUROC of a label; n = encoders.

    One estimate a data set: the same encoders over again are no further encoders.
    """
    test, where = (
        "Spearman, bootstrap over encoders",
        f"pretrain val_r2 with probe AUROC of {task}, every trained encoder",
    )
    cells = [cell for cell in evaluated_cells(study) if cell.variant != RANDOM]
    probe = rows_of(pick(tables["probe"], task=task, metric="auroc", split=OOF), cells)
    keys = ["architecture", "size", "subjects", "frames", "draw", "variant", "seed"]
    both = done(probe).merge(tables["pretrain"][[*keys, "val_r2"]], on=keys).dropna(subset=["value", "val_r2"])
    few = "fewer than four encoders, or all alike"
    if both.empty:
        yield "", _nothing(test, where, few)
    for name, of_dataset, part in _by_dataset(study, both):
        told = f"{where}{of_dataset}"
        x, y = part["val_r2"].to_numpy(), part["value"].to_numpy()
        if len(part) < 4 or np.ptp(x) == 0 or np.ptp(y) == 0:
            yield name, _nothing(test, told, few)
            continue
        found, low, high = _spearman(study, x, y)
        ends = (low, high, len(part), test, told, float(found.pvalue))
        yield name, Estimate(float(found.statistic), *ends, simulated=_any_simulated(part))


def _spearman(study: Study, x: np.ndarray, y: np.ndarray) -> tuple[Any, float, float]:
    """Spearman's correlation with its p, and the ends of its interval."""
    rng = np.random.default_rng(study.seed)
    drawn_RN = rng.integers(len(x), size=(study.evaluate.bootstrap, len(x)))
    resampled = _correlations(stats.rankdata(x[drawn_RN], axis=1), stats.rankdata(y[drawn_RN], axis=1))
    tail = (1 - study.evaluate.confidence) / 2
    low, high = np.nanquantile(resampled, [tail, 1 - tail])
    return stats.spearmanr(x, y), float(low), float(high)


def _correlations(x_RN: np.ndarray, y_RN: np.ndarray) -> np.ndarray:
    """(R,) Pearson correlation of each row; NaN where one of them is constant."""
    x_RN, y_RN = (values - values.mean(1, keepdims=True) for values in (x_RN, y_RN))
    length_R = np.sqrt((x_RN**2).sum(1) * (y_RN**2).sum(1))
    return np.divide((x_RN * y_RN).sum(1), length_R, out=np.full(len(length_R), np.nan), where=length_R > 0)


def slope_shift(
    study: Study,
    tables: Tables,
    *,
    model: str,
    metric: Literal["beta", "beta_difference", "hurst", "hurst_difference"],
) -> Estimates:
    """A slope or Hurst exponent of the largest encoder's reconstructions of evaluation people; mean over seeds."""
    test = "bootstrap over people, mean over seeds"
    for dataset in study.with_role("evaluate"):
        where = f"spectral: {metric} of {dataset}, largest {model}"
        rows = pick(tables["spectral"], dataset=dataset, metric=metric, split="all")
        ours, name = done(_largest_rows(study, model, rows)), _dataset_name(study, dataset)
        if gaps := int(ours["value"].isna().sum()):  # the seeds that are left would be a choice by their result
            yield name, _nothing(test, where, f"no {metric} of {gaps} of {len(ours)} seeds")
            continue
        if ours.empty:
            yield name, _nothing(test, where, "no completed encoder")
            continue
        value, low, high = ours[["value", "low", "high"]].mean(skipna=False)
        yield name, Estimate(value, low, high, int(ours["n"].min()), test, where, simulated=_any_simulated(ours))


ESTIMATORS: dict[str, Callable[..., Any]] = {
    estimator.__name__: estimator
    for estimator in (
        fit_parameter,
        largest_against_smaller,
        difference_of_conditions,
        compare_systems,
        few_shot_difference,
        rank_correlation,
        slope_shift,
    )
}
