"""The training loop: any model, any loss that is a function of sample positions, resumable at every step.

The loss is a function of the step alone (whoever draws from torch's own generator seeds it by the step), so the step
number, the weights, the optimiser's moments and the moving average are the whole state; a run that was interrupted ends
bitwise equal to one that was not.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from copy import copy
from dataclasses import dataclass, field, replace
from math import isfinite
from typing import Any, NamedTuple

from torch import Tensor, nn

from pipeline.config import OptimiserName, ScheduleName
from pipeline.errors import Unfinished
from pipeline.pretrain.engine.average import Average
from pipeline.pretrain.engine.checkpoint import Store, Tensors
from pipeline.pretrain.engine.course import COUNTERS, Training, has_diverged
from pipeline.pretrain.engine.distributed import ALONE, World
from pipeline.pretrain.engine.meter import Meter
from pipeline.pretrain.engine.optimiser import Optimiser
from pipeline.pretrain.engine.processes import noted
from pipeline.pretrain.engine.schedule import Leg, learning_rate, route
from pipeline.pretrain.engine.state import fill, local, whole
from pipeline.pretrain.engine.step import How, LossOf, Moved, Stepper, parts_of

LOOKS_EVERY_S = 2.0  # between two looks for a stop file: on a network file system each is a question to a server


@dataclass(frozen=True)
class Recipe:
    """How a cell is optimised; the fields are those of `config.Pretrain`."""

    steps: int
    batch: int
    learning_rate: float
    warmup: float
    weight_decay: float
    clip_norm: float
    diverged_above: float
    checkpoint_every_s: float
    falls_to_nothing: bool = False  # whether the loss may come near 0, as of pairs or of a teacher: see `has_diverged`
    optimiser: OptimiserName = "adamw"
    schedule: ScheduleName = "cosine"
    decay: float = 0.2
    branches: tuple[float, ...] = ()
    ema: float | None = None
    validations: int = 1

    @property
    def legs(self) -> list[Leg]:
        """The stretches of the training's line, branches with them."""
        return route(self.steps, self.schedule, self.warmup, self.decay, self.branches)


class Judged(NamedTuple):
    """What held-out people say of the weights as they are."""

    val_loss: float
    val_r2: float
    rest: dict[str, Any]  # further columns of a point


@dataclass(frozen=True)
class Hooks:
    """What a training calls, each optional.

    Attributes
    ----------
    begun : told the training when its last checkpoint is loaded, before its first step.
    report : told (steps taken, loss, learning rate) after each step.
    after_step : told the share of the schedule that is done, after each step that was not skipped.
    judge : scores the weights on held-out people; called on every process, and None where another one has the score.
    stalled : seconds that the training has waited for clips so far.
    sink : told (step, values) of the trunk, after each step and validation, e.g. TensorBoard.
    """

    report: Callable[[int, float, float], None] | None = None
    after_step: Callable[[float], None] | None = None
    judge: Callable[[], Judged | None] | None = None
    stalled: Callable[[], float] | None = None
    sink: Callable[[int, Mapping[str, float]], None] | None = None
    begun: Callable[[Training], None] | None = None


NO_HOOKS, ONE_PART = Hooks(), How()


@dataclass(eq=False)
class Loop:
    """A training under way."""

    stepper: Stepper
    recipe: Recipe
    training: Training
    store: Store | None
    hooks: Hooks
    world: World
    meter: Meter
    started: float
    saved: float
    looked: float = 0.0
    spent_j: float = 0.0  # by former starts
    waited_s: float = 0.0  # likewise
    trunk: Tensors = field(default_factory=dict)  # this process's part of the state that a branch left, to go on from

    @property
    def state(self) -> Tensors:
        """Every tensor that decides how the training goes on, as this process holds it."""
        tensors: Tensors = {f"model/{name}": value for name, value in self.stepper.learner.state_dict().items()}
        tensors |= {f"optimiser/{name}": value for name, value in self.stepper.optimiser.state.items()}
        if self.stepper.average:
            tensors |= {f"average/{name}": value for name, value in self.stepper.average.state.items()}
        return tensors


def train(
    learner: nn.Module,
    loss_of: LossOf,
    recipe: Recipe,
    store: Store | None = None,
    hooks: Hooks = NO_HOOKS,
    world: World = ALONE,
    how: How = ONE_PART,
    rate_factors: Mapping[str, float] | None = None,
    root: nn.Module | None = None,
) -> Training:
    """Train a model in place, from where its last checkpoint stands, until it is done, diverged or stopped.

    `rate_factors` are of single parameters, see `Optimiser`; `root` is what FSDP2 was put around. At the end the
    learner holds the moving average of its weights, where the recipe has one.

    A step whose loss or gradient is not finite is skipped and counted. SIGTERM, SIGINT and SIGUSR2 end the loop at the
    next step boundary, after a checkpoint.

    Raises
    ------
    Unfinished : a signal came; the same call goes on where this one stopped.
    InputError : the checkpoint in `store` belongs to another cell, to other data or to another number of processes.
    """
    optimiser = Optimiser(learner, recipe.weight_decay, rate_factors, recipe.optimiser)
    average = Average(learner, recipe.ema) if recipe.ema else None
    stepper = Stepper(learner, optimiser, average, recipe.clip_norm, world, how, root or learner)
    now = time.monotonic()
    loop = Loop(stepper, recipe, Training.fresh(recipe.legs), store, hooks, world, Meter(world.device), now, now)
    resume(loop)
    check_same_start(loop.training, world)
    loop.started -= loop.training.seconds
    loop.spent_j, loop.waited_s = loop.training.energy_j or 0.0, loop.training.data_seconds
    if hooks.begun:
        hooks.begun(loop.training)
    with noted() as came, written_out(store):
        while loop.training.status is None and not loop.training.over:
            run_step(loop, loss_of, lambda: bool(came))
    training = loop.training
    if loop.trunk:  # it ended inside a branch: the finished encoder is the trunk's
        return_to_trunk(loop)
    training.status = training.status or "completed"
    if store and world.same(training.seconds > recipe.checkpoint_every_s):
        save(loop)  # a fault while results are written must not cost the training
        store.wait()
    if average and training.status != "diverged":
        average.apply()
    return training


def run_step(loop: Loop, loss_of: LossOf, stop: Callable[[], bool]) -> None:
    """One step and all that goes with it: history, divergence, validation, branches, checkpoints, a stop."""
    training, recipe = loop.training, loop.recipe
    number, step = training.now
    leg = training.legs[number]
    if leg.branch and not loop.trunk:
        leave_trunk(loop)
    rate = learning_rate(step, leg, recipe.steps, recipe.learning_rate, recipe.warmup, recipe.schedule)
    parts = parts_of(recipe.batch, step, loop.world, loop.stepper.how.micro_batch)
    moved = loop.stepper.take(loss_of, parts, rate, lambda: (stop(), *_votes(loop)))
    if loop.hooks.after_step and isfinite(moved.loss):
        loop.hooks.after_step((step + 1) / recipe.steps)
    _write_row(loop, training.branch(number), step, rate, moved)
    if has_diverged(training, moved.loss, recipe.diverged_above, recipe.falls_to_nothing):
        training.status = "diverged"
    stopping, due, stopped_early = moved.votes
    if training.status is None:
        _validate(loop, number, step + 1)
    if loop.hooks.report:
        loop.hooks.report(training.taken, moved.loss, rate)
    if training.status or training.over:
        return
    if loop.store and (stopping or due):
        save(loop)
        loop.saved = time.monotonic()
    if stopping:
        if loop.store:
            loop.store.wait()
        loop.world.barrier()  # a scheduler may end all processes when the first of them has ended
        raise Unfinished(f"stopped by a signal after step {training.taken} of {len(training.history)}.")
    if stopped_early:
        training.status = "stopped_early"


def _votes(loop: Loop) -> tuple[bool, bool]:
    """Whether the first process finds that a checkpoint is due, and that somebody has made a stop file."""
    if loop.store is None or not loop.world.first:
        return False, False
    now = time.monotonic()
    due, stopped = loop.store.failed or now - loop.saved > loop.recipe.checkpoint_every_s, False
    if now - loop.looked > LOOKS_EVERY_S:
        loop.looked, stopped = now, loop.store.stop_file.exists()
    return due, stopped


def _write_row(loop: Loop, branch: int, step: int, rate: float, moved: Moved) -> None:
    training = loop.training
    training.taken += 1
    training.clips += moved.clips
    training.skipped += moved.loss != moved.loss
    training.seconds = time.monotonic() - loop.started
    training.data_seconds = loop.waited_s + (loop.hooks.stalled() if loop.hooks.stalled else 0.0)
    if (joules := loop.meter.energy_j()) is not None:
        training.energy_j = loop.spent_j + joules
    values = {
        "branch": branch,
        "step": step + 1,
        "loss": moved.loss,
        "learning_rate": rate,
        "grad_norm": moved.norm,
        "clips": training.clips,
        "seconds": training.seconds,
        "data_seconds": training.data_seconds,
        "peak_memory_mb": loop.meter.peak_memory_mb(),
        "energy_j": float("nan") if training.energy_j is None else training.energy_j,
    }
    training.write(**values)
    if loop.hooks.sink and not branch:
        loop.hooks.sink(step + 1, values)


def _validate(loop: Loop, number: int, done: int) -> None:
    """Score the weights where a validation is due, and at the end of a branch, whose state is then dropped."""
    training, recipe, leg = loop.training, loop.recipe, loop.training.legs[number]
    ends = leg.branch and done == leg.last
    due = {round(recipe.steps * part / recipe.validations) for part in range(1, recipe.validations)}
    if loop.hooks.judge and (ends or (not leg.branch and done in due)):
        with loop.stepper.average.swapped() if loop.stepper.average else nullcontext():
            judged = loop.hooks.judge()
        if judged is not None:
            training.write(val_loss=judged.val_loss, val_r2=judged.val_r2)
            if loop.hooks.sink and not leg.branch:
                loop.hooks.sink(done, {"val_loss": judged.val_loss, "val_r2": judged.val_r2})
            if ends:
                point = {"branch": training.branch(number), "steps": done, "val_loss": judged.val_loss}
                training.points.append(point | {"val_r2": judged.val_r2} | judged.rest)
    if ends:
        return_to_trunk(loop)


@contextmanager
def written_out(store: Store | None) -> Iterator[None]:
    """An error inside the block leaves when the checkpoint that is being written lies on the disk."""
    try:
        yield
    except BaseException:
        if store:
            with suppress(Exception):  # the first error is the one to be told
                store.wait()
        raise


def leave_trunk(loop: Loop) -> None:
    """Keep the state aside that a branch starts from; in the memory of the CPU, so that a GPU holds it once."""
    loop.trunk = {name: local(value).detach().to("cpu", copy=True) for name, value in loop.state.items()}
    loop.training.aside = {name: copy(getattr(loop.training, name)) for name in ("lowest", "recent")}


def return_to_trunk(loop: Loop) -> None:
    """Go on from the state that was kept aside, as if the branch had not been."""
    for name, value in loop.state.items():
        local(value).detach().copy_(loop.trunk[name])
    training = loop.training
    training.lowest, training.recent = training.aside["lowest"], training.aside["recent"]
    loop.trunk, training.aside = {}, {}


def save(loop: Loop) -> None:
    """Hand everything that a bitwise identical continuation needs to the writer; only the first process writes."""
    training, world = loop.training, loop.world
    tensors = whole(loop.state, world, like=_placed(loop))
    trunk = whole(loop.trunk, world, like=_placed(loop))
    if not loop.store or tensors is None or trunk is None:
        return
    tensors |= {f"trunk/{name}": value for name, value in trunk.items()}
    tensors["history"] = training.history[: training.taken].clone()
    counters = {name: copy(getattr(training, name)) for name in COUNTERS}  # points grow while it is being written
    loop.store.save_later(training.taken, tensors, counters)


def resume(loop: Loop) -> None:
    """Load the last checkpoint, where there is one."""
    found = loop.store.load() if loop.store else None
    if found is None:
        return
    tensors, numbers = found
    training = replace(loop.training, **numbers)
    training.history[: training.taken] = tensors.pop("history")
    trunk = {name.removeprefix("trunk/"): tensors.pop(name) for name in list(tensors) if name.startswith("trunk/")}
    if trunk:
        fill(loop.state, trunk, _placed(loop))
        loop.trunk = {name: local(value).detach().to("cpu", copy=True) for name, value in loop.state.items()}
    fill(loop.state, tensors, _placed(loop))
    loop.training = training


def check_same_start(training: Training, world: World) -> None:
    """Whether every process has found the same checkpoint: on a network file system a listing may be old.

    Raises
    ------
    Unfinished : one has not.
    """
    if world.any(world.same(training.taken) != training.taken):
        raise Unfinished("the processes found different checkpoints; the file system shows them late.")


def _placed(loop: Loop) -> dict[str, Tensor]:
    """The parameter that says how each part of the state is shared out among processes, by the state's name."""
    if not loop.stepper.how.sharded:
        return {}
    parameters = dict(loop.stepper.learner.named_parameters())
    places: dict[str, Tensor] = {}
    for name in loop.state:
        kind, rest = name.split("/", 1)
        moment, owner = rest.split(".", 1) if kind == "optimiser" else ("", rest)
        if owner in parameters and moment != "steps":
            places[name] = parameters[owner]
    return places
