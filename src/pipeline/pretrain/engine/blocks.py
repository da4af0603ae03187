"""What is done to the blocks of a learner so that it fits or is faster: recomputed, compiled, or in half the precision.

A block is a member of an `nn.ModuleList` with maps inside and no further list of blocks: an attention block, a Mamba
layer. Names of parameters stay as they are, so that checkpoints do not depend on any of this.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from types import MethodType
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from pipeline.models.mup import MAPS, TRANSPOSED

Precision = Literal["float32", "bfloat16"]
CONVOLUTIONS = nn.Conv1d | nn.Conv2d | nn.Conv3d | TRANSPOSED
NORMS = nn.LayerNorm | nn.RMSNorm | nn.GroupNorm | nn.modules.batchnorm._BatchNorm
SHAPES_A_BLOCK = 4  # training and validation, each with a last part that is smaller


def blocks_of(learner: nn.Module) -> list[nn.Module]:
    """The blocks of a learner, in the order of its modules."""
    lists = [module for module in learner.modules() if isinstance(module, nn.ModuleList)]
    members = dict.fromkeys(member for each in lists for member in each)
    return [member for member in members if _is_block(member)]


def _is_block(member: nn.Module) -> bool:
    """A single map is none: to compute it again saves nothing, for it keeps only its input."""
    inner = [module for module in member.modules() if module is not member]
    return any(isinstance(each, MAPS) for each in inner) and not any(isinstance(each, nn.ModuleList) for each in inner)


def checkpoint_blocks(learner: nn.Module) -> None:
    """Keep of each block only what enters it, and compute the rest again in the backward pass.

    Gradients stay bit for bit the same, for dropout is drawn again from the same state. A step takes a third more
    operations, and memory for one block where it had all. Count operations before: they are then counted twice.

    Source: Chen et al. (2016), Training deep nets with sublinear memory cost.
    """
    for block in blocks_of(learner):
        _replace_forward(block, _computed_again)


def _replace_forward(module: nn.Module, forward: Callable[..., Any]) -> None:
    """By a method of the instance: it leaves parameters their names, and moves along where the module is copied."""
    module.forward = MethodType(forward, module)


def _computed_again(block: nn.Module, *arguments: Any, **keywords: Any) -> Any:
    forward = type(block).forward
    if not torch.is_grad_enabled():
        return forward(block, *arguments, **keywords)
    return checkpoint(forward, block, *arguments, use_reentrant=False, **keywords)


def compile_blocks(learner: nn.Module, backend: str = "inductor") -> None:
    """Compile each block on its own when it first runs: one graph serves all blocks of a kind and a shape.

    Call it after `checkpoint_blocks`. The first step takes longer, by seconds a kind; losses agree to rounding.
    """
    from torch._dynamo import config  # 1.4 s, which who does not compile never pays

    blocks = blocks_of(learner)
    # Stages differ in their shapes, and the limit counts all of a class together; behind it torch compiles no more.
    config.recompile_limit = max(config.recompile_limit, SHAPES_A_BLOCK * len(blocks))
    for block in blocks:
        block.compile(backend=backend, dynamic=False)


def precision(name: Precision, device: torch.device) -> AbstractContextManager[Any]:
    """Inside the block, products of matrices and convolutions are in this precision.

    With bfloat16, weights, their gradients and losses stay float32, and so does what enters a model: only what enters a
    product is rounded, and its output. Call `keep_float32` once before, for what autocast alone does not keep.
    """
    return nullcontext() if name == "float32" else torch.autocast(device.type, torch.bfloat16)


def keep_float32(learner: nn.Module, device: torch.device) -> None:
    """Blocks and norms get what enters them in float32 where `precision` would hand them what it has rounded.

    Sums along the residual branch of a block are then float32. So are the gradients of layer norms, which torch on a
    CPU else adds up in bfloat16: of 2,000 tokens that all pull one way it has seen 256.

    On a CPU convolutions stay float32, too: the gradient of their weights in bfloat16 by oneDNN (torch 2.13) has
    numbers up to 1e37 where a map is so small that a place of the kernel never meets it, as 3 x 3 x 3 on 2 x 2 x 2
    places, for that memory is never written.
    """
    for module in [*blocks_of(learner), *(each for each in learner.modules() if isinstance(each, NORMS))]:
        module.register_forward_pre_hook(_as_float32)
    if device.type == "cpu":
        for module in learner.modules():
            if isinstance(module, CONVOLUTIONS):
                _replace_forward(module, _convolve_float32)


def _as_float32(_: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    rounded = torch.bfloat16
    return tuple(each.float() if isinstance(each, Tensor) and each.dtype == rounded else each for each in arguments)


def _convolve_float32(convolution: nn.Module, maps: Tensor) -> Tensor:
    with torch.autocast(maps.device.type, enabled=False):
        return type(convolution).forward(convolution, maps.float())
