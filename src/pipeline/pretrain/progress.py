"""What a person sees while a cell trains: a bar on a terminal, otherwise one structured line an interval."""

from __future__ import annotations

import sys
import time

from tqdm import tqdm

from pipeline.pretrain.trainer import Report

LINE_EVERY_S = 10.0


def progress(label: str, steps: int) -> Report:
    """A function of (step, loss, learning rate) that shows them on stderr."""
    return _bar(label, steps) if sys.stderr.isatty() else _lines(label, steps)


def _bar(label: str, steps: int) -> Report:
    bar = tqdm(total=steps, desc=label, unit="step", dynamic_ncols=True)

    def show(step: int, loss: float, rate: float) -> None:
        bar.set_postfix(loss=f"{loss:.4f}", lr=f"{rate:.1e}", refresh=False)
        bar.update(step - bar.n)
        if step == steps:
            bar.close()

    return show


def _lines(label: str, steps: int) -> Report:
    started = last = time.monotonic()

    def show(step: int, loss: float, rate: float) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= LINE_EVERY_S or step == steps:
            last = now
            numbers = f"step={step}/{steps} loss={loss:.5f} learning_rate={rate:.3e} seconds={now - started:.1f}"
            print(f"pretrain cell={label} {numbers}", file=sys.stderr, flush=True)

    return show
