"""One process that watches the queue for every waiting cell of a study. Standard library only: 500 cells, 20 MB.

    python -m pipeline.pretrain.launch.broker ROOT FOLDER

ROOT is the study's results folder, FOLDER has the socket and the locks. A broker knows nothing that cannot be found
again: what is under way stands in SLURM's queue, how a job ended in the cell's `state/outcome.json`. So it may die at
any moment; waiting cells start the next one, which finds the jobs by their names. It ends itself a minute after the
last cell has left; jobs go on without it.

Requeueing belongs to SLURM and to the job (see `job.py`). The broker submits again only where a job is gone without a
word, killed or lost with its node, and no more once `starts_without_progress` of them have died at the same step.
"""

from __future__ import annotations

import fcntl
import json
import os
import resource
import selectors
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import IO, Any

from pipeline.errors import EXIT_BUG, EXIT_DONE, EXIT_UNFINISHED
from pipeline.pretrain.launch import queue
from pipeline.pretrain.lease import alive, attempts, read_lease

POLL_S = float(os.environ.get("PIPELINE_SLURM_POLL_S", "15"))  # between two looks at the queue, for all cells at once
IDLE_S = float(os.environ.get("PIPELINE_BROKER_IDLE_S", "60"))
SUBMIT = [sys.executable, "-m", "pipeline.pretrain.launch.submit"]
SUBMIT_LIMIT_S = 1800.0
BATCH = 50  # cells a submission: 0.2 s each, and their waiters hear of it together
SUBMIT_TRIES = 3
UNSEEN = 2  # looks at the queue that must agree before a job counts as gone

Message = dict[str, Any]


@dataclass
class Cell:
    """A cell that somebody waits for."""

    request: Message
    clients: list[socket.socket] = field(default_factory=list)
    job: str | None = None
    foreign: bool = False  # the job was submitted with other settings: only its end is waited for
    learnt: float = 0.0  # when we learnt of the job: a look at the queue that began before says nothing about it
    unseen: int = 0
    not_before: float = 0.0  # of the next submission
    held: bool = False  # somebody else trained it when it was to be submitted
    tries: int = 0  # submissions that died before they answered
    died_at: list[int] = field(default_factory=list)  # last start's step at each death of a job
    limit: int = 5
    told: str = ""

    @property
    def state(self) -> Path:
        """Folder of the cell's training state."""
        return Path(self.request["root"]) / "pretrain" / self.request["cell"] / "state"


class Child:
    """A program that runs beside the loop, its output in files: none of its answers can block us."""

    def __init__(self, command: list[str], limit_s: float, text: str = "", cwd: str | None = None) -> None:
        self.began = time.monotonic()
        self.ends = self.began + limit_s
        self._out, self._err = _file(), _file()
        with _file(text) as given:
            self._process = subprocess.Popen(command, stdin=given, stdout=self._out, stderr=self._err, cwd=cwd)

    def result(self) -> tuple[int, str, str] | None:
        """Exit code, output and errors; None while it runs."""
        code = self._process.poll()
        if code is None:
            if time.monotonic() > self.ends:
                self._process.kill()
            return None
        return code, _text(self._out), _text(self._err)


class Broker:
    """The loop: clients, one look at the queue every POLL_S, one submission at a time."""

    def __init__(self, root: Path, folder: Path) -> None:
        self.root, self.folder = root, folder
        self.cells: dict[str, Cell] = {}
        self.cancelled: set[str] = set()  # while they were being submitted
        self.look: Child | None = None
        self.submission: tuple[Child, list[str]] | None = None
        self.next_look = 0.0
        self.idle_since = time.monotonic()
        self.selector = selectors.DefaultSelector()
        self.answers = True  # whether squeue did, the last time

    def serve(self) -> None:
        """Until nobody has waited for a minute."""
        path = self.folder / "socket"
        path.unlink(missing_ok=True)
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as door:
            door.bind(str(path))
            door.listen(1024)
            door.setblocking(False)
            self.selector.register(door, selectors.EVENT_READ, partial(self._accept, door))
            log(f"broker {os.getpid()} of {self.root} on {socket.gethostname()}")
            while self._wanted():
                for key, _ in self.selector.select(self._pause_s()):
                    key.data()
                self._look_at_queue()
                self._submit()
            # Whoever comes now finds no broker and starts one; who is at the door meets an end of file, and comes back.
            path.unlink(missing_ok=True)
            log(f"broker {os.getpid()} ends: nobody waits")

    def _wanted(self) -> bool:
        if self.cells or self.submission:
            self.idle_since = time.monotonic()
        return time.monotonic() - self.idle_since < IDLE_S

    def _pause_s(self) -> float:
        return min(0.1, POLL_S) if self.look or self.submission else min(1.0, POLL_S)

    # --- clients ---

    def _accept(self, door: socket.socket) -> None:
        with suppress(BlockingIOError):
            client, _ = door.accept()
            client.setblocking(False)
            self.selector.register(client, selectors.EVENT_READ, partial(self._hear, client, bytearray()))

    def _hear(self, client: socket.socket, heard: bytearray) -> None:
        """Read a client's request, one line of JSON; afterwards only its leaving is heard."""
        try:
            piece = client.recv(65536)
        except BlockingIOError:
            return
        except OSError:
            piece = b""
        if not piece:
            self._leave(client)
            return
        heard += piece
        if heard.endswith(b"\n"):
            self._answer(client, json.loads(heard))
            heard.clear()

    def _answer(self, client: socket.socket, request: Message) -> None:
        if request["do"] == "cancel":
            self._last_words(client, self._cancel(request["cell"]))
        else:
            cell = self.cells.setdefault(request["cell"], Cell(request))
            cell.request = request
            cell.clients.append(client)
            if cell.told:
                self._send(client, f"say {cell.told}\n")

    def _leave(self, client: socket.socket) -> None:
        self.selector.unregister(client)
        client.close()
        for name, cell in list(self.cells.items()):
            if client in cell.clients:
                cell.clients.remove(client)
                if not cell.clients:
                    log(f"{name}: nobody waits any more" + (f"; job {cell.job} goes on" if cell.job else ""))
                    del self.cells[name]

    def _last_words(self, client: socket.socket, text: str) -> None:
        self._send(client, text)
        with suppress(OSError):
            client.shutdown(socket.SHUT_RDWR)

    def _send(self, client: socket.socket, text: str) -> None:
        # A client that has gone is heard of in the loop; a message fits into any socket's buffer.
        with suppress(OSError):
            client.send(text.encode())

    def _tell(self, name: str, text: str) -> None:
        """Say to all who wait for a cell what has changed about it."""
        cell = self.cells[name]
        if text != cell.told:
            cell.told = text
            log(f"{name}: {text}")
            for client in cell.clients:
                self._send(client, f"say {text}\n")

    def _end(self, name: str, code: int, message: str) -> None:
        """Answer all who wait for a cell."""
        log(f"{name}: ends with {code}. {message}")
        for client in self.cells.pop(name).clients:
            self._last_words(client, f"end {code}\n" + (f"pipeline pretrain: {message}\n" if message else ""))

    # --- the queue ---

    def _look_at_queue(self) -> None:
        if self.look is None:
            if time.monotonic() >= self.next_look and any(cell.job for cell in self.cells.values()):
                self.look = Child(queue.listing_command(), queue.LIMIT_S)
            return
        result = self.look.result()
        if result is None:
            return
        began, self.look, self.next_look = self.look.began, None, time.monotonic() + POLL_S
        code, text, errors = result
        if (code == 0) != self.answers:
            self.answers = code == 0
            log("squeue answers again" if self.answers else f"squeue does not answer: {errors.strip()}")
        if code:
            return  # nothing is known, nothing is concluded
        jobs = queue.parse_listing(text)
        for name, cell in list(self.cells.items()):
            if cell.job and cell.learnt < began:
                self._follow(name, cell, jobs.get(cell.job))

    def _follow(self, name: str, cell: Cell, job: queue.Job | None) -> None:
        """What the queue says of a cell's job; None: it is not listed."""
        if job and not job.ended:
            cell.unseen = 0
            reason = f" ({job.reason})" if job.state == "PENDING" and job.reason not in ("None", "") else ""
            self._tell(name, f"job {job.id} {job.state.lower()}{reason}")
            return
        outcome = None if cell.foreign else self._outcome(cell)
        cell.unseen += 1
        if outcome:
            self._conclude(name, cell, outcome)
        elif cell.unseen >= UNSEEN:
            self._gone(name, cell, job)

    def _outcome(self, cell: Cell) -> Message | None:
        """How the cell's job ended, in its own words; None where it had none."""
        try:
            outcome = json.loads((cell.state / "outcome.json").read_text(encoding="utf-8"))
        except (FileNotFoundError, json.JSONDecodeError):
            return None
        return outcome if outcome.get("job") == cell.job else None

    def _conclude(self, name: str, cell: Cell, outcome: Message) -> None:
        if outcome["code"] == EXIT_UNFINISHED:
            self._again(name, cell, f"job {cell.job}: {outcome['message']}")
        else:
            self._end(name, outcome["code"], outcome["message"])

    def _gone(self, name: str, cell: Cell, job: queue.Job | None) -> None:
        """A job that ended without a word."""
        state = job.state.lower() if job else "gone from the queue"
        if cell.foreign:
            self._forget(cell)
            self._tell(name, f"job {job.id if job else ''} of other settings has ended")
        elif job and job.state == "CANCELLED":
            self._end(name, EXIT_UNFINISHED, f"job {job.id} was cancelled. Run the same command to go on.")
        else:
            self._again(name, cell, f"job {cell.job} ended without a word ({state})")

    def _again(self, name: str, cell: Cell, what: str) -> None:
        """Submit a cell again, unless the last jobs all died without getting further."""
        starts = attempts(cell.state)
        cell.died_at.append(starts[-1]["step"] if starts else -1)
        last = cell.died_at[-cell.limit :]
        if len(last) == cell.limit and len(set(last)) == 1:
            where = "before training began" if last[0] < 0 else f"in training from step {last[0]}"
            logs = cell.state / "slurm"
            message = f"{what}; {cell.limit} jobs in a row ended {where} (compute.starts_without_progress)."
            written = sorted(logs.glob(f"{cell.job}_*_log.err"), key=lambda path: path.stat().st_mtime)
            self._end(name, EXIT_BUG, f"{message} Their logs: {logs}/{_tail(written[-1]) if written else ''}")
            return
        self._forget(cell)
        self._tell(name, f"{what}; submitted again")

    def _forget(self, cell: Cell) -> None:
        cell.job, cell.foreign, cell.unseen = None, False, 0

    # --- submitting ---

    def _submit(self) -> None:
        if self.submission is None:
            names = list(islice((name for name, cell in self.cells.items() if self._ready(cell)), BATCH))
            if names:
                requests = [self.cells[name].request for name in names]
                text = json.dumps({"folder": str(self.folder), "requests": requests})
                self.submission = Child(SUBMIT, SUBMIT_LIMIT_S, text, requests[0]["cwd"]), names
            return
        child, names = self.submission
        result = child.result()
        if result is None:
            return
        self.submission = None
        code, text, errors = result
        answers = {answer["cell"]: answer for answer in map(_line, text.splitlines()) if answer}
        for name in names:
            answer = answers.get(name, {"failed": f"submitting ended with {code}. {errors[-2000:].strip()}"})
            if name in self.cells:
                self._submitted(name, self.cells[name], answer)
            elif name in self.cancelled and "job" in answer:
                log(f"{name}: cancelled while it was submitted")
                with suppress(queue.Unreachable):
                    queue.cancel([answer["job"]])
        self.cancelled.clear()

    def _ready(self, cell: Cell) -> bool:
        """Whether a cell can be submitted now: it has no job, and nobody else trains it any more."""
        if cell.job or time.monotonic() < cell.not_before:
            return False
        cell.not_before = time.monotonic() + POLL_S
        lease = read_lease(cell.state) if cell.held else None
        return lease is None or not alive(lease)

    def _submitted(self, name: str, cell: Cell, answer: Message) -> None:
        """Take the answer of a submission: a job, a holder to wait for, a refusal, or a reason to try later."""
        cell.held = "held" in answer
        if "job" in answer:
            cell.job, cell.foreign, cell.limit = answer["job"], answer["foreign"], answer["limit"]
            cell.learnt, cell.unseen, cell.tries = time.monotonic(), 0, 0
            self.next_look = min(self.next_look, time.monotonic() + min(POLL_S, 2.0))
            self._tell(name, answer["text"])
        elif "held" in answer or "later" in answer:
            self._tell(name, answer.get("held") or answer["later"])
        elif "code" in answer:
            self._end(name, answer["code"], answer["message"])
        elif cell.tries + 1 < SUBMIT_TRIES:
            # Whatever it had submitted has its name in the queue: the next one finds it there.
            cell.tries += 1
            log(f"{name}: {answer['failed']}")
        else:
            self._end(name, EXIT_BUG, answer["failed"])

    # --- cancelling ---

    def _cancel(self, cell: str | None) -> str:
        """End the jobs of a cell, or of the study, and whatever waits for them."""
        try:
            done = queue.cancel_jobs(self.root, cell)
        except queue.Unreachable as error:
            return f"Nothing was cancelled: {error}\n"
        if self.submission:
            self.cancelled |= {name for name in self.submission[1] if cell in (None, name)}
        for name in [name for name in self.cells if cell in (None, name)]:
            self._end(name, EXIT_UNFINISHED, "cancelled. Run the same command to go on.")
        return done


def _file(text: str = "") -> IO[str]:
    """An open file without a name that holds a text."""
    file = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115  (its reader closes it)
    file.write(text)
    file.seek(0)
    return file


def _text(file: IO[str]) -> str:
    with file:
        file.seek(0)
        return file.read()


def log(text: str) -> None:
    """One line of broker.log, which is our standard output."""
    print(time.strftime("%Y-%m-%dT%H:%M:%S%z"), text, flush=True)


def _line(text: str) -> Message | None:
    """An answer of a submission; None for what a library printed."""
    try:
        value = json.loads(text)
    except json.JSONDecodeError:
        return None
    return value if isinstance(value, dict) and "cell" in value else None


def _tail(path: Path, lines: int = 5) -> str:
    return path.name + ":\n" + "\n".join(path.read_text(errors="replace").splitlines()[-lines:])


def main(arguments: list[str]) -> int:
    """Serve, unless a broker of this study runs already."""
    root, folder = Path(arguments[0]), Path(arguments[1])
    with (folder / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return EXIT_DONE
        # A socket a waiting cell: the usual soft limit of 1,024 open files is too near.
        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most if most != resource.RLIM_INFINITY else 65536, most))
        Broker(root, folder).serve()
    return EXIT_DONE


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
