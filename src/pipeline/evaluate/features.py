"""Features of runs under a frozen encoder: every clip is encoded once, and means of clips stand for runs.

Axes: K clips of a run, T frames of a clip, V in-mask voxels, D channels, R runs. The input is the shard's signal,
z-scored per voxel over the run, as in pretraining, or over the shorter scan that is probed.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.bold.normalise import zscore
from pipeline.bold.reader import Shard
from pipeline.errors import InputError
from pipeline.models.parts.voxels import Raster


class RunFeatures(NamedTuple):
    """What stands for each run: its mean, and the clips of its first frames one by one (for identity)."""

    full_RD: np.ndarray
    short_RKD: np.ndarray


def encode_runs(
    encoder: nn.Module,
    shards: Iterable[Shard],
    raster: Raster,
    context: int,
    batch: int = 8,
    frames: int | None = None,
    shuffle: np.random.Generator | None = None,
) -> list[np.ndarray]:
    """(K, D) features of each run's clips, means over tokens.

    Parameters
    ----------
    encoder : clips, as `raster` lays them, to features (B, D, ..., t).
    raster : where the columns of the shards lie in what the encoder sees; it decides the device.
    context : frames a clip; clips follow each other without overlap from the run's start, a rest is dropped.
    batch : clips encoded at once; memory holds one run and one batch.
    frames : the scan ends after this many frames: they alone are z-scored and encoded. (The first frames of a run
        that was z-scored as a whole keep its slow drift as their mean, which hides whose scan it is.)
    shuffle : the time-shuffled control: frames of each run in random order.

    Raises
    ------
    InputError : a run is shorter than one clip.
    """
    encoder.eval()
    runs = []
    for shard in shards:
        bold_TV = shard.read() if frames is None else zscore(shard.read(0, frames))[0]
        if len(bold_TV) < context:
            hint = "Raise shards.min_frames to at least pretrain.context_frames."
            raise InputError(shard.folder, f"{len(bold_TV)} frames", f"at least one clip of {context}", hint)
        if shuffle is not None:
            bold_TV = bold_TV[shuffle.permutation(len(bold_TV))]
        clips = len(bold_TV) // context
        clips_KTV = torch.from_numpy(bold_TV[: clips * context]).view(clips, context, -1)
        runs.append(np.concatenate([_encode(encoder, part, raster) for part in torch.split(clips_KTV, batch)]))
    return runs


@torch.inference_mode()
def _encode(encoder: nn.Module, clips_BTV: Tensor, raster: Raster) -> np.ndarray:
    features: Tensor = encoder(raster.lay(clips_BTV))
    return np.asarray(features.flatten(2).mean(-1).float().cpu(), dtype=float)


def pool(clips: Sequence[np.ndarray], context: int, short_frames: int) -> RunFeatures:
    """Means over all clips of each run, and the clips inside its first `short_frames` (at least one)."""
    short = min([max(1, short_frames // context), *map(len, clips)])
    full_RD = np.array([clips_KD.mean(0) for clips_KD in clips])
    return RunFeatures(full_RD, np.array([clips_KD[:short] for clips_KD in clips]))
