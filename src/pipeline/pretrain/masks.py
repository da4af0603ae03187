"""Which tokens are hidden: a function of the draw of a sample, so that a resumed run hides the same ones."""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from torch import Tensor

Kind = Literal["random", "tube", "window"]
MASK_STREAM = 1  # keeps these draws apart from those of clips, which use the same seed and position
WINDOW = 2  # places along each axis that a window hides together


def sample_draw(seed: int, position: int) -> np.random.Generator:
    """The generator of one sample; `seed` is the cell's, `position` that among all samples of the cell."""
    return np.random.default_rng([seed, MASK_STREAM, position])


def hidden_tokens(draw: np.random.Generator, places: Tensor, times: int, ratio: float, kind: Kind = "random") -> Tensor:
    """Choose the hidden tokens of one sample.

    Parameters
    ----------
    places : bool, any axes; those that hold any voxel of the brain. No other is hidden.
    times : token times of a clip.
    ratio : share of the brain's tokens (of its places, for tubes) that is hidden, rounded to a whole number.
    kind : random: any token; tube: a place at all times; window: places next to each other together, anew each time.
        The last window may be hidden in part, so that the number is the same in every clip.

    Returns
    -------
    `(*places, times)`, True where hidden.
    """
    drawn = 1 if kind == "tube" else times
    eligible = places[..., None].expand(*places.shape, drawn)
    candidate_M = eligible.flatten().nonzero()[:, 0].numpy()
    window_M = _windows(tuple(eligible.shape), WINDOW if kind == "window" else 1)[candidate_M]
    _, window_M = np.unique(window_M, return_inverse=True)
    order_M = np.argsort(draw.permutation(window_M.max(initial=0) + 1)[window_M], kind="stable")
    hidden = torch.zeros(eligible.numel(), dtype=torch.bool)
    hidden[torch.from_numpy(candidate_M[order_M[: round(ratio * len(candidate_M))]])] = True
    return hidden.view(eligible.shape).expand(*places.shape, times)


def _windows(shape: tuple[int, ...], edge: int) -> np.ndarray:
    """Number of the window of each token: `edge` places along every axis but the last, which is time."""
    axes = np.indices(shape)
    axes[:-1] //= edge
    return np.ravel_multi_index(tuple(axes), shape).ravel()
