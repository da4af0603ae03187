"""A cell ready to be trained: its learner with fresh weights, the clips that it sees, and by what it is trained.

Legend: T frames; V columns of a shard.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from math import prod
from typing import Any

import numpy as np
import torch

from pipeline.bold.clips import Runs, clip_position
from pipeline.config import Study
from pipeline.errors import InputError
from pipeline.models.cost import count_flops
from pipeline.models.learners.reconstruction import Reconstructor
from pipeline.models.mup import initialise
from pipeline.models.parts.voxels import Raster
from pipeline.pretrain.masks import hidden_tokens
from pipeline.pretrain.objectives import build_learner, objective_of
from pipeline.pretrain.objectives.batch import Objective
from pipeline.pretrain.objectives.contrastive import needs_pair
from pipeline.pretrain.people import Entry, person
from pipeline.pretrain.plan import Plan
from pipeline.pretrain.samples import Samples, real_values
from pipeline.pretrain.validation import Validation, validate

# Held-out clips and masks are the same for every cell, whatever it was trained with, so that R^2 has one meaning.
VALIDATION_SEED, VALIDATION_RATIO, VALIDATION_CLIPS = 1_000_003, 0.5, 2
PAIR_STREAM = 2  # keeps the draws of pairs of clips apart from those of masks

Place = Callable[[int], tuple[int, int]]  # number of a clip -> its run and first frame


@dataclass(frozen=True)
class Lesson:
    """A plan with its model, what it sees and by what it is trained."""

    plan: Plan
    learner: Any
    raster: Raster
    context: int

    @property
    def inside(self) -> torch.Tensor | None:
        """Which values of a token are in the brain; None where nothing is cut into tokens."""
        if not isinstance(self.learner, Reconstructor):
            return None
        return real_values(self.learner, self.raster)

    def objective(self, ratio: float) -> Objective:
        """The objective, which hides that share of the tokens."""
        masks, inside, hide = self.plan.masks, self.inside, None
        if inside is not None:
            times = self.context // self.learner.encoder.frames_per_token
            places = inside.flatten(-2).any(-1).cpu()
            hide = partial(hidden_tokens, places=places, times=times, ratio=ratio, kind=masks["kind"])
        options = self.plan.objective_options
        return objective_of(self.plan.objective, self.learner, hide, masks["loss"], options, self.context)


def prepare(study: Study, plan: Plan, raster: Raster) -> Lesson:
    """Build the learner, with fresh weights that the cell's seed alone decides."""
    torch.manual_seed(plan.cell.seed)
    learner = fresh_learner(plan, raster)
    context = study.context_frames(plan.cell.architecture)
    return Lesson(plan, learner.to(raster.index_V.device), raster, context)


def fresh_learner(plan: Plan, raster: Raster) -> Any:
    """A learner on the CPU, its weights drawn by torch's own generator."""
    learner: Any = build_learner(plan.model, plan.spec, plan.objective)
    if plan.base_spec is not None:
        initialise(learner, build_learner(plan.model, plan.base_spec, plan.objective))
    if plan.contract["kind"] == "flatmap":
        learner.encoder.set_cortex(raster.filled())
    return learner


def training_samples(lesson: Lesson, trained: list[Entry]) -> Samples:
    """Clips of the first frames of the people trained on, in the order of the cell's seed."""
    plan, context = lesson.plan, lesson.context
    runs, frame_counts = Runs(trained, plan.contract), [[plan.cell.frames]] * len(trained)

    def place(number: int) -> tuple[int, int]:
        return clip_position(plan.cell.seed, number, frame_counts, context)

    return _samples(lesson, runs, place, lambda _: plan.cell.frames, plan.cell.seed, plan.masks_per_clip)


def held_out_samples(lesson: Lesson, held_out: list[Entry]) -> Samples:
    """Clips evenly spaced in the runs of held-out people."""
    runs, context = Runs(held_out, lesson.plan.contract), lesson.context

    def place(number: int) -> tuple[int, int]:
        run, clip = divmod(number, VALIDATION_CLIPS)
        return run, (runs.frames(run) - context) * (clip + 1) // (VALIDATION_CLIPS + 1)

    return _samples(lesson, runs, place, runs.frames, VALIDATION_SEED, 1)


def _samples(
    lesson: Lesson, runs: Runs, place: Place, frames: Callable[[int], int], seed: int, masks_per_clip: int
) -> Samples:
    context, plan = lesson.context, lesson.plan
    number = {name: at for at, name in enumerate(dict.fromkeys(person(entry) for entry in runs.entries))}

    def clip_TV(clip: int) -> np.ndarray:
        return runs.clip(*place(clip), context)

    def of_pair(clip: int, which: int) -> np.ndarray:
        run, _ = place(clip)
        return runs.clip(run, apart(context, frames(run), seed, clip)[which], context)

    def whose(clip: int) -> int:
        return number[person(runs.entries[place(clip)[0]])]

    clips: tuple[Callable[[int], np.ndarray], ...] = (clip_TV,)
    if plan.objective == "contrastive" and needs_pair(plan.objective_options):
        clips = partial(of_pair, which=0), partial(of_pair, which=1)
    first, *second = clips
    pair = second[0] if second else None
    return Samples(first, lesson.raster, seed, lesson.inside, pair, whose, masks_per_clip)


def apart(context: int, frames: int, seed: int, clip: int) -> tuple[int, int]:
    """First frames of two clips of a run that do not overlap, every such pair alike.

    Raises
    ------
    InputError : the frames hold no two clips.
    """
    slack = frames - 2 * context
    if slack < 0:
        hint = "Raise T in the grid, or shorten context_frames."
        raise InputError("objective contrastive", f"{frames} frames", f"room for two clips of {context}", hint)
    draw = np.random.default_rng([seed, PAIR_STREAM, clip])
    # Of slack + 2 places for two clips, two: the earlier clip moves the later one on by its own length.
    early, late = sorted(int(place) for place in draw.choice(slack + 2, 2, replace=False))
    starts = early, late - 1 + context
    return starts if draw.integers(2) else (starts[1], starts[0])


def score(lesson: Lesson, held_out: list[Entry]) -> Validation:
    """Score the learner on held-out people, in full precision; it is left in the mode in which it was."""
    person_K = [person(entry) for entry in held_out for _ in range(VALIDATION_CLIPS)]
    training = lesson.learner.training
    lesson.learner.eval()
    samples = held_out_samples(lesson, held_out)
    found = validate(lesson.objective(VALIDATION_RATIO), lesson.learner.encoder, samples.batch, person_K)
    lesson.learner.train(training)
    return found


@dataclass(frozen=True)
class Costs:
    """What a clip costs: operations of encoding it and of a training step's share of it, and its tokens."""

    encode_flops: int
    train_flops: int
    tokens: int


def costs(lesson: Lesson, samples: Samples) -> Costs:
    """Count what a clip costs as it runs through the model."""
    learner, objective = lesson.learner, lesson.objective(lesson.plan.masks["ratio"])
    learner.eval()
    batch = samples.batch(range(2 * samples.masks_per_clip))
    clips = len(batch.clip)
    with torch.no_grad():
        encoded = count_flops(learner.encoder, lambda: learner.encoder(batch.clip)).forward
        features = learner.encoder(batch.clip[:1])
    step = count_flops(learner, lambda: objective.loss(batch))
    tokens = lesson.context // learner.encoder.frames_per_token * _places(lesson, features)
    return Costs(encoded // clips, (step.forward + step.backward) // clips, tokens)


def _places(lesson: Lesson, features: torch.Tensor) -> int:
    """Places of a clip's tokens: those the learner cuts it into, else those of its features."""
    inside = lesson.inside
    return prod(features.shape[2:-1]) if inside is None else prod(inside.shape[:-2])
