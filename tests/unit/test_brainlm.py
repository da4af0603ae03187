"""BrainLM: counts, dropped tokens against masked attention written out, the published forms and a planted signal."""

from __future__ import annotations

from copy import deepcopy

import numpy as np
import pytest
import torch
from planted_parcels import planted
from torch import Tensor, nn
from torch.nn import functional

from pipeline.errors import InputError
from pipeline.models import create, describe
from pipeline.models.brainlm import robust_scaling, robust_statistics, spread_places
from pipeline.models.brainlm_upstream import ImageHead, ImagePositions
from pipeline.models.learners.autoencoder import MaskedAutoencoder
from pipeline.pretrain.objectives.batch import Batch
from pipeline.pretrain.objectives.reconstruction import MaskedObjective

SMALL = {"width": 16, "depth": 2, "heads": 2, "decoder_width": 8, "decoder_depth": 1, "decoder_heads": 2}
CLIP = {"patch": 5, "parcels": 6, "frames": 20}
FORMS = {
    "corrected": {**CLIP},
    "row": {**CLIP, "variant": "upstream"},
    "image": {"parcels": 6, "frames": 4, "image_patch": 4, "variant": "upstream"},
}


def small(form: str, **over: object) -> MaskedAutoencoder:
    torch.manual_seed(0)
    size = "13m" if form != "image" else "111m"
    learner = describe("brainlm").learner(create("brainlm", size, **{**SMALL, **FORMS[form], **over}))
    return learner.eval()


def clip_of(learner: MaskedAutoencoder, clips: int = 2) -> Tensor:
    return torch.randn(clips, *learner.encoder.input_shape)


def hiding(grid: tuple[int, int], share: float = 0.5, clips: int = 2) -> Tensor:
    tokens = grid[0] * grid[1]
    order = torch.rand(clips, tokens).argsort(1)
    return (order < round(share * tokens)).view(clips, *grid)


def parameters(model: nn.Module) -> int:
    return sum(value.numel() for value in model.parameters())


@pytest.mark.parametrize(("size", "published"), [("13m", 13_035_308), ("111m", 111_655_680), ("650m", 656_613_964)])
def test_upstream_has_the_published_parameters(size, published):
    with torch.device("meta"):
        learner = describe("brainlm").learner(create("brainlm", size, variant="upstream"))
    assert parameters(learner) == published
    assert str(published)[:3] in describe("brainlm").published[size].replace(",", "")
    # A decoder block of the large ones has 12 D^2 + 13 D weights, an encoder block the same of its width.
    if size != "13m":
        width, depth = learner.encoder.width, len(learner.encoder.blocks)
        assert parameters(learner.encoder.blocks) == depth * (12 * width**2 + 13 * width)


@pytest.mark.parametrize(("size", "corrected"), [("13m", 12_907_540), ("111m", 110_702_612), ("650m", 655_602_708)])
def test_corrected_has_the_size_of_its_name(size, corrected):
    with torch.device("meta"):
        learner = describe("brainlm").learner(create("brainlm", size))
        assert learner.encoder(torch.empty(1, 424, 200)).shape == (1, learner.encoder.width, 424, 10)
    assert parameters(learner) == corrected


@pytest.mark.parametrize(("size", "shape", "padding"), [("111m", (27, 13), 378), ("650m", (31, 15), 496)])
def test_the_published_image_is_mostly_padding(size, shape, padding):
    with torch.device("meta"):
        meta = create("brainlm", size, variant="upstream")
        assert meta(torch.empty(1, 424, 200)).shape[2:] == shape
    small_one = create("brainlm", size, variant="upstream", width=8, depth=1, heads=2)
    assert int((small_one.inside(200).sum(-1) == 0).sum()) == padding
    assert int(small_one.inside(200).sum()) == 424 * 200


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("share", [0.25, 0.75])
def test_dropping_tokens_equals_masked_attention_over_all_of_them(form, share):
    """Written out with every token present and minus infinity for the keys that are hidden."""
    learner = small(form).double()
    encoder, clip = learner.encoder, clip_of(learner).double()
    grid = encoder.grid(clip.shape[-1])
    hidden = hiding(grid, share)
    number_BV = (~hidden.flatten(1)).nonzero()[:, 1].view(2, -1)
    with torch.no_grad():
        dropped = encoder.encode_some(clip, number_BV)[:, 1:]
        for b in range(2):
            seen = torch.cat([torch.tensor([True]), ~hidden[b].flatten()])
            tokens = torch.cat([encoder.cls_token, encoder.embed(clip[b : b + 1])[0]])
            for block in encoder.blocks:
                tokens = plain_block(block, tokens, seen)
            expected = encoder.norm(tokens)[1:][~hidden[b].flatten()]
            assert (dropped[b] - expected).abs().max() < 1e-10


@pytest.mark.parametrize("form", FORMS)
def test_decoder_equals_a_plain_writing(form):
    """Each hidden token is the learned vector at its place, each visible one what the encoder made of it."""
    learner = small(form).double()
    encoder, decoder, clip = learner.encoder, learner.decoder, clip_of(learner).double()
    grid = encoder.grid(clip.shape[-1])
    hidden = hiding(grid)
    with torch.no_grad():
        found, _ = learner.predict(clip, hidden)
        positions, expected = decoder.positions(encoder.table, grid), []
        for b in range(2):
            seen = (~hidden[b].flatten()).nonzero().T
            encoded = iter(decoder.embed(encoder.encode_some(clip[b : b + 1], seen)[0]))
            tokens = [next(encoded)]
            for number, gone in enumerate(hidden[b].flatten()):
                tokens.append((decoder.mask_token if gone else next(encoded)) + positions[number])
            rows = torch.stack(tokens)
            for block in decoder.blocks:
                rows = plain_block(block, rows, torch.ones(len(rows), dtype=torch.bool))
            expected.append(decoder.head(decoder.norm(rows[1:]))[hidden[b].flatten()])
        inside = encoder.inside(clip.shape[-1])
        real = torch.ones_like(found) > 0 if inside is None else torch.stack([inside] * 2)[hidden] > 0
    assert (found - torch.cat(expected))[real].abs().max() < 1e-10


def plain_block(block: nn.Module, tokens: Tensor, seen: Tensor) -> Tensor:
    if hasattr(block.attn, "conv"):
        tokens = block.norm1(tokens + plain_attention(block.attn, tokens, seen))
        return block.norm2(tokens + block.mlp(tokens))
    tokens = tokens + plain_attention(block.attn, block.norm1(tokens), seen)
    return tokens + block.mlp(block.norm2(tokens))


def plain_attention(layer: nn.Module, tokens: Tensor, seen: Tensor) -> Tensor:
    q, k, v = layer.qkv(tokens).chunk(3, dim=-1)
    width = q.shape[1] // layer.heads
    parts = []
    for head in range(layer.heads):
        part = slice(head * width, (head + 1) * width)
        scores = q[:, part] @ k[:, part].T / width**0.5
        mixed = scores.masked_fill(~seen, -torch.inf).softmax(1) @ v[:, part]
        if hasattr(layer, "conv"):
            mixed = mixed + plain_convolution(v[:, part], layer.conv.weight[head, 0, :, 0], seen)
        parts.append(mixed)
    return layer.proj(torch.cat(parts, dim=1))


def plain_convolution(values: Tensor, kernel: Tensor, seen: Tensor) -> Tensor:
    """Token by token along the row of visible ones; hidden ones get nothing."""
    row, half = seen.nonzero()[:, 0].tolist(), len(kernel) // 2
    mixed = torch.zeros_like(values)
    for place, token in enumerate(row):
        for step in range(-half, half + 1):
            if 0 <= place + step < len(row):
                mixed[token] += kernel[half + step] * values[row[place + step]]
    return mixed


@pytest.mark.parametrize("form", FORMS)
def test_hidden_values_cannot_be_seen(form):
    learner = small(form)
    encoder, clip = learner.encoder, clip_of(learner)
    hidden = hiding(encoder.grid(clip.shape[-1]))
    # Which values of a clip lie in hidden tokens, found by what the tokens hold of the values' numbers.
    number = torch.arange(1.0, clip[0].numel() + 1).view(1, *clip.shape[1:])
    where = torch.stack(
        [(learner.patchify(number)[0][h].flatten()[:, None] == number.flatten()).any(0) for h in hidden]
    )
    other = torch.where(where.view_as(clip), torch.randn_like(clip), clip)
    seen = torch.where(where.view_as(clip), clip, torch.randn_like(clip))
    with torch.no_grad():
        first, features = learner.predict(clip, hidden)
        second, again = learner.predict(other, hidden)
        third, _ = learner.predict(seen, hidden)
    assert torch.equal(first, second)
    assert torch.equal(features, again)
    assert (first - third).abs().max() > 1e-4


def test_predictions_come_in_the_order_of_the_mask():
    """A decoder that returns the number of each token shows it; so do values taken by the same mask."""
    learner = small("corrected")
    clip = clip_of(learner)
    hidden = hiding((6, 4))
    learner.decoder.head = nn.Identity()
    learner.decoder.norm = nn.Identity()
    learner.decoder.blocks = nn.ModuleList()
    with torch.no_grad():
        rows, features = learner.predict(clip, hidden)
        positions = learner.decoder.positions(learner.encoder.table, (6, 4))
    expected = torch.stack([learner.decoder.mask_token + positions[token % 24] for token in hidden.flatten().nonzero()])
    assert torch.allclose(rows, expected[:, 0] if expected.ndim == 3 else expected, atol=1e-6)
    assert features.shape == (2, 16, 12)
    with pytest.raises(ValueError, match="the same number"):
        learner.predict(clip, torch.stack([hidden[0], torch.zeros(6, 4, dtype=torch.bool)]))


@pytest.mark.parametrize("form", FORMS)
def test_a_gradient_reaches_every_parameter(form):
    learner = small(form).train()
    clip = clip_of(learner)
    patches, _ = learner.predict(clip, hiding(learner.encoder.grid(clip.shape[-1])))
    patches.square().mean().backward()
    assert [name for name, value in learner.named_parameters() if value.grad is None or not value.grad.any()] == []


@pytest.mark.parametrize("form", ["corrected", "row"])
def test_any_number_of_parcels_and_patches(form):
    for parcels, frames in ((1, 5), (9, 35)):
        encoder = small(form, parcels=parcels).encoder
        assert encoder(torch.randn(2, parcels, frames)).shape == (2, 16, parcels, frames // 5)
    with pytest.raises(ValueError, match="23 frames, which patches of 5"):
        encoder(torch.randn(1, 9, 23))
    with pytest.raises(ValueError, match="4 parcels, but places are known for 9"):
        encoder(torch.randn(1, 4, 20))
    with pytest.raises(InputError, match=r"\(2, 3\), where parcels need \(9, 3\)"):
        create("brainlm", "13m", **SMALL, parcels=9, coordinates=[[0, 0, 0], [1, 1, 1]])


def test_features_keep_parcel_and_time_apart():
    """Without attention a feature holds one parcel at one time: nothing else may move it."""
    encoder = small("corrected").encoder
    for block in encoder.blocks:
        nn.init.zeros_(block.attn.proj.weight)
    clip = clip_of(small("corrected"))
    other = clip.clone()
    other[0, 3, 10:15] += 1
    with torch.no_grad():
        moved = (encoder(clip) - encoder(other)).abs().amax(1)
    assert moved[0, 3, 2] > 1e-3
    moved[0, 3, 2] = 0
    assert moved.max() < 1e-6


def test_coordinates_place_parcels_whatever_their_unit():
    clip, places = torch.randn(2, 6, 20), spread_places(6)
    models = [small("corrected", coordinates=table).encoder for table in (places, 70 * places + 5, places.flip(0))]
    with torch.no_grad():
        first, scaled, moved = (model(clip) for model in models)
    assert torch.allclose(first, scaled, atol=1e-4)
    assert (first - moved).abs().max() > 1e-2
    assert "table" in models[0].state_dict(), "places belong to the weights"


def test_stand_in_places_are_spread_over_a_sphere():
    places = spread_places(424)
    assert torch.allclose(places.norm(dim=1), torch.ones(424), atol=1e-5)
    nearest = (torch.cdist(places, places) + 9 * torch.eye(424)).min(1).values
    assert nearest.min() > 0.6 * nearest.max()  # 424 equal caps have a spacing of about 0.17
    assert places.mean(0).abs().max() < 0.01


def test_published_image_is_centred_and_sorted_by_y():
    places = torch.randn(6, 3)
    encoder = small("image", coordinates=places).encoder
    clip = torch.randn(1, 6, 4)
    image = encoder.image(clip)[0]
    assert image.shape == (8, 8)
    expected = np.full((8, 8), -1.0)
    expected[1:7, 2:6] = clip[0].numpy()[np.argsort(places[:, 1].numpy())]
    assert np.array_equal(image.numpy(), expected.astype(np.float32))
    values = encoder.values(clip)[0]
    assert torch.equal(values[1, 0], image[4:8, 0:4].flatten())
    assert torch.equal(encoder.inside(4)[1, 0] > 0, (image[4:8, 0:4] != -1).flatten())
    with torch.no_grad():  # the convolution of three equal channels, as a product with the patch
        weight = encoder.patch_embed.weight.sum(1).flatten(1)
        tokens = values.flatten(0, 1) @ weight.T + encoder.patch_embed.bias + encoder.positions(places, (2, 2))
        assert torch.allclose(encoder.embed(clip)[0], tokens, atol=1e-5)
        assert encoder(clip).shape == (1, 16, 2, 2)
    with pytest.raises(ValueError, match="5 frames, which cannot be centred in an image of 8"):
        encoder(torch.randn(1, 6, 5))


def test_padding_costs_the_published_image_nothing():
    learner = small("image")
    clip = clip_of(learner)
    hidden = hiding((2, 2))
    with torch.no_grad():
        predicted, _ = learner.predict(clip, hidden)
    padding = torch.stack([learner.encoder.inside(4)] * 2)[hidden] == 0
    assert padding.any()
    assert torch.equal(predicted[padding], torch.full_like(predicted[padding], -1))
    assert (predicted[~padding] - learner.patchify(clip)[hidden][~padding]).abs().min() > 0


def test_published_positions_of_images_follow_the_formula():
    positions = ImagePositions(8)(torch.zeros(1, 3), (2, 3))
    for row in range(2):
        for column in range(3):
            found = positions[row * 3 + column]
            expected = [
                f(place / 10_000 ** (i / 2)) for place in (column, row) for f in (np.sin, np.cos) for i in (0, 1)
            ]
            assert np.allclose(found.numpy(), expected, atol=1e-6)


def test_published_positions_of_rows_take_turns():
    encoder = small("row").encoder
    nn.init.zeros_(encoder.positions.place.weight)
    nn.init.zeros_(encoder.positions.place.bias)
    with torch.no_grad():
        found = encoder.positions(encoder.table, (6, 4)).view(6, 4, 16).numpy()
    for time in range(4):
        for pair in range(8):
            angle = time / 10_000 ** (2 * pair / 16)
            assert np.allclose(found[:, time, 2 * pair], np.sin(angle), atol=1e-6)
            assert np.allclose(found[:, time, 2 * pair + 1], np.cos(angle), atol=1e-6)


def test_published_head_averages_its_channels():
    head = ImageHead(5, 2)
    tokens = torch.randn(3, 5)
    pixels = functional.linear(tokens, head.weight, head.bias).view(3, 2, 2, 3)  # channel fastest
    assert torch.allclose(head(tokens), pixels.mean(-1).flatten(1), atol=1e-6)


def test_robust_scaling_and_the_published_slip():
    rng = np.random.default_rng(0)
    runs = [rng.normal(3, [[1], [5]], (2, frames)) ** 3 for frames in (41, 60)]
    pooled = np.concatenate([run - run.mean(1, keepdims=True) for run in runs], axis=1)
    median, iqr = robust_statistics([torch.from_numpy(run) for run in runs])
    assert np.allclose(median.numpy(), np.median(pooled, axis=1))
    assert np.allclose(iqr.numpy(), np.subtract(*np.percentile(pooled, [75, 25], axis=1)))
    scaled = np.concatenate([robust_scaling(torch.from_numpy(run), median, iqr).numpy() for run in runs], axis=1)
    assert np.allclose(np.median(scaled, axis=1), 0)
    assert np.allclose(np.subtract(*np.percentile(scaled, [75, 25], axis=1)), 1)
    slipped = robust_scaling(torch.from_numpy(runs[0]), median, iqr, "upstream")
    assert np.allclose(slipped.std(1).numpy(), runs[0].std(1, ddof=1)), "amplitudes stay in their unit"
    with pytest.raises(ValueError, match=r"parcels \[1\] hardly vary"):
        robust_statistics([torch.stack([torch.randn(50), torch.zeros(50)])])


def test_bf16_is_close_to_fp32():
    learner = small("corrected")
    clip, hidden = clip_of(learner), hiding((6, 4))
    with torch.no_grad():
        exact, _ = learner.predict(clip, hidden)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            rough, _ = learner.predict(clip, hidden)
    assert (rough - exact).norm() < 0.05 * exact.norm()


def test_saved_weights_come_back_with_their_places():
    one, other = small("corrected", coordinates=torch.randn(6, 3)), small("corrected")
    other.load_state_dict(deepcopy(one.state_dict()))
    clip = clip_of(one)
    assert torch.equal(one.encoder(clip), other.encoder(clip))


def hide_half(draw: np.random.Generator) -> Tensor:
    return torch.from_numpy(draw.permutation(24) < 12).view(6, 4)


@pytest.mark.parametrize("variant", ["corrected", "upstream"])
def test_training_finds_a_planted_signal_and_nothing_in_a_shuffled_one(variant):
    held_out = {}
    for shuffled in (False, True):
        torch.manual_seed(0)
        sizes = {**SMALL, "depth": 1, "width": 32, "decoder_width": 32, "patch": 6, "parcels": 6, "frames": 24}
        learner = describe("brainlm").learner(create("brainlm", "13m", **sizes, variant=variant))
        objective, step = MaskedObjective(learner, hide_half), torch.optim.AdamW(learner.parameters(), 5e-3, fused=True)

        def loss(seed: int, objective: MaskedObjective = objective, shuffled: bool = shuffled) -> Tensor:
            draws = [np.random.default_rng([seed, i]) for i in range(16)]
            return objective.loss(Batch(planted(16, seed, shuffled), draws))

        first = loss(1_000).item()
        for seed in range(100):
            step.zero_grad()
            loss(seed).backward()
            step.step()
        with torch.no_grad():
            held_out[shuffled] = float(np.mean([loss(1_000 + i).item() for i in range(4)]))
    assert held_out[False] < first / 2
    assert held_out[True] > 1.5 * held_out[False]
    assert held_out[True] > 0.9, "there is nothing to find beyond the mean"
