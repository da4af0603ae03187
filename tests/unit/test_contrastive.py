"""Contrastive training: the loss is the field's, augmentations do what they say, and planted people are told apart."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from scipy import ndimage
from scipy.spatial.transform import Rotation
from torch import Tensor, nn

from pipeline.models.learners.contrastive import Contrastive, ContrastiveHead
from pipeline.models.swift_v1 import SwiftV1
from pipeline.pretrain.augmentation import Augmentation, affine, smooth
from pipeline.pretrain.objectives.batch import Batch
from pipeline.pretrain.objectives.contrastive import ContrastiveObjective, needs_pair, nt_xent

NOTHING = Augmentation(degrees=0, scale=0, noise_chance=0, smooth_chance=0)


def draws(count: int, seed: int = 0) -> list[np.random.Generator]:
    return [np.random.default_rng([seed, number]) for number in range(count)]


def small(width: int = 16) -> Contrastive:
    torch.manual_seed(0)
    encoder = SwiftV1(6, (1, 1), (1, 2), (2, 2, 2), patch=(3, 3, 3, 1), context_frames=4, window=(2, 2, 2, 2))
    return Contrastive(encoder, width)


# --- loss ----------------------------------------------------------------------------------------------------------


def naive_nt_xent(first: np.ndarray, second: np.ndarray, temperature: float, person: list[int] | None = None) -> float:
    """Chen et al. (2020), equation 1, summed over i and j in turn for one group; a person's other pairs left out."""
    both = np.concatenate([first, second])
    whose = 2 * (person if person is not None else list(range(len(first))))
    cosine = lambda i, j: both[i] @ both[j] / np.linalg.norm(both[i]) / np.linalg.norm(both[j])  # noqa: E731
    total = 0.0
    for i in range(len(both)):
        partner = (i + len(first)) % len(both)
        compared = [j for j in range(len(both)) if j == partner or whose[j] != whose[i]]
        everyone = sum(math.exp(cosine(i, j) / temperature) for j in compared)
        total -= math.log(math.exp(cosine(i, partner) / temperature) / everyone)
    return total / len(both)


def test_nt_xent_equals_a_double_loop_in_each_group():
    first, second = np.random.default_rng(0).standard_normal((2, 3, 4, 5))
    expected = np.mean([naive_nt_xent(first[group], second[group], 0.3) for group in range(3)])
    found = nt_xent(torch.from_numpy(first), torch.from_numpy(second), 0.3)
    assert found.item() == pytest.approx(expected, rel=1e-5)


def test_nt_xent_has_its_closed_forms():
    apart, same = torch.eye(5)[None], torch.ones(1, 5, 5)
    # partners equal and strangers at right angles: e^(1/t) against itself and eight ones
    expected = math.log(math.exp(1 / 0.5) + 8) - 1 / 0.5
    assert nt_xent(apart, apart, 0.5).item() == pytest.approx(expected, rel=1e-6)
    assert nt_xent(same, same, 0.1).item() == pytest.approx(math.log(9), rel=1e-6)  # nobody among nine stands out


def test_samples_of_one_person_are_no_strangers():
    first, second = np.random.default_rng(0).standard_normal((2, 5, 6))
    person = [7, 3, 7, 4, 7]
    views = torch.from_numpy(first)[None], torch.from_numpy(second)[None]
    found = nt_xent(*views, 0.3, torch.tensor(person)).item()
    assert found == pytest.approx(naive_nt_xent(first, second, 0.3, person), rel=1e-5)
    assert found < nt_xent(*views, 0.3).item() - 0.01
    assert torch.equal(nt_xent(*views, 0.3, torch.arange(5)), nt_xent(*views, 0.3))


def test_repeated_people_can_be_told_apart_perfectly():
    twice = torch.eye(4).repeat(2, 1)[None]
    assert nt_xent(twice, twice, 0.05).item() == pytest.approx(math.log(3), rel=1e-4)
    twice.requires_grad_()
    loss = nt_xent(twice, twice, 0.05, torch.arange(4).repeat(2))
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-6)
    assert twice.grad.isfinite().all()


def test_embeddings_are_the_normed_mean_feature_and_its_course():
    model, features = small(), torch.randn(3, 12, 2, 2, 2, 4)
    state = model.head.state_dict()
    plain_BK = features.mean(dim=(2, 3, 4, 5)) @ state["fc.weight"].T
    plain_BK = (plain_BK - plain_BK.mean(0)) / (plain_BK.var(0, unbiased=False) + 1e-5).sqrt()
    assert torch.allclose(model.of_clips(features), plain_BK / plain_BK.norm(dim=1, keepdim=True), atol=1e-5)
    course_NC = torch.stack([features[b, :, :, :, :, t].mean(dim=(1, 2, 3)) for b in range(3) for t in range(4)])
    assert torch.allclose(model.of_times(features).flatten(0, 1), model.head(course_NC), atol=1e-5)
    assert model.of_times(torch.randn(2, 12, 5, 4)).shape == (2, 4, 16)
    with pytest.raises(ValueError, match="no time"):
        model.of_times(torch.randn(3, 12))


def test_the_head_has_as_many_parameters_as_published():
    """288 channels to 128 numbers without bias, and a batch norm."""
    assert sum(each.numel() for each in ContrastiveHead(288).parameters()) == 288 * 128 + 2 * 128


# --- augmentation --------------------------------------------------------------------------------------------------


def moved(clip: Tensor, degrees: tuple[float, ...] = (0, 0, 0), scale: tuple[float, ...] = (1, 1, 1)) -> Tensor:
    return affine(clip, torch.tensor([degrees]), torch.tensor([scale]))


def test_no_augmentation_is_the_identity():
    clip = torch.randn(2, 1, 5, 6, 7, 3)
    assert torch.allclose(NOTHING(clip, draws(2)), clip, atol=1e-5)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_quarter_turn_about_an_axis_is_rot90(axis):
    clip = torch.randn(1, 1, 6, 6, 6, 2)
    degrees = tuple(90.0 if other == axis else 0.0 for other in range(3))
    plane = [2 + (axis + 1) % 3, 2 + (axis + 2) % 3]
    assert torch.allclose(moved(clip, degrees), torch.rot90(clip, 1, plane), atol=1e-5)


def test_turning_and_scaling_a_linear_image_has_a_closed_form():
    """Linear interpolation is exact on it: f(p) = a . p becomes a . (R S)^-1 p about the middle, R of x, then y, z."""
    shape, slope = (9, 12, 15), np.array([1.0, -2.0, 0.5])
    place = np.stack(np.meshgrid(*[np.arange(size) - (size - 1) / 2 for size in shape], indexing="ij"), axis=-1)
    degrees, scale = (8.0, -5.0, 10.0), (1.1, 0.95, 1.05)
    back = np.linalg.inv(Rotation.from_euler("xyz", degrees, degrees=True).as_matrix() @ np.diag(scale))
    clip = torch.from_numpy(place @ slope)[None, None, ..., None]
    inner = (slice(2, -2),) * 3
    found = moved(clip, degrees, scale)[0, 0, ..., 0].numpy()
    assert np.allclose(found[inner], (place @ (slope @ back))[inner], atol=1e-5)


def test_each_clip_of_a_batch_moves_on_its_own_and_all_of_its_frames_alike():
    volume = torch.randn(2, 1, 6, 7, 8, 1)
    change = replace(Augmentation(), noise_chance=1.0, smooth_chance=1.0)
    clips = change(volume.expand(2, 1, 6, 7, 8, 3), draws(2))
    assert torch.allclose(clips[..., :1].expand_as(clips), clips, atol=1e-6)
    alone = [change(volume[number : number + 1], draws(2)[number : number + 1]) for number in range(2)]
    assert torch.allclose(clips[..., :1], torch.cat(alone), atol=1e-6)
    assert (clips[0] - clips[1]).abs().max() > 0.1


def test_smoothing_equals_scipy():
    clip = torch.randn(2, 1, 12, 13, 14, 2, dtype=torch.float64)
    sigma = torch.tensor([[0.8, 0.5, 1.2], [0.0, 0.0, 0.0]])
    found = smooth(clip, sigma)
    expected = ndimage.gaussian_filter(clip[0, 0].numpy(), (0.8, 0.5, 1.2, 0), truncate=8)
    assert np.allclose(found[0, 0].numpy()[6:-6, 6:-6, 6:-6], expected[6:-6, 6:-6, 6:-6], atol=1e-3)
    assert torch.equal(found[1], clip[1])
    assert torch.allclose(smooth(torch.ones_like(clip), sigma), torch.ones_like(clip))


def test_augmentation_depends_on_the_draws_alone():
    clip, change = torch.randn(3, 1, 5, 5, 5, 2), replace(Augmentation(), noise_chance=0.5, smooth_chance=0.5)
    first = change(clip, draws(3))
    torch.manual_seed(99)
    np.random.seed(99)
    assert torch.equal(first, change(clip, draws(3)))
    assert not torch.allclose(first, change(clip, draws(3, seed=1)), atol=1e-2)


def test_noise_and_smoothing_come_as_often_and_as_strong_as_they_say():
    change = replace(NOTHING, noise_chance=0.3)
    spread = change(torch.zeros(400, 1, 4, 4, 4, 1), draws(400)).flatten(1).std(dim=1)
    noisy = spread > 0
    assert noisy.float().mean() == pytest.approx(0.3, abs=0.07)  # three standard errors
    assert spread[noisy].mean() == pytest.approx(0.05, abs=0.01)  # evenly from 0 to 0.1
    checks = torch.tensor([1.0, -1.0]).repeat(32).view(4, 4, 4)[None, None, ..., None].expand(400, 1, 4, 4, 4, 1)
    smoothed = (replace(NOTHING, smooth_chance=0.1)(checks, draws(400)) - checks).flatten(1).abs().amax(dim=1) > 1e-3
    assert 0.03 < smoothed.float().mean() <= 0.145  # narrow kernels change too little to be counted


# --- objective -----------------------------------------------------------------------------------------------------


def objective(**over: Any) -> ContrastiveObjective:
    return ContrastiveObjective(**{"learner": small(), "augment": NOTHING, **over})


def two_clips(count: int = 4) -> Batch:
    clip, pair = torch.randn(2, count, 1, 6, 6, 6, 4, generator=torch.Generator().manual_seed(0))
    return Batch(clip, draws(count), pair=pair)


def test_types_compare_what_they_say():
    batch, made = two_clips(), objective()
    learner = made.learner
    clip, pair = (learner.encoder(each) for each in (batch.clip, batch.pair))
    instance = nt_xent(learner.of_clips(clip)[None], learner.of_clips(pair)[None])
    times = nt_xent(learner.of_times(clip), learner.of_times(clip))
    people = torch.stack([learner.of_clips(clip), learner.of_clips(pair)], dim=1)
    assert made.loss(batch).item() == pytest.approx(instance.item(), rel=1e-4)
    assert objective(kind="local").loss(batch).item() == pytest.approx(times.item(), rel=1e-4)
    assert objective(kind="both").loss(batch).item() == pytest.approx((instance + times).item(), rel=1e-4)
    found = objective(kind="local", local="clips").loss(batch).item()
    assert found == pytest.approx(nt_xent(people, people).item(), rel=1e-4)


def test_the_people_of_a_batch_reach_the_comparison_between_samples_alone():
    batch, person = two_clips(), torch.tensor([0, 1, 0, 2])
    repeated, made = replace(batch, person=person), objective()
    views = (made.learner.of_clips(made.learner.encoder(each))[None] for each in (batch.clip, batch.pair))
    assert made.loss(repeated).item() == pytest.approx(nt_xent(*views, 0.1, person).item(), rel=1e-4)
    assert made.loss(repeated).item() < made.loss(batch).item() - 0.01
    for local in ("times", "clips"):  # strangers are of the same sample, whoever the others are
        within = objective(kind="local", local=local)
        assert torch.equal(within.loss(repeated), within.loss(batch))


@pytest.mark.parametrize("local", ["times", "clips"])
@pytest.mark.parametrize("kind", ["instance", "local", "both"])
def test_a_pair_is_needed_just_where_it_is_read(kind, local):
    options, alone = {"kind": kind, "local": local}, replace(two_clips(), pair=None)
    made = objective(**options)
    assert made.paired == needs_pair(options) == (options != {"kind": "local", "local": "times"})
    if made.paired:
        with pytest.raises(ValueError, match="second clip"):
            made.loss(alone)
    else:
        assert torch.equal(made.loss(alone), made.loss(two_clips()))


def test_options_that_are_left_out_have_their_defaults():
    assert needs_pair({})
    assert needs_pair({"local": "times"})
    assert not needs_pair({"kind": "local", "temperature": 0.5})


def test_views_are_augmented_anew():
    """With equal views partners are equal; with views of their own they are not, and the loss is higher."""
    batch = two_clips()
    still = replace(batch, pair=batch.clip)
    loss = objective().loss(still).item()
    assert objective(augment=Augmentation()).loss(replace(still, draws=draws(4))).item() > loss + 1e-3
    again = objective(augment=Augmentation()).loss(replace(still, draws=draws(4)))
    assert torch.equal(objective(augment=Augmentation()).loss(replace(still, draws=draws(4))), again)


def test_what_cannot_be_compared_is_refused():
    alone = replace(two_clips(), pair=None)
    with pytest.raises(ValueError, match="second clip"):
        objective().loss(alone)
    assert objective(kind="local").loss(alone).isfinite()
    with pytest.raises(ValueError, match="instance, local, both"):
        objective(kind="global")
    with pytest.raises(ValueError, match="temperature"):
        objective(temperature=0)


@pytest.mark.parametrize("kind", ["instance", "local", "both"])
def test_a_gradient_reaches_every_parameter(kind):
    made = objective(kind=kind, augment=Augmentation())
    made.loss(two_clips()).backward()
    without = {key for key, value in made.learner.named_parameters() if value.grad is None or not value.grad.any()}
    assert without == {"encoder.norm.weight", "encoder.norm.bias"}  # SwiFT's final norm is never applied


# --- learning ------------------------------------------------------------------------------------------------------


class People:
    """Each has a map of their own, which every clip of theirs shows at its own strength, under noise of its own."""

    def __init__(self, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        self.map_PXYZ = torch.randn(64, 2, 2, 2, generator=self.generator)

    def clips(self, person_B: Tensor) -> Tensor:
        map_BXYZ = self.map_PXYZ[person_B].repeat_interleave(3, 1).repeat_interleave(3, 2).repeat_interleave(3, 3)
        course_BT = 1 + 0.3 * torch.randn(len(person_B), 4, generator=self.generator)
        clip = torch.einsum("bxyz,bt->bxyzt", map_BXYZ, course_BT)
        return (clip + torch.randn(clip.shape, generator=self.generator))[:, None]

    def batch(self, count: int, step: int, shuffled: bool = False) -> Batch:
        person_B = torch.randperm(64, generator=self.generator)[:count]
        other_B = person_B.roll(1) if shuffled else person_B
        return Batch(self.clips(person_B), draws(count, step), pair=self.clips(other_B))


def train(shuffled: bool) -> tuple[float, float, nn.Module]:
    """Loss on people never seen, before and after training; the pairs of training may be of different people."""
    made, known, unknown = objective(augment=Augmentation()), People(1), People(2)
    optimiser = torch.optim.AdamW(made.learner.parameters(), lr=1e-2)
    held_out = unknown.batch(32, 10**6)

    def held_out_loss() -> float:
        with torch.no_grad():
            return made.loss(replace(held_out, draws=draws(32, 10**6))).item()

    before = held_out_loss()
    for step in range(40):
        optimiser.zero_grad()
        made.loss(known.batch(16, step, shuffled)).backward()
        optimiser.step()
    return before, held_out_loss(), made.learner


def test_training_tells_unknown_people_apart_and_pairs_of_strangers_teach_nothing():
    before, after, learner = train(shuffled=False)
    _, untaught, _ = train(shuffled=True)
    assert after < before / 2
    assert untaught > before * 0.9
    unknown = People(3)
    person_B = torch.arange(32)
    with torch.no_grad():
        cosine_BB = learner(unknown.clips(person_B)) @ learner(unknown.clips(person_B)).T
    own, others = cosine_BB.diagonal(), cosine_BB[~torch.eye(32, dtype=torch.bool)]
    assert own.mean() > others.mean() + 0.5
