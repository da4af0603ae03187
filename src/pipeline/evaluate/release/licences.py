"""Which licences weights may have, by those of the data that they were trained on.

Whether weights are adapted from data in the sense of a licence is disputed; here they are taken to be.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from pipeline.errors import InputError, nearest


class Conditions(NamedTuple):
    """What a licence asks of what is made from the licensed."""

    non_commercial: bool = False
    share_alike: bool = False  # the same licence, or a later version of it
    no_derivatives: bool = False


# By name without version: of data, and those that weights may be given.
KNOWN: dict[str, Conditions] = {
    "Apache": Conditions(),
    "BSD-3-Clause": Conditions(),
    "CC-BY": Conditions(),
    "CC-BY-NC": Conditions(non_commercial=True),
    "CC-BY-NC-ND": Conditions(non_commercial=True, no_derivatives=True),
    "CC-BY-NC-SA": Conditions(non_commercial=True, share_alike=True),
    "CC-BY-ND": Conditions(no_derivatives=True),
    "CC-BY-SA": Conditions(share_alike=True),
    "CC0": Conditions(),
    "MIT": Conditions(),
    "ODC-By": Conditions(),
    "ODbL": Conditions(share_alike=True),
    "PDDL": Conditions(),
}


def family(licence: str) -> str | None:
    """The name in `KNOWN` of a licence, whatever its version and spelling; None for an agreement or the unknown."""
    name = re.sub(r"-v?\d+(\.\d+)*$", "", "-".join(licence.split()))
    return next((known for known in KNOWN if known.lower() == name.lower()), None)


def conditions(licence: str) -> Conditions | None:
    """What a licence of data asks; an agreement that says non-commercial asks for that; None where nothing is known."""
    known = family(licence)
    if known is not None:
        return KNOWN[known]
    return Conditions(non_commercial=True) if "non-commercial" in licence.lower() else None


def require_known(licence: str) -> str:
    """The family of a licence for weights.

    Raises
    ------
    InputError : it is not known here.
    """
    known = family(licence)
    if known is None:
        hint = f"{nearest(licence, KNOWN)} Give its SPDX name, e.g. CC-BY-NC-SA-4.0."
        raise InputError("--licence", f"'{licence}'", "a licence for the weights", hint)
    return known


def require_compatible(weights: str, data: str, where: str) -> None:
    """Refuse a licence of weights that the licence of their data does not allow.

    Raises
    ------
    InputError : the data forbid derivatives, ask for their own licence, or are non-commercial and the weights are not.
    """
    asked, given = conditions(data), KNOWN[require_known(weights)]
    if asked is None:
        return
    found = f"weights under {weights}, data under {data}"
    if asked.no_derivatives:
        hint = "Their licence forbids adapted material: train without them."
        raise InputError(where, found, "data that may be adapted", hint)
    if asked.share_alike and family(weights) != family(data):
        hint = "Data sets that each ask for another licence cannot be released together."
        raise InputError(where, found, f"{data} for the weights, as it asks for itself", hint)
    if asked.non_commercial and not given.non_commercial:
        hint = "Give --licence CC-BY-NC-4.0, or train without it."
        raise InputError(where, found, "a non-commercial licence for the weights", hint)
