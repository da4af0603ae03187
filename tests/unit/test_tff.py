"""TFF: shapes of the published crop, counts by its layers, BERT against torch's, and which frame sees which."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pipeline.models.tff import DESCRIPTION, TFF, FrameReconstruction, FrameTransformer

TINY = {"volume": (12, 10, 9), "context_frames": 5, "width": 16, "layers": 1, "heads": 2, "hidden": 24}


def tiny(**overrides) -> TFF:
    torch.manual_seed(0)
    return TFF(**{**TINY, **overrides})


def count(module: nn.Module) -> int:
    return sum(value.numel() for value in module.parameters())


def test_features_and_rebuilt_clips_have_the_frames_last():
    for variant, channels in (("corrected", 1), ("upstream", 2)):
        learner = FrameReconstruction(tiny(variant=variant)).eval()
        clip = torch.randn(2, channels, 12, 10, 9, 5)
        assert learner.encoder.input_shape == clip.shape[1:]
        assert learner.encoder(clip).shape == (2, 16, 1, 1, 1, 5)
        for phase in ("autoencoder", "transformer"):
            assert learner(clip, phase).shape == (2, 1, 12, 10, 9, 5)


def test_frames_meet_only_in_the_transformer():
    learner = FrameReconstruction(tiny()).eval()
    clip = torch.randn(1, 1, 12, 10, 9, 5)
    changed = clip.clone()
    changed[..., 2] += torch.randn(12, 10, 9)
    apart, together = (
        (learner(changed, phase) - learner(clip, phase)).abs().amax((0, 1, 2, 3, 4))
        for phase in ("autoencoder", "transformer")
    )
    assert apart[2] > 1e-5
    assert apart[[0, 1, 3, 4]].max() == 0
    assert together.min() > 0


def test_clips_of_a_batch_never_meet():
    learner = FrameReconstruction(tiny()).eval()
    clip = torch.randn(3, 1, 12, 10, 9, 5)
    for phase in ("autoencoder", "transformer"):
        alone = torch.cat([learner(each[None], phase) for each in clip])
        assert (learner(clip, phase) - alone).abs().max() < 1e-5


def test_bert_is_torchs_post_norm_transformer():
    torch.manual_seed(0)
    model = FrameTransformer(16, 2, 2, 24, positions=9, dropout=0.1, bert=True).eval()
    layer = nn.TransformerEncoderLayer(16, 2, 24, activation="gelu", batch_first=True, layer_norm_eps=1e-12)
    vectors = torch.randn(3, 5, 16)
    clip_token = model.clip_token(torch.full((3, 1, 16), 0.5))
    tokens = torch.cat([clip_token, vectors], 1) + model.positions_NC[:6] + model.token_types[0]
    tokens = nn.functional.layer_norm(tokens, (16,), model.norm.weight, model.norm.bias, 1e-12)
    names = {"qkv.weight": "self_attn.in_proj_weight", "qkv.bias": "self_attn.in_proj_bias"}
    for block in model.blocks:
        state = block.state_dict()
        layer.load_state_dict({names.get(k, k.replace("proj", "self_attn.out_proj")): v for k, v in state.items()})
        tokens = layer.eval()(tokens)
    assert (model(vectors) - tokens[:, 1:]).abs().max() < 1e-5


def test_more_frames_than_positions_are_refused():
    with pytest.raises(ValueError, match="raise `positions`"):
        tiny(positions=4)(torch.randn(1, 1, 12, 10, 9, 5))


def residual(channels: int) -> int:
    return 2 * (2 * channels + 27 * channels * channels + channels)


def convolution(before: int, after: int, edge: int = 3) -> int:
    return edge**3 * before * after + after


def test_the_published_crop_has_the_parameters_of_its_layers():
    """Its flattened voxels, 2 x 10 x 12 x 11, are the 2,640 channels; a cube of 96 needs a linear map to them."""
    c = 2640
    down = residual(4) + 2 * residual(8) + 2 * residual(16) + 4 * residual(32)
    down += convolution(4, 8) + convolution(8, 16) + convolution(16, 32) + 2 * 32 + convolution(32, 2)
    up = (c * c + c) + 2 * 2 + convolution(2, 32)
    up += sum(convolution(2 * after, after, 1) + residual(after) for after in (16, 8, 4))
    up += convolution(4, 4) + convolution(4, 1, 1)
    layer = 4 * (c * c + c) + (c * 3072 + 3072) + (3072 * c + c) + 4 * c
    transformer = 30 * c + 2 * c + 2 * layer
    bert = c + 2 * c + 2 * (c * c + c)  # words, token types, the clip's token and its pooler
    with torch.device("meta"):
        corrected, upstream, cube = (
            TFF(**DESCRIPTION.sizes[size], variant=variant)
            for size, variant in (("paper", "corrected"), ("paper", "upstream"), ("cube", "corrected"))
        )
        whole = count(FrameReconstruction(upstream))
        assert corrected(torch.empty(1, 1, 75, 93, 81, 2)).shape == (1, c, 1, 1, 1, 2)
    assert count(corrected) == convolution(1, 4) + down + transformer
    assert whole == convolution(2, 4) + down + up + transformer + bert == 109_559_023
    assert count(cube) == count(corrected) + 2 * 12**3 * c + c


def test_hidden_frames_are_predicted_from_the_others():
    learner = FrameReconstruction(tiny()).eval()
    clip = torch.randn(2, 1, 12, 10, 9, 5)
    hidden = torch.zeros(2, 1, 1, 1, 5, dtype=torch.bool)
    hidden[0, ..., 3] = hidden[1, ..., 0] = True
    found, features = learner.predict(clip, hidden)
    other = clip.clone()
    other[0, ..., 3], other[1, ..., 0] = 7.0, -7.0
    assert torch.equal(found, learner.predict(other, hidden)[0])
    assert features.shape == (2, 16, 1, 1, 1, 5)
    blank = torch.where(hidden[:, None], 0.0, clip)
    expected = learner(blank)
    assert torch.allclose(found, torch.stack([expected[0, 0, ..., 3], expected[1, 0, ..., 0]]).flatten(1), atol=1e-6)


def test_applying_it_is_deterministic_and_bf16_stays_close():
    model = tiny().eval()
    clip = torch.randn(2, 1, 12, 10, 9, 5)
    exact = model(clip)
    assert torch.equal(exact, model(clip))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = model(clip).float()
    assert (rounded - exact).norm() < 0.03 * exact.norm()
