"""Tests over splits, pooling and many tests, against scipy, metafor, R, closed forms and simulations of known truth."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from binormal_scores import SIMULATIONS, two_systems
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import special, stats

from pipeline.evaluate.statistics import (
    auroc,
    compare_aurocs,
    corrected_repeated_cv_test,
    holm,
    minimal_detectable_difference,
    pooled_effect,
)


def test_holm_is_what_r_prints() -> None:
    # p.adjust(c(0.01, 0.04, 0.03, 0.005), "holm") in R
    assert holm(np.array([0.01, 0.04, 0.03, 0.005])) == pytest.approx([0.03, 0.06, 0.06, 0.02])


@settings(max_examples=50)
@given(st.lists(st.floats(0, 1), max_size=12))
def test_holm_only_raises_p_values_and_keeps_their_order(p_values: list[float]) -> None:
    adjusted = holm(np.array(p_values))
    assert (adjusted >= p_values).all()
    assert (adjusted <= 1).all()
    assert (np.diff(adjusted[np.argsort(p_values)]) >= 0).all()


def test_a_missing_p_value_is_no_test() -> None:
    assert np.array_equal(holm(np.array([0.02, np.nan])), [0.02, np.nan], equal_nan=True)


def test_the_corrected_test_is_a_t_test_whose_splits_are_worth_fewer() -> None:
    differences = np.random.default_rng(8).normal(0.02, 0.05, 30)
    plain = stats.ttest_1samp(differences, 0)
    none = corrected_repeated_cv_test(differences, 1e12, 1)  # test parts that overlap with nothing
    assert (none.statistic, none.p_value) == pytest.approx((plain.statistic, plain.pvalue))
    assert none[1:3] == pytest.approx(tuple(plain.confidence_interval()))
    found = corrected_repeated_cv_test(differences, 70, 15)
    shrunk = plain.statistic / np.sqrt(1 + 30 * 15 / 70)
    assert found.statistic == pytest.approx(shrunk)
    assert found.p_value == pytest.approx(2 * stats.t.sf(abs(shrunk), 29))
    assert found.mean == pytest.approx(differences.mean())
    assert found.splits == 30


def test_more_splits_of_the_same_people_are_not_more_evidence() -> None:
    few = np.tile([-0.02, 0.06], 10)
    p_values = [corrected_repeated_cv_test(np.tile(few, more), 70, 15).p_value for more in (1, 10, 100)]
    assert p_values[2] > 0.2
    assert stats.ttest_1samp(np.tile(few, 100), 0).pvalue < 1e-6


def test_splits_that_are_missing_or_all_alike() -> None:
    values = np.array([0.1, 0.3, 0.2])
    assert corrected_repeated_cv_test(np.append(values, np.nan), 7, 2) == corrected_repeated_cv_test(values, 7, 2)
    for few, mean in (([], np.nan), ([np.nan, 0.1], 0.1)):
        found = corrected_repeated_cv_test(np.array(few), 7, 2)
        assert found[:5] == pytest.approx((mean, *[np.nan] * 4), nan_ok=True)
    assert corrected_repeated_cv_test(np.zeros(5), 7, 2).p_value == 1
    assert np.isnan(corrected_repeated_cv_test(np.full(5, 0.1), 7, 2).p_value)
    with pytest.raises(ValueError, match="must be above 0"):
        corrected_repeated_cv_test(values, 0, 2)


def null_splits(rng: np.random.Generator, people: int, splits: int) -> np.ndarray:
    """AUROC differences of two nearest-mean classifiers that see different, equally good halves of the features."""
    labels = np.repeat([0, 1], people // 2)
    features = rng.normal(size=(2, people, 5)) + 0.8 * (labels[:, None] * (np.arange(5) == 0))
    train, test, differences = round(0.35 * people), round(0.075 * people), []
    for _ in range(splits):
        order = rng.permuted(np.arange(people).reshape(2, -1), axis=1)
        tested = order[:, -test:].ravel()
        axes = features[:, order[1, :train]].mean(1) - features[:, order[0, :train]].mean(1)
        areas = [auroc(labels[tested], features[k, tested] @ axes[k]) for k in range(2)]
        differences.append(areas[0] - areas[1])
    return np.array(differences)


def test_repeated_splits_of_a_null_are_called_different_far_less_often_than_by_the_plain_t_test() -> None:
    rng, corrected, plain = np.random.default_rng(9), [], []
    for _ in range(250):
        differences = null_splits(rng, 100, 30)
        corrected.append(corrected_repeated_cv_test(differences, 70, 15).p_value < 0.05)
        plain.append(stats.ttest_1samp(differences, 0).pvalue < 0.05)
    assert np.mean(corrected) < 0.05 + 3 * np.sqrt(0.05 * 0.95 / 250)
    assert np.mean(plain) > 0.35


def test_the_smallest_difference_that_can_be_found_is_the_tables() -> None:
    # shared/methods.md, section 4: .122, .086, .061, .038; over 6 data sets x 3 baselines .167, .118, .083, .053
    sizes = (50, 100, 200, 500)
    assert [round(minimal_detectable_difference(n, n), 3) for n in sizes] == [0.122, 0.086, 0.061, 0.038]
    family = [round(minimal_detectable_difference(n, n, significance=0.05 / 18), 3) for n in sizes]
    assert family == [0.167, 0.118, 0.083, 0.053]
    assert np.isnan(minimal_detectable_difference(0, 10))
    assert minimal_detectable_difference(50, 500) == minimal_detectable_difference(500, 50)
    with pytest.raises(ValueError, match="correlation is 1"):
        minimal_detectable_difference(50, 50, correlation=1)


def test_that_difference_is_found_in_four_of_five_repeats() -> None:
    rng = np.random.default_rng(10)
    gap = minimal_detectable_difference(100, 100)
    distances = tuple(np.sqrt(2) * special.ndtri([0.75 + gap / 2, 0.75 - gap / 2]))
    found = [compare_aurocs(*two_systems(rng, 100, distances)).p_value < 0.05 for _ in range(600)]  # type: ignore[arg-type]
    assert np.mean(found) == pytest.approx(0.8, abs=0.06)  # the areas of scores that correlate at .6 do so at about .56


def test_the_pooled_effect_is_the_published_one() -> None:
    """BCG vaccine against tuberculosis, 13 trials (Colditz 1994), as R's metafor prints it for method = "DL"."""
    ill, well, control_ill, control_well = np.array(BCG, dtype=float).T
    estimates = np.log(ill / (ill + well)) - np.log(control_ill / (control_ill + control_well))
    variances = 1 / ill - 1 / (ill + well) + 1 / control_ill - 1 / (control_ill + control_well)
    found = pooled_effect(estimates, np.sqrt(variances))
    assert found.mean == pytest.approx(-0.7141, abs=5e-5)
    assert found.tau2 == pytest.approx(0.3088, abs=5e-5)
    normal_half = (1.0644 - 0.3638) / 2  # its interval without Hartung and Knapp: [-1.0644, -0.3638]
    q = ((estimates - found.mean) ** 2 / (variances + found.tau2)).sum() / 12
    expected = normal_half * stats.t.ppf(0.975, 12) / special.ndtri(0.975) * np.sqrt(max(1, q))
    assert (found.high - found.low) / 2 == pytest.approx(expected, rel=1e-3)


BCG = [
    (4, 119, 11, 128),
    (6, 300, 29, 274),
    (3, 228, 11, 209),
    (62, 13536, 248, 12619),
    (33, 5036, 47, 5761),
    (180, 1361, 372, 1079),
    (8, 2537, 10, 619),
    (505, 87886, 499, 87892),
    (29, 7470, 45, 7232),
    (17, 1699, 65, 1600),
    (186, 50448, 141, 27197),
    (5, 2493, 3, 2338),
    (27, 16886, 29, 17825),
]


def test_the_pooled_interval_covers_the_true_mean_of_six_data_sets() -> None:
    rng, covered = np.random.default_rng(11), []
    for _ in range(SIMULATIONS):
        errors = rng.uniform(0.02, 0.06, 6)
        found = pooled_effect(rng.normal(0.05, np.sqrt(0.03**2 + errors**2)), errors)
        covered.append(found.low <= 0.05 <= found.high)
    assert 0.93 < np.mean(covered) < 0.99  # the bound of Roever makes it careful


def test_pooling_equal_estimates_one_estimate_or_none() -> None:
    same = pooled_effect(np.full(4, 0.3), np.full(4, 0.1))
    assert (same.mean, same.tau2) == pytest.approx((0.3, 0))
    assert same.high - same.mean == pytest.approx(stats.t.ppf(0.975, 3) * 0.05)
    alone = pooled_effect(np.array([0.3, np.nan]), np.array([0.1, 0.1]))
    assert alone[:3] == pytest.approx((0.3, 0.3 - 0.19600, 0.3 + 0.19600), abs=1e-5)
    assert np.isnan(pooled_effect(np.array([]), np.array([]))).all()
    with pytest.raises(ValueError, match="above 0"):
        pooled_effect(np.array([0.1, 0.2]), np.array([0.1, 0.0]))
    with pytest.raises(ValueError, match="data sets"):
        pooled_effect(np.array([0.1, 0.2]), np.array([0.1]))


def test_holm_keeps_equal_systems_from_being_told_apart_by_chance() -> None:
    """Four equal systems, six comparisons: Holm keeps the chance of any false claim at 5 %."""
    rng, false = np.random.default_rng(16), []
    for _ in range(200):
        labels = np.repeat([0, 1], 40)
        systems = rng.normal(labels, 1, size=(4, 80))
        p_values = [compare_aurocs(labels, systems[i], systems[j]).p_value for i, j in combinations(range(4), 2)]
        false.append((holm(np.array(p_values)) < 0.05).any())
    assert np.mean(false) < 0.05 + 3 * np.sqrt(0.05 * 0.95 / 200)
