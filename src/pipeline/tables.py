"""Columns of every tidy table, and the stages that put many small tables together into one.

One row is one (cell, task, metric, split, fold). Schemas are checked on write (`artefact.write_table`). No table
names a person: scores by person carry a pseudonym, which whoever knows the ids and the study's seed can work out.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa

from pipeline.artefact import digest, provenance, read_json, read_table, sha256_file, write_table
from pipeline.config import Study
from pipeline.errors import InputError
from pipeline.grid import Cell, all_cells, block_cells, cell_datasets, evaluated_cells
from pipeline.layout import Layout
from pipeline.losses import count_losses
from pipeline.stages import VERSIONS

VALIDATION_CONFIDENCE = 0.95  # of the held-out loss and R^2, fixed: another one must not pretrain every cell again
NONE = -1  # `subjects`, `frames`, `draw`, `seed`, `fold` where a row has none


def _schema(*groups: str) -> pa.Schema:
    """Schema of `"type: name name"` groups; a name that ends in `?` may be empty (NaN, None)."""
    types = {"str": pa.string(), "int": pa.int64(), "float": pa.float64(), "bool": pa.bool_()}
    fields = []
    for group in groups:
        kind, names = group.split(": ")
        for name in names.split():
            fields.append(pa.field(name.rstrip("?"), types[kind], nullable=name.endswith("?")))
    return pa.schema(fields)


# Who made a row: `system` is a slug ("swift_v1", "connectome_logistic", "raw"); architecture is "" outside the grid.
_CELL = ("str: system architecture size", "int: subjects frames draw seed", "str: variant")
_INTERVAL = "float: value? low? high?"

RESULT_SCHEMA = _schema(
    *_CELL,
    "str: dataset task metric split",
    "int: fold",
    _INTERVAL,
    "int: n",
    "str: status",
    "bool: simulated",
    "str: unit",
)

# A row of the benchmark: a result under a named protocol. `group` is "all", or the people that the value is of
# ("sex F", "age 8-12", "site NYU", "motion low"); split is "split-007", "site NYU", "low-shot-5", or a summary:
# "mean" (of the splits), "oof" (of each person's averaged score), "permuted".
BENCHMARK_SCHEMA = _schema(
    *_CELL,
    "str: dataset task protocol metric split group",
    "int: fold",
    _INTERVAL,
    "int: n",
    "str: status",
    "bool: simulated",
    "str: unit",
)

# What each protocol is run on: people whose label is known, their hash and that of the splits, and what could be found.
# `detectable` is the smallest difference of two AUROCs that would be found in four of five repeats at p < .05.
TASKS_SCHEMA = _schema(
    "str: dataset task protocol kind",
    "int: n families positive negative splits tuning",
    "float: detectable?",
    "str: evaluation_hash splits_hash",
    "bool: simulated",
)

# One comparison of two systems on one task. `role` says why the other is there: "connectome", "best simple" or
# "best peer". p is of the Nadeau-Bengio t test over the splits that both ran; p_holm is adjusted over `family`.
COMPARISONS_SCHEMA = _schema(
    *_CELL,
    "str: dataset task protocol metric against role",
    "float: difference? low? high? p? p_holm?",
    "float: people_low? people_high? people_p?",  # of the paired bootstrap over families, where both have scores
    "int: n splits",
    "str: family",
    "bool: simulated",
)

PRETRAIN_SCHEMA = _schema(
    *_CELL,
    "str: status",
    "int: parameters",
    "float: flops_per_clip train_flops",
    "int: steps batch_clips context_frames tokens unique_frames",
    "float: learning_rate first_loss? train_loss? val_loss? val_loss_low? val_loss_high?",
    "float: val_r2? val_r2_low? val_r2_high?",
    "float: effective_rank? seconds data_seconds peak_memory_mb energy_j?",
    "int: n_validation_people starts",
    "str: people_hash cell_hash",
    "bool: simulated",
)

# A row a step. `branch` is 0 on the trunk; `tokens` and `flops` are what this step's weights have seen and cost.
# Seconds, those of them spent waiting for clips, and joules are of the whole training so far.
HISTORY_SCHEMA = _schema(
    *_CELL,
    "int: branch step tokens",
    "float: flops loss? learning_rate grad_norm? val_loss? val_r2?",
    "float: seconds data_seconds peak_memory_mb energy_j?",
)

# Where a training was scored: at the end of every branch, and, last, at its own.
POINTS_SCHEMA = _schema(
    *_CELL,
    "str: status",
    "int: branch steps tokens parameters",
    "float: train_flops val_loss? val_loss_low? val_loss_high? val_r2? val_r2_low? val_r2_high?",
    "int: n_validation_people",
    "bool: simulated",
)

# Mean power over people at one frequency; low and high are the interval over people, n the people.
SPECTRA_SCHEMA = _schema(*_CELL, "str: dataset", "float: frequency_hz power? low? high?", "int: n", "bool: simulated")

# One number of one fit: fit ("surface", ...), x (the axis that it runs over), statistic ("exponent", ...).
SCALING_SCHEMA = _schema("str: fit architecture x statistic", _INTERVAL, "int: n", "str: note")

# Where a read-out of an encoder comes from: level is "parcel" or "network", `part` its name. `share` is that of
# absolute attributions, with an interval over families; `signed` their mean; `effect` the difference of classes (slope
# on a number) in signed attributions, beside what read-outs of shuffled labels give and p corrected over the level.
ATTRIBUTION_SCHEMA = _schema(
    *_CELL,
    "str: dataset task level part network source",
    "float: x_mm? y_mm? z_mm? share? share_low? share_high? signed? effect? chance_low? chance_high? z? p?",
    "int: n",
    "str: status",
    "bool: simulated",
)

CLAIMS_SCHEMA = _schema(
    "str: claim figure statement decided_by test threshold",
    "float: effect? low? high? p_value?",
    "int: n",
    "str: verdict note claim_hash",
    "bool: simulated",
)

TRUTHS_SCHEMA = _schema(
    "str: truth statement", "float: planted? found? low? high? tolerance?", "int: n", "bool: passed", "str: note"
)

# People and runs of each data set in each part of the study (`pipeline.losses`).
LOSSES_SCHEMA = _schema("str: dataset part unit outcome fault", "int: n", "bool: simulated")

# Scores of people outside the part that a model was fitted on, averaged over the splits that tested them; `person` is a
# salted hash, never an identifier. A number's `label` and `score` are in its own unit, and it has no `probability`.
SCORES_SCHEMA = _schema(
    *_CELL, "str: dataset task protocol person family", "float: label score probability?", "bool: simulated"
)


def cell_columns(cell: Cell, system: str | None = None) -> dict[str, Any]:
    """The columns that say which encoder a row is about; `system` is the architecture's slug unless told otherwise."""
    return {
        "system": system or cell.architecture,
        "architecture": cell.architecture,
        "size": cell.size,
        "subjects": cell.subjects,
        "frames": cell.frames,
        "draw": cell.draw,
        "seed": cell.seed,
        "variant": cell.variant,
    }


def system_columns(system: str) -> dict[str, Any]:
    """The same columns for a system outside the grid: a baseline, a control, the raw signal."""
    return cell_columns(Cell("", "", NONE, NONE, NONE, "", NONE), system)


def collect(paths: Iterable[str | Path], schema: pa.Schema, output: str | Path, record: dict[str, Any] | None) -> None:
    """Concatenate tables of one schema, in the order given.

    Raises
    ------
    InputError : a table is missing, damaged or of another schema, e.g. written by another version of its stage.
    """
    frames = [_checked(read_table(path), schema, path) for path in paths]
    filled = [frame for frame in frames if len(frame)]
    write_table(output, pd.concat(filled, ignore_index=True) if filled else _empty(schema), schema, record)


def collect_summaries(study: Study, output: str | Path, record: dict[str, Any] | None = None) -> None:
    """One row of PRETRAIN_SCHEMA a cell of the study, from its `summary.json`; and beside it points.parquet.

    Raises
    ------
    InputError : a summary is missing, damaged, or lacks a field; or cells that are compared at equal tokens are not.
    """
    rows, points = [], []
    for cell in all_cells(study):
        path = Layout(study).cell("pretrain", cell) / "summary.json"
        summary = {**read_json(path), **cell_columns(cell)}
        summary["simulated"] = any(study.datasets[name].simulated for name in cell_datasets(study, cell))
        missing = [field.name for field in PRETRAIN_SCHEMA if not field.nullable and summary.get(field.name) is None]
        if missing:
            hint = "Delete it and run `pipeline pretrain` again."
            raise InputError(path, f"no {', '.join(missing)}", "a complete summary", hint)
        rows.append({name: summary.get(name) for name in PRETRAIN_SCHEMA.names})
        ends = [*summary.get("points", []), {"branch": 0}]
        points += [{name: {**summary, **end}.get(name) for name in POINTS_SCHEMA.names} for end in ends]
    table = pd.DataFrame(rows, columns=PRETRAIN_SCHEMA.names)
    check_equal_tokens(study, table)
    write_table(output, table, PRETRAIN_SCHEMA, record)
    scored = pd.DataFrame(points, columns=POINTS_SCHEMA.names)
    write_table(Path(output).with_name("points.parquet"), scored, POINTS_SCHEMA, record)


def check_equal_tokens(study: Study, table: pd.DataFrame) -> None:
    """Conditions of equal tokens must have had equal tokens, steps, batches and contexts, by what was counted as they
    were trained. A cell that diverged or was stopped has fewer; its status says so, and it is in no comparison.

    Raises
    ------
    InputError : they have not.
    """
    paths = {cell.path for cell in block_cells(study, "iso_tokens")}
    columns = list(vars(Cell("", "", 0, 0)))
    here = table[[Cell(*row).path in paths for row in table[columns].itertuples(index=False)]]
    for (name, size), cells in here[here["status"] == "completed"].groupby(["architecture", "size"]):
        counted = cells[EQUAL].drop_duplicates()
        if len(counted) > 1:
            found = "; ".join(", ".join(f"{key} {row[key]}" for key in EQUAL) for row in counted.to_dict("records"))
            hint = "Delete the summaries of the odd ones and run `pipeline pretrain` again."
            raise InputError(f"grid.iso_tokens: {name} {size}", found, "the same in every condition", hint)


EQUAL = ["tokens", "steps", "batch_clips", "context_frames"]


def collect_tables(study: Study, folder: str | Path, systems: Sequence[str]) -> None:
    """The tidy table of every stage, from the small tables of its cells and of what stands beside them.

    A cell's spectra and scores lie with its spectral and benchmark results. `systems` are the jobs of systems outside
    the grid, whose results lie beside those of cells; the first says what each protocol was run on.
    """
    layout, cells, folder = Layout(study), evaluated_cells(study), Path(folder)
    paths = [cell.path for cell in all_cells(study)]

    def record(parts: Sequence[Path]) -> dict[str, Any]:
        """Provenance with one checksum over those of the parts."""
        parts_hash = digest([sha256_file(part) for part in parts if part.is_file()])
        return {**provenance("tables", VERSIONS["tables"], paths, {}), "inputs": {f"{len(parts)} files": parts_hash}}

    rows = pd.DataFrame(count_losses(study), columns=LOSSES_SCHEMA.names)
    counted = [layout.evaluation_set, *(layout.manifest(name) for name in study.datasets)]
    counted += [layout.people(name) / "participants.tsv" for name in study.datasets]
    write_table(folder / "losses.parquet", rows, LOSSES_SCHEMA, record(counted))
    summaries = [layout.cell("pretrain", cell) / "summary.json" for cell in all_cells(study)]
    collect_summaries(study, folder / "pretrain.parquet", record(summaries))
    history = [layout.cell("pretrain", cell) / "history.parquet" for cell in all_cells(study)]
    collect(history, HISTORY_SCHEMA, folder / "history.parquet", record(history))
    tasks = [layout.root / "benchmark" / systems[0] / "tasks.parquet"]
    collect(tasks, TASKS_SCHEMA, folder / "tasks.parquet", record(tasks))
    for table, (stage, beside, schema) in EVALUATED.items():
        parts = [layout.root / stage / name for name in beside or systems]
        files = [part / f"{table}.parquet" for part in (*parts, *(layout.cell(stage, cell) for cell in cells))]
        collect(files, schema, folder / f"{table}.parquet", record(files))


# Table -> the stage that writes it, what stands beside the cells there (empty: systems), and the schema.
EVALUATED = {
    "probe": ("probe", (), RESULT_SCHEMA),
    "benchmark": ("benchmark", (), BENCHMARK_SCHEMA),
    "scores": ("benchmark", (), SCORES_SCHEMA),
    "spectral": ("spectral", ("raw",), RESULT_SCHEMA),
    "spectra": ("spectral", ("raw",), SPECTRA_SCHEMA),
}


def _checked(frame: pd.DataFrame, schema: pa.Schema, path: str | Path) -> pd.DataFrame:
    if set(frame.columns) != set(schema.names):
        odd = sorted(set(frame.columns) ^ set(schema.names))
        hint = "Delete it and run the stage that writes it again."
        raise InputError(path, f"other columns ({', '.join(odd)})", "the columns of this version", hint)
    return frame[schema.names]


def _empty(schema: pa.Schema) -> pd.DataFrame:
    return schema.empty_table().to_pandas()
