"""The supervised objective against closed forms: missing targets, classes, blends, and losses of the encoder's own."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pipeline.models.encoder import Encoder
from pipeline.models.learners.supervised import RegularisedEncoder, Supervised
from pipeline.pretrain.objectives.batch import Batch
from pipeline.pretrain.objectives.supervised import SupervisedObjective

NAN = float("nan")


class Same(Encoder):
    """Features that are the clip."""

    channels = 3  # type: ignore[assignment]
    input_shape = (3, 2, 2)  # type: ignore[assignment]

    def forward(self, clip: Tensor) -> Tensor:
        return clip


class Regularised(Same, RegularisedEncoder):
    def regularised(self, clip: Tensor, class_B: Tensor | None) -> tuple[Tensor, Tensor]:
        return clip, torch.tensor(10.0 if class_B is None else float(class_B.clamp(min=0).sum()))


def batch_of(clip: Tensor, target: list, seed: int = 0) -> Batch:
    draws = [np.random.default_rng([seed, n]) for n in range(len(clip))]
    return Batch(clip, draws, target=torch.tensor(target))


def learner(outputs: int = 1, encoder: type[Encoder] = Same) -> Supervised:
    torch.manual_seed(0)
    return Supervised(encoder(), outputs)


def test_the_head_reads_the_mean_over_every_axis_after_the_channels():
    model, clip = learner(2), torch.randn(4, 3, 2, 2)
    for n in range(4):
        mean = torch.stack([sum(clip[n, c, x, y] for x in range(2) for y in range(2)) / 4 for c in range(3)])
        assert torch.allclose(model(clip)[n], model.head.weight @ mean + model.head.bias, atol=1e-6)
    assert torch.allclose(model(clip[:, :, 0, 0]), model.head(clip[:, :, 0, 0]))  # features without further axes


def test_two_classes_cost_their_cross_entropy_and_missing_ones_nothing():
    model, clip = learner(), torch.randn(4, 3)
    logits = model(clip)[:, 0].tolist()
    target = [1.0, NAN, 0.0, 1.0]
    chances = [1 / (1 + math.exp(-logit)) for logit in logits]
    expected = -(math.log(chances[0]) + math.log(1 - chances[2]) + math.log(chances[3])) / 3
    assert SupervisedObjective(model).loss(batch_of(clip, target)).item() == pytest.approx(expected, rel=1e-5)


def test_several_classes_cost_theirs():
    model, clip = learner(4), torch.randn(3, 3)
    logits = model(clip).tolist()
    expected = 0.0
    for row, number in ((logits[0], 2), (logits[2], 3)):
        expected -= math.log(math.exp(row[number]) / sum(math.exp(value) for value in row)) / 2
    found = SupervisedObjective(model, "classes").loss(batch_of(clip, [2.0, NAN, 3.0]))
    assert found.item() == pytest.approx(expected, rel=1e-5)


def test_numbers_cost_their_squared_error_each_where_it_is_known():
    model, clip = learner(2), torch.randn(3, 3)
    target = [[0.5, NAN], [NAN, NAN], [-1.0, 2.0]]
    found = model(clip).tolist()
    expected = ((found[0][0] - 0.5) ** 2 + (found[2][0] + 1) ** 2 + (found[2][1] - 2) ** 2) / 3
    loss = SupervisedObjective(model, "number").loss(batch_of(clip, target))
    assert loss.item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("mixup", [0.0, 0.7])
@pytest.mark.parametrize("kind", ["binary", "classes", "number"])
def test_integers_cost_what_the_same_floats_do(kind, mixup):
    made = SupervisedObjective(learner(3 if kind == "classes" else 1), kind, mixup)
    clip, target = torch.randn(3, 3), [1, 0, 1]
    expected = made.loss(batch_of(clip, [float(each) for each in target]))
    assert torch.equal(made.loss(batch_of(clip, target)), expected)
    assert torch.equal(made.loss(batch_of(clip, [bool(each) for each in target])), expected)


@pytest.mark.parametrize("kind", ["binary", "classes", "number"])
def test_a_batch_without_any_target_teaches_nothing(kind):
    model = learner(3 if kind == "classes" else 1)
    loss = SupervisedObjective(model, kind).loss(batch_of(torch.randn(2, 3), [NAN, NAN]))
    loss.backward()
    assert loss.item() == 0
    assert not model.head.weight.grad.any()


def test_a_batch_must_have_targets():
    with pytest.raises(ValueError, match="without targets"):
        SupervisedObjective(learner()).loss(Batch(torch.randn(2, 3), []))


def test_a_blend_is_of_clips_and_targets_alike():
    """The share and the partners follow from the first sample's draw; the clip without a target blends with itself."""
    model, clip, target = learner(), torch.randn(4, 3), [1.0, NAN, 0.0, -2.0]
    loss = SupervisedObjective(model, "number", mixup=0.7).loss(batch_of(clip, target, seed=5))
    draw = np.random.default_rng([5, 0])
    share, order = draw.beta(0.7, 0.7), draw.permutation(3)
    known = [0, 2, 3]
    expected = 0.0
    for place, n in enumerate(known):
        other = known[order[place]]
        blended = share * clip[n] + (1 - share) * clip[other]
        wanted = share * target[n] + (1 - share) * target[other]
        expected += (model(blended[None])[0, 0].item() - wanted) ** 2 / 3
    assert loss.item() == pytest.approx(expected, rel=1e-4)
    plain = SupervisedObjective(model, "number").loss(batch_of(clip, target))
    assert loss.item() != pytest.approx(plain.item(), rel=1e-3)
    model.eval()  # what is held out is never blended
    assert torch.equal(SupervisedObjective(model, "number", mixup=0.7).loss(batch_of(clip, target)), plain)


def test_classes_are_blended_as_probabilities():
    model, clip = learner(3), torch.randn(2, 3)
    loss = SupervisedObjective(model, "classes", mixup=1.0).loss(batch_of(clip, [0.0, 2.0], seed=3))
    draw = np.random.default_rng([3, 0])
    share, order = draw.beta(1.0, 1.0), draw.permutation(2)
    probabilities = torch.tensor([[1.0, 0, 0], [0, 0, 1.0]])
    expected = nn.functional.cross_entropy(
        model((share * clip + (1 - share) * clip[order]).float()),
        (share * probabilities + (1 - share) * probabilities[order]).float(),
    )
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)


def test_the_encoders_own_loss_is_added_and_told_the_classes():
    clip = torch.randn(3, 3)
    for target, kind, own in (([1.0, NAN, 1.0], "binary", 2.0), ([1.0, NAN, 1.0], "number", 10.0)):
        plain = SupervisedObjective(learner(), kind).loss(batch_of(clip, target))
        added = SupervisedObjective(learner(encoder=Regularised), kind).loss(batch_of(clip, target))
        assert (added - plain).item() == pytest.approx(own, rel=1e-5)
