"""Truths: what was planted in a simulated cohort, held against what the whole path found of it.

A study with a simulated cohort fails if one of them is not recovered, so a figure drawn from noise does not pass.
Axes: P people, F frequencies.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy import stats

from pipeline.artefact import provenance, read_table, write_table
from pipeline.bold.simulate import expected_spectrum
from pipeline.config import Study
from pipeline.errors import EXIT_BUG, EXIT_DONE, InputError
from pipeline.evaluate.cohort import hidden_name
from pipeline.evaluate.rows import OOF, PERMUTED
from pipeline.figures.select import best_cells, cells_frame, done, mean_interval, pick, records, rows_of
from pipeline.grid import Cell, all_cells, block_cells, evaluated_cells
from pipeline.spectral import hurst_of_spectrum, slope_of_spectrum
from pipeline.stages import VERSIONS, stage_settings
from pipeline.tables import TRUTHS_SCHEMA

TABLES = ("pretrain", "probe", "benchmark", "spectral")
CONNECTOME = "connectome_logistic"
REPORTED = "reported, not required"
PERSON = "slope_of_person"  # one row a person: Figure 5 draws them

SLOPE_TOLERANCE = 0.1  # of the mean over people; one person's slope has an SD of about 0.05
HURST_TOLERANCE = 0.05
PERSON_TOLERANCE = 0.3  # of one person's slope: two runs of 240 s
LEAST_CORRELATION = 0.5  # over people, planted with measured
CHANCE_TOLERANCE = 0.1  # of the mean AUROC under permuted labels


class Truth(NamedTuple):
    """One row of TRUTHS_SCHEMA."""

    truth: str
    statement: str
    planted: float
    found: float
    low: float
    high: float
    tolerance: float
    n: int
    passed: bool
    note: str = ""


def check_truths(study: Study, tables_folder: Path, output: Path) -> pd.DataFrame:
    """Decide every truth from the tables and the simulation's own record, and write TRUTHS_SCHEMA.

    Raises
    ------
    InputError : a table or a cohort's truth.tsv is missing.
    """
    tables = {name: read_table(tables_folder / f"{name}.parquet") for name in TABLES}
    simulated = {name: each.simulation for name, each in study.datasets.items() if each.simulation is not None}
    rows: list[Truth] = []
    for dataset, simulation in simulated.items():
        spectral = pick(tables["spectral"], dataset=dataset)
        rows += _spectra(study, dataset, spectral, simulation.tr_s)
        rows += _controls(spectral)
        if "evaluate" in study.datasets[dataset].roles:
            probe, benchmark = (pick(tables[name], dataset=dataset) for name in ("probe", "benchmark"))
            rows += _evaluation(study, probe, benchmark, tables["pretrain"])
    rows += _pretraining(study, tables["pretrain"], tables["probe"])
    table = pd.DataFrame(rows, columns=TRUTHS_SCHEMA.names)
    inputs: dict[str, str | Path] = {name: tables_folder / f"{name}.parquet" for name in TABLES}
    record = provenance("truths", VERSIONS["truths"], stage_settings(study, "truths"), inputs)
    write_table(output, table, TRUTHS_SCHEMA, record)
    return table


def required(table: pd.DataFrame) -> pd.DataFrame:
    """The rows that a study fails by; the others are reported only."""
    return table[table["note"] != REPORTED]


def print_truths(path: Path) -> int:
    """Print the table; exit code 1 if a truth was not recovered."""
    table = read_table(path)
    for row in records(table[table["truth"] != PERSON]):
        print(_line(Truth(**row)))
    needed = required(table)
    missed = int((~needed["passed"]).sum())
    verdict = f" {missed} NOT RECOVERED." if missed else ""
    print(f"{len(needed) - missed} of {len(needed)} truths recovered.{verdict}")
    return EXIT_BUG if missed or needed.empty else EXIT_DONE


def _line(row: Truth) -> str:
    mark = "  --  " if row.note == REPORTED else "  ok  " if row.passed else "FAILED"
    interval = f" [{row.low:.3f}, {row.high:.3f}]" if np.isfinite([row.low, row.high]).all() else ""
    tolerance = f" ± {row.tolerance:g}" if row.tolerance > 0 else ""
    aim = f", planted {row.planted:.3f}{tolerance}" if np.isfinite(row.planted) else ""
    return f"{mark}  {row.statement}: found {row.found:.3f}{interval}, n = {row.n}{aim}"


# --- spectra -------------------------------------------------------------------------------------------------------


def planted_people(study: Study, dataset: str, tr_s: float) -> pd.DataFrame:
    """Slope and Hurst exponent that each person's planted spectrum has, by the hidden name that tables use."""
    path = study.data_path(dataset) / "truth.tsv"
    if not path.is_file():
        raise InputError(path, "no such file", "the simulation's record", "Run `pipeline simulate` again.")
    truth = pd.read_csv(path, sep="\t", dtype={"participant_id": str})
    people = []
    for row in records(truth):
        freqs_F = np.fft.rfftfreq(int(row["frames"]), tr_s)[1:]
        power_F1 = expected_spectrum(row, freqs_F, tr_s)[:, None]
        width_hz = study.spectral.bandwidth / (int(row["frames"]) * tr_s)  # within it of zero the mean is missed
        slope = float(slope_of_spectrum(freqs_F, power_F1, study.spectral.band_hz, (0.0,), width_hz)[0])
        person = hidden_name(study, dataset, row["participant_id"].removeprefix("sub-"))
        people.append((person, slope, float(hurst_of_spectrum(freqs_F, power_F1, tr_s)[0])))
    return pd.DataFrame(people, columns=["person", "beta", "hurst"]).set_index("person")


def _spectra(study: Study, dataset: str, spectral: pd.DataFrame, tr_s: float) -> Iterator[Truth]:
    planted = planted_people(study, dataset, tr_s)
    for metric, name, tolerance in (("beta", "slope", SLOPE_TOLERANCE), ("hurst", "Hurst exponent", HURST_TOLERANCE)):
        rows = pick(spectral, system="raw", architecture="", metric=metric)
        rows = rows[rows["split"].str.startswith("person-")]
        found = rows.set_index(rows["split"].str.removeprefix("person-"))["value"]
        both = planted[[metric]].rename(columns={metric: "planted"}).join(found.rename("found"), how="inner").dropna()
        yield from _agreement(both, metric, name, tolerance, study.evaluate.confidence)
        if metric == "beta":
            for one in records(both):
                near = bool(abs(one["found"] - one["planted"]) <= PERSON_TOLERANCE)
                row = (one["planted"], one["found"], np.nan, np.nan, PERSON_TOLERANCE, 1, near, REPORTED)
                yield Truth(PERSON, "slope of one person's raw signal", *row)


def _agreement(both: pd.DataFrame, metric: str, name: str, tolerance: float, confidence: float) -> Iterator[Truth]:
    """Mean over people within the tolerance, and people in the right order."""
    planted, found = both["planted"].to_numpy(), both["found"].to_numpy()
    mean = float(planted.mean()) if len(both) else np.nan
    error, low, high = mean_interval(found - planted, confidence)
    near = bool(abs(error) <= tolerance)
    values = (mean, mean + error, mean + low, mean + high, tolerance, len(both), near)
    yield Truth(f"planted_{metric}", f"{name} of the raw signal, mean over people", *values)
    r, low, high = _correlation(planted, found, confidence)
    order = (np.nan, r, low, high, 0.0, len(both), bool(r > LEAST_CORRELATION))
    yield Truth(f"order_{metric}", f"{name}, planted with measured over people: r above {LEAST_CORRELATION}", *order)


def _correlation(x: np.ndarray, y: np.ndarray, confidence: float) -> tuple[float, float, float]:
    """Pearson's r with Fisher's interval."""
    if len(x) < 4 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return np.nan, np.nan, np.nan
    found = stats.pearsonr(x, y)
    interval = found.confidence_interval(confidence)
    return float(found.statistic), float(interval.low), float(interval.high)


def _controls(spectral: pd.DataFrame) -> Iterator[Truth]:
    """Noise of known slope, white noise and shuffled frames through the identical path."""
    rows = pick(spectral, split="all", architecture="")
    known = pick(rows, system="known_slope").set_index("metric")["value"]
    beta, exponent = known.get("beta_planted", np.nan), known.get("hurst_planted", np.nan)
    for system, name, slope, hurst in (
        ("known_slope", "1/f noise of known slope", beta, exponent),
        ("white_noise", "white noise", 0.0, 0.5),
        ("time_shuffled", "raw signal with frames shuffled", 0.0, 0.5),
    ):
        for metric, told, planted, tolerance in (
            ("beta", "slope", slope, SLOPE_TOLERANCE),
            ("hurst", "Hurst exponent", hurst, HURST_TOLERANCE),
        ):
            found = pick(rows, system=system, metric=metric)
            yield _near(found, f"{system}_{metric}", f"{told} of {name}", float(planted), tolerance)


def _near(rows: pd.DataFrame, truth: str, statement: str, planted: float, tolerance: float) -> Truth:
    if rows.empty:
        return _absent(truth, statement, planted, tolerance)
    row = rows.iloc[0]
    near = bool(abs(row["value"] - planted) <= tolerance)
    # All voxels are shuffled alike, so a few people's shuffles scatter more than independent noise does.
    note = REPORTED if truth.startswith("time_shuffled") else ""
    return Truth(truth, statement, planted, row["value"], row["low"], row["high"], tolerance, int(row["n"]), near, note)


def _absent(truth: str, statement: str, planted: float = np.nan, tolerance: float = 0.0) -> Truth:
    return Truth(truth, statement, planted, np.nan, np.nan, np.nan, tolerance, 0, False, "no row in the tables")


# --- evaluation ----------------------------------------------------------------------------------------------------


def _evaluation(study: Study, probe: pd.DataFrame, benchmark: pd.DataFrame, pretrain: pd.DataFrame) -> Iterator[Truth]:
    best = best_cells(study, "scaling", pretrain)
    label = f"{study.architectures[best[0].architecture].label} {best[0].size}" if best else "best encoder"
    for who, name in (("connectome", "connectome"), ("encoder", f"{label}, every seed")):

        def rows(table: pd.DataFrame, who: str = who, **where: str) -> pd.DataFrame:
            chosen = pick(table, system=CONNECTOME) if who == "connectome" else rows_of(table, best)
            return pick(chosen, **where)

        sex = rows(probe, task="sex", metric="auroc", split=OOF)
        yield _above(sex, f"sex_{who}", f"AUROC of sex above chance, {name}", 0.5)
        identity = rows(probe, task="identity", metric="mean_rank", split=OOF)
        yield _above(identity, f"identity_{who}", f"identity, share of others ranked below, above chance, {name}", 0.5)
        for task in sorted(set(pick(benchmark, metric="auroc")["task"])):
            permuted = rows(benchmark, task=task, metric="auroc", split=PERMUTED)
            yield _chance(permuted, f"permuted_{task}_{who}", f"AUROC of permuted labels at chance, {task}, {name}")


def _above(rows: pd.DataFrame, truth: str, statement: str, chance: float) -> Truth:
    """Every row's interval lies above chance; the lowest one is told."""
    if rows.empty or rows["low"].isna().all():
        return _absent(truth, statement, chance)
    row = rows.sort_values("low", na_position="first").iloc[0]
    return Truth(
        truth, statement, chance, row["value"], row["low"], row["high"], 0.0, int(row["n"]), bool(row["low"] > chance)
    )


def _chance(rows: pd.DataFrame, truth: str, statement: str) -> Truth:
    """Every row's interval holds 0.5 and its mean is near; the farthest one is told."""
    if rows.empty or rows["value"].isna().any():
        return _absent(truth, statement, 0.5, CHANCE_TOLERANCE)
    row = rows.iloc[int((rows["value"] - 0.5).abs().argmax())]
    held = ((rows["low"] <= 0.5) & (rows["high"] >= 0.5) & ((rows["value"] - 0.5).abs() <= CHANCE_TOLERANCE)).all()
    return Truth(
        truth, statement, 0.5, row["value"], row["low"], row["high"], CHANCE_TOLERANCE, int(row["n"]), bool(held)
    )


# --- pretraining ---------------------------------------------------------------------------------------------------


def _pretraining(study: Study, pretrain: pd.DataFrame, probe: pd.DataFrame) -> Iterator[Truth]:
    untrained = set(block_cells(study, "random_weights"))
    main = _completed(pretrain, [cell for cell in evaluated_cells(study) if cell not in untrained])
    yield _lowest(main, "reconstruction", "voxelwise R² of held-out people above 0, lowest of all completed cells")
    planned = [cell for cell in all_cells(study) if cell not in untrained]
    trained = _completed(pretrain, planned)
    counts = (len(planned), len(trained), np.nan, np.nan, 0.0, len(planned), len(trained) == len(planned))
    yield Truth("cells_completed", f"trained cells completed: {len(trained)} of {len(planned)} planned", *counts)
    fall = (trained["first_loss"] - trained["train_loss"]).to_numpy()
    statement = "every training loss falls: smallest fall of all completed cells"
    if len(fall):
        falls = bool((fall > 0).all())  # NaN is no fall
        yield Truth("loss_falls", statement, np.nan, float(np.min(fall)), np.nan, np.nan, 0.0, len(fall), falls)
    else:
        yield _absent("loss_falls", statement)
    for architecture in study.architectures:
        yield from _above_untrained(study, architecture, pretrain, probe)


def _completed(table: pd.DataFrame, cells: list[Cell]) -> pd.DataFrame:
    return done(cells_frame(list(dict.fromkeys(cells))).merge(table))


def _lowest(rows: pd.DataFrame, truth: str, statement: str) -> Truth:
    """The interval of the lowest cell lies above the zero predictor."""
    if rows.empty or rows["val_r2_low"].isna().any():
        return _absent(truth, statement, 0.0)
    row = rows.nsmallest(1, "val_r2_low").iloc[0]
    interval = (row["val_r2"], row["val_r2_low"], row["val_r2_high"])
    return Truth(truth, statement, 0.0, *interval, 0.0, len(rows), bool(row["val_r2_low"] > 0))


def _above_untrained(study: Study, architecture: str, pretrain: pd.DataFrame, probe: pd.DataFrame) -> Iterator[Truth]:
    """Held-out R^2 of trained cells above that of the same size untrained; probes are reported beside it."""
    untrained = [cell for cell in block_cells(study, "random_weights") if cell.architecture == architecture]
    kinds = {(cell.size, cell.subjects, cell.frames) for cell in untrained}
    same = [cell for cell in block_cells(study, "scaling") if cell.architecture == architecture]
    same = [cell for cell in same if (cell.size, cell.subjects, cell.frames) in kinds]
    label = study.architectures[architecture].label
    ours, floor = _completed(pretrain, same), cells_frame(untrained).merge(pretrain)
    truth, statement = f"trained_{architecture}", f"{label}: held-out R² of trained above random weights"
    if ours.empty or floor.empty:
        yield _absent(truth, statement)
    else:
        worst, best = ours.nsmallest(1, "val_r2_low").iloc[0], floor["val_r2_high"].max()
        interval = (worst["val_r2"], worst["val_r2_low"], worst["val_r2_high"])
        yield Truth(
            truth, statement, best, *interval, 0.0, int(worst["n_validation_people"]), bool(worst["val_r2_low"] > best)
        )
    for truth, task, metric, told in (
        (f"probe_{architecture}", "sex", "auroc", "AUROC of sex"),
        (f"probe_identity_{architecture}", "identity", "mean_rank", "identity, share of others ranked below"),
    ):
        rows = pick(probe, task=task, metric=metric, split=OOF)
        means = [rows_of(rows, cells)["value"].mean() for cells in (same, untrained)]
        difference, n = float(means[0] - means[1]), int(rows["n"].max()) if len(rows) else 0
        values = (np.nan, difference, np.nan, np.nan, 0.0, n, bool(difference > 0), REPORTED)
        yield Truth(truth, f"{label}: {told}, trained minus random weights", *values)
