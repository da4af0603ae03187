"""What a waiting cell costs a login node: a shell of 1 MB that reads one socket. Standard library only.

`wait_for` makes sure that the study's broker runs, hands it the request and becomes (`exec`) that shell. The broker
answers with lines `say <text>`, and at last `end <exit code>` with a message behind it.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import select
import shutil
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NoReturn

from pipeline.errors import EXIT_BUG, EXIT_UNFINISHED, InputError, Unfinished
from pipeline.pretrain.launch import queue

STARTING_S = 30.0  # for a broker to start, on a file system that answers slowly
ANSWER_S = 30.0  # for a person to answer
RECONNECTS = 20  # brokers that may die in a row, none of them having said anything

RECONNECT_S = float(
    os.environ.get("PIPELINE_RECONNECT_S", "30")
)  # over which hundreds that lost their broker come back

# Called with: Python, the study's results folder, the folder whose making decides which of many waiting cells asks, the
# seconds until it looks for another broker, and the command of this cell, which does that.
WAIT = """\
root=$1 asking=$2 pause=$3; shift 3
trap 'exit 75' TERM HUP
trap 'mkdir "$asking" 2>/dev/null || exit 75; exec "$0" -m pipeline.pretrain.launch.client "$root" "$asking"' INT
while read -r kind text <&3; do
    case $kind in
    say) printf '%s\\n' "$text" >&2; export PIPELINE_RECONNECTS=0 ;;
    end) cat <&3 >&2; exit "$text" ;;
    esac
done
sleep "$pause"
exec "$@"
"""

Request = Mapping[str, Any]


def study_root(output: Path, cell: str) -> Path:
    """Results folder of the study, from the file that a cell writes: `<root>/pretrain/<cell>/summary.json`.

    Raises
    ------
    InputError : it is another file.
    """
    folder, end = output.absolute().parent, Path("pretrain") / cell
    if folder.parts[-len(end.parts) :] != end.parts:
        hint = "On SLURM a job writes where the study's other stages look for it."
        raise InputError("--output", f"'{output}'", f"results/<study>/{end}/summary.json", hint)
    return folder.parents[len(end.parts) - 1]


def wait_for(request: Request, command: Sequence[str]) -> NoReturn:
    """Hand a cell to its study's broker and become the shell that waits for it.

    `request` holds `root` (the study's results folder), `cell`, and what `submit` reads; `command` is what to run again
    when the broker dies.

    Raises
    ------
    InputError : there is no SLURM here.
    """
    if shutil.which("squeue") is None:
        hint = "Leave out --launcher slurm (`snakemake` without `--profile slurm`) to train on this machine."
        raise InputError("--launcher slurm", "no `squeue` on PATH", "a machine from which SLURM takes jobs", hint)
    reconnects = int(os.environ.get("PIPELINE_RECONNECTS", "0"))
    log = Path(request["root"]) / "logs" / "broker.log"
    if reconnects > RECONNECTS:
        print(f"The broker of waiting cells ended {RECONNECTS} times in a row. See {log}.", file=sys.stderr)
        sys.exit(EXIT_BUG)
    os.environ["PIPELINE_RECONNECTS"] = str(reconnects + 1)
    folder = broker_folder(Path(request["root"]))
    with connect_or_start(Path(request["root"]), folder) as broker:
        broker.sendall(json.dumps(dict(request)).encode() + b"\n")
        os.dup2(broker.fileno(), 3)
        os.set_inheritable(3, True)  # where it was 3 already, dup2 has left it to be closed
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # Python ignores it, and a program that it becomes would go on to
        asking, pause = folder / f"asking-{os.getpgrp()}", RECONNECT_S * (os.getpid() % 100) / 100
        options = [request["root"], str(asking), str(pause)]
        os.execv("/bin/sh", ["sh", "-c", WAIT, sys.executable, *options, *command])


def broker_folder(root: Path) -> Path:
    """Folder of a study's broker on this machine: its socket and its locks. Only the user can look into it.

    It lies in /tmp whatever TMPDIR says, because every shell of the user must find the same one, and because the name
    of a socket has room for 107 bytes.

    Raises
    ------
    InputError : somebody else has made a folder of that name.
    """
    name = hashlib.sha256(os.fsencode(root.resolve())).hexdigest()[:16]
    mine = Path("/tmp") / f"pipeline-{os.getuid()}"
    mine.mkdir(mode=0o700, exist_ok=True)
    found = mine.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or stat.S_IMODE(found.st_mode) & 0o077:
        raise InputError(mine, "a folder open to others", "one of your own, mode 0700", "Ask who made it; remove it.")
    (mine / name).mkdir(exist_ok=True)
    return mine / name


def connect(folder: Path) -> socket.socket | None:
    """A connection to the broker; None where none runs."""
    broker = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        broker.connect(str(folder / "socket"))
    except (FileNotFoundError, ConnectionRefusedError):
        broker.close()
        return None
    return broker


def connect_or_start(root: Path, folder: Path) -> socket.socket:
    """A connection to the broker, started if none runs; of many callers at once one starts it."""
    if broker := connect(folder):
        return broker
    with (folder / "starting").open("w") as turn:
        fcntl.flock(turn, fcntl.LOCK_EX)
        process = None
        ends = time.monotonic() + STARTING_S
        while time.monotonic() < ends:
            if broker := connect(folder):
                return broker
            if process is None or process.poll() is not None:
                process = _start(root, folder)
            time.sleep(0.05)
    raise Unfinished(f"no broker started within {STARTING_S:.0f} s. See {root}/logs/broker.log.")


def _start(root: Path, folder: Path) -> subprocess.Popen[bytes]:
    """A broker in a session of its own: Ctrl-C on the workflow does not reach it."""
    log = root / "logs" / "broker.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "pipeline.pretrain.launch.broker", str(root), str(folder)]
    with log.open("ab") as stream:
        return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=stream, stderr=stream, start_new_session=True)


def question(folder: Path, request: Request) -> str | None:
    """The broker's answer to a question, all of it; None where none runs."""
    broker = connect(folder)
    if broker is None:
        return None
    with broker, broker.makefile("rw", encoding="utf-8") as stream:
        stream.write(json.dumps(dict(request)) + "\n")
        stream.flush()
        return stream.read()


def ask(root: Path) -> None:
    """After Ctrl-C, where a person is at this terminal: whether the study's jobs go on. Asked once for all cells."""
    with suppress(OSError, queue.Unreachable), _terminal() as terminal:
        jobs = queue.of_study(queue.listing(), root)
        if not jobs or os.tcgetpgrp(terminal) != os.getpgrp():
            return  # nothing to ask about, or in the background, where reading would stop us
        prompt = f"\n{len(jobs)} jobs on SLURM: leave them to be found by the next run, or cancel? [leave/cancel] "
        os.write(terminal, prompt.encode())
        done = "They go on: the same command finds them again, `pipeline cancel` ends them.\n"
        if _typed(terminal) == "cancel":
            done = cancel(root, None)
        os.write(terminal, f"\n{done}".encode())


def cancel(root: Path, cell: str | None) -> str:
    """End the jobs of a cell, or of the study in `root`, whether a broker runs or not; what was done, in words."""
    return question(broker_folder(root), {"do": "cancel", "cell": cell}) or queue.cancel_jobs(root, cell)


@contextmanager
def _terminal() -> Iterator[int]:
    terminal = os.open("/dev/tty", os.O_RDWR)
    try:
        yield terminal
    finally:
        os.close(terminal)


def _typed(terminal: int) -> str:
    """The word that a person types; "" after a while of nothing, and at another Ctrl-C."""
    try:
        if select.select([terminal], [], [], ANSWER_S)[0]:
            return os.read(terminal, 100).decode(errors="replace").strip().lower()
    except KeyboardInterrupt:
        return ""
    return ""


if __name__ == "__main__":
    try:
        ask(Path(sys.argv[1]))
    finally:
        with suppress(OSError):
            Path(sys.argv[2]).rmdir()
    sys.exit(EXIT_UNFINISHED)
