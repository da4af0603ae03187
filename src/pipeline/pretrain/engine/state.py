"""Training state as whole tensors, whether each process holds all of a tensor or a part of it.

A checkpoint holds whole tensors under plain names, so that it does not depend on how the weights were laid out.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from pipeline.errors import InputError
from pipeline.pretrain.engine.distributed import ALONE, World, is_sharded, local

__all__ = ("Tensors", "fill", "local", "part_of", "whole")

Tensors = dict[str, Tensor]


@torch.no_grad()
def whole(
    named: Mapping[str, Tensor], world: World = ALONE, like: Mapping[str, Tensor] | None = None
) -> Tensors | None:
    """Copies of whole tensors on the CPU, in the first process; None in the others.

    Every process has to call it with the same names in the same order: parts are exchanged one tensor at a time, and
    no process but the first holds more than one whole tensor.

    Parameters
    ----------
    named : tensors, DTensors, or parts of one (see `like`).
    like : names among `named` that are this process's part of a tensor laid out as a parameter is -> that parameter.
    """
    gathered: Tensors = {}
    for name, tensor in named.items():
        full = _gathered(tensor, (like or {}).get(name, tensor))
        if world.first:
            gathered[name] = full.detach().to("cpu", copy=True)
    return gathered if world.first else None


@torch.no_grad()
def fill(named: Mapping[str, Tensor], tensors: Tensors, like: Mapping[str, Tensor] | None = None) -> None:
    """Copy whole tensors into those of this process, in place; of a sharded one its part. Nothing is exchanged.

    Parameters
    ----------
    named, like : as in `whole`.
    tensors : whole ones under the same names, in every process.

    Raises
    ------
    InputError : a name or a shape differs.
    """
    if missing := sorted(named.keys() ^ tensors.keys()):
        side = "nothing" if missing[0] in named else "a tensor of that name"
        raise _other(missing[0], side, "the names of this cell's learner and optimiser")
    for name, tensor in named.items():
        pattern, full = (like or {}).get(name, tensor), tensors[name]
        if full.shape != pattern.shape:
            raise _other(name, f"shape {tuple(full.shape)}", f"{tuple(pattern.shape)}")
        local(tensor).copy_(part_of(full, pattern))


def _other(name: str, found: str, expected: str) -> InputError:
    hint = "The checkpoint is of another model: remove it, or go back to the configuration it was made with."
    return InputError(f"checkpoint: {name}", found, expected, hint)


def _gathered(tensor: Tensor, pattern: Tensor) -> Tensor:
    """The whole of a tensor of which this process may hold a part."""
    if not is_sharded(pattern):
        return tensor
    from torch.distributed.tensor import DTensor

    assert isinstance(pattern, DTensor)
    if not isinstance(tensor, DTensor):
        # Shape and stride are given: from the parts alone an uneven last one cannot be told.
        shape, stride = pattern.shape, pattern.stride()
        here = tensor.to(pattern.device)
        tensor = DTensor.from_local(here, pattern.device_mesh, pattern.placements, shape=shape, stride=stride)
    return tensor.full_tensor()


def part_of(full: Tensor, pattern: Tensor) -> Tensor:
    """What this process holds of a whole tensor that is laid out as `pattern` is."""
    if not is_sharded(pattern):
        return full
    from torch.distributed.tensor import DTensor, distribute_tensor

    assert isinstance(pattern, DTensor)
    # No rank is the source: every process has read the whole tensor, and cuts its part out of it.
    laid_out = distribute_tensor(full, pattern.device_mesh, pattern.placements, src_data_rank=None)
    return laid_out.to_local()
