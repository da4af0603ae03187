"""Samples by number: a clip and its mask, each a function of the number alone.

Legend: B clip; T frames; V voxels in the mask; X Y Z voxels of the box; x y z t places and token times; P voxels of a
patch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from pipeline.models.layers import Patch
from pipeline.models.reconstruction import MaskedReconstruction
from pipeline.models.voxels import scatter_voxels
from pipeline.pretrain.masks import Kind, hidden_tokens
from pipeline.pretrain.objectives import Reconstruction, brain_patches, reconstruct


@dataclass(frozen=True, eq=False)
class Box:
    """The grid of voxels that a model sees."""

    shape: tuple[int, int, int]
    voxel_index_V: Tensor  # of each packed voxel in the flattened box
    brain_xyzP: Tensor  # the mask, as patches

    @classmethod
    def of(cls, mask_XYZ: np.ndarray, voxel_index_V: np.ndarray, patch: Patch, device: torch.device) -> Box:
        """The box of a template, cut by a model's patches."""
        x, y, z = mask_XYZ.shape
        brain_xyzP = brain_patches(torch.from_numpy(mask_XYZ), patch)
        return cls((x, y, z), torch.from_numpy(voxel_index_V).to(device), brain_xyzP.to(device))

    @cached_property
    def brain_xyz(self) -> Tensor:
        """Places that hold any voxel of the brain."""
        return self.brain_xyzP.any(-1).cpu()


@dataclass(frozen=True, eq=False)
class Samples:
    """Where clips come from and how they are masked."""

    clip_TV: Callable[[int], np.ndarray]
    box: Box
    seed: int  # of the masks
    ratio: float
    kind: Kind

    def reconstruct(self, model: MaskedReconstruction, positions: Sequence[int]) -> Reconstruction:
        """What a model predicts for the hidden tokens of the samples at `positions`."""
        device = self.box.voxel_index_V.device
        bold_BTV = torch.from_numpy(np.stack([self.clip_TV(position) for position in positions])).to(device)
        masks = [self.hidden(position, bold_BTV.shape[1] // model.encoder.patch[3]) for position in positions]
        clip_B1XYZT = scatter_voxels(bold_BTV, self.box.voxel_index_V, self.box.shape)
        return reconstruct(model, clip_B1XYZT, torch.stack(masks).to(device), self.box.brain_xyzP)

    def hidden(self, position: int, times: int) -> Tensor:
        """The mask of a sample, `(x, y, z, t)`."""
        return hidden_tokens(self.seed, position, self.box.brain_xyz, times, self.ratio, self.kind)
