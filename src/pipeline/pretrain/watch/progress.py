"""What a person sees while a cell trains, a bar on a terminal and otherwise one structured line an interval, and the
same numbers for the heartbeat by which `pipeline status` knows the cell.
"""

from __future__ import annotations

import math
import shutil
import sys
import time
from collections import deque
from collections.abc import Callable
from datetime import timedelta
from typing import Any, TypedDict

from tqdm import tqdm

LINE_EVERY_S = 10.0
DRAW_EVERY_S = 0.2  # a bar drawn after every step of 12 ms costs 2 % of it
WINDOW_S = 30.0  # over which the rate is taken: since the start it would carry the first step's compiling for hours
MARK_EVERY_S = 1.0
WIDE, SHORT = 130, 21  # columns that hold a whole label and its numbers; characters of it where there are fewer
BAR = "{desc}: {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt}{postfix}"

Clock = Callable[[], float]


class Numbers(TypedDict):
    """How far a training is; None where it is not known yet, or where the loss of a step was not finite."""

    step: int
    steps: int
    loss: float | None
    clips_per_s: float | None
    left_s: float | None


class Pace:
    """Steps a second over the last WINDOW_S seconds, or over the last two steps where they are longer."""

    def __init__(self, clock: Clock = time.monotonic) -> None:
        self.clock = clock
        self._marks: deque[tuple[float, int]] = deque()  # (seconds, step), at least MARK_EVERY_S apart
        self._last: tuple[float, int] | None = None

    def mark(self, step: int) -> None:
        """Note that a step is done; one that lies before the last begins anew."""
        now = self.clock()
        if self._last is not None and step <= self._last[1]:
            self._marks.clear()
        self._last = (now, step)
        if not self._marks or now - self._marks[-1][0] >= MARK_EVERY_S:
            self._marks.append(self._last)
        while len(self._marks) > 1 and self._marks[1][0] <= now - WINDOW_S:
            self._marks.popleft()

    @property
    def steps_per_s(self) -> float | None:
        """None before the second step of this process."""
        if self._last is None or self._last[1] <= self._marks[0][1]:
            return None
        (began, first), (now, last) = self._marks[0], self._last
        return (last - first) / max(now - began, 1e-9)


class Progress:
    """Told each step of a training, shows it on stderr and keeps its numbers. A context manager, which closes it.

    A display that fails, as when the terminal has gone or the disk of the log is full, goes silent: it must not end a
    training.
    """

    def __init__(self, label: str, steps: int, clips_a_step: int, clock: Clock = time.monotonic) -> None:
        self.steps, self.clips_a_step = steps, clips_a_step
        self.pace = Pace(clock)
        self.numbers = Numbers(step=0, steps=steps, loss=None, clips_per_s=None, left_s=None)
        self._display: _Bar | _Lines | None = (_Bar if sys.stderr.isatty() else _Lines)(label, steps, clock)

    def begin(self, step: int) -> None:
        """Show where a training stands before its first step, which may take minutes where it compiles."""
        self.numbers["step"] = step
        self._show(lambda display: display.begin(step))

    def __call__(self, step: int, loss: float, rate: float) -> None:
        """A step is done: its number, counted from 1, its loss and its learning rate."""
        self.pace.mark(step)
        steps_per_s = self.pace.steps_per_s
        self.numbers = Numbers(
            step=step,
            steps=self.steps,
            loss=loss if math.isfinite(loss) else None,
            clips_per_s=steps_per_s and steps_per_s * self.clips_a_step,
            left_s=steps_per_s and (self.steps - step) / steps_per_s,
        )
        self._show(lambda display: display.show(self.numbers, loss, rate))

    def close(self) -> None:
        """End the bar's line where it stands."""
        self._show(lambda display: display.close())
        self._display = None

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _show(self, how: Callable[[Any], None]) -> None:
        if self._display is None:
            return
        try:
            how(self._display)
        except (OSError, ValueError):  # EIO of a terminal that hung up, ENOSPC of a log, a closed file
            self._display = None


class _Bar:
    """A bar that begins where a resumed training stands."""

    def __init__(self, label: str, steps: int, clock: Clock) -> None:
        self.label, self.steps, self.clock = label, steps, clock
        self.bar: Any = None
        self.drawn = -math.inf

    def begin(self, step: int) -> None:
        columns = shutil.get_terminal_size().columns  # 80 where the terminal does not tell
        label = self.label if columns >= WIDE else f"...{self.label[-SHORT:]}"
        self.bar = tqdm(total=self.steps, initial=step, desc=label, ncols=columns, bar_format=BAR, file=sys.stderr)

    def show(self, numbers: Numbers, loss: float, rate: float) -> None:
        if self.bar is None:
            self.begin(numbers["step"] - 1)
        now = self.clock()
        if now - self.drawn < DRAW_EVERY_S and numbers["step"] < self.steps:
            return
        self.drawn, self.bar.n = now, numbers["step"]
        parts = [f"loss {loss:.4f}", f"rate {rate:.1e}"]
        if numbers["clips_per_s"] is not None and numbers["left_s"] is not None:
            parts += [f"{numbers['clips_per_s']:.3g} clips/s", f"{timedelta(seconds=round(numbers['left_s']))} left"]
        self.bar.set_postfix_str(", ".join(parts))

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()


class _Lines:
    """One line of `name=value` every LINE_EVERY_S seconds, and one for the last step."""

    def __init__(self, label: str, steps: int, clock: Clock) -> None:
        self.label, self.steps, self.clock = label, steps, clock
        self.started = self.last = clock()

    def begin(self, step: int) -> None:
        if step:
            self._print(f"resumed_at={step}/{self.steps}")

    def show(self, numbers: Numbers, loss: float, rate: float) -> None:
        now = self.clock()
        if now - self.last < LINE_EVERY_S and numbers["step"] < self.steps:
            return
        self.last = now
        text = f"step={numbers['step']}/{self.steps} loss={loss:.5f} learning_rate={rate:.3e}"
        if numbers["clips_per_s"] is not None and numbers["left_s"] is not None:
            text += f" clips_per_s={numbers['clips_per_s']:.4g} left_s={numbers['left_s']:.0f}"
        self._print(f"{text} seconds={now - self.started:.1f}")

    def _print(self, text: str) -> None:
        print(f"pretrain cell={self.label} {text}", file=sys.stderr, flush=True)

    def close(self) -> None:
        """Nothing is left open."""
