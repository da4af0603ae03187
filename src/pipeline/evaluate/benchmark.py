"""Protocol frozen-v1: what an L2 logistic probe reads from fixed features, on splits that all systems share.

For each label: one row a split; `oof`, the AUROC of each person's score averaged over the splits that tested them, with
an interval over families; `permuted`, the same with labels shuffled; `low-shot-k`, k labelled people a class. For
identity: `oof`, the first session matched to the second among unseen people; `permuted`, pairs shuffled.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from pipeline.config import Evaluate
from pipeline.evaluate.cohort import Task
from pipeline.evaluate.probes import discriminant, identify, mean_score, out_of_split_scores, similarity
from pipeline.evaluate.splits import TEST, draw_shots, draw_splits, seeded
from pipeline.evaluate.statistics import (
    auroc,
    auroc_interval,
    balanced_accuracy,
    smaller_class,
    weighted_auroc,
    weighted_balanced_accuracy,
)
from pipeline.intervals import Interval, at_the_edge, bootstrap_interval, family_weights, percentile_interval
from pipeline.tables import NONE

PROTOCOL = "frozen-v2"
SUMMARY, PERMUTED = "oof", "permuted"

Row = dict[str, Any]


def row(task: str, metric: str, split: str, value: Interval | float, n: int, fold: int = NONE) -> Row:
    """The columns of a result that the protocol knows; the stage adds the system."""
    interval = value if isinstance(value, Interval) else Interval(value, np.nan, np.nan)
    return {"task": task, "metric": metric, "split": split, "fold": fold, "n": n, **interval._asdict()}


def missing_rows(task: str, metrics: Sequence[str], n: int) -> list[Row]:
    """Gaps for a system whose features are not finite."""
    return [row(task, metric, SUMMARY, np.nan, n) for metric in metrics]


def label_rows(features_MD: np.ndarray, task: Task, settings: Evaluate) -> tuple[list[Row], np.ndarray]:
    """All rows of one label, and (M,) the averaged score of each person, NaN for those never tested.

    `features_MD` are of the task's people alone, in their order.
    """
    scores_SM = out_of_split_scores(features_MD, task.labels_M, task.families_M, task.parts_SM, settings.penalties)
    mean_M = mean_score(scores_SM)
    rows = [entry for split, score_M in enumerate(scores_SM) for entry in _split_rows(task, split, score_M)]
    rows += _summary_rows(task, mean_M, settings)
    rows.append(_permuted_row(features_MD, task, settings))
    rows += [_low_shot_row(features_MD, task, shots, settings) for shots in settings.low_shot]
    return rows, mean_M


def _split_rows(task: Task, split: int, score_M: np.ndarray) -> list[Row]:
    tested = np.isfinite(score_M)
    labels, scores, name = task.labels_M[tested], score_M[tested], f"split-{split:03d}"
    return [
        row(task.name, "auroc", name, auroc(labels, scores), int(tested.sum()), split),
        row(task.name, "balanced_accuracy", name, balanced_accuracy(labels, scores), int(tested.sum()), split),
    ]


def _summary_rows(task: Task, mean_M: np.ndarray, settings: Evaluate) -> list[Row]:
    tested = np.isfinite(mean_M)
    labels, scores, families = task.labels_M[tested], mean_M[tested], task.families_M[tested]
    rng, n = seeded(task.key, "bootstrap"), int(tested.sum())
    area = auroc_interval(labels, scores, families, "bootstrap", settings.confidence, settings.bootstrap, rng)
    resampled_R = weighted_balanced_accuracy(labels, scores, family_weights(families, settings.bootstrap, rng))
    independent = smaller_class(labels, families)
    accuracy = _interval(balanced_accuracy(labels, scores), resampled_R, independent, settings)
    return [row(task.name, "auroc", SUMMARY, area, n), row(task.name, "balanced_accuracy", SUMMARY, accuracy, n)]


def _interval(value: float, resampled_R: np.ndarray, independent: int, settings: Evaluate) -> Interval:
    """Percentiles of the resamples, or the exact bound where all of them are 0 or all are 1."""
    if value in (0.0, 1.0):
        return at_the_edge(value, independent, settings.confidence)
    return percentile_interval(value, resampled_R, settings.confidence)


def _permuted_row(features_MD: np.ndarray, task: Task, settings: Evaluate) -> Row:
    """Mean AUROC under shuffled labels; the interval holds what single shuffles gave, so it is the width of chance.

    Each shuffle has its own splits, `splits / permutations` of them: the row costs as much as the real one.
    """
    rng, areas = seeded(task.key, "permutations"), []
    splits = max(1, settings.splits // settings.permutations)
    for _ in range(settings.permutations):
        labels_M = rng.permutation(task.labels_M)
        parts_SM = draw_splits(labels_M, task.families_M, splits, settings.test, settings.validation, rng, task.name)
        score_M = mean_score(out_of_split_scores(features_MD, labels_M, task.families_M, parts_SM, settings.penalties))
        tested = np.isfinite(score_M)
        areas.append(auroc(labels_M[tested], score_M[tested]))
    chance = percentile_interval(float(np.nanmean(areas)), np.array(areas), settings.confidence)
    return row(task.name, "auroc", PERMUTED, chance, len(task.labels_M))


def _low_shot_row(features_MD: np.ndarray, task: Task, shots: int, settings: Evaluate) -> Row:
    """Mean AUROC over draws of `shots` people a class, with an interval over families of the tested people.

    A gap where a class has too few families; the draws hang on the task alone, so they are the same for all systems.
    """
    name, draws = f"low-shot-{shots}", settings.low_shot_draws
    try:
        parts_SM = draw_shots(task.labels_M, task.families_M, shots, draws, seeded(task.key, name))
    except ValueError:
        return {**row(task.name, "auroc", name, np.nan, 0), "status": "too_few_people"}
    scores_SM = out_of_split_scores(features_MD, task.labels_M, task.families_M, parts_SM, settings.penalties)
    weights_RM = family_weights(task.families_M, settings.bootstrap, seeded(task.key, name, "bootstrap"))
    weights_RM = np.vstack([np.ones(len(task.labels_M)), weights_RM])  # row 0: the sample itself
    area_SR = [
        weighted_auroc(task.labels_M[part == TEST], score[part == TEST], weights_RM[:, part == TEST])
        for score, part in zip(scores_SM, parts_SM, strict=True)
    ]
    mean_R = np.mean(area_SR, axis=0)
    independent = smaller_class(task.labels_M, task.families_M) - shots
    area = _interval(float(mean_R[0]), mean_R[1:], independent, settings)
    return row(task.name, "auroc", name, area, int((parts_SM == TEST).sum(1).mean()))


def identity_rows(
    first_NKD: np.ndarray, second_NKD: np.ndarray, families_N: np.ndarray, settings: Evaluate, key: str
) -> list[Row]:
    """Top-1 and mean rank of matching people's first sessions to their second ones; chance is 1/n and 1/2.

    With several clips a session a linear probe is fitted on the first session; with one feature vector (a connectome)
    sessions are matched by correlation, as fingerprinting does.
    """
    several, n = first_NKD.shape[1] > 1, len(first_NKD)
    similarity_NN = discriminant(first_NKD, second_NKD) if several else similarity(first_NKD[:, 0], second_NKD[:, 0])
    found, rng = identify(similarity_NN), seeded(key, "identity")
    rows = []
    for metric, values_N in (("top1", found.top1_N), ("mean_rank", found.rank_N)):
        value = bootstrap_interval(values_N, families_N, settings.confidence, settings.bootstrap, rng)
        rows.append(row("identity", metric, SUMMARY, value, n))
    shuffled = [identify(similarity_NN, rng.permutation(n)) for _ in range(settings.permutations)]
    for metric, means in (
        ("top1", [pair.top1_N.mean() for pair in shuffled]),
        ("mean_rank", [pair.rank_N.mean() for pair in shuffled]),
    ):
        chance = percentile_interval(float(np.mean(means)), np.array(means), settings.confidence)
        rows.append(row("identity", metric, PERMUTED, chance, n))
    return rows
