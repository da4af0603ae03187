"""`pipeline benchmark`: the protocols of the benchmark on a folder of parcel series that no configuration describes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from pipeline.errors import InputError, nearest
from pipeline.evaluate.folder.inferred import Folder, Options, read_folder
from pipeline.evaluate.protocols import VERSIONS
from pipeline.evaluate.systems import SYSTEMS, System, require

__all__ = ["Options", "benchmark_folder"]


def benchmark_folder(options: Options) -> None:
    """Infer what the folder is, make it a study, run the systems, write the tables, and print all of it.

    Writes `options.output` (BENCHMARK_SCHEMA, one row a system, split and metric), `<output stem>.summary.parquet`
    (means with intervals, averaged scores, groups, shuffled labels, low-shot) and the working folder.

    Raises
    ------
    InputError : an unknown system; what `read_folder` and `run_stages` refuse.
    """
    _require_sense(options)
    systems = _systems(options)
    folder = read_folder(options)
    _require_sites(folder, options)

    from pipeline.evaluate.folder import report, stages
    from pipeline.evaluate.stage import evaluate_systems

    study = stages.study_of_folder(options, folder)
    _print(report.found_lines(folder.found))
    cohort = stages.run_stages(study, folder, options)
    manifest = cohort.manifests[options.name]
    excluded = list(_excluded(folder, options, manifest))
    _print(report.exclusion_lines(excluded))
    rows, _ = evaluate_systems(study, {options.name: systems}, None, *cohort)
    tables = report.tables_of(study, rows.benchmark, rows.scores, rows.tasks)
    files: dict[str, str | Path] = {"manifest": manifest, "participants": options.table}
    reasons = [reason for reason, _ in excluded]
    written = report.write_tables(options.output, options.work_folder, tables, study, files, reasons)
    _print(report.result_lines(tables, [system.name for system in systems]))
    print(f"\nWritten: {written[0]} (one row a split and metric), {written[1]}; {options.work_folder} (working folder)")


def _require_sense(options: Options) -> None:
    if options.output.suffix != ".parquet":
        raise InputError("--output", f"'{options.output}'", "a file called *.parquet", "Name it so.")
    for name in options.protocols:
        if name not in VERSIONS:
            raise InputError("--protocols", f"'{name}'", "a protocol of the benchmark", nearest(name, VERSIONS))
    for flag in ("splits", "workers", "min_frames"):
        if getattr(options, flag) < 1:
            hint = "Leave it out for the default."
            raise InputError(f"--{flag.replace('_', '-')}", str(getattr(options, flag)), "at least 1", hint)
    if not 0 < options.min_coverage < 1:
        raise InputError("--min-coverage", f"{options.min_coverage:g}", "a share between 0 and 1", "0.25, say.")


def _require_sites(folder: Folder, options: Options) -> None:
    sites = folder.table["site"]
    if "leave_site_out" in options.protocols and sites[sites != ""].nunique() < 2:
        hint = "Name the column of sites with --site-column, or leave this protocol out."
        raise InputError("--protocols leave_site_out", "one site", "people of two sites at least", hint)


def _systems(options: Options) -> list[System]:
    """What is run; an InputError for an unknown system, or one that parcel series are nothing to."""
    systems = require(options.systems, "--systems")
    if odd := [system.name for system in systems if system.needs == "voxels"]:
        hint = "Write a study for volumes (docs/data.md)."
        raise InputError("--systems", f"'{odd[0]}', which reads volumes", "systems of parcel series", hint)
    if not systems:
        raise InputError("--systems", "no system", "one at least", nearest("", SYSTEMS))
    return systems


def _excluded(folder: Folder, options: Options, manifest: Path) -> Iterator[tuple[str, str]]:
    """Reason and whom: runs and people that no task has, series of nobody, and people without a label."""
    from pipeline.evaluate.folder.stages import excluded

    lost = set()
    for reason, subject, run in excluded(manifest):
        lost.add(subject)
        yield reason, f"{subject} run {run}" if run not in ("", "1") else subject
    people = zip(folder.table["subject"], folder.table[options.label], strict=True)
    for row, (subject, label) in enumerate(people):
        value = folder.label.neither.get(row)
        if not label and subject not in lost:
            yield f"'{value}' is in neither class" if value else f"no label in '{options.task}'", subject
    yield from (("a series of nobody in the table", series.name) for series in folder.strangers)


def _print(lines: Iterator[str]) -> None:
    print(*lines, sep="\n", flush=True)
