"""Splits and linear readers, against scikit-learn and people whose labels were planted."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from pipeline.errors import InputError
from pipeline.evaluate.probes.linear import (
    Kind,
    balanced_weights,
    fit_logistic,
    inner_folds,
    linear_reader,
    ridge_reader,
    standardise,
    training_span,
)
from pipeline.evaluate.probes.newton import LOGISTIC, SQUARED, fit_linear
from pipeline.evaluate.reading import Reader
from pipeline.evaluate.splits import TEST, TRAIN, VALIDATION, draw_shots, draw_splits, halving, partition, seeded
from pipeline.evaluate.statistics import auroc

PENALTIES = (0.001, 0.01, 0.1, 1.0)
SHAPES = [(60, 8), (40, 39), (30, 400), (40, 3000)]  # people, features; the last is summed in single precision


def planted(people: int, features: int, effect: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng, labels = np.random.default_rng(seed), np.arange(people) % 2
    features_ND = rng.normal(0, 1, (people, features))
    features_ND[:, 0] += effect * labels
    return features_ND, labels


# --- splits


@given(st.lists(st.tuples(st.integers(0, 12), st.booleans()), min_size=4, max_size=60), st.integers(0, 99))
def test_a_family_is_never_divided(people: list[tuple[int, bool]], seed: int) -> None:
    families, labels = (np.array(column) for column in zip(*people, strict=True))
    part = partition(labels, families, (0.15, 0.15, 0.7), np.random.default_rng(seed))
    assert all(len(set(part[families == family])) == 1 for family in families)


def test_every_split_holds_both_classes_in_the_asked_shares() -> None:
    labels = np.repeat([0, 1], [160, 40])
    parts = draw_splits(labels, np.arange(200), 20, 0.15, 0.15, seeded("shares"))
    for label, count in ((0, 160), (1, 40)):
        for part, share in ((TEST, 0.15), (VALIDATION, 0.15), (TRAIN, 0.7)):
            assert np.abs((parts[:, labels == label] == part).sum(1) - share * count).max() <= 1


def test_everybody_is_tested_equally_often() -> None:
    parts = draw_splits(np.arange(60) % 2, np.arange(60), 2000, 0.15, 0.15, seeded("fair"))
    share = (parts == TEST).mean(0)
    assert np.abs(share - share.mean()).max() < 4.5 * np.sqrt(0.15 * 0.85 / 2000)


def test_siblings_are_tested_as_often_as_anybody() -> None:
    """Of 48 people, 6 in pairs: a rule that seats families where most is missing never tests them."""
    families = np.concatenate([np.arange(42), [42, 42, 43, 43, 44, 44]])
    parts = draw_splits(np.arange(48) % 2, families, 2000, 0.15, 0.15, seeded("siblings"))
    share = (parts == TEST).mean(0)
    assert abs(share[42:].mean() - share[:42].mean()) < 0.03


def test_splits_hang_on_the_seed_alone() -> None:
    labels = np.arange(40) % 2
    first, again, other = (draw_splits(labels, np.arange(40), 5, 0.15, 0.15, seeded(key)) for key in ("a", "a", "b"))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_too_few_people_of_a_class_are_refused_with_their_number() -> None:
    with pytest.raises(InputError, match=r"dx: found 3 positive and 37 negative people"):
        draw_splits(np.repeat([0, 1], [37, 3]), np.arange(40), 5, 0.15, 0.15, seeded(0), "dx")


def test_families_too_large_to_divide_are_refused() -> None:
    with pytest.raises(InputError, match="families too large"):
        draw_splits(np.arange(40) % 2, np.arange(40) // 20, 5, 0.15, 0.15, seeded(0))


@settings(max_examples=30)
@given(st.lists(st.tuples(st.integers(0, 25), st.booleans()), min_size=30, max_size=60), st.integers(1, 5))
def test_a_few_shots_are_as_many_as_asked_and_no_relative_is_tested(people: list[tuple[int, bool]], k: int) -> None:
    families, labels = (np.array(column) for column in zip(*people, strict=True))
    try:
        parts = draw_shots(labels, families, k, 3, np.random.default_rng(0))
    except ValueError:
        assume(False)
    for part in parts:
        assert [(labels[part == TRAIN] == label).sum() for label in (0, 1)] == [k, k]
        assert not set(families[part == TRAIN]) & set(families[part == TEST])
        assert (part == TEST).any()


def test_more_shots_than_families_are_refused() -> None:
    with pytest.raises(ValueError, match="10 people a class"):
        draw_shots(np.arange(20) % 2, np.arange(20), 10, 3, np.random.default_rng(0))


# --- fits


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("strength", [0.001, 0.1, 10.0])
def test_logits_are_scikit_learns(shape: tuple[int, int], strength: float) -> None:
    features_ND, labels = planted(*shape, 1.5)
    labels[:5] = 1  # unbalanced
    weights = balanced_weights(labels, np.ones((1, len(labels)), dtype=bool))
    logits = fit_logistic(features_ND, labels, weights, np.array([strength]))[0]
    reference = LogisticRegression(C=strength, class_weight="balanced", tol=1e-10, max_iter=10**5)
    assert np.allclose(logits, reference.fit(features_ND, labels).decision_function(features_ND), atol=1e-4)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.floats(0.1, 100), st.floats(0, 30))
def test_the_fit_ends_at_a_minimum(seed: int, strength: float, effect: float) -> None:
    features_ND, labels = planted(24, 6, effect, seed)
    weights = np.ones((1, 24))
    logits = fit_logistic(features_ND, labels, weights, np.array([strength]))[0]
    design = np.column_stack([features_ND, np.ones(24)])
    beta = np.linalg.lstsq(design, logits, rcond=None)[0]
    slope = strength * (1 / (1 + np.exp(-logits)) - labels) @ design + np.append(beta[:-1], 0)
    assert np.abs(slope).max() < 1e-4 * strength


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 40), st.floats(0.001, 1000))
def test_least_squares_are_scikit_learns_ridge(seed: int, features: int, strength: float) -> None:
    rng = np.random.default_rng(seed)
    features_ND, target_N, weights_N = rng.normal(0, 1, (25, features)), rng.normal(0, 1, 25), rng.uniform(0, 2, 25)
    scores = fit_linear(features_ND, target_N, weights_N[None], np.array([strength]), SQUARED)[0]
    reference = Ridge(alpha=1 / strength).fit(features_ND, target_N, sample_weight=weights_N)
    assert np.allclose(scores, reference.predict(features_ND), atol=1e-4)


def test_fits_solved_at_once_are_those_solved_alone() -> None:
    features_ND, labels = planted(40, 12, 1.0)
    weights_BN = np.random.default_rng(0).uniform(0, 1, (5, 40)) * (np.arange(40) % 5 != np.arange(5)[:, None])
    strengths_B = np.array([1e-4, 0.01, 1, 100, 0.1])
    together_BN = fit_linear(features_ND, labels, weights_BN, strengths_B, LOGISTIC)
    alone = [fit_linear(features_ND, labels, weights_BN[[fit]], strengths_B[[fit]], LOGISTIC)[0] for fit in range(5)]
    assert np.allclose(together_BN, alone, atol=1e-4)


def test_people_of_weight_zero_are_not_seen() -> None:
    features_ND, labels = planted(40, 12, 1.0)
    weights_1N = (np.arange(40) < 30).astype(float)[None]
    other_ND = np.where(weights_1N.T > 0, features_ND, 1e3)
    first, again = (fit_logistic(each, labels, weights_1N, np.ones(1))[0, :30] for each in (features_ND, other_ND))
    assert np.allclose(first, again, atol=1e-9)
    assert (fit_logistic(features_ND, labels, np.zeros((1, 40)), np.ones(1)) == 0).all()


# --- readers


def half_and_test(people: int, trained: int) -> np.ndarray:
    return np.where(np.arange(people) < trained, TRAIN, TEST)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_reader_of_labels_is_scikit_learns_pipeline(shape: tuple[int, int]) -> None:
    features_ND, labels = planted(*shape, 2.0)
    features_ND = features_ND * np.linspace(0.1, 30, shape[1]) + 7
    features_ND[:, 1] = 5  # constant
    part, trained = half_and_test(len(labels), 24), slice(24)
    for strength in (0.001, 1.0):
        ours = linear_reader(features_ND, np.arange(len(labels)), [strength])(labels, part)
        logistic = LogisticRegression(C=strength, class_weight="balanced", tol=1e-10, max_iter=10**5)
        reference = make_pipeline(StandardScaler(), logistic).fit(features_ND[trained], labels[trained])
        assert np.allclose(ours.score_M, reference.decision_function(features_ND), atol=1e-4)
        assert ours.chosen == f"C={strength:g}"


@pytest.mark.parametrize("shape", SHAPES)
def test_a_reader_of_numbers_is_scikit_learns_ridge_of_the_scaled_target(shape: tuple[int, int]) -> None:
    features_ND, _ = planted(*shape, 0.0)
    age = 40 + 9 * features_ND[:, 0] + np.random.default_rng(1).normal(0, 3, len(features_ND))
    part, trained = half_and_test(len(age), 24), slice(24)
    mean, unit = age[trained].mean(), age[trained].std()
    for make in (linear_reader, ridge_reader):
        ours = make(features_ND, np.arange(len(age)), [0.1], "number")(age, part)
        reference = make_pipeline(StandardScaler(), Ridge(alpha=10)).fit(
            features_ND[trained], (age[trained] - mean) / unit
        )
        assert np.allclose(ours.score_M, mean + unit * reference.predict(features_ND), atol=1e-3)
        assert ours.chosen == "alpha=10"


def test_a_ridge_of_labels_is_scikit_learns_on_minus_and_plus_one() -> None:
    features_ND, labels = planted(40, 100, 1.0)
    labels[:9] = 1
    part, trained = half_and_test(40, 28), slice(28)
    ours = ridge_reader(features_ND, np.arange(40), [0.01])(labels, part).score_M
    scaler, ridge = StandardScaler().fit(features_ND[trained]), Ridge(alpha=100)
    weights = balanced_weights(labels[trained], np.ones((1, 28), dtype=bool))[0]
    ridge.fit(scaler.transform(features_ND[trained]), 2.0 * labels[trained] - 1, sample_weight=weights)
    assert np.allclose(ours, 2 * ridge.predict(scaler.transform(features_ND)), atol=1e-4)


def test_single_precision_of_wide_features_moves_no_logit() -> None:
    features_ND, labels = planted(50, 2500, 3.0)
    part = half_and_test(50, 35)
    wide, single = (
        linear_reader(each, np.arange(50), PENALTIES)(labels, part).score_M
        for each in (features_ND, features_ND.astype(np.float32))
    )
    narrow_NR = training_span(features_ND, part == TRAIN)
    scaled_ND = standardise(features_ND, part == TRAIN)
    assert np.allclose(narrow_NR @ narrow_NR[:35].T, scaled_ND @ scaled_ND[:35].T, atol=0.01)  # of 2500
    assert np.allclose(wide, single, atol=1e-4)


def test_inner_scores_are_of_fits_that_did_not_see_the_person() -> None:
    features_ND, labels = planted(60, 5, 1.0)
    families, part = np.arange(60) // 2, draw_splits(labels, np.arange(60) // 2, 1, 0.15, 0.15, seeded("inner"))[0]
    train = part == TRAIN
    read = linear_reader(features_ND, families, PENALTIES)(labels, part)
    assert np.array_equal(np.isfinite(read.inner_M), train)
    strength, span_NR = float(read.chosen.removeprefix("C=")), training_span(features_ND, train)
    for held in inner_folds(labels, families, train):
        assert not set(families[held]) & set(families[train & ~held])
        logistic = LogisticRegression(C=strength, class_weight="balanced", tol=1e-10, max_iter=10**5)
        logistic.fit(span_NR[train & ~held], labels[train & ~held])
        assert np.allclose(read.inner_M[held], logistic.decision_function(span_NR[held]), atol=1e-4)


def test_inner_folds_hold_every_training_person_once() -> None:
    train = np.arange(60) < 42
    held_KN = inner_folds(np.arange(60) % 2, np.arange(60), train)
    assert np.array_equal(held_KN.sum(0), train.astype(int))


def test_few_people_take_the_middle_strength_and_have_no_inner_scores() -> None:
    features_ND, labels = planted(40, 6, 1.0)
    read = linear_reader(features_ND, np.arange(40), [0.01, 1, 0.1])(labels, half_and_test(40, 6))
    assert read.chosen == "C=0.1"
    assert np.isnan(read.inner_M).all()
    assert np.isfinite(read.score_M).all()


@pytest.mark.parametrize(("kind", "target"), [("classes", np.arange(20) // 10), ("number", np.arange(20) // 10 * 3.0)])
def test_a_training_part_that_cannot_teach_gives_gaps(kind: Kind, target: np.ndarray) -> None:
    features_ND = np.random.default_rng(0).normal(0, 1, (20, 4))
    for make in (linear_reader, ridge_reader):
        read = make(features_ND, np.arange(20), PENALTIES, kind)(target, half_and_test(20, 10))
        assert np.isnan(read.score_M).all()


def test_no_feature_at_all_leaves_every_label_undecided() -> None:
    for features_MD in (np.zeros((40, 0)), np.ones((40, 3)), np.full((40, 2), np.nan)):
        read = linear_reader(features_MD, np.arange(40), PENALTIES)(np.arange(40) % 3 // 2, half_and_test(40, 28))
        assert np.allclose(read.score_M, 0, atol=1e-6)


def test_scores_do_not_hang_on_who_else_is_tested_nor_on_their_labels() -> None:
    for features in (12, 1500):
        features_ND, labels = planted(40, features, 1.0)
        part = half_and_test(40, 28)
        changed, flipped = features_ND.copy(), labels.copy()
        changed[30:] *= 100
        flipped[28:] = 1 - flipped[28:]
        first, again = (
            linear_reader(each, np.arange(40), PENALTIES)(target, part).score_M
            for each, target in ((features_ND, labels), (changed, flipped))
        )
        assert np.allclose(first[:30], again[:30], atol=1e-6)


def test_features_may_be_fitted_and_harmonised_in_the_training_part() -> None:
    features_ND, labels = planted(40, 6, 1.0)
    part, asked = half_and_test(40, 28), []

    def fitted(train_M: np.ndarray) -> np.ndarray:
        asked.append(int(train_M.sum()))
        return features_ND

    def double_the_first(features_MD: np.ndarray, train_M: np.ndarray) -> np.ndarray:
        return np.hstack([features_MD[:, :1] + train_M.sum(), features_MD])

    ours = linear_reader(fitted, np.arange(40), PENALTIES, harmonise=double_the_first)(labels, part)
    doubled_ND = np.hstack([features_ND[:, :1], features_ND])
    assert asked == [28]
    assert np.allclose(ours.score_M, linear_reader(doubled_ND, np.arange(40), PENALTIES)(labels, part).score_M)


def test_weak_penalties_win_where_the_signal_is_strong_and_strong_ones_in_noise() -> None:
    def chosen(effect: float) -> float:
        features_ND, labels = planted(60, 5, effect)
        read = linear_reader(features_ND, np.arange(60), PENALTIES)(labels, np.full(60, TRAIN))
        return float(read.chosen.removeprefix("C="))

    assert chosen(5.0) > chosen(0.0)


def mean_area(reader: Reader, labels: np.ndarray, splits: int, seed: object) -> float:
    parts_SM = draw_splits(labels, np.arange(len(labels)), splits, 0.15, 0.15, seeded(seed))
    return float(np.mean([auroc(labels[p == TEST], reader(labels, p).score_M[p == TEST]) for p in parts_SM]))


@pytest.mark.parametrize("make", [linear_reader, ridge_reader])
def test_a_planted_label_is_read(make: Callable[..., Reader]) -> None:
    features_ND, labels = planted(60, 10, 2.0)
    assert mean_area(make(features_ND, np.arange(60), PENALTIES), labels, 20, "planted") > 0.8


def test_areas_of_noise_lie_around_one_half() -> None:
    areas = []
    for seed in range(60):
        features_ND, labels = planted(40, 20, 0.0, seed)
        areas.append(mean_area(linear_reader(features_ND, np.arange(40), PENALTIES), labels, 5, seed))
    assert abs(np.mean(areas) - 0.5) < 3 * np.std(areas) / np.sqrt(60)


# --- features


def test_features_are_scaled_by_the_training_people_alone() -> None:
    features_ND = np.array([[0.0, 5, np.nan], [2, 5, 1], [100, 7, 3], [4, 5, 5]])
    train = np.array([True, True, False, True])
    for dtype in (np.float64, np.float32):
        scaled = standardise(features_ND.astype(dtype), train, dtype)
        assert scaled.dtype == dtype
        assert np.allclose(scaled[train].mean(0), 0, atol=1e-6)
        assert scaled[2, 0] == pytest.approx((100 - 2) / np.std([0, 2, 4]))
        assert (scaled[:, 1] == 0).all()  # constant in training: the test person's 7 teaches nothing
        assert abs(scaled[0, 2]) < 1e-6  # missing: the training mean


def test_infinite_features_are_refused() -> None:
    features_ND, labels = planted(20, 4, 1.0)
    features_ND[3, 2] = np.inf
    with pytest.raises(InputError, match="1 infinite values"):
        linear_reader(features_ND, np.arange(20), PENALTIES)(labels, half_and_test(20, 14))


@pytest.mark.parametrize(
    "values", [[30] * 60 + [*range(20, 30)] * 4, [0] * 60 + [*range(1, 41)], [*range(100)], [1, 2]]
)
def test_a_number_with_a_ceiling_or_a_floor_is_halved_as_nearly_as_it_can_be(values: list[int]) -> None:
    values_N = np.array(values, dtype=float)
    above = (values_N > halving(values_N)).sum()
    possible = [(values_N > cut).sum() for cut in np.unique(values_N)[:-1]]
    assert abs(above - len(values) / 2) == min(abs(count - len(values) / 2) for count in possible)
    assert 0 < above < len(values)
