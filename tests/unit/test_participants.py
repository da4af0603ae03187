"""The table of people: any file, any names of columns, any coding; one form comes out, and what is odd is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import builders
import pytest
import trees
from hypothesis import given
from hypothesis import strategies as st

from pipeline.bold.participants import normalised, read_participants, repetition_times
from pipeline.config import Study
from pipeline.errors import InputError


def study_of(folder: Path, **fields: Any) -> Study:
    return builders.make_study({}, folder, {"people": 1, "evaluation_people": 1, **fields})


def subjects(folder: Path, **fields: Any) -> list[str]:
    return list(read_participants(study_of(folder, **fields), "cohort")["subject"])


def test_people_lose_their_prefix_and_keep_their_order(tmp_path: Path) -> None:
    trees.write_table(tmp_path / "participants.tsv", {"participant_id": ["sub-02", "sub-01", "x9"]})
    assert subjects(tmp_path) == ["02", "01", "x9"]


def test_the_table_may_lie_elsewhere_and_separate_by_commas(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trees.write_table(tmp_path / "elsewhere/all.csv", {"Subject": [100307, 100408], "note": ['"a, b"', "c"]})
    monkeypatch.setenv("TABLES", str(tmp_path / "elsewhere"))
    (tmp_path / "data").mkdir()
    fields = {"participants": "$TABLES/all.csv", "id_column": "Subject"}
    assert subjects(tmp_path / "data", **fields) == ["100307", "100408"]
    table = read_participants(study_of(tmp_path / "data", **fields), "cohort")
    assert list(table["note"]) == ["a, b", "c"]


def test_values_stay_text_and_a_mark_at_the_start_of_the_file_is_no_part_of_a_name(tmp_path: Path) -> None:
    (tmp_path / "participants.tsv").write_text("\ufeffparticipant_id\tsite\n007\tNA\n\n008\t1e3\n", encoding="utf-8")
    table = read_participants(study_of(tmp_path), "cohort")
    assert table[["subject", "site"]].to_numpy().tolist() == [["007", "NA"], ["008", "1e3"]]


def test_raw_bids_without_a_table_has_the_people_of_its_folders(tmp_path: Path) -> None:
    for name in ("sub-02", "sub-01", "derivatives", "code"):
        (tmp_path / name).mkdir()
    (tmp_path / "sub-03.json").touch()
    assert subjects(tmp_path, door="bids") == ["01", "02"]
    with pytest.raises(InputError, match=r"participants\.tsv: found no such file"):
        subjects(tmp_path, door="fmriprep")
    with pytest.raises(InputError, match=r"people\.tsv: found no such file"):
        subjects(tmp_path, door="bids", participants="people.tsv")


def test_an_empty_table_has_nobody(tmp_path: Path) -> None:
    (tmp_path / "participants.tsv").write_text("participant_id\tsex\n")
    assert subjects(tmp_path) == []


def test_columns_are_named_and_coded_by_the_data_set_file(tmp_path: Path) -> None:
    trees.write_abide(tmp_path)
    study = study_of(
        tmp_path,
        door="pcp",
        participants="phenotypes.csv",
        id_column="SUB_ID",
        age_column="AGE_AT_SCAN",
        missing=["-9999", ""],
        labels={"autism": {"column": "DX_GROUP", "positive": ["1"], "negative": ["2"]}},
        confounds=["age", "site", "FIQ"],
        site_column="SITE_ID",
        family_column=None,
    )
    table = normalised(study, "cohort", ["51201", "50003"])
    assert list(table.columns) == ["subject", "family", "site", "age", "autism", "FIQ"]
    assert table.to_numpy().tolist() == [
        ["51201", "51201", "UCLA_1", "9", "0", "110"],
        ["50003", "50003", "PITT", "24.5", "1", ""],
    ]


def test_missing_values_are_those_that_the_data_set_declares(tmp_path: Path) -> None:
    columns = {"participant_id": ["1", "2", "3"], "sex": ["F", "-9", "M"], "age": ["-9", "31", "n/a"]}
    trees.write_table(tmp_path / "participants.tsv", {**columns, "family_id": ["f", "f", "-9"]})
    fields: dict[str, Any] = {"confounds": [], "family_column": "family_id"}
    with pytest.raises(InputError, match=r"participant '3', column 'age': found 'n/a'; expected a number or -9"):
        normalised(study_of(tmp_path, missing=["-9"], **fields), "cohort", ["1", "2", "3"])
    with pytest.raises(InputError, match="column 'sex': found '-9'; expected one of M, F or n/a"):
        normalised(study_of(tmp_path, **fields), "cohort", ["1", "2", "3"])
    table = normalised(study_of(tmp_path, missing=["-9", "n/a"], **fields), "cohort", ["1", "2", "3"])
    assert table[["sex", "age", "family"]].to_numpy().tolist() == [["1", "", "f"], ["", "31", "f"], ["0", "", "3"]]


def test_labels_outside_the_coding_pass_where_nobody_is_evaluated(tmp_path: Path) -> None:
    trees.write_table(tmp_path / "participants.tsv", {"participant_id": ["1"], "sex": ["other"], "age": ["4"]})
    study = study_of(tmp_path, roles=["pretrain"], evaluation_people=0)
    assert normalised(study, "cohort", ["1"])["sex"].tolist() == [""]


@pytest.mark.parametrize(("confound", "says"), [("age", "no column 'age'"), ("site", "no column 'site'")])
def test_a_confound_that_the_table_does_not_have_is_refused(confound: str, says: str, tmp_path: Path) -> None:
    trees.write_table(tmp_path / "participants.tsv", {"participant_id": ["1"], "sex": ["F"]})
    with pytest.raises(InputError, match=says):
        normalised(study_of(tmp_path, confounds=[confound]), "cohort", ["1"])


def test_repetition_times_are_read_by_person_where_the_table_has_them(tmp_path: Path) -> None:
    columns = {"participant_id": ["a", "b", "c"], "TR": ["2.0", "n/a", "0.72"]}
    trees.write_table(tmp_path / "participants.tsv", columns)
    assert repetition_times(study_of(tmp_path), "cohort") == {"a": 2.0, "c": 0.72}
    trees.write_table(tmp_path / "participants.tsv", {"participant_id": ["a"]})
    assert repetition_times(study_of(tmp_path), "cohort") == {}
    trees.write_table(tmp_path / "participants.tsv", {"participant_id": ["a"], "tr_s": ["fast"]})
    with pytest.raises(InputError, match="participant 'a', column 'tr_s': found 'fast'"):
        repetition_times(study_of(tmp_path), "cohort")


@given(name=st.text(min_size=1, max_size=8))
def test_any_id_is_either_taken_as_it_is_or_refused(name: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("ids")
    line = '"' + name.replace('"', '""') + '"'
    content = f"participant_id\tx\n{line}\t1\n".encode("utf-8", "surrogatepass")
    (folder / "participants.tsv").write_bytes(content)
    id_alone = name.removeprefix("sub-")
    if id_alone.isascii() and id_alone.isalnum():
        assert subjects(folder) == [id_alone]
    else:
        with pytest.raises(InputError, match=r"participants\.tsv: found"):
            subjects(folder)
