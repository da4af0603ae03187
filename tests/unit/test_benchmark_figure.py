"""The benchmark from shards to picture and page: rows that evaluation writes are rows that figure and report read."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import pytest
from fake_benchmark import benchmark_tables
from fake_tables import losses_table
from matplotlib.figure import Figure
from matplotlib.text import Text
from small_cohort import make_cohort

from pipeline.artefact import read_table, write_table
from pipeline.config import Phenotype, Study
from pipeline.evaluate.comparison.compare import write_comparisons
from pipeline.evaluate.stage import evaluate_systems, write
from pipeline.evaluate.systems import SYSTEMS
from pipeline.figures import draw_figure
from pipeline.figures.select import pick
from pipeline.report.benchmark import benchmark_section
from pipeline.tables import LOSSES_SCHEMA, PRETRAIN_SCHEMA

NAMES = ("connectome_logistic", "temporal_sd", "confounds", "chance")
TABLES = ("benchmark", "scores", "tasks", "comparisons", "pretrain", "losses")


class Evaluated(NamedTuple):
    """A study and the folder of its tables."""

    study: Study
    tables: Path


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory: pytest.TempPathFactory) -> Evaluated:
    """24 people of two sites, siblings at one; sex, a diagnosis that nothing tells, and age.

    A quick system plays a network that is trained.
    """
    cohort = make_cohort(tmp_path_factory.mktemp("cohort"))
    people = pd.read_csv(cohort.inputs["participants"]["simulated"], sep="\t", dtype=str)
    people["site"] = ["AB"[row // 2 % 2] for row in range(len(people))]
    people.to_csv(cohort.inputs["participants"]["simulated"], sep="\t", index=False)
    simulated = cohort.study.datasets["simulated"]
    labels = {**simulated.labels, "age": Phenotype(column="age", number=True)}
    datasets = {**cohort.study.datasets, "simulated": simulated.model_copy(update={"labels": labels})}
    study = cohort.study.model_copy(update={"datasets": datasets})
    systems = [*(SYSTEMS[name] for name in NAMES), replace(SYSTEMS["temporal_sd"], name="brainnetcnn", trained=True)]
    rows, cohorts = evaluate_systems(study, {"simulated": systems}, **cohort.inputs)
    write(study, rows, cohorts, **cohort.outputs("tables"), files={})
    folder = cohort.root / "tables"
    nothing = pd.DataFrame(columns=PRETRAIN_SCHEMA.names)
    write_table(folder / "pretrain.parquet", nothing, PRETRAIN_SCHEMA, {"stage": "pretrain"})
    write_table(folder / "losses.parquet", losses_table(study), LOSSES_SCHEMA, {"stage": "losses"})
    write_comparisons(study, folder, folder / "comparisons.parquet")
    return Evaluated(study, folder)


def test_rows_of_an_evaluation_are_drawn_in_every_panel(evaluated: Evaluated) -> None:
    figure, numbers, caption = draw_figure(evaluated.study, 4, evaluated.tables)
    letters = {title: letter for letter, title in re.findall(r"\{(\w)\}\$  ([A-Z][\w ]+):", texts(figure))}
    assert set(letters) >= {"Few labelled people", "Calibration", "Sites", "Groups of people"}
    for title, letter in letters.items():
        shown = numbers[numbers["panel"] == letter]
        assert np.isfinite(shown["y"]).any(), title
    groups = pick(numbers, panel=letters["Groups of people"]).dropna(subset=["y"])
    assert {name.split()[0] for name in groups["group"]} >= {"sex", "motion", "site"}
    assert {"sex", "diagnosis", "age"} == set(groups["task"])
    assert "gap (too few people)" in texts(figure), "bands of age, of eight people each"
    assert set(pick(numbers, panel="A")["task"]) == {"sex", "diagnosis", "age"}
    assert len(pick(numbers, panel=letters["Sites"], group="within site", task="sex").dropna(subset=["y"]))
    assert "Holm over all" in caption
    assert caption.count("(") == caption.count(")")


def texts(figure: Figure) -> str:
    return " ".join(text.get_text() for text in figure.findobj(Text))


def test_rows_of_an_evaluation_are_told_in_the_report(evaluated: Evaluated) -> None:
    tables = {name: read_table(evaluated.tables / f"{name}.parquet") for name in TABLES}
    told = benchmark_section(evaluated.study, tables)
    values = {(row["task"], row["system"]): row["value"] for row in told["lines"]}
    assert values["sex, simulated", SYSTEMS["connectome_logistic"].label] > 0.75
    assert np.isfinite(values["age, simulated", SYSTEMS["confounds"].label])
    assert all(row["other"] >= 0 for row in told["exclusions"])
    assert len(told["families"]) == 1


def test_tables_that_tests_make_up_have_no_row_that_an_evaluation_has_not(evaluated: Evaluated) -> None:
    made = benchmark_tables(evaluated.study, np.random.default_rng(0), most=24, compared=False)["benchmark"]
    assert kinds(made) <= kinds(read_table(evaluated.tables / "benchmark.parquet"))


def kinds(benchmark: pd.DataFrame) -> set[tuple[str, str, str, str]]:
    """Protocol, kind of split, kind of group and metric of every row."""
    split = benchmark["split"].str.replace(r"^(split|low-shot)-\d+$|^(site) .*", r"\1\2", regex=True)
    group = benchmark["group"].str.replace(r"^(sex|age|motion|site) .*", r"\1", regex=True)
    return set(zip(benchmark["protocol"], split, group, benchmark["metric"], strict=True))
