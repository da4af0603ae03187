"""Where parcels lie, for models whose positions come from it: their centres in space, or on functional gradients.

Axes: R parcels, T frames, K gradients, N people.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from pipeline.bold.normalise import zscore
from pipeline.bold.reader import Shard
from pipeline.models.brain_jepa import functional_gradients
from pipeline.pretrain.people import Entry

GROUP = 100  # people whose mean connectome gives the gradients: more no longer move them
DECIMALS = 5


def parcel_tables(names: set[str], trained: Sequence[Entry], frames: int, gradients: int) -> dict[str, Any]:
    """Those of the tables `coordinates` (R x 3, mm) and `table` (R x K gradients) that a model takes.

    Gradients are those of the `frames` trained on of the first people, never of anybody held out; a parcellation whose
    geometry states no centres has no `coordinates`.
    """
    found: dict[str, Any] = {}
    centres = Shard.open(trained[0]["path"]).contract.get("centres_mm")
    if "coordinates" in names and centres is not None:
        found["coordinates"] = centres
    if "table" in names:
        connectome_RR = torch.from_numpy(
            group_connectome([Shard.open(entry["path"]) for entry in trained[:GROUP]], frames)
        )
        connected = int((connectome_RR.fill_diagonal_(0) > 0).any(1).sum())
        rows = functional_gradients(connectome_RR, min(gradients, connected - 1))
        found["table"] = [[round(value, DECIMALS) for value in row] for row in rows.tolist()]
        found["gradients"] = rows.shape[1]
    return found


def group_connectome(shards: Sequence[Shard], frames: int) -> np.ndarray:
    """Mean over people of Fisher's z of the correlations between parcels in their first `frames`, back as correlations,
    (R, R) float32; rows of parcels without signal are 0.
    """
    total_RR = np.zeros((shards[0].voxels,) * 2)
    for shard in shards:
        z_TR = zscore(shard.read(0, frames))[0].astype(np.float64)
        total_RR += np.arctanh(np.clip(z_TR.T @ z_TR / len(z_TR), -0.999, 0.999))
    correlation_RR = np.tanh(total_RR / len(shards))
    np.fill_diagonal(correlation_RR, 1.0)
    return correlation_RR.astype(np.float32)
