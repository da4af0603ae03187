"""Runs as zarr v3 shards: in-mask voxels, z-scored, checksummed, with the contract that says what they are.

A shard is a folder `sub-X/ses-Y_run-Z` with `shard.zarr` and, written last, `manifest.json`; it appears whole or not
at all. Axes: T frames, V in-mask voxels of the template.
"""

from __future__ import annotations

import platform
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import zarr
from zarr.codecs import Crc32cCodec

from pipeline import __version__, artefact
from pipeline.bold.normalise import zscore
from pipeline.bold.quality import temporal_snr
from pipeline.bold.template import Template
from pipeline.errors import InputError

REMAKE = "Delete it and run its shard job again."


def write_shard(
    folder: Path, bold_TV: np.ndarray, template: Template, contract: Mapping[str, Any], frames_per_chunk: int = 8
) -> dict[str, Any]:
    """Write one run, (T, V) in any unit, as a shard; the folder appears complete or not at all.

    Returns what a list of runs says of it: path, frames, TR, tSNR and the checksum of its manifest.
    """
    if bold_TV.shape[1] != template.voxels:
        raise ValueError(f"{bold_TV.shape[1]} voxels for a template of {template.voxels}")
    z_TV, mean_V, std_V = zscore(bold_TV)
    frames = len(bold_TV)
    whole = {**contract, **_geometry(template), "frames": frames, "software": _software()}
    with artefact.atomic_folder(folder) as building:
        group = zarr.create_group(building / "shard.zarr", attributes={"contract": whole})
        chunk, chunks = frames_per_chunk, -(-frames // frames_per_chunk)
        _store(group, "bold", z_TV.astype(np.float16), (chunk, template.voxels), (chunk * chunks, template.voxels))
        _store(group, "voxel_mean", mean_V, mean_V.shape)
        _store(group, "voxel_std", std_V, std_V.shape)
        manifest = {"shape": list(bold_TV.shape), "contract": whole, "files": _listing(building)}
        artefact.write_json(building / "manifest.json", manifest)
    return {
        "path": str(folder),
        "frames": frames,
        "tr_s": whole["tr_s"],
        "tsnr": temporal_snr(mean_V, std_V),
        "manifest": artefact.sha256_file(folder / "manifest.json"),
    }


def _store(group: Any, name: str, data: np.ndarray, chunks: tuple[int, ...], shards: Any = None) -> None:
    """One array, uncompressed, a crc32c on every chunk; zeros are written too, so that a lost chunk is seen."""
    options = {"chunks": chunks, "shards": shards, "compressors": [Crc32cCodec()], "filters": None}
    array = group.create_array(
        name, shape=data.shape, dtype=data.dtype, fill_value=np.nan, config={"write_empty_chunks": True}, **options
    )
    array[...] = data


def _geometry(template: Template) -> dict[str, Any]:
    return {
        "template": template.key,
        "space": template.space,
        "resolution_mm": template.resolution_mm,
        "affine": template.affine.tolist(),
        "orientation": "RAS",
        "normalisation": "voxel-z",
    }


def _software() -> dict[str, str]:
    versions = {"pipeline": __version__, "python": platform.python_version()}
    return versions | {module.__name__: module.__version__ for module in (nib, np, zarr)}


def _listing(folder: Path) -> dict[str, dict[str, Any]]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {
        path.relative_to(folder).as_posix(): {"size": path.stat().st_size, "sha256": artefact.sha256_file(path)}
        for path in files
    }


@dataclass(frozen=True)
class Shard:
    """A readable run: its contract, and its frames on request."""

    folder: Path
    contract: dict[str, Any]

    @classmethod
    def open(cls, folder: str | Path, expected: Mapping[str, Any] | None = None) -> Shard:
        """Open a shard after checking its files' sizes and, field by field, its contract.

        Raises
        ------
        InputError : a file is missing or of another size, or the contract differs from `expected`.
        """
        folder = Path(folder)
        manifest = artefact.read_json(folder / "manifest.json")
        for name, listed in manifest["files"].items():
            path = folder / name
            size = path.stat().st_size if path.is_file() else None
            if size != listed["size"]:
                found = "no such file" if size is None else f"{size} bytes"
                raise InputError(path, found, f"{listed['size']} bytes, as its manifest says", REMAKE)
        require_contract(folder, manifest["contract"], expected or {})
        return cls(folder, manifest["contract"])

    @property
    def frames(self) -> int:
        """T, the frames stored."""
        return int(self.contract["frames"])

    @property
    def tr_s(self) -> float:
        """Repetition time in seconds."""
        return float(self.contract["tr_s"])

    @property
    def mean(self) -> np.ndarray:
        """(V,) mean of each voxel before normalisation, float32."""
        return self._read("voxel_mean", slice(None))

    @property
    def std(self) -> np.ndarray:
        """(V,) SD of each voxel before normalisation, float32; 0 where it was constant."""
        return self._read("voxel_std", slice(None))

    def read(self, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Frames `start` to `stop`, z-scored per voxel over the run, (T, V) float32; checksums are verified.

        Raises
        ------
        InputError : a chunk is damaged or lost.
        """
        return self._read("bold", slice(start, stop)).astype(np.float32)

    @cached_property
    def _group(self) -> Any:
        return zarr.open_group(self.folder / "shard.zarr", mode="r")

    def _read(self, name: str, where: slice) -> np.ndarray:
        path = self.folder / "shard.zarr" / name
        try:
            values = np.asarray(self._group[name][where])
        except (ValueError, OSError, KeyError) as error:
            raise InputError(path, f"damaged data ({error})", "what its manifest lists", REMAKE) from error
        if np.isnan(values).any():  # the fill value: zarr itself is silent about a lost chunk
            raise InputError(path, "a lost chunk", "every chunk that was written", REMAKE)
        return values


def require_contract(where: Path, found: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    """An InputError that names the first field in which a contract differs from what is expected."""
    for field, value in expected.items():
        if field not in found or found[field] != value:
            hint = "Use shards made for this study's template, or run the shards stage again."
            raise InputError(f"{where}: contract.{field}", repr(found.get(field)), repr(value), hint)


def verify_shard(folder: str | Path) -> int:
    """Check every byte of a shard against its manifest; an InputError names the first file that differs.

    Returns the number of files checked.
    """
    shard = Shard.open(folder)
    files = artefact.read_json(shard.folder / "manifest.json")["files"]
    for name, listed in files.items():
        if artefact.sha256_file(shard.folder / name) != listed["sha256"]:
            raise InputError(shard.folder / name, "other bytes", "the SHA-256 of its manifest", REMAKE)
    require_contract(shard.folder, dict(shard._group.attrs["contract"]), shard.contract)
    return len(files)
