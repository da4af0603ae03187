"""Another TR keeps slow signals and their mean and lets nothing alias; confounds go, and the mean stays."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.bold.quality import Quarantined
from pipeline.bold.resample import (
    describe_regression,
    describe_resampling,
    load_regressors,
    regress_out,
    resample_in_time,
    resampled,
    resampled_frames,
)
from pipeline.bold.spool import spool
from pipeline.errors import InputError


def sine(hz: float, tr_s: float, frames: int) -> np.ndarray:
    """A sine at the run's frame times, (T, 1)."""
    return np.sin(2 * np.pi * hz * tr_s * np.arange(frames) + 0.4)[:, None]


def rms(values: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(values))))


@pytest.mark.parametrize("hz", [0.17, 0.2, 0.3, 0.45, 0.65])
def test_what_is_above_the_new_nyquist_frequency_is_20_db_down(hz: float) -> None:
    # TR 0.72 s holds 0.69 Hz, TR 3 s 0.167 Hz: undiminished, these sines would come back as slow ones.
    fast = resample_in_time(sine(hz, 0.72, 800), 0.72, 3.0)
    assert rms(fast[8:-8]) < 0.1 * rms(sine(hz, 0.72, 800))


@pytest.mark.parametrize(("tr_s", "to_tr_s"), [(0.72, 2.0), (0.72, 0.8), (1.5, 0.72), (2.0, 1.0), (0.8, 3.0)])
@pytest.mark.parametrize("hz", [0.01, 0.02, 0.03])
def test_a_slow_sine_is_kept_to_one_percent_at_its_own_times(tr_s: float, to_tr_s: float, hz: float) -> None:
    frames = int(400 / tr_s)
    found = resample_in_time(sine(hz, tr_s, frames), tr_s, to_tr_s)
    expected = sine(hz, to_tr_s, len(found))
    inside = slice(10, -10)
    assert rms(found[inside] - expected[inside]) < 0.01 * rms(expected)


def test_the_ends_stay_near_a_slow_signal() -> None:
    found = resample_in_time(sine(0.02, 0.72, 600), 0.72, 2.0)
    assert np.abs(found - sine(0.02, 2.0, len(found))).max() < 0.05


@given(frames=st.integers(2, 2000), tr_s=st.floats(0.3, 4.0), to_tr_s=st.floats(0.3, 4.0))
def test_no_frame_is_extrapolated_and_none_that_fits_is_missing(frames: int, tr_s: float, to_tr_s: float) -> None:
    last_s = (frames - 1) * tr_s
    count = resampled_frames(frames, tr_s, to_tr_s)
    assert (count - 1) * to_tr_s <= last_s * (1 + 1e-5) + 1e-5
    assert count * to_tr_s > last_s * (1 - 1e-5) - 1e-5


def test_whole_ratios_give_the_frames_one_counts_by_hand() -> None:
    assert resampled_frames(1200, 0.72, 0.72) == 1200
    assert resampled_frames(301, 0.1, 0.3) == 101  # 30.000000000000004 s / 0.3 s in floating point
    assert resampled_frames(10, 2.0, 1.0) == 19


def test_shorter_runs_than_the_filter_is_long_are_resampled_too() -> None:
    bold_TV = np.random.default_rng(0).standard_normal((6, 3)) + 100
    assert resample_in_time(bold_TV, 0.5, 2.0).shape == (2, 3)


def test_a_constant_stays_that_constant_and_a_large_mean_costs_nothing() -> None:
    bold_TV = np.concatenate([np.full((200, 1), 1000.1), 12000 + sine(0.02, 0.72, 200)], axis=1).astype(np.float32)
    found = resample_in_time(bold_TV, 0.72, 2.0)
    assert np.all(found[:, 0] == np.float32(1000.1))
    assert np.allclose(found[5:-5, 1] - 12000, sine(0.02, 2.0, len(found))[5:-5, 0], atol=0.02)


def test_the_own_tr_changes_nothing() -> None:
    bold_TV = np.random.default_rng(1).standard_normal((30, 4)).astype(np.float32)
    assert np.array_equal(resample_in_time(bold_TV, 0.72, 0.72), bold_TV)
    assert describe_resampling(0.72, 0.72) == "none"


def test_the_contract_says_from_what_to_what() -> None:
    assert describe_resampling(0.72, 2.0) == "pchip, TR 0.72 s to 2 s, low-pass 0.25 Hz"
    assert describe_resampling(2.0, 1.0) == "pchip, TR 2 s to 1 s"
    assert describe_regression(["motion", "wm_csf"]) == "regressed: motion, wm_csf"


def test_a_tr_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="TR 0"):
        resample_in_time(np.zeros((10, 1)), 0.0, 1.0)


@pytest.mark.parametrize("to_tr_s", [2.0, 0.5])
def test_a_spooled_run_gives_the_same_in_slabs_of_columns(to_tr_s: float, monkeypatch: pytest.MonkeyPatch) -> None:
    bold_TV = (np.random.default_rng(2).standard_normal((90, 50)) * 20 + 900).astype(np.float32)
    monkeypatch.setattr("pipeline.bold.resample.BLOCK_VALUES", 2000)  # slabs of 11 to 22 columns
    with spool([bold_TV], 50) as spooled:
        blocks = list(resampled(spooled, 0.72, to_tr_s))
    assert max(map(len, blocks)) <= 16
    assert np.array_equal(np.concatenate(blocks), resample_in_time(bold_TV, 0.72, to_tr_s))


def test_regression_leaves_what_least_squares_leaves_and_the_mean() -> None:
    generator = np.random.default_rng(3)
    regressors_TK = generator.standard_normal((120, 5)) * [1, 10, 0.01, 1, 1] + [0, 50, 3, 0, 0]
    signal_TV = generator.standard_normal((120, 7)) + regressors_TK @ generator.standard_normal((5, 7)) + 1000
    signal_TV = signal_TV.astype(np.float32)
    with spool([signal_TV], 7) as spooled:
        left_TV = np.concatenate(list(regress_out(spooled, regressors_TK)))
    design_TK = np.column_stack([np.ones(120), regressors_TK])
    fitted = design_TK @ np.linalg.lstsq(design_TK, signal_TV.astype(float), rcond=None)[0]
    assert np.allclose(left_TV - signal_TV.mean(axis=0), signal_TV - fitted, atol=2e-3)
    assert np.allclose(left_TV.mean(axis=0), signal_TV.mean(axis=0), rtol=1e-6)


def test_constant_and_repeated_regressors_count_for_nothing() -> None:
    generator = np.random.default_rng(4)
    one_T1 = generator.standard_normal((60, 1))
    bold_TV = generator.standard_normal((60, 3)).astype(np.float32)
    with spool([bold_TV], 3) as spooled:
        once = np.concatenate(list(regress_out(spooled, one_T1)))
        again = np.concatenate(list(regress_out(spooled, np.hstack([one_T1, 2 * one_T1 + 5, np.full((60, 1), 0.1)]))))
        nothing = np.concatenate(list(regress_out(spooled, np.full((60, 2), 0.3))))
    assert np.allclose(once, again, atol=1e-6)
    assert np.array_equal(nothing, bold_TV)


@pytest.mark.parametrize(
    ("regressors_TK", "reason"),
    [
        (np.ones((59, 2)), "59 frames for a run of 60"),
        (np.where(np.eye(60, 2), np.nan, 1.0), "missing values"),
        (np.eye(60), "leave no signal"),
    ],
)
def test_regressors_that_cannot_serve_quarantine_the_run(regressors_TK: np.ndarray, reason: str) -> None:
    with (
        spool([np.random.default_rng(5).standard_normal((60, 2))], 2) as spooled,
        pytest.raises(Quarantined, match=reason),
    ):
        list(regress_out(spooled, regressors_TK))


MOTION = ["trans_x", "trans_y", "trans_z", "rot_x", "rot_y", "rot_z"]
ENDINGS = ["", "_derivative1", "_power2", "_derivative1_power2"]


def write_confounds(folder: Path, frames: int = 40, suffix: str = "nii.gz") -> Path:
    """A confounds table as fMRIPrep writes it, with non-steady-state volumes and CompCor; the path of the run."""
    generator = np.random.default_rng(6)
    names = [name + ending for name in [*MOTION, "csf", "white_matter", "global_signal"] for ending in ENDINGS]
    names += ["cosine00", "cosine01", "a_comp_cor_00", "a_comp_cor_01", "aroma_motion_01", "framewise_displacement"]
    names += ["non_steady_state_outlier00"]
    table = {name: [f"{value:.6f}" for value in generator.standard_normal(frames)] for name in names}
    for name in names:
        if "derivative1" in name or name == "framewise_displacement":
            table[name][0] = "n/a"
    table["non_steady_state_outlier00"] = ["1", *["0"] * (frames - 1)]
    stem = folder / "sub-01_task-rest_run-1"
    rows = ["\t".join(names), *("\t".join(row) for row in zip(*table.values(), strict=True))]
    Path(f"{stem}_desc-confounds_timeseries.tsv").write_text("\n".join(rows) + "\n")
    component = {"Mask": "combined", "Method": "aCompCor", "Retained": True}
    about = {"a_comp_cor_00": component, "a_comp_cor_01": component}
    Path(f"{stem}_desc-confounds_timeseries.json").write_text(json.dumps(about))
    return Path(f"{stem}_space-MNI152NLin6Asym_res-2_desc-preproc_bold.{suffix}")


@pytest.mark.parametrize("suffix", ["nii.gz", "nii"])
def test_fmriprep_confounds_come_by_their_kinds_and_every_frame_stays(tmp_path: Path, suffix: str) -> None:
    regressors_TK, names = load_regressors(write_confounds(tmp_path, suffix=suffix), ("motion", "wm_csf", "high_pass"))
    assert regressors_TK.shape == (40, 24 + 2 + 2)
    assert {"rot_z_derivative1_power2", "csf", "white_matter", "cosine01"} <= set(names)
    assert np.isfinite(regressors_TK).all()
    derivative = regressors_TK[:, names.index("trans_x_derivative1")]
    assert derivative[0] == derivative[1]


def test_compcor_and_aroma_components_are_regressors(tmp_path: Path) -> None:
    bold = write_confounds(tmp_path)
    _, names = load_regressors(bold, ("compcor", "high_pass", "ica_aroma"))
    assert names == ["a_comp_cor_00", "a_comp_cor_01", "aroma_motion_01", "cosine00", "cosine01"]


def test_compcor_alone_has_no_meaning(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="Add high_pass"):
        load_regressors(write_confounds(tmp_path), ("compcor",))


def test_a_run_without_its_table_or_columns_is_quarantined(tmp_path: Path) -> None:
    bold = write_confounds(tmp_path)
    table = tmp_path / "sub-01_task-rest_run-1_desc-confounds_timeseries.tsv"
    table.write_text("framewise_displacement\nn/a\n0.1\n")
    with pytest.raises(Quarantined, match="motion"):
        load_regressors(bold, ("motion",))
    table.write_bytes(b"\x00\xff\x80 not a table")
    with pytest.raises(Quarantined, match="motion"):
        load_regressors(bold, ("motion",))
    table.unlink()
    with pytest.raises(Quarantined, match="Could not find"):
        load_regressors(bold, ("motion",))
