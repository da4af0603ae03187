"""`pipeline status`: the grid of a study at a glance, from the files of its cells and one look at SLURM's queue.

Imports no torch, leaves nothing behind, and lists each cell's folder once: 10,000 cells take about a second.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from pipeline.config import CELL_PATH, Study
from pipeline.errors import EXIT_UNFINISHED, InputError
from pipeline.grid import all_cells
from pipeline.layout import Layout
from pipeline.pretrain.launch.job import OUTCOME
from pipeline.pretrain.launch.queue import Job, Unreachable, listing, of_study
from pipeline.pretrain.lease import ATTEMPTS, LEASE, alive, read_lease
from pipeline.pretrain.watch.status_table import FINISHED, Row, Screen, State, printable, render

# What squeue calls a job that holds its nodes.
ON_NODES = frozenset(("RUNNING", "COMPLETING", "CONFIGURING", "SUSPENDED", "STOPPED", "SIGNALING", "STAGE_OUT"))
STATE, SUMMARY = "state", "summary.json"
LEVELS = CELL_PATH.count("/") + 1  # folders from pretrain/ down to a cell's
GOES_ON, BRINGS_BACK = "the same command goes on", "trained; the same command brings its files back"
LARGEST = 10**12  # of any number shown; a time left of 30,000 years can still be written as days

REFRESH_S = 2.0
PIPE_REFRESH_S = 60.0  # where no person watches: a log of the grid
QUEUE_EVERY_S = 10.0  # a person who watches asks the scheduler of everybody no more often
QUEUE_AGAIN_S = 60.0  # after it did not answer, which may take as long
REST = 4  # times as long as reading took does a watch wait: a large grid on a network file system is not read for ever


@dataclass
class Found:
    """What lies in a cell's folder and in its state folder (`state/NAME`), and what of it cannot be read."""

    folder: Path
    names: set[str]
    faults: list[str] = field(default_factory=list)

    def record(self, name: str) -> dict[str, Any]:
        """A JSON object; empty where there is none, or where it is damaged, which `faults` then says."""
        for value in self._parsed(name, lambda text: [json.loads(text)]):
            if isinstance(value, dict):
                return value
            self.faults.append(f"{name} holds no record")
        return {}

    def starts(self) -> list[dict[str, Any]]:
        """Every start of a training process, oldest first."""
        lines = self._parsed(f"{STATE}/{ATTEMPTS}", lambda text: [_line(line) for line in text.splitlines() if line])
        whole = [line for line in lines if isinstance(line, dict)]
        if len(whole) < len(lines):
            self.faults.append(f"{ATTEMPTS} has {len(lines) - len(whole)} torn line(s)")
        return whole

    def lease(self) -> tuple[dict[str, Any], bool]:
        """The lease, empty where there is none, and whether its holder lives."""
        if f"{STATE}/{LEASE}" not in self.names:
            return {}, False
        try:
            lease = read_lease(self.folder / STATE) or {}
            if "cell" not in lease and lease:
                self.faults.append(f"{LEASE} is half-written")
            return lease, bool(lease) and alive(lease)
        except (OSError, ValueError, TypeError, KeyError) as error:
            self.faults.append(f"{LEASE} cannot be read ({_reason(error)})")
            return {}, False

    def saved(self, starts: Sequence[Mapping[str, Any]]) -> int | None:
        """Step of the newest checkpoint of the settings of the last start."""
        identity = str(starts[-1].get("identity", "")) if starts else ""
        names = _names(f"{self.folder}/{STATE}/{identity}") if identity else set()
        steps = [name[5:-12] for name in names if name.startswith("step-") and name.endswith(".safetensors")]
        return max((int(step) for step in steps if step.isdigit()), default=None)

    def kept(self) -> bool:
        """Whether a finished result lies with the state, so that files that were deleted need no training."""
        folders = [name for name in self.names if name.startswith(f"{STATE}/") and "." not in name]
        return any((self.folder / name / "result" / "result.json").is_file() for name in folders)

    def _parsed(self, name: str, parse: Callable[[bytes], list[Any]]) -> list[Any]:
        if name not in self.names:
            return []
        try:
            return parse((self.folder / name).read_bytes())
        except FileNotFoundError:
            return []  # gone since it was listed
        except (OSError, ValueError, RecursionError) as error:
            self.faults.append(f"{name.rpartition('/')[2]} cannot be read ({_reason(error)})")
            return []


def _line(text: bytes) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return None


def _reason(error: Exception) -> str:
    return error.strerror if isinstance(error, OSError) and error.strerror else str(error)


# --- from files and queue to rows ------------------------------------------------------------------------------------


def read_grid(study: Study, layout: Layout, jobs: Mapping[str, Job]) -> list[Row]:
    """A row for each cell of the study, in its order; `jobs` are those in SLURM's queue by their cell's path."""
    root = layout.root / "pretrain"
    names = files_below(root)
    cells = [cell.path for cell in all_cells(study)]
    return [read_cell(cell, Found(root / cell, names.get(cell, set())), jobs.get(cell)) for cell in cells]


def jobs_in_queue(root: Path) -> tuple[dict[str, Job], str]:
    """This user's jobs of a study by their cell's path, and why they are not known; nothing where there is no SLURM."""
    if shutil.which("squeue") is None:
        return {}, ""
    try:
        found = of_study(listing(), root)
    except Unreachable as error:
        last = str(error).strip().rpartition("\n")[2]
        return {}, f"SLURM does not answer, so states are from files alone ({printable(last)})."
    # A job of former settings may stand beside the present one; what runs is what counts.
    ordered = sorted(found, key=lambda job: (job.state in ON_NODES, job.id))
    return {job.name.removeprefix(f"{root.name}/").partition("#")[0]: job for job in ordered}, ""


def files_below(root: Path) -> dict[str, set[str]]:
    """Names in each cell's folder and in its state folder, by the cell's path; each folder is listed once."""
    folders = [""]
    for _ in range(LEVELS):
        folders = [f"{folder}{name}/" for folder in folders for name in _names(f"{root}/{folder}")]
    names = {}
    for folder in folders:
        inside = _names(f"{root}/{folder}")
        if STATE in inside:
            inside |= {f"{STATE}/{name}" for name in _names(f"{root}/{folder}{STATE}")}
        names[folder[:-1]] = inside
    return names


def _names(folder: str) -> set[str]:
    try:
        return set(os.listdir(folder))  # noqa: PTH208, a Path an entry costs more than the listing
    except OSError:
        return set()  # no folder, or gone since, or not ours to read: its cell's files say no more


def read_cell(cell: str, found: Found, job: Job | None) -> Row:
    """The row of one cell. What lives counts first, then what is finished, then how it last ended."""
    lease, lives = found.lease()
    if lives:
        return _row(found, cell, "running", lease, _where(lease, len(found.starts())), **_pace(lease))
    if SUMMARY in found.names and (job is None or job.state in ON_NODES):  # a job ends after its cell is finished
        return _finished(cell, found)
    starts, outcome = found.starts(), found.record(f"{STATE}/{OUTCOME}")
    known = {**(starts[-1] if starts else {}), **lease}
    if (saved := found.saved(starts)) is not None:
        known["step"] = max(saved, _number(known.get("step")) or 0)
    if job is not None:
        return _in_queue(found, cell, {**known, "job": job.id}, job, len(starts))
    if outcome and not _older(outcome, starts):
        return _ended(found, cell, known, outcome)
    if found.kept():
        return _row(found, cell, "interrupted", known, BRINGS_BACK)
    if known:
        end = "killed in" if lease else "ended after"
        return _row(found, cell, "interrupted", known, f"{end} start {max(1, len(starts))}; {GOES_ON}")
    return _row(found, cell, "failed" if found.faults else "waiting", {}, "")


def _finished(cell: str, found: Found) -> Row:
    summary = found.record(SUMMARY)
    state = FINISHED.get(str(summary.get("status")))
    if state is None:
        if summary:
            found.faults.append(f"{SUMMARY} has no status")
        return _row(found, cell, "failed", {}, "delete it and give the same command")
    return _row(found, cell, state, {"step": summary.get("steps"), "loss": summary.get("train_loss")}, "")


def _in_queue(found: Found, cell: str, known: Mapping[str, Any], job: Job, starts: int) -> Row:
    if job.state in ON_NODES:
        return _row(found, cell, "running", known, f"starting or ending (job {job.state})")
    reason = "" if job.reason == "None" else job.reason
    return _row(found, cell, "requeued" if starts else "queued", known, reason)


def _ended(found: Found, cell: str, known: Mapping[str, Any], outcome: Mapping[str, Any]) -> Row:
    code, told = outcome.get("code"), str(outcome.get("message") or "")
    known = {**known, "job": outcome.get("job")}
    if code == 0:
        return _row(found, cell, "interrupted", known, BRINGS_BACK)
    if code == EXIT_UNFINISHED:
        return _row(found, cell, "interrupted", known, "; ".join(filter(None, [told, GOES_ON])))
    return _row(found, cell, "failed", known, f"exit {code}: {told}")


def _older(outcome: Mapping[str, Any], starts: Sequence[Mapping[str, Any]]) -> bool:
    """Whether a training was started, and did not come to tell its end, after the end that was told."""
    try:
        told = datetime.fromisoformat(str(outcome.get("when"))).timestamp()
    except ValueError:
        return False
    started = _number(starts[-1].get("when")) if starts else None
    return started is not None and started > told + 1  # an end is told in whole seconds


def _row(found: Found, cell: str, state: State, known: Mapping[str, Any], note: str, **pace: float | None) -> Row:
    step, steps = _number(known.get("step")), _number(known.get("steps"))
    return Row(
        cell,
        state,
        step=None if step is None else int(step),
        steps=None if steps is None else int(steps),
        loss=_number(known.get("loss")),
        job=str(known["job"]) if known.get("job") else None,
        note="; ".join(filter(None, [*found.faults, note])),
        **pace,
    )


def _pace(lease: Mapping[str, Any]) -> dict[str, float | None]:
    return {name: _number(lease.get(name)) for name in ("clips_per_s", "left_s")}


def _where(lease: Mapping[str, Any], starts: int) -> str:
    told = f"on {lease['host']}" if lease.get("host") else ""
    return "; ".join(filter(None, [told, f"start {starts}" if starts > 1 else ""]))


def _number(value: Any) -> float | None:
    """A number that can be shown, or None: what a damaged file holds need not be one."""
    good = isinstance(value, int | float) and not isinstance(value, bool) and 0 <= abs(value) < LARGEST
    return value if good else None


# --- on a terminal, in a pipe ----------------------------------------------------------------------------------------


def show(study: Study, layout: Layout, watch: bool = False, as_json: bool = False, everything: bool = False) -> None:
    """Print the grid on stdout: once, or again and again until interrupted, or until every cell is finished.

    A terminal gets a table that fits it, refreshed in place by `watch`; anything else the whole of it, once a minute.

    Raises
    ------
    InputError : `watch` and `as_json` together.
    """
    if watch and as_json:
        raise InputError("--watch", "--json beside it", "one of the two", "Call `pipeline status --json` repeatedly.")
    if as_json:
        jobs, remark = jobs_in_queue(layout.root)
        if remark:
            print(remark, file=sys.stderr)
        print(json.dumps([asdict(row) for row in read_grid(study, layout, jobs)], indent=2))
    elif watch:
        _watch(study, layout, everything)
    else:
        jobs, remark = jobs_in_queue(layout.root)
        _print(render(study.name, read_grid(study, layout, jobs), _screen(full=False), everything, remark))


def _watch(study: Study, layout: Layout, everything: bool) -> None:
    terminal = sys.stdout.isatty()
    jobs: dict[str, Job] = {}
    ask_at, remark, lines = -math.inf, "", [""]
    with _until_interrupted(), _own_screen(terminal):
        while True:
            began = time.monotonic()
            if began >= ask_at:
                jobs, remark = jobs_in_queue(layout.root)
                ask_at = time.monotonic() + (QUEUE_AGAIN_S if remark else QUEUE_EVERY_S)
            rows = read_grid(study, layout, jobs)
            lines = render(study.name, rows, _screen(full=terminal), everything, remark)
            if terminal:
                _print(_in_place(lines), end="")
            else:
                _print([*lines, ""])
            if all(row.state in FINISHED.values() for row in rows):
                break
            took = time.monotonic() - began
            time.sleep(max(REFRESH_S if terminal else PIPE_REFRESH_S, REST * took))
    if terminal:
        _print(lines)  # what was last seen stays where the person goes on typing


def _screen(full: bool) -> Screen:
    if not sys.stdout.isatty():
        return Screen()
    size = shutil.get_terminal_size()
    # What is printed once may be wider: why a cell failed can be read to its end where the line is broken.
    return Screen(size.columns if full else None, size.lines, "NO_COLOR" not in os.environ, full)


def _print(lines: Iterable[str], end: str = "\n") -> None:
    print("\n".join(lines), end=end, flush=True)


def _in_place(lines: Sequence[str]) -> list[str]:
    """Lines that overwrite what stood there, from the top, each cleared behind its end, nothing left below.

    They are printed without a line break at their end, which would scroll a full screen.
    """
    first, *others, last = [f"{line}\x1b[K" for line in lines]
    return [f"\x1b[H{first}", *others, f"{last}\x1b[J"]


@contextmanager
def _own_screen(terminal: bool) -> Iterator[None]:
    """The terminal's second screen without its cursor, as `less` takes it; the first comes back as it was."""
    if not terminal:
        yield
        return
    sys.stdout.write("\x1b[?1049h\x1b[?25l")
    try:
        yield
    finally:
        sys.stdout.write("\x1b[?25h\x1b[?1049l")
        sys.stdout.flush()


@contextmanager
def _until_interrupted() -> Iterator[None]:
    """Ctrl-C and SIGTERM end the block, and that is no error."""
    former = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    except KeyboardInterrupt:
        return
    finally:
        signal.signal(signal.SIGTERM, former)
