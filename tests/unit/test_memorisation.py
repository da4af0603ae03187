"""Weights that remember are found out; weights that cannot are not."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from people_to_remember import METADATA, RASTER, cell_of, contrastive, fresh, overfitted, study_of, write_people

from pipeline.bold.reader import Shard
from pipeline.errors import InputError
from pipeline.evaluate.release import memorisation
from pipeline.evaluate.release.membership import Side
from pipeline.evaluate.release.memorisation import Memorisation, check_cell, nearness, similarity, to_families
from pipeline.intervals import Interval

TRAINED = 8


def check(files: dict[str, Any], learner: Any, metadata: dict[str, Any] = METADATA, **given: Any) -> Memorisation:
    return check_cell(study_of(), cell_of(TRAINED), learner, metadata, RASTER, **files, **given)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return write_people(tmp_path_factory.mktemp("people"), TRAINED, 24)


def test_an_overfitted_learner_is_found_out(files: dict[str, Any]) -> None:
    root = files["draws"].parent
    learner = overfitted([Shard.open(root / f"shards/t{person}").read() for person in range(TRAINED)])
    found = check(files, learner)
    assert found.statistic == "loss"
    assert found.membership.low > 0.5
    assert found.membership.value > 0.9
    assert found.trained_mean < 0.9 * found.held_out_mean
    assert found.copies == 0
    assert found.verdict == "sign of memorisation"
    assert not found.passed


def test_random_weights_are_not(files: dict[str, Any]) -> None:
    found = check(files, fresh())
    assert found.verdict != "sign of memorisation"
    assert found.membership.low < 0.5 < found.membership.high
    assert found.nearness.low < 0.5 < found.nearness.high
    assert (found.people_trained, found.people_held_out, found.clips) == (TRAINED, 24, 2 * (TRAINED + 24))
    assert check(files, fresh(), people=5).people_held_out == 5


def test_people_trained_on_who_hide_among_the_held_out_are_found(tmp_path: Path) -> None:
    found = check(write_people(tmp_path, TRAINED, 12, copies=3), fresh())
    assert found.copies == 3
    assert found.verdict == "sign of memorisation"


def test_relatives_of_people_trained_on_are_not_asked(tmp_path: Path) -> None:
    assert check(write_people(tmp_path, TRAINED, 12, siblings=4), fresh()).people_held_out == 8


def test_a_loss_of_whole_batches_is_replaced_by_likeness(files: dict[str, Any]) -> None:
    found = check(files, *contrastive())
    assert found.statistic == "similarity"
    assert found.verdict != "sign of memorisation"
    assert np.isfinite(found.membership.value)


def test_with_nobody_to_compare_there_is_no_verdict(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="1 people held out with runs; expected at least 2"):
        check(write_people(tmp_path, TRAINED, 1), fresh())


def test_the_numbers_are_json_and_name_nobody(files: dict[str, Any]) -> None:
    text = json.dumps(check(files, fresh()).numbers, allow_nan=False)
    assert "simulated" not in text
    assert json.loads(text)["membership"].keys() == {"value", "low", "high"}


def interval(value: float, low: float, high: float) -> Interval:
    return Interval(value, low, high)


@pytest.mark.parametrize(
    ("membership", "nearness", "copies", "verdict"),
    [
        (interval(0.50, 0.40, 0.60), interval(0.50, 0.40, 0.60), 0, "no sign of memorisation"),
        (interval(0.50, 0.40, 0.60), interval(0.50, 0.40, 0.60), 1, "sign of memorisation"),
        (interval(0.60, 0.51, 0.69), interval(0.50, 0.40, 0.60), 0, "sign of memorisation"),
        (interval(0.50, 0.40, 0.60), interval(0.60, 0.51, 0.69), 0, "sign of memorisation"),
        (interval(0.52, 0.51, 0.53), interval(0.50, 0.40, 0.60), 0, "no sign of memorisation"),  # certain, and nothing
        (interval(0.55, 0.35, 0.75), interval(0.50, 0.40, 0.60), 0, "too few people to say"),
        (interval(np.nan, np.nan, np.nan), interval(0.50, 0.40, 0.60), 0, "too few people to say"),
    ],
)
def test_the_verdict_follows_from_the_numbers(
    membership: Interval, nearness: Interval, copies: int, verdict: str
) -> None:
    blank = Memorisation("loss", membership, nearness, 1.0, 1.0, 1.0, 1.0, copies, 8, 24, 64)
    assert blank.verdict == verdict
    assert blank.passed == (verdict == "no sign of memorisation")
    assert replace(blank, copies=1).verdict == "sign of memorisation"


def test_distances_to_families_agree_with_all_pairs_in_any_block(monkeypatch: Any) -> None:
    rng = np.random.default_rng(0)
    clips_KD, others_LD, family_L = rng.normal(size=(23, 5)), rng.normal(size=(31, 5)), np.arange(31) % 4
    every_KL = np.sqrt(((clips_KD[:, None] - others_LD) ** 2).mean(-1))
    expected_KF = np.stack([every_KL[:, family_L == family].min(1) for family in range(4)], 1)
    monkeypatch.setattr(memorisation, "BLOCK", 7)
    np.testing.assert_allclose(to_families(clips_KD, others_LD, family_L, 4), expected_KF, rtol=1e-6)


def test_similarity_is_the_mean_cosine_of_pairs() -> None:
    rng = np.random.default_rng(1)
    clips_KD, person_K = rng.normal(size=(6, 4)), np.array([0, 0, 0, 1, 2, 2])
    unit_KD = clips_KD / np.linalg.norm(clips_KD, axis=1, keepdims=True)
    cosine_KK = unit_KD @ unit_KD.T
    expected_P = [np.mean([cosine_KK[0, 1], cosine_KK[0, 2], cosine_KK[1, 2]]), np.nan, cosine_KK[4, 5]]
    np.testing.assert_allclose(similarity(clips_KD, person_K), expected_P)


def draw_sides() -> tuple[Side, Side]:
    """Eight people trained on, two of them siblings, and twenty who were not, two clips each."""
    trained = Side(None, [], np.repeat(np.arange(8), 2), np.array([*"aabcdefg"]))  # type: ignore[arg-type]
    others = Side(None, [], np.repeat(np.arange(20), 2), np.array([*"hijklmnopqrstuvwxyzH"]))  # type: ignore[arg-type]
    return trained, others


def test_neither_side_is_nearer_by_chance(monkeypatch: Any) -> None:
    """Everybody from one distribution: the AUROC must be .5 on average, and rarely above chance by its interval."""
    monkeypatch.setattr(memorisation, "PERMUTATIONS", 80)
    rng = np.random.default_rng(2)
    drawn = [nearness(rng.normal(size=(16, 3)), rng.normal(size=(40, 3)), *draw_sides()).auroc for _ in range(200)]
    value = np.array([each.value for each in drawn])
    assert abs(value.mean() - 0.5) < 3 * value.std() / np.sqrt(len(drawn))
    assert sum(each.low > 0.5 for each in drawn) <= 7  # nominal 2.5 of 200: up to 7 in 99.6 of 100


def test_a_training_set_that_lies_apart_is_seen() -> None:
    rng = np.random.default_rng(3)
    found = nearness(0.3 * rng.normal(size=(16, 3)), rng.normal(size=(40, 3)), *draw_sides())
    assert found.auroc.low > 0.5
    assert found.trained < found.held_out
