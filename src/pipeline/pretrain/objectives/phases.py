"""TFF's phases: frames are rebuilt without the transformer, then with it; fine-tuning is `SupervisedObjective`.

Legend: B clip; X Y Z T voxels and frames; N frames of all clips; P voxels of a frame; S slices.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from pipeline.models.tff import FrameReconstruction, Phase
from pipeline.pretrain.objectives.batch import Batch

INTENSE = 0.9  # quantile of |z| among a frame's voxels of the brain above which a voxel is intense
SLICES: dict[Phase, float] = {"autoencoder": 0.25, "transformer": 0.1}  # share that the perceptual term looks at


@dataclass(frozen=True, eq=False)
class PhasesObjective:
    """Mean absolute error of voxels, the same of intense voxels, and the distance of slices to a network of images.

    Attributes
    ----------
    autoencoder_share : share of the steps without the transformer; the authors train 10 epochs so and then 5 with it.
    intensity, perceptual : weights of the second and third term beside the first.
    perception : images `(S, 3, X, Y)` -> maps of features, frozen: the authors take the second and third ReLU stage of
        VGG-16. Its weights are not part of this package; without it the term is left out.

    Source: Malkiel et al. (2022), MIDL, section 3.
    """

    learner: FrameReconstruction
    autoencoder_share: float = 2 / 3
    intensity: float = 1.0
    perceptual: float = 1.0
    perception: nn.Module | None = None

    def phase(self, progress: float) -> Phase:
        """Which phase a step belongs to; what is held out is always judged with the transformer."""
        return "autoencoder" if progress < self.autoencoder_share else "transformer"

    def loss(self, batch: Batch) -> Tensor:
        """Weighted sum of the terms over the voxels inside the brain."""
        phase = self.phase(batch.progress) if self.learner.training else "transformer"
        true_NP = self.learner.patchify(batch.clip).flatten(0, -2)
        found_NP = self.learner.patchify(self.learner(batch.clip, phase)).flatten(0, -2)
        inside_NP = inside_frames(batch.inside, true_NP)
        true_NP, found_NP = true_NP * inside_NP, found_NP * inside_NP
        error_NP = (found_NP - true_NP).abs()
        intense_NP = intense_voxels(batch.clip, inside_NP)
        loss = error_NP.sum() / inside_NP.sum().clamp(min=1)
        loss = loss + self.intensity * (error_NP * intense_NP).sum() / intense_NP.sum().clamp(min=1)
        if self.perception is not None:
            slice_S = self._draw_slices(batch, len(true_NP), phase).to(true_NP.device)
            slices = (self._slices(frames_NP).index_select(0, slice_S) for frames_NP in (found_NP, true_NP))
            loss = loss + self.perceptual * perceptual_distance(self.perception, *slices)
        return loss

    def after_step(self, progress: float) -> None:
        """The phase follows from the progress alone."""

    def _slices(self, frames_NP: Tensor) -> Tensor:
        """Axial slices of all frames, `(N * Z, X, Y)`."""
        return torch.unflatten(frames_NP, 1, self.learner.encoder.volume).movedim(3, 1).flatten(0, 1)

    def _draw_slices(self, batch: Batch, frames: int, phase: Phase) -> Tensor:
        """Which slices of the batch the perceptual term looks at, by the first sample's generator."""
        slices = frames * self.learner.encoder.volume[2]
        return torch.from_numpy(batch.draws[0].permutation(slices)[: max(1, int(SLICES[phase] * slices))])


def inside_frames(inside: Tensor | None, frames_NP: Tensor) -> Tensor:
    """Which voxels of each frame count, `(N, P)`; `inside`: `(..., P)` of one frame or each of a clip; None: all."""
    if inside is None:
        return torch.ones_like(frames_NP)
    rows = inside.reshape(-1, inside.shape[-1]).to(frames_NP.dtype)
    return rows.repeat(len(frames_NP) // len(rows), 1)


@torch.no_grad()
def intense_voxels(clip_BcXYZT: Tensor, inside_NP: Tensor) -> Tensor:
    """1 where |z| is above the `INTENSE` quantile of its frame, `(N, P)`.

    z is the second channel, where there is one; else each voxel's signal, z-scored over the clip.
    """
    if clip_BcXYZT.shape[1] > 1:
        z = clip_BcXYZT[:, 1]
    else:
        signal = clip_BcXYZT[:, 0].float()
        z = signal - signal.mean(-1, keepdim=True)
        z = z / signal.std(-1, correction=0, keepdim=True).clamp(min=1e-6)
    size_NP = z.movedim(-1, 1).flatten(2).flatten(0, 1).abs().float() * inside_NP
    # Frame by frame: torch.quantile takes at most 16 million numbers, 28 frames of the published volume.
    frames = [size_P[inside_P > 0].quantile(INTENSE) for size_P, inside_P in zip(size_NP, inside_NP, strict=True)]
    return (size_NP > torch.stack(frames)[:, None]).to(inside_NP.dtype)


def perceptual_distance(perception: nn.Module, found_SXY: Tensor, true_SXY: Tensor) -> Tensor:
    """Mean squared difference of the maps of features of slices, summed over maps."""
    pair = [perception(slices[:, None].expand(-1, 3, -1, -1)) for slices in (found_SXY, true_SXY)]
    found, true = ((maps,) if isinstance(maps, Tensor) else tuple(maps) for maps in pair)
    return sum((functional.mse_loss(a, b) for a, b in zip(found, true, strict=True)), found_SXY.new_zeros(()))
