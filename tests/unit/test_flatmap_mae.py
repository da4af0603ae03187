"""The flat-map MAE computes visible cortex alone, and computes it as plain loops do."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from pipeline.models.flatmap_mae import DESCRIPTION, FlatmapMae, FlatmapViT, flat_patches

SMALL = {"width": 24, "depth": 2, "heads": 3, "raster": (8, 12), "patch": (4, 4, 2), "context_frames": 8}
GRID = (2, 3, 4)  # places and times of SMALL


def small(**over: object) -> FlatmapMae:
    torch.manual_seed(0)
    model = FlatmapMae(FlatmapViT(**{**SMALL, **over}), head_scale=1.0)
    for parameter in model.parameters():  # no bias and no norm shall be neutral
        parameter.data += 0.05 * torch.randn_like(parameter)
    return model


def some_cortex() -> Tensor:
    """Place (0, 0) has no pixel of cortex, (1, 2) a single one, the others about half of theirs."""
    cortex_HW = torch.rand(8, 12, generator=torch.Generator().manual_seed(1)) < 0.5
    cortex_HW[:4, :4] = cortex_HW[4:, 8:] = False
    cortex_HW[6, 9] = True
    return cortex_HW


def some_hidden(clips: int, among: Tensor | None = None) -> Tensor:
    """Seven tokens hidden in each clip, others in every clip, on cortex alone where it is given."""
    generator = torch.Generator().manual_seed(2)
    hidden = torch.zeros(clips, *GRID, dtype=torch.bool)
    places = torch.ones(GRID, dtype=torch.bool) if among is None else among[..., None].expand(GRID)
    candidates = places.flatten().nonzero()[:, 0]
    for clip in hidden:
        clip.view(-1)[candidates[torch.randperm(len(candidates), generator=generator)[:7]]] = True
    return hidden


# --- against plain loops -------------------------------------------------------------------------------------------


def plain_blocks(tokens_NC: Tensor, state: dict[str, Tensor], prefix: str, depth: int, heads: int) -> Tensor:
    """Pre-norm blocks and a final norm on the tokens of one clip, attention written out head by head."""

    def norm(values: Tensor, name: str) -> Tensor:
        return functional.layer_norm(values, values.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"], 1e-6)

    for block in range(depth):
        name = f"{prefix}blocks.{block}"
        qkv = norm(tokens_NC, f"{name}.norm1") @ state[f"{name}.attn.qkv.weight"].T + state[f"{name}.attn.qkv.bias"]
        q, k, v = qkv.chunk(3, dim=1)
        mixed = []
        for head in range(heads):
            own = slice(head * q.shape[1] // heads, (head + 1) * q.shape[1] // heads)
            score = q[:, own] @ k[:, own].T / math.sqrt(q.shape[1] // heads)
            mixed.append(score.softmax(dim=1) @ v[:, own])
        proj = torch.cat(mixed, dim=1) @ state[f"{name}.attn.proj.weight"].T + state[f"{name}.attn.proj.bias"]
        tokens_NC = tokens_NC + proj
        inner = norm(tokens_NC, f"{name}.norm2") @ state[f"{name}.mlp.linear1.weight"].T
        inner = functional.gelu(inner + state[f"{name}.mlp.linear1.bias"])
        tokens_NC = tokens_NC + inner @ state[f"{name}.mlp.linear2.weight"].T + state[f"{name}.mlp.linear2.bias"]
    return norm(tokens_NC, f"{prefix}norm")


def plain_position(state: dict[str, Tensor], prefix: str, row: int, column: int, time: int) -> Tensor:
    name = f"{prefix}pos_embed.weight"
    return state[f"{name}_spatial"][0, row * GRID[1] + column] + state[f"{name}_temporal"][time, 0]


def plain_prediction(model: FlatmapMae, clip_HWT: Tensor, hidden_hwt: Tensor, cortex_HW: Tensor) -> tuple[Tensor, ...]:
    """Predictions of one clip's hidden tokens and features of its visible ones, token by token."""
    state, features, asked = model.state_dict(), [], []
    visible = [model.encoder.cls_token[0, 0]]
    for row in range(GRID[0]):
        for column in range(GRID[1]):
            own = (slice(4 * row, 4 * row + 4), slice(4 * column, 4 * column + 4))
            for time in range(GRID[2]):
                if hidden_hwt[row, column, time]:
                    asked.append(model.mask_token[0, 0] + plain_position(state, "", row, column, time))
                elif cortex_HW[own].any():
                    frames = [(clip_HWT[:, :, 2 * time + f] * cortex_HW)[own].flatten() for f in range(2)]
                    token = state["encoder.patch_embed.weight"] @ torch.cat(frames) + state["encoder.patch_embed.bias"]
                    visible.append(token + plain_position(state, "encoder.", row, column, time))
    features = plain_blocks(torch.stack(visible), state, "encoder.", 2, 3)[1:]
    given = [model.cls_token[0, 0], *(state["proj.weight"] @ each + state["proj.bias"] for each in features), *asked]
    decoded = plain_blocks(torch.stack(given), state, "", 1, 1)[-len(asked) :]
    return decoded @ state["head.weight"].T + state["head.bias"], features


@torch.no_grad()
def test_prediction_equals_plain_loops_over_visible_tokens():
    cortex_HW = some_cortex()
    model = small(cortex_HW=cortex_HW)
    clip, hidden = torch.randn(2, 1, 8, 12, 8), some_hidden(2, model.encoder.cortical_hw)
    predicted, features = model.predict(clip, hidden)
    assert features.shape == (2, 24, 5 * 4 - 7)  # five places hold cortex
    for number in range(2):
        expected, seen = plain_prediction(model, clip[number, 0], hidden[number], cortex_HW)
        assert torch.allclose(predicted[7 * number : 7 * number + 7], expected, atol=1e-5)
        assert torch.allclose(features[number].T, seen, atol=1e-5)


@torch.no_grad()
def test_features_of_a_whole_clip_are_those_of_nothing_hidden():
    model = small(cortex_HW=some_cortex())
    clip = torch.randn(2, 1, 8, 12, 8)
    features = model.encoder(clip)
    assert features.shape == (2, 24, *GRID)
    assert not features[:, :, 0, 0].any(), "a place without cortex"
    predicted, seen = model.predict(clip, torch.zeros(2, *GRID, dtype=torch.bool))
    assert predicted.shape == (0, 16)
    assert torch.allclose(features.flatten(2)[:, :, 4:], seen, atol=1e-6)


def test_patches_put_the_frame_slowest_then_row_then_column():
    clip = torch.randn(2, 1, 8, 12, 8)
    every, second = flat_patches(clip, (4, 4, 2)), flat_patches(clip, (4, 4, 2), stride=2)
    assert every.shape == (2, *GRID, 32)
    assert second.shape == (2, *GRID, 16)
    assert every[1, 1, 2, 3, 16 + 4 * 2 + 1] == clip[1, 0, 4 + 2, 8 + 1, 2 * 3 + 1]
    assert torch.equal(second, every[..., :16]), "every second frame of a patch of two is its first"


# --- what may influence what ---------------------------------------------------------------------------------------


@torch.no_grad()
def test_hidden_pixels_and_pixels_off_cortex_cannot_be_seen():
    cortex_HW = some_cortex()
    model = small(cortex_HW=cortex_HW)
    clip, hidden = torch.randn(2, 1, 8, 12, 8), some_hidden(2, model.encoder.cortical_hw)
    pixels = hidden.repeat_interleave(4, 1).repeat_interleave(4, 2).repeat_interleave(2, 3)[:, None]
    secret = pixels | ~cortex_HW[:, :, None]
    predicted = model.predict(clip, hidden)[0]
    assert torch.equal(predicted, model.predict(torch.where(secret, torch.randn_like(clip), clip), hidden)[0])
    assert (predicted - model.predict(torch.where(secret, clip, torch.randn_like(clip)), hidden)[0]).abs().max() > 1e-2
    off_cortex = torch.where(cortex_HW[:, :, None], clip, torch.randn_like(clip))
    assert torch.equal(model.encoder(clip), model.encoder(off_cortex))
    alone = clip.clone()
    alone[:, :, 6, 9] += 1  # the only pixel of its place
    assert not torch.allclose(model.encoder(clip), model.encoder(alone), atol=1e-3)


@torch.no_grad()
def test_the_last_axis_is_time():
    """Without blocks a token is its own patch: frames 4 and 5 are token time 2."""
    encoder = small(depth=0).encoder
    clip = torch.randn(1, 1, 8, 12, 8)
    other = clip.clone()
    other[:, :, :, :, 5] += 1
    changed = (encoder(other) - encoder(clip)).abs().amax(dim=(0, 1))
    assert changed[:, :, 2].min() > 1e-3
    changed[:, :, 2] = 0
    assert not changed.any()


@torch.no_grad()
def test_clips_of_any_length_are_cut_at_the_context():
    encoder = small().encoder
    clip = torch.randn(1, 1, 8, 12, 14)
    parts = [encoder(clip[..., :8]), encoder(clip[..., 8:])]
    assert torch.allclose(encoder(clip), torch.cat(parts, dim=-1), atol=1e-6)
    assert parts[1].shape == (1, 24, 2, 3, 3)


def test_sizes_that_do_not_fit_are_refused():
    for wrong in ({"raster": (9, 12)}, {"context_frames": 7}, {"heads": 5}, {"cortex_HW": torch.ones(12, 8)}):
        with pytest.raises(ValueError, match=r"tile|divide|cortex"):
            FlatmapViT(**{**SMALL, **wrong})
    model = small()
    with pytest.raises(ValueError, match="of 3 frames"):
        model.encoder(torch.randn(1, 1, 8, 12, 3))
    with pytest.raises(ValueError, match="raster"):
        model.encoder(torch.randn(1, 1, 12, 8, 8))
    uneven = torch.zeros(2, *GRID, dtype=torch.bool)
    uneven[0, 0, 0, :2] = uneven[1, 0, 0, 0] = True
    with pytest.raises(ValueError, match=r"\[22, 23\] tokens"):
        model.predict(torch.randn(2, 1, 8, 12, 8), uneven)


def test_the_map_of_cortex_travels_with_the_weights():
    trained, fresh = FlatmapMae(FlatmapViT(**SMALL, cortex_HW=some_cortex())), FlatmapMae(FlatmapViT(**SMALL))
    fresh.load_state_dict(trained.state_dict())
    clip = torch.randn(1, 1, 8, 12, 8)
    assert torch.equal(fresh.encoder(clip), trained.encoder(clip))
    assert torch.equal(fresh.encoder.cortex_HW, some_cortex())


# --- counts, gradients, numbers ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "encoder", "whole"),
    [  # counted by building the models of the authors' package (cortex_mae 0.1.1) with its default configuration
        ("2m", 1_626_816, 1_979_584),
        ("13m", 11_231_232, 13_168_384),
        ("43m", 36_775_872, 42_709_184),
        ("100m", 86_223_360, 99_744_256),
        ("193m", 167_536_320, 193_415_872),
    ],
)
def test_parameters_are_as_many_as_published(size, encoder, whole):
    with torch.device("meta"):
        model = DESCRIPTION.learner(DESCRIPTION.build(**DESCRIPTION.sizes[size]))
    assert sum(each.numel() for each in model.encoder.parameters()) == encoder
    assert sum(each.numel() for each in model.parameters()) == whole


def test_a_gradient_reaches_every_parameter():
    model, clip, hidden = small(), torch.randn(2, 1, 8, 12, 8), some_hidden(2)
    predicted, _ = model.predict(clip, hidden)
    (predicted - model.patchify(clip)[hidden]).square().mean().backward()
    assert [key for key, value in model.named_parameters() if value.grad is None or not value.grad.any()] == []


def test_it_starts_as_the_zero_predictor():
    model = DESCRIPTION.learner(FlatmapViT(**SMALL))
    assert not model.predict(torch.randn(1, 1, 8, 12, 8), some_hidden(1))[0].any()


@torch.no_grad()
def test_bf16_is_close_to_fp32():
    model, clip = small(), torch.randn(2, 1, 8, 12, 8)
    exact = model.encoder(clip)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = model.encoder(clip)
    assert (rough - exact).norm() < 0.02 * exact.norm()


# --- learning ------------------------------------------------------------------------------------------------------


def planted_clips(count: int, generator: torch.Generator, shuffled: bool) -> Tensor:
    """A travelling wave that starts at one of four phases: the visible tokens say which."""
    row, column, frame = torch.meshgrid(torch.arange(8.0), torch.arange(12.0), torch.arange(8.0), indexing="ij")
    phase = torch.randint(4, (count, 1, 1, 1), generator=generator) * torch.pi / 2
    clips = (column / 2 + row / 3 - frame / 3 + phase).sin()
    if shuffled:
        order = torch.rand(clips.flatten(1).shape, generator=generator).argsort(dim=1)
        clips = clips.flatten(1).gather(1, order).view_as(clips)
    return clips[:, None]


def held_out_error(shuffled: bool) -> float:
    """Error of hidden tokens of new clips after training, as a share of their variance."""
    generator = torch.Generator().manual_seed(3)
    torch.manual_seed(0)
    model = FlatmapMae(FlatmapViT(**SMALL))
    optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3)

    def error(clips: Tensor) -> Tensor:
        hidden = (torch.rand(len(clips), 24, generator=generator).argsort(dim=1) < 12).view(-1, *GRID)
        true = model.patchify(clips)[hidden]
        return (model.predict(clips, hidden)[0] - true).square().mean() / true.square().mean()

    for _ in range(200):
        optimiser.zero_grad()
        error(planted_clips(16, generator, shuffled)).backward()
        optimiser.step()
    with torch.no_grad():
        return float(error(planted_clips(64, generator, shuffled)))


def test_training_finds_a_planted_signal_and_nothing_in_shuffled_pixels():
    found, shuffled = held_out_error(shuffled=False), held_out_error(shuffled=True)
    assert found < 0.4  # the untrained model predicts 0, an error of 1
    assert shuffled > 0.9
