"""Parcel series of known content, for the models that learn from them."""

from __future__ import annotations

import torch
from torch import Tensor


def planted(clips: int, seed: int, shuffled: bool) -> Tensor:
    """Six parcels share one oscillation of 24 frames, some inverted, at a phase of each clip's own; variance 1."""
    draw = torch.Generator().manual_seed(seed)
    phase_B = 2 * torch.pi * torch.rand(clips, generator=draw)
    latent_BT = (2 * torch.pi * torch.arange(24) / 24 + phase_B[:, None]).sin()
    clip_BRT = 2**0.5 * torch.tensor([1.0, -1, 1, -1, 1, 1])[:, None] * latent_BT[:, None]
    if shuffled:
        order = torch.rand(clips, 6 * 24, generator=draw).argsort(1)
        clip_BRT = clip_BRT.flatten(1).gather(1, order).view_as(clip_BRT)
    return clip_BRT
