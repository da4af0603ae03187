"""Tables with the real schemas from a known model, for the tests of figures, claims, truths and the report.

The truth is in the arguments: what the wall costs, how well systems tell people apart, what each model does to a slope.
Nothing here stands in for a result: only tests read it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from fake_benchmark import benchmark_tables

from pipeline import tables
from pipeline.artefact import write_table
from pipeline.config import Study, load_study
from pipeline.evaluate.comparison.lines import cells_frame, pick
from pipeline.evaluate.protocols import FROZEN
from pipeline.grid import RANDOM, Cell, all_cells, block_cells, evaluated_cells, sweep_rate

DEMO = Path(__file__).parents[2] / "config" / "demo.yaml"
RAW_BETA, RAW_HURST = 1.0, 0.85

Tables = dict[str, pd.DataFrame]


def demo_study(**changes: Any) -> Study:
    """The laptop's study, with few resamples and splits and coarse pictures."""
    few = {"bootstrap": 200, "splits": 20, "declared_splits": 5, **changes.pop("evaluate", {})}
    return load_study(DEMO, {"evaluate": few, "figures": {"dpi": 60}, **changes})


def parameters(cell: Cell) -> int:
    width = int(cell.size[1:])
    return 60 * width**2 + 400 * width


def unexplained(cell: Cell, wall: float, deep: float) -> float:
    """1 - R^2 of held-out people: E + A x^-a, and terms in N and T; `wall` is added to the largest 4D model."""
    if cell.variant == RANDOM:
        return 1.02
    first = cell.architecture == "swift_v1"
    rate = 0.05 * abs(np.log(sweep_rate(cell) / 0.003)) if sweep_rate(cell) else 0.0
    size = 0.35 + (0.05 if first else 0.0) + 2.0 * parameters(cell) ** -0.25 + rate
    data = 0.30 * (cell.subjects / 8) ** (-0.5 + deep) + 0.15 * (cell.frames / 40) ** (-0.5 - deep)
    return size + 0.4 * data + (wall if first and cell.size == "w24" else 0.0)


def pretrain_table(study: Study, rng: np.random.Generator, wall: float, deep: float, noise: float) -> pd.DataFrame:
    rows = []
    for cell in all_cells(study):
        loss = unexplained(cell, wall, deep) * np.exp(rng.normal(0, noise))
        flops = 12.0 * parameters(cell) * 1280 * (2 if cell.architecture == "swift_v1" else 1)
        rows.append(
            {
                **tables.cell_columns(cell),
                "status": "completed",
                "parameters": parameters(cell),
                "flops_per_clip": flops,
                "train_flops": 0.0 if cell.variant == RANDOM else flops * 1600,
                "steps": study.pretrain.steps,
                "batch_clips": study.pretrain.batch_clips,
                "context_frames": study.pretrain.context_frames,
                "tokens": 1600 * 1280,
                "unique_frames": cell.subjects * cell.frames * 2,
                "learning_rate": sweep_rate(cell) or 0.003,
                "first_loss": np.nan if cell.variant == RANDOM else 1.05,
                "train_loss": np.nan if cell.variant == RANDOM else loss - 0.02,
                "val_loss": loss,
                "val_loss_low": loss - 0.015,
                "val_loss_high": loss + 0.015,
                "val_r2": 1 - loss,
                "val_r2_low": 1 - loss - 0.015,
                "val_r2_high": 1 - loss + 0.015,
                "effective_rank": 3 + 0.3 * int(cell.size[1:]) + rng.normal(0, 0.2),
                "seconds": 5.0,
                "data_seconds": 0.1,
                "peak_memory_mb": 400.0,
                "energy_j": np.nan,
                "n_validation_people": 16,
                "starts": 1,
                "people_hash": "0" * 16,
                "cell_hash": "0" * 16,
                "simulated": True,
            }
        )
    return pd.DataFrame(rows, columns=tables.PRETRAIN_SCHEMA.names)


def history_table(pretrain: pd.DataFrame, rng: np.random.Generator) -> pd.DataFrame:
    rows = []
    for record in pretrain[pretrain["variant"] != RANDOM].to_dict("records"):
        for step in range(0, record["steps"], 2):
            fall = np.exp(-step / (0.2 * record["steps"]))
            rows.append(
                {
                    **{name: record[name] for name in tables.HISTORY_SCHEMA.names if name in record},
                    **{"branch": 0, "val_loss": np.nan, "val_r2": np.nan, "data_seconds": 0.0},
                    "step": step,
                    "flops": (step + 1) * 8 * record["flops_per_clip"],
                    "tokens": (step + 1) * 8 * 1280,
                    "loss": record["train_loss"] + (1.05 - record["train_loss"]) * fall + rng.normal(0, 0.01),
                    "learning_rate": record["learning_rate"],
                    "grad_norm": 0.5,
                    "seconds": step * 0.02,
                }
            )
    return pd.DataFrame(rows, columns=tables.HISTORY_SCHEMA.names)


def _result(who: dict[str, Any], task: str, metric: str, interval: Any, n: int, **other: Any) -> dict[str, Any]:
    value, low, high = interval
    row = {
        "dataset": "simulated",
        "split": "oof",
        "fold": tables.NONE,
        "status": "completed",
        "simulated": True,
        "unit": "1",
    }
    return {**who, **row, "task": task, "metric": metric, "value": value, "low": low, "high": high, "n": n, **other}


def probe_table(study: Study, rng: np.random.Generator, benchmark: pd.DataFrame, signal: float) -> pd.DataFrame:
    """What the probe stage writes: summaries of sex, and identity by what a system knows of it."""
    people = study.datasets["simulated"].evaluation_people
    summaries = pick(benchmark, task="sex", metric="auroc", group="all", protocol=FROZEN, split=("oof", "permuted"))
    rows = []
    for record in pick(summaries, split="oof").to_dict("records"):
        who = {name: record[name] for name in tables.system_columns("")}
        knows = max(2 * (record["value"] - 0.5), 0.05)
        top1 = 1 / people + signal * 0.2 * knows + rng.normal(0, 0.01)
        rank = 0.5 + 0.5 * knows
        rows.append(_result(who, "identity", "top1", (top1, max(0, top1 - 0.06), top1 + 0.06), people))
        rows.append(_result(who, "identity", "top1", (1 / people, 0, 0.08), people, split="permuted"))
        rows.append(_result(who, "identity", "mean_rank", (rank, rank - 0.04, rank + 0.04), people))
    names = tables.RESULT_SCHEMA.names
    return pd.concat([summaries[names], pd.DataFrame(rows, columns=names)], ignore_index=True)


def _slope_rows(
    who: dict[str, Any], dataset: str, metrics: dict[str, float], half: float, n: int
) -> list[dict[str, Any]]:
    task = {"b": "slope", "h": "hurst", "r": "reconstruction", "t": "quality"}
    other = {"dataset": dataset, "split": "all", "simulated": dataset == "simulated"}
    return [_result(who, task[m[0]], m, (v, v - half, v + half), n, **other) for m, v in metrics.items()]


def spectral_tables(
    study: Study, rng: np.random.Generator, model_beta: dict[str, float], planted: dict[str, tuple[float, float]]
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Slopes and spectra: `model_beta` is that of each reconstruction, `planted` is person -> (beta, hurst)."""
    slopes, spectra = [], []
    frequency = np.fft.rfftfreq(160, 1.5)[1:]
    for dataset, n in (("simulated", 48), ("rapidtide", 1)):
        raw = {
            "raw": RAW_BETA,
            "phase_randomised": RAW_BETA,
            "time_shuffled": 0.0,
            "white_noise": 0.0,
            "known_slope": 0.8,
        }
        for system, beta in raw.items():
            who = tables.system_columns(system)
            hurst = min((beta + 1) / 2, 0.98)
            numbers = {"beta": beta + rng.normal(0, 0.02), "hurst": hurst + rng.normal(0, 0.01)}
            extra = {"beta_planted": 0.8, "hurst_planted": 0.9} if system == "known_slope" else {}
            slopes += _slope_rows(who, dataset, {**numbers, **extra}, 0.06, n)
            spectra += _spectrum(who, dataset, frequency, beta, n)
        if dataset == "simulated":
            for person, (beta, hurst) in planted.items():
                row = {"split": f"person-{person}", "dataset": dataset}
                who = tables.system_columns("raw")
                for metric, value in (("beta", beta), ("hurst", hurst)):
                    task = "slope" if metric == "beta" else "hurst"
                    slopes.append(_result(who, task, metric, (value + rng.normal(0, 0.04), np.nan, np.nan), 2, **row))
        for cell in evaluated_cells(study):
            beta = 0.1 if cell.variant == RANDOM else model_beta[cell.architecture]
            r2 = -0.01 if cell.variant == RANDOM else 0.35
            numbers = {
                "beta": beta + rng.normal(0, 0.03), "beta_raw": RAW_BETA, "beta_difference": abs(beta - RAW_BETA),
                "r2": r2, "beta_constant_input": 0.05, "beta_noise_matched": 0.5, "beta_smooth_matched": 1.6,
                "hurst": min((beta + 1) / 2, 0.98), "hurst_raw": RAW_HURST, "hurst_difference": abs(beta - 1) / 2,
                "beta_features": 0.7,
            }  # fmt: skip
            who = tables.cell_columns(cell)
            slopes += _slope_rows(who, dataset, numbers, 0.08, 8 if n > 1 else 1)
            spectra += _spectrum(who, dataset, frequency, beta, 8 if n > 1 else 1)
            for system, level in (
                ("constant_input", 0.05),
                ("noise_matched", 0.5),
                ("smooth_matched", 1.6),
                ("raw", 1.0),
            ):
                spectra += _spectrum({**who, "system": system}, dataset, frequency, level, 8 if n > 1 else 1)
    return pd.DataFrame(slopes, columns=tables.RESULT_SCHEMA.names), pd.DataFrame(spectra)[tables.SPECTRA_SCHEMA.names]


def _spectrum(who: dict[str, Any], dataset: str, frequency: np.ndarray, beta: float, n: int) -> list[dict[str, Any]]:
    power = 0.3 * (frequency / 0.05) ** -beta
    common = {**who, "dataset": dataset, "n": n, "simulated": dataset == "simulated"}
    return [
        {**common, "frequency_hz": f, "power": p, "low": p * 0.85, "high": p * 1.15}
        for f, p in zip(frequency, power, strict=True)
    ]


def scaling_table(study: Study, pretrain: pd.DataFrame, wall: float, deep: float) -> pd.DataFrame:
    """What a fit of the same model gives, with intervals of a fixed width."""
    rows: list[tuple[Any, ...]] = []

    def add(fit: str, architecture: str, x: str, values: dict[str, float], half: float) -> None:
        rows.extend((fit, architecture, x, name, v, v - half, v + half, 8, "trend") for name, v in values.items())

    for name in study.architectures:
        ours = wall if name == "swift_v1" else 0.0
        for x, block in (("parameters", "scaling"), ("train_flops", "scaling"), ("unique_frames", "data")):
            fit = f"loss_{x.removeprefix('train_').removeprefix('unique_')}"
            cells = cells_frame(block_cells(study, block))
            points = cells.merge(pretrain, on=list(cells)).query("architecture == @name").groupby(x)["val_r2"].mean()
            if len(points) < 2:
                add(fit, name, x, {"cells": float(len(points))}, 0.0)
                continue
            at = np.array(points.index, dtype=float)
            loss = 1 - points.to_numpy() - ours * (cells["size"].nunique() > 1) * (at == at.max())
            grid = np.geomspace(at[0], at[-1], 12)
            curve = np.interp(np.log(grid), np.log(at), loss)
            add(fit, name, x, {f"predicted@{g:.6g}": c for g, c in zip(grid, curve, strict=True)}, 0.012)
            add(fit, name, x, {"exponent": 0.25, "irreducible": 0.45, "amplitude": 2.0}, 0.05)
            add(fit, name, x, {"x_min": at[0], "x_max": at[-1], "heldout_x": at[-1]}, 0.0)
            add(fit, name, x, {"heldout_predicted": loss[-1], "heldout_observed": loss[-1] + ours}, 0.012)
            models = {"power": 0.02, "saturating": 0.01, "broken": 0.05, "constant": 0.2}
            add(fit, name, x, {f"heldout_error_{model}": error for model, error in models.items()}, 0.01)
        add("collapse", name, "parameters", {"larger_worse": np.log1p(ours / 0.6) - 0.03}, 0.015)
        counts = {"diverged": 0.0, "collapsed": 0.0, "non_monotone": float(ours > 0)}
        add("collapse", name, "parameters", counts, 0.0)
        exponents = {"exponent_subjects": 0.5 - deep, "exponent_frames": 0.5 + deep}
        amplitudes = {"amplitude_subjects": 0.12 * 8 ** (0.5 - deep), "amplitude_frames": 0.06 * 40 ** (0.5 + deep)}
        add("surface", name, "subjects_frames", {**exponents, **amplitudes, "irreducible": 0.55}, 0.1)
        add("surface", name, "subjects_frames", {"exchange_rate": 3.0 * 2.0 ** (-6 * deep)}, 0.8)
        add("surface", name, "subjects_frames", {"centre_subjects": 16.0, "centre_frames": 80.0}, 0.0)
    return pd.DataFrame(rows, columns=tables.SCALING_SCHEMA.names)


def planted_people(count: int = 48, seed: int = 0) -> dict[str, tuple[float, float]]:
    """Person -> (beta, hurst) that was planted."""
    beta = np.random.default_rng(seed).uniform(0.6, 1.4, count)
    return {f"k{person:03d}": (b, (b + 1) / 2 - 0.15) for person, b in enumerate(beta)}


def fake_tables(
    study: Study, seed: int = 0, wall: float = 0.0, deep: float = 0.0, encoder: float = 1.8, signal: float = 1.0,
    noise: float = 0.005, model_beta: dict[str, float] | None = None,
    planted: dict[str, tuple[float, float]] | None = None, compared: bool = False,
) -> Tables:  # fmt: skip
    """Every table that a figure reads; that of comparisons is empty unless `compared`, because it takes longest."""
    rng = np.random.default_rng(seed)
    pretrain = pretrain_table(study, rng, wall, deep, noise)
    evaluated = benchmark_tables(study, rng, encoder, signal, pretrain=pretrain, compared=compared)
    betas = model_beta or {"swift_v1": 0.1, "swift_v2": 0.95}
    spectral, spectra = spectral_tables(study, rng, betas, planted or planted_people())
    return {
        "pretrain": pretrain,
        "history": history_table(pretrain, rng),
        "probe": probe_table(study, rng, evaluated["benchmark"], signal),
        **evaluated,
        "spectral": spectral,
        "spectra": spectra,
        "scaling": scaling_table(study, pretrain, wall, deep),
        "losses": losses_table(study),
    }


def losses_table(study: Study) -> pd.DataFrame:
    """Two people to pretrain on are lost, one by each of two faults, and with them four runs."""
    faults = {"overlap": 1, "mean FD": 1}
    rows = []
    for name, dataset in study.datasets.items():
        people, runs = dataset.people, dataset.people * dataset.runs
        evaluated = dataset.evaluation_people
        lost = faults if "pretrain" in dataset.roles else {}
        parts = [("all", "people", people, lost), ("all", "runs", runs, {fault: 2 * n for fault, n in lost.items()})]
        parts += [("pretrain", "people", people - evaluated, lost)] if lost else []
        parts += [("evaluate", "people", evaluated, {})] if evaluated else [("spectra", "people", people, {})]
        for part, unit, declared, gone in parts:
            counts = [("declared", "", declared), ("kept", "", declared - sum(gone.values()))]
            counts += [("lost", fault, n) for fault, n in gone.items()]
            rows += [(name, part, unit, *count, dataset.simulated) for count in counts]
    return pd.DataFrame(rows, columns=tables.LOSSES_SCHEMA.names)


def write_tables(content: Tables, folder: Path) -> Path:
    """Write them as the stages do."""
    schemas = {
        "pretrain": tables.PRETRAIN_SCHEMA, "history": tables.HISTORY_SCHEMA, "scores": tables.SCORES_SCHEMA,
        "benchmark": tables.BENCHMARK_SCHEMA, "tasks": tables.TASKS_SCHEMA,
        "comparisons": tables.COMPARISONS_SCHEMA,
        "spectra": tables.SPECTRA_SCHEMA, "scaling": tables.SCALING_SCHEMA, "claims": tables.CLAIMS_SCHEMA,
        "truths": tables.TRUTHS_SCHEMA, "losses": tables.LOSSES_SCHEMA,
    }  # fmt: skip
    for name, frame in content.items():
        write_table(folder / f"{name}.parquet", frame, schemas.get(name, tables.RESULT_SCHEMA), {"stage": name})
    return folder


def write_truth(folder: Path, people: int = 48, seed: int = 0) -> None:
    """A simulation's record of its people."""
    rng = np.random.default_rng(seed)
    noise = rng.uniform(0.2, 0.4, people)
    truth = {
        "participant_id": [f"sub-{person:03d}" for person in range(people)],
        "hurst": rng.uniform(0.6, 0.95, people),
        "frames": 160,
        "share_fractional": 1 - 0.08 - noise,
        "share_events": 0.05,
        "share_motion": 0.03,
        "share_noise": noise,
    }
    folder.mkdir(parents=True, exist_ok=True)
    pd.DataFrame(truth).to_csv(folder / "truth.tsv", sep="\t", index=False)
