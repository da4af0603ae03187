"""What every voxel encoder of the registry is: a clip in, features with time last out.

Legend: B clip; X Y Z T voxels and frames; x y z t places and token times; C channels.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from torch import Tensor, nn

from pipeline.models.layers import PatchEmbedding, as_patch, stage_grids, stage_widths


class VoxelEncoder(nn.Module, ABC):
    """Patch embedding and shapes; an architecture adds `encode`, without which it cannot be made.

    Parameters
    ----------
    width, depths, heads : channels after patch embedding; blocks and attention heads of each stage.
    grid : places (patches) along x, y, z.
    patch : voxels along x, y, z, and frames.
    context_frames : frames of a clip in pretraining.
    embedding_norm : whether a norm follows the patch embedding.
    """

    def __init__(
        self,
        width: int,
        depths: Sequence[int],
        heads: Sequence[int],
        grid: Sequence[int],
        patch: Sequence[int],
        context_frames: int,
        embedding_norm: bool,
    ) -> None:
        super().__init__()
        self.patch = as_patch(patch)
        if context_frames % self.patch[3]:
            raise ValueError(f"clips of {context_frames} frames, which patches of {self.patch[3]} do not tile")
        self.widths, self.grids = stage_widths(width, depths, heads), stage_grids(grid, len(depths))
        self.patch_embed = PatchEmbedding(self.patch, width, embedding_norm)

    @property
    def channels(self) -> int:
        """Channels of the features."""
        return self.widths[-1]

    def embed(self, clip_B1XYZT: Tensor) -> Tensor:
        """Tokens `(B, C, x, y, z, t)` before any of them sees another."""
        tokens: Tensor = self.patch_embed(clip_B1XYZT)
        return tokens.movedim(-1, 1)

    @abstractmethod
    def encode(self, tokens_BCxyzt: Tensor) -> Tensor:
        """Features `(B, C, x, y, z, t)` of tokens."""

    def forward(self, clip_B1XYZT: Tensor) -> Tensor:
        """Features `(B, C, x, y, z, t)` of a clip `(B, 1, X, Y, Z, T)`; the last axis is time."""
        return self.encode(self.embed(clip_B1XYZT))
