"""Which tokens are hidden: a function of (seed, sample position), so that a resumed run hides the same ones.

Legend: x y z places; t token times.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from torch import Tensor

Kind = Literal["random", "tube"]
MASK_STREAM = 1  # keeps these draws apart from those of clips, which use the same seed and position


def hidden_tokens(
    seed: int, position: int, brain_xyz: Tensor, times: int, ratio: float, kind: Kind = "random"
) -> Tensor:
    """Choose the hidden tokens of one sample.

    Parameters
    ----------
    seed, position : of the cell; of the sample among all samples of the cell.
    brain_xyz : places that hold any voxel of the brain; no other is hidden.
    times : token times of a clip.
    ratio : share of the brain's tokens (random) or places (tube) that is hidden, rounded to a whole number of them.
    kind : random: any token; tube: a place at all times.

    Returns
    -------
    `(x, y, z, t)`, True where hidden.
    """
    rng = np.random.default_rng([seed, MASK_STREAM, position])
    eligible = brain_xyz[..., None].expand(*brain_xyz.shape, times if kind == "random" else 1)
    candidates = eligible.flatten().nonzero()[:, 0]
    chosen = rng.permutation(len(candidates))[: round(ratio * len(candidates))]
    hidden = torch.zeros(eligible.numel(), dtype=torch.bool)
    hidden[candidates[torch.from_numpy(chosen)]] = True
    return hidden.view(eligible.shape).expand(*brain_xyz.shape, times)
