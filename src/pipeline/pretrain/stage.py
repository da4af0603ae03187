"""The stage that pretrains one cell, and the one that chooses an architecture's learning rate.

Legend: T frames; V columns of a shard.
"""

from __future__ import annotations

import resource
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from pipeline.artefact import digest, provenance, read_json, write_json, write_table, write_text
from pipeline.bold.clips import Runs, clip_position
from pipeline.bold.template import load_template
from pipeline.config import Study
from pipeline.errors import InputError
from pipeline.grid import Cell
from pipeline.models.cost import count_flops
from pipeline.models.learners.reconstruction import Reconstructor
from pipeline.models.mup import initialise, rate_factors
from pipeline.models.parts.voxels import Raster
from pipeline.pretrain.card import model_card
from pipeline.pretrain.checkpoint import Store, load_cell, save_model
from pipeline.pretrain.masks import hidden_tokens
from pipeline.pretrain.objectives import build_learner, objective_of
from pipeline.pretrain.objectives.batch import Objective
from pipeline.pretrain.objectives.contrastive import needs_pair
from pipeline.pretrain.people import Entry, Paths, People, choose_people, person
from pipeline.pretrain.plan import Plan, make_plan, peak_rate, width_of
from pipeline.pretrain.progress import progress
from pipeline.pretrain.rasters import raster_of
from pipeline.pretrain.samples import Samples, real_values
from pipeline.pretrain.trainer import COLUMNS, Training, train
from pipeline.pretrain.validation import Validation, validate
from pipeline.stages import VERSIONS
from pipeline.tables import HISTORY_SCHEMA, cell_columns

__all__ = ["choose_learning_rate", "load_cell", "run_cell"]

# Held-out clips and masks are the same for every cell, whatever it was trained with, so that R^2 has one meaning.
VALIDATION_SEED, VALIDATION_RATIO, VALIDATION_CLIPS = 1_000_003, 0.5, 2
PAIR_STREAM, DROPOUT_STREAM = 2, 3  # keep the draws of pairs of clips, and of dropout, apart from those of masks

Place = Callable[[int], tuple[int, int]]  # position of a sample -> its run and first frame


@dataclass(frozen=True)
class Lesson:
    """A plan with its model, what it sees and by what it is trained."""

    plan: Plan
    learner: Any
    raster: Raster
    context: int

    @property
    def inside(self) -> torch.Tensor | None:
        """Which values of a token are in the brain; None where nothing is cut into tokens."""
        if not isinstance(self.learner, Reconstructor):
            return None
        return real_values(self.learner, self.raster)

    def objective(self, ratio: float) -> Objective:
        """The objective, which hides that share of the tokens."""
        masks, inside, hide = self.plan.masks, self.inside, None
        if inside is not None:
            times = self.context // self.learner.encoder.frames_per_token
            places = inside.flatten(-2).any(-1).cpu()
            hide = partial(hidden_tokens, places=places, times=times, ratio=ratio, kind=masks["kind"])
        options = self.plan.objective_options
        return objective_of(self.plan.objective, self.learner, hide, masks["loss"], options, self.context)


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
    flatmap_folder: str | Path | None = None,
) -> None:
    """Pretrain one cell and write summary.json, history.parquet, encoder.safetensors and model_card.md.

    A person is trained on by the first `cell.frames` frames of their first run, so N x T counts unique frames exactly.
    Held out are evaluation people, or, for a cell of the learning-rate sweep, pretraining people it does not train on.
    `flatmap_folder` holds flatmap.npz; only models of flat maps need it.

    Raises
    ------
    InputError : people, runs or frames are missing, or a checkpoint belongs to other data.
    Unfinished : a signal came; the state under `state_root` lets the same command go on.
    """
    template, output = load_template(template_folder), Path(output_folder)
    people = choose_people(study, cell, manifests, draws, evaluation_set)
    plan = make_plan(study, cell, template, people, peak_rate(study, cell, learning_rate_file))
    raster = raster_of(plan.metadata, template, flatmap_folder, _device(study))
    lesson = prepare(study, plan, raster)
    objective = lesson.objective(plan.masks["ratio"])
    store = Store(Path(state_root) / plan.hash, {"cell_hash": plan.hash, "contract": plan.contract})
    samples = training_samples(lesson, people.trained)
    training = fit(lesson, objective, samples, store)
    scores = score(lesson, people.held_out)
    summary = summarise(study, lesson, people, training, costs(lesson, objective, samples))
    summary |= validation_columns(scores)
    collapsed = training.step > 0 and scores.effective_rank < study.pretrain.collapsed_rank
    summary["status"] = "collapsed" if collapsed and training.status == "completed" else training.status
    summary["provenance"] = provenance("pretrain", VERSIONS["pretrain"], plan.hash, {**manifests, "draws": draws})
    write_results(output, lesson, training, summary)
    store.clear()


def write_results(output: Path, lesson: Lesson, training: Training, summary: Mapping[str, Any]) -> None:
    """The four files of a cell; the summary last."""
    history = history_table(lesson.plan, training, summary["tokens"] // max(1, training.step))
    write_table(output / "history.parquet", history, HISTORY_SCHEMA, summary["provenance"])
    save_model(output / "encoder.safetensors", lesson.learner, lesson.plan.metadata)
    write_text(output / "model_card.md", model_card(summary, lesson.context))
    write_json(output / "summary.json", summary)


def prepare(study: Study, plan: Plan, raster: Raster) -> Lesson:
    """Build the learner, with fresh weights that the cell's seed alone decides."""
    torch.manual_seed(plan.cell.seed)
    learner: Any = build_learner(plan.model, plan.spec, plan.objective)
    if plan.base_spec is not None:
        initialise(learner, build_learner(plan.model, plan.base_spec, plan.objective))
    if plan.contract["kind"] == "flatmap":
        learner.encoder.set_cortex(raster.filled())
    context = study.context_frames(plan.cell.architecture)
    return Lesson(plan, learner.to(raster.index_V.device), raster, context)


def _device(study: Study) -> torch.device:
    wanted = study.compute.device
    if wanted == "auto":
        wanted = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(wanted)


def training_samples(lesson: Lesson, trained: list[Entry]) -> Samples:
    """Clips of the first frames of the people trained on, in the order of the cell's seed."""
    plan, context = lesson.plan, lesson.context
    runs, frame_counts = Runs(trained, plan.contract), [[plan.cell.frames]] * len(trained)

    def place(position: int) -> tuple[int, int]:
        return clip_position(plan.cell.seed, position, frame_counts, context)

    return _samples(lesson, runs, place, lambda _: plan.cell.frames, plan.cell.seed)


def held_out_samples(lesson: Lesson, held_out: list[Entry]) -> Samples:
    """Clips evenly spaced in the runs of held-out people."""
    runs, context = Runs(held_out, lesson.plan.contract), lesson.context

    def place(position: int) -> tuple[int, int]:
        run, clip = divmod(position, VALIDATION_CLIPS)
        return run, (runs.frames(run) - context) * (clip + 1) // (VALIDATION_CLIPS + 1)

    return _samples(lesson, runs, place, runs.frames, VALIDATION_SEED)


def _samples(lesson: Lesson, runs: Runs, place: Place, frames: Callable[[int], int], seed: int) -> Samples:
    context, plan = lesson.context, lesson.plan
    names = list(dict.fromkeys(person(entry) for entry in runs.entries))

    def clip_TV(position: int) -> np.ndarray:
        return runs.clip(*place(position), context)

    def of_pair(position: int, which: int) -> np.ndarray:
        run, _ = place(position)
        return runs.clip(run, apart(context, frames(run), seed, position)[which], context)

    def whose(position: int) -> int:
        return names.index(person(runs.entries[place(position)[0]]))

    if plan.objective == "contrastive" and needs_pair(plan.objective_options):
        first, second = partial(of_pair, which=0), partial(of_pair, which=1)
        return Samples(first, lesson.raster, seed, lesson.inside, second, whose)
    return Samples(clip_TV, lesson.raster, seed, lesson.inside, whose=whose)


def apart(context: int, frames: int, seed: int, position: int) -> tuple[int, int]:
    """First frames of two clips of a run that do not overlap, every such pair alike.

    Raises
    ------
    InputError : the frames hold no two clips.
    """
    slack = frames - 2 * context
    if slack < 0:
        hint = "Raise T in the grid, or shorten context_frames."
        raise InputError("objective contrastive", f"{frames} frames", f"room for two clips of {context}", hint)
    draw = np.random.default_rng([seed, PAIR_STREAM, position])
    # Of slack + 2 places for two clips, two: the earlier clip moves the later one on by its own length.
    early, late = sorted(int(place) for place in draw.choice(slack + 2, 2, replace=False))
    starts = early, late - 1 + context
    return starts if draw.integers(2) else (starts[1], starts[0])


def fit(lesson: Lesson, objective: Objective, samples: Samples, store: Store) -> Training:
    """Train the learner, from its last checkpoint on."""
    plan, recipe = lesson.plan, lesson.plan.recipe
    factors = None
    if plan.base_spec is not None:
        with torch.device("meta"):
            factors = rate_factors(lesson.learner, build_learner(plan.model, plan.base_spec, plan.objective))

    def loss_of(positions: range) -> torch.Tensor:
        # Dropout is a function of the step, also after a resume.
        torch.manual_seed(_seed_of(plan.cell.seed, DROPOUT_STREAM, positions.start))
        return objective.loss(samples.batch(positions, positions.start / (recipe.batch * recipe.steps)))

    def after_step(step: int) -> None:
        objective.after_step(step / recipe.steps)

    lesson.learner.train()
    report = progress(plan.cell.path, recipe.steps)
    return train(lesson.learner, loss_of, recipe, store, report, after_step, factors)


def _seed_of(*numbers: int) -> int:
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0])


def score(lesson: Lesson, held_out: list[Entry]) -> Validation:
    """Score the learner on held-out people."""
    person_K = [person(entry) for entry in held_out for _ in range(VALIDATION_CLIPS)]
    lesson.learner.eval()
    samples = held_out_samples(lesson, held_out)
    return validate(lesson.objective(VALIDATION_RATIO), lesson.learner.encoder, samples.batch, person_K)


def costs(lesson: Lesson, objective: Objective, samples: Samples) -> tuple[int, int]:
    """Operations of encoding a clip, and of a training step's share of a clip, counted as they run."""
    learner, batch = lesson.learner, samples.batch(range(2))
    with torch.no_grad():
        encoded = count_flops(learner.encoder, lambda: learner.encoder(batch.clip)).forward
    step = count_flops(learner, lambda: objective.loss(batch))
    return encoded // 2, (step.forward + step.backward) // 2


def summarise(
    study: Study, lesson: Lesson, people: People, training: Training, flops: tuple[int, int]
) -> dict[str, Any]:
    """What training cost and where it ended."""
    plan, encoder = lesson.plan, lesson.learner.encoder
    clip_tokens = lesson.context // encoder.frames_per_token * _places(lesson)
    parameters, whole = (
        sum(weights.numel() for weights in part.parameters() if weights.requires_grad)
        for part in (encoder, lesson.learner)
    )
    return {
        **cell_columns(plan.cell),
        "objective": plan.objective,
        "parameters": parameters,
        "decoder_parameters": whole - parameters,
        "flops_per_clip": float(flops[0]),
        "train_flops": float(flops[1] * plan.recipe.batch * training.step),
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


def _places(lesson: Lesson) -> int:
    """Places of a clip's tokens: those the learner cuts it into, else those of its features."""
    inside = lesson.inside
    if inside is not None:
        return prod(inside.shape[:-2])
    with torch.no_grad():
        features = lesson.learner.encoder(
            lesson.raster.lay(
                torch.zeros(1, lesson.context, len(lesson.raster.index_V), device=lesson.raster.index_V.device)
            )
        )
    return prod(features.shape[2:-1])


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
    chosen = {
        "architecture": architecture,
        "rate": ranked[0][1] if ranked else study.pretrain.learning_rate,
        "decided_by": "sweep" if ranked else "pretrain.learning_rate, because grid.learning_rate.rates is empty",
        "at_width": width_of(study, architecture, study.swept_size(architecture)),
        "rates": rates,
        "losses": losses,
        "statuses": [cell["status"] for cell in cells],
    }
    record = provenance("learning_rate", VERSIONS["learning_rate"], rates, {str(path.parent): path for path in paths})
    write_json(output, chosen | {"provenance": record})
