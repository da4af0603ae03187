"""The training loop: any model, any loss that is a function of sample positions, resumable at every step.

The loss is a function of the step alone (whoever draws from torch's own generator seeds it by the step), so the step
number, the weights and the optimiser's moments are the whole state; a run that was interrupted ends bitwise equal to
one that was not.
"""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from pipeline.errors import Unfinished
from pipeline.pretrain.checkpoint import Store, Tensors
from pipeline.pretrain.optimiser import AdamW
from pipeline.pretrain.schedule import learning_rate

Status = Literal["completed", "diverged", "collapsed", "stopped_early"]
LossOf = Callable[[range], Tensor]  # sample positions -> mean loss of these samples
Report = Callable[[int, float, float], None]  # step, loss, learning rate

COLUMNS = ("loss", "learning_rate", "grad_norm", "seconds")
SMOOTHED_STEPS = 10  # steps whose mean loss is compared with the lowest such mean so far
MAX_SKIPPED = 0.02  # share of all steps, but at least 5, that may be non-finite before a cell counts as diverged
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2)


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


@dataclass
class Training:
    """How far a training is; `history` has a row of COLUMNS a step, NaN where a step was skipped."""

    history: Tensor
    step: int = 0
    skipped: int = 0
    lowest: float = sys.float_info.max  # of the smoothed loss
    status: Status | None = None
    seconds: float = 0.0

    @property
    def losses(self) -> Tensor:
        """Loss of each step done."""
        return self.history[: self.step, 0]


def train(
    model: nn.Module,
    loss_of: LossOf,
    recipe: Recipe,
    store: Store | None = None,
    report: Report | None = None,
    after_step: Callable[[int], None] | None = None,
    rate_factors: Mapping[str, float] | None = None,
) -> Training:
    """Train a model in place, from where its last checkpoint stands, until it is done, diverged or stopped.

    `after_step` is told how many steps are done; `rate_factors` are of single parameters, see `AdamW`.

    A step whose loss or gradient is not finite is skipped and counted. SIGTERM, SIGINT and SIGUSR2 end the loop at the
    next step boundary, after a checkpoint.

    Raises
    ------
    Unfinished : a signal came; the same call goes on where this one stopped.
    InputError : the checkpoint in `store` belongs to another cell or to other data.
    """
    optimiser = AdamW(model, recipe.weight_decay, rate_factors)
    training = resume(model, optimiser, recipe, store)
    started, saved = time.monotonic() - training.seconds, time.monotonic()
    if store:
        store.folder.mkdir(parents=True, exist_ok=True)
    with asked_to_stop() as stop:
        while training.status is None and training.step < recipe.steps:
            take_step(model, optimiser, loss_of, recipe, training)
            if after_step:
                after_step(training.step)
            training.seconds = time.monotonic() - started
            training.history[training.step - 1, 3] = training.seconds
            if report:
                report(training.step, *training.history[training.step - 1, :2].tolist())
            if training.status or training.step == recipe.steps:
                break
            stopping = stop()  # read once: a signal between the save and the raise must not lose steps
            if store and (stopping or time.monotonic() - saved > recipe.checkpoint_every_s):
                save(model, optimiser, training, store)
                saved = time.monotonic()
            if stopping:
                raise Unfinished(f"stopped by a signal after step {training.step} of {recipe.steps}")
            if store and store.stop_file.exists():
                training.status = "stopped_early"
    training.status = training.status or "completed"
    if store and training.seconds > recipe.checkpoint_every_s:
        save(model, optimiser, training, store)  # a fault while results are written must not cost the training
    return training


def take_step(model: nn.Module, optimiser: AdamW, loss_of: LossOf, recipe: Recipe, training: Training) -> None:
    """One optimiser step, written into `training`; sets its status where the loss has diverged."""
    rate = learning_rate(training.step, recipe.steps, recipe.learning_rate, recipe.warmup)
    buffers = {name: value.clone() for name, value in model.named_buffers() if value.is_floating_point()}
    loss = loss_of(range(training.step * recipe.batch, (training.step + 1) * recipe.batch))
    model.zero_grad()
    torch.autograd.backward(loss)
    norm = nn.utils.clip_grad_norm_(model.parameters(), recipe.clip_norm)
    row = torch.stack((loss.detach(), norm)).double().cpu()
    if row.isfinite().all():
        optimiser.step(rate)
    else:
        row[:] = torch.nan
        training.skipped += 1
        for name, value in model.named_buffers():  # the running means of a norm are not finite either
            if name in buffers:
                value.copy_(buffers[name])
    training.history[training.step, :3] = torch.tensor([row[0], rate, row[1]])
    training.step += 1
    if has_diverged(training, recipe):
        training.status = "diverged"


def has_diverged(training: Training, recipe: Recipe) -> bool:
    """Whether too many steps were skipped, or the smoothed loss stands far above the lowest it has reached.

    A loss that can fall to nothing may rise tenfold from there: it diverges only above where it started, too.
    """
    if training.skipped > max(5, MAX_SKIPPED * recipe.steps):
        return True
    recent = training.losses[-SMOOTHED_STEPS:].nanmean().item()
    training.lowest = min(training.lowest, recent)
    limit = recipe.diverged_above * training.lowest
    if recipe.falls_to_nothing:
        finite = training.losses[training.losses.isfinite()]
        limit = max(limit, finite[:SMOOTHED_STEPS].mean().item())
    return recent > limit


@contextmanager
def asked_to_stop() -> Iterator[Callable[[], bool]]:
    """Signals only set a flag while the block runs; what it yields says whether one came."""
    came: list[int] = []
    former = {number: signal.signal(number, lambda got, _frame: came.append(got)) for number in SIGNALS}
    try:
        yield lambda: bool(came)
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


def save(model: nn.Module, optimiser: AdamW, training: Training, store: Store) -> None:
    """Write everything that a bitwise identical continuation needs."""
    tensors: Tensors = {f"model/{name}": value for name, value in model.state_dict().items()}
    tensors |= {f"optimiser/{name}": value for name, value in optimiser.state.items()}
    tensors["history"] = training.history[: training.step]
    numbers = {name: getattr(training, name) for name in ("step", "skipped", "lowest", "seconds", "status")}
    store.save(training.step, tensors, numbers)


def resume(model: nn.Module, optimiser: AdamW, recipe: Recipe, store: Store | None) -> Training:
    """Load the last checkpoint into model and optimiser; a fresh `Training` where there is none."""
    history = torch.full((recipe.steps, len(COLUMNS)), torch.nan, dtype=torch.float64)
    found = store.load() if store else None
    if found is None:
        return Training(history)
    tensors, numbers = found
    model.load_state_dict(_under("model/", tensors))
    optimiser.load(_under("optimiser/", tensors))
    history[: numbers["step"]] = tensors["history"]
    return Training(history, **numbers)


def _under(prefix: str, tensors: Tensors) -> Tensors:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
