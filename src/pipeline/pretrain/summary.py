"""What a training came to: its row of the tables, its history, its model card."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import torch

from pipeline.artefact import digest
from pipeline.config import Study
from pipeline.pretrain.engine.course import COLUMN, COLUMNS, Training
from pipeline.pretrain.lesson import Costs, Lesson
from pipeline.pretrain.people import People
from pipeline.pretrain.plan import Plan
from pipeline.pretrain.validation import Validation
from pipeline.tables import cell_columns

OF_HISTORY = ("loss", "learning_rate", "grad_norm", "val_loss", "val_r2", "seconds", "data_seconds", "peak_memory_mb")


def summarise(study: Study, lesson: Lesson, people: People, training: Training, cost: Costs) -> dict[str, Any]:
    """What training cost and where it ended.

    `tokens` are those of the finished encoder, from the samples that were counted as they went through the model;
    `train_flops` are what they cost, `spent_flops` those of branches with them.
    """
    plan, encoder = lesson.plan, lesson.learner.encoder
    parameters, whole = (
        sum(weights.numel() for weights in part.parameters() if weights.requires_grad)
        for part in (encoder, lesson.learner)
    )
    row = training.history[training.taken - 1] if training.taken else torch.zeros(len(COLUMNS))
    return {
        **cell_columns(plan.cell),
        "objective": plan.objective,
        "recipe": recipe_of(plan),
        "parameters": parameters,
        "decoder_parameters": whole - parameters,
        "flops_per_clip": float(cost.encode_flops),
        "train_flops": float(cost.train_flops * trunk_clips(training)),
        "spent_flops": float(cost.train_flops * training.clips),
        "steps": training.step,
        "skipped_steps": training.skipped,
        "batch_clips": plan.recipe.batch,
        "context_frames": lesson.context,
        "tokens": trunk_clips(training) * cost.tokens,
        "unique_frames": plan.cell.subjects * plan.cell.frames,
        "learning_rate": plan.recipe.learning_rate,
        "first_loss": _mean(training.losses[: max(1, training.step // 20)]),
        "train_loss": _mean(training.losses[-max(1, training.step // 10) :]),
        "points": [_point(plan, point, cost) for point in training.points],
        "seconds": training.seconds,
        "data_seconds": training.data_seconds,
        "peak_memory_mb": float(row[COLUMN["peak_memory_mb"]]),
        "energy_j": training.energy_j,
        "people": people.names,
        "people_hash": digest(people.names),
        "datasets": sorted({entry["dataset"] for entry in people.trained}),
        "simulated": any(study.datasets[entry["dataset"]].simulated for entry in people.trained),
        "cell_hash": plan.hash,
        "contract": plan.contract,
    }


def recipe_of(plan: Plan) -> dict[str, Any]:
    """How the weights were moved, by the names of the configuration."""
    recipe = plan.recipe
    named = ("optimiser", "schedule", "warmup", "decay", "branches", "weight_decay", "clip_norm", "ema")
    kept = {name: getattr(recipe, name) for name in named}
    if recipe.schedule == "cosine":
        del kept["decay"], kept["branches"]
    return kept | {"precision": plan.precision, "masks_per_clip": plan.masks_per_clip, "masks": plan.masks}


def trunk_clips(training: Training) -> int:
    """Samples that the finished encoder has seen: all that were counted but those of branches."""
    rows = training.history[: training.taken]
    counted = torch.diff(rows[:, COLUMN["clips"]], prepend=torch.zeros(1, dtype=rows.dtype))
    return int(counted[rows[:, COLUMN["branch"]] == 0].sum())


def _point(plan: Plan, point: Mapping[str, Any], cost: Costs) -> dict[str, Any]:
    """A branch as if its training had been planned that short."""
    clips = point["steps"] * plan.recipe.batch
    scores = {name: value if value is None or np.isfinite(value) else None for name, value in point.items()}
    return scores | {"tokens": clips * cost.tokens, "train_flops": float(clips * cost.train_flops)}


def _mean(losses: torch.Tensor) -> float | None:
    """Mean over the steps that were not skipped; None where there is none."""
    kept = losses[losses.isfinite()]
    return float(kept.mean()) if len(kept) else None


def validation_columns(scores: Validation) -> dict[str, Any]:
    """Held-out scores under the names of the summary; None for what is not a number."""
    columns: dict[str, Any] = {"n_validation_people": scores.people, "effective_rank": scores.effective_rank}
    for name, interval in (("val_loss", scores.loss), ("val_r2", scores.r2)):
        columns |= {name: interval.value, f"{name}_low": interval.low, f"{name}_high": interval.high}
    return {name: value if np.isfinite(value) else None for name, value in columns.items()}


def history_table(plan: Plan, training: Training, cost: Costs) -> pd.DataFrame:
    """One row a step, in the order in which the steps were taken."""
    rows = pd.DataFrame(training.history[: training.taken].numpy(), columns=list(COLUMNS))
    step = rows["step"].astype(np.int64)
    clips = step * plan.recipe.batch
    numbers = {"step": step, "branch": rows["branch"].astype(np.int64), "tokens": clips * cost.tokens}
    table = rows[[*OF_HISTORY, "energy_j"]].assign(**numbers, flops=clips * float(cost.train_flops))
    return table.assign(**cell_columns(plan.cell))
