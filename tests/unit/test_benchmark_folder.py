"""`pipeline benchmark` on folders that no configuration describes: what is inferred, excluded, refused and found."""

import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from series_folders import FORMS, FRAMES, PARCELS, PEOPLE, People, planted_people, write_archive

from pipeline.artefact import read_provenance
from pipeline.cli import main
from pipeline.errors import InputError
from pipeline.evaluate.folder import stages
from pipeline.evaluate.folder.columns import read_columns, without_missing
from pipeline.evaluate.folder.inferred import Options, read_folder
from pipeline.evaluate.folder.labels import read_label
from pipeline.evaluate.folder.matching import match_people
from pipeline.evaluate.folder.series import Series
from pipeline.tables import BENCHMARK_SCHEMA

SYSTEMS = "connectome_logistic,confounds,chance"


@pytest.fixture(autouse=True)
def _no_disk_flush(monkeypatch):
    """What is written here need not outlive a power cut; flushing a thousand small files is half of a test's time."""
    monkeypatch.setattr(os, "fsync", lambda _: None)


@pytest.fixture(scope="module")
def planted(tmp_path_factory) -> Path:
    """A folder of 48 people that no test changes; `work` beside it keeps its shards."""
    return folder_of(planted_people(), tmp_path_factory.mktemp("planted"))


def benchmark(folder: Path, output: Path, *more: str, task: str = "dx", systems: str = SYSTEMS) -> int:
    arguments = ["--dataset", str(folder), "--task", task, "--systems", systems, "--output", str(output)]
    return main(["benchmark", *arguments, "--splits", "4", *more])  # the last of two wins


def folder_of(people: People, tmp_path: Path, form: str = "archive") -> Path:
    folder = tmp_path / "data"
    folder.mkdir()
    FORMS[form](people, folder)
    people.write_table(folder)
    return folder


def inferred(people: People, tmp_path: Path, form: str = "archive", **changes: object):
    folder = folder_of(people, tmp_path, form)
    return read_folder(Options(folder, "dx", ("chance",), tmp_path / "t.parquet", **changes))  # type: ignore[arg-type]


def means(path: Path) -> dict[str, float]:
    table = pd.read_parquet(path)
    return table[table["metric"] == "auroc"].groupby("system")["value"].mean().to_dict()


# --- it works, whatever the form -------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["quantised", "cpac"])
def test_a_planted_effect_is_found_in_folders_of_any_form(form, tmp_path, capsys):
    folder, output = folder_of(planted_people(), tmp_path, form), tmp_path / "table.parquet"
    assert benchmark(folder, output) == 0
    table, printed = pd.read_parquet(output), capsys.readouterr().out
    assert list(table.columns) == BENCHMARK_SCHEMA.names
    for system in SYSTEMS.split(","):
        rows = table[(table["system"] == system) & (table["metric"] == "auroc")]
        assert sorted(rows["split"]) == [f"split-{split:03d}" for split in range(4)]
        assert set(rows["task"]) == {"dx"}
        assert set(rows["n"]) <= {6, 7, 8}  # 15 % of 48
    found = means(output)
    assert found["connectome_logistic"] > 0.9
    assert 0.1 < found["confounds"] < 0.85
    assert found["chance"] == 0.5
    summary = pd.read_parquet(tmp_path / "table.summary.parquet")
    assert {"mean", "oof", "permuted"} <= set(summary["split"])
    for words in ("'TC' is a word for controls", "column 'site', 3 sites", "Excluded: nobody", "smallest detectable"):
        assert words in printed


@pytest.mark.parametrize("ends", ["\n", "\r\n", "\r"])
def test_a_table_may_have_commas_any_line_ends_and_a_mark_of_its_encoding(ends, tmp_path):
    people = planted_people(people=12, frames=24)
    folder = folder_of(people, tmp_path)
    text = (folder / "participants.tsv").read_text().replace("\t", ",").replace("\n", ends)
    (folder / "participants.csv").write_bytes(text.encode("utf-8-sig"))
    (folder / "participants.tsv").unlink()
    found = read_folder(Options(folder, "dx", ("chance",), tmp_path / "t.parquet"))
    assert sorted(run.subject for run in found.scans.runs) == sorted(people.series)
    assert found.label.phenotype.positive == ("ASD",)
    assert "column 'participant_id'" in found.found["ids"]


def test_a_second_call_ingests_only_what_has_changed(tmp_path, monkeypatch):
    monkeypatch.setattr(stages, "BATCH", 8)
    people = planted_people(people=12, frames=24)
    folder, output = folder_of(people, tmp_path, "text"), tmp_path / "table.parquet"
    assert benchmark(folder, output, systems="chance") == 0
    written = {path: path.stat().st_mtime_ns for path in (tmp_path / "table.work").rglob("shard.zarr")}
    assert len(written) == 12
    changed = sorted(folder.glob("*.1D"))[-1]
    np.savetxt(changed, np.random.default_rng(0).normal(0, 1, (FRAMES, PARCELS)))
    assert benchmark(folder, output, systems="chance") == 0
    new = {path.parts[-3] for path, time in written.items() if path.stat().st_mtime_ns != time}
    assert new == {f"sub-{name}" for name in list(people.series)[8:]}  # the second batch of people alone
    sorted(folder.glob("*.1D"))[0].unlink()
    assert benchmark(folder, output, systems="chance") == 0
    assert not (tmp_path / "table.work/shards/sub-50003/ses-1_run-1").exists()


def test_leave_site_out_has_a_row_a_site_and_may_be_asked_for_alone(planted, tmp_path, capsys):
    output, more = tmp_path / "t.parquet", ("--work", str(planted.with_name("work")))
    assert benchmark(planted, output, "--protocols", "leave_site_out", *more, systems="connectome_logistic") == 0
    table = pd.read_parquet(output)
    assert set(table["protocol"]) == {"leave-site-out-v1"}
    assert set(pd.read_parquet(tmp_path / "t.summary.parquet")["protocol"]) == {"leave-site-out-v1"}
    assert set(read_provenance(output)["protocols"]) == {"leave-site-out-v1"}
    printed = capsys.readouterr().out
    assert "leave-site-out-v1" in printed
    assert "frozen-v2 (" not in printed
    assert sorted(table.loc[table["metric"] == "auroc", "split"]) == ["site NYU", "site PITT", "site YALE"]


def test_a_number_is_predicted_by_ridge(planted, tmp_path, capsys):
    people, table = planted_people(), tmp_path / "other.csv"
    coupling = [np.corrcoef(series_TR[:, 0], series_TR[:, 1])[0, 1] for series_TR in people.series.values()]
    people.set("age", {row: f"{20 + 10 * value:.3f}" for row, value in enumerate(coupling)})
    people.write_table(tmp_path, table.name)
    more = ("--participants", str(table), "--work", str(planted.with_name("work")), "--splits", "3")
    systems, protocols = "connectome_logistic,connectome_ridge", "frozen,low_shot"
    assert benchmark(planted, tmp_path / "t.parquet", *more, "--protocols", protocols, task="age", systems=systems) == 0
    found = pd.read_parquet(tmp_path / "t.parquet")
    assert set(found["metric"]) == {"pearson_r", "r2", "mse", "mae"}
    assert found.loc[found["metric"] == "pearson_r", "value"].mean() > 0.7
    printed = capsys.readouterr().out
    assert "does not apply: a number has no classes to draw people of" in printed
    assert "No row of connectome_ridge: of a number connectome_logistic is ridge already." in printed


def test_low_shot_and_networks_are_summed_up_beside_the_splits(planted, tmp_path, capsys):
    more = ("--protocols", "frozen,trained,low_shot", "--work", str(planted.with_name("work")), "--splits", "2")
    assert benchmark(planted, tmp_path / "t.parquet", *more, systems="connectome_logistic,tangent_logistic") == 0
    table, summary = pd.read_parquet(tmp_path / "t.parquet"), pd.read_parquet(tmp_path / "t.summary.parquet")
    protocols = {"connectome_logistic": "frozen-v2", "tangent_logistic": "trained-v1"}
    assert dict(zip(table["system"], table["protocol"], strict=True)) == protocols
    few = summary[summary["split"] == "low-shot-10"]
    assert few["value"].iloc[0] > 0.6
    assert "AUROC, 10 a class" in capsys.readouterr().out


def test_of_protocols_asked_for_alone_nothing_else_is_written(planted, tmp_path, capsys):
    more = ("--protocols", "trained,low_shot,frozen", "--work", str(planted.with_name("work")), "--splits", "2")
    assert benchmark(planted, tmp_path / "t.parquet", *more, systems="chance") == 0
    assert set(pd.read_parquet(tmp_path / "t.parquet")["protocol"]) == {"frozen-v2"}
    assert "does not apply: none of these systems is trained" in capsys.readouterr().out
    more = ("--protocols", "low_shot", *more[2:])
    assert benchmark(planted, tmp_path / "t.parquet", *more, systems="chance,gradient_boosting") == 0
    assert pd.read_parquet(tmp_path / "t.parquet").empty
    assert set(pd.read_parquet(tmp_path / "t.summary.parquet")["protocol"]) == {"low-shot-v1"}
    printed = capsys.readouterr().out
    assert "No row of gradient_boosting: it is trained, and 'trained' is not among the protocols asked for." in printed
    assert "No row of chance" not in printed


@pytest.mark.parametrize(
    ("protocol", "systems", "task", "why"),
    [
        ("low_shot", "chance", "age", "a number has no classes"),
        ("low_shot", "gradient_boosting", "dx", "systems that are trained run under 'trained' alone"),
        ("frozen", "gradient_boosting", "dx", "systems that are trained run under 'trained' alone"),
        ("trained", "chance", "dx", "none of these systems is trained"),
    ],
)
def test_a_protocol_that_applies_to_nothing_is_told(protocol, systems, task, why, planted, tmp_path, capsys):
    assert benchmark(planted, tmp_path / "t.parquet", "--protocols", protocol, task=task, systems=systems) == 2
    told = capsys.readouterr().err
    assert f"'{protocol}', which does not apply" in told
    assert why in told


def test_a_system_with_nothing_to_read_is_told(planted, tmp_path, capsys):
    table = tmp_path / "other.csv"
    people = planted_people()
    people.header[people.header.index("mean_fd")] = "blood"
    people.write_table(tmp_path, table.name)
    more = ("--participants", str(table), "--work", str(planted.with_name("work")), "--splits", "2")
    assert benchmark(planted, tmp_path / "t.parquet", *more, systems="motion_only,chance") == 0
    assert "No row of motion_only: this folder has nothing that it reads" in capsys.readouterr().out


def test_a_cohort_of_few_is_warned_of(tmp_path, capsys):
    folder = folder_of(planted_people(people=14, frames=24), tmp_path)
    assert benchmark(folder, tmp_path / "t.parquet", systems="chance") == 0
    warnings = [line for line in capsys.readouterr().out.splitlines() if "WARNING" in line]
    assert len(warnings) == 1
    assert "4 of 4 test parts hold fewer than 3 people of a class (2 people each)" in warnings[0]
    assert "intervals are too narrow" in warnings[0]


def test_a_cohort_of_enough_is_not_warned_of(planted, tmp_path, capsys):
    assert benchmark(planted, tmp_path / "t.parquet", "--work", str(planted.with_name("work")), systems="chance") == 0
    assert "WARNING" not in capsys.readouterr().out


def test_runs_of_which_some_are_band_passed_are_warned_of(tmp_path, capsys):
    people = planted_people(people=20)
    for name in list(people.series)[:4]:
        spectrum_FR = np.fft.rfft(people.series[name], axis=0)
        spectrum_FR[len(spectrum_FR) // 3 :] = 0
        people.series[name] = np.fft.irfft(spectrum_FR, FRAMES, axis=0)
    assert benchmark(folder_of(people, tmp_path), tmp_path / "t.parquet", systems="connectome_logistic") == 0
    assert "4 runs look band-passed and 16 do not" in capsys.readouterr().out


# --- people and runs that are excluded -------------------------------------------------------------------------------


def test_people_that_cannot_be_used_are_excluded_and_listed(tmp_path, capsys):
    people = planted_people()
    names = list(people.series)
    people.series[names[0]][3, 2] = np.nan
    people.series[names[1]] = people.series[names[1]][:10]
    people.series[names[2]] = people.series[names[3]].copy()
    people.series[names[4]][:, 1:] = 5.0  # one live parcel of six
    people.series[names[5]][:, [2, 4]] = 5.0  # four of six: kept
    people.series["99999"] = people.series[names[6]] + 1
    del people.series[names[7]]
    people.series[names[12]][:] = 5.0
    people.series[names[13]][3, 1] = np.inf
    people.series[names[14]] = people.series[names[14]][:, :, None]
    people.set("dx", {8: "n/a", 9: "-9999", 10: "", 11: "NaN"})
    folder, output = folder_of(people, tmp_path), tmp_path / "table.parquet"
    assert benchmark(folder, output) == 0
    printed = capsys.readouterr().out
    for reason, who in (
        ("values that are not finite", 0),
        ("10 frames, fewer than", 1),
        ("same data as", 2),
        ("same data as", 3),
        ("coverage 0.167, less than", 4),
        ("no series", 7),
        *(("4  no label in 'dx'", who) for who in (8, 9, 10, 11)),
        ("coverage 0, less than", 12),
        ("2  the series has values that are not finite", 13),
        ("not frames x parcels", 14),
    ):
        assert any(reason in line and names[who] in line for line in printed.splitlines()), (reason, names[who])
    assert "a series of nobody in the table" in printed
    assert "sub-99999" in printed
    excluded = read_provenance(output)["excluded"]
    assert excluded["no label in 'dx'"] == 4
    assert excluded["same data as another"] == 2
    assert not any(name in reason for reason in excluded for name in names)
    tasks = pd.read_parquet(tmp_path / "table.work/tables/tasks.parquet")
    assert set(tasks["n"]) == {PEOPLE - 13}
    assert means(output)["connectome_logistic"] > 0.85


# --- what is refused -------------------------------------------------------------------------------------------------


def unknown_column(people: People) -> None:
    people.header[1] = "diagnosis"


def one_class(people: People) -> None:
    people.set("dx", dict.fromkeys(range(PEOPLE), "TC"))


def four_patients(people: People) -> None:
    people.set("dx", {row: "TC" for row in range(PEOPLE) if row > 8})


def no_labels(people: People) -> None:
    people.set("dx", dict.fromkeys(range(PEOPLE), "n/a"))


def three_values(people: People) -> None:
    people.set("dx", dict.fromkeys(range(6), "MCI"))


def three_codings(people: People) -> None:
    people.set("dx", {row: ["asd", "1"][row % 2] for row in range(6)})


def no_people(people: People) -> None:
    people.table = []


def one_column(people: People) -> None:
    people.header, people.table = [";".join(people.header)], [[";".join(line)] for line in people.table]


def another_atlas(people: People) -> None:
    name = list(people.series)[5]
    people.series[name] = np.hstack([people.series[name]] * 2)


def turned(people: People) -> None:
    people.series = {
        name: series_TR[: FRAMES - row % 3].T for row, (name, series_TR) in enumerate(people.series.items())
    }


def id_twice(people: People) -> None:
    people.set("participant_id", {4: people.table[3][0]})


def rows_thrice(people: People) -> None:
    people.table = [line for line in people.table for _ in range(3)]


def id_in_two_forms(people: People) -> None:
    people.set("participant_id", {4: f"sub-{people.table[3][0]}"})


def few_usable(people: People) -> None:
    for line in people.table[9:]:
        if line[1] == "ASD":
            people.series[line[0]][0, 0] = np.nan


def nobody_usable(people: People) -> None:
    for series_TR in people.series.values():
        series_TR[0, 0] = np.nan


def id_missing(people: People) -> None:
    people.set("participant_id", {4: ""})


def other_ids(people: People) -> None:
    people.set("participant_id", {row: f"person{row}" for row in range(PEOPLE)})


def milliseconds(people: People) -> None:
    people.set("TR", dict.fromkeys(range(PEOPLE), "2000"))


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (unknown_column, ["no column 'dx'"]),
        (one_class, ["'TC' alone (48 people)", "other class is absent"]),
        (four_patients, ["4 people with 'ASD' and 44 with 'TC'", "at least 5 of each"]),
        (no_labels, ["no label of anybody"]),
        (three_values, ["3 values", "'MCI' (6)", "--positive A --negative B"]),
        (three_codings, ["4 values", "'asd' (3)"]),
        (no_people, ["a header and no rows"]),
        (one_column, ["one column, 'participant_id;dx;", "commas (.csv) or tabs"]),
        (another_atlas, ["47 series of 6 parcels", "12 of", "one parcellation"]),
        (turned, ["one number of parcels", "frames x parcels"]),
        (id_twice, ["twice", "one row a person"]),
        (rows_thrice, ["participant_id '50003' twice", "one row a person"]),
        (id_in_two_forms, ["'50024' and 'sub-50024', which both name"]),
        (few_usable, ["4 positive and 24 negative people", "20 of them: the series has values that are not finite"]),
        (nobody_usable, ["no usable series of 48 people; 48 of them", "not finite"]),
        (id_missing, ["no participant_id in row 6"]),
        (other_ids, ["nobody with a series", "'person0'", "sub-50003", "--id-column"]),
        (milliseconds, ["is it in ms?"]),
    ],
)
def test_a_fault_of_the_table_or_the_series_is_told_in_one_message(spoil, words, tmp_path, capsys):
    people = planted_people()
    spoil(people)
    folder = folder_of(people, tmp_path)
    assert benchmark(folder, tmp_path / "t.parquet", "--min-frames", "5", systems="chance") == 2
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    assert all(word in told for word in words), told


def test_a_folder_that_is_none_is_told(tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    without, damaged = tmp_path / "without", folder_of(planted_people(), tmp_path)
    without.mkdir()
    write_archive(planted_people(), without)
    (damaged / "more.npz").write_bytes(b"PK no archive")
    lonely = tmp_path / "lonely"
    lonely.mkdir()
    planted_people().write_table(lonely)
    for folder, words in (
        (tmp_path / "nowhere", "no such folder"),
        (tmp_path / "empty", "an empty folder"),
        (without, "a table of people (participants.tsv or participants.csv)"),
        (damaged, "more.npz: found a damaged archive"),
        (damaged / "participants.tsv", "no such folder"),
        (lonely, "no parcel series"),
    ):
        assert benchmark(folder, tmp_path / "t.parquet") == 2
        assert words in capsys.readouterr().err


def test_an_unknown_system_or_output_is_told_before_anything_else(tmp_path, capsys):
    assert benchmark(tmp_path, tmp_path / "t.parquet", systems="conectome_logistic") == 2
    assert "Did you mean 'connectome_logistic'?" in capsys.readouterr().err
    assert benchmark(tmp_path, tmp_path / "t.parquet", systems="tff") == 2
    assert "reads volumes" in capsys.readouterr().err
    assert benchmark(tmp_path, tmp_path / "t.csv") == 2
    assert "*.parquet" in capsys.readouterr().err
    assert benchmark(tmp_path, tmp_path / "t.parquet", "--protocols", "frosen") == 2
    assert "Did you mean 'frozen'?" in capsys.readouterr().err


def test_a_place_that_cannot_be_written_is_told_before_anything_is_computed(planted, tmp_path, capsys):
    occupied, named = tmp_path / "a file", tmp_path / "named.parquet"
    occupied.write_text("")
    named.mkdir()
    for output, more, words in (
        (occupied / "t.parquet", (), f"--output: found '{occupied}', which cannot be written"),
        (tmp_path / "t.parquet", ("--work", str(occupied)), f"--work: found '{occupied}', which cannot be written"),
        (named, (), "a folder; expected a file called *.parquet"),
    ):
        assert benchmark(planted, output, *more) == 2
        told = capsys.readouterr()
        assert words in told.err
        assert "Excluded" not in told.out


def test_numbers_of_too_few_people_or_one_value_are_told(tmp_path, capsys):
    people = planted_people(people=12, frames=24)
    people.set("age", dict.fromkeys(range(4), ""))
    people.set("mean_fd", dict.fromkeys(range(12), "0.1"))
    folder = folder_of(people, tmp_path)
    assert benchmark(folder, tmp_path / "t.parquet", "--number", task="age", systems="chance") == 2
    assert "4 people in the upper and 4 in the lower half" in capsys.readouterr().err
    assert benchmark(folder, tmp_path / "t.parquet", "--number", task="mean_fd", systems="chance") == 2
    assert "12 people with the value 0.1 and nobody with another" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flag", "value"), [("--splits", "0"), ("--min-frames", "0"), ("--min-coverage", "1.5"), ("--tr", "0")]
)
def test_numbers_that_cannot_be_meant_are_told(flag, value, tmp_path, capsys):
    assert benchmark(tmp_path, tmp_path / "t.parquet", flag, value) == 2
    assert f"{flag}: found {value}" in capsys.readouterr().err


def test_leaving_sites_out_needs_two(tmp_path, capsys):
    people = planted_people()
    people.set("site", dict.fromkeys(range(PEOPLE), "NYU"))
    assert benchmark(folder_of(people, tmp_path), tmp_path / "t.parquet", "--protocols", "leave_site_out") == 2
    assert "two sites at least" in capsys.readouterr().err


# --- what is inferred ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
def test_everybody_is_matched_in_every_form(form, tmp_path):
    people = planted_people()
    folder = inferred(people, tmp_path, form)
    assert sorted(run.subject for run in folder.scans.runs) == sorted(people.series)
    assert not folder.scans.lost
    assert not folder.strangers
    assert set(folder.table.columns) == {"subject", "family", "site", "age", "sex", "mean_fd", "dx"}
    assert {run.tr_s for run in folder.scans.runs} == {2.0}


@pytest.mark.parametrize(
    ("ids", "names"),
    [
        (["sub-01", "sub-02", "sub-12"], ["sub-01", "sub-02", "sub-12"]),
        (
            ["1", "2", "12"],
            ["sub-01_task-rest_timeseries", "sub-02_task-rest_timeseries", "sub-12_task-rest_timeseries"],
        ),
        (["50003", "50004", "51318"], ["Pitt_0050003", "Pitt_0050004", "MaxMun_a_0051318"]),
        (["50003.0", "50004.0", "51318.0"], ["0050003_rois_cc200", "0050004_rois_cc200", "0051318_rois_cc200"]),
        (["NYU_a1", "NYU_b2", "UCLA_1_c3"], ["NYU-A1", "nyu_b2", "UCLA_1_c3"]),
        (["s1", "s2", "s10"], ["S001", "S002", "S010"]),
    ],
)
def test_ids_are_found_in_names(ids, names):
    table = pd.DataFrame({"number": ["7", "8", "9"], "ID": ids, "age": ["3.5", "4.5", "5.5"]})
    series = [Series(Path(f"{name}.1D"), "", (name,)) for name in reversed(names)]
    match = match_people(table, series, Path("t.tsv"), Path("d"))
    assert match.column == "ID"
    assert match.rows == {0: (2,), 1: (1,), 2: (0,)}


def test_ids_are_found_in_folders_and_runs_are_told_apart():
    names = [("sub-1", "ses-a", "run-1_bold"), ("sub-1", "ses-b", "run-1_bold"), ("sub-2", "ses-a", "run-2_bold")]
    series = [Series(Path("bold.1D"), "", name) for name in names]
    match = match_people(pd.DataFrame({"id": ["1", "2"]}), series, Path("t.tsv"), Path("d"))
    assert match.rows == {0: (0, 1), 1: (2,)}
    assert [(one.label("ses"), one.label("run")) for one in series] == [("a", "1"), ("b", "1"), ("a", "2")]


def test_two_columns_that_disagree_are_told_and_one_may_be_named():
    table = pd.DataFrame({"first": ["1", "2", "3"], "second": ["3", "1", "2"]})
    series = [Series(Path(f"{name}.1D"), "", (f"{name}",)) for name in (1, 2, 3)]
    with pytest.raises(InputError, match=r"two ways to give 3 people.*--id-column"):
        match_people(table, series, Path("t.tsv"), Path("d"))
    assert match_people(table, series, Path("t.tsv"), Path("d"), "second").rows[0] == (2,)
    standard = table.rename(columns={"second": "participant_id"})
    assert match_people(standard, series, Path("t.tsv"), Path("d")).column == "participant_id"


def test_ids_that_differ_only_by_signs_stay_apart(tmp_path):
    people = planted_people()
    for row, (former, name) in enumerate(zip(["50003", "50010", "50017"], ["a_1", "a1", "A_b"], strict=True)):
        people.series[name] = people.series.pop(former)
        people.set("participant_id", {row: name})
    subjects = [run.subject for run in inferred(people, tmp_path).scans.runs]
    assert len({subject.lower() for subject in subjects}) == PEOPLE
    assert all(subject.isalnum() for subject in subjects)
    assert "Ab" in subjects


@pytest.mark.parametrize(
    ("values", "positive"),
    [
        (["ASD", "TC"], "ASD"),
        (["CN", "AD"], "AD"),
        (["HC", "Schizophrenia"], "Schizophrenia"),
        (["0", "1"], "1"),
        (["1.0", "0.0"], "1"),
        (["no", "yes"], "yes"),
        (["Control", "Bipolar"], "Bipolar"),
        (["M", "F"], "F"),
        (["female", "male"], "female"),
        (["1", "2"], "2"),
        (["alpha", "beta"], "beta"),
    ],
)
def test_of_two_values_one_is_positive(values, positive):
    label = read_label(pd.DataFrame({"dx": values * 6}), "dx", Path("t.tsv"))
    assert label.phenotype.positive == (positive,)
    assert f"'{positive}' (6)" in label.told
    other = next(value for value in (label.phenotype.negative) if value != positive)
    said = read_label(pd.DataFrame({"dx": values * 6}), "dx", Path("t.tsv"), positive=[other])
    assert said.phenotype.positive == (other,)


def test_of_several_values_two_may_be_compared():
    table = pd.DataFrame({"dx": ["CN", "MCI", "AD", "SMC"] * 6})
    label = read_label(table, "dx", Path("t.tsv"), positive=["AD", "MCI"], negative=["CN"])
    assert label.phenotype.positive == ("AD", "MCI")
    assert (label.values == "").sum() == 6
    assert set(label.neither.values()) == {"SMC"}
    assert read_label(table, "dx", Path("t.tsv"), positive=["AD"]).phenotype.negative == ("CN", "MCI", "SMC")
    with pytest.raises(InputError, match="nobody with 'AB'"):
        read_label(table, "dx", Path("t.tsv"), positive=["AB"])
    with pytest.raises(InputError, match="nobody with another value than 'CN'"):
        read_label(table[table["dx"] == "CN"], "dx", Path("t.tsv"), positive=["CN"])


def test_numbers_of_many_values_are_a_quantity():
    ages = pd.DataFrame({"age": [str(20 + number) for number in range(30)]})
    assert read_label(ages, "age", Path("t.tsv")).phenotype.number
    few = pd.DataFrame({"score": [str(number % 4) for number in range(30)]})
    with pytest.raises(InputError, match="4 values"):
        read_label(few, "score", Path("t.tsv"))
    assert read_label(few, "score", Path("t.tsv"), number=True).phenotype.number
    odd = pd.DataFrame({"age": [*ages["age"], ">89"]})
    with pytest.raises(InputError, match="'>89' of row 32"):
        read_label(odd, "age", Path("t.tsv"), number=True)


def test_columns_are_known_by_their_names():
    table = pd.DataFrame(
        {
            "DX": ["1", "2"] * 6,
            "dx": ["TC", "ASD"] * 6,
            "SITE_ID": list("AABBCCAABBCC"),
            "AGE_AT_SCAN": [f"{age}.5" for age in range(12)],
            "SEX": ["1", "2"] * 6,
            "Gender": ["F", "M", "M"] * 4,
            "func_mean_fd": [f"0.{number}" for number in range(12)],
            "Family_ID": list("aabbccddeeff"),
            "eTIV": ["1500"] * 12,
        }
    )
    columns = read_columns(table, Path("t.tsv"), "dx")
    assert columns[:6] == (None, "SITE_ID", "AGE_AT_SCAN", "Gender", "Family_ID", "func_mean_fd")
    assert columns.confounds == ("eTIV",)
    assert columns.recoded == ("SEX",)  # here it says the same as the task
    with pytest.raises(InputError, match="'DX', which is 'dx' in other words"):
        read_columns(table, Path("t.tsv"), "dx", confounds=["DX"])
    with pytest.raises(InputError, match="Did you mean 'SITE_ID'"):
        read_columns(table, Path("t.tsv"), "dx", site="SITEID")


def test_codes_for_missing_values_are_made_empty():
    table, codes = without_missing(pd.DataFrame({"a": ["1", " n/a ", "-9999"], "b": ["None", "", "NaN"]}))
    assert table.to_numpy().tolist() == [["1", "None"], ["", ""], ["", ""]]
    assert codes == ["-9999", "NaN", "n/a"]


def test_what_nobody_states_is_assumed_or_taken_from_where_files_lie(tmp_path):
    people = planted_people()
    folder = folder_of(people, tmp_path, "quantised")
    for column in ("TR", "site", "sex", "age", "mean_fd"):
        place = people.header.index(column)
        people.header.pop(place)
        for line in people.table:
            line.pop(place)
    people.write_table(folder)
    found = read_folder(Options(folder, "dx", ("chance",), tmp_path / "t.parquet"))
    assert "2 s is ASSUMED for 48 runs" in found.found["repetition time"]
    assert set(found.table["site"]) == {"NYU", "PITT", "YALE"}
    assert found.confounds == ("site",)
    assert read_folder(Options(folder, "dx", ("chance",), tmp_path / "t.parquet", tr_s=1.5)).scans.runs[0].tr_s == 1.5


def test_two_series_of_a_person_that_nothing_tells_apart_are_refused(tmp_path):
    people = planted_people()
    folder = folder_of(people, tmp_path, "text")
    np.savetxt(folder / "0050010_rois_aal.1D", people.series["50010"])
    with pytest.raises(InputError, match=r"0050010_rois_aal.1D and 0050010_rois_cc200.1D of one person"):
        read_folder(Options(folder, "dx", ("chance",), tmp_path / "t.parquet"))


def test_abide_as_it_lies(tmp_path):
    root = os.environ.get("PIPELINE_REAL_DATA")
    if not root:
        pytest.skip("PIPELINE_REAL_DATA is unset: no ABIDE series")
    found = read_folder(Options(Path(root) / "abide_cc200", "dx", ("chance",), tmp_path / "t.parquet"))
    assert len(found.scans.runs) == 657
    assert found.label.phenotype.positive == ("ASD",)
    assert found.table["site"].nunique() == 11
    assert found.confounds == ("age", "site", "sex", "mean_fd")
    assert set(found.table["sex"]) == {"F", "M"}
    assert "1.5 to 3 s" in found.found["repetition time"]
    sex = read_folder(Options(Path(root) / "abide_cc200", "sex", ("chance",), tmp_path / "t.parquet"))
    assert "SEX" in sex.found["left out"]
    assert sex.label.phenotype.positive == ("F",)
