"""The same work on many runs, in this process or in several."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def each(make: Callable[[Item], Result], items: Sequence[Item], workers: int, preload: str) -> Iterator[Result]:
    """`make` of every item, in their order, on `workers` processes; `preload` is the module that they import once."""
    if min(workers, len(items)) < 2:
        yield from map(make, items)
        return
    # A fork server: no thread of the parent is cloned half-way, and the imports are paid for once.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([preload])
    with ProcessPoolExecutor(min(workers, len(items)), mp_context=context) as pool:
        yield from pool.map(make, items)
