"""Pretraining learns what is there, says what it did not learn, and depends on nothing but its seed."""

from __future__ import annotations

import json
import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_cohort import DEMO
from small_training import TEMPLATE, make_pool, planted, run, small_study
from tiny_models import TINY

from pipeline.artefact import read_json, read_table, write_json
from pipeline.cli import main
from pipeline.config import dump_study, load_study
from pipeline.errors import InputError, Unfinished
from pipeline.grid import Cell, sweep_variant
from pipeline.pretrain import lesson
from pipeline.pretrain.engine.checkpoint import load_cell
from pipeline.pretrain.engine.schedule import learning_rate, route
from pipeline.pretrain.engine.trainer import Recipe, train
from pipeline.pretrain.masks import hidden_tokens, sample_draw
from pipeline.pretrain.objectives import build_learner
from pipeline.pretrain.objectives.reconstruction import MaskedObjective, masked_loss, reconstruct
from pipeline.pretrain.people import choose_people
from pipeline.pretrain.plan import peak_rate
from pipeline.pretrain.rasters import voxel_raster
from pipeline.pretrain.samples import Samples, real_values
from pipeline.pretrain.sweep import choose_learning_rate
from pipeline.pretrain.validation import bootstrap, effective_rank
from pipeline.tables import HISTORY_SCHEMA, PRETRAIN_SCHEMA

BRAIN = torch.ones(2, 2, 2, dtype=torch.bool)
ARCHITECTURES = ["swift_v1", "swift_v2"]
VOXEL_ENCODERS = ["swift_v1", "swift_4d", "swift_v2", "neurostorm", "brainmt"]
SLOW = {"brainmt"}  # learns slow courses only: its sines of time are a tenth of its tokens (docs/log.md)
CONTRACT_SEEN = {"kind": "voxels", "normalisation": "voxel-z", "tr_s": 1.5}
RECIPE = Recipe(60, 4, 1e-2, 0.1, 0.05, 1.0, 10.0, 600.0)


# --- masks and schedule --------------------------------------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.integers(0, 10**9), st.floats(0.1, 0.9), st.sampled_from(["random", "tube", "window"]))
def test_masks_hide_an_exact_share_of_the_brain_and_depend_on_nothing_else(seed, position, ratio, kind):
    brain = torch.zeros(4, 4, 4, dtype=torch.bool)
    brain[1:, 1:3] = True
    hidden = hidden_tokens(sample_draw(seed, position), brain, 10, ratio, kind)
    torch.manual_seed(position % 7)  # the global state must not matter
    assert torch.equal(hidden, hidden_tokens(sample_draw(seed, position), brain, 10, ratio, kind))
    assert not hidden[~brain].any()
    assert hidden.sum() == (10 * round(ratio * 24) if kind == "tube" else round(ratio * 240))
    if kind == "tube":
        assert torch.equal(hidden.all(-1), hidden.any(-1))
    if kind == "window":  # blocks of 2 x 2 x 2 places at one time: all or none of one is hidden, but for the last
        blocks = [
            hidden[x : x + 2, y : y + 2, z : z + 2, t]
            for x in (0, 2)
            for y in (0, 2)
            for z in (0, 2)
            for t in range(10)
        ]
        brains = [
            brain[x : x + 2, y : y + 2, z : z + 2] for x in (0, 2) for y in (0, 2) for z in (0, 2) for t in range(10)
        ]
        partly = [block.any() and not torch.equal(block, inside) for block, inside in zip(blocks, brains, strict=True)]
        assert sum(partly) <= 1


def test_masks_differ_between_positions_and_seeds():
    one, next_one, other = (hidden_tokens(sample_draw(*key), BRAIN, 10, 0.5) for key in ((0, 0), (0, 1), (1, 0)))
    assert not torch.equal(one, next_one)
    assert not torch.equal(one, other)


def test_learning_rate_rises_in_a_line_and_falls_in_half_a_cosine():
    (leg,) = route(100, "cosine", 0.1)
    rates = [learning_rate(step, leg, 100, 2.0, 0.1, "cosine") for step in range(100)]
    assert rates[:10] == pytest.approx(np.linspace(0.2, 2.0, 10))
    assert rates[10] == 2.0
    assert rates[55] == pytest.approx(1.0)
    assert 0 < rates[99] < 1e-3
    assert (np.diff(rates[10:]) < 0).all()


# --- objective and validation --------------------------------------------------------------------------------------


def small_model(name: str, seed: int = 0):
    torch.manual_seed(seed)
    return build_learner(name, TINY[name], "masked reconstruction")


def test_loss_counts_hidden_in_brain_voxels_alone():
    model, mask = small_model("swift_v2"), torch.from_numpy(TEMPLATE.mask_XYZ)
    clip = torch.randn(2, 1, 6, 6, 6, 8) * mask[..., None]
    hidden = torch.rand(2, 2, 2, 2, 8) < 0.5
    voxels = hidden.repeat_interleave(3, 1).repeat_interleave(3, 2).repeat_interleave(3, 3)
    counted = voxels & mask[..., None]
    with torch.no_grad():
        found = reconstruct(model, clip, hidden, real_values(model, voxel_raster(TEMPLATE)))
        error = (model(clip, hidden) - clip)[:, 0][counted]
    assert masked_loss(found, "mse") == pytest.approx(error.square().mean().item(), rel=1e-5)
    assert masked_loss(found, "l1") == pytest.approx(error.abs().mean().item(), rel=1e-5)
    assert torch.bincount(found.clip_M).tolist() == hidden.flatten(1).sum(1).tolist()


def test_r2_pools_people_and_its_interval_covers_their_spread():
    squared_error, squared_truth = np.array([50.0, 90.0, 70.0]), np.array([100.0, 100.0, 200.0])
    loss, r2 = bootstrap(np.stack([squared_error, squared_error, squared_truth, np.full(3, 100.0)], axis=1))
    assert loss.value == pytest.approx(210 / 300)
    assert r2.value == pytest.approx(1 - 210 / 400)
    assert 0.099 < r2.low < r2.value < r2.high < 0.651


def test_effective_rank_of_known_features():
    directions = torch.linalg.qr(torch.randn(20, 5)).Q
    centred = directions - directions.mean(0)
    equal = torch.linalg.svd(centred, full_matrices=False).U
    assert effective_rank(torch.cat((equal, -equal))) == pytest.approx(5, rel=1e-6)
    assert effective_rank(torch.randn(20, 1) @ torch.randn(1, 5)) == pytest.approx(1, abs=0.01)
    assert effective_rank(torch.ones(20, 5)) == 1
    assert np.isnan(effective_rank(torch.full((20, 5), torch.inf)))


# --- learning ------------------------------------------------------------------------------------------------------


def held_out_r2(name: str, shuffled: bool) -> tuple[torch.Tensor, float]:
    """Losses of a training on planted runs, or on the same with every voxel in a random order of time."""
    rng = np.random.default_rng(0)
    runs = [planted(40, rng, name in SLOW) for _ in range(9)]
    runs = [rng.permuted(run, axis=0) if shuffled else run for run in runs]
    raster, model = voxel_raster(TEMPLATE), small_model(name)
    inside = real_values(model, raster)
    places = inside.flatten(-2).any(-1)
    times = 8 // model.encoder.frames_per_token
    objective = MaskedObjective(model, lambda draw: hidden_tokens(draw, places, times, 0.5), "mse")
    samples = Samples(lambda i: runs[i % 8][i % 32 : i % 32 + 8], raster, 0, inside)
    training = train(
        model,
        lambda positions: objective.loss(samples.batch(positions)),
        replace(RECIPE, steps=200 if name in SLOW else 100),
    )
    fixed = Samples(lambda i: runs[8][8 * i : 8 * i + 8], raster, 99, inside)
    with torch.no_grad():
        found = objective.reconstruct(fixed.batch(range(4)))
    error = (found.predicted_MP - found.true_MP).square().sum() / found.true_MP.square().sum()
    return training.losses, 1 - error.item()


@pytest.mark.parametrize("name", VOXEL_ENCODERS)
def test_loss_falls_on_a_planted_signal_and_beats_shuffled_input(name):
    losses, r2 = held_out_r2(name, shuffled=False)
    _, nothing = held_out_r2(name, shuffled=True)
    assert losses[-10:].mean() < 0.5 * losses[:5].mean()
    assert r2 > 0.5
    assert nothing < 0.05


@settings(max_examples=60, deadline=None)
@given(st.integers(4, 30), st.integers(0, 50), st.integers(0, 10**6))
def test_two_clips_of_a_pair_lie_in_the_run_and_apart(context, slack, position):
    frames = 2 * context + slack
    one, other = lesson.apart(context, frames, 3, position)
    assert min(one, other) >= 0
    assert max(one, other) + context <= frames
    assert abs(one - other) >= context
    with pytest.raises(InputError, match="room for two clips"):
        lesson.apart(context, 2 * context - 1, 3, position)


def test_every_pair_of_places_comes_up_alike():
    pairs = [lesson.apart(2, 6, 0, position) for position in range(3000)]
    places = {(0, 2), (0, 3), (0, 4), (1, 3), (1, 4), (2, 4)}
    counts = {pair: pairs.count(pair) for pair in places | {(late, early) for early, late in places}}
    assert sum(counts.values()) == 3000
    assert all(180 < count < 320 for count in counts.values())  # 250 expected, standard deviation 15


def test_a_step_that_is_skipped_leaves_no_trace_in_running_means():
    model = torch.nn.Sequential(torch.nn.BatchNorm1d(3), torch.nn.Linear(3, 1))

    def loss_of(positions: range) -> torch.Tensor:
        rows = torch.randn(4, 3, generator=torch.Generator().manual_seed(positions.start))
        return model(rows * (torch.inf if positions.start == 8 else 1)).square().mean()

    training = train(model, loss_of, replace(RECIPE, steps=5))
    assert training.skipped == 1
    assert all(value.isfinite().all() for value in model.state_dict().values())


def test_a_loss_that_may_fall_to_nothing_diverges_only_above_its_start():
    weight = torch.nn.Linear(1, 1, bias=False)
    course = [1.0] * 10 + [0.01] * 20 + [0.5] * 15 + [3.0] * 15

    def train_as(falls: bool):
        def loss_of(positions: range) -> torch.Tensor:
            return weight.weight.sum() * 0 + course[positions.start // RECIPE.batch]

        return train(weight, loss_of, replace(RECIPE, falls_to_nothing=falls))

    assert (train_as(False).status, train_as(False).step) == ("diverged", 32)  # mean of ten above .1
    assert (train_as(True).status, train_as(True).step) == ("diverged", 48)  # and above 1


def test_huge_learning_rate_is_a_divergence_and_leaves_finite_weights():
    model = small_model("swift_v1")

    def loss_of(positions: range) -> torch.Tensor:
        clip = torch.randn(2, 1, 6, 6, 6, 8, generator=torch.Generator().manual_seed(positions.start))
        return (model(clip, torch.zeros(2, 2, 2, 2, 8, dtype=torch.bool)) - clip).square().mean()

    training = train(model, loss_of, replace(RECIPE, learning_rate=1e4))
    assert training.status == "diverged"
    assert training.step < RECIPE.steps
    assert all(value.isfinite().all() for value in model.parameters())


def test_steps_that_are_not_finite_are_skipped_counted_and_in_the_end_a_divergence():
    model = small_model("swift_v2")

    def train_with(bad: set[int]):
        def loss_of(positions: range) -> torch.Tensor:
            total = sum(value.square().sum() for value in model.parameters())
            return total * (torch.nan if positions.start // RECIPE.batch in bad else 1)

        return train(model, loss_of, RECIPE)

    twice = train_with({3, 7})
    assert (twice.status, twice.skipped, twice.step) == ("completed", 2, 60)
    assert twice.losses.isnan().nonzero().flatten().tolist() == [3, 7]
    always = train_with(set(range(10, 60)))
    assert (always.status, always.step) == ("diverged", 16)


# --- the stage -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cohort(tmp_path_factory) -> Path:
    return make_pool(tmp_path_factory.mktemp("cohort"))


def test_a_cell_says_what_it_is(cohort, tmp_path):
    summary = run(cohort, small_study(), Cell("swift_v2", "w12", 4, 16), tmp_path)
    assert set(PRETRAIN_SCHEMA.names) <= set(summary)
    assert summary["people"] == [f"simulated/p{person}" for person in (3, 1, 0, 5)]
    assert (summary["unique_frames"], summary["tokens"], summary["steps"]) == (64, 8 * 2 * 64, 8)
    assert summary["contract"] == {**CONTRACT_SEEN, "template": "small", "space": "MNI"}
    assert summary["val_r2_low"] <= summary["val_r2"] <= summary["val_r2_high"] < 1
    assert summary["n_validation_people"] == 3
    history = read_table(tmp_path / "history.parquet")
    assert set(history.columns) == set(HISTORY_SCHEMA.names)
    assert history["tokens"].tolist() == [128 * (step + 1) for step in range(8)]
    model, metadata = load_cell(tmp_path)
    assert sum(value.numel() for value in model.encoder.parameters()) == summary["parameters"]
    assert metadata["contract"] == summary["contract"]
    card = (tmp_path / "model_card.md").read_text()
    assert all(word in card for word in ("Apache-2.0", "tr_s: 1.5", summary["people_hash"], "completed"))
    (state,) = [path for path in (tmp_path / "state").iterdir() if path.is_dir()]
    assert [path.name for path in state.iterdir()] == ["result"], "no checkpoint is left, no lease"


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_an_interrupted_cell_is_bitwise_the_one_that_ran_through(cohort, tmp_path, monkeypatch, name):
    study, cell = small_study(), Cell(name, "w6", 4, 24)
    run(cohort, study, cell, tmp_path / "through")
    position = lesson.clip_position

    def interrupted(seed: int, at: int, *rest: Any) -> tuple[int, int]:
        if at == 7:
            os.kill(os.getpid(), signal.SIGUSR2)
        return position(seed, at, *rest)

    monkeypatch.setattr(lesson, "clip_position", interrupted)
    with pytest.raises(Unfinished, match="after step 4 of 8"):
        run(cohort, study, cell, tmp_path / "resumed")
    assert not (tmp_path / "resumed/summary.json").exists()
    monkeypatch.setattr(lesson, "clip_position", position)
    run(cohort, study, cell, tmp_path / "resumed")
    one, other = (tmp_path / name / "encoder.safetensors" for name in ("through", "resumed"))
    assert one.read_bytes() == other.read_bytes()


def test_untrained_control_takes_no_step_but_is_scored(cohort, tmp_path):
    summary = run(cohort, small_study(), Cell("swift_v1", "w6", 4, 24, variant="random"), tmp_path)
    assert [summary[key] for key in ("status", "steps", "train_loss", "train_flops")] == ["completed", 0, None, 0]
    assert summary["val_r2"] < 0.01
    assert len(read_table(tmp_path / "history.parquet")) == 0


def test_divergence_is_a_result(cohort, tmp_path):
    study = small_study(steps=60, learning_rate=1e4)
    summary = run(cohort, study, Cell("swift_v1", "w6", 4, 24), tmp_path)
    assert summary["status"] == "diverged"
    assert "**diverged**" in (tmp_path / "model_card.md").read_text()
    assert load_cell(tmp_path)


def test_collapse_is_a_result(cohort, tmp_path):
    study = small_study(collapsed_rank=1000.0)
    assert run(cohort, study, Cell("swift_v1", "w6", 4, 24), tmp_path)["status"] == "collapsed"


def test_only_the_first_frames_of_the_first_session_are_trained_on(cohort, tmp_path, monkeypatch):
    seen = []
    read = lesson.Runs.clip

    def clip(runs: Any, number: int, start: int, frames: int) -> np.ndarray:
        seen.append((runs.entries[number]["subject"], runs.entries[number]["session"], start + frames))
        return read(runs, number, start, frames)

    monkeypatch.setattr(lesson.Runs, "clip", clip)
    run(cohort, small_study(steps=40), Cell("swift_v1", "w6", 2, 12), tmp_path)
    trained = [(subject, session, end) for subject, session, end in seen if subject in ("p3", "p1")]
    assert {session for _, session, _ in trained} == {"1"}
    assert max(end for *_, end in trained) == 12
    assert {subject for subject, *_ in seen} == {"p3", "p1", "p6", "p7", "p8"}
    with pytest.raises(InputError, match="found 24 frames; expected at least T = 25"):
        run(cohort, small_study(), Cell("swift_v1", "w6", 2, 25), tmp_path)


def test_sweep_validates_on_pretraining_people_that_it_does_not_train_on(cohort, tmp_path):
    study, cell = small_study(), Cell("swift_v1", "w12", 4, 24, variant=sweep_variant(3e-3))
    summary = run(cohort, study, cell, tmp_path, rates=tmp_path / "not-yet.json")  # it is what the sweep will write
    assert summary["learning_rate"] == 3e-3
    assert summary["n_validation_people"] == 2
    with pytest.raises(InputError, match="nobody held out"):
        run(cohort, study, replace(cell, subjects=6), tmp_path)


def test_sweep_validates_on_people_of_its_own_data_sets(cohort, tmp_path):
    other = load_study(DEMO).datasets["simulated"].model_dump(mode="json")
    grid = {"learning_rate": {"datasets": ["simulated"]}}
    study = load_study(DEMO, {"datasets": {"other": other}, "grid": grid})
    entries = read_json(cohort / "manifest.json")["runs"]
    write_json(tmp_path / "other.json", {"runs": [{**entry, "dataset": "other"} for entry in entries]})
    people = [f"{name}/p{person}" for person in range(6) for name in ("other", "simulated")]
    write_json(tmp_path / "draws.json", {"0": people})
    manifests = {"simulated": cohort / "manifest.json", "other": tmp_path / "other.json"}
    cell = Cell("swift_v1", "w12", 4, 24, variant=sweep_variant(3e-3))
    chosen = choose_people(study, cell, manifests, tmp_path / "draws.json", cohort / "evaluation_set.json")
    assert chosen.names == [f"simulated/p{person}" for person in range(4)]
    assert {f"{entry['dataset']}/{entry['subject']}" for entry in chosen.held_out} == {"simulated/p4", "simulated/p5"}


def test_a_cell_of_an_arm_is_trained_at_the_rate_of_the_sweep_on_the_threads_asked_for(cohort, tmp_path, monkeypatch):
    study = small_study()
    arm = study.grid.scaling[0].model_copy(update={"arm": "hcp", "sizes": ("w24",), "subjects_frames": ((4, 24),)})
    study = study.model_copy(update={"grid": study.grid.model_copy(update={"scaling": (arm,)})})
    results = tmp_path / study.results
    (results / "shards/simulated").mkdir(parents=True)
    for link, target in (("template", "template"), ("shards/simulated/manifest.json", "manifest.json"), ("split", "")):
        (results / link).symlink_to(cohort / target)
    paths = sweep(tmp_path, {1e-2: ("completed", 0.7)})
    choose_learning_rate(study, "swift_v2", paths, results / "learning_rate/swift_v2/lr.json")
    (tmp_path / "study.yaml").write_text(dump_study(study))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    before, cell = torch.get_num_threads(), Cell("swift_v2", "w24", 4, 24, variant="hcp")
    try:
        command = ["pretrain", "--config", "study.yaml", "--cell", cell.path, "--threads", str(before + 1)]
        assert main([*command, "--output", "out/summary.json"]) == 0
        assert torch.get_num_threads() == before + 1
    finally:
        torch.set_num_threads(before)
    assert read_json(tmp_path / "out/summary.json")["learning_rate"] == pytest.approx(5e-3)


def sweep(folder: Path, found: dict[float, tuple[str, float | None]]) -> list[Path]:
    paths = []
    for rate, (status, loss) in found.items():
        paths.append(folder / f"{rate}/summary.json")
        write_json(paths[-1], {"learning_rate": rate, "status": status, "val_loss": loss})
    return paths


def test_learning_rate_of_the_lowest_held_out_loss_is_chosen_and_scaled_by_width(tmp_path):
    study, output = small_study(), tmp_path / "lr.json"
    paths = sweep(tmp_path, {1e-3: ("completed", 0.9), 1e-2: ("completed", 0.7), 0.1: ("diverged", 0.1)})
    choose_learning_rate(study, "swift_v1", paths, output)
    chosen = json.loads(output.read_text())
    assert (chosen["rate"], chosen["at_width"], chosen["losses"]) == (1e-2, 12, [0.9, 0.7, None])
    assert peak_rate(study, Cell("swift_v1", "w24", 4, 24), output) == pytest.approx(5e-3)
    assert peak_rate(study, Cell("swift_v1", "w6", 4, 24), output) == pytest.approx(2e-2)
    muon = small_study(optimiser="muon")
    assert peak_rate(muon, Cell("swift_v1", "w24", 4, 24), output) == pytest.approx(1e-2 / 2**0.5)


def test_a_rate_of_former_settings_is_no_rate_of_these(tmp_path):
    output = tmp_path / "lr.json"
    choose_learning_rate(small_study(), "swift_v2", [], output)
    with pytest.raises(InputError, match=r"lr.json: rate: found 0.01, of former settings.*0.02, as there is no sweep"):
        peak_rate(small_study(learning_rate=0.02), Cell("swift_v2", "w6", 4, 24), output)


def test_without_a_sweep_the_configured_rate_holds_and_a_failed_one_is_refused(tmp_path):
    study, output = small_study(learning_rate=0.004), tmp_path / "lr.json"
    choose_learning_rate(study, "swift_v2", [], output)
    chosen = json.loads(output.read_text())
    assert (chosen["rate"], chosen["rates"]) == (0.004, [])
    assert "empty" in chosen["decided_by"]
    with pytest.raises(InputError, match=r"0.1: diverged.*Add lower rates"):
        choose_learning_rate(study, "swift_v2", sweep(tmp_path, {0.1: ("diverged", None)}), output)
