"""The words that rows of the benchmark's tables are told by: metrics, splits, groups, statuses, endings of systems.

What evaluates writes them and what draws reads them, so they stand here alone, without torch.
"""

from __future__ import annotations

from typing import Literal

# What a kind of task is judged by.
HEADLINE: dict[Literal["classes", "number"], str] = {"classes": "auroc", "number": "pearson_r"}

# Splits that are summaries: of the splits' values, of each person's averaged score, of shuffled labels.
MEAN, OOF, PERMUTED = "mean", "oof", "permuted"

# Groups: everybody, and pairs of people of one site.
ALL, WITHIN_SITE = "all", "within site"

# Why there is no value, beside how the training of an encoder ended.
TOO_FEW_PEOPLE, NOT_FINITE = "too_few_people", "not_finite"

# How the slug of an encoder that is read, fed or trained otherwise ends.
TIME_SHUFFLED, FINE_TUNED, ATTENTIVE = "time_shuffled", "fine_tuned", "attentive"
