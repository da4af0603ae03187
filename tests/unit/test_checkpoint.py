"""Training state survives what happens to files and jobs, and goes on bitwise where it stopped."""

from __future__ import annotations

import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from pipeline.errors import InputError, Unfinished
from pipeline.models import create
from pipeline.models.learners.reconstruction import MaskedReconstruction
from pipeline.pretrain.checkpoint import Store, load_cell, save_model
from pipeline.pretrain.objectives import build_learner
from pipeline.pretrain.optimiser import AdamW
from pipeline.pretrain.trainer import Recipe, train

IDENTITY = {"cell_hash": "a1", "contract": {"space": "MNI", "tr_s": 1.5}}
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
    with pytest.raises(Unfinished, match="after step 9 of 20"):
        train(model, loss_of(model, 16, number), RECIPE, store)
    resumed = fresh()
    training = train(resumed, loss_of(resumed), RECIPE, Store(tmp_path / "state", IDENTITY))
    assert (training.status, training.step) == ("completed", 20)
    assert weights(straight, tmp_path / "straight") == weights(resumed, tmp_path / "resumed")
    assert torch.equal(training.history[:, :3], through.history[:, :3])


def test_signals_are_left_as_they_were():
    former, model = signal.getsignal(signal.SIGTERM), fresh()
    train(model, loss_of(model), replace(RECIPE, steps=1))
    assert signal.getsignal(signal.SIGTERM) is former


def trained_to(tmp_path: Path, step: int) -> Store:
    """A store whose two last checkpoints lie there, as between a write and the removal of the older one."""
    store, model = Store(tmp_path / "state", IDENTITY), fresh()
    for at in (step - 1, step):
        kept = {path: path.read_bytes() for path in store.folder.glob("*")}
        with pytest.raises(Unfinished):
            train(model, loss_of(model, 2 * (at - 1)), RECIPE, store)
        for path, content in kept.items():
            path.write_bytes(content)
    return store


DAMAGES = {
    "cut": lambda data: data[: len(data) // 2],
    "flipped": lambda data: data[:-3] + b"xyz",
    "empty": lambda _: b"",
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_damaged_checkpoint_falls_back_to_the_one_before(tmp_path, damage):
    store = trained_to(tmp_path, 9)
    newest = sorted(store.folder.glob("step-*"))[-1]
    newest.write_bytes(damage(newest.read_bytes()))
    straight, model = fresh(), fresh()
    train(straight, loss_of(straight), RECIPE)
    assert store.load()[1]["step"] == 8
    assert train(model, loss_of(model), RECIPE, store).step == 20
    assert weights(straight, tmp_path / "straight") == weights(model, tmp_path / "model")


def test_only_the_newest_checkpoint_is_kept_and_nothing_half_written(tmp_path):
    store, model = Store(tmp_path / "state", IDENTITY), fresh()
    for at in (4, 8):
        with pytest.raises(Unfinished):
            train(model, loss_of(model, at), RECIPE, store)
    assert [path.name for path in store.folder.iterdir()] == ["step-000000005.safetensors"]
    store.clear()
    assert not store.folder.exists()


@pytest.mark.parametrize(("field", "other"), [("cell_hash", "b2"), ("contract", {"space": "MNI", "tr_s": 2.0})])
def test_checkpoint_of_another_cell_or_contract_is_refused(tmp_path, field, other):
    store = trained_to(tmp_path, 3)
    model = fresh()
    with pytest.raises(InputError, match=rf"step-000000003.*{field}: found .* expected .*Remove the folder"):
        train(model, loss_of(model), RECIPE, Store(store.folder, {**IDENTITY, field: other}))


def test_a_stop_file_ends_training_and_keeps_what_was_learned(tmp_path):
    store, model = Store(tmp_path / "state", IDENTITY), fresh()
    inner = loss_of(model)

    def loss(positions: range) -> torch.Tensor:
        if positions.start == 10:
            store.stop_file.touch()
        return inner(positions)

    training = train(model, loss, RECIPE, store)
    assert (training.status, training.step) == ("stopped_early", 6)


def test_optimiser_is_torchs_adamw_with_decay_on_matrices_alone():
    ours, theirs = fresh(), fresh()
    optimiser = AdamW(ours, weight_decay=0.3)
    groups = [
        {"params": [value for value in theirs.parameters() if value.ndim == 2], "weight_decay": 0.3},
        {"params": [value for value in theirs.parameters() if value.ndim != 2], "weight_decay": 0.0},
    ]
    reference = torch.optim.AdamW(groups, betas=(0.9, 0.95))
    for step in range(5):
        for group in reference.param_groups:
            group["lr"] = 1e-2 / (step + 1)
        for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
            one.grad = torch.randn_like(one)
            other.grad = one.grad.clone()
        optimiser.step(1e-2 / (step + 1))
        reference.step()
    for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.allclose(one, other, atol=1e-6)


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
