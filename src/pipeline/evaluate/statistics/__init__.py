"""Statistics of a benchmark: areas under ROC curves, calibration, predicted numbers, tests over splits, pooling."""

from pipeline.evaluate.statistics.auroc import (
    Comparison,
    auroc,
    auroc_interval,
    balanced_accuracy,
    compare_aurocs,
    logit_interval,
    resampled_error,
    smaller_class,
    weighted_auroc,
    weighted_balanced_accuracy,
)
from pipeline.evaluate.statistics.calibration import (
    CalibrationCurve,
    Recalibration,
    brier,
    calibration,
    calibration_curve,
    regression_scores,
)
from pipeline.evaluate.statistics.inference import (
    PooledEffect,
    RepeatedTest,
    corrected_repeated_cv_test,
    holm,
    minimal_detectable_difference,
    pooled_effect,
)

__all__ = [
    "CalibrationCurve",
    "Comparison",
    "PooledEffect",
    "Recalibration",
    "RepeatedTest",
    "auroc",
    "auroc_interval",
    "balanced_accuracy",
    "brier",
    "calibration",
    "calibration_curve",
    "compare_aurocs",
    "corrected_repeated_cv_test",
    "holm",
    "logit_interval",
    "minimal_detectable_difference",
    "pooled_effect",
    "regression_scores",
    "resampled_error",
    "smaller_class",
    "weighted_auroc",
    "weighted_balanced_accuracy",
]
