"""Whom a system serves: its value by sex, age band, site and motion, inside sites, and beyond what confounds say.

Axes: M people of a task, S splits, R resamples (row 0: the sample itself), D confounds.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise

import numpy as np
from scipy.special import expit

from pipeline.evaluate.judged import Contest, Judged, Row, row, weighed
from pipeline.evaluate.probes.linear import balanced_weights, fit_logistic, standardise
from pipeline.evaluate.rows import HEADLINE, MEAN, TOO_FEW_PEOPLE, WITHIN_SITE
from pipeline.evaluate.splits import TEST
from pipeline.evaluate.statistics import logit_interval, resampled_error, weighted_auroc
from pipeline.intervals import Interval, percentile_interval

LEAST = 5  # people a class (or twice as many with a number), below which a group's value is a gap
STRENGTH = 1.0  # C of the logistic regression that joins confounds and score: few features, so it hardly matters
BANDS = 3  # of ages


def groups_of(known: Mapping[str, np.ndarray], task: str) -> Iterator[tuple[str, np.ndarray]]:
    """Name of each group, and who is in it; a column that is the task itself forms none.

    Ages are cut into bands of equal size, head motion at its median; who has no value is in no group.
    """
    for name, value_M in known.items():
        if name == task:
            continue
        if value_M.dtype.kind in "fi":
            yield from _bands(name, value_M.astype(float))
        else:
            for level in sorted({*value_M.tolist()} - {""}):
                yield f"{name} {level}", value_M == level


def _bands(name: str, value_M: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    known = value_M[np.isfinite(value_M)]
    levels = np.unique(known)
    if len(levels) < 2:
        return
    if len(levels) == 2:
        yield from ((f"{name} {level:g}", value_M == level) for level in levels)
        return
    bands = 2 if name == "motion" else BANDS
    cuts = np.unique(np.quantile(known, np.linspace(0, 1, bands + 1)))
    for place, (low, high) in enumerate(pairwise(cuts)):
        last = place == len(cuts) - 2
        inside = (value_M >= low) & ((value_M <= high) if last else (value_M < high))
        yield (f"motion {'high' if last else 'low'}" if name == "motion" else f"{name} {low:.3g}-{high:.3g}"), inside


def group_rows(contest: Contest, judged: Judged, weights_RM: np.ndarray) -> list[Row]:
    """The headline metric in each group, and over people of the same site alone; a gap where a group is too small.

    For classes pairs are compared inside a split: averaged scores would count against a system, since whoever is tested
    is missing, with their label, from their own group's training.
    """
    task, protocol, metric = contest.task, contest.protocol, HEADLINE[contest.task.kind]
    rows = []
    for name, among_M in groups_of(contest.known, task.name):
        n = int((among_M & judged.tested_M).sum())
        found, status = Interval(np.nan, np.nan, np.nan), {"status": TOO_FEW_PEOPLE}
        if enough(contest, judged, among_M):
            found, status = _value(contest, judged, [among_M], weights_RM), {}
        rows.append({**row(task, protocol, metric, MEAN, found, n, group=name), **status})
    sites = sorted({*task.site_M.tolist()} - {""})
    if task.kind == "classes" and len(sites) > 1:
        found = _value(contest, judged, [task.site_M == site for site in sites], weights_RM)
        n = int((judged.tested_M & (task.site_M != "")).sum())
        rows.append(row(task, protocol, metric, MEAN, found, n, group=WITHIN_SITE))
    return rows


def enough(contest: Contest, judged: Judged, among_M: np.ndarray) -> bool:
    """Whether a group has people enough for a value."""
    labels = contest.task.labels_M[among_M & judged.tested_M]
    return min(int((labels == label).sum()) for label in (0, 1)) >= LEAST


def _value(contest: Contest, judged: Judged, groups: Sequence[np.ndarray], weights_RM: np.ndarray) -> Interval:
    """AUROC over pairs of the same group and split; a number's correlation over the averaged scores of one group."""
    if judged.kind == "number":
        value_R = judged.averaged_metrics(weights_RM, groups[0])[HEADLINE["number"]]
    else:
        value_R = auroc_inside(judged, groups, weights_RM)
        families = len(np.unique(contest.task.families_M[np.any(groups, axis=0)]))
        if 0 < value_R[0] < 1:
            error = resampled_error(value_R[1:], families)
            return logit_interval(float(value_R[0]), error, contest.settings.confidence)
    return percentile_interval(float(value_R[0]), value_R[1:], contest.settings.confidence)


def auroc_inside(judged: Judged, groups: Sequence[np.ndarray], weights_RM: np.ndarray) -> np.ndarray:
    """(R,) share of pairs of a positive and a negative of one group, tested in one split, that are ordered rightly.

    So a score that only tells groups apart gives 1/2.
    """
    won_R, pairs_R = np.zeros(len(weights_RM)), np.zeros(len(weights_RM))
    for part_M, score_M in zip(judged.parts_SM, judged.score_SM, strict=True):
        for among_M in groups:
            who = np.flatnonzero((part_M == TEST) & among_M)
            labels, weights = judged.target_M[who], weights_RM[:, who]
            if 0 < labels.sum() < len(labels):
                count_R = (weights @ labels) * (weights @ (1 - labels))
                won_R += np.nan_to_num(weighted_auroc(labels, score_M[who], weights)) * count_R
                pairs_R += count_R
    return np.where(pairs_R > 0, won_R / np.where(pairs_R > 0, pairs_R, 1), np.nan)


def gain_row(contest: Contest, judged: Judged, weights_RM: np.ndarray) -> list[Row]:
    """AUROC of confounds and score together minus that of confounds alone, mean over splits as of any metric.

    Both are logistic regressions fitted on people outside the test part, with scores by fits that did not see them. A
    system without such scores has no row, nor has a number.
    """
    task, confounds_MD = contest.task, contest.confounds_MD
    if task.kind != "classes" or not confounds_MD.shape[1]:
        return []
    gains_SR, worth_SR = [], []
    for split, part_M in enumerate(judged.parts_SM):
        inner_M, tested = judged.inner_SM[split], part_M == TEST
        fitted_on = np.isfinite(inner_M) & ~tested
        if min((task.target_M[fitted_on] == label).sum() for label in (0, 1)) < LEAST:
            n = int((judged.parts_SM == TEST).any(0).sum())
            return [{**row(task, contest.protocol, "auroc_gain", MEAN, np.nan, n), "status": TOO_FEW_PEOPLE}]
        both_M = np.where(tested, judged.score_SM[split], inner_M)
        alone_M = _joined(confounds_MD, task.target_M, fitted_on)
        together_M = _joined(np.column_stack([confounds_MD, both_M]), task.target_M, fitted_on)
        weights, labels = weights_RM[:, tested], task.target_M[tested]
        with_score_R = weighted_auroc(labels, together_M[tested], weights)
        gains_SR.append(with_score_R - weighted_auroc(labels, alone_M[tested], weights))
        worth_SR.append(judged.worth(split, weights_RM))
    gain_R = weighed(np.array(gains_SR), np.array(worth_SR))
    found = percentile_interval(float(gain_R[0]), gain_R[1:], contest.settings.confidence)
    n = int((judged.parts_SM == TEST).any(0).sum())
    return [row(task, contest.protocol, "auroc_gain", MEAN, found, n)]


def _joined(features_MD: np.ndarray, target_M: np.ndarray, fitted_on_M: np.ndarray) -> np.ndarray:
    """(M,) probabilities under a logistic regression fitted on some people; a missing value (NaN) is their mean."""
    scaled_MD = standardise(features_MD, fitted_on_M)
    weights_1M = balanced_weights(target_M, fitted_on_M[None])
    return np.asarray(expit(fit_logistic(scaled_MD, target_M, weights_1M, np.array([STRENGTH]))[0]))
