"""All rows of one system on one task, by every protocol (`evaluate.protocols`).

A protocol is a list of splits; a system learns from the training part of each and scores its test part. Rows are one a
split, and summaries over people: `mean`, of the splits' values, with an interval over families of the tested people;
`oof`, of each person's score averaged over the splits that tested them; `permuted`, with targets shuffled.

Axes: M people of a task, S splits, R resamples of families (row 0: the sample itself).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy.special import expit, logit

from pipeline.evaluate.cohort import Task, stratum
from pipeline.evaluate.groups import gain_row, group_rows
from pipeline.evaluate.judged import EDGES, Contest, Judged, Row, metrics, row, unit_of, weighed
from pipeline.evaluate.protocols import LEAVE_SITE_OUT, LOW_SHOT, TRAINED, VERSIONS
from pipeline.evaluate.reading import Reader
from pipeline.evaluate.rows import HEADLINE, MEAN, OOF, PERMUTED, TOO_FEW_PEOPLE
from pipeline.evaluate.splits import TEST, TRAIN, draw_shots, draw_splits, leave_site_out, seeded
from pipeline.evaluate.statistics import calibration, logit_interval, resampled_error, smaller_class
from pipeline.intervals import Interval, at_the_edge, group_weights, percentile_interval

TRAINED_SHUFFLES = 5  # of targets, one split each
LEAST_RANGE = 0.02  # of probabilities: a slope of calibration against less is noise


def read_task(contest: Contest, reader: Reader) -> tuple[list[Row], Judged]:
    """Rows of every protocol that the study asks for, and what was said of each person."""
    task, settings = contest.task, contest.settings
    trained = contest.protocol == TRAINED
    parts_SM = task.parts_SM[: settings.declared_splits] if trained else task.parts_SM
    judged = judge(reader, task, parts_SM)
    names = [f"split-{split:03d}" for split in range(len(parts_SM))]
    weights_RM = contest.weights_RM
    rows = [*split_rows(contest, judged, names), *mean_rows(contest, judged, weights_RM)]
    rows += [*_oof_rows(contest, judged, weights_RM), *group_rows(contest, judged, weights_RM)]
    rows += gain_row(contest, judged, weights_RM)
    rows.append(_permuted_row(contest, reader, len(parts_SM)))
    if "leave_site_out" in settings.protocols and not trained:
        rows += _site_rows(contest, reader, weights_RM)
    if "low_shot" in settings.protocols and not trained and task.kind == "classes":
        rows += [_low_shot_row(contest, reader, shots, weights_RM) for shots in settings.low_shot]
    return rows, judged


def judge(reader: Reader, task: Task, parts_SM: np.ndarray) -> Judged:
    """What a system says of each split's test people, after learning from its training part."""
    shape = parts_SM.shape
    score_SM, said_SM, inner_SM = np.full(shape, np.nan), np.full(shape, np.nan), np.full(shape, np.nan)
    unit_S, chosen = np.ones(len(parts_SM)), []
    for split, part_M in enumerate(parts_SM):
        reading, tested = reader(task.target_M, part_M), part_M == TEST
        score_SM[split, tested], inner_SM[split] = reading.score_M[tested], reading.inner_M
        if task.kind == "classes":
            prevalence = task.target_M[part_M == TRAIN].mean()
            said_SM[split, tested] = expit(reading.score_M[tested] + logit(prevalence))
            unit_S[split] = _spread(reading.score_M[~tested])
            if not unit_S[split]:  # the same answer for everybody, but for rounding, which must not rank anybody
                score_SM[split, tested], unit_S[split] = 0.0, 1.0
        else:
            said_SM[split, tested] = task.target_M[part_M == TRAIN].mean()
        chosen.append(reading.chosen)
    return Judged(task.kind, task.target_M, parts_SM, score_SM, said_SM, inner_SM, unit_S, chosen)


def _spread(score_M: np.ndarray) -> float:
    """SD of the scores of people outside the test part, the unit in which scores of splits are averaged; 0 where there
    is none but by rounding.
    """
    known = score_M[np.isfinite(score_M)]
    spread = float(known.std()) if known.size else 1.0
    return spread if spread > 1e-9 else 0.0


def missing_rows(task: Task, protocol: str) -> list[Row]:
    """Gaps for a system whose features are not finite."""
    n = len(task.target_M)
    return [row(task, protocol, metric, split, np.nan, n) for metric in metrics(task.kind) for split in (MEAN, OOF)]


def split_rows(contest: Contest, judged: Judged, names: Sequence[str], protocol: str | None = None) -> list[Row]:
    """Every metric of every split."""
    task, found = contest.task, []
    once_1M = np.ones((1, len(task.target_M)))
    for split, name in enumerate(names):
        n = int((judged.parts_SM[split] == TEST).sum())
        for metric, value_1 in judged.split_metrics(split, once_1M).items():
            found.append(row(task, protocol or contest.protocol, metric, name, float(value_1[0]), n, fold=split))
    return found


def mean_rows(
    contest: Contest, judged: Judged, weights_RM: np.ndarray, protocol: str | None = None, split: str = MEAN
) -> list[Row]:
    """Every metric's mean over splits, with an interval over families of the tested people."""
    task, n = contest.task, int((judged.parts_SM == TEST).any(0).sum())
    return [
        row(task, protocol or contest.protocol, metric, split, interval(contest, metric, mean_R), n)
        for metric, mean_R in mean_over_splits(judged, weights_RM).items()
    ]


def mean_over_splits(
    judged: Judged, weights_RM: np.ndarray, only: str | None = None, drawn_SR: np.ndarray | float = 1.0
) -> dict[str, np.ndarray]:
    """Metric -> (R,) mean over splits, each by what it can tell under the weights (`Judged.worth`); NaN without any.

    `drawn_SR` is how often each split itself is drawn in a resample.
    Stratified splits are worth the same but for rounding. In a resample a split may lose all people of a class: it then
    counts for nothing, where a plain mean over those with a value would be biased.
    """
    splits = range(len(judged.parts_SM))
    worth_SR = drawn_SR * np.array([judged.worth(split, weights_RM) for split in splits])
    by_split = [judged.split_metrics(split, weights_RM, only) for split in splits]
    return {metric: weighed(np.array([each[metric] for each in by_split]), worth_SR) for metric in by_split[0]}


def interval(contest: Contest, metric: str, value_R: np.ndarray, fewer: int = 0) -> Interval:
    """Of a share by the resamples' standard error on the logit scale, or the exact bound where it is 0 or 1; of
    anything else by their percentiles.
    """
    value, confidence, families_M = float(value_R[0]), contest.settings.confidence, contest.task.families_M
    if metric not in EDGES or not np.isfinite(value):
        return percentile_interval(value, value_R[1:], confidence)
    if value in (0.0, 1.0):
        independent = smaller_class(contest.task.labels_M, families_M) - fewer
        return at_the_edge(value, max(1, independent), confidence)
    return logit_interval(value, resampled_error(value_R[1:], len(np.unique(families_M))), confidence)


def _oof_rows(contest: Contest, judged: Judged, weights_RM: np.ndarray) -> list[Row]:
    """Of each person's averaged score: every metric, and how far probabilities are from what was seen."""
    task, protocol, tested = contest.task, contest.protocol, judged.tested_M
    n, found = int(tested.sum()), []
    for metric, value_R in judged.averaged_metrics(weights_RM).items():
        found.append(row(task, protocol, metric, OOF, interval(contest, metric, value_R), n))
    if judged.kind == "classes" and np.ptp(judged.probability_M[tested]) > LEAST_RANGE:
        slope, intercept = calibration(task.target_M[tested], judged.probability_M[tested])
        found.append(row(task, protocol, "calibration_slope", OOF, slope, n))
        found.append(row(task, protocol, "calibration_intercept", OOF, intercept, n))
    return found


def _permuted_row(contest: Contest, reader: Reader, splits: int) -> Row:
    """Mean of the headline metric under shuffled targets; the interval holds what single shuffles gave, so it is the
    width of chance.

    Each shuffle has its own splits; all of them together cost as much as the real ones, or half of that where a system
    is trained.
    """
    task, settings = contest.task, contest.settings
    rng, values = seeded(task.key, "permutations"), []
    shuffles = min(settings.permutations, TRAINED_SHUFFLES if contest.protocol == TRAINED else splits)
    each = 1 if contest.protocol == TRAINED else max(1, splits // shuffles)
    shares, where = (settings.test, settings.validation), task.name
    for _ in range(shuffles):
        target_M = rng.permutation(task.target_M)
        labels_M = stratum(target_M, task.kind)
        parts_SM = draw_splits(labels_M, task.families_M, each, *shares, rng, where)
        judged = judge(reader, task._replace(target_M=target_M), parts_SM)
        metric = HEADLINE[task.kind]
        values.append(mean_over_splits(judged, np.ones((1, len(target_M))), metric)[metric][0])
    known = [value for value in values if np.isfinite(value)]
    chance = percentile_interval(float(np.mean(known)) if known else np.nan, np.array(values), settings.confidence)
    return row(task, contest.protocol, HEADLINE[task.kind], PERMUTED, chance, len(task.target_M))


def _site_rows(contest: Contest, reader: Reader, weights_RM: np.ndarray) -> list[Row]:
    """Tested on one site after the other; no rows for a data set of one site."""
    task = contest.task
    parts = leave_site_out(task.labels_M, task.families_M, task.site_M, contest.settings.validation, task.key)
    if len(parts) < 2:
        return []
    judged = judge(reader, task, np.array([*parts.values()]))
    rows = split_rows(contest, judged, [f"site {site}" for site in parts], LEAVE_SITE_OUT)
    return rows + mean_rows(contest, judged, weights_RM, LEAVE_SITE_OUT)


def _low_shot_row(contest: Contest, reader: Reader, shots: int, weights_RM: np.ndarray) -> Row:
    """Mean AUROC over draws of `shots` people a class, with an interval over draws and over families of the tested.

    Draws are resampled too: with one person a class it is they that vary most. A gap where a class has too few
    families; the draws hang on the task alone, so they are the same for all systems.
    """
    task, settings, name = contest.task, contest.settings, f"low-shot-{shots}"
    rng = seeded(task.key, name)
    try:
        parts_SM = draw_shots(task.labels_M, task.families_M, shots, settings.low_shot_draws, rng)
    except ValueError:
        return {**row(task, LOW_SHOT, "auroc", name, np.nan, 0), "status": TOO_FEW_PEOPLE}
    drawn_SR = np.ones((len(parts_SM), len(weights_RM)))
    drawn_SR[:, 1:] = group_weights(len(parts_SM), len(weights_RM) - 1, seeded(task.key, name, "draws")).T
    mean_R = mean_over_splits(judge(reader, task, parts_SM), weights_RM, "auroc", drawn_SR)["auroc"]
    n = int((parts_SM == TEST).sum(1).mean())
    return row(task, LOW_SHOT, "auroc", name, interval(contest, "auroc", mean_R, shots), n)


def protocol_of(trained: bool) -> str:
    """The protocol of a system that is trained on labels, or of one whose features are fixed."""
    return VERSIONS["trained" if trained else "frozen"]


def complete(about: Mapping[str, Any], rows: Sequence[Row]) -> list[Row]:
    """Rows with the columns that say whose they are, and the unit of each."""
    return [{**about, "unit": unit_of(found["metric"]), **found} for found in rows]
