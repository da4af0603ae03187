"""The selective scan against a loop over steps, another library, and the memory that it claims."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from pipeline.models.parts import scan as scan_module
from pipeline.models.parts.scan import fused, selective_scan

ROWS, LENGTH, CHANNELS, STATES = 2, 23, 3, 4


def inputs(length: int = LENGTH, dtype: torch.dtype = torch.float64, rows: int = ROWS) -> list[Tensor]:
    """x, delta, A, B, C, D as `selective_scan` takes them."""
    draw = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=draw, dtype=torch.float64).to(dtype)

    delta, rates = normal(rows, length, CHANNELS).exp() / 5, -normal(CHANNELS, STATES).exp()
    both = normal(2, rows, length, STATES)
    return [normal(rows, length, CHANNELS), delta, rates, both[0], both[1], normal(CHANNELS)]


def step_by_step(x: Tensor, delta: Tensor, a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> Tensor:
    """The recurrence as the paper writes it, number by number along the row."""
    out = torch.zeros_like(x)
    for row in range(x.shape[0]):
        for channel in range(x.shape[2]):
            state = torch.zeros(a.shape[1], dtype=x.dtype)
            for step in range(x.shape[1]):
                width = delta[row, step, channel]
                state = torch.exp(width * a[channel]) * state + width * b[row, step] * x[row, step, channel]
                out[row, step, channel] = state @ c[row, step] + d[channel] * x[row, step, channel]
    return out


def gradients(function: Callable[..., Tensor], values: list[Tensor], weight: Tensor) -> list[Tensor]:
    leaves = [value.clone().requires_grad_() for value in values]
    return list(torch.autograd.grad((function(*leaves) * weight).sum(), leaves))


@pytest.mark.parametrize("chunk", [1, 4, 23, 64])
def test_equals_a_loop_over_steps_with_any_chunk(chunk: int) -> None:
    values = inputs()
    torch.testing.assert_close(selective_scan(*values, chunk=chunk), step_by_step(*values), atol=1e-12, rtol=0)


@pytest.mark.parametrize("chunk", [5, 64])
def test_gradients_equal_those_of_the_loop(chunk: int) -> None:
    values, weight = inputs(), torch.randn(ROWS, LENGTH, CHANNELS, dtype=torch.float64)
    ours = gradients(lambda *leaves: selective_scan(*leaves, chunk=chunk), values, weight)
    for one, other in zip(ours, gradients(step_by_step, values, weight), strict=True):
        torch.testing.assert_close(one, other, atol=1e-11, rtol=0)


def test_gradients_equal_finite_differences() -> None:
    leaves = [value.requires_grad_() for value in inputs(length=7)]
    assert torch.autograd.gradcheck(lambda *values: selective_scan(*values, chunk=3), leaves)


def test_reverse_scans_from_the_last_step() -> None:
    values = inputs()
    turned = [value.flip(1) if value.ndim == 3 else value for value in values]
    torch.testing.assert_close(selective_scan(*values, reverse=True), step_by_step(*turned).flip(1), atol=1e-12, rtol=0)


def test_equals_mambapy() -> None:
    """Both of its writings: the parallel scan and the sequential one, in float32."""
    mamba = pytest.importorskip("mambapy.mamba")
    block = mamba.MambaBlock(mamba.MambaConfig(d_model=CHANNELS, n_layers=1, d_state=STATES, expand_factor=1))
    values = inputs(length=40, dtype=torch.float32)
    ours = selective_scan(*values, chunk=16)
    for theirs in (block.selective_scan(*values), block.selective_scan_seq(*values)):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)


def test_rows_scanned_in_groups_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    values = inputs(rows=5)
    weight = torch.ones(5, LENGTH, CHANNELS, dtype=torch.float64)
    together = gradients(selective_scan, values, weight)
    monkeypatch.setattr(scan_module, "STATE_ON_CPU", 2 * CHANNELS * STATES)
    for one, other in zip(gradients(selective_scan, values, weight), together, strict=True):
        torch.testing.assert_close(one, other, atol=1e-12, rtol=0)


@pytest.mark.parametrize("forwards", [True, False])
def test_lanes_give_what_one_step_after_the_other_gives(forwards: bool) -> None:
    """What devices that pay for each launch run; a CPU does not."""
    decay = torch.rand(3 * scan_module.LANES, ROWS, CHANNELS, STATES, dtype=torch.float64)
    driven = torch.randn_like(decay)
    ours, state = driven.clone(), torch.zeros_like(driven[0])
    scan_module._recur_in_lanes(ours, decay, forwards)
    for step in range(len(decay)) if forwards else reversed(range(len(decay))):
        state = decay[step] * state + driven[step]
        torch.testing.assert_close(ours[step], state, atol=1e-12, rtol=0)


def test_long_rows_and_steep_decays_stay_finite() -> None:
    """exp(delta A) underflows to 0 within a step, and a sum of its logarithms would reach -2e6."""
    x, delta, a, b, c, d = inputs(length=2000, dtype=torch.float32)
    leaves = [value.requires_grad_() for value in (x, delta * 100, a * 10, b, c, d)]
    y = selective_scan(*leaves)
    y.square().mean().backward()
    assert y.isfinite().all()
    assert all(leaf.grad is not None and leaf.grad.isfinite().all() for leaf in leaves)


def kept_bytes(length: int) -> int:
    """Bytes that the scan keeps for its gradient."""
    storages: dict[int, int] = {}

    def pack(value: Tensor) -> Tensor:
        storages[value.untyped_storage().data_ptr()] = value.untyped_storage().nbytes()
        return value

    leaves = [value.requires_grad_() for value in inputs(length, torch.float32)]
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda value: value):
        result = selective_scan(*leaves, chunk=16)
    assert result.requires_grad
    return sum(storages.values())


def test_memory_kept_is_linear_in_the_length_and_without_the_states() -> None:
    short, long = kept_bytes(640), kept_bytes(1280)
    states = 4 * ROWS * 1280 * CHANNELS * STATES
    inputs_and_boundaries = 4 * ROWS * 1280 * (2 * CHANNELS + 2 * STATES) + states // 16
    assert long - short == pytest.approx(short, rel=0.01)
    assert long < 1.05 * inputs_and_boundaries


def test_half_precision_comes_back_as_it_went_in() -> None:
    values = inputs(dtype=torch.bfloat16)
    y = selective_scan(*values)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.double(), step_by_step(*(value.double() for value in values)), atol=0.05, rtol=0.02)


@pytest.mark.skipif(not torch.cuda.is_available() or fused() is None, reason="needs CUDA and mamba-ssm")
def test_equals_the_cuda_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    values = [value.cuda() for value in inputs(length=200, dtype=torch.float32)]
    weight = torch.ones_like(values[0])
    kernel = [selective_scan(*values), *gradients(selective_scan, values, weight)]
    monkeypatch.setattr(scan_module, "fused", lambda: None)
    ours = [selective_scan(*values), *gradients(selective_scan, values, weight)]
    for one, other in zip(ours, kernel, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_cuda_equals_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scan_module, "fused", lambda: None)
    values = inputs(length=200)
    weight = torch.ones_like(values[0])
    on_cuda = gradients(selective_scan, [value.cuda() for value in values], weight.cuda())
    for one, other in zip(gradients(selective_scan, values, weight), on_cuda, strict=True):
        torch.testing.assert_close(one, other.cpu(), atol=1e-10, rtol=0)
