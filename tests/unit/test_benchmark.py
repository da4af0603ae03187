"""Protocol frozen-v1: its rows for people with planted labels, and the stage from shards to tables."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from small_cohort import SmallCohort, make_cohort, small_cell, write_cell

from pipeline.artefact import digest, read_json, read_provenance, read_table, write_json
from pipeline.config import Evaluate
from pipeline.errors import InputError
from pipeline.evaluate.benchmark import identity_rows, label_rows
from pipeline.evaluate.cohort import Task
from pipeline.evaluate.splits import draw_splits, seeded
from pipeline.evaluate.stage import evaluate_baselines, evaluate_cell
from pipeline.grid import largest

SETTINGS = Evaluate(splits=40, bootstrap=200, permutations=20, low_shot=(5, 15), low_shot_draws=10)
CONTRACT = {"template": "small", "space": "MNI", "tr_s": 1.5, "normalisation": "voxel-z"}


def task(people: int = 60) -> Task:
    labels, families = np.arange(people) % 2, np.arange(people)
    parts = draw_splits(labels, families, SETTINGS.splits, SETTINGS.test, SETTINGS.validation, seeded("task"))
    return Task("sex", np.arange(people), labels, families, parts, "key")


def features(effect: float, people: int = 60) -> np.ndarray:
    found = np.random.default_rng(0).normal(0, 1, (people, 10))
    found[:, :3] += effect * (np.arange(people) % 2)[:, None]
    return found


def value(rows: pd.DataFrame, **where: str) -> float:
    for column, wanted in where.items():
        rows = rows[rows[column] == wanted]
    assert len(rows) == 1
    return float(rows["value"].iloc[0])


def test_a_planted_label_is_found_more_shots_help_and_shuffled_labels_do_not() -> None:
    table = pd.DataFrame(label_rows(features(1.0), task(), SETTINGS)[0]).query("metric == 'auroc'")
    assert value(table, split="oof") > 0.8
    assert value(table, split="low-shot-15") > value(table, split="low-shot-5") > 0.55
    chance = table[table["split"] == "permuted"].iloc[0]
    assert abs(chance["value"] - 0.5) < 0.12
    assert chance["low"] < 0.5 < chance["high"]
    splits = table[table["fold"] >= 0]
    assert splits["fold"].tolist() == list(range(40))
    assert splits["n"].between(7, 11).all()


def test_intervals_hold_their_estimate() -> None:
    table = pd.DataFrame(label_rows(features(0.5), task(), SETTINGS)[0]).dropna(subset=["low"])
    assert set(table["split"]) == {"oof", "permuted", "low-shot-5", "low-shot-15"}
    assert (table["low"] <= table["value"]).all()
    assert (table["value"] <= table["high"]).all()


def test_the_same_features_give_the_same_rows() -> None:
    first, again = (pd.DataFrame(label_rows(features(0.5), task(), SETTINGS)[0]) for _ in range(2))
    pd.testing.assert_frame_equal(first, again)


def test_more_shots_than_people_is_a_gap_that_says_so() -> None:
    settings = SETTINGS.model_copy(update={"low_shot": (40,)})
    row = label_rows(features(1.0), task(), settings)[0][-1]
    assert np.isnan(row["value"])
    assert row["status"] == "too_few_people"


def test_identity_is_found_in_a_signature_and_lost_when_pairs_are_shuffled() -> None:
    rng, own = np.random.default_rng(0), np.random.default_rng(1).normal(0, 1, (30, 20))
    first, second = own + rng.normal(0, 1, own.shape), own + rng.normal(0, 1, own.shape)
    table = pd.DataFrame(identity_rows(first[:, None], second[:, None], np.arange(30), SETTINGS, "key"))
    assert value(table, metric="top1", split="oof") > 0.4
    assert value(table, metric="mean_rank", split="oof") > 0.85
    assert value(table, metric="top1", split="permuted") < 0.15
    assert value(table, metric="mean_rank", split="permuted") == pytest.approx(0.5, abs=0.1)


# --- the stage


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> SmallCohort:
    return make_cohort(tmp_path_factory.mktemp("cohort"))


@pytest.fixture(scope="module")
def baselines(cohort: SmallCohort) -> Path:
    evaluate_baselines(cohort.study, **cohort.inputs, **cohort.outputs("baselines"))
    return cohort.root / "baselines"


@pytest.fixture(scope="module")
def evaluated(cohort: SmallCohort) -> Path:
    cell, folder = small_cell(cohort.study), cohort.root / "pretrain"
    write_cell(cell, folder, CONTRACT)
    evaluate_cell(cohort.study, cell, folder, **cohort.inputs, **cohort.outputs("cell"))
    return cohort.root / "cell"


def test_simple_systems_find_what_was_planted_and_chance_finds_nothing(baselines: Path) -> None:
    table = read_table(baselines / "benchmark.parquet").query("metric == 'auroc' and split == 'oof'")
    assert value(table, system="connectome_logistic", task="sex") > 0.75
    assert value(table, system="chance", task="sex") == 0.5
    assert set(table["system"]) == {"connectome_logistic", "time_averaged", "temporal_sd", "confounds", "chance"}
    probe = read_table(baselines / "probe.parquet").query("task == 'identity' and split == 'oof' and metric == 'top1'")
    assert value(probe, system="chance") == pytest.approx(1 / 24)
    assert value(probe, system="connectome_logistic") > 5 / 24


def test_all_systems_share_splits_and_people(baselines: Path, evaluated: Path) -> None:
    records = [read_provenance(folder / "benchmark.parquet") for folder in (baselines, evaluated)]
    assert records[0]["splits"] == records[1]["splits"]
    assert set(records[0]["splits"]) == {"simulated/sex", "simulated/diagnosis"}
    assert records[0]["protocol"] == "frozen-v1"
    people = [set(read_table(folder / "scores.parquet")["person"]) for folder in (baselines, evaluated)]
    assert people[0] == people[1]
    parts = [
        read_table(folder / "benchmark.parquet").query("fold >= 0 and task == 'sex'")
        for folder in (baselines, evaluated)
    ]
    counts = [part.groupby(["system", "fold"])["n"].first().unstack("fold") for part in parts]
    assert (counts[0].to_numpy() == counts[1].to_numpy()).all()


def test_no_table_names_a_person(baselines: Path, evaluated: Path) -> None:
    for folder in (baselines, evaluated):
        for file in folder.glob("*.parquet"):
            text = read_table(file).to_csv()
            assert not any(f"e{person:03d}" in text.split(",") for person in range(24))
            assert "fam1" not in text


def test_simulated_results_say_so(evaluated: Path) -> None:
    for name in ("probe", "benchmark", "scores"):
        assert read_table(evaluated / f"{name}.parquet")["simulated"].all()


def test_the_largest_encoder_is_also_given_shuffled_frames(cohort: SmallCohort) -> None:
    cell, folder = largest(cohort.study, "swift_v1")[-1], cohort.root / "largest"
    write_cell(cell, folder, CONTRACT)
    evaluate_cell(cohort.study, cell, folder, **cohort.inputs, **cohort.outputs("largest"))
    table = read_table(cohort.root / "largest/probe.parquet")
    assert set(zip(table["system"], table["variant"], strict=True)) == {
        (cell.architecture, "main"),
        (f"{cell.architecture}_time_shuffled", "time_shuffled"),
    }


def test_an_encoder_that_diverged_leaves_gaps_and_its_status(cohort: SmallCohort) -> None:
    cell, folder = small_cell(cohort.study), cohort.root / "broken"
    write_cell(cell, folder, CONTRACT, broken=True)
    evaluate_cell(cohort.study, cell, folder, **cohort.inputs, **cohort.outputs("broken"))
    table = read_table(cohort.root / "broken/probe.parquet")
    assert set(table["task"]) == {"sex", "diagnosis", "identity"}
    assert table["value"].isna().all()
    assert (table["status"] == "diverged").all()
    assert read_table(cohort.root / "broken/scores.parquet").empty


def test_an_encoder_for_another_tr_is_refused_by_the_field(cohort: SmallCohort) -> None:
    cell, folder = small_cell(cohort.study), cohort.root / "other_tr"
    write_cell(cell, folder, {**CONTRACT, "tr_s": 2.0})
    with pytest.raises(InputError, match=r"contract\.tr_s: found 1\.5; expected 2\.0"):
        evaluate_cell(cohort.study, cell, folder, **cohort.inputs, **cohort.outputs("other_tr"))
    assert not (cohort.root / "other_tr" / "probe.parquet").exists()


@pytest.mark.parametrize("seen", ["e005", "sibling"])
def test_an_encoder_that_saw_an_evaluation_person_or_their_sibling_is_refused(tmp_path: Path, seen: str) -> None:
    cohort = make_cohort(tmp_path)
    cell, folder, draws = small_cell(cohort.study), tmp_path / "pretrain", tmp_path / "split/draws.json"
    with (tmp_path / "participants.tsv").open("a") as table:
        table.write("sibling\tfam3\tA\t30\t0\t1\n")
    people = read_json(draws)["0"]
    people[2] = f"simulated/{seen}"
    write_json(draws, {"0": people})
    write_cell(cell, folder, CONTRACT)
    with pytest.raises(InputError, match="people_hash"):
        evaluate_cell(cohort.study, cell, folder, **cohort.inputs, **cohort.outputs("out"))
    write_json(folder / "summary.json", {"status": "completed", "people_hash": digest(people[: cell.subjects])})
    with pytest.raises(InputError, match=f"1 evaluation people or relatives of theirs, 'simulated/{seen}'"):
        evaluate_cell(cohort.study, cell, folder, **cohort.inputs, **cohort.outputs("out"))


def test_people_whose_runs_were_all_quarantined_are_counted(tmp_path: Path) -> None:
    cohort = make_cohort(tmp_path, people=16)
    manifest = read_json(tmp_path / "manifest.json")
    manifest["runs"] = [run for run in manifest["runs"] if run["subject"] != "e003"]
    write_json(tmp_path / "manifest.json", manifest)
    evaluate_baselines(cohort.study, **cohort.inputs, **cohort.outputs("out"))
    record = read_provenance(tmp_path / "out/probe.parquet")
    assert record["people"] == {"simulated": 15}
    assert record["people_without_runs"] == {"simulated": 1}


def test_a_label_that_most_people_lack_is_read_from_those_who_have_it(tmp_path: Path) -> None:
    cohort = make_cohort(tmp_path, people=24)
    path = tmp_path / "participants.tsv"
    lines = [line.split("\t") for line in path.read_text().splitlines()]
    for line in lines[1:7]:
        line[4] = ""
    path.write_text("\n".join("\t".join(line) for line in lines) + "\n")
    evaluate_baselines(cohort.study, **cohort.inputs, **cohort.outputs("out"))
    table = read_table(tmp_path / "out/probe.parquet").query("split == 'permuted' and metric == 'auroc'")
    assert set(table.query("task == 'sex'")["n"]) == {18}
    assert set(table.query("task == 'diagnosis'")["n"]) == {24}
