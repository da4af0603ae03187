"""The 4D arm of the scaling ladder: its sizes, its two patches and the options that can be ablated."""

from __future__ import annotations

import pytest
import torch

from pipeline.errors import InputError
from pipeline.models import create, describe
from pipeline.models.swift_4d import Swift4D
from pipeline.models.swift_v1 import SwiftV1

TINY = {"width": 12, "depths": (2, 2), "heads": (2, 4), "grid": (4, 4, 4), "patch": (2, 2, 2, 1), "context_frames": 6}
SIZES = describe("swift_4d").sizes


def arithmetic(width: int, depths: tuple[int, ...], frames_a_patch: int) -> int:
    """Weights by the formula: a block has 12 C^2 + 13 C, a merging 16 C^2 + 16 C, a stage C for each place and time."""
    channels = [width * 2**stage for stage in range(4)]
    embedding = 6**3 * frames_a_patch * width + width
    positions = sum(c * ((16 // 2**stage) ** 3 + 20 // frames_a_patch) for stage, c in enumerate(channels))
    blocks = sum(depth * (12 * c * c + 13 * c) for depth, c in zip(depths, channels, strict=True))
    mergings = sum(16 * c * c + 16 * c for c in channels[:3])
    return embedding + positions + blocks + mergings + 2 * channels[3]


@pytest.mark.parametrize("size", SIZES)
def test_every_size_has_the_parameters_of_the_formula(size):
    spec = SIZES[size]
    with torch.device("meta"):
        model = create("swift_4d", size)
    frames = 2 if size.endswith("published") else 1
    assert sum(value.numel() for value in model.parameters()) == arithmetic(spec["width"], spec["depths"], frames)


@pytest.mark.parametrize(
    ("size", "label"), [("w96-published", 51e6), ("w192-published", 202e6), ("w384-published", 806e6), ("w744", 3e9)]
)
def test_counts_agree_with_the_published_labels(size, label):
    with torch.device("meta"):
        model = create("swift_4d", size)
    assert sum(value.numel() for value in model.parameters()) == pytest.approx(label, rel=0.015)


def test_the_published_arm_has_a_time_for_two_frames():
    model = create("swift_4d", "w36-published", width=12, depths=(1, 1), heads=(2, 4), grid=(2, 2, 2))
    assert model.patch == (6, 6, 6, 2)
    assert model(torch.zeros(1, 1, 12, 12, 12, 20)).shape == (1, 24, 1, 1, 1, 10)
    with pytest.raises(InputError, match="clips of 5 frames"):
        create("swift_4d", "w36-published", context_frames=5)


def test_without_options_it_is_swift_v1():
    torch.manual_seed(0)
    ours, reference = Swift4D(**TINY), SwiftV1(**TINY)
    ours.load_state_dict(reference.state_dict())
    clip = torch.randn(1, 1, 8, 8, 8, 6)
    with torch.no_grad():
        assert torch.equal(ours(clip), reference(clip))


def test_scores_of_a_wide_head_fall_with_its_channels():
    """24 channels a head against 6 at the base: scores of 1/24 * root 6, half of 1 / root 24, in every stage."""
    torch.manual_seed(0)
    spec = {**TINY, "width": 48}
    model, usual = Swift4D(**spec, base_width=12), Swift4D(**spec)
    usual.load_state_dict(model.state_dict())
    clip = torch.randn(1, 1, 8, 8, 8, 6)
    with torch.no_grad():
        assert (model(clip) - usual(clip)).abs().max() > 1e-3
        for stage in usual.layers:
            for block in stage.blocks:
                queries = block.attn.proj.in_features
                block.attn.qkv.weight[:queries] /= 2
                block.attn.qkv.bias[:queries] /= 2
        assert torch.allclose(model(clip), usual(clip), atol=1e-5)


def test_norms_of_queries_and_keys_bound_the_scores():
    clip = torch.randn(1, 1, 8, 8, 8, 6)
    for qk_norm in (True, False):
        torch.manual_seed(0)
        model = Swift4D(**TINY, qk_norm=qk_norm)
        with torch.no_grad():
            before = model(clip)
            for block in model.layers[0].blocks:
                block.attn.qkv.weight[:12] *= 30
                block.attn.qkv.bias[:12] *= 30
            assert ((model(clip) - before).abs().max() < 1e-3) == qk_norm


def test_scales_start_where_they_are_told():
    """At 0 both branches of a block are off, and a stage passes on what its mergings make of positions and tokens."""
    torch.manual_seed(0)
    model = Swift4D(**{**TINY, "depths": (2,), "heads": (2,)}, layer_scale=0.0)
    tokens = torch.randn(1, 12, 4, 4, 4, 6)
    with torch.no_grad():
        positions = model.pos_embeds[0].pos_embed + model.pos_embeds[0].time_embed
        assert torch.allclose(model.encode(tokens), tokens + positions, atol=1e-6)
