"""Scores of one or two systems whose true AUROC is known: normal in each class, alone or with families."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

SIMULATIONS = 500  # three binomial standard errors of 95 % are then 2.9 points; benchmarks/ has thousands
Scores = tuple[np.ndarray, np.ndarray, np.ndarray]


def two_classes(rng: np.random.Generator, per_class: int, distance: float) -> tuple[np.ndarray, np.ndarray]:
    labels = np.repeat([0, 1], per_class)
    return labels, rng.normal(labels * distance, 1)


def two_systems(rng: np.random.Generator, per_class: int, distances: tuple[float, float] = (1.2, 0.9)) -> Scores:
    """Binormal scores of two systems on the same people; they correlate at .6 in a class."""
    labels = np.repeat([0, 1], per_class)
    shared = rng.normal(size=2 * per_class)
    first, second = (np.sqrt(0.6) * shared + np.sqrt(0.4) * rng.normal(size=2 * per_class) for _ in range(2))
    return labels, labels * distances[0] + first, labels * distances[1] + second


def siblings(rng: np.random.Generator, families: int, distances: tuple[float, float]) -> tuple[Scores, np.ndarray]:
    """The same with one to three people a family, who share half of what tells people of one class apart."""
    family = np.repeat(np.arange(families), rng.integers(1, 4, families))

    def trait() -> np.ndarray:
        return np.sqrt(0.5) * rng.normal(size=families)[family] + np.sqrt(0.5) * rng.normal(size=len(family))

    labels, shared = (trait() > 0).astype(int), trait()
    first, second = (np.sqrt(0.6) * shared + np.sqrt(0.4) * trait() for _ in range(2))
    return (labels, labels * distances[0] + first, labels * distances[1] + second), family


def area_of(distance: float) -> float:
    return float(stats.norm.cdf(distance / np.sqrt(2)))


def assert_covers(nominal: float, covered: list[bool]) -> None:
    """The share is nominal within three binomial standard errors."""
    assert np.mean(covered) == pytest.approx(nominal, abs=3 * np.sqrt(nominal * (1 - nominal) / len(covered)))
