"""Training state survives what happens to files and jobs, and goes on bitwise where it stopped."""

from __future__ import annotations

import errno
import os
import resource
import shutil
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from threading import Event, current_thread, main_thread

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from pipeline.artefact import sha256_file
from pipeline.errors import InputError, Unfinished
from pipeline.models import create
from pipeline.models.learners.reconstruction import MaskedReconstruction
from pipeline.pretrain.engine import checkpoint, trainer
from pipeline.pretrain.engine.checkpoint import Store, load_cell, save_model
from pipeline.pretrain.engine.course import COLUMN
from pipeline.pretrain.engine.trainer import Recipe, train
from pipeline.pretrain.objectives import build_learner

IDENTITY = {"cell_hash": "a1", "contract": {"space": "MNI", "tr_s": 1.5}}
ARITHMETIC = {"processes": 1, "device": "cpu"}
RECIPE = Recipe(
    steps=20,
    batch=2,
    learning_rate=1e-2,
    warmup=0.1,
    weight_decay=0.05,
    clip_norm=1.0,
    diverged_above=10.0,
    checkpoint_every_s=600.0,
)
SPEC = {"width": 6, "depths": (2, 1), "heads": (1, 2), "grid": (2, 2, 2), "patch": (2, 2, 2, 1), "context_frames": 6}


# --- one store -----------------------------------------------------------------------------------------------------


def tensors_of(step: int) -> dict[str, torch.Tensor]:
    """A state of every kind of tensor, other at every step."""
    generator = torch.Generator().manual_seed(step)
    return {
        "model/weight": torch.randn(300, 100, generator=generator),
        "model/half": torch.randn(7, generator=generator).bfloat16(),
        "optimiser/steps": torch.tensor(float(step)),
        "optimiser/none": torch.zeros(0, 4),
        "history": torch.full((step, 2), torch.nan, dtype=torch.float64),
        "flags": torch.rand(5, generator=generator) < 0.5,
    }


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    """Whether names, types and every bit agree (NaN with NaN)."""
    return checkpoint.checksum(one) == checkpoint.checksum(other)


def stored(folder: Path, *steps: int, **fields: object) -> Store:
    """A store in which the checkpoints of some steps were written."""
    store = Store(folder, IDENTITY, ARITHMETIC, **fields)
    for step in steps:
        store.save(step, tensors_of(step), {"step": step})
    return store


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def step_file(step: int) -> str:
    return f"step-{step:09d}.safetensors"


def test_what_is_saved_comes_back_and_the_two_newest_are_kept(tmp_path):
    store = Store(tmp_path / "state", IDENTITY, ARITHMETIC)
    state = {"step": 5, "lowest": 0.1 + 0.2, "recent": [1.0, None], "points": [{"branch": 1}], "big": 1.7e308}
    for step in (3, 4, 5):
        store.save(step, tensors_of(step), state)
    tensors, numbers = store.load()
    assert same(tensors, tensors_of(5))
    assert numbers == state
    assert names(store.folder) == [step_file(4), step_file(5)]
    store.clear()
    assert not store.folder.exists()


def test_a_thread_writes_while_the_caller_goes_on_and_one_at_a_time(tmp_path):
    let_go, writers = Event(), []

    def guard() -> None:
        writers.append(current_thread())
        assert let_go.wait(30)

    store = stored(tmp_path, guard=guard)
    store.save_later(1, tensors_of(1), {"step": 1})
    assert not (tmp_path / step_file(1)).exists()  # the caller is here, and the writer stands before the rename
    let_go.set()
    store.save_later(2, tensors_of(2), {"step": 2})
    assert (tmp_path / step_file(1)).exists()
    store.wait()
    assert store.load()[1] == {"step": 2}
    assert len(set(writers)) == 2
    assert main_thread() not in writers
    here = stored(tmp_path / "here", 2).folder / step_file(2)
    assert (tmp_path / step_file(2)).read_bytes() == here.read_bytes()


@contextmanager
def full_disk() -> Iterator[None]:
    """No file grows beyond 50 kB: the system refuses the bytes after that, as a full disk does."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@contextmanager
def failing_disk(number: int = errno.EIO) -> Iterator[None]:
    """Nothing can be flushed."""

    def fsync(_: int) -> None:
        raise OSError(number, os.strerror(number))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", fsync)
        yield


@contextmanager
def forgetful_disk() -> Iterator[None]:
    """Other bytes come back than were written."""

    def save_other(tensors: dict[str, torch.Tensor], path: Path, metadata: dict[str, str]) -> None:
        save_file({name: torch.zeros_like(value) for name, value in tensors.items()}, path, metadata)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint, "save_file", save_other)
        yield


DISKS = {"full": full_disk, "failing": failing_disk, "forgetful": forgetful_disk}


@pytest.mark.parametrize("later", [False, True], ids=["at once", "in the thread"])
@pytest.mark.parametrize("disk", DISKS.values(), ids=DISKS)
def test_a_disk_that_fails_is_one_message_and_costs_no_earlier_checkpoint(tmp_path, disk, later):
    store = stored(tmp_path, 1, 2)
    with pytest.raises(InputError, match=rf"{step_file(3)}: found a disk that fails .*Free space"), disk():
        if later:
            store.save_later(3, tensors_of(3), {"step": 3})
            store.wait()
        store.save(3, tensors_of(3), {"step": 3})
    store.wait()  # told once
    assert names(tmp_path) == [step_file(1), step_file(2)]
    assert same(store.load()[0], tensors_of(2))


def test_an_error_of_the_thread_comes_up_at_the_next_checkpoint(tmp_path):
    store = stored(tmp_path, 1)
    with failing_disk(errno.ENOSPC):
        store.save_later(2, tensors_of(2), {"step": 2})
        with pytest.raises(InputError, match=rf"{step_file(3)}.*No space left on device"):
            store.save_later(3, tensors_of(3), {"step": 3})
    assert names(tmp_path) == [step_file(1)]


def test_a_disk_that_works_again_takes_the_next_checkpoint(tmp_path):
    store = stored(tmp_path, 1)
    with failing_disk(errno.ENOSPC):
        store.save_later(2, tensors_of(2), {"step": 2})
        while not store.failed:
            time.sleep(0.001)
    store.save_later(3, tensors_of(3), {"step": 3})
    assert not store.failed
    assert names(tmp_path) == [step_file(1), step_file(3)]
    assert same(store.load()[0], tensors_of(3))


def test_who_lost_the_cell_writes_nothing(tmp_path):
    stored(tmp_path, 1, 2)

    def lost() -> None:
        raise Unfinished("another process trains this cell")

    store = stored(tmp_path, guard=lost)
    with pytest.raises(Unfinished):
        store.save(3, tensors_of(3), {"step": 3})
    assert names(tmp_path) == [step_file(1), step_file(2)]


def as_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def foreign(path: Path) -> None:
    save_file({"weight": torch.ones(2)}, path)


def of_another_kind(path: Path) -> None:
    checkpoint.write_tensors(path, {"weight": torch.ones(2)}, {"model": "swift_v1"})


WRECKS = {
    "cut": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "one byte more": lambda path: path.write_bytes(path.read_bytes() + b"x"),
    "bit of a weight": lambda path: path.write_bytes(path.read_bytes()[:-1] + bytes([path.read_bytes()[-1] ^ 1])),
    "digit of the record": lambda path: path.write_bytes(
        path.read_bytes().replace(b'lowest\\":0.25', b'lowest\\":0.75')
    ),
    "empty": lambda path: path.write_bytes(b""),
    "text": lambda path: path.write_text("not a checkpoint at all"),
    "huge header": lambda path: path.write_bytes(b"\xff" * 64),
    "foreign tensors": foreign,
    "a model": of_another_kind,
    "folder": as_folder,
}


@pytest.mark.parametrize("wreck", WRECKS.values(), ids=WRECKS)
def test_what_cannot_be_read_is_put_aside_for_the_one_before(tmp_path, capfd, wreck):
    store = Store(tmp_path, IDENTITY, ARITHMETIC)
    for step in (1, 2):
        store.save(step, tensors_of(step), {"step": step, "lowest": 0.25})
    before = (tmp_path / step_file(2)).read_bytes()
    wreck(tmp_path / step_file(2))
    assert (tmp_path / step_file(2)).is_dir() or (tmp_path / step_file(2)).read_bytes() != before
    tensors, state = store.load()
    assert same(tensors, tensors_of(1))
    assert state["step"] == 1
    assert names(tmp_path) == [step_file(1), f"{step_file(2)}.damaged"]
    told = capfd.readouterr().err
    assert f"{step_file(2)}.damaged" in told
    assert "the one before it is tried" in told


def test_training_starts_anew_where_both_are_damaged_and_says_so(tmp_path, capfd):
    store = stored(tmp_path, 1, 2)
    for step in (1, 2):
        (tmp_path / step_file(step)).write_bytes(b"damage")
    assert store.load() is None
    assert names(tmp_path) == [f"{step_file(1)}.damaged", f"{step_file(2)}.damaged"]
    assert (tmp_path / f"{step_file(2)}.damaged").read_bytes() == b"damage"
    lines = capfd.readouterr().err.splitlines()
    assert [step_file(2) in lines[0], step_file(1) in lines[1]] == [True, True]
    assert "starts from step 0" in lines[1]
    store.save(3, tensors_of(3), {"step": 3})
    assert store.load()[1] == {"step": 3}


def unreadable(monkeypatch: pytest.MonkeyPatch, *steps: int) -> None:
    """The disk gives the checkpoints of these steps back no more."""
    opened = Path.open

    def refuses(path: Path, *given: object, **named: object) -> object:
        if path.name in map(step_file, steps):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return opened(path, *given, **named)

    monkeypatch.setattr(Path, "open", refuses)


def test_a_disk_that_gives_one_checkpoint_back_no_more_costs_that_one(tmp_path, capfd, monkeypatch):
    store = stored(tmp_path, 1, 2)
    unreadable(monkeypatch, 2)
    assert store.load()[1] == {"step": 1}
    assert names(tmp_path) == [step_file(1), f"{step_file(2)}.damaged"]
    assert "Input/output error" in capfd.readouterr().err


def test_a_disk_that_gives_none_back_does_not_start_the_training_anew(tmp_path, monkeypatch):
    store = stored(tmp_path, 1, 2)
    unreadable(monkeypatch, 1, 2)
    with pytest.raises(InputError, match=rf"{step_file(2)}: found a disk that fails .*Input/output error"):
        store.load()
    monkeypatch.undo()
    assert store.load()[1] == {"step": 2}
    assert names(tmp_path) == [step_file(1), step_file(2)]


def test_a_result_that_the_disk_does_not_give_back_stays(tmp_path, monkeypatch):
    store = finished(tmp_path / "state")

    def refuses(_: Path) -> str:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(checkpoint, "sha256_file", refuses)
    with pytest.raises(InputError, match="result: found a disk that fails"):
        store.published(tmp_path / "output")
    monkeypatch.undo()
    assert store.published(tmp_path / "output")


def test_of_several_processes_that_load_one_tidies_up(tmp_path):
    stored(tmp_path, 1, 2)
    (tmp_path / step_file(2)).write_bytes(b"damage")
    (tmp_path / ".writing-abc.safetensors").write_bytes(b"half")
    before = names(tmp_path)
    assert stored(tmp_path, keeper=False).load()[1] == {"step": 1}
    assert names(tmp_path) == before
    assert stored(tmp_path).load()[1] == {"step": 1}
    assert names(tmp_path) == [step_file(1), f"{step_file(2)}.damaged"]


@pytest.mark.parametrize(("field", "other"), [("cell_hash", "b2"), ("contract", {"space": "MNI", "tr_s": 2.0})])
def test_checkpoint_of_another_cell_or_contract_is_refused(tmp_path, field, other):
    stored(tmp_path, 3)
    with pytest.raises(InputError, match=rf"{step_file(3)}.*{field}: found .* expected .*Remove the folder"):
        Store(tmp_path, {**IDENTITY, field: other}, ARITHMETIC).load()


def test_another_number_of_processes_is_refused_with_the_reason_or_taken_knowingly(tmp_path, capfd):
    stored(tmp_path, 3)
    two = Store(tmp_path, IDENTITY, {**ARITHMETIC, "processes": 2})
    with pytest.raises(InputError) as refused:
        two.load()
    assert refused.value.found == "processes: 1"
    assert refused.value.expected == "processes: 2"
    assert "not bitwise equal" in refused.value.hint
    assert "compute.any_world_size: true" in refused.value.hint
    assert capfd.readouterr().err == ""
    two.any_world_size = True
    assert same(two.load()[0], tensors_of(3))
    assert "found processes: 1; goes on with processes: 2" in capfd.readouterr().err


# --- the finished result -------------------------------------------------------------------------------------------

RESULT = ("encoder.safetensors", "history.parquet", "summary.json")


def finished(folder: Path) -> Store:
    """A store with a result of three files beside its checkpoints."""
    store = stored(folder, 1, 2)
    store.result_folder.mkdir()
    for name in RESULT:
        (store.result_folder / name).write_text(f"content of {name}")
    store.keep_result(RESULT)
    return store


def no_links(*_: object, **__: object) -> None:
    raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))


@pytest.mark.parametrize("links", [True, False], ids=["hard link", "copy"])
def test_a_finished_cell_is_published_again_and_again(tmp_path, monkeypatch, links):
    store, output = finished(tmp_path / "state"), tmp_path / "output"
    if not links:
        monkeypatch.setattr(os, "link", no_links)
    store.clear()
    for _ in range(2):
        for file in store.result_folder.iterdir():
            os.utime(file, (1, 1))
        assert Store(store.folder, IDENTITY).published(output)
        assert names(output) == sorted(RESULT)
        assert all((output / name).read_text() == f"content of {name}" for name in RESULT)
        assert all((output / name).stat().st_mtime > 1 for name in RESULT)  # as Snakemake wants it
        assert (output / RESULT[0]).samefile(store.result_folder / RESULT[0]) == links
        (output / RESULT[1]).unlink()


def test_a_result_that_is_not_vouched_for_is_none(tmp_path):
    store = stored(tmp_path, 1, 2)
    assert not store.published(tmp_path / "output")
    store.result_folder.mkdir()
    (store.result_folder / "summary.json").write_text("{}")  # killed before the rest
    assert not store.published(tmp_path / "output")
    assert not (tmp_path / "output").exists()
    assert store.load()[1] == {"step": 2}


def test_checkpoints_go_once_the_result_is_out(tmp_path):
    store = finished(tmp_path / "state")
    assert len(names(store.folder)) == 3
    assert store.published(tmp_path / "output")
    assert names(store.folder) == ["result"]


RUINS = {
    "a bit": lambda folder: (folder / RESULT[0]).write_text("content of encoder.safetensorS"),
    "a file": lambda folder: (folder / RESULT[1]).unlink(),
    "its record": lambda folder: (folder / "result.json").write_text("{"),
    "another's record": lambda folder: (folder / "result.json").write_text("[1]"),
}


@pytest.mark.parametrize("ruin", RUINS.values(), ids=RUINS)
def test_a_damaged_result_is_put_aside_and_said(tmp_path, capfd, ruin):
    for _ in range(2):
        store = finished(tmp_path / "state")
        ruin(store.result_folder)
        assert not store.published(tmp_path / "output")
        assert not store.result_folder.exists()
        assert (store.folder / "result.damaged").is_dir()
        assert not (tmp_path / "output").exists()
        assert "result.damaged is damaged" in capfd.readouterr().err
    assert store.load()[1] == {"step": 2}


def test_a_summary_never_lies_beside_files_that_are_not_its_own(tmp_path, monkeypatch):
    store, output = finished(tmp_path / "state"), tmp_path / "output"
    output.mkdir()
    for name in RESULT:
        (output / name).write_text("of former settings")
    publish = checkpoint.publish

    def fails_at_the_second(source: Path, target: Path) -> None:
        if source.name == RESULT[1]:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        publish(source, target)

    monkeypatch.setattr(checkpoint, "publish", fails_at_the_second)
    with pytest.raises(InputError, match="No space left"):
        store.published(output)
    assert names(output) == sorted(RESULT[:2])
    monkeypatch.setattr(checkpoint, "publish", publish)
    assert store.published(output)
    assert sha256_file(output / RESULT[2]) == sha256_file(store.result_folder / RESULT[2])


def test_a_full_disk_while_a_result_is_kept_leaves_the_checkpoints(tmp_path):
    store = finished(tmp_path)
    (store.result_folder / "result.json").unlink()
    with pytest.raises(InputError, match=r"result\.json: found a disk that fails"), failing_disk(errno.ENOSPC):
        store.keep_result(RESULT)
    assert not store.published(tmp_path / "output")
    assert store.load()[1] == {"step": 2}
    shutil.rmtree(store.result_folder)


# --- a training and its store --------------------------------------------------------------------------------------


def fresh() -> MaskedReconstruction:
    torch.manual_seed(0)
    return MaskedReconstruction(create("swift_v1", **SPEC))


def loss_of(model: nn.Module, signal_at: int | None = None, number: int = signal.SIGTERM):
    """A loss that is a function of positions alone; at one of them a signal arrives, in the middle of the step."""

    def loss(positions: range) -> torch.Tensor:
        generator = torch.Generator().manual_seed(positions.start)
        clip = torch.randn(len(positions), 1, 4, 4, 4, 6, generator=generator)
        hidden = torch.rand(len(positions), 2, 2, 2, 6, generator=generator) < 0.5
        if signal_at is not None and signal_at in positions:
            os.kill(os.getpid(), number)
        return (model(clip, hidden) - clip).square().mean()

    return loss


def weights(model: nn.Module, path: Path) -> bytes:
    save_model(path, model, {"model": "swift_v1", "spec": SPEC})
    return path.read_bytes()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR2])
def test_interrupted_training_ends_bitwise_as_one_that_ran_through(tmp_path, number):
    straight, store = fresh(), Store(tmp_path / "state", IDENTITY)
    through = train(straight, loss_of(straight), RECIPE)
    model = fresh()
    with pytest.raises(Unfinished, match=r"after step (9|10) of 20"):
        train(model, loss_of(model, 16, number), RECIPE, store)
    resumed = fresh()
    training = train(resumed, loss_of(resumed), RECIPE, Store(tmp_path / "state", IDENTITY))
    assert (training.status, training.step) == ("completed", 20)
    assert weights(straight, tmp_path / "straight") == weights(resumed, tmp_path / "resumed")
    columns = [COLUMN[name] for name in ("step", "loss", "learning_rate", "grad_norm", "clips")]
    assert torch.equal(training.history[:, columns], through.history[:, columns])


def test_signals_are_left_as_they_were():
    former, model = signal.getsignal(signal.SIGTERM), fresh()
    train(model, loss_of(model), replace(RECIPE, steps=1))
    assert signal.getsignal(signal.SIGTERM) is former


def trained_to(folder: Path, *signals: int) -> Store:
    """The store of a training that a signal stopped at each of some steps."""
    store, model = Store(folder, IDENTITY), fresh()
    for at in signals:
        with pytest.raises(Unfinished):
            train(model, loss_of(model, RECIPE.batch * at), RECIPE, store)
    return store


DAMAGES = {
    "cut": lambda data: data[: len(data) // 2],
    "flipped": lambda data: data[:-3] + b"xyz",
    "empty": lambda _: b"",
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_training_whose_newest_checkpoint_is_damaged_still_ends_bitwise_the_same(tmp_path, damage):
    store = trained_to(tmp_path / "state", 5, 9)
    before, newest = sorted(store.folder.glob("step-*"))
    newest.write_bytes(damage(newest.read_bytes()))
    straight, model = fresh(), fresh()
    train(straight, loss_of(straight), RECIPE)
    assert train(model, loss_of(model), RECIPE, store).step == 20
    assert weights(straight, tmp_path / "straight") == weights(model, tmp_path / "model")
    assert names(store.folder) == [before.name, f"{newest.name}.damaged"]


def test_a_stop_file_ends_training_and_keeps_what_was_learned(tmp_path, monkeypatch):
    monkeypatch.setattr(trainer, "LOOKS_EVERY_S", -1.0)
    store, model = Store(tmp_path / "state", IDENTITY), fresh()
    store.folder.mkdir()
    inner = loss_of(model)

    def loss(positions: range) -> torch.Tensor:
        if positions.start == 10:
            store.stop_file.touch()
        return inner(positions)

    training = train(model, loss, RECIPE, store)
    assert (training.status, training.step) == ("stopped_early", 6)


def test_saved_cell_loads_back_and_a_damaged_one_says_so(tmp_path):
    model = fresh()
    save_model(tmp_path / "encoder.safetensors", model, {"model": "swift_v1", "spec": SPEC, "contract": {"tr_s": 1.5}})
    loaded, metadata = load_cell(tmp_path)
    clip, hidden = torch.randn(1, 1, 4, 4, 4, 6), torch.rand(1, 2, 2, 2, 6) < 0.5
    assert torch.equal(loaded(clip, hidden), model(clip, hidden))
    assert metadata["contract"] == {"tr_s": 1.5}
    assert not loaded.training
    (tmp_path / "encoder.safetensors").write_bytes((tmp_path / "encoder.safetensors").read_bytes()[:100])
    with pytest.raises(InputError, match="does not load"):
        load_cell(tmp_path)
    with pytest.raises(InputError, match="no such file"):
        load_cell(tmp_path / "nowhere")


def test_the_same_model_is_the_same_bytes(tmp_path):
    metadata = {"model": "swift_v2", "spec": {**SPEC, "width": 12}, "contract": {"b": 1, "a": [1, 2]}}
    torch.manual_seed(3)
    model = build_learner(metadata["model"], metadata["spec"])
    save_model(tmp_path / "one", model, metadata)
    save_model(tmp_path / "two", model, dict(reversed(metadata.items())))
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
