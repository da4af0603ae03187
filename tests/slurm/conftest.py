"""What the tests on a real SLURM share: a cluster each, a study prepared once, and when there can be none of it."""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from checkout import LONG, Checkout, check_out
from cluster import Cluster, end, missing


@pytest.fixture(scope="session", autouse=True)
def slurm() -> None:
    """Skip where no SLURM can be started; fail there in CI, which must not pass for want of one."""
    if reason := missing():
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(reason)


@pytest.fixture
def cluster(request: pytest.FixtureRequest) -> Iterator[Cluster]:
    """A cluster of this test alone; parametrised with True, it sends a signal before it preempts a job."""
    # In /tmp and not in the test's folder: the name of a socket has room for 107 characters.
    folder = Path(tempfile.mkdtemp(prefix="slurm-", dir="/tmp"))
    with Cluster(folder, signals=getattr(request, "param", False)) as running:
        yield running
        end(running.processes(), signal.SIGKILL)  # of a test that failed: Snakemake, whoever waits, the broker
    shutil.rmtree(folder)


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Checkout:
    """A study with its shards, and its long cells trained without interruption and without SLURM; made once."""
    base = tmp_path_factory.getbasetemp()
    shared = base if worker_id == "master" else base.parent
    made = shared / "prepared"
    with (shared / "prepared.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (shared / "prepared.done").exists():
            check_out(made).build("cells", config=LONG)
            (shared / "prepared.done").touch()
    return Checkout(made)


@pytest.fixture
def site(cluster: Cluster, prepared: Checkout, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Checkout]:
    """A working copy on the cluster in which everything before pretraining is done; prints at the end what happened."""
    copy = check_out(tmp_path / "site", cluster)
    copy.take_data(prepared)
    yield copy
    starts = [attempt["step"] for attempt in copy.attempts()]
    print(f"{request.node.name}\n{cluster.listing()}\ntrainings began at steps {starts}")
