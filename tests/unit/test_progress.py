"""What is shown while a cell trains, and the numbers that its heartbeat carries."""

import io
import re

import pytest

from pipeline.pretrain.watch.progress import WINDOW_S, Pace, Progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


class HungUp(Terminal):
    """A terminal whose other end has gone."""

    def write(self, _text):
        raise OSError(5, "Input/output error")


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def stderr(monkeypatch):
    def replace(stream):
        monkeypatch.setattr("sys.stderr", stream)
        return stream

    return replace


def steps(report, clock, first, last, step_s, loss=0.5):
    """Report the steps first...last, each `step_s` seconds after the one before."""
    for step in range(first, last + 1):
        clock.now += step_s
        report(step, loss, 1e-3)


def test_rate_and_time_left_are_those_of_equal_steps(clock, stderr):
    stderr(io.StringIO())
    report = Progress("cell", 1000, 8, clock)
    steps(report, clock, 1, 101, 0.25)
    assert report.numbers["clips_per_s"] == pytest.approx(8 / 0.25)
    assert report.numbers["left_s"] == pytest.approx(899 * 0.25)
    assert (report.numbers["step"], report.numbers["steps"], report.numbers["loss"]) == (101, 1000, 0.5)


def test_rate_forgets_a_slow_start(clock, stderr):
    """A first step that compiles for ten minutes, then steps of a tenth of a second."""
    stderr(io.StringIO())
    report = Progress("cell", 10_000, 4, clock)
    steps(report, clock, 1, 1, 600.0)
    steps(report, clock, 2, 2, 600.0)
    steps(report, clock, 3, 2 + int((WINDOW_S + 2) / 0.1), 0.1)
    assert report.numbers["clips_per_s"] == pytest.approx(40)


def test_rate_of_steps_longer_than_the_window_is_that_of_the_last_two(clock):
    pace = Pace(clock)
    for step, took_s in ((1, 500.0), (2, 100.0), (3, 50.0)):
        clock.now += took_s
        pace.mark(step)
    assert pace.steps_per_s == pytest.approx(1 / 50)


def test_rate_keeps_few_marks_however_fast_the_steps(clock):
    pace = Pace(clock)
    for step in range(1, 100_001):
        clock.now += 0.001
        pace.mark(step)
    assert len(pace._marks) <= WINDOW_S + 2


def test_resumed_training_counts_only_its_own_steps(clock, stderr):
    stderr(io.StringIO())
    report = Progress("cell", 1000, 8, clock)
    report.begin(900)
    assert report.numbers == {"step": 900, "steps": 1000, "loss": None, "clips_per_s": None, "left_s": None}
    steps(report, clock, 901, 911, 2.0)
    assert report.numbers["clips_per_s"] == pytest.approx(4)
    assert report.numbers["left_s"] == pytest.approx(89 * 2.0)


def test_rate_is_unknown_at_the_first_step_and_after_a_branch_goes_back(clock, stderr):
    stderr(io.StringIO())
    report = Progress("cell", 100, 8, clock)
    steps(report, clock, 1, 1, 1.0)
    assert report.numbers["clips_per_s"] is None
    assert report.numbers["left_s"] is None
    steps(report, clock, 2, 50, 1.0)
    steps(report, clock, 30, 30, 1.0)
    assert report.numbers["clips_per_s"] is None
    steps(report, clock, 31, 40, 0.5)
    assert report.numbers["clips_per_s"] == pytest.approx(16)


def test_loss_of_a_skipped_step_is_none(clock, stderr):
    stderr(io.StringIO())
    report = Progress("cell", 100, 8, clock)
    report(1, float("nan"), 1e-3)
    assert report.numbers["loss"] is None


def test_lines_come_every_ten_seconds_and_at_the_end(clock, stderr):
    shown = stderr(io.StringIO())
    with Progress("arch/s/N1-T20/draw0-main/seed0", 100, 8, clock) as report:
        steps(report, clock, 1, 100, 1.0)
    lines = shown.getvalue().splitlines()
    assert [re.search(r"step=(\d+)/100", line)[1] for line in lines] == [str(step) for step in range(10, 101, 10)]
    assert lines[-1] == (
        "pretrain cell=arch/s/N1-T20/draw0-main/seed0 step=100/100 loss=0.50000 learning_rate=1.000e-03"
        " clips_per_s=8 left_s=0 seconds=100.0"
    )


def test_bar_begins_where_a_resumed_training_stands(clock, stderr):
    shown = stderr(Terminal())
    with Progress("cell", 200, 8, clock) as report:
        report.begin(100)
        before = shown.getvalue()
        steps(report, clock, 101, 104, 0.5, loss=0.25)
    assert "50%" in before
    assert "100/200" in before
    last = shown.getvalue().split("\r")[-1]
    assert "104/200, loss 0.2500, rate 1.0e-03, 16 clips/s, 0:00:48 left" in last


def test_bar_without_begin_starts_before_its_first_step(clock, stderr):
    shown = stderr(Terminal())
    with Progress("cell", 200, 8, clock) as report:
        report(151, 0.5, 1e-3)
    assert "150/200" in shown.getvalue()
    assert "0/200 " not in shown.getvalue().replace("150/200", "")


def test_bar_is_closed_when_training_ends_in_an_error(clock, stderr):
    shown = stderr(Terminal())
    with pytest.raises(RuntimeError, match="of the training"), Progress("cell", 10, 8, clock) as report:
        steps(report, clock, 1, 3, 1.0)
        raise RuntimeError("of the training")
    assert shown.getvalue().endswith("\n")
    assert "3/10" in shown.getvalue().split("\r")[-1]
    length = len(shown.getvalue())
    report(4, 0.5, 1e-3)
    report.close()
    assert len(shown.getvalue()) == length


@pytest.mark.parametrize("resumed_at", [0, 5])
def test_a_terminal_that_hangs_up_does_not_end_the_training(clock, stderr, resumed_at):
    stderr(HungUp())
    with Progress("cell", 10, 8, clock) as report:
        report.begin(resumed_at)
        steps(report, clock, resumed_at + 1, 10, 1.0)
    assert report.numbers["step"] == 10


def test_progress_shows_on_stderr(capsys):
    with Progress("cell", 1, 8) as report:
        report(1, 0.5, 1e-3)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("pretrain cell=cell step=1/1 loss=0.50000 learning_rate=1.000e-03 seconds=")
