"""In-mask voxels <-> volumes.

Legend: B clip; T frames; V voxels inside the mask; X Y Z voxels of the box.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor


def scatter_voxels(bold_BTV: Tensor, voxel_index_V: Tensor, shape: Sequence[int]) -> Tensor:
    """Lay packed voxels into a box `(B, 1, X, Y, Z, T)` whose other voxels are 0.

    Parameters
    ----------
    bold_BTV : packed signal.
    voxel_index_V : index of each packed voxel in the box, flattened with z fastest.
    shape : voxels along x, y, z.
    """
    clips, frames = bold_BTV.shape[:2]
    boxes = bold_BTV.new_zeros(clips, shape[0] * shape[1] * shape[2], frames)
    boxes[:, voxel_index_V] = bold_BTV.transpose(1, 2)
    return boxes.view(clips, 1, *shape, frames)


def gather_voxels(clip_B1XYZT: Tensor, voxel_index_V: Tensor) -> Tensor:
    """Take the voxels of `voxel_index_V` out of a box, `(B, T, V)`; the inverse of `scatter_voxels`."""
    return clip_B1XYZT.flatten(1, 4)[:, voxel_index_V].transpose(1, 2)
