"""Cells of two gloo processes, run by `test_world_size.py` as one training: `python rank_cells.py COHORT FOLDER`.

Each cell is trained once without a break into `FOLDER/<way>/through`, and once into `FOLDER/<way>/resumed`, where the
second process is told to stop half way and the training is started again. What it left then is kept in
`FOLDER/<way>/stopped`.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from small_training import run, small_study

from pipeline.config import Study
from pipeline.errors import Unfinished
from pipeline.grid import Cell
from pipeline.pretrain import lesson, stage
from pipeline.pretrain.engine.distributed import World, joined

CELL = Cell("swift_v2", "w6", 4, 24)
HALF = 15  # the last clip of the fourth step of eight
WAYS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {  # name -> settings of compute and of pretrain
    "data": ({"parallel": "data"}, {"ema": 0.9}),
    "fsdp": ({"parallel": "fsdp"}, {"ema": 0.9}),
    "fsdp in parts, Muon, a branch": (
        {"parallel": "fsdp", "micro_batch_clips": 1},
        {"optimiser": "muon", "schedule": "warmup-stable-decay", "branches": [0.625]},
    ),
}


def study_of(way: str, **compute: Any) -> Study:
    """Eight steps of four clips: two a process, or one after the other."""
    arrangement, pretrain = WAYS[way]
    return small_study({**arrangement, **compute}, batch_clips=4, **pretrain)


def stop_once(rank: int) -> None:
    """The second process gets a signal when it reads a clip; the next time nothing happens."""
    position = lesson.clip_position

    def interrupted(seed: int, at: int, *rest: Any) -> tuple[int, int]:
        if at == HALF and rank == 1:
            os.kill(os.getpid(), signal.SIGUSR2)
            lesson.clip_position = position
        return position(seed, at, *rest)

    lesson.clip_position = interrupted


def train_twice(way: str, cohort: Path, folder: Path, world: World) -> None:
    study = study_of(way)
    run(cohort, study, CELL, folder / "through")
    stop_once(world.rank)
    try:
        run(cohort, study, CELL, folder / "resumed")
        raise AssertionError("no signal came")
    except Unfinished as reason:
        (folder / f"{world.rank}.reason").write_text(str(reason))
    world.barrier()
    if world.first:
        shutil.copytree(folder / "resumed", folder / "stopped")
    world.barrier()
    run(cohort, study, CELL, folder / "resumed")


def main(cohort: Path, folder: Path) -> None:
    torch.set_num_threads(1)
    with joined("cpu") as world:

        @contextmanager
        def same_world(_: str) -> Any:
            yield world
            world.barrier()  # as `joined` has it: nobody leaves before the first process has written

        stage.joined = same_world  # processes that have met need not do so for each cell
        for way in WAYS:
            if world.first:
                (folder / way).mkdir(parents=True)
            world.barrier()
            train_twice(way, cohort, folder / way, world)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
