"""Registry of encoders: one file an architecture, nothing imported but torch."""

from __future__ import annotations

from importlib import import_module
from inspect import Parameter, isclass, signature
from typing import Any, get_args

from pipeline.errors import InputError, nearest
from pipeline.models.description import Description, Variant
from pipeline.models.encoder import Encoder

UNFIT = (TypeError, ValueError, RuntimeError, IndexError, ZeroDivisionError)  # what wrong numbers of a model end in

# In the order of the paper. A file is imported when its architecture is asked for.
_NAMES = (
    "swift_v1",
    "swift_4d",
    "swift_v2",
    "neurostorm",
    "brainlm",
    "brain_jepa",
    "flatmap_mae",
    "brainmt",
    "tff",
    "brainnetcnn",
    "braingnn",
    "brainnettf",
    "signal_vit",
)


def names() -> list[str]:
    """Architectures that `create` knows."""
    return list(_NAMES)


def describe(name: str) -> Description:
    """Input, sizes, objective and source of an architecture.

    Raises
    ------
    InputError : no architecture has that name.
    """
    if name not in _NAMES:
        raise InputError("model", f"'{name}'", "an architecture of the registry", nearest(name, _NAMES))
    found: Description = import_module(f"pipeline.models.{name}").DESCRIPTION
    return found


def arguments(name: str, size: str | None = None, **overrides: Any) -> dict[str, Any]:
    """All arguments of a size, the default one where none is named, with overrides laid over them.

    Raises
    ------
    InputError : no such architecture or size.
    """
    description = describe(name)
    size = description.default if size is None else size
    if size not in description.sizes:
        raise InputError(f"size of {name}", f"'{size}'", "a size of its ladder", nearest(size, description.sizes))
    return {**description.sizes[size], **overrides}


def takes(name: str) -> set[str]:
    """Names of the arguments of an architecture, those that it hands on to the class it extends among them."""
    made: Any = describe(name).build
    makers = [vars(each)["__init__"] for each in made.__mro__ if "__init__" in vars(each)] if isclass(made) else [made]
    given = [each for maker in makers for each in signature(maker).parameters.values()]
    collected = Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD
    return {each.name for each in given if each.kind not in collected} - {"self"}


def build(name: str, spec: dict[str, Any]) -> Encoder:
    """Build an encoder with fresh weights from its own arguments alone.

    Raises
    ------
    InputError : unknown name, unknown argument, or numbers that do not fit each other.
    """
    made, known = describe(name).build, takes(name)
    for argument in spec.keys() - known:
        raise InputError(f"model '{name}'", f"'{argument}'", "an argument of it", nearest(argument, known))
    if (variant := spec.get("variant", "corrected")) not in get_args(Variant):
        hint = nearest(str(variant), get_args(Variant))
        raise InputError(f"model '{name}': variant", f"'{variant}'", "corrected or upstream", hint)
    try:
        return made(**spec)
    except UNFIT as error:
        hint = f"Its arguments: {', '.join(sorted(known))}."
        raise InputError(f"model '{name}'", f"what it cannot take: {error}", "arguments that fit", hint) from error


def create(name: str, size: str | None = None, **overrides: Any) -> Encoder:
    """Build an encoder with fresh weights.

    Parameters
    ----------
    name : one of `names()`.
    size : one of `describe(name).sizes`; empty: its default, the size that its authors published.
    overrides : arguments of its class that replace those of the size.

    Raises
    ------
    InputError : unknown name, size or argument, or numbers that do not fit each other.
    """
    return build(name, arguments(name, size, **overrides))
