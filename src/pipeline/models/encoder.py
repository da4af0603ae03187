"""What every encoder of the registry is: a clip in, features with time last out.

Legend: B clip; X Y Z T voxels and frames; x y z t places and token times; C channels.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from torch import Tensor, nn

from pipeline.models.parts.layers import PatchEmbedding, as_patch, stage_grids, stage_widths


class Encoder(nn.Module, ABC):
    """Anything that turns clips into features `(B, C, ..., t)`, or `(B, C)` where the input has no time."""

    frames_per_token: int = 1  # frames of a clip that one time of its tokens stands for

    @property
    @abstractmethod
    def channels(self) -> int:
        """Channels of the features."""

    @property
    @abstractmethod
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one clip, without the batch."""


class ConnectomeEncoder(Encoder):
    """A connectome in, one vector out: `(B, R, R)` to `(B, C)`.

    Parameters
    ----------
    parcels, channels : R and C.
    """

    def __init__(self, parcels: int, channels: int) -> None:
        super().__init__()
        self.parcels, self._channels = parcels, channels

    @property
    def channels(self) -> int:
        """Channels of the features."""
        return self._channels

    @property
    def input_shape(self) -> tuple[int, ...]:
        """`(R, R)`."""
        return self.parcels, self.parcels


class VoxelEncoder(Encoder):
    """Patch embedding and shapes; an architecture adds `encode`, without which it cannot be made.

    Parameters
    ----------
    width, depths, heads : channels after patch embedding; blocks and attention heads of each stage.
    grid : places (patches) along x, y, z.
    patch : voxels along x, y, z, and frames.
    context_frames : frames of a clip in pretraining.
    embedding_norm : whether a norm follows the patch embedding.
    """

    overlapping = False  # whether a token depends on voxels of other patches before any token sees another

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
        self.patch, self.context_frames = as_patch(patch), context_frames
        self.frames_per_token = self.patch[3]
        if context_frames % self.patch[3]:
            raise ValueError(f"clips of {context_frames} frames, which patches of {self.patch[3]} do not tile")
        self.widths, self.grids = stage_widths(width, depths, heads), stage_grids(grid, len(depths))
        self.patch_embed = PatchEmbedding(self.patch, width, embedding_norm)

    @property
    def channels(self) -> int:
        """Channels of the features."""
        return self.widths[-1]

    @property
    def input_shape(self) -> tuple[int, ...]:
        """`(1, X, Y, Z, T)`, with the frames of a clip in pretraining."""
        x, y, z = (places * edge for places, edge in zip(self.grids[0], self.patch[:3], strict=True))
        return 1, x, y, z, self.context_frames

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
