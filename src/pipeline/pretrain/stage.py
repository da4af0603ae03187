"""The stage that pretrains one cell, and the one that chooses an architecture's learning rate.

Legend: T frames; V voxels in the mask.
"""

from __future__ import annotations

import resource
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from pipeline.artefact import digest, provenance, read_json, write_json, write_table, write_text
from pipeline.bold.clips import Runs, clip_position
from pipeline.bold.people import cell_people
from pipeline.bold.template import Template, load_template
from pipeline.config import Study
from pipeline.errors import InputError
from pipeline.grid import RANDOM, Cell, cell_datasets, sweep_rate
from pipeline.models.reconstruction import MaskedReconstruction
from pipeline.pretrain.card import model_card
from pipeline.pretrain.checkpoint import Store, build_model, load_cell, save_model
from pipeline.pretrain.flops import Flops, count_flops
from pipeline.pretrain.objectives import masked_loss
from pipeline.pretrain.progress import progress
from pipeline.pretrain.samples import Box, Samples
from pipeline.pretrain.trainer import COLUMNS, Recipe, Training, train
from pipeline.pretrain.validation import Validation, validate
from pipeline.stages import VERSIONS
from pipeline.tables import HISTORY_SCHEMA, cell_columns

__all__ = ["choose_learning_rate", "load_cell", "run_cell"]

# Held-out clips and masks are the same for every cell, whatever it was trained with, so that R^2 has one meaning.
VALIDATION_SEED, VALIDATION_RATIO, VALIDATION_CLIPS = 1_000_003, 0.5, 2

Entry = Mapping[str, Any]
Paths = Mapping[str, str | Path]


@dataclass(frozen=True)
class People:
    """Who is trained on, by their first run, and who is held out, by all runs."""

    trained: list[Entry]
    held_out: list[Entry]

    @property
    def names(self) -> list[str]:
        """`dataset/subject` of those trained on."""
        return [_person(entry) for entry in self.trained]


@dataclass(frozen=True)
class Plan:
    """Everything that decides a cell's weights."""

    cell: Cell
    model: str
    spec: dict[str, Any]
    recipe: Recipe
    masks: dict[str, Any]
    contract: dict[str, Any]
    sources: list[tuple[str, str]]  # person and checksum of the run trained on

    @property
    def hash(self) -> str:
        """Stands for all of it; a checkpoint of another hash is refused."""
        neutral = replace(self, recipe=replace(self.recipe, checkpoint_every_s=0.0))
        return digest([asdict(neutral), VERSIONS["pretrain"]])


def run_cell(
    study: Study,
    cell: Cell,
    template_folder: str | Path,
    manifests: Paths,
    draws: str | Path,
    evaluation_set: str | Path,
    learning_rate_file: str | Path | None,
    output_folder: str | Path,
    state_root: str | Path,
) -> None:
    """Pretrain one cell and write summary.json, history.parquet, encoder.safetensors and model_card.md.

    A person is trained on by the first `cell.frames` frames of their first run, so N x T counts unique frames exactly.
    Held out are evaluation people, or, for a cell of the learning-rate sweep, pretraining people it does not train on.

    Raises
    ------
    InputError : people, runs or frames are missing, or a checkpoint belongs to other data.
    Unfinished : a signal came; the state under `state_root` lets the same command go on.
    """
    template, output = load_template(template_folder), Path(output_folder)
    people = choose_people(study, cell, manifests, draws, evaluation_set)
    plan = make_plan(study, cell, template, people, peak_rate(study, cell, learning_rate_file))
    torch.manual_seed(cell.seed)
    model = build_model(plan.model, plan.spec).to(_device(study))
    box = Box.of(template.mask_XYZ, template.voxel_index_V, model.encoder.patch, model.mask_token.device)
    samples = training_samples(study, plan, box, people.trained)
    store = Store(Path(state_root) / plan.hash, {"cell_hash": plan.hash, "contract": plan.contract})
    training = fit(plan, model, samples, store)
    scores = score(plan, model, held_out_samples(study, plan, box, people.held_out), people.held_out)
    context = study.pretrain.context_frames
    hidden = int(samples.hidden(0, context // model.encoder.patch[3]).sum())
    flops = count_flops(model, template.shape, context, hidden)
    summary = summarise(study, plan, model, people, flops, training) | validation_columns(scores)
    collapsed = training.step > 0 and scores.effective_rank < study.pretrain.collapsed_rank
    summary["status"] = "collapsed" if collapsed and training.status == "completed" else training.status
    summary["provenance"] = provenance("pretrain", VERSIONS["pretrain"], plan.hash, {**manifests, "draws": draws})
    write_results(output, plan, model, training, summary)
    store.clear()


def write_results(
    output: Path, plan: Plan, model: MaskedReconstruction, training: Training, summary: Mapping[str, Any]
) -> None:
    """The four files of a cell; the summary last."""
    history = history_table(plan, training, summary["tokens"] // max(1, training.step))
    write_table(output / "history.parquet", history, HISTORY_SCHEMA, summary["provenance"])
    save_model(output / "encoder.safetensors", model, encoder_metadata(plan))
    write_text(output / "model_card.md", model_card(summary, plan.spec["context_frames"]))
    write_json(output / "summary.json", summary)


def choose_people(study: Study, cell: Cell, manifests: Paths, draws: str | Path, evaluation_set: str | Path) -> People:
    """Who is trained on and who is held out.

    Raises
    ------
    InputError : too few people, or a first run shorter than `cell.frames`.
    """
    runs = _runs_by_person(manifests)
    datasets = cell_datasets(study, cell)
    names = cell_people(Path(draws), cell.draw, cell.subjects, datasets)
    if sweep_rate(cell) is None:
        kept = read_json(evaluation_set)["people"]
        candidates = [f"{name}/{subject}" for name in datasets for subject in kept.get(name, [])]
        held_out = sorted(candidates, key=digest)
    else:
        everyone = [name for name in read_json(draws)[str(cell.draw)] if name.split("/")[0] in datasets]
        held_out = [name for name in everyone if name not in names]
    held_out = [name for name in held_out if name in runs][: study.pretrain.validation_people]
    if not held_out:
        hint = "Give a pretraining data set evaluation_people; leave people over in grid.learning_rate.subjects."
        raise InputError(f"cell {cell.path}", "nobody held out", "people for the validation loss", hint)
    trained = [_first_run(runs, name, cell.frames) for name in names]
    return People(trained, [entry for name in held_out for entry in runs[name]])


def _runs_by_person(manifests: Paths) -> dict[str, list[Entry]]:
    runs: dict[str, list[Entry]] = {}
    for manifest in manifests.values():
        for entry in sorted(read_json(manifest)["runs"], key=lambda entry: (entry["session"], entry["run"])):
            runs.setdefault(_person(entry), []).append(entry)
    return runs


def _person(entry: Entry) -> str:
    return f"{entry['dataset']}/{entry['subject']}"


def _first_run(runs: Mapping[str, Sequence[Entry]], name: str, frames: int) -> Entry:
    entry = runs[name][0]
    if entry["frames"] < frames:
        hint = "Lower T in the grid, or raise shards.min_frames so that short runs are quarantined."
        raise InputError(entry["path"], f"{entry['frames']} frames", f"at least T = {frames}", hint)
    return entry


def peak_rate(study: Study, cell: Cell, learning_rate_file: str | Path | None) -> float:
    """Learning rate of a cell: its own in the sweep, 0 untrained, else the chosen one scaled by the ratio of widths.

    The update of a hidden matrix by Adam changes its output in proportion to the width, hence the ratio.
    Source: Yang et al. (2022), Tensor Programs V.
    """
    if cell.variant == RANDOM:
        return 0.0
    if (own := sweep_rate(cell)) is not None:
        return own
    if learning_rate_file is None:
        return study.pretrain.learning_rate
    chosen = read_json(learning_rate_file)
    return float(chosen["rate"] * chosen["at_width"] / study.architectures[cell.architecture].sizes[cell.size].width)


def make_plan(study: Study, cell: Cell, template: Template, people: People, learning_rate: float) -> Plan:
    """Put together what decides the cell's weights."""
    architecture, settings = study.architectures[cell.architecture], study.pretrain
    spec: dict[str, Any] = {"patch": [*template.patch, 1], "context_frames": settings.context_frames}
    spec |= architecture.sizes[cell.size].model_dump(mode="json") | architecture.options
    spec["grid"] = [voxels // edge for voxels, edge in zip(template.shape, spec["patch"][:3], strict=True)]
    recipe = Recipe(
        steps=0 if cell.variant == RANDOM else settings.steps,
        batch=settings.batch_clips,
        learning_rate=learning_rate,
        warmup=settings.warmup,
        weight_decay=settings.weight_decay,
        clip_norm=settings.clip_norm,
        diverged_above=settings.diverged_above,
        checkpoint_every_s=settings.checkpoint_every_s,
    )
    masks = {"ratio": architecture.mask_ratio, "kind": settings.mask, "loss": settings.loss}
    contract = {"template": template.key, "space": template.space, "normalisation": "voxel-z"}
    contract |= {"tr_s": people.trained[0]["tr_s"]}
    sources = [(_person(entry), entry["manifest"]) for entry in people.trained]
    return Plan(cell, architecture.model, spec, recipe, masks, contract, sources)


def encoder_metadata(plan: Plan) -> dict[str, Any]:
    """What stands in the weights' header; it holds no time, so equal training gives equal bytes."""
    named = {"cell": plan.cell.path, "cell_hash": plan.hash, "masks": plan.masks}
    return {"model": plan.model, "spec": plan.spec, "contract": plan.contract, **named}


def _device(study: Study) -> torch.device:
    wanted = study.compute.device
    if wanted == "auto":
        wanted = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(wanted)


def training_samples(study: Study, plan: Plan, box: Box, trained: list[Entry]) -> Samples:
    """Clips of the first frames of the people trained on, in the order of the cell's seed."""
    cell, context = plan.cell, study.pretrain.context_frames
    runs = Runs(trained, plan.contract)
    frame_counts = [[cell.frames]] * len(trained)

    def clip_TV(position: int) -> np.ndarray:
        return runs.clip(*clip_position(cell.seed, position, frame_counts, context), context)

    return Samples(clip_TV, box, cell.seed, plan.masks["ratio"], plan.masks["kind"])


def held_out_samples(study: Study, plan: Plan, box: Box, held_out: list[Entry]) -> Samples:
    """Clips evenly spaced in the runs of held-out people."""
    runs, context = Runs(held_out, plan.contract), study.pretrain.context_frames

    def clip_TV(position: int) -> np.ndarray:
        run, clip = divmod(position, VALIDATION_CLIPS)
        start = (runs.frames(run) - context) * (clip + 1) // (VALIDATION_CLIPS + 1)
        return runs.clip(run, start, context)

    return Samples(clip_TV, box, VALIDATION_SEED, VALIDATION_RATIO, plan.masks["kind"])


def fit(plan: Plan, model: MaskedReconstruction, samples: Samples, store: Store) -> Training:
    """Train the model, from its last checkpoint on."""
    loss = plan.masks["loss"]

    def loss_of(positions: range) -> torch.Tensor:
        return masked_loss(samples.reconstruct(model, positions), loss)

    return train(model, loss_of, plan.recipe, store, progress(plan.cell.path, plan.recipe.steps))


def score(plan: Plan, model: MaskedReconstruction, samples: Samples, held_out: list[Entry]) -> Validation:
    """Score the model on held-out people."""
    person_K = [_person(entry) for entry in held_out for _ in range(VALIDATION_CLIPS)]
    return validate(partial(samples.reconstruct, model), person_K, plan.masks["loss"])


def summarise(
    study: Study, plan: Plan, model: MaskedReconstruction, people: People, flops: Flops, training: Training
) -> dict[str, Any]:
    """What training cost and where it ended."""
    context = study.pretrain.context_frames
    clip_tokens = int(np.prod(model.encoder.grids[0])) * (context // model.encoder.patch[3])
    encoder, whole = (sum(weights.numel() for weights in part.parameters()) for part in (model.encoder, model))
    return {
        **cell_columns(plan.cell),
        "parameters": encoder,
        "decoder_parameters": whole - encoder,
        "flops_per_clip": float(flops.forward),
        "train_flops": float(flops.step * plan.recipe.batch * training.step),
        "steps": training.step,
        "skipped_steps": training.skipped,
        "tokens": training.step * plan.recipe.batch * clip_tokens,
        "unique_frames": plan.cell.subjects * plan.cell.frames,
        "learning_rate": plan.recipe.learning_rate,
        "first_loss": _mean(training.losses[: max(1, training.step // 20)]),
        "train_loss": _mean(training.losses[-max(1, training.step // 10) :]),
        "seconds": training.seconds,
        "peak_memory_mb": _peak_memory_mb(),
        "people": people.names,
        "people_hash": digest(people.names),
        "datasets": sorted({entry["dataset"] for entry in people.trained}),
        "simulated": any(study.datasets[entry["dataset"]].simulated for entry in people.trained),
        "cell_hash": plan.hash,
        "contract": plan.contract,
    }


def _mean(losses: torch.Tensor) -> float | None:
    """Mean over the steps that were not skipped; None where there is none."""
    kept = losses[losses.isfinite()]
    return float(kept.mean()) if len(kept) else None


def _peak_memory_mb() -> float:
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


def validation_columns(scores: Validation) -> dict[str, Any]:
    """Held-out scores under the names of the summary; None for what is not a number."""
    columns: dict[str, Any] = {"n_validation_people": scores.people, "effective_rank": scores.effective_rank}
    for name, interval in (("val_loss", scores.loss), ("val_r2", scores.r2)):
        columns |= {name: interval.value, f"{name}_low": interval.low, f"{name}_high": interval.high}
    return {name: value if np.isfinite(value) else None for name, value in columns.items()}


def history_table(plan: Plan, training: Training, step_tokens: int) -> pd.DataFrame:
    """One row a step."""
    table = pd.DataFrame(training.history[: training.step].numpy(), columns=list(COLUMNS))
    step = np.arange(1, training.step + 1)
    return table.assign(step=step, tokens=step * step_tokens, **cell_columns(plan.cell))


def choose_learning_rate(study: Study, architecture: str, summaries: Iterable[str | Path], output: str | Path) -> None:
    """Write lr.json: the rate of the sweep cell with the lowest held-out loss, or the configured one without a sweep.

    Raises
    ------
    InputError : no cell of the sweep completed.
    """
    paths = [Path(path) for path in summaries]
    cells = [read_json(path) for path in paths]
    rates = [cell["learning_rate"] for cell in cells]
    losses = [cell["val_loss"] if cell["status"] == "completed" else None for cell in cells]
    ranked = sorted((loss, rate) for loss, rate in zip(losses, rates, strict=True) if loss is not None)
    if cells and not ranked:
        found = ", ".join(f"{rate:g}: {cell['status']}" for rate, cell in zip(rates, cells, strict=True))
        hint = "Add lower rates."
        raise InputError("grid.learning_rate.rates", found, f"a rate at which {architecture} trains", hint)
    swept = study.architectures[architecture].sizes[study.grid.learning_rate.size]
    chosen = {
        "architecture": architecture,
        "rate": ranked[0][1] if ranked else study.pretrain.learning_rate,
        "decided_by": "sweep" if ranked else "pretrain.learning_rate, because grid.learning_rate.rates is empty",
        "at_width": swept.width,
        "rates": rates,
        "losses": losses,
        "statuses": [cell["status"] for cell in cells],
    }
    record = provenance("learning_rate", VERSIONS["learning_rate"], rates, {str(path.parent): path for path in paths})
    write_json(output, chosen | {"provenance": record})
