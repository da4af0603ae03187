"""The model card beside every encoder."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

_CARD = """# {architecture}, size {size}

An encoder of resting-state BOLD, pretrained without labels; objective: {objective}. Licence: {licence}.

## Data contract
Inputs that differ from this mean nothing to the encoder, and the readers of this project refuse them.
{contract}
- clips: {context_frames} consecutive frames of {columns}

## Training
- status: **{status}** after {steps} steps, {tokens} tokens, learning rate {learning_rate:.3g}, seed {seed}
- {optimiser}, {schedule} schedule, {precision}; these are {which_weights}
- data sets: {trained_on}
- people: {subjects}, the first {frames} frames of each one's first run; people hash `{people_hash}`
- parameters: {parameters}, and {decoder_parameters} of the decoder; {train_flops:.3g} FLOPs of training
- cell hash: `{cell_hash}`

## Results on {n_validation_people} held-out people
- loss {val_loss:.4f} [{val_loss_low:.4f}, {val_loss_high:.4f}]
- R^2 of hidden voxels against predicting 0: {val_r2:.4f} [{val_r2_low:.4f}, {val_r2_high:.4f}]
- effective rank of mean features: {effective_rank:.2f}

Intervals are bootstrap intervals over people. Not for clinical use.
"""


_COLUMNS = {
    "voxels": "voxels, z-scored one by one over the whole run, 0 outside the brain",
    "parcels": "means of parcels, z-scored one by one over the whole run",
    "flatmap": "pixels of the flat map, z-scored one by one over the whole run, 0 outside cortex",
}


UNRELEASED = "Apache-2.0 for the code; the weights get theirs when they are released (docs/release.md)"


def model_card(summary: Mapping[str, Any], context_frames: int, licence: str = UNRELEASED) -> str:
    """Markdown that says what the weights are, what they may be fed, and how good they are."""
    contract = "\n".join(f"- {field}: {value}" for field, value in summary["contract"].items())
    numbers = {name: math.nan if value is None else value for name, value in summary.items()}
    names = ", ".join(summary["datasets"])
    trained_on = f"{names}: SIMULATED people, nobody was scanned" if summary["simulated"] else names
    columns = _COLUMNS[summary["contract"]["kind"]]
    recipe = summary["recipe"]
    ema = recipe["ema"]
    how = {name: recipe[name] for name in ("optimiser", "schedule", "precision")}
    how["which_weights"] = "the last weights" if ema is None else f"a moving average of the weights (ema {ema})"
    more = {"contract": contract, "context_frames": context_frames, "trained_on": trained_on, "columns": columns}
    more["licence"] = licence
    return _CARD.format(**{**numbers, **more, **how})
