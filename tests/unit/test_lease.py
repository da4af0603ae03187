"""The right to train a cell: one holder at a time, whoever dies, wherever, and whatever the clocks say."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import Unfinished
from pipeline.pretrain import lease as leases
from pipeline.pretrain.lease import (
    STALE_S,
    Held,
    Lease,
    Lost,
    alive,
    attempts,
    note_attempt,
    read_lease,
    who,
)

CELL = "vit/small/N8-T40/draw0-main/seed0"
ELSEWHERE = {"machine": "another-boot/pid:[1]", "host": "node7", "pid": 4242, "started": "1", "restarts": 0}
RACER = """
import sys, time
from pathlib import Path
from pipeline.pretrain.lease import Held, Lease
me, racers, root = sys.argv[1], int(sys.argv[2]), Path(sys.argv[3])
for folder in sorted(root.iterdir()):
    lease, won = Lease(folder, "cell"), False
    try:
        lease.__enter__()
        won = True
        (folder / f"won-{me}").touch()
    except Held:
        pass
    (folder / f"tried-{me}").touch()
    while len(list(folder.glob("tried-*"))) < racers:
        time.sleep(0.0005)
    if won:
        lease.check()
        lease.__exit__(None, None, None)
"""


def plant(folder: Path, age_s: float = 0.0, **fields: Any) -> Path:
    """A lease that somebody else holds, last written `age_s` ago."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "lease.json"
    path.write_text(json.dumps({"token": "theirs", "cell": CELL, "job": None, **ELSEWHERE, **fields}))
    os.utime(path, (time.time() - age_s, time.time() - age_s))
    return path


def here() -> dict[str, Any]:
    """Fields of a lease of this very process."""
    return {
        key: value for key, value in Lease(Path(), CELL).record.items() if key in ("machine", "host", "pid", "started")
    }


def until(condition: Callable[[], object]) -> None:
    """Wait for what another thread does."""
    for _ in range(10_000):
        if condition():
            return
        time.sleep(0.001)
    raise AssertionError("it did not come")


def dead_process() -> int:
    child = subprocess.Popen(["true"])
    child.wait()
    return child.pid


def test_a_lease_names_its_holder_while_held_and_is_gone_afterwards(tmp_path: Path) -> None:
    with Lease(tmp_path / "state", CELL):
        found = read_lease(tmp_path / "state")
        assert found is not None
        assert (found["cell"], found["pid"], found["job"]) == (CELL, os.getpid(), None)
        assert alive(found)
    assert read_lease(tmp_path / "state") is None
    assert list((tmp_path / "state").iterdir()) == []


def test_a_cell_that_a_living_process_trains_is_refused_and_the_holder_is_named(tmp_path: Path) -> None:
    with Lease(tmp_path, CELL), pytest.raises(Held, match=f"process {os.getpid()}") as refused, Lease(tmp_path, CELL):
        pass
    assert refused.value.holder["pid"] == os.getpid()
    assert isinstance(refused.value, Unfinished)


def test_a_process_that_lives_holds_its_lease_however_long_it_hangs(tmp_path: Path) -> None:
    plant(tmp_path, age_s=100 * STALE_S, **here())
    with pytest.raises(Held) as refused, Lease(tmp_path, CELL):
        pass
    assert refused.value.holder["pid"] == os.getpid()


def test_a_dead_process_of_this_machine_loses_its_lease_at_once(tmp_path: Path) -> None:
    plant(tmp_path, age_s=0, **{**here(), "pid": dead_process()})
    with Lease(tmp_path, CELL) as lease:
        assert read_lease(tmp_path)["token"] == lease.record["token"]


def test_a_process_number_that_was_used_again_holds_nothing(tmp_path: Path) -> None:
    plant(tmp_path, age_s=0, **{**here(), "started": "1"})
    with Lease(tmp_path, CELL) as lease:
        assert read_lease(tmp_path)["token"] == lease.record["token"]


def test_a_holder_on_another_machine_is_alive_as_long_as_its_heart_beats(tmp_path: Path) -> None:
    plant(tmp_path, age_s=0.5 * STALE_S, job="123")
    with pytest.raises(Held, match="job 123 on node7"), Lease(tmp_path, CELL):
        pass
    plant(tmp_path, age_s=1.5 * STALE_S, job="123")
    with Lease(tmp_path, CELL) as lease:
        lease.check()


@pytest.mark.parametrize("skew_s", [-7200.0, 7200.0])
def test_clocks_of_machines_do_not_matter(tmp_path: Path, skew_s: float, monkeypatch: pytest.MonkeyPatch) -> None:
    now = time.time()
    plant(tmp_path / "fresh", age_s=0.5 * STALE_S, heartbeat=now + skew_s)
    plant(tmp_path / "stale", age_s=1.5 * STALE_S, heartbeat=now - skew_s)
    monkeypatch.setattr(leases.time, "time", lambda: now + skew_s)
    fresh, stale = read_lease(tmp_path / "fresh"), read_lease(tmp_path / "stale")
    assert fresh is not None
    assert stale is not None
    assert alive(fresh)
    assert not alive(stale)


def test_a_requeued_job_follows_its_former_start_without_waiting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    plant(tmp_path, age_s=0, job="7", restarts=0)
    with pytest.raises(Held), Lease(tmp_path, CELL):
        pass  # the same start of the job, on another node: a twin
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    with Lease(tmp_path, CELL) as lease:
        lease.check()


def test_a_lease_that_its_writer_never_completed_goes_stale(tmp_path: Path) -> None:
    plant(tmp_path).write_text("")
    with pytest.raises(Held), Lease(tmp_path, CELL):
        pass
    os.utime(tmp_path / "lease.json", (0, 0))
    with Lease(tmp_path, CELL) as lease:
        lease.check()


def test_who_died_while_removing_a_dead_lease_is_removed_too(tmp_path: Path) -> None:
    dead = {**here(), "pid": dead_process()}
    path = plant(tmp_path, token="first", **dead)
    path.with_name("lease-after-first.json").write_text(json.dumps({"token": "second", **dead}))
    with Lease(tmp_path, CELL) as lease:
        lease.check()
        assert [each.name for each in tmp_path.iterdir()] == ["lease.json"]


def test_who_comes_late_to_a_dead_lease_spares_the_one_taken_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    @contextmanager
    def late(path: Path, *_: object) -> Iterator[None]:
        plant(path.parent, token="quicker", **here())
        yield

    plant(tmp_path, token="dead", **{**here(), "pid": dead_process()})
    monkeypatch.setattr(leases, "_right_to_remove", late)
    with pytest.raises(Held), Lease(tmp_path, CELL):
        pass
    found = read_lease(tmp_path)
    assert found is not None
    assert found["token"] == "quicker"


def test_a_lease_that_went_to_somebody_else_is_noticed_and_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leases, "HEARTBEAT_S", 0.001)
    with Lease(tmp_path, CELL) as lease:
        (tmp_path / "lease.json").rename(tmp_path / "former.json")
        plant(tmp_path, token="theirs")
        with pytest.raises(Lost, match="node7"):
            lease.check()
        before = (tmp_path / "former.json").read_text()
        # Heartbeats go on, into a file that nobody reads.
        until(lambda: (tmp_path / "former.json").read_text() != before)
    found = read_lease(tmp_path)
    assert found is not None
    assert found["token"] == "theirs"


def test_a_lease_that_was_removed_is_lost(tmp_path: Path) -> None:
    with Lease(tmp_path, CELL) as lease:
        (tmp_path / "lease.json").unlink()
        with pytest.raises(Lost, match="removed"):
            lease.check()


def test_the_heartbeat_carries_what_was_noted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "HEARTBEAT_S", 0.001)
    with Lease(tmp_path, CELL) as lease:
        lease.note(step=3, loss=0.5, text="x" * 500)
        until(lambda: (read_lease(tmp_path) or {}).get("step") == 3)
        lease.note(text="")  # a shorter record over a longer one is whole, too
        until(lambda: (read_lease(tmp_path) or {}).get("text") == "")
        found = read_lease(tmp_path)
    assert found is not None
    assert (found["step"], found["loss"], found["cell"]) == (3, 0.5, CELL)


def test_of_racing_processes_exactly_one_wins_every_time(tmp_path: Path) -> None:
    rounds, racers = 60, 3
    dead = {**here(), "pid": dead_process()}
    for number in range(rounds):
        folder = tmp_path / f"{number:03d}"
        folder.mkdir()
        if number % 3:  # in two of three, a dead one is in the way; in one of three, stale besides
            plant(folder, age_s=(number % 3 - 1) * 2 * STALE_S, token=f"dead{number}", **dead)
    command = [sys.executable, "-c", RACER]
    children = [subprocess.Popen([*command, str(me), str(racers), str(tmp_path)]) for me in range(racers)]
    assert [child.wait() for child in children] == [0] * racers
    winners = [len(list(folder.glob("won-*"))) for folder in sorted(tmp_path.iterdir())]
    assert winners == [1] * rounds
    assert not list(tmp_path.glob("*/lease*"))


def test_who_reads_like_a_sentence() -> None:
    holder = {"job": "12", "host": "node7", "pid": 5, "age_s": 8.2}
    assert who(holder) == "job 12 on node7 (process 5), heard of 8 s ago"


def test_starts_in_a_row_at_one_step_are_counted(tmp_path: Path) -> None:
    state = tmp_path / "state"
    assert [note_attempt(state, step) for step in (0, 0, 10, 10, 10, 20)] == [1, 2, 1, 2, 3, 1]
    assert note_attempt(state, 20, "other settings") == 1
    assert note_attempt(state, 20, "other settings") == 2
    assert [start["step"] for start in attempts(state)] == [0, 0, 10, 10, 10, 20, 20, 20]


def test_a_start_that_a_crash_tore_is_passed_over(tmp_path: Path) -> None:
    note_attempt(tmp_path, 5)
    with (tmp_path / "attempts.jsonl").open("a") as stream:
        stream.write('{"step": 5, "iden')
    assert note_attempt(tmp_path, 5) == 2
    assert len(attempts(tmp_path)) == 2


def test_a_cell_never_started_has_no_attempts(tmp_path: Path) -> None:
    assert attempts(tmp_path / "nowhere") == []
