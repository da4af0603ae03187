"""Protocols of the benchmark: what their rows say of systems that know a planted truth, or nothing."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import brier_score_loss, roc_auc_score

from pipeline.config import Evaluate
from pipeline.evaluate.benchmark import judge, protocol_of, read_task
from pipeline.evaluate.cohort import Task
from pipeline.evaluate.fingerprint import identity_rows
from pipeline.evaluate.groups import groups_of
from pipeline.evaluate.judged import Contest
from pipeline.evaluate.probes.linear import linear_reader
from pipeline.evaluate.reading import Reading
from pipeline.evaluate.splits import LEFT_OUT, TEST, TRAIN, VALIDATION, draw_splits, leave_site_out, seeded

SETTINGS = Evaluate(splits=40, bootstrap=200, permutations=20, low_shot=(5, 15), low_shot_draws=10)
PEOPLE = 60


def task(people: int = PEOPLE, sites: int = 3, kind: str = "classes") -> Task:
    families = np.arange(people)
    target = np.arange(people) % 2 if kind == "classes" else np.random.default_rng(1).normal(30, 8, people)
    strata = (target > np.median(target)).astype(int) if kind == "number" else target
    parts = draw_splits(strata, families, SETTINGS.splits, SETTINGS.test, SETTINGS.validation, seeded("task"))
    site = np.array([f"S{person % sites}" for person in range(people)])
    return Task("sex", kind, np.arange(people), target.astype(float), families, site, parts, "key")


def contest(
    of: Task, settings: Evaluate = SETTINGS, confounds: np.ndarray | None = None, trained: bool = False
) -> Contest:
    confounds = np.random.default_rng(5).normal(size=(len(of.target_M), 2)) if confounds is None else confounds
    known = {"age": np.linspace(20, 50, len(of.target_M)), "site": of.site_M}
    return Contest(of, settings, protocol_of(trained), known, confounds)


def features(effect: float, of: Task) -> np.ndarray:
    found = np.random.default_rng(0).normal(0, 1, (len(of.target_M), 10))
    found[:, :3] += effect * ((of.target_M - of.target_M.mean()) / of.target_M.std())[:, None] / 2
    return found


def reader(effect: float, of: Task):
    return linear_reader(features(effect, of), of.families_M, SETTINGS.penalties, of.kind)


def table(effect: float, of: Task | None = None, **settings: object) -> pd.DataFrame:
    of = of or task()
    rows, _ = read_task(contest(of, SETTINGS.model_copy(update=settings)), reader(effect, of))
    return pd.DataFrame(rows)


def value(rows: pd.DataFrame, **where: str) -> float:
    for column, wanted in {"group": "all", **where}.items():
        rows = rows[rows[column] == wanted]
    assert len(rows) == 1
    return float(rows["value"].iloc[0])


def test_a_planted_label_is_found_more_shots_help_and_shuffled_labels_do_not() -> None:
    rows = table(2.0).query("metric == 'auroc' and group == 'all'")
    assert value(rows, split="mean", protocol="frozen-v2") > 0.8
    assert value(rows, split="mean", protocol="leave-site-out-v1") > 0.8
    assert value(rows, split="low-shot-15") > value(rows, split="low-shot-5") > 0.55
    chance = rows[rows["split"] == "permuted"].iloc[0]
    assert abs(chance["value"] - 0.5) < 0.12
    assert chance["low"] < 0.5 < chance["high"]
    splits = rows[rows["split"].str.startswith("split-")]
    assert splits["fold"].tolist() == list(range(40))
    assert splits["n"].between(7, 11).all()
    assert set(rows[rows["split"].str.startswith("site ")]["split"]) == {"site S0", "site S1", "site S2"}


def test_a_split_s_metrics_are_scikit_learn_s_and_the_mean_is_theirs() -> None:
    of = task()
    rows, judged = read_task(contest(of), reader(1.0, of))
    rows = pd.DataFrame(rows)
    for split in (0, 7):
        tested = of.parts_SM[split] == TEST
        found = rows[rows["split"] == f"split-{split:03d}"]
        auroc = roc_auc_score(of.target_M[tested], judged.score_SM[split, tested])
        assert value(found, metric="auroc") == pytest.approx(auroc)
        brier = brier_score_loss(of.target_M[tested], judged.said_SM[split, tested])
        assert value(found, metric="brier") == pytest.approx(brier)
    splits = rows[rows["split"].str.startswith("split-")]
    for metric in ("auroc", "balanced_accuracy"):
        mean = splits[splits["metric"] == metric]["value"].mean()
        assert value(rows, metric=metric, split="mean", protocol="frozen-v2") == pytest.approx(mean, abs=0.01)


def test_probabilities_are_at_the_prevalence_of_the_training_part() -> None:
    of = task()
    rare = of._replace(target_M=(np.arange(PEOPLE) % 5 == 0).astype(float))
    judged = judge(lambda target, _: Reading(np.zeros(len(target)), np.full(len(target), np.nan)), rare, of.parts_SM)
    train = of.parts_SM[0] == TRAIN
    said = judged.said_SM[0, of.parts_SM[0] == TEST]
    np.testing.assert_allclose(said, rare.target_M[train].mean())


def test_a_system_that_says_the_same_of_everybody_is_at_chance_whatever_its_rounding() -> None:
    def rounding(target_M: np.ndarray, part_M: np.ndarray) -> Reading:
        noise_M = 1e-14 * np.random.default_rng(int(part_M.sum())).normal(size=len(target_M))
        return Reading(noise_M, np.full(len(target_M), np.nan))

    rows = pd.DataFrame(read_task(contest(task()), rounding)[0]).query("metric == 'auroc' and group == 'all'")
    assert (rows["value"] == 0.5).all()


def test_intervals_hold_their_estimate() -> None:
    rows = table(1.0).dropna(subset=["low"])
    assert set(rows["split"]) == {"mean", "oof", "permuted", "low-shot-5", "low-shot-15"}
    assert (rows["low"] <= rows["value"]).all()
    assert (rows["value"] <= rows["high"]).all()


def test_the_same_features_give_the_same_rows() -> None:
    pd.testing.assert_frame_equal(table(1.0), table(1.0))


def test_more_shots_than_people_is_a_gap_that_says_so() -> None:
    row = table(1.0, low_shot=(40,)).query("split == 'low-shot-40'").iloc[0]
    assert np.isnan(row["value"])
    assert row["status"] == "too_few_people"


def test_a_trained_system_runs_on_the_first_declared_splits_alone() -> None:
    of, asked = task(), []

    def spy(target_M: np.ndarray, part_M: np.ndarray) -> Reading:
        asked.append(part_M)
        return reader(1.0, of)(target_M, part_M)

    settings = SETTINGS.model_copy(update={"declared_splits": 4})
    rows = pd.DataFrame(read_task(contest(of, settings, trained=True), spy)[0])
    np.testing.assert_array_equal(asked[:4], of.parts_SM[:4])
    assert set(rows["protocol"]) == {"trained-v1"}
    assert rows[rows["protocol"] == "trained-v1"]["fold"].max() == 3
    assert not rows["split"].str.startswith("low-shot").any()


def test_a_protocol_that_is_not_asked_for_is_not_run() -> None:
    assert set(table(1.0, protocols=("frozen",))["protocol"]) == {"frozen-v2"}


def test_a_number_is_predicted_in_its_own_unit() -> None:
    of = task(kind="number")
    rows = table(3.0, of).query("split == 'mean' and protocol == 'frozen-v2'")
    assert set(rows["metric"]) == {"pearson_r", "r2", "mse", "mae"}
    assert value(rows, metric="pearson_r") > 0.5
    assert 0.2 < value(rows, metric="r2") < 1
    assert value(rows, metric="mae") < np.abs(of.target_M - of.target_M.mean()).mean()
    nothing = table(0.0, of).query("split == 'mean' and protocol == 'frozen-v2'")
    assert value(nothing, metric="r2") < 0.05


# --- groups


def test_a_score_that_only_tells_sites_apart_is_at_chance_within_them() -> None:
    rng = np.random.default_rng(3)
    site = np.repeat([0, 1], PEOPLE // 2)
    target = (rng.random(PEOPLE) < np.where(site, 0.8, 0.2)).astype(float)
    of = task()._replace(target_M=target, site_M=np.array(["A", "B"])[site])
    parts = draw_splits(target.astype(int), of.families_M, 40, 0.15, 0.15, seeded("sites"))
    of = of._replace(parts_SM=parts)
    site_only = linear_reader(site[:, None].astype(float), of.families_M, SETTINGS.penalties)
    rows = pd.DataFrame(read_task(contest(of), site_only)[0]).query("metric == 'auroc'")
    assert value(rows, split="oof", group="all") > 0.65
    assert value(rows, group="within site") == pytest.approx(0.5, abs=1e-9)


def test_the_gain_over_confounds_is_that_of_what_confounds_do_not_know() -> None:
    of = task()
    known = features(2.0, of)
    alike = contest(of, confounds=known)
    told = pd.DataFrame(read_task(alike, linear_reader(known, of.families_M, SETTINGS.penalties))[0])
    new = pd.DataFrame(read_task(contest(of), linear_reader(known, of.families_M, SETTINGS.penalties))[0])
    assert abs(value(told, metric="auroc_gain")) < 0.06
    assert value(new, metric="auroc_gain") > 0.2


def test_groups_are_bands_halves_and_levels_and_never_the_task_itself() -> None:
    known = {
        "age": np.array([10.0, 20, 30, 40, 50, np.nan]),
        "motion": np.array([0.1, 0.2, 0.3, 0.4, 0.5, 0.6]),
        "sex": np.array(["F", "M", "F", "M", "F", ""]),
        "diagnosis": np.array(["a"] * 6),
    }
    found = dict(groups_of(known, "diagnosis"))
    assert [name for name in found if name.startswith("sex")] == ["sex F", "sex M"]
    assert [name for name in found if name.startswith("motion")] == ["motion low", "motion high"]
    bands = np.array([who for name, who in found.items() if name.startswith("age")])
    assert bands.sum(0).tolist() == [1, 1, 1, 1, 1, 0]
    assert not any("diagnosis" in name for name in found)


# --- splits by site


def test_a_left_out_site_and_its_families_are_never_trained_on() -> None:
    rng = np.random.default_rng(0)
    families, site, labels = (
        rng.integers(0, 50, 120),
        np.array(list("ABC"))[rng.integers(0, 3, 120)],
        rng.integers(0, 2, 120),
    )
    found = leave_site_out(labels, families, site, 0.15, "key")
    assert set(found) == {"A", "B", "C"}
    for name, part in found.items():
        np.testing.assert_array_equal(part == TEST, site == name)
        assert not set(families[part == TRAIN]) & set(families[part == TEST])
        assert not set(families[part == TRAIN]) & set(families[part == VALIDATION])
        assert not set(families[part == VALIDATION]) & set(families[part == TEST])
        assert (part == LEFT_OUT).any()
        assert set(labels[part == TRAIN]) == {0, 1}


def test_a_site_of_one_class_is_not_left_out() -> None:
    site = np.array(["A"] * 10 + ["B"] * 10 + ["C"] * 10)
    labels = np.r_[np.arange(10) % 2, np.zeros(10, int), np.arange(10) % 2]
    assert set(leave_site_out(labels, np.arange(30), site, 0.15, "key")) == {"A", "C"}


# --- identity


def test_identity_is_found_in_a_signature_and_lost_when_pairs_are_shuffled() -> None:
    rng, own = np.random.default_rng(0), np.random.default_rng(1).normal(0, 1, (30, 20))
    first, second = own + rng.normal(0, 1, own.shape), own + rng.normal(0, 1, own.shape)
    rows = pd.DataFrame(identity_rows(first[:, None], second[:, None], np.arange(30), SETTINGS, "key"))
    assert value(rows, metric="top1", split="oof") > 0.4
    assert value(rows, metric="mean_rank", split="oof") > 0.85
    assert value(rows, metric="top1", split="permuted") < 0.15
    assert value(rows, metric="mean_rank", split="permuted") == pytest.approx(0.5, abs=0.1)
