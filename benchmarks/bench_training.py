"""What the training loop takes beside forward, backward and optimiser: the loop itself, waiting for clips, checkpoints.

    python benchmarks/bench_training.py                     # sizes of the demo and a checkpoint, some minutes
    python benchmarks/bench_training.py --only checkpoint --folder /scratch
    python benchmarks/bench_training.py --only gpu          # 9 M, 66 M and 264 M; with --tiny the same path on a CPU

Every size is trained as a cell is, by `pipeline.pretrain.stage.run_cell` on shards. The loop's share of a step is what
is neither forward, backward nor optimiser, all four timed inside the cell's own steps; the median over steps counts.
After each of them comes one of a bare loop: forward, backward and optimiser of the same learner on one batch that lies
ready. As both alternate step by step, a busy machine disturbs them alike; `bare : cell` also shows what the threads
that read clips take away from the model.
"""

from __future__ import annotations

import argparse
import math
import os
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any
from unittest.mock import patch

import numpy as np
import pandas as pd
import torch

from pipeline.artefact import read_json, write_json
from pipeline.bold.shards import voxel_geometry, write_shard
from pipeline.bold.template import build_template, load_template, save_template
from pipeline.config import Study, load_study
from pipeline.grid import Cell
from pipeline.models.ladder import ladder
from pipeline.pretrain.engine import trainer
from pipeline.pretrain.engine.blocks import compile_blocks, precision
from pipeline.pretrain.engine.checkpoint import Store
from pipeline.pretrain.engine.distributed import StepModule
from pipeline.pretrain.engine.optimiser import Optimiser
from pipeline.pretrain.engine.state import whole
from pipeline.pretrain.lesson import Lesson, prepare, training_samples
from pipeline.pretrain.objectives import drawn
from pipeline.pretrain.objectives.batch import Batch
from pipeline.pretrain.people import People, choose_people
from pipeline.pretrain.plan import make_plan
from pipeline.pretrain.rasters import raster_of
from pipeline.pretrain.stage import run_cell

DEMO = Path(__file__).resolve().parents[1] / "config/demo.yaml"
STEPS, PEOPLE, FRAMES = 110, 8, 160
INTERVAL_S = 1800.0  # between checkpoints
PARAMETERS = 66_000_000
PEAK_TFLOPS = {"H200": 989.0, "H100": 989.0, "A100": 312.0, "L40S": 362.0, "A40": 149.7}  # dense bf16, by the vendor
GPU_SIZES = {"w36": 16, "w96": 8, "w192": 4}  # 9 M, 66 M, 264 M, and clips a step


@dataclass(frozen=True)
class Bench:
    """A study with the shards of its people, and the architectures of which cells are trained."""

    study: Study
    root: Path

    @property
    def inputs(self) -> dict[str, Any]:
        return {
            "manifests": {"simulated": self.root / "manifest.json"},
            "draws": self.root / "draws.json",
            "evaluation_set": self.root / "evaluation_set.json",
        }

    def train(self, cell: Cell, folder: Path) -> tuple[pd.DataFrame, dict[str, Any]]:
        """Train a cell; its history and summary."""
        template = self.root / "template"
        run_cell(self.study, cell, template, **self.inputs, **_nothing(), output_folder=folder, state_root=folder / "s")
        return pd.read_parquet(folder / "history.parquet"), read_json(folder / "summary.json")

    def lesson(self, cell: Cell) -> tuple[Lesson, Batch]:
        """The learner that `train` would train, and a batch that lies ready."""
        people: People = choose_people(self.study, cell, **self.inputs)
        template = load_template(self.root / "template")
        plan = make_plan(self.study, cell, template, people, 1e-3)
        lesson = prepare(self.study, plan, raster_of(plan.metadata, template, None, device()))
        samples = training_samples(lesson, people.trained)
        batch = samples.batch(range(plan.recipe.batch))
        return lesson, drawn(lesson.objective(plan.masks["ratio"]), batch)


def _nothing() -> dict[str, None]:
    return {"learning_rate_file": None}


def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def make_bench(root: Path, changes: Mapping[str, Any]) -> Bench:
    """Shards of noise: `PEOPLE` to pretrain on and one held out, a run each."""
    study, rng = load_study(DEMO, dict(changes)), np.random.default_rng(0)
    template = build_template(study.template)
    save_template(template, root / "template")
    runs = []
    for person in range(PEOPLE + 1):
        name = {"dataset": "simulated", "subject": f"p{person}", "session": "1", "run": "1"}
        bold_TV = 100 + rng.standard_normal((FRAMES, template.voxels), dtype=np.float32)
        facts = {"tr_s": 1.5, "dropped": 0, "censoring": "none", "denoising": "none", "resampling": "none"}
        entry = write_shard(root / f"p{person}", bold_TV, {**name, **facts}, geometry=voxel_geometry(template))
        runs.append({**name, **entry, "mean_fd_mm": 0.1, "overlap": 0.9, "content": str(person)})
    write_json(root / "manifest.json", {"runs": runs})
    write_json(root / "draws.json", {"0": [f"simulated/p{person}" for person in range(PEOPLE)]})
    write_json(root / "evaluation_set.json", {"people": {"simulated": [f"p{PEOPLE}"]}, "hash": ""})
    return Bench(study, root)


def row(what: str, *numbers: str) -> None:
    print(f"{what:34} " + " ".join(f"{number:>13}" for number in numbers), flush=True)


# --- a cell beside a bare loop -------------------------------------------------------------------------------------


class Bare:
    """Forward, backward and optimiser on one batch, and nothing else."""

    def __init__(self, bench: Bench, cell: Cell) -> None:
        lesson, self.batch = bench.lesson(cell)
        self.plan, self.learner = lesson.plan, lesson.learner.train()
        self.objective = lesson.objective(self.plan.masks["ratio"])
        self.optimiser = Optimiser(self.learner, self.plan.recipe.weight_decay)
        if bench.study.compute.compile:
            compile_blocks(self.learner)

    def step(self) -> None:
        with precision(self.plan.precision, device()):
            loss = self.objective.loss(self.batch)
        self.learner.zero_grad()
        torch.autograd.backward(loss)
        self.optimiser.step(1e-3)


def timed(call: Callable[..., Any], *given: Any, **named: Any) -> tuple[Any, float]:
    """What a call returns, and its seconds."""
    synchronise()
    started = time.perf_counter()
    found = call(*given, **named)
    synchronise()
    return found, time.perf_counter() - started


def synchronise() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


@dataclass
class Measured:
    """Seconds of each step of a cell, of what it is made of, and of the step of the bare loop beside it."""

    cell_s: np.ndarray
    work_s: np.ndarray  # forward, backward and optimiser, inside `cell_s`
    stalled_s: np.ndarray  # waiting for data, inside `cell_s`
    bare_s: np.ndarray
    parameters: int

    @property
    def numbers(self) -> tuple[str, ...]:
        """Cells of a row under HEADER."""
        loop, ratio = 1 - np.median(self.work_s / self.cell_s), np.median(self.bare_s / self.cell_s)
        stalled = self.stalled_s.sum() / self.cell_s.sum()
        step = f"{1e3 * np.median(self.cell_s):.1f} ms"
        return f"{self.parameters:,}", step, f"{loop:.1%}", f"{stalled:.1%}", f"{ratio:.3f}"


HEADER = ("parameters", "step", "loop", "waits for data", "bare : cell")


def measure(bench: Bench, cell: Cell) -> Measured:
    """Train a cell with a step of the bare loop after each of its own."""
    bare, run_step, work_s = Bare(bench, cell), trainer.run_step, 0.0
    steps: list[tuple[float, float, float]] = []

    def counted(call: Callable[..., Any]) -> Callable[..., Any]:
        def counting(*given: Any, **named: Any) -> Any:
            nonlocal work_s
            found, seconds = timed(call, *given, **named)
            work_s += seconds
            return found

        return counting

    def both(*given: Any) -> None:
        nonlocal work_s
        work_s = 0.0
        _, cell_s = timed(run_step, *given)
        steps.append((cell_s, work_s, timed(bare.step)[1]))

    with tempfile.TemporaryDirectory(dir=bench.root) as folder, ExitStack() as patched:
        for owner, name in ((StepModule, "forward"), (torch.autograd, "backward"), (Optimiser, "step")):
            patched.enter_context(patch.object(owner, name, counted(getattr(owner, name))))
        patched.enter_context(patch.object(trainer, "run_step", both))
        history, summary = bench.train(cell, Path(folder))
    late = slice(len(steps) // 4, None)  # what is compiled or allocated once lies before
    cell_s, of_work_s, bare_s = np.array(steps[late]).T
    stalled_s = np.diff(history["data_seconds"], prepend=0.0)[late]
    return Measured(cell_s, of_work_s, stalled_s, bare_s, summary["parameters"])


def overhead(root: Path, steps: int) -> None:
    """Every rung of the demo, both architectures."""
    torch.set_num_threads(1)  # as `compute.threads` of the demo; the other core is for the threads that read
    bench = make_bench(root, {"pretrain": {"steps": steps, "validation_people": 1}})
    row("sizes of the demo, one thread", *HEADER)
    for architecture in bench.study.architectures:
        for size in bench.study.architectures[architecture].sizes:
            row(f"{architecture} {size}", *measure(bench, Cell(architecture, size, PEOPLE, FRAMES)).numbers)


# --- checkpoints ---------------------------------------------------------------------------------------------------


def checkpoints(root: Path, parameters: int) -> None:
    """Weights and two moments in float32: what the training waits for, and what a thread does meanwhile."""
    blocks = 40
    state = {
        f"{kind}.{block}": torch.randn(parameters // blocks) for kind in ("w", "m", "v") for block in range(blocks)
    }
    state = {name: value.to(device()) for name, value in state.items()}
    store, size_gb = (
        Store(root / "state", {"cell_hash": "bench"}),
        sum(4 * value.numel() for value in state.values()) / 1e9,
    )
    copied_s, handed_s, whole_s = [], [], []
    for step in range(3):
        synchronise()
        started = time.perf_counter()
        copies = whole(state)
        copied_s.append(time.perf_counter() - started)
        assert copies is not None
        started = time.perf_counter()
        store.save_later(step, copies, {"step": step})
        handed_s.append(time.perf_counter() - started)
        del copies
        store.wait()
        whole_s.append(time.perf_counter() - started + copied_s[-1])
    started = time.perf_counter()
    store.load()
    load_s = time.perf_counter() - started
    blocking, total = median(copied_s) + median(handed_s), median(whole_s)
    row("a checkpoint", "GB", "blocks", "in all", "blocks : all", "of 30 minutes", "loads in")
    shares = f"{blocking / total:.2f}", f"{blocking / INTERVAL_S:.3%}"
    row(
        f"{parameters / 1e6:g} M parameters, AdamW",
        f"{size_gb:.2f}",
        f"{blocking:.2f} s",
        f"{total:.2f} s",
        *shares,
        f"{load_s:.2f} s",
    )
    store.clear()


# --- a GPU ---------------------------------------------------------------------------------------------------------


def gpu(root: Path, tiny: bool) -> None:
    """Clips/s, model FLOPs utilisation and waiting for data; with `tiny`, a narrow model on few voxels."""
    sizes = {"w12": 2} if tiny else GPU_SIZES
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    peak = next((number for key, number in PEAK_TFLOPS.items() if key in name), math.nan)
    print(f"{name}: swift_v2, bf16{'' if tiny else ', torch.compile, clips of 96 x 108 x 96 voxels and 20 frames'}")
    row("size", *HEADER, "clips/s", "utilisation")
    for size, clips in sizes.items():
        with tempfile.TemporaryDirectory(dir=root) as folder:
            bench = make_bench(Path(folder), gpu_settings(size, clips, tiny))
            try:
                found = measure(bench, Cell("swift_v2", size, PEOPLE, FRAMES))
                rate, flops = throughput(bench, Cell("swift_v2", size, PEOPLE, FRAMES))
            except torch.OutOfMemoryError:
                row(f"{size}, {clips} clips a step", "too large")
                continue
        row(f"{size}, {clips} clips a step", *found.numbers, f"{rate:.1f}", f"{rate * flops / 1e12 / peak:.1%}")


def throughput(bench: Bench, cell: Cell) -> tuple[float, float]:
    """Clips/s of a training that nobody disturbs, and what a clip of a step takes, FLOPs."""
    with tempfile.TemporaryDirectory(dir=bench.root) as folder:
        history, summary = bench.train(cell, Path(folder))
    clips, late = summary["batch_clips"], history["seconds"].iloc[len(history) // 2 :]
    rate = clips * (len(late) - 1) / (late.iloc[-1] - late.iloc[0])
    return rate, summary["train_flops"] / (len(history) * clips)


def gpu_settings(size: str, clips: int, tiny: bool) -> dict[str, Any]:
    """Changes to the demo that make it a cell of the paper."""
    changes: dict[str, Any] = {"pretrain": {"steps": 24, "batch_clips": clips, "precision": "bfloat16"}}
    changes["pretrain"]["validation_people"] = 1
    if not tiny:
        changes["template"] = {"resolution_mm": 2, "shape": [96, 108, 96]}
        rung: dict[str, Any] = dict(ladder(int(size[1:])))
        sizes = {size: {name: list(value) if isinstance(value, tuple) else value for name, value in rung.items()}}
        changes["architectures"] = {"swift_v2": {"sizes": sizes, "options": {"window": [4, 4, 4]}}}
        changes["compute"] = {"compile": True, "loaders": 8}
    return changes


SECTIONS = ("overhead", "checkpoint", "gpu")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=SECTIONS)
    parser.add_argument("--steps", type=int, default=STEPS, help="of each size of the demo")
    parser.add_argument("--parameters", type=int, default=PARAMETERS, help="of the checkpoint")
    parser.add_argument("--tiny", action="store_true", help="section gpu with a narrow model on few voxels")
    parser.add_argument("--folder", default=None, help="where the temporary folder is made")
    asked = parser.parse_args()
    chosen = asked.only or [name for name in SECTIONS if name != "gpu" or torch.cuda.is_available()]
    with tempfile.TemporaryDirectory(dir=asked.folder) as made:
        root = Path(made)
        if "overhead" in chosen:
            overhead(root, asked.steps)
        if "checkpoint" in chosen:
            checkpoints(root, asked.parameters)
        if "gpu" in chosen:
            gpu(root, asked.tiny)


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "2")
    main()
