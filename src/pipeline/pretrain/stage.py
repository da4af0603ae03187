"""The stage that pretrains one cell.

A cell is trained by whoever holds its lease, in one process or several. Its finished files are kept with its state and
published from there, so that outputs that were deleted come back by the same command.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipeline.artefact import digest, provenance, write_json, write_table, write_text
from pipeline.bold.template import load_template
from pipeline.config import Compute, Study
from pipeline.errors import InputError, Unfinished
from pipeline.grid import Cell
from pipeline.models.mup import rate_factors
from pipeline.pretrain.card import model_card
from pipeline.pretrain.engine.blocks import checkpoint_blocks, compile_blocks, keep_float32, precision
from pipeline.pretrain.engine.checkpoint import Store, disk_fault, save_model
from pipeline.pretrain.engine.course import Training
from pipeline.pretrain.engine.distributed import StepModule, World, joined, shard
from pipeline.pretrain.engine.loader import Loader
from pipeline.pretrain.engine.schedule import total
from pipeline.pretrain.engine.state import whole
from pipeline.pretrain.engine.step import How, parts_of
from pipeline.pretrain.engine.trainer import Hooks, Judged, train
from pipeline.pretrain.kept import source_of, with_manifests
from pipeline.pretrain.lease import Held, Lease, attempts, note_attempt
from pipeline.pretrain.lesson import Costs, Lesson, costs, fresh_learner, prepare, score, training_samples
from pipeline.pretrain.objectives import build_learner, drawn, is_additive, total_of
from pipeline.pretrain.objectives.batch import Batch, Total
from pipeline.pretrain.people import Paths, People, choose_people
from pipeline.pretrain.plan import Plan, make_plan, peak_rate
from pipeline.pretrain.rasters import raster_of
from pipeline.pretrain.summary import history_table, summarise, validation_columns
from pipeline.pretrain.watch.progress import Progress
from pipeline.pretrain.watch.tensorboard import events
from pipeline.stages import VERSIONS
from pipeline.tables import HISTORY_SCHEMA

DROPOUT_STREAM = 3  # keeps the draws of dropout apart from those of clips, masks and pairs
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS)
FILES = ("encoder.safetensors", "history.parquet", "model_card.md", "summary.json")  # the summary last


@dataclass(frozen=True)
class Session:
    """One process of the training of one cell."""

    study: Study
    compute: Compute
    world: World
    lease: Lease | None  # the first process holds it
    state_root: Path
    people: People
    lesson: Lesson
    store: Store

    @property
    def plan(self) -> Plan:
        """What decides the cell's weights."""
        return self.lesson.plan

    @property
    def how(self) -> How:
        """What decides how its steps are computed."""
        return How(self.compute.micro_batch_clips, self.compute.parallel == "fsdp" and self.world.size > 1)


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
    `flatmap_folder` holds flatmap.npz; only models of flat maps need it. Started in several processes, as by torchrun,
    they train together.

    Raises
    ------
    InputError : people, runs or frames are missing, a checkpoint belongs to other data, or, on a cluster, start after
        start made no progress.
    Unfinished : a signal came, or somebody else trains the cell; the same command goes on, or finds the result.
    """
    compute, root = study.compute_of(cell.architecture, cell.size), Path(state_root)
    with told(cell, root), joined(_device(compute)) as world, held(world, root, cell) as lease:
        template = load_template(template_folder)
        people = choose_people(study, cell, manifests, draws, evaluation_set)
        plan = make_plan(study, cell, template, people, peak_rate(study, cell, learning_rate_file))
        scored_by = digest([[entry["manifest"] for entry in people.held_out], study.pretrain.collapsed_rank])
        store = open_store(plan, compute, world, root, lease, scored_by)
        if world.same(world.first and store.published(output_folder)):
            if world.first:
                print(f"{cell.path} was finished: published from {store.result_folder}.", file=sys.stderr)
            return
        raster = raster_of(plan.metadata, template, flatmap_folder, world.device)
        session = Session(study, compute, world, lease, root, people, prepare(study, plan, raster), store)
        cost = costs(session.lesson, training_samples(session.lesson, people.trained))
        training = fit(session)
        finished = unsharded(session)
        if finished is not None:
            inputs = with_manifests(cell, manifests, draws, evaluation_set, learning_rate_file)
            there = {name: path for name, path in inputs.items() if path is not None}
            record = provenance("pretrain", VERSIONS["pretrain"], plan.hash, there)
            keep(session, finished, training, cost, record, source_of(study, cell, inputs))
            store.published(output_folder)


@contextmanager
def told(cell: Cell, state_root: Path) -> Iterator[None]:
    """What a machine has too little of is told as such.

    Raises
    ------
    InputError : the disk or the memory of the GPU is full.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        hint = "Lower compute.micro_batch_clips, or set activation_checkpointing or parallel: fsdp for this size."
        raise InputError(f"cell {cell.path}", f"{error}".split(". ")[0], "room on the GPU", hint) from error
    except OSError as error:
        if error.errno not in FULL:
            raise
        raise disk_fault(error.filename or state_root, error) from error


@contextmanager
def held(world: World, state_root: Path, cell: Cell) -> Iterator[Lease | None]:
    """The lease of the cell, in the first process, for as long as the block runs.

    Raises
    ------
    Unfinished : somebody else has it; in every process alike.
    """
    lease: Lease | None = None
    refused: Held | None = None
    with ExitStack() as stack:
        if world.first:
            try:
                lease = stack.enter_context(Lease(state_root, cell.path))
            except Held as other:
                refused = other
        if said := world.same(str(refused) if refused else None):
            raise refused or Unfinished(said)
        yield lease


def open_store(
    plan: Plan, compute: Compute, world: World, state_root: Path, lease: Lease | None, scored_by: str
) -> Store:
    """Where the cell's state lies, and what a checkpoint there must have been made by."""
    arithmetic = {
        "device": world.device.type,
        "processes": world.size,
        "parallel": compute.parallel if world.size > 1 else "none",
        "micro_batch_clips": compute.micro_batch_clips,
        "compile": compute.compile,
        "threads": torch.get_num_threads() if world.device.type == "cpu" else None,
        "torch": torch.__version__,
    }
    identity = {"cell_hash": plan.hash, "contract": plan.contract}
    guard = lease.check if lease else None
    folder = state_root / plan.hash
    folder.mkdir(parents=True, exist_ok=True)  # a person may want to put a stop file there before the first checkpoint
    return Store(folder, identity, arithmetic, compute.any_world_size, guard, world.first, scored_by)


def fit(session: Session) -> Training:
    """Train the learner, from its last checkpoint on."""
    plan, lesson, world, recipe = session.plan, session.lesson, session.world, session.plan.recipe
    objective = lesson.objective(plan.masks["ratio"])
    check_parts(session, is_additive(objective))
    samples = training_samples(lesson, session.people.trained)
    factors = _rate_factors(lesson)
    root = StepModule(lesson.learner, lambda batch: total_of(objective, batch))
    arrange(session, root)
    begun: list[Training] = []

    def make(positions: range) -> tuple[Batch, int]:
        # All parts of a step are at one place of the schedule.
        batch = samples.batch(positions, positions.start // recipe.batch / recipe.steps)
        # Dropout is a function of the step and of the part, also after a resume.
        return drawn(objective, batch), _seed_of(plan.cell.seed, DROPOUT_STREAM, positions.start)

    def order() -> Iterator[range]:
        for step in begun[0].to_come():
            yield from parts_of(recipe.batch, step, world, session.compute.micro_batch_clips)

    def loss_of(positions: range) -> Total:
        batch, seed = loader.take(positions)
        seed_torch(seed, world.device)
        with precision(plan.precision, world.device):
            found: Total = root(batch)
        return found

    lesson.learner.train()
    with Loader(make, order(), session.compute.loaders) as loader, watched(session, begun.append) as hooks:
        hooks = replace(hooks, after_step=objective.after_step, stalled=lambda: loader.stalled_s)
        return train(lesson.learner, loss_of, recipe, session.store, hooks, world, session.how, factors, root)


def check_parts(session: Session, additive: bool) -> None:
    """Whether the objective allows a batch to be computed in parts.

    Raises
    ------
    InputError : it compares the clips of a batch with each other.
    """
    if additive or (session.world.size == 1 and session.compute.micro_batch_clips is None):
        return
    found = f"{session.world.size} process(es), micro_batch_clips {session.compute.micro_batch_clips}"
    hint = "Set gpus and nodes to 1 for its cells and leave micro_batch_clips empty."
    raise InputError(f"objective {session.plan.objective}", found, "the whole batch in one process", hint)


def arrange(session: Session, root: StepModule) -> None:
    """Put around the learner what makes it fit, or faster."""
    if session.plan.precision == "bfloat16":
        keep_float32(session.lesson.learner, session.world.device)
    if session.compute.activation_checkpointing:
        checkpoint_blocks(session.lesson.learner)
    if session.compute.compile:
        compile_blocks(session.lesson.learner)
    if session.how.sharded:
        shard(root, session.world)


@contextmanager
def watched(session: Session, begun: Callable[[Training], None]) -> Iterator[Hooks]:
    """What is told of a training while it runs; only the first process talks."""
    judge = _judge(session)
    if not session.world.first:
        yield Hooks(judge=judge, begun=begun)
        return
    recipe, lease = session.plan.recipe, session.lease
    folder = session.state_root / "tensorboard" if session.compute.tensorboard else None
    sink = events(None, 0)

    def start(training: Training) -> None:
        nonlocal sink
        begun(training)
        note_start(session, training.taken)
        sink = events(folder, training.step + 1)
        bar.begin(training.taken)

    def report(step: int, loss: float, rate: float) -> None:
        bar(step, loss, rate)
        if lease:
            lease.note(**bar.numbers)

    with Progress(session.plan.cell.path, total(recipe.legs), recipe.batch) as bar:
        try:
            yield Hooks(report, judge=judge, begun=start, sink=lambda step, values: sink.write(step, **values))
        finally:
            sink.close()


def note_start(session: Session, taken: int) -> None:
    """Write down that a process starts at this step.

    Raises
    ------
    InputError : the scheduler has started it again and again without a new checkpoint.
    """
    limit = session.compute.starts_without_progress
    row = note_attempt(session.state_root, taken, session.plan.hash)
    if session.lease is None or session.lease.record.get("job") is None or row % (limit + 1):
        return
    found = f"{limit} starts in a row at step {taken} without a new checkpoint"
    hint = "See the logs under state/slurm/; raise compute.memory_mb or runtime_min, or lower checkpoint_every_s."
    raise InputError(f"cell {session.plan.cell.path}", found, "progress between two starts", hint)


def _judge(session: Session) -> Callable[[], Judged | None]:
    def judge() -> Judged | None:
        lesson = unsharded(session)
        if lesson is None:
            return None
        scores = score(lesson, session.people.held_out)
        return Judged(scores.loss.value, scores.r2.value, validation_columns(scores))

    return judge


def unsharded(session: Session) -> Lesson | None:
    """The lesson with whole weights, in the first process; None in the others."""
    if not session.how.sharded:
        return session.lesson if session.world.first else None
    tensors = whole(session.lesson.learner.state_dict(), session.world)
    if tensors is None:
        return None
    learner = fresh_learner(session.plan, session.lesson.raster)
    learner.load_state_dict(tensors)
    return replace(session.lesson, learner=learner.to(session.world.device).train())


def keep(
    session: Session, lesson: Lesson, training: Training, cost: Costs, record: dict[str, Any], source: str
) -> None:
    """Score the learner and write the four files of the cell beside its state; then its checkpoints may go."""
    scores = score(lesson, session.people.held_out)
    if training.taken:
        training.write(val_loss=scores.loss.value, val_r2=scores.r2.value)
    summary = summarise(session.study, lesson, session.people, training, cost) | validation_columns(scores)
    collapsed = training.step > 0 and scores.effective_rank < session.study.pretrain.collapsed_rank
    summary["status"] = "collapsed" if collapsed and training.status == "completed" else training.status
    summary |= {"processes": session.world.size, "starts": _starts(session), "provenance": record}
    folder, store = session.store.result_folder, session.store
    write_table(folder / "history.parquet", history_table(session.plan, training, cost), HISTORY_SCHEMA, record)
    save_model(folder / "encoder.safetensors", lesson.learner, session.plan.metadata)
    write_text(folder / "model_card.md", model_card(summary, lesson.context))
    write_json(folder / "summary.json", summary)
    store.keep_result(FILES, source)
    store.clear()


def _starts(session: Session) -> int:
    return sum(start.get("identity") == session.plan.hash for start in attempts(session.state_root))


def _rate_factors(lesson: Lesson) -> dict[str, float] | None:
    plan = lesson.plan
    if plan.base_spec is None:
        return None
    with torch.device("meta"):
        return rate_factors(lesson.learner, build_learner(plan.model, plan.base_spec, plan.objective))


def seed_torch(seed: int, device: torch.device) -> None:
    """Seed the generator that a device draws from. `torch.manual_seed` seeds those of all kinds of devices, and writes
    down who asked it where there is none: 3 ms, a tenth of a small cell's step.
    """
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)


def _seed_of(*numbers: int) -> int:
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0])


def _device(compute: Compute) -> str:
    if compute.device == "cuda" and not torch.cuda.is_available():
        raise InputError("compute.device", "cuda, and no GPU that torch can use", "a GPU", "Set it to auto or cpu.")
    if compute.device == "cpu" or not torch.cuda.is_available():
        return "cpu"
    # A cell that was killed must end as one that ran through, also where kernels add up in any order they like.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.backends.cudnn.benchmark = False
    return "cuda"
