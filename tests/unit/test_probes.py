"""Splits and linear readers, against scikit-learn and people whose labels were planted."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from pipeline.errors import InputError
from pipeline.evaluate.probes import (
    balanced_weights,
    discriminant,
    fit_logistic,
    identify,
    mean_score,
    out_of_split_scores,
    similarity,
    split_scores,
    standardise,
)
from pipeline.evaluate.splits import TEST, TRAIN, VALIDATION, draw_shots, draw_splits, partition, seeded
from pipeline.evaluate.statistics import auroc

PENALTIES = (0.001, 0.01, 0.1, 1.0)


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


# --- the logistic probe


@pytest.mark.parametrize(("people", "features"), [(60, 8), (40, 39), (30, 400)])
@pytest.mark.parametrize("strength", [0.001, 0.1, 10.0])
def test_logits_are_scikit_learns(people: int, features: int, strength: float) -> None:
    features_ND, labels = planted(people, features, 1.5)
    labels[:5] = 1  # unbalanced
    weights = balanced_weights(labels, np.ones((1, people), dtype=bool))
    logits = fit_logistic(features_ND, labels, weights, np.array([strength]))[0]
    reference = LogisticRegression(C=strength, class_weight="balanced", tol=1e-8, max_iter=10**5)
    assert np.allclose(logits, reference.fit(features_ND, labels).decision_function(features_ND), atol=1e-3)


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


def test_a_split_is_scikit_learns_pipeline_up_to_scale_where_features_outnumber_people() -> None:
    features_ND, labels = planted(48, 300, 2.0)
    train = np.arange(48) < 34
    ours = split_scores(features_ND, labels, np.arange(48), train, [0.01])
    reference = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, class_weight="balanced", tol=1e-8))
    theirs = reference.fit(features_ND[train], labels[train]).decision_function(features_ND)
    assert np.allclose(ours, theirs / theirs[train].std(), atol=1e-3)


def test_scores_do_not_hang_on_who_else_is_tested_nor_on_their_labels() -> None:
    features_ND, labels = planted(40, 12, 1.0)
    train = np.arange(40) < 28
    scores = split_scores(features_ND, labels, np.arange(40), train, PENALTIES)
    changed, flipped = features_ND.copy(), labels.copy()
    changed[30:] *= 100
    flipped[28:] = 1 - flipped[28:]
    again = split_scores(changed, flipped, np.arange(40), train, PENALTIES)
    assert np.allclose(scores[:30], again[:30], atol=1e-6)


def test_weak_penalties_win_where_the_signal_is_strong_and_strong_ones_in_noise() -> None:
    train = np.ones(60, dtype=bool)

    def chosen(effect: float) -> float:
        features_ND, labels = planted(60, 5, effect)
        scores = split_scores(features_ND, labels, np.arange(60), train, PENALTIES)
        fixed = [split_scores(features_ND, labels, np.arange(60), train, [c]) for c in PENALTIES]
        return PENALTIES[int(np.argmin([np.abs(scores - each).max() for each in fixed]))]

    assert chosen(5.0) > chosen(0.0)


def test_a_planted_label_is_read_and_noise_is_not() -> None:
    for effect, low, high in ((2.0, 0.8, 1.0), (0.0, 0.25, 0.75)):
        features_ND, labels = planted(60, 10, effect)
        parts = draw_splits(labels, np.arange(60), 20, 0.15, 0.15, seeded("planted"))
        scores = mean_score(out_of_split_scores(features_ND, labels, np.arange(60), parts, PENALTIES))
        tested = np.isfinite(scores)
        assert low <= auroc(labels[tested], scores[tested]) <= high


def test_averaged_scores_of_noise_lie_around_one_half() -> None:
    areas = []
    for seed in range(60):
        features_ND, labels = planted(40, 20, 0.0, seed)
        parts = draw_splits(labels, np.arange(40), 5, 0.15, 0.15, seeded(seed))
        scores = mean_score(out_of_split_scores(features_ND, labels, np.arange(40), parts, PENALTIES))
        tested = np.isfinite(scores)
        areas.append(auroc(labels[tested], scores[tested]))
    assert abs(np.mean(areas) - 0.5) < 3 * np.std(areas) / np.sqrt(60)


def test_features_are_scaled_by_the_training_people_alone() -> None:
    features_ND = np.array([[0.0, 5, np.nan], [2, 5, 1], [100, 7, 3], [4, 5, 5]])
    train = np.array([True, True, False, True])
    scaled = standardise(features_ND, train)
    assert np.allclose(scaled[train].mean(0), 0)
    assert scaled[2, 0] == pytest.approx((100 - 2) / np.std([0, 2, 4]))
    assert (scaled[:, 1] == 0).all()  # constant in training: the test person's 7 teaches nothing
    assert scaled[0, 2] == 0  # missing: the training mean


# --- identity


def test_people_with_a_signature_are_told_apart_and_others_are_not() -> None:
    rng = np.random.default_rng(0)
    own = rng.normal(0, 1, (40, 30))
    first, second, stranger = (own + rng.normal(0, 0.3, own.shape) for _ in range(3))
    known = identify(similarity(first, second))
    assert known.top1_N.mean() == 1
    assert known.rank_N.mean() == 1
    unknown = identify(similarity(first, rng.permutation(stranger)))
    assert unknown.top1_N.mean() < 0.15
    assert abs(unknown.rank_N.mean() - 0.5) < 0.15


def test_a_discriminant_sees_a_signature_under_a_larger_nuisance() -> None:
    """Clips differ most along what is not the person: correlation follows it, the discriminant ignores it."""
    rng = np.random.default_rng(2)
    own, nuisance = rng.normal(0, 1, (40, 1, 6)), rng.normal(0, 1, 6)

    def session() -> np.ndarray:
        drift = 20 * rng.normal(0, 1, (40, 1, 1)) + 20 * rng.normal(0, 1, (40, 4, 1))
        return own + drift * nuisance + rng.normal(0, 0.2, (40, 4, 6))

    first, second = session(), session()
    found = identify(discriminant(first, second)).rank_N.mean()
    assert found > 0.9 > identify(similarity(first.mean(1), second.mean(1))).rank_N.mean()
    stranger = identify(discriminant(first, rng.permutation(second))).rank_N.mean()
    assert abs(stranger - 0.5) < 0.15


def test_features_that_are_the_same_for_all_leave_identity_exactly_at_chance() -> None:
    for features in (np.zeros((8, 0)), np.ones((8, 5))):
        found = identify(similarity(features, features))
        assert found.top1_N == pytest.approx(1 / 8)
        assert found.rank_N == pytest.approx(0.5)


def test_a_shuffled_pairing_is_at_one_in_n() -> None:
    rng = np.random.default_rng(1)
    own = rng.normal(0, 1, (20, 30))
    matrix = similarity(own, own + rng.normal(0, 0.3, own.shape))
    hits = [identify(matrix, rng.permutation(20)).top1_N.mean() for _ in range(2000)]
    assert np.mean(hits) == pytest.approx(1 / 20, abs=0.005)


def test_rank_is_the_share_of_others_who_are_less_similar() -> None:
    matrix = np.array([[0.5, 0.9, 0.1], [0.2, 0.8, 0.3], [0.1, 0.2, 0.3]])
    found = identify(matrix)
    # by rows: person 0 is beaten once, the others never; by columns: person 1 and 2 are beaten once or tied
    assert found.rank_N == pytest.approx([(0.5 + 1) / 2, (1 + 0.5) / 2, (1 + 0.75) / 2])
    assert found.top1_N == pytest.approx([0.5, 0.5, 0.75])
