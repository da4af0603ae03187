"""Every architecture of the registry so small that a test can train it, and clips for it."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.models import build, describe
from pipeline.models.encoder import Encoder
from pipeline.pretrain.masks import hidden_tokens, sample_draw
from pipeline.pretrain.objectives import objective_of
from pipeline.pretrain.objectives.batch import Batch, Objective
from pipeline.pretrain.objectives.supervised import SupervisedObjective

VOXELS: dict[str, Any] = {"grid": (2, 2, 2), "patch": (3, 3, 3, 1), "context_frames": 8}
STAGES = {"width": 12, "depths": (1, 1), "heads": (2, 4)}
TINY: dict[str, dict[str, Any]] = {
    "swift_v1": {**VOXELS, **STAGES, "window": (2, 2, 2, 4)},
    "swift_4d": {**VOXELS, **STAGES, "window": (2, 2, 2, 4)},
    "swift_v2": {**VOXELS, **STAGES, "window": (2, 2, 2)},
    "neurostorm": {**VOXELS, "width": 12, "depths": (1, 1), "window": (2, 2, 2, 4), "states": 4},
    "brainlm": {"width": 16, "depth": 1, "heads": 2, "decoder_width": 16, "decoder_depth": 1, "decoder_heads": 2}
    | {"patch": 4, "parcels": 12, "frames": 16},
    "brain_jepa": {"width": 16, "depth": 2, "heads": 2, "patch": 4, "parcels": 12, "frames": 16},
    "flatmap_mae": {"width": 16, "depth": 1, "heads": 2, "raster": (8, 12), "patch": (4, 4, 2), "context_frames": 8},
    "brainmt": {"grid": (3, 3, 3), "patch": (2, 2, 2, 1), "context_frames": 8, "stem": (), "width": 16}
    | {"mamba_depth": 1, "attention_depth": 1, "heads": 2, "states": 4},
    "tff": {"volume": (6, 6, 6), "context_frames": 8, "base": 4, "width": 16, "layers": 1, "heads": 2, "hidden": 16},
    "brainnetcnn": {"parcels": 12, "edges": (3, 4), "graph": 8, "dense": (8, 6)},
    "braingnn": {"parcels": 12, "communities": 3, "width": 4, "dense": 8},
    "brainnettf": {"parcels": 12, "heads": 2, "hidden": 16, "clusters": 4, "reduced": 2, "dense": (8, 6)},
    "signal_vit": {"width": 16, "depth": 1, "heads": 2},
}
CONNECTOMES = ("brainnetcnn", "braingnn", "brainnettf")


def tiny(name: str, **over: Any) -> Encoder:
    """The encoder, its weights drawn from seed 0."""
    torch.manual_seed(0)
    return build(name, {**TINY[name], **over})


def clips(encoder: Encoder, count: int = 2, seed: int = 0) -> Tensor:
    """Noise of the shape that the encoder takes; connectomes are correlations."""
    noise = torch.randn(count, *encoder.input_shape, generator=torch.Generator().manual_seed(seed))
    if noise.ndim == 3 and noise.shape[1] == noise.shape[2]:
        return torch.stack([torch.corrcoef(each) for each in noise])
    return noise


def own_objective(name: str, learner: nn.Module, clip: Tensor, target: Tensor | None = None) -> tuple[Objective, Batch]:
    """The objective that an architecture names, and a batch for it."""
    objective, draws = describe(name).objective, [sample_draw(0, position) for position in range(len(clip))]
    if objective == "supervised":
        target = torch.tensor(np.arange(len(clip)) % 2.0)[:, None].float() if target is None else target
        return SupervisedObjective(learner), Batch(clip, draws, target=target)
    hide = None
    if objective == "masked reconstruction":
        shape = learner.patchify(clip).shape[1:-1]
        places = torch.ones(shape[:-1], dtype=torch.bool)

        def hide(draw: np.random.Generator) -> Tensor:
            return hidden_tokens(draw, places, shape[-1], 0.5)

    return objective_of(objective, learner, hide, "mse", {}, clip.shape[-1]), Batch(clip, draws, progress=0.7)
