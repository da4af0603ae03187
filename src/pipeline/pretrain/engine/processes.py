"""Several processes of one training on one machine: started, told of signals and ended together.

Standard library only: the process that watches the others needs no torch, whose import costs 2 s and 200 MB.
"""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from pipeline.errors import EXIT_BAD_INPUT, EXIT_DONE, EXIT_UNFINISHED

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2)
POLL_S = 0.1
GRACE_S = 10.0  # what the rest get to end by themselves once one has failed, and again before they are killed
SAVING_S = 600.0  # the same once one has stopped in good order: the first process may be writing a large checkpoint
ORDERLY = (EXIT_DONE, EXIT_UNFINISHED)
Child = subprocess.Popen[bytes]


def spawn(command: Sequence[str], processes: int, grace_s: float = GRACE_S) -> int:
    """Run a command that many times as the ranks of one training, and wait for all of them.

    Each gets torchrun's variables (RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT). SIGTERM, SIGINT and SIGUSR2
    are handed on. Once one fails the rest are told to end, and killed when they do not; none outlives this call, nor
    the process that made it.

    Returns
    -------
    0 where all are done; 75 where one is unfinished and none failed; 2 where one refused its input; else the code of
    the first that failed, 128 + the signal if one killed it.
    """
    here = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": str(processes)}
    children: list[Child] = []
    with noted() as came:
        try:
            for rank in range(processes):
                place = {**here, "RANK": str(rank), "LOCAL_RANK": str(rank)}
                children.append(_start(command, {**os.environ, **_loopback(), **place}))
            return _watch(children, came, grace_s)
        finally:
            for child in children:
                if child.poll() is None:
                    child.kill()
                child.wait()


def free_port() -> int:
    """A TCP port of this machine that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _loopback() -> dict[str, str]:
    """Gloo looks its own host name up, which fails on a laptop away from its network."""
    if "GLOO_SOCKET_IFNAME" in os.environ:
        return {}
    names = [name for _, name in socket.if_nameindex() if name.startswith("lo")]
    return {"GLOO_SOCKET_IFNAME": names[0]} if names else {}


def _start(command: Sequence[str], environment: dict[str, str]) -> Child:
    parent, libc = os.getpid(), ctypes.CDLL(None)

    def end_with_parent() -> None:
        """A SIGKILL of the parent alone must not leave ranks behind that hold the cell's lease."""
        libc.prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG
        if os.getppid() != parent:
            os._exit(EXIT_UNFINISHED)

    before = end_with_parent if sys.platform == "linux" else None
    return subprocess.Popen(command, env=environment, preexec_fn=before)


def _watch(children: Sequence[Child], came: list[int], grace_s: float) -> int:
    """Until all have ended: hand signals on, and see to it that the rest follow one that left."""
    told: list[int] = []
    first_failure, left_at, asked = 0, 0.0, False
    while running := [child for child in children if child.poll() is None]:
        while came:
            told.append(came.pop(0))
            _tell(running, told[-1])
        codes = [_code(child, told) for child in children if child.returncode is not None]
        failures = [code for code in codes if code not in ORDERLY]
        if failures and not first_failure:
            first_failure, left_at, asked = failures[0], time.monotonic(), False
        elif EXIT_UNFINISHED in codes and not left_at:
            left_at = time.monotonic()
        waited = time.monotonic() - left_at if left_at else 0.0
        patience = grace_s if first_failure else SAVING_S
        if waited > patience and not asked:
            asked = True
            _tell(running, signal.SIGTERM)
        elif waited > 2 * patience:
            _tell(running, signal.SIGKILL)
        time.sleep(POLL_S)
    codes = [_code(child, told) for child in children]
    return _verdict(codes, first_failure)


def _verdict(codes: Sequence[int], first_failure: int) -> int:
    """One code for all. A refusal wins: the ranks that lose their peer by it fail sooner than it can end."""
    failures = [code for code in codes if code not in ORDERLY]
    if EXIT_BAD_INPUT in failures:
        return EXIT_BAD_INPUT
    if failures:
        return first_failure or failures[0]
    return EXIT_UNFINISHED if EXIT_UNFINISHED in codes else EXIT_DONE


def _code(child: Child, told: Sequence[int]) -> int:
    """Exit code of one that ended; a signal that was handed on and found no handler yet means unfinished."""
    if child.returncode >= 0:
        return child.returncode
    return EXIT_UNFINISHED if -child.returncode in told else 128 - child.returncode


def _tell(children: Sequence[Child], number: int) -> None:
    for child in children:
        child.send_signal(number)


@contextmanager
def noted() -> Iterator[list[int]]:
    """SIGTERM, SIGINT and SIGUSR2 only enter the list that this yields."""
    came: list[int] = []
    former = {number: signal.signal(number, lambda got, _frame: came.append(got)) for number in SIGNALS}
    try:
        yield came
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)
