"""People matched across sessions, with signatures that were planted."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.evaluate.probes.identity import discriminant, identify, similarity


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
