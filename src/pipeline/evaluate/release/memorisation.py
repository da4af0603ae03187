"""Whether weights remember whom they were trained on: asked of a cell before it is given away.

Three questions, each to people trained on and to people of the same data sets who were not:

- membership: can they be told apart by how well the learner does on their clips? By its loss, under masks that it never
  trained with; where the loss is of a whole batch (contrastive), by how alike the clips of a person are to it.
- nearness: do people trained on lie closer to the training set than others do, in the space of features? Other
  training people, for both; see `nearness`.
- copies: is the nearest training clip of somebody held out the same signal?

Source: Yeom et al. (2018), IEEE CSF, for membership by loss; Liu et al. (2021), EncoderMI, ACM CCS, for membership by
the similarity of views; Carlini et al. (2022), IEEE S&P, on what such averages do not see.

Legend: K, L clips, k of a block; D channels; P people; F families; T frames; V columns of a shard; N
people of both sides.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np

from pipeline.config import Study
from pipeline.evaluate.release.membership import Measured, Side, choose_sides, measure, objective_for
from pipeline.evaluate.statistics import auroc, auroc_interval
from pipeline.grid import Cell
from pipeline.intervals import Interval
from pipeline.models.parts.voxels import Raster
from pipeline.pretrain.people import Paths

PEOPLE = 256  # of each side, where more are there
TOLERATED = 0.55  # AUROC up to which a difference, however certain, gives nobody away
SHOWN = 0.65  # what the interval must stay below, or too few people were asked
COPY = 0.8  # correlation of two clips that are one signal; those of two people are near 0
BLOCK = 256  # clips whose distances to all others are held at once
CONFIDENCE = 0.975  # of each of the two intervals, so that both hold in 95 of 100 cells
PERMUTATIONS = 400  # of who was trained on

Verdict: TypeAlias = Literal["no sign of memorisation", "sign of memorisation", "too few people to say"]


@dataclass(frozen=True)
class Memorisation:
    """What was found. AUROCs are of telling people trained on (1) from others (0)."""

    statistic: Literal["loss", "similarity"]
    membership: Interval  # over families
    nearness: Interval  # by permutation
    trained_mean: float  # of the statistic
    held_out_mean: float
    trained_distance: float  # mean distance to the nearest training clip of somebody else, in SDs of a channel
    held_out_distance: float
    copies: int  # people held out whose nearest training clip is the same signal
    people_trained: int
    people_held_out: int
    clips: int

    @property
    def verdict(self) -> Verdict:
        """A sign: a copy, or an AUROC above chance by its whole interval and above what is tolerated."""
        found = (self.membership, self.nearness)
        if self.copies or any(each.low > 0.5 and each.value > TOLERATED for each in found):
            return "sign of memorisation"
        return "no sign of memorisation" if all(each.high <= SHOWN for each in found) else "too few people to say"

    @property
    def passed(self) -> bool:
        """Whether the check lets restricted data go: no sign, among enough people."""
        return self.verdict == "no sign of memorisation"

    @property
    def numbers(self) -> dict[str, Any]:
        """All of it for a JSON file; nobody is named."""
        plain = {name: _plain(value) for name, value in vars(self).items()}
        return plain | {"verdict": self.verdict, "tolerated": TOLERATED, "shown_below": SHOWN, "confidence": CONFIDENCE}


def _plain(value: Any) -> Any:
    """Intervals by name, and None for what is not a number."""
    if isinstance(value, Interval):
        return {name: _plain(end) for name, end in value._asdict().items()}
    return None if isinstance(value, float) and not np.isfinite(value) else value


def check_cell(
    study: Study,
    cell: Cell,
    learner: Any,
    metadata: Mapping[str, Any],
    raster: Raster,
    manifests: Paths,
    participants: Paths,
    draws: str | Path,
    people: int = PEOPLE,
) -> Memorisation:
    """Ask the learner of a cell.

    Parameters
    ----------
    learner, metadata : of `load_cell`.
    raster : where the columns of shards lie in what it sees; decides the device.
    manifests, participants : a file for each data set that the cell was trained on.
    people : at most so many of each side, drawn by the hash of their names.

    Raises
    ------
    InputError : fewer than two people on a side have runs of one clip, or a shard of another contract.
    """
    context = study.context_frames(cell.architecture)
    sides = choose_sides(study, cell, metadata["contract"], manifests, participants, draws, people)
    options = study.architectures[cell.architecture].objective_options
    objective = objective_for(learner, metadata, raster, options, context)
    trained, held_out = (measure(learner, raster, side, context, objective) for side in sides)
    return compare(*sides, trained, held_out, context)


def compare(trained: Side, held_out: Side, of_trained: Measured, of_held_out: Measured, context: int) -> Memorisation:
    """Answers to the three questions, from what the learner makes of both sides."""
    features_KD = _standardised(np.concatenate([of_trained.features_KD, of_held_out.features_KD]))
    own_KD, other_KD = np.split(features_KD, [len(trained.person_K)])
    if of_trained.loss_K is not None and of_held_out.loss_K is not None:
        statistic: Literal["loss", "similarity"] = "loss"
        in_P, out_P = _by_person(of_trained.loss_K, trained.person_K), _by_person(of_held_out.loss_K, held_out.person_K)
    else:
        statistic = "similarity"
        in_P, out_P = similarity(own_KD, trained.person_K), similarity(other_KD, held_out.person_K)
    sign = -1 if statistic == "loss" else 1
    near = nearness(own_KD, other_KD, trained, held_out)
    return Memorisation(
        statistic=statistic,
        membership=_told_apart(sign * in_P, sign * out_P, trained.family_P, held_out.family_P),
        nearness=near.auroc,
        trained_mean=_mean(in_P),
        held_out_mean=_mean(out_P),
        trained_distance=near.trained,
        held_out_distance=near.held_out,
        copies=count_copies(trained, held_out, own_KD, other_KD, context),
        people_trained=len(trained.family_P),
        people_held_out=len(held_out.family_P),
        clips=len(features_KD),
    )


def _standardised(features_KD: np.ndarray) -> np.ndarray:
    """Each channel by the mean and SD of both sides: those of one side alone would favour it."""
    spread_D = features_KD.std(0)
    return (features_KD - features_KD.mean(0)) / np.where(spread_D > 0, spread_D, 1)


class Nearness(NamedTuple):
    """How near people are to the training set, and whether that tells who is in it."""

    auroc: Interval
    trained: float
    held_out: float


def nearness(own_KD: np.ndarray, other_KD: np.ndarray, trained: Side, held_out: Side) -> Nearness:
    """Whether people trained on lie nearer to other training people than people held out do.

    Distances of people to one set depend on each other, so that resampled people would promise too much. The interval
    is as wide as the AUROC varies when other families, as many, are called trained on: its low end is above .5 where
    fewer than one in eighty of such draws come as high.
    """
    person_K = np.concatenate([trained.person_K, held_out.person_K + len(trained.family_P)])
    families, family_P = np.unique(np.concatenate([trained.family_P, held_out.family_P]), return_inverse=True)
    clips_KD = np.concatenate([own_KD, other_KD])
    distance_KF = to_families(clips_KD, clips_KD, family_P[person_K], len(families))
    distance_KF[np.arange(len(person_K)), family_P[person_K]] = np.inf
    members = np.unique(family_P[: len(trained.family_P)])
    distance_P = _to_members(distance_KF, members, family_P, person_K)
    inside_P = np.isin(family_P, members)
    means = _mean(distance_P[inside_P]), _mean(distance_P[~inside_P])
    if not np.isfinite(distance_P).all():
        return Nearness(Interval(np.nan, np.nan, np.nan), *means)
    rng, drawn = np.random.default_rng(0), []
    for _ in range(PERMUTATIONS):
        chosen = rng.permutation(len(families))[: len(members)]
        drawn.append(auroc(np.isin(family_P, chosen), -_to_members(distance_KF, chosen, family_P, person_K)))
    value = auroc(inside_P, -distance_P)
    low, high = np.quantile(drawn, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2]) - 0.5
    return Nearness(Interval(value, max(0.0, float(value - high)), min(1.0, float(value - low))), *means)


def _to_members(distance_KF: np.ndarray, members: np.ndarray, family_P: np.ndarray, person_K: np.ndarray) -> np.ndarray:
    """Mean distance of each person's clips to the nearest clip of the families `members`, (P,).

    One family is left out for everybody: their own, or, for those who have none there, each in turn. So all are
    compared with as many.
    """
    to_KF = distance_KF[:, members]
    outside_K = np.flatnonzero(~np.isin(family_P, members)[person_K])
    to_KF[outside_K, person_K[outside_K] % len(members)] = np.inf
    return _by_person(to_KF.min(1), person_K)


def to_families(clips_KD: np.ndarray, others_LD: np.ndarray, family_L: np.ndarray, families: int) -> np.ndarray:
    """(K, F) Euclidean distance of each clip to the nearest clip of each family, over the root of D, float32.

    Families are numbered, and each has a clip among the others. Memory holds that table, 8 MB for 256 people a side
    with four clips each, and `BLOCK` clips' distances to all others.
    """
    order = np.argsort(family_L, kind="stable")
    starts_F = np.searchsorted(family_L[order], np.arange(families))
    sorted_LD = others_LD[order]
    distance_KF = np.empty((len(clips_KD), families), np.float32)
    for first in range(0, len(clips_KD), BLOCK):
        block_kD = clips_KD[first : first + BLOCK]
        lengths_kL = np.square(block_kD).sum(1)[:, None] + np.square(sorted_LD).sum(1)
        squared_kL = np.maximum(lengths_kL - 2 * block_kD @ sorted_LD.T, 0)
        distance_KF[first : first + BLOCK] = np.sqrt(np.minimum.reduceat(squared_kL, starts_F, axis=1))
    return distance_KF / np.float32(np.sqrt(clips_KD.shape[1]))


def similarity(clips_KD: np.ndarray, person_K: np.ndarray) -> np.ndarray:
    """(P,) mean cosine of the pairs of each person's clips; NaN where there is no pair."""
    lengths_K1 = np.linalg.norm(clips_KD, axis=1, keepdims=True)
    unit_KD = clips_KD / np.where(lengths_K1 > 0, lengths_K1, 1)
    sums_PD = np.zeros((person_K.max() + 1, clips_KD.shape[1]))
    np.add.at(sums_PD, person_K, unit_KD)
    clips_P = np.bincount(person_K)
    pairs_P = clips_P * (clips_P - 1)
    alike_P = np.square(sums_PD).sum(1) - np.bincount(person_K, np.square(unit_KD).sum(1))
    return np.where(pairs_P > 0, alike_P / np.maximum(pairs_P, 1), np.nan)


def _by_person(values_K: np.ndarray, person_K: np.ndarray) -> np.ndarray:
    return np.asarray(np.bincount(person_K, values_K) / np.bincount(person_K))


def _mean(values_P: np.ndarray) -> float:
    known_P = values_P[np.isfinite(values_P)]
    return float(known_P.mean()) if known_P.size else np.nan


def _told_apart(trained_P: np.ndarray, others_P: np.ndarray, *families: np.ndarray) -> Interval:
    """AUROC of a score that is higher in people trained on; NaN where a side has none."""
    score_N, family_N = np.concatenate([trained_P, others_P]), np.concatenate(families)
    label_N = np.repeat([1, 0], [len(trained_P), len(others_P)])
    known = np.isfinite(score_N)
    if len(np.unique(label_N[known])) < 2:
        return Interval(np.nan, np.nan, np.nan)
    return auroc_interval(label_N[known], score_N[known], family_N[known], confidence=CONFIDENCE)


def count_copies(trained: Side, held_out: Side, own_KD: np.ndarray, other_KD: np.ndarray, context: int) -> int:
    """People held out whose clip that lies nearest to a training clip is the same signal, or all but the same."""
    copies = 0
    for who in range(len(held_out.family_P)):
        mine = np.flatnonzero(held_out.person_K == who)
        distance_KL = to_families(other_KD[mine], own_KD, np.arange(len(own_KD)), len(own_KD))
        clip, theirs = np.unravel_index(int(distance_KL.argmin()), distance_KL.shape)
        alike = _correlation(held_out.clip(int(mine[clip]), context), trained.clip(int(theirs), context))
        copies += alike >= COPY
    return int(copies)


def _correlation(first_TV: np.ndarray, second_TV: np.ndarray) -> float:
    norms = float(np.linalg.norm(first_TV)) * float(np.linalg.norm(second_TV))
    return float(np.vdot(first_TV, second_TV)) / norms if norms else 0.0
