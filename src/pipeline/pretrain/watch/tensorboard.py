"""TensorBoard event files beside a cell's state, for who wants them: `compute.tensorboard`. They decide nothing."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.errors import InputError

FLUSH_EVERY_S = 30
QUEUED_SCALARS = 1000  # written by a thread of the writer's own; ten, its default, stall a loop of short steps


class Sink:
    """Takes the scalars of steps. A context manager, which closes it; without a writer it does nothing."""

    def __init__(self, writer: Any = None) -> None:
        self._writer = writer

    def write(self, step: int, /, **scalars: float | None) -> None:
        """Scalars of a step, counted from 1, without those that are None or NaN.

        A disk that fails ends the sink, not the training.
        """
        known = {name: value for name, value in scalars.items() if value is not None and value == value}
        if self._writer is None or not known:
            return
        try:
            self._writer.file_writer.add_summary(_summary(known), step)
        except OSError as error:
            print(f"No more TensorBoard events are written: {error}", file=sys.stderr)
            self._writer = None

    def close(self) -> None:
        """Flush what is queued and close the file."""
        writer, self._writer = self._writer, None
        if writer is not None:
            try:
                writer.close()
            except OSError as error:
                print(f"The last TensorBoard events are lost: {error}", file=sys.stderr)

    def __enter__(self) -> Sink:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _summary(scalars: Mapping[str, float]) -> Any:
    """All scalars of a step in one event: `add_scalar` writes one each, at 50 us."""
    from tensorboard.compat.proto.summary_pb2 import Summary  # type: ignore[import-untyped,unused-ignore]

    return Summary(value=[Summary.Value(tag=name, simple_value=value) for name, value in scalars.items()])


def events(folder: Path | None, first_step: int) -> Sink:
    """A sink of event files in `folder`; one that does nothing where that is None.

    `first_step` is the next step to be done, counted from 1. A run that was killed has written steps beyond its last
    checkpoint: those from `first_step` on are hidden, and come again.

    Raises
    ------
    InputError : the package `tensorboard` is not there.
    """
    if folder is None:
        return Sink()
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        hint = "`pip install tensorboard`, or set it to false."
        raise InputError("compute.tensorboard", f"true, but {error}", "the package tensorboard", hint) from error
    options = {"purge_step": first_step, "max_queue": QUEUED_SCALARS, "flush_secs": FLUSH_EVERY_S}
    return Sink(SummaryWriter(folder, **options))
