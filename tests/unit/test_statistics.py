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
    holm,
    weighted_auroc,
)
from pipeline.intervals import bootstrap_interval, family_weights


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
