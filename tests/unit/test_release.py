"""Weights that may not go stay; those that may go with all that a stranger must know."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from people_to_remember import CONTEXT, METADATA, TEMPLATE, cell_of, fresh, study_of

from pipeline.artefact import read_json, write_json, write_table
from pipeline.bold.template import load_template, save_template
from pipeline.config import Dataset, Study, read_yaml
from pipeline.errors import InputError
from pipeline.evaluate.release.card import results_of
from pipeline.evaluate.release.licences import conditions, family, require_compatible
from pipeline.evaluate.release.memorisation import Memorisation
from pipeline.evaluate.release.policy import release
from pipeline.intervals import Interval
from pipeline.pretrain.card import model_card
from pipeline.pretrain.engine.checkpoint import load_cell, save_model
from pipeline.stages import stage_settings
from pipeline.tables import BENCHMARK_SCHEMA, cell_columns, system_columns

CELL = cell_of(8)
DATASETS = sorted((Path(__file__).parents[2] / "config/datasets").glob("*.yaml"))
INTERVAL = Interval(0.5, 0.42, 0.58)
CLEAN = Memorisation("loss", INTERVAL, INTERVAL, 0.91, 0.92, 0.5, 0.5, 0, 60, 60, 480)
SUMMARY = {
    **cell_columns(CELL),
    "status": "completed",
    "objective": "masked reconstruction",
    "recipe": {"optimiser": "adamw", "schedule": "cosine", "precision": "float32", "ema": None},
    "steps": 10,
    "tokens": 1000,
    "learning_rate": 0.001,
    "datasets": ["simulated"],
    "simulated": True,
    "subjects": 8,
    "people": [f"simulated/t{person}" for person in range(8)],
    "people_hash": "0123456789abcdef",
    "cell_hash": "fedcba9876543210",
    "parameters": 100,
    "decoder_parameters": 10,
    "train_flops": 1e6,
    "n_validation_people": 3,
    "effective_rank": 3.5,
    "contract": {**METADATA["contract"], "normalisation": "voxel-z"},
    **{f"val_{name}{end}": 0.5 for name in ("loss", "r2") for end in ("", "_low", "_high")},
}


def benchmark_rows() -> pd.DataFrame:
    """The encoder beside what is simpler, on two protocols, with rows that no card shows."""
    who = {"encoder": (cell_columns(CELL), 0.731), "chance": (system_columns("chance"), 0.5)}
    who["connectome_logistic"] = (system_columns("connectome_logistic"), 0.702)
    who["another"] = (system_columns("parcel_mean_sd"), 0.666)
    rows = []
    for columns, value in who.values():
        about = {**columns, "dataset": "simulated", "task": "sex", "metric": "auroc", "fold": -1, "n": 40}
        about |= {"low": value - 0.1, "high": value + 0.1, "status": "completed", "simulated": True, "unit": "1"}
        for protocol, split in (("frozen-v2", "mean"), ("low-shot-v1", "low-shot-5"), ("frozen-v2", "permuted")):
            rows.append({**about, "protocol": protocol, "split": split, "group": "all", "value": value})
        rows.append({**about, "protocol": "frozen-v2", "split": "mean", "group": "sex F", "value": 0.111})
        rows.append({**about, "protocol": "frozen-v2", "split": "split-000", "group": "all", "value": 0.222})
    return pd.DataFrame(rows, columns=BENCHMARK_SCHEMA.names)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    save_model(tmp_path / "cell/encoder.safetensors", fresh(), METADATA)
    write_json(tmp_path / "cell/summary.json", SUMMARY)
    save_template(TEMPLATE, tmp_path / "template")
    write_table(tmp_path / "benchmark.parquet", benchmark_rows(), BENCHMARK_SCHEMA)
    return tmp_path


def let_go(root: Path, study: Study, licence: str = "Apache-2.0", **given: Any) -> dict[str, Any]:
    found = {"memorisation": CLEAN, "benchmark": root / "benchmark.parquet", "geometry": root / "template", **given}
    return release(study, CELL, root / "cell", root / "released", licence, **found)


def test_free_weights_go_with_all_that_a_stranger_must_know(root: Path) -> None:
    record = let_go(root, study_of())
    folder = root / "released"
    names = {"encoder.safetensors", "model_card.md", "release.json", "template.npz"}
    assert {path.name for path in folder.iterdir()} == names
    assert (folder / "encoder.safetensors").read_bytes() == (root / "cell/encoder.safetensors").read_bytes()
    assert load_cell(folder)[1]["contract"] == METADATA["contract"]
    assert load_template(folder).key == TEMPLATE.key
    assert read_json(folder / "release.json") == record
    card = (folder / "model_card.md").read_text()
    for told in (
        "Licence: Apache-2.0.",
        "tr_s: 1.5",
        f"{CONTEXT} consecutive frames",
        "| simulated: SIMULATED, nobody was scanned | 8 | CC0-1.0 | free |",
        "| simulated (simulated) | sex | frozen-v2 | auroc, mean | 0.731 [0.631, 0.831] | 0.702 [0.602, 0.802] |"
        " 0.500 [0.400, 0.600] | 40 |",
        "auroc, low-shot-5 | 0.731",
        "- frozen-v2: Features are fixed.",
        "no sign of memorisation",
        "0.500 [0.420, 0.580]",
        "people trained on 0.910, others 0.920",
        "60 trained on, 60 not; 480 clips",
        "Not for clinical use",
        record["encoder_sha256"],
    ):
        assert told in card
    for hidden in ("0.111", "0.222", "0.666", "permuted"):
        assert hidden not in card


def test_nobody_is_named(root: Path) -> None:
    let_go(root, study_of())
    for name in ("model_card.md", "release.json"):
        assert "simulated/t" not in (root / "released" / name).read_text()


def restricted() -> Study:
    return study_of(weights="restricted", licence="data use agreement")


def statement(root: Path, text: str = "simulated: allowed by its owner, 2026-11-01, letter 12.") -> Path:
    (root / "statement.md").write_text(text)
    return root / "statement.md"


def test_restricted_weights_need_a_statement_and_a_passed_check(root: Path) -> None:
    with pytest.raises(InputError, match=r"datasets.simulated.weights: restricted: found no statement"):
        let_go(root, restricted())
    with pytest.raises(InputError, match="a statement that does not name it"):
        let_go(root, restricted(), statement=statement(root, "re-simulated: allowed"))
    with pytest.raises(InputError, match="an empty file"):
        let_go(root, restricted(), statement=statement(root, " "))
    assert not (root / "released").exists()
    let_go(root, restricted(), statement=statement(root))
    card = (root / "released/model_card.md").read_text()
    assert "Permission to release:\n\nsimulated: allowed by its owner, 2026-11-01, letter 12." in card
    assert "data use agreement | restricted" in card


@pytest.mark.parametrize(
    ("changes", "verdict"),
    [
        ({"copies": 1}, "sign of memorisation"),
        ({"membership": Interval(0.9, 0.8, 0.95)}, "sign of memorisation"),
        ({"membership": Interval(0.5, 0.2, 0.8)}, "too few people to say"),
    ],
)
def test_restricted_weights_that_may_remember_stay(root: Path, changes: dict[str, Any], verdict: str) -> None:
    found = Memorisation(**{**vars(CLEAN), **changes})
    with pytest.raises(InputError, match=f"memorisation: found {verdict}.*simulated is restricted"):
        let_go(root, restricted(), statement=statement(root), memorisation=found)
    assert not (root / "released").exists()
    let_go(root, study_of(), memorisation=found)
    assert f"verdict: **{verdict}**" in (root / "released/model_card.md").read_text()


@pytest.mark.parametrize(
    ("dataset", "licence", "told"),
    [
        ({"weights": "never"}, "Apache-2.0", "datasets.simulated.weights: found 'never'"),
        ({"weights": "free", "licence": ""}, "Apache-2.0", "datasets.simulated.licence: found ''"),
        ({"licence": "CC-BY-NC-4.0"}, "Apache-2.0", "expected a non-commercial licence for the weights"),
        ({"licence": "CC-BY-NC-SA"}, "CC-BY-NC-4.0", "expected CC-BY-NC-SA for the weights"),
        ({"licence": "CC-BY-ND-4.0"}, "CC-BY-ND-4.0", "expected data that may be adapted"),
        ({}, "CC-BY-NX", "--licence: found 'CC-BY-NX'.*Did you mean 'CC-BY-N"),
    ],
)
def test_what_a_data_set_forbids_is_refused(root: Path, dataset: dict[str, Any], licence: str, told: str) -> None:
    with pytest.raises(InputError, match=told):
        let_go(root, study_of(**dataset), licence)
    assert not (root / "released").exists()


def test_what_is_no_finished_encoder_with_results_is_refused(root: Path) -> None:
    write_json(root / "cell/summary.json", {**SUMMARY, "status": "diverged"})
    with pytest.raises(InputError, match="status 'diverged'; expected 'completed'"):
        let_go(root, study_of())
    write_json(root / "cell/summary.json", SUMMARY)
    with pytest.raises(InputError, match=r"template.npz: found no such file"):
        let_go(root, study_of(), geometry=root)
    rows = benchmark_rows()
    write_table(root / "benchmark.parquet", rows[rows["architecture"] == ""], BENCHMARK_SCHEMA)
    with pytest.raises(InputError, match=f"no results of {CELL.path}"):
        let_go(root, study_of())
    rows.drop(columns="protocol").to_parquet(root / "benchmark.parquet")
    with pytest.raises(InputError, match="no column 'protocol'"):
        let_go(root, study_of())


def test_a_folder_with_other_files_is_left_alone(root: Path) -> None:
    (root / "released").mkdir()
    (root / "released/thesis.tex").write_text("years")
    with pytest.raises(InputError, match=r"'thesis.tex' in it; expected a new folder"):
        let_go(root, study_of())
    (root / "released/thesis.tex").unlink()
    let_go(root, study_of())
    assert let_go(root, study_of())["cell"] == CELL.path  # an earlier release is replaced


def test_a_gap_in_the_benchmark_is_shown_as_one(root: Path) -> None:
    rows = benchmark_rows()
    rows.loc[rows["architecture"] != "", ["value", "low", "high"]] = np.nan
    rows.loc[rows["architecture"] != "", "status"] = "diverged"
    write_table(root / "benchmark.parquet", rows, BENCHMARK_SCHEMA)
    let_go(root, study_of())
    assert "auroc, mean | none (diverged) | 0.702" in (root / "released/model_card.md").read_text()


def test_the_card_takes_rows_of_this_cell_alone(root: Path) -> None:
    rows = benchmark_rows()
    other = rows[rows["architecture"] != ""].assign(seed=1, value=0.999)
    write_table(root / "benchmark.parquet", pd.concat([rows, other]), BENCHMARK_SCHEMA)
    assert 0.999 not in results_of(root / "benchmark.parquet", CELL)["value"].to_numpy()


def test_before_release_a_card_gives_the_weights_no_licence() -> None:
    assert "the weights get theirs when they are released" in model_card(SUMMARY, CONTEXT)


@pytest.mark.parametrize(
    ("data", "weights", "allowed"),
    [
        ("CC0-1.0", "Apache-2.0", True),
        ("PDDL-1.0", "CC-BY-NC-SA-4.0", True),
        ("CC BY 4.0", "MIT", True),
        ("CC-BY-NC-SA-3.0", "CC-BY-NC-SA-4.0", True),
        ("CC-BY-NC-SA-3.0", "CC-BY-SA-4.0", False),
        ("CC-BY-SA-4.0", "CC-BY-NC-SA-4.0", False),
        ("CC-BY-NC", "CC-BY-NC-SA-4.0", True),
        ("CC-BY-NC", "CC-BY-4.0", False),
        ("ODbL-1.0", "ODbL-1.0", True),
        ("CC-BY-NC-ND-4.0", "CC-BY-NC-ND-4.0", False),
        ("some owner: non-commercial research", "Apache-2.0", False),
        ("some owner: non-commercial research", "CC-BY-NC-4.0", True),
        ("an agreement", "Apache-2.0", True),  # the statement answers for it
    ],
)
def test_licences_of_weights_follow_those_of_data(data: str, weights: str, allowed: bool) -> None:
    if allowed:
        require_compatible(weights, data, "here")
        return
    with pytest.raises(InputError, match=r"here: found weights under .*, data under "):
        require_compatible(weights, data, "here")


def test_a_licence_is_known_by_any_spelling() -> None:
    assert family("cc by-nc-sa 4.0") == "CC-BY-NC-SA"
    assert family("BSD-3-Clause") == "BSD-3-Clause"
    assert family("UK Biobank Material Transfer Agreement") is None
    assert conditions("") is None


@pytest.mark.parametrize("path", DATASETS, ids=lambda path: path.stem)
def test_every_data_set_of_the_project_says_its_terms(path: Path) -> None:
    said = read_yaml(path)
    assert "weights" in said
    assert said["licence"] or path.stem == "parcels"  # the pattern for one's own
    assert said["weights"] == "restricted" or conditions(said["licence"]) is not None
    assert said["weights"] == "free" or not said.get("simulated")


def test_a_data_set_that_says_nothing_is_restricted() -> None:
    silent = {"door": "parcels", "path": "x", "people": 1, "runs": 1, "roles": ["spectra"], "atlas": "a"}
    assert Dataset(**silent).weights == "restricted"  # type: ignore[arg-type]


def test_terms_rerun_nothing() -> None:
    free, other = study_of(), study_of(weights="never", licence="MIT")
    for stage in ("shards", "people", "manifest"):
        assert stage_settings(free, stage, "simulated") == stage_settings(other, stage, "simulated")
    for stage in ("split", "truths", "tables", "baselines"):
        assert stage_settings(free, stage) == stage_settings(other, stage)
    for stage in ("pretrain", "evaluate"):
        assert stage_settings(free, stage, cell=CELL) == stage_settings(other, stage, cell=CELL)
