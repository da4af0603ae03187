"""What a cell minimises: the error of hidden, in-brain voxels.

Legend: B clip; X Y Z T voxels and frames; x y z t places and token times; S places, flattened; M hidden tokens;
P voxels of a patch; C channels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from pipeline.models.layers import Patch, patchify
from pipeline.models.reconstruction import MaskedReconstruction

Loss = Literal["mse", "l1"]


@dataclass(frozen=True)
class Reconstruction:
    """Hidden tokens, what was predicted for them and what they were; both are 0 outside the brain."""

    clip_M: Tensor  # number of the clip in the batch
    predicted_MP: Tensor
    true_MP: Tensor
    inside_MP: Tensor  # 1 where the voxel is in the brain
    features_BCxyzt: Tensor


def brain_patches(mask_XYZ: Tensor, patch: Patch) -> Tensor:
    """The brain mask as patches `(x, y, z, P)`, repeated for each frame of a patch."""
    frames_XYZT = mask_XYZ[..., None].expand(*mask_XYZ.shape, patch[3])
    return patchify(frames_XYZT[None, None], patch)[0, :, :, :, 0]


def reconstruct(
    model: MaskedReconstruction, clip_B1XYZT: Tensor, hidden_Bxyzt: Tensor, brain_xyzP: Tensor
) -> Reconstruction:
    """Predict the hidden tokens of a clip whose voxels outside the brain are 0."""
    token_M = hidden_Bxyzt.flatten().nonzero()[:, 0]
    brain_SP = brain_xyzP.flatten(0, 2).to(clip_B1XYZT.dtype)
    clip_place_M = token_M.div(hidden_Bxyzt.shape[-1], rounding_mode="floor")
    inside_MP = brain_SP.index_select(0, clip_place_M % len(brain_SP))
    features = model.features(clip_B1XYZT, hidden_Bxyzt)
    true_MP = patchify(clip_B1XYZT, model.encoder.patch).flatten(0, 4).index_select(0, token_M)
    clip_M = clip_place_M.div(len(brain_SP), rounding_mode="floor")
    return Reconstruction(clip_M, model.patches(features, token_M) * inside_MP, true_MP, inside_MP, features)


def masked_loss(found: Reconstruction, loss: Loss) -> Tensor:
    """Mean error over hidden voxels inside the brain."""
    error_MP = found.predicted_MP - found.true_MP
    total = error_MP.square().sum() if loss == "mse" else error_MP.abs().sum()
    return total / found.inside_MP.sum()
