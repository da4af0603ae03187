"""Registry of encoders: one file an architecture, nothing imported but torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pipeline.errors import InputError, nearest
from pipeline.models.encoder import VoxelEncoder
from pipeline.models.swift_v1 import SwiftV1
from pipeline.models.swift_v2 import SwiftV2


@dataclass(frozen=True)
class Description:
    """What one line of `pipeline models` says about an architecture."""

    name: str
    input: str
    objective: str
    mixing: str
    source: str
    build: Callable[..., VoxelEncoder]


_DESCRIPTIONS = (
    Description(
        "swift_v1", "voxels", "masked reconstruction", "4D shifted windows", "Kim et al. (2023), NeurIPS", SwiftV1
    ),
    Description(
        "swift_v2", "voxels", "masked reconstruction", "time, then 3D shifted windows", "CCN 2025 abstract", SwiftV2
    ),
)
_REGISTRY = {description.name: description for description in _DESCRIPTIONS}


def names() -> list[str]:
    """Architectures that `create` knows."""
    return sorted(_REGISTRY)


def describe(name: str) -> Description:
    """Input, objective and source of an architecture.

    Raises
    ------
    InputError : no architecture has that name.
    """
    if name not in _REGISTRY:
        raise InputError("model", f"'{name}'", "an architecture of the registry", nearest(name, _REGISTRY))
    return _REGISTRY[name]


def create(name: str, **spec: Any) -> VoxelEncoder:
    """Build an encoder with fresh weights.

    Parameters
    ----------
    name : one of `names()`.
    spec : arguments of its class: `width`, `depths` and `heads` of the stages, `grid` (places along x, y, z), `patch`
        (voxels along x, y, z, and frames), `context_frames`, and its own options.

    Raises
    ------
    InputError : unknown name, unknown option, or numbers that do not fit each other.
    """
    build = describe(name).build
    try:
        return build(**spec)
    except (TypeError, ValueError) as error:
        hint = f"The arguments of pipeline.models.{name}.{build.__name__} are its options."
        raise InputError(f"model '{name}'", f"what it cannot take: {error}", "its own arguments", hint) from error
