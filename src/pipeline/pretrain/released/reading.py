"""A released file as plain tensors: its hash first, then its content, and nothing in it is ever run."""

from __future__ import annotations

import argparse
import pickle
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from pipeline.artefact import sha256_file
from pipeline.errors import InputError

# Beside tensors and plain Python values, the one class whose instances a checkpoint may hold: Lightning stores the
# options of a training script as such a bag of values.
ALLOWED_CLASSES = (argparse.Namespace,)

_UNREADABLE = (pickle.UnpicklingError, SafetensorError, RuntimeError, EOFError, ValueError, KeyError, TypeError)


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """What a released file holds: `tensors` by name, `options` of its training if it names them, and its hash."""

    path: Path
    sha256: str
    tensors: dict[str, Tensor]
    options: dict[str, Any]


def check_sha256(path: Path, pinned: Collection[str], given: str | None, where_to_compare: str) -> str:
    """The hash of a file, once it is one of those pinned, or the one that the user names.

    Raises
    ------
    InputError : no such file, another hash, or neither a pinned hash nor a given one.
    """
    if not path.is_file():
        raise InputError(path, "no such file", "a released checkpoint", f"Get it: {where_to_compare}.")
    wanted = {given.strip().lower()} if given is not None else set(pinned)
    if any(not re.fullmatch("[0-9a-f]{64}", text) for text in wanted):
        raise InputError("--sha256", f"'{given}'", "64 hexadecimal digits", f"Run `sha256sum {path}`.")
    found = sha256_file(path)
    if not wanted:
        hint = f"Compare it with the file's page ({where_to_compare}), then give it as `--sha256 {found}`."
        raise InputError(
            path, f"SHA-256 {found}", "a hash to hold it against, and none is pinned for this system", hint
        )
    if found not in wanted:
        hint = "Get the file again; or, if this is the file you mean, give its own hash as --sha256."
        raise InputError(path, f"SHA-256 {found}", " or ".join(sorted(wanted)), hint)
    return found


def read_checkpoint(path: Path, sha256: str) -> Checkpoint:
    """Tensors of a safetensors file or a torch checkpoint (Lightning, Hugging Face, or a plain state dict).

    A pickle is read by torch's restricted unpickler, which knows tensors, plain values and `ALLOWED_CLASSES` and calls
    nothing else.

    Raises
    ------
    InputError : the file is damaged, is no checkpoint, or would need other classes to be read.
    """
    try:
        if _is_safetensors(path):
            with safe_open(path, framework="pt") as file:
                return Checkpoint(path, sha256, {name: file.get_tensor(name) for name in file.keys()}, {})  # noqa: SIM118
        with torch.serialization.safe_globals(list(ALLOWED_CLASSES)):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except _UNREADABLE as error:
        if "unsupported global" in str(error).lower() or "WeightsUnpickler error" in str(error):
            found = f"a pickle that asks for more than tensors and plain values ({_foreign(error)})"
            hint = "It was not run. Convert it to safetensors where you trust it, and give that file."
            raise InputError(path, found, "a checkpoint of tensors", hint) from error
        found = f"a file that cannot be read ({_first_line(error)})"
        raise InputError(path, found, "a torch checkpoint or a safetensors file", "Get the file again.") from error
    tensors, options = _tensors_and_options(path, content)
    return Checkpoint(path, sha256, tensors, options)


def _is_safetensors(path: Path) -> bool:
    """By its head: the length of a JSON header, then the header."""
    with path.open("rb") as stream:
        head = stream.read(9)
    return len(head) == 9 and head[8:] == b"{" and int.from_bytes(head[:8], "little") < path.stat().st_size


def _foreign(error: BaseException) -> str:
    named = re.search(r"GLOBAL ([\w.]+)", str(error), re.IGNORECASE)
    # Its own text ends in the advice to read the file without restrictions: not to be passed on.
    return named.group(1) if named else "a class that it does not know"


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)  # an EOFError has no message


def _tensors_and_options(path: Path, content: Any) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Where each form keeps its weights: `state_dict` (Lightning), `model` (CortexMAE), or the dict itself."""
    if not isinstance(content, Mapping):
        found = f"a pickled {type(content).__name__}"
        raise InputError(path, found, "a dictionary of weights", "Give the checkpoint itself.")
    weights = next((content[key] for key in ("state_dict", "model") if isinstance(content.get(key), Mapping)), content)
    strangers = [str(name) for name, value in weights.items() if not isinstance(value, Tensor)]
    if strangers or not weights:
        found = f"'{strangers[0]}', which is no tensor," if strangers else "an empty dictionary"
        raise InputError(path, f"{found} among the weights", "tensors by name", "Give the checkpoint itself.")
    options = {} if weights is content else _options(content)
    return {str(name): tensor for name, tensor in weights.items()}, options


def _options(content: Mapping[str, Any]) -> dict[str, Any]:
    """Options by name: `hyper_parameters` (Lightning), else `args` (CortexMAE); none where it is no bag of values."""
    for found in (content.get("hyper_parameters"), content.get("args")):
        if isinstance(found, Mapping | argparse.Namespace):
            return dict(found if isinstance(found, Mapping) else vars(found))
    return {}


def without(tensors: Mapping[str, Tensor], *prefixes: str) -> dict[str, Tensor]:
    """Tensors whose names begin with none of `prefixes`."""
    return {name: tensor for name, tensor in tensors.items() if not name.startswith(prefixes)}


def joined(tensors: Mapping[str, Tensor], parts: tuple[str, str, str]) -> dict[str, Tensor]:
    """Query, key and value as one map `.attn.qkv.`, where all three are there and agree; `parts` are their names."""
    whole = dict(tensors)
    for name in [name for name in tensors if parts[0] in name]:
        names = [name.replace(parts[0], part) for part in parts]
        if all(part in tensors and tensors[part].shape == tensors[name].shape for part in names):
            whole[name.replace(parts[0], ".attn.qkv.")] = torch.cat([whole.pop(part) for part in names])
    return whole


def match(path: Path, found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of `expected`, by name, as float32 where they are numbers; neither more nor fewer may be found.

    Raises
    ------
    InputError : the first name that is missing, unexpected, of another shape, or not finite.
    """
    hint = "Check that the file is of the system that --system names."
    for names, what in ((expected.keys() - found.keys(), "no"), (found.keys() - expected.keys(), "an unknown")):
        if names:
            told = f"{what} tensor '{min(names)}' ({len(names)} such)"
            raise InputError(path, told, f"the {len(expected)} tensors of the encoder", hint)
    for name in sorted(expected):
        shape, wanted = tuple(found[name].shape), tuple(expected[name].shape)
        if shape != wanted:
            raise InputError(f"{path}: {name}", f"shape {shape}", f"shape {wanted}", hint)
        if not torch.isfinite(found[name]).all():
            raise InputError(f"{path}: {name}", "values that are not finite", "weights", "Get the file again.")
    return {name: found[name].to(expected[name].dtype) for name in expected}


def require(path: Path, tensors: Mapping[str, Tensor], name: str, axes: int) -> tuple[int, ...]:
    """Shape of a tensor from which a converter reads a size.

    Raises
    ------
    InputError : it is missing, or has another number of axes.
    """
    shape = tuple(tensors[name].shape) if name in tensors else None
    if shape is None or len(shape) != axes:
        found = "no such tensor" if shape is None else f"shape {shape}"
        hint = "Check that the file is of the system that --system names."
        raise InputError(f"{path}: {name}", found, f"a tensor of {axes} axes", hint)
    return shape
