"""Training state and finished results on disk: safetensors with one JSON record in the header, nothing pickled.

A checkpoint appears under its name complete or not at all: it is written under a temporary name, flushed to the disk,
read back and compared, renamed, and only then is an older one removed. Two are kept. It is refused by a cell, a data
contract or an arithmetic (number of processes, ...) other than its own.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from pipeline.artefact import atomic_file, canonical_json, sha256_file, write_json
from pipeline.errors import InputError
from pipeline.pretrain.objectives import build_learner

RECORD = "pipeline"  # the one key of a header: several would be written in random order
FIELDS = {"identity", "arithmetic", "state", "checksum"}  # of the record of a checkpoint
KEPT = 2  # checkpoints
PIECE = 1 << 22  # bytes read at once
Tensors = dict[str, Tensor]


@dataclass(eq=False)
class Store:
    """Folder of a cell's checkpoints and of its finished result, and what a checkpoint must have been made for.

    Attributes
    ----------
    identity : cell hash and data contract; a checkpoint of another one is refused.
    arithmetic : what decides the order of sums (processes, micro batch, device); another one is refused, unless
        `any_world_size` gives up bitwise equality.
    guard : called right before anything appears under its name; raises where another process has taken over the cell.
    scored_by : what the files beside the weights depend on: who is held out. A result of others is not published.
    keeper : whether this process tidies the folder up; of several that load, one does.
    """

    folder: Path
    identity: Mapping[str, Any]
    arithmetic: Mapping[str, Any] = field(default_factory=dict)
    any_world_size: bool = False
    guard: Callable[[], None] | None = None
    keeper: bool = True
    scored_by: str = ""
    _writing: Future[None] | None = field(default=None, init=False, repr=False)

    @property
    def stop_file(self) -> Path:
        """A file that a person creates to end the training at the next step, keeping what was learned."""
        return self.folder / "stop"

    @property
    def result_folder(self) -> Path:
        """Where the files of the finished cell are written before they are published."""
        return self.folder / "result"

    # --- checkpoints -----------------------------------------------------------------------------------------------

    def save(self, step: int, tensors: Tensors, state: Mapping[str, Any]) -> None:
        """Write the checkpoint of a step and verify it; then remove all but the two newest.

        Raises
        ------
        InputError : the disk does not take it; the checkpoints before it stay.
        """
        path = self.folder / f"step-{step:09d}.safetensors"
        record = {"identity": self.identity, "arithmetic": self.arithmetic, "state": state}
        with _disk(path):
            write_verified(path, tensors, record, self.guard)
            for older in self._newest_first()[KEPT:]:
                older.unlink(missing_ok=True)

    @property
    def failed(self) -> bool:
        """Whether the checkpoint that was being written is not on the disk, and another one is due."""
        return bool(self._writing and self._writing.done() and self._writing.exception())

    def save_later(self, step: int, tensors: Tensors, state: Mapping[str, Any]) -> None:
        """`save` in a thread; the caller changes neither tensors nor state any more.

        One is written at a time: this waits for the one before. Where that one failed, this one is written here and
        now: the disk may work again.
        """
        try:
            self.wait()
        except InputError:
            self.save(step, tensors, state)
            return
        with_one_thread = ThreadPoolExecutor(1, "checkpoint")
        self._writing = with_one_thread.submit(self.save, step, tensors, state)
        with_one_thread.shutdown(wait=False)

    def wait(self) -> None:
        """Return when nothing is being written any more; raises what the writer failed of, once."""
        writing, self._writing = self._writing, None
        if writing:
            writing.result()

    def load(self) -> tuple[Tensors, dict[str, Any]] | None:
        """Tensors and state of the newest checkpoint that is whole; None where there is none.

        Whoever calls this holds the cell: what a killed writer left is removed, what is damaged is put aside.

        Raises
        ------
        InputError : it belongs to another cell, to data of another contract, or was made by another arithmetic; or the
            disk gives none back, which may pass, while a training that starts anew has lost all.
        """
        self._sweep()
        refused: dict[Path, OSError] = {}
        for path in self._newest_first():
            try:
                tensors, record = _read_verified(path)
            except FileNotFoundError:
                continue  # put aside by the keeper since
            except (ValueError, IsADirectoryError) as error:
                self._put_aside(path, error)
                continue
            except OSError as error:
                refused[path] = error
                continue
            self._check_identity(path, record["identity"])
            self._check_arithmetic(path, record["arithmetic"])
            for other, failure in refused.items():
                self._put_aside(other, failure)
            return tensors, record["state"]
        for path, failure in refused.items():
            with _disk(path):
                raise failure
        return None

    def clear(self) -> None:
        """Remove every checkpoint, and the folder if nothing else lies in it."""
        for path in [*self._newest_first(), self.stop_file]:
            path.unlink(missing_ok=True)
        if self.folder.is_dir() and not any(self.folder.iterdir()):
            self.folder.rmdir()

    def _newest_first(self) -> list[Path]:
        return sorted(self.folder.glob("step-*.safetensors"), reverse=True)

    def _sweep(self) -> None:
        """Remove half-written files: nobody else writes here."""
        if self.keeper:
            for folder in (self.folder, self.result_folder):
                for left in filter(Path.is_file, folder.glob(".writing-*")):
                    left.unlink(missing_ok=True)

    def _put_aside(self, path: Path, error: Exception) -> None:
        if self.keeper:
            aside = path.with_name(f"{path.name}.damaged")
            with _disk(path):
                path.replace(aside)
            older = len(self._newest_first())
            then = "the one before it is tried" if older else "the training starts from step 0"
            print(f"Checkpoint {aside} cannot be read ({error}): {then}.", file=sys.stderr, flush=True)

    def _check_identity(self, path: Path, found: Mapping[str, Any]) -> None:
        for name, was, wanted in _differences(found, self.identity):
            hint = "Remove the folder to train from the start, or go back to the configuration it was made with."
            raise InputError(f"{path}: {name}", was, wanted, hint)

    def _check_arithmetic(self, path: Path, found: Mapping[str, Any]) -> None:
        differences = list(_differences(found, self.arithmetic))
        if not differences:
            return
        was = ", ".join(f"{name}: {value}" for name, value, _ in differences)
        wanted = ", ".join(f"{name}: {value}" for name, _, value in differences)
        why = "Sums taken in another order are not bitwise equal, so the cell would not end as one that ran through."
        if not self.any_world_size:
            ways = "Go on as it began, set compute.any_world_size: true (equal to 1e-6), or remove the folder."
            raise InputError(path, was, wanted, f"{why} {ways}")
        if self.keeper:
            print(f"{path}: found {was}; goes on with {wanted}. {why}", file=sys.stderr, flush=True)

    # --- the finished result -----------------------------------------------------------------------------------------

    def keep_result(self, names: Sequence[str], source: str = "") -> None:
        """Vouch for finished files in `result_folder`, named in the order in which they are to be published.

        `source` stands for what they were made from, for who looks for them without knowing the cell's hash.
        """
        record = self.result_folder / "result.json"
        with _disk(record):
            files = [{"name": name, "sha256": sha256_file(self.result_folder / name)} for name in names]
            self._guard()
            write_json(record, {"files": files, "scored_by": self.scored_by, "source": source})

    def published(self, output: str | Path) -> bool:
        """Put the finished files into `output`, by hard link or as copies; False where the cell is not finished, or was
        scored by other people.

        The last of them is taken away first, so that it never lies beside files that are not its own. Checkpoints that
        a kill left behind go now. A damaged result is put aside: the cell is then trained again.

        Raises
        ------
        InputError : the disk fails.
        """
        with _disk(self.result_folder):
            names, output = self._finished(), Path(output)
        if not names:
            return False
        self._guard()
        with _disk(output):
            (output / names[-1]).unlink(missing_ok=True)
            for name in names:
                publish(self.result_folder / name, output / name)
            self.clear()
        return True

    def _finished(self) -> list[str]:
        """Names of the files of a whole result."""
        record = self.result_folder / "result.json"
        if not record.is_file():
            return []
        try:
            kept = json.loads(record.read_text(encoding="utf-8"))
            files = kept["files"]
            for file in files:
                if sha256_file(self.result_folder / file["name"]) != file["sha256"]:
                    raise ValueError(f"{file['name']} is not as it was written")
            return [file["name"] for file in files] if kept["scored_by"] == self.scored_by else []
        except (ValueError, KeyError, TypeError, FileNotFoundError) as error:
            aside = self.result_folder.with_suffix(".damaged")
            shutil.rmtree(aside, ignore_errors=True)
            self.result_folder.replace(aside)
            print(f"Result {aside} is damaged ({error}): the cell is trained again.", file=sys.stderr, flush=True)
            return []

    def _guard(self) -> None:
        if self.guard:
            self.guard()


@contextmanager
def _disk(path: Path) -> Iterator[None]:
    """A disk that fails is the user's to mend, and told as such."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise disk_fault(path, error) from error


def disk_fault(path: str | Path, error: Exception) -> InputError:
    """What a person is told of a disk that does not take a file."""
    hint = "Free space or mend the disk, then give the same command: it goes on from the newest whole checkpoint."
    return InputError(path, f"a disk that fails ({error})", "a file written and read back", hint)


def _differences(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """Name, value found and value wanted of each field that differs."""
    wanted = json.loads(canonical_json(wanted))
    for name in sorted({*wanted, *found}):
        if wanted.get(name) != found.get(name):
            yield name, str(found.get(name)), str(wanted.get(name))


def publish(source: Path, target: Path) -> None:
    """Let a file appear under a second name, by a hard link or, on another file system, as a copy.

    It is dated now: Snakemake would run again what is older than its inputs.
    """
    with atomic_file(target) as temporary:
        temporary.unlink()
        try:
            os.link(source, temporary)
        except OSError:
            shutil.copyfile(source, temporary)
        os.utime(temporary)


def checksum(tensors: Mapping[str, Tensor], text: str = "") -> str:
    """SHA-256 of names, types, shapes and bytes, and of a text."""
    total = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        total.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        total.update(tensor.flatten().view(torch.uint8).numpy().data)  # no copy, and other threads run meanwhile
    return total.hexdigest()


def write_tensors(path: Path, tensors: Mapping[str, Tensor], record: Mapping[str, Any]) -> None:
    """Write tensors and their record in one atomic step; equal content gives equal bytes."""
    with atomic_file(path) as temporary:
        _save(temporary, tensors, record)


def write_verified(
    path: Path, tensors: Mapping[str, Tensor], record: Mapping[str, Any], guard: Callable[[], None] | None = None
) -> None:
    """`write_tensors`, with a checksum of everything, and the file read back from the disk before it gets its name.

    Raises
    ------
    OSError : the disk does not take it, or gives other bytes back.
    """
    plain = json.loads(canonical_json(record))
    with atomic_file(path) as temporary:
        _save(temporary, tensors, {**plain, "checksum": checksum(tensors, canonical_json(plain))})
        _to_disk(temporary)
        try:
            _read_verified(temporary)
        except ValueError as error:
            raise OSError(f"read back: {error}") from error
        if guard:
            guard()


def _save(path: Path, tensors: Mapping[str, Tensor], record: Mapping[str, Any]) -> None:
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    save_file(plain, path, metadata={RECORD: canonical_json(record)})


def _to_disk(path: Path) -> None:
    """Flush a file, and have it forgotten by the page cache where the system can: the next read asks the disk."""
    with path.open("rb") as stream:
        os.fsync(stream.fileno())
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def read_tensors(path: Path) -> tuple[Tensors, dict[str, Any]]:
    """Tensors and record of a file of ours."""
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata() or {}
        if RECORD not in metadata:
            raise ValueError(f"no '{RECORD}' record in its header")
        return {name: file.get_tensor(name) for name in file.keys()}, json.loads(metadata[RECORD])  # noqa: SIM118


def _read_verified(path: Path) -> tuple[Tensors, dict[str, Any]]:
    """Tensors and record, without its checksum, of a whole checkpoint.

    Raises
    ------
    ValueError : its bytes are not those of one.
    OSError : they cannot be had.
    """
    with path.open("rb", buffering=0) as stream:
        while stream.read(PIECE):  # a disk that fails is an error here; to a mapped file it would end the process
            continue
    try:
        tensors, record = read_tensors(path)
    except (SafetensorError, OSError) as error:
        raise ValueError(str(error)) from error
    if not isinstance(record, dict) or set(record) != FIELDS:
        raise ValueError("no checkpoint of this version")
    stated = record.pop("checksum")
    if checksum(tensors, canonical_json(record)) != stated:
        raise ValueError("its bytes differ from its checksum")
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
