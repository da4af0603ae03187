"""ComBat, against its equations written out feature by feature and sites that were planted."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.errors import InputError
from pipeline.evaluate.probes.harmonise import combat
from pipeline.evaluate.probes.linear import linear_reader
from pipeline.evaluate.splits import TEST, draw_splits, seeded
from pipeline.evaluate.statistics import auroc

SITES = np.array(["KKI", "NYU", "USM"])


def planted(people: int = 300, features: int = 80, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Features, sites and groups: sites shift and scale every feature, a group adds 1 to the first ten."""
    rng = np.random.default_rng(seed)
    site, group = np.arange(people) % 3, rng.integers(0, 2, people)
    noise = rng.normal(0, 1, (people, features)) * (1 + 0.5 * site[:, None])
    noise[:, :10] += group[:, None]
    return 5 + noise + rng.normal(1, 0.5, (3, features))[site] * site[:, None], SITES[site], group


def by_the_equations(features_MD: np.ndarray, site_M: np.ndarray, covariates_MC: np.ndarray | None) -> np.ndarray:
    """Johnson, Li & Rabinovic (2007), one site and one feature after the other, everybody in training."""
    features = features_MD.shape[1]
    sites = np.unique(site_M)
    indicator = np.column_stack([site_M == site for site in sites]).astype(float)
    design = indicator if covariates_MC is None else np.column_stack([indicator, covariates_MC])
    beta = np.linalg.lstsq(design, features_MD, rcond=None)[0]
    expected = indicator.mean(0) @ beta[: len(sites)] + design[:, len(sites) :] @ beta[len(sites) :]
    pooled = np.sqrt(((features_MD - design @ beta) ** 2).mean(0))
    scaled = (features_MD - expected) / pooled
    for site in sites:
        own = scaled[site_M == site]
        n, gamma, delta = len(own), own.mean(0), own.var(0, ddof=1)
        gamma_bar, tau2, mean, s2 = gamma.mean(), gamma.var(ddof=1), delta.mean(), delta.var(ddof=1)
        shape, rate = (mean**2 + 2 * s2) / s2, (mean**3 + mean * s2) / s2
        for feature in range(features):
            shift, variance = gamma[feature], delta[feature]
            for _ in range(200):
                shift = (n * tau2 * gamma[feature] + variance * gamma_bar) / (n * tau2 + variance)
                variance = (rate + ((own[:, feature] - shift) ** 2).sum() / 2) / (n / 2 + shape - 1)
            scaled[site_M == site, feature] = (own[:, feature] - shift) / np.sqrt(variance)
    return np.asarray(scaled * pooled + expected)


@pytest.mark.parametrize("with_covariates", [False, True])
def test_it_is_the_papers_equations(with_covariates: bool) -> None:
    features_MD, site_M, group_M = planted(60, 12)
    covariates_MC = np.column_stack([group_M, np.random.default_rng(1).normal(30, 9, 60)]) if with_covariates else None
    everybody = np.ones(60, dtype=bool)
    expected_MD = by_the_equations(features_MD, site_M, covariates_MC)
    assert np.allclose(combat(features_MD, site_M, everybody, covariates_MC), expected_MD, atol=1e-5)
    assert np.allclose(combat(features_MD.astype(np.float32), site_M, everybody, covariates_MC), expected_MD, atol=1e-4)


def test_planted_shifts_and_scales_go_also_in_people_who_taught_nothing() -> None:
    features_MD, site_M, _ = planted(1200)
    train_M = np.arange(1200) < 800
    aligned_MD = combat(features_MD, site_M, train_M)
    for part_M in (train_M, ~train_M):
        raw, found = (
            np.array(
                [[each[part_M & (site_M == site)].mean(0), each[part_M & (site_M == site)].std(0)] for site in SITES]
            )
            for each in (features_MD, aligned_MD)
        )
        assert np.abs(raw[2] - raw[0]).mean() > 0.9
        assert np.abs(found - found.mean(0)).mean() < 0.1


def test_a_planted_group_effect_stays() -> None:
    features_MD, site_M, group_M = planted(1200)
    aligned_MD = combat(features_MD, site_M, np.ones(1200, dtype=bool))
    effect_D = aligned_MD[group_M == 1].mean(0) - aligned_MD[group_M == 0].mean(0)
    noise = aligned_MD.std(0).mean()  # what sites multiply, they multiply in the effect too
    assert effect_D[:10].mean() == pytest.approx(1, abs=0.1 * noise)
    assert abs(effect_D[10:].mean()) < 0.05 * noise


def test_what_a_covariate_does_stays_although_sites_differ_in_it() -> None:
    rng = np.random.default_rng(0)
    site, features = np.arange(600) % 3, 40
    age = 20 + 10 * site + rng.normal(0, 5, 600)
    features_MD = 0.1 * age[:, None] + rng.normal(0, 1, (600, features)) + rng.normal(0, 1, (3, features))[site]

    def slope(found_MD: np.ndarray) -> float:
        return float(np.polyfit(age, found_MD.mean(1), 1)[0])

    everybody = np.ones(600, dtype=bool)
    assert slope(combat(features_MD, SITES[site], everybody, age[:, None])) == pytest.approx(0.1, abs=0.02)
    assert slope(combat(features_MD, SITES[site], everybody)) < 0.05


def test_nothing_of_other_untrained_people_enters() -> None:
    features_MD, site_M, group_M = planted(120)
    train_M, other_MD, other_M = np.arange(120) < 80, features_MD.copy(), site_M.copy()
    other_MD[100:] = 1e4
    other_M[100:] = "KKI"
    ages = np.where(np.arange(120) < 100, group_M, 99)[:, None]
    first_MD = combat(features_MD, site_M, train_M, group_M[:, None])
    assert np.array_equal(first_MD[:100], combat(other_MD, other_M, train_M, ages)[:100])


def test_a_site_that_nobody_was_trained_on_is_left_as_it_is() -> None:
    features_MD, site_M, _ = planted(120)
    train_M = site_M != "USM"
    aligned_MD = combat(features_MD, site_M, train_M)
    assert np.array_equal(aligned_MD[~train_M], features_MD[~train_M])
    assert not np.allclose(aligned_MD[train_M], features_MD[train_M], atol=0.1)


def test_one_site_is_left_as_it_is() -> None:
    features_MD, _, _ = planted(30)
    assert np.array_equal(combat(features_MD, np.full(30, "NYU"), np.arange(30) < 20), features_MD)


def test_a_site_of_one_training_person_is_shifted_and_not_scaled() -> None:
    rng = np.random.default_rng(0)
    features_MD = rng.normal(0, 1, (41, 50))
    features_MD[40] += 4
    site_M = np.where(np.arange(41) < 40, SITES[np.arange(41) % 2], "lone")
    aligned_MD = combat(features_MD, site_M, np.ones(41, dtype=bool))
    assert abs(aligned_MD[40].mean()) < 0.5
    assert aligned_MD[40].std() == pytest.approx(features_MD[40].std(), rel=0.6)


def test_dead_and_missing_values_stay_and_one_feature_is_aligned_without_others() -> None:
    features_MD, site_M, _ = planted(90)
    features_MD[:, 3], features_MD[7, 5] = 2.5, np.nan
    everybody = np.ones(90, dtype=bool)
    aligned_MD = combat(features_MD, site_M, everybody)
    assert (aligned_MD[:, 3] == 2.5).all()
    assert np.array_equal(np.isnan(aligned_MD), np.isnan(features_MD))
    alone_M1 = combat(features_MD[:, :1], site_M, everybody)
    assert np.ptp([alone_M1[site_M == site].mean() for site in SITES]) < 1e-9
    assert np.ptp([alone_M1[site_M == site].var(ddof=1) for site in SITES]) < 1e-9


def test_a_site_where_a_feature_is_dead_has_finite_values() -> None:
    features_MD, site_M, _ = planted(90)
    features_MD[site_M == "NYU", :4] = 0  # a dead parcel of one scanner
    assert np.isfinite(combat(features_MD, site_M, np.ones(90, dtype=bool))).all()
    assert np.isfinite(combat(features_MD[:, :1], site_M, np.ones(90, dtype=bool))).all()


def test_labels_that_only_sites_tell_are_no_longer_read() -> None:
    rng = np.random.default_rng(0)
    features_MD, site_M, _ = planted(240)
    features_MD[:, :10] = rng.normal(0, 1, (240, 10))
    label_M = (rng.random(240) < np.array([0.2, 0.5, 0.8])[np.arange(240) % 3]).astype(int)
    parts_SM = draw_splits(label_M, np.arange(240), 10, 0.15, 0.15, seeded("sites"))

    def area(aligned: bool) -> float:
        harmonise = (lambda each_MD, train_M: combat(each_MD, site_M, train_M)) if aligned else None
        reader = linear_reader(features_MD, np.arange(240), [0.001, 0.1], harmonise=harmonise)
        found = [(part == TEST, reader(label_M, part).score_M) for part in parts_SM]
        return float(np.mean([auroc(label_M[tested], score[tested]) for tested, score in found]))

    assert area(aligned=False) > 0.65
    assert area(aligned=True) < 0.58


def test_sites_of_other_people_are_refused() -> None:
    features_MD, site_M, _ = planted(30)
    with pytest.raises(InputError, match="30, as features"):
        combat(features_MD, site_M[:20], np.ones(30, dtype=bool))
