"""The protocols of the benchmark: named, versioned and frozen. A change of what one means is a new version.

Every result cites its protocol; `tables/tasks.parquet` has the hash of the splits that it was run on.
"""

from __future__ import annotations

from types import MappingProxyType

from pipeline.config import ProtocolName

FROZEN, TRAINED = "frozen-v2", "trained-v1"
LEAVE_SITE_OUT, LOW_SHOT = "leave-site-out-v1", "low-shot-v1"
IDENTITY = "identity-v1"

# Their versions, by the name that a configuration uses.
VERSIONS: MappingProxyType[ProtocolName, str] = MappingProxyType(
    {"frozen": FROZEN, "trained": TRAINED, "leave_site_out": LEAVE_SITE_OUT, "low_shot": LOW_SHOT}
)

MEANING: MappingProxyType[str, str] = MappingProxyType(
    {
        FROZEN: "Features are fixed. Standardised by the training part, L2 logistic regression with classes weighted "
        "equally (ridge for numbers), its strength chosen by inner folds of the training part; stratified splits "
        "70:15:15 of the evaluation people, no family divided, the same for every system.",
        TRAINED: "The system itself learns from the labels of the training part, with as many candidate settings as "
        "every other system; the validation part decides among them and when to stop. The first splits of frozen-v2.",
        LEAVE_SITE_OUT: "As frozen-v2, tested on one site and trained on all others; not for systems that are trained.",
        LOW_SHOT: "As frozen-v2, trained on k people a class, one a family, and tested on everybody of other families; "
        "below five a class the strength is the middle one of the list. The same draws for every system.",
        IDENTITY: "Short scans of two sessions of people on whom nothing was fitted: one is matched to the other.",
    }
)
