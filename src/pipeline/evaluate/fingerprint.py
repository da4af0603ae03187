"""Protocol identity-v1: people matched across two sessions, from short scans of each."""

from __future__ import annotations

import numpy as np

from pipeline.config import Evaluate
from pipeline.evaluate.judged import Row, row
from pipeline.evaluate.probes.identity import discriminant, identify, similarity
from pipeline.evaluate.protocols import IDENTITY
from pipeline.evaluate.rows import OOF, PERMUTED
from pipeline.evaluate.splits import seeded
from pipeline.intervals import bootstrap_interval, percentile_interval

TASK, METRICS = "identity", ("top1", "mean_rank")


def identity_rows(
    first_NKD: np.ndarray, second_NKD: np.ndarray, families_N: np.ndarray, settings: Evaluate, key: str
) -> list[Row]:
    """Top-1 and mean rank of matching people's first sessions to their second ones; chance is 1/n and 1/2.

    With several clips a session a linear probe is fitted on the first session; with one feature vector (a connectome)
    sessions are matched by correlation, as fingerprinting does. `permuted`: pairs shuffled.
    """
    several, n = first_NKD.shape[1] > 1, len(first_NKD)
    similarity_NN = discriminant(first_NKD, second_NKD) if several else similarity(first_NKD[:, 0], second_NKD[:, 0])
    found, rng = identify(similarity_NN), seeded(key, "identity")
    rows = []
    for metric, values_N in zip(METRICS, found, strict=True):
        value = bootstrap_interval(values_N, families_N, settings.confidence, settings.bootstrap, rng)
        rows.append(row(TASK, IDENTITY, metric, OOF, value, n))
    shuffled = [identify(similarity_NN, rng.permutation(n)) for _ in range(settings.permutations)]
    for metric, values_S in zip(METRICS, zip(*shuffled, strict=True), strict=True):
        means_S = np.array([values_N.mean() for values_N in values_S])
        chance = percentile_interval(float(means_S.mean()), means_S, settings.confidence)
        rows.append(row(TASK, IDENTITY, metric, PERMUTED, chance, n))
    return rows


def missing_identity(n: int) -> list[Row]:
    """Gaps for a system whose features are not finite."""
    return [row(TASK, IDENTITY, metric, OOF, np.nan, n) for metric in METRICS]
