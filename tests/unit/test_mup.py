"""muP reaches every layer of both SwiFT families: its rules, written out, and what they are for, seen in training."""

from __future__ import annotations

import re
from math import log

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pipeline.models.ladder import ladder
from pipeline.models.learners.reconstruction import MaskedReconstruction
from pipeline.models.mup import attention_scale, initialise, rate_factors
from pipeline.models.swift_4d import Swift4D
from pipeline.models.swift_v2 import SwiftV2
from pipeline.pretrain.engine.optimiser import Optimiser

FAMILIES = {"swift_4d": Swift4D, "swift_v2": SwiftV2}
TINY = {"depths": (1, 2), "heads": (2, 4), "grid": (4, 4, 4), "patch": (2, 2, 2, 1), "context_frames": 4}
HIDDEN = r"(\.qkv|\.proj|\.linear1|\.linear2|\.reduction|\.expansion)\.weight$"
BASE, WIDTHS = 12, (12, 24, 48, 96)


def learner(family: str, width: int, seed: int = 0, **options: object) -> MaskedReconstruction:
    torch.manual_seed(seed)
    return MaskedReconstruction(FAMILIES[family](width=width, **{**TINY, **options}))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("options", [{}, {"qk_norm": True, "layer_scale": None}, {"patch": (2, 2, 2, 2)}])
def test_every_parameter_has_the_rate_of_its_kind(family, options):
    """At four times the base width hidden maps and the map to voxels learn at a quarter, everything else as before."""
    with torch.device("meta"):
        factors = rate_factors(learner(family, 48, **options), learner(family, 12, **options))
        names = [name for name, _ in learner(family, 48, **options).named_parameters()]
    expected = {name: 0.25 if re.search(HIDDEN, name) or name == "decoder.head.weight" else 1.0 for name in names}
    assert factors == expected
    assert sum(factor < 1 for factor in factors.values()) == {"swift_4d": 3 * 4 + 3, "swift_v2": 3 * 6 + 3}[family]


@pytest.mark.parametrize("family", FAMILIES)
def test_spread_at_the_start_follows_the_width(family):
    """Hidden maps by the root of their inputs, the map to voxels by its inputs, all else as at the base."""
    model, base = learner(family, 96, seed=1), learner(family, 12)
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    initialise(model, base)
    for name, value in model.named_parameters():
        if re.search(HIDDEN, name):
            assert value.std().item() == pytest.approx((3 * value.shape[1]) ** -0.5, rel=0.1), name
        elif re.search(HIDDEN.replace("weight", "bias"), name):
            fan_in = dict(base.named_parameters())[name.replace("bias", "weight")].shape[1]
            assert value.std().item() == pytest.approx((3 * fan_in) ** -0.5, rel=0.35), name
        elif name == "encoder.patch_embed.fc.weight":
            assert value.std().item() == pytest.approx((3 * 8) ** -0.5, rel=0.15)
        elif name == "decoder.head.weight":
            assert value.std().item() == pytest.approx(0.02 / 8, rel=0.25)
        elif not name.endswith("patch_embed.fc.bias"):
            assert torch.equal(value, before[name]), name


@pytest.mark.parametrize("family", FAMILIES)
def test_at_the_base_width_nothing_changes(family):
    model, base = learner(family, 12), learner(family, 12)
    clip, hidden = torch.randn(1, 1, 8, 8, 8, 4), torch.rand(1, 4, 4, 4, 4) < 0.5
    with torch.no_grad():
        initialise(model, base)
        assert torch.allclose(model(clip, hidden), base(clip, hidden), atol=1e-6)
        with_base = learner(family, 12, base_width=12)
        assert torch.allclose(with_base(clip, hidden), base(clip, hidden), atol=1e-6)
    assert set(rate_factors(model, base).values()) == {1.0}


def test_scores_are_divided_by_the_channels_of_a_head():
    assert attention_scale(36, 36, 6) == pytest.approx(6**-0.5)  # as usual at the base
    assert attention_scale(144, 36, 6) == pytest.approx(attention_scale(36, 36, 6) / 4)


def scales_of(model: nn.Module) -> list[set[float]]:
    """Factors of the scores, stage by stage."""
    return [{round(each.scale, 12) for each in stage.modules() if hasattr(each, "scale")} for stage in model.layers]


@pytest.mark.parametrize("family", FAMILIES)
def test_heads_as_wide_as_those_of_the_base_have_its_scores(family):
    """Width 24 of the ladder has fewer heads than its base of 36, but 6 channels in each: the usual 1 / root 6."""
    own, base = ladder(24), ladder(36)
    assert (own["heads"], base["heads"]) == ((4, 8, 16, 32), (6, 12, 24, 48))
    spec = {**own, "grid": (16, 16, 16), "layer_scale": None}
    with torch.device("meta"):
        model = FAMILIES[family](**spec, base_width=36, base_heads=base["heads"])
        usual = FAMILIES[family](**spec)
    assert scales_of(model) == scales_of(usual) == [{round(6**-0.5, 12)}] * 4


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    ("base_heads", "expected"),
    [
        (None, (3**0.5 / 6, 6**0.5 / 12)),
        ((4, 4), (3**0.5 / 6, 6**0.5 / 12)),
        ((2, 2), (6**-0.5, 12**-0.5)),
        ((1, 2), (12**0.5 / 6, 12**-0.5)),
    ],
)
def test_every_stage_has_the_scale_of_its_own_heads(family, base_heads, expected):
    """Four heads in both stages have 6 and 12 channels, so that no one factor serves both."""
    options = {**TINY, "heads": (4, 4), "layer_scale": None}
    model = FAMILIES[family](width=24, **options, base_width=12, base_heads=base_heads)
    assert scales_of(model) == [{round(factor, 12)} for factor in expected]


@pytest.mark.parametrize("family", FAMILIES)
def test_base_heads_of_other_stages_are_refused(family):
    with pytest.raises(ValueError, match="base_heads of 1 stages, where heads have 2"):
        FAMILIES[family](width=24, **TINY, base_width=12, base_heads=(2,))


class Net(nn.Module):
    """A convolution, its transpose and a matrix that is no map."""

    def __init__(self, width: int, matrix: bool = False) -> None:
        super().__init__()
        self.enter, self.hidden = nn.Conv1d(3, width, 5), nn.Conv1d(width, 2 * width, 5)
        self.leave = nn.ConvTranspose1d(2 * width, 3, 5)
        self.positions = nn.Parameter(torch.zeros(width, width if matrix else 7))


def test_convolutions_are_maps_of_their_channels():
    factors = rate_factors(Net(12), Net(4))
    assert {name: factor for name, factor in factors.items() if factor != 1} == {
        "hidden.weight": pytest.approx(1 / 3),
        "leave.weight": pytest.approx(1 / 3),
    }


def test_what_no_rule_covers_is_refused():
    with pytest.raises(ValueError, match=r"'positions' grows from \(4, 4\) to \(12, 12\)"):
        rate_factors(Net(12, matrix=True), Net(4, matrix=True))
    with pytest.raises(ValueError, match="another architecture"):
        rate_factors(learner("swift_v2", 24), learner("swift_v2", 12, layer_scale=None))


def coordinates(model: MaskedReconstruction, clip: Tensor, hidden: Tensor) -> dict[str, Tensor]:
    """What every linear map and the encoder put out."""
    found: dict[str, Tensor] = {}
    hooks = [
        module.register_forward_hook(lambda _, __, output, name=name: found.update({name: output}))
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) or name == "encoder"
    ]
    with torch.no_grad():
        model(clip, hidden)
    for hook in hooks:
        hook.remove()
    return found


def train(family: str, width: int, mup: bool, seed: int, steps: int = 4) -> dict[str, tuple[float, float]]:
    """Root mean square of each layer's output after a few steps of Adam, and of its change since the start."""
    options = {"base_width": BASE} if mup else {}
    model, factors = learner(family, width, seed, **options), None
    if mup:
        base = learner(family, BASE, seed)
        initialise(model, base)
        factors = rate_factors(model, base)
    optimiser = Optimiser(model, weight_decay=0.0, rate_factors=factors)
    torch.manual_seed(100 + seed)
    clip = torch.randn(2, 1, 8, 8, 8, 4) + torch.randn(2, 1, 1, 1, 1, 4)
    hidden = torch.rand(2, 4, 4, 4, 4) < 0.5
    token_M = hidden.flatten().nonzero()[:, 0]
    before = coordinates(model, clip, hidden)
    for _ in range(steps):
        model.zero_grad()
        predicted_MP = model.patches(model.features(clip, hidden), token_M)
        (predicted_MP - model.patchify(clip).flatten(0, -2)[token_M]).square().mean().backward()
        optimiser.step(0.01)
    after = coordinates(model, clip, hidden)
    return {
        name: (value.square().mean().sqrt().item(), (value - before[name]).square().mean().sqrt().item())
        for name, value in after.items()
    }


def growth(family: str, mup: bool) -> tuple[dict[str, float], dict[str, float]]:
    """Exponents with which the outputs of each layer, and their changes, grow with the width: mean of three seeds."""
    runs = [[train(family, width, mup, seed) for width in WIDTHS] for seed in range(3)]
    exponents: list[dict[str, float]] = []
    for which in (0, 1):
        exponents.append({})
        for name in runs[0][0]:
            sizes = [np.mean([log(run[i][name][which]) for run in runs]) for i in range(len(WIDTHS))]
            exponents[-1][name] = float(np.polyfit(np.log(WIDTHS), sizes, 1)[0])
    return exponents[0], exponents[1]


@pytest.mark.parametrize("family", FAMILIES)
def test_activations_stay_level_across_widths(family):
    """Coordinate check: over eight times the width no layer's output, nor its change by training, grows or fades.

    With one rate for all and the usual start they grow, in the worst layers in proportion to the width.
    """
    sizes, changes = growth(family, mup=True)
    assert max(map(abs, sizes.values())) < 0.2, sizes
    assert max(map(abs, changes.values())) < 0.2, changes
    sizes, changes = growth(family, mup=False)
    assert max(sizes.values()) > 0.8
    assert max(changes.values()) > 0.8
    assert np.median(list(changes.values())) > 0.25
