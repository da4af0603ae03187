"""Figures: they draw every cell, mark what is missing, say what is simulated, and are the same twice."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from fake_tables import Tables, demo_study, fake_tables, write_tables
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image

from pipeline.config import Study
from pipeline.errors import InputError
from pipeline.figures import NUMBERS, draw_figure, save_figure, write_figure
from pipeline.figures.figure1 import verdict_of
from pipeline.figures.select import best_cells, block_rows, mean_interval, pick
from pipeline.grid import block_cells

Drawn = tuple[Figure, pd.DataFrame, str]


@pytest.fixture(scope="module")
def study() -> Study:
    return demo_study(evaluate={"bootstrap": 50})


@pytest.fixture(scope="module")
def content(study: Study) -> Tables:
    return fake_tables(study, compared=True)


@pytest.fixture(scope="module")
def folder(content: Tables, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tables(content, tmp_path_factory.mktemp("tables"))


@pytest.fixture(scope="module")
def drawn(study: Study, folder: Path) -> dict[int, Drawn]:
    return {number: draw_figure(study, number, folder) for number in NUMBERS}


def texts(figure: Figure) -> str:
    return " ".join(text.get_text() for text in figure.findobj(Text))


@pytest.mark.parametrize("number", NUMBERS)
def test_a_figure_is_written_in_all_its_forms(
    study: Study, drawn: dict[int, Drawn], tmp_path: Path, number: int
) -> None:
    png = tmp_path / f"figure{number}.png"
    save_figure(study, *drawn[number], png)
    with Image.open(png) as picture:
        assert picture.size[0] > 600
        assert np.asarray(picture.convert("L")).std() > 5  # something is drawn
    assert png.with_suffix(".pdf").read_bytes().startswith(b"%PDF")
    assert png.with_suffix(".txt").read_text().startswith(f"Figure {number}.")
    numbers = pd.read_csv(png.with_suffix(".csv"))
    assert {"panel", "y"} <= set(numbers)
    assert numbers["y"].notna().any()
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".csv", ".pdf", ".png", ".txt"]


def test_the_same_tables_give_the_same_bytes(study: Study, folder: Path, tmp_path: Path) -> None:
    for name in ("first", "second"):
        write_figure(study, 2, folder, tmp_path / name / "figure2.png")
    for suffix in (".png", ".pdf", ".csv", ".txt"):
        first, second = (tmp_path / name / f"figure2{suffix}" for name in ("first", "second"))
        assert first.read_bytes() == second.read_bytes()


@pytest.mark.parametrize("number", NUMBERS)
def test_simulated_people_are_called_simulated(drawn: dict[int, Drawn], number: int) -> None:
    figure, _, caption = drawn[number]
    assert "SIMULATED COHORT" in texts(figure)
    assert (" Simulated cohort and real data." if number == 5 else " Simulated cohort.") in caption
    if number == 5:
        assert "real data, one run (n = 1)" in texts(figure)


def test_real_people_are_not_called_simulated(study: Study, content: Tables, tmp_path: Path) -> None:
    few = {name: pick(content[name], system=("connectome_logistic", "confounds")) for name in ("benchmark", "scores")}
    tables = {**content, **few}
    real = {name: frame.assign(simulated=False) if "simulated" in frame else frame for name, frame in tables.items()}
    folder = write_tables(real, tmp_path)
    for number in NUMBERS:
        figure, _, caption = draw_figure(study, number, folder)
        assert "SIMULATED" not in texts(figure)
        assert "Simulated cohort" not in caption


def test_every_figure_tells_who_was_lost_and_by_what(drawn: dict[int, Drawn]) -> None:
    pool = "pretraining 30 of 32 (lost 2: overlap 1, mean FD 1), evaluation 48 of 48"
    runs = "runs 156 of 160 (lost 4: overlap 2, mean FD 2)"
    for number, (figure, _, caption) in drawn.items():
        told = f"People of simulated: {pool if number < 4 else 'evaluation 48 of 48'}, {runs}."
        told += " People of rapidtide: spectra 1 of 1." if number == 5 else ""
        assert caption.endswith(told)
        assert told in texts(figure).replace("\n", " ")


def test_a_figure_needs_to_know_who_was_lost(study: Study, content: Tables, tmp_path: Path) -> None:
    folder = write_tables({name: frame for name, frame in content.items() if name != "losses"}, tmp_path)
    with pytest.raises(InputError, match=r"losses\.parquet: found no such file"):
        draw_figure(study, 2, folder)


def test_held_out_intervals_are_called_what_pretraining_made_them(folder: Path) -> None:
    study = demo_study(evaluate={"bootstrap": 200, "confidence": 0.8})
    captions = {number: draw_figure(study, number, folder)[2] for number in (1, 2)}
    assert "one seed with its interval over people (95%)" in captions[1]
    assert "interval (80%)" in captions[1]
    assert "(80% in A to C, 95% in D)" in captions[2]


def test_the_reference_of_reconstructions_is_the_raw_signal_of_the_same_runs(
    study: Study, content: Tables, tmp_path: Path
) -> None:
    spectral = content["spectral"].copy()
    for dataset, reference in (("simulated", 0.61), ("rapidtide", 0.72)):
        spectral.loc[spectral["metric"].eq("beta_raw") & spectral["dataset"].eq(dataset), "value"] = reference
    figure, _, caption = draw_figure(study, 5, write_tables({**content, "spectral": spectral}, tmp_path))
    lines = [line for line in figure.axes[3].lines if line.get_linestyle() == "-."]
    assert [line.get_xdata()[0] for line in lines] == pytest.approx([0.61, 0.72])
    assert lines[0].get_alpha() > lines[1].get_alpha()
    assert "simulated: 48 and 8; rapidtide: 1 and 1" in caption


def test_an_exponent_that_was_not_found_is_a_gap(study: Study, content: Tables, tmp_path: Path) -> None:
    spectral = content["spectral"].copy()
    gone = spectral["metric"].str.startswith("hurst") & spectral["architecture"].ne("")
    spectral.loc[gone, ["value", "low", "high"]] = np.nan
    _, numbers, caption = draw_figure(study, 5, write_tables({**content, "spectral": spectral}, tmp_path))
    assert numbers.loc[numbers["panel"].eq("E") & numbers["architecture"].ne(""), "y"].isna().all()
    assert "no H where the likelihood has no minimum inside its range" in caption


def test_systems_are_called_by_what_they_are(drawn: dict[int, Drawn]) -> None:
    for label in ("time-averaged image", "BrainNetCNN †", "SwiFT v2 (factorised), w24, fine-tuned †", "confounds only"):
        assert label in texts(drawn[4][0])
    for heading in ("Encoders, frozen", "Trained on labels", "Connectomes and other simple systems", "Controls"):
        assert heading in texts(drawn[4][0])


def test_the_benchmark_is_drawn_as_means_over_splits(content: Tables, drawn: dict[int, Drawn]) -> None:
    _, numbers, _ = drawn[4]
    shown = pick(numbers, panel="A", system="connectome_logistic", task="sex")
    splits = pick(content["benchmark"], system="connectome_logistic", task="sex", protocol="frozen-v2", metric="auroc")
    assert shown["y"].tolist() == pytest.approx([splits.loc[splits["fold"] >= 0, "value"].mean()])


def test_the_caption_of_the_benchmark_says_on_what_it_rests(drawn: dict[int, Drawn]) -> None:
    caption = drawn[4][2]
    for told in (
        "frozen-v2: 20 stratified splits 70%, 15%, 15%",
        "trained-v1, the first 5 of these splits",
        "Every system may try 4 settings.",
        "sex of simulated 48 (24 + 24; .178)",
        "tests of the figure, against the connectome, the best simple system and the best peer on 2 tasks",
        "pairs of people of one site tested in one split",
        "over pairs of people of a group tested in one split",
        "low-shot-v1",
        "leave-site-out-v1",
    ):
        assert told in caption


def marks(figure: Figure, kind: str) -> int:
    """How often a mark of a test stands in the forests, apart from the key."""
    return sum(text.get_text() == kind for axes in figure.axes for text in axes.texts)


def test_a_system_above_the_best_simple_one_is_marked_and_equal_ones_are_not(
    study: Study, content: Tables, tmp_path: Path
) -> None:
    compared = content["comparisons"].assign(p_holm=1.0)
    best = compared["role"].eq("best simple") & compared["task"].eq("sex")
    above = best & compared["system"].eq("swift_v2") & compared["size"].eq("w24")
    below = best & compared["system"].eq("temporal_sd")
    assert (above.sum(), below.sum()) == (1, 1)
    compared.loc[above | below, "p_holm"] = 0.01
    compared.loc[above, "difference"], compared.loc[below, "difference"] = 0.1, -0.1
    figure, _, caption = draw_figure(study, 4, write_tables({**content, "comparisons": compared}, tmp_path))
    assert [marks(figure, kind) for kind in "▲▼△▽★"] == [1, 1, 0, 0, 2]
    assert "best simple system: 1 above, 1 below" in caption


def test_a_system_that_does_not_apply_or_failed_is_a_gap(study: Study, content: Tables, tmp_path: Path) -> None:
    benchmark = content["benchmark"]
    absent = benchmark["system"].eq("braingnn") & benchmark["task"].eq("diagnosis")
    failed = benchmark["system"].eq("swift_v1") & benchmark["size"].eq("w24") & benchmark["seed"].eq(0)
    failed &= benchmark["variant"].eq("main")
    broken = benchmark[~absent & ~(failed & (benchmark["fold"] >= 0))].copy()
    gone = failed.reindex(broken.index)
    broken.loc[gone, ["value", "low", "high"]] = np.nan
    broken.loc[gone, "status"] = "diverged"
    figure, numbers, _ = draw_figure(study, 4, write_tables({**content, "benchmark": broken}, tmp_path))
    said = [text.get_text() for axes in figure.axes[:2] for text in axes.texts]
    assert said.count("gap") == 1
    assert said.count("gap (diverged)") == 2, "both tasks; the other seed alone would be a choice by its result"
    assert pick(numbers, panel="A", system="braingnn", task="diagnosis").empty


def test_features_that_are_not_finite_are_a_gap_with_its_reason(study: Study, content: Tables, tmp_path: Path) -> None:
    benchmark = content["benchmark"]
    broken = benchmark["system"].eq("swift_v1") & benchmark["variant"].eq("main") & benchmark["task"].eq("sex")
    rows = benchmark[broken & benchmark["split"].isin(["mean", "oof"]) & benchmark["group"].eq("all")]
    rows = pick(rows, protocol="frozen-v2").assign(value=np.nan, low=np.nan, high=np.nan, status="not_finite")
    tables = {**content, "benchmark": pd.concat([benchmark[~broken], rows])}
    figure, numbers, _ = draw_figure(study, 4, write_tables(tables, tmp_path))
    said = [text.get_text() for axes in figure.axes for text in axes.texts]
    assert said.count("gap (not finite)") >= 2, "in the forest and among sites"
    assert "not_finite" in set(pick(numbers, panel="A", system="swift_v1")["status"])


NETWORKS = ("brainnetcnn", "braingnn", "brainnettf")


@pytest.mark.parametrize("left", [NETWORKS, ("confounds", "swift_v1_time_shuffled"), ("chance",)])
def test_a_benchmark_of_networks_controls_or_chance_alone_is_drawn(
    study: Study, content: Tables, tmp_path: Path, left: tuple[str, ...]
) -> None:
    few = {name: pick(content[name], system=left) for name in ("benchmark", "scores")}
    few["comparisons"] = content["comparisons"].iloc[:0]
    figure, numbers, caption = draw_figure(study, 4, write_tables({**content, **few}, tmp_path))
    assert set(pick(numbers, panel="A")["system"]) == set(left)
    assert "Groups of people" not in texts(figure) + caption
    assert ("Few labelled people" in texts(figure)) == ("confounds" in left)
    assert ("Sites" in texts(figure)) == ("chance" not in left)


def test_a_benchmark_of_many_tasks_and_of_numbers_is_drawn(study: Study, content: Tables, tmp_path: Path) -> None:
    """A third task that is a number, without probabilities, low-shot, sites or groups: its panels say so."""
    benchmark = content["benchmark"]
    plain = benchmark["protocol"].isin(["frozen-v2", "trained-v1"]) & benchmark["group"].eq("all")
    number = benchmark[plain & benchmark["metric"].eq("auroc") & benchmark["task"].eq("sex")]
    number = number.assign(task="age", metric="pearson_r", value=number["value"] - 0.4)
    told = content["tasks"][content["tasks"]["task"] == "sex"].assign(task="age", kind="number", detectable=np.nan)
    more = {**content, "benchmark": pd.concat([benchmark, number]), "tasks": pd.concat([content["tasks"], told])}
    figure, numbers, caption = draw_figure(study, 4, write_tables(more, tmp_path))
    said = texts(figure)
    assert {"sex", "diagnosis", "age"} <= set(pick(numbers, panel="A")["task"])
    assert "Pearson r" in said
    for gap in (
        "not run with few people",
        "a number: no classes",
        "people of one site",
        "nothing is known of its people",
    ):
        assert gap in said
    assert "age of simulated 48 people" in caption


def test_a_benchmark_without_tasks_says_so(study: Study, content: Tables, tmp_path: Path) -> None:
    names = ("benchmark", "scores", "tasks", "comparisons")
    empty = {name: frame.iloc[:0] if name in names else frame for name, frame in content.items()}
    figure, _, caption = draw_figure(study, 4, write_tables(empty, tmp_path))
    assert "no task with labels" in texts(figure)
    assert "Nothing could be compared." in caption


def test_plotted_numbers_are_those_of_the_table(study: Study, content: Tables, drawn: dict[int, Drawn]) -> None:
    _, numbers, _ = drawn[1]
    panel = numbers[numbers["panel"] == "A"].dropna(subset=["y"])
    cells = block_cells(study, "scaling")
    assert len(panel) == len(cells)
    expected = 1 - content["pretrain"].merge(pd.DataFrame([vars(cell) for cell in cells]))["val_r2"]
    np.testing.assert_allclose(np.sort(panel["y"]), np.sort(expected))


def test_a_missing_cell_is_a_gap_that_the_figure_tells(study: Study, content: Tables, tmp_path: Path) -> None:
    gone = content["pretrain"]["size"].eq("w18") & content["pretrain"]["seed"].eq(0)
    folder = write_tables({**content, "pretrain": content["pretrain"][~gone]}, tmp_path)
    figure, numbers, caption = draw_figure(study, 1, folder)
    told = "2 of 16 cells not completed (2 missing)"
    assert told in caption
    assert told in texts(figure)
    assert numbers.loc[(numbers["panel"] == "A") & (numbers["status"] == "missing"), "y"].isna().all()


def test_curves_are_of_the_largest_size_that_an_architecture_has(content: Tables, tmp_path: Path) -> None:
    both = {"sizes": ["w6", "w12", "w18"], "subjects_frames": [[32, 160]]}
    study = demo_study(grid={"scaling": [both, {**both, "architectures": ["swift_v1"], "sizes": ["w24"]}]})
    _, numbers, _ = draw_figure(study, 1, write_tables(content, tmp_path))
    curves = numbers[numbers["panel"] == "D"].drop_duplicates(["architecture", "size"])
    assert dict(zip(curves["architecture"], curves["size"], strict=True)) == {"swift_v1": "w24", "swift_v2": "w18"}


def test_a_diverged_cell_is_a_cross_and_is_in_no_mean(study: Study, content: Tables, tmp_path: Path) -> None:
    pretrain = content["pretrain"].copy()
    bad = pretrain["architecture"].eq("swift_v1") & pretrain["size"].eq("w24")
    pretrain.loc[bad, ["status", "val_r2", "val_r2_low", "val_r2_high"]] = ["diverged", np.nan, np.nan, np.nan]
    figure, _, caption = draw_figure(study, 1, write_tables({**content, "pretrain": pretrain}, tmp_path))
    assert "2 diverged" in caption
    crosses = [line for line in figure.axes[0].lines if line.get_marker() == "x" and len(line.get_xdata())]
    assert sum(len(line.get_xdata()) for line in crosses) == 2


def test_figures_survive_tables_without_rows(study: Study, content: Tables, tmp_path: Path) -> None:
    few = {**content, "scaling": content["scaling"].iloc[:0], "history": content["history"].iloc[:0]}
    folder = write_tables({**few, "spectral": content["spectral"][content["spectral"]["architecture"] == ""]}, tmp_path)
    drawn = {number: draw_figure(study, number, folder) for number in (1, 3, 5)}
    assert "no training curve" in texts(drawn[1][0])
    for figure, numbers, caption in drawn.values():
        assert len(figure.axes) > 2
        assert len(numbers), "what there is is still drawn"
        assert caption.startswith("Figure")


def test_an_architecture_without_cells_of_people_and_frames_is_a_told_gap(tmp_path: Path) -> None:
    only = [{"architectures": ["swift_v2"], "sizes": ["w12"], "subjects_frames": [[24, 40], [12, 80], [6, 160]]}]
    study = demo_study(name="half", grid={"iso_tokens": only, "off_diagonal": [], "data": []})
    figure, numbers, _ = draw_figure(study, 3, write_tables(fake_tables(study), tmp_path))
    assert "no such cells in this study" in texts(figure)
    assert set(numbers["architecture"].dropna()) >= {"swift_v2"}


def test_figures_of_a_study_without_blocks(tmp_path: Path) -> None:
    """The smoke study: no data block, no sweep, one seed."""
    grid = {"data": [], "learning_rate": {"rates": []}, "scaling": [{"subjects_frames": [[32, 160]]}]}
    study = demo_study(name="small", grid=grid)
    folder = write_tables(fake_tables(study), tmp_path)
    gaps = {number: texts(draw_figure(study, number, folder)[0]) for number in NUMBERS}
    assert "no such cells in this study" in gaps[1]
    assert "no sweep configured" in gaps[1]
    assert all(f"Figure {number}." in said for number, said in gaps.items())


def test_trend_becomes_law_only_when_every_fit_says_so() -> None:
    fits = pd.DataFrame({"fit": ["loss_parameters", "loss_flops"], "note": ["law: 6 sizes", "law: 6 sizes"]})
    assert verdict_of(fits) == "a law"
    assert verdict_of(fits.assign(note=["law: 6 sizes", "trend: 4 sizes"])) == "a trend, not a law"
    assert verdict_of(fits.iloc[:0]) == "a trend, not a law"


def test_an_unknown_figure_and_a_missing_table_are_bad_input(study: Study, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="expected one of 1, 2"):
        draw_figure(study, 9, tmp_path)
    with pytest.raises(InputError, match="no such file"):
        draw_figure(study, 1, tmp_path)


def test_interval_of_repeats_is_students() -> None:
    mean, low, high = mean_interval(np.array([1.0, 2.0, 3.0, 4.0]), 0.95)
    half = 3.182446 * np.std([1, 2, 3, 4], ddof=1) / 2  # t of 3 degrees of freedom at .975
    np.testing.assert_allclose([mean, low, high], [2.5, 2.5 - half, 2.5 + half], rtol=1e-6)
    assert np.isnan(mean_interval(np.array([1.0, 2.0]), 0.95)[1:]).all()  # two draws have no interval


def test_the_best_condition_is_chosen_by_reconstruction_alone(study: Study, content: Tables) -> None:
    best = best_cells(study, "iso_tokens", content["pretrain"], "swift_v1")
    rows = pick(block_rows(study, "iso_tokens", content["pretrain"]), architecture="swift_v1")
    mean = rows.groupby("subjects")["val_r2"].mean()
    assert {cell.subjects for cell in best} == {mean.idxmax()}
    assert len(best) == rows["draw"].nunique()
