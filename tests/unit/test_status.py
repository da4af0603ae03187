"""What `pipeline status` says of a grid, from files of cells, a real lease and a `squeue` that says what we want."""

import io
import json
import os
import pty
import re
import signal
import stat
import subprocess
import sys
import time
from functools import cache
from pathlib import Path

import pytest

from pipeline.config import load_study
from pipeline.errors import InputError
from pipeline.grid import all_cells
from pipeline.layout import Layout
from pipeline.pretrain import lease as leases
from pipeline.pretrain.launch.queue import name_of
from pipeline.pretrain.lease import Lease, note_attempt
from pipeline.pretrain.watch import status
from pipeline.pretrain.watch.progress import Progress
from pipeline.pretrain.watch.status_table import Row, Screen, render

DEMO = Path(__file__).resolve().parents[2] / "config/demo.yaml"
EMPTY = {block: [] for block in ("data", "iso_tokens", "off_diagonal", "random_weights")}


@cache
def study_of(seeds):
    """A study of that many cells, which differ in their seed."""
    block = {"architectures": ["swift_v1"], "sizes": ["w6"], "subjects_frames": [[8, 40]], "seeds": list(range(seeds))}
    grid = {**EMPTY, "scaling": [block], "learning_rate": {"rates": []}}
    return load_study(DEMO, {"name": "small", "grid": grid})


class Grid:
    """The cells of a small study under the working directory, and what lies in their folders."""

    def __init__(self, seeds):
        self.study = study_of(seeds)
        self.layout = Layout(self.study)
        self.cells = [cell.path for cell in all_cells(self.study)]

    def folder(self, number):
        folder = self.layout.root / "pretrain" / self.cells[number]
        (folder / "state").mkdir(parents=True, exist_ok=True)
        return folder

    def write(self, number, name, value):
        text = value if isinstance(value, str) else json.dumps(value)
        (self.folder(number) / name).write_text(text)

    def summary(self, number, **fields):
        self.write(number, "summary.json", {"status": "completed", "steps": 110, "train_loss": 0.5, **fields})

    def start(self, number, step=0):
        note_attempt(self.folder(number) / "state", step)

    def dead_lease(self, number, **fields):
        """What a process leaves behind that was killed on this machine."""
        with Lease(self.folder(number) / "state", self.cells[number]):
            record = json.loads((self.folder(number) / "state/lease.json").read_text())
        self.write(number, "state/lease.json", {**record, "started": "long ago", **fields})

    def rows(self, jobs=None):
        return status.read_grid(self.study, self.layout, jobs or status.jobs_in_queue(self.layout.root)[0])

    def row(self, number=0):
        return self.rows()[number]

    def show(self, capsys, **options):
        status.show(self.study, self.layout, **options)
        return capsys.readouterr().out


@pytest.fixture
def grid(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("shutil.which", lambda _name: None)
    return Grid(4)


@pytest.fixture
def squeue(tmp_path, monkeypatch, grid):
    """Put a `squeue` on PATH that lists (job, state, reason, number of a cell), or fails with what it is given."""

    def install(*rows, fails=""):
        root, cells = grid.layout.root, grid.cells
        lines = [f"{job}|{state}|{reason}|{name_of(root, cells[number], 'ab')}" for job, state, reason, number in rows]
        told = tmp_path / "bin/queue.txt"
        told.parent.mkdir(exist_ok=True)
        told.write_text("\n".join(["9|RUNNING|None|a job of somebody else", *lines]))
        script = told.with_name("squeue")
        script.write_text(f"#!/bin/sh\necho '{fails}' >&2\nexit 1\n" if fails else f"#!/bin/sh\ncat '{told}'\n")
        script.chmod(script.stat().st_mode | stat.S_IXUSR)
        monkeypatch.setenv("PATH", f"{told.parent}{os.pathsep}{os.environ['PATH']}")
        monkeypatch.setattr("shutil.which", lambda name: str(told.with_name(name)))

    return install


# --- states ----------------------------------------------------------------------------------------------------------


def test_an_interrupted_cell_shows_the_step_that_it_has_saved(tmp_path):
    state = tmp_path / "state"
    for step in (77, 433):
        (state / "abc").mkdir(parents=True, exist_ok=True)
        (state / f"abc/step-{step:09d}.safetensors").touch()
    (state / "attempts.jsonl").write_text(json.dumps({"step": 0, "identity": "abc", "when": 1.0, "job": None}) + "\n")
    found = status.Found(tmp_path, {"state", "state/attempts.jsonl", "state/abc"})
    row = status.read_cell("cell", found, None)
    assert (row.state, row.step) == ("interrupted", 433)


def test_cell_with_nothing_there_is_waiting(grid):
    assert grid.rows() == [Row(cell, "waiting") for cell in grid.cells]


@pytest.mark.parametrize(
    ("written", "state"),
    [("completed", "done"), ("diverged", "diverged"), ("collapsed", "collapsed"), ("stopped_early", "stopped_early")],
)
def test_finished_cell_has_the_status_of_its_summary(grid, written, state):
    grid.start(0)
    grid.summary(0, status=written)
    assert grid.row() == Row(grid.cells[0], state, step=110, loss=0.5)


def test_running_cell_shows_what_its_training_tells_the_heartbeat(grid, monkeypatch):
    monkeypatch.setattr(leases, "HEARTBEAT_S", 0.01)
    monkeypatch.setattr("sys.stderr", io.StringIO())
    clock = iter(range(1000))
    progress = Progress("cell", 400, 8, lambda: next(clock) / 4)
    for step in range(1, 101):
        progress(step, 0.25, 1e-3)
    folder = grid.folder(0) / "state"
    with Lease(folder, grid.cells[0]) as lease:
        grid.start(0)
        grid.start(0, 50)
        lease.note(**progress.numbers)
        while "step" not in json.loads((folder / "lease.json").read_text()):
            time.sleep(0.01)
        row = grid.row()
    assert (row.state, row.step, row.steps, row.loss) == ("running", 100, 400, 0.25)
    assert row.clips_per_s == pytest.approx(progress.numbers["clips_per_s"])
    assert row.left_s == pytest.approx(300 * 8 / row.clips_per_s)
    assert row.note.endswith("start 2")


def test_killed_cell_is_interrupted_where_it_last_was(grid):
    grid.start(0, 20)
    grid.dead_lease(0, step=37, steps=110, loss=0.75)
    expected = ("interrupted", 37, 110, 0.75, "killed in start 1; the same command goes on")
    row = grid.row()
    assert (row.state, row.step, row.steps, row.loss, row.note) == expected


def test_cell_that_failed_says_why(grid):
    grid.start(0, 20)
    outcome = {"code": 2, "message": "pretrain.batch_clips: found 7", "job": "12", "when": "2999-01-01T00:00:00Z"}
    grid.write(0, "state/outcome.json", outcome)
    assert grid.row() == Row(grid.cells[0], "failed", 20, job="12", note="exit 2: pretrain.batch_clips: found 7")


def test_start_after_a_failure_makes_the_failure_old(grid):
    outcome = {"code": 1, "message": "a bug", "job": "12", "when": "2001-01-01T00:00:00Z"}
    grid.write(0, "state/outcome.json", outcome)
    grid.start(0, 20)
    assert grid.row().state == "interrupted"


@pytest.mark.parametrize(
    ("code", "note"),
    [
        (75, "stopped by a signal after step 20; the same command goes on"),
        (0, "trained; the same command brings its files back"),
    ],
)
def test_cell_that_can_go_on_is_no_failure(grid, code, note):
    message = "stopped by a signal after step 20" if code else ""
    grid.write(0, "state/outcome.json", {"code": code, "message": message, "job": None, "when": "2026-01-01T00:00:00Z"})
    assert (grid.row().state, grid.row().note) == ("interrupted", note)


def test_cell_whose_results_were_deleted_needs_no_training(grid):
    grid.start(0)
    assert grid.row().note == "ended after start 1; the same command goes on"
    (grid.folder(0) / "state/0123456789abcdef/result").mkdir(parents=True)
    grid.write(0, "state/0123456789abcdef/result/result.json", {"files": []})
    assert grid.row().note == "trained; the same command brings its files back"


def test_queue_tells_queued_from_requeued_and_why_they_wait(grid, squeue):
    squeue((101, "PENDING", "Priority", 0), (102, "PENDING", "BeginTime", 1), (103, "RUNNING", "None", 2))
    grid.start(1, 30)
    rows = grid.rows()
    assert [(row.state, row.step, row.job, row.note) for row in rows] == [
        ("queued", None, "101", "Priority"),
        ("requeued", 30, "102", "BeginTime"),
        ("running", None, "103", "starting or ending (job RUNNING)"),
        ("waiting", None, None, ""),
    ]


def test_job_in_the_queue_counts_more_than_how_the_one_before_ended(grid, squeue):
    squeue((101, "PENDING", "None", 0))
    grid.write(0, "state/outcome.json", {"code": 1, "message": "a bug", "job": "99", "when": "2999-01-01T00:00:00Z"})
    assert grid.row() == Row(grid.cells[0], "queued", job="101")


def test_cell_is_finished_while_its_job_ends(grid, squeue):
    squeue((101, "COMPLETING", "None", 0))
    grid.summary(0)
    assert grid.row().state == "done"


def test_of_two_jobs_of_a_cell_the_one_that_runs_counts(grid, squeue):
    squeue((101, "RUNNING", "None", 0), (102, "PENDING", "Priority", 0))
    assert grid.row().job == "101"


def test_ended_jobs_are_not_in_the_queue(grid, squeue):
    squeue((101, "CANCELLED", "None", 0))
    assert grid.row().state == "waiting"


def test_scheduler_that_does_not_answer_is_told_and_files_still_speak(grid, squeue, capsys):
    squeue(fails="squeue: error: Unable to contact slurm controller")
    grid.summary(0)
    shown = grid.show(capsys)
    assert "SLURM does not answer" in shown
    assert "Unable to contact slurm controller" in shown
    assert "1 done" in shown


# --- damage ----------------------------------------------------------------------------------------------------------

DAMAGE = ['{"status": "comp', "", "[]", "null", "\x00\x01", '{"status": 7, "steps": "many"}', "[" * 99999]


@pytest.mark.parametrize("text", DAMAGE)
def test_damaged_summary_is_reported_in_its_row(grid, text):
    grid.write(0, "summary.json", text)
    row = grid.row()
    assert row.state == "failed"
    assert "summary.json" in row.note
    assert "delete it and give the same command" in row.note
    assert [other.state for other in grid.rows()[1:]] == ["waiting"] * 3


@pytest.mark.parametrize("name", ["lease.json", "outcome.json", "attempts.jsonl"])
@pytest.mark.parametrize("text", DAMAGE[:5])
def test_damaged_state_is_reported_or_ignored_but_never_raised(grid, capsys, name, text):
    grid.write(0, f"state/{name}", text)
    assert grid.row().note or text == ""
    assert grid.cells[0] in grid.show(capsys)


def test_torn_last_line_of_attempts_leaves_the_others(grid):
    grid.start(0, 10)
    grid.start(0, 20)
    path = grid.folder(0) / "state/attempts.jsonl"
    path.write_text(path.read_text() + '{"step": 3')
    row = grid.row()
    assert (row.step, row.note.split("; ")[0]) == (20, "attempts.jsonl has 1 torn line(s)")


def test_numbers_that_are_none_do_not_break_the_table(grid, capsys):
    odd = {"step": -5, "steps": 10**400, "loss": float("inf"), "clips_per_s": "fast", "left_s": 1e300}
    with Lease(grid.folder(0) / "state", grid.cells[0]):
        record = json.loads((grid.folder(0) / "state/lease.json").read_text())
        grid.write(0, "state/lease.json", {**record, **odd, "job": ["1"], "host": "\x1b[2J\n"})
        row, shown = grid.row(), grid.show(capsys)
        listed = json.loads(grid.show(capsys, as_json=True))[0]
    assert row.state == listed["state"] == "running"
    assert (row.step, row.steps, row.loss, row.clips_per_s, row.left_s) == (-5, None, None, None, None)
    assert "\x1b" not in shown
    assert len(shown.splitlines()) == 8


def test_file_that_cannot_be_read_is_reported(grid):
    (grid.folder(0) / "summary.json").mkdir()
    assert "summary.json cannot be read (Is a directory)" in grid.row().note


def test_stray_files_between_cells_are_passed_over(grid):
    grid.summary(0)
    for parent in (grid.folder(0).parent, grid.folder(0).parent.parent):
        (parent / "notes.txt").write_text("mine")
    state = grid.folder(1) / "state"
    state.rmdir()
    state.write_text("a file where a folder should be")
    assert [row.state for row in grid.rows()] == ["done", "waiting", "waiting", "waiting"]


# --- table -----------------------------------------------------------------------------------------------------------

RUNNING = Row("a/s/N1-T20/draw0-main/seed0", "running", 30, 100, 0.12345, 41.237, 3725.4, "77", "on node7")


def test_table_at_a_glance():
    rows = [RUNNING, Row("a/s/N1-T20/draw0-main/seed1", "done", 100, loss=0.1)]
    shown = render("demo", rows, Screen())
    assert re.fullmatch(r"demo: 2 cells, 1 finished \[#####-----\] \d\d:\d\d:\d\d", shown[0])
    assert shown[1:] == [
        "1 running, 1 done",
        "",
        "cell                         state    step                   loss  clips/s     left  job  note",
        "a/s/N1-T20/draw0-main/seed0  running  [###-------] 30/100  0.1235    41.24  1:02:05  77   on node7",
        "a/s/N1-T20/draw0-main/seed1  done     100                     0.1",
    ]


def test_columns_in_which_nothing_stands_are_left_out():
    shown = render("demo", [Row("a/cell", "waiting")], Screen())
    assert shown[-2:] == ["cell    state", "a/cell  waiting"]


def many():
    states = ["done"] * 20 + ["queued"] * 6 + ["failed"] + ["running"] * 3 + ["waiting"] * 30
    return [Row(f"cell{number:02d}", state) for number, state in enumerate(states)]


def test_grid_larger_than_the_screen_lists_what_is_under_way_and_counts_the_rest():
    shown = render("demo", many(), Screen(80, 24))
    listed = [line.split()[1] for line in shown[4:-1]]
    assert listed == ["failed", *["running"] * 3, *["queued"] * 6]
    assert shown[-1] == "not listed: 30 waiting, 20 done (--all lists them)"


def test_all_lists_every_cell_in_the_order_of_the_grid():
    shown = render("demo", many(), Screen(80, 24), everything=True)
    assert [line.split()[0] for line in shown[4:]] == [row.cell for row in many()]


@pytest.mark.parametrize("everything", [False, True])
@pytest.mark.parametrize("lines", [1, 5, 10, 24])
def test_watched_table_is_never_longer_than_the_screen(lines, everything):
    shown = render("demo", many(), Screen(80, lines, full=True), everything)
    assert len(shown) <= max(lines, 6)
    assert all(len(line) <= 80 for line in shown)
    assert "not listed" in shown[-1]


def test_colours_change_no_width():
    plain = render("demo", [RUNNING], Screen(60))
    coloured = render("demo", [RUNNING], Screen(60, colours=True))
    assert coloured[-1] != plain[-1]
    assert re.sub(r"\x1b\[\d+m", "", coloured[-1]) == plain[-1]


def test_message_of_several_lines_stays_in_its_row():
    row = Row("cell", "failed", note="exit 1: first\nsecond\x1b[2J \N{GREEK SMALL LETTER MU}")
    assert render("demo", [row], Screen())[-1] == "cell  failed  exit 1: first second [2J ?"


# --- the verb --------------------------------------------------------------------------------------------------------


def test_pipe_gets_every_row_plainly(grid, capsys):
    grid.summary(0)
    shown = grid.show(capsys)
    assert "\x1b" not in shown
    assert [line.split()[0] for line in shown.splitlines()[4:]] == grid.cells


def test_json_is_a_list_of_objects(grid, squeue, capsys):
    squeue((101, "PENDING", "Priority", 1))
    grid.summary(0)
    cells = json.loads(grid.show(capsys, as_json=True))
    none = {"step": None, "steps": None, "loss": None, "clips_per_s": None, "left_s": None, "job": None, "note": ""}
    assert cells[:2] == [
        {**none, "cell": grid.cells[0], "state": "done", "step": 110, "loss": 0.5},
        {**none, "cell": grid.cells[1], "state": "queued", "job": "101", "note": "Priority"},
    ]


def test_json_keeps_a_silent_scheduler_out_of_its_output(grid, squeue, capsys):
    squeue(fails="no controller")
    status.show(grid.study, grid.layout, as_json=True)
    captured = capsys.readouterr()
    assert len(json.loads(captured.out)) == 4
    assert "no controller" in captured.err


def test_watch_and_json_are_refused_together(grid):
    with pytest.raises(InputError, match="--watch"):
        status.show(grid.study, grid.layout, watch=True, as_json=True)


def test_watch_ends_when_every_cell_is_finished(grid, capsys):
    for number in range(4):
        grid.summary(number)
    shown = grid.show(capsys, watch=True)
    assert shown.count("4 cells, 4 finished") == 1


def test_watch_in_a_pipe_prints_a_plain_table_a_minute(grid, capsys, monkeypatch):
    slept = []

    def sleep(seconds):
        slept.append(seconds)
        grid.summary(len(slept) - 1)

    monkeypatch.setattr("time.sleep", sleep)
    shown = grid.show(capsys, watch=True)
    assert slept == [60.0] * 4
    assert re.findall(r"(\d) finished", shown) == list("01234")
    assert "\x1b" not in shown


def test_watch_asks_the_scheduler_less_often_than_it_draws(grid, squeue, capsys, monkeypatch):
    squeue()
    asked, drawn = [], []

    def sleep(_seconds):
        drawn.append(True)
        if len(drawn) == 5:
            raise KeyboardInterrupt

    monkeypatch.setattr(status, "jobs_in_queue", lambda root: asked.append(root) or ({}, ""))
    monkeypatch.setattr("time.sleep", sleep)
    grid.show(capsys, watch=True)
    assert len(asked) == 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_watch_on_a_terminal_leaves_it_clean(tmp_path, number):
    """A real terminal, a real signal: the second screen is left, the cursor is back, the last table stays."""
    (tmp_path / "study.py").write_text(
        f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "from test_status import Grid\n"
        "from pipeline.pretrain.watch import status\n"
        "grid = Grid(4)\n"
        "status.show(grid.study, grid.layout, watch=True)\n"
    )
    ours, theirs = pty.openpty()
    environment = {**os.environ, "COLUMNS": "100", "LINES": "30", "PATH": ""}
    watching = subprocess.Popen(
        [sys.executable, "study.py"], stdin=theirs, stdout=theirs, stderr=theirs, env=environment, cwd=tmp_path
    )
    os.close(theirs)
    shown = b""
    while b"\x1b[J" not in shown:
        shown += os.read(ours, 65536)
    watching.send_signal(number)
    try:
        while more := os.read(ours, 65536):
            shown += more
    except OSError:
        pass  # the other end is closed: EIO
    os.close(ours)
    text = shown.decode().replace("\r\n", "\n")
    assert watching.wait() == 0
    assert text.startswith("\x1b[?1049h\x1b[?25l\x1b[H")
    inside, after = text.split("\x1b[?25h\x1b[?1049l")
    assert "small: 4 cells, 0 finished" in inside
    assert "\x1b[" not in after
    assert after.splitlines()[1] == "4 waiting"


def test_status_needs_no_torch():
    code = "import sys, pipeline.pretrain.watch.status as _; print([n for n in ('torch', 'numpy') if n in sys.modules])"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert shown == "[]\n"
