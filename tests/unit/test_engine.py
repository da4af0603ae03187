"""The engine's settings do what they say, and none of them loses a step: branches, averages, parts, masks, starts."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from small_training import make_pool, run, small_study

from pipeline.artefact import read_json, read_table, write_json
from pipeline.errors import InputError, Unfinished
from pipeline.grid import Cell
from pipeline.pretrain import lesson, stage
from pipeline.pretrain.engine.checkpoint import Store
from pipeline.pretrain.engine.course import COLUMN, Training
from pipeline.pretrain.engine.distributed import World
from pipeline.pretrain.engine.schedule import route
from pipeline.pretrain.engine.step import parts_of
from pipeline.pretrain.engine.trainer import Hooks, Recipe, train
from pipeline.pretrain.lease import Lease
from pipeline.pretrain.plan import check_training

CELL = Cell("swift_v2", "w6", 4, 24)
WSD = {"schedule": "warmup-stable-decay", "decay": 0.25}


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_pool(tmp_path_factory.mktemp("pool"))


def weights(folder: Path) -> bytes:
    return (folder / "encoder.safetensors").read_bytes()


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "encoder.safetensors")


def difference(one: Path, other: Path) -> float:
    first, second = tensors(one), tensors(other)
    return max((first[name] - second[name]).abs().max().item() for name in first)


def interrupt_at(clip: int, monkeypatch: pytest.MonkeyPatch) -> None:
    place, came = lesson.clip_position, []

    def interrupted(seed: int, number: int, *rest: Any) -> tuple[int, int]:
        if number == clip and not came:
            came.append(number)
            os.kill(os.getpid(), signal.SIGTERM)
        return place(seed, number, *rest)

    monkeypatch.setattr(lesson, "clip_position", interrupted)


# --- branches ------------------------------------------------------------------------------------------------------


def test_branches_are_data_points_and_leave_the_trunk_bitwise_alone(pool: Path, tmp_path: Path) -> None:
    alone = run(pool, small_study(steps=16, **WSD), CELL, tmp_path / "alone")
    branched = run(pool, small_study(steps=16, branches=[0.5, 0.75], **WSD), CELL, tmp_path / "branched")
    for name, value in tensors(tmp_path / "alone").items():
        assert torch.equal(value, tensors(tmp_path / "branched")[name])
    assert alone["points"] == []
    assert [(point["branch"], point["steps"]) for point in branched["points"]] == [(1, 8), (2, 12)]
    assert (branched["steps"], branched["tokens"]) == (alone["steps"], alone["tokens"])
    assert branched["train_flops"] == alone["train_flops"] == alone["spent_flops"]
    assert branched["spent_flops"] == pytest.approx(alone["train_flops"] * (16 + 2 + 3) / 16)
    history = read_table(tmp_path / "branched/history.parquet")
    assert history["branch"].tolist() == [0] * 6 + [1] * 2 + [0] * 3 + [2] * 3 + [0] * 7
    assert history["step"].tolist() == [*range(1, 9), *range(7, 13), *range(10, 17)]
    ends = history[history["val_loss"].notna()]
    assert ends["step"].tolist() == [8, 12, 16]
    assert ends["val_r2"].tolist() == [point["val_r2"] for point in branched["points"]] + [branched["val_r2"]]
    assert all(point["val_r2_low"] <= point["val_r2"] <= point["val_r2_high"] for point in branched["points"])


@pytest.mark.parametrize("compute", [{"gpus": 3}, {"micro_batch_clips": 3}, {"nodes": 2, "micro_batch_clips": 2}])
def test_what_cannot_be_divided_is_known_before_anything_runs(compute: dict[str, int]) -> None:
    check_training(small_study({"gpus": 2, "micro_batch_clips": 1}, batch_clips=4))
    with pytest.raises(InputError, match=r"compute of swift_v1 w6: found 2 clips.*divides evenly"):
        check_training(small_study(compute))


def test_how_the_weights_were_moved_is_told(pool: Path, tmp_path: Path) -> None:
    summary = run(pool, small_study(optimiser="muon", ema=0.9, precision="bfloat16"), CELL, tmp_path)
    told = {"optimiser": "muon", "ema": 0.9, "precision": "bfloat16", "schedule": "cosine", "masks_per_clip": 1}
    assert told.items() <= summary["recipe"].items()
    assert "muon, cosine schedule, bfloat16; these are a moving average" in (tmp_path / "model_card.md").read_text()


def test_branches_that_cannot_be_trained_are_refused(pool: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"branches, warmup, decay: found .*some at the same step"):
        run(pool, small_study(branches=[0.5, 0.51], **WSD), CELL, tmp_path)
    with pytest.raises(InputError, match=r"rises until step 1.*Choose later branches"):
        run(pool, small_study(branches=[0.1], **WSD), CELL, tmp_path)


@pytest.mark.parametrize("ema", [None, 0.9])
def test_a_cell_interrupted_inside_a_branch_ends_bitwise_equal(
    pool: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ema: float | None
) -> None:
    study = small_study(steps=16, branches=[0.5], ema=ema, optimiser="muon", validations=3, **WSD)
    through = run(pool, study, CELL, tmp_path / "through")
    interrupt_at(2 * 6, monkeypatch)  # the first clip of the branch
    with pytest.raises(Unfinished, match="after step 7 of 18"):
        run(pool, study, CELL, tmp_path / "resumed")
    monkeypatch.undo()
    resumed = run(pool, study, CELL, tmp_path / "resumed")
    assert weights(tmp_path / "resumed") == weights(tmp_path / "through")
    assert resumed["points"] == through["points"]
    assert (through["starts"], resumed["starts"]) == (1, 2)
    timeless = ["branch", "step", "tokens", "flops", "loss", "learning_rate", "grad_norm", "val_loss", "val_r2"]
    one, other = (read_table(tmp_path / name / "history.parquet")[timeless] for name in ("through", "resumed"))
    assert one.equals(other)


# --- what changes numbers, and what only rounds them ---------------------------------------------------------------


def test_parts_of_a_batch_add_up_to_the_batch(pool: Path, tmp_path: Path) -> None:
    run(pool, small_study(batch_clips=4), CELL, tmp_path / "whole")
    run(pool, small_study({"micro_batch_clips": 1}, batch_clips=4), CELL, tmp_path / "parts")
    assert 0 < difference(tmp_path / "whole", tmp_path / "parts") < 1e-5


def test_a_batch_that_does_not_divide_and_a_loss_that_must_not_are_refused(pool: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"4 clips, 1 process\(es\), 3 micro batch.*divides evenly"):
        run(pool, small_study({"micro_batch_clips": 3}, batch_clips=4), CELL, tmp_path)
    study = small_study({"micro_batch_clips": 1}, batch_clips=4)
    contrastive = study.architectures["swift_v2"].model_copy(update={"objective": "contrastive"})
    study = study.model_copy(update={"architectures": {"swift_v2": contrastive}})
    with pytest.raises(InputError, match=r"objective contrastive.*the whole batch in one process"):
        run(pool, study, CELL, tmp_path)


@pytest.mark.parametrize("size", [1, 2, 3, 6])
def test_processes_share_a_step_without_gap_or_overlap(size: int) -> None:
    shares = [parts_of(12, 5, World(rank, size), 2) for rank in range(size)]
    assert [position for share in shares for part in share for position in part] == list(range(60, 72))
    assert [part for share in shares for part in share] == parts_of(12, 5, World(), 2), "the parts are the same, too"


def test_several_masks_are_made_of_a_clip_that_is_read_once(
    pool: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, seen = lesson.Runs.clip, []

    def clip(runs: Any, number: int, start: int, frames: int) -> np.ndarray:
        seen.append((runs.entries[number]["subject"], start))
        return read(runs, number, start, frames)

    monkeypatch.setattr(lesson.Runs, "clip", clip)
    batches = []
    total_of = stage.total_of
    monkeypatch.setattr(stage, "total_of", lambda objective, batch: batches.append(batch) or total_of(objective, batch))
    summary = run(pool, small_study(batch_clips=4, masks_per_clip=2), CELL, tmp_path)
    assert summary["tokens"] == 8 * 4 * 64
    assert len(batches) == 8
    for batch in batches:
        assert torch.equal(batch.clip[0], batch.clip[1])
        assert not torch.equal(batch.clip[1], batch.clip[2])
        assert not torch.equal(batch.hidden[0], batch.hidden[1])
    trained = [entry for entry in seen if entry[0] in {person.split("/")[1] for person in summary["people"]}]
    assert len(trained) == 2 + 8 * 2, "two to count operations, two a step"


def test_validations_are_in_the_history_and_change_no_weight(pool: Path, tmp_path: Path) -> None:
    run(pool, small_study(), CELL, tmp_path / "one")
    summary = run(pool, small_study(validations=4), CELL, tmp_path / "four")
    for name, value in tensors(tmp_path / "one").items():
        assert torch.equal(value, tensors(tmp_path / "four")[name])
    history = read_table(tmp_path / "four/history.parquet")
    assert history.loc[history["val_loss"].notna(), "step"].tolist() == [2, 4, 6, 8]
    assert history["val_loss"].iloc[-1] == summary["val_loss"]


def test_an_average_of_the_weights_is_what_is_scored_and_kept(pool: Path, tmp_path: Path) -> None:
    run(pool, small_study(), CELL, tmp_path / "last")
    run(pool, small_study(ema=0.5), CELL, tmp_path / "averaged")
    assert difference(tmp_path / "last", tmp_path / "averaged") > 1e-4
    one, other = (read_table(tmp_path / name / "history.parquet") for name in ("last", "averaged"))
    assert one["loss"].tolist() == other["loss"].tolist(), "the training itself is the same"


def test_bfloat16_trains_float32_weights_to_nearly_the_same_loss(pool: Path, tmp_path: Path) -> None:
    full = run(pool, small_study(steps=20), CELL, tmp_path / "full")
    half = run(pool, small_study(steps=20, precision="bfloat16"), CELL, tmp_path / "half")
    assert {value.dtype for value in tensors(tmp_path / "half").values()} == {torch.float32}
    assert 0 < abs(half["val_loss"] - full["val_loss"]) < 0.02 * full["val_loss"]


def test_activation_checkpointing_and_loaders_change_not_a_bit(pool: Path, tmp_path: Path) -> None:
    run(pool, small_study(), CELL, tmp_path / "plain")
    run(pool, small_study({"activation_checkpointing": True, "loaders": 3}), CELL, tmp_path / "arranged")
    assert weights(tmp_path / "plain") == weights(tmp_path / "arranged")


def test_clips_are_counted_as_they_are_trained_on() -> None:
    model = torch.nn.Linear(1, 1)
    recipe = Recipe(6, 4, 1e-2, 0.1, 0.0, 1.0, 10.0, 600.0)

    def loss_of(positions: range) -> torch.Tensor:
        return model(torch.ones(len(positions), 1)).square().mean() * (torch.nan if positions.start == 8 else 1)

    training = train(model, loss_of, recipe)
    assert training.history[:, COLUMN["clips"]].tolist() == [4, 8, 12, 16, 20, 24]
    assert (training.skipped, training.clips) == (1, 24)


def test_steps_of_a_line_with_branches_have_two_numbers() -> None:
    training = Training.fresh(route(16, "warmup-stable-decay", 0.1, 0.25, [0.5]))
    steps = []
    for taken in range(len(training.history)):
        training.taken = taken
        steps.append(training.now[1])
    training.taken = 0
    assert steps == list(training.to_come()) == [*range(8), *range(6, 16)]
    training.taken = 7
    assert list(training.to_come()) == [7, *range(6, 16)]


def linear(course: list[float]) -> tuple[torch.nn.Module, Any]:
    """A model whose loss of a step is that of the course, by its one weight."""
    model = torch.nn.Linear(1, 1, bias=False)

    def loss_of(positions: range) -> torch.Tensor:
        return model.weight.sum() * 0 + course[positions.start // 4]

    return model, loss_of


@pytest.mark.parametrize("bad", [{3}, set(range(3, 40))], ids=["one step", "all from the fourth"])
def test_steps_that_are_not_finite_are_saved_like_others(tmp_path: Path, bad: set[int]) -> None:
    model, loss_of = linear([torch.nan if step in bad else 1.0 for step in range(40)])
    store = Store(tmp_path, {"cell_hash": "c"})
    training = train(model, loss_of, Recipe(40, 4, 1e-2, 0.1, 0.0, 1.0, 10.0, 1e-9), store)
    assert (training.status, training.skipped) == (("completed", 1) if len(bad) == 1 else ("diverged", 6))
    _, numbers = store.load()
    assert (numbers["taken"], numbers["skipped"], numbers["status"]) == (
        training.taken,
        training.skipped,
        training.status,
    )


def test_a_training_that_ends_inside_a_branch_leaves_the_trunk(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = torch.nn.Linear(1, 1)
    recipe = Recipe(16, 4, 1e-2, 0.1, 0.0, 1.0, 10.0, 1e-9, schedule="warmup-stable-decay", decay=0.25, branches=(0.5,))
    seen: list[torch.Tensor] = []

    def loss_of(positions: range) -> torch.Tensor:
        seen.append(model.weight.detach().clone())
        broken = len(seen) == 8  # the second step of the branch, which begins at step 6
        return (model(torch.full((4, 1), float(positions.start))) - 1).square().mean() * (1e6 if broken else 1)

    training = train(model, loss_of, recipe, Store(tmp_path, {}))
    assert (training.status, training.taken, training.step) == ("diverged", 8, 6)
    assert torch.equal(model.weight, seen[6]), "the weights from which the branch left"


def test_parts_of_a_step_are_at_one_place_of_the_schedule(
    pool: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen, total_of = [], stage.total_of
    monkeypatch.setattr(stage, "total_of", lambda objective, batch: seen.append(batch) or total_of(objective, batch))
    run(pool, small_study({"micro_batch_clips": 1}), CELL, tmp_path)
    assert [batch.progress for batch in seen] == [step / 8 for step in range(8) for _ in range(2)]


def test_what_follows_the_weights_stays_where_a_step_was_skipped() -> None:
    model, loss_of = linear([1.0, torch.nan, 1.0, 1.0])
    told: list[float] = []
    train(model, loss_of, Recipe(4, 4, 1e-2, 0.1, 0.0, 1.0, 10.0, 600.0), hooks=Hooks(after_step=told.append))
    assert told == [0.25, 0.75, 1.0]


# --- nothing is lost, nobody writes twice --------------------------------------------------------------------------


def test_a_finished_cell_whose_files_were_deleted_comes_back_without_training(
    pool: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    summary = run(pool, small_study(), CELL, tmp_path)
    before = {name: (tmp_path / name).read_bytes() for name in stage.FILES}
    for name in stage.FILES:
        (tmp_path / name).unlink()
    monkeypatch.setattr(stage, "fit", lambda _: pytest.fail("it was trained again"))
    assert run(pool, small_study(), CELL, tmp_path) == summary
    assert {name: (tmp_path / name).read_bytes() for name in stage.FILES} == before


def test_a_finished_cell_is_scored_anew_where_others_are_held_out(pool: Path, tmp_path: Path) -> None:
    first = run(pool, small_study(), CELL, tmp_path)
    before = weights(tmp_path)
    second = run(pool, small_study(validation_people=2), CELL, tmp_path)
    assert (first["n_validation_people"], second["n_validation_people"]) == (3, 2)
    assert weights(tmp_path) == before


def test_a_damaged_result_is_trained_again_to_the_same_bytes(pool: Path, tmp_path: Path) -> None:
    run(pool, small_study(), CELL, tmp_path)
    before = weights(tmp_path)
    (kept,) = (tmp_path / "state").glob("*/result/encoder.safetensors")
    damaged = bytearray(before)
    damaged[-1] ^= 1
    kept.write_bytes(damaged)
    run(pool, small_study(), CELL, tmp_path)
    assert weights(tmp_path) == before


def test_a_second_launch_of_a_cell_is_told_who_trains_it(pool: Path, tmp_path: Path) -> None:
    with (
        Lease(tmp_path / "state", CELL.path),
        pytest.raises(Unfinished, match=rf"{CELL.path} is being trained by .*process {os.getpid()}"),
    ):
        run(pool, small_study(), CELL, tmp_path)
    assert not (tmp_path / "summary.json").exists()
    assert run(pool, small_study(), CELL, tmp_path)["status"] == "completed"


def test_starts_of_a_job_that_get_nowhere_end_the_cell_and_a_person_may_begin_anew(
    pool: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    study = small_study({"starts_without_progress": 3})

    def dies(*arguments: Any) -> None:
        arguments[4].begun(Training.fresh([]))
        raise SystemExit(9)

    monkeypatch.setattr(stage, "train", dies)
    for _ in range(3):
        with pytest.raises(SystemExit):
            run(pool, study, CELL, tmp_path)
    with pytest.raises(InputError, match=r"3 starts in a row at step 0 without a new checkpoint.*raise compute"):
        run(pool, study, CELL, tmp_path)
    with pytest.raises(SystemExit):
        run(pool, study, CELL, tmp_path)
    starts = (tmp_path / "state/attempts.jsonl").read_text().splitlines()
    assert [(json.loads(line)["job"], json.loads(line)["step"]) for line in starts] == [("17", 0)] * 5


def test_a_stop_file_ends_a_cell_and_keeps_what_was_learned(
    pool: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = lesson.clip_position

    def stopping(seed: int, number: int, *rest: Any) -> tuple[int, int]:
        if number == 6:
            (folder,) = (path for path in (tmp_path / "state").iterdir() if path.is_dir())
            write_json(folder / "stop", {})
        return place(seed, number, *rest)

    monkeypatch.setattr(lesson, "clip_position", stopping)
    monkeypatch.setattr("pipeline.pretrain.engine.trainer.LOOKS_EVERY_S", 0.0)
    (tmp_path / "state").mkdir()
    study = small_study(checkpoint_every_s=1e-6)
    summary = run(pool, study, CELL, tmp_path)
    assert (summary["status"], summary["steps"]) == ("stopped_early", 4)
    assert read_json(tmp_path / "summary.json")["val_loss"] is not None
