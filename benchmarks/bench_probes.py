"""The frozen probe on made-up people: seconds against people and splits beside scikit-learn, in one run and one thread.

    OMP_NUM_THREADS=1 python benchmarks/bench_probes.py                  # a connectome, an encoder; about a minute
    OMP_NUM_THREADS=1 python benchmarks/bench_probes.py --features 768

The reference is a pipeline of StandardScaler and LogisticRegressionCV (classes balanced, three folds, the same
strengths), which is what a probe is elsewhere; it runs on one split of each number of people. Its folds differ, so
logits are compared at a strength that both are given. Seconds are of the processor, so a busy machine changes little.
"""

from __future__ import annotations

import argparse
import math
import time
import warnings
from typing import Any

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression, LogisticRegressionCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from pipeline.evaluate.probes.harmonise import combat
from pipeline.evaluate.probes.linear import INNER_FOLDS, linear_reader, ridge_reader
from pipeline.evaluate.reading import Reader
from pipeline.evaluate.splits import TRAIN, draw_splits, seeded

PENALTIES = (0.001, 0.01, 0.1, 1.0)
PEOPLE, SPLITS = (160, 320, 640), (10, 20, 40)
LEGACY: dict[str, Any] = {"l1_ratios": (0,), "use_legacy_attributes": False}  # spares its warnings of what will change
CLASSICAL: dict[str, Any] = {"class_weight": "balanced", "tol": 1e-4, "max_iter": 1000}


def made_up(people: int, features: int) -> tuple[np.ndarray, np.ndarray]:
    """Features whose spectrum falls as that of connectomes, and a label that some of them tell."""
    rng, factors = np.random.default_rng(0), min(people, features)
    loads_KD = rng.normal(0, 1, (factors, features)) / np.arange(1, factors + 1)[:, None] ** 0.7
    scores_MK = rng.normal(0, 1, (people, factors))
    label_M = (scores_MK[:, 1] + rng.normal(0, 1, people) > 0).astype(int)
    return (scores_MK @ loads_KD + 0.3 * rng.normal(0, 1, (people, features))).astype(np.float32), label_M


def seconds(reader: Reader, label_M: np.ndarray, parts_SM: np.ndarray) -> float:
    start = time.process_time()
    for part_M in parts_SM:
        reader(label_M, part_M)
    return time.process_time() - start


def reference_seconds(features_MD: np.ndarray, label_M: np.ndarray, train_M: np.ndarray) -> float:
    """Of scikit-learn on one split."""
    nested = LogisticRegressionCV(Cs=list(PENALTIES), cv=INNER_FOLDS, scoring="neg_log_loss", **LEGACY, **CLASSICAL)
    start = time.process_time()
    make_pipeline(StandardScaler(), nested).fit(features_MD[train_M], label_M[train_M])
    return time.process_time() - start


def apart(features_MD: np.ndarray, label_M: np.ndarray, part_M: np.ndarray) -> float:
    """Largest difference of logits at the strongest penalty, where scikit-learn converges soonest."""
    ours_M = linear_reader(features_MD, np.arange(len(label_M)), PENALTIES[:1])(label_M, part_M).score_M
    logistic = LogisticRegression(C=PENALTIES[0], **(CLASSICAL | {"tol": 1e-8, "max_iter": 10**4}))
    train_M = part_M == TRAIN
    pipeline = make_pipeline(StandardScaler(), logistic).fit(features_MD[train_M].astype(float), label_M[train_M])
    return float(np.abs(ours_M - pipeline.decision_function(features_MD.astype(float))).max())


def growth(sizes: tuple[int, ...], values: list[float]) -> float:
    """Exponent of a power law through the first and last value."""
    return math.log(values[-1] / values[0]) / math.log(sizes[-1] / sizes[0])


def measure(people: int, features: int) -> tuple[list[float], list[float]]:
    """Seconds of each number of splits; and of one split scikit-learn's, how far apart, ridge's, ComBat's."""
    features_MD, label_M = made_up(people, features)
    families_M = np.arange(people)
    parts_SM = draw_splits(label_M, families_M, max(SPLITS), 0.15, 0.15, seeded(people))
    reader = linear_reader(features_MD, families_M, PENALTIES)
    reader(label_M, parts_SM[0])
    found = [seconds(reader, label_M, parts_SM[:count]) for count in SPLITS]
    slow = reference_seconds(features_MD, label_M, parts_SM[0] == TRAIN)
    ridge = seconds(ridge_reader(features_MD, families_M, PENALTIES), label_M, parts_SM[:5]) / 5
    start = time.process_time()
    combat(features_MD, families_M % 10, parts_SM[0] == TRAIN)
    aligned = time.process_time() - start
    return found, [slow, apart(features_MD, label_M, parts_SM[0]), ridge, aligned]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--features", type=int, nargs="+", default=[19_900, 96])
    warnings.simplefilter("ignore", ConvergenceWarning)
    for features in parser.parse_args().features:
        print(f"{features} features, {len(PENALTIES)} strengths, {INNER_FOLDS} inner folds; seconds of one thread")
        counts = "".join(f"{count:>4} splits" for count in SPLITS)
        print(f"{'people':>8}{counts}{'exponent':>10}{'a split':>9}{'scikit':>8}{'ratio':>7}{'apart':>8}", end="")
        print(f"{'ridge':>7}{'ComBat':>8}")
        by_people = []
        for people in PEOPLE:
            found, (slow, difference, ridge, aligned) = measure(people, features)
            by_people.append(once := found[-1] / SPLITS[-1])
            print(f"{people:>8}" + "".join(f"{each:>11.2f}" for each in found), end="")
            print(
                f"{growth(SPLITS, found):>10.2f}{once:>9.3f}{slow:>8.2f}{slow / once:>7.0f}{difference:>8.0e}", end=""
            )
            print(f"{ridge:>7.3f}{aligned:>8.3f}")
        print(f"seconds a split grow as people^{growth(PEOPLE, by_people):.2f}\n")


if __name__ == "__main__":
    main()
