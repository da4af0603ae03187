"""Which job of the workflow runs which systems: the quick ones together, each that is trained alone."""

from __future__ import annotations

from collections.abc import Mapping

from pipeline.config import Study
from pipeline.errors import InputError, nearest
from pipeline.evaluate.systems import System, applicable

SIMPLE = "baselines"  # the job of all systems that are not trained


def system_jobs(study: Study) -> dict[str, dict[str, list[System]]]:
    """Job -> data set -> its systems, for every evaluation data set; jobs without any are left out."""
    jobs: dict[str, dict[str, list[System]]] = {SIMPLE: {}}
    states = {state.joined: state.positive for state in study.evaluate.states.values()}
    for dataset, like in {**{name: name for name in study.with_role("evaluate")}, **states}.items():
        for system in applicable(study, like):
            if system.trained and "trained" not in study.evaluate.protocols:
                continue
            jobs.setdefault(system.name if system.trained else SIMPLE, {}).setdefault(dataset, []).append(system)
    return jobs


def require_job(study: Study, name: str) -> Mapping[str, list[System]]:
    """The systems of one job by data set.

    Raises
    ------
    InputError : the study has no such job.
    """
    jobs = system_jobs(study)
    if name not in jobs:
        raise InputError("--systems", f"'{name}'", "a job of the study's systems", nearest(name, jobs))
    return jobs[name]
