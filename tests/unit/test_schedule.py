"""Rates of both schedules, and the way of a training that leaves its trunk at branches."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from pipeline.pretrain.engine.schedule import Leg, learning_rate, route, total

WSD = "warmup-stable-decay"
shares = st.floats(0.01, 0.99)


@st.composite
def trainings(draw: st.DrawFn) -> tuple[int, float, float, list[float], list[Leg]]:
    """Steps, warm-up, decay, branches and legs of a training that can be."""
    steps, warmup, decay = draw(st.integers(1, 2000)), draw(st.floats(0.001, 0.3)), draw(shares)
    branches = draw(st.lists(shares, max_size=6))
    try:
        return steps, warmup, decay, branches, route(steps, WSD, warmup, decay, branches)
    except ValueError:
        assume(False)


def rates(legs: list[Leg], steps: int, warmup: float) -> list[list[float]]:
    return [[learning_rate(step, leg, steps, 1.0, warmup, WSD) for step in range(leg.first, leg.last)] for leg in legs]


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 3000), shares, st.floats(1e-6, 10.0))
def test_a_cosine_is_one_leg_with_the_rate_of_its_formula(steps, warmup, peak):
    legs = route(steps, "cosine", warmup)
    assert [(leg.first, leg.last, leg.branch) for leg in legs] == [(0, steps, False)]
    assert total(legs) == steps
    rising = max(1, round(warmup * steps))
    for step in range(0, steps, 7):
        expected = peak * (step + 1) / rising
        if step >= rising:
            expected = peak * 0.5 * (1 + math.cos(math.pi * (step - rising) / max(1, steps - rising)))
        assert learning_rate(step, legs[0], steps, peak, warmup, "cosine") == expected


@settings(max_examples=200, deadline=None)
@given(trainings())
def test_the_trunk_passes_every_step_once_and_branches_leave_it_where_it_stands(training):
    steps, _, _, branches, legs = training
    trunk = [step for leg in legs if not leg.branch for step in range(leg.first, leg.last)]
    assert trunk == list(range(steps))
    reached = 0
    for leg in legs:
        assert leg.first == reached  # a branch too starts from the weights that the trunk has just then
        assert leg.first < leg.last
        reached = leg.first if leg.branch else leg.last
    assert not legs[-1].branch
    assert [leg.last for leg in legs if leg.branch] == sorted(round(share * steps) for share in branches)
    assert total(legs) == steps + sum(leg.last - leg.first for leg in legs if leg.branch)


@settings(max_examples=200, deadline=None)
@given(trainings())
def test_rates_rise_stay_and_fall_without_a_jump(training):
    steps, warmup, decay, _, legs = training
    for leg, of_leg in zip(legs, rates(legs, steps, warmup), strict=True):
        assert all(0 < rate <= 1 for rate in of_leg)
        if leg.falls_from is None:
            continue
        falling = of_leg[leg.falls_from - leg.first :]
        assert falling[0] == 1.0  # the full rate of the trunk, from which it falls
        assert (np.diff(falling) < 0).all()
        assert len(falling) == max(1, round(decay * leg.last))
        assert learning_rate(leg.last, leg, steps, 1.0, warmup, WSD) == 0


def test_a_training_with_two_branches_written_out():
    legs = route(100, WSD, 0.1, 0.2, (0.75, 0.5))
    assert legs == [
        Leg(0, 40, None, 40, branch=False),
        Leg(40, 50, 40, 50, branch=True),
        Leg(40, 60, None, 60, branch=False),
        Leg(60, 75, 60, 75, branch=True),
        Leg(60, 100, 80, 100, branch=False),
    ]
    assert total(legs) == 125
    first, branch, _, _, last = rates(legs, 100, 0.1)
    assert first == pytest.approx([*np.linspace(0.1, 1.0, 10), *[1.0] * 30])
    assert branch == pytest.approx(1 - np.sqrt(np.arange(10) / 10))
    assert last == pytest.approx([*[1.0] * 20, *(1 - np.sqrt(np.arange(20) / 20))])


def test_no_steps_are_one_empty_leg():
    assert total(route(0, WSD, 0.1, 0.2)) == 0
    assert total(route(0, "cosine", 0.1)) == 0


@pytest.mark.parametrize(
    ("branches", "message"),
    [
        ((0.5, 0.5), "same step"),
        ((0.5, 0.501), "same step"),  # of 100 steps
        ((0.999,), "same step"),  # as the trunk
        ((0.12,), "falls from step 10, to end at step 12, but rises until step 20"),
    ],
)
def test_branches_that_cannot_be_are_refused(branches, message):
    with pytest.raises(ValueError, match=message):
        route(100, WSD, 0.2, 0.2, branches)


def test_other_ways_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match="rises until step 60"):
        route(100, WSD, 0.6, 0.5)
    with pytest.raises(ValueError, match="only warmup-stable-decay"):
        route(100, "cosine", 0.1, 0.2, (0.5,))
