"""Where evaluation computes what a network computes."""

from __future__ import annotations

import torch

from pipeline.config import Study


def device_of(study: Study) -> torch.device:
    """A GPU where there is one and `compute.device` does not say cpu."""
    return torch.device("cuda" if study.compute.device != "cpu" and torch.cuda.is_available() else "cpu")
