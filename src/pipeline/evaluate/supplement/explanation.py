"""Read-outs of a frozen encoder explained by parcel and by network, and tested against shuffled labels.

Axes: N people of a cohort, M of a task, E of them explained, B clips, T frames, C columns of a store, P parcels, K
components of the features, J tasks, L labelings (row 0: the true one).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from pipeline.bold.normalise import zscore
from pipeline.config import Study
from pipeline.evaluate.cohort import Cohort, Task
from pipeline.evaluate.encoders import Frozen
from pipeline.evaluate.judged import Row
from pipeline.evaluate.rows import HEADLINE
from pipeline.evaluate.splits import seeded
from pipeline.evaluate.statistics import regression_scores, weighted_auroc
from pipeline.evaluate.supplement import attribution
from pipeline.evaluate.supplement.dissection import resamples_of, result
from pipeline.evaluate.supplement.units import Units
from pipeline.intervals import family_weights, percentile_interval

EXPLAINED = "explained"


def explain(frozen: Frozen, cohort: Cohort, units: Units) -> tuple[list[Row], list[Row]]:
    """Rows about the read-outs that are explained, and of each parcel and network, for every task.

    Components, people and their gradients are the same for all tasks; only read-outs differ.
    """
    study, settings = frozen.study, frozen.study.supplement
    features_ND = cohort.per_person(frozen.features(cohort, shuffled=False).full_RD)
    if not cohort.tasks or not np.isfinite(features_ND).all():
        return [], []
    components = attribution.leading_components(features_ND, settings.components)
    component_NK, explained_N = components.of(features_ND), _explained_people(cohort, settings.people)
    readouts = [_read_outs(study, task, component_NK[task.rows_M], explained_N[task.rows_M]) for task in cohort.tasks]
    people, measured = np.flatnonzero(explained_N), []
    start_BTC = _baseline(frozen, cohort, explained_N)
    for person, clips_BTC in zip(people, _scans(frozen, cohort, people), strict=True):
        own_JK = np.array([readout.of_person(int(person)) for readout in readouts])
        measured.append(_attribute(frozen, clips_BTC, start_BTC, components, own_JK, units))
    error = float(np.mean([one.error for one in measured]))
    told: list[Row] = []
    places: list[Row] = []
    for number, (task, readout) in enumerate(zip(cohort.tasks, readouts, strict=True)):
        told.append(_readout_row(study, task, readout.score_M))
        told.append(result(task.name, "completeness_error", EXPLAINED, error, len(people)))
        here = [one for person, one in zip(people, measured, strict=True) if person in set(task.rows_M)]
        places += _place_rows(study, task, units, readout.applied(here, number))
    return told, places


def _explained_people(cohort: Cohort, count: int) -> np.ndarray:
    """(N,) who is explained: every mixture of labels in turn, people whose labels are all known first."""
    strata_N = np.zeros(len(cohort.people), dtype=int)
    for task in cohort.tasks:
        label_N = np.full(len(strata_N), 2)
        label_N[task.rows_M] = task.labels_M
        strata_N = 3 * strata_N + label_N
    families_N = cohort.people["family"].to_numpy()
    return attribution.balanced_people(strata_N, families_N, count, seeded(cohort.key, EXPLAINED))


def _baseline(frozen: Frozen, cohort: Cohort, explained_N: np.ndarray) -> torch.Tensor | None:
    """Clips of somebody who is not explained, the same for all who are: in differences of people they cancel."""
    others = np.flatnonzero(~explained_N)
    if frozen.study.supplement.baseline == "zero" or not len(others):
        return None
    chosen = seeded(cohort.key, EXPLAINED, "baseline").choice(others)
    return next(_scans(frozen, cohort, np.array([chosen])))


@dataclass(frozen=True, eq=False)
class ReadOuts:
    """What is read from components for one task: under the true labels (row 0) and under shuffled ones.

    `directions_LEK` and the rest of E are of the people of the task who are explained, `score_M` of all of its people.
    """

    rows_E: np.ndarray
    directions_LEK: np.ndarray
    targets_LE: np.ndarray
    families_E: np.ndarray
    score_M: np.ndarray

    def of_person(self, person: int) -> np.ndarray:
        """(K,) the true read-out that a person of the cohort is explained by; zeros where their label is not known."""
        found = np.flatnonzero(self.rows_E == person)
        return np.asarray(self.directions_LEK[0, found].sum(0))

    def applied(self, measured: list[Attributed], number: int) -> Explained:
        """Attributions of the read-outs, from those of the components; this task is the one of that number."""
        component_EKP = np.array([one.component_KP for one in measured])
        signed_LEP = np.einsum("lek,ekp->lep", self.directions_LEK, component_EKP, optimize=True)
        absolute_EP = np.array([one.absolute_JP[number] for one in measured])
        return Explained(absolute_EP, signed_LEP, self.targets_LE, self.families_E)


def _read_outs(study: Study, task: Task, component_MK: np.ndarray, explained_M: np.ndarray) -> ReadOuts:
    targets_LM = attribution.shuffled(
        task.target_M, explained_M, study.supplement.shuffles, seeded(task.key, "shuffles")
    )
    rng = seeded(task.key, "folds")
    directions_LMK = attribution.cross_fitted(component_MK, targets_LM, task.labels_M, task.families_M, rng)
    return ReadOuts(
        task.rows_M[explained_M],
        directions_LMK[:, explained_M],
        targets_LM[:, explained_M],
        task.families_M[explained_M],
        (component_MK * directions_LMK[0]).sum(1),
    )


def _readout_row(study: Study, task: Task, score_M: np.ndarray) -> Row:
    """How well the read-out that is explained does, on people it was not fitted on."""
    weights_RM = resamples_of(task, study.evaluate.bootstrap)
    if task.kind == "classes":
        value_R = weighted_auroc(task.labels_M, score_M, weights_RM)
    else:
        value_R = regression_scores(task.target_M, score_M, weights_RM, np.zeros(len(score_M)))["pearson_r"]
    interval = percentile_interval(float(value_R[0]), value_R[1:], study.evaluate.confidence)
    return result(task.name, HEADLINE[task.kind], EXPLAINED, interval, len(score_M))


def _scans(frozen: Frozen, cohort: Cohort, people: np.ndarray) -> Iterator[torch.Tensor]:
    """Clips `(B, T, C)` of each person, evenly spaced over the probed scan of their first run."""
    scans, first = frozen.scans(cohort), np.searchsorted(cohort.person_R, people)
    count, context, frames = frozen.study.supplement.clips, frozen.context, frozen.study.evaluate.frames
    for run in first:
        bold_TC = scans[run].read() if frames is None else zscore(scans[run].read(0, frames))[0]
        starts = np.unique(np.linspace(0, len(bold_TC) - context, count).round().astype(int))
        yield torch.from_numpy(np.stack([bold_TC[start : start + context] for start in starts]))


@dataclass(frozen=True, eq=False)
class Attributed:
    """One person's attributions by parcel: `component_KP` of every component, `absolute_JP` of each task's read-out."""

    component_KP: np.ndarray
    absolute_JP: np.ndarray
    error: float  # of completeness


def _attribute(
    frozen: Frozen,
    clips_BTC: torch.Tensor,
    start_BTC: torch.Tensor | None,
    components: attribution.Components,
    own_JK: np.ndarray,
    units: Units,
) -> Attributed:
    """Means over a person's clips, sums over time and the columns of a parcel; `own_JK` are the tasks' read-outs."""
    settings, parcels = frozen.study.supplement, len(units.names)
    device, count = frozen.raster.index_V.device, own_JK.shape[1]
    clips_BTC = clips_BTC.to(device)
    start_BTC = None if start_BTC is None else start_BTC[: len(clips_BTC)].to(device)
    score = attribution.ReadOut(frozen.encoder, frozen.raster, components.basis_DK, components.centre_D)
    readout_JBTC = np.zeros((len(own_JK), *clips_BTC.shape), np.float32)
    component_KP, total_BK = np.zeros((count, parcels)), np.zeros((len(clips_BTC), count))
    for component in range(count):
        each_BTC = attribution.integrated_gradients(score, clips_BTC, component, settings.steps, start_BTC)
        for readout_BTC, weight in zip(readout_JBTC, own_JK[:, component], strict=True):
            readout_BTC += np.float32(weight) * each_BTC
        total_BK[:, component] = each_BTC.sum((1, 2))
        component_KP[component] = attribution.by_parcel(each_BTC.sum(1).mean(0), units.parcel_C, parcels)
    error = attribution.completeness_error(score, clips_BTC, total_BK, start_BTC)
    absolute_JC = np.abs(readout_JBTC).sum(2).mean(1)
    return Attributed(component_KP, attribution.by_parcel(absolute_JC, units.parcel_C, parcels), error)


@dataclass(frozen=True, eq=False)
class Explained:
    """Of the people explained: absolute attributions by part, signed ones under every labeling, labels, families."""

    absolute_EP: np.ndarray
    signed_LEP: np.ndarray
    targets_LE: np.ndarray
    families_E: np.ndarray

    def summed(self, units: Units) -> tuple[list[str], Explained]:
        """The same by network."""
        names, absolute_EN = units.network_sums(self.absolute_EP)
        return names, Explained(absolute_EN, units.network_sums(self.signed_LEP)[1], self.targets_LE, self.families_E)


def _place_rows(study: Study, task: Task, units: Units, of_parcels: Explained) -> Iterator[Row]:
    names, of_networks = of_parcels.summed(units)
    nowhere = [{"x_mm": np.nan, "y_mm": np.nan, "z_mm": np.nan}] * len(names)
    where = [dict(zip(("x_mm", "y_mm", "z_mm"), centre, strict=True)) for centre in units.centres_P3]
    for level, parts, networks, at, found in (
        ("parcel", units.names, units.networks, where, of_parcels),
        ("network", names, names, nowhere, of_networks),
    ):
        columns = _measures(study, task, found)
        for place, (part, network) in enumerate(zip(parts, networks, strict=True)):
            named = {"task": task.name, "level": level, "part": part, "network": network, "source": units.source}
            values = {name: float(values_P[place]) for name, values_P in columns.items()}
            yield {**named, **at[place], **values, "n": len(found.families_E)}


def _measures(study: Study, task: Task, found: Explained) -> dict[str, np.ndarray]:
    """Columns of the attribution table, one value a part."""
    confidence = study.evaluate.confidence
    total_E1 = found.absolute_EP.sum(1, keepdims=True)
    share_EP = np.divide(found.absolute_EP, total_E1, out=np.zeros_like(found.absolute_EP), where=total_E1 > 0)
    weights_RE = family_weights(found.families_E, study.evaluate.bootstrap, seeded(task.key, EXPLAINED, "bootstrap"))
    shares_RP = weights_RE @ share_EP / weights_RE.sum(1, keepdims=True)
    ends = np.quantile(shares_RP, [(1 - confidence) / 2, (1 + confidence) / 2], axis=0)
    effect_LP = attribution.label_effects(found.signed_LEP, found.targets_LE)
    chance = attribution.chance_interval(effect_LP, confidence)
    z_P, p_P = attribution.permutation_test(effect_LP)
    return {
        "share": share_EP.mean(0),
        "share_low": ends[0],
        "share_high": ends[1],
        "signed": found.signed_LEP[0].mean(0),
        "effect": effect_LP[0],
        "chance_low": chance[0],
        "chance_high": chance[1],
        "z": z_P,
        "p": p_P,
    }
