"""BrainMT: the published count, plain writings of its stem and of its order of tokens, and what it may depend on."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from pipeline.models import arguments, create
from pipeline.models.brainmt import BrainMT
from pipeline.models.description import Variant
from pipeline.models.learners.reconstruction import MaskedReconstruction
from pipeline.models.parts.layers import unpatchify

TINY = {
    "width": 16,
    "grid": (2, 3, 2),
    "patch": (8, 8, 8, 1),
    "context_frames": 6,
    "stem": (4, 6),
    "mamba_depth": 2,
    "attention_depth": 2,
    "states": 4,
    "drop_path": 0.0,
}


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def tiny(variant: Variant = "corrected", **overrides: object) -> BrainMT:
    encoder = create("brainmt", variant=variant, **{**TINY, **overrides})
    assert isinstance(encoder, BrainMT)
    return encoder


def clip_of(frames: int = 6, clips: int = 1) -> Tensor:
    return torch.randn(clips, 1, 16, 24, 16, frames)


def test_published_count() -> None:
    """39,104,961 with the classifier of 513; the corrected one adds seven MLPs, 15 norms and the second direction."""
    with torch.device("meta"):
        upstream, corrected = create("brainmt", variant="upstream"), create("brainmt")
    counts = [sum(value.numel() for value in encoder.parameters()) for encoder in (upstream, corrected)]
    assert counts[0] + 513 == 39_104_961
    mlp, norm, inner = 4 * 512 * 512 + 1024 + 512, 2 * 512, 1024
    direction = inner * 5 + inner * (32 + 2 * 16) + 32 * inner + inner + inner * 16 + inner
    learned_times_and_class = (200 + 2) * 512
    assert counts[1] - counts[0] == 7 * mlp + 15 * norm + 12 * direction - learned_times_and_class


def test_the_size_says_its_width_and_patch() -> None:
    """The plan of a grid reads both from a size, without building it."""
    said = arguments("brainmt", "paper")
    with torch.device("meta"):
        encoder = create("brainmt", "paper")
    assert (said["width"], said["patch"]) == (encoder.channels, encoder.patch)


@pytest.mark.parametrize(
    ("voxels", "grid"), [((96, 112, 96), (6, 7, 6)), ((91, 109, 91), (6, 7, 6)), ((96, 96, 96), (6, 6, 6))]
)
def test_features_of_the_published_size(voxels: tuple[int, int, int], grid: tuple[int, int, int]) -> None:
    """Sides that 16 does not divide are rounded up, as the published 91 x 109 x 91."""
    with torch.device("meta"), torch.no_grad():
        features = create("brainmt", mamba_depth=1, attention_depth=1, grid=grid)(torch.empty(2, 1, *voxels, 3))
    assert features.shape == (2, 512, *grid, 3)


def plain_stem(encoder: BrainMT, volume_XYZ: Tensor) -> Tensor:
    """One frame through the stem, layer by layer: `(C, x, y, z)`."""
    weights = {name.removeprefix("layers."): value for name, value in encoder.stem.state_dict().items()}
    convolve = functional.conv3d
    image = functional.relu(convolve(volume_XYZ[None, None], weights["0.weight"], stride=2, padding=1))
    image = functional.relu(convolve(image, weights["2.weight"], stride=2, padding=1))
    inner = image
    for number in (1, 2):
        inner = convolve(inner, weights[f"4.conv{number}.weight"], weights[f"4.conv{number}.bias"], padding=1)
        mean, variance = inner.mean(1, keepdim=True), inner.var(1, keepdim=True, correction=0)
        scale, offset = (weights[f"4.norm{number}.{part}"].view(1, -1, 1, 1, 1) for part in ("weight", "bias"))
        inner = (inner - mean) / (variance + 1e-5).sqrt() * scale + offset
        if number == 1:
            inner = 0.5 * inner * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (inner + 0.044715 * inner**3)))
    return convolve(image + inner, weights["5.weight"], stride=2, padding=1)[0]


@pytest.mark.parametrize("at_once", [1, 4, 100])
def test_stem_equals_a_plain_writing_frame_by_frame(at_once: int) -> None:
    encoder, clip = tiny(frames_at_once=at_once), clip_of(frames=5, clips=2)
    tokens = encoder.embed(clip)
    with torch.no_grad():
        for b, t in product(range(2), range(5)):
            torch.testing.assert_close(tokens[b, ..., t], plain_stem(encoder, clip[b, 0, ..., t]), atol=1e-5, rtol=0)


def test_stem_keeps_little_for_the_gradient_and_gives_the_whole_one() -> None:
    """Frames run again for the gradient: nothing is kept but the clip, once."""

    def kept_and_gradient(call: object) -> tuple[int, Tensor]:
        storages: dict[int, int] = {}

        def pack(value: Tensor) -> Tensor:
            storages[value.untyped_storage().data_ptr()] = value.untyped_storage().nbytes()
            return value

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda value: value):
            result = call(clip)  # type: ignore[operator]
        return sum(storages.values()), torch.autograd.grad(result.square().sum(), encoder.stem.layers[0].weight)[0]

    encoder, clip = tiny(frames_at_once=2), clip_of(frames=12)
    kept, gradient = kept_and_gradient(encoder.stem)
    whole, expected = kept_and_gradient(lambda clip: encoder.stem.layers(clip[0].permute(4, 0, 1, 2, 3)))
    torch.testing.assert_close(gradient, expected, atol=1e-4, rtol=1e-4)
    assert kept == clip.nbytes < whole / 2


def scan_row(encoder: BrainMT, tokens_BCxyzt: Tensor, upstream: bool) -> Tensor:
    """The row that enters the first Mamba layer, token by token."""
    clips, channels, *lengths = tokens_BCxyzt.shape
    x_y_z = [lengths[1], lengths[0], lengths[2]] if upstream else lengths[:3]
    row = []
    for number, place in enumerate(product(*(range(length) for length in x_y_z))):
        x, y, z = (place[1], place[0], place[2]) if upstream else place
        for t in range(lengths[3]):
            if upstream:
                time = encoder.time_embed[t]  # type: ignore[index]
            else:
                rates = 10_000.0 ** (-torch.arange(channels // 2) / (channels / 2))
                time = 0.1 * torch.cat([torch.sin(t * rates), torch.cos(t * rates)])
            row.append(tokens_BCxyzt[:, :, x, y, z, t] + encoder.pos_embed[number] + time)
    if upstream:
        row.insert(0, encoder.cls_token.sum(0).expand(clips, -1))  # type: ignore[union-attr]
    return torch.stack(row, dim=1)


@pytest.mark.parametrize("variant", ["corrected", "upstream"])
def test_tokens_stand_in_a_row_with_time_fastest(variant: Variant) -> None:
    """And come back to their places: without layers, features are the normed tokens."""
    encoder = tiny(variant, mamba_depth=0, attention_depth=0)
    tokens = torch.randn(2, 16, 2, 3, 2, 6)
    rows: list[Tensor] = []
    encoder.norm.register_forward_hook(lambda _, inputs, __: rows.append(inputs[0]))
    with torch.no_grad():
        features = encoder.encode(tokens)
        expected = scan_row(encoder, tokens, variant == "upstream")
        torch.testing.assert_close(rows[0], expected)
        row = 1 + 6 * (2 * (2 * 1 + 1) + 0) + 4 if variant == "upstream" else 6 * (2 * (3 * 1 + 1) + 0) + 4
        torch.testing.assert_close(features[:, :, 1, 1, 0, 4], encoder.norm(expected[:, row]))


def test_upstream_scans_forwards_only_and_the_class_token_reads_nothing() -> None:
    """Without attention, the first row upstream is the same for every clip; the last place is blind to none before."""
    upstream, corrected = tiny("upstream", attention_depth=0), tiny(attention_depth=0)
    clip, changed = clip_of(), clip_of()
    changed[..., :3] = clip[..., :3]
    changed[:, :, :, :8] = clip[:, :, :, :8]  # places with y = 0 stand first in the row upstream
    with torch.no_grad():
        assert torch.equal(upstream.summary(clip), upstream.summary(changed))
        stem = upstream.embed(clip)
        later = stem.clone()
        later[:, :, :, 1:] += 1
        moved = (upstream.encode(stem) - upstream.encode(later)).abs().amax((0, 1, 2, 4, 5))
        assert moved[0] == 0
        assert moved[1:].min() > 0
        moved = (corrected.encode(stem) - corrected.encode(later)).abs().amax((0, 1, 5))
        assert moved.min() > 0
    with torch.no_grad():
        attending = tiny("upstream")
        assert not torch.equal(attending.summary(clip), attending.summary(changed))


def test_lengths() -> None:
    """Corrected, clips of any length run with the same weights; upstream has 6 learned times here and says so."""
    with torch.no_grad():
        assert tiny()(clip_of(frames=11)).shape == (1, 16, 2, 3, 2, 11)
        with pytest.raises(ValueError, match="a clip of 5 frames, where the published BrainMT takes 6"):
            tiny("upstream")(clip_of(frames=5))


def test_upstream_shares_one_mlp_and_one_norm() -> None:
    upstream, corrected = tiny("upstream").attention, tiny().attention
    assert [len(part) for part in (upstream.attn, upstream.mlp, upstream.norm1)] == [2, 1, 1]
    assert upstream.norm2 is None
    assert [len(part) for part in (corrected.attn, corrected.mlp, corrected.norm1)] == [2, 2, 2]
    assert corrected.norm2 is not None
    tokens = torch.randn(1, 9, 16)
    with torch.no_grad():
        for layers in (upstream, corrected):
            expected = tokens
            for number in range(2):
                own = 0 if layers is upstream else number
                second = layers.norm1[own] if layers.norm2 is None else layers.norm2[own]
                expected = expected + layers.attn[number](layers.norm1[own](expected))
                expected = expected + layers.mlp[own](second(expected))
            torch.testing.assert_close(layers(tokens), expected)


@pytest.mark.parametrize("variant", ["corrected", "upstream"])
def test_hidden_voxels_are_not_seen_though_the_stem_reaches_across_patches(variant: Variant) -> None:
    encoder, clip = tiny(variant), clip_of(clips=2)
    learner, hidden = MaskedReconstruction(encoder), (torch.rand(2, 72).argsort(1) < 30).view(2, 2, 3, 2, 6)
    noise = unpatchify(learner.patchify(torch.randn_like(clip)) * hidden[..., None], encoder.patch)
    with torch.no_grad():
        seen, changed = encoder.embed(clip), encoder.embed(clip + noise)
        assert ((seen != changed).any(1) & ~hidden).any()  # the stem alone would show what is hidden
        assert torch.equal(learner.predict(clip, hidden)[0], learner.predict(clip + noise, hidden)[0])


@pytest.mark.parametrize("variant", ["corrected", "upstream"])
def test_gradients_reach_all_through_masked_reconstruction(variant: Variant) -> None:
    learner, clip = MaskedReconstruction(tiny(variant)), clip_of(clips=2)
    hidden = (torch.rand(2, 72).argsort(1) < 30).view(2, 2, 3, 2, 6)
    predicted_MP, features = learner.predict(clip, hidden)
    assert predicted_MP.shape == (60, 512)
    assert features.shape == (2, 16, 2, 3, 2, 6)
    predicted_MP.square().mean().backward()
    assert [name for name, value in learner.named_parameters() if value.grad is None or not value.grad.any()] == []


def test_stochastic_depth_grows_to_that_of_the_last_layer_and_acts_in_training_alone() -> None:
    encoder, clip = tiny(drop_path=0.6), clip_of(frames=3)
    rates = [layer.drop_path.rate for layer in encoder.mamba] + [path.rate for path in encoder.attention.drop_paths]
    assert rates == pytest.approx([0.0, 0.2, 0.4, 0.6])
    with torch.no_grad():
        assert len({float(encoder(clip).sum()) for _ in range(20)}) > 1
        encoder.eval()
        assert torch.equal(encoder(clip), encoder(clip))


def test_bfloat16_is_close_to_float32() -> None:
    encoder, clip = tiny(), clip_of()
    with torch.no_grad():
        exact = encoder(clip)
        with torch.autocast("cpu", torch.bfloat16):
            rounded = encoder(clip)
    assert (rounded - exact).norm() < 0.03 * exact.norm()


def test_a_patch_that_the_stem_does_not_make_is_refused() -> None:
    with pytest.raises(ValueError, match="a stem of 3 convolutions makes 8"):
        BrainMT(**{**TINY, "patch": (6, 6, 6, 1)})  # type: ignore[arg-type]
    assert not any(isinstance(module, nn.Linear) and module.in_features == 512 for module in tiny().modules())
