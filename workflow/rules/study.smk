# The study of this run: its configuration, checked, and what the rules ask of it. No rules here.
#
# The configuration is config/config.yaml, or what --configfile names (later files over earlier ones); --config is laid
# over it. What depends on it is passed to each rule as a digest, so that one changed line reruns only its dependents.

from pathlib import Path

from pipeline import grid
from pipeline.artefact import write_text
from pipeline.config import dump_study, expand_path, load_study
from pipeline.errors import InputError
from pipeline.evaluate.systems.jobs import system_jobs
from pipeline.layout import Layout
from pipeline.stages import stage_settings, stage_version, system_settings

CONFIG_FILES = list(workflow.overwrite_configfiles) or [Path(workflow.basedir) / "config" / "config.yaml"]
FIGURES = [1, 2, 3, 4, 5]
TABLES = ["pretrain", "points", "history", "probe", "benchmark", "scores", "tasks", "spectral", "spectra", "losses"]


def load_configuration():
    """The study and what was laid over its first file; a fault in it ends here, in one message."""
    try:
        return load_study(CONFIG_FILES[0], workflow.config_settings.config, CONFIG_FILES[1:])
    except InputError as error:
        raise WorkflowError(f"pipeline: {error}") from None


study = load_configuration()
RESULTS = f"results/{study.name}"
CONFIG = f"{RESULTS}/config.yaml"


def begin():
    """Build every model where nothing is computed, so that one that does not fit ends here and not in a job; then write
    the configuration, defaults written out: jobs read this copy, and an edit meanwhile changes nothing under way.
    """
    try:
        if study.architectures:
            from pipeline.pretrain.plan import check_training, try_architecture

            check_training(study)
            for name in study.architectures:
                try_architecture(study, name)
    except InputError as error:
        raise WorkflowError(f"pipeline: {error}") from None
    write_text(CONFIG, dump_study(study))


VOXEL_DATASETS = [name for name, each in study.datasets.items() if each.door != "parcels"]
FIGURE_TABLES = expand("{results}/tables/{stage}.parquet", results=RESULTS, stage=[*TABLES, "scaling", "comparisons"])
SYSTEM_JOBS = list(system_jobs(study))
TRUTHS = [f"{RESULTS}/tables/truths.parquet"] if any(each.simulation for each in study.datasets.values()) else []


wildcard_constraints:
    dataset="[A-Za-z0-9_-]+",
    atlas="[A-Za-z0-9_-]+",
    batch=r"\d+",
    architecture="[A-Za-z0-9_-]+",
    cell=r"[A-Za-z0-9_-]+/[A-Za-z0-9_-]+/N\d+-T\d+/draw\d+-[A-Za-z0-9_-]+/seed\d+",
    number=r"\d",
    systems="|".join(SYSTEM_JOBS),


def cell_paths(cells):
    """Folders of cells."""
    return [cell.path for cell in cells]


def of_dataset(stage):
    """Parameter function: settings of a stage that works on one data set."""
    return lambda wildcards: stage_settings(study, stage, dataset=wildcards.dataset)


def of_cell(stage):
    """Parameter function: settings of a stage that works on one cell."""
    return lambda wildcards: stage_settings(study, stage, cell=grid.Cell.parse(wildcards.cell))


def manifests_in(store, datasets):
    """Manifests of data sets in a store of shards."""
    return [str(Layout(study).store_manifest(store, name)) for name in datasets]


def manifests(role):
    """Shard manifests of the data sets that serve a role."""
    return manifests_in("shards", study.with_role(role))


def store_of(role):
    """Input function: what a cell's architecture reads of the data sets that serve a role: voxels, or derived from them."""

    def inputs(wildcards):
        architecture = study.architectures[grid.Cell.parse(wildcards.cell).architecture]
        flatmap = [f"{RESULTS}/flatmaps/flatmap.npz"] if architecture.input == "flat map" else []
        return manifests_in(architecture.store, study.with_role(role)) + flatmap

    return inputs


def participants(role):
    """Participants tables of the data sets that serve a role."""
    return [f"{RESULTS}/people/{name}/participants.tsv" for name in study.with_role(role)]


def made_data(wildcards):
    """The marker of a data set that the workflow makes or gets itself."""
    dataset = study.datasets[wildcards.dataset]
    made = "simulated" if dataset.simulation else "fetched" if dataset.packaged or dataset.nilearn else None
    return [f"{RESULTS}/data/{wildcards.dataset}.{made}.json"] if made else []


def participants_table(wildcards):
    """The user's table of people, where it is already there: a plan needs no data."""
    try:
        table = study.data_path(wildcards.dataset) / study.datasets[wildcards.dataset].participants
    except InputError:
        # A variable that is not set; the job will say what is missing.
        return []
    return [str(table)] if table.is_file() and not made_data(wildcards) else []


def batches_of(wildcards):
    """The shard jobs of a data set."""
    return batches_in(f"shards/{wildcards.dataset}", wildcards.dataset)


def batches_in(folder, dataset):
    """The jobs of one store of a data set, from the number of people that it declares."""
    count = study.datasets[dataset].batches
    return [f"{RESULTS}/{folder}/batch-{number:04d}.json" for number in range(count)]


def atlas_files(wildcards):
    """The parcellation and its table of labels, where they are already there: a plan needs no data."""
    from pipeline.bold.parcels import label_table

    try:
        path = expand_path(f"atlases.{wildcards.atlas}", study.atlases[wildcards.atlas])
    except InputError:
        return []
    return [str(each) for each in (path, label_table(path)) if each is not None and each.is_file()]


def compute_of(field):
    """Resource function: what a cell of its size needs of `compute`."""

    def need(wildcards):
        cell = grid.Cell.parse(wildcards.cell)
        return getattr(study.compute_of(cell.architecture, cell.size), field)

    return need


def launch_options(wildcards, resources):
    """Parameter function: where `pretrain` trains a cell. A partition in its resources, by a profile, means SLURM.

    A parameter that is computed from resources is none of those whose change reruns a job.
    """
    asked = {
        "nodes": resources.get("nodes"),
        "gpus": resources.get("gpu"),
        "memory-mb": resources.get("mem_mb"),
        "runtime-min": resources.get("runtime"),
    }
    if resources.get("slurm_partition"):
        asked |= {"launcher": "slurm", "partition": resources.slurm_partition}
        asked |= {"account": resources.get("slurm_account"), "qos": resources.get("qos")}
        asked |= {"slurm-options": resources.get("slurm_extra")}
    return [f"--{option}={value}" for option, value in asked.items() if value not in (None, "")]


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


def of_systems_job(wildcards):
    """Settings of one job of systems outside the grid."""
    if wildcards.systems == SYSTEM_JOBS[0]:
        return stage_settings(study, "baselines")
    return system_settings(study, wildcards.systems)


def of_systems(pattern):
    """A file of every job of systems outside the grid."""
    return expand(pattern, results=RESULTS, systems=SYSTEM_JOBS)
