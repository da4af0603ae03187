"""Layers and shapes that several encoders share, on tokens with channels last.

Legend: B clip; X Y Z T voxels and frames; x y z t places and token times; C channels; P voxels of a patch.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

Patch = tuple[int, int, int, int]
Grid = tuple[int, int, int]


def as_patch(patch: Sequence[int]) -> Patch:
    """Voxels along x, y, z, and frames; a patch of three numbers is one frame long."""
    x, y, z, *frames = patch
    return x, y, z, frames[0] if frames else 1


def stage_grids(grid: Sequence[int], stages: int) -> list[Grid]:
    """Places along x, y, z at the entry of each stage: halved by each merging, odd ones rounded up."""
    grids = [(grid[0], grid[1], grid[2])]
    for _ in range(stages - 1):
        x, y, z = grids[-1]
        grids.append((-(-x // 2), -(-y // 2), -(-z // 2)))
    return grids


def stage_widths(width: int, depths: Sequence[int], heads: Sequence[int]) -> list[int]:
    """Channels of each stage, doubled by each merging; ValueError where heads do not divide them."""
    if len(depths) != len(heads):
        raise ValueError(f"depths {tuple(depths)} and heads {tuple(heads)} name different numbers of stages")
    widths = [width * 2**stage for stage in range(len(depths))]
    for channels, count in zip(widths, heads, strict=True):
        if channels % count:
            raise ValueError(f"{count} heads do not divide {channels} channels")
    return widths


def patchify(clip_B1XYZT: Tensor, patch: Patch) -> Tensor:
    """Cut a clip into patches `(B, x, y, z, t, P)`; inside a patch x is slowest, then y, z and the frame."""
    if clip_B1XYZT.shape[1] != 1:
        raise ValueError(f"a clip of {clip_B1XYZT.shape[1]} channels, where encoders take one")
    parts = clip_B1XYZT[:, 0]
    for axis, size in enumerate(patch):
        parts = torch.unflatten(parts, 1 + 2 * axis, (-1, size))
    return parts.permute(0, 1, 3, 5, 7, 2, 4, 6, 8).flatten(5)


def unpatchify(patches_BxyztP: Tensor, patch: Patch) -> Tensor:
    """Put patches together as a clip `(B, 1, X, Y, Z, T)`; the inverse of `patchify`."""
    parts = torch.unflatten(patches_BxyztP, -1, patch).permute(0, 1, 5, 2, 6, 3, 7, 4, 8)
    for axis in range(1, 5):
        parts = parts.flatten(axis, axis + 1)
    return parts.unsqueeze(1)


class PatchEmbedding(nn.Module):
    """One linear map a patch: `(B, 1, X, Y, Z, T)` to `(B, x, y, z, t, C)`."""

    def __init__(self, patch: Patch, width: int, norm: bool) -> None:
        super().__init__()
        self.patch = patch
        self.fc = nn.Linear(patch[0] * patch[1] * patch[2] * patch[3], width)
        self.norm = nn.LayerNorm(width) if norm else nn.Identity()

    def forward(self, clip_B1XYZT: Tensor) -> Tensor:
        """Embed every patch."""
        return self.norm(self.fc(patchify(clip_B1XYZT, self.patch)))


class Mlp(nn.Module):
    """Two linear maps, `ratio` times as wide between them, with an exact GELU."""

    def __init__(self, channels: int, ratio: int = 4) -> None:
        super().__init__()
        self.linear1 = nn.Linear(channels, ratio * channels)
        self.linear2 = nn.Linear(ratio * channels, channels)

    def forward(self, tokens: Tensor) -> Tensor:
        """Map each token on its own."""
        return self.linear2(functional.gelu(self.linear1(tokens)))


class Merging(nn.Module):
    """2 x 2 x 2 neighbouring places become one of twice the channels; time is untouched."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(8 * channels)
        self.reduction = nn.Linear(8 * channels, 2 * channels, bias=False)

    def forward(self, tokens_BxyztC: Tensor) -> Tensor:
        """The neighbours are concatenated with x slowest and z fastest; an odd axis is filled up with zeros."""
        x, y, z = tokens_BxyztC.shape[1:4]
        if x % 2 or y % 2 or z % 2:
            tokens_BxyztC = functional.pad(tokens_BxyztC, (0, 0, 0, 0, 0, z % 2, 0, y % 2, 0, x % 2))
        parts = tokens_BxyztC
        for axis in (3, 2, 1):
            parts = torch.unflatten(parts, axis, (-1, 2))
        return self.reduction(self.norm(parts.permute(0, 1, 3, 5, 7, 2, 4, 6, 8).flatten(5)))


class Stage(nn.Module):
    """Blocks of one resolution, then merging unless it is the last."""

    def __init__(self, blocks: Iterable[nn.Module], channels: int, last: bool) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.downsample = nn.Identity() if last else Merging(channels)

    def forward(self, tokens_BxyztC: Tensor) -> Tensor:
        """Tokens of the next stage."""
        for block in self.blocks:
            tokens_BxyztC = block(tokens_BxyztC)
        return self.downsample(tokens_BxyztC)


class DropPath(nn.Module):
    """Stochastic depth: in training a residual branch is left out for a clip with probability `rate`.

    Source: Huang et al. (2016), Deep networks with stochastic depth.
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, branch: Tensor) -> Tensor:
        """The branch, 0 for the clips that skip it, and scaled so that its mean stays."""
        if not self.rate or not self.training:
            return branch
        shape = (len(branch), *[1] * (branch.ndim - 1))
        kept = torch.empty(shape, dtype=branch.dtype, device=branch.device).bernoulli_(1 - self.rate)
        return branch * kept / (1 - self.rate)


class LayerScale(nn.Module):
    """A learned weight a channel on a residual branch."""

    def __init__(self, channels: int, start: float) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((channels,), float(start)))

    def forward(self, tokens: Tensor) -> Tensor:
        """Scale each channel."""
        return tokens * self.gamma
