"""A real SLURM of one node with imitated GPUs, in a folder of its own: munged, slurmctld and slurmd on loopback.

    python tests/slurm/cluster.py start FOLDER     prints the `export` lines that clients need
    python tests/slurm/cluster.py env FOLDER
    python tests/slurm/cluster.py stop FOLDER      cancels every job, ends every process

Needs root (slurmd, mknod) and Debian's packages slurm-wlm and munge; touches neither /etc/slurm nor a munge that runs
already. SLURM_CONF in the environment is all that SLURM's commands need; PATH names a `srun` for Snakemake's jobs.

Partitions: `cpu`, never preempted; `gpu`; and `urgent`, whose jobs preempt those of `gpu` and have them requeued.
"""

from __future__ import annotations

import argparse
import os
import random
import secrets
import shlex
import shutil
import signal
import socket
import stat
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

CPUS, MEMORY_MB, GPUS = (
    64,
    256_000,
    2,
)  # told to SLURM, whatever the machine has: jobs of a test must not wait for cores
GRACE_S = 20  # from the signal of a preemption to the kill, where the site asks for one
DAEMONS = ("slurmctld", "slurmd", "munged")

JOB_FORMAT = "JobID:|,Partition:|,State:|,RestartCnt:|,Comment:|,Name:|"

CONFIGURATION = """\
ClusterName=onenode
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={slurmctld_port}
SlurmdPort={slurmd_port}
SlurmUser=root
AuthType=auth/munge
CredType=cred/munge
# A requeued job waits for the life time of its credential: 120 s by default.
AuthInfo=socket={folder}/munge.socket,cred_expire=10
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
GresTypes=gpu
ReturnToService=2
SlurmdParameters=config_overrides
{on_preemption}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
SlurmdDebug=verbose
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
JobCompType=jobcomp/filetxt
JobCompLoc={folder}/jobs.txt
# Without accounting a finished job is known as long as squeue remembers it.
MinJobAge=3600
JobRequeue=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
# A node that comes back after a crash is asked for its jobs at once, not 10 s into each.
BatchStartTimeout=1
SlurmdTimeout=10
KillWait=5
MessageTimeout=10
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=2,bf_interval=2,batch_sched_delay=1
PropagateResourceLimits=NONE
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} RealMemory={memory_mb} Gres=gpu:{gpus} State=UNKNOWN
PartitionName=cpu Nodes={host} PriorityTier=1 PreemptMode=OFF DefMemPerCPU=500 Default=YES
PartitionName=gpu Nodes={host} PriorityTier=1 PreemptMode=REQUEUE GraceTime={grace_s} DefMemPerCPU=500
PartitionName=urgent Nodes={host} PriorityTier=10 PreemptMode=OFF DefMemPerCPU=500
"""


@dataclass(frozen=True)
class Job:
    """A job in squeue's words; `restarts` counts how often it was requeued."""

    id: str
    partition: str
    state: str
    restarts: int
    comment: str
    name: str

    @property
    def ended(self) -> bool:
        """Whether it left the queue for good."""
        return self.state not in ("PENDING", "CONFIGURING", "RUNNING", "COMPLETING", "SUSPENDED", "REQUEUED")


@dataclass(frozen=True)
class Cluster:
    """One node of SLURM whose every file lies in `folder`; a context manager that starts and stops it.

    folder : a short path (a socket's name has at most 107 characters) below folders that only root can write, or /tmp.
    signals : True: a preempted job gets its signal of `--signal` and 20 s; False: SLURM's default, it is ended at once.
    """

    folder: Path
    signals: bool = False

    @property
    def environment(self) -> dict[str, str]:
        """What a client must have in its environment."""
        return {"SLURM_CONF": str(self.folder / "slurm.conf"), "PATH": f"{self.folder}/bin:{os.environ['PATH']}"}

    def __enter__(self) -> Cluster:
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Write the configuration, start the three daemons and wait until the node is idle.

        Raises
        ------
        RuntimeError : a daemon did not start; the ends of the logs are in the message.
        """
        self._write_files()
        self._run(
            *("munged", f"--key-file={self.folder}/munge.key", f"--socket={self.folder}/munge.socket"),
            *(f"--pid-file={self.folder}/munged.pid", f"--log-file={self.folder}/munged.log"),
            f"--seed-file={self.folder}/munged.seed",
        )
        self._run("slurmctld", "-c")
        self.start_node()

    def start_node(self) -> None:
        """Start slurmd, and wait until the node takes jobs."""
        self._run("slurmd")
        wait_for(lambda: self.run("sinfo", "-h", "-o", "%T").startswith(("idle", "mix", "alloc")), 30, self._logs)

    def kill_node(self) -> None:
        """SIGKILL slurmd, each of its slurmstepd and all that ran below them: what a crash of the node leaves."""
        pid = self._pid("slurmd")
        assert pid, "slurmd does not run"
        end([pid, *self.job_processes()], signal.SIGKILL)
        (self.folder / "slurmd.pid").unlink(missing_ok=True)

    def stop(self) -> None:
        """Cancel every job and end every process of this cluster; nothing happens where none runs."""
        if self._pid("slurmctld"):
            self._try("scancel", "--full", "--user=root")
            wait_for(lambda: not self._try("squeue", "-h"), 15, patient=True)
        end(pid for daemon in DAEMONS if (pid := self._pid(daemon)))
        end(self.job_processes())

    def run(self, *command: str) -> str:
        """Standard output of a client command; an error of the command is raised."""
        environment = {**os.environ, **self.environment}
        done = subprocess.run(command, env=environment, cwd=self.folder, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)}: {done.stderr}{self._logs()}")
        return done.stdout.strip()

    def jobs(self) -> list[Job]:
        """Every job since the start, by its number."""
        listing = self.run("squeue", "--states=all", "--noheader", "--sort=i", "--Format", JOB_FORMAT)
        rows = (line.split("|") for line in listing.splitlines())
        return [Job(row[0], row[1], row[2], int(row[3]), row[4], row[5].strip()) for row in rows]

    def listing(self) -> str:
        """The same for a person: a line a job, Snakemake's with its rule, the others with their name."""
        return "\n".join(
            f"{job.id:>4}  {job.partition:6}  {job.state:9}  requeued {job.restarts}  "
            f"{job.name if job.comment == '(null)' else job.comment}"
            for job in self.jobs()
        )

    def processes(self) -> list[int]:
        """Every process that lives by this cluster except its daemons: jobs, and who submitted or waits for them."""
        return [pid for pid, _, is_ours in self._processes() if is_ours and pid != os.getpid()]

    def job_processes(self) -> list[int]:
        """Processes of the jobs, and the slurmstepd above them, whoever their parent is by now."""
        return [pid for pid, in_job, _ in self._processes() if in_job]

    def _processes(self) -> Iterator[tuple[int, bool, bool]]:
        """Id of a process, whether it belongs to a job, whether it knows this cluster at all."""
        ours = f"SLURM_CONF={self.folder}/slurm.conf".encode()
        for process in Path("/proc").glob("[0-9]*"):
            command, variables = _read(process / "cmdline"), _read(process / "environ").split(b"\0")
            pid = int(process.name)
            if not _alive(pid) or any(f"{daemon}".encode() in command.split(b"\0")[0] for daemon in DAEMONS):
                continue
            steps = command.startswith(b"slurmstepd") and _folder_of(process) == self.folder
            in_job = ours in variables and any(each.startswith(b"SLURM_JOB_ID=") for each in variables)
            yield pid, steps or in_job, steps or ours in variables

    def _write_files(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.folder.chmod(0o755)  # munged refuses a socket that others could replace, and one that they cannot reach
        for name in ("state", "spool", "bin"):
            (self.folder / name).mkdir(exist_ok=True)
        key = self.folder / "munge.key"
        key.unlink(missing_ok=True)
        key.touch(0o600)
        key.write_bytes(secrets.token_bytes(128))
        for number in range(GPUS):
            device = self.folder / f"gpu{number}"
            if not device.exists():
                os.mknod(device, 0o666 | stat.S_IFCHR, os.makedev(1, 3))  # another /dev/null
        (self.folder / "gres.conf").write_text(f"Name=gpu File={self.folder}/gpu[0-{GPUS - 1}]\n")
        # Snakemake's executor takes SLURM_CONF away from the srun inside its jobs, which then looks into /etc/slurm.
        srun = self.folder / "bin" / "srun"
        srun.write_text(f'#!/bin/sh\nSLURM_CONF={self.folder}/slurm.conf exec {_program("srun")} "$@"\n')
        srun.chmod(0o755)
        slurmctld_port, slurmd_port = free_ports(2)
        text = CONFIGURATION.format(
            folder=self.folder,
            host=socket.gethostname().split(".")[0],
            slurmctld_port=slurmctld_port,
            slurmd_port=slurmd_port,
            on_preemption="SlurmctldParameters=preempt_send_user_signal" if self.signals else "",
            grace_s=GRACE_S if self.signals else 0,
            cpus=CPUS,
            memory_mb=MEMORY_MB,
            gpus=GPUS,
        )
        (self.folder / "slurm.conf").write_text(text)

    def _run(self, name: str, *options: str) -> None:
        """Start a daemon, which forks itself away."""
        program = _program(name)
        assert program, missing()
        with (self.folder / f"{name}.out").open("w") as out:
            done = subprocess.run(
                [program, *options],
                env={**os.environ, **self.environment},
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                start_new_session=True,
                check=False,
            )
        if done.returncode:
            raise RuntimeError(f"{name} did not start{self._logs()}")
        wait_for(lambda: self._pid(name) is not None, 10, self._logs)

    def _try(self, *command: str) -> str:
        try:
            return self.run(*command)
        except RuntimeError:
            return ""

    def _pid(self, daemon: str) -> int | None:
        """Id of a running daemon of this cluster."""
        text = _read(self.folder / f"{daemon}.pid").strip()
        if not text:
            return None
        pid = int(text)
        return pid if _alive(pid) and daemon.encode() in _read(Path(f"/proc/{pid}/cmdline")) else None

    def _logs(self) -> str:
        files = [file for pattern in ("*.out", "*.log") for file in sorted(self.folder.glob(pattern))]
        return "".join(f"\n--- {file.name}\n{file.read_text()[-1500:]}" for file in files if file.stat().st_size)


def missing() -> str:
    """Why no cluster can be started here; empty where one can."""
    if os.geteuid() != 0:
        return "SLURM's daemons need root"
    absent = [name for name in (*DAEMONS, "sbatch") if _program(name) is None]
    return f"not installed: {', '.join(absent)} (Debian: slurm-wlm, munge)" if absent else ""


def wait_for(
    true: Callable[[], object], seconds: float, report: Callable[[], str] = str, patient: bool = False
) -> None:
    """Return once `true()` holds; after so many seconds raise TimeoutError with the report, or return if `patient`."""
    until = time.monotonic() + seconds
    while not true():
        if time.monotonic() > until:
            if patient:
                return
            raise TimeoutError(f"not within {seconds:g} s{report()}")
        time.sleep(0.1)


def end(pids: Iterable[int], number: int = signal.SIGTERM) -> None:
    """End processes, by SIGKILL if they are not gone after 10 s, and see them gone."""
    doomed = list(pids)
    for each in doomed:
        _signal(each, number)
    wait_for(lambda: not any(map(_alive, doomed)), 10, patient=True)
    for each in filter(_alive, doomed):
        _signal(each, signal.SIGKILL)
    wait_for(lambda: not any(map(_alive, doomed)), 10)


def free_ports(count: int) -> list[int]:
    """Ports on which nobody listens, below those that the kernel gives to clients."""
    found: list[int] = []
    while len(found) < count:
        with suppress(OSError), socket.create_server(("", port := random.randrange(20_000, 32_000))):
            found.append(port)
    return found


def _program(name: str) -> str | None:
    return shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin:/sbin")


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


def _folder_of(process: Path) -> Path | None:
    try:
        return (process / "cwd").readlink()
    except OSError:
        return None


def _alive(pid: int) -> bool:
    """Whether a process runs; one that is dead and not yet collected by its parent does not."""
    status = _read(Path(f"/proc/{pid}/stat"))
    return bool(status) and status.rpartition(b")")[2].split()[0] not in (b"Z", b"X")


def _signal(pid: int, number: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, number)


def main() -> None:
    """The command line at the head of this file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=["start", "stop", "env"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--signals", action="store_true", help="a preempted job gets its signal and 20 s")
    arguments = parser.parse_args()
    cluster = Cluster(arguments.folder.resolve(), arguments.signals)
    if arguments.action == "stop":
        cluster.stop()
        return
    if arguments.action == "start":
        cluster.__enter__()
    for name, value in cluster.environment.items():
        print(f"export {name}={shlex.quote(value)}")


if __name__ == "__main__":
    main()
