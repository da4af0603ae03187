"""What decides a cell's weights: its model's arguments, its recipe, its data; and the hash that stands for it all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from pipeline.artefact import digest, read_json
from pipeline.bold.reader import Shard
from pipeline.bold.template import Template
from pipeline.config import Precision, ScheduleName, Study
from pipeline.errors import InputError, nearest
from pipeline.grid import RANDOM, Cell, sweep_rate
from pipeline.models import UNFIT, arguments, describe, names, takes
from pipeline.pretrain.engine.schedule import route
from pipeline.pretrain.engine.step import share_of
from pipeline.pretrain.engine.trainer import Recipe
from pipeline.pretrain.objectives import build_learner, objective_of
from pipeline.pretrain.parcel_tables import parcel_tables
from pipeline.pretrain.people import Entry, People, person
from pipeline.stages import VERSIONS

# What a shard's contract must say for a model that was trained on others of its store; beside it, its normalisation.
KIND_OF = {"voxels": "voxels", "parcels": "parcels", "flat map": "flatmap"}
# Peers whose published form takes what no store gives; their corrected form is a cell like any other.
NO_UPSTREAM_CELLS = {
    "brainlm": "corrected: the published image holds all parcels and times at once, hidden or not",
    "tff": "corrected: the published clip has two channels",
}
GRADIENTS = 30  # of Brain-JEPA
OF_KIND = {"voxels": ("template", "space"), "parcels": ("atlas", "atlas_sha256", "space"), "flat map": ("flatmap",)}


@dataclass(frozen=True)
class Plan:
    """Everything that decides a cell's weights."""

    cell: Cell
    model: str
    spec: dict[str, Any]
    base_spec: dict[str, Any] | None  # of the size whose learning rate was chosen, under muP
    objective: str
    objective_options: dict[str, Any]
    recipe: Recipe
    precision: Precision
    masks_per_clip: int
    masks: dict[str, Any]
    contract: dict[str, Any]
    sources: list[tuple[str, str]]  # person and checksum of the run trained on

    @property
    def hash(self) -> str:
        """Stands for all of it; a checkpoint of another hash is refused."""
        neutral = replace(self, recipe=replace(self.recipe, checkpoint_every_s=0.0))
        return digest([asdict(neutral), VERSIONS["pretrain"]])

    @property
    def metadata(self) -> dict[str, Any]:
        """What stands in the weights' header; it holds no time, so equal training gives equal bytes."""
        named = {"cell": self.cell.path, "cell_hash": self.hash, "masks": self.masks, "objective": self.objective}
        return {"model": self.model, "spec": self.spec, "contract": self.contract, **named}


def make_plan(study: Study, cell: Cell, template: Template, people: People, learning_rate: float) -> Plan:
    """Put together what decides the cell's weights.

    Raises
    ------
    InputError : the model does not see what the architecture says, or cannot be built of its arguments.
    """
    check_architecture(study, cell.architecture)
    architecture, settings = study.architectures[cell.architecture], study.pretrain
    objective = architecture.objective or describe(architecture.model).objective
    recipe = Recipe(
        steps=0 if cell.variant == RANDOM else settings.steps,
        batch=settings.batch_clips,
        learning_rate=learning_rate,
        warmup=settings.warmup,
        weight_decay=settings.weight_decay,
        clip_norm=settings.clip_norm,
        diverged_above=settings.diverged_above,
        checkpoint_every_s=settings.checkpoint_every_s,
        falls_to_nothing=objective != "masked reconstruction",
        optimiser=settings.optimiser,
        schedule=settings.schedule,
        decay=settings.decay,
        branches=settings.branches,
        ema=settings.ema,
        validations=settings.validations,
    )
    _check_legs(recipe.steps, recipe.schedule, recipe.warmup, recipe.decay, recipe.branches)
    masks = {"ratio": architecture.mask_ratio, "kind": architecture.mask or settings.mask, "loss": settings.loss}
    shape = data_shape(study, cell, template, people.trained)
    spec = model_spec(study, cell.architecture, cell.size, shape)
    base_spec = None
    if architecture.parametrisation == "mup":
        spec, base_spec = with_base(
            spec, model_spec(study, cell.architecture, study.swept_size(cell.architecture), shape)
        )
    return Plan(
        cell=cell,
        model=architecture.model,
        spec=spec,
        base_spec=base_spec,
        objective=objective,
        objective_options=architecture.objective_options,
        recipe=recipe,
        precision=settings.precision,
        masks_per_clip=settings.masks_per_clip,
        masks=masks,
        contract=contract_of(architecture.input, people.trained[0]),
        sources=[(person(entry), entry["manifest"]) for entry in people.trained],
    )


def _check_legs(steps: int, schedule: ScheduleName, warmup: float, decay: float, branches: Sequence[float]) -> None:
    try:
        route(steps, schedule, warmup, decay, branches)
    except ValueError as wrong:
        hint = "Choose later branches, or smaller shares."
        raise InputError(
            "pretrain: branches, warmup, decay", f"{wrong}", "steps at which each can begin and end", hint
        ) from wrong


def check_training(study: Study) -> None:
    """Whether every cell's training can be divided up as the study says, before anything runs.

    Raises
    ------
    InputError : a batch that the processes of a size cannot share evenly, or legs that cannot be trained.
    """
    pretrain = study.pretrain
    _check_legs(pretrain.steps, pretrain.schedule, pretrain.warmup, pretrain.decay, pretrain.branches)
    for name, row in study.architectures.items():
        for size in row.sizes:
            compute = study.compute_of(name, size)
            processes = compute.nodes * max(1, compute.gpus)
            share_of(pretrain.batch_clips, processes, compute.micro_batch_clips, f"compute of {name} {size}")


def check_architecture(study: Study, name: str) -> None:
    """Whether the registry has what a row of the comparison names, and the model its arguments.

    Raises
    ------
    InputError : unknown model, size or argument, or an input, objective or parametrisation that it does not have.
    """
    row, where = study.architectures[name], f"architectures.{name}"
    if row.model not in names():
        raise InputError(f"{where}.model", f"'{row.model}'", "a model of the registry", nearest(row.model, names()))
    description, known = describe(row.model), takes(row.model)
    if description.input != row.input:
        raise InputError(f"{where}.input", f"'{row.input}'", f"'{description.input}'", "Change it, or `model`.")
    for size, own in row.sizes.items():
        if (named := own.get("size")) not in (None, *description.sizes):
            hint = nearest(str(named), description.sizes)
            raise InputError(f"{where}.sizes.{size}.size", f"'{named}'", f"a size of {row.model}", hint)
        if {**row.options, **own}.get("variant") == "upstream" and row.model in NO_UPSTREAM_CELLS:
            hint = "Leave `variant` out."
            raise InputError(f"{where}.sizes.{size}: variant", "'upstream'", NO_UPSTREAM_CELLS[row.model], hint)
        for argument in {**row.options, **own}.keys() - known - {"size"}:
            raise InputError(
                f"{where}.sizes.{size}", f"'{argument}'", f"an argument of {row.model}", nearest(argument, known)
            )
    if row.parametrisation == "mup" and "base_width" not in known:
        hint = "Use standard, or swift_4d or swift_v2."
        raise InputError(f"{where}.parametrisation", f"mup of '{row.model}'", "a model with it", hint)
    if row.objective == "contrastive" and row.input != "voxels":
        hint = "Its augmentations turn, scale and smooth volumes. Leave `objective` empty."
        raise InputError(f"{where}.objective", f"contrastive on {row.input}", "voxels", hint)
    own_objectives = {description.objective, "contrastive"}
    if row.objective is not None and row.objective not in own_objectives:
        expected = " or ".join(sorted(f"'{objective}'" for objective in own_objectives))
        raise InputError(f"{where}.objective", f"'{row.objective}'", expected, "Leave it empty for the model's own.")
    if description.objective == "supervised" and row.objective is None:
        hint = "It learns from labels; the grid holds what learns without them."
        raise InputError(f"{where}.model", f"'{row.model}'", "a model that needs no labels", hint)


def try_architecture(study: Study, name: str) -> dict[str, int]:
    """Build every size of a row and run it once, on the meta device, where nothing is computed; parameters by size.

    Parcels, whose number the data say, are taken as many as the model's authors have.

    Raises
    ------
    InputError : as `check_architecture`; or a size that cannot be built of its arguments, or does not fit its clips.
    """
    check_architecture(study, name)
    row, frames = study.architectures[name], study.context_frames(name)
    objective = row.objective or describe(row.model).objective
    shape, parameters = _known_shape(study, name), {}
    for size in row.sizes:
        spec = model_spec(study, name, size, shape)
        if row.parametrisation == "mup":
            spec, _ = with_base(spec, model_spec(study, name, study.swept_size(name), shape))
        try:
            with torch.device("meta"), torch.no_grad():
                learner: Any = build_learner(row.model, spec, row.objective)
                learner.encoder(torch.empty(2, *learner.encoder.input_shape))
            objective_of(objective, learner, lambda _: torch.empty(0), "mse", row.objective_options, frames)
        except (InputError, *UNFIT) as error:
            hint = "`pipeline models NAME` prints the sizes of a model, docs/models.md an example."
            raise InputError(f"architectures.{name}.sizes.{size}", f"{error}", "arguments that fit", hint) from error
        parameters[size] = sum(value.numel() for value in learner.encoder.parameters())
    return parameters


def with_base(spec: dict[str, Any], base: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """A model's arguments, and those of the same model at the width and with the heads of the size whose learning rate
    was chosen: muP compares weights one by one, so both have the model's own depths.
    """
    if len(base["heads"]) != len(spec["heads"]):
        found = f"{len(spec['heads'])} stages, and {len(base['heads'])} where the learning rate is chosen"
        raise InputError("parametrisation: mup", found, "as many", "Give the ladder one number of stages.")
    named = {"base_width": base["width"], "base_heads": [*base["heads"]]}
    return {**spec, **named}, {**spec, **named, "width": base["width"], "heads": [*base["heads"]]}


def data_shape(study: Study, cell: Cell, template: Template, trained: Sequence[Entry]) -> dict[str, Any]:
    """What the data say of a model's arguments, by their names: the box of the template, the parcels, the flat map."""
    shape = _known_shape(study, cell.architecture)
    row = study.architectures[cell.architecture]
    if row.input == "voxels":
        return shape | {"volume": [*template.shape], "patch": [*template.patch, 1]}
    if row.input == "flat map":
        return shape
    tables = parcel_tables(takes(row.model), trained, cell.frames, GRADIENTS)
    return shape | tables | {"parcels": Shard.open(trained[0]["path"]).voxels}


def _known_shape(study: Study, architecture: str) -> dict[str, Any]:
    """What is known without data."""
    frames = study.context_frames(architecture)
    shape: dict[str, Any] = {"frames": frames, "context_frames": frames}
    if study.architectures[architecture].input == "flat map":
        return shape | {"raster": [study.flatmap.height, study.flatmap.width]}
    if study.architectures[architecture].input == "voxels":
        return shape | {"volume": [*study.template.shape], "patch": [*study.template.patch, 1]}
    return shape


def model_spec(study: Study, architecture: str, size: str, shape: Mapping[str, Any]) -> dict[str, Any]:
    """All arguments of a size's encoder: those of the registry's size that it names, of the data, and its own.

    Raises
    ------
    InputError : the registry has no such size, or patches do not tile the box.
    """
    row = study.architectures[architecture]
    own, known = {**row.options, **row.sizes[size]}, takes(row.model)
    named = own.pop("size", None)
    start = arguments(row.model, named) if named else {}
    given = {name: value for name, value in shape.items() if name in known}
    spec = {**start, **given, **own}
    if "grid" in known:
        spec["patch"] = own.get("patch", start.get("patch", shape["patch"]))
        spec["grid"] = _grid(architecture, shape["volume"], spec["patch"][:3])
    return spec


def _grid(architecture: str, volume: list[int], patch: list[int]) -> list[int]:
    if any(length % edge for length, edge in zip(volume, patch, strict=True)):
        hint = "Choose a `patch` whose edges divide it."
        raise InputError(f"architectures.{architecture}: patch", f"{patch}", f"one that tiles {volume} voxels", hint)
    return [length // edge for length, edge in zip(volume, patch, strict=True)]


def contract_of(kind: str, first: Entry) -> dict[str, Any]:
    """What every shard must agree on with the first one trained on."""
    found = Shard.open(first["path"]).contract
    shared = {field: found[field] for field in OF_KIND[kind] if field in found}
    return {"kind": KIND_OF[kind], **shared, "normalisation": "voxel-z", "tr_s": first["tr_s"]}


def width_of(study: Study, architecture: str, size: str) -> int:
    """Channels of a size, from the study or from the registry's size that it names."""
    row = study.architectures[architecture]
    own = {**row.options, **row.sizes[size]}
    found = own if "width" in own else arguments(row.model, own.get("size"))
    if "width" not in found:
        hint = "Learning rates of sizes are scaled by it."
        raise InputError(f"architectures.{architecture}.sizes.{size}", "no width", "`width: channels`", hint)
    return int(found["width"])


def peak_rate(study: Study, cell: Cell, learning_rate_file: str | Path | None) -> float:
    """Learning rate of a cell: its own in the sweep, 0 untrained, else the chosen one.

    In the standard parametrisation it is scaled by the ratio of widths: the update of a hidden matrix by Adam changes
    its output in proportion to the width, one by Muon to the root of it. Under muP each parameter has a factor of its
    own (`models.mup`).
    Source: Yang et al. (2022), Tensor Programs V; Yang, Simon and Bernstein (2023), A spectral condition.
    """
    if cell.variant == RANDOM:
        return 0.0
    if (own := sweep_rate(cell)) is not None:
        return own
    if learning_rate_file is None:
        return study.pretrain.learning_rate
    chosen = read_json(learning_rate_file)
    if study.architectures[cell.architecture].parametrisation == "mup":
        return float(chosen["rate"])
    if not chosen["rates"] and chosen["rate"] != study.pretrain.learning_rate:
        found, hint = (
            f"{chosen['rate']:g}, of former settings",
            "Run the rule `learning_rate` again; it takes a second.",
        )
        expected = f"pretrain.learning_rate, {study.pretrain.learning_rate:g}, as there is no sweep"
        raise InputError(f"{learning_rate_file}: rate", found, expected, hint)
    ratio = chosen["at_width"] / width_of(study, cell.architecture, cell.size)
    return float(chosen["rate"] * ratio ** (0.5 if study.pretrain.optimiser == "muon" else 1.0))
