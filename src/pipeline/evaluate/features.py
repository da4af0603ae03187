"""Features of runs under a frozen encoder: every clip is encoded once, and means of clips stand for runs.

Axes: K clips of a run, T frames of a clip, V in-mask voxels, D channels, R runs. The input is the shard's signal,
z-scored per voxel over the run, as in pretraining, or over the shorter scan that is probed.
"""

from __future__ import annotations

import math
import sys
import zipfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.artefact import atomic_file
from pipeline.bold.normalise import zscore
from pipeline.bold.reader import Shard
from pipeline.bold.resample import SAME_TR, resample_in_time, resampled_frames
from pipeline.errors import InputError
from pipeline.evaluate.reading import RunFeatures
from pipeline.models.parts.voxels import Raster


def encode_runs(
    encoder: nn.Module,
    shards: Iterable[Shard],
    raster: Raster,
    context: int,
    batch: int = 8,
    frames: int | None = None,
    shuffle: np.random.Generator | None = None,
    tr_s: float | None = None,
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
    tr_s : the encoder's own repetition time: runs of another are resampled to it (`bold.resample`), then z-scored
        again; None: as they are.

    Raises
    ------
    InputError : a run is shorter than one clip.
    """
    encoder.eval()
    runs = []
    for shard in shards:
        scan = at_tr(shard, tr_s)
        bold_TV = scan.read() if frames is None else zscore(scan.read(0, frames))[0]
        if len(bold_TV) < context:
            hint = "Raise shards.min_frames to at least pretrain.context_frames."
            raise InputError(shard.folder, f"{len(bold_TV)} frames", f"at least one clip of {context}", hint)
        if shuffle is not None:
            bold_TV = bold_TV[shuffle.permutation(len(bold_TV))]
        clips = len(bold_TV) // context
        clips_KTV = torch.from_numpy(bold_TV[: clips * context]).view(clips, context, -1)
        runs.append(np.concatenate([_encode(encoder, part, raster) for part in torch.split(clips_KTV, batch)]))
    return runs


@dataclass(frozen=True)
class Resampled:
    """A shard as it reads at another repetition time; each reading resamples the whole run."""

    shard: Shard
    tr_s: float

    @property
    def folder(self) -> Path:
        """Folder of the shard, which errors name."""
        return self.shard.folder

    @property
    def frames(self) -> int:
        """Frames at the new TR."""
        return resampled_frames(self.shard.frames, self.shard.tr_s, self.tr_s)

    def read(self, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Frames `start` to `stop`, z-scored per column over the resampled run, (T, V) float32."""
        return np.asarray(zscore(resample_in_time(self.shard.read(), self.shard.tr_s, self.tr_s))[0][start:stop])


def at_tr(shard: Shard, tr_s: float | None) -> Shard | Resampled:
    """The shard itself where it has this repetition time or none is asked for."""
    same = tr_s is None or math.isclose(shard.tr_s, tr_s, rel_tol=SAME_TR)
    return shard if same else Resampled(shard, float(tr_s or 0))


def cached(path: Path | None, key: str, encode: Callable[[], list[np.ndarray]]) -> list[np.ndarray]:
    """Features of runs as `encode` gives them, kept in `path` under a key that stands for all that decides them.

    What was kept under another key, or is damaged, is computed anew and replaced.
    """
    if path is not None and path.is_file():
        try:
            with np.load(path, allow_pickle=False) as stored:
                if str(stored["key"]) == key:
                    return np.split(stored["clips_KD"].astype(float), np.cumsum(stored["lengths_R"])[:-1])
        except (OSError, ValueError, KeyError, zipfile.BadZipFile):
            print(f"{path}: damaged; its features are computed again", file=sys.stderr)
    clips = encode()
    if path is not None:
        lengths_R, clips_KD = [len(clips_KD) for clips_KD in clips], np.concatenate(clips).astype(np.float32)
        with atomic_file(path) as scratch, scratch.open("wb") as stream:
            np.savez(stream, key=np.array(key), lengths_R=np.array(lengths_R), clips_KD=clips_KD)
    return [clips_KD.astype(np.float32).astype(float) for clips_KD in clips]


@torch.inference_mode()
def _encode(encoder: nn.Module, clips_BTV: Tensor, raster: Raster) -> np.ndarray:
    features: Tensor = encoder(raster.lay(clips_BTV))
    return np.asarray(features.flatten(2).mean(-1).float().cpu(), dtype=float)


def pool(clips: Sequence[np.ndarray], context: int, short_frames: int) -> RunFeatures:
    """Means over all clips of each run, and the clips inside its first `short_frames` (at least one)."""
    short = min([max(1, short_frames // context), *map(len, clips)])
    full_RD = np.array([clips_KD.mean(0) for clips_KD in clips])
    return RunFeatures(full_RD, np.array([clips_KD[:short] for clips_KD in clips]))
