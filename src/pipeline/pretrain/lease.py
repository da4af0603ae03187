"""Who trains a cell now: one file, taken by exactly one process, kept fresh while it lives. Standard library only.

`lease.json` is created exclusively, so of any number of launches one wins; the others learn who holds it. A holder
that died leaves its lease behind: the next one removes it, under the same kind of exclusive file, and takes its own. A
holder that was given up too early (its machine hung for minutes) finds at its next write that the lease is not its own.
"""

from __future__ import annotations

import json
import os
import socket
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Any

from pipeline.errors import Unfinished

HEARTBEAT_S = 15.0
STALE_S = 120.0  # eight missed heartbeats; attributes are cached for up to 60 s on NFS
LEASE, ATTEMPTS = "lease.json", "attempts.jsonl"

Record = dict[str, Any]


class Held(Unfinished):
    """Somebody else trains the cell, and is alive."""

    def __init__(self, holder: Record) -> None:
        self.holder = holder
        super().__init__(f"{holder.get('cell')} is being trained by {who(holder)}.")


class Lost(Unfinished):
    """The lease went to somebody else while we could not be heard: nothing more may be written."""


class Lease:
    """The right to train one cell: `with Lease(state_root, cell.path) as lease: ...`.

    Parameters
    ----------
    folder : state root of the cell, on a file system that every machine sees.
    cell : its path, for messages.

    Raises
    ------
    Held : by `with`, where somebody else trains the cell and is alive.
    """

    def __init__(self, folder: Path, cell: str) -> None:
        self.path = folder / LEASE
        self.record: Record = {"token": uuid.uuid4().hex, "cell": cell, "since": round(time.time(), 1), **_me()}
        self._file = -1
        self._ended = threading.Event()
        self._beating = threading.Thread(target=self._beat, name="lease", daemon=True)

    def __enter__(self) -> Lease:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = _take(self.path, self.record)
        self._beating.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._beating.join()
        os.close(self._file)
        if self._ours():
            self.path.unlink(missing_ok=True)

    def note(self, **numbers: Any) -> None:
        """Say how far the training is: step, loss, ...; written with the next heartbeat."""
        self.record = {**self.record, **numbers}

    def check(self) -> None:
        """Call before each write of training state or results.

        Raises
        ------
        Lost : the lease is no longer ours.
        """
        if not self._ours():
            holder = read_lease(self.path.parent)
            taker = f"{who(holder)} has taken it" if holder else "it was removed"
            raise Lost(f"the lease of {self.record['cell']} is lost: {taker}.")

    def _ours(self) -> bool:
        found = _read(self.path)
        return found is not None and found.get("token") == self.record["token"]

    def _beat(self) -> None:
        # The first numbers of a training are seen at once, not after a heartbeat.
        while not self._ended.wait(HEARTBEAT_S if "step" in self.record else min(1.0, HEARTBEAT_S)):
            # A beat that fails is followed by others; if none gets through, we go stale, and `check` will say so.
            with suppress(OSError):
                _write(self._file, self.record)


def read_lease(folder: Path) -> Record | None:
    """The lease of a cell, with its `age_s` by the clock of the file system; None where nobody trains it."""
    return _read(folder / LEASE)


def alive(lease: Record) -> bool:
    """Whether the holder of a lease still runs.

    On its own machine its process decides. From elsewhere its heartbeat does, except that a job of ours that started
    again is proof enough that its former start is over.
    """
    me = _me()
    if lease.get("job") and lease.get("job") == me["job"] and lease.get("restarts", 0) < me["restarts"]:
        return False
    if lease.get("machine") == me["machine"]:
        return _started(lease["pid"]) is not None and _started(lease["pid"]) == lease.get("started")
    return float(lease["age_s"]) < STALE_S


def who(lease: Record) -> str:
    """`job 123 on node7 (process 4567), heard of 8 s ago`."""
    job = f"job {lease['job']} on " if lease.get("job") else ""
    heard = f"{max(0.0, lease['age_s']):.0f} s ago" if "age_s" in lease else "just now"
    return f"{job}{lease.get('host', 'an unknown host')} (process {lease.get('pid', '?')}), heard of {heard}"


def note_attempt(folder: Path, step: int, identity: str = "") -> int:
    """Write down that a training process starts at `step`; how many starts in a row have now begun there.

    Starts of another `identity` (the hash of other settings) end a row.
    """
    folder.mkdir(parents=True, exist_ok=True)
    start = {"step": step, "identity": identity, "when": round(time.time(), 1), **_me()}
    whole = not (folder / ATTEMPTS).exists() or (folder / ATTEMPTS).read_bytes()[-1:] in (b"", b"\n")
    with (folder / ATTEMPTS).open("a", encoding="utf-8") as stream:
        # A line that was torn by a crash stays a line of its own.
        stream.write(("" if whole else "\n") + json.dumps(start) + "\n")
    row = 0
    for attempt in reversed(attempts(folder)):
        if (attempt.get("step"), attempt.get("identity")) != (step, identity):
            break
        row += 1
    return row


def attempts(folder: Path) -> list[Record]:
    """Every start of a training process of a cell, oldest first."""
    if not (folder / ATTEMPTS).is_file():
        return []
    lines = (folder / ATTEMPTS).read_text(encoding="utf-8").splitlines()
    return [start for start in map(_parsed, lines) if start is not None]


def _take(path: Path, record: Record) -> int:
    """Create `path` exclusively, after removing what a dead process left there; an open descriptor of it."""
    while True:
        with suppress(FileExistsError):
            return _create(path, record)
        found = _read(path)
        if found is None:
            continue  # removed since
        if alive(found):
            raise Held({"cell": record["cell"], **found})
        with _right_to_remove(path, found["token"], record), suppress(FileNotFoundError):
            # Others saw the dead one too; one of them may have removed it, and taken its own, before our turn came.
            again = _read(path)
            if again and again["token"] == found["token"] and not alive(again):
                path.unlink()


def _create(path: Path, record: Record) -> int:
    """The file appears with what it says, or not at all: one that a kill left empty would count as alive for minutes.

    Raises
    ------
    FileExistsError : it is there.
    """
    file, name = tempfile.mkstemp(prefix=".lease-", dir=path.parent)
    try:
        _write(file, record)
        os.fchmod(file, 0o644)
        os.link(name, path)
    except OSError:
        os.close(file)
        raise
    finally:
        Path(name).unlink()
    return file


@contextmanager
def _right_to_remove(path: Path, token: str, record: Record) -> Iterator[None]:
    """One process at a time removes the lease of `token`; a file of the same kind, as this process may die, too."""
    right = path.with_name(f"{path.stem}-after-{token[:32]}.json")
    while True:
        try:
            file = _take(right, record)
        except Held:
            time.sleep(0.02)  # it is held for the time of an unlink
            continue
        break
    try:
        yield
    finally:
        os.close(file)
        right.unlink(missing_ok=True)


def _write(file: int, record: Record) -> None:
    """Write a record over the former one, in place: a lease that somebody took over is another file, left alone."""
    text = json.dumps({**record, "heartbeat": round(time.time(), 1)}).encode()
    # Spaces cover what a longer record left; one write, so that a reader finds one record or the other.
    os.pwrite(file, text.ljust(os.fstat(file).st_size), 0)
    os.fsync(file)


def _read(path: Path) -> Record | None:
    """Record and age of a lease; one that its writer never completed has the token ''."""
    for _ in range(5):
        try:
            with path.open("rb") as stream:
                record, written = _parsed(stream.read()), os.fstat(stream.fileno()).st_mtime
        except (FileNotFoundError, NotADirectoryError):
            return None
        if record is not None:
            break
        time.sleep(0.01)  # read while it was written
    return {"token": "", **(record or {}), "age_s": _now(path.parent) - written}


def _parsed(text: str | bytes) -> Record | None:
    try:
        value = json.loads(text)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def _now(folder: Path) -> float:
    """The time by the clock that stamps the files of a folder: clocks of machines differ, by minutes at worst."""
    try:
        with tempfile.TemporaryFile(dir=folder) as stamped:
            return os.fstat(stamped.fileno()).st_mtime
    except OSError:
        return time.time()  # a folder that we may only read


def _me() -> Record:
    job, restarts = os.environ.get("SLURM_JOB_ID"), int(os.environ.get("SLURM_RESTART_COUNT") or 0)
    pid = os.getpid()
    where: Record = {"host": socket.gethostname(), "machine": _machine(), "pid": pid, "started": _started(pid)}
    return {**where, "job": job, "restarts": restarts}


@cache
def _machine() -> str:
    """What makes process numbers comparable: one boot of one kernel, and one space of process numbers in it."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot}/{Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return socket.gethostname()


def _started(pid: int) -> str | None:
    """When a process of this machine started, in a form to compare, as numbers are used again; None: it is gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except FileNotFoundError:
        return _signalled(pid)
    # A zombie has ended; only its parent has not yet asked how.
    return None if fields[0] == "Z" else fields[19]


def _signalled(pid: int) -> str | None:
    """The same where there is no /proc, without the time."""
    if Path("/proc/self/stat").exists():
        return None
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except PermissionError:
        return "unknown"
    return "unknown"
