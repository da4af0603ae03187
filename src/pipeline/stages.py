"""What makes a stage's results old: its VERSION, and the part of the configuration it depends on.

Snakemake passes both as rule parameters, so a job reruns when one of them changes. Edits of source code alone never
rerun anything: whoever changes what a stage's numbers mean raises its version here. Settings that change speed but no
number (`compute`, checkpoint intervals) are left out.
"""

from __future__ import annotations

from typing import Any

from pipeline.artefact import digest
from pipeline.config import Study
from pipeline.errors import InputError, nearest
from pipeline.grid import Cell, all_cells, cell_datasets, encodes_shuffled, first_of_largest, reconstructs, sweep_rate

VERSIONS: dict[str, int] = {
    "simulate": 1,
    "fetch": 1,
    "template": 1,
    "people": 1,
    "shards": 2,
    "parcels": 2,
    "flatmaps": 1,
    "split": 1,
    "pretrain": 3,
    "learning_rate": 1,
    "probe": 2,
    "benchmark": 2,
    "comparisons": 1,
    "supplement": 1,
    "spectral": 2,
    "tables": 4,
    "scaling": 1,
    "claims": 1,
    "truths": 1,
    "figures": 3,
    "report": 3,
}

NEUTRAL_PRETRAIN = {"checkpoint_every_s"}
LABEL_FIELDS = {"labels", "confounds", "family_column", "site_column"}
PEOPLE_FIELDS = {"path", "people", "roles", "participants", "id_column", "missing", "age_column"}
SPLIT_FIELDS = {"evaluation_people", "people_of"}
TERMS_FIELDS = {"licence", "weights"}  # what may be released changes no number
# What decides a shard: all of a data set but its people, their labels, what it serves for, its terms and its pictures.
NOT_OF_SHARDS = {*PEOPLE_FIELDS, *LABEL_FIELDS, *TERMS_FIELDS, *SPLIT_FIELDS, "simulated", "pictures"} - {"path"}
TABLE_OF_TR = {"pcp", "parcels"}  # doors whose repetition times may stand in the table of people


def stage_version(*stages: str) -> str:
    """Versions of the stages that one job runs, as its rule parameter: `probe1-benchmark1`."""
    for stage in stages:
        if stage not in VERSIONS:
            raise InputError("stage", f"'{stage}'", "a stage", nearest(stage, VERSIONS))
    return "-".join(f"{stage}{VERSIONS[stage]}" for stage in stages)


def stage_settings(study: Study, stage: str, dataset: str | None = None, cell: Cell | None = None) -> str:
    """Digest of exactly the settings that can change the stage's numbers."""
    return digest(_settings(study, stage, dataset, cell))


def _settings(study: Study, stage: str, dataset: str | None, cell: Cell | None) -> Any:
    if dataset is not None:
        return _dataset_settings(study, stage, dataset)
    if cell is not None:
        return _cell_settings(study, stage, cell)
    whole: dict[str, Any] = {
        "template": study.template,
        "parcels": [study.shards.dtype, study.shards.frames_per_chunk],
        "flatmap": [study.flatmap, study.template],
        "flatmaps": [study.shards.dtype, study.shards.frames_per_chunk],
        "split": [study.seed, _people_settings(study), sorted({cell.draw for cell in all_cells(study)})],
        "learning_rate": [study.grid.learning_rate, study.pretrain.learning_rate, _swept_widths(study)],
        "baselines": [_of_quick_systems(study), study.seed, _label_settings(study), _simulated(study)],
        "spectral": [
            study.spectral,
            study.evaluate.bootstrap,
            study.evaluate.confidence,
            study.seed,
            _roles(study),
            _simulated(study),
        ],
        "tables": [
            [cell.path for cell in all_cells(study)],
            [_simulated(study), _people_settings(study), _label_settings(study)],
        ],
        "scaling": [study.scaling, study.evaluate.confidence, study.seed, study.grid, _ladders(study)],
        "memory": list(study.supplement.memory_frames),
        "supplement_tables": [study.supplement.blocks, [cell.path for cell in all_cells(study)]],
        "comparisons": [study.evaluate.confidence, study.evaluate.bootstrap, study.seed, study.grid],
        "claims": [study.grid, study.seed],
        "truths": [_without_terms(study), study.grid, study.spectral.band_hz, _labels_of_architectures(study)],
        "figures": [study.figures, study.grid, study.supplement, _labels_of_architectures(study)],
        "report": [study.grid, study.quality, _labels_of_architectures(study)],
    }
    return _plain(whole[stage])


def _dataset_settings(study: Study, stage: str, name: str) -> Any:
    dataset = study.datasets[name].model_dump(mode="json")
    fields: dict[str, Any] = {
        "simulate": [dataset["simulation"], dataset["path"]],
        "fetch": [dataset["packaged"], dataset["nilearn"], dataset["nilearn"] and dataset["people"], dataset["path"]],
        "people": {key: dataset[key] for key in sorted(PEOPLE_FIELDS | LABEL_FIELDS)},
        "shards": [
            {key: value for key, value in dataset.items() if key not in NOT_OF_SHARDS},
            [dataset["participants"], dataset["id_column"], dataset["missing"]]
            if dataset["door"] in TABLE_OF_TR
            else None,
            _plain(study.shards),
            study.quality.model_dump(mode="json", exclude={"pictures"}),
            study.template.model_dump(mode="json", exclude={"parcel_voxels"}),
        ],
        "manifest": [dataset["people"], dataset["batch_people"]],
    }
    return fields[stage]


def _cell_settings(study: Study, stage: str, cell: Cell) -> Any:
    architecture = study.architectures[cell.architecture]
    model = [architecture.sizes[cell.size], architecture.model_dump(mode="json", exclude={"label", "sizes", "compute"})]
    training = {key: value for key, value in _plain(study.pretrain).items() if key not in NEUTRAL_PRETRAIN}
    if sweep_rate(cell) is not None:
        training.pop("learning_rate")
    supervised = study.evaluate.supervised
    trained = [first_of_largest(study, cell, blocks) for blocks in (supervised.attentive, supervised.fine_tune)]
    part = [encodes_shuffled(study, cell), reconstructs(study, cell), *trained]
    evaluation = [
        _of_encoders(study, any(trained)),
        study.spectral,
        study.seed,
        _label_settings(study),
        _roles(study),
        part,
    ]
    fields = {
        "pretrain": [cell.path, model, training, cell_datasets(study, cell), _simulated(study)],
        "evaluate": [cell.path, evaluation, _simulated(study)],
        "supplement": [
            [cell.path, study.supplement, evaluation, _simulated(study)],
            [study.template.parcel_voxels, {name: str(path) for name, path in study.atlases.items()}],
        ],
    }
    return _plain(fields[stage])


def system_settings(study: Study, system: str) -> str:
    """Digest of what can change the results of one trained system's job: not what other systems are given."""
    settings = _plain(study.evaluate)
    own = settings["supervised"].pop("systems").get(system)
    settings = {key: value for key, value in settings.items() if key != "systems"}
    clips = study.pretrain.context_frames
    return digest(_plain([system, own, settings, clips, study.seed, _label_settings(study), _simulated(study)]))


def _of_quick_systems(study: Study) -> Any:
    """The settings of evaluation that systems are under that are not trained; which of them there are."""
    settings = _plain(study.evaluate)
    return {key: value for key, value in settings.items() if key not in ("supervised", "boosting")}


def _of_encoders(study: Study, trained: bool) -> Any:
    """The settings of evaluation that an encoder is under: not which other systems there are."""
    settings = _plain(study.evaluate)
    settings["supervised"].pop("systems")
    without = ("systems", "boosting") if trained else ("systems", "boosting", "supervised")
    return {key: value for key, value in settings.items() if key not in without}


def _swept_widths(study: Study) -> Any:
    return {name: [entry.sizes[study.swept_size(name)], entry.options] for name, entry in study.architectures.items()}


def _simulated(study: Study) -> Any:
    return {name: dataset.simulated for name, dataset in study.datasets.items()}


def _people_settings(study: Study) -> Any:
    """`people_of` where it is given, so that studies without it keep their parameter."""
    return {
        name: [dataset.people, dataset.evaluation_people, dataset.roles, dataset.family_column]
        + ([dataset.people_of] if dataset.people_of else [])
        for name, dataset in study.datasets.items()
    }


def _label_settings(study: Study) -> Any:
    return {name: dataset.model_dump(mode="json", include=LABEL_FIELDS) for name, dataset in study.datasets.items()}


def _without_terms(study: Study) -> Any:
    return {name: dataset.model_dump(mode="json", exclude=TERMS_FIELDS) for name, dataset in study.datasets.items()}


def _roles(study: Study) -> Any:
    return {name: dataset.roles for name, dataset in study.datasets.items()}


def _ladders(study: Study) -> Any:
    return {name: list(architecture.sizes) for name, architecture in study.architectures.items()}


def _labels_of_architectures(study: Study) -> Any:
    return {name: architecture.label for name, architecture in study.architectures.items()}


def _plain(value: Any) -> Any:
    """Models as plain JSON values, so that their digest is that of their content."""
    if hasattr(value, "model_dump"):
        return value.model_dump(mode="json")
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value
