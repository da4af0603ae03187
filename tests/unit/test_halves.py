"""Halves: numpy's own casts, faster; exact one way, the nearest the other."""

from __future__ import annotations

import numpy as np

from pipeline.bold.halves import SLAB, narrow, widen


def every_half() -> np.ndarray:
    """All finite float16, more than one slab with their repeats."""
    halves = np.arange(2**16, dtype=np.uint16).view(np.float16)
    return np.tile(halves[np.isfinite(halves)], 2)


def test_every_finite_half_is_widened_exactly() -> None:
    halves = every_half()
    wide = np.empty(halves.shape, np.float32)
    widen(halves, wide)
    assert len(halves) > SLAB
    assert wide.tobytes() == halves.astype(np.float32).tobytes()


def test_every_half_comes_back_from_its_float() -> None:
    halves = every_half()
    assert narrow(halves.astype(np.float32)).tobytes() == halves.tobytes()


def test_a_float_becomes_the_nearest_half() -> None:
    rng = np.random.default_rng(0)
    values = np.concatenate(
        [rng.standard_normal(100_000), rng.uniform(-9e-5, 9e-5, 100_000), rng.uniform(-6e4, 6e4, 9)]
    )
    values = values.astype(np.float32)
    ours, numpys = narrow(values), values.astype(np.float16)
    differ = ours != numpys
    assert differ.mean() < 2**-12, "only values halfway between two halves"
    exact = values.astype(float)
    assert np.allclose(abs(ours - exact)[differ], abs(numpys - exact)[differ], rtol=2**-11, atol=0)
    assert narrow(np.float32([[0, -0.0]])).tobytes() == np.float16([[0, -0.0]]).tobytes()
