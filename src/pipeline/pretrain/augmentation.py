"""How clips of voxels are changed so that an encoder learns to look past it: turned, scaled, noisy, smoothed.

Every frame of a clip is changed alike, as in the public code of SwiFT, so that a change never looks like dynamics. A
whole batch is changed at once on its device; only the numbers that say how are drawn on the CPU.

Source: Kim et al. (2023), NeurIPS; the ranges are those of the public code.

Legend: B clip; X Y Z T voxels and frames.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True)
class Augmentation:
    """Ranges, drawn evenly for each axis: every clip is turned and scaled, some are made noisy, some smooth."""

    degrees: float = 10.0  # at most, either way, about each axis
    scale: float = 0.1  # at most, either way, as a share of the size
    noise_chance: float = 0.3
    noise: float = 0.1  # standard deviation at most, in the clip's unit
    smooth_chance: float = 0.1
    smooth_voxels: float = 0.5  # standard deviation of the kernel at most

    def __call__(self, clip_B1XYZT: Tensor, draws: Sequence[np.random.Generator]) -> Tensor:
        """Changed clips `(B, 1, X, Y, Z, T)`, each as its generator says; equal draws give equal clips."""
        shape = tuple(clip_B1XYZT.shape[2:5])
        degrees_B3 = np.stack([draw.uniform(-self.degrees, self.degrees, 3) for draw in draws])
        scale_B3 = np.stack([draw.uniform(1 - self.scale, 1 + self.scale, 3) for draw in draws])
        noise_BXYZ = np.stack([self._noise(draw, shape) for draw in draws])
        sigma_B3 = np.stack([self._sigma(draw) for draw in draws])
        clip = affine(clip_B1XYZT, torch.from_numpy(degrees_B3), torch.from_numpy(scale_B3))
        if noise_BXYZ.any():
            clip = clip + torch.from_numpy(noise_BXYZ).to(clip)[:, None, ..., None]
        smoothed = np.flatnonzero(sigma_B3.any(axis=1)).tolist()
        if smoothed:
            chosen = torch.tensor(smoothed, device=clip.device)
            clip = clip.index_copy(0, chosen, smooth(clip[chosen], torch.from_numpy(sigma_B3[smoothed])))
        return clip

    def _noise(self, draw: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
        if draw.random() >= self.noise_chance:
            return np.zeros(shape, np.float32)
        return np.float32(draw.uniform(0, self.noise)) * draw.standard_normal(shape, np.float32)

    def _sigma(self, draw: np.random.Generator) -> np.ndarray:
        return draw.uniform(0, self.smooth_voxels, 3) if draw.random() < self.smooth_chance else np.zeros(3)


def affine(clip_B1XYZT: Tensor, degrees_B3: Tensor, scale_B3: Tensor) -> Tensor:
    """Scale clips along their axes about the middle, then turn them about x, then y, then z; linear interpolation.

    Parameters
    ----------
    degrees_B3 : a turn about z takes x towards y, one about x takes y towards z, one about y takes z towards x.
    scale_B3 : above 1 the content grows. What comes from beyond an edge has the value at the edge.
    """
    volumes_BTXYZ = clip_B1XYZT[:, 0].movedim(-1, 1)
    shape_3 = torch.tensor(volumes_BTXYZ.shape[2:], dtype=torch.float64)
    # A voxel of the result looks back at where it came from, in units of half the length of each axis.
    back_B33 = torch.linalg.inv(rotations(degrees_B3.double()) * scale_B3.double()[:, None, :])
    back_B33 = back_B33 * shape_3 / shape_3[:, None]
    theta_B34 = functional.pad(back_B33.flip(1, 2), (0, 1)).to(volumes_BTXYZ)  # the sampler wants z, y, x
    grid_BXYZ3 = functional.affine_grid(theta_B34, list(volumes_BTXYZ.shape), align_corners=False)
    moved = functional.grid_sample(volumes_BTXYZ, grid_BXYZ3, padding_mode="border", align_corners=False)
    return moved.movedim(1, -1)[:, None]


def rotations(degrees_B3: Tensor) -> Tensor:
    """Matrices `(B, 3, 3)` that turn about x, then y, then z."""
    turn_B33 = torch.eye(3, dtype=degrees_B3.dtype).expand(len(degrees_B3), 3, 3)
    for axis in range(3):
        first, second = (axis + 1) % 3, (axis + 2) % 3
        angle_B = torch.deg2rad(degrees_B3[:, axis])
        one_B33 = torch.zeros_like(turn_B33)
        one_B33[:, axis, axis] = 1
        one_B33[:, first, first] = one_B33[:, second, second] = angle_B.cos()
        one_B33[:, second, first], one_B33[:, first, second] = angle_B.sin(), -angle_B.sin()
        turn_B33 = one_B33 @ turn_B33
    return turn_B33


def smooth(clip_B1XYZT: Tensor, sigma_B3: Tensor) -> Tensor:
    """Smooth clips along x, y and z by Gaussians of `sigma_B3` voxels; at an edge the rest of the kernel counts."""
    volumes_BXYZT = clip_B1XYZT[:, 0]
    for axis in range(3):
        place = torch.arange(volumes_BXYZT.shape[axis + 1], dtype=torch.float64)
        narrow_B = sigma_B3[:, axis].double().clamp(min=1e-3)  # so narrow a kernel is the identity
        kernel_Bij = torch.softmax(-((place[:, None] - place) ** 2) / (2 * narrow_B[:, None, None] ** 2), dim=-1)
        lines = volumes_BXYZT.movedim(axis + 1, 1).flatten(2)
        shape = volumes_BXYZT.movedim(axis + 1, 1).shape
        volumes_BXYZT = (kernel_Bij.to(lines) @ lines).view(shape).movedim(1, axis + 1)
    return volumes_BXYZT[:, None]
