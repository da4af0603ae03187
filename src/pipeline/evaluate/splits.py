"""Who is trained on and who is tested: stratified by label, families never divided, the same for every system.

Axes: N people, S splits. Everything here is a function of the labels, the families and a seed, never of features.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import numpy as np

from pipeline.artefact import digest
from pipeline.errors import InputError

TEST, VALIDATION, TRAIN = 0, 1, 2
LEFT_OUT = 3  # kin of people on the other side: in no part
MOST_DRAWS = 200  # of one split, before its parts are called impossible
MIN_CLASS = 5  # people a class, below which 70:15:15 leaves no test part with both classes


def seeded(*key: Any) -> np.random.Generator:
    """Random numbers that depend on the JSON-able `key` and on nothing else."""
    return np.random.default_rng(int(digest(list(key)), 16))


def halving(values_N: np.ndarray) -> float:
    """The cut that leaves most nearly half of the values above it: the median, but for a floor or ceiling that many
    share.
    """
    levels = np.unique(values_N)
    if len(levels) < 2:
        return float(levels[0])
    cuts = levels[:-1]
    above = len(values_N) - np.searchsorted(np.sort(values_N), cuts, side="right")
    return float(cuts[np.abs(above - len(values_N) / 2).argmin()])


def partition(
    labels_N: np.ndarray, families_N: np.ndarray, shares: Sequence[float], rng: np.random.Generator
) -> np.ndarray:
    """(N,) part of each person; every class is divided by `shares`, and a family lies in one part.

    Families come in random order, and each draws its part by the places that are left for its classes, so that
    everybody is tested equally often: a rule that seats large families where most is missing never tests siblings.
    """
    label_N = np.asarray(labels_N, dtype=int)
    family_N = np.unique(families_N, return_inverse=True)[1].ravel()
    counts_F2 = np.zeros((family_N.max() + 1, 2), dtype=int)
    np.add.at(counts_F2, (family_N, label_N), 1)
    places = [[share * (label_N == label).sum() for label in (0, 1)] for share in shares]
    part_F = np.empty(len(counts_F2), dtype=int)
    for family, chance in zip(rng.permutation(len(counts_F2)), rng.random(len(counts_F2)), strict=True):
        negative, positive = counts_F2[family].tolist()
        weights = [max(left[0], 0) * negative + max(left[1], 0) * positive for left in places]
        bounds = list(accumulate(weights))
        part_F[family] = part = min(bisect_right(bounds, chance * bounds[-1]), len(places) - 1)
        places[part][0] -= negative
        places[part][1] -= positive
    return np.asarray(part_F[family_N])


def draw_splits(
    labels_N: np.ndarray,
    families_N: np.ndarray,
    splits: int,
    test: float,
    validation: float,
    rng: np.random.Generator,
    where: str = "labels",
) -> np.ndarray:
    """(S, N) part of each person in each split: TEST, VALIDATION or TRAIN.

    Raises
    ------
    InputError : a class has too few people, or families so large that a part is left without one of the classes.
    """
    labels_N = np.asarray(labels_N, dtype=int)
    sizes = [int((labels_N == label).sum()) for label in (0, 1)]
    if min(sizes) < MIN_CLASS:
        found, hint = f"{sizes[1]} positive and {sizes[0]} negative people", "Add people, or drop this label."
        raise InputError(where, found, f"at least {MIN_CLASS} of each among evaluation people", hint)
    shares = (test, validation, 1 - test - validation)
    return np.array([_usable(labels_N, families_N, shares, rng, where) for _ in range(splits)])


def _usable(
    labels_N: np.ndarray, families_N: np.ndarray, shares: Sequence[float], rng: np.random.Generator, where: str
) -> np.ndarray:
    """A partition whose train and test parts hold both classes, and test not twice its share; redrawn until it does."""
    most = 2 * shares[TEST] * len(labels_N) + 1
    for _ in range(MOST_DRAWS):
        part_N = partition(labels_N, families_N, shares, rng)
        fits = (part_N == TEST).sum() <= most
        if fits and all(((part_N == part) & (labels_N == label)).any() for part in (TEST, TRAIN) for label in (0, 1)):
            return part_N
    hint = "People of a class are too few, or families too large, for evaluate.test."
    raise InputError(
        where, f"no such split in {MOST_DRAWS} draws", "both classes in train and test, and test near its share", hint
    )


def leave_site_out(
    labels_N: np.ndarray, families_N: np.ndarray, site_N: np.ndarray, validation: float, key: str
) -> dict[str, np.ndarray]:
    """Site -> (N,) parts: TEST on the site, VALIDATION and TRAIN, which divide the others by family.

    A family with people at two sites is tested at one and LEFT_OUT at the other. Sites without both classes, or without
    which a class is gone, have no entry; nor has a data set of one site.
    """
    found = {}
    for site in sorted({*site_N.tolist()} - {""}):
        tested, kin = site_N == site, np.isin(families_N, families_N[site_N == site])
        rest, rng = np.flatnonzero(~kin), seeded(key, "site", site)
        if any(len({*labels_N[people].tolist()}) < 2 for people in (tested, rest)):
            continue
        part_N = np.full(len(labels_N), LEFT_OUT)
        shares = (validation, 1 - validation)
        part_N[rest] = np.array([VALIDATION, TRAIN])[partition(labels_N[rest], families_N[rest], shares, rng)]
        part_N[tested] = TEST
        if len({*labels_N[part_N == TRAIN].tolist()}) == 2:
            found[site] = part_N
    return found


def draw_shots(
    labels_N: np.ndarray, families_N: np.ndarray, shots: int, draws: int, rng: np.random.Generator
) -> np.ndarray:
    """(draws, N) TRAIN for `shots` people a class, TEST for people of other families, LEFT_OUT for kin.

    Raises
    ------
    ValueError : fewer than `shots` + 1 families have a person of each class.
    """
    parts = []
    for _ in range(draws):
        order = rng.permutation(len(labels_N))
        _, first = np.unique(families_N[order], return_index=True)  # one person a family may be learnt from
        singles = order[np.sort(first)]
        chosen = [singles[labels_N[singles] == label] for label in (0, 1)]
        if min(map(len, chosen)) <= shots:
            raise ValueError(f"{shots} people a class asked of {[len(people) for people in chosen]} families")
        train = np.concatenate([people[:shots] for people in chosen])
        part_N = np.where(np.isin(families_N, families_N[train]), LEFT_OUT, TEST)
        part_N[train] = TRAIN
        parts.append(part_N)
    return np.array(parts)
