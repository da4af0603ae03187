"""The model card of released weights: that of the cell, and what is known only after it was evaluated."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from pipeline.artefact import read_table
from pipeline.errors import InputError
from pipeline.evaluate.protocols import MEANING
from pipeline.grid import Cell
from pipeline.pretrain.card import model_card
from pipeline.tables import BENCHMARK_SCHEMA, cell_columns

BESIDE = ("connectome_logistic", "confounds", "chance")  # what a reader wants to see the encoder beside
SUMMARIES = ("mean", "oof")  # with each low-shot size; single splits and permuted labels are left to the table
WHAT = ["dataset", "task", "protocol", "metric", "split"]

_RELEASED = """{card}
## Training data
{data}
{permission}
## Benchmark
Each value with its interval and the people behind it. No family behind them was pretrained on.
{results}

{protocols}

## Memorisation
- verdict: **{verdict}**
- {statistic}: people trained on {trained_mean}, others {held_out_mean}; told apart with AUROC {membership}
- mean distance of features to the nearest training clip of somebody else: people trained on {trained_distance}, others
  {held_out_distance}; told apart with AUROC {nearness}
- copies of training signal among people held out: {copies}
- people: {people_trained} trained on, {people_held_out} not; {clips} clips

## Use
For research, under {licence}, on data that fulfil the contract above. **Not for clinical use**: nothing here was tested
as a medical device, and results differ between sites, scanners and groups of people. Do not try to find out who was
trained on.

Weights: `{sha256}` (SHA-256 of encoder.safetensors).
"""


def released_card(
    summary: Mapping[str, Any],
    context_frames: int,
    licence: str,
    terms: Sequence[Mapping[str, Any]],
    rows: pd.DataFrame,
    memorisation: Mapping[str, Any],
    statement: str | None,
    sha256: str,
) -> str:
    """Markdown of the card.

    Parameters
    ----------
    summary, context_frames : as `model_card`.
    licence : of the weights.
    terms : of each data set trained on: `dataset`, `people`, `licence`, `weights`, `simulated`.
    rows : of `results_of`.
    memorisation : `Memorisation.numbers`.
    statement : who allows the release; None where no data set asks for one.
    sha256 : of the weights.
    """
    of_check = {name: _number(value) for name, value in memorisation.items()}
    return _RELEASED.format(
        **of_check,
        card=model_card(summary, context_frames, licence),
        data=_table(["data set", "people", "licence of the data", "weights"], [_of_dataset(each) for each in terms]),
        permission=f"\nPermission to release:\n\n{statement.strip()}\n" if statement else "",
        results=_results(rows),
        protocols="\n".join(f"- {name}: {MEANING[name]}" for name in rows["protocol"].unique() if name in MEANING),
        licence=licence,
        sha256=sha256,
    )


def results_of(benchmark: str | Path, cell: Cell) -> pd.DataFrame:
    """Rows of the benchmark's table that a card shows: summaries of a cell over everybody, and of what stands beside.

    Raises
    ------
    InputError : no table, one of another version, or nothing in it of this cell.
    """
    table = read_table(benchmark)
    if missing := [name for name in BENCHMARK_SCHEMA.names if name not in table.columns]:
        hint = "Run `pipeline tables` again."
        raise InputError(benchmark, f"no column '{missing[0]}'", "the benchmark of this version", hint)
    summary = table["split"].isin(SUMMARIES) | table["split"].str.startswith("low-shot")
    table = table[summary & (table["group"] == "all")]
    columns = cell_columns(cell)
    own = table[(table[list(columns)] == pd.Series(columns)).all(axis=1)]
    if own.empty:
        hint = "Evaluate the cell, then run `pipeline tables`: weights are not released without results."
        raise InputError(benchmark, f"no results of {cell.path}", "its row under every protocol", hint)
    beside = table[table["system"].isin(BESIDE) & (table["architecture"] == "")]
    return pd.concat([own, beside], ignore_index=True)


def _results(rows: pd.DataFrame) -> str:
    own = rows[rows["architecture"] != ""]
    beside = [name for name in BESIDE if (rows["system"] == name).any()]
    lines = []
    for row in own.to_dict("records"):
        same = rows[(rows[WHAT] == pd.Series({name: row[name] for name in WHAT})).all(axis=1)]
        others = [same[same["system"] == name].to_dict("records") for name in beside]
        simulated = " (simulated)" if row["simulated"] else ""
        where = [row["dataset"] + simulated, row["task"], row["protocol"], f"{row['metric']}, {row['split']}"]
        lines.append([*where, _interval(row), *(_interval(found[0]) if found else "" for found in others), row["n"]])
    return _table(["data set", "task", "protocol", "metric", "this encoder", *beside, "n"], lines)


def _interval(row: Mapping[Any, Any]) -> str:
    if pd.isna(row["value"]):
        return f"none ({row['status']})" if "status" in row else "none"
    ends = "" if pd.isna(row["low"]) else f" [{row['low']:.3f}, {row['high']:.3f}]"
    return f"{row['value']:.3f}{ends}"


def _number(value: Any) -> Any:
    if isinstance(value, Mapping):
        return _interval({name: float("nan") if end is None else end for name, end in value.items()})
    return f"{value:.3f}" if isinstance(value, float) else value


def _of_dataset(terms: Mapping[str, Any]) -> list[Any]:
    name = f"{terms['dataset']}: SIMULATED, nobody was scanned" if terms["simulated"] else terms["dataset"]
    return [name, terms["people"], terms["licence"] or "not stated", terms["weights"]]


def _table(head: Sequence[str], lines: Sequence[Sequence[Any]]) -> str:
    rows = [head, ["---"] * len(head), *lines]
    return "\n".join("| " + " | ".join(str(entry) for entry in row) + " |" for row in rows)
