"""Comparisons: a planted difference is found after Holm, equal systems are not; who is compared with whom, on what."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from fake_benchmark import benchmark_tables
from fake_tables import demo_study, pretrain_table, write_tables
from scipy import stats

from pipeline import tables
from pipeline.artefact import read_provenance, read_table
from pipeline.config import Study
from pipeline.errors import InputError
from pipeline.evaluate.comparison.compare import POOLED, compare, write_comparisons
from pipeline.evaluate.comparison.lines import lineup, pick
from pipeline.evaluate.comparison.paired import people_difference
from pipeline.evaluate.protocols import FROZEN, LEAVE_SITE_OUT, TRAINED
from pipeline.evaluate.splits import TEST, draw_splits
from pipeline.evaluate.statistics import holm, pooled_effect, weighted_auroc
from pipeline.grid import Cell

N, TESTED = 200, 30  # people of the fake task, and of each of its test parts
ENCODERS = {name: Cell(name, "w24", 32, 160) for name in ("swift_v1", "swift_v2")}


@pytest.fixture(scope="module")
def study() -> Study:
    """Two encoders of one size and seed, nothing else in the grid."""
    scaling = [{"sizes": ["w24"], "subjects_frames": [[32, 160]]}]
    return demo_study(grid={"scaling": scaling, "data": [], "iso_tokens": [], "off_diagonal": [], "random_weights": []})


def rows_of_splits(
    system: str, values: Any, protocol: str = FROZEN, who: dict[str, Any] | None = None, **changes: Any
) -> list[dict[str, Any]]:
    """Rows of each split of a system; NaN makes a gap without splits, as a failed encoder has."""
    cell = ENCODERS.get(system)
    about = who or (tables.cell_columns(cell) if cell else tables.system_columns(system))
    row = {"dataset": "d", "task": "dx", "protocol": protocol, "metric": "auroc", "group": "all", "n": TESTED}
    row |= {"low": np.nan, "high": np.nan, "status": "completed", "simulated": True, "unit": "1", **about, **changes}
    values = np.asarray(values, dtype=float)
    gap = {**row, "split": "mean", "fold": tables.NONE, "value": values.mean(), "n": N}
    splits = [{**row, "split": f"split-{fold:03d}", "fold": fold, "value": value} for fold, value in enumerate(values)]
    return [gap, *(split for split in splits if np.isfinite(split["value"]))]


def tasks_of(*datasets: str, kind: str = "classes") -> pd.DataFrame:
    row = {"task": "dx", "kind": kind, "n": N, "families": N, "positive": N // 2, "negative": N // 2, "splits": 20}
    row |= {"tuning": 4, "detectable": 0.06, "evaluation_hash": "e", "splits_hash": "s", "simulated": True}
    rows = [
        {**row, "dataset": name, "protocol": protocol} for name in datasets or ("d",) for protocol in (FROZEN, TRAINED)
    ]
    return pd.DataFrame(rows, columns=tables.TASKS_SCHEMA.names)


def benchmark_of(*parts: list[dict[str, Any]]) -> pd.DataFrame:
    return pd.DataFrame([row for part in parts for row in part], columns=tables.BENCHMARK_SCHEMA.names)


NO_SCORES = pd.DataFrame(columns=tables.SCORES_SCHEMA.names)


def compared(study: Study, *parts: list[dict[str, Any]], tasks: pd.DataFrame | None = None) -> pd.DataFrame:
    found = compare(study, benchmark_of(*parts), NO_SCORES, tasks_of() if tasks is None else tasks)
    return found.set_index(["system", "role"])


def around(mean: float, rng: np.random.Generator, splits: int = 20, noise: float = 0.02) -> np.ndarray:
    return mean + rng.normal(0, noise, splits)


# --- what is found -------------------------------------------------------------------------------------------------


def test_a_better_system_is_found_after_holm_and_equal_ones_are_not(study: Study) -> None:
    rng = np.random.default_rng(0)
    parts = [rows_of_splits("connectome_logistic", around(0.70, rng)), rows_of_splits("swift_v2", around(0.78, rng))]
    parts += [rows_of_splits(f"equal_{place}", around(0.70, rng)) for place in range(12)]
    found = compared(study, *parts, rows_of_splits("temporal_sd", around(0.60, rng)))
    better = found.loc["swift_v2", "connectome"]
    assert better["difference"] == pytest.approx(0.08, abs=0.015)
    assert better["low"] < 0.08 < better["high"]
    assert better["p_holm"] < 0.01
    worse = found.loc["temporal_sd", "connectome"]
    assert worse["difference"] < 0
    assert worse["p_holm"] < 0.01
    equal = found.xs("connectome", level="role").drop(index=["swift_v2", "temporal_sd"])
    assert len(equal) == 12
    assert (equal["p_holm"] > 0.05).all()


def test_the_test_is_that_of_nadeau_and_bengio(study: Study) -> None:
    rng = np.random.default_rng(1)
    first, second = around(0.75, rng), around(0.70, rng)
    parts = rows_of_splits("swift_v2", first), rows_of_splits("connectome_logistic", second)
    row = compared(study, *parts).loc["swift_v2", "connectome"]
    difference = first - second
    error = difference.std(ddof=1) * np.sqrt(1 / 20 + TESTED / (0.7 * N))
    assert row["difference"] == pytest.approx(difference.mean())
    assert row["p"] == pytest.approx(2 * stats.t.sf(abs(difference.mean()) / error, 19))
    assert row["high"] - row["low"] == pytest.approx(2 * stats.t.ppf(0.975, 19) * error)
    assert (row["n"], row["splits"]) == (N, 20)


def test_equal_systems_are_rarely_called_better_than_the_best_simple_one(study: Study) -> None:
    """Scores without any difference, real splits of 80 people: the share of figures with a mark is below Holm's 5 %."""
    rng, marked, runs = np.random.default_rng(2), 0, 20
    labels = np.arange(80) % 2
    names = ["connectome_logistic", "temporal_sd", "swift_v1", "swift_v2", "other"]
    for _ in range(runs):
        tested_SN = (draw_splits(labels, np.arange(80), 15, 0.15, 0.15, rng) == TEST).astype(float)
        scores = {name: labels + rng.normal(0, 1, 80) for name in names}
        parts = [rows_of_splits(name, weighted_auroc(labels, score, tested_SN)) for name, score in scores.items()]
        best = compared(study, *parts, tasks=tasks_of().assign(n=80)).xs("best simple", level="role")
        marked += int(((best["p_holm"] < 0.05) & (best["difference"] > 0)).any())
    assert marked <= 3  # P(more) is 2 % at 5 %


def test_declared_splits_are_paired_with_the_same_splits_alone(study: Study) -> None:
    rng = np.random.default_rng(3)
    simple = np.concatenate([around(0.6, rng, 5), around(0.9, rng, 15)])
    network = simple[:5] + 0.05 + rng.normal(0, 0.001, 5)
    parts = rows_of_splits("connectome_logistic", simple), rows_of_splits("brainnetcnn", network, TRAINED)
    found = compared(study, *parts)
    row = found.loc["brainnetcnn", "connectome"]
    assert row["difference"] == pytest.approx((network - simple[:5]).mean())
    assert (row["splits"], row["protocol"]) == (5, TRAINED)
    assert np.isnan(row[["people_low", "people_high", "people_p"]].astype(float)).all()
    assert found.loc["connectome_logistic", "best peer"]["splits"] == 5


def test_people_are_compared_beside_splits_where_both_averaged_the_same_ones(study: Study) -> None:
    made = benchmark_tables(study, np.random.default_rng(4))
    rows = pick(made["comparisons"], dataset="simulated", task="sex", role="connectome")
    frozen, trained = pick(rows, protocol=FROZEN), pick(rows, protocol=TRAINED)
    assert len(trained)
    assert trained["people_p"].isna().all()
    assert frozen["people_p"].notna().all()
    row = pick(rows, system="temporal_sd").iloc[0]
    scores = pick(made["scores"], task="sex")
    ours, other = (pick(scores, system=name) for name in ("temporal_sd", "connectome_logistic"))
    people = people_difference(ours, other, study)
    assert (row["people_low"], row["people_high"], row["people_p"]) == people[1:4]
    assert people.difference < 0


# --- who is compared with whom -------------------------------------------------------------------------------------


def test_opponents_are_the_connectome_the_best_simple_system_and_the_best_other_model(study: Study) -> None:
    tuned = {**tables.cell_columns(ENCODERS["swift_v2"], "swift_v2_fine_tuned"), "variant": "fine_tuned"}
    rng = np.random.default_rng(5)
    levels = {"connectome_logistic": 0.70, "tangent_logistic": 0.74, "confounds": 0.90, "swift_v1": 0.72}
    parts = [rows_of_splits(name, around(level, rng, noise=0.001)) for name, level in levels.items()]
    parts += [rows_of_splits("swift_v2", around(0.80, rng, noise=0.001))]
    parts += [rows_of_splits("swift_v2_fine_tuned", around(0.82, rng, 5, 0.001), TRAINED, tuned)]
    parts += [rows_of_splits("chance", np.full(20, 0.5))]
    found = compared(study, *parts)["against"]
    assert found["swift_v2", "connectome"] == "connectome_logistic"
    assert found["swift_v2", "best simple"] == "tangent_logistic", "a control is no simple system"
    assert found["swift_v2", "best peer"] == "swift_v1/w24/N32-T160/main", "its own fine-tuned copy is no peer"
    assert found["swift_v2_fine_tuned", "best peer"] == "swift_v1/w24/N32-T160/main"
    assert found["swift_v1", "best peer"] == "swift_v2_fine_tuned/w24/N32-T160/fine_tuned"
    assert ("tangent_logistic", "best simple") not in found
    assert ("connectome_logistic", "connectome") not in found
    assert "chance" not in found.index.get_level_values("system")


def test_an_encoder_of_which_a_seed_failed_is_in_no_comparison() -> None:
    rng = np.random.default_rng(6)
    second = {**tables.cell_columns(ENCODERS["swift_v2"]), "seed": 1}
    scaling = [{"sizes": ["w24"], "subjects_frames": [[32, 160]], "seeds": [0, 1]}]
    two = demo_study(grid={"scaling": scaling, "data": [], "iso_tokens": [], "off_diagonal": [], "random_weights": []})
    common = [rows_of_splits("connectome_logistic", around(0.7, rng)), rows_of_splits("swift_v2", around(0.8, rng))]
    whole = compared(two, *common, rows_of_splits("swift_v2", around(0.9, rng), who=second))
    assert whole.loc["swift_v2", "connectome"]["difference"] == pytest.approx(0.15, abs=0.02)
    assert whole.loc["swift_v2", "connectome"]["seed"] == tables.NONE
    failed = rows_of_splits("swift_v2", np.full(20, np.nan), who=second, status="diverged")
    assert "swift_v2" not in compared(two, *common, failed).index.get_level_values("system")
    assert "swift_v2" not in compared(two, *common).index.get_level_values("system"), "a seed that is not there yet"


def test_other_protocols_and_groups_are_not_compared(study: Study) -> None:
    rng = np.random.default_rng(7)
    ours, other = around(0.8, rng), around(0.7, rng)
    parts = [rows_of_splits("swift_v2", ours), rows_of_splits("connectome_logistic", other)]
    extra = [rows_of_splits(name, around(0.1, rng), LEAVE_SITE_OUT) for name in ("swift_v2", "connectome_logistic")]
    extra += [rows_of_splits("swift_v2", around(0.2, rng), group="sex F", split="oof")]
    assert compared(study, *parts, *extra).loc["swift_v2", "connectome"]["difference"] == pytest.approx(
        (ours - other).mean()
    )


def test_numbers_are_compared_by_their_correlation(study: Study) -> None:
    rng = np.random.default_rng(8)
    parts = [
        rows_of_splits(name, around(level, rng), metric=metric)
        for name, level in (("swift_v2", 0.5), ("connectome_logistic", 0.3))
        for metric in ("pearson_r", "mse")
    ]
    row = compared(study, *parts, tasks=tasks_of(kind="number")).loc["swift_v2", "connectome"]
    assert row["metric"] == "pearson_r"
    assert row["difference"] == pytest.approx(0.2, abs=0.02)


# --- many tests, many data sets ------------------------------------------------------------------------------------


def test_the_family_is_every_pair_of_systems_once_and_says_so(study: Study) -> None:
    rng = np.random.default_rng(9)
    parts = [rows_of_splits(f"system_{place}", around(0.70 + 0.01 * place, rng)) for place in range(5)]
    table = compared(study, rows_of_splits("connectome_logistic", around(0.7, rng)), *parts).reset_index()
    assert len(table) == 10, "five with the connectome, five with system_4, among them theirs with each other"
    again = table["system"].eq("connectome_logistic")
    assert table.loc[again, "against"].tolist() == ["system_4"]
    distinct = table[~again]
    expected = holm(distinct["p"].to_numpy())
    np.testing.assert_allclose(distinct["p_holm"], expected)
    same = distinct["system"].eq("system_4") & distinct["against"].eq("connectome_logistic")
    assert table.loc[again, "p_holm"].tolist() == pytest.approx(expected[same])
    told = "Holm over all 9 tests of the figure, against the connectome and the best simple system on 1 task"
    assert set(table["family"]) == {f"{told}; a pair of systems is one test a task"}


def test_the_connectome_as_best_simple_system_is_tested_once(study: Study) -> None:
    rng = np.random.default_rng(13)
    parts = [rows_of_splits("connectome_logistic", around(0.8, rng))]
    parts += [rows_of_splits(f"system_{place}", around(0.70, rng)) for place in range(4)]
    table = compared(study, *parts)
    first, second = (table.xs(role, level="role") for role in ("connectome", "best simple"))
    assert first["against"].equals(second["against"])
    np.testing.assert_array_equal(first["p_holm"], second["p_holm"])
    np.testing.assert_allclose(first["p_holm"], holm(first["p"].to_numpy()))
    assert "all 4 tests" in table["family"].iloc[0]


def test_a_task_of_several_data_sets_is_pooled_by_random_effects(study: Study) -> None:
    rng = np.random.default_rng(10)
    parts = []
    for dataset, gain in (("a", 0.05), ("b", 0.06), ("c", 0.04)):
        base = around(0.7, rng)
        parts.append(rows_of_splits("connectome_logistic", base, dataset=dataset))
        parts.append(rows_of_splits("swift_v2", base + around(gain, rng), dataset=dataset))
    table = compared(study, *parts, tasks=tasks_of("a", "b", "c")).loc["swift_v2", "connectome"]
    pooled, single = table[table["dataset"] == POOLED].iloc[0], table[table["dataset"] != POOLED]
    errors = (single["high"] - single["low"]).to_numpy() / 2 / stats.t.ppf(0.975, 19)
    expected = pooled_effect(single["difference"].to_numpy(), errors)
    np.testing.assert_allclose(pooled[["difference", "low", "high"]].astype(float), expected[:3])
    spread = (expected.high - expected.low) / 2 / stats.t.ppf(0.975, 2)
    assert pooled["p"] == pytest.approx(2 * stats.t.sf(abs(expected.mean) / spread, 2))
    assert pooled["n"] == 3 * N
    assert set(table["family"]) == {pooled["family"]}
    assert pooled["family"].startswith("Holm over all 4 tests of the figure")
    assert "on 3 tasks, 1 of them pooled over data sets" in pooled["family"]
    np.testing.assert_allclose(table["p_holm"], holm(table["p"].to_numpy()))


def test_a_task_without_its_row_is_bad_input(study: Study) -> None:
    rng = np.random.default_rng(11)
    parts = [rows_of_splits(name, around(0.7, rng)) for name in ("swift_v2", "connectome_logistic")]
    with pytest.raises(InputError, match=r"tasks\.parquet: found no row of frozen-v2 on dx of d"):
        compared(study, *parts, tasks=tasks_of().iloc[:0])


def test_a_benchmark_without_tasks_has_no_comparisons(study: Study) -> None:
    found = compare(study, benchmark_of(), NO_SCORES, tasks_of())
    assert list(found.columns) == tables.COMPARISONS_SCHEMA.names
    assert found.empty


def test_the_table_is_written_with_what_it_was_made_from(study: Study, tmp_path: Path) -> None:
    pretrain = pretrain_table(study, np.random.default_rng(0), 0.0, 0.0, 0.005)
    made = benchmark_tables(study, np.random.default_rng(12), pretrain=pretrain)
    folder = write_tables({**made, "pretrain": pretrain}, tmp_path)
    write_comparisons(study, folder, tmp_path / "again.parquet")
    pd.testing.assert_frame_equal(read_table(tmp_path / "again.parquet"), read_table(folder / "comparisons.parquet"))
    assert set(read_provenance(tmp_path / "again.parquet")["inputs"]) == {"benchmark", "scores", "tasks", "pretrain"}


# --- lines ---------------------------------------------------------------------------------------------------------


def test_lines_are_listed_by_group_and_an_encoder_without_rows_keeps_its_place(study: Study) -> None:
    rows = benchmark_of(
        rows_of_splits("chance", np.full(3, 0.5)),
        rows_of_splits("unheard_of", np.full(3, 0.5), TRAINED),
        rows_of_splits("confounds", np.full(3, 0.5)),
        rows_of_splits("temporal_sd", np.full(3, 0.5)),
        rows_of_splits("connectome_logistic", np.full(3, 0.5)),
    )
    lines = lineup(study, rows)
    kinds = [line.kind for line in lines]
    assert kinds == ["encoder", "encoder", "network", "simple", "simple", "control", "chance"]
    assert [line.slug for line in lines[:5]] == [
        "swift_v1", "swift_v2", "unheard_of", "connectome_logistic", "temporal_sd",
    ]  # fmt: skip
    assert lines[0].rows(rows).empty
    assert len({line.key for line in lines}) == len(lines)


# --- over people ---------------------------------------------------------------------------------------------------


def scores(system: str, values: np.ndarray, seed: int) -> pd.DataFrame:
    people = np.arange(len(values))
    columns = {"system": system, "architecture": system, "size": "", "subjects": 1, "frames": 1, "draw": 0}
    who = {"variant": "main", "seed": seed, "person": people.astype(str), "family": people.astype(str)}
    return pd.DataFrame({**columns, **who, "label": people % 2, "score": values})


def test_difference_of_two_systems_is_the_mean_over_seeds_of_paired_differences(study: Study) -> None:
    labels = np.arange(60) % 2
    perfect, useless = labels + 0.0, np.zeros(60)
    ours = pd.concat([scores("a", perfect, 0), scores("a", useless, 1)])
    difference, low, high, p_value, n = people_difference(ours, scores("b", useless, 0), study)
    assert difference == pytest.approx(0.25)  # (1 + 0.5) / 2 - 0.5
    assert (low, high, n) == (0.25, 0.25, 60)
    assert p_value < 0.01
    same = people_difference(scores("a", perfect, 0), scores("b", perfect, 0), study)
    assert same[0] == 0
    assert same[3] == 1


def test_people_whom_one_system_lacks_are_left_out(study: Study) -> None:
    labels = np.arange(60) % 2
    ours = scores("a", labels + 0.0, 0)
    found = people_difference(ours[ours["person"].astype(int) < 40], scores("b", np.zeros(60), 0), study)
    assert (found.difference, found.n) == (0.5, 40)
