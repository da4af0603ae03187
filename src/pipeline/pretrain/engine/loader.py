"""Batches made ahead of the training by threads: reading lets other threads run, and forking after a read hangs."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Generic, Self, TypeVar

Batch = TypeVar("Batch")


class Loader(Generic[Batch]):
    """Makes batches in the order in which they will be taken, some of them before they are.

    A batch must be a function of its positions alone: which thread makes it, and when, changes nothing.

    Parameters
    ----------
    batch : positions -> what they hold; called in several threads at once.
    order : positions of the batches to come; read in the thread that takes.
    threads : how many make batches; 0: they are made as they are taken.
    ahead : batches that are ready or being made beside the one in use.
    """

    def __init__(self, batch: Callable[[range], Batch], order: Iterator[range], threads: int, ahead: int = 2) -> None:
        self._batch, self._order, self._ahead = batch, order, max(ahead, 1)
        self._pool = ThreadPoolExecutor(threads, "loader") if threads else None
        self._coming: deque[tuple[range, Future[Batch]]] = deque()
        self.stalled_s = 0.0  # that `take` waited, or read itself

    def take(self, positions: range) -> Batch:
        """The batch of these positions; one that does not come next is made here and now.

        Raises
        ------
        Exception : whatever making the batch raised.
        """
        started = time.perf_counter()
        try:
            return self._find(positions)
        finally:
            self.stalled_s += time.perf_counter() - started

    def _find(self, positions: range) -> Batch:
        self._look_ahead()
        if positions not in [coming for coming, _ in self._coming]:
            return self._batch(positions)
        while True:
            coming, found = self._coming.popleft()  # those before it were skipped
            if coming == positions:
                self._look_ahead()
                return found.result()
            found.cancel()

    def _look_ahead(self) -> None:
        while self._pool and len(self._coming) < self._ahead:
            positions = next(self._order, None)
            if positions is None:
                return
            self._coming.append((positions, self._pool.submit(self._batch, positions)))

    def close(self) -> None:
        """Drop what was made ahead; a batch being made ends by itself, and is not waited for."""
        if self._pool:
            self._pool.shutdown(wait=False, cancel_futures=True)
            self._pool = None
        self._coming.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
