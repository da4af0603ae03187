"""The selective scan of Mamba (S6) in plain torch, in chunks: linear in the length in time and memory, both ways.

h_t = exp(delta_t A) h_{t-1} + delta_t x_t B_t, and y_t = <C_t, h_t> + D x_t, for every row and channel on its own.
The states h (B, L, D, N) are N = 16 times the size of x and are never kept: forward keeps the state at the entry of
each chunk, backward computes a chunk's states again from it. Everything is a product of decays between 0 and 1 and a
sum, so that nothing overflows however long the chunk; no logarithm is summed.

Source: Gu and Dao (2023), Mamba: Linear-time sequence modeling with selective state spaces, algorithm 2.

Legend: B row; L steps; T steps of a chunk; D channels; N states of a channel.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

CHUNK = 64  # boundary states are then N / 64 = a quarter of x for N = 16
# Rows are scanned together until the state of one step has so many numbers. On a CPU it should stay in the cache (80
# windows of 256 steps, 72 channels, forward and backward on one thread: 0.34 s at 2^15, 0.51 s at 2^19); elsewhere few
# large steps are faster.
STATE_ON_CPU, STATE_ELSEWHERE = 2**15, 2**24
LANES = 16  # pieces of a chunk that advance together where launching a step costs more than computing it


def _recur(driven: Sequence[Tensor], decay: Sequence[Tensor]) -> None:
    """In place, one after the other: each adds its own decay times the one before it; the first has no decay."""
    for before, here, kept in zip(driven, driven[1:], decay, strict=False):
        here.addcmul_(kept, before)


def _recur_in_lanes(driven_TBDN: Tensor, decay_TBDN: Tensor, forwards: bool) -> None:
    """The same in 2 T / LANES + LANES launches: lanes run side by side from zero, then take in what enters them."""
    driven_KTBDN, decay_KTBDN = (torch.unflatten(part, 0, (LANES, -1)) for part in (driven_TBDN, decay_TBDN))
    order = slice(None) if forwards else slice(None, None, -1)
    steps = driven_KTBDN.unbind(1)[order]
    _recur(steps, decay_KTBDN.unbind(1)[order][1:])
    left_KTBDN = torch.empty_like(decay_KTBDN)  # of what enters a lane, after each step
    left, decays = left_KTBDN.unbind(1)[order], decay_KTBDN.unbind(1)[order]
    left[0].copy_(decays[0])
    for before, here, kept in zip(left, left[1:], decays[1:], strict=False):
        torch.mul(before, kept, out=here)
    lanes = driven_KTBDN.unbind(0)[order]
    for before, lane, kept in zip(lanes, lanes[1:], left_KTBDN.unbind(0)[order][1:], strict=False):
        lane.addcmul_(kept, before[-1 if forwards else 0])


def _accumulate(driven_TBDN: Tensor, decay_TBDN: Tensor, forwards: bool) -> Tensor:
    """In place `driven_t += decay_t * driven_{t-1}`, or backwards in time `driven_t += decay_{t+1} * driven_{t+1}`."""
    if driven_TBDN.device.type != "cpu" and len(driven_TBDN) % LANES == 0:
        aligned = decay_TBDN if forwards else torch.cat([decay_TBDN[1:], torch.zeros_like(decay_TBDN[:1])])
        _recur_in_lanes(driven_TBDN, aligned, forwards)
    else:
        order = slice(None) if forwards else slice(None, None, -1)
        _recur(driven_TBDN.unbind(0)[order], decay_TBDN[1:].unbind(0)[order])
    return driven_TBDN


def _chunk(x_BTD: Tensor, delta_BTD: Tensor, a_DN: Tensor, b_BTN: Tensor, entry_BDN: Tensor) -> tuple[Tensor, Tensor]:
    """Decays and states (T, B, D, N) of a chunk that `entry_BDN` enters."""
    decay_TBDN = (delta_BTD.transpose(0, 1).unsqueeze(-1) * a_DN).exp_()
    driven_TBDN = (delta_BTD * x_BTD).transpose(0, 1).unsqueeze(-1) * b_BTN.transpose(0, 1).unsqueeze(2)
    driven_TBDN[0].addcmul_(decay_TBDN[0], entry_BDN)
    return decay_TBDN, _accumulate(driven_TBDN, decay_TBDN, forwards=True)


class _Scan(torch.autograd.Function):
    """The scan without D, in one precision."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, delta: Tensor, a: Tensor, b: Tensor, c: Tensor, chunk: int) -> Tensor:
        rows, length, channels = x.shape
        y_BLD = torch.empty_like(x)
        state_BDN = x.new_zeros(rows, channels, a.shape[1])
        entries = x.new_empty(-(-length // chunk), *state_BDN.shape)
        chunks = [] if x.is_meta else range(0, length, chunk)  # meta tensors have shapes alone
        for number, first in enumerate(chunks):
            part = slice(first, first + chunk)
            entries[number] = state_BDN
            _, states_TBDN = _chunk(x[:, part], delta[:, part], a, b[:, part], state_BDN)
            y_BLD[:, part] = torch.einsum("tbdn,btn->btd", states_TBDN, c[:, part])
            state_BDN = states_TBDN[-1]
        ctx.save_for_backward(x, delta, a, b, c, entries)
        ctx.chunk = chunk
        return y_BLD

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor | None, ...]:
        x, delta, a, b, c, entries = ctx.saved_tensors
        with _without_autocast(x):
            grads = [torch.empty_like(part) for part in (x, delta, b, c)]
            grad_a, carried_BDN = torch.zeros_like(a), torch.zeros_like(entries[0])
            for number in reversed(range(len(entries))):
                part = slice(number * ctx.chunk, (number + 1) * ctx.chunk)
                cut = (x[:, part], delta[:, part], a, b[:, part], c[:, part], grad_y[:, part])
                here, grad_a_here, carried_BDN = _chunk_backward(*cut, entries[number], carried_BDN)
                grad_a += grad_a_here
                for grad, in_chunk in zip(grads, here, strict=True):
                    grad[:, part] = in_chunk
        return grads[0], grads[1], grad_a, grads[2], grads[3], None


_scan: Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, int], Tensor] = _Scan.apply


def _chunk_backward(
    x: Tensor, delta: Tensor, a_DN: Tensor, b: Tensor, c: Tensor, grad_y: Tensor, entry_BDN: Tensor, carried_BDN: Tensor
) -> tuple[tuple[Tensor, ...], Tensor, Tensor]:
    """Gradients of x, delta, b and c in a chunk, of a, and of the state that enters it.

    `carried_BDN` is the gradient that the steps behind the chunk send to its last state.
    """
    decay_TBDN, states_TBDN = _chunk(x, delta, a_DN, b, entry_BDN)
    grad_c = torch.einsum("tbdn,btd->btn", states_TBDN, grad_y)
    # The gradient of a state is the same recurrence backwards in time.
    grad_TBDN = grad_y.transpose(0, 1).unsqueeze(-1) * c.transpose(0, 1).unsqueeze(2)
    grad_TBDN[-1] += carried_BDN
    _accumulate(grad_TBDN, decay_TBDN, forwards=False)
    carried_BDN = decay_TBDN[0] * grad_TBDN[0]
    grad_driven = torch.einsum("tbdn,btn->btd", grad_TBDN, b)  # of delta * x
    grad_b = torch.einsum("tbdn,btd->btn", grad_TBDN, delta * x)
    grad_exponent_TBDN = grad_TBDN.mul_(decay_TBDN)  # of delta * a
    grad_exponent_TBDN[0] *= entry_BDN
    grad_exponent_TBDN[1:] *= states_TBDN[:-1]
    grad_delta = grad_driven * x + torch.einsum("tbdn,dn->btd", grad_exponent_TBDN, a_DN)
    grad_a = torch.einsum("tbdn,btd->dn", grad_exponent_TBDN, delta)
    return (grad_driven * delta, grad_delta, grad_b, grad_c), grad_a, carried_BDN


def _without_autocast(x: Tensor) -> AbstractContextManager[Any]:
    return nullcontext() if x.is_meta else torch.autocast(x.device.type, enabled=False)


@lru_cache
def fused() -> Callable[..., Tensor] | None:
    """The CUDA kernel of `mamba-ssm`, None where that is not installed; it is no requirement."""
    if find_spec("mamba_ssm") is None:
        return None
    scan: Callable[..., Tensor] = import_module("mamba_ssm.ops.selective_scan_interface").selective_scan_fn
    return scan


def selective_scan(
    x_BLD: Tensor,
    delta_BLD: Tensor,
    a_DN: Tensor,
    b_BLN: Tensor,
    c_BLN: Tensor,
    d_D: Tensor,
    chunk: int = CHUNK,
    reverse: bool = False,
) -> Tensor:
    """Scan every row from its first step to its last, `(B, L, D)` in the precision of `x_BLD`.

    Parameters
    ----------
    x_BLD : what is scanned.
    delta_BLD : step widths, not negative (behind the softplus).
    a_DN : rates, not positive. b_BLN, c_BLN : how a step enters the states, and how they are read. d_D : the skip.
    chunk : steps whose states exist at one time; the result does not depend on it.
    reverse : from the last step to the first.

    States are float32, and float64 where `x_BLD` is. On CUDA the kernel of `mamba-ssm` is used where it is installed.
    """
    if reverse:
        x_BLD, delta_BLD, b_BLN, c_BLN = (part.flip(1) for part in (x_BLD, delta_BLD, b_BLN, c_BLN))
    precision = torch.float64 if x_BLD.dtype == torch.float64 else torch.float32
    x, delta, a, b, c = (part.to(precision) for part in (x_BLD, delta_BLD, a_DN, b_BLN, c_BLN))
    with _without_autocast(x):
        fused_scan = fused() if x.is_cuda and precision == torch.float32 else None
        if fused_scan is not None:
            x_BDL, delta_BDL, b_BNL, c_BNL = (part.transpose(1, 2).contiguous() for part in (x, delta, b, c))
            y = fused_scan(x_BDL, delta_BDL, a, b_BNL, c_BNL).transpose(1, 2)
        else:
            y = _scan_rows(x, delta, a, b, c, chunk)
        y = (y + x * d_D.to(precision)).to(x_BLD.dtype)
    return y.flip(1) if reverse else y


def _scan_rows(x: Tensor, delta: Tensor, a: Tensor, b: Tensor, c: Tensor, chunk: int) -> Tensor:
    """Rows in groups whose state of one step has the size that suits the device."""
    rows = max(1, (STATE_ON_CPU if x.device.type == "cpu" else STATE_ELSEWHERE) // a.numel())
    if rows >= len(x):
        return _scan(x, delta, a, b, c, chunk)
    groups = zip(*(torch.split(part, rows) for part in (x, delta, b, c)), strict=True)
    return torch.cat([_scan(x, delta, a, b, c, chunk) for x, delta, b, c in groups])


def scan_flops(rows: int, length: int, channels: int, states: int) -> int:
    """Operations of a scan: 9 for each state of each step (delta A, exp, delta x B, the recurrence, C h), 2 for D x."""
    return rows * length * channels * (9 * states + 2)
