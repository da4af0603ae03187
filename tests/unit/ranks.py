"""What several gloo processes compute beside what one computes alone; run by `test_distributed.py` as one training.

`python ranks.py FOLDER`: each rank leaves `FOLDER/<rank>.json`, then the last one refuses its input.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[1]))
from tiny_models import TINY, clips, own_objective, tiny

from pipeline.errors import EXIT_BAD_INPUT, EXIT_UNFINISHED, InputError, Unfinished
from pipeline.models import describe
from pipeline.pretrain.engine.distributed import (
    StepModule,
    World,
    accumulate,
    average_buffers,
    gradient_norm,
    joined,
    local,
    shard,
    sum_gradients,
)
from pipeline.pretrain.engine.optimiser import Optimiser
from pipeline.pretrain.engine.state import fill, whole

SHARE = 3  # clips of a rank: its norms over a batch need two, its pairs of parts are uneven
LEARNING_RATE = 0.01


class Task:
    """A tiny learner of the registry and the loss of a share of its clips, the same in whatever process it is taken."""

    def __init__(self, name: str, ranks: int) -> None:
        self.name, self.learner = name, describe(name).learner(tiny(name))
        self.clip = clips(self.learner.encoder, SHARE * ranks)

    def loss(self, share: int, part: slice = slice(None)) -> Tensor:
        torch.manual_seed(share)  # of dropout
        clip = self.clip[share * SHARE : (share + 1) * SHARE][part]
        objective, batch = own_objective(self.name, self.learner, clip)
        return objective.loss(batch)


def gradients(learner: nn.Module) -> dict[str, Tensor | None]:
    found = {name: value.grad for name, value in learner.named_parameters()}
    return {name: grad if grad is None else getattr(grad, "full_tensor", grad.clone)() for name, grad in found.items()}


def alone(name: str, world: World, part: slice = slice(None)) -> Task:
    """The task with the gradients of every share added up in one process."""
    task = Task(name, world.size)
    for share in range(world.size):
        task.loss(share, part).backward()
    return task


def shared_out(name: str, world: World) -> Task:
    """The same, each process computing its share and the sums being exchanged."""
    task = Task(name, world.size)
    task.loss(world.rank).backward()
    sum_gradients(task.learner.parameters(), world)
    return task


def sharded(name: str, world: World) -> tuple[Task, StepModule]:
    task = Task(name, world.size)
    root = StepModule(task.learner, task.loss)
    shard(root, world)
    return task, root


def distance(one: dict[str, Any], other: dict[str, Any]) -> float:
    """Largest difference of two sets of tensors, relative to the largest of all numbers; infinite if None differs."""
    if {name for name in one if one[name] is None} != {name for name in other if other[name] is None}:
        return float("inf")
    pairs = [(one[name], other[name]) for name in one if one[name] is not None]
    largest = max(b.abs().max().item() for _, b in pairs)
    return max((a - b).abs().max().item() for a, b in pairs) / largest


def equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def exchanges(world: World) -> dict[str, Any]:
    return {
        "sum": world.sum(torch.tensor([1.0, world.rank])).tolist(),
        "any": [world.any(False), world.any(world.rank == 1), world.any(True)],
        "same": world.same({"rank": world.rank, "text": "é", "step": 0.1, "none": None}),
        "first": world.first,
    }


def norms(world: World) -> dict[str, Any]:
    """Running statistics are averaged, other buffers are not; a gradient on one rank alone is refused."""
    norm = nn.BatchNorm1d(2)
    norm.register_buffer("table", torch.tensor([0.1 * (world.rank + 1)]))
    norm.running_mean.fill_(world.rank)
    average_buffers(norm, world)
    if world.first:
        norm.weight.grad = torch.ones(2)
    try:
        sum_gradients(norm.parameters(), world)
    except ValueError as error:
        refusal = str(error)
    return {"mean": norm.running_mean.tolist(), "table": norm.table.tolist(), "refusal": refusal}


def data_parallel(world: World) -> dict[str, Any]:
    expected, found = alone("swift_v2", world), shared_out("swift_v2", world)
    again = shared_out("swift_v2", world)
    clipped, parameters = gradients(found.learner), list(found.learner.parameters())
    norm = gradient_norm(parameters, world)
    return {
        "gradients": distance(clipped, gradients(expected.learner)),
        "again": equal(clipped, gradients(again.learner)),
        "norm": (norm / gradient_norm(expected.learner.parameters(), World()) - 1).abs().item(),
    }


def fsdp(name: str, world: World) -> dict[str, Any]:
    expected, (found, root) = alone(name, world), sharded(name, world)
    root(world.rank).backward()
    parameters = list(found.learner.parameters())
    norm, before = gradient_norm(parameters, world), gradients(found.learner)
    return {
        "gradients": distance(before, gradients(expected.learner)),
        "norm": (norm / gradient_norm(expected.learner.parameters(), World()) - 1).abs().item(),
        "held": sum(local(each).numel() for each in parameters) / sum(each.numel() for each in parameters),
    }


def parts(world: World) -> float:
    """A share in two parts, whose gradients are exchanged with the last."""
    expected, (found, root) = alone("swift_v2", world, slice(0, 1)), sharded("swift_v2", world)
    for share in range(world.size):
        expected.loss(share, slice(1, None)).backward()
    for part in (slice(0, 1), slice(1, None)):
        accumulate(root, last=part.start == 1)
        root(world.rank, part).backward()
    return distance(gradients(found.learner), gradients(expected.learner))


def stepped(task: Task, backward: Callable[[], None]) -> Optimiser:
    optimiser = Optimiser(task.learner, 0.1)
    for _ in range(2):
        task.learner.zero_grad()
        backward()
        optimiser.step(LEARNING_RATE)
    return optimiser


def everything(task: Task, optimiser: Optimiser) -> dict[str, Tensor]:
    return {**task.learner.state_dict(), **optimiser.state}


def of_parts(optimiser: Optimiser) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The optimiser's state as plain tensors, and the parameter that each is laid out as."""
    like = {
        name: optimiser.parameters[name.partition(".")[2]] for name in optimiser.state if not name.startswith("steps.")
    }
    return {name: local(value) for name, value in optimiser.state.items()}, like


def checkpoint(model: str, world: World) -> dict[str, Any]:
    """Two steps, all state taken out, put into a fresh learner and taken out again."""
    expected, (found, root) = Task(model, world.size), sharded(model, world)
    moved = stepped(expected, lambda: [expected.loss(share).backward() for share in range(world.size)] and None)
    optimiser = stepped(found, lambda: root(world.rank).backward())
    saved = whole(everything(found, optimiser), world)
    plain, like = of_parts(optimiser)
    saved_plain = whole(plain, world, like)
    tensors: dict[str, Tensor] = {}
    for name, value in everything(expected, moved).items():  # every process reads the first one's file
        tensors[name] = world.sum(saved[name] if saved else torch.zeros_like(value))
    fresh, _ = sharded(model, world)
    fresh_optimiser = Optimiser(fresh.learner, 0.1)
    fill(everything(fresh, fresh_optimiser), tensors)
    parts_equal = equal(
        {name: local(value) for name, value in everything(fresh, fresh_optimiser).items()},
        {name: local(value) for name, value in everything(found, optimiser).items()},
    )
    plain = {name: torch.zeros_like(value) for name, value in plain.items()}
    fill(plain, {name: tensors[name] for name in plain}, like)
    sizes = sorted({value.shape[0] % world.size for value in found.learner.parameters()})
    return {
        "returned": saved is not None,
        "agrees": saved is None or distance(saved, everything(expected, moved)),
        "plain": saved is None or equal({name: saved[name] for name in plain}, saved_plain or {}),
        "restored": parts_equal,
        "restored_plain": equal(plain, of_parts(optimiser)[0]),
        "uneven": sizes,
        "empty": any(local(value).numel() == 0 for value in found.learner.parameters()),
    }


def validated(world: World) -> float:
    """A forward pass without gradient between changed weights leaves no trace of them."""
    expected, (found, root) = alone("swift_v2", world), sharded("swift_v2", world)
    held = list(found.learner.parameters())  # as an optimiser and a moving average hold them
    with torch.no_grad():
        for value in held:
            local(value).mul_(2)
        root(world.rank)
        for value in held:
            local(value).div_(2)
    root(world.rank).backward()
    return distance(gradients(found.learner), gradients(expected.learner))


def main(folder: Path) -> int:
    torch.set_num_threads(1)
    try:
        with joined("cpu") as world:
            found = {
                "exchanges": exchanges(world),
                "norms": norms(world),
                "data parallel": data_parallel(world),
                "fsdp": {name: fsdp(name, world) for name in TINY},
                "parts": parts(world),
                "checkpoint": {name: checkpoint(name, world) for name in ("swift_v2", "brainnetcnn")},
                "validated": validated(world),
            }
            (folder / f"{world.rank}.json").write_text(json.dumps(found))
            if world.rank == world.size - 1:
                raise InputError("a file", "one thing", "another", "Mend it.")
            world.barrier()
    except InputError as error:
        print(error, file=sys.stderr)
        return EXIT_BAD_INPUT
    except Unfinished as reason:
        (folder / "unfinished").write_text(str(reason))
        return EXIT_UNFINISHED
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
