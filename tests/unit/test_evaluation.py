"""The evaluation stage, from shards to tables: encoders and systems on the same people and splits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from small_cohort import DEMO, SmallCohort, make_cohort, small_cell, write_cell

from pipeline.artefact import digest, read_json, read_provenance, read_table, write_json
from pipeline.config import load_study, read_yaml
from pipeline.errors import InputError
from pipeline.evaluate.cohort import Cohort, load_cohorts, require_unseen
from pipeline.evaluate.encoders import evaluate_cell
from pipeline.evaluate.stage import evaluate_systems, write
from pipeline.evaluate.systems.jobs import SIMPLE, system_jobs
from pipeline.grid import largest

CONTRACT = {"template": "small", "space": "MNI", "tr_s": 1.5, "normalisation": "voxel-z"}
SYSTEMS = ["connectome_logistic", "time_averaged", "confounds", "chance"]


def run_systems(cohort: SmallCohort, name: str) -> Path:
    chosen = {"simulated": [each for each in system_jobs(cohort.study)[SIMPLE]["simulated"] if each.name in SYSTEMS]}
    rows, cohorts = evaluate_systems(cohort.study, chosen, **cohort.inputs)
    write(cohort.study, rows, cohorts, **cohort.outputs(name), files={})
    return cohort.root / name


def run_cell(cohort: SmallCohort, cell, folder: Path, name: str) -> Path:
    raw = cohort.inputs["manifests"]
    evaluate_cell(cohort.study, cell, folder, raw_manifests=raw, **cohort.inputs, **cohort.outputs(name))
    return cohort.root / name


def value(rows: pd.DataFrame, **where: str) -> float:
    for column, wanted in where.items():
        rows = rows[rows[column] == wanted]
    assert len(rows) == 1
    return float(rows["value"].iloc[0])


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> SmallCohort:
    return make_cohort(tmp_path_factory.mktemp("cohort"))


@pytest.fixture(scope="module")
def baselines(cohort: SmallCohort) -> Path:
    return run_systems(cohort, "baselines")


@pytest.fixture(scope="module")
def evaluated(cohort: SmallCohort) -> Path:
    cell, folder = small_cell(cohort.study), cohort.root / "pretrain"
    write_cell(cell, folder, CONTRACT)
    return run_cell(cohort, cell, folder, "cell")


def test_simple_systems_find_what_was_planted_and_chance_finds_nothing(baselines: Path) -> None:
    table = read_table(baselines / "benchmark.parquet").query(
        "metric == 'auroc' and split == 'mean' and group == 'all'"
    )
    assert value(table, system="connectome_logistic", task="sex") > 0.75
    assert value(table, system="chance", task="sex") == 0.5
    assert set(table["system"]) == set(SYSTEMS)
    probe = read_table(baselines / "probe.parquet").query("task == 'identity' and split == 'oof' and metric == 'top1'")
    assert value(probe, system="chance") == pytest.approx(1 / 24)
    assert value(probe, system="connectome_logistic") > 5 / 24


def test_all_systems_share_splits_and_people(baselines: Path, evaluated: Path) -> None:
    records = [read_provenance(folder / "benchmark.parquet") for folder in (baselines, evaluated)]
    assert records[0]["splits"] == records[1]["splits"]
    assert set(records[0]["splits"]) == {"simulated/sex", "simulated/diagnosis"}
    assert records[0]["protocols"] == ["frozen-v2", "trained-v1", "leave-site-out-v1", "low-shot-v1"]
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
    run_cell(cohort, cell, folder, "largest")
    table = read_table(cohort.root / "largest/probe.parquet")
    assert set(zip(table["system"], table["variant"], strict=True)) == {
        (cell.architecture, "main"),
        (f"{cell.architecture}_time_shuffled", "time_shuffled"),
    }


def test_an_encoder_that_diverged_leaves_gaps_and_its_status(cohort: SmallCohort) -> None:
    cell, folder = small_cell(cohort.study), cohort.root / "broken"
    write_cell(cell, folder, CONTRACT, broken=True)
    run_cell(cohort, cell, folder, "broken")
    table = read_table(cohort.root / "broken/probe.parquet")
    assert set(table["task"]) == {"sex", "diagnosis", "identity"}
    assert table["value"].isna().all()
    assert (table["status"] == "diverged").all()
    assert read_table(cohort.root / "broken/scores.parquet").empty


def test_an_encoder_of_another_tr_is_given_resampled_runs_and_the_table_says_so(cohort: SmallCohort) -> None:
    cell, folder = small_cell(cohort.study), cohort.root / "other_tr"
    write_cell(cell, folder, {**CONTRACT, "tr_s": 1.0})
    record = read_provenance(run_cell(cohort, cell, folder, "resampled") / "benchmark.parquet")
    assert record["resampled"] == {"simulated": {"pchip, TR 1.5 s to 1 s": 48}}


def test_an_encoder_for_another_template_is_refused_by_the_field(cohort: SmallCohort) -> None:
    cell, folder = small_cell(cohort.study), cohort.root / "other"
    write_cell(cell, folder, {**CONTRACT, "template": "large"})
    with pytest.raises(InputError, match=r"contract\.template: found 'small'; expected 'large'"):
        run_cell(cohort, cell, folder, "other_template")
    assert not (cohort.root / "other_template" / "probe.parquet").exists()


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
        run_cell(cohort, cell, folder, "out")
    write_json(folder / "summary.json", {"status": "completed", "people_hash": digest(people[: cell.subjects])})
    with pytest.raises(InputError, match=f"1 evaluation people or relatives of theirs, 'simulated/{seen}'"):
        run_cell(cohort, cell, folder, "out")


def test_people_whose_runs_were_all_quarantined_are_counted(tmp_path: Path) -> None:
    cohort = make_cohort(tmp_path, people=16)
    manifest = read_json(tmp_path / "manifest.json")
    manifest["runs"] = [run for run in manifest["runs"] if run["subject"] != "e003"]
    write_json(tmp_path / "manifest.json", manifest)
    run_systems(cohort, "out")
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
    run_systems(cohort, "out")
    table = read_table(tmp_path / "out/probe.parquet").query("split == 'permuted' and metric == 'auroc'")
    assert set(table.query("task == 'sex'")["n"]) == {18}
    assert set(table.query("task == 'diagnosis'")["n"]) == {24}


def test_a_scan_of_an_evaluated_person_under_another_name_is_refused(tmp_path: Path) -> None:
    cohort = make_cohort(tmp_path)
    cell, folder = small_cell(cohort.study), tmp_path / "pretrain"
    write_cell(cell, folder, CONTRACT)
    manifest = read_json(tmp_path / "manifest.json")
    manifest["runs"][0]["content"] = "5ca1e"
    write_json(tmp_path / "manifest.json", manifest)
    twin = {**manifest["runs"][0], "dataset": "simulated", "subject": "p003", "source": ""}
    write_json(tmp_path / "pool.json", {"runs": [twin], "quarantined": []})
    raw = {"simulated": tmp_path / "manifest.json", "pool": tmp_path / "pool.json"}
    with pytest.raises(InputError, match=r"'simulated/p003', whose scan is that of 'simulated/e000'"):
        evaluate_cell(cohort.study, cell, folder, raw_manifests=raw, **cohort.inputs, **cohort.outputs("out"))
    assert not (tmp_path / "out").exists()


def test_features_are_encoded_once_and_again_when_damaged(cohort: SmallCohort, monkeypatch: pytest.MonkeyPatch) -> None:
    from pipeline.evaluate import encoders

    cell, folder, kept = small_cell(cohort.study), cohort.root / "kept_cell", cohort.root / "features"
    write_cell(cell, folder, CONTRACT)
    counted = []
    encode = encoders.encode_runs
    monkeypatch.setattr(encoders, "encode_runs", lambda *args, **more: counted.append(1) or encode(*args, **more))
    more = {"raw_manifests": cohort.inputs["manifests"], "features_folder": kept}
    tables = []
    for turn in ("first", "second"):
        evaluate_cell(cohort.study, cell, folder, **more, **cohort.inputs, **cohort.outputs(turn))
        tables.append(read_table(cohort.root / turn / "benchmark.parquet"))
    assert counted == [1]
    pd.testing.assert_frame_equal(*tables)
    (file,) = kept.glob("*.npz")
    file.write_bytes(file.read_bytes()[:100])
    evaluate_cell(cohort.study, cell, folder, **more, **cohort.inputs, **cohort.outputs("third"))
    assert counted == [1, 1]
    pd.testing.assert_frame_equal(tables[0], read_table(cohort.root / "third/benchmark.parquet"))


def test_tasks_say_what_each_protocol_was_run_on(baselines: Path) -> None:
    tasks = read_table(baselines / "tasks.parquet").query("task == 'sex'").set_index("protocol")
    assert list(tasks.index) == ["frozen-v2", "trained-v1", "low-shot-v1"], "one site alone has both classes apart"
    counts = tasks.loc["frozen-v2", ["n", "families", "positive", "negative", "splits", "tuning"]]
    assert counts.tolist() == [24, 12, 12, 12, 10, 4]
    record = read_provenance(baselines / "benchmark.parquet")
    assert tasks.loc["frozen-v2", "splits_hash"] == record["splits"]["simulated/sex"]
    assert np.isfinite(tasks.loc["frozen-v2", "detectable"])


def test_a_state_is_told_from_runs_of_two_data_sets_and_nobody_is_on_both_sides(tmp_path: Path) -> None:
    cohort = make_cohort(tmp_path)
    manifest = read_json(tmp_path / "manifest.json")
    for name, session in (("rest", "1"), ("motor", "2")):
        runs = [{**run, "dataset": name} for run in manifest["runs"] if run["session"] == session]
        write_json(tmp_path / f"{name}.json", {"runs": runs, "quarantined": []})
    motor = {**read_yaml(DEMO.parent / "datasets/simulated.yaml"), "people_of": "rest"}
    datasets = {"rest": "datasets/simulated.yaml", "motor": motor}
    states = {"moving": {"positive": "motor", "negative": "rest"}}
    study = load_study(DEMO, {"datasets": datasets, "evaluate": {"states": states, "splits": 5}})
    study = study.model_copy(update={"datasets": {name: study.datasets[name] for name in datasets}})
    people = read_json(tmp_path / "split/evaluation_set.json")["people"]["simulated"]
    write_json(tmp_path / "set.json", {"people": {"rest": people, "motor": people}, "hash": "both"})
    tables = dict.fromkeys(datasets, tmp_path / "participants.tsv")
    manifests = {name: tmp_path / f"{name}.json" for name in datasets}
    *_, alone, state = load_cohorts(study, manifests, tables, tmp_path / "set.json")
    (task,) = state.tasks
    assert (task.name, state.dataset) == ("moving", "motor_rest")
    assert task.target_M.tolist() == [1] * 24 + [0] * 24
    whose = np.array([sample.split("_")[1] for sample in state.people.index])
    for part_M in task.parts_SM:
        assert all(len(set(part_M[whose == person])) == 1 for person in set(whose))
    assert [run["dataset"] for run in state.runs] == ["motor"] * 24 + ["rest"] * 24
    with pytest.raises(InputError, match="'rest/e003' among them"):
        require_unseen(state, ["rest/e003"], tables, "cell")
    assert "motor/e003" in state.names
    require_unseen(state, ["rest/p003"], tables, "cell")
    with pytest.raises(InputError, match="'rest/e003' among them"):
        require_unseen(alone, ["rest/e003"], tables, "cell")
    require_unseen(alone, ["rest/p003"], tables, "cell")
    assert cohort.study.evaluate.states == {}


@pytest.fixture
def task_alone(tmp_path: Path) -> tuple[Cohort, dict[str, Path]]:
    """`motor`, where e000 and e002 are evaluated, of the same people as `rest`, whose table alone knows families."""
    cohort = make_cohort(tmp_path, people=8)
    lead = {**read_yaml(DEMO.parent / "datasets/simulated.yaml"), "labels": {}}
    datasets = {"rest": lead, "motor": {**lead, "people_of": "rest"}}
    study = load_study(DEMO, {"datasets": datasets})
    study = study.model_copy(update={"datasets": {name: study.datasets[name] for name in datasets}})
    evaluated = {"rest": ["e006"], "motor": ["e000", "e002"]}
    write_json(tmp_path / "set.json", {"people": evaluated, "hash": "both"})
    table = pd.read_csv(tmp_path / "participants.tsv", sep="\t", dtype=str)
    table.assign(family=table["subject"]).to_csv(tmp_path / "motor.tsv", sep="\t", index=False)
    tables = {"rest": tmp_path / "participants.tsv", "motor": tmp_path / "motor.tsv"}
    manifests = dict.fromkeys(datasets, cohort.inputs["manifests"]["simulated"])
    _, motor = load_cohorts(study, manifests, tables, tmp_path / "set.json")
    return motor, tables


@pytest.mark.parametrize("trained_on", ["motor/e002", "rest/e002", "rest/e003", "motor/e003"])
def test_who_is_evaluated_may_be_pretrained_on_in_no_data_set_of_the_same_people(
    task_alone: tuple[Cohort, dict[str, Path]], trained_on: str
) -> None:
    motor, tables = task_alone
    with pytest.raises(InputError, match=f"'{trained_on}' among them"):
        require_unseen(motor, ["rest/e004", trained_on], tables, "cell")
    require_unseen(motor, ["rest/e004", "other/e002"], tables, "cell")


def test_a_state_of_a_data_set_that_is_not_evaluated_is_refused() -> None:
    with pytest.raises(InputError, match=r"evaluate\.states\.moving: 'hcp' is no data set to evaluate on"):
        load_study(DEMO, {"evaluate": {"states": {"moving": {"positive": "hcp", "negative": "simulated"}}}})
