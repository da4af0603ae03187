"""NeuroSTORM against a plain writing of its windows, its published count, and what may not reach what."""

from __future__ import annotations

from itertools import pairwise, product
from math import prod

import pytest
import torch
from torch import Tensor, nn

from pipeline.models import create, describe
from pipeline.models.description import Variant
from pipeline.models.neurostorm import Block, Expanding, NeuroStorm, NeuroStormMae, drop_redundant

TINY = {"width": 8, "depths": (2, 2), "grid": (4, 4, 6), "patch": (2, 2, 2, 1), "window": (2, 2, 2, 2)}


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def tiny(variant: Variant = "corrected", frames: int = 6, **overrides: object) -> NeuroStormMae:
    return NeuroStormMae(NeuroStorm(**{**TINY, "context_frames": frames, "variant": variant, **overrides}))  # type: ignore[arg-type]


def plain_windows(lengths: list[int], window: list[int], shift: list[int], wraps: bool) -> list[list[tuple[int, ...]]]:
    """Cells of each window in the order of the scan: cut one axis at a time, then in raster order inside."""
    spans = []
    for length, size, step in zip(lengths, window, shift, strict=True):
        if wraps:
            spans.append([[(start + step + i) % length for i in range(size)] for start in range(0, length, size)])
        else:
            cuts = sorted({0, length, *range(step, length, size)})
            spans.append([list(range(one, other)) for one, other in pairwise(cuts)])
    return [list(product(*window_spans)) for window_spans in product(*spans)]


def plain_block(block: Block, tokens: Tensor, window: list[int], shift: list[int], wraps: bool) -> Tensor:
    """The block with a loop over windows, cell by cell."""
    lengths = list(tokens.shape[1:5])
    full = [-(-length // size) * size for length, size in zip(lengths, window, strict=True)] if wraps else lengths
    normed = tokens.new_zeros(len(tokens), *full, tokens.shape[-1])
    normed[:, : lengths[0], : lengths[1], : lengths[2], : lengths[3]] = block.norm1(tokens)
    out = torch.zeros_like(normed)
    for cells in plain_windows(full, window, shift, wraps):
        scanned = block.mamba(torch.stack([normed[:, x, y, z, t] for x, y, z, t in cells], dim=1))
        for number, (x, y, z, t) in enumerate(cells):
            out[:, x, y, z, t] = scanned[:, number]
    tokens = tokens + out[:, : lengths[0], : lengths[1], : lengths[2], : lengths[3]]
    return tokens + block.mlp(block.norm2(tokens))


@pytest.mark.parametrize("wraps", [False, True])
@pytest.mark.parametrize(
    ("window", "grid", "shifted", "fitted", "shift"),
    [
        ((2, 2, 2, 4), (4, 4, 6, 8), False, [2, 2, 2, 4], [0, 0, 0, 0]),
        ((2, 2, 2, 4), (4, 4, 6, 8), True, [2, 2, 2, 4], [1, 1, 1, 2]),
        ((2, 2, 2, 4), (5, 4, 3, 6), True, [2, 2, 2, 4], [1, 1, 1, 2]),  # windows that do not tile
        ((2, 2, 2, 4), (1, 2, 3, 3), True, [1, 2, 2, 3], [0, 0, 1, 0]),  # an axis of one window is not shifted
        ((3, 2, 2, 5), (6, 2, 3, 10), True, [3, 2, 2, 5], [1, 0, 1, 2]),  # odd windows: half is rounded down
    ],
)
def test_block_equals_a_loop_over_windows(
    window: tuple[int, ...], grid: tuple[int, ...], shifted: bool, fitted: list[int], shift: list[int], wraps: bool
) -> None:
    block, tokens = Block(6, window, shifted, wraps), torch.randn(2, *grid, 6)
    with torch.no_grad():
        torch.testing.assert_close(block(tokens), plain_block(block, tokens, fitted, shift, wraps), atol=1e-5, rtol=0)


def reached(block: Block, frame: int) -> list[int]:
    """Frames of the output that a change of one frame of the input changes."""
    tokens = torch.randn(1, 4, 4, 4, 8, 6)
    changed = tokens.clone()
    changed[:, :, :, :, frame] += torch.randn(1, 4, 4, 4, 6)
    with torch.no_grad():
        moved = (block(tokens) - block(changed)).abs().amax((0, 1, 2, 3, 5))
    return moved.nonzero().flatten().tolist()


def test_only_upstream_mixes_the_last_frames_with_the_first() -> None:
    """Shifted windows of 4 over 8 frames: 2-5 whole, 0-1 and 6-7 at the ends, which upstream makes one window."""
    window = (2, 2, 2, 4)
    assert reached(Block(6, window, shifted=True, wraps=False), frame=7) == [6, 7]
    assert reached(Block(6, window, shifted=True, wraps=False), frame=3) == [2, 3, 4, 5]
    assert reached(Block(6, window, shifted=True, wraps=True), frame=7) == [0, 1, 6, 7]
    assert reached(Block(6, window, shifted=False, wraps=False), frame=3) == [0, 1, 2, 3]


def test_a_frame_reaches_no_further_than_two_blocks_of_windows() -> None:
    """Frame 5 of 12 in windows of 2: with frame 4 in the first block, and in the second with frames 3 and 6."""
    encoder = NeuroStorm(**{**TINY, "context_frames": 12, "depths": (2,)}, full_last_stage=False)  # type: ignore[arg-type]
    clip = torch.randn(1, 1, 8, 8, 12, 12)
    changed = clip.clone()
    changed[..., 5] += 1
    with torch.no_grad():
        moved = (encoder(clip) - encoder(changed)).abs().amax((0, 1, 2, 3, 4))
    assert moved.nonzero().flatten().tolist() == [3, 4, 5, 6]


@pytest.mark.parametrize("variant", ["corrected", "upstream"])
def test_published_count_and_names(variant: Variant) -> None:
    """7,712,892 with decoder and mask tokens; in the public code encoder and decoder are one module."""
    with torch.device("meta"):
        learner = describe("neurostorm").learner(create("neurostorm", variant=variant))
    shapes = {name.removeprefix("encoder."): tuple(value.shape) for name, value in learner.state_dict().items()}
    assert sum(prod(shape) for shape in shapes.values()) == 7_712_892
    assert shapes["patch_embed.fc.weight"] == (36, 216)
    assert shapes["pos_embeds.2.time_embed"] == (1, 144, 1, 1, 1, 20)
    assert shapes["layers.2.blocks.5.mamba.A_log"] == (288, 16)
    assert shapes["layers.2.downsample.reduction.weight"] == (288, 1152)
    assert shapes["first_patch_expanding.expand.weight"] == (1152, 288)
    assert shapes["layers_up.0.blocks.5.mlp.linear1.weight"] == (576, 144)
    assert shapes["layers_up.0.upsample.norm.weight"] == (72,)
    assert shapes["mask_token"] == (256, 36)
    assert shapes["decoder_pred.weight"] == (216, 36)


def test_every_second_block_is_shifted_on_the_way_down_and_up_but_not_in_the_last_stage() -> None:
    learner = tiny(depths=(2, 3, 2))
    down = [[block.shifted for block in stage.blocks] for stage in learner.encoder.layers]
    up = [[block.shifted for block in stage.blocks] for stage in learner.layers_up]
    assert down == [[False, True], [False, True, False], [False, False]]
    assert up == [[False, True, False], [False, True]]


def test_shapes_can_be_had_without_computing() -> None:
    with torch.device("meta"):
        encoder = create("neurostorm")
        assert encoder(torch.empty(1, 1, 96, 96, 96, 18)).shape == (1, 288, 2, 2, 2, 18)


def some_hidden(learner: NeuroStormMae, clip: Tensor) -> Tensor:
    tokens = learner.patchify(clip).shape[:-1]
    return (torch.rand(tokens).flatten(1).argsort(1) < 100).view(tokens)


@pytest.mark.parametrize("variant", ["corrected", "upstream"])
def test_hidden_voxels_are_not_seen_and_gradients_reach_all(variant: Variant) -> None:
    learner, clip = tiny(variant), torch.randn(2, 1, 8, 8, 12, 6)
    hidden = some_hidden(learner, clip)
    predicted_MP, features = learner.predict(clip, hidden)
    assert predicted_MP.shape == (200, 8)
    assert features.shape == (2, 16, 2, 2, 3, 6)
    noise = learner.patchify(torch.randn_like(clip)) * hidden[..., None]
    with torch.no_grad():
        patches = learner.encoder.patch_embed.fc(learner.patchify(clip) + noise)  # what a clip changed there gives
        learner.encoder.embed = lambda _: patches.movedim(-1, 1)  # type: ignore[method-assign]
        torch.testing.assert_close(learner.predict(clip, hidden)[0], predicted_MP, atol=0, rtol=0)
    predicted_MP.square().mean().backward()
    assert [name for name, value in learner.named_parameters() if value.grad is None or not value.grad.any()] == []


def test_rows_come_in_the_order_of_the_hidden_tokens() -> None:
    """A head that reads nothing but the position that the decoder's last norm has written there."""
    learner, clip = tiny(), torch.randn(2, 1, 8, 8, 12, 6)
    hidden = some_hidden(learner, clip)
    grid = hidden.shape
    number = torch.arange(hidden.numel(), dtype=torch.float32).view(grid)
    learner.layers_up[-1] = nn.Module()
    learner.layers_up[-1].forward = lambda _: number[..., None].expand(*grid, 8)  # type: ignore[method-assign]
    learner.norm_up = nn.Identity()  # type: ignore[assignment]
    learner.decoder_pred = nn.Identity()  # type: ignore[assignment]
    rows_MC, _ = learner.predict(clip, hidden)
    assert rows_MC[:, 0].tolist() == number[hidden].tolist()


def test_a_hidden_token_gets_the_mask_token_of_its_place_in_the_window() -> None:
    learner = tiny()
    nn.init.normal_(learner.mask_token)
    tokens_Cxyzt = learner._mask_tokens((4, 4, 6, 6))
    for x, y, z, t in [(0, 0, 0, 0), (3, 2, 5, 4), (1, 1, 1, 1), (2, 3, 4, 5)]:
        row = 8 * (x % 2) + 4 * (y % 2) + 2 * (z % 2) + t % 2
        assert torch.equal(tokens_Cxyzt[:, x, y, z, t], learner.mask_token[row])


def test_expanding_puts_the_first_eighth_of_channels_at_the_corner() -> None:
    layer, tokens = Expanding(8, (4, 4, 3)), torch.randn(1, 2, 2, 2, 3, 8)
    with torch.no_grad():
        finer, expanded = layer(tokens), layer.expand(tokens)
    assert finer.shape == (1, 4, 4, 3, 3, 4)
    for x, y, z in [(0, 0, 0), (3, 0, 2), (2, 1, 1)]:
        eighth = 4 * (x % 2) + 2 * (y % 2) + z % 2
        part = expanded[:, x // 2, y // 2, z // 2, :, 4 * eighth : 4 * eighth + 4]
        torch.testing.assert_close(finer[:, x, y, z], layer.norm(part))


def plain_redundancy(tokens_NC: Tensor, place_N4: Tensor, across: int, along: int) -> list[float]:
    """Probability of each token of one window, from the equations, token by token."""
    weights = torch.softmax(tokens_NC @ tokens_NC.T / tokens_NC.shape[1] ** 0.5, dim=-1).tolist()
    places, found = place_N4.tolist(), []
    for i, here in enumerate(places):
        space = [
            j
            for j, there in enumerate(places)
            if j != i and here[3] == there[3] and max(abs(here[a] - there[a]) for a in range(3)) <= across // 2
        ]
        time = [
            j
            for j, there in enumerate(places)
            if j != i and here[:3] == there[:3] and abs(here[3] - there[3]) <= along // 2
        ]
        score = 0.0
        for j in range(len(places)):
            spatial = max(weights[i][k] for k in time) * weights[i][j] / sum(weights[i][k] for k in space)
            temporal = max(weights[i][k] for k in space) * weights[i][j] / sum(weights[i][k] for k in time)
            score += min(1.0, 0.5 * (spatial + temporal))
        found.append(min(1.0, score / (len(space) + len(time))))
    return found


def test_redundancy_dropout_has_the_published_probability(monkeypatch: pytest.MonkeyPatch) -> None:
    place_N4 = torch.tensor(list(product(range(2), range(3), range(2), range(4))))
    tokens_MNC = torch.randn(4, 48, 6) / 2  # two clips of two windows
    monkeypatch.setattr(torch, "bernoulli", lambda probability: probability)
    kept = drop_redundant(tokens_MNC, place_N4.expand(2, 48, 4), across=3, along=2) / tokens_MNC
    for window in range(4):
        expected = torch.tensor(plain_redundancy(tokens_MNC[window], place_N4, across=3, along=2))
        torch.testing.assert_close(1 - kept[window, :, 0], expected, atol=1e-5, rtol=1e-4)


def test_redundancy_dropout_acts_in_training_alone() -> None:
    encoder = tiny(redundancy_dropout=True, neighbourhood=(3, 3)).encoder
    clip = torch.randn(1, 1, 8, 8, 12, 6)
    with torch.no_grad():
        assert not torch.equal(encoder(clip), encoder(clip))
        encoder.eval()
        assert torch.equal(encoder(clip), encoder(clip))


def test_bfloat16_is_close_to_float32() -> None:
    encoder, clip = tiny().encoder, torch.randn(1, 1, 8, 8, 12, 6)
    with torch.no_grad():
        exact = encoder(clip)
        with torch.autocast("cpu", torch.bfloat16):
            rounded = encoder(clip)
    assert (rounded - exact).norm() < 0.03 * exact.norm()
