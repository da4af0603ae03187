"""Fine-tuning: a pretrained encoder and a fresh linear head, all weights trained on labels.

Legend: M people; K scans of a person.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pipeline.config import Supervised as Settings
from pipeline.evaluate.reading import Reader
from pipeline.evaluate.supervised.fit import Kind, network_reader
from pipeline.evaluate.supervised.inputs import Scan, Scans
from pipeline.models.learners.supervised import Supervised
from pipeline.models.parts.voxels import Raster
from pipeline.pretrain.engine.checkpoint import load_cell


def fine_tune_reader(
    folder: str | Path,
    scans_MK: Sequence[Sequence[Scan]],
    raster: Raster,
    context: int,
    settings: Settings,
    kind: Kind,
    key: str,
    frames: int | None = None,
    clips_at_once: int | None = 8,
) -> Reader:
    """A pretrained encoder, fine-tuned anew for every split and candidate by the budget of all other systems.

    Parameters
    ----------
    folder : of the finished cell; its file is read for each fit and never written.
    scans_MK, raster, context, frames, clips_at_once : as in `clip_reader`; the raster is `raster_of` the cell.

    Raises
    ------
    InputError : a person without a scan of one clip; when it is called, a cell that does not load.
    """

    def build(_train_M: np.ndarray) -> Supervised:
        learner, _ = load_cell(folder)
        return Supervised(learner.encoder)

    inputs = Scans(scans_MK, raster, context, frames, clips_at_once)
    return network_reader(build, inputs, settings, kind, key, raster.index_V.device)
