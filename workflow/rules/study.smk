# The study of this run: its configuration, checked, and what the rules ask of it. No rules here.
#
# The configuration is config/config.yaml, or what --configfile names (later files over earlier ones); --config is laid
# over it. What depends on it is passed to each rule as a digest, so that one changed line reruns only its dependents.

import json
from pathlib import Path

from pipeline import grid
from pipeline.config import load_study, merge, read_yaml
from pipeline.errors import InputError
from pipeline.stages import stage_settings, stage_version

CONFIG_FILES = list(workflow.overwrite_configfiles) or [Path(workflow.basedir) / "config" / "config.yaml"]
FIGURES = [1, 2, 3, 4, 5]
TABLES = ["pretrain", "history", "probe", "benchmark", "scores", "spectral", "spectra"]


def load_configuration():
    """The study and what was laid over its first file; a fault in it ends here, in one message."""
    try:
        over = {}
        for path in CONFIG_FILES[1:]:
            over = merge(over, read_yaml(path))
        over = merge(over, workflow.config_settings.config or {})
        return load_study(CONFIG_FILES[0], over), over
    except InputError as error:
        raise WorkflowError(f"pipeline: {error}") from None


study, OVERRIDES = load_configuration()
RESULTS = f"results/{study.name}"
CONFIG = f"{RESULTS}/config.yaml"


FIGURE_TABLES = expand("{results}/tables/{stage}.parquet", results=RESULTS, stage=[*TABLES, "scaling"])
TRUTHS = [f"{RESULTS}/tables/truths.parquet"] if any(each.simulation for each in study.datasets.values()) else []


wildcard_constraints:
    dataset="[A-Za-z0-9_-]+",
    batch=r"\d{4}",
    architecture="[A-Za-z0-9_-]+",
    cell=r"[A-Za-z0-9_-]+/[A-Za-z0-9_-]+/N\d+-T\d+/draw\d+-[A-Za-z0-9_-]+/seed\d+",
    number=r"\d",


def cell_paths(cells):
    """Folders of cells."""
    return [cell.path for cell in cells]


def of_dataset(stage):
    """Parameter function: settings of a stage that works on one data set."""
    return lambda wildcards: stage_settings(study, stage, dataset=wildcards.dataset)


def of_cell(stage):
    """Parameter function: settings of a stage that works on one cell."""
    return lambda wildcards: stage_settings(study, stage, cell=grid.Cell.parse(wildcards.cell))


def manifests(role):
    """Shard manifests of the data sets that serve a role."""
    return [f"{RESULTS}/shards/{name}/manifest.json" for name in study.with_role(role)]


def participants(role):
    """Participants tables of the data sets that serve a role."""
    return [f"{RESULTS}/people/{name}/participants.tsv" for name in study.with_role(role)]


def source_of(wildcards):
    """What a data set is read from, as far as the workflow knows it: made, fetched, or the user's table of people."""
    dataset = study.datasets[wildcards.dataset]
    if dataset.simulation:
        return f"{RESULTS}/data/{wildcards.dataset}.simulated.json"
    if dataset.packaged:
        return f"{RESULTS}/data/{wildcards.dataset}.fetched.json"
    try:
        table = study.data_path(wildcards.dataset) / "participants.tsv"
    except InputError:
        # A variable that is not set: the plan needs no data, and the job will say what is missing.
        return []
    return [str(table)] if table.is_file() else []


def batches_of(wildcards):
    """The shard jobs of a data set, from the number of people it declares."""
    count = study.datasets[wildcards.dataset].batches
    return [f"{RESULTS}/shards/{wildcards.dataset}/batch-{number:04d}.json" for number in range(count)]


def learning_rate_of(wildcards):
    """The sweep's verdict; sweep cells bring their own rate, and untrained controls need none."""
    cell = grid.Cell.parse(wildcards.cell)
    if cell.variant == grid.RANDOM or grid.sweep_rate(cell) is not None:
        return []
    return f"{RESULTS}/learning_rate/{cell.architecture}/lr.json"


def sweep_of(wildcards):
    """Summaries of the cells that try one architecture's learning rates."""
    cells = [cell for cell in grid.block_cells(study, "learning_rate") if cell.architecture == wildcards.architecture]
    return [f"{RESULTS}/pretrain/{cell.path}/summary.json" for cell in cells]


def evaluated(pattern):
    """A file of every evaluated cell."""
    return expand(pattern, results=RESULTS, cell=cell_paths(grid.evaluated_cells(study)))
