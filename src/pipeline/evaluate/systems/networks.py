"""Networks of the registry that learn from labels alone, as systems of the benchmark."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from pipeline.artefact import digest
from pipeline.errors import InputError
from pipeline.evaluate.device import device_of
from pipeline.evaluate.supervised.networks import clip_reader, connectome_reader, square
from pipeline.pretrain.rasters import voxel_raster

if TYPE_CHECKING:
    from pipeline.evaluate.cohort import Task
    from pipeline.evaluate.reading import Reader
    from pipeline.evaluate.systems.material import Material


def on_connectomes(material: Material, task: Task, name: str) -> Reader:
    """A network on Pearson correlations, 1 on the diagonal."""
    settings, key = material.study.evaluate.supervised, digest([task.key, name])
    device = device_of(material.study)
    connectome_MPP = square(material.edges_NE[task.rows_M])
    return connectome_reader(name, settings.systems.get(name, {}), connectome_MPP, settings, task.kind, key, device)


def on_clips(material: Material, task: Task, name: str) -> Reader:
    """A network on clips of voxels, as long as those of pretraining unless its arguments say `context_frames`.

    Raises
    ------
    InputError : the study has no template.
    """
    study, template = material.study, material.template
    if template is None:
        raise InputError(f"evaluate.systems: {name}", "no template", "one: it reads voxels", "Leave it out.")
    settings, shards = study.evaluate.supervised, [*material.shards()]
    arguments = dict(settings.systems.get(name, {}))
    context = int(arguments.pop("context_frames", study.pretrain.context_frames))
    scans_MK = [[shards[run] for run in np.flatnonzero(material.cohort.person_R == person)] for person in task.rows_M]
    seen, key = (scans_MK, voxel_raster(template, device_of(study)), context), digest([task.key, name])
    return clip_reader(name, arguments, *seen, settings, task.kind, key, frames=study.evaluate.frames)
