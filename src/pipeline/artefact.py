"""The only place that writes a result: atomic, checksummed, with a record of where it came from.

A file appears under its final name complete or not at all: it is written to a temporary name beside its target,
flushed to disk and renamed.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline import __version__
from pipeline.errors import InputError

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa


@contextmanager
def atomic_file(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path in the folder of `path`; rename it to `path` if the block succeeds, else remove it."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # The suffix is kept because nibabel and matplotlib choose the format by it.
    handle, name = tempfile.mkstemp(prefix=".writing-", suffix="".join(path.suffixes[-2:]), dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        _flush(temporary)
        temporary.chmod(0o644)
        temporary.replace(path)
        _flush(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: str | Path) -> Iterator[Path]:
    """Yield a temporary folder beside `path`; it replaces `path` if the block succeeds, else it is removed."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=".writing-", dir=path.parent))
    try:
        yield temporary
        temporary.chmod(0o755)
        for inside in [*temporary.rglob("*"), temporary]:
            _flush(inside)
        former = temporary.with_name(f"{temporary.name}-former")
        if path.exists():
            path.replace(former)
        temporary.replace(path)
        _flush(path.parent)
        shutil.rmtree(former, ignore_errors=True)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def canonical_json(value: Any) -> str:
    """One text for one value: sorted keys, no spaces, NaN refused."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False, default=str)


def digest(value: Any) -> str:
    """Sixteen hexadecimal digits that stand for a JSON-able value."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()[:16]


def sha256_file(path: str | Path) -> str:
    """SHA-256 of a file, read in pieces of 1 MiB."""
    checksum = hashlib.sha256()
    with Path(path).open("rb") as stream:
        while piece := stream.read(1 << 20):
            checksum.update(piece)
    return checksum.hexdigest()


@cache
def code_version() -> str:
    """Package version and, in a checkout, the commit (`+dirty` is not read: a result names its stage versions too)."""
    head = Path(__file__).resolve().parents[2] / ".git" / "HEAD"
    if not head.is_file():
        return __version__
    text = head.read_text().strip()
    if text.startswith("ref: "):
        ref = head.parent / text[5:]
        text = ref.read_text().strip() if ref.is_file() else "unborn"
    return f"{__version__}+{text[:12]}"


def provenance(stage: str, version: int, settings: Any, inputs: dict[str, str | Path]) -> dict[str, Any]:
    """What made a result: command, code, stage version, settings and the SHA-256 of each input file."""
    return {
        "stage": stage,
        "stage_version": version,
        "code": code_version(),
        "command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "settings": digest(settings),
        "inputs": {name: f"{path} sha256:{sha256_file(path)[:16]}" for name, path in inputs.items()},
        "written": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "python": sys.version.split()[0],
    }


def write_text(path: str | Path, text: str) -> None:
    """Write text atomically."""
    with atomic_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: str | Path, value: Any) -> None:
    """Write JSON atomically, readable by eye; NaN is refused, because JSON has none."""
    write_text(path, json.dumps(value, indent=2, sort_keys=True, allow_nan=False) + "\n")


def read_json(path: str | Path) -> Any:
    """Read JSON; a missing or damaged file is an InputError."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError(path, "no such file", "a JSON file", "Run the stage that writes it first.") from error
    except json.JSONDecodeError as error:
        hint = "Delete it and run the stage that writes it again."
        raise InputError(path, f"damaged JSON ({error})", "a JSON file", hint) from error


def write_table(path: str | Path, frame: pd.DataFrame, schema: pa.Schema, record: dict[str, Any] | None = None) -> None:
    """Write a tidy parquet after checking it against `schema`; `record` (provenance) goes into its metadata.

    Raises
    ------
    TypeError, ValueError : a column is missing, unknown or of another type (a bug of the writer, not of the user).
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    unknown, missing = set(frame.columns) - set(schema.names), set(schema.names) - set(frame.columns)
    if unknown or missing:
        raise ValueError(f"{path}: unknown columns {sorted(unknown)}, missing columns {sorted(missing)}")
    table = pa.Table.from_pandas(frame[schema.names], schema=schema, preserve_index=False, safe=True)
    metadata = {b"provenance": canonical_json(record or {}).encode()}
    with atomic_file(path) as temporary:
        pq.write_table(table.replace_schema_metadata({**(table.schema.metadata or {}), **metadata}), temporary)


def read_table(path: str | Path) -> pd.DataFrame:
    """Read a parquet table; a missing or damaged file is an InputError."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.read_table(path).to_pandas()
    except FileNotFoundError as error:
        raise InputError(path, "no such file", "a parquet table", "Run the stage that writes it first.") from error
    except pa.ArrowInvalid as error:
        hint = "Delete it and run the stage that writes it again."
        raise InputError(path, f"a damaged table ({error})", "a parquet table", hint) from error


def read_provenance(path: str | Path) -> dict[str, Any]:
    """The provenance record inside a parquet table."""
    import pyarrow.parquet as pq

    metadata = pq.read_schema(path).metadata or {}
    return dict(json.loads(metadata.get(b"provenance", b"{}")))
