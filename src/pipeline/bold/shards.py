"""Runs as zarr v3 shards: in-mask voxels, z-scored, checksummed, with the contract that says what they are.

A shard is a folder `sub-X/ses-Y_run-Z` with `shard.zarr` and, written last, `manifest.json`; it appears whole or not
at all. Axes: T frames, V columns (in-mask voxels of the template, or parcels), c frames of a chunk.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import zarr
from zarr.codecs import Crc32cCodec

from pipeline import __version__, artefact
from pipeline.bold.chunks import REMAKE, write_chunks
from pipeline.bold.halves import narrow
from pipeline.bold.quality import temporal_snr
from pipeline.bold.reader import DATA, LOST, ZARR, Shard, require_contract
from pipeline.bold.spool import Spool, spool
from pipeline.bold.template import Template
from pipeline.errors import InputError

FINEST_STEP = 1 / 24  # of an SD: rounding to it costs 0.012 SD, and 127 of them reach 5.3 SD
MOST_STEPS = 127


def voxel_geometry(template: Template) -> dict[str, Any]:
    """What the columns of a shard are: voxels of the template, and where they lie."""
    return {
        "kind": "voxels",
        "template": template.key,
        "space": template.space,
        "resolution_mm": template.resolution_mm,
        "affine": template.affine.tolist(),
        "orientation": "RAS",
    }


def write_shard(
    folder: Path,
    run: Spool | np.ndarray,
    contract: Mapping[str, Any],
    *,
    geometry: Mapping[str, Any],
    frames_per_chunk: int = 8,
    dtype: str = "float16",
    extras: Callable[[Path], None] | None = None,
) -> dict[str, Any]:
    """Write one run as a shard; the folder appears complete or not at all. Memory holds one chunk and a few vectors.

    Parameters
    ----------
    run : (T, V) in any unit, spooled or an array.
    contract : what the caller knows of it, `tr_s` at the least.
    geometry : what its columns are, e.g. `voxel_geometry`.
    dtype : float16, or int8 in steps of `voxel_step` SD, wide enough for each column's largest value.
    extras : writes further files into the folder before the manifest lists them.

    Returns what a list of runs says of it: path, frames, TR, tSNR and the checksum of its manifest.
    """
    with nullcontext(run) if isinstance(run, Spool) else spool([run], run.shape[1]) as spooled:
        whole = {**contract, **geometry, **_facts(spooled), "dtype": dtype}
        with artefact.atomic_folder(Path(folder)) as building:
            manifest = _write(building, spooled, whole, frames_per_chunk)
            if extras is not None:
                extras(building)
            manifest["files"] = _listing(building, manifest["files"])
            artefact.write_json(building / "manifest.json", manifest)
        return {
            "path": str(folder),
            "frames": spooled.frames,
            "tr_s": whole["tr_s"],
            "tsnr": temporal_snr(spooled.mean_V, spooled.std_V),
            "manifest": artefact.sha256_file(Path(folder) / "manifest.json"),
        }


def _facts(run: Spool) -> dict[str, Any]:
    """What the values themselves say; `minimum` and `zeros` are what SwiFT's normalisation needs."""
    versions = {"pipeline": __version__, "python": platform.python_version()}
    return {
        "frames": run.frames,
        "normalisation": "voxel-z",
        "minimum": run.minimum,
        "zeros": run.zeros,
        "content_sha256": run.sha256,
        "software": versions | {module.__name__: module.__version__ for module in (nib, np, zarr)},
    }


def _write(building: Path, run: Spool, contract: dict[str, Any], frames_per_chunk: int) -> dict[str, Any]:
    """The zarr group, and the manifest as far as it is known: zarr writes all but the one large file."""
    group = zarr.create_group(building / ZARR, attributes={"contract": contract})
    dtype, step_V = np.dtype(contract["dtype"]), None
    vectors = {"voxel_mean": run.mean_V, "voxel_std": run.std_V}
    if dtype == np.int8:
        step_V = vectors["voxel_step"] = _steps(run)
    for name, values_V in vectors.items():
        _create(group, name, values_V.shape, np.dtype(np.float32))[...] = values_V.astype(np.float32)
    _create(group, "bold", (run.frames, run.columns), dtype, frames_per_chunk)
    data = write_chunks(building / DATA, _encoded(run, dtype, step_V, frames_per_chunk))
    return {
        "shape": [run.frames, run.columns],
        "frames_per_chunk": frames_per_chunk,
        "chunks": [sums._asdict() for sums in data.sums],
        "contract": contract,
        "files": {DATA: {"size": data.size, "sha256": data.sha256}},
    }


def _steps(run: Spool) -> np.ndarray:
    """(V,) float32: size of a step of int8 in SD, so that no column is clipped."""
    reach_V = np.maximum(run.high_V - run.mean_V, run.mean_V - run.low_V)
    largest_V = np.divide(reach_V, run.std_V, out=np.zeros_like(reach_V), where=run.std_V > 0)
    return np.maximum(FINEST_STEP, largest_V / MOST_STEPS).astype(np.float32)


def _create(group: Any, name: str, shape: tuple[int, ...], dtype: np.dtype, frames_per_chunk: int = 0) -> Any:
    """One array, uncompressed, a crc32c on every chunk; zeros are written too, so that a lost chunk is seen.

    With `frames_per_chunk` its chunks lie in one shard of the whole run.
    """
    chunks, shards = shape, None
    if frames_per_chunk:
        chunks, shards = (frames_per_chunk, shape[1]), (-(-shape[0] // frames_per_chunk) * frames_per_chunk, shape[1])
    return group.create_array(
        name,
        shape=shape,
        dtype=dtype,
        chunks=chunks,
        shards=shards,
        compressors=[Crc32cCodec()],
        filters=None,
        fill_value=LOST[dtype.name],
        config={"write_empty_chunks": True},
    )


def _encoded(run: Spool, dtype: np.dtype, step_V: np.ndarray | None, frames_per_chunk: int) -> Iterator[np.ndarray]:
    """The chunks as they are stored, (c, V); the last is filled up with the marker of what was never written."""
    for start in range(0, run.frames, frames_per_chunk):
        z_cV = run.z_rows(start, start + frames_per_chunk)
        stored_cV = narrow(z_cV) if step_V is None else np.rint(z_cV / step_V).astype(dtype)
        if missing := frames_per_chunk - len(stored_cV):
            stored_cV = np.pad(stored_cV, ((0, missing), (0, 0)), constant_values=LOST[dtype.name])
        yield stored_cV


def _listing(folder: Path, known: Mapping[str, Any]) -> dict[str, Any]:
    """Size and SHA-256 of every file; a file in `known` is not read again, but must have its size."""
    files = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        name, size = path.relative_to(folder).as_posix(), path.stat().st_size
        files[name] = known[name] if name in known else {"size": size, "sha256": artefact.sha256_file(path)}
        if size != files[name]["size"]:
            raise OSError(f"{path}: {size} bytes on disk of {files[name]['size']} written")
    return files


def verify_shard(folder: str | Path) -> int:
    """Check every byte of a shard against its manifest; an InputError names the first file that differs.

    Returns the number of files checked.
    """
    shard = Shard.open(folder, backend="zarr")
    files = artefact.read_json(shard.folder / "manifest.json")["files"]
    for name, listed in files.items():
        if artefact.sha256_file(shard.folder / name) != listed["sha256"]:
            raise InputError(shard.folder / name, "other bytes", "the SHA-256 of its manifest", REMAKE)
    group = zarr.open_group(shard.folder / ZARR, mode="r")
    attributes: dict[str, Any] = group.attrs.asdict()
    require_contract(shard.folder, attributes["contract"], shard.contract)
    return len(files)


def verify_all(entries: Sequence[Mapping[str, Any]], workers: int = 1, progress: bool | None = None) -> tuple[int, int]:
    """Check every shard of a list against its manifest, and the manifest against the list: (shards, files) checked.

    `progress` draws a bar on standard error; by default where that is a terminal.

    Raises
    ------
    InputError : the first damage in the order of the list, and how many further shards are damaged; all are checked.
    """
    from tqdm import tqdm

    # Threads are enough: hashing leaves the interpreter to the others.
    with ThreadPoolExecutor(max(1, workers)) as pool:
        checks = pool.map(_files_or_fault, entries)
        hidden = None if progress is None else not progress
        outcomes = list(tqdm(checks, total=len(entries), desc="verify", unit="shard", disable=hidden))
    faults = [outcome for outcome in outcomes if isinstance(outcome, InputError)]
    if faults:
        first, others = faults[0], f" {len(faults) - 1} more of {len(entries)} shards are damaged." * (len(faults) > 1)
        raise InputError(first.where, first.found, first.expected, first.hint + others)
    return len(outcomes), sum(outcome for outcome in outcomes if isinstance(outcome, int))


def _files_or_fault(entry: Mapping[str, Any]) -> int | InputError:
    path = Path(entry["path"])
    try:
        files = verify_shard(path)
        if artefact.sha256_file(path / "manifest.json") != entry["manifest"]:
            raise InputError(path / "manifest.json", "another manifest", "the one that the list of runs names", REMAKE)
    except InputError as fault:
        return fault
    return files
