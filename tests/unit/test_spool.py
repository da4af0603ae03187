"""The first pass over a run: what it measures is right whatever the mean, the blocks and the zeros."""

from __future__ import annotations

import hashlib
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.bold.quality import Quarantined
from pipeline.bold.spool import SLAB, spool


def run_of(frames: int, columns: int, mean: float = 1000, sd: float = 20, seed: int = 0) -> np.ndarray:
    """Gaussian noise, (T, V) float32."""
    return np.random.default_rng(seed).normal(mean, sd, (frames, columns)).astype(np.float32)


@given(st.integers(1, 50), st.sampled_from([0.0, 1.0, -30.0, 1e4, 1e6]), st.integers(1, 20), st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_moments_are_those_of_double_precision_however_large_the_mean(frames, mean, block, seed):
    run_TV = run_of(frames, 7, mean, 2.0, seed)
    run_TV[0] *= 3  # a first frame before the magnetisation has settled
    with spool((run_TV[start : start + block] for start in range(0, frames, block)), 7) as kept:
        exact = run_TV.astype(np.float64)
        assert (kept.frames, kept.columns) == run_TV.shape
        assert np.all(np.abs(kept.mean_V - exact.mean(0)) <= 1e-6 * exact.std(0) + 1e-12 * abs(exact.mean(0)))
        alive_V = exact.std(0) > abs(exact.mean(0)) * 1e-5
        assert np.allclose(kept.std_V[alive_V], exact.std(0)[alive_V], rtol=1e-5)
        assert np.array_equal(kept.low_V, run_TV.min(0))
        assert np.array_equal(kept.high_V, run_TV.max(0))


def test_slabs_of_columns_join_to_the_whole() -> None:
    run_TV = run_of(20, 2 * SLAB + 5)
    with spool([run_TV], run_TV.shape[1]) as kept:
        assert np.allclose(kept.mean_V, run_TV.mean(0, dtype=np.float64), rtol=1e-9)
        assert np.allclose(kept.std_V, run_TV.std(0, dtype=np.float64), rtol=1e-6)


@pytest.mark.parametrize("block", [1, 5, 16, 40])
def test_what_went_in_comes_out_by_frames_and_by_columns(block: int) -> None:
    run_TV = run_of(40, 30)
    with spool((run_TV[start : start + block] for start in range(0, 40, block)), 30) as kept:
        assert np.array_equal(kept.rows(3, 21), run_TV[3:21])
        assert np.array_equal(np.concatenate(list(kept.blocks(7))), run_TV)
        assert np.array_equal(kept.columns_block(4, 9), run_TV[:, 4:9])
        sums = b"".join(zlib.crc32(frame_V.tobytes()).to_bytes(4, "little") for frame_V in run_TV)
        assert kept.sha256 == hashlib.sha256(sums).hexdigest()


def test_z_scores_have_mean_0_and_sd_1_and_constants_are_0() -> None:
    run_TV = run_of(60, 12, mean=1e6, sd=5)
    run_TV[:, 3], run_TV[:, 4] = 500.1, 0
    with spool([run_TV], 12) as kept:
        z_TV = kept.z_rows(0, 60)
        assert kept.std_V[3] == kept.std_V[4] == 0
    alive_V = np.delete(np.arange(12), [3, 4])
    assert not z_TV[:, 3:5].any()
    assert np.abs(z_TV[:, alive_V].mean(0, dtype=float)).max() < 1e-6
    assert np.allclose(z_TV[:, alive_V].std(0, dtype=float), 1, atol=1e-5)
    exact = run_TV.astype(float)[:, alive_V]
    assert np.allclose(z_TV[:, alive_V], (exact - exact.mean(0)) / exact.std(0), atol=1e-5)


def test_zeros_are_background_and_do_not_count_as_the_smallest_value() -> None:
    run_TV = run_of(20, 100)
    run_TV[:, 7], run_TV[11], run_TV[2, 9] = 0, 0, 0
    with spool([run_TV], 100) as kept:
        assert kept.minimum == run_TV[run_TV != 0].min()
        assert (kept.zeros, kept.zero_frames) == (np.sum(run_TV == 0), [11])
        assert kept.maximum == run_TV.max()
    negative_TV = run_TV - 2000
    with spool([negative_TV], 100) as kept:
        assert (kept.minimum, kept.zeros) == (negative_TV.min(), 0)
    with spool([np.zeros((4, 3), np.float32)], 3) as kept:
        assert (kept.minimum, kept.zeros, kept.zero_frames) == (0, 12, [0, 1, 2, 3])


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e30])
def test_values_that_cannot_be_used_quarantine_the_run(value: float) -> None:
    run_TV = run_of(40, 9)
    run_TV[20, 4] = value
    reason = r"frames 16 to 32 hold values that are not finite|values as large as 1e\+30"
    with pytest.raises(Quarantined, match=reason), spool([run_TV], 9):
        pytest.fail("it must not be handed out")


def test_a_run_without_frames_is_quarantined_and_other_columns_are_a_bug() -> None:
    with pytest.raises(Quarantined, match="no frames"), spool([], 9):
        pass
    with pytest.raises(ValueError, match="8,"), spool([run_of(4, 8)], 9):
        pass


def test_the_scratch_file_has_no_name(tmp_path: Path) -> None:
    with spool([run_of(4, 9)], 9, tmp_path) as kept:
        assert list(tmp_path.iterdir()) == []
        assert kept.rows(0, 1).shape == (1, 9)
