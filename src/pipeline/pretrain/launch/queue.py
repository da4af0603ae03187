"""The jobs of a study in SLURM's queue, found by their names: the queue itself says what is under way.

Standard library only, for the broker and the nodes.

A job's name is `<study>/<cell>#<place>-<settings>`: place stands for the results folder, because one user may have
several checkouts; settings for what can change the cell's numbers.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import Unfinished

LIMIT_S = 60.0  # of a question to SLURM's controller, which answers in less than one second when it is well
ENDED = frozenset(
    {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "OUT_OF_MEMORY", "NODE_FAIL", "BOOT_FAIL", "DEADLINE"}
    | {"PREEMPTED", "REVOKED"}
)


class Unreachable(Unfinished):
    """SLURM does not answer: nothing is known about any job."""


@dataclass(frozen=True)
class Job:
    """One line of the queue."""

    id: str
    state: str
    reason: str
    name: str

    @property
    def ended(self) -> bool:
        """Whether it will not run again; a preempted job that goes back to the queue is seen there next time."""
        return self.state in ENDED


def listing_command() -> list[str]:
    """What asks for every job of this user, of all states: an ended one stays listed for minutes (MinJobAge)."""
    return ["squeue", "--noheader", "--states=all", f"--user={os.getuid()}", "--format=%i|%T|%r|%j"]


def parse_listing(text: str) -> dict[str, Job]:
    """Jobs by id."""
    rows = (line.strip().split("|", 3) for line in text.splitlines())
    return {row[0]: Job(*row) for row in rows if len(row) == 4}


def listing() -> dict[str, Job]:
    """Every job of this user by id.

    Raises
    ------
    Unreachable : squeue failed or did not answer.
    """
    return parse_listing(_ask(listing_command()))


def state_of(job: str) -> str | None:
    """State of one job; None where SLURM does not know it, or does not answer."""
    try:
        return _ask(["squeue", "--noheader", "--states=all", f"--jobs={job}", "--format=%T"]).strip() or None
    except Unreachable:
        return None


def cancel(jobs: Iterable[str]) -> None:
    """End jobs; those that have ended meanwhile are no fault.

    Raises
    ------
    Unreachable : SLURM does not answer.
    """
    if ids := list(jobs):
        _ask(["scancel", "--quiet", *ids])


def cancel_jobs(root: Path, cell: str | None) -> str:
    """End the jobs of a cell, or of the study in `root`; what was done, in words.

    Raises
    ------
    Unreachable : SLURM does not answer.
    """
    jobs = listing()
    live = of_cell(jobs, root, cell) if cell else of_study(jobs, root)
    cancel([job.id for job in live])
    return f"{len(live)} jobs cancelled.\n"


def name_of(root: Path, cell: str, settings: str) -> str:
    """Name of the job that trains a cell of the study in `root`, its results folder."""
    return f"{_beginning(root, cell)}{settings}"


def of_study(jobs: Mapping[str, Job], root: Path) -> list[Job]:
    """Jobs of a study that have not ended."""
    place = f"#{_place(root)}-"
    return [
        job for job in jobs.values() if job.name.startswith(f"{root.name}/") and place in job.name and not job.ended
    ]


def of_cell(jobs: Mapping[str, Job], root: Path, cell: str) -> list[Job]:
    """Jobs of one cell that have not ended, with whatever settings."""
    return [job for job in of_study(jobs, root) if job.name.startswith(_beginning(root, cell))]


def _beginning(root: Path, cell: str) -> str:
    return f"{root.name}/{cell}#{_place(root)}-"


def _place(root: Path) -> str:
    return hashlib.sha256(os.fsencode(root.resolve())).hexdigest()[:8]


def _ask(command: list[str]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S, check=True)
    except (OSError, subprocess.SubprocessError) as error:
        said = getattr(error, "stderr", None) or error
        raise Unreachable(f"{command[0]}: {said}".strip()) from error
    return done.stdout
