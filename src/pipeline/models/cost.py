"""What a model costs: floating-point operations and the memory that its gradient needs, counted layer by layer.

Operations are those of products of matrices, as is the custom. A layer that multiplies outside of linear maps and
convolutions says so itself, by a method `own_flops`: attention, scans. On the meta device nothing is computed, so any
size can be counted. torch's own counter, which this equals, needs the whole of torch's compiler and 1.5 s to start.
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

WEIGHTED = nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d


class Flops(NamedTuple):
    """Operations of a call, and those that its gradient will take."""

    forward: int
    backward: int


def count_flops(model: nn.Module, call: Callable[[], Any]) -> Flops:
    """Count the operations of `call`, which runs `model` or parts of it.

    Backward takes one product for the gradient of a layer's weights and one for that of its input, each only where
    somebody asks for it: nobody asks for the gradient of voxels, or for any of a frozen teacher.
    """
    forward, backward = [0], [0]

    def count(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        asked = torch.is_grad_enabled() and any(each.requires_grad for each in inputs if isinstance(each, Tensor))
        if isinstance(module, WEIGHTED):
            flops = _of_weights(module, inputs[0], output)
            learns = torch.is_grad_enabled() and module.weight.requires_grad
            forward[0], backward[0] = forward[0] + flops, backward[0] + flops * (learns + asked)
        own = getattr(module, "own_flops", None)
        if own:
            flops = own(*inputs)
            forward[0], backward[0] = forward[0] + flops, backward[0] + 2 * flops * asked

    hooks = [
        module.register_forward_hook(count)
        for module in model.modules()
        if isinstance(module, WEIGHTED) or hasattr(module, "own_flops")
    ]
    try:
        call()
    finally:
        for hook in hooks:
            hook.remove()
    return Flops(forward[0], backward[0])


def _of_weights(module: Any, tokens: Tensor, output: Tensor) -> int:
    if isinstance(module, nn.Linear):
        return 2 * tokens.numel() * module.out_features
    along = tokens if isinstance(module, nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d) else output
    return 2 * along.numel() * prod(module.weight.shape[1:])


def activation_bytes(model: nn.Module, call: Callable[[], Any]) -> int:
    """Bytes that `call` keeps for the gradient, beside the weights: what a clip more in a batch costs in training.

    Every storage counts once, whatever views of it are kept. Attention counts as its fused kernels keep it, inputs and
    output; the meta device knows none and would count the scores of all pairs of tokens.
    """
    known = {value.untyped_storage()._cdata for value in [*model.parameters(), *model.buffers()]}
    kept: dict[int, tuple[int, Tensor]] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in known:
            kept[storage._cdata] = storage.nbytes(), tensor  # held, so that no other storage takes its address
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor), torch.enable_grad(), _AsIfFused():
        result = call()
    del result
    return sum(size for size, _ in kept.values())


class _FusedAttention(torch.autograd.Function):
    """Keeps what a fused kernel keeps, and computes nothing."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        mixed = q.new_empty(*q.shape[:-1], v.shape[-1])
        ctx.save_for_backward(q, k, v, mixed)
        return mixed

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> tuple[Tensor, ...]:
        return tuple(torch.empty_like(each) for each in ctx.saved_tensors[:3])


class _AsIfFused(TorchFunctionMode):
    """Attention on the meta device as by a fused kernel."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is functional.scaled_dot_product_attention and args[0].is_meta:
            return _FusedAttention.apply(*args[:3])  # type: ignore[no-untyped-call]
        return func(*args, **(kwargs or {}))
