"""Do intervals hold what they promise, are equal systems left alone, and what do the tests cost?

Coverage of nominal 95 % intervals and errors of tests whose nominal level is 5 %, over simulations with known truth,
each beside a named reference: plain DeLong, percentiles, DeLong that knows of no families, the t test over splits.
Then seconds, as ratios against MLstatkit and a loop of scikit-learn over resamples. Run `make bench`, or this file.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import numpy as np
from MLstatkit import Delong_test
from scipy import special, stats
from sklearn.metrics import roc_auc_score

from pipeline.evaluate.statistics import (
    auroc,
    auroc_interval,
    compare_aurocs,
    corrected_repeated_cv_test,
    minimal_detectable_difference,
    weighted_auroc,
)
from pipeline.intervals import family_weights, percentile_interval

RESAMPLES, SHARED, BELOW = 500, 0.6, 0.1  # draws; correlation of two systems' scores; how much worse the second one is
PEOPLE, AREAS = (40, 100, 200), (0.6, 0.75, 0.9)
Scores = tuple[np.ndarray, np.ndarray, np.ndarray]


def distance(area: float) -> float:
    """Standard deviations between two normal classes whose AUROC is `area`."""
    return float(np.sqrt(2) * special.ndtri(area))


def independent(rng: np.random.Generator, people: int, areas: tuple[float, float]) -> tuple[Scores, None]:
    labels = np.repeat([0, 1], people // 2)
    return systems(labels, areas, lambda: rng.normal(size=people)), None


def siblings(rng: np.random.Generator, people: int, areas: tuple[float, float]) -> tuple[Scores, np.ndarray]:
    """Families of one to three; half of the variance of label and scores is theirs."""
    family = np.repeat(np.arange(people), rng.integers(1, 4, people))[:people]

    def trait() -> np.ndarray:
        return np.sqrt(0.5) * (rng.normal(size=people)[family] + rng.normal(size=people))

    return systems((trait() > 0).astype(int), areas, trait), family


def systems(labels: np.ndarray, areas: tuple[float, float], trait: Callable[[], np.ndarray]) -> Scores:
    shared = trait()
    own = [np.sqrt(SHARED) * shared + np.sqrt(1 - SHARED) * trait() for _ in areas]
    first, second = (labels * distance(area) + trait_N for area, trait_N in zip(areas, own, strict=True))
    return labels, first, second


def plain_delong(labels: np.ndarray, scores: np.ndarray) -> tuple[float, float]:
    """DeLong's interval without the logit: of the difference to a score that knows nothing."""
    found = compare_aurocs(labels, scores, np.zeros(len(labels)), method="delong")
    return found.low + 0.5, found.high + 0.5


def percentiles(labels: np.ndarray, scores: np.ndarray, rng: np.random.Generator) -> tuple[float, float]:
    weights = family_weights(np.arange(len(labels)), RESAMPLES, rng)
    return percentile_interval(auroc(labels, scores), weighted_auroc(labels, scores, weights))[1:]


def holds(ends: tuple[float, float], truth: float) -> float:
    return 100 * float(ends[0] <= truth <= ends[1])


def independent_row(rng: np.random.Generator, people: int, area: float) -> list[float]:
    """Whether each interval holds the truth, in percent."""
    (labels, first, second), _ = independent(rng, people, (area, area - BELOW))
    drawn = {"resamples": RESAMPLES, "rng": rng}
    return [
        holds(plain_delong(labels, first), area),
        holds(percentiles(labels, first, rng), area),
        holds(auroc_interval(labels, first, method="delong_logit")[1:], area),
        holds(auroc_interval(labels, first, **drawn)[1:], area),
        holds(compare_aurocs(labels, first, second, method="delong")[1:3], BELOW),
        holds(compare_aurocs(labels, first, second, method="bootstrap", **drawn)[1:3], BELOW),
    ]


def sibling_row(rng: np.random.Generator, people: int, area: float) -> list[float]:
    (labels, first, second), family = siblings(rng, people, (area, area - BELOW))
    drawn = {"resamples": RESAMPLES, "rng": rng}
    return [
        holds(auroc_interval(labels, first, method="delong_logit")[1:], area),
        holds(auroc_interval(labels, first, family, **drawn)[1:], area),
        holds(compare_aurocs(labels, first, second, method="delong")[1:3], BELOW),
        holds(compare_aurocs(labels, first, second, family, **drawn)[1:3], BELOW),
    ]


TABLES = {
    "independent people | AUROC | plain DeLong | percentiles of the bootstrap | DeLong-logit | bootstrap"
    " | difference: DeLong | difference: bootstrap": independent_row,
    "people, families of 1 to 3 | AUROC | DeLong-logit, families ignored | bootstrap over families"
    " | difference: DeLong, families ignored | difference: bootstrap over families": sibling_row,
}


def head(columns: str) -> None:
    print(f"| {columns} |\n|" + "---|" * (columns.count("|") + 1))


def print_coverage(simulations: int) -> None:
    error = 100 * np.sqrt(0.95 * 0.05 / simulations)
    print(
        f"Coverage in %, nominal 95; {simulations} simulations a row (Monte Carlo error {error:.1f} points),"
        f" {RESAMPLES} resamples; scores of two systems correlate at {SHARED}, the second's AUROC is {BELOW} lower\n"
    )
    for columns, row in TABLES.items():
        head(columns)
        for people in PEOPLE:
            for area in AREAS:
                rng = np.random.default_rng((people, round(100 * area)))
                shares = np.mean([row(rng, people, area) for _ in range(simulations)], axis=0)
                print(f"| {people} | {area:g} | " + " | ".join(f"{share:.1f}" for share in shares) + " |", flush=True)
        print()


def split_differences(rng: np.random.Generator, people: int, splits: int) -> tuple[np.ndarray, int, int]:
    """AUROC differences of two nearest-mean classifiers on different, equally good features; 70:15:15 splits."""
    labels = np.repeat([0, 1], people // 2)
    features = rng.normal(size=(2, people, 5)) + 0.8 * (labels[:, None] * (np.arange(5) == 0))
    train, test = round(0.35 * people), round(0.075 * people)
    order = rng.permuted(np.broadcast_to(np.arange(people).reshape(1, 2, -1), (splits, 2, people // 2)), axis=2)
    areas = []
    for features_ND in features:
        axis_SD = features_ND[order[:, 1, :train]].mean(1) - features_ND[order[:, 0, :train]].mean(1)
        tested_S2QD = features_ND[order[:, :, -test:]]
        score_S2Q = np.einsum("scqd,sd->scq", tested_S2QD, axis_SD)
        areas.append((score_S2Q[:, 1, :, None] > score_S2Q[:, 0, None, :]).mean((1, 2)))
    return areas[0] - areas[1], 2 * train, 2 * test


def print_false_alarms(simulations: int) -> None:
    error = 100 * np.sqrt(0.05 * 0.95 / simulations)
    print(
        f"Equal systems called different at p < .05, in %; {simulations} simulations a row (Monte Carlo error"
        f" {error:.1f} points at 5 %)\n"
    )
    head("people | splits 70:15:15 | t test over splits | corrected (Nadeau-Bengio)")
    for people in (60, 100, 200, 600):
        for splits in (10, 100):
            rng, false = np.random.default_rng((people, splits)), []
            for _ in range(simulations):
                differences, train, test = split_differences(rng, people, splits)
                corrected = corrected_repeated_cv_test(differences, train, test).p_value
                false.append([stats.ttest_1samp(differences, 0).pvalue < 0.05, corrected < 0.05])
            plain, ours = 100 * np.mean(false, axis=0)
            print(f"| {people} | {splits} | {plain:.1f} | {ours:.1f} |", flush=True)
    print()


def print_power(simulations: int) -> None:
    print(
        f"Found by paired DeLong at p < .05, in %, where the difference is the smallest detectable one (power 80 %) of"
        f" two systems around .75 whose scores correlate at {SHARED}; {simulations} simulations\n"
    )
    head("people a class | detectable | found | correlation of the two AUROCs")
    for per_class in (50, 100, 200, 500):
        rng, found = np.random.default_rng(per_class), []
        gap = minimal_detectable_difference(per_class, per_class)
        for _ in range(simulations):
            (labels, first, second), _ = independent(rng, 2 * per_class, (0.75 + gap / 2, 0.75 - gap / 2))
            p_value = compare_aurocs(labels, first, second, method="delong").p_value
            found.append([p_value < 0.05, auroc(labels, first), auroc(labels, second)])
        share, together = 100 * np.mean(found, axis=0)[0], np.corrcoef(np.array(found)[:, 1:].T)[0, 1]
        print(f"| {per_class} | {gap:.3f} | {share:.1f} | {together:.2f} |", flush=True)
    print()


def seconds(run: Callable[[], object], times: int = 3) -> float:
    """The fastest of several repetitions."""
    taken = []
    for _ in range(times):
        start = time.perf_counter()
        run()
        taken.append(time.perf_counter() - start)
    return min(taken)


def cost(people: int, rng: np.random.Generator) -> tuple[float, float, float, float]:
    """Seconds of the paired test and of 1,000 resamples, each with its reference after it."""
    (labels, first, second), _ = independent(rng, people, (0.8, 0.7))
    weights = family_weights(np.arange(people), 1000, rng)
    return (
        seconds(lambda: compare_aurocs(labels, first, second)),
        seconds(lambda: Delong_test(labels, first, second)),
        seconds(lambda: weighted_auroc(labels, first, weights)),
        20 * seconds(lambda: [roc_auc_score(labels, first, sample_weight=row) for row in weights[:50]]),
    )


def print_cost() -> None:
    head("people | paired DeLong, ms | MLstatkit : ours | 1,000 resamples, ms | loop of scikit-learn : ours")
    for people in (200, 2000, 20_000):
        ours, theirs, drawn, loop = cost(people, np.random.default_rng(people))
        print(f"| {people} | {1e3 * ours:.2f} | {theirs / ours:.1f} | {1e3 * drawn:.1f} | {loop / drawn:.0f} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--simulations", type=int, default=2000, help="of every row")
    simulations = parser.parse_args().simulations
    print_coverage(simulations)
    print_false_alarms(simulations)
    print_power(simulations)
    print_cost()


if __name__ == "__main__":
    main()
