"""One job a batch of people: NIfTI in, shards out; bad runs are quarantined and the rest goes on.

Axes: T frames, V in-mask voxels of the template.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import nibabel as nib
import numpy as np

from pipeline import artefact
from pipeline.bold import inputs, quality
from pipeline.bold.normalise import mask_to_grid, to_template
from pipeline.bold.people import membership
from pipeline.bold.shards import write_shard
from pipeline.bold.template import Template, load_template
from pipeline.config import Study
from pipeline.errors import InputError
from pipeline.stages import VERSIONS

Outcome: TypeAlias = tuple[dict[str, Any], str | None]  # what is said of a run, and why it was lost


@dataclass(frozen=True, eq=False)
class Gridded:
    """A run on the template, in its own unit, and how well it lies there."""

    bold_TV: np.ndarray
    mean_fd_mm: float | None
    overlap: float
    resampling: str


def shard_batch(
    study: Study, dataset: str, batch: int, people: Path, template_folder: Path, output: Path, workers: int = 1
) -> None:
    """Write the shards of one batch of people beside `output`, and last `output`, the list of them.

    `people` is the folder in which the data set keeps its `membership`.
    A bad run is quarantined with its reason and the rest goes on; bad input as such stops the job. Memory is bounded
    by three float32 copies of the longest run for each of `workers` processes.
    """
    size = study.datasets[dataset].batch_people
    subjects = membership(study, dataset, people)[batch * size : (batch + 1) * size]
    template = load_template(template_folder)
    runs = inputs.find_runs(study, dataset, subjects)
    make = partial(_try_run, study, template, Path(output).parent)
    results = list(_map(make, runs, workers))
    absent = [name for name in subjects if name not in {run.subject for run in runs}]
    results += [({"subject": name, "session": "", "run": ""}, "no run found") for name in absent]
    listing = {
        "runs": [entry for entry, reason in results if reason is None],
        "quarantined": [{**entry, "reason": reason} for entry, reason in results if reason is not None],
        "provenance": artefact.provenance(
            "shards",
            VERSIONS["shards"],
            study.shards.model_dump(),
            {"people": Path(people) / "state" / "membership.json"},
        ),
    }
    artefact.write_json(output, listing)


def _map(make: Callable[[inputs.Run], Outcome], runs: list[inputs.Run], workers: int) -> Iterable[Outcome]:
    if min(workers, len(runs)) < 2:
        yield from map(make, runs)
        return
    # A fork server: no thread of the parent is cloned half-way, and the imports are paid for once.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    with ProcessPoolExecutor(min(workers, len(runs)), mp_context=context) as pool:
        yield from pool.map(make, runs)


def _try_run(study: Study, template: Template, shards: Path, run: inputs.Run) -> Outcome:
    """The run's entry, or its name and the reason why it is quarantined."""
    name = {"subject": run.subject, "session": run.session, "run": run.run}
    try:
        return shard_run(study, template, shards / run.folder, run), None
    except quality.Quarantined as reason:
        return name, str(reason)


def shard_run(study: Study, template: Template, folder: Path, run: inputs.Run) -> dict[str, Any]:
    """One run from NIfTI to shard.

    Raises
    ------
    InputError, Quarantined : see `inputs.load_bold` and `quality.require`.
    """
    drop = study.shards.drop_frames
    gridded = _registered(study, template, run) if run.space is None else _resampled(template, run, drop)
    quality.require(len(gridded.bold_TV), study.shards.min_frames, gridded.overlap, study.shards.min_overlap)
    content = artefact.sha256_file(run.bold)
    contract = {
        "dataset": run.dataset,
        "subject": run.subject,
        "session": run.session,
        "run": run.run,
        "tr_s": run.tr_s,
        "dropped": drop,
        "censoring": "none",
        "denoising": study.datasets[run.dataset].denoising,
        "resampling": gridded.resampling,
        "source_sha256": content,
    }
    entry = write_shard(folder, gridded.bold_TV, template, contract, study.shards.frames_per_chunk)
    name = {key: contract[key] for key in ("dataset", "subject", "session", "run")}
    measured = {"mean_fd_mm": gridded.mean_fd_mm, "overlap": gridded.overlap, "content": content}
    return {**name, **entry, **measured}


def _resampled(template: Template, run: inputs.Run, drop: int) -> Gridded:
    """A run that already lies in the template's space."""
    image = inputs.load_bold(run)
    bold_TV, resampling = to_template(image, template)
    if run.mask is not None:
        brain_XYZ = mask_to_grid(inputs.open_image(run.mask), template)
    else:
        mean = np.asarray(image.dataobj).mean(axis=3)
        brain_XYZ = mask_to_grid(nib.Nifti1Image((mean > 0).astype(np.uint8), image.affine), template)
    motion = quality.mean_displacement(run.confounds, len(bold_TV), drop) if run.confounds else None
    return Gridded(bold_TV[drop:], motion, quality.dice(brain_XYZ, template.mask_XYZ), resampling)


def _registered(study: Study, template: Template, run: inputs.Run) -> Gridded:
    """A run in native space."""
    from pipeline.bold import register  # SimpleITK takes half a second to import

    registered = register.register_native(run, template, study.template, study.shards.drop_frames)
    motion = float(registered.fd_mm_T.mean())
    return Gridded(registered.bold_TV, motion, registered.overlap, register.RESAMPLING)


def collect_batches(paths: Iterable[Path], output: Path) -> None:
    """One list of a data set's runs from those of its batches; a run that occurs twice is an InputError."""
    batches = {Path(path): artefact.read_json(path) for path in paths}
    runs = [entry for batch in batches.values() for entry in batch["runs"]]
    seen: set[str] = set()
    for entry in runs:
        if entry["path"] in seen:
            raise InputError(output, f"{entry['path']} in two batches", "each run once", "Run the people stage again.")
        seen.add(entry["path"])
    lost = [entry for batch in batches.values() for entry in batch["quarantined"]]
    record = artefact.provenance("shards", VERSIONS["shards"], None, {path.stem: path for path in batches})
    artefact.write_json(output, {"runs": runs, "quarantined": lost, "provenance": record})
