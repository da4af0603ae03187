"""Fifty trainings that are killed (SIGKILL), most of them inside the writing of a checkpoint, and go on: what is lost?

    make soak                                                               # a minute or two on two cores
    PYTHONPATH=tests/unit python tests/faults/soak_killed_runs.py --runs 10

A run is a tiny cell with a moving average and a branch, which writes a checkpoint after every step. It is killed at a
named point, in every third run at another one on top, and started again until it is done. A kill is put into the
product from here, by wrapping what the point is named after; `by the clock` is killed from outside at a random time.
After every kill each checkpoint under its final name is read; none but the one being written may be missing, and the
next start has to go on from the newest, else the run is behind. At the end `encoder.safetensors` has to be bitwise that
of a run that nobody killed. Exits 1 if any of it fails.

Children are forked from a process that has imported everything and computed nothing, so a start takes no time.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import cycle, islice
from multiprocessing import get_context
from pathlib import Path
from threading import current_thread, main_thread
from typing import Any, NamedTuple

os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np
import torch
from small_cohort import CONTRACT, DEMO, small_template

from pipeline.artefact import sha256_file, write_json
from pipeline.bold.clips import Runs
from pipeline.bold.shards import voxel_geometry, write_shard
from pipeline.bold.template import save_template
from pipeline.config import Study, load_study
from pipeline.grid import Cell
from pipeline.pretrain import lease
from pipeline.pretrain.engine import checkpoint
from pipeline.pretrain.engine.checkpoint import Store
from pipeline.pretrain.lease import attempts
from pipeline.pretrain.stage import run_cell

RUNS, KILLED_AGAIN, PATIENCE_S = 50, 3, 120.0
CELL = Cell("swift_v2", "w6", 4, 16)
TRAINING = {
    "steps": 6,
    "batch_clips": 2,
    "context_frames": 8,
    "validation_people": 2,
    "checkpoint_every_s": 1e-9,
    "schedule": "warmup-stable-decay",
    "decay": 0.5,
    "branches": [0.5],
    "ema": 0.9,
}
PASSES = 7  # of a point in a training, at the least


# --- where a run is killed -----------------------------------------------------------------------------------------


class Kill(NamedTuple):
    """A point, and how many times it is passed unharmed."""

    point: str
    passes: int


@dataclass
class Trap:
    """Kills this process when it is stepped on once too often."""

    passes: int

    def due(self) -> bool:
        """Whether this time is the last."""
        self.passes -= 1
        return self.passes < 0

    def step(self) -> None:
        if self.due():
            kill()


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(PATIENCE_S)  # a signal may take a moment, in which nothing must happen


Where = Callable[..., bool]  # arguments of a call -> whether it is at the point


def of_writer(*_: Any, **__: Any) -> bool:
    """Whether a checkpoint is being written: that is done in a thread."""
    return current_thread() is not main_thread()


def of_result(*_: Any, **__: Any) -> bool:
    return current_thread() is main_thread()


def on_checkpoint(path: Path, *others: Any, **_: Any) -> bool:
    """Whether a call is about a checkpoint under its final name."""
    return of_writer() and any(
        Path(name).name.startswith("step-") for name in (path, *others) if isinstance(name, Path)
    )


def before(owner: Any, name: str, where: Where, trap: Trap) -> None:
    """Set the trap in front of calls of `owner.name` at the point."""
    call = getattr(owner, name)

    def trapped(*given: Any, **named: Any) -> Any:
        if where(*given, **named):
            trap.step()
        return call(*given, **named)

    setattr(owner, name, trapped)


def after(owner: Any, name: str, where: Where, trap: Trap) -> None:
    """Set the trap behind calls of `owner.name` at the point."""
    call = getattr(owner, name)

    def trapped(*given: Any, **named: Any) -> Any:
        found = call(*given, **named)
        if where(*given, **named):
            trap.step()
        return found

    setattr(owner, name, trapped)


def amid(where: Where, trap: Trap) -> None:
    """Kill with half of a file written."""
    save_file = checkpoint.save_file

    def torn(tensors: Any, path: Path, metadata: Any) -> None:
        save_file(tensors, path, metadata=metadata)
        if where() and trap.due():
            os.truncate(path, path.stat().st_size // 2)
            kill()

    checkpoint.save_file = torn


def anywhere(*_: Any, **__: Any) -> bool:
    return True


Arm = Callable[[Trap], None]
IN_CHECKPOINT: dict[str, Arm] = {
    "before a checkpoint is written": partial(before, checkpoint, "_save", of_writer),
    "in the middle of its file": partial(amid, of_writer),
    "written, before fsync": partial(before, checkpoint, "_to_disk", of_writer),
    "flushed, before it is read back": partial(before, checkpoint, "_read_verified", of_writer),
    "verified, before its rename": partial(before, Path, "replace", on_checkpoint),
    "after its rename, before the folder's fsync": partial(after, Path, "replace", on_checkpoint),
    "before an older one is removed": partial(before, Path, "unlink", on_checkpoint),
    "after an older one is removed": partial(after, Path, "unlink", on_checkpoint),
}
A_LEASE, A_CLIP = "before its lease is written", "while a clip is read"  # once; two a step
IN_STEP: dict[str, Arm] = {
    A_LEASE: partial(before, lease, "_write", anywhere),
    A_CLIP: partial(before, Runs, "clip", anywhere),
    "between gradients and optimiser": partial(after, torch.autograd, "backward", anywhere),
}
IN_RESULT: dict[str, Arm] = {
    "in the middle of the encoder's file": partial(amid, of_result),
    "before the result is vouched for": partial(before, checkpoint, "write_json", anywhere),
    "before checkpoints are cleared": partial(before, Store, "clear", anywhere),
    "before it is published": partial(before, checkpoint, "publish", anywhere),
    "while it is published": partial(after, checkpoint, "publish", anywhere),
}
POINTS = IN_CHECKPOINT | IN_STEP | IN_RESULT
BY_THE_CLOCK = "by the clock"


def plans(runs: int) -> list[list[Kill]]:
    """What is to happen to each run: of 8, 5 are killed in the writing of a checkpoint."""
    rng = random.Random(0)
    inside, elsewhere = cycle(IN_CHECKPOINT), cycle([*IN_STEP, *IN_RESULT, BY_THE_CLOCK, BY_THE_CLOCK])
    order = cycle([inside, elsewhere, inside, elsewhere, inside, inside, elsewhere, inside])
    points = [next(kind) for kind in islice(order, runs)]
    planned = [[Kill(point, passes_of(point, rng))] for point in points]
    for again in planned[::KILLED_AGAIN]:
        point = rng.choice(list(IN_CHECKPOINT))
        again.insert(0, Kill(point, rng.randrange(3)))
    return planned


def passes_of(point: str, rng: random.Random) -> int:
    """How often a run passes a point unharmed: never, where it comes up once."""
    if point in IN_RESULT or point == A_LEASE:
        return 0
    return rng.randrange(2, 2 * PASSES) if point == A_CLIP else rng.randrange(PASSES - 2)


# --- a run ---------------------------------------------------------------------------------------------------------


@dataclass
class Outcome:
    """What became of a run."""

    point: str
    kills: int = 0
    read: int = 0  # checkpoints under their final names, over all kills
    unreadable: list[str] = field(default_factory=list)
    behind: int = 0  # starts that did not go on from the newest checkpoint, kills that cost more than the one written
    encoder: str = ""


def make_cohort(root: Path) -> None:
    """Four people to pretrain on and two to evaluate, one run of 16 frames each."""
    template, rng = small_template(), np.random.default_rng(0)
    save_template(template, root / "template")
    runs = []
    for person in range(6):
        name = {"dataset": "simulated", "subject": f"p{person}", "session": "1", "run": "1"}
        bold_TV = 100 + rng.normal(size=(16, template.voxels)).astype(np.float32)
        folder = root / f"shards/sub-p{person}/ses-1_run-1"
        entry = write_shard(folder, bold_TV, {**name, **CONTRACT}, geometry=voxel_geometry(template))
        runs.append({**name, **entry, "mean_fd_mm": 0.1, "overlap": 0.9, "content": str(person)})
    write_json(root / "manifest.json", {"runs": runs})
    write_json(root / "draws.json", {"0": [f"simulated/p{person}" for person in range(4)]})
    write_json(root / "evaluation_set.json", {"people": {"simulated": ["p4", "p5"]}, "hash": ""})


def small_study() -> Study:
    return load_study(DEMO, {"pretrain": TRAINING, "architectures": {"swift_v2": {"options": {"window": [2, 2, 2]}}}})


def train_in(root: Path, folder: Path) -> None:
    torch.set_num_threads(1)
    run_cell(
        small_study(),
        CELL,
        template_folder=root / "template",
        manifests={"simulated": root / "manifest.json"},
        draws=root / "draws.json",
        evaluation_set=root / "evaluation_set.json",
        learning_rate_file=None,
        output_folder=folder / "output",
        state_root=folder / "state",
    )


def forked(work: Callable[[], None], log: Path, killed_after_s: float = PATIENCE_S) -> int:
    """Do something in a child, which is killed after some seconds; its exit code, -9 if it was killed."""
    log.parent.mkdir(parents=True, exist_ok=True)
    child = os.fork()
    if child == 0:
        end_as(work, log)
    ends = time.monotonic() + killed_after_s
    while True:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > ends:
            os.kill(child, signal.SIGKILL)
            ends = float("inf")
        time.sleep(0.002)


def end_as(work: Callable[[], None], log: Path) -> None:
    """Do it in this process, with what it says in `log`, and end."""
    code = 1
    try:
        said = os.open(log, os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o644)
        os.dup2(said, 1)
        os.dup2(said, 2)
        work()
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def armed(root: Path, folder: Path, death: Kill) -> None:
    POINTS[death.point](Trap(death.passes))
    train_in(root, folder)


def start(root: Path, folder: Path, death: Kill | None, clock_s: float) -> bool:
    """Start a run, or start it again; whether it was killed, and not done before."""
    work, log = partial(train_in, root, folder), folder / "log"
    if death is None:
        code = forked(work, log)
    elif death.point == BY_THE_CLOCK:
        while (code := forked(work, log, clock_s)) == 0:  # it was faster: again from the start, with less time
            shutil.rmtree(folder)
            clock_s /= 2
    else:
        code = forked(partial(armed, root, folder, death), log)
    if code not in (0, -signal.SIGKILL):
        raise RuntimeError(f"{folder}: exit {code} at {death}:\n{log.read_text()}")
    return code != 0


def run(root: Path, through_s: float, number: int, deaths: list[Kill]) -> Outcome:
    """Kill a run as planned, let it end, and look at what it left on the way."""
    folder, outcome, rng, newest = root / f"run-{number}", Outcome(deaths[-1].point), random.Random(number), 0
    for death in [*deaths, None]:
        starts = len(attempts(folder / "state"))
        killed = start(root, folder, death, rng.uniform(0, 0.9 * through_s))
        outcome.kills += killed
        begun = attempts(folder / "state")[starts:]
        outcome.behind += bool(begun) and begun[0]["step"] < newest
        newest = inspect(folder, outcome)
        if killed and begun and death and death.point in IN_CHECKPOINT:
            # Every checkpoint that was passed unharmed is there, and was not removed for one that is not.
            outcome.behind += newest < begun[0]["step"] + death.passes
    outcome.unreadable += [path.name for path in (folder / "state").rglob("*.damaged")]
    outcome.encoder = sha256_file(folder / "output/encoder.safetensors")
    return outcome


def inspect(folder: Path, outcome: Outcome) -> int:
    """Read every checkpoint of a killed run; the step of the newest, 0 where there is none."""
    paths = sorted((folder / "state").glob("*/step-*.safetensors"))
    for path in paths:
        outcome.read += 1
        try:
            checkpoint._read_verified(path)
        except Exception as error:
            outcome.unreadable.append(f"{path.name} ({error})")
    return int(paths[-1].name[5:14]) if paths else 0


# --- all of them ---------------------------------------------------------------------------------------------------


def report(outcomes: list[Outcome], expected: str) -> Iterator[str]:
    """The table, a line a point."""
    yield f"{'killed':46}{'runs':>6}{'kills':>7}{'checkpoints read':>18}{'unreadable':>12}{'behind':>8}{'equal':>7}"
    of_point: dict[str, list[Outcome]] = defaultdict(list)
    for outcome in outcomes:
        of_point[outcome.point].append(outcome)
    groups = [(point, of_point[point]) for point in [*POINTS, BY_THE_CLOCK] if point in of_point]
    for point, group in [*groups, ("all", outcomes)]:
        kills, read = sum(one.kills for one in group), sum(one.read for one in group)
        unreadable, behind = sum(len(one.unreadable) for one in group), sum(one.behind for one in group)
        equal = sum(one.encoder == expected for one in group)
        yield f"{point:46}{len(group):6}{kills:7}{read:18}{unreadable:12}{behind:8}{equal:7}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=RUNS)
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    asked = parser.parse_args()
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as made:
        root = Path(made)
        if forked(partial(make_cohort, root), root / "log"):
            raise SystemExit((root / "log").read_text())
        before_s = time.monotonic()
        if forked(partial(train_in, root, root / "through"), root / "log"):
            raise SystemExit((root / "log").read_text())
        through_s, expected = time.monotonic() - before_s, sha256_file(root / "through/output/encoder.safetensors")
        with get_context("fork").Pool(asked.processes) as pool:
            work = [(root, through_s, number, deaths) for number, deaths in enumerate(plans(asked.runs))]
            outcomes = pool.starmap(run, work, chunksize=1)
    for line in report(outcomes, expected):
        print(line)
    unreadable = [name for outcome in outcomes for name in outcome.unreadable]
    unequal = [outcome.point for outcome in outcomes if outcome.encoder != expected]
    unkilled = [outcome.point for outcome in outcomes if not outcome.kills]
    behind = [outcome.point for outcome in outcomes if outcome.behind]
    print(f"{len(outcomes)} runs of {through_s:.1f} s in {time.monotonic() - started:.0f} s")
    for what, found in (
        ("unreadable", unreadable),
        ("unequal", unequal),
        ("never killed", unkilled),
        ("behind", behind),
    ):
        if found:
            print(f"{what}: {', '.join(found)}")
    return int(bool(unreadable or unequal or unkilled or behind))


if __name__ == "__main__":
    sys.exit(main())
