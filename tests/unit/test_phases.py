"""TFF's objective against loops over voxels, its phases, and training on a planted pattern."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pipeline.models.tff import DESCRIPTION, TFF, FrameReconstruction
from pipeline.pretrain.objectives.batch import Batch
from pipeline.pretrain.objectives.phases import PhasesObjective

VOLUME, FRAMES = (10, 9, 9), 4
SURE = {"dropout": 0.0, "spatial_dropout": 0.0, "block_dropout": 0.0}


def learner(variant: str = "corrected", dropout: float = 0.2, **overrides) -> FrameReconstruction:
    torch.manual_seed(0)
    sizes = {"width": 16, "layers": 1, "heads": 2, "hidden": 24, **overrides}
    return FrameReconstruction(TFF(VOLUME, FRAMES, **sizes, variant=variant), dropout)


def batch_of(clip: Tensor, progress: float = 0.0, inside: Tensor | None = None) -> Batch:
    return Batch(clip, [np.random.default_rng(n) for n in range(len(clip))], progress, inside)


def ball() -> Tensor:
    """A brain, (1, 1, 1, 1, P) as the learner's patches lay it out."""
    x, y, z = torch.meshgrid(*(torch.linspace(-1, 1, edge) for edge in VOLUME), indexing="ij")
    return (x**2 + y**2 + z**2 < 0.8).view(1, 1, 1, 1, -1)


def planted(seed: int, clips: int) -> Tensor:
    """Clips in which one half of the brain is up and the other down, or the other way round, by a draw each frame."""
    rng = np.random.default_rng(seed)
    map_X111 = torch.where(torch.arange(VOLUME[0]) < 5, 1.5, -1.5)[:, None, None, None]
    course_B111T = torch.from_numpy(rng.choice([-1.0, 1.0], (clips, 1, 1, 1, FRAMES))).float()
    noise_BXYZT = torch.from_numpy(rng.normal(0, 0.2, (clips, *VOLUME, FRAMES))).float()
    return (map_X111 * course_B111T + noise_BXYZT)[:, None] * ball().view(1, 1, *VOLUME, 1)


def plain_loss(found: Tensor, true: Tensor, size: Tensor, brain: Tensor) -> float:
    """Mean absolute error of the brain's voxels, and of those above the 0.9 quantile of each frame."""
    everywhere, intense = [], []
    for clip in range(len(true)):
        for t in range(FRAMES):
            error = (found[clip, 0, ..., t] - true[clip, 0, ..., t]).abs().flatten()[brain].numpy()
            sizes = size[clip, ..., t].flatten()[brain].numpy()
            everywhere.append(error)
            intense.append(error[sizes > np.quantile(sizes, 0.9)])
    return float(np.concatenate(everywhere).mean() + np.concatenate(intense).mean())


@pytest.mark.parametrize(
    ("variant", "progress", "phase"), [("corrected", 0.0, "autoencoder"), ("upstream", 0.9, "transformer")]
)
@torch.no_grad()
def test_the_loss_counts_voxels_of_the_brain_and_the_intense_ones_twice(variant, progress, phase):
    model = learner(variant, **SURE)
    model.encoder.transformer.eval()
    brain = ball().flatten()
    clip = torch.randn(2, 2 if variant == "upstream" else 1, *VOLUME, FRAMES)
    if variant == "upstream":
        size = clip[:, 1].abs()
    else:
        size = ((clip[:, 0] - clip[:, 0].mean(-1, keepdim=True)) / clip[:, 0].std(-1, correction=0, keepdim=True)).abs()
    expected = plain_loss(model(clip, phase), clip, size, brain)
    loss = PhasesObjective(model).loss(batch_of(clip, progress, ball()))
    assert float(loss) == pytest.approx(expected, rel=1e-5)
    assert float(PhasesObjective(model).loss(batch_of(clip, progress))) != pytest.approx(expected, rel=1e-3)


@torch.no_grad()
def test_the_perceptual_term_is_the_distance_of_a_networks_maps_of_some_slices():
    model, clip = learner().eval(), planted(0, 1)
    network = nn.Conv2d(3, 4, 3)
    plain, with_network = (
        PhasesObjective(model, perceptual=0.5, perception=perception).loss(batch_of(clip, 0.9, ball()))
        for perception in (None, network)
    )
    chosen = np.random.default_rng(0).permutation(FRAMES * VOLUME[2])[: FRAMES * VOLUME[2] // 10]
    found, expected = model(clip) * ball().view(*VOLUME, 1), 0.0
    for t, z in (divmod(int(number), VOLUME[2]) for number in chosen):
        maps = [network(voxels[0, 0, :, :, z, t].expand(1, 3, -1, -1)) for voxels in (found, clip)]
        expected += float((maps[0] - maps[1]).square().mean()) / len(chosen)
    assert float(with_network - plain) == pytest.approx(0.5 * expected, rel=1e-3)


def test_the_transformer_is_trained_in_the_second_phase_and_judged_always():
    model, clip = learner(), planted(0, 2)
    objective = PhasesObjective(model, autoencoder_share=0.6)
    assert [objective.phase(progress) for progress in (0.0, 0.59, 0.6, 1.0)] == ["autoencoder"] * 2 + [
        "transformer"
    ] * 2
    objective.loss(batch_of(clip, 0.5)).backward()
    untouched = {name for name, value in model.named_parameters() if value.grad is None}
    assert untouched == {f"encoder.transformer.{name}" for name, _ in model.encoder.transformer.named_parameters()}
    model.zero_grad()
    objective.loss(batch_of(clip, 0.7)).backward()
    assert all(value.grad is not None and value.grad.any() for value in model.parameters())
    model.eval()
    with torch.no_grad():
        assert torch.equal(objective.loss(batch_of(clip, 0.0)), objective.loss(batch_of(clip, 1.0)))


def test_upstream_leaves_without_gradient_what_is_listed():
    model = learner("upstream")
    clip = torch.randn(2, 2, *VOLUME, FRAMES)
    PhasesObjective(model).loss(batch_of(clip, 1.0)).backward()
    left = {name.removeprefix("encoder.") for name, value in model.named_parameters() if value.grad is None}
    assert left == {"transformer.word_embeddings", "transformer.pooler.weight", "transformer.pooler.bias"}
    assert all(name.startswith(tuple(DESCRIPTION.without_gradient)) for name in left)


def test_it_learns_planted_halves():
    """The loss halves, and a held-out clip is rebuilt from its own voxels better than from shuffled ones."""
    model = learner(**SURE, width=32)
    objective = PhasesObjective(model, autoencoder_share=0.5)
    optimiser = torch.optim.Adam(model.parameters(), lr=4e-3, betas=(0.9, 0.95))
    clip, losses, steps = planted(0, 32), [], 60
    for step in range(steps):
        optimiser.zero_grad()
        loss = objective.loss(batch_of(clip[step % 8 :: 8], step / steps, ball()))
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        losses.append(float(loss.detach()))
    model.eval()
    held_out, brain = planted(1, 8), ball().flatten()
    inside = brain.nonzero()[:, 0]
    voxels = held_out.flatten(2, 4)
    shuffled = voxels.index_copy(2, inside, voxels[:, :, inside[torch.randperm(len(inside))]]).view(held_out.shape)
    with torch.no_grad():
        own, other = ((model(each) - held_out).flatten(2, 4)[:, :, brain].abs().mean() for each in (held_out, shuffled))
    assert np.mean(losses[-4:]) < losses[0] / 2, (losses[0], losses[-4:])
    assert own < 0.5 * other, (own, other)
