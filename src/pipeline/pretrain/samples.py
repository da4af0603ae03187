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

Clip = Callable[[int], np.ndarray]  # position of a sample -> its frames, (T, V)


@dataclass(frozen=True, eq=False)
class Samples:
    """Where clips come from."""

    clip_TV: Clip
    raster: Raster
    seed: int  # of the draws
    inside: Tensor | None = None  # see Batch
    pair_TV: Clip | None = None  # a second clip of the same run, for objectives that compare clips
    whose: Callable[[int], int] | None = None  # number of the person at a position

    def batch(self, positions: Sequence[int], progress: float = 0.0) -> Batch:
        """The samples at some positions."""
        draws = [sample_draw(self.seed, position) for position in positions]
        pair = None if self.pair_TV is None else self._lay(self.pair_TV, positions)
        person = None if self.whose is None else torch.tensor([self.whose(position) for position in positions])
        return Batch(self._lay(self.clip_TV, positions), draws, progress, self.inside, pair, person=person)

    def _lay(self, clip_TV: Clip, positions: Sequence[int]) -> Tensor:
        return self.raster.lay(torch.from_numpy(np.stack([clip_TV(position) for position in positions])))


def real_values(learner: Reconstructor, raster: Raster) -> Tensor:
    """Which values of a token are in the brain, `(*places, 1, P)`; the same at all times."""
    frames = learner.encoder.frames_per_token
    everywhere_1TV = torch.ones(1, frames, len(raster.index_V), device=raster.index_V.device)
    return learner.patchify(raster.lay(everywhere_1TV))[0] > 0
