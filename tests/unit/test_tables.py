"""Tables of one schema, and what is refused on the way into them."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pyarrow as pa
import pytest

from pipeline import tables
from pipeline.artefact import read_provenance, read_table, write_json, write_table, write_text
from pipeline.config import load_study
from pipeline.errors import InputError
from pipeline.grid import Cell, all_cells, evaluated_cells
from pipeline.layout import Layout

DEMO = Path(__file__).resolve().parents[2] / "config/demo.yaml"
SCHEMAS = {name: schema for name, schema in vars(tables).items() if name.endswith("_SCHEMA")}


def result(system: str, **changes: object) -> dict[str, object]:
    row = {"dataset": "d", "task": "sex", "metric": "auroc", "split": "oof", "fold": tables.NONE, "value": 0.7}
    rest = {"low": 0.6, "high": 0.8, "n": 48, "status": "completed", "simulated": True, "unit": "1"}
    return {**tables.system_columns(system), **row, **rest, **changes}


def write(path: Path, *rows: dict[str, object]) -> Path:
    write_table(path, pd.DataFrame(rows, columns=tables.RESULT_SCHEMA.names), tables.RESULT_SCHEMA)
    return path


def test_tables_are_put_together_in_the_order_given(tmp_path: Path) -> None:
    paths = [write(tmp_path / f"{name}.parquet", result(name)) for name in ("b", "a")]
    empty = write(tmp_path / "empty.parquet")
    output = tmp_path / "all.parquet"
    tables.collect([paths[0], empty, paths[1]], tables.RESULT_SCHEMA, output, {"stage": "tables"})
    assert read_table(output)["system"].tolist() == ["b", "a"]
    assert read_provenance(output) == {"stage": "tables"}


@pytest.mark.parametrize("schema", SCHEMAS.values(), ids=SCHEMAS)
def test_nothing_at_all_still_makes_a_table_with_its_columns(schema: pa.Schema, tmp_path: Path) -> None:
    tables.collect([], schema, tmp_path / "none.parquet", None)
    found = read_table(tmp_path / "none.parquet")
    assert list(found.columns) == schema.names
    assert found.empty


def test_a_gap_keeps_its_row(tmp_path: Path) -> None:
    path = write(tmp_path / "gap.parquet", result("a", value=float("nan"), low=None, high=None, status="diverged"))
    tables.collect([path], tables.RESULT_SCHEMA, tmp_path / "all.parquet", None)
    row = read_table(tmp_path / "all.parquet").iloc[0]
    assert pd.isna(row["value"])
    assert row["status"] == "diverged"


def test_a_row_without_a_system_is_a_bug_of_its_writer(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"system.*null"):
        write(tmp_path / "bad.parquet", {**result("a"), "system": None})
    assert not list(tmp_path.iterdir())


def test_a_table_of_another_version_is_refused_with_the_columns_that_differ(tmp_path: Path) -> None:
    path = tmp_path / "old.parquet"
    pd.DataFrame([result("a")]).rename(columns={"unit": "units"}).to_parquet(path)
    with pytest.raises(InputError, match=r"other columns \(unit, units\)"):
        tables.collect([path], tables.RESULT_SCHEMA, tmp_path / "all.parquet", None)
    assert not (tmp_path / "all.parquet").exists()


def test_a_missing_table_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"absent\.parquet: found no such file"):
        tables.collect([tmp_path / "absent.parquet"], tables.RESULT_SCHEMA, tmp_path / "all.parquet", None)


def test_a_row_names_its_cell() -> None:
    cell = Cell("swift_v2", "w12", 24, 40, 1, "main", 3)
    columns = tables.cell_columns(cell)
    assert columns.pop("system") == "swift_v2"
    assert Cell(**columns) == cell


def summary(**changes: object) -> dict[str, object]:
    values = dict.fromkeys(tables.PRETRAIN_SCHEMA.names, 1)
    return {**values, "status": "completed", "people_hash": "p", "cell_hash": "c", "val_loss": None, **changes}


SYSTEMS = ["baselines", "braingnn"]  # jobs of systems outside the grid


def test_every_stage_of_a_study_becomes_one_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    study = load_study(DEMO)
    layout = Layout(study)
    for cell in all_cells(study):
        branch = {"branch": 1, "steps": 5, "tokens": 40, "val_loss": 0.5}
        points = [branch] if cell == all_cells(study)[0] else []
        write_json(layout.cell("pretrain", cell) / "summary.json", summary(points=points))
        path = layout.cell("pretrain", cell) / "history.parquet"
        tables.collect([], tables.HISTORY_SCHEMA, path, None)
    for table, (stage, beside, schema) in tables.EVALUATED.items():
        outside = [layout.root / stage / name for name in beside or SYSTEMS]
        for folder in [*outside, *(layout.cell(stage, cell) for cell in evaluated_cells(study))]:
            if schema is tables.RESULT_SCHEMA:
                write(folder / f"{table}.parquet", result(str(folder)))
            else:
                tables.collect([], schema, folder / f"{table}.parquet", None)
    for name, dataset in study.datasets.items():
        runs = [{"subject": "a", "session": "1", "run": "1"}]
        write_json(layout.manifest(name), {"runs": runs, "quarantined": []})
        columns = ["subject", "family", *dataset.labels]
        write_text(layout.people(name) / "participants.tsv", "\t".join(columns) + "\n")
    write_json(layout.evaluation_set, {"people": {}, "hash": ""})
    tables.collect([], tables.TASKS_SCHEMA, layout.root / "benchmark/baselines/tasks.parquet", None)
    tables.collect_tables(study, layout.tables, SYSTEMS)
    assert set(read_table(layout.table("losses"))["dataset"]) == set(study.datasets)
    pretrain = read_table(layout.table("pretrain"))
    assert [Cell(**row) for row in pretrain[list(vars(Cell("", "", 0, 0)))].to_dict("records")] == all_cells(study)
    assert pretrain["simulated"].all()
    points = read_table(layout.table("points"))
    assert points["branch"].tolist() == [1, 0, *[0] * (len(all_cells(study)) - 1)]
    assert points.loc[0, ["steps", "tokens", "val_loss", "parameters"]].tolist() == [5, 40, 0.5, 1]
    assert len(read_table(layout.table("probe"))) == len(SYSTEMS) + len(evaluated_cells(study))
    assert len(read_table(layout.table("spectral"))) == 1 + len(evaluated_cells(study))
    assert read_table(layout.table("tasks")).empty
    (layout.cell("pretrain", all_cells(study)[0]) / "summary.json").write_text('{"status": "completed"}')
    with pytest.raises(InputError, match=r"summary\.json: found no parameters, "):
        tables.collect_tables(study, layout.tables, SYSTEMS)


@pytest.mark.parametrize("counter", ["tokens", "steps", "batch_clips", "context_frames"])
def test_conditions_of_equal_tokens_that_were_not_are_refused(counter: str) -> None:
    study = load_study(DEMO)
    rows = [{**summary(), **tables.cell_columns(cell)} for cell in all_cells(study)]
    tables.check_equal_tokens(study, pd.DataFrame(rows))
    odd = next(row for row in rows if row["subjects"] == 6 and row["frames"] == 160 and row["draw"] == 1)
    odd |= {counter: 2, "status": "diverged"}
    tables.check_equal_tokens(study, pd.DataFrame(rows))  # it is in no comparison
    odd["status"] = "completed"
    with pytest.raises(InputError, match=rf"iso_tokens: {odd['architecture']} {odd['size']}: found .*{counter} [12]"):
        tables.check_equal_tokens(study, pd.DataFrame(rows))
