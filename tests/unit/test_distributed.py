"""Several processes compute what one does, and start and end together. What they compute stands in `ranks.py`."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from spawned import started
from tiny_models import TINY
from torch import nn

from pipeline.errors import InputError
from pipeline.pretrain.engine.distributed import ALONE, World, gradient_norm, joined, sum_gradients
from pipeline.pretrain.engine.state import fill, whole

pytestmark = pytest.mark.xdist_group("distributed")
ROUNDING = 1e-6  # of float32 numbers added up in another order
PATIENCE_S = 30.0  # before a test gives up on what should happen at once

RANK = "import os, signal, sys, time; from pathlib import Path; rank = os.environ['RANK']; folder = Path(sys.argv[1])\n"
SAYS_WHO = "(folder / f'{rank}.ready').write_text(str(os.getpid()))\n"
SLEEPS = "while True: time.sleep(0.05)\n"
STOPS_WHEN_TOLD = """
def stop(number, frame):
    (folder / f'{rank}.told').write_text(str(number))
    sys.exit(75)
for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2):
    signal.signal(number, stop)
"""


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What two gloo processes found, how they ended, and what was left of them."""
    folder = tmp_path_factory.mktemp("ranks")
    code = started(2, [str(Path(__file__).parent / "ranks.py"), str(folder)], grace_s=20).wait(timeout=300)
    found = [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]
    return {"code": code, "found": found, "lost": (folder / "unfinished").read_text()}


def code_of(processes: int, program: str, folder: Path) -> int:
    return started(processes, ["-c", RANK + program, str(folder)]).wait(timeout=PATIENCE_S)


def until(what: Callable[[], bool]) -> bool:
    end = time.monotonic() + PATIENCE_S
    while not what() and time.monotonic() < end:
        time.sleep(0.02)
    return what()


def process_ids(folder: Path, count: int) -> list[int]:
    """Of ranks that have started; a file may be there before its text."""
    files = [folder / f"{rank}.ready" for rank in range(count)]
    assert until(lambda: all(file.exists() and file.read_text() for file in files))
    return [int(file.read_text()) for file in files]


def gone(process_id: int) -> bool:
    """Whether a process has ended, and nobody is left to wait for it."""
    try:
        os.kill(process_id, 0)
    except ProcessLookupError:
        return True
    return False


# --- what processes exchange


def test_processes_exchange_numbers_flags_and_records(ranks):
    for rank in range(2):
        assert ranks["found"][rank]["exchanges"] == {
            "sum": [2.0, 1.0],
            "any": [False, True, True],
            "same": {"rank": 0, "text": "é", "step": 0.1, "none": None},
            "first": rank == 0,
        }


def test_gradients_of_shares_add_up_to_those_of_the_batch(ranks):
    for found in ranks["found"]:
        assert found["data parallel"]["gradients"] < ROUNDING
        assert found["data parallel"]["norm"] < ROUNDING


def test_a_second_run_gives_the_same_bits(ranks):
    assert all(found["data parallel"]["again"] for found in ranks["found"])


@pytest.mark.parametrize("name", TINY)
def test_sharded_gradients_are_sums_of_every_architecture(ranks, name):
    """Each process holds half of the weights, and the halves' gradients are those of one process, not their mean."""
    for found in ranks["found"]:
        assert found["fsdp"][name]["gradients"] < ROUNDING
        assert found["fsdp"][name]["norm"] < ROUNDING
        assert found["fsdp"][name]["held"] == pytest.approx(0.5, abs=0.1)


def test_sharded_gradients_of_parts_of_a_batch_add_up(ranks):
    assert all(found["parts"] < ROUNDING for found in ranks["found"])


def test_a_validation_leaves_no_gathered_weights_behind(ranks):
    """FSDP2 keeps the root whole after a forward pass by default; a moving average swapped in would then train on."""
    assert all(found["validated"] < ROUNDING for found in ranks["found"])


def test_running_statistics_are_averaged_and_tables_left_alone(ranks):
    for rank, table in enumerate((0.1, 0.2)):
        assert ranks["found"][rank]["norms"]["mean"] == [0.5, 0.5]
        assert ranks["found"][rank]["norms"]["table"] == [torch.tensor(table).item()]


def test_a_gradient_on_one_process_alone_is_refused(ranks):
    assert all("in some processes only" in found["norms"]["refusal"] for found in ranks["found"])


# --- state


@pytest.mark.parametrize("model", ["swift_v2", "brainnetcnn"])
def test_whole_state_comes_out_of_shards_and_goes_back(ranks, model):
    """Two steps of one process agree; what is put into fresh shards is bitwise what was taken out."""
    first, second = (found["checkpoint"][model] for found in ranks["found"])
    assert first["returned"]
    assert not second["returned"]
    assert first["agrees"] < ROUNDING
    assert first["plain"]
    for found in (first, second):
        assert found["restored"]
        assert found["restored_plain"]


def test_shards_of_the_state_are_uneven_and_empty(ranks):
    """Else the round trip above would not have met such."""
    first, second = (found["checkpoint"]["brainnetcnn"] for found in ranks["found"])
    assert first["uneven"] == [0, 1]
    assert second["empty"]


def test_one_process_takes_copies_and_puts_them_back():
    learner = nn.Linear(3, 2)
    saved = whole(learner.state_dict())
    assert saved is not None
    before = {name: value.clone() for name, value in saved.items()}
    nn.init.zeros_(learner.weight)
    assert torch.equal(saved["weight"], before["weight"])
    fill(learner.state_dict(), saved)
    assert torch.equal(learner.weight, before["weight"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda saved: saved.pop("bias"), "checkpoint: bias: found nothing"),
        (lambda saved: saved.update(other=torch.zeros(1)), "checkpoint: other: found a tensor of that name"),
        (lambda saved: saved.update(bias=torch.zeros(1)), r"found shape \(1,\); expected \(2,\)"),
    ],
)
def test_state_of_another_model_is_refused(change, message):
    learner = nn.Linear(3, 2)
    saved = whole(learner.state_dict())
    change(saved)
    with pytest.raises(InputError, match=message):
        fill(learner.state_dict(), saved)


# --- one process


def test_without_variables_there_is_one_process(monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    with joined("cpu") as world:
        assert world == ALONE


def test_half_a_set_of_variables_is_refused(monkeypatch):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with pytest.raises(InputError, match="WORLD_SIZE"), joined("cpu"):
        pass


def test_alone_nothing_is_exchanged():
    learner = nn.Linear(2, 1)
    learner.weight.grad = torch.tensor([[3.0, 4.0]])
    sum_gradients(learner.parameters(), ALONE)
    assert gradient_norm(learner.parameters(), ALONE).item() == 5.0
    assert learner.bias.grad is None
    assert World().same({"step": (1, 2)}) == {"step": [1, 2]}


def test_norm_of_a_million_numbers_keeps_its_digits():
    """In float32 it is off by 1e-5, and clipping would depend on how weights are shared out."""
    weight = nn.Parameter(torch.zeros(2_000_000))
    weight.grad = torch.full_like(weight, 0.1)
    expected = torch.tensor(0.1).double().item() * 2_000_000**0.5
    assert gradient_norm([weight], ALONE).item() == pytest.approx(expected, rel=1e-9)


# --- starting and ending


def test_the_processes_know_their_places(tmp_path):
    write = "(folder / rank).write_text(' '.join(os.environ[name] for name in sys.argv[2:]))"
    names = ["WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"]
    assert started(3, ["-c", RANK + write, str(tmp_path), *names]).wait(timeout=PATIENCE_S) == 0
    found = [(tmp_path / str(rank)).read_text().split() for rank in range(3)]
    assert [each[:3] for each in found] == [["3", str(rank), "127.0.0.1"] for rank in range(3)]
    assert len({each[3] for each in found}) == 1


@pytest.mark.parametrize(
    ("codes", "expected"), [("000", 0), ("0 75 0", 75), ("75 1 75", 1), ("0 1 2", 2), ("75 75 2", 2)]
)
def test_one_code_for_all(tmp_path, codes, expected):
    each = codes.split() if " " in codes else list(codes)
    assert code_of(3, f"sys.exit({list(map(int, each))}[int(rank)])", tmp_path) == expected


def test_one_that_is_killed_takes_the_rest_along(tmp_path):
    """Even where the rest hang and heed no signal."""
    deaf = "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
    training = started(3, ["-c", RANK + deaf + SAYS_WHO + SLEEPS, str(tmp_path)])
    children = process_ids(tmp_path, 3)
    os.kill(children[1], signal.SIGKILL)
    assert training.wait(timeout=PATIENCE_S) == 128 + signal.SIGKILL
    assert all(gone(child) for child in children)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR2])
def test_signals_reach_every_process(tmp_path, number):
    training = started(2, ["-c", RANK + STOPS_WHEN_TOLD + SAYS_WHO + SLEEPS, str(tmp_path)])
    children = process_ids(tmp_path, 2)
    training.send_signal(number)
    assert training.wait(timeout=PATIENCE_S) == 75
    assert [(tmp_path / f"{rank}.told").read_text() for rank in range(2)] == [str(int(number))] * 2
    assert all(gone(child) for child in children)


def test_a_signal_before_the_processes_can_handle_it_leaves_them_unfinished(tmp_path):
    training = started(2, ["-c", RANK + SAYS_WHO + SLEEPS, str(tmp_path)])
    process_ids(tmp_path, 2)
    training.send_signal(signal.SIGUSR2)
    assert training.wait(timeout=PATIENCE_S) == 75


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process that its parent died")
def test_the_death_of_the_parent_asks_them_to_stop(tmp_path):
    training = started(2, ["-c", RANK + STOPS_WHEN_TOLD + SAYS_WHO + SLEEPS, str(tmp_path)])
    process_ids(tmp_path, 2)
    training.kill()
    training.wait(timeout=PATIENCE_S)
    assert until(lambda: all((tmp_path / f"{rank}.told").exists() for rank in range(2)))


def test_a_refusal_wins_and_the_rest_say_whom_they_lost(ranks):
    """The last rank refused its input while the first waited for it."""
    assert ranks["code"] == 2
    assert "process 0 of 2 lost another of them" in ranks["lost"]
