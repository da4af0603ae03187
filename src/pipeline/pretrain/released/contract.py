"""What a released encoder may be fed: the run it needs, and how its input is made of that run.

A data contract has two parts. `run` is held against the contract of a shard; `input` says what `released.inputs` makes
of it. A shard that differs in any field is refused, because features of such input mean nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pipeline.errors import InputError

TR_TOLERANCE_S = 1e-3  # headers round a TR to the millisecond

_Rule = Callable[[Any, Any], bool]


def _equal(found: Any, expected: Any) -> bool:
    return bool(found == expected)


def _in_family(found: Any, expected: Any) -> bool:
    """A template of a family of spaces: MNI152 takes MNI152NLin6Asym."""
    return str(found).startswith(str(expected))


def _close(found: Any, expected: Any) -> bool:
    return found is not None and math.isclose(float(found), float(expected), abs_tol=1e-3)


def _within(found: Any, expected: Any) -> bool:
    low, high = expected
    return found is not None and low - TR_TOLERANCE_S <= float(found) <= high + TR_TOLERANCE_S


def _at_least(found: Any, expected: Any) -> bool:
    return found is not None and float(found) >= float(expected)


_RULES: dict[str, tuple[_Rule, str, str]] = {
    "kind": (_equal, "{0!r}", "Use the store of that kind."),
    "space": (_in_family, "a space of the family {0}", "Register the runs to it."),
    "resolution_mm": (_close, "{0:g} mm", "Make shards on a template of that resolution."),
    "tr_s": (_within, "{0[0]:g} to {0[1]:g} s", "Resample the runs with shards.resample_tr_s, or leave them out."),
    "frames": (_at_least, "at least one clip of {0}", "Leave this run out."),
    "minimum": (
        _at_least,
        "no value below {0:g}",
        "Leave this run out: the encoder saw no negative values.",
    ),
    "normalisation": (_equal, "{0!r}", "Make shards of the signal as it was scanned."),
    "parcels": (_equal, "{0} parcels", "Make parcel series with that atlas."),
    "mesh": (_equal, "flat maps of the mesh {0}", "Flat maps of another mesh show other cortex at a pixel."),
    "raster": (_equal, "a raster of {0[0]} x {0[1]} pixels", "Make flat maps of that size."),
}


def check_contract(metadata: Mapping[str, Any], found: Mapping[str, Any], where: str | Path = "shard") -> None:
    """Refuse a run that an encoder was not made for.

    Parameters
    ----------
    metadata : of `load_released`; its `contract["run"]` names the fields and what they must be.
    found : the contract of a shard.
    where : what the error calls the shard.

    Raises
    ------
    InputError : the first field that differs, with what was found and what was expected.
    """
    for field, expected in metadata["contract"]["run"].items():
        rule, told, hint = _RULES[field]
        value = len(found.get("codes", ())) if field == "parcels" else found.get(field)
        if not rule(value, expected):
            raise InputError(f"{where}: contract.{field}", repr(value), told.format(expected), hint)
