"""Training state and finished encoders on disk: safetensors with one JSON record in the header, nothing pickled.

A checkpoint appears under its name complete or not at all, is read back and compared before the one before it is
removed, and is refused by a cell or a data contract other than its own.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from pipeline.artefact import atomic_file, canonical_json
from pipeline.errors import InputError
from pipeline.pretrain.objectives import build_learner

RECORD = "pipeline"  # the one key of a header: several would be written in random order
Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class Store:
    """Folder of a cell's checkpoints, and what a checkpoint must have been made for."""

    folder: Path
    identity: Mapping[str, Any]  # cell hash and data contract

    @property
    def stop_file(self) -> Path:
        """A file that a person creates to end the training at the next step, keeping what was learned."""
        return self.folder / "stop"

    def save(self, step: int, tensors: Tensors, state: Mapping[str, Any]) -> None:
        """Write the checkpoint of a step, verify it, then remove the older ones."""
        path = self.folder / f"step-{step:09d}.safetensors"
        record = {"identity": self.identity, "state": state, "checksum": checksum(tensors)}
        write_tensors(path, tensors, record)
        _read_verified(path)
        for older in self._newest_first():
            if older != path:
                older.unlink()

    def load(self) -> tuple[Tensors, dict[str, Any]] | None:
        """Tensors and state of the newest checkpoint that is whole; None where there is none.

        Raises
        ------
        InputError : it belongs to another cell or to data of another contract.
        """
        for path in self._newest_first():
            try:
                tensors, record = _read_verified(path)
            except (SafetensorError, ValueError, OSError):
                continue  # damaged: the one before it was kept for this
            self._check_identity(path, record["identity"])
            return tensors, record["state"]
        return None

    def clear(self) -> None:
        """Remove every checkpoint, and the folder if nothing else lies in it."""
        for path in [*self._newest_first(), self.stop_file]:
            path.unlink(missing_ok=True)
        if self.folder.is_dir() and not any(self.folder.iterdir()):
            self.folder.rmdir()

    def _newest_first(self) -> list[Path]:
        return sorted(self.folder.glob("step-*.safetensors"), reverse=True)

    def _check_identity(self, path: Path, found: Mapping[str, Any]) -> None:
        wanted = json.loads(canonical_json(self.identity))
        for field in sorted({*wanted, *found}):
            if wanted.get(field) != found.get(field):
                hint = "Remove the folder to train from the start, or go back to the configuration it was made with."
                raise InputError(f"{path}: {field}", f"{found.get(field)}", f"{wanted.get(field)}", hint)


def checksum(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of names, types, shapes and bytes."""
    total = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        total.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        total.update(tensor.flatten().view(torch.uint8).numpy().tobytes())
    return total.hexdigest()


def write_tensors(path: Path, tensors: Mapping[str, Tensor], record: Mapping[str, Any]) -> None:
    """Write tensors and their record in one atomic step; equal content gives equal bytes."""
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with atomic_file(path) as temporary:
        save_file(plain, temporary, metadata={RECORD: canonical_json(record)})


def read_tensors(path: Path) -> tuple[Tensors, dict[str, Any]]:
    """Tensors and record of a file of ours."""
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata() or {}
        if RECORD not in metadata:
            raise ValueError(f"no '{RECORD}' record in its header")
        return {name: file.get_tensor(name) for name in file.keys()}, json.loads(metadata[RECORD])  # noqa: SIM118


def _read_verified(path: Path) -> tuple[Tensors, dict[str, Any]]:
    tensors, record = read_tensors(path)
    if checksum(tensors) != record["checksum"]:
        raise ValueError(f"{path}: bytes differ from the checksum")
    return tensors, record


def save_model(path: Path, learner: nn.Module, metadata: Mapping[str, Any]) -> None:
    """Write a trained model; `metadata` must hold `model` and `spec`, and `objective` where it is not the model's own,
    from which it is built again, and no time.
    """
    write_tensors(path, learner.state_dict(), metadata)


def load_cell(folder: str | Path) -> tuple[Any, dict[str, Any]]:
    """The learner of a finished cell (its `encoder` and what its objective added), in evaluation mode, and its metadata
    (`model`, `spec`, `objective`, `cell`, `contract`).

    Raises
    ------
    InputError : `encoder.safetensors` is missing, damaged, or not one of ours.
    """
    path = Path(folder) / "encoder.safetensors"
    if not path.is_file():
        raise InputError(path, "no such file", "a trained cell", "Run `pipeline pretrain` for that cell first.")
    try:
        tensors, metadata = read_tensors(path)
        learner = build_learner(metadata["model"], metadata["spec"], metadata.get("objective"))
        learner.load_state_dict(tensors)
    except (SafetensorError, KeyError, ValueError, RuntimeError) as error:
        hint = "Delete it and train the cell again."
        raise InputError(path, f"a file that does not load ({error})", "weights of this version", hint) from error
    return learner.eval(), metadata
