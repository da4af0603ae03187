"""How every system with a gradient is trained on labels: one budget, one optimiser, one rule for when to stop.

A candidate is a learning rate. Its network starts anew, is trained on the training part by AdamW at a constant rate
after a first pass of warm-up, and stops after `patience` passes without a better loss on the validation part; the
weights of its best pass stay. Of the candidates, the one with the least validation loss scores everybody. Labels of
the test part are never read.

Where the validation part cannot judge (low-shot: nobody is in it; or fewer than two people of a class, four people for
a number), nothing can be chosen: one network is trained at the middle rate for all passes, as the linear probe takes
the middle of its penalties.

Legend: M people whose target is known; B people of a step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import ceil, inf, isfinite
from typing import Literal, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.config import Supervised as Settings
from pipeline.errors import InputError
from pipeline.evaluate.reading import Reader, Reading
from pipeline.evaluate.splits import TRAIN, VALIDATION, seeded
from pipeline.models.learners.supervised import Supervised
from pipeline.pretrain.engine.optimiser import Optimiser
from pipeline.pretrain.objectives.batch import Batch
from pipeline.pretrain.objectives.supervised import SupervisedObjective

Kind = Literal["classes", "number"]
Build = Callable[[np.ndarray], Supervised]  # who is trained on, (M,) bool -> a learner that has not seen them yet

CPU = torch.device("cpu")
CLIP_NORM = 1.0
LEAST_HELD = 2  # people of each class in a validation part that may judge; twice as many for a number


class Inputs(Protocol):
    """What a network sees of each person, on the device where it is trained."""

    @property
    def at_once(self) -> int | None:
        """People of a step whose gradients are computed together; None: all of it."""

    def drawn(self, people_B: np.ndarray, draw: np.random.Generator) -> Tensor:
        """One input of each person, `(B, ...)`; another one at each call where a person has several."""

    def whole(self, people_B: np.ndarray) -> Iterator[tuple[np.ndarray, Tensor]]:
        """All inputs of these people, a few at a time, and whose each is; a person's score is their mean output."""


class Fit(NamedTuple):
    """One candidate: its best pass, and what it weighed then."""

    loss: float
    epoch: int
    rate: float
    weights: Mapping[str, Tensor]


@dataclass(frozen=True, eq=False)
class Lesson:
    """One split as training sees it. `goal_M` is 0 or 1, or z-scored by the training part; NaN outside its parts."""

    train_P: np.ndarray
    held_Q: np.ndarray
    goal_M: np.ndarray
    class_weights: tuple[float, float]
    mean: float
    scale: float
    kind: Kind

    @property
    def judged(self) -> bool:
        """Whether the validation part has people enough to choose by."""
        if self.kind == "number":
            return len(self.held_Q) >= 2 * LEAST_HELD
        return min(int((self.goal_M[self.held_Q] == label).sum()) for label in (0, 1)) >= LEAST_HELD


def network_reader(
    build: Build, inputs: Inputs, settings: Settings, kind: Kind, key: str, device: torch.device = CPU, mixup: float = 0
) -> Reader:
    """A reader that trains a network on labels.

    Parameters
    ----------
    build : makes a learner with one output; called once a candidate, when torch's generator has been seeded for it.
    inputs : of all people, in the order of the targets.
    settings : the budget.
    key : seeds, with the parts of a split and the number of a candidate, all that is random: weights, the order of
        people, dropout, clips. On one CPU thread the same key gives the same bits, whatever was drawn before.
    mixup : see `SupervisedObjective`.

    Memory: one network with its gradient and two moments, two copies of its weights, and the activations of
    `inputs.at_once` inputs.

    Raises (when it is called)
    ------
    InputError : nobody to learn from, or a class without a person in the training part.
    """

    def read(target_M: np.ndarray, part_M: np.ndarray) -> Reading:
        lesson = lesson_of(target_M, part_M, kind)
        rates = settings.learning_rates if lesson.judged else (middle(settings.learning_rates),)
        best, score_M = Fit(inf, 0, 0.0, {}), np.full(len(part_M), np.nan)
        learner: Supervised | None = None
        for candidate, rate in enumerate(rates):
            draw = seeded(key, np.asarray(part_M).tolist(), candidate)
            with own_randomness(int(draw.integers(2**62)), device):
                learner = build(np.asarray(part_M) == TRAIN).to(device)
                found = fit(learner, inputs, lesson, settings, rate, mixup, draw)
            best = found if found.loss < best.loss else best
        if learner is None or not best.weights:
            return Reading(score_M, score_M.copy(), "no candidate stayed finite")
        learner.load_state_dict(best.weights)
        with own_randomness(0, device):  # some published networks drop when they are applied, too
            output_M = outputs(learner, inputs, np.arange(len(part_M)), len(part_M))
        score_M = output_M * lesson.scale + lesson.mean
        inner_M = np.where(np.asarray(part_M) == VALIDATION, score_M, np.nan)
        return Reading(score_M, inner_M, f"learning rate {best.rate:g}, epoch {best.epoch}")

    return read


def lesson_of(target_M: np.ndarray, part_M: np.ndarray, kind: Kind) -> Lesson:
    """What a split teaches; nothing of the target outside TRAIN and VALIDATION is kept.

    Raises
    ------
    InputError : fewer than two people to learn from, or none of a class.
    """
    train_P, held_Q = (np.flatnonzero(np.asarray(part_M) == part) for part in (TRAIN, VALIDATION))
    known_M = np.full(len(part_M), np.nan)
    seen = np.concatenate([train_P, held_Q])
    known_M[seen] = np.asarray(target_M, dtype=float)[seen]
    learnt_P = known_M[train_P]
    hint = "Ask for larger parts, or leave this task to systems that need no training."
    if len(train_P) < 2:
        raise InputError("training part", f"{len(train_P)} people", "at least two", hint)
    if kind == "number":
        mean, scale = float(learnt_P.mean()), float(learnt_P.std()) or 1.0
        return Lesson(train_P, held_Q, (known_M - mean) / scale, (1.0, 1.0), mean, scale, kind)
    counts = [int((learnt_P == label).sum()) for label in (0, 1)]
    if min(counts) == 0:
        raise InputError("training part", f"{counts[1]} positive and {counts[0]} negative people", "both classes", hint)
    weights = len(train_P) / (2 * counts[0]), len(train_P) / (2 * counts[1])
    return Lesson(train_P, held_Q, known_M, weights, 0.0, 1.0, kind)


def middle(rates: Sequence[float]) -> float:
    """The rate that is taken where nothing can be chosen."""
    return sorted(rates)[len(rates) // 2]


@contextmanager
def own_randomness(seed: int, device: torch.device) -> Iterator[None]:
    """Inside the block torch draws from this seed, and by deterministic kernels; afterwards all is as it was."""
    cuda = device.type == "cuda"
    strict, warn = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    with torch.random.fork_rng(devices=[device] if cuda else []):
        torch.default_generator.manual_seed(seed)
        if not cuda:  # whose kernels are deterministic anyway
            yield
            return
        torch.cuda.manual_seed(seed)
        torch.use_deterministic_algorithms(True, warn_only=True)
        try:
            yield
        finally:
            torch.use_deterministic_algorithms(strict, warn_only=warn)


def fit(
    learner: Supervised,
    inputs: Inputs,
    lesson: Lesson,
    settings: Settings,
    rate: float,
    mixup: float,
    draw: np.random.Generator,
) -> Fit:
    """Train at one rate; the best pass by validation loss, or the last one where the validation part cannot judge.

    Training ends early where a loss is no number; a candidate that never had one comes back with a loss of infinity.
    """
    target: Literal["binary", "number"] = "binary" if lesson.kind == "classes" else "number"
    objective = SupervisedObjective(learner, target, mixup, lesson.class_weights)
    optimiser, best = Optimiser(learner, settings.weight_decay), Fit(inf, 0, rate, {})
    for epoch in range(1, settings.epochs + 1):
        trained = _pass(objective, optimiser, inputs, lesson, settings, rate, epoch == 1, draw)
        loss = validation_loss(learner, inputs, lesson) if lesson.judged else trained
        if not isfinite(loss) or not isfinite(trained):
            return best if lesson.judged else Fit(inf, 0, rate, {})
        if loss < best.loss and lesson.judged:
            best = Fit(loss, epoch, rate, _copied(learner))
        elif lesson.judged and epoch - best.epoch >= settings.patience:
            return best
    return best if lesson.judged else Fit(loss, settings.epochs, rate, _copied(learner))


def _pass(
    objective: SupervisedObjective,
    optimiser: Optimiser,
    inputs: Inputs,
    lesson: Lesson,
    settings: Settings,
    rate: float,
    warm_up: bool,
    draw: np.random.Generator,
) -> float:
    """One pass over the training part, in random order; the mean loss of its steps."""
    objective.learner.train()
    steps = steps_of(draw.permutation(lesson.train_P), settings.batch_people)
    losses = []
    for number, people_B in enumerate(steps, start=1):
        losses.append(_gradient(objective, inputs, lesson, people_B, draw))
        nn.utils.clip_grad_norm_(objective.learner.parameters(), CLIP_NORM)
        optimiser.step(rate * number / len(steps) if warm_up else rate)
    return float(np.mean(losses))


def steps_of(people_P: np.ndarray, batch: int) -> list[np.ndarray]:
    """People of each step, as alike in number as can be; never one alone, of whom batch norm has no variance."""
    return np.array_split(people_P, max(1, min(ceil(len(people_P) / batch), len(people_P) // 2)))


def _gradient(
    objective: SupervisedObjective, inputs: Inputs, lesson: Lesson, people_B: np.ndarray, draw: np.random.Generator
) -> float:
    """Leave the gradient of a step's mean loss in the parameters."""
    objective.learner.zero_grad(set_to_none=True)
    total = 0.0
    for people in np.array_split(people_B, ceil(len(people_B) / (inputs.at_once or len(people_B)))):
        goal = torch.from_numpy(lesson.goal_M[people]).float()
        loss = objective.loss(Batch(inputs.drawn(people, draw), [draw], target=goal)) * (len(people) / len(people_B))
        torch.autograd.backward(loss)
        total += loss.item()
    return total


def validation_loss(learner: Supervised, inputs: Inputs, lesson: Lesson) -> float:
    """Mean squared error, or log loss with both classes of the validation part weighted equally."""
    output_Q = outputs(learner, inputs, lesson.held_Q, len(lesson.goal_M))[lesson.held_Q]
    goal_Q = lesson.goal_M[lesson.held_Q]
    if lesson.kind == "number":
        return float(np.mean((output_Q - goal_Q) ** 2))
    with np.errstate(invalid="ignore"):  # outputs that are no numbers end the candidate
        loss_Q = np.logaddexp(0, (1 - 2 * goal_Q) * output_Q)
    return float(np.mean([loss_Q[goal_Q == label].mean() for label in (0, 1)]))


@torch.no_grad()
def outputs(learner: Supervised, inputs: Inputs, people_Q: np.ndarray, everybody: int) -> np.ndarray:
    """(M,) the mean output over all inputs of each of these people; NaN for everybody else."""
    learner.eval()
    total_M, count_M = np.zeros(everybody), np.zeros(everybody)
    for whose, clips in inputs.whole(people_Q):
        np.add.at(total_M, whose, learner(clips)[:, 0].double().cpu().numpy())
        np.add.at(count_M, whose, 1)
    return np.divide(total_M, count_M, out=np.full(everybody, np.nan), where=count_M > 0)


def _copied(learner: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in learner.state_dict().items()}
