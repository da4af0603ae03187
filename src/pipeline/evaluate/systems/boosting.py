"""Boosted trees on principal components of the connectome.

Components are those of the training part; the number of leaves is chosen by its inner folds, the same as those in which
linear systems choose their strength, and among as many candidates. Classes weigh equally, so scores are logits at equal
prevalence. Axes: M people of a task, K components, F inner folds.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from scipy.special import logit

from pipeline.config import Boosting
from pipeline.evaluate.probes.linear import balanced_weights, inner_folds
from pipeline.evaluate.reading import Reading
from pipeline.evaluate.splits import TRAIN, halving
from pipeline.evaluate.systems.components import components
from pipeline.evaluate.systems.readers import harmonisation

if TYPE_CHECKING:
    from pipeline.evaluate.cohort import Kind, Task
    from pipeline.evaluate.reading import Reader
    from pipeline.evaluate.systems.material import Material

_SUREST = 1e-9  # of a probability, so that its logit is finite
LEAF_PEOPLE = 20  # in a leaf, as scikit-learn has it; fewer where there are not ten times as many people

Features: TypeAlias = Callable[[np.ndarray], np.ndarray]  # training mask (M,) -> (M, K)
Trees: TypeAlias = Callable[["Kind", Boosting, int, int], Any]  # kind, settings, leaves, people a leaf -> an estimator


def gradient_boosting(material: Material, task: Task) -> Reader:
    """scikit-learn's histogram gradient boosting."""
    return _of_material(material, task, histogram_trees)


def xgboost(material: Material, task: Task) -> Reader:
    """XGBoost with the same settings."""
    return _of_material(material, task, xgboost_trees)


def _of_material(material: Material, task: Task, trees: Trees) -> Reader:
    settings, harmonise = material.study.evaluate.boosting, harmonisation(material.study, material.cohort, task)
    products_MM = material.edge_products_NN[np.ix_(task.rows_M, task.rows_M)]

    def features(train_M: np.ndarray) -> np.ndarray:
        found_MK = components(products_MM[None], train_M, settings.components)
        return found_MK if harmonise is None else harmonise(found_MK, train_M)

    return boosting_reader(features, task.families_M, settings, task.kind, trees)


def boosting_reader(features: Features, families_M: np.ndarray, settings: Boosting, kind: Kind, trees: Trees) -> Reader:
    """Boosted trees on features fitted in the training part.

    Parameters
    ----------
    features : training mask (M,) -> (M, K).
    families_M : who may not be divided by the inner folds that choose the number of leaves.
    trees : `histogram_trees` or `xgboost_trees`.

    Returns
    -------
    A reader of (target_M, part_M); gaps, `inner_M` and the choice of the middle candidate are as in
    `probes.linear_reader`.
    """
    candidates = sorted(settings.leaves)

    def reader(target_M: np.ndarray, part_M: np.ndarray) -> Reading:
        train_M = part_M == TRAIN
        if len(np.unique(target_M[train_M])) < 2:
            return Reading(np.full(len(target_M), np.nan), np.full(len(target_M), np.nan))
        above = target_M if kind == "classes" else target_M > halving(target_M[train_M])
        held_FM = inner_folds(above.astype(int), families_M, train_M)
        tried = candidates if len(held_FM) else [candidates[len(candidates) // 2]]
        boosted = _Boosted(kind, settings, trees, features(train_M), target_M)
        inner_LM = [boosted.held_out(leaves, train_M, held_FM) for leaves in tried]
        best = int(np.argmin([boosted.loss(inner_M) for inner_M in inner_LM]))
        return Reading(boosted.scores(tried[best], train_M), inner_LM[best], f"leaves={tried[best]}")

    return reader


@dataclass(frozen=True, eq=False)
class _Boosted:
    """Trees on the features of one split."""

    kind: Kind
    settings: Boosting
    trees: Trees
    features_MK: np.ndarray
    target_M: np.ndarray

    def weights(self, chosen_M: np.ndarray) -> np.ndarray:
        """(M,) equal totals of both classes, or 1 a person; 0 for those not chosen."""
        if self.kind == "number":
            return chosen_M.astype(float)
        return balanced_weights(self.target_M, chosen_M[None])[0]

    def scores(self, leaves: int, seen_M: np.ndarray) -> np.ndarray:
        """(M,) logits or predictions of everybody by trees that saw some."""
        if not self.features_MK.shape[1]:
            middle = float(self.target_M[seen_M].mean()) if self.kind == "number" else 0.0
            return np.full(len(seen_M), middle)
        per_leaf = max(1, min(LEAF_PEOPLE, int(seen_M.sum()) // 10))
        estimator = self.trees(self.kind, self.settings, leaves, per_leaf)
        estimator.fit(self.features_MK[seen_M], self.target_M[seen_M], sample_weight=self.weights(seen_M)[seen_M])
        if self.kind == "number":
            return np.asarray(estimator.predict(self.features_MK), dtype=float)
        chance_M = np.clip(estimator.predict_proba(self.features_MK)[:, 1].astype(float), _SUREST, 1 - _SUREST)
        return np.asarray(logit(chance_M))

    def held_out(self, leaves: int, train_M: np.ndarray, held_FM: np.ndarray) -> np.ndarray:
        """(M,) scores of training people by the inner fits that did not see them; NaN for everybody else."""
        inner_M = np.full(len(train_M), np.nan)
        for held_M in held_FM:
            inner_M[held_M] = self.scores(leaves, train_M & ~held_M)[held_M]
        return inner_M

    def loss(self, score_M: np.ndarray) -> float:
        """Log loss with classes weighted equally, or squared error, over those who have a score."""
        known_M = np.isfinite(score_M)
        score_M, weights_M = np.where(known_M, score_M, 0), self.weights(known_M)
        if self.kind == "number":
            return float(weights_M @ (score_M - self.target_M) ** 2)
        return float(weights_M @ (np.logaddexp(0, score_M) - self.target_M * score_M))


def histogram_trees(kind: Kind, settings: Boosting, leaves: int, per_leaf: int) -> Any:
    """scikit-learn's estimator; no early stopping: it would hold people back at random, whatever their family."""
    from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor

    made = HistGradientBoostingRegressor if kind == "number" else HistGradientBoostingClassifier
    return made(
        max_iter=settings.trees,
        learning_rate=settings.learning_rate,
        max_leaf_nodes=leaves,
        min_samples_leaf=per_leaf,
        early_stopping=False,
        random_state=0,
    )


def xgboost_trees(kind: Kind, settings: Boosting, leaves: int, per_leaf: int) -> Any:
    """XGBoost's estimator; a person's weight is about 1, and `min_child_weight` of a logistic loss a quarter of it."""
    package = import_module("xgboost")  # an optional package
    made, least = (package.XGBRegressor, per_leaf) if kind == "number" else (package.XGBClassifier, per_leaf / 4)
    return made(
        n_estimators=settings.trees,
        learning_rate=settings.learning_rate,
        max_leaves=leaves,
        max_depth=0,
        grow_policy="lossguide",
        tree_method="hist",
        min_child_weight=least,
        n_jobs=1,
        random_state=0,
    )
