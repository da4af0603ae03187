"""Readers that learn from labels with a gradient: what they find where it was planted, and what they never look at."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from planted_connectomes import PARCELS, connectomes
from small_cohort import CONTRACT
from tiny_models import TINY
from torch import Tensor

from pipeline.artefact import sha256_file
from pipeline.config import Supervised as Settings
from pipeline.errors import InputError
from pipeline.evaluate.features import encode_runs
from pipeline.evaluate.reading import Reader
from pipeline.evaluate.splits import TEST, TRAIN, VALIDATION
from pipeline.evaluate.statistics import auroc
from pipeline.evaluate.supervised.attentive import attentive_reader, encode_tokens, pool_places, spread, stack_tokens
from pipeline.evaluate.supervised.fine_tune import fine_tune_reader
from pipeline.evaluate.supervised.fit import network_reader, steps_of
from pipeline.evaluate.supervised.inputs import Arrays, Scans
from pipeline.evaluate.supervised.networks import (
    clip_arguments,
    clip_reader,
    connectome_arguments,
    connectome_reader,
    square,
)
from pipeline.models import build
from pipeline.models.learners.supervised import Supervised
from pipeline.models.parts.voxels import Raster
from pipeline.pretrain.engine.checkpoint import load_cell, save_model
from pipeline.pretrain.objectives import build_learner
from pipeline.pretrain.objectives.batch import Batch
from pipeline.pretrain.objectives.supervised import SupervisedObjective

SMALL = {
    "brainnetcnn": {"edges": (4, 8), "graph": 32, "dense": (16, 8)},
    "braingnn": {"communities": 3, "width": 8, "dense": 16},
    "brainnettf": {"hidden": 16, "clusters": 8, "reduced": 4, "dense": (16, 8)},
}
CNN = SMALL["brainnetcnn"]
QUICK = Settings(learning_rates=(1e-2,), epochs=8, patience=4)
ONE = Settings(learning_rates=(3e-3,), epochs=4, patience=4)
NOTHING_LEARNT = Settings(learning_rates=(1e-12,), epochs=1)


def parts(people: int, seed: int = 0) -> np.ndarray:
    """A fifth is tested, a fifth validates."""
    return np.random.default_rng(seed).permutation(np.array([TEST, VALIDATION, TRAIN, TRAIN, TRAIN] * (people // 5)))


def planted(people: int = 150, effect: float = 0.5, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Connectomes, labels, parts."""
    matrix_MRR, label_M = connectomes(seed, people, effect)
    return matrix_MRR.numpy(), label_M.numpy().astype(float), parts(people, seed)


def area(reader: Reader, label_M: np.ndarray, part_M: np.ndarray) -> float:
    score_M = reader(label_M, part_M).score_M
    return auroc(label_M[part_M == TEST], score_M[part_M == TEST])


@dataclass
class Recorded:
    """Inputs that remember how many people were drawn."""

    inner: Arrays
    at_once: int | None = None
    drawn_people: list[int] = field(default_factory=list)

    def drawn(self, people_B: np.ndarray, draw: np.random.Generator) -> Tensor:
        self.drawn_people += people_B.tolist()
        return self.inner.drawn(people_B, draw)

    def whole(self, people_B: np.ndarray) -> Iterator[tuple[np.ndarray, Tensor]]:
        return self.inner.whole(people_B)


def small_cnn(_: np.ndarray) -> Supervised:
    return Supervised(build("brainnetcnn", {"parcels": PARCELS, **CNN}))


# --- what is learnt ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", list(SMALL))
def test_every_network_finds_what_was_planted_in_connectomes(name):
    matrix_MRR, label_M, part_M = planted()
    reader = connectome_reader(name, SMALL[name], matrix_MRR, QUICK, "classes", "key")
    assert area(reader, label_M, part_M) > 0.8


def test_labels_of_nothing_are_not_found():
    found = []
    for seed in range(8):
        matrix_MRR, label_M, part_M = planted(effect=0.0, seed=seed)
        reader = connectome_reader("braingnn", SMALL["braingnn"], matrix_MRR, ONE, "classes", "key")
        found.append(area(reader, label_M, part_M))
    assert abs(np.mean(found) - 0.5) < 0.15, "the mean of eight has a standard deviation of .04"


def test_a_number_is_predicted_in_its_own_unit():
    matrix_MRR, label_M, part_M = planted()
    age_M = 40 + 10 * label_M
    read = connectome_reader("brainnetcnn", CNN, matrix_MRR, QUICK, "number", "key")
    score_M = read(age_M, part_M).score_M
    test = part_M == TEST
    assert np.corrcoef(score_M[test], age_M[test])[0, 1] > 0.6
    assert 41 < score_M[test].mean() < 49
    assert np.allclose(read(3 * age_M - 7, part_M).score_M, 3 * score_M - 7, atol=1e-3), "z-scored in training"


def test_logits_are_those_at_equal_prevalence():
    """Of features that tell nothing, with four times as many positive people: log odds would be 1.4."""
    rng = np.random.default_rng(0)
    label_M, part_M = (rng.random(400) < 0.8).astype(float), parts(400)
    reader = attentive_reader(rng.normal(size=(400, 1, 2)).astype(np.float32), QUICK, "classes", "key")
    assert abs(reader(label_M, part_M).score_M.mean()) < 0.35


def test_class_weights_weigh_each_error():
    torch.manual_seed(0)
    model = Supervised(build("brainnetcnn", {"parcels": PARCELS, **CNN, "dropout": 0.0}))
    clip, _ = connectomes(0, 4)
    target = [1.0, math.nan, 0.0, 1.0]
    logits = model(clip)[:, 0].tolist()
    costs = [3.0 * math.log1p(math.exp(-logits[0])), 0.5 * math.log1p(math.exp(logits[2]))]
    costs.append(3.0 * math.log1p(math.exp(-logits[3])))
    batch = Batch(clip, [np.random.default_rng(0)], target=torch.tensor(target))
    found = SupervisedObjective(model, class_weights=(0.5, 3.0)).loss(batch)
    assert found.item() == pytest.approx(sum(costs) / 3, rel=1e-5)


# --- what decides --------------------------------------------------------------------------------------------------


def test_labels_of_the_test_part_are_never_used():
    matrix_MRR, label_M, part_M = planted(100)
    read = connectome_reader("brainnetcnn", CNN, matrix_MRR, ONE, "classes", "key")
    first = read(label_M, part_M)
    for other in (1 - label_M, np.full(len(label_M), np.nan)):
        changed_M = np.where(part_M == TEST, other, label_M)
        assert np.array_equal(read(changed_M, part_M).score_M, first.score_M)


def test_the_validation_part_chooses_and_stops_but_does_not_teach():
    matrix_MRR, label_M, part_M = planted(100)
    inputs = Recorded(Arrays(matrix_MRR))
    reading = network_reader(small_cnn, inputs, ONE, "classes", "key")(label_M, part_M)
    assert {*inputs.drawn_people} == {*np.flatnonzero(part_M == TRAIN).tolist()}
    assert np.array_equal(np.isfinite(reading.inner_M), part_M == VALIDATION)
    assert np.array_equal(reading.inner_M[part_M == VALIDATION], reading.score_M[part_M == VALIDATION])


def test_the_same_key_gives_the_same_bits_and_leaves_torchs_generator_alone():
    matrix_MRR, label_M, part_M = planted(100)
    scores = []
    for seed, key in ((1, "key"), (2, "key"), (1, "other")):
        torch.manual_seed(seed)
        expected = torch.rand(3, generator=torch.Generator().manual_seed(seed))
        upstream = {**CNN, "variant": "upstream"}  # it drops when it is applied, too
        reader = connectome_reader("brainnetcnn", upstream, matrix_MRR, ONE, "classes", key)
        scores.append(reader(label_M, part_M).score_M)
        assert torch.equal(torch.rand(3), expected)
    assert np.array_equal(scores[0], scores[1])
    assert not np.array_equal(scores[0], scores[2])


def test_training_stops_by_the_validation_loss_and_the_best_pass_stays():
    matrix_MRR, label_M, part_M = planted(100, effect=0.0)
    long = Settings(learning_rates=(1e-2,), epochs=30, patience=3)
    inputs = Recorded(Arrays(matrix_MRR))
    reading = network_reader(small_cnn, inputs, long, "classes", "key")(label_M, part_M)
    best, passes = int(reading.chosen.split()[-1]), len(inputs.drawn_people) / (part_M == TRAIN).sum()
    assert reading.chosen == f"learning rate 0.01, epoch {best}"
    assert passes == best + 3 < 30
    short = long.model_copy(update={"epochs": best})
    again = network_reader(small_cnn, Arrays(matrix_MRR), short, "classes", "key")(label_M, part_M)
    assert np.array_equal(again.score_M, reading.score_M), "what ends at its best pass has the weights of that pass"


def test_the_rate_with_the_least_validation_loss_is_taken():
    label_M, part_M = np.arange(100) % 2.0, parts(100)
    tokens_MLD = np.random.default_rng(0).normal(size=(100, 1, 2)) + label_M[:, None, None]
    for rates in ((1e-9, 0.03), (0.03, 1e-9), (1e9, 0.03)):
        settings = Settings(learning_rates=rates, epochs=6)
        chosen = attentive_reader(tokens_MLD.astype(np.float32), settings, "classes", "key")(label_M, part_M).chosen
        assert chosen.startswith("learning rate 0.03,")


def test_without_a_validation_part_the_middle_rate_runs_all_passes():
    matrix_MRR, label_M, _ = planted(60)
    few_M = np.full(60, TEST)
    few_M[:10] = TRAIN  # five of each class
    kin_M = np.where(np.arange(60) == 20, VALIDATION, few_M)  # one person cannot judge
    for part_M in (few_M, kin_M):
        settings = Settings(learning_rates=(1e-2, 1e-4, 1e-3), epochs=5, patience=1)
        reading = connectome_reader("brainnetcnn", CNN, matrix_MRR, settings, "classes", "key")(label_M, part_M)
        assert reading.chosen == "learning rate 0.001, epoch 5"
        assert np.isfinite(reading.score_M).all()
    one_M = np.where(np.arange(60) < 2, TRAIN, TEST)
    for name, small in SMALL.items():
        assert np.isfinite(
            connectome_reader(name, small, matrix_MRR, ONE, "classes", "key")(label_M, one_M).score_M
        ).all()


def test_training_that_blows_up_leaves_a_gap():
    matrix_MRR, label_M, part_M = planted(60)

    def blown_up(_: np.ndarray) -> Supervised:
        learner = small_cnn(_)
        torch.nn.init.constant_(learner.head.bias, math.inf)
        return learner

    for part in (part_M, np.where(part_M == VALIDATION, TEST, part_M)):
        reading = network_reader(blown_up, Arrays(matrix_MRR), ONE, "classes", "key")(label_M, part)
        assert np.isnan(reading.score_M).all()
        assert np.isnan(reading.inner_M).all()
        assert reading.chosen == "no candidate stayed finite"


@given(people=st.integers(2, 200), batch=st.integers(1, 40))
def test_no_step_has_a_single_person(people, batch):
    steps = steps_of(np.arange(people), batch)
    assert np.array_equal(np.concatenate(steps), np.arange(people))
    assert min(map(len, steps)) >= 2
    assert max(map(len, steps)) <= max(batch, 3)


def test_gradients_of_a_step_in_pieces_are_those_of_the_whole():
    matrix_MRR, label_M, part_M = planted(60)
    settings = ONE.model_copy(update={"batch_people": 12})

    def build_plain(_: np.ndarray) -> Supervised:
        return Supervised(build("brainnetcnn", {"parcels": PARCELS, **CNN, "dropout": 0.0}))

    whole, pieces = (
        network_reader(build_plain, Arrays(matrix_MRR, at_once=at_once), settings, "classes", "key")(label_M, part_M)
        for at_once in (None, 5)
    )
    assert np.allclose(whole.score_M, pieces.score_M, atol=1e-4)


# --- networks on connectomes ---------------------------------------------------------------------------------------


def test_arguments_follow_from_the_data():
    heads = {R: connectome_arguments("brainnettf", {}, R)["heads"] for R in (200, 90, 35, 11)}
    assert heads == {200: 4, 90: 3, 35: 1, 11: 1}
    assert connectome_arguments("brainnettf", {}, 60)["clusters"] == 60
    asked = connectome_arguments("brainnettf", {"heads": 2, "clusters": 5, "mixup": 0}, 60)
    assert (asked["heads"], asked["clusters"], asked["mixup"]) == (2, 5, 0)
    assert connectome_arguments("brainnetcnn", {"edges": (2,)}, 30) == {"parcels": 30, "edges": (2,), "mixup": 0.0}


def test_squares_are_correlations_again():
    series_MTP = np.random.default_rng(0).normal(size=(3, 50, 7))
    expected = np.stack([np.corrcoef(series_TP.T) for series_TP in series_MTP])
    i, j = np.triu_indices(7, 1)
    assert np.allclose(square(np.arctanh(expected[:, i, j])), expected, atol=1e-6)
    assert np.allclose(square(expected[:, i, j], fisher=False), expected, atol=1e-6)
    with pytest.raises(ValueError, match="20 edges"):
        square(np.zeros((2, 20)))


def test_what_does_not_fit_is_named():
    matrix_MRR, label_M, part_M = planted(20)

    def made(name: str = "brainnetcnn", arguments: dict | None = None, values: np.ndarray = matrix_MRR) -> Reader:
        return connectome_reader(name, arguments or {}, values, ONE, "classes", "key")

    with pytest.raises(InputError, match=r"'tff': found input voxels; expected connectome"):
        made("tff")
    with pytest.raises(InputError, match=r"parcels: found 13; expected 12, as the data have"):
        made(arguments={"parcels": 13})
    with pytest.raises(InputError, match=r"'edgse'.*Did you mean 'edges'"):
        made(arguments={"edgse": (2, 2)})
    with pytest.raises(InputError, match=r"5 heads do not divide 12"):
        made("brainnettf", {"heads": 5, "clusters": 4})
    with pytest.raises(InputError, match=r"1 people with edges that are not finite, first row 2"):
        made(values=np.where(np.arange(20)[:, None, None] == 2, np.nan, matrix_MRR))
    with pytest.raises(InputError, match=r"shape \(20, 144\)"):
        made(values=matrix_MRR.reshape(20, -1))
    with pytest.raises(InputError, match=r"training part: found 0 positive and 12 negative people"):
        made(arguments=CNN)(np.zeros(20), part_M)
    with pytest.raises(InputError, match=r"training part: found 0 people"):
        made(arguments=CNN)(label_M, np.full(20, TEST))


# --- clips of scans ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Fake:
    """A scan in memory: frames (T, V)."""

    bold_TV: np.ndarray
    folder: Path = Path("fake")

    @property
    def frames(self) -> int:
        return len(self.bold_TV)

    def read(self, start: int = 0, stop: int | None = None) -> np.ndarray:
        return self.bold_TV[start:stop]


BOX = Raster((6, 6, 6), torch.arange(216))


def scans(people: int = 40, effect: float = 1.0, seed: int = 0) -> tuple[list[list[Fake]], np.ndarray]:
    """People with two runs of 24 and 9 frames; in one class a corner of the brain is up when the opposite one is."""
    rng, label_M = np.random.default_rng(seed), np.arange(people) % 2
    found = []
    for label in label_M:
        runs = []
        for frames in (24, 9):
            bold_TV = rng.normal(size=(frames, 216)).astype(np.float32)
            bold_TV[:, :30] += effect * (2 * label - 1)
            runs.append(Fake(bold_TV))
        found.append(runs)
    return found, label_M.astype(float)


def test_clips_are_drawn_of_long_scans_and_all_of_them_are_scored():
    found, _ = scans(4)
    for person, runs in enumerate(found):
        for run, scan in enumerate(runs):
            scan.bold_TV[:] = 100 * person + 10 * run + np.arange(scan.frames)[:, None] / 100
    inputs = Scans(found, BOX, context=8, at_once=2)
    whole = [
        (who, clip) for whose, clips in inputs.whole(np.array([2, 1])) for who, clip in zip(whose, clips, strict=True)
    ]
    assert [who for who, _ in whole] == [2, 2, 2, 2, 1, 1, 1, 1], "three clips of 24 frames and one of 9"
    first = [round(float(clip[0, 0, 0, 0, 0]), 2) for _, clip in whole[:4]]
    assert first == [200.0, 200.08, 200.16, 210.0]
    starts = {
        round(float(inputs.drawn(np.array([3]), np.random.default_rng(seed))[0, 0, 0, 0, 0, 0]), 2)
        for seed in range(200)
    }
    assert starts == {round(300 + at / 100, 2) for at in range(17)} | {310.0, 310.01}
    long = Scans(found, BOX, context=10)
    assert len([*long.whole(np.array([0]))]) == 1, "the run of nine frames is left out"
    with pytest.raises(InputError, match="fake: found 24 frames; expected at least one clip of 30"):
        Scans(found, BOX, context=30)


def test_scans_are_kept_as_long_as_they_fit():
    found, _ = scans(3)
    one = 4 * 24 * 216
    drawn = []
    for keep_bytes, kept in ((0, 0), (2 * one, 2), (1 << 20, 3)):
        inputs = Scans([[runs[0]] for runs in found], BOX, 8, keep_bytes=keep_bytes)
        drawn.append([inputs.drawn(np.arange(3), np.random.default_rng(seed)) for seed in range(4)])
        assert len(inputs._kept) == kept
    assert all(torch.equal(*pair) for other in drawn[1:] for pair in zip(drawn[0], other, strict=True))


def test_a_shortened_scan_is_scored_by_itself():
    found, _ = scans(2)
    inputs = Scans(found, BOX, context=6, limit=12)
    clips = torch.cat([clips for _, clips in inputs.whole(np.array([0]))])
    box_TV = clips[:2, 0].flatten(1, 3).permute(0, 2, 1).flatten(0, 1)  # the two clips of the first twelve frames
    assert box_TV.mean(0).abs().max() < 1e-5
    assert torch.allclose(box_TV.std(0, correction=0), torch.ones(216), atol=1e-4)


@pytest.mark.parametrize("name", ["tff", "brainmt"])
def test_networks_of_voxels_learn_from_labels_alone(name):
    found, label_M = scans()
    settings = Settings(learning_rates=(1e-2,), epochs=4, batch_people=8)
    arguments = {key: value for key, value in TINY[name].items() if key not in ("grid", "volume", "context_frames")}
    reader = clip_reader(name, arguments, found, BOX, 8, settings, "classes", "key")
    assert area(reader, label_M, parts(40)) > 0.8


def test_shapes_of_networks_on_clips_follow_from_the_raster():
    assert clip_arguments("brainmt", {}, Raster((97, 112, 96), torch.arange(3)), 40)["grid"] == [7, 7, 6]
    assert clip_arguments("swift_v1", {"size": "e24"}, Raster((96, 96, 96), torch.arange(3)), 20)["grid"] == [
        16,
        16,
        16,
    ]
    assert clip_arguments("brainlm", {}, Raster((90,), torch.arange(90), channel=False), 40)["parcels"] == 90
    with pytest.raises(InputError, match="expected clips of scans"):
        clip_arguments("brainnetcnn", {}, BOX, 20)


# --- fine-tuning ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("cell")
    spec = {"width": 6, "depths": [1], "heads": [1], "grid": [2, 2, 2], "patch": [3, 3, 3, 1], "context_frames": 8}
    torch.manual_seed(7)
    learner = build_learner("swift_v1", spec)
    save_model(folder / "encoder.safetensors", learner, {"model": "swift_v1", "spec": spec, "contract": CONTRACT})
    return folder


def unexplained(score_M: np.ndarray, features_MD: np.ndarray) -> float:
    """Share of the scores' variance that no linear map of the features gives."""
    design = np.column_stack([features_MD, np.ones(len(score_M))])
    residual_M = score_M - design @ np.linalg.lstsq(design, score_M, rcond=None)[0]
    return float(residual_M.var() / score_M.var())


def test_fine_tuning_starts_from_the_pretrained_weights_and_moves_them_all(pretrained):
    found, label_M = scans(30, effect=0.3)
    model, _ = load_cell(pretrained)
    single = [[runs[0]] for runs in found]
    features_MD = np.array(
        [clips_KD.mean(0) for clips_KD in encode_runs(model.encoder, [runs[0] for runs in found], BOX, 8)]
    )
    before = sha256_file(pretrained / "encoder.safetensors")

    def read(settings: Settings) -> np.ndarray:
        reader = fine_tune_reader(pretrained, single, BOX, 8, settings, "classes", "key")
        return reader(label_M, parts(30)).score_M

    assert unexplained(read(NOTHING_LEARNT), features_MD) < 1e-6, "the head alone is new"
    assert unexplained(read(Settings(learning_rates=(1e-2,), epochs=3)), features_MD) > 1e-4
    assert sha256_file(pretrained / "encoder.safetensors") == before


def test_fine_tuning_learns(pretrained):
    found, label_M = scans()
    settings = Settings(learning_rates=(1e-2,), epochs=5, batch_people=8)
    assert area(fine_tune_reader(pretrained, found, BOX, 8, settings, "classes", "key"), label_M, parts(40)) > 0.8


# --- attentive pooling ---------------------------------------------------------------------------------------------


def hidden_in_one_token(people: int = 300, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Channel 1 of a token that channel 0 marks tells the class; another token takes it back, so means tell nothing."""
    rng, label_M = np.random.default_rng(seed), np.arange(people) % 2
    tokens_MLD = rng.normal(0, 0.3, (people, 6, 4)).astype(np.float32)
    sign_M = 2 * label_M - 1
    for person in range(people):
        marked, other = rng.permutation(6)[:2]
        tokens_MLD[person, marked, 0] += 3
        tokens_MLD[person, marked, 1] += 2 * sign_M[person]
        tokens_MLD[person, other, 1] -= 2 * sign_M[person]
    return tokens_MLD, label_M.astype(float)


def test_attention_finds_a_token_that_the_mean_does_not_show():
    tokens_MLD, label_M = hidden_in_one_token()
    settings = Settings(learning_rates=(3e-2,), epochs=20, patience=20)
    by_attention = attentive_reader(tokens_MLD, settings, "classes", "key")
    by_mean = attentive_reader(tokens_MLD.mean(1, keepdims=True), settings, "classes", "key")
    assert area(by_mean, label_M, parts(300)) < 0.7
    assert area(by_attention, label_M, parts(300)) > 0.9


def test_tokens_that_are_not_there_change_nothing():
    tokens_MLD, label_M = hidden_in_one_token(60)
    padded = np.pad(tokens_MLD, ((0, 0), (0, 3), (0, 0)), constant_values=np.nan)
    plain, more = (
        attentive_reader(each, ONE, "classes", "key")(label_M, parts(60)).score_M for each in (tokens_MLD, padded)
    )
    assert np.allclose(plain, more, atol=1e-5)
    gone = tokens_MLD.copy()
    gone[7] = np.nan
    reading = attentive_reader(gone, ONE, "classes", "key")(label_M, parts(60))
    assert np.isnan(reading.score_M).all()
    assert reading.chosen == "features are not finite"


def test_tokens_are_standardised_by_the_training_people_alone():
    tokens_MLD = np.random.default_rng(0).normal(5, 3, (40, 6, 3)).astype(np.float32)
    tokens_MLD[:, :, 2] = 4.0
    tokens_MLD[3, 4:] = np.nan
    train_M = np.arange(40) < 30
    mean_D, scale_D = spread(np.where(train_M[:, None, None], tokens_MLD, 1e6).astype(np.float32), train_M)
    rows = tokens_MLD[train_M].reshape(-1, 3)
    rows = rows[np.isfinite(rows).all(1)].astype(float)
    assert np.allclose(mean_D, rows.mean(0), rtol=1e-5)
    assert np.allclose(scale_D, [*rows.std(0)[:2], 1.0], rtol=1e-5)


def test_places_are_means_over_neighbours():
    features = torch.randn(2, 3, 4, 6, 5, 7)
    pooled = pool_places(features, 30)  # 4 x 6 x 5 to 4 x 3 x 5, then to 4 x 3 x 3, then to 2 x 3 x 3
    assert pooled.shape == (2, 18, 3)
    still = features.mean(-1)
    corner = still[:, :, :2, :2, :2].mean((2, 3, 4))
    assert torch.allclose(pooled[:, 0], corner, atol=1e-6)
    assert torch.allclose(pooled[:, -1], still[:, :, 2:, 4:, 4:].mean((2, 3, 4)), atol=1e-6), "the odd one stays alone"
    assert pool_places(torch.randn(2, 3), 5).shape == (2, 1, 3)


def test_tokens_of_a_run_have_the_mean_that_the_probe_reads(pretrained):
    found, _ = scans(3)
    model, _ = load_cell(pretrained)
    runs = [scan for person in found for scan in person]
    means = [clips_KD.mean(0) for clips_KD in encode_runs(model.encoder, runs, BOX, 8)]
    tokens = [encode_tokens(model.encoder, scan, BOX, 8, places=4, times=3) for scan in runs]
    assert [each.shape for each in tokens] == [(12, 6), (4, 6)] * 3
    assert np.allclose([each.mean(0) for each in tokens], means, atol=1e-5)
    stacked = stack_tokens(tokens, np.array([0, 0, 1, 1, 2, 2]))
    assert stacked.shape == (3, 16, 6)
    assert np.array_equal(stacked[1, :12], tokens[2])
    alone = stack_tokens(tokens, np.array([0, 1, 2, 3, 4, 5]))
    assert np.isnan(alone[1, 4:]).all()
    with pytest.raises(InputError, match="fake: found 9 frames"):
        encode_tokens(model.encoder, runs[1], BOX, 10)
