"""Intervals and tests, against scikit-learn, closed forms and simulations whose truth is known."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn.metrics import roc_auc_score

from pipeline.evaluate.statistics import (
    auroc,
    auroc_interval,
    balanced_accuracy,
    bootstrap_interval,
    compare_aurocs,
    corrected_repeated_cv_test,
    family_weights,
    holm,
    weighted_auroc,
)


def two_classes(rng: np.random.Generator, per_class: int, distance: float) -> tuple[np.ndarray, np.ndarray]:
    labels = np.repeat([0, 1], per_class)
    return labels, rng.normal(labels * distance, 1)


@given(st.lists(st.tuples(st.booleans(), st.integers(-3, 3), st.integers(0, 3)), min_size=2, max_size=40))
def test_the_weighted_area_is_scikit_learns(people: list[tuple[bool, int, int]]) -> None:
    labels, scores, weights = (np.array(column, dtype=float) for column in zip(*people, strict=True))
    area = weighted_auroc(labels, scores, weights[None])[0]
    if weights @ labels and weights @ (1 - labels):
        assert area == pytest.approx(roc_auc_score(labels, scores, sample_weight=weights))
    else:
        assert np.isnan(area)


def test_a_score_that_knows_nothing_is_at_one_half() -> None:
    labels = np.array([0, 1, 1, 0, 1])
    assert auroc(labels, np.zeros(5)) == 0.5
    assert balanced_accuracy(labels, np.zeros(5)) == 0.5


@pytest.mark.parametrize("method", ["delong_logit", "bootstrap"])
def test_a_95_percent_interval_covers_the_true_area(method: str) -> None:
    rng, distance = np.random.default_rng(1), 1.2
    truth = stats.norm.cdf(distance / np.sqrt(2))  # binormal model
    found = [
        auroc_interval(*two_classes(rng, 40, distance), method=method, resamples=300, rng=rng)  # type: ignore[arg-type]
        for _ in range(500)
    ]
    coverage = np.mean([interval.low <= truth <= interval.high for interval in found])
    assert 0.92 <= coverage <= 0.98


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


@pytest.mark.parametrize("method", ["delong", "bootstrap"])
def test_two_equal_systems_differ_significantly_in_one_of_twenty_studies(method: str) -> None:
    rng, p_values, covered = np.random.default_rng(4), [], []
    for _ in range(400):
        labels, shared = two_classes(rng, 50, 1.0)
        ours, theirs = (shared + rng.normal(0, 0.7, 100) for _ in range(2))
        found = compare_aurocs(labels, ours, theirs, method=method, resamples=300, rng=rng)  # type: ignore[arg-type]
        p_values.append(found.p_value)
        covered.append(found.low <= 0 <= found.high)
    assert np.mean(np.array(p_values) < 0.05) <= 0.08
    assert np.mean(covered) >= 0.92


def test_delong_and_bootstrap_agree_on_a_real_difference() -> None:
    rng = np.random.default_rng(5)
    labels, shared = two_classes(rng, 150, 1.0)
    ours, theirs = shared + rng.normal(0, 0.3, 300), shared + rng.normal(0, 2.0, 300)
    exact = compare_aurocs(labels, ours, theirs, method="delong")
    drawn = compare_aurocs(labels, ours, theirs, resamples=4000)
    assert exact.p_value < 0.01
    assert drawn.p_value < 0.01
    assert np.allclose(exact[:3], drawn[:3], atol=0.01)


def test_a_system_against_itself_does_not_differ() -> None:
    labels, scores = two_classes(np.random.default_rng(6), 20, 1.0)
    for method in ("delong", "bootstrap"):
        found = compare_aurocs(labels, scores, scores, method=method)  # type: ignore[arg-type]
        assert found == (0, 0, 0, 1)


def test_delong_is_the_sum_over_structural_components() -> None:
    rng = np.random.default_rng(7)
    labels, scores = two_classes(rng, 12, 0.8)
    others = np.round(scores + rng.normal(0, 1, 24))  # ties
    kernels = [
        (s[labels == 1][:, None] > s[labels == 0]) + 0.5 * (s[labels == 1][:, None] == s[labels == 0])
        for s in (scores, others)
    ]
    contrast = kernels[0] - kernels[1]
    error = np.sqrt(contrast.mean(1).var(ddof=1) / 12 + contrast.mean(0).var(ddof=1) / 12)
    found = compare_aurocs(labels, scores, others, method="delong")
    assert found.high - found.difference == pytest.approx(stats.norm.ppf(0.975) * error)


def test_repeated_splits_are_a_t_test_when_they_do_not_overlap() -> None:
    differences = np.random.default_rng(8).normal(0.3, 1, 25)
    found = corrected_repeated_cv_test(differences, train=10**9, test=1)
    reference = stats.ttest_1samp(differences, 0)
    assert found.p_value == pytest.approx(reference.pvalue, rel=1e-4)
    assert (found.low, found.high) == pytest.approx(tuple(reference.confidence_interval()), rel=1e-4)


def test_overlap_of_splits_widens_the_interval_as_nadeau_and_bengio_say() -> None:
    differences = np.random.default_rng(9).normal(0.3, 1, 100)
    narrow = corrected_repeated_cv_test(differences, train=10**9, test=1)
    wide = corrected_repeated_cv_test(differences, train=70, test=15)
    ratio = np.sqrt((1 / 100 + 15 / 70) / (1 / 100))
    assert (wide.high - wide.low) / (narrow.high - narrow.low) == pytest.approx(ratio, rel=1e-4)
    assert wide.p_value > narrow.p_value


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
