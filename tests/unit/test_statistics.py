"""AUROC, its interval and paired comparisons, against MLstatkit, scikit-learn, scipy and simulations of known truth."""

from __future__ import annotations

import numpy as np
import pytest
from binormal_scores import SIMULATIONS, area_of, assert_covers, siblings, two_classes, two_systems
from hypothesis import given, settings
from hypothesis import strategies as st
from MLstatkit import Delong_test
from scipy import special, stats
from sklearn import metrics

from pipeline.evaluate.statistics import auroc, auroc_interval, balanced_accuracy, compare_aurocs, weighted_auroc
from pipeline.intervals import bootstrap_interval, family_weights


@given(st.lists(st.tuples(st.booleans(), st.integers(-3, 3), st.integers(0, 3)), min_size=2, max_size=40))
def test_the_weighted_area_is_scikit_learns(people: list[tuple[bool, int, int]]) -> None:
    labels, scores, weights = (np.array(column, dtype=float) for column in zip(*people, strict=True))
    area = weighted_auroc(labels, scores, weights[None])[0]
    if weights @ labels and weights @ (1 - labels):
        assert area == pytest.approx(metrics.roc_auc_score(labels, scores, sample_weight=weights))
    else:
        assert np.isnan(area)


def test_a_score_that_knows_nothing_is_at_one_half() -> None:
    labels = np.array([0, 1, 1, 0, 1])
    assert auroc(labels, np.zeros(5)) == 0.5
    assert balanced_accuracy(labels, np.zeros(5)) == 0.5


@pytest.mark.parametrize("method", ["delong_logit", "bootstrap"])
def test_a_95_percent_interval_covers_the_true_area(method: str) -> None:
    rng, covered = np.random.default_rng(1), []
    for _ in range(SIMULATIONS):
        found = auroc_interval(*two_classes(rng, 40, 1.2), method=method, resamples=200, rng=rng)  # type: ignore[arg-type]
        covered.append(found.low <= area_of(1.2) <= found.high)
    assert_covers(0.95, covered)


@pytest.mark.parametrize("method", ["delong", "bootstrap"])
def test_a_95_percent_interval_covers_the_true_difference(method: str) -> None:
    rng, truth, covered = np.random.default_rng(2), area_of(1.2) - area_of(0.9), []
    for _ in range(SIMULATIONS):
        found = compare_aurocs(*two_systems(rng, 40), method=method, resamples=200, rng=rng)  # type: ignore[arg-type]
        covered.append(found.low <= truth <= found.high)
    assert_covers(0.95, covered)


def test_families_are_covered_by_the_bootstrap_and_not_by_treating_people_as_independent() -> None:
    rng, truth = np.random.default_rng(3), area_of(1.2) - area_of(0.9)
    area, difference, ignored = [], [], []
    for _ in range(SIMULATIONS):
        (labels, first, second), family = siblings(rng, 60, (1.2, 0.9))
        alone = auroc_interval(labels, first, family, resamples=200, rng=rng)
        area.append(alone.low <= area_of(1.2) <= alone.high)
        found = compare_aurocs(labels, first, second, family, resamples=200, rng=rng)
        difference.append(found.low <= truth <= found.high)
        alone = auroc_interval(labels, first, method="delong_logit")
        ignored.append(alone.low <= area_of(1.2) <= alone.high)
    assert_covers(0.95, area)
    assert_covers(0.95, difference)
    assert np.mean(ignored) < np.mean(area) - 0.02


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 30), st.integers(2, 30), st.sampled_from([0, 1, 2]))
def test_the_paired_test_is_mlstatkits(seed: int, positive: int, negative: int, decimals: int) -> None:
    rng = np.random.default_rng(seed)
    labels = np.repeat([1, 0], [positive, negative])
    first, second = np.round(rng.normal(labels, size=(2, len(labels))), decimals)  # with ties
    z, p_value, _, _, area_first, area_second, info = Delong_test(labels, first, second)
    found = compare_aurocs(labels, first, second)
    assert found.difference == pytest.approx(area_first - area_second, abs=1e-12)
    if info["method"] == "delong" and info["var_diff"] > 1e-12:
        assert found.p_value == pytest.approx(p_value, abs=1e-9)
        half = special.ndtri(0.975) * abs((area_second - area_first) / z) if z else 0
        if half and abs(found.difference) + half < 1:
            assert found.high - found.low == pytest.approx(2 * half, rel=1e-6)


def test_delongs_variance_is_the_one_of_all_pairs() -> None:
    """Of the pairs themselves, as DeLong wrote it down, with ties: no ranks."""
    labels, scores = two_classes(np.random.default_rng(4), 12, 1.0)
    scores = np.round(scores, 1)
    wins = np.array([[(p > q) + (p == q) / 2 for q in scores[labels == 0]] for p in scores[labels == 1]])
    error = np.sqrt(np.cov(wins.mean(1)) / 12 + np.cov(wins.mean(0)) / 12)
    constant = compare_aurocs(labels, scores, np.zeros(24))  # against a coin: the variance of one area
    assert constant.difference == pytest.approx(wins.mean() - 0.5)
    assert constant.high - constant.low == pytest.approx(2 * special.ndtri(0.975) * error)
    assert auroc(labels, scores) == pytest.approx(
        stats.mannwhitneyu(scores[labels == 1], scores[labels == 0]).statistic / 144
    )


def test_p_and_interval_are_one_statement() -> None:
    rng = np.random.default_rng(5)
    for method in ("delong", "bootstrap"):
        for _ in range(40):
            found = compare_aurocs(*two_systems(rng, 25, (1.2, 0.4)), method=method, resamples=100, rng=rng)  # type: ignore[arg-type]
            assert (found.p_value < 0.05) == (found.low > 0 or found.high < 0)


def test_the_two_methods_agree_and_swapping_the_systems_swaps_the_sign() -> None:
    labels, first, second = two_systems(np.random.default_rng(6), 150)
    delong, swapped = compare_aurocs(labels, first, second), compare_aurocs(labels, second, first)
    assert np.allclose(swapped[:4], [-delong.difference, -delong.high, -delong.low, delong.p_value])
    drawn = compare_aurocs(labels, first, second, method="bootstrap", resamples=4000)
    assert drawn.difference == delong.difference
    assert drawn.n == 300
    assert drawn.high - drawn.low == pytest.approx(delong.high - delong.low, rel=0.06)


def test_without_groups_people_are_independent_and_with_families_they_are_drawn_together() -> None:
    labels, first, second = two_systems(np.random.default_rng(7), 40)
    twice = [np.repeat(part, 2) for part in (labels, first, second)]
    twins = np.repeat(np.arange(80), 2)
    assert compare_aurocs(labels, first, second) == compare_aurocs(labels, first, second, method="delong")
    found = compare_aurocs(*twice, groups_N=twins, rng=np.random.default_rng(0))
    alone = compare_aurocs(labels, first, second, method="bootstrap", rng=np.random.default_rng(0))
    assert np.allclose(found[:4], alone[:4])
    with pytest.raises(ValueError, match="independent"):
        compare_aurocs(*twice, groups_N=twins, method="delong")


@pytest.mark.parametrize("method", ["delong", "bootstrap"])
def test_two_perfect_systems_are_not_known_to_be_equal(method: str) -> None:
    labels = np.repeat([0, 1], 24)
    found = compare_aurocs(labels, labels * 1.0, labels * 2.0, method=method)  # type: ignore[arg-type]
    bound = stats.binomtest(24, 24).proportion_ci().low  # Clopper-Pearson
    assert found[:4] == pytest.approx((0, bound - 1, 1 - bound, 1))
    apart = compare_aurocs(labels, labels * 1.0, -labels, method=method)  # type: ignore[arg-type]
    assert apart[:4] == pytest.approx((1, 1 - 2 * (1 - bound), 1, stats.binomtest(24, 24).pvalue))


@pytest.mark.parametrize("method", ["delong", "bootstrap"])
def test_one_person_of_a_class_has_an_area_but_no_interval(method: str) -> None:
    labels, scores = np.array([1, 0, 0, 0]), np.array([0.5, 0.1, 0.7, 0.2])
    found = compare_aurocs(labels, scores, -scores, method=method)  # type: ignore[arg-type]
    assert found.difference == pytest.approx(1 / 3)
    assert np.isnan(found[1:4]).all()
    assert np.isnan(auroc_interval(labels, scores)[1:]).all()


def test_an_absent_class_has_no_area() -> None:
    assert np.isnan(compare_aurocs(np.ones(4), np.arange(4), np.arange(4))[:4]).all()
    assert np.isnan(auroc_interval(np.zeros(4), np.arange(4))).all()
    assert np.isnan(auroc_interval(np.zeros(4), np.arange(4), method="delong_logit")).all()


@pytest.mark.parametrize(
    ("labels", "scores", "groups", "told"),
    [
        ([0, 1, 1], [0.1, 0.2], None, "shapes"),
        ([0, 1], [0.1, 0.2], [1, 2, 3], "shapes"),
        ([0, 1], [0.1, np.nan], None, "1 scores of 2 people are NaN"),
        ([-1, 1], [0.1, 0.2], None, "must be 0 and 1"),
        ([0, np.nan], [0.1, 0.2], None, "must be 0 and 1"),
        (["0", "1"], [0.1, 0.2], None, "must be 0 and 1"),
    ],
)
def test_people_who_do_not_fit_are_refused(labels: list, scores: list, groups: list | None, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        auroc_interval(np.array(labels), np.array(scores), groups)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=told):
        compare_aurocs(np.array(labels), np.array(scores), np.zeros(len(scores)), groups)  # type: ignore[arg-type]


def test_a_missing_score_is_never_the_highest() -> None:
    assert np.isnan(auroc(np.array([0, 1, 1]), np.array([0.1, 0.2, np.nan])))


def test_families_widen_the_interval_by_what_they_share() -> None:
    rng = np.random.default_rng(2)
    labels, scores = two_classes(rng, 100, 1.0)
    twins = np.repeat(np.arange(200), 2)
    both = np.repeat(labels, 2), np.repeat(scores, 2)
    alone = auroc_interval(labels, scores, resamples=2000, rng=rng)
    paired = auroc_interval(*both, groups_N=twins, resamples=2000, rng=rng)
    ignored = auroc_interval(*both, resamples=2000, rng=rng)
    assert paired.high - paired.low == pytest.approx(alone.high - alone.low, rel=0.1)
    assert ignored.high - ignored.low == pytest.approx((alone.high - alone.low) / np.sqrt(2), rel=0.1)
    with pytest.raises(ValueError, match="independent"):
        auroc_interval(*both, groups_N=twins, method="delong_logit")


def test_the_bootstrap_draws_whole_families() -> None:
    families = np.array(["a", "b", "a", "c", "b"])
    weights = family_weights(families, 200, np.random.default_rng(0))
    assert (weights[:, 0] == weights[:, 2]).all()
    assert (weights[:, [0, 1, 3]].sum(1) == 3).all()


def test_perfect_separation_is_not_reported_as_certain() -> None:
    labels = np.repeat([0, 1], 24)
    interval = auroc_interval(labels, labels.astype(float))
    assert interval.value == interval.high == 1
    assert interval.low == pytest.approx(0.025 ** (1 / 24))  # Clopper-Pearson, 24 of 24
    assert bootstrap_interval(np.ones(24)).low == interval.low
    assert bootstrap_interval(np.zeros(24)).high == pytest.approx(1 - interval.low)


def test_the_interval_of_a_mean_is_that_of_normal_theory() -> None:
    values = np.random.default_rng(3).normal(2, 1, 400)
    interval = bootstrap_interval(values, resamples=4000)
    half = 1.96 * values.std() / 20
    assert interval.high - interval.low == pytest.approx(2 * half, rel=0.06)
