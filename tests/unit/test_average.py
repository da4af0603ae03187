"""The moving average of weights: its closed form, and that a block with averaged weights leaves no trace."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from pipeline.pretrain.engine.average import Average


def net(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    found = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))
    found[2].weight.requires_grad_(False)  # as the teacher of a joint embedding
    return found


def drift(learner: nn.Module) -> None:
    with torch.no_grad():
        for value in learner.parameters():
            value.add_(torch.randn_like(value))


@settings(max_examples=20, deadline=None)
@given(st.floats(0.05, 0.9999), st.integers(1, 30))
def test_the_average_is_the_weighted_sum_of_all_weights_so_far(keep, updates):
    learner = net()
    average = Average(learner, keep)
    expected = {name: value.detach().double() for name, value in learner.named_parameters()}
    for n in range(updates):
        drift(learner)
        average.update()
        kept = min(keep, (1 + n) / (10 + n))
        for name, value in learner.named_parameters():
            expected[name] = kept * expected[name] + (1 - kept) * value.detach().double()
    assert average.state["updates"] == updates
    for name, value in average.state.items():
        if name != "updates":
            assert torch.allclose(value.double(), expected[name], atol=1e-5), name


def test_what_does_not_train_and_buffers_are_not_averaged():
    assert Average(net(), 0.9).state.keys() == {"0.weight", "0.bias", "1.weight", "1.bias", "2.bias", "updates"}


def test_weights_come_back_bit_for_bit_after_a_block_even_one_that_fails():
    learner, signal = net(), torch.randn(5, 3)
    average = Average(learner, 0.9)
    for _ in range(3):
        drift(learner)
        average.update()
    learner(signal)  # moves the running statistics
    own = {name: value.clone() for name, value in learner.state_dict().items()}
    kept = {name: value.clone() for name, value in average.state.items()}
    with pytest.raises(KeyError), average.swapped():
        for name, value in learner.state_dict().items():
            assert torch.equal(value, kept.get(name, own[name])), name  # buffers and the teacher are the learner's
        assert not torch.equal(learner[0].weight, own["0.weight"])
        raise KeyError
    assert all(torch.equal(value, own[name]) for name, value in learner.state_dict().items())
    assert all(torch.equal(value, kept[name]) for name, value in average.state.items())


def test_the_learner_may_keep_the_average():
    learner = net()
    average = Average(learner, 0.9)
    drift(learner)
    average.update()
    average.apply()
    assert all(
        torch.equal(value, average.state[name]) for name, value in learner.named_parameters() if name in average.state
    )


def test_an_average_goes_on_from_a_saved_state():
    """Its early shares too: they depend on how often it was updated."""
    one, two = net(), net(1)
    first, second = Average(one, 0.9), Average(two, 0.9)
    drift(one)
    first.update()
    two.load_state_dict(one.state_dict())
    for name, value in second.state.items():
        value.copy_(first.state[name])
    for learner, average in ((one, first), (two, second)):
        torch.manual_seed(3)
        drift(learner)
        average.update()
    assert all(torch.equal(value, second.state[name]) for name, value in first.state.items())
    assert first.state["updates"] == 2
