"""JEPA's masks and loss, and what training finds in a planted signal."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from planted_parcels import planted
from torch import Tensor

from pipeline.errors import InputError
from pipeline.models import create, describe
from pipeline.models.brainlm import brainlm
from pipeline.models.learners.joint_embedding import JointEmbedding, Predictor
from pipeline.pretrain.objectives import objective_of
from pipeline.pretrain.objectives.batch import Batch
from pipeline.pretrain.objectives.jepa import BlockMasks, JepaObjective

share = st.floats(0, 1, exclude_min=True)


def draws(seed: int, clips: int) -> list[np.random.Generator]:
    return [np.random.default_rng([seed, i]) for i in range(clips)]


@settings(max_examples=100, deadline=None)
@given(
    st.integers(2, 12), st.integers(2, 9), st.lists(st.tuples(share, share), min_size=4, max_size=4), st.integers(0, 99)
)
def test_what_is_predicted_is_never_seen_and_sizes_never_change(parcels, times, shares, seed):
    masks = BlockMasks(parcels, times, *shares)
    first, other = (masks.draw(np.random.default_rng([seed, i])) for i in range(2))
    visible, targets = first
    assert visible.shape == targets.shape == (parcels, times)
    assert not (visible & targets).any()
    assert visible.any()
    assert targets.any()
    assert [mask.sum() for mask in first] == [mask.sum() for mask in other]


def test_blocks_have_the_sizes_that_were_asked():
    masks = BlockMasks(450, 10)
    visible, targets = masks.draw(np.random.default_rng(0))
    seen_R, seen_t = visible.any(1), visible.any(0)
    assert (int(seen_R.sum()), int(seen_t.sum())) == (202, 6)  # 0.45 of 450 (202.5 to even), 0.6 of 10
    assert torch.equal(visible, seen_R[:, None] & seen_t)
    first = int(seen_t.nonzero()[0])
    assert bool(seen_t[first : first + 6].all()), "observed times are one window"
    across_parcels = targets[~seen_R][:, seen_t]
    assert (int(across_parcels.any(1).sum()), int(across_parcels.any(0).sum())) == (225, 4)
    across_times = targets[seen_R][:, ~seen_t]
    assert (int(across_times.any(1).sum()), int(across_times.any(0).sum())) == (45, 3)
    across_both = targets[~seen_R][:, ~seen_t]
    assert (int(across_both.any(1).sum()), int(across_both.any(0).sum())) == (54, 3)
    assert not targets[seen_R][:, seen_t].any()


def test_every_parcel_and_time_is_seen_and_predicted_at_times():
    drawn = [BlockMasks(12, 8).draw(np.random.default_rng(seed)) for seed in range(200)]
    visible, targets = (torch.stack(each).float().mean(0) for each in zip(*drawn, strict=True))
    assert visible.min() > 0.05
    assert targets.min() > 0.05
    by_parcel = visible.sum(1)
    assert by_parcel.max() < 1.5 * by_parcel.min(), "no parcel is favoured"


def test_a_mask_is_a_function_of_its_sample_alone():
    masks = BlockMasks(9, 5)
    torch.manual_seed(0)
    one = [masks.draw(draw) for draw in draws(3, 4)]
    torch.manual_seed(1)
    other = [masks.draw(draw) for draw in draws(3, 6)]
    assert all(torch.equal(a, b) for pair in zip(one, other, strict=False) for a, b in zip(*pair, strict=True))


def test_a_grid_needs_something_left_over():
    with pytest.raises(ValueError, match="1 parcels and 9 times"):
        BlockMasks(1, 9)


NO_SHARES = [0.5, "ab", None, [0.5], [0.1, 0.2, 0.3], [0, 0.5], [0.5, 1.1], [-0.1, 0.5], [True, 0.5], ["0.5", 0.5]]


@pytest.mark.parametrize("name", ["observed", "across_parcels", "across_times", "across_both"])
@pytest.mark.parametrize("shares", [*NO_SHARES, [float("nan"), 0.5]], ids=str)
def test_shares_are_two_above_0_and_up_to_1(name, shares):
    with pytest.raises(ValueError, match=f"{name} .* above 0 and up to 1"):
        BlockMasks(6, 6, **{name: shares})


@pytest.mark.parametrize("momentum", [0.99, "ab", None, [0.99], [0.9, 1.01], [-0.1, 1], [float("nan"), 1]], ids=str)
def test_momentum_is_two_numbers_from_0_to_1(momentum):
    with pytest.raises(ValueError, match=r"momentum .* from 0 to 1"):
        JepaObjective(learner_of(), BlockMasks(6, 6), momentum)


def test_options_of_a_configuration_are_lists_and_wrong_ones_are_told():
    options = {"observed": [0.5, 1], "momentum": [0, 1]}
    made = objective_of("JEPA", learner_of(), None, "mse", options, 24)
    made.loss(Batch(torch.randn(2, 6, 24), draws(0, 2)))
    made.after_step(0.5)
    for wrong in ({"observed": 0.5}, {"momentum": 0.99}):
        with pytest.raises(InputError, match=f"objective_options: .*{next(iter(wrong))} 0"):
            objective_of("JEPA", learner_of(), None, "mse", wrong, 24)


def learner_of(seed: int = 0, variant: str = "corrected") -> JointEmbedding:
    torch.manual_seed(seed)
    sizes = {"width": 32, "depth": 1, "heads": 2, "predictor_width": 32, "predictor_depth": 2, "gradients": 6}
    clip = {"patch": 4, "parcels": 6, "frames": 24}
    return describe("brain_jepa").learner(create("brain_jepa", "small", **sizes, **clip, variant=variant))


def test_loss_is_the_huber_error_of_all_predicted_tokens():
    objective = JepaObjective(learner_of(), BlockMasks(6, 6))
    clip = torch.randn(3, 6, 24)
    loss = objective.loss(Batch(clip, draws(0, 3)))
    errors = []
    for b, draw in enumerate(draws(0, 3)):
        visible, targets = (mask[None] for mask in objective.masks.draw(draw))
        one = clip[b : b + 1]
        errors.append(objective.learner.predict(one, visible, targets) - objective.learner.taught(one, targets))
    error = torch.cat(errors).abs()
    assert loss.item() == pytest.approx(torch.where(error < 1, error.square() / 2, error - 0.5).mean().item(), rel=1e-5)


def test_momentum_rises_linearly_to_one():
    objective = JepaObjective(learner_of(), BlockMasks(6, 6))
    weight, teacher = objective.learner.encoder.norm.weight, objective.learner.teacher.norm.weight
    for progress, momentum in ((0.0, 0.996), (0.5, 0.998), (1.0, 1.0)):
        before = teacher.clone()
        weight.data += 1
        objective.after_step(progress)
        assert torch.allclose(teacher, momentum * before + (1 - momentum) * weight, atol=1e-6)


def test_other_encoders_of_tokens_learn_the_same_way():
    """BrainLM has a summary token before the others and positions from three coordinates."""
    torch.manual_seed(0)
    encoder = brainlm(16, 1, 2, 2, 8, 1, 2, 2, patch=4, parcels=6, frames=24)
    objective = JepaObjective(JointEmbedding(encoder, Predictor(encoder)), BlockMasks(6, 6))
    objective.loss(Batch(torch.randn(2, 6, 24), draws(0, 2))).backward()
    learned = [value for value in objective.learner.parameters() if value.requires_grad]
    assert all(value.grad is not None and bool(value.grad.any()) for value in learned)


def trained(shuffled: bool, steps: int = 150) -> tuple[JointEmbedding, float, float]:
    """A learner, and its held-out loss before and after."""
    objective = JepaObjective(learner_of(), BlockMasks(6, 6))
    learned = [value for value in objective.learner.parameters() if value.requires_grad]
    step = torch.optim.AdamW(learned, 5e-3, fused=True)

    def held_out() -> float:
        with torch.no_grad():
            losses = [objective.loss(Batch(planted(32, seed, shuffled), draws(seed, 32))) for seed in range(900, 904)]
        return float(torch.stack(losses).mean())

    before = held_out()
    for number in range(steps):
        step.zero_grad()
        objective.loss(Batch(planted(16, number, shuffled), draws(number, 16))).backward()
        step.step()
        objective.after_step(number / steps)
    return objective.learner, before, held_out()


def own_share(learner: JointEmbedding, shuffled: bool) -> float:
    """Error against the features of the same clip, as a share of that against the next clip's at the same tokens."""
    own, other = [], []
    for seed in range(8):
        visible, targets = (mask.expand(32, -1, -1) for mask in BlockMasks(6, 6).draw(np.random.default_rng(seed)))
        clip = planted(32, 9_000 + seed, shuffled)
        with torch.no_grad():
            predicted, taught = learner.predict(clip, visible, targets), learner.taught(clip, targets)
        own.append(torch.nn.functional.smooth_l1_loss(predicted, taught))
        other.append(torch.nn.functional.smooth_l1_loss(predicted, taught.roll(1, 0)))
    return float(sum(own) / sum(other))


def effective_rank(features_FC: Tensor) -> float:
    """Exponential of the entropy of the singular values' shares, Roy and Vetterli (2007)."""
    share = torch.linalg.svdvals(features_FC - features_FC.mean(0))
    share = share / share.sum()
    return float(torch.exp(-(share * share.log()).sum()))


def phase_r2(learner: JointEmbedding) -> float:
    """How well a linear map of the mean feature tells the oscillation's phase in as much noise, on new clips."""
    sets = []
    for seed in (1, 2):
        phase = 2 * torch.pi * torch.rand(256, generator=torch.Generator().manual_seed(seed))
        clip = planted(256, seed, shuffled=False)
        noise = torch.randn(clip.shape, generator=torch.Generator().manual_seed(seed))
        with torch.no_grad():
            feature = learner.encoder(clip + noise).mean((2, 3))
        rows = torch.cat([feature, torch.ones(256, 1)], dim=1)
        sets.append((rows.double(), torch.stack([phase.cos(), phase.sin()], dim=1).double()))
    (rows, phases), (new_rows, new_phases) = sets
    weights = torch.linalg.solve(rows.T @ rows + 1e-3 * torch.eye(rows.shape[1]), rows.T @ phases)
    error = (new_phases - new_rows @ weights).square().sum()
    return 1 - float(error / (new_phases - new_phases.mean(0)).square().sum())


def test_training_finds_a_planted_signal_and_nothing_in_a_shuffled_one():
    untrained = learner_of()
    learner, before, after = trained(shuffled=False)
    assert after < before / 2
    assert own_share(untrained, shuffled=False) > 0.98, "before training a prediction fits any clip"
    assert own_share(learner, shuffled=False) < 0.75
    # Over four seeds the trained encoder read 0.29 to 0.38, the random one 0.17 to 0.23.
    assert phase_r2(learner) > phase_r2(untrained) + 0.05
    with torch.no_grad():
        features = learner.encoder(planted(64, 1, shuffled=False)).movedim(1, -1)
    content = (features - features.mean(0)).flatten(0, 2)  # without what depends on the position alone
    assert content.square().mean() > 0.1 * features.var((0, 1, 2)).mean(), "features depend on the clip"
    assert effective_rank(content) > 3

    shuffled_learner, _, shuffled_after = trained(shuffled=True)
    assert shuffled_after > 1.25 * after
    assert own_share(shuffled_learner, shuffled=True) > 0.98


def test_training_twice_gives_the_same_weights():
    one, other = (trained(shuffled=False, steps=3)[0].state_dict() for _ in range(2))
    assert all(torch.equal(one[name], other[name]) for name in one)
