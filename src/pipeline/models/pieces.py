"""Window attention and MLPs on a CPU, in pieces that stay in its cache; what is cheap is recomputed in backward.

Written out, the scores of one block of SwiFT v1 are 250 MB and the hidden layer of its MLP 47 MB, and both pass through
memory several times in each direction. Here a few windows, or a few thousand tokens, go through a whole branch before
the next ones do. Queries, keys and values lie channels first, `(D, N)`: products whose long axis is the last one run at
twice the speed of those that end in a head's 12 channels (20 against 43 ms for 960 heads, one thread).

Legend: G tokens of all clips; C channels; W windows of all clips; V windows of a clip; N tokens of a window; H heads;
M heads of a piece of windows; D channels of a head.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

SCORES = 1 << 19  # of a piece: 2 MB, three times in backward; 1 to 4 MB are within 5 % of one another
ROWS = 4096  # tokens of a piece of an MLP: 2.4 MB of hidden layer at width 36


def serve(tokens: Tensor, *modules: nn.Module) -> bool:
    """Whether pieces may stand in for modules: float32 or float64 on a CPU, and nobody watches the modules."""
    plain = tokens.device.type == "cpu" and tokens.dtype in (torch.float32, torch.float64)
    watched = any(module._forward_hooks or module._forward_pre_hooks for module in modules)
    return plain and not watched and not torch.is_autocast_enabled("cpu") and not torch.compiler.is_compiling()


def in_pieces(function: Callable[[Tensor], Tensor], tokens: Tensor) -> Tensor:
    """`function` of tokens `(..., C)`, each on its own; what it computes on the way is not kept but recomputed."""
    pieces = torch.split(tokens.flatten(0, -2), ROWS)
    if torch.is_grad_enabled():
        done = [checkpoint(function, piece, use_reentrant=False, preserve_rng_state=False) for piece in pieces]
    else:
        done = [function(piece) for piece in pieces]
    return torch.cat(done).view(tokens.shape)


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
        own = Weights(*weights)
        windows, n = place_WN.shape
        channels = tokens_GC.shape[1]
        mixed_GC = torch.empty_like(tokens_GC)
        attended_WCN = tokens_GC.new_empty(windows, channels, n) if any(ctx.needs_input_grad) else None
        buffers = [tokens_GC.new_empty(max(SCORES, heads * n * n)) for _ in range(2)]
        for piece in _pieces(windows, heads * n * n):
            place = place_WN[piece].flatten()
            q, k, v = _project(tokens_GC.index_select(0, place).view(-1, n, channels), own, heads, scale)
            weight_MNN = _weigh(q, k, mask_V1NN, piece, buffers)
            kept = None if attended_WCN is None else attended_WCN[piece].view(v.shape)
            attended = torch.bmm(v, weight_MNN.transpose(1, 2), out=kept).view(-1, channels, n)
            out = torch.bmm(attended.transpose(1, 2), own.proj.T.expand(len(attended), -1, -1)).add_(own.proj_bias)
            mixed_GC.index_copy_(0, place, out.view(-1, channels))
        ctx.save_for_backward(tokens_GC, place_WN, mask_V1NN, attended_WCN, *weights)
        return mixed_GC

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_GC: Tensor) -> tuple[Tensor | None, ...]:
        tokens_GC, place_WN, mask_V1NN, attended_WCN, *weights = ctx.saved_tensors
        own, heads, scale = Weights(*weights), ctx.heads, ctx.scale
        windows, n = place_WN.shape
        channels = tokens_GC.shape[1]
        d_tokens_GC = torch.empty_like(tokens_GC)
        d_own = Weights(*(torch.zeros_like(weight) for weight in own))
        d_own.proj_bias.copy_(grad_GC.sum(0))
        buffers = [tokens_GC.new_empty(max(SCORES, heads * n * n)) for _ in range(3)]
        for piece in _pieces(windows, heads * n * n):
            place = place_WN[piece].flatten()
            tokens = tokens_GC.index_select(0, place).view(-1, n, channels)
            grad = grad_GC.index_select(0, place).view(-1, n, channels)
            q, k, v = _project(tokens, own, heads, scale)
            weight_MNN = _weigh(q, k, mask_V1NN, piece, buffers)
            d_own.proj.add_(torch.bmm(grad.transpose(1, 2), attended_WCN[piece].transpose(1, 2)).sum(0))
            d_attended = torch.bmm(own.proj.T.expand(len(grad), -1, -1), grad.transpose(1, 2)).view(q.shape)
            d_weight = torch.bmm(d_attended.transpose(1, 2), v, out=_like(weight_MNN, buffers[0]))
            d_scores = _like(weight_MNN, buffers[2])
            torch.ops.aten._softmax_backward_data.out(d_weight, weight_MNN, -1, weight_MNN.dtype, grad_input=d_scores)
            d_q = torch.bmm(k, d_scores.transpose(1, 2)).mul_(scale)
            d_k = torch.bmm(q, d_scores)
            d_v = torch.bmm(d_attended, weight_MNN)
            d_qkv = torch.cat([part.view(-1, channels, n) for part in (d_q, d_k, d_v)], dim=1)
            d_own.qkv.add_(torch.bmm(d_qkv, tokens).sum(0))
            d_own.qkv_bias.add_(d_qkv.sum((0, 2)))
            d_tokens_GC.index_copy_(
                0, place, torch.bmm(d_qkv.transpose(1, 2), own.qkv.expand(len(d_qkv), -1, -1)).view(-1, channels)
            )
        return d_tokens_GC, None, None, None, None, *d_own


def _pieces(windows: int, scores: int) -> list[slice]:
    """Windows of each piece, where one has so many scores."""
    step = max(1, SCORES // scores)
    return [slice(start, min(start + step, windows)) for start in range(0, windows, step)]


def _project(tokens_WNC: Tensor, own: Weights, heads: int, scale: float) -> tuple[Tensor, Tensor, Tensor]:
    """Scaled queries, keys and values `(M, D, N)` of the heads of some windows."""
    _, n, channels = tokens_WNC.shape
    parts = zip(own.qkv.chunk(3), own.qkv_bias.chunk(3), strict=True)
    q, k, v = (
        torch.baddbmm(bias[:, None], weight.expand(len(tokens_WNC), -1, -1), tokens_WNC.transpose(1, 2))
        for weight, bias in parts
    )
    return (
        q.mul_(scale).view(-1, channels // heads, n),
        k.view(-1, channels // heads, n),
        v.view(-1, channels // heads, n),
    )


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
