"""What the registry says of an architecture: one `Description` a file, under the name `DESCRIPTION`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import nn

from pipeline.models.encoder import Encoder

Input = Literal["voxels", "parcels", "flat map", "connectome", "signal"]
Objective = Literal["masked reconstruction", "contrastive", "JEPA", "phases", "supervised"]
Variant = Literal["corrected", "upstream"]


@dataclass(frozen=True)
class Description:
    """One row of `pipeline models`.

    Attributes
    ----------
    build : the encoder's class; `sizes` are its arguments by name, smallest first; `default` is what `create` builds
        where no size is named.
    learner : encoder -> the module that its own objective trains: the encoder with decoder, predictor or head.
    published : size -> the parameter count that its authors give, and of what.
    defects : name -> what `variant="upstream"` reproduces and `"corrected"` does not; empty where nothing is known.
    without_gradient : name or prefix of parameters that its design leaves without a gradient -> why.
    """

    name: str
    input: Input
    objective: Objective
    mixing: str
    source: str
    build: Callable[..., Encoder]
    sizes: Mapping[str, Mapping[str, Any]]
    default: str
    learner: Callable[[Any], nn.Module]
    published: Mapping[str, str] = field(default_factory=dict)
    defects: Mapping[str, str] = field(default_factory=dict)
    without_gradient: Mapping[str, str] = field(default_factory=dict)
