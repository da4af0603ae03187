"""Measures of a run against closed forms, simulated spectra and real data; and the words of a verdict."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import signal

from pipeline.bold.quality import (
    FILTERED_BELOW,
    LIMITS,
    Measures,
    Traces,
    Watch,
    high_frequency,
    judge,
    mean_spectrum,
    measure,
    side,
)
from pipeline.config import Quality

TR_S = 1.5
GOOD = Measures(
    frames=200,
    tr_s=1.5,
    seconds=300.0,
    zero_frames=0,
    coverage=0.95,
    constant_voxels=0.0,
    overlap=0.93,
    similarity=0.48,
    left_right="as it lies",
    tsnr=90.0,
    mean_fd_mm=0.12,
    max_fd_mm=0.4,
    moved=0.0,
    dvars_percent=1.2,
    max_dvars=1.5,
    high_frequency=0.6,
    filtered=False,
)


def run_of(frames: int = 60, columns: int = 40, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return (1000 + 20 * rng.standard_normal((frames, columns))).astype(np.float32)


def watched(bold_TV: np.ndarray, block: int = 16, tr_s: float = TR_S) -> tuple[Traces, np.ndarray, np.ndarray]:
    watch = Watch(bold_TV.shape[1], tr_s)
    for start in range(0, len(bold_TV), block):
        watch.update(bold_TV[start : start + block])
    mean_V, std_V = bold_TV.mean(axis=0, dtype=np.float64), bold_TV.std(axis=0, dtype=np.float64)
    std_V[np.ptp(bold_TV, axis=0) == 0] = 0
    return watch.traces(mean_V, std_V), mean_V, std_V


def measured(bold_TV: np.ndarray, **options: object) -> Measures:
    return measure(*watched(bold_TV), **options)


# --- one pass ------------------------------------------------------------------------------------------------------


def test_watching_changes_no_block() -> None:
    bold_TV = run_of()
    watch = Watch(40, TR_S)
    passed = list(watch([bold_TV[:16], bold_TV[16:17], bold_TV[17:]]))
    np.testing.assert_array_equal(np.concatenate(passed), bold_TV)
    assert watch.traces(bold_TV.mean(0), bold_TV.std(0)).frames == 60


@settings(deadline=None, max_examples=25)
@given(st.integers(1, 40), st.integers(2, 70), st.integers(0, 9))
def test_traces_do_not_depend_on_how_a_run_is_cut(block: int, frames: int, seed: int) -> None:
    bold_TV = run_of(frames, 7, seed)
    traces = watched(bold_TV, block)[0]
    change_T = np.sqrt((np.diff(bold_TV.astype(float), axis=0) ** 2).mean(axis=1))
    np.testing.assert_allclose(traces.dvars_T, [0, *change_T], rtol=1e-5)
    np.testing.assert_allclose(traces.global_T, bold_TV.mean(axis=1, dtype=float), rtol=1e-6)
    assert traces.frames == frames


def test_a_block_whose_memory_is_used_again_is_not_mistaken_for_the_frame_before() -> None:
    bold_TV, watch, memory = run_of(6, 5), Watch(5, TR_S), np.empty((2, 5), np.float32)
    for start in (0, 2, 4):
        memory[...] = bold_TV[start : start + 2]
        watch.update(memory)
    traces = watch.traces(bold_TV.mean(0), bold_TV.std(0))
    np.testing.assert_allclose(traces.dvars_T, watched(bold_TV)[0].dvars_T)
    np.testing.assert_array_equal(traces.sample_TS, bold_TV)


def test_columns_outside_the_field_of_view_change_no_trace() -> None:
    bold_TV = run_of()
    wider_TV = np.concatenate([np.zeros((60, 25), np.float32), bold_TV, np.full((60, 5), 300, np.float32)], axis=1)
    small, large = watched(bold_TV)[0], watched(wider_TV)[0]
    np.testing.assert_allclose(large.dvars_T, small.dvars_T, rtol=1e-6)
    np.testing.assert_allclose(large.global_T, small.global_T, rtol=1e-6)
    np.testing.assert_array_equal(large.sample_TS, small.sample_TS)
    np.testing.assert_array_equal(large.place_S, np.arange(25, 65))


def test_the_sample_of_a_large_run_is_a_thousand_columns_spread_evenly() -> None:
    place_S = watched(run_of(5, 30_000))[0].place_S
    assert len(place_S) == 1000
    assert place_S[0] == 0
    assert place_S[-1] == 29_999
    assert set(np.diff(place_S)) <= {29, 30, 31}


# --- measures ------------------------------------------------------------------------------------------------------


def test_dvars_of_white_noise_is_root_two_of_its_sd_in_percent_of_the_mean() -> None:
    found = measured(run_of(400, 2000))
    assert found.dvars_percent == pytest.approx(100 * np.sqrt(2) * 20 / 1000, rel=0.01)
    assert found.max_dvars == pytest.approx(1.0, abs=0.1)
    assert found.tsnr == pytest.approx(50, rel=0.02)


def test_a_jump_is_the_largest_dvars_over_the_median() -> None:
    bold_TV = run_of(101, 500)
    bold_TV[50:] += 200  # one change of 200 beside changes of 20 * sqrt(2)
    found = measured(bold_TV)
    assert found.max_dvars == pytest.approx(np.sqrt(200**2 + 2 * 20**2) / (20 * np.sqrt(2)), rel=0.02)


def test_a_run_without_its_mean_has_no_percent() -> None:
    found = measured(run_of() - 1000)
    assert found.dvars_percent is None
    assert found.max_dvars is not None


def test_a_single_frame_has_no_change() -> None:
    found = measured(run_of(1))
    assert (found.dvars_percent, found.max_dvars, found.high_frequency, found.filtered) == (None, None, None, None)


def test_empty_frames_and_dead_columns_are_counted() -> None:
    bold_TV = run_of()
    bold_TV[:, ::4] = 7
    bold_TV[[3, 9]] = 0
    bold_TV[:, ::4] = 0
    found = measured(bold_TV)
    assert found.zero_frames == 2
    assert found.coverage == pytest.approx(0.75)


def test_nothing_at_all_is_measured_without_a_fault() -> None:
    found = measured(np.zeros((80, 30), np.float32))
    assert (found.coverage, found.zero_frames, found.tsnr) == (0, 80, 0)
    assert (found.dvars_percent, found.max_dvars, found.high_frequency) == (None, None, None)
    json.dumps(found.plain(), allow_nan=False)


def test_displacement_is_summed_up() -> None:
    fd_mm_T = np.zeros(60)
    fd_mm_T[[5, 6, 7]] = [0.4, 0.6, 3.0]
    found = measured(run_of(), spike_mm=0.5, fd_mm_T=fd_mm_T)
    assert found.mean_fd_mm == pytest.approx(4 / 60)
    assert found.max_fd_mm == 3.0
    assert found.moved == pytest.approx(2 / 60)
    assert measured(run_of()).mean_fd_mm is None
    for wrong in (np.zeros(59), np.full(60, np.nan)):
        with pytest.raises(ValueError, match="of 60 frames"):
            measured(run_of(), fd_mm_T=wrong)


def test_measures_are_plain_json_and_come_back(tmp_path: Path) -> None:
    path = tmp_path / "quality.json"
    path.write_text(json.dumps(GOOD.plain(), allow_nan=False))
    assert Measures(**json.loads(path.read_text())) == GOOD


@pytest.mark.parametrize(
    ("as_is", "mirrored", "expected"),
    [(0.515, 0.357, "as it lies"), (0.357, 0.515, "mirrored"), (0.50, 0.49, "undecided"), (0.0, 0.0, "undecided")],
)
def test_sides_are_told_apart_by_a_margin(as_is: float, mirrored: float, expected: str) -> None:
    assert side({"as_is": as_is, "mirrored": mirrored, "against": "T1w"}) == expected


def test_without_an_own_t1w_nobody_knows_left_from_right() -> None:
    assert side(None) == "undecided"


# --- spectrum ------------------------------------------------------------------------------------------------------


def coloured(frames: int, tr_s: float, slope: float, white: float, seed: int = 0, columns: int = 300) -> np.ndarray:
    """Noise of power 1/f^slope with a share of white noise, unit variance, on a mean of 1,000."""
    rng, longer = np.random.default_rng(seed), 4 * frames
    frequency_F = np.fft.rfftfreq(longer, tr_s)
    frequency_F[0] = frequency_F[1]
    spectrum_FS = np.fft.rfft(rng.standard_normal((longer, columns)), axis=0) * frequency_F[:, None] ** (-slope / 2)
    noise_TS = np.fft.irfft(spectrum_FS, longer, axis=0)[:frames]
    noise_TS = noise_TS / noise_TS.std(axis=0)
    return 1000 + np.sqrt(1 - white) * noise_TS + np.sqrt(white) * rng.standard_normal((frames, columns))


def band_passed(bold_TS: np.ndarray, tr_s: float, order: int = 5) -> np.ndarray:
    sections = signal.butter(order, [0.01 * 2 * tr_s, 0.1 * 2 * tr_s], "band", output="sos")
    return signal.sosfiltfilt(sections, bold_TS - bold_TS.mean(axis=0), axis=0)


SCANS = [(0.72, 1200), (1.0, 400), (1.5, 160), (2.0, 150), (2.5, 120), (3.0, 100), (3.0, 40)]


@pytest.mark.parametrize(("tr_s", "frames"), SCANS)
@pytest.mark.parametrize(("slope", "white"), [(0.0, 0.0), (1.0, 0.3), (1.0, 0.0), (1.5, 0.1)])
def test_band_passed_noise_is_known_as_such_and_unfiltered_noise_is_not(
    tr_s: float, frames: int, slope: float, white: float
) -> None:
    bold_TS = coloured(frames, tr_s, slope, white)
    raw = high_frequency(bold_TS, tr_s)
    assert raw is not None
    assert raw > 1.3 * FILTERED_BELOW
    for order in (2, 5):
        passed = high_frequency(band_passed(bold_TS, tr_s, order), tr_s)
        assert passed is not None
        assert passed < 0.7 * FILTERED_BELOW


@pytest.mark.parametrize("tr_s", [0.72, 2.0, 3.0])
def test_white_noise_has_power_one_everywhere(tr_s: float) -> None:
    frequency_F, power_F = mean_spectrum(coloured(200, tr_s, 0, 0, columns=2000), tr_s)
    assert frequency_F[-1] == pytest.approx(0.5 / tr_s)
    inner = power_F[2:-2]  # the trend takes from the first
    np.testing.assert_allclose(inner, inner.mean(), rtol=0.15)
    assert high_frequency(coloured(200, tr_s, 0, 0, columns=2000), tr_s) == pytest.approx(1, abs=0.03)


def test_a_sine_stands_at_its_frequency() -> None:
    seconds_T1 = np.arange(300)[:, None] * 2.0
    wave_TS = 500 + np.sin(2 * np.pi * 0.04 * seconds_T1 + np.arange(10))
    frequency_F, power_F = mean_spectrum(wave_TS, 2.0)
    assert frequency_F[power_F.argmax()] == pytest.approx(0.04, abs=1 / 600)


@pytest.mark.parametrize(("tr_s", "frames"), [(1.5, 30), (5.0, 100), (1.5, 0)])
def test_what_cannot_be_told_is_none(tr_s: float, frames: int) -> None:
    assert high_frequency(np.random.default_rng(0).standard_normal((frames, 50)), tr_s) is None


def test_real_parcel_series_are_known_as_unfiltered_and_filtered_ones_as_filtered() -> None:
    root = os.environ.get("PIPELINE_REAL_DATA")
    if not root:
        pytest.skip("PIPELINE_REAL_DATA is not set: no ABIDE series")
    for site, tr_s in (("SBL", 2.2), ("MAX_MUN", 3.0), ("OLIN", 1.5)):
        with np.load(Path(root) / "abide_cc200" / f"{site}.npz") as stored:
            people = sorted({name.split("/")[0] for name in stored.files})
            for person in people:
                series_TR = stored[f"{person}/q"] * stored[f"{person}/step"] + stored[f"{person}/mean"].astype(float)
                raw, passed = high_frequency(series_TR, tr_s), high_frequency(band_passed(series_TR, tr_s), tr_s)
                assert raw is not None
                assert passed is not None
                assert passed < 0.5 * FILTERED_BELOW < 2 * FILTERED_BELOW < raw, person


def test_a_real_run_is_known_as_unfiltered_and_band_passed_as_filtered() -> None:
    root = os.environ.get("PIPELINE_REAL_DATA")
    if not root:
        pytest.skip("PIPELINE_REAL_DATA is not set: no studyforrest run")
    image = nib.load(next((Path(root) / "studyforrest_bids").glob("sub-*/func/*_bold.nii.gz")))
    bold_TN = np.asarray(image.dataobj).reshape(-1, image.shape[3]).T
    inside = np.flatnonzero(bold_TN[0] > np.percentile(bold_TN[0], 80))[::30]
    bold_TV = bold_TN[:, inside].astype(np.float32)
    assert measure(*watched(bold_TV, tr_s=2.0)).filtered is False
    passed_TV = band_passed(bold_TV.astype(float), 2.0) + bold_TV.mean(axis=0)
    assert measure(*watched(passed_TV.astype(np.float32), tr_s=2.0)).filtered is True


# --- verdict -------------------------------------------------------------------------------------------------------


def test_a_good_run_is_kept() -> None:
    assert judge(GOOD, Quality()) == []


@pytest.mark.parametrize(
    ("value", "threshold", "words"),
    [
        ({"mean_fd_mm": 0.812}, {"max_mean_fd_mm": 0.5}, "mean FD 0.812 mm, more than quality.max_mean_fd_mm = 0.5"),
        ({"overlap": 0.71}, {}, "overlap 0.71 with the template, less than quality.min_overlap = 0.8"),
        ({"coverage": 0.2}, {}, "coverage 0.2, less than quality.min_coverage = 0.5"),
        ({"similarity": 0.2}, {"min_similarity": 0.3}, "similarity 0.2 to the template, less than quality.min_sim"),
        ({"tsnr": 12.3}, {"min_tsnr": 20}, "tSNR 12.3, less than quality.min_tsnr = 20"),
        ({"moved": 0.4}, {"max_moved": 0.25}, "share of moved frames 0.4, more than quality.max_moved = 0.25"),
        ({"zero_frames": 3}, {}, "3 frames that are zero everywhere, more than quality.max_zero_frames = 0"),
        ({"left_right": "mirrored"}, {}, "left is right, by its own T1w; see quality.refuse_mirrored"),
        (
            {"filtered": True, "high_frequency": 0.012},
            {"refuse_filtered": True},
            "band-passed, 0.012 of the power of white noise above 0.1 Hz; see quality.refuse_filtered",
        ),
    ],
)
def test_a_reason_names_measure_value_threshold_and_key(
    value: dict[str, float], threshold: dict[str, float], words: str
) -> None:
    (reason,) = judge(replace(GOOD, **value), Quality(**threshold))
    assert reason.startswith(words)


def test_a_measure_that_cannot_be_had_is_never_judged() -> None:
    unknown = dict.fromkeys(("mean_fd_mm", "moved", "overlap", "similarity", "filtered", "high_frequency"))
    strict = Quality(max_mean_fd_mm=0.01, max_moved=0.01, min_similarity=0.9, refuse_filtered=True)
    assert judge(replace(GOOD, **unknown), strict) == []


def test_a_mirrored_or_filtered_run_is_kept_where_the_study_takes_them() -> None:
    odd = replace(GOOD, left_right="mirrored", filtered=True, high_frequency=0.01)
    assert judge(odd, Quality(refuse_mirrored=False)) == []


def test_a_value_is_told_in_as_many_digits_as_tell_it_from_its_threshold() -> None:
    (reason,) = judge(replace(GOOD, overlap=0.79996), Quality())
    assert "overlap 0.79996 with" in reason
    assert judge(replace(GOOD, overlap=0.8), Quality()) == []


def test_the_gravest_reason_stands_first() -> None:
    bad = replace(GOOD, mean_fd_mm=2.0, overlap=0.1, zero_frames=9)
    assert [reason.split()[-3] for reason in judge(bad, Quality(max_mean_fd_mm=0.5))] == [
        "quality.max_zero_frames",
        "quality.min_overlap",
        "quality.max_mean_fd_mm",
    ]


def test_every_threshold_of_the_configuration_is_judged() -> None:
    known = {limit.key for limit in LIMITS} | {"refuse_mirrored", "refuse_filtered", "fd_spike_mm", "pictures"}
    assert known == set(Quality.model_fields)
