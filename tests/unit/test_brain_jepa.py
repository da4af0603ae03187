"""Brain-JEPA: counts, gradients by diffusion against closed forms, positions, dropped tokens, predictor and teacher."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from pipeline.errors import InputError
from pipeline.models import create, describe
from pipeline.models.brain_jepa import BrainJepa, counted_places, functional_gradients
from pipeline.models.learners.joint_embedding import JointEmbedding

SMALL = {"width": 16, "depth": 2, "heads": 2, "predictor_width": 8, "predictor_depth": 1, "gradients": 4}
CLIP = {"patch": 4, "parcels": 5, "frames": 12}


def small(**over: object) -> JointEmbedding:
    torch.manual_seed(0)
    return describe("brain_jepa").learner(create("brain_jepa", "small", **{**SMALL, **CLIP, **over}))


def masks(clips: int = 2) -> tuple[Tensor, Tensor]:
    """Six tokens seen, four predicted, of 5 x 3."""
    order = torch.rand(clips, 15).argsort(1).view(clips, 5, 3)
    return order < 6, order >= 11


def parameters(model: nn.Module) -> int:
    return sum(value.numel() for value in model.parameters() if value.requires_grad)


@pytest.mark.parametrize(
    ("size", "trained", "published"), [("small", 21.31, 22.17), ("base", 85.08, 86.81), ("large", 302.34, 304.65)]
)
@pytest.mark.parametrize("variant", ["corrected", "upstream"])
def test_sizes_have_the_published_parameters(size, trained, published, variant):
    """The public code stores the sines of 450 x 10 tokens, half of the channels, as a parameter without gradient."""
    with torch.device("meta"):
        encoder = create("brain_jepa", size, variant=variant)
        assert encoder(torch.empty(1, 450, 160)).shape == (1, encoder.width, 450, 10)
        learner = describe("brain_jepa").learner(encoder)
    count, width, depth = parameters(encoder), encoder.width, len(encoder.blocks)
    # depth blocks, one norm, patches of 16 frames, 30 gradients to half of the channels
    assert count == depth * (12 * width**2 + 13 * width) + 2 * width + 17 * width + 31 * width // 2
    assert round(count / 1e6, 2) == trained
    assert round((count + 4500 * width // 2) / 1e6, 2) == published
    assert f"{trained} M" in describe("brain_jepa").published[size]
    # predictor: 6 blocks of 384, maps from and to the encoder, a norm, a mask token, 30 gradients to 192 channels
    predictor = 6 * (12 * 384**2 + 13 * 384) + (width + 1) * 384 + 385 * width + 3 * 384 + 31 * 192
    assert parameters(learner) == count + predictor


def test_gradients_of_a_ring_are_its_sines_and_cosines():
    angle = 2 * torch.pi * torch.arange(40) / 40
    first, second = functional_gradients((angle[:, None] - angle).cos(), 2).double().T
    assert torch.allclose(first.square() + second.square(), (first.square() + second.square()).mean(), rtol=1e-3)
    turn = torch.atan2(second, first).numpy()
    step = np.diff(np.unwrap(np.append(turn, turn[0])))
    assert np.allclose(np.abs(step), 2 * np.pi / 40, atol=1e-3), "neighbours are one step of the ring apart"


def test_gradients_are_the_slow_modes_of_a_random_walk():
    """Written out with numpy's eigenvalues of the walk itself, which is not symmetric."""
    rng = np.random.default_rng(0)
    connectome = np.corrcoef(rng.normal(size=(3, 80)).T @ rng.normal(size=(3, 300)) + rng.normal(size=(80, 300)))[
        :20, :20
    ]
    found = functional_gradients(torch.from_numpy(connectome), 5, kept=0.3).double().numpy()
    strong = np.zeros_like(connectome)
    for row in range(20):
        others = [column for column in range(20) if column != row]
        for column in sorted(others, key=lambda column: -connectome[row, column])[:6]:
            strong[row, column] = max(0, connectome[row, column])
    affinity = np.array([[a @ b / np.linalg.norm(a) / np.linalg.norm(b) for a in strong] for b in strong])
    density = affinity.sum(1)
    affinity = affinity / np.sqrt(np.outer(density, density))
    walk = affinity / affinity.sum(1, keepdims=True)
    shares = np.sort(np.linalg.eigvals(walk).real)[::-1][1:6]
    for column, share in zip(found.T, shares, strict=True):
        assert np.allclose(walk @ column, share * column, atol=1e-5 * np.abs(column).max())
        weight = affinity.sum(1) / affinity.sum()  # of a place, under the walk's stationary distribution
        assert np.isclose((weight * column**2).sum(), (share / (1 - share)) ** 2, rtol=1e-4)
        assert column[np.abs(column).argmax()] > 0


def test_parcels_without_connections_lie_at_the_origin():
    angle = 2 * torch.pi * torch.arange(40) / 40
    ring = (angle[:, None] - angle).cos()
    without = torch.zeros(42, 42)
    kept = [number for number in range(42) if number not in (3, 41)]
    without[torch.tensor(kept)[:, None], torch.tensor(kept)] = ring
    found, expected = functional_gradients(without, 2), functional_gradients(ring, 2)
    assert torch.equal(found[[3, 41]], torch.zeros(2, 2))
    assert torch.allclose(found[kept].norm(dim=1), expected.norm(dim=1), rtol=1e-3)
    with pytest.raises(ValueError, match="4 gradients of 4 connected parcels"):
        functional_gradients(torch.ones(4, 4), 4)


def test_groups_that_few_connections_leave_apart_are_joined_by_more():
    """Two groups of six, weakly joined: a tenth of the connections are all within, the first gradient is the group."""
    group = torch.arange(12) // 6
    noise = 0.01 * torch.rand(12, 12, generator=torch.Generator().manual_seed(0))
    connectome = torch.where(group[:, None] == group, 0.8, 0.1) + noise + noise.T
    (first,) = functional_gradients(connectome, 1).T
    assert first.isfinite().all()
    assert first.abs().max() < 100
    assert torch.equal(first > 0, (group == group[first.argmax()]))


def test_positions_hold_time_in_one_half_and_gradients_in_the_other():
    table = torch.randn(5, 4)
    encoder = small(table=table).encoder
    with torch.no_grad():
        found = encoder.positions(table, (5, 3)).view(5, 3, 16)
    centred = table - table.mean(0)
    expected = centred / centred.square().mean().sqrt() @ encoder.positions.place.weight.T
    for time in range(3):
        sines = [f(time / 10_000 ** (i / 4)) for f in (np.sin, np.cos) for i in range(4)]
        assert np.allclose(found[:, time, :8].numpy(), sines, atol=1e-6)
        assert torch.allclose(found[:, time, 8:], expected, atol=1e-5)


def test_published_positions_move_all_parcels_with_one():
    """The extremes of all parcels stretch every one of them; corrected, a table may be scaled but not bent."""
    table = torch.randn(5, 4)
    other = table.clone()
    other[0] += 20
    encoder = small(table=table, variant="upstream").encoder
    with torch.no_grad():
        one, two = (encoder.positions(each, (5, 3)).view(5, 3, 16)[1:, 0, 8:] for each in (table, other))
        mapped = encoder.positions.place(table)
        expected = 2 * (mapped - mapped.min()) / (mapped.max() - mapped.min()) - 1
    assert torch.allclose(one, expected[1:], atol=1e-6)
    assert (one - two).abs().max() > 0.1
    with pytest.raises(ValueError, match="2 token times, where the published positions take 3"):
        encoder(torch.randn(1, 5, 8))


def test_any_number_of_parcels_and_patches():
    for parcels, frames in ((1, 4), (7, 40)):
        encoder = small(parcels=parcels).encoder
        assert encoder(torch.randn(2, parcels, frames)).shape == (2, 16, parcels, frames // 4)
    with pytest.raises(InputError, match="31 frames, which patches of 4"):
        create("brain_jepa", "small", **{**SMALL, **CLIP, "frames": 31})
    with pytest.raises(InputError, match=r"\(5, 3\), where parcels need \(5, 4\)"):
        create("brain_jepa", "small", **SMALL, **CLIP, table=torch.zeros(5, 3))


def test_an_odd_number_of_gradients_places_parcels():
    """30 connected parcels have 29 gradients; the stand-in, sines and cosines by pairs, could not have as many."""
    table = torch.randn(30, 29)
    encoder = small(table=table, parcels=30, gradients=29).encoder
    assert torch.equal(encoder.table, table)
    assert encoder(torch.randn(2, 30, 12)).shape == (2, 16, 30, 3)
    with pytest.raises(ValueError, match=r"\(30, 28\), where parcels need \(30, 29\)"):
        BrainJepa(16, 1, 2, parcels=30, gradients=29, table=table[:, :28])


def test_stand_in_places_tell_parcels_apart():
    places = counted_places(450, 30)
    assert places.shape == (450, 30)
    assert (torch.cdist(places, places) + 9 * torch.eye(450)).min() > 0.5


def test_corrected_tokens_hold_signal_and_position_alike():
    """Published, the signal has a hundredth of the variance of positions at 768 channels."""
    shares = {}
    for variant in ("corrected", "upstream"):
        torch.manual_seed(0)
        encoder = create("brain_jepa", "base", depth=1, parcels=50, variant=variant)
        with torch.no_grad():
            signal = encoder.patch_embed(encoder.values(torch.randn(2, 50, 160))).var()
            places = encoder.positions(encoder.table, (50, 10))
        shares[variant] = float(signal / places.var())
        if variant == "corrected":
            assert places[:, 384:].square().mean() == pytest.approx(0.5, rel=0.2)
    assert 1 < shares["corrected"] < 4
    assert shares["upstream"] < 0.05


def test_corrected_start_is_smaller_with_depth():
    torch.manual_seed(0)
    blocks = create("brain_jepa", "small", depth=8, parcels=5).blocks
    for number, block in enumerate(blocks, start=1):
        assert block.attn.proj.weight.std().item() == pytest.approx(0.02 * (768 / 384 / 2 / number) ** 0.5, rel=0.02)


def test_predictor_equals_a_plain_writing():
    learner = small().double().eval()
    clip, (visible, targets) = torch.randn(2, 5, 12).double(), masks()
    with torch.no_grad():
        found = learner.predict(clip, visible, targets)
        predictor = learner.predictor
        positions = predictor.positions(learner.encoder.table, (5, 3))
        for b in range(2):
            seen, wanted = visible[b].flatten(), targets[b].flatten()
            tokens = plain(learner.encoder.blocks, learner.encoder.embed(clip[b : b + 1])[0], seen)
            features = learner.encoder.norm(tokens)
            full = torch.where(seen[:, None], predictor.embed(features), predictor.mask_token) + positions
            rows = plain(predictor.blocks, full, seen | wanted)
            expected = predictor.proj(predictor.norm(rows))[wanted]
            assert (found[b] - expected).abs().max() < 1e-10


def plain(blocks: nn.ModuleList, tokens: Tensor, seen: Tensor) -> Tensor:
    """Attention over every token, with minus infinity for the keys that are not there."""
    for block in blocks:
        q, k, v = block.attn.qkv(block.norm1(tokens)).chunk(3, dim=-1)
        width = q.shape[1] // block.attn.heads
        parts = []
        for part in (slice(i, i + width) for i in range(0, q.shape[1], width)):
            scores = (q[:, part] @ k[:, part].T / width**0.5).masked_fill(~seen, -torch.inf)
            parts.append(scores.softmax(1) @ v[:, part])
        tokens = tokens + block.attn.proj(torch.cat(parts, dim=1))
        tokens = tokens + block.mlp(block.norm2(tokens))
    return tokens


def test_predictions_see_what_is_visible_and_nothing_else():
    learner = small().eval()
    clip, (visible, targets) = torch.randn(2, 5, 12), masks()
    frames = visible.repeat_interleave(4, dim=2)
    with torch.no_grad():
        first = learner.predict(clip, visible, targets)
        second = learner.predict(torch.where(frames, clip, torch.randn_like(clip)), visible, targets)
        third = learner.predict(torch.where(frames, torch.randn_like(clip), clip), visible, targets)
    assert torch.equal(first, second)
    assert (first - third).abs().max() > 1e-4


def test_teacher_gives_scaled_features_of_the_whole_clip_without_gradient():
    learner = small()
    nn.init.normal_(learner.teacher.norm.weight)  # fresh norms leave features scaled already
    clip, (_, targets) = torch.randn(2, 5, 12), masks()
    taught = learner.taught(clip, targets)
    with torch.no_grad():
        features = learner.teacher(clip).movedim(1, -1)[targets].view(2, 4, 16)
    centred = features - features.mean(-1, keepdim=True)
    expected = centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
    assert torch.allclose(taught, expected, atol=1e-5)
    assert not taught.requires_grad
    assert not any(value.requires_grad for value in learner.teacher.parameters())
    assert not learner.train().teacher.training


def test_a_gradient_reaches_every_parameter_but_the_teachers():
    learner = small()
    clip, (visible, targets) = torch.randn(2, 5, 12), masks()
    functional.smooth_l1_loss(learner.predict(clip, visible, targets), learner.taught(clip, targets)).backward()
    without = [name for name, value in learner.named_parameters() if value.grad is None or not value.grad.any()]
    assert without == [name for name, _ in learner.named_parameters() if name.startswith("teacher.")]


def test_teacher_is_the_moving_average_of_the_encoder():
    learner = small().double()
    weight, teacher = learner.encoder.norm.weight, learner.teacher.norm.weight
    assert torch.equal(weight, teacher)
    steps = torch.rand(7, 16).double()
    for value in steps:
        weight.data.copy_(value)
        learner.follow(0.9)
    powers = 0.9 ** torch.arange(6, -1, -1).double()
    expected = 0.9**7 + 0.1 * (powers[:, None] * steps).sum(0)  # it started from ones
    assert torch.allclose(teacher, expected, atol=1e-12)
    learner.follow(1.0)
    assert torch.allclose(teacher, expected, atol=1e-12)


def test_bf16_is_close_to_fp32():
    learner = small().eval()
    clip, (visible, targets) = torch.randn(2, 5, 12), masks()
    with torch.no_grad():
        exact, taught = learner.predict(clip, visible, targets), learner.taught(clip, targets)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            rough, about = learner.predict(clip, visible, targets), learner.taught(clip, targets)
    assert (rough - exact).norm() < 0.05 * exact.norm()
    assert (about - taught).norm() < 0.05 * taught.norm()


def test_saved_weights_come_back_with_their_places():
    one, other = small(table=torch.randn(5, 4)), small()
    other.load_state_dict(one.state_dict())
    clip = torch.randn(2, 5, 12)
    assert torch.equal(one.teacher(clip), other.teacher(clip))
