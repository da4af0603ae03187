"""A working copy of the repository in which somebody uses the cluster, and one cell whose training is watched."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from cluster import Cluster, Job, wait_for

REPOSITORY = Path(__file__).resolve().parents[2]
DEMO = ("config/demo.yaml", "tests/slurm/figure4.yaml")  # the demo cut down: seconds a cell
LONG = (*DEMO, "tests/slurm/long.yaml")  # of it, two cells that train long enough to be interrupted
RESULTS = Path("results/slurm")
CELL, OTHER = "swift_v2/w6/N6-T160/draw0-main/seed0", "swift_v2/w6/N6-T160/draw0-main/seed1"  # the watched one first

QUARTER = 50  # of the steps of long.yaml

# What this site edits in profiles/slurm: it has no accounting, and nobody wants to wait.
SITE = {
    "slurm-status-command": "squeue",
    "slurm-init-seconds-before-status-checks": 1,
    "seconds-between-status-checks": 1,
    "latency-wait": 5,
}


@dataclass(frozen=True)
class Checkout:
    """A copy of the repository, and how commands run in it; `cluster` None: on this machine alone."""

    root: Path
    cluster: Cluster | None = None

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        """A command to its end, its output captured."""
        return subprocess.run(
            command, cwd=self.root, env=self._environment(), capture_output=True, text=True, check=False
        )

    def start(self, *command: str) -> subprocess.Popen[bytes]:
        """A command in a session of its own, its output in `log`."""
        with self.log.open("ab") as log:
            return subprocess.Popen(
                command, cwd=self.root, env=self._environment(), stdout=log, stderr=log, start_new_session=True
            )

    def build(self, *targets: str, config: tuple[str, ...]) -> None:
        """Snakemake on this machine, without SLURM."""
        done = self.run("snakemake", "--cores", "2", "--show-failed-logs", *targets, "--configfile", *config)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]

    def pretrain(self, *options: str) -> subprocess.Popen[bytes]:
        """What the workflow's rule runs for the watched cell."""
        config, output = RESULTS / "config.yaml", RESULTS / "pretrain" / CELL / "summary.json"
        where = ("--launcher", "slurm", "--partition", "gpu")
        return self.start(
            *(sys.executable, "-m", "pipeline.cli", "pretrain", "--config", str(config), "--cell", CELL),
            *("--output", str(output), *where, *options),
        )

    @property
    def slurm(self) -> Cluster:
        """The cluster, for what makes no sense without one."""
        assert self.cluster
        return self.cluster

    @property
    def log(self) -> Path:
        """Output of what was started."""
        return self.root / "log.txt"

    @property
    def results(self) -> Path:
        """Results of the study."""
        return self.root / RESULTS

    @property
    def state(self) -> Path:
        """Training state of the watched cell."""
        return self.results / "pretrain" / CELL / "state"

    def encoders(self) -> dict[str, str]:
        """SHA-256 of each cell's `encoder.safetensors`."""
        files = sorted((self.results / "pretrain").rglob("draw*/seed*/encoder.safetensors"))
        names = [str(file.parent.relative_to(self.results / "pretrain")) for file in files]
        return {name: hashlib.sha256(file.read_bytes()).hexdigest() for name, file in zip(names, files, strict=True)}

    def attempts(self, cell: str = CELL) -> list[dict[str, Any]]:
        """Every start of a training process of a cell, `step` and `pid` among what is known of it."""
        file = self.results / "pretrain" / cell / "state" / "attempts.jsonl"
        return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []

    def saved(self) -> int:
        """Steps in the watched cell's newest checkpoint; 0 before the first."""
        return max(
            (int(file.stem.removeprefix("step-")) for file in self.state.glob("*/step-*.safetensors")), default=0
        )

    def training(self, *others: str) -> Job:
        """The job of the watched cell, once it runs and has saved a quarter, and the other cells have started."""
        wait_for(
            lambda: self.saved() >= QUARTER and self._running() and all(map(self.attempts, others)), 120, self.told
        )
        return self._running()[0]

    @contextmanager
    def held_up(self, *cells: str) -> Iterator[None]:
        """The trainings of these cells stand still for the length of the block.

        So they cannot be over before what is to happen to them has happened, however fast the machine is.
        """
        pids = [self.attempts(cell)[-1]["pid"] for cell in cells]
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        yield
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)

    def told(self) -> str:
        """What a person would look at: the queue, our output, the job's and the broker's."""
        logs = [self.log, self.results / "logs" / "broker.log", *sorted(self.state.glob("slurm/*.err"))]
        texts = [f"\n--- {file}\n{file.read_text()[-3000:]}" for file in logs if file.exists()]
        return "\n".join(["", self.slurm.listing(), str(self.attempts()), *texts])

    def left(self) -> list[Any]:
        """Jobs in the queue, and processes that wait for one, watch it or work in it; they have 15 s to leave."""
        found: list[Any] = []

        def gone() -> bool:
            found[:] = [job for job in self.slurm.jobs() if not job.ended] + self.slurm.processes()
            return not found

        wait_for(gone, 15, patient=True)
        return found

    def take_data(self, made: Checkout) -> None:
        """Take over what another checkout has made before pretraining; big files are shared with it."""
        shutil.copytree(
            made.results, self.results, copy_function=os.link, ignore=shutil.ignore_patterns("pretrain", "*.log")
        )

    def _running(self) -> list[Job]:
        return [job for job in self.slurm.jobs() if job.state == "RUNNING" and f"/{CELL}#" in job.name]

    def _environment(self) -> dict[str, str]:
        here = {"PYTHONPATH": str(self.root / "src"), "OMP_NUM_THREADS": "1"}
        pace = {"PIPELINE_SLURM_POLL_S": "1", "PIPELINE_BROKER_IDLE_S": "1"}
        return {**os.environ, **here, **pace, **(self.cluster.environment if self.cluster else {})}


def check_out(root: Path, cluster: Cluster | None = None) -> Checkout:
    """A copy of what a clone holds, its profile edited for this site."""
    ignore = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for folder in ("src", "workflow", "config", "profiles", "tests/slurm"):
        shutil.copytree(REPOSITORY / folder, root / folder, ignore=ignore)
    for name in ("Snakefile", "slurm"):
        shutil.copy(REPOSITORY / name, root / name, follow_symlinks=False)
    profile = root / "profiles/slurm/config.yaml"
    profile.write_text(yaml.safe_dump(yaml.safe_load(profile.read_text()) | SITE))
    return Checkout(root, cluster)
