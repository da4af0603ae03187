"""What cells are trained by: one file an objective, chosen by the name in a model's description or in the study."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import nn

from pipeline.errors import InputError
from pipeline.models import build, describe
from pipeline.models.encoder import VoxelEncoder
from pipeline.models.learners.contrastive import Contrastive
from pipeline.models.learners.reconstruction import MaskedReconstruction, Reconstructor
from pipeline.pretrain.objectives.batch import Batch, Objective, Total
from pipeline.pretrain.objectives.contrastive import ContrastiveObjective
from pipeline.pretrain.objectives.jepa import BlockMasks, JepaObjective
from pipeline.pretrain.objectives.phases import PhasesObjective
from pipeline.pretrain.objectives.reconstruction import Hide, Loss, MaskedObjective, masked_total


def build_learner(model: str, spec: Mapping[str, Any], objective: str | None = None) -> nn.Module:
    """An encoder with fresh weights and what an objective adds to it; None: the objective of its own.

    Raises
    ------
    InputError : the encoder cannot be trained by that objective.
    """
    description, encoder = describe(model), build(model, dict(spec))
    if objective in (None, description.objective):
        return description.learner(encoder)
    if objective == "contrastive":
        return Contrastive(encoder)
    if objective == "masked reconstruction" and isinstance(encoder, VoxelEncoder):
        return MaskedReconstruction(encoder)
    hint = "Leave `objective` empty: it is then trained as its authors did."
    raise InputError(f"objective of {model}", f"'{objective}'", f"'{description.objective}' or contrastive", hint)


def objective_of(
    name: str, learner: Any, hide: Hide | None, error: Loss, options: Mapping[str, Any], frames: int
) -> Objective:
    """The objective of that name on a learner that was built for it.

    Parameters
    ----------
    hide, error : how tokens are hidden and how a prediction is compared; masked reconstruction alone needs them.
    options : further arguments of the objective.
    frames : of a clip.

    Raises
    ------
    InputError : an option that it does not have.
    """
    try:
        if name == "masked reconstruction":
            if hide is None or not isinstance(learner, Reconstructor):
                raise TypeError("a learner that hides and predicts tokens is needed")
            return MaskedObjective(learner, hide, error, **options)
        if name == "contrastive":
            return ContrastiveObjective(learner, **options)
        if name == "JEPA":
            momentum = {"momentum": options["momentum"]} if "momentum" in options else {}
            shares = {key: value for key, value in options.items() if key != "momentum"}
            return JepaObjective(learner, BlockMasks(*learner.encoder.grid(frames), **shares), **momentum)
        if name == "phases":
            return PhasesObjective(learner, **options)
    except (TypeError, ValueError) as wrong:
        hint = "Its arguments stand in src/pipeline/pretrain/objectives/."
        raise InputError("objective_options", f"what it cannot take: {wrong}", f"options of {name}", hint) from wrong
    hint = "Such a system learns from labels; the grid holds what learns without them."
    raise InputError("objective", f"'{name}'", "one that needs no labels", hint)


def drawn(objective: Objective, batch: Batch) -> Batch:
    """The batch with its masks: one of 80,000 tokens takes 3 ms, which a GPU should not wait for."""
    return replace(batch, hidden=objective.hidden(batch)) if isinstance(objective, MaskedObjective) else batch


def is_additive(objective: Objective) -> bool:
    """Whether the loss of a batch is a mean over its clips, so that parts of it may be computed apart."""
    return not isinstance(objective, ContrastiveObjective)


def total_of(objective: Objective, batch: Batch) -> Total:
    """Loss of a batch as a sum: over hidden values where these are predicted, over clips elsewhere."""
    if isinstance(objective, MaskedObjective):
        return masked_total(objective.reconstruct(batch), objective.error)
    clips = len(batch.clip)
    return Total(objective.loss(batch) * clips, clips)
