"""How systems of fixed features learn a task: with the study's strengths, its families and its harmonisation.

Axes: M people of a task, D features.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.config import Study
from pipeline.evaluate.probes.harmonise import combat
from pipeline.evaluate.probes.linear import Features, Harmonise, linear_reader, ridge_reader
from pipeline.evaluate.systems.people import kept_covariates

if TYPE_CHECKING:
    from pipeline.evaluate.cohort import Cohort, Task
    from pipeline.evaluate.reading import Reader
    from pipeline.evaluate.systems.material import Material


def logistic(material: Material, task: Task, features: Features) -> Reader:
    """L2 logistic regression (ridge for a number) on features of the task's people, harmonised where the study says."""
    penalties, harmonise = material.study.evaluate.penalties, harmonisation(material.study, material.cohort, task)
    return linear_reader(features, task.families_M, penalties, task.kind, harmonise)


def ridge(material: Material, task: Task, features: Features) -> Reader:
    """Ridge on the same features."""
    penalties, harmonise = material.study.evaluate.penalties, harmonisation(material.study, material.cohort, task)
    return ridge_reader(features, task.families_M, penalties, task.kind, harmonise)


def harmonisation(study: Study, cohort: Cohort, task: Task) -> Harmonise | None:
    """ComBat over sites, fitted in the training part, that keeps age and sex; None where the study asks for none."""
    if study.evaluate.harmonise == "none":
        return None
    covariates_MC = kept_covariates(cohort, task)
    return lambda features_MD, train_M: combat(features_MD, task.site_M, train_M, covariates_MC)
