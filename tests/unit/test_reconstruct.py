"""Reconstruction of whole runs, by models whose answer is known, and the stage around it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import signal
from small_cohort import DEMO, small_template

from pipeline.artefact import read_table, write_json
from pipeline.bold.noise import fgn_spectrum, fractional_gaussian_noise
from pipeline.bold.shards import voxel_geometry, write_shard
from pipeline.bold.template import save_template
from pipeline.config import load_study
from pipeline.errors import InputError
from pipeline.evaluate.cohort import hidden_name
from pipeline.grid import Cell
from pipeline.pretrain.engine.checkpoint import save_model
from pipeline.pretrain.objectives import build_learner
from pipeline.spectral import spectral_slope
from pipeline.spectral.reconstruct import (
    Tiling,
    clip_starts,
    comb_frequencies,
    complementary_masks,
    features_along_time,
    reconstruct_run,
    voxelwise_r2,
)
from pipeline.spectral.stage import analyse_cell, analyse_raw

VOXELS, CONTEXT, TR_S = 60, 20, 1.5
PLACE_V = np.arange(VOXELS) // 10 + 1  # place 0 and place 7 hold no brain


def tiling(**changes):
    return Tiling(**{"place_V": PLACE_V, "places": 8, "context_frames": CONTEXT, **changes})


def run_TV(frames, seed=0):
    bold_TV = fractional_gaussian_noise(frames, 0.8, np.random.default_rng(seed), VOXELS)
    return ((bold_TV - bold_TV.mean(axis=0)) / bold_TV.std(axis=0)).astype(np.float32)


def hidden_voxels(hidden_BNt, patch_frames=1):
    return np.repeat(hidden_BNt, patch_frames, axis=2)[:, PLACE_V].transpose(0, 2, 1)


@settings(max_examples=40, deadline=None)
@given(
    ratio=st.sampled_from([0.25, 0.3, 0.5, 0.6, 0.75]),
    mask=st.sampled_from(["random", "tube"]),
    patch_frames=st.sampled_from([1, 2, 4]),
    seed=st.integers(0, 99),
)
def test_masks_take_each_token_of_the_brain_once_and_hide_as_much_as_training(ratio, mask, patch_frames, seed):
    hidden_KNt, taken_KNt = complementary_masks(
        tiling(mask_ratio=ratio, mask=mask, patch_frames=patch_frames), np.random.default_rng(seed)
    )
    brain = np.unique(PLACE_V)
    assert (taken_KNt[:, brain].sum(axis=0) == 1).all()
    assert not (taken_KNt & ~hidden_KNt).any()  # nothing is taken that the model could see
    assert not hidden_KNt[:, [0, 7]].any()
    units = len(brain) * (1 if mask == "tube" else CONTEXT // patch_frames)
    assert np.abs(hidden_KNt[:, brain].mean(axis=(1, 2)) - ratio).max() <= 1 / units
    if mask == "tube":
        assert (hidden_KNt == hidden_KNt[..., :1]).all()


@settings(max_examples=40, deadline=None)
@given(frames=st.integers(CONTEXT, 170), offsets=st.integers(1, 4))
def test_clips_cover_every_frame_in_every_pass(frames, offsets):
    starts = clip_starts(frames, tiling(offsets=offsets))
    covered = np.zeros(frames, dtype=int)
    for start in starts:
        assert 0 <= start <= frames - CONTEXT
        covered[start : start + CONTEXT] += 1
    assert covered.min() >= offsets


@pytest.mark.parametrize(("frames", "patch_frames", "mask"), [(160, 1, "random"), (173, 2, "tube"), (20, 4, "random")])
def test_a_model_that_knows_the_answer_gives_the_run_back(frames, patch_frames, mask):
    truth_TV, calls = run_TV(frames), []

    def oracle(clips_BCV, hidden_BNt):
        calls.append(len(clips_BCV))
        return np.where(hidden_voxels(hidden_BNt, patch_frames), clips_BCV, np.nan)  # NaN where it was visible

    made_TV = reconstruct_run(truth_TV, oracle, tiling(patch_frames=patch_frames, mask=mask))
    np.testing.assert_allclose(made_TV, truth_TV, atol=1e-5)
    np.testing.assert_allclose(voxelwise_r2(truth_TV, made_TV), 1, atol=1e-6)
    assert sum(calls) == 2 * len(clip_starts(frames, tiling()))
    if frames == 160:
        np.testing.assert_allclose(spectral_slope(made_TV, TR_S), spectral_slope(truth_TV, TR_S), atol=1e-3)


def test_r2_is_against_the_zero_predictor_and_nan_for_dead_voxels():
    truth_TV = run_TV(100)
    truth_TV[:, 3] = 0
    np.testing.assert_allclose(np.delete(voxelwise_r2(truth_TV, np.zeros_like(truth_TV)), 3), 0)
    np.testing.assert_allclose(np.delete(voxelwise_r2(truth_TV, 0.5 * truth_TV), 3), 0.75)
    assert np.isnan(voxelwise_r2(truth_TV, truth_TV)[3])


def test_masks_depend_on_the_seed_alone():
    def echo(clips_BCV, hidden_BNt):
        return clips_BCV + hidden_BNt.sum(axis=2)[:, None, PLACE_V]

    made = [reconstruct_run(run_TV(100), echo, tiling(), seed) for seed in (0, 0, 1)]
    np.testing.assert_array_equal(made[0], made[1])
    assert not np.array_equal(made[0], made[2])


def test_seams_leave_a_comb_where_it_is_predicted_and_offsets_thin_it_out():
    """A model that is wrong by the position in its clip, on a silent run: all its power is the comb's."""

    def ramp(clips_BCV, _):
        return clips_BCV + np.linspace(-1, 1, CONTEXT)[:, None] ** 3

    silent_TV = np.zeros((400, VOXELS), np.float32)
    for offsets in (1, 2, 4):
        made_TV = reconstruct_run(silent_TV, ramp, tiling(offsets=offsets))[40:-40]  # ends are closed by odd clips
        freqs_F, power_FV = signal.periodogram(made_TV, 1 / TR_S, axis=0)
        comb_hz = comb_frequencies(CONTEXT, TR_S, offsets)
        near_F = (np.abs(freqs_F[:, None] - comb_hz) < 1e-9).any(axis=1)
        assert power_FV[near_F].sum() > 0.999 * power_FV.sum()
    np.testing.assert_allclose(comb_frequencies(20, 1.5), np.arange(1, 11) / 30)
    np.testing.assert_allclose(comb_frequencies(20, 1.5, 2), np.arange(1, 6) / 15)


def test_features_keep_their_true_rate():
    wave_T = np.sin(2 * np.pi * 0.03 * TR_S * np.arange(160))
    bold_TV = np.repeat(wave_T[:, None], VOXELS, axis=1).astype(np.float32)
    for patch_frames in (1, 2):

        def means(clips_BCV, step=patch_frames):
            return clips_BCV.reshape(len(clips_BCV), -1, step, VOXELS).mean(axis=(2, 3))[..., None]

        features_TD = features_along_time(bold_TV, means, tiling(patch_frames=patch_frames))
        freqs_F, power_FD = signal.periodogram(features_TD[:, 0], 1 / (TR_S * patch_frames))
        assert freqs_F[power_FD.argmax()] == pytest.approx(0.03, abs=1 / 240)


# --- the stage -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Six simulated people with H 0.8 in two runs each, one "real" run, and an encoder with fresh weights."""
    root, template, rng = tmp_path_factory.mktemp("spectral"), small_template(), np.random.default_rng(0)
    changes = {"spectral": {"people": 4, "raw_people": 4}, "evaluate": {"bootstrap": 200}}
    study = load_study(DEMO, changes)
    save_template(template, root / "template")
    for dataset, subjects, frames in (("simulated", "abcdef", 160), ("rapidtide", "r", 260)):
        runs = []
        for subject in subjects:
            for session in ("1", "2") if dataset == "simulated" else ("1",):
                signal_TV = fractional_gaussian_noise(frames, 0.8, rng, template.voxels)
                runs.append(shard(root, template, dataset, subject, session, signal_TV))
        write_json(root / f"{dataset}.json", {"runs": runs})
    write_json(root / "evaluation_set.json", {"people": {"simulated": list("abcdef")}, "hash": ""})
    architecture = study.architectures["swift_v1"]
    spec = {**architecture.sizes["w6"], "grid": [2, 2, 2], "patch": [3, 3, 3, 1], "context_frames": 20}
    contract = {"template": template.key, "space": template.space, "normalisation": "voxel-z", "tr_s": TR_S}
    metadata = {"model": "swift_v1", "spec": {**spec, "depths": [1], "heads": [1]}, "contract": contract}
    save_model(root / "cell/encoder.safetensors", build_learner("swift_v1", metadata["spec"]), metadata)
    write_json(root / "cell/summary.json", {"status": "completed"})
    return study, root


def shard(root: Path, template, dataset, subject, session, signal_TV, **contract):
    named = {"dataset": dataset, "subject": subject, "session": session, "run": "1"}
    whole = {**named, "tr_s": TR_S, "denoising": "none", **contract}
    folder = root / dataset / f"{subject}-{session}{'-odd' * bool(contract)}"
    return {
        **named,
        **write_shard(folder, (1000 + 10 * signal_TV).astype(np.float32), whole, geometry=voxel_geometry(template)),
    }


def paths(root, name, manifests=("simulated", "rapidtide")):
    return {
        "template_folder": root / "template",
        "manifests": {dataset: root / f"{dataset}.json" for dataset in manifests},
        "evaluation_set": root / "evaluation_set.json",
        "spectral_out": root / name / "spectral.parquet",
        "spectra_out": root / name / "spectra.parquet",
    }


def value(table, **where):
    for column, wanted in where.items():
        table = table[table[column] == wanted]
    assert len(table) == 1
    return table.iloc[0]


def slope_of_known_noise(frames):
    """Over the frequencies that a measured slope has: above three Rayleigh widths, where the tapers miss the mean."""
    freqs_F = np.arange(4, frames) / (frames * TR_S)
    freqs_F = freqs_F[freqs_F <= 0.1]
    return -np.polyfit(np.log(freqs_F), np.log(fgn_spectrum(freqs_F, 0.8, TR_S)), 1)[0]


def test_raw_signals_have_what_was_planted_and_controls_what_they_must(data):
    study, root = data
    analyse_raw(study, **paths(root, "raw"))
    table = read_table(root / "raw/spectral.parquet")
    for dataset, people in (("simulated", 4), ("rapidtide", 1)):
        of = {"dataset": dataset, "split": "all"}
        raw = value(table, system="raw", metric="beta", **of)
        assert raw["n"] == people
        assert raw["value"] == pytest.approx(0.63, abs=0.12)
        assert raw["low"] < raw["value"] < raw["high"]
        assert raw["simulated"] == (dataset == "simulated")
        assert value(table, system="raw", metric="hurst", **of)["value"] == pytest.approx(0.8, abs=0.03)
        randomised = value(table, system="phase_randomised", metric="beta", **of)["value"]
        assert randomised == pytest.approx(raw["value"], abs=0.06)
        for control in ("time_shuffled", "white_noise"):
            assert value(table, system=control, metric="beta", **of)["value"] == pytest.approx(0, abs=0.12)
            assert value(table, system=control, metric="hurst", **of)["value"] == pytest.approx(0.5, abs=0.03)
        known = value(table, system="known_slope", metric="beta", **of)["value"]
        planted = value(table, system="known_slope", metric="beta_planted", **of)["value"]
        assert known == pytest.approx(planted, abs=0.08)
        assert planted == pytest.approx(slope_of_known_noise(160 if dataset == "simulated" else 260), abs=1e-6)
        assert value(table, system="raw", metric="tsnr", **of)["value"] == pytest.approx(100, rel=0.1)
    people = {f"person-{hidden_name(study, 'simulated', subject)}" for subject in "abcd"}
    rows = table[(table["dataset"] == "simulated") & (table["split"] != "all")]
    assert set(rows["split"]) == people
    assert not any(f"sub-{subject}" in text for subject in "abcdef" for text in rows["split"])

    spectra = read_table(root / "raw/spectra.parquet")
    raw = spectra[(spectra["system"] == "raw") & (spectra["dataset"] == "simulated")]
    assert (raw["low"] <= raw["power"]).all()
    assert (raw["power"] <= raw["high"]).all()
    assert raw["power"].sum() * raw["frequency_hz"].iloc[0] == pytest.approx(1, rel=0.05)  # z units


def test_a_cell_is_compared_with_its_own_runs(data):
    study, root = data
    cell = Cell("swift_v1", "w6", 32, 160)
    analyse_cell(study, cell, root / "cell", **paths(root, "out"))
    table = read_table(root / "out/spectral.parquet")
    assert set(table["system"]) == {"swift_v1"}
    for dataset in ("simulated", "rapidtide"):
        for metric in ("beta", "hurst"):
            per_person = table[(table["dataset"] == dataset) & (table["split"] != "all")].set_index(["metric", "split"])
            values = per_person["value"].unstack("metric")
            np.testing.assert_allclose(values[f"{metric}_difference"], abs(values[metric] - values[f"{metric}_raw"]))
        r2 = value(table, dataset=dataset, metric="r2", split="all")["value"]
        assert -1 < r2 < 0.2  # fresh weights know nothing
    assert {"beta_constant_input", "beta_features"} <= set(table["metric"])
    spectra = read_table(root / "out/spectra.parquet")
    assert {"raw", "swift_v1", "constant_input", "features"} <= set(spectra["system"])

    first = read_table(root / "out/spectral.parquet")
    analyse_cell(study, cell, root / "cell", **paths(root, "again"))
    assert first.equals(read_table(root / "again/spectral.parquet"))


def test_weights_that_are_not_numbers_flow_through(data):
    study, root = data
    from pipeline.pretrain.engine.checkpoint import load_cell

    model, metadata = load_cell(root / "cell")
    for weight in model.parameters():
        weight.data.fill_(np.nan)
    save_model(root / "broken/encoder.safetensors", model, metadata)
    write_json(root / "broken/summary.json", {"status": "diverged"})
    analyse_cell(study, Cell("swift_v1", "w6", 32, 160), root / "broken", **paths(root, "nan", ["simulated"]))
    table = read_table(root / "nan/spectral.parquet")
    assert set(table["status"]) == {"diverged"}
    assert table.loc[table["metric"] == "beta", "value"].isna().all()
    assert table.loc[table["metric"] == "beta_raw", "value"].notna().all()


def test_other_data_than_the_model_s_are_refused_by_the_field(data):
    study, root = data
    template, noise_TV = (
        small_template(),
        fractional_gaussian_noise(160, 0.8, np.random.default_rng(5), small_template().voxels),
    )
    band = signal.butter(2, [0.01, 0.1], "band", fs=1 / TR_S, output="sos")
    cases = {
        "tr_s": (noise_TV, {"tr_s": 2.0}, r"contract\.tr_s: found 2\.0; expected 1\.5"),
        "flag": (noise_TV, {"denoising": "Bandpass 0.01-0.1"}, r"contract\.denoising: found 'Bandpass"),
        "filtered": (
            signal.sosfiltfilt(band, noise_TV, axis=0),
            {"denoising": "unknown"},
            "noise has; expected unfiltered",
        ),
        "short": (noise_TV[:100], {"dropped": 60}, "none of 1 runs of at least 200 s"),
    }
    for name, (signal_TV, contract, message) in cases.items():
        write_json(
            root / f"{name}.json", {"runs": [shard(root, template, "rapidtide", name, "1", signal_TV, **contract)]}
        )
        where = {**paths(root, "refused"), "manifests": {"rapidtide": root / f"{name}.json"}}
        with pytest.raises(InputError, match=message):
            analyse_cell(study, Cell("swift_v1", "w6", 32, 160), root / "cell", **where)
    assert not (root / "refused").exists()


def test_a_comb_that_leaves_no_band_is_refused_with_the_way_out(data):
    _, root = data
    study = load_study(DEMO, {"spectral": {"people": 1, "offsets": 1}})
    with pytest.raises(InputError, match=r"spectral\.band_hz: found 3 frequencies.*Raise spectral\.offsets"):
        analyse_cell(study, Cell("swift_v1", "w6", 32, 160), root / "cell", **paths(root, "comb", ["simulated"]))
