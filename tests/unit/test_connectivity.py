"""What a reconstruction keeps between parcels: planted truths, and signals whose third moments are known."""

from __future__ import annotations

import numpy as np
import pytest
from small_cohort import small_template

from pipeline.bold.template import build_template, parcel_means
from pipeline.config import Template
from pipeline.evaluate.supplement.connectivity import (
    compare,
    correlation,
    coskewness,
    edges,
    individuality,
    smooth_noise,
    smoothness,
)
from pipeline.spectral.surrogates import phase_randomised


def skewed(frames: int, parcels: int, seed: int = 0) -> np.ndarray:
    """Parcels that share three sources with rare large events."""
    rng = np.random.default_rng(seed)
    sources_TS = rng.exponential(1, (frames, 3)) ** 1.5
    return sources_TS @ rng.normal(0, 1, (3, parcels)) + 0.5 * rng.normal(0, 1, (frames, parcels))


def test_a_perfect_reconstruction_keeps_everything() -> None:
    run_TP = skewed(300, 12)
    assert compare(run_TP, run_TP.copy()) == pytest.approx((1.0,) * 8)


def test_scale_and_offset_leave_connectivity_alone() -> None:
    run_TP = skewed(300, 12)
    kept = compare(run_TP, 0.5 * run_TP + 3)
    assert kept.fc_r == pytest.approx(1)
    assert kept.covariance_kept == pytest.approx(0.25)
    assert kept.spectrum_kept == pytest.approx(0.25)
    assert kept.dimension_ratio == pytest.approx(1)
    assert kept.coskewness_kept == pytest.approx(1)


def test_edges_are_fisher_z_of_numpys_correlations() -> None:
    run_TP = skewed(200, 6)
    assert edges(run_TP) == pytest.approx(np.arctanh(np.corrcoef(run_TP.T)[np.triu_indices(6, 1)]))


def test_coskewness_of_a_known_pair() -> None:
    """x a standard exponential, y = x: E[x^2 y] is its skewness, 2; y independent: 0."""
    rng = np.random.default_rng(0)
    x_T = rng.exponential(1, 400_000)
    found_PP = coskewness(np.column_stack([x_T, 3 * x_T - 1, rng.normal(0, 1, len(x_T))]))
    assert found_PP[0, 1] == pytest.approx(2, abs=0.08)
    assert found_PP[0, 2] == pytest.approx(0, abs=0.02)


def test_a_gaussian_surrogate_keeps_covariance_and_loses_coskewness() -> None:
    run_TP, rng = skewed(2000, 12), np.random.default_rng(1)
    found = [compare(run_TP, phase_randomised(run_TP, rng)) for _ in range(20)]
    for kept in found:
        assert kept.fc_r == pytest.approx(1, abs=1e-6)
        assert kept.covariance_kept == pytest.approx(1, abs=1e-6)
    assert abs(np.mean([kept.coskewness_kept for kept in found])) < 0.1
    assert max(abs(kept.coskewness_kept) for kept in found) < 0.3


def test_low_rank_reconstruction_has_fewer_dimensions_but_keeps_the_leading_directions() -> None:
    run_TP = skewed(500, 12)
    centred_TP = run_TP - run_TP.mean(0)
    left, length, right = np.linalg.svd(centred_TP, full_matrices=False)
    kept = compare(run_TP, left[:, :2] * length[:2] @ right[:2], directions=2)
    assert kept.spectrum_kept == pytest.approx(1)
    assert kept.dimension_ratio < 1


def test_what_does_not_vary_has_no_connectome() -> None:
    run_TP = skewed(100, 5)
    kept = compare(run_TP, np.zeros_like(run_TP))
    assert np.isnan(kept.fc_r)
    assert kept.covariance_kept == 0
    assert np.isnan(kept.spectrum_r)
    assert np.isnan(correlation(np.ones(5), np.arange(5.0)))
    with pytest.raises(ValueError, match=r"\(100, 5\) and \(100, 4\)"):
        compare(run_TP, run_TP[:, :4])


def test_of_an_encoder_that_diverged_nothing_is_told() -> None:
    run_TP = skewed(100, 5)
    assert np.isnan(compare(run_TP, np.full_like(run_TP, np.nan))).all()
    assert np.isnan(edges(np.full_like(run_TP, np.nan))).all()


def test_a_dead_parcel_makes_no_edge() -> None:
    run_TP = skewed(100, 5)
    run_TP[:, 2] = 4
    dead = [pair for pair, (i, j) in enumerate(zip(*np.triu_indices(5, 1), strict=True)) if 2 in (i, j)]
    assert (edges(run_TP)[dead] == 0).all()
    assert np.isfinite(edges(run_TP)).all()


def test_smooth_noise_is_as_smooth_as_it_was_asked_to_be() -> None:
    settings = Template(space="MNI152NLin2009aSym", resolution_mm=8, shape=(24, 24, 24), parcel_voxels=3)
    template, rng = build_template(settings), np.random.default_rng(0)
    for sigma in (0.7, 1.2):
        noise_TV = smooth_noise(200, sigma, template, rng)
        assert smoothness(noise_TV, template) == pytest.approx(sigma, rel=0.06)
    near_r = np.tanh(edges(parcel_means(noise_TV, template).astype(float)))
    assert near_r.max() > 0.3
    assert smoothness(rng.normal(0, 1, (400, template.voxels)), template) < 0.25


def test_white_noise_on_a_small_grid_has_no_smoothness() -> None:
    template = small_template()
    alternating_TV = np.tile((-1.0) ** template.coordinates_V3.sum(1), (10, 1)) * np.arange(-5, 5)[:, None]
    assert smoothness(alternating_TV, template) == 0


def test_reconstructions_of_ones_own_are_told_from_those_of_the_group() -> None:
    rng = np.random.default_rng(0)
    group_E, own_NE = rng.normal(0, 1, 300), rng.normal(0, 1, (8, 300))
    measured_NE = group_E + own_NE
    whole = individuality(measured_NE, measured_NE)
    only_group = individuality(measured_NE, np.tile(group_E, (8, 1)) + 0.0)
    assert whole.others_r_N == pytest.approx(np.full(8, 0.5), abs=0.1)
    assert (whole.specificity_N > 0.4).all()
    assert abs(only_group.specificity_N.mean()) < 1e-9
    assert np.isnan(individuality(measured_NE, np.zeros((8, 300))).specificity_N).all()
    with pytest.raises(ValueError, match="two at least"):
        individuality(measured_NE[:1], measured_NE[:1])
