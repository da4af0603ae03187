"""Simple systems that every encoder must beat: connectome, mean and SD of the signal, confounds alone, chance.

They go through the same protocol as encoders: here are only their features. Axes: R runs, N people, P parcels,
T frames, E edges = P (P - 1) / 2, D features.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import pandas as pd

from pipeline.bold.reader import Shard
from pipeline.bold.template import Template, parcel_means
from pipeline.evaluate.cohort import Cohort
from pipeline.evaluate.features import RunFeatures

CONNECTOME, TIME_AVERAGED, TEMPORAL_SD = "connectome_logistic", "time_averaged", "temporal_sd"
CONFOUNDS, CHANCE = "confounds", "chance"


def connectome(parcels_TP: np.ndarray) -> np.ndarray:
    """(E,) Fisher z of Pearson correlations between parcels; 0 for parcels without variance."""
    centred = parcels_TP - parcels_TP.mean(0)
    length_P = np.linalg.norm(centred, axis=0)
    units = np.divide(centred, length_P, out=np.zeros_like(centred), where=length_P > 1e-9 * np.sqrt(len(centred)))
    edges = np.triu_indices(parcels_TP.shape[1], k=1)
    return np.asarray(np.arctanh(np.clip((units.T @ units)[edges], -0.999999, 0.999999)))


def run_features(
    shards: Iterable[Shard], template: Template, short_frames: int, frames: int | None = None
) -> dict[str, RunFeatures]:
    """Features of every run for each system that reads BOLD; each run is read once.

    `time_averaged` is the mean image by parcel, `temporal_sd` the SD of parcel means, both divided by the mean over the
    brain so that the scanner's unit drops out. The mean image and the voxels' SD are those of the whole run, whatever
    `frames`; correlations and SDs of parcels are of the first `frames` alone.
    """
    full: dict[str, list[np.ndarray]] = {CONNECTOME: [], TIME_AVERAGED: [], TEMPORAL_SD: []}
    short: dict[str, list[np.ndarray]] = {name: [] for name in full}
    for shard in shards:
        bold_TV, mean_V = shard.read(0, frames), shard.mean.astype(float)
        brain = abs(mean_V.mean()) or 1.0
        parcels_TP = parcel_means(bold_TV, template).astype(float)
        signal_TP = parcel_means(bold_TV * (shard.std / brain), template).astype(float)
        image_P = parcel_means(mean_V[None] / brain, template)[0]
        for kept, length in ((full, len(bold_TV)), (short, short_frames)):
            kept[CONNECTOME].append(connectome(parcels_TP[:length]))
            kept[TIME_AVERAGED].append(image_P)
            kept[TEMPORAL_SD].append(signal_TP[:length].std(0))
    return {name: RunFeatures(np.array(full[name]), np.array(short[name])[:, None]) for name in full}


def confound_features(cohort: Cohort, columns: Sequence[str], task: str) -> np.ndarray:
    """(N, D) mean framewise displacement, age, site, the named columns, and sex unless sex is the task.

    Text becomes one column a level; a missing number stays NaN and takes the training people's mean.
    """
    motion = [np.nan if run["mean_fd_mm"] is None else run["mean_fd_mm"] for run in cohort.runs]
    parts = [cohort.per_person(np.array(motion, dtype=float)[:, None])]
    for column in dict.fromkeys(("age", "site", "sex", *columns)):
        if column in cohort.people and column != task:
            parts.append(_numbers(cohort.people[column]))
    return np.hstack(parts)


def _numbers(values: pd.Series) -> np.ndarray:
    """(N, 1) numbers, or (N, levels) indicators where any known value is text."""
    numbers = pd.to_numeric(values, errors="coerce")
    if (numbers.notna() | values.isna()).all():
        return numbers.to_numpy(dtype=float)[:, None]
    return pd.get_dummies(values.astype(str)).to_numpy(dtype=float)


def no_features(people: int) -> np.ndarray:
    """(N, 0): what chance knows; the probe is left with its intercept, and identity with ties."""
    return np.zeros((people, 0))
