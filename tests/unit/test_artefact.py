"""Results appear complete or not at all, and say where they came from."""

from __future__ import annotations

import os
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline import artefact
from pipeline.errors import InputError

SCHEMA = pa.schema([pa.field("name", pa.string(), nullable=False), pa.field("value", pa.float64())])


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    target = tmp_path / "result.json"
    artefact.write_json(target, {"run": 1})
    with pytest.raises(RuntimeError), artefact.atomic_file(target) as temporary:
        temporary.write_text("half of")
        raise RuntimeError("killed")
    assert artefact.read_json(target) == {"run": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["result.json"]


def test_a_folder_that_fails_leaves_the_old_folder_and_nothing_else(tmp_path: Path) -> None:
    target = tmp_path / "shard"
    for text in ("first", "second"):
        with artefact.atomic_folder(target) as temporary:
            (temporary / "chunk").write_text(text)
    with pytest.raises(RuntimeError), artefact.atomic_folder(target) as temporary:
        (temporary / "chunk").write_text("half of")
        raise RuntimeError("killed")
    assert (target / "chunk").read_text() == "second"
    assert list(tmp_path.iterdir()) == [target]


def test_all_of_a_folder_is_on_the_disk_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target, flushed, flush = tmp_path / "shard", set(), os.fsync

    def record(descriptor: int) -> None:
        if not target.exists():
            flushed.add(os.fstat(descriptor).st_ino)
        flush(descriptor)

    monkeypatch.setattr(os, "fsync", record)
    with artefact.atomic_folder(target) as temporary:
        (temporary / "c/0").mkdir(parents=True)
        (temporary / "c/0/chunk").write_text("frames")
        (temporary / "manifest.json").write_text("{}")
    assert {path.stat().st_ino for path in [target, *target.rglob("*")]} <= flushed


def test_json_refuses_what_json_cannot_hold(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="Out of range"):
        artefact.write_json(tmp_path / "nan.json", {"loss": float("nan")})
    assert not list(tmp_path.iterdir())


@given(st.dictionaries(st.text(), st.integers()))
def test_a_digest_knows_content_and_not_order(value: dict[str, int]) -> None:
    assert artefact.digest(value) == artefact.digest(dict(reversed(value.items())))
    assert artefact.digest({**value, "another": 1}) != artefact.digest({**value, "another": 2})


def test_a_table_is_held_to_its_schema(tmp_path: Path) -> None:
    good = pd.DataFrame({"value": [1.0, None], "name": ["a", "b"]})
    artefact.write_table(tmp_path / "t.parquet", good, SCHEMA, {"stage": "probe"})
    assert list(artefact.read_table(tmp_path / "t.parquet").columns) == ["name", "value"]
    assert artefact.read_provenance(tmp_path / "t.parquet") == {"stage": "probe"}
    for bad, said in [
        (good.assign(odd=1), "unknown columns"),
        (good.drop(columns="value"), "missing columns"),
        (good.assign(name=[None, "b"]), "null values"),
    ]:
        with pytest.raises(ValueError, match=said):
            artefact.write_table(tmp_path / "bad.parquet", bad, SCHEMA)
    assert not (tmp_path / "bad.parquet").exists()


@pytest.mark.parametrize(("name", "read"), [("x.json", artefact.read_json), ("x.parquet", artefact.read_table)])
def test_missing_and_damaged_results_are_bad_input(tmp_path: Path, name: str, read: object) -> None:
    assert callable(read)
    with pytest.raises(InputError, match="no such file"):
        read(tmp_path / name)
    (tmp_path / name).write_bytes(b"{torn")
    with pytest.raises(InputError, match="damaged"):
        read(tmp_path / name)


def test_provenance_names_inputs_by_checksum(tmp_path: Path) -> None:
    source = tmp_path / "in.txt"
    source.write_text("abc")
    record = artefact.provenance("probe", 1, {"splits": 3}, {"in": source})
    assert "ba7816bf8f01cfea" in record["inputs"]["in"], "SHA-256 of 'abc', FIPS 180-2"
    assert record["stage_version"] == 1
