"""The configuration: what is refused and how it is said, and that every file of ours is valid and commented."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from pipeline.config import Strict, Study, dump_study, load_study, merge, read_yaml, schema
from pipeline.errors import InputError

REPOSITORY = Path(__file__).resolve().parents[2]
STUDIES = ["config.yaml", "demo.yaml"]
FILES = sorted((REPOSITORY / "config").rglob("*.yaml"))


@pytest.mark.parametrize("name", STUDIES)
def test_our_studies_are_valid(name: str) -> None:
    assert load_study(REPOSITORY / "config" / name).architectures


def test_the_smoke_study_is_the_demo_with_fewer_cells() -> None:
    overlay = yaml.safe_load((REPOSITORY / "config" / "smoke.yaml").read_text())
    demo, smoke = load_study(REPOSITORY / "config/demo.yaml"), load_study(REPOSITORY / "config/demo.yaml", overlay)
    fewer = {name: getattr(demo, name) for name in ("name", "grid", "evaluate", "supplement")}
    assert smoke.model_copy(update=fewer) == demo


@pytest.mark.parametrize("name", STUDIES)
def test_a_frozen_study_reads_back_equal(name: str, tmp_path: Path) -> None:
    study = load_study(REPOSITORY / "config" / name)
    (tmp_path / "frozen.yaml").write_text(dump_study(study))
    assert load_study(tmp_path / "frozen.yaml") == study


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_every_key_is_commented(path: Path) -> None:
    bare = [line for line in path.read_text().splitlines() if re.match(r"\s*(- )?\w+:( |$)", line) and "#" not in line]
    assert not bare or path.name == "claims.yaml", f"{path.name}: no meaning beside {bare}"


def test_the_schema_in_the_tree_is_the_one_of_the_models() -> None:
    kept = json.loads((REPOSITORY / "workflow/schemas/config.schema.json").read_text())
    assert kept == schema(), "run `pipeline config schema --output workflow/schemas/config.schema.json`"


def _fields(model: type[Strict]) -> list[tuple[str, Any]]:
    return [(f"{model.__name__}.{name}", field) for name, field in model.model_fields.items()]


def test_every_key_has_a_meaning_in_the_schema() -> None:
    models = [model for model in Strict.__subclasses__() if model.__module__ == Study.__module__ and model is not Study]
    silent = [name for model in models for name, field in _fields(model) if not field.description]
    assert not silent, f"without a description: {silent}"


def _demo(changes: dict[str, Any]) -> InputError:
    with pytest.raises(InputError) as caught:
        load_study(REPOSITORY / "config/demo.yaml", changes)
    return caught.value


def test_a_typo_is_refused_with_its_path_the_nearest_name_and_the_file() -> None:
    message = str(_demo({"pretrain": {"batch_clip": 3}}))
    assert "config/demo.yaml: pretrain.batch_clip" in message
    assert "Did you mean 'batch_clips'?" in message


def test_a_typo_in_a_second_file_names_both(tmp_path: Path) -> None:
    (tmp_path / "over.yaml").write_text("grid: {off_diagonl: []}")
    with pytest.raises(InputError, match=r"demo\.yaml \+ .*over\.yaml: grid\.off_diagonl.*'off_diagonal'"):
        load_study(REPOSITORY / "config/demo.yaml", more=[tmp_path / "over.yaml"])


def test_a_typo_in_a_data_set_names_that_file(tmp_path: Path) -> None:
    text = (REPOSITORY / "config/datasets/simulated.yaml").read_text()
    (tmp_path / "mine.yaml").write_text(text.replace("batch_people:", "batch_peopel:"))
    (tmp_path / "study.yaml").write_text(dump_study(load_study(REPOSITORY / "config/demo.yaml")))
    with pytest.raises(InputError, match=r"mine\.yaml: batch_peopel.*'batch_people'"):
        load_study(tmp_path / "study.yaml", {"datasets": {"simulated": "mine.yaml"}})


@pytest.mark.parametrize(
    ("changes", "where", "expected"),
    [
        ({"pretrain": {"steps": 0}}, "pretrain.steps", "greater than or equal to 1"),
        ({"evaluate": {"test": 1.5}}, "evaluate.test", "less than 1"),
        ({"name": "my study"}, "name", "letters, digits"),
        ({"grid": {"scaling": [{"sizes": ["w13"]}]}}, "grid.scaling.0", "'w13' is no size of swift_v1"),
        ({"grid": {"data": [{"architectures": ["swift_v3"]}]}}, "grid.data.0", "'swift_v3' is no architecture"),
        (
            {"grid": {"data": [{"subjects_frames": [[4, 10]]}]}},
            "grid.data.0",
            "shorter than the clips of its architectures, 20",
        ),
        ({"grid": {"data": [{"arm": "random"}]}}, "grid.data.0.arm", "'random' is that of untrained controls"),
        ({"grid": {"data": [{"arm": "lr-x"}]}}, "grid.data.0.arm", "'lr-...' of the learning-rate sweep"),
        ({"grid": {"learning_rate": {"datasets": ["rapidtide"]}}}, "grid.learning_rate", "is no data set to pretrain"),
        ({"grid": {"learning_rate": {"rates": [], "size": "w13"}}}, "grid.learning_rate", "'w13' is no size of"),
        ({"quality": {"min_overlap": "high"}}, "quality.min_overlap", "valid number"),
    ],
)
def test_a_wrong_value_names_its_key_and_what_was_expected(changes: dict[str, Any], where: str, expected: str) -> None:
    message = str(_demo(changes))
    assert where in message
    assert expected in message


def test_a_cell_that_two_blocks_train_on_different_people_is_refused() -> None:
    again = {"sizes": ["w24"], "subjects_frames": [[36000, 490]], "datasets": ["hcp"]}
    with pytest.raises(InputError) as caught:
        load_study(REPOSITORY / "config/config.yaml", {"grid": {"data": [again]}})
    told = "for swift_4d/w24/N36000-T490/draw0-main/seed0 grid.scaling.0 says ['ukb'], grid.data.0 ['hcp']"
    assert told in str(caught.value)
    load_study(REPOSITORY / "config/config.yaml", {"grid": {"data": [again | {"arm": "hcp"}]}})


def _of_two(**changes: dict[str, Any]) -> dict[str, Any]:
    """Changes of the demo: `task` beside `simulated`, of the same people, with a state of the two."""
    lead = read_yaml(REPOSITORY / "config/datasets/simulated.yaml")
    datasets = {"task": {**lead, "people_of": "simulated", **changes.get("task", {})}}
    datasets |= {name: {**lead, **fields} for name, fields in changes.items() if name not in ("task", "states")}
    states = changes.get("states", {"moving": {"positive": "task", "negative": "simulated"}})
    return {"datasets": datasets, "evaluate": {"states": states}}


def test_data_sets_of_the_same_people_are_one_cohort() -> None:
    study = load_study(REPOSITORY / "config/demo.yaml", _of_two())
    assert [study.cohort_of(name) for name in ("simulated", "task")] == ["simulated", "simulated"]
    assert study.same_people("task") == study.same_people("simulated") == ["simulated", "task"]


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"task": {"people_of": "simulatd"}}, "datasets.task.people_of: 'simulatd' is no data set of the study"),
        ({"task": {"people_of": "task"}}, "datasets.task.people_of: 'task' is no data set of the study without"),
        ({"third": {"people_of": "task"}}, "datasets.third.people_of: 'task' is no data set of the study without"),
        ({"task": {"people_of": None}}, "the same people ('people_of'), not 'task' and 'simulated'"),
        ({"task": {"door": "bids"}}, "the same 'door', not 'bids' and 'fmriprep'"),
        ({"task": {"atlas": "cc200"}}, "the same 'atlas', not 'cc200' and 'none'"),
        ({"states": {"moving": {"positive": "task", "negative": "task"}}}, "two different data sets"),
        ({"task_simulated": {}}, "evaluate.states.moving: its rows are called 'task_simulated'"),
        (
            {"states": {name: {"positive": "task", "negative": "simulated"} for name in ("moving", "still")}},
            "evaluate.states.still: its rows are called 'task_simulated'",
        ),
    ],
)
def test_data_sets_that_do_not_have_the_same_people_make_no_cohort(changes: dict[str, Any], told: str) -> None:
    assert told in str(_demo(_of_two(**changes)))


def test_a_missing_file_and_a_broken_one_are_bad_input(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        load_study(tmp_path / "absent.yaml")
    (tmp_path / "broken.yaml").write_text("name: [")
    with pytest.raises(InputError, match="not YAML"):
        load_study(tmp_path / "broken.yaml")


def test_an_unset_variable_in_a_path_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PIPELINE_UKB", raising=False)
    with pytest.raises(InputError, match=r"datasets\.ukb\.path.*PIPELINE_UKB"):
        load_study(REPOSITORY / "config/config.yaml").data_path("ukb")


nested = st.recursive(st.integers(), lambda inner: st.dictionaries(st.sampled_from("abc"), inner, max_size=3))


@given(st.dictionaries(st.sampled_from("abc"), nested), st.dictionaries(st.sampled_from("abc"), nested))
def test_merging_keeps_every_value_laid_over(base: dict[str, Any], over: dict[str, Any]) -> None:
    merged = merge(base, over)
    assert merge(merged, over) == merged
    assert merged.keys() == base.keys() | over.keys()
    assert all(merged[key] == value for key, value in over.items() if not isinstance(value, dict))
