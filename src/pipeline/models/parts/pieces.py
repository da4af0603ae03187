"""Window attention and MLPs on a CPU, in pieces that stay in its cache; scores are recomputed in backward.

Written out, the scores of one block of SwiFT v1 are 250 MB and the hidden layer of its MLP 47 MB, and both pass through
memory several times in each direction. Here a few windows are scored, weighed and summed, or a few thousand tokens
mapped, before the next ones are. Queries, keys and values lie channels first, `(D, N)`: products whose long axis is the
last one run at twice the speed of those that end in a head's 12 channels (20 against 43 ms for 960 heads, one thread).
Kept for the gradient are queries, keys, values, sums and the layers of MLPs; to keep the weights of attention too would
save no time, for reading them takes as long as their softmax.

Legend: G tokens of all clips; C channels; W windows of all clips; V windows of a clip; N tokens of a window; H heads;
M heads of a piece of windows; D channels of a head.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

SCORES = 1 << 19  # of a piece: 2 MB, three times in backward; 1 MB and 4 MB are slower
ROWS = 4096  # tokens of a piece of an MLP: 2.4 MB of hidden layer at width 36


def serve(tokens: Tensor, *modules: nn.Module) -> bool:
    """Whether pieces may stand in for modules: float32 or float64 on a CPU, and nobody watches the modules."""
    plain = tokens.device.type == "cpu" and tokens.dtype in (torch.float32, torch.float64)
    watched = any(module._forward_hooks or module._forward_pre_hooks for module in modules)
    return plain and not watched and not torch.is_autocast_enabled("cpu") and not torch.compiler.is_compiling()


def in_pieces(function: Callable[[Tensor], Tensor], tokens: Tensor) -> Tensor:
    """`function` of tokens `(..., C)`, each on its own."""
    return torch.cat([function(piece) for piece in torch.split(tokens.flatten(0, -2), ROWS)]).view(tokens.shape)


class Weights(NamedTuple):
    """Those of the two linear maps of attention, as `nn.Linear` holds them."""

    qkv: Tensor
    qkv_bias: Tensor
    proj: Tensor
    proj_bias: Tensor


class _Windows(torch.autograd.Function):
    """`mix_windows`, with its gradient."""

    @staticmethod
    def forward(
        ctx: Any,
        tokens_GC: Tensor,
        place_WN: Tensor,
        mask_V1NN: Tensor | None,
        heads: int,
        scale: float,
        *weights: Tensor,
    ) -> Tensor:
        ctx.heads, ctx.scale = heads, scale
        own, place = Weights(*weights), place_WN.flatten()
        windows, n = place_WN.shape
        qkv_3WCN = _project(tokens_GC.index_select(0, place).view(windows, n, -1), own, scale)
        attended_WCN = torch.empty_like(qkv_3WCN[0])
        _sum_values(_of_heads(qkv_3WCN, heads), mask_V1NN, heads, _of_heads(attended_WCN[None], heads)[0])
        mixed_WNC = torch.bmm(attended_WCN.transpose(1, 2), own.proj.T.expand(windows, -1, -1)).add_(own.proj_bias)
        ctx.save_for_backward(tokens_GC, place_WN, mask_V1NN, qkv_3WCN, attended_WCN, *weights)
        return torch.empty_like(tokens_GC).index_copy_(0, place, mixed_WNC.flatten(0, 1))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_GC: Tensor) -> tuple[Tensor | None, ...]:
        tokens_GC, place_WN, mask_V1NN, qkv_3WCN, attended_WCN, *weights = ctx.saved_tensors
        own, heads, place = Weights(*weights), ctx.heads, place_WN.flatten()
        windows, n = place_WN.shape
        grad_WNC = grad_GC.index_select(0, place).view(windows, n, -1)
        d_attended_WCN = torch.bmm(own.proj.T.expand(windows, -1, -1), grad_WNC.transpose(1, 2))
        d_proj = torch.bmm(grad_WNC.transpose(1, 2), attended_WCN.transpose(1, 2)).sum(0)
        d_qkv_3WCN = torch.empty_like(qkv_3WCN)
        d_attended_MDN = _of_heads(d_attended_WCN[None], heads)[0]
        _sum_gradients(_of_heads(qkv_3WCN, heads), mask_V1NN, heads, d_attended_MDN, _of_heads(d_qkv_3WCN, heads))
        d_qkv_3WCN[0].mul_(ctx.scale)  # the queries were scaled
        tokens_WNC = tokens_GC.index_select(0, place).view(windows, n, -1)
        d_qkv = torch.cat([torch.bmm(d_WCN, tokens_WNC).sum(0) for d_WCN in d_qkv_3WCN])
        d_tokens_WNC = torch.bmm(d_qkv_3WCN[0].transpose(1, 2), own.qkv.chunk(3)[0].expand(windows, -1, -1))
        for d_WCN, weight in zip(d_qkv_3WCN[1:], own.qkv.chunk(3)[1:], strict=True):
            d_tokens_WNC.baddbmm_(d_WCN.transpose(1, 2), weight.expand(windows, -1, -1))
        d_tokens_GC = torch.empty_like(tokens_GC).index_copy_(0, place, d_tokens_WNC.flatten(0, 1))
        d_own = Weights(d_qkv, d_qkv_3WCN.sum((1, 3)).flatten(), d_proj, grad_GC.sum(0))
        return d_tokens_GC, None, None, None, None, *d_own


class _Attention(torch.autograd.Function):
    """`attend`, with its gradient."""

    @staticmethod
    def forward(ctx: Any, q_MDN: Tensor, k_MDN: Tensor, v_MDN: Tensor, mask_V1NN: Tensor | None, heads: int) -> Tensor:
        ctx.heads = heads
        ctx.save_for_backward(q_MDN, k_MDN, v_MDN, mask_V1NN)
        attended_MDN = torch.empty_like(v_MDN)
        _sum_values((q_MDN, k_MDN, v_MDN), mask_V1NN, heads, attended_MDN)
        return attended_MDN

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_attended_MDN: Tensor) -> tuple[Tensor | None, ...]:
        *qkv, mask_V1NN = ctx.saved_tensors
        gradients = [torch.empty_like(part) for part in qkv]
        _sum_gradients(qkv, mask_V1NN, ctx.heads, d_attended_MDN.contiguous(), gradients)
        return *gradients, None, None


def attend(q_MDN: Tensor, k_MDN: Tensor, v_MDN: Tensor, mask_V1NN: Tensor | None, heads: int) -> Tensor:
    """Attention `(M, D, N)` among the tokens of each head, whose queries are scaled already.

    With 6 channels a head it is 2.4 times as fast as torch's fused kernel at windows of 20 tokens and 1.2 times at 64
    (forward, two threads). The heads of a window lie next to each other; `mask_V1NN` is added to the scores of a clip's
    windows.
    """
    mixed: Tensor = _Attention.apply(q_MDN, k_MDN, v_MDN, mask_V1NN, heads)  # type: ignore[no-untyped-call]
    return mixed


def _sum_values(qkv: Sequence[Tensor], mask_V1NN: Tensor | None, heads: int, attended_MDN: Tensor) -> None:
    """Write the sums of values, weighed by attention."""
    q_MDN, k_MDN, v_MDN = qkv
    n = q_MDN.shape[2]
    buffers = [q_MDN.new_empty(max(SCORES, heads * n * n)) for _ in range(2)]
    for piece in _pieces(len(q_MDN) // heads, heads * n * n):
        part = slice(piece.start * heads, piece.stop * heads)
        weight_MNN = _weigh(q_MDN[part], k_MDN[part], mask_V1NN, piece, buffers)
        torch.bmm(v_MDN[part], weight_MNN.transpose(1, 2), out=attended_MDN[part])


def _sum_gradients(
    qkv: Sequence[Tensor],
    mask_V1NN: Tensor | None,
    heads: int,
    d_attended_MDN: Tensor,
    gradients: Sequence[Tensor],
) -> None:
    """Write the gradients of queries, keys and values."""
    q_MDN, k_MDN, v_MDN = qkv
    d_q_MDN, d_k_MDN, d_v_MDN = gradients
    n = q_MDN.shape[2]
    buffers = [q_MDN.new_empty(max(SCORES, heads * n * n)) for _ in range(3)]
    for piece in _pieces(len(q_MDN) // heads, heads * n * n):
        part = slice(piece.start * heads, piece.stop * heads)
        weight_MNN = _weigh(q_MDN[part], k_MDN[part], mask_V1NN, piece, buffers)
        d_attended = d_attended_MDN[part]
        d_weight = torch.bmm(d_attended.transpose(1, 2), v_MDN[part], out=_like(weight_MNN, buffers[0]))
        d_scores = _like(weight_MNN, buffers[2])
        torch.ops.aten._softmax_backward_data.out(d_weight, weight_MNN, -1, weight_MNN.dtype, grad_input=d_scores)
        torch.bmm(k_MDN[part], d_scores.transpose(1, 2), out=d_q_MDN[part])
        torch.bmm(q_MDN[part], d_scores, out=d_k_MDN[part])
        torch.bmm(d_attended, weight_MNN, out=d_v_MDN[part])


def _pieces(windows: int, scores: int) -> list[slice]:
    """Windows of each piece, where one has so many scores."""
    step = max(1, SCORES // scores)
    return [slice(start, min(start + step, windows)) for start in range(0, windows, step)]


def _project(tokens_WNC: Tensor, own: Weights, scale: float) -> Tensor:
    """Scaled queries, keys and values `(3, W, C, N)`."""
    windows, n, channels = tokens_WNC.shape
    qkv_3WCN = tokens_WNC.new_empty(3, windows, channels, n)
    factors = (scale, 1.0, 1.0)
    for out, weight, bias, factor in zip(qkv_3WCN, own.qkv.chunk(3), own.qkv_bias.chunk(3), factors, strict=True):
        scaled, shift = weight * factor, (bias * factor)[:, None]
        torch.baddbmm(shift, scaled.expand(windows, -1, -1), tokens_WNC.transpose(1, 2), out=out)
    return qkv_3WCN


def _of_heads(parts_KWCN: Tensor, heads: int) -> tuple[Tensor, ...]:
    """Each of K parts as `(M, D, N)`, a view; the heads of a window lie next to each other."""
    return torch.unflatten(parts_KWCN, 2, (heads, -1)).flatten(1, 2).unbind()


def _like(shaped: Tensor, buffer: Tensor) -> Tensor:
    return buffer[: shaped.numel()].view(shaped.shape)


def _weigh(q_MDN: Tensor, k_MDN: Tensor, mask_V1NN: Tensor | None, piece: slice, buffers: list[Tensor]) -> Tensor:
    """Weights of attention `(M, N, N)`, in the second buffer; the first is free afterwards."""
    n = q_MDN.shape[2]
    scores_MNN, weight_MNN = (buffer[: len(q_MDN) * n * n].view(-1, n, n) for buffer in buffers[:2])
    torch.bmm(q_MDN.transpose(1, 2), k_MDN, out=scores_MNN)
    if mask_V1NN is not None:
        first, count = piece.start % len(mask_V1NN), piece.stop - piece.start
        if first + count <= len(mask_V1NN):
            mask_W1NN = mask_V1NN[first : first + count]
        else:
            mask_W1NN = mask_V1NN[torch.arange(first, first + count) % len(mask_V1NN)]
        scores_MNN.view(count, -1, n, n).add_(mask_W1NN)
    return torch.softmax(scores_MNN, -1, out=weight_MNN)


def mix_windows(
    tokens_GC: Tensor, place_WN: Tensor, mask_V1NN: Tensor | None, heads: int, scale: float, weights: Weights
) -> Tensor:
    """Attention among the tokens of each window, between its linear maps; `(G, C)` to the same.

    Parameters
    ----------
    place_WN : which token stands where in which window, the windows clip by clip; every token stands in one.
    mask_V1NN : added to the scores of a clip's windows.
    scale : factor of the scores.
    """
    mixed: Tensor = _Windows.apply(tokens_GC, place_WN, mask_V1NN, heads, scale, *weights)  # type: ignore[no-untyped-call]
    return mixed
