"""Floating-point operations of a model: products of matrices, as is the custom, counted layer by layer as it runs.

On the meta device nothing is computed, so any size can be counted. torch's own counter, which this equals, needs the
whole of torch's compiler and 1.5 s to start.
"""

from __future__ import annotations

from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from pipeline.models.layers import PatchEmbedding
from pipeline.models.reconstruction import MaskedReconstruction
from pipeline.models.windows import WindowAttention, fill_up, fit_window


class Flops(NamedTuple):
    """Operations for one clip."""

    forward: int  # encode and decode all tokens
    step: int  # forward and backward of a training step, where only hidden tokens are decoded to voxels


def count_flops(model: MaskedReconstruction, shape: tuple[int, int, int], frames: int, hidden: int) -> Flops:
    """Count what a clip costs.

    Parameters
    ----------
    model : it may lie on the meta device.
    shape, frames : voxels along x, y, z, and frames of a clip.
    hidden : tokens of a clip that are hidden in training.
    """
    device = model.mask_token.device
    clip = torch.zeros(1, 1, *shape, frames, device=device)
    tokens = torch.zeros(1, *model.encoder.grids[0], frames // model.encoder.patch[3], dtype=torch.bool, device=device)
    counts: dict[nn.Module, int] = {}
    hooks = [
        module.register_forward_hook(lambda module, inputs, _: counts.update({module: _flops(module, *inputs)}))
        for module in model.modules()
        if isinstance(module, nn.Linear | WindowAttention)
    ]
    with torch.no_grad():
        model(clip, tokens)
    for hook in hooks:
        hook.remove()
    forward = sum(counts.values())
    spared = counts[model.decoder.head] * (tokens.numel() - hidden) // tokens.numel()
    embedding = sum(counts[module.fc] for module in model.modules() if isinstance(module, PatchEmbedding))
    # Backward takes two products for each of forward's, but nothing asks for the gradient of the voxels.
    return Flops(forward, 3 * (forward - spared) - embedding)


def _flops(module: Any, tokens: Tensor) -> int:
    if isinstance(module, nn.Linear):
        return 2 * tokens.numel() * module.out_features
    x, y, z, t = tokens.shape[1:5]
    window, _ = fit_window((x, y, z, t), module.window, module.shifted)
    return 4 * len(tokens) * prod(fill_up((x, y, z, t), window)) * prod(window) * tokens.shape[-1]
