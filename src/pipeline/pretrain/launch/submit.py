"""Put cells into SLURM's queue through submitit: one short process for all that wait, started by the broker.

A JSON object comes in on standard input, one JSON line a cell goes out. A cell whose job is in the queue already is
adopted, whoever submitted it; so a broker, or this process, may die at any moment without leaving twins behind.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import shlex
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from pipeline import grid
from pipeline.config import Compute, Study, load_study
from pipeline.errors import EXIT_BAD_INPUT, EXIT_DONE, InputError
from pipeline.layout import Layout
from pipeline.pretrain.kept import inputs_of, publish_kept, source_of
from pipeline.pretrain.launch import queue
from pipeline.pretrain.launch.job import OUTCOME, Training, write_outcome
from pipeline.pretrain.lease import alive, read_lease, who
from pipeline.stages import stage_settings, stage_version

UNLIMITED = 10**9  # time-outs: a cell may take any number of jobs, as long as it gets on
# What sbatch says where it did not refuse, but could not tell, or has no room now: asked again later.
PASSING = re.compile(r"unable to contact|timed out|connection|temporarily|SubmitJobLimit|MaxSubmit", re.IGNORECASE)
FORMER = re.compile(r"SLURM_(?!CONF$)|SBATCH_|RANK$|WORLD_SIZE$|LOCAL_RANK$|MASTER_")

Request = Mapping[str, Any]
Answer = dict[str, Any]


def main() -> int:
    """Answer every request on standard input."""
    given = json.load(sys.stdin)
    with _alone(Path(given["folder"])):
        try:
            jobs = queue.listing()
        except queue.Unreachable as error:
            jobs, unreachable = {}, str(error)
        else:
            unreachable = ""
        for request in given["requests"]:
            # Without a look at the queue a job that is there already would get a twin.
            answer: Answer = {"later": f"not submitted yet: {unreachable}"} if unreachable else _safe(request, jobs)
            print(json.dumps({"cell": request["cell"], **answer}), flush=True)
    return 0


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """One submission at a time, also where a broker died and left its own behind."""
    with (folder / "submitting").open("w") as turn:
        fcntl.flock(turn, fcntl.LOCK_EX)
        yield


def _safe(request: Request, jobs: Mapping[str, queue.Job]) -> Answer:
    try:
        return place(request, jobs)
    except InputError as error:
        return {"code": EXIT_BAD_INPUT, "message": str(error)}
    except Exception as error:  # a fault of one cell is told of that cell, and the others have their turn
        return {"failed": f"{type(error).__name__}: {error}"}


def place(request: Request, jobs: Mapping[str, queue.Job]) -> Answer:
    """Adopt the job of a cell, wait for whoever trains it, publish what is finished, or submit it.

    Raises
    ------
    InputError : the configuration or the cell is wrong, or SLURM refuses the job.
    """
    study, root = _study(request["config"]), Path(request["root"])
    cell = grid.require_cell(study, request["cell"])
    compute = study.compute_of(cell.architecture, cell.size)
    state = root / "pretrain" / cell.path / "state"
    name = queue.name_of(root, cell.path, f"{stage_version('pretrain')}-{stage_settings(study, 'pretrain', cell=cell)}")
    found: Answer = {"foreign": False, "limit": compute.starts_without_progress}
    for live in queue.of_cell(jobs, root, cell.path):
        if live.name == name:
            return {**found, "job": live.id, "text": f"adopts job {live.id} ({live.state.lower()})"}
        text = f"waits for job {live.id}, which was submitted with other settings; `scancel {live.id}` ends it"
        return {**found, "job": live.id, "foreign": True, "text": text}
    lease = read_lease(state)
    if lease and alive(lease):
        return {"held": f"waits for {who(lease)}, which trains it"}
    if publish_kept(state, source_of(study, cell, inputs_of(Layout(study), cell)), Path(request["output"]).parent):
        return {"code": EXIT_DONE, "message": ""}
    return {**found, **_submit(request, compute, state, name)}


@cache
def _study(config: str) -> Study:
    return load_study(config)


def _submit(request: Request, compute: Compute, state: Path, name: str) -> Answer:
    import submitit
    from submitit.core.utils import FailedJobError

    wanted = _wanted(request, compute)
    (state / OUTCOME).unlink(missing_ok=True)
    _clean_environment(compute.threads)
    executor = submitit.SlurmExecutor(state / "slurm", max_num_timeout=UNLIMITED)
    executor.update_parameters(**_parameters(request, wanted, compute, name))
    try:
        job = executor.submit(
            Training(
                config=request["config"],
                cell=request["cell"],
                output=request["output"],
                threads=compute.threads,
                state=str(state),
                limit=compute.starts_without_progress,
            )
        )
    except FailedJobError as error:
        _remove_leftovers(state / "slurm")
        said = " ".join(str(error).split())
        if PASSING.search(said):
            return {"later": f"not submitted yet: {said}"}
        refused = _refused(request, said)
        write_outcome(state, EXIT_BAD_INPUT, str(refused), None)
        raise refused from error
    return {
        "job": job.job_id,
        "text": f"job {job.job_id} submitted to {request.get('partition') or 'the default partition'}",
    }


def _wanted(request: Request, compute: Compute) -> dict[str, int]:
    """What the command line asks for, else what the configuration says that a cell of this size needs."""
    fields = {"nodes": "nodes", "gpus": "gpus", "memory_mb": "memory_mb", "runtime_min": "runtime_min"}
    return {key: getattr(compute, name) if request.get(key) is None else request[key] for key, name in fields.items()}


def _parameters(request: Request, wanted: Mapping[str, int], compute: Compute, name: str) -> dict[str, Any]:
    """Parameters of submitit: one process a GPU, each with the cell's threads."""
    gpus, limit_s = wanted["gpus"], 60 * wanted["runtime_min"]
    signal_s = min(compute.signal_s, limit_s // 3)
    parameters = {
        "job_name": name,
        "time": wanted["runtime_min"],
        "nodes": wanted["nodes"],
        "ntasks_per_node": max(1, gpus),
        "cpus_per_task": compute.threads,
        "gpus_per_node": gpus or None,
        "mem": f"{wanted['memory_mb']}M",
        "signal_delay_s": signal_s,
        "srun_args": ["--kill-on-bad-exit=1"],  # the other processes would wait for one that has failed
        "additional_parameters": {"requeue": True, **_options(request["slurm_options"])},
    }
    parameters |= {key: request.get(key) for key in ("partition", "account", "qos")}
    return {key: value for key, value in parameters.items() if value is not None}


def _options(text: str) -> dict[str, Any]:
    """Further options of sbatch: `--constraint=a100 --exclusive`.

    Raises
    ------
    InputError : a word is none.
    """
    options: dict[str, Any] = {}
    for word in shlex.split(text):
        if not word.startswith("--"):
            hint = "Write them as `--slurm-options='--constraint=a100 --exclusive'`."
            raise InputError("--slurm-options", f"'{word}'", "options of sbatch as --name or --name=value", hint)
        key, equals, value = word[2:].partition("=")
        options[key] = value if equals else True
    return options


def _clean_environment(threads: int) -> None:
    """A job inherits our environment: nothing of a job that we may run in ourselves, and its own number of threads."""
    for name in [name for name in os.environ if FORMER.match(name)]:
        del os.environ[name]
    for library in ("OMP", "OPENBLAS", "MKL"):
        os.environ[f"{library}_NUM_THREADS"] = str(threads)


def _remove_leftovers(folder: Path) -> None:
    """What submitit wrote for a job that does not exist."""
    scripts = [path for path in folder.glob(".submission_file_*.sh") if not path.is_symlink()]
    for path in [*scripts, *folder.glob("[0-9a-f]" * 32 + ".pkl")]:
        path.unlink(missing_ok=True)


def _refused(request: Request, said: str) -> InputError:
    asked = ", ".join(f"{key} {request[key]}" for key in ("partition", "account", "qos") if request.get(key))
    hint = "Edit the SITE lines of profiles/slurm/config.yaml (`sinfo -s` lists partitions), or the cell's `compute`."
    return InputError(f"{request['cell']}: sbatch ({asked or 'defaults'})", said, "a job that SLURM takes", hint)


if __name__ == "__main__":
    sys.exit(main())
