"""A torch encoder as two functions of packed clips.

Axes: B clips, C frames of a clip, V voxels, N places, x y z their grid, t token times, D channels.
"""

from __future__ import annotations

import numpy as np
import torch

from pipeline.bold.template import Template
from pipeline.config import Study
from pipeline.grid import Cell
from pipeline.models.encoder import VoxelEncoder
from pipeline.models.learners.reconstruction import Reconstructor
from pipeline.models.parts.layers import unpatchify
from pipeline.models.parts.voxels import gather_voxels, scatter_voxels
from pipeline.spectral.reconstruct import Model, Tiling


def as_functions(study: Study, cell: Cell, model: Reconstructor, template: Template) -> Model:
    """Reconstruction and features under frozen weights, on the device where they lie."""
    mask = study.architectures[cell.architecture].mask or study.pretrain.mask
    assert isinstance(model.encoder, VoxelEncoder)
    device, patch = next(model.parameters()).device, model.encoder.patch
    index_V = torch.from_numpy(template.voxel_index_V).to(device)
    grid = tuple(size // edge for size, edge in zip(template.shape, patch[:3], strict=True))
    place_V = np.ravel_multi_index(tuple((template.coordinates_V3 // patch[:3]).T), grid)

    def volumes(clips_BCV: np.ndarray) -> torch.Tensor:
        return scatter_voxels(torch.from_numpy(clips_BCV).to(device), index_V, template.shape)

    @torch.inference_mode()
    def predict(clips_BCV: np.ndarray, hidden_BNt: np.ndarray) -> np.ndarray:
        hidden_Bxyzt = torch.from_numpy(hidden_BNt).to(device).view(len(hidden_BNt), *grid, -1)
        return np.asarray(gather_voxels(rebuilt(model, volumes(clips_BCV), hidden_Bxyzt), index_V).float().cpu())

    @torch.inference_mode()
    def embed(clips_BCV: np.ndarray) -> np.ndarray:
        features_BDt = model.encoder(volumes(clips_BCV)).mean(dim=(2, 3, 4))
        return np.asarray(features_BDt.transpose(1, 2).float().cpu())

    tiling = Tiling(
        place_V=place_V,
        places=int(np.prod(grid)),
        context_frames=study.context_frames(cell.architecture),
        patch_frames=patch[3],
        mask_ratio=study.architectures[cell.architecture].mask_ratio,
        mask="tube" if mask == "tube" else "random",
        offsets=study.spectral.offsets,
    )
    return Model(predict, embed, tiling)


def rebuilt(model: Reconstructor, clip_B1XYZT: torch.Tensor, hidden_Bxyzt: torch.Tensor) -> torch.Tensor:
    """A clip of what a voxel encoder's learner predicts for its hidden tokens, `(B, 1, X, Y, Z, T)`; 0 elsewhere."""
    patches_MP, _ = model.predict(clip_B1XYZT, hidden_Bxyzt)
    patches_NP = patches_MP.new_zeros(hidden_Bxyzt.numel(), patches_MP.shape[1])
    patches_NP[hidden_Bxyzt.flatten()] = patches_MP
    assert isinstance(model.encoder, VoxelEncoder)
    return unpatchify(torch.unflatten(patches_NP, 0, hidden_Bxyzt.shape), model.encoder.patch)
