"""AdamW with a learning-rate factor for each parameter, against torch's own with groups."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pipeline.pretrain.optimiser import AdamW


class Net(nn.Module):
    """A convolution, a norm, positions, two linear maps and a matrix that is no map."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(3, 4, 3, padding=1)
        self.norm = nn.LayerNorm(4)
        self.positions = nn.Parameter(torch.randn(1, 6, 4))
        self.rates = nn.Parameter(torch.randn(4, 4))
        self.hidden, self.head = nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, signal: torch.Tensor) -> torch.Tensor:
        tokens = self.norm(self.conv(signal).movedim(1, 2)) + self.positions
        return self.head(self.hidden(tokens).tanh() * self.rates.sum(0))


DECAYED = {"conv.weight", "hidden.weight", "head.weight"}
FACTORS = {"hidden.weight": 0.25, "head.weight": 0.25, "hidden.bias": 2.0}


def nets() -> tuple[Net, Net, dict[str, float]]:
    torch.manual_seed(0)
    ours, other = Net(), Net()
    other.load_state_dict(ours.state_dict())
    return ours, other, {name: FACTORS.get(name, 1.0) for name, _ in ours.named_parameters()}


def test_equals_torch_with_a_group_for_each_parameter():
    ours, other, factors = nets()
    optimiser = AdamW(ours, 0.3, factors)
    groups = [
        {"params": [value], "lr": 0.01 * factors[name], "weight_decay": 0.3 / factors[name] * (name in DECAYED)}
        for name, value in other.named_parameters()
    ]
    reference = torch.optim.AdamW(groups, betas=(0.9, 0.95))
    for _ in range(5):
        signal = torch.randn(2, 3, 6)
        for net in (ours, other):
            net.zero_grad()
            net(signal).square().mean().backward()
        optimiser.step(0.01)
        reference.step()
    for (name, value), expected in zip(ours.named_parameters(), other.parameters(), strict=True):
        assert torch.allclose(value, expected, atol=1e-7), name


def test_decay_is_the_same_for_every_factor():
    """With a gradient of zero only decay is left: learning_rate * weight_decay of the weight, whatever its factor."""
    ours, other, factors = nets()
    for value in ours.parameters():
        value.grad = torch.zeros_like(value)
    AdamW(ours, 0.3, factors).step(0.01)
    for (name, value), before in zip(ours.named_parameters(), other.parameters(), strict=True):
        assert torch.allclose(value, before * (1 - 0.01 * 0.3 if name in DECAYED else 1.0), rtol=1e-6), name


def test_first_step_of_a_parameter_is_the_rate_times_its_factor():
    """Adam's first step has the length of the rate, whatever the gradient."""
    ours, other, factors = nets()
    for value in ours.parameters():
        value.grad = torch.randn_like(value).sign() * 3.0
    AdamW(ours, 0.0, factors).step(0.01)
    for (name, value), before in zip(ours.named_parameters(), other.parameters(), strict=True):
        assert torch.allclose((value - before).abs(), torch.full_like(value, 0.01 * factors[name]), rtol=1e-3), name


def test_what_has_no_gradient_stays():
    ours, other, factors = nets()
    ours.head.weight.grad = torch.ones_like(ours.head.weight)
    AdamW(ours, 0.3, factors).step(0.01)
    same = {n for (n, v), b in zip(ours.named_parameters(), other.parameters(), strict=True) if torch.equal(v, b)}
    assert same == factors.keys() - {"head.weight"}


def test_a_parameter_without_factor_is_refused():
    ours, _, factors = nets()
    del factors["hidden.weight"]
    with pytest.raises(ValueError, match=r"hidden\.weight"):
        AdamW(ours, 0.3, factors)


def test_state_resumes_under_the_names_of_the_parameters():
    """Factors leave the names in a checkpoint as they were."""
    ours, other, factors = nets()
    one, two = AdamW(ours, 0.3, factors), AdamW(other, 0.3, factors)
    names = {f"{kind}.{name}" for kind in ("mean", "square", "steps") for name in factors}
    assert one.state.keys() == names
    signal = torch.randn(2, 3, 6)
    for step in range(2):
        ours.zero_grad()
        ours(signal).square().mean().backward()
        one.step(0.01)
        if step == 0:
            other.load_state_dict(ours.state_dict())
            two.load({name: value.clone() for name, value in one.state.items()})
    other(signal).square().mean().backward()
    two.step(0.01)
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), other.parameters(), strict=True))
    with pytest.raises(ValueError, match="other parameters"):
        two.load({})
