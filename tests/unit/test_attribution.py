"""Attributions and their test against closed forms, planted parcels and simulated nulls."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import Ridge
from tiny_models import clips, tiny
from torch import nn

from pipeline.evaluate.supplement.attribution import (
    ReadOut,
    balanced_people,
    by_parcel,
    completeness_error,
    cross_fitted,
    edges_to_parcels,
    integrated_gradients,
    label_effects,
    leading_components,
    permutation_test,
    ridge_directions,
    shuffled,
)
from pipeline.models.learners.supervised import Supervised
from pipeline.models.parts.voxels import Raster

RASTER = Raster((2, 3), torch.arange(6), channel=False)


class Linear(nn.Module):
    """Features are fixed maps of the laid-out columns, one token a frame."""

    def __init__(self, weights_DC: torch.Tensor) -> None:
        super().__init__()
        self.weights_DC = nn.Parameter(weights_DC)

    def forward(self, box_BXYT: torch.Tensor) -> torch.Tensor:
        return torch.einsum("dc,bct->bdt", self.weights_DC, box_BXYT.flatten(1, 2))


def test_of_a_linear_encoder_attributions_are_weight_times_input() -> None:
    rng = np.random.default_rng(0)
    weights_DC, direction_D, centre_D = rng.normal(0, 1, (4, 6)), rng.normal(0, 1, 4), rng.normal(0, 1, 4)
    clips_BTC = torch.tensor(rng.normal(0, 1, (3, 5, 6)), dtype=torch.float32)
    score = ReadOut(Linear(torch.tensor(weights_DC, dtype=torch.float32)), RASTER, direction_D[:, None], centre_D)
    found_BTC = integrated_gradients(score, clips_BTC, steps=2)
    assert found_BTC == pytest.approx((direction_D @ weights_DC) * clips_BTC.numpy() / 5, abs=1e-5)
    start_BTC = torch.ones_like(clips_BTC)
    from_BTC = integrated_gradients(score, clips_BTC, steps=2, baseline=start_BTC)
    assert from_BTC == pytest.approx((direction_D @ weights_DC) * (clips_BTC.numpy() - 1) / 5, abs=1e-5)
    assert completeness_error(score, clips_BTC, from_BTC.sum((1, 2))[:, None], start_BTC) < 1e-5


def test_of_a_product_half_goes_to_either_factor() -> None:
    """F = x y from 0: gradients (a y, a x) at share a of the path, whose integral gives x y / 2 to both."""

    class Product(nn.Module):
        def forward(self, pairs_B2: torch.Tensor) -> torch.Tensor:
            return (pairs_B2[:, 0] * pairs_B2[:, 1])[:, None]

    found_B2 = integrated_gradients(Product(), torch.tensor([[3.0, -4.0]]), steps=4)
    assert found_B2 == pytest.approx(np.array([[-6.0, -6.0]]), abs=1e-5)


def test_attributions_of_a_transformer_add_up_to_its_score_and_leave_it_as_it_was() -> None:
    encoder = tiny("swift_v2").train()
    raster, channels = Raster((6, 6, 6), torch.arange(216)), encoder.channels
    clips_BTC = clips(encoder).flatten(1, 4).transpose(1, 2)
    basis_DK = np.random.default_rng(0).normal(0, 1, (channels, 2))
    score = ReadOut(encoder, raster, basis_DK, np.zeros(channels))
    start = torch.flip(clips_BTC, (0,))
    total_BK = np.stack([integrated_gradients(score, clips_BTC, k, 32, start).sum((1, 2)) for k in range(2)], axis=1)
    assert completeness_error(score, clips_BTC, total_BK, start) < 0.01
    assert completeness_error(score, clips_BTC, total_BK * 2, start) > 0.5
    assert encoder.training
    assert all(weight.requires_grad and weight.grad is None for weight in encoder.parameters())


def test_networks_that_learn_from_labels_are_explained_too() -> None:
    learner = Supervised(tiny("brainnetcnn"), dropout=0.5).eval()
    connectomes = clips(learner.encoder)
    found_BRR = integrated_gradients(learner, connectomes, steps=64)
    assert found_BRR.shape == connectomes.shape
    assert completeness_error(learner, connectomes, found_BRR.sum((1, 2))[:, None]) < 0.02
    assert edges_to_parcels(found_BRR).sum(1) == pytest.approx(found_BRR.sum((1, 2)), rel=1e-5)


def test_parcels_sum_their_columns_and_some_columns_have_none() -> None:
    values = np.arange(12.0).reshape(2, 6)
    assert by_parcel(values, np.array([0, 0, 2, -1, 2, 0]), 3).tolist() == [[6, 0, 6], [24, 0, 18]]


def test_components_are_uncorrelated_of_unit_variance_and_skip_constants() -> None:
    rng = np.random.default_rng(0)
    features_ND = rng.normal(0, 1, (40, 6)) @ rng.normal(0, 1, (6, 6)) + 5
    features_ND = np.column_stack([features_ND, np.full(40, 3.0)])
    found = leading_components(features_ND, 4)
    assert np.cov(found.of(features_ND), rowvar=False, bias=True) == pytest.approx(np.eye(4), abs=1e-9)
    assert leading_components(features_ND, 50).basis_DK.shape == (7, 6)
    assert leading_components(np.ones((5, 3)), 2).basis_DK.shape == (3, 0)


def test_ridge_is_scikit_learns_at_the_shrinkage_of_least_loo_error() -> None:
    rng = np.random.default_rng(0)
    components_NK, weights_K = rng.normal(0, 1, (60, 5)), np.array([2.0, -1, 0, 0, 0.5])
    targets_LN = np.stack([components_NK @ weights_K + rng.normal(0, 1, 60), rng.normal(0, 1, 60)])
    found_LK = ridge_directions(components_NK, targets_LN)
    unit = (np.linalg.svd(components_NK - components_NK.mean(0))[1] ** 2).mean()
    for target_N, found_K in zip(targets_LN, found_LK, strict=True):
        errors, fits = [], []
        for shrinkage in (1e-3, 1e-2, 1e-1, 1.0, 10.0):
            ridge = Ridge(alpha=shrinkage * unit)
            left = [
                target_N[i]
                - ridge.fit(np.delete(components_NK, i, 0), np.delete(target_N, i)).predict(components_NK[[i]])
                for i in range(60)
            ]
            errors.append(np.square(left).sum())
            fits.append(ridge.fit(components_NK, target_N).coef_)
        assert found_K == pytest.approx(fits[int(np.argmin(errors))], rel=1e-6, abs=1e-9)


def test_a_person_is_explained_by_a_read_out_that_never_saw_them_or_their_kin() -> None:
    rng = np.random.default_rng(0)
    families_N, strata_N = np.repeat(np.arange(20), 2), np.tile([0, 1], 20)
    components_NK = rng.normal(0, 1, (40, 3))
    target_N = strata_N.astype(float)
    one_LNK = cross_fitted(components_NK, target_N[None], strata_N, families_N, np.random.default_rng(1))
    changed_N = target_N.copy()
    changed_N[:2] = 1 - changed_N[:2]  # the labels of one family
    two_LNK = cross_fitted(components_NK, changed_N[None], strata_N, families_N, np.random.default_rng(1))
    same_N = np.isclose(one_LNK[0], two_LNK[0]).all(1)
    assert same_N[:2].all()
    assert not same_N.all()


def test_shuffles_keep_the_classes_of_those_explained() -> None:
    target_N, explained_N = np.array([0, 1, 1, 0, 1, 0, 0, 0.0]), np.arange(8) < 4
    targets_LN = shuffled(target_N, explained_N, 200, np.random.default_rng(0))
    assert (targets_LN[0] == target_N).all()
    assert (targets_LN[:, :4].sum(1) == 2).all()
    assert (targets_LN[:, 4:].sum(1) == 1).all()
    assert len(np.unique(targets_LN[:, :4], axis=0)) == 6


def test_effects_are_differences_of_means_or_slopes() -> None:
    rng = np.random.default_rng(0)
    attributed_LNP, label_N = rng.normal(0, 1, (1, 10, 3)), np.array([0, 1] * 5)
    difference_P = attributed_LNP[0, label_N == 1].mean(0) - attributed_LNP[0, label_N == 0].mean(0)
    assert label_effects(attributed_LNP, label_N[None])[0] == pytest.approx(difference_P)
    age_N = rng.normal(50, 10, 10)
    slope = np.polyfit(age_N, attributed_LNP[0, :, 1], 1)[0]
    assert label_effects(attributed_LNP, age_N[None])[0, 1] == pytest.approx(slope)
    assert (label_effects(attributed_LNP, np.ones((1, 10))) == 0).all()


def null_study(rng: np.random.Generator, planted: float = 0.0) -> np.ndarray:
    """p of six parcels in a study of 24 people: the label moves one component, which parcel 2 alone holds."""
    label_N = rng.permutation(np.repeat([0, 1], 12))
    component_NKP = rng.normal(0, 1, (24, 3, 6)) * np.array([1, 4, 1, 2, 1, 1])
    component_NKP[:, 0, 2] += planted * (label_N - 0.5)
    component_NK, everybody = component_NKP.sum(2), np.ones(24, dtype=bool)
    targets_LN = shuffled(label_N, everybody, 59, rng)
    directions_LNK = cross_fitted(component_NK, targets_LN, label_N, np.arange(24), rng)
    attributed_LNP = np.einsum("lnk,nkp->lnp", directions_LNK, component_NKP)
    return permutation_test(label_effects(attributed_LNP, targets_LN)).p_P


def test_under_the_null_p_is_uniform_over_all_parts_together() -> None:
    rng = np.random.default_rng(0)
    smallest = np.array([null_study(rng).min() for _ in range(300)])
    for level in (0.05, 0.1, 0.2, 0.5):
        share, error = (smallest <= level).mean(), np.sqrt(level * (1 - level) / 300)
        assert abs(share - level) < 3.5 * error + 1 / 60


def test_a_planted_parcel_is_found_and_the_others_are_not() -> None:
    rng = np.random.default_rng(0)
    found = np.array([null_study(rng, planted=12.0) for _ in range(20)])
    assert (found[:, 2] <= 1 / 30).mean() > 0.8
    assert (found[:, [0, 1, 3, 4, 5]] <= 0.05).any(1).mean() < 0.35


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 30), st.integers(0, 2**32 - 1))
def test_explained_people_are_as_many_as_asked_and_balanced(count: int, seed: int) -> None:
    strata_N, families_N = np.repeat([0, 1, 4], [20, 12, 8]), np.arange(40) // 2
    chosen_N = balanced_people(strata_N, families_N, count, np.random.default_rng(seed))
    counts = [chosen_N[strata_N == stratum].sum() for stratum in (0, 1, 4)]
    assert sum(counts) == count
    assert counts[0] - counts[2] <= max(1, 20 - 8)
    if count <= 24:
        assert max(counts) - min(counts) <= 1
    if count <= 8:  # families enough: nobody's sibling
        assert len(np.unique(families_N[chosen_N])) == count
