"""A SLURM of shell scripts: one file a job, which tests write to; and a broker that runs in a thread beside a test."""

from __future__ import annotations

import json
import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from pipeline.pretrain.launch import broker, queue
from pipeline.pretrain.launch.client import connect

SCRIPTS = {
    "srun": "exit 1",
    "squeue": 'if [ -e "$FAKE/down" ]; then echo "Unable to contact slurm controller" >&2; exit 1; fi\n'
    'echo >> "$FAKE/looks"\ncat "$FAKE"/jobs/* 2>/dev/null; exit 0',
    # The last argument is the script; its options are lines `#SBATCH --name=value`.
    "sbatch": "for script; do :; done\n"
    'refuse() { echo "sbatch: error: $1" >&2; exit 1; }\n'
    'if grep -q "partition=nosuch" "$script"; then refuse "invalid partition specified: nosuch"; fi\n'
    'if [ -e "$FAKE/full" ]; then refuse AssocMaxSubmitJobLimit; fi\n'
    'id=$(($(ls "$FAKE/jobs" | wc -l) + 1)); cp "$script" "$FAKE/$id.sh"\n'
    'name=$(sed -n "s/^#SBATCH --job-name=\'*\\([^\']*\\)\'*$/\\1/p" "$script")\n'
    'echo "$id|PENDING|Priority|$name" > "$FAKE/new"; mv "$FAKE/new" "$FAKE/jobs/$id"; echo "Submitted batch job $id"',
    "scancel": 'for id; do [ -e "$FAKE/jobs/$id" ] && sed -i "s/|[A-Z]*|/|CANCELLED|/" "$FAKE/jobs/$id"; done; exit 0',
}
# In place of launch/submit.py, whose imports take a second: a cell is adopted, or a job is written for it.
SUBMITTER = """
import json, os, sys
from pathlib import Path
from pipeline.pretrain.launch import queue
fake = Path(os.environ["FAKE"])
for request in json.load(sys.stdin)["requests"]:
    root, cell = Path(request["root"]), request["cell"]
    with (fake / "submissions").open("a") as stream:
        stream.write(cell + "\\n")
    if (fake / "crash").exists():
        sys.exit("Killed")
    script = fake / "job.sh"
    script.write_text("#SBATCH --job-name=" + queue.name_of(root, cell, "settings"))
    live = queue.of_cell(queue.listing(), root, cell)
    answer = fake / "answer"
    if answer.exists():
        given = json.loads(answer.read_text())
    elif live:
        given = {"job": live[0].id, "foreign": False, "limit": 3, "text": "adopts job " + live[0].id}
    else:
        job = os.popen("sbatch " + str(script)).read().split()[-1]
        given = {"job": job, "foreign": False, "limit": 3, "text": "job " + job + " submitted"}
    print(json.dumps({"cell": cell, **given}), flush=True)
"""


def until(condition: Callable[[], Any], what: str = "it") -> Any:
    """Wait for what another process does; what the condition gave."""
    for _ in range(2000):
        if value := condition():
            return value
        time.sleep(0.01)
    raise AssertionError(f"{what} did not come")


@dataclass
class FakeSlurm:
    """The folder that the scripts read and write."""

    folder: Path

    def job(self, number: int) -> queue.Job:
        """A job as squeue lists it."""
        return queue.parse_listing((self.folder / "jobs" / str(number)).read_text())[str(number)]

    def jobs(self) -> list[int]:
        """Numbers of every job submitted so far."""
        return sorted(int(path.name) for path in (self.folder / "jobs").iterdir())

    def add(self, name: str, state: str = "RUNNING") -> int:
        """A job that somebody else has submitted."""
        number = len(self.jobs()) + 1
        self._write(number, f"{number}|{state}|None|{name}\n")
        return number

    def set(self, number: int, state: str, reason: str = "None") -> None:
        """What becomes of a job."""
        self._write(number, f"{number}|{state}|{reason}|{self.job(number).name}\n")

    def _write(self, number: int, line: str) -> None:
        """At once: squeue may be reading."""
        (self.folder / "next").write_text(line)
        (self.folder / "next").replace(self.folder / "jobs" / str(number))

    def looks(self) -> int:
        """How often squeue has answered."""
        path = self.folder / "looks"
        return len(path.read_text()) if path.exists() else 0

    def submissions(self) -> list[str]:
        """Cells that were to be submitted, in order."""
        path = self.folder / "submissions"
        return path.read_text().splitlines() if path.exists() else []

    @contextmanager
    def down(self) -> Iterator[None]:
        """Slurmctld does not answer."""
        (self.folder / "down").touch()
        yield
        (self.folder / "down").unlink()


def install(folder: Path, monkeypatch: pytest.MonkeyPatch) -> FakeSlurm:
    """Put the scripts first on PATH."""
    (folder / "bin").mkdir(parents=True)
    (folder / "jobs").mkdir()
    for name, text in SCRIPTS.items():
        (folder / "bin" / name).write_text(f"#!/bin/sh\n{text}\n")
        (folder / "bin" / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setenv("FAKE", str(folder))
    return FakeSlurm(folder)


class Client:
    """What a waiting shell reads."""

    def __init__(self, folder: Path) -> None:
        ends = time.monotonic() + 20
        while (found := connect(folder)) is None and time.monotonic() < ends:
            time.sleep(0.01)  # its socket is bound before it listens
        assert found, "no broker"
        self._socket = found
        self._socket.settimeout(20)
        self._stream = self._socket.makefile("rw", encoding="utf-8")

    def send(self, **request: Any) -> Client:
        """One line of JSON."""
        self._stream.write(json.dumps(request) + "\n")
        self._stream.flush()
        return self

    def line(self) -> str:
        """The next line, "" at the end."""
        return self._stream.readline().rstrip("\n")

    def said(self, text: str) -> str:
        """The next line that has `text` in it."""
        while text not in (line := self.line()):
            assert line, f"'{text}' was not said"
        return line

    def end(self) -> tuple[int, str]:
        """Exit code and message."""
        code = self.said("end ").removeprefix("end ")
        return int(code), self._stream.read()

    def leave(self) -> None:
        """As a killed shell does."""
        self._stream.close()
        self._socket.close()


class RunningBroker:
    """A broker in a thread, with the submitter above, that looks every 20 ms."""

    def __init__(self, root: Path) -> None:
        # A socket's name has room for 107 bytes, and pytest's folders are long.
        self._short = tempfile.TemporaryDirectory(prefix="broker-")
        self.root, self.folder = root, Path(self._short.name)
        self.broker = broker.Broker(root, self.folder)
        self.thread = threading.Thread(target=self.broker.serve, daemon=True)
        self.thread.start()
        until(lambda: (self.folder / "socket").exists(), "the broker's socket")

    def wait_for(self, cell: str) -> Client:
        """A client that waits for a cell."""
        request = {"do": "pretrain", "root": str(self.root), "cell": cell, "cwd": str(self.root)}
        return Client(self.folder).send(**request)

    def state(self, cell: str) -> Path:
        """Folder of a cell's training state."""
        folder = self.root / "pretrain" / cell / "state"
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def outcome(self, cell: str, job: int, code: int, message: str = "") -> None:
        """A job's own word on how it ended."""
        ended = {"code": code, "message": message, "job": str(job), "when": "now"}
        (self.state(cell) / "outcome.json").write_text(json.dumps(ended))

    def stop(self) -> None:
        """Wait until it has ended by itself, as nobody waits any more."""
        broker.IDLE_S = 0.0
        self.thread.join(20)
        self._short.cleanup()
        assert not self.thread.is_alive()


def quicken(monkeypatch: pytest.MonkeyPatch) -> None:
    """Look often, and submit by the stand-in; undoes what `stop` sets."""
    monkeypatch.setattr(broker, "POLL_S", 0.02)
    monkeypatch.setattr(broker, "IDLE_S", 60.0)
    monkeypatch.setattr(broker, "SUBMIT", [sys.executable, "-c", SUBMITTER])
