"""Batches come in order and whole, whoever makes them; what goes wrong in a thread goes wrong in the training."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count
from threading import Event, Lock, Semaphore, current_thread, main_thread
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.pretrain.engine.loader import Loader

PATIENCE_S = 30  # until a test that hangs fails


def batches(start: int = 0, size: int = 2) -> Iterator[range]:
    """Positions of one batch after another."""
    return (range(at, at + size) for at in count(start, size))


@pytest.mark.parametrize("threads", [0, 1, 3])
@pytest.mark.parametrize("ahead", [1, 2, 5])
def test_batches_come_in_the_order_in_which_they_are_taken(threads, ahead):
    with Loader(list, batches(), threads, ahead) as loader:
        taken = [loader.take(range(at, at + 2)) for at in range(0, 40, 2)]
    assert taken == [[at, at + 1] for at in range(0, 40, 2)]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 30), max_size=40), st.integers(0, 3), st.integers(1, 4), st.integers(0, 12))
def test_whatever_is_asked_for_is_what_comes(asked, threads, ahead, length):
    order = iter([range(at, at + 1) for at in range(length)])
    with Loader(list, order, threads, ahead) as loader:
        assert [loader.take(range(at, at + 1)) for at in asked] == [[at] for at in asked]


def test_threads_make_what_comes_next_and_no_more():
    made, ready = [], Semaphore(0)

    def batch(positions: range) -> range:
        made.append((positions, current_thread() is main_thread()))
        ready.release()
        return positions

    def all_made(number: int) -> None:
        for _ in range(number):
            assert ready.acquire(timeout=PATIENCE_S)

    with Loader(batch, batches(), threads=1, ahead=3) as loader:
        assert loader.take(range(0, 2)) == range(0, 2)
        all_made(4)  # the one taken, and three ahead
    assert made == [(range(at, at + 2), False) for at in range(0, 8, 2)]


def test_without_threads_everything_happens_where_it_is_taken():
    makers = []
    with Loader(lambda _: makers.append(current_thread()), batches(), threads=0) as loader:
        loader.take(range(0, 2))
        loader.take(range(2, 4))
    assert makers == [main_thread()] * 2
    assert loader.stalled_s > 0


def test_a_jump_ahead_drops_what_was_skipped_and_goes_on_with_what_is_there():
    made, lock = [], Lock()

    def batch(positions: range) -> range:
        with lock:
            made.append(positions.start)
        return positions

    with Loader(batch, batches(), threads=2, ahead=4) as loader:
        for start in (0, 4, 6, 8, 10):
            assert loader.take(range(start, start + 2)).start == start
    assert max(made.count(start) for start in made) == 1


def test_what_a_thread_raises_is_raised_where_the_batch_is_taken_and_the_next_one_is_whole():
    def batch(positions: range) -> range:
        if positions.start == 4:
            raise FileNotFoundError("chunk 7 of sub-01")
        return positions

    with Loader(batch, batches(), threads=2) as loader:
        assert loader.take(range(0, 2)) == range(0, 2)
        assert loader.take(range(2, 4)) == range(2, 4)
        with pytest.raises(FileNotFoundError, match="chunk 7 of sub-01"):
            loader.take(range(4, 6))
        assert loader.take(range(6, 8)) == range(6, 8)


@pytest.mark.parametrize("raises", [False, True])
def test_closing_does_not_wait_for_a_batch_that_takes_long(raises):
    going, let_go = Event(), Event()

    def batch(positions: range) -> range:
        if positions.start > 0:
            going.set()
            assert let_go.wait(PATIENCE_S)
            if raises:
                raise OSError("too late for anybody")
        return positions

    loader = Loader(batch, batches(), threads=1, ahead=3)
    loader.take(range(0, 2))
    assert going.wait(PATIENCE_S)
    loader.close()
    assert not let_go.is_set()  # we are here, and it still waits
    loader.close()
    let_go.set()
    assert loader.take(range(0, 2)) == range(0, 2)


def test_stalls_are_the_time_spent_waiting(monkeypatch):
    clock = iter([1.0, 1.5, 10.0, 12.0])
    monkeypatch.setattr("pipeline.pretrain.engine.loader.time", SimpleNamespace(perf_counter=lambda: next(clock)))
    loader = Loader(list, batches(), threads=0)
    loader.take(range(0, 2))
    loader.take(range(2, 4))
    assert loader.stalled_s == 2.5
