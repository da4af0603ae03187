"""A whole run as a model fills it in: every token is hidden once a pass, and only what was hidden is taken.

A clip of 20 frames holds nothing below its own length, so clips are laid over the run, offset by offset, and averaged;
the signal stays in the run's z units, never normalised per clip. The same path takes constant input and random weights.
Axes: B clips, C frames of a clip, T frames of a run, V voxels, K masks, N places, t token times, D channels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice, pairwise
from typing import Literal, TypeVar

import numpy as np

# (clips_BCV, hidden_BNt) -> clips as the model fills them in, (B, C, V)
Predictor = Callable[[np.ndarray, np.ndarray], np.ndarray]
Embedder = Callable[[np.ndarray], np.ndarray]  # clips_BCV -> features over time, (B, t, D)

CLIPS_AT_ONCE = 16

Item = TypeVar("Item")


@dataclass(frozen=True)
class Tiling:
    """How a model cuts a clip into tokens, and how a run is covered with clips."""

    place_V: np.ndarray  # place 0..N-1 of each voxel
    places: int  # N, those without brain included
    context_frames: int
    patch_frames: int = 1
    mask_ratio: float = 0.5
    mask: Literal["random", "tube"] = "random"
    offsets: int = 2

    @property
    def times(self) -> int:
        """Token times of a clip."""
        return self.context_frames // self.patch_frames


@dataclass(frozen=True)
class Model:
    """An encoder as two functions of clips, and how it cuts a run."""

    predict: Predictor
    embed: Embedder
    tiling: Tiling


def reconstruct_run(bold_TV: np.ndarray, predict: Predictor, tiling: Tiling, seed: int = 0) -> np.ndarray:
    """What a model fills in for every voxel and frame of a run while it could not see them.

    Parameters
    ----------
    bold_TV : (T, V) run, z-scored per voxel over the run.
    predict : the model; hidden tokens are True.
    seed : of the masks, which depend on it and on the clip's position alone.

    Returns
    -------
    (T, V) reconstruction in the run's z units, the mean over all clips that cover a frame.
    """
    total_TV = np.zeros(bold_TV.shape, np.float32)
    count_T = np.zeros(len(bold_TV), np.float32)
    frame_time_C = np.arange(tiling.context_frames) // tiling.patch_frames
    for jobs in _in_batches(_masked_clips(len(bold_TV), tiling, seed)):
        starts, hidden, taken = zip(*jobs, strict=True)
        clips_BCV = np.stack([bold_TV[start : start + tiling.context_frames] for start in starts])
        predicted_BCV = predict(clips_BCV, np.stack(hidden))
        for start, taken_Nt, predicted_CV in zip(starts, taken, predicted_BCV, strict=True):
            taken_CV = taken_Nt[:, frame_time_C].T[:, tiling.place_V]
            total_TV[start : start + tiling.context_frames] += np.where(taken_CV, predicted_CV, 0)
    for start in clip_starts(len(bold_TV), tiling):
        count_T[start : start + tiling.context_frames] += 1
    return total_TV / count_T[:, None]


def features_along_time(bold_TV: np.ndarray, embed: Embedder, tiling: Tiling) -> np.ndarray:
    """Features of the unmasked run at the token rate, (T / patch_frames, D), clips averaged as in `reconstruct_run`."""
    total_TD, count_T = np.zeros(0), np.zeros((len(bold_TV), 1))
    for starts in _in_batches(iter(clip_starts(len(bold_TV), tiling))):
        clips_BCV = np.stack([bold_TV[start : start + tiling.context_frames] for start in starts])
        features_BCD = np.repeat(embed(clips_BCV), tiling.patch_frames, axis=1)
        if not total_TD.size:
            total_TD = np.zeros((len(bold_TV), features_BCD.shape[2]))
        for start, features_CD in zip(starts, features_BCD, strict=True):
            total_TD[start : start + tiling.context_frames] += features_CD
            count_T[start : start + tiling.context_frames] += 1
    return (total_TD / count_T)[tiling.patch_frames // 2 :: tiling.patch_frames]


def clip_starts(frames: int, tiling: Tiling) -> list[int]:
    """First frames of the clips of all passes; in each pass clips abut, and one at either end closes what is left.

    Raises
    ------
    ValueError : the run is shorter than a clip.
    """
    context, last = tiling.context_frames, frames - tiling.context_frames
    if last < 0:
        raise ValueError(f"found a run of {frames} frames; expected at least {context}, one clip. Use longer runs.")
    shifts = [context * number // tiling.offsets for number in range(tiling.offsets)]
    return [start for shift in shifts for start in sorted({0, *range(shift, last + 1, context), last})]


def complementary_masks(tiling: Tiling, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Masks that between them take every token with brain in it exactly once.

    Returns
    -------
    hidden_KNt, taken_KNt : what each mask hides, and the part of it whose prediction is used. There are
    ceil(1 / mask_ratio) masks; each hides the share of the brain's tokens that training hid, and no other token.
    """
    brain = np.unique(tiling.place_V)
    units = len(brain) * (1 if tiling.mask == "tube" else tiling.times)
    masks, hidden = int(np.ceil(1 / tiling.mask_ratio - 1e-9)), round(tiling.mask_ratio * units)
    order, edges = rng.permutation(units), np.linspace(0, units, masks + 1).round().astype(int)
    taken_KU, hidden_KU = np.zeros((2, masks, units), bool)
    for mask, (start, stop) in enumerate(pairwise(edges)):
        taken_KU[mask, order[start:stop]] = True
        hidden_KU[mask, np.roll(order, -start)[: max(hidden, stop - start)]] = True

    def on_grid(chosen_KU: np.ndarray) -> np.ndarray:
        chosen_KNt = np.zeros((masks, tiling.places, tiling.times), bool)
        chosen_KNt[:, brain] = chosen_KU.reshape(masks, len(brain), -1)
        return chosen_KNt

    return on_grid(hidden_KU), on_grid(taken_KU)


def voxelwise_r2(truth_TV: np.ndarray, reconstruction_TV: np.ndarray) -> np.ndarray:
    """Share of a z-scored voxel's variance that is explained, against the zero predictor; NaN where it is constant."""
    error_V = np.square(truth_TV - reconstruction_TV, dtype=np.float64).sum(axis=0)
    total_V = np.square(truth_TV, dtype=np.float64).sum(axis=0)
    return 1 - np.divide(error_V, total_V, out=np.full(len(total_V), np.nan), where=total_V > 0)


def comb_frequencies(context_frames: int, tr_s: float, offsets: int = 1) -> np.ndarray:
    """Frequencies in Hz up to Nyquist at which seams between clips leave lines.

    Clips of C frames leave lines at multiples of 1 / (C TR); averaging n evenly staggered offsets cancels all of them
    but every n-th.
    """
    spacing_hz = offsets / (context_frames * tr_s)
    return spacing_hz * np.arange(1, int(0.5 / tr_s / spacing_hz + 1e-9) + 1)


def _masked_clips(frames: int, tiling: Tiling, seed: int) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    for number, start in enumerate(clip_starts(frames, tiling)):
        rng = np.random.default_rng([seed, number])
        for hidden_Nt, taken_Nt in zip(*complementary_masks(tiling, rng), strict=True):
            yield start, hidden_Nt, taken_Nt


def _in_batches(items: Iterator[Item]) -> Iterator[list[Item]]:
    while batch := list(islice(items, CLIPS_AT_ONCE)):
        yield batch
