"""`pipeline benchmark`: the protocols of the benchmark on a folder of parcel series that no configuration describes."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.errors import InputError, nearest
from pipeline.evaluate.folder.inferred import Folder, Options, read_folder
from pipeline.evaluate.protocols import VERSIONS
from pipeline.evaluate.systems import SYSTEMS, System, require

if TYPE_CHECKING:
    from pipeline.evaluate.cohort import Kind

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
    _require_protocols(folder, options, systems)
    _require_writable(options)

    from pipeline.evaluate.folder import report, stages
    from pipeline.evaluate.stage import evaluate_systems

    study = stages.study_of_folder(options, folder)
    _print(report.found_lines(folder.found))
    cohort = stages.run_stages(study, folder, options)
    manifest = cohort.manifests[options.name]
    excluded = list(_excluded(folder, options, manifest))
    _print(report.exclusion_lines(excluded))
    if warning := stages.unlike(manifest):
        _print([warning])
    asked = stages.asked_of(options)
    run = [system for system in systems if "trained" in asked or not system.trained]
    rows, cohorts = evaluate_systems(study, {options.name: run}, None, *cohort)
    tables = report.tables_of(study, asked, rows.benchmark, rows.scores, rows.tasks)
    files: dict[str, str | Path] = {"manifest": manifest, "participants": options.table}
    reasons = [reason for reason, _ in excluded]
    written = report.write_tables(options.output, options.work_folder, tables, study, files, reasons)
    few = report.few_tested(study, cohorts[0].tasks[0])
    _print(report.result_lines(tables, systems, few))
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
    if options.tr_s is not None and not 0 < options.tr_s < math.inf:
        raise InputError("--tr", f"{options.tr_s:g}", "seconds above 0", "Leave it out for what the table says.")
    if not 0 < options.min_coverage < 1:
        raise InputError("--min-coverage", f"{options.min_coverage:g}", "a share between 0 and 1", "0.25, say.")


def _require_protocols(folder: Folder, options: Options, systems: Sequence[System]) -> None:
    """Sites for those that leave one out, and something to run under the protocols asked for."""
    from pipeline.evaluate.folder import report, stages

    kind: Kind = "number" if folder.label.phenotype.number else "classes"
    reasons = {name: report.no_use(VERSIONS[name], kind, systems) for name in stages.asked_of(options)}
    if all(reasons.values()):
        found = "; ".join(f"'{name}', which does not apply ({reason})" for name, reason in reasons.items())
        raise InputError("--protocols", found, "one at least that applies", "Leave it out for the systems' own.")
    sites = folder.table["site"]
    if "leave_site_out" in options.protocols and sites[sites != ""].nunique() < 2:
        hint = "Name the column of sites with --site-column, or leave this protocol out."
        raise InputError("--protocols leave_site_out", "one site", "people of two sites at least", hint)


def _require_writable(options: Options) -> None:
    if options.output.is_dir():
        raise InputError("--output", f"'{options.output}', a folder", "a file called *.parquet", "Name a file in it.")
    for flag, folder in (("--output", options.output.absolute().parent), ("--work", options.work_folder)):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder):
                pass
        except OSError as error:
            found = f"'{folder}', which cannot be written ({error.strerror})"
            raise InputError(flag, found, "a folder to write into", "Name another place.") from error


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
    from pipeline.evaluate.folder.stages import excluded, plain

    lost = set()
    for reason, subject, run in excluded(manifest):
        lost.add(subject)
        yield plain(reason), f"{subject} run {run}" if run not in ("", "1") else subject
    people = zip(folder.table["subject"], folder.table[options.label], strict=True)
    for row, (subject, label) in enumerate(people):
        value = folder.label.neither.get(row)
        if not label and subject not in lost:
            yield f"'{value}' is in neither class" if value else f"no label in '{options.task}'", subject
    yield from (("a series of nobody in the table", series.name) for series in folder.strangers)


def _print(lines: Iterable[str]) -> None:
    print(*lines, sep="\n", flush=True)
