"""Tables of a benchmark with the real schemas from a known model: what each system knows of a label is an argument.

Scores of people are drawn, values of splits and of groups are computed from them, so that tables agree as real ones do.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from scipy.special import expit, ndtri
from scipy.stats import rankdata

from pipeline import tables
from pipeline.config import Study
from pipeline.evaluate.comparison.compare import compare
from pipeline.evaluate.protocols import FROZEN, LEAVE_SITE_OUT, LOW_SHOT, TRAINED
from pipeline.evaluate.splits import TEST, draw_splits
from pipeline.evaluate.statistics import auroc_interval, minimal_detectable_difference, weighted_auroc
from pipeline.grid import RANDOM, evaluated_cells, largest

Tables = dict[str, pd.DataFrame]
Row = dict[str, Any]

# Standard deviations between the classes in each system's score.
SIMPLE = {"connectome_logistic": 1.6, "time_averaged": 0.9, "temporal_sd": 0.7, "confounds": 0.3, "chance": 0.0}
EASIER = {"sex": 1.0}  # of a task, against the others
HARDER = 0.6
NETWORK = 1.2


class Contender(NamedTuple):
    """A system, and what it knows."""

    who: Row
    effect: float
    protocol: str = FROZEN


class People(NamedTuple):
    """The people of one task; S splits of N."""

    dataset: str
    task: str
    label_N: np.ndarray
    family_N: np.ndarray
    site_N: np.ndarray
    common_N: np.ndarray  # what all scores share beside the label
    parts_SN: np.ndarray
    simulated: bool


def contenders(study: Study, encoder: float, simple: dict[str, float]) -> list[Contender]:
    """Cells of the study, their controls and fine-tuned copies, and systems outside the grid."""
    found = []
    for cell in evaluated_cells(study):
        found.append(Contender(tables.cell_columns(cell), 0.5 if cell.variant == RANDOM else encoder))
    for name in study.architectures:
        for cell in largest(study, name)[-1:]:
            shuffled = {**tables.cell_columns(cell, f"{name}_time_shuffled"), "variant": "time_shuffled"}
            tuned = {**tables.cell_columns(cell, f"{name}_fine_tuned"), "variant": "fine_tuned"}
            found += [Contender(shuffled, 0.7 * encoder), Contender(tuned, 1.1 * encoder, TRAINED)]
    networks = [Contender(tables.system_columns(name), NETWORK, TRAINED) for name in study.evaluate.supervised.systems]
    return [*found, *networks, *(Contender(tables.system_columns(name), effect) for name, effect in simple.items())]


def benchmark_tables(
    study: Study,
    rng: np.random.Generator,
    encoder: float = 1.8,
    signal: float = 1.0,
    simple: dict[str, float] | None = None,
    pretrain: pd.DataFrame | None = None,
    most: int = 300,
    compared: bool = True,
) -> Tables:
    """benchmark, scores, tasks and comparisons; `signal` scales every effect (0: pure noise).

    At most `most` people a data set.
    """
    benchmark: list[Row] = []
    scores: list[pd.DataFrame] = []
    tasks: list[Row] = []
    able = contenders(study, encoder, simple or SIMPLE)
    for name in study.with_role("evaluate"):
        for task, phenotype in study.datasets[name].labels.items():
            if phenotype.number:
                continue
            people = _people(study, rng, name, task, most)
            tasks += _task_rows(study, people)
            for each in able:
                score_N = _scores(rng, each, people, signal)
                benchmark += _rows(study, each, people, score_N)
                scores.append(_score_frame(each, people, score_N))
    found = {
        "benchmark": pd.DataFrame(benchmark, columns=tables.BENCHMARK_SCHEMA.names),
        "scores": pd.concat(scores, ignore_index=True)[tables.SCORES_SCHEMA.names],
        "tasks": pd.DataFrame(tasks, columns=tables.TASKS_SCHEMA.names),
    }
    none = pd.DataFrame(columns=tables.COMPARISONS_SCHEMA.names)
    return {**found, "comparisons": compare(study, *found.values(), pretrain) if compared else none}


def _people(study: Study, rng: np.random.Generator, dataset: str, task: str, most: int) -> People:
    settings, described = study.evaluate, study.datasets[dataset]
    n = min(described.evaluation_people, most)
    label_N, family_N = np.arange(n) % 2, np.array([f"f{person // 2:03d}" for person in range(n)])
    site_N = np.array([f"S{person // 2 % 4}" for person in range(n)])
    parts_SN = draw_splits(label_N, family_N, settings.splits, settings.test, settings.validation, rng)
    return People(dataset, task, label_N, family_N, site_N, rng.normal(0, 1, n), parts_SN, described.simulated)


def _scores(rng: np.random.Generator, each: Contender, people: People, signal: float) -> np.ndarray:
    if each.who["system"] == "chance":
        return np.zeros(len(people.label_N))
    knows = each.effect * (1 + 0.05 * rng.normal())  # no two seeds are alike
    planted = (people.label_N - 0.5) * knows * EASIER.get(people.task, HARDER) * signal
    noise_N = 0.6 * people.common_N + 0.8 * rng.normal(0, 1, len(planted))
    for label in (0, 1):  # in each class normal quantiles, so that few people have the AUROC that is planted
        among_N = people.label_N == label
        noise_N[among_N] = ndtri((rankdata(noise_N[among_N]) - 0.5) / among_N.sum())
    return np.asarray(noise_N + planted)


def _rows(study: Study, each: Contender, people: People, score_N: np.ndarray) -> list[Row]:
    parts_SN = people.parts_SN[: study.evaluate.declared_splits] if each.protocol == TRAINED else people.parts_SN
    tested_SN = (parts_SN == TEST).astype(float)
    area_S = weighted_auroc(people.label_N, score_N, tested_SN)
    oof = auroc_interval(people.label_N, score_N, resamples=50)
    mean, half = float(area_S.mean()), max((oof.high - oof.low) / 2, 0.01)
    around = (mean, mean - half, mean + half) if each.effect else (0.5, 0.5, 0.5)
    rows = [
        _row(each, people, (area, np.nan, np.nan), f"split-{fold:03d}", n=int(n), fold=fold)
        for fold, (area, n) in enumerate(zip(area_S, tested_SN.sum(1), strict=True))
    ]
    middle = 0.5 + 0.02 * np.sin(len(each.who["system"]) + mean)
    rows += [_row(each, people, around, "mean"), _row(each, people, oof, "oof")]
    rows.append(_row(each, people, (middle, middle - 0.18, middle + 0.18), "permuted"))
    probability_N = expit(score_N)
    squared = float(((probability_N - people.label_N) ** 2).mean())
    accuracy = tuple(0.5 + 0.8 * (value - 0.5) for value in around)
    rows += [
        _row(each, people, accuracy, "mean", metric="balanced_accuracy"),
        _row(each, people, (squared, squared - 0.02, squared + 0.02), "mean", metric="brier"),
        _row(each, people, (0.9, np.nan, np.nan), "oof", metric="calibration_slope"),
        _row(each, people, tuple(each.effect and value - 0.58 for value in around), "mean", metric="auroc_gain"),
    ]
    return [*rows, *_group_rows(each, people, score_N), *_other_protocols(study, each, people, score_N, around)]


def _group_rows(each: Contender, people: People, score_N: np.ndarray) -> list[Row]:
    place_N = np.arange(len(score_N)) // 2
    groups = {"sex F": place_N % 2 == 0, "sex M": place_N % 2 == 1, "motion low": place_N % 4 < 2}
    groups |= {"motion high": place_N % 4 >= 2, "age 8-12": place_N % 3 == 0, "age 12-17": place_N % 3 == 1}
    groups |= {f"site {site}": people.site_N == site for site in np.unique(people.site_N)}
    rows = []
    for name, among_N in groups.items():
        found = auroc_interval(people.label_N[among_N], score_N[among_N], resamples=20)
        rows.append(_row(each, people, found, "mean", group=name, n=int(among_N.sum())))
    within = auroc_interval(people.label_N, score_N, resamples=20)
    return [*rows, _row(each, people, tuple(value - 0.02 for value in within), "mean", group="within site")]


def _other_protocols(study: Study, each: Contender, people: People, score_N: np.ndarray, around: Any) -> list[Row]:
    """Of systems whose features are fixed: few labelled people, and one site after the other."""
    if each.protocol == TRAINED:
        return []
    sites, rows = np.unique(people.site_N), []
    for fold, site in enumerate(sites):
        area = weighted_auroc(people.label_N, score_N, (people.site_N == site)[None].astype(float))[0]
        rows.append(_row(each, people, (area, np.nan, np.nan), f"site {site}", fold=fold, protocol=LEAVE_SITE_OUT))
    shifted = tuple(value - 0.03 for value in around)
    rows.append(_row(each, people, shifted, "mean", protocol=LEAVE_SITE_OUT))
    for shots in study.evaluate.low_shot:
        shrunk = tuple(0.5 + (np.array(around) - 0.5) * shots / (shots + 5))
        rows.append(_row(each, people, shrunk, f"low-shot-{shots}", protocol=LOW_SHOT))
    return rows


def _row(each: Contender, people: People, interval: Any, split: str, **other: Any) -> Row:
    value, low, high = interval
    row = {
        "dataset": people.dataset,
        "task": people.task,
        "protocol": each.protocol,
        "metric": "auroc",
        "split": split,
        "group": "all",
        "fold": tables.NONE,
        "n": len(people.label_N),
        "status": "completed",
        "simulated": people.simulated,
        "unit": "1",
    }
    return {**each.who, **row, "value": value, "low": low, "high": high, **other}


def _score_frame(each: Contender, people: People, score_N: np.ndarray) -> pd.DataFrame:
    about = {"dataset": people.dataset, "task": people.task, "protocol": each.protocol, "simulated": people.simulated}
    persons = [f"p{person:03d}" for person in range(len(score_N))]
    drawn = {"person": persons, "family": people.family_N, "label": people.label_N.astype(float), "score": score_N}
    return pd.DataFrame(drawn).assign(**each.who, **about, probability=expit(score_N))


def _task_rows(study: Study, people: People) -> list[Row]:
    n, settings = len(people.label_N), study.evaluate
    counts = {FROZEN: settings.splits, TRAINED: settings.declared_splits, LEAVE_SITE_OUT: 4}
    counts[LOW_SHOT] = settings.low_shot_draws
    about = {"dataset": people.dataset, "task": people.task, "kind": "classes", "simulated": people.simulated, "n": n}
    about |= {"families": n // 2, "positive": n // 2, "negative": n - n // 2, "tuning": settings.tuning}
    about |= {"detectable": minimal_detectable_difference(n // 2, n - n // 2), "evaluation_hash": "e" * 16}
    return [
        {**about, "protocol": protocol, "splits": splits, "splits_hash": f"{place}" * 16}
        for place, (protocol, splits) in enumerate(counts.items())
    ]
