"""One training in several processes: who they are, what they add up, and weights of which each holds a part.

Every process trains on its own share of a step's samples. Gradients are summed, never averaged: the trainer divides by
the weight of the samples, summed likewise, so that shares need not be equal.

`processes` starts them. The heavy parts of torch.distributed are imported where they are used: they cost half a second,
which a cell that trains in one process never pays.
"""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.distributed.rendezvous import rendezvous

from pipeline.errors import InputError, Unfinished

CPU = torch.device("cpu")
TIMEOUT = timedelta(hours=2)  # of one exchange: the first process may validate or write alone meanwhile
RENDEZVOUS = timedelta(minutes=10)  # until all have come
BUCKET_BYTES = 32 * 2**20  # gradients of one exchange; a 9M cell has one or two
LOST = ("Connection closed", "Connection reset", "Broken pipe", "Timed out", "ncclRemoteError", "process exited")


@dataclass(frozen=True)
class World:
    """The processes of a training, seen from one of them."""

    rank: int = 0
    size: int = 1
    device: torch.device = CPU

    @property
    def first(self) -> bool:
        """Whether this process writes files and talks to people."""
        return self.rank == 0

    def sum(self, tensor: Tensor) -> Tensor:
        """The tensor itself, now the sum over all processes; each has to bring one of the same shape and type."""
        if self.size > 1:
            here = tensor.to(self.device)  # nccl takes only what lies on its device
            distributed.all_reduce(here)
            if here is not tensor:
                tensor.copy_(here)
        return tensor

    def any(self, flag: bool) -> bool:
        """Whether the flag is set in any process."""
        return bool(self.sum(torch.tensor(int(flag))) > 0)

    def barrier(self) -> None:
        """Wait until all have come here."""
        self.sum(torch.zeros(1))

    def same(self, value: Any) -> Any:
        """What the first process brings, in every process; numbers, text, None, lists and dictionaries of them."""
        text = json.dumps(value).encode()
        if self.size == 1:
            return json.loads(text)
        length = int(self.sum(torch.tensor(len(text) if self.first else 0)))
        characters = torch.zeros(length, dtype=torch.uint8)
        if self.first:
            characters[:] = torch.frombuffer(bytearray(text), dtype=torch.uint8)
        return json.loads(bytes(self.sum(characters).tolist()))


ALONE = World()


@contextmanager
def joined(device: str) -> Iterator[World]:
    """The world that the variables of torchrun describe, for as long as the block runs; of one process without them.

    Parameters
    ----------
    device : `cpu`, with gloo between processes, or `cuda`, with nccl and the GPU of LOCAL_RANK.

    Raises
    ------
    InputError : RANK is set and another of the variables is not.
    Unfinished : another process of the training is gone, or did not come.
    """
    place = _place()
    if place is None:
        yield World(device=torch.device(device))
        return
    rank, size, local_rank = place
    here = torch.device(device)
    if here.type == "cuda":  # a scheduler may show each process its own GPU alone
        here = torch.device("cuda", local_rank % torch.cuda.device_count())
        torch.cuda.set_device(here)
    world = World(rank, size, here)
    try:
        store, _, _ = next(rendezvous("env://", rank, size, timeout=RENDEZVOUS))
        store.set_timeout(TIMEOUT)
        backend = "nccl" if here.type == "cuda" else "gloo"
        distributed.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=TIMEOUT)
        yield world
        world.barrier()  # the first process holds the store that the others need to leave
    except RuntimeError as error:
        if not (isinstance(error, distributed.DistNetworkError) or any(text in str(error) for text in LOST)):
            raise
        raise Unfinished(f"process {rank} of {size} lost another of them.") from error
    finally:
        if distributed.is_initialized():
            distributed.destroy_process_group()


def _place() -> tuple[int, int, int] | None:
    """RANK, WORLD_SIZE and LOCAL_RANK, or None for one process."""
    if "RANK" not in os.environ:
        return None
    for name in ("WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        if name not in os.environ:
            hint = "Start the processes with torchrun or `pipeline pretrain`, or unset RANK to train in one."
            raise InputError(f"environment variable {name}", "nothing", "what torchrun sets beside RANK", hint)
    rank, size, local_rank = (int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
    return (rank, size, local_rank) if size > 1 else None


@torch.no_grad()
def sum_gradients(parameters: Iterable[nn.Parameter], world: World) -> None:
    """Sum the gradients of data parallel processes, in place; those of sharded parameters are sums already.

    A parameter without gradient keeps None. It travels as zeros, and each with a flag whether it has one, so that all
    processes exchange equally much whatever their gradients are.

    Raises
    ------
    ValueError : a parameter has a gradient in some processes and none in others.
    """
    if world.size == 1:
        return
    counts = []
    for bucket in _buckets(parameters):
        parts = [torch.zeros_like(each) if each.grad is None else each.grad for each in bucket]
        flags = torch.tensor([float(each.grad is not None) for each in bucket], device=parts[0].device)
        sizes = [each.numel() for each in bucket]
        flat = world.sum(torch.cat([*(part.flatten() for part in parts), flags.to(parts[0].dtype)]))
        *sums, count = torch.split(flat, [*sizes, len(bucket)])
        for each, total in zip(bucket, sums, strict=True):
            if each.grad is not None:
                each.grad.copy_(total.view_as(each))
        counts.append(count)
    if counts and not all(count in (0, world.size) for count in torch.cat(counts).tolist()):
        raise ValueError("a parameter has a gradient in some processes only: the loss must use the same ones in all")


def _buckets(parameters: Iterable[nn.Parameter]) -> Iterator[list[nn.Parameter]]:
    """Trained whole parameters in their order, split by type and size."""
    bucket: list[nn.Parameter] = []
    for each in parameters:
        if not each.requires_grad or is_sharded(each):
            continue
        held = sum(one.numel() * one.element_size() for one in bucket)
        if bucket and (held > BUCKET_BYTES or each.dtype != bucket[0].dtype):
            yield bucket
            bucket = []
        bucket.append(each)
    if bucket:
        yield bucket


def is_sharded(tensor: Tensor) -> bool:
    """Whether it is a DTensor; asked without importing them."""
    return hasattr(tensor, "device_mesh")


def local(tensor: Tensor) -> Tensor:
    """What this process holds of a tensor: itself, or the shard of a DTensor, in the same memory."""
    to_local: Callable[[], Tensor] | None = getattr(tensor, "to_local", None)
    if to_local is None:
        return tensor.detach()  # a context a tensor costs more than the optimiser does
    with torch.no_grad():
        return to_local()


@torch.no_grad()
def gradient_norm(parameters: Iterable[nn.Parameter], world: World) -> Tensor:
    """Euclidean norm of all gradients together, a float64 scalar, the same in every process.

    Whole gradients have been summed before; of sharded ones the squares are summed over the processes here.
    """
    gradients = [each.grad for each in parameters if each.grad is not None]
    square = _square([each for each in gradients if not is_sharded(each)], world)
    if any(is_sharded(each) for each in gradients):
        square += world.sum(_square([local(each) for each in gradients if is_sharded(each)], world))
    return square.sqrt()


def _square(tensors: list[Tensor], world: World) -> Tensor:
    """Sum of squares. In float32 that of a million numbers is off by 1e-5, in another way for each way to share out."""
    norms = torch._foreach_norm(tensors, 2, dtype=torch.float64) if tensors else []
    zero = torch.zeros((), dtype=torch.float64, device=world.device)
    return torch.stack([zero, *norms]).square().sum()


@torch.no_grad()
def average_buffers(learner: nn.Module, world: World) -> None:
    """Running means and variances of norms become those over all processes.

    Each process saw other samples. Buffers that never change are left alone: the mean of three equal numbers need not
    be that number.
    """
    if world.size == 1:
        return
    norms = [module for module in learner.modules() if isinstance(module, nn.modules.batchnorm._NormBase)]
    pairs = [(norm.running_mean, norm.running_var) for norm in norms]
    statistics = [each for pair in pairs for each in pair if each is not None]
    if statistics:
        flat = world.sum(torch.cat([each.flatten() for each in statistics])) / world.size
        for each, mean in zip(statistics, torch.split(flat, [each.numel() for each in statistics]), strict=True):
            each.copy_(mean.view_as(each))


class StepModule(nn.Module):
    """A learner behind one `forward`, whichever of its methods an objective calls: FSDP2 gathers weights there.

    Parameters
    ----------
    learner : what is trained.
    call : what a forward pass does; it returns a loss, or a tuple, list or dictionary of tensors.
    """

    def __init__(self, learner: nn.Module, call: Callable[..., Any]) -> None:
        super().__init__()
        self.learner, self.call = learner, call

    def forward(self, *arguments: Any) -> Any:
        """What `call` returns."""
        return self.call(*arguments)


def shard(step_module: StepModule, world: World) -> None:
    """Leave each process its part of every parameter; blocks are gathered one at a time while they are used.

    Call it before the optimiser is made, and run the learner through `step_module` alone. Gradients are sums over the
    processes. What is gathered is given up after each forward pass, the root's weights too: a root that stayed whole
    after a validation would be used as it was then by the next step.

    Source: FSDP2, `torch.distributed.fsdp.fully_shard`.
    """
    if world.size == 1:
        return
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import FSDPModule, fully_shard

    # It warns of blocks that return a view, in case somebody adds to that in place; tests hold every model's gradients.
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view")
    mesh = init_device_mesh(world.device.type, (world.size,))
    for module in [*_blocks(step_module), step_module]:
        fully_shard(module, mesh=mesh, reshard_after_forward=True)
    for module in step_module.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)  # gloo knows no other, and nccl gives the same sum by it


def _blocks(module: nn.Module) -> list[nn.Module]:
    """Members of lists of modules that hold parameters, inner ones before the outer."""
    blocks: list[nn.Module] = []
    for child in module.children():
        blocks += _blocks(child)
        if isinstance(module, nn.ModuleList) and not isinstance(child, (nn.ModuleList, nn.ModuleDict)):
            blocks += [child] if any(True for _ in child.parameters()) else []
    return blocks


def accumulate(step_module: nn.Module, last: bool) -> None:
    """Whether the backward pass that follows is the last of its step: sharded gradients are summed in that one only.

    Until then each process holds whole gradients: memory for one exchange instead of one a part.
    """
    of_sharded: Callable[[bool], None] | None = getattr(step_module, "set_requires_gradient_sync", None)
    if of_sharded:
        of_sharded(last)
