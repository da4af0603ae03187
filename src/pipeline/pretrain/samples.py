"""Samples by number: a clip, and the draw from which its mask or noise comes, each a function of the number alone.

Legend: B clip; T frames; V columns of a shard; P values of a patch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pipeline.models.learners.reconstruction import Reconstructor
from pipeline.models.parts.voxels import Raster
from pipeline.pretrain.masks import sample_draw
from pipeline.pretrain.objectives.batch import Batch

Clip = Callable[[int], np.ndarray]  # number of a clip -> its frames, (T, V)


@dataclass(frozen=True, eq=False)
class Samples:
    """Where clips come from.

    A clip that was read gives `masks_per_clip` samples, one after another, each with a draw of its own.
    """

    clip_TV: Clip
    raster: Raster
    seed: int  # of the draws
    inside: Tensor | None = None  # see Batch
    pair_TV: Clip | None = None  # a second clip of the same run, for objectives that compare clips
    whose: Callable[[int], int] | None = None  # number of a clip -> number of its person
    masks_per_clip: int = 1

    def batch(self, positions: Sequence[int], progress: float = 0.0) -> Batch:
        """The samples at some positions."""
        draws = [sample_draw(self.seed, position) for position in positions]
        clips = [position // self.masks_per_clip for position in positions]
        pair = None if self.pair_TV is None else self._lay(self.pair_TV, clips)
        person = None if self.whose is None else torch.tensor([self.whose(clip) for clip in clips])
        return Batch(self._lay(self.clip_TV, clips), draws, progress, self.inside, pair, person=person)

    def _lay(self, clip_TV: Clip, clips: Sequence[int]) -> Tensor:
        """Each clip is read and moved to the device once, however many samples are made of it."""
        once = list(dict.fromkeys(clips))
        laid = self.raster.lay(torch.from_numpy(np.stack([clip_TV(clip) for clip in once])))
        if len(once) == len(clips):
            return laid
        return laid[torch.tensor([once.index(clip) for clip in clips], device=laid.device)]


def real_values(learner: Reconstructor, raster: Raster) -> Tensor:
    """Which values of a token are in the brain, `(*places, 1, P)`; the same at all times."""
    frames = learner.encoder.frames_per_token
    everywhere_1TV = torch.ones(1, frames, len(raster.index_V), device=raster.index_V.device)
    return learner.patchify(raster.lay(everywhere_1TV))[0] > 0
