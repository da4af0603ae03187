"""The Mamba block against another library, its causality, its start, and its names."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional

from pipeline.models.parts.mamba import Mamba


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def test_equals_mambapy_with_its_weights() -> None:
    """Output and the gradient of every weight; the two name and shape their parameters alike, as mamba-ssm does."""
    library = pytest.importorskip("mambapy.mamba")
    theirs, ours = library.MambaBlock(library.MambaConfig(d_model=24, n_layers=1)), Mamba(24)
    ours.load_state_dict(theirs.state_dict())
    tokens = torch.randn(2, 37, 24)
    result, expected = ours(tokens), theirs(tokens)
    torch.testing.assert_close(result, expected, atol=1e-5, rtol=1e-4)
    result.square().sum().backward()
    expected.square().sum().backward()
    grads = dict(theirs.named_parameters())
    for name, parameter in ours.named_parameters():
        torch.testing.assert_close(parameter.grad, grads[name].grad, atol=1e-4, rtol=1e-3)


def test_names_and_shapes_are_those_of_mamba_ssm() -> None:
    """For 40 channels: 80 inner ones, steps of rank ceil(40 / 16) = 3, 16 states."""
    assert {name: tuple(value.shape) for name, value in Mamba(40).state_dict().items()} == {
        "in_proj.weight": (160, 40),
        "conv1d.weight": (80, 1, 4),
        "conv1d.bias": (80,),
        "x_proj.weight": (35, 80),
        "dt_proj.weight": (80, 3),
        "dt_proj.bias": (80,),
        "A_log": (80, 16),
        "D": (80,),
        "out_proj.weight": (40, 80),
    }


def test_no_token_sees_a_later_one_unless_both_directions_are_scanned() -> None:
    tokens, changed = torch.randn(1, 20, 8), torch.randn(1, 20, 8)
    changed[:, :12] = tokens[:, :12]
    causal, both = Mamba(8), Mamba(8, both_directions=True)
    moved = (causal(tokens) - causal(changed)).abs().amax((0, 2))
    assert moved[:12].max() == 0
    assert moved[12:].min() > 0
    assert (both(tokens) - both(changed)).abs().amax((0, 2)).min() > 0


def test_a_shift_in_time_shifts_what_comes_out() -> None:
    """Without bias in the convolution nothing happens before the first token, so that zeros in front only delay."""
    block = Mamba(8)
    nn.init.zeros_(block.conv1d.bias)
    tokens = torch.randn(1, 15, 8)
    delayed = block(functional.pad(tokens, (0, 0, 5, 0)))
    torch.testing.assert_close(delayed[:, 5:], block(tokens), atol=1e-6, rtol=0)
    assert delayed[:, :5].abs().max() == 0


def test_directions_mirror_each_other() -> None:
    """With the weights of one direction in the other, a row turned round comes out turned round."""
    block = Mamba(8, both_directions=True)
    assert block.backwards is not None
    block.backwards.load_state_dict({name: block.state_dict()[name] for name in block.backwards.state_dict()})
    tokens = torch.randn(2, 11, 8)
    torch.testing.assert_close(block(tokens.flip(1)), block(tokens).flip(1), atol=1e-6, rtol=0)


def test_start_is_that_of_the_paper() -> None:
    """Step widths between 1e-3 and 1e-1, evenly in log space; A = -1 ... -16 in each channel; D = 1."""
    block = Mamba(512)
    steps = functional.softplus(block.dt_proj.bias.detach())
    assert 0.999e-3 < steps.min() < 1.1e-3
    assert 0.9e-1 < steps.max() < 1.001e-1
    assert steps.log10().mean() == pytest.approx(-2, abs=0.06)  # 3 standard errors of 1024 even draws over 2 decades
    torch.testing.assert_close(block.A_log.exp()[5], torch.arange(1.0, 17.0))
    assert (block.D == 1).all()


def test_bfloat16_is_close_to_float32() -> None:
    block, tokens = Mamba(32, both_directions=True), torch.randn(2, 64, 32)
    exact = block(tokens)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = block(tokens)
    assert rounded.dtype == torch.bfloat16
    assert (rounded - exact).norm() < 0.02 * exact.norm()


def test_operations_of_the_scan_are_counted_for_each_direction() -> None:
    """9 for each of 16 states and 2 for the skip, of 2 x 10 tokens with 16 inner channels."""
    tokens = torch.randn(2, 10, 8)
    assert Mamba(8).own_flops(tokens) == 2 * 10 * 16 * (9 * 16 + 2)
    assert Mamba(8, both_directions=True).own_flops(tokens) == 2 * Mamba(8).own_flops(tokens)
