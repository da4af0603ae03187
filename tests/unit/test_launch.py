"""Cells on a cluster: adopted, refused, lost, cancelled; a waiting cell is light and outlives its broker."""

from __future__ import annotations

import json
import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fake_slurm import FakeSlurm, RunningBroker, install, quicken, until

from pipeline import grid
from pipeline.artefact import write_text
from pipeline.cli import main
from pipeline.config import Study, dump_study
from pipeline.errors import InputError, Unfinished
from pipeline.grid import Cell
from pipeline.layout import Layout
from pipeline.pretrain import kept
from pipeline.pretrain.engine.checkpoint import Store
from pipeline.pretrain.launch import client, job, queue, submit
from pipeline.pretrain.lease import Held, Lease, note_attempt

CELL, OTHER = "vit/small/N8-T40/draw0-main/seed0", "vit/small/N8-T40/draw0-main/seed1"


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeSlurm:
    return install(tmp_path / "slurm", monkeypatch)


@pytest.fixture
def broker(slurm: FakeSlurm, monkeypatch: pytest.MonkeyPatch) -> Iterator[RunningBroker]:
    quicken(monkeypatch)
    root = slurm.folder / "results" / "demo"
    root.mkdir(parents=True)
    running = RunningBroker(root)
    yield running
    running.stop()


# --- the broker ---


def test_a_cell_is_submitted_followed_and_answered(broker: RunningBroker, slurm: FakeSlurm) -> None:
    waiting = broker.wait_for(CELL)
    waiting.said("say job 1 submitted")
    waiting.said("say job 1 pending (Priority)")
    slurm.set(1, "RUNNING")
    waiting.said("say job 1 running")
    broker.outcome(CELL, job=1, code=0)
    slurm.set(1, "COMPLETED")
    assert waiting.end() == (0, "")


def test_the_job_says_how_it_ended(broker: RunningBroker, slurm: FakeSlurm) -> None:
    waiting = broker.wait_for(CELL)
    waiting.said("job 1 submitted")
    broker.outcome(CELL, job=1, code=2, message="people: found none; expected some.")
    (slurm.folder / "jobs" / "1").unlink()  # forgotten by squeue
    assert waiting.end() == (2, "pipeline pretrain: people: found none; expected some.\n")


def test_several_who_wait_for_one_cell_share_a_job(broker: RunningBroker, slurm: FakeSlurm) -> None:
    first, second = broker.wait_for(CELL), broker.wait_for(CELL)
    first.said("job 1")
    second.said("job 1")
    third = broker.wait_for(CELL)
    third.said("job 1")
    broker.outcome(CELL, job=1, code=0)
    slurm.set(1, "COMPLETED")
    assert [each.end()[0] for each in (first, second, third)] == [0, 0, 0]
    assert slurm.jobs() == [1]


def test_a_job_in_the_queue_is_adopted(broker: RunningBroker, slurm: FakeSlurm) -> None:
    slurm.add(queue.name_of(broker.root, CELL, "settings"))
    waiting = broker.wait_for(CELL)
    waiting.said("adopts job 1")
    broker.outcome(CELL, job=1, code=0)
    slurm.set(1, "COMPLETED")
    assert waiting.end()[0] == 0
    assert slurm.jobs() == [1]


def test_a_requeued_job_is_the_same_job(broker: RunningBroker, slurm: FakeSlurm) -> None:
    waiting = broker.wait_for(CELL)
    waiting.said("job 1 pending")
    slurm.set(1, "COMPLETING")
    waiting.said("job 1 completing")
    slurm.set(1, "PENDING", "BeginTime")
    waiting.said("job 1 pending (BeginTime)")
    broker.outcome(CELL, job=1, code=0)
    slurm.set(1, "COMPLETED")
    assert waiting.end()[0] == 0
    assert slurm.jobs() == [1]


@pytest.mark.parametrize("state", ["FAILED", "TIMEOUT", "OUT_OF_MEMORY", "NODE_FAIL", "PREEMPTED"])
def test_a_job_that_ends_without_a_word_is_submitted_again(broker: RunningBroker, slurm: FakeSlurm, state: str) -> None:
    waiting = broker.wait_for(CELL)
    waiting.said("job 1 pending")
    slurm.set(1, state)
    waiting.said("job 2 submitted")
    broker.outcome(CELL, job=2, code=0)
    slurm.set(2, "COMPLETED")
    assert waiting.end()[0] == 0


def test_an_outcome_of_another_job_is_no_word(broker: RunningBroker, slurm: FakeSlurm) -> None:
    broker.outcome(CELL, job=99, code=0)
    waiting = broker.wait_for(CELL)
    waiting.said("job 1 pending")
    slurm.set(1, "FAILED")
    waiting.said("job 2 submitted")
    broker.outcome(CELL, job=2, code=0)
    slurm.set(2, "COMPLETED")
    assert waiting.end()[0] == 0


def test_jobs_that_all_die_at_one_step_end_the_cell(broker: RunningBroker, slurm: FakeSlurm) -> None:
    attempts = broker.state(CELL) / "attempts.jsonl"
    waiting = broker.wait_for(CELL)
    for number, step in enumerate((0, 10, 10, 10), start=1):
        waiting.said(f"job {number} submitted")
        attempts.write_text(json.dumps({"step": step}) + "\n")
        slurm.set(number, "FAILED")
    code, message = waiting.end()
    assert code == 1
    assert "3 jobs in a row ended in training from step 10 (compute.starts_without_progress)" in message
    assert slurm.jobs() == [1, 2, 3, 4]


def test_the_log_of_a_job_that_never_trained_is_shown(broker: RunningBroker, slurm: FakeSlurm) -> None:
    logs = broker.state(CELL) / "slurm"
    logs.mkdir()
    (logs / "3_0_log.err").write_text("python: not found\n")
    waiting = broker.wait_for(CELL)
    for number in (1, 2, 3):
        waiting.said(f"job {number} submitted")
        slurm.set(number, "FAILED")
    code, message = waiting.end()
    assert code == 1
    assert "before training began" in message
    assert message.endswith("python: not found\n")


def test_a_job_that_a_person_cancelled_stays_cancelled(broker: RunningBroker, slurm: FakeSlurm) -> None:
    waiting = broker.wait_for(CELL)
    waiting.said("job 1 pending")
    slurm.set(1, "CANCELLED")
    code, message = waiting.end()
    assert code == 75
    assert "job 1 was cancelled" in message
    assert slurm.jobs() == [1]


def test_while_slurm_does_not_answer_nothing_is_concluded(broker: RunningBroker, slurm: FakeSlurm) -> None:
    waiting = broker.wait_for(CELL)
    waiting.said("job 1 pending")
    with slurm.down():
        until(lambda: not broker.broker.answers, "a failed look")
        (slurm.folder / "jobs" / "1").rename(slurm.folder / "kept")
        time.sleep(0.1)  # five looks
        assert CELL in broker.broker.cells
        (slurm.folder / "kept").rename(slurm.folder / "jobs" / "1")
    until(lambda: broker.broker.answers, "a look that succeeds")
    broker.outcome(CELL, job=1, code=0)
    slurm.set(1, "COMPLETED")
    assert waiting.end()[0] == 0
    assert slurm.jobs() == [1]


def test_a_refused_job_is_told_and_not_tried_again(broker: RunningBroker, slurm: FakeSlurm) -> None:
    (slurm.folder / "answer").write_text(json.dumps({"code": 2, "message": "sbatch: invalid partition"}))
    assert broker.wait_for(CELL).end() == (2, "pipeline pretrain: sbatch: invalid partition\n")
    assert slurm.submissions() == [CELL]


def test_what_cannot_be_submitted_now_is_submitted_later(broker: RunningBroker, slurm: FakeSlurm) -> None:
    (slurm.folder / "answer").write_text(json.dumps({"later": "not submitted yet: the queue is full"}))
    waiting = broker.wait_for(CELL)
    waiting.said("the queue is full")
    (slurm.folder / "answer").unlink()
    waiting.said("job 1 submitted")
    broker.outcome(CELL, job=1, code=0)
    slurm.set(1, "COMPLETED")
    assert waiting.end()[0] == 0


def test_a_submission_that_dies_is_tried_three_times(broker: RunningBroker, slurm: FakeSlurm) -> None:
    (slurm.folder / "crash").touch()
    code, message = broker.wait_for(CELL).end()
    assert code == 1
    assert "Killed" in message
    assert slurm.submissions() == [CELL] * 3


def test_a_cell_that_somebody_trains_by_hand_is_waited_for(broker: RunningBroker, slurm: FakeSlurm) -> None:
    (slurm.folder / "answer").write_text(json.dumps({"held": "waits for node7, which trains it"}))
    with Lease(broker.state(CELL), CELL):
        waiting = broker.wait_for(CELL)
        waiting.said("waits for node7")
        (slurm.folder / "answer").unlink()
        time.sleep(0.1)  # five looks
        assert slurm.submissions() == [CELL]
    waiting.said("job 1 submitted")
    broker.outcome(CELL, job=1, code=0)
    slurm.set(1, "COMPLETED")
    assert waiting.end()[0] == 0


def test_a_job_that_found_the_cell_taken_is_followed_by_another(broker: RunningBroker, slurm: FakeSlurm) -> None:
    waiting = broker.wait_for(CELL)
    waiting.said("job 1 pending")
    broker.outcome(CELL, job=1, code=75, message="the cell is being trained by node7.")
    slurm.set(1, "COMPLETED")
    waiting.said("is being trained by node7")
    waiting.said("job 2 submitted")
    broker.outcome(CELL, job=2, code=0)
    slurm.set(2, "COMPLETED")
    assert waiting.end()[0] == 0


def test_a_job_of_other_settings_is_waited_for_and_its_outcome_is_not_ours(
    broker: RunningBroker, slurm: FakeSlurm
) -> None:
    slurm.add(queue.name_of(broker.root, CELL, "older"))
    answer = {"job": "1", "foreign": True, "limit": 3, "text": "waits for job 1 of other settings"}
    (slurm.folder / "answer").write_text(json.dumps(answer))
    waiting = broker.wait_for(CELL)
    waiting.said("waits for job 1")
    (slurm.folder / "answer").unlink()
    broker.outcome(CELL, job=1, code=0)
    slurm.set(1, "COMPLETED")
    waiting.said("job 2 submitted")
    broker.outcome(CELL, job=2, code=0)
    slurm.set(2, "COMPLETED")
    assert waiting.end()[0] == 0


def test_cancelling_ends_jobs_of_the_study_and_no_others(broker: RunningBroker, slurm: FakeSlurm) -> None:
    slurm.add(queue.name_of(Path("elsewhere/results/demo"), CELL, "settings"))
    first, second = broker.wait_for(CELL), broker.wait_for(OTHER)
    first.said("pending")
    second.said("pending")
    assert client.question(broker.folder, {"do": "cancel", "cell": CELL}) == "1 jobs cancelled.\n"
    assert first.end()[0] == 75
    assert client.question(broker.folder, {"do": "cancel", "cell": None}) == "1 jobs cancelled.\n"
    assert second.end()[0] == 75
    assert [slurm.job(number).state for number in slurm.jobs()] == ["RUNNING", "CANCELLED", "CANCELLED"]


def test_jobs_go_on_when_nobody_waits(broker: RunningBroker, slurm: FakeSlurm) -> None:
    waiting = broker.wait_for(CELL)
    waiting.said("pending")
    waiting.leave()
    broker.stop()
    assert slurm.job(1).state == "PENDING"
    assert client.connect(broker.folder) is None


def test_one_look_serves_every_cell(broker: RunningBroker, slurm: FakeSlurm) -> None:
    cells = [f"vit/small/N8-T40/draw0-main/seed{seed}" for seed in range(20)]
    waiting = {cell: broker.wait_for(cell) for cell in cells}
    for each in waiting.values():
        each.said("pending")
    for number in slurm.jobs():
        broker.outcome(slurm.job(number).name.split("#")[0].removeprefix("demo/"), number, code=0)
        slurm.set(number, "COMPLETED")
    before = slurm.looks()
    assert [each.end()[0] for each in waiting.values()] == [0] * len(cells)
    assert slurm.looks() - before < len(cells)


# --- submitting ---


@pytest.fixture
def request_of(study: Study, tmp_path: Path) -> dict[str, Any]:
    """A request for the study's first cell."""
    config, cell = tmp_path / "study.yaml", grid.all_cells(study)[0].path
    config.write_text(dump_study(study))
    root = tmp_path / "results" / study.name
    output = root / "pretrain" / cell / "summary.json"
    site = {"partition": "gpu", "account": None, "qos": None, "slurm_options": ""}
    asked = {"nodes": None, "gpus": None, "memory_mb": None, "runtime_min": None}
    return {"root": str(root), "cell": cell, "config": str(config), "output": str(output), **site, **asked}


def placed(request: dict[str, Any]) -> dict[str, Any]:
    return submit.place(request, queue.listing())


def test_a_job_has_what_its_cell_needs(slurm: FakeSlurm, study: Study, request_of: dict[str, Any]) -> None:
    assert placed(request_of)["job"] == "1"
    script = (slurm.folder / "1.sh").read_text()
    compute = study.compute
    for option in (f"--mem={compute.memory_mb}M", f"--time={compute.runtime_min}", "--requeue", "--partition=gpu"):
        assert f"#SBATCH {option}\n" in script
    assert "#SBATCH --open-mode=append\n" in script
    assert "--gpus-per-node" not in script
    assert slurm.job(1).name.startswith(f"{study.name}/{request_of['cell']}#")


def test_the_command_line_overrides_the_configuration(slurm: FakeSlurm, request_of: dict[str, Any]) -> None:
    asked = {"nodes": 2, "gpus": 4, "memory_mb": 64000, "runtime_min": 30, "account": "lab", "qos": "long"}
    placed({**request_of, **asked, "slurm_options": "--constraint='a100&nvlink' --exclusive --signal=USR2@600"})
    script = (slurm.folder / "1.sh").read_text()
    for option in (
        "nodes=2",
        "ntasks-per-node=4",
        "gpus-per-node=4",
        "mem=64000M",
        "time=30",
        "account=lab",
        "qos=long",
    ):
        assert f"#SBATCH --{option}\n" in script
    for option in ("constraint='a100&nvlink'", "exclusive", "signal=USR2@600"):
        assert f"#SBATCH --{option}\n" in script


def test_the_signal_comes_before_a_short_time_limit(slurm: FakeSlurm, request_of: dict[str, Any]) -> None:
    placed({**request_of, "runtime_min": 1})
    assert "#SBATCH --signal=USR2@20\n" in (slurm.folder / "1.sh").read_text()


def test_a_cell_has_one_job_whoever_asks(slurm: FakeSlurm, request_of: dict[str, Any]) -> None:
    assert placed(request_of)["job"] == "1"
    again = placed(request_of)
    assert (again["job"], again["foreign"]) == ("1", False)
    assert slurm.jobs() == [1]
    slurm.set(1, "COMPLETED")
    assert placed(request_of)["job"] == "2"


def test_a_job_of_other_settings_is_named(slurm: FakeSlurm, request_of: dict[str, Any]) -> None:
    slurm.add(queue.name_of(Path(request_of["root"]), request_of["cell"], "older"))
    answer = placed(request_of)
    assert (answer["job"], answer["foreign"]) == ("1", True)
    assert "`scancel 1`" in answer["text"]
    assert slurm.jobs() == [1]


def test_a_job_of_another_checkout_is_not_ours(slurm: FakeSlurm, request_of: dict[str, Any]) -> None:
    slurm.add(queue.name_of(Path("/elsewhere/results") / Path(request_of["root"]).name, request_of["cell"], "x"))
    assert placed(request_of)["job"] == "2"


def test_a_cell_trained_without_slurm_is_not_submitted(slurm: FakeSlurm, request_of: dict[str, Any]) -> None:
    with Lease(Path(request_of["output"]).parent / "state", request_of["cell"]):
        assert f"process {os.getpid()}" in placed(request_of)["held"]
    assert slurm.jobs() == []


def test_a_rejected_job_leaves_nothing_and_says_what_to_edit(slurm: FakeSlurm, request_of: dict[str, Any]) -> None:
    with pytest.raises(InputError) as refused:
        placed({**request_of, "partition": "nosuch"})
    message = str(refused.value)
    for part in (request_of["cell"], "partition nosuch", "invalid partition specified", "profiles/slurm/config.yaml"):
        assert part in message
    state = Path(request_of["output"]).parent / "state"
    assert [path.name for path in state.rglob("*") if path.is_file()] == ["outcome.json"], "for `pipeline status`"
    assert json.loads((state / "outcome.json").read_text())["code"] == 2
    assert slurm.jobs() == []


def test_a_full_queue_is_no_fault(slurm: FakeSlurm, request_of: dict[str, Any]) -> None:
    (slurm.folder / "full").touch()
    assert "AssocMaxSubmitJobLimit" in placed(request_of)["later"]


def test_a_finished_cell_is_published_without_a_job(
    slurm: FakeSlurm, study: Study, request_of: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert slurm.folder.is_dir()
    monkeypatch.chdir(Path(request_of["root"]).parents[1])
    cell, output = Cell.parse(request_of["cell"]), Path(request_of["output"])
    store = Store(output.parent / "state" / "abc", {}, scored_by="people")
    write_text(store.result_folder / "summary.json", "{}")
    store.keep_result(["summary.json"], kept.source_of(study, cell, kept.inputs_of(Layout(study), cell)))
    assert placed(request_of) == {"code": 0, "message": ""}
    assert output.read_text() == "{}"
    assert queue.listing() == {}
    output.unlink()
    write_text(Layout(study).draws, "{}")  # another input: it may not be what was asked for
    kept._checksum.cache_clear()
    assert placed(request_of)["job"] == "1"
    assert not output.exists()


def test_a_former_outcome_is_removed_with_the_next_submission(slurm: FakeSlurm, request_of: dict[str, Any]) -> None:
    outcome = Path(request_of["output"]).parent / "state" / "outcome.json"
    outcome.parent.mkdir(parents=True)
    outcome.write_text("{}")
    placed(request_of)
    assert not outcome.exists()
    assert slurm.jobs() == [1]


def test_a_fault_of_one_cell_leaves_the_others_their_turn(
    slurm: FakeSlurm, request_of: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert slurm.folder.is_dir()
    monkeypatch.setattr(submit, "place", lambda *_: 1 / 0)
    assert submit._safe(request_of, {}) == {"failed": "ZeroDivisionError: division by zero"}


def test_options_that_are_none_are_told(request_of: dict[str, Any], slurm: FakeSlurm) -> None:
    with pytest.raises(InputError, match="--slurm-options: found 'constraint=a100'"):
        placed({**request_of, "slurm_options": "constraint=a100"})
    assert slurm.jobs() == []


# --- the job ---


@pytest.fixture
def training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> job.Training:
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setattr(sys, "argv", ["pytest"])
    return job.Training("study.yaml", CELL, "summary.json", 1, str(tmp_path / "state"))


def ends_by(error: BaseException | None) -> Any:
    def train_here(*_: object) -> None:
        if error:
            raise error

    return train_here


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (None, 0, ""),
        (InputError("people", "none", "some", "Add some."), 2, "people: found none; expected some. Add some."),
        (Held({"cell": CELL, "host": "node7", "pid": 5, "age_s": 1.0}), 75, "being trained by node7"),
        (ZeroDivisionError("by zero"), 1, "ZeroDivisionError: by zero"),
    ],
)
def test_a_job_writes_how_it_ended(
    training: job.Training, monkeypatch: pytest.MonkeyPatch, error: BaseException | None, code: int, message: str
) -> None:
    monkeypatch.setattr(job, "train_here", ends_by(error))
    if code:
        with pytest.raises(SystemExit) as ended:
            training()
        assert ended.value.code == code
    else:
        training()
    outcome = json.loads((Path(training.state) / "outcome.json").read_text())
    assert (outcome["code"], outcome["job"]) == (code, "7")
    assert message in outcome["message"]


@pytest.mark.parametrize(("state", "requeues"), [("RUNNING", 1), ("COMPLETING", 0), ("CANCELLED", 0), ("PENDING", 0)])
def test_a_job_stopped_by_a_signal_is_requeued_once_unless_slurm_has_decided(
    training: job.Training, monkeypatch: pytest.MonkeyPatch, state: str, requeues: int
) -> None:
    monkeypatch.setattr(job, "train_here", ends_by(Unfinished("stopped by a signal")))
    monkeypatch.setattr(queue, "state_of", lambda _: state)
    came: list[int] = []
    former = signal.signal(signal.SIGUSR2, lambda number, _: came.append(number))
    try:
        training()
    finally:
        signal.signal(signal.SIGUSR2, former)
    assert len(came) == requeues
    assert not (Path(training.state) / "outcome.json").exists()


@pytest.mark.parametrize("rank", ["1", "0"])
def test_whichever_process_fails_says_so_once(
    training: job.Training, monkeypatch: pytest.MonkeyPatch, rank: str
) -> None:
    monkeypatch.setenv("SLURM_PROCID", rank)
    for error in (ZeroDivisionError("the first"), ZeroDivisionError("the second")):
        monkeypatch.setattr(job, "train_here", ends_by(error))
        with pytest.raises(SystemExit):
            training()
    said = json.loads((Path(training.state) / "outcome.json").read_text())["message"]
    assert ("the first" in said) == (rank == "1"), "another process only speaks where none has; the first has its say"


def test_a_job_that_never_comes_to_train_is_not_requeued_for_ever(
    training: job.Training, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job, "train_here", ends_by(None))
    monkeypatch.setenv("SLURM_RESTART_COUNT", "6")
    note_attempt(Path(training.state), 0)
    training()  # it began to train in this very start
    monkeypatch.setenv("SLURM_RESTART_COUNT", "12")
    with pytest.raises(SystemExit):
        training()
    outcome = json.loads((Path(training.state) / "outcome.json").read_text())
    assert (outcome["code"], "5 starts in a row ended before training began" in outcome["message"]) == (1, True)


def test_a_requeued_job_runs_the_same_training(training: job.Training) -> None:
    again = pickle.loads(pickle.dumps(training.checkpoint()))
    assert again.function == training
    assert b"Training" in pickle.dumps(training)


def test_what_a_job_runs_is_a_command_that_can_be_typed(training: job.Training) -> None:
    words = "pipeline pretrain --config study.yaml --cell {} --output summary.json --threads 1"
    assert training.command == words.format(CELL).split()


# --- waiting ---


def test_a_waiting_cell_loads_nothing_heavy() -> None:
    code = (
        "import sys; import pipeline.cli, pipeline.pretrain.launch.client as client\n"
        "client.wait_for = lambda *_: None\n"
        f"files = ['--cell', '{CELL}', '--output', 'results/demo/pretrain/{CELL}/summary.json']\n"
        "pipeline.cli.main(['pretrain', '--launcher', 'slurm', *files])\n"
        "print(*{name.partition('.')[0] for name in sys.modules})"
    )
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert "pipeline" in loaded
    assert not {"pydantic", "numpy", "torch", "yaml", "pandas", "submitit", "asyncio"} & set(loaded)


def test_a_broker_loads_nothing_heavy() -> None:
    code = (
        "import sys; import pipeline.pretrain.launch.broker; print(*{name.partition('.')[0] for name in sys.modules})"
    )
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert "pipeline" in loaded
    assert not {"pydantic", "numpy", "torch", "yaml", "pandas", "submitit", "asyncio"} & set(loaded)


@pytest.fixture
def waiting(
    slurm: FakeSlurm, request_of: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> Iterator[subprocess.Popen[str]]:
    """`pipeline pretrain --launcher slurm` as Snakemake starts it, with a broker and a submitter of its own."""
    monkeypatch.setenv("PIPELINE_SLURM_POLL_S", "0.05")
    monkeypatch.setenv("PIPELINE_BROKER_IDLE_S", "1")
    monkeypatch.setenv("PIPELINE_RECONNECT_S", "0")
    files = ["--config", request_of["config"], "--cell", request_of["cell"], "--output", request_of["output"]]
    command = [sys.executable, "-m", "pipeline.cli", "pretrain", "--launcher", "slurm", *files]
    # In the background of a shell SIGINT is ignored, and what is ignored from the start no shell can trap.
    former = signal.signal(signal.SIGINT, signal.default_int_handler)
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True, cwd=slurm.folder)
    signal.signal(signal.SIGINT, former)
    yield process
    process.kill()
    assert process.stderr is not None
    process.stderr.close()
    process.wait()


def heard(process: subprocess.Popen[str], text: str) -> str:
    assert process.stderr is not None
    for line in process.stderr:
        if text in line:
            return line
    raise AssertionError(f"'{text}' was not said")


def finish(request: dict[str, Any], slurm: FakeSlurm, number: int) -> None:
    state = Path(request["output"]).parent / "state"
    (state / "outcome.json").write_text(json.dumps({"code": 0, "message": "", "job": str(number), "when": "now"}))
    slurm.set(number, "COMPLETED")


def test_a_waiting_cell_is_a_shell_and_outlives_its_broker(
    waiting: subprocess.Popen[str], slurm: FakeSlurm, request_of: dict[str, Any]
) -> None:
    heard(waiting, "job 1 submitted")
    assert Path(f"/proc/{waiting.pid}/cmdline").read_bytes().startswith(b"sh\0-c\0")
    log = Path(request_of["root"]) / "logs" / "broker.log"
    os.kill(int(log.read_text().split("broker ")[1].split()[0]), signal.SIGKILL)
    heard(waiting, "adopts job 1")
    finish(request_of, slurm, 1)
    assert waiting.wait(20) == 0
    assert slurm.jobs() == [1]


@pytest.mark.parametrize("signals", [[signal.SIGTERM], [signal.SIGINT]])
def test_a_waiting_cell_that_is_stopped_leaves_its_job(
    waiting: subprocess.Popen[str], slurm: FakeSlurm, signals: list[signal.Signals]
) -> None:
    heard(waiting, "job 1 submitted")
    for number in signals:
        waiting.send_signal(number)
    assert waiting.wait(20) == 75
    assert slurm.job(1).state == "PENDING"


def test_without_slurm_the_launcher_says_what_to_leave_out(
    request_of: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    files = ["--config", request_of["config"], "--cell", request_of["cell"], "--output", request_of["output"]]
    assert main(["pretrain", "--launcher", "slurm", *files]) == 2
    assert "Leave out --launcher slurm" in capsys.readouterr().err


def test_an_output_elsewhere_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["pretrain", "--launcher", "slurm", "--cell", CELL, "--output", "here.json"]) == 2
    assert "--output: found 'here.json'" in capsys.readouterr().err


def test_cancel_needs_no_broker(
    slurm: FakeSlurm, request_of: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    placed(request_of)
    assert main(["cancel", "--config", request_of["config"]]) == 0
    assert slurm.job(1).state == "CANCELLED"


def test_a_broker_folder_that_others_can_look_into_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client.stat, "S_IMODE", lambda _: 0o755)
    with pytest.raises(InputError, match="a folder open to others"):
        client.broker_folder(Path("results/demo"))
