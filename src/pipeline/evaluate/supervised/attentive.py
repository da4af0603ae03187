"""Attentive pooling: a second read-out of frozen features, which may look at some tokens and leave others.

One learnt query is compared with every token, and the tokens' mean under the softmax of that goes through a linear map.
Keys and values need no maps of their own: with one query and one head they fold into the query and the linear map, and
a person costs 4 L D operations instead of 4 L D^2. The query starts at 0, which is the mean over tokens that the linear
probe reads.

Source: Chen et al. (2024), Context autoencoder for self-supervised representation learning, on attentive probing;
Bardes et al. (2024), V-JEPA.

Legend: M people; R runs; L tokens of a person; D channels; T frames; V columns; K clips; x y z t places and times.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.bold.normalise import zscore
from pipeline.config import Supervised as Settings
from pipeline.errors import InputError
from pipeline.evaluate.reading import Reader, Reading
from pipeline.evaluate.supervised.fit import CPU, Kind, network_reader
from pipeline.evaluate.supervised.inputs import Arrays, Scan
from pipeline.models.encoder import Encoder
from pipeline.models.learners.supervised import Supervised
from pipeline.models.parts.voxels import Raster


class AttentivePooling(Encoder):
    """Tokens `(B, L, D)` to their mean `(B, D)` under one query; tokens of NaN are not there.

    Parameters
    ----------
    mean_D, scale_D : of the training people's tokens, which are standardised by them.
    """

    mean_D: Tensor
    scale_D: Tensor

    def __init__(self, mean_D: Tensor, scale_D: Tensor) -> None:
        super().__init__()
        self.register_buffer("mean_D", mean_D)
        self.register_buffer("scale_D", scale_D)
        self.query_D = nn.Parameter(torch.zeros(len(mean_D)))

    @property
    def channels(self) -> int:
        """D."""
        return len(self.mean_D)

    @property
    def input_shape(self) -> tuple[int, ...]:
        """`(L, D)`, of one token."""
        return 1, self.channels

    def forward(self, tokens_BLD: Tensor) -> Tensor:
        """Pooled tokens."""
        there_BL = tokens_BLD.isfinite().all(-1)
        tokens_BLD = ((tokens_BLD - self.mean_D) / self.scale_D).where(there_BL[..., None], 0.0)
        scores_BL = tokens_BLD @ self.query_D / self.channels**0.5
        share_BL = scores_BL.masked_fill(~there_BL, -torch.inf).softmax(-1)
        return torch.einsum("bl,bld->bd", share_BL, tokens_BLD)


def attentive_reader(
    tokens_MLD: np.ndarray, settings: Settings, kind: Kind, key: str, device: torch.device = CPU
) -> Reader:
    """Attentive pooling of frozen tokens, trained like every other network.

    Parameters
    ----------
    tokens_MLD : of each person, as `stack_tokens` gives them; a token with NaN is not there. Memory: this array.

    A person without any token leaves the system without a score for anybody.
    """

    def read(target_M: np.ndarray, part_M: np.ndarray) -> Reading:
        if not all(np.isfinite(tokens_LD).all(1).any() for tokens_LD in tokens_MLD):
            nothing_M = np.full(len(part_M), np.nan)
            return Reading(nothing_M, nothing_M.copy(), "features are not finite")
        reader = network_reader(build, Arrays(tokens_MLD, device), settings, kind, key, device)
        return reader(target_M, part_M)

    def build(train_M: np.ndarray) -> Supervised:
        return Supervised(AttentivePooling(*map(torch.from_numpy, spread(tokens_MLD, train_M))))

    return read


def spread(tokens_MLD: np.ndarray, train_M: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(D,) mean and SD over the tokens of the training people, float32; SD 1 where a channel is constant.

    Sums are taken person by person about the first person's mean, so that no copy is made and little is rounded.
    """
    shift_D, count = np.zeros(tokens_MLD.shape[2]), 0
    sums_2D = np.zeros((2, tokens_MLD.shape[2]))
    for person in np.flatnonzero(train_M):
        there_LD = tokens_MLD[person][np.isfinite(tokens_MLD[person]).all(1)].astype(float)
        shift_D = there_LD.mean(0) if count == 0 else shift_D
        sums_2D += ((there_LD - shift_D).sum(0), ((there_LD - shift_D) ** 2).sum(0))
        count += len(there_LD)
    mean_D, power_D = sums_2D / count
    scale_D = np.sqrt(np.maximum(power_D - mean_D**2, 0))
    constant_D = scale_D <= 1e-6 * np.maximum(1e-30, abs(shift_D + mean_D))
    return (shift_D + mean_D).astype(np.float32), np.where(constant_D, 1, scale_D).astype(np.float32)


@torch.inference_mode()
def encode_tokens(
    encoder: nn.Module,
    scan: Scan,
    raster: Raster,
    context: int,
    frames: int | None = None,
    places: int = 64,
    times: int = 8,
    batch: int = 8,
) -> np.ndarray:
    """(L, D) float32 tokens of a run: means over time inside a clip, over neighbouring places, and over clips in a row.

    Parameters
    ----------
    encoder : clips, as `raster` lays them, to features (B, D, ..., t) or (B, D).
    context : frames a clip; clips follow each other without overlap from the start, a rest is dropped.
    frames : the scan ends after this many frames; they alone are z-scored and encoded.
    places : at most so many; the longest axis is halved, by means over neighbours, until they are.
    times : at most so many stretches of clips; clips of a stretch are averaged.
    batch : clips encoded at once; memory holds one run, one batch and (K, places, D) numbers.

    Raises
    ------
    InputError : the run is shorter than one clip.
    """
    encoder.eval()
    bold_TV = scan.read() if frames is None else zscore(scan.read(0, frames))[0]
    if len(bold_TV) < context:
        hint = "Raise shards.min_frames to at least pretrain.context_frames."
        raise InputError(scan.folder, f"{len(bold_TV)} frames", f"at least one clip of {context}", hint)
    clips = len(bold_TV) // context
    clips_KTV = torch.from_numpy(bold_TV[: clips * context]).view(clips, context, -1)
    pooled = [pool_places(encoder(raster.lay(part)), places).float().cpu() for part in torch.split(clips_KTV, batch)]
    tokens_KPD = torch.cat(pooled).numpy()
    stretches = np.array_split(tokens_KPD, min(times, clips))
    return np.concatenate([stretch.mean(0) for stretch in stretches])


def pool_places(features: Tensor, places: int) -> Tensor:
    """`(B, P, D)` of features `(B, D, ..., t)` or `(B, D)`: means over time, and over neighbours to P <= `places`."""
    features = features.mean(-1) if features.ndim > 2 else features
    while features[0, 0].numel() > places:
        axis = max(range(2, features.ndim), key=lambda each: features.shape[each])
        features = halved(features, axis)
    return features.flatten(2).mT if features.ndim > 2 else features[:, None]


def halved(features: Tensor, axis: int) -> Tensor:
    """Means of pairs of neighbours along an axis; of an odd number the last stays alone."""
    first = features.index_select(axis, torch.arange(0, features.shape[axis], 2, device=features.device))
    second = features.index_select(axis, torch.arange(1, features.shape[axis], 2, device=features.device))
    paired = second.shape[axis]
    mean = (first.narrow(axis, 0, paired) + second) / 2
    return torch.cat([mean, first.narrow(axis, paired, first.shape[axis] - paired)], axis)


def stack_tokens(runs: Sequence[np.ndarray], person_R: np.ndarray) -> np.ndarray:
    """(M, L, D) tokens of people, those of their runs one after another; NaN where somebody has fewer than others.

    Memory: people x most tokens of a person x channels x 4 B, which is 1 GB for 1,000 people, 512 tokens and 512
    channels.
    """
    tokens = [
        np.concatenate([runs[run] for run in np.flatnonzero(person_R == person).tolist()])
        for person in np.unique(person_R)
    ]
    stacked_MLD = np.full((len(tokens), max(map(len, tokens)), tokens[0].shape[1]), np.nan, dtype=np.float32)
    for row, tokens_LD in enumerate(tokens):
        stacked_MLD[row, : len(tokens_LD)] = tokens_LD
    return stacked_MLD
