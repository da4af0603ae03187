"""What is known of a released file, and what a converter makes of one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from pipeline.pretrain.released.reading import Checkpoint


@dataclass(frozen=True, eq=False)
class Converted:
    """An encoder of the registry, the arguments it is built with, and tensors by the names of its parameters.

    `needs` are further arguments that the release does not hold and whoever loads it must give, and what they are;
    `input` adds to the contract's part of that name.
    """

    model: str
    spec: dict[str, Any]
    tensors: dict[str, Tensor]
    needs: Mapping[str, str] = field(default_factory=dict)
    input: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Release:
    """A released file.

    Attributes
    ----------
    about : what the weights are, in one line.
    source : where the file and its hash are found.
    licence : of the weights.
    citation : whom to cite.
    sha256 : hash -> who vouches for it; empty where nobody was found who publishes one.
    contract : see `released.contract`.
    """

    about: str
    source: str
    licence: str
    citation: str
    sha256: Mapping[str, str]
    contract: Mapping[str, Any]
    convert: Callable[[Checkpoint], Converted]
