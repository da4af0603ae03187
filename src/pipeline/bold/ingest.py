"""One run, from the file that a door found to its shard: onto the template, looked at, judged, written.

Nothing grows with the number of frames: a run passes in blocks of sixteen through a scratch file (`spool`).
Axes: T frames, V in-mask voxels of the template, R parcels, X, Y, Z of the template's grid.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from pipeline import artefact
from pipeline.bold import quality, resample
from pipeline.bold.doors.series import read_series
from pipeline.bold.inputs import Frames, Run, open_frames, open_image
from pipeline.bold.motion import displacement
from pipeline.bold.normalise import Gridded, standard_run
from pipeline.bold.parcels import parcel_geometry
from pipeline.bold.placement import brain_of, placement
from pipeline.bold.quality_page import Page, write_quality
from pipeline.bold.shards import voxel_geometry, write_shard
from pipeline.bold.spool import Spool, spool
from pipeline.bold.template import Template
from pipeline.config import Study
from pipeline.layout import QUARANTINE


class Standard(NamedTuple):
    """What every run of a study is laid on and compared with."""

    template: Template
    brain_XYZ: np.ndarray  # the standard brain on the template's grid


def ingest_run(study: Study, standard: Standard, store: Path, run: Run) -> dict[str, Any]:
    """Write one run's shard below `store`; what a list of runs says of it.

    Raises
    ------
    InputError, Quarantined : the run cannot be used; nothing is written but, for one beyond a threshold, its measures
        and its page below `store`/quarantine.
    """
    shutil.rmtree(store / QUARANTINE / run.folder, ignore_errors=True)  # of a former attempt
    if run.series is not None:
        return ingest_series(study, store, run)
    frames = open_frames(run)
    quality.require_frames(frames.shape[3] - study.shards.drop_frames, study.shards.min_frames)
    template = standard.template
    with _on_template(study, template, run, frames) as gridded:
        watch = quality.Watch(template.voxels, run.tr_s)
        with spool(watch(gridded.blocks()), template.voxels) as raw:
            page = _page_of_volume(study, standard, run, raw, watch, gridded)
            return _judged_and_written(study, store, run, raw, page, voxel_geometry(template), gridded.resampling)


def _page_of_volume(
    study: Study, standard: Standard, run: Run, raw: Spool, watch: quality.Watch, gridded: Gridded
) -> Page:
    """What is measured of a run of voxels, and seen of it."""
    mean_XYZ, traces = gridded.mean_XYZ(), watch.traces(raw.mean_V, raw.std_V)
    placed = placement(mean_XYZ, gridded.brain_XYZ, raw.std_V, standard.template, standard.brain_XYZ)
    spike_mm, fd_mm_T, left_right = study.quality.fd_spike_mm, gridded.fd_mm_T, gridded.left_right
    images = {"mean BOLD": mean_XYZ}
    if gridded.anatomy_XYZ is not None:
        images["T1w"] = gridded.anatomy_XYZ
    return Page(
        title=_title(run),
        traces=traces,
        measures=quality.measure(traces, raw.mean_V, raw.std_V, spike_mm, fd_mm_T, placed, left_right),
        settings=study.quality,
        images=images,
        template=standard.template,
        standard_XYZ=standard.brain_XYZ,
        brain_XYZ=brain_of(mean_XYZ, gridded.brain_XYZ),
        fd_mm_T=fd_mm_T,
    )


def _title(run: Run) -> str:
    return f"{run.dataset}: sub-{run.subject}, session {run.session}, run {run.run}"


def ingest_series(study: Study, store: Path, run: Run) -> dict[str, Any]:
    """Parcel series as the user gives them: no grid, and a page without slices."""
    series_TR = read_series(run)[study.shards.drop_frames :]
    quality.require_frames(len(series_TR), study.shards.min_frames)
    watch = quality.Watch(series_TR.shape[1], run.tr_s)
    with spool(watch([series_TR]), series_TR.shape[1]) as raw:
        traces = watch.traces(raw.mean_V, raw.std_V)
        seen = quality.measure(traces, raw.mean_V, raw.std_V, study.quality.fd_spike_mm)
        labels = [f"parcel-{number}" for number in range(1, raw.columns + 1)]
        geometry = parcel_geometry(study.datasets[run.dataset].atlas or "unnamed", labels)
        page = Page(_title(run), traces, seen, study.quality, {})
        return _judged_and_written(study, store, run, raw, page, geometry, "none")


@contextmanager
def _on_template(study: Study, template: Template, run: Run, frames: Frames) -> Iterator[Gridded]:
    dataset, drop = study.datasets[run.dataset], study.shards.drop_frames
    if run.space is None:
        from pipeline.bold.register import registered  # SimpleITK takes half a second to import

        with registered(run, frames, template, study.template, dataset, drop) as gridded:
            yield gridded
        return
    way = None
    if run.warp is not None or run.space != template.space:
        from pipeline.bold.warp import way_to_run

        way = way_to_run(run, frames, template.space, dataset)
    mask = open_image(run.mask) if run.mask else None
    yield standard_run(frames, template, drop, mask, displacement(run, frames.shape[3], drop), way)


def _judged_and_written(
    study: Study, store: Path, run: Run, raw: Spool, page: Page, geometry: Mapping[str, Any], resampling: str
) -> dict[str, Any]:
    """The run's entry, with its shard written; or Quarantined, with its measures and its page kept aside."""
    seen, pictures = page.measures, study.datasets[run.dataset].pictures or study.quality.pictures
    if reasons := quality.judge(seen, study.quality):
        with artefact.atomic_folder(store / QUARANTINE / run.folder) as folder:
            write_quality(folder, page, pictures != "none")
        raise quality.Quarantined("; ".join(reasons))
    name = {"dataset": run.dataset, "subject": run.subject, "session": run.session, "run": run.run}
    source = artefact.sha256_file(run.bold)
    with _in_time(study, run, raw) as (signal, treated):
        contract = {
            **name,
            **treated,
            "dropped": study.shards.drop_frames,
            "censoring": "none",
            "filtered": study.datasets[run.dataset].filtered or bool(seen.filtered),
            "resampling": resampling,
            "source_sha256": source,
        }
        entry = write_shard(
            store / run.folder,
            signal,
            contract,
            geometry=geometry,
            frames_per_chunk=study.shards.frames_per_chunk,
            dtype=study.shards.dtype,
            extras=lambda folder: write_quality(folder, page, pictures == "all"),
        )
    summary = {"mean_fd_mm": seen.mean_fd_mm, "overlap": seen.overlap, "content": raw.sha256}
    summary["source"] = source if run.series is None else ""
    return {**name, **entry, **summary, "quality": seen.plain()}


@contextmanager
def _in_time(study: Study, run: Run, raw: Spool) -> Iterator[tuple[Spool, dict[str, Any]]]:
    """The run without its confounds and at another TR, where the data set asks for it; and the record of that."""
    dataset, signal, tr_s, denoising = study.datasets[run.dataset], raw, run.tr_s, study.datasets[run.dataset].denoising
    in_time = "none"
    with ExitStack() as stack:
        if dataset.confounds_strategy:
            regressors_TK, _ = resample.load_regressors(run.bold, dataset.confounds_strategy)
            blocks = resample.regress_out(signal, regressors_TK[study.shards.drop_frames :])
            signal = stack.enter_context(spool(blocks, signal.columns))
            regressed = resample.describe_regression(dataset.confounds_strategy)
            denoising = regressed if denoising == "none" else f"{denoising}; {regressed}"
        if dataset.resample_tr_s:
            blocks, tr_s = resample.resampled(signal, run.tr_s, dataset.resample_tr_s), dataset.resample_tr_s
            signal = stack.enter_context(spool(blocks, signal.columns))
            in_time = resample.describe_resampling(run.tr_s, tr_s)
        yield signal, {"tr_s": tr_s, "source_tr_s": run.tr_s, "resampling_in_time": in_time, "denoising": denoising}
