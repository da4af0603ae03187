"""What runs on the nodes: the same verb as on a laptop, told of signals, requeued by exactly one owner.

SLURM owns a job and its requeueing from submission to end. A signal (before the time limit, or of a preemption) makes
the training save and stop; if SLURM still counts the job as running then, submitit asks it, once, to requeue the job.
Otherwise SLURM has requeued or cancelled it already, and asking again would bring a cancelled job back.
"""

from __future__ import annotations

import os
import signal
import sys
import time
import traceback
from dataclasses import dataclass
from pathlib import Path

from pipeline.artefact import read_json, write_json
from pipeline.errors import EXIT_BAD_INPUT, EXIT_BUG, EXIT_DONE, EXIT_UNFINISHED, InputError, Unfinished
from pipeline.pretrain.launch import queue
from pipeline.pretrain.launch.local import train_here
from pipeline.pretrain.lease import Held, Lost, attempts

OUTCOME = "outcome.json"


def write_outcome(state: Path, code: int, message: str, job: str | None) -> None:
    """Say how a cell's job ended, or that SLURM took none (`job` None), for the broker and `pipeline status`."""
    when = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    write_json(state / OUTCOME, {"code": code, "message": message, "job": job, "when": when})


class Requeue(Exception):
    """The training has saved and stopped because a signal came."""


@dataclass
class Training:
    """A cell's training as submitit calls it, once in each process of a job.

    config, cell, output, threads : of the verb `pretrain`; paths are absolute, or relative to where it was submitted.
    state : state root of the cell, where `outcome.json` says how the job ended.
    limit : starts in a row that may end before training begins.
    """

    config: str
    cell: str
    output: str
    threads: int
    state: str
    limit: int = 5

    @property
    def command(self) -> list[str]:
        """The same training as typed on a command line, which results name in their provenance."""
        paths = ["--config", self.config, "--cell", self.cell, "--output", self.output]
        return ["pipeline", "pretrain", *paths, "--threads", str(self.threads)]

    def __call__(self) -> None:
        """Train; end with the exit code of the command, or do not return because the job is requeued."""
        _join_ranks()
        sys.argv = self.command
        try:
            code, message = self._train()
        except Requeue:
            _requeue()
            return
        # Of several processes the first speaks; one that fails does, too, since its end takes the first along.
        if _first() or (code not in (EXIT_DONE, EXIT_UNFINISHED) and not self._told()):
            write_outcome(Path(self.state), code, message, os.environ.get("SLURM_JOB_ID"))
        if code:
            raise SystemExit(code)

    def _told(self) -> bool:
        """Whether another process of this job has said how it ended."""
        path = Path(self.state) / OUTCOME
        return path.is_file() and read_json(path).get("job") == os.environ.get("SLURM_JOB_ID")

    def _gets_nowhere(self) -> bool:
        """Whether SLURM has started this job again and again and no training began since."""
        restarts, job = int(os.environ.get("SLURM_RESTART_COUNT") or 0), os.environ.get("SLURM_JOB_ID")
        begun = [start["restarts"] for start in attempts(Path(self.state)) if start["job"] == job]
        return restarts - max(begun, default=-1) > self.limit

    def _train(self) -> tuple[int, str]:
        """Exit code and message of the training.

        Raises
        ------
        Requeue : a signal stopped it.
        """
        if _first() and self._gets_nowhere():
            what = f"{self.limit} starts in a row ended before training began (compute.starts_without_progress)."
            return EXIT_BUG, f"{what} Their log: {_log(Path(self.state))}"
        try:
            train_here(Path(self.config), self.cell, Path(self.output), self.threads)
        except InputError as error:
            return EXIT_BAD_INPUT, str(error)
        except (Held, Lost) as reason:
            return EXIT_UNFINISHED, str(reason)
        except Unfinished as reason:
            print(f"pipeline pretrain: {reason}", file=sys.stderr, flush=True)
            raise Requeue from reason
        except Exception as error:
            traceback.print_exc()
            return EXIT_BUG, f"{type(error).__name__}: {error} (a bug; the traceback is in {_log(Path(self.state))})"
        return EXIT_DONE, ""

    def checkpoint(self) -> object:
        """Submitit's question what to run after a requeue: the same, as the checkpoint lies in the cell's state."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


def _join_ranks() -> None:
    """Name this process's place among those of the job, as torchrun does."""
    if int(os.environ.get("SLURM_NTASKS", "1")) > 1:
        from submitit.helpers import TorchDistributedEnvironment

        TorchDistributedEnvironment().export(set_cuda_visible_devices=False, overwrite=True)


def _first() -> bool:
    return os.environ.get("SLURM_PROCID", "0") == "0"


def _requeue() -> None:
    """Have the job requeued, unless that is decided already. Does not return in the first process of a running job."""
    if not _first():
        time.sleep(60)  # the first process asks; its answer ends this one, too
    elif queue.state_of(os.environ["SLURM_JOB_ID"]) in (None, "RUNNING"):
        # submitit's handler, which the training has put back: it dumps `checkpoint()`, asks SLURM once, and exits.
        signal.raise_signal(signal.SIGUSR2)


def _log(state: Path) -> Path:
    job, rank = os.environ.get("SLURM_JOB_ID"), os.environ.get("SLURM_PROCID", "0")
    return state / "slurm" / f"{job}_{rank}_log.err"
