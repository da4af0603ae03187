"""What a reconstruction keeps between parcels, run by run, beside controls: task `connectivity` of the spectral table.

It stands here because the spectral stage reconstructs the runs. Axes: T frames, V voxels, E edges, N people.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np

from pipeline.bold.template import Template, parcel_means
from pipeline.evaluate.supplement.connectivity import (
    compare,
    correlation,
    edges,
    individuality,
    smooth_noise,
    smoothness,
)
from pipeline.spectral.measure import Finding
from pipeline.spectral.runs import PersonRun
from pipeline.spectral.surrogates import phase_randomised

TASK = "connectivity"
SURROGATES = 10  # Gaussian ones a run; the co-skewness of one has a correlation of 0 +- 0.06 with the run's


class Print(NamedTuple):
    """A person's connectome as it was measured, and as it was reconstructed."""

    dataset: str
    person: str
    measured_E: np.ndarray
    made_E: np.ndarray


def take_print(run: PersonRun, made_TV: np.ndarray, template: Template) -> Print:
    """Both connectomes of a run."""
    signals = (parcel_means(signal_TV, template).astype(float) for signal_TV in (run.bold_TV, made_TV))
    return Print(run.dataset, run.person, *(edges(parcels_TP) for parcels_TP in signals))


def of_run(
    system: str, run: PersonRun, made_TV: np.ndarray, template: Template, rng: np.random.Generator
) -> Iterator[Finding]:
    """What the reconstruction of one run keeps, and what two signals that know less of the run would."""
    run_TP = parcel_means(run.bold_TV, template).astype(float)
    for metric, value in compare(run_TP, parcel_means(made_TV, template).astype(float))._asdict().items():
        yield Finding(run.dataset, system, run.person, TASK, metric, value)
    noise_TV = smooth_noise(len(run_TP), smoothness(run.bold_TV, template), template, rng)
    noise_r = correlation(edges(run_TP), edges(parcel_means(noise_TV, template).astype(float)))
    yield Finding(run.dataset, system, run.person, TASK, "fc_r_smooth_noise", noise_r)
    gaussian = [compare(run_TP, phase_randomised(run_TP, rng)).coskewness_r for _ in range(SURROGATES)]
    yield Finding(run.dataset, system, run.person, TASK, "coskewness_r_gaussian", float(np.mean(gaussian)))


def of_people(system: str, prints: Iterable[Print]) -> Iterator[Finding]:
    """Whether reconstructions are of their own person, for each data set of at least two."""
    datasets: dict[str, list[Print]] = {}
    for one in prints:
        datasets.setdefault(one.dataset, []).append(one)
    for dataset, people in datasets.items():
        if len(people) < 2:
            continue
        found = individuality(np.array([one.measured_E for one in people]), np.array([one.made_E for one in people]))
        for one, others_r, specificity in zip(people, found.others_r_N, found.specificity_N, strict=True):
            yield Finding(dataset, system, one.person, TASK, "fc_r_others", float(others_r))
            yield Finding(dataset, system, one.person, TASK, "fc_specificity", float(specificity))
