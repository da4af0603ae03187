"""Probabilities and predicted numbers, against scikit-learn, scipy and what was planted."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import special, stats
from sklearn import metrics
from sklearn.calibration import calibration_curve as reference_curve
from sklearn.linear_model import LogisticRegression

from pipeline.evaluate.statistics import auroc, brier, calibration, calibration_curve, regression_scores
from pipeline.intervals import family_weights


def labelled(rng: np.random.Generator, people: int, slope: float, intercept: float) -> tuple[np.ndarray, np.ndarray]:
    """Labels whose chance has a logit of intercept + slope x logit of the probability that is returned."""
    logit = rng.normal(0, 1.5, people)
    return (rng.random(people) < special.expit(intercept + slope * logit)).astype(int), special.expit(logit)


def test_brier_is_scikit_learns_under_weights_too() -> None:
    rng = np.random.default_rng(12)
    labels, probability = labelled(rng, 60, 1, 0)
    weights = rng.integers(0, 3, size=(5, 60)).astype(float)
    expected = [metrics.brier_score_loss(labels, probability, sample_weight=row) for row in weights]
    assert brier(labels, probability, weights) == pytest.approx(expected)
    assert brier(labels, probability) == pytest.approx(((labels - probability) ** 2).mean())
    assert np.isnan(brier(labels, probability, np.zeros((1, 60)))).all()


def test_recalibration_is_the_maximum_likelihood_and_finds_what_was_planted() -> None:
    labels, probability = labelled(np.random.default_rng(13), 20_000, 0.6, -0.4)
    assert calibration(labels, probability) == pytest.approx((0.6, -0.4), abs=0.05)
    logit = special.logit(probability)[:, None]
    exact = LogisticRegression(C=np.inf, tol=1e-10).fit(logit[:200], labels[:200])
    found = calibration(labels[:200], probability[:200])
    assert found == pytest.approx((exact.coef_[0, 0], exact.intercept_[0]), rel=1e-4)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.integers(4, 40), st.floats(0.1, 4))
def test_recalibration_converges_wherever_an_answer_exists(seed: int, people: int, spread: float) -> None:
    rng = np.random.default_rng(seed)
    labels, logit = rng.integers(0, 2, people), rng.normal(0, spread, people)
    slope, intercept = calibration(labels, special.expit(logit))
    if np.isfinite(slope):
        left = labels - special.expit(intercept + slope * logit)
        assert abs(left.sum()) < 1e-5
        assert abs(left @ logit) < 1e-4
    else:
        assert auroc(labels, logit) in (0, 1) or len(set(labels)) == 1


def test_a_slope_that_does_not_exist_is_not_a_number() -> None:
    for labels, probability in (
        ([0, 0, 1, 1], [0.1, 0.2, 0.2, 0.9]),  # separated, up to a tie
        ([0, 1, 0, 1], [0.5, 0.5, 0.5, 0.5]),
        ([1, 1], [0.2, 0.3]),
        ([0, 1, 0, 1], [0.2, 0.1, 0.3, np.nan]),
    ):
        assert np.isnan(calibration(np.array(labels), np.array(probability))).all()
    with pytest.raises(ValueError, match="logits"):
        calibration(np.array([0, 1]), np.array([-1.2, 0.3]))


def test_the_curve_is_scikit_learns_in_bins_of_equal_numbers() -> None:
    labels, probability = labelled(np.random.default_rng(14), 500, 1, 0)
    observed, predicted = reference_curve(labels, probability, n_bins=10, strategy="quantile")
    found = calibration_curve(labels, probability)
    assert found.predicted_K == pytest.approx(predicted)
    assert found.observed_K == pytest.approx(observed)
    assert found.n_K.tolist() == [50] * 10
    tied = calibration_curve(np.array([0, 1, 0, 1]), np.array([0.2, 0.2, 0.2, 0.7]))
    assert tied.n_K.tolist() == [3, 1]
    with pytest.raises(ValueError, match="is NaN"):
        calibration_curve(labels, np.full(500, np.nan))


def test_scores_of_a_number_are_scikit_learns_and_scipys() -> None:
    rng = np.random.default_rng(15)
    target = rng.normal(50, 10, 80)
    predicted = target + rng.normal(3, 8, 80)
    found = {name: values[0] for name, values in regression_scores(target, predicted).items()}
    assert found == pytest.approx(
        {
            "mse": metrics.mean_squared_error(target, predicted),
            "mae": metrics.mean_absolute_error(target, predicted),
            "pearson_r": stats.pearsonr(target, predicted).statistic,
            "r2": metrics.r2_score(target, predicted),
        }
    )
    weights = family_weights(np.arange(80), 6, rng)
    rows = regression_scores(target, predicted, weights)
    for row, weight in enumerate(weights.astype(int)):
        drawn = np.repeat(target, weight), np.repeat(predicted, weight)
        assert rows["pearson_r"][row] == pytest.approx(stats.pearsonr(*drawn).statistic)
        assert rows["r2"][row] == pytest.approx(metrics.r2_score(*drawn))
        assert rows["mae"][row] == pytest.approx(metrics.mean_absolute_error(*drawn))


def test_r2_is_against_the_mean_of_those_who_were_trained_on() -> None:
    target = np.array([1.0, 2.0, 3.0])
    assert regression_scores(target, np.full(3, 5.0), baseline=5.0)["r2"] == pytest.approx(0)  # no better than it
    assert regression_scores(target, target, baseline=5.0)["r2"] == pytest.approx(1)
    each = regression_scores(target, np.full(3, 2.0), baseline=np.array([5.0, 4.0, 5.0]))["r2"]
    assert each == pytest.approx(1 - 2 / 24)


def test_a_number_without_variance_has_no_correlation() -> None:
    target = np.array([0.1, 0.1, 0.1, 0.4])
    for predicted, weights in ((np.full(4, 0.3), np.ones((1, 4))), (target, np.array([[1.0, 2, 1, 0]]))):
        assert np.isnan(regression_scores(target, predicted, weights)["pearson_r"]).all()
    assert np.isnan(regression_scores(target, np.array([1, 2, 3, np.nan]))["mse"]).all()
    with pytest.raises(ValueError, match=r"targets have shape \(4,\)"):
        regression_scores(target, target[:3])
