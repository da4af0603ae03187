"""A random clip of 20 frames from one run at 2 mm: this package's reader beside a bare `pread` and peers' layouts.

    python benchmarks/bench_clips.py                # 600 frames, some 5 GB in a temporary folder, three minutes
    python benchmarks/bench_clips.py --frames 200   # a third of it

Every system reads the same clips in the same rounds, in random order within a round, and the processor's caches are
emptied before each read, so that nobody reads what the one before has just read. Files are in the page cache. The
reference is `os.preadv` of just the chunks that a clip touches, checksums included, into a buffer that is used again.
Needs `pip install tensorstore h5py` for their rows.
"""

from __future__ import annotations

import argparse
import os
import tarfile
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from nilearn.datasets import load_mni152_template

from pipeline.bold.reader import DATA, Shard
from pipeline.bold.shards import voxel_geometry, write_shard
from pipeline.bold.template import Template, build_template
from pipeline.config import Template as Settings
from pipeline.errors import InputError

CONTEXT, ROUNDS = 20, 100
SETTINGS = {"space": "MNI152NLin2009aSym", "resolution_mm": 2, "shape": (96, 108, 96)}


@dataclass
class System:
    """One way to get a clip; `rounds` is smaller where a read takes long, `against` names its reference."""

    name: str
    gives: str
    clip: Callable[[int], object]
    path: Path
    against: str = "pread, float16, chunks of 8"
    rounds: int = ROUNDS


def simulated_run(template: Template, frames: int) -> np.ndarray:
    """(T, V) float32: an MNI152 brain with 2 % of fluctuation, half of it shared by neighbours and slow."""
    rng = np.random.default_rng(0)
    brain = load_mni152_template(resolution=2)
    place = np.rint(nib.affines.apply_affine(np.linalg.inv(brain.affine) @ template.affine, template.coordinates_V3))
    place = np.clip(place.astype(int), 0, np.array(brain.shape) - 1)
    mean_V = 500 + 8000 * brain.get_fdata()[tuple(place.T)]
    waves_KV = np.sin(template.coordinates_V3 @ rng.normal(0, 0.15, (3, 30)) + rng.uniform(0, 6, 30)).T
    courses_TK = np.cumsum(rng.standard_normal((frames, 30)), axis=0)
    shared_TV = ((courses_TK / courses_TK.std(0)) @ waves_KV / 5).astype(np.float32)
    shared_TV += rng.standard_normal(shared_TV.shape, dtype=np.float32)
    return (mean_V * (1 + 0.01 * shared_TV)).astype(np.float32)


def dense(template: Template, packed_TV: np.ndarray) -> np.ndarray:
    """(T, X, Y, Z) of packed voxels."""
    volume = np.zeros((len(packed_TV), np.prod(template.shape)), packed_TV.dtype)
    volume[:, template.voxel_index_V] = packed_TV
    return volume.reshape(-1, *template.shape)


# --- this package --------------------------------------------------------------------------------------------------


def pread(path: Path, chunk_frames: int, voxels: int, itemsize: int) -> Callable[[int], object]:
    length = chunk_frames * voxels * itemsize + 4
    descriptor = os.open(path / DATA, os.O_RDONLY)
    buffer = memoryview(bytearray((CONTEXT // chunk_frames + 2) * length))

    def clip(start: int) -> object:
        first, last = start // chunk_frames, -(-(start + CONTEXT) // chunk_frames)
        return os.preadv(descriptor, [buffer[: (last - first) * length]], first * length)

    return clip


def ours(folder: Path, bold_TV: np.ndarray, template: Template, dtype: str, chunk: int) -> list[System]:
    path = folder / f"{dtype}-{chunk}"
    geometry = voxel_geometry(template)
    write_shard(path, bold_TV, {"tr_s": 0.735}, geometry=geometry, frames_per_chunk=chunk, dtype=dtype)
    seen = Shard.open(path)
    seen.read_stored()
    buffer = np.empty((CONTEXT, template.voxels), dtype)
    fresh = iter([Shard.open(path) for _ in range(ROUNDS)])
    kind = f"{dtype}, chunks of {chunk}"
    reference = f"pread, {kind}"
    itemsize = np.dtype(dtype).itemsize
    systems = [
        System(reference, "touched chunks", pread(path, chunk, template.voxels, itemsize), path, reference),
        System(f"ours, {kind}", "packed", partial(stored_clip, seen, buffer), path, reference),
        System(f"ours, {kind}, verifying", "packed", lambda at: stored_clip(next(fresh), buffer, at), path, reference),
        System(f"ours, {kind}, decoded", "packed float32", lambda at: seen.read(at, at + CONTEXT), path, reference),
    ]
    for backend in ("zarr", "tensorstore"):
        other = Shard.open(path, backend=backend)
        if dtype == "float16" and available(other):
            read = partial(stored_clip, other, buffer)
            systems.append(System(f"{backend}, {kind}", "packed", read, path, reference))
    return systems


def stored_clip(shard: Shard, buffer: np.ndarray, start: int) -> object:
    return shard.read_stored(start, start + CONTEXT, buffer)


def available(shard: Shard) -> bool:
    try:
        shard.read_stored(0, 1)
    except InputError as error:
        print(f"left out: {error}")
        return False
    return True


# --- peers' layouts ------------------------------------------------------------------------------------------------


def frame_files(folder: Path, half_TXYZ: np.ndarray) -> System:
    """SwiFT's: one file a frame."""
    folder.mkdir()
    for number, volume in enumerate(half_TXYZ):
        torch.save(torch.from_numpy(volume.copy())[..., None], folder / f"frame_{number}.pt")

    def clip(start: int) -> object:
        names = [folder / f"frame_{number}.pt" for number in range(start, start + CONTEXT)]
        return torch.cat([torch.load(name, weights_only=True) for name in names], dim=3)

    return System("a .pt a frame (SwiFT)", "dense float16", clip, folder)


def int8_file(folder: Path, half_TXYZ: np.ndarray) -> System:
    """NeuroSTORM's: one int8 file a person, mapped."""
    folder.mkdir()
    scale = np.abs(half_TXYZ).max() / 127
    torch.save(torch.from_numpy(np.rint(half_TXYZ / scale).astype(np.int8)), folder / "data.pt")
    mapped = torch.load(folder / "data.pt", mmap=True, weights_only=True)
    return System("one int8 .pt, mmap (NeuroSTORM)", "dense int8", lambda at: mapped[at : at + CONTEXT].clone(), folder)


def hdf5(folder: Path, half_TXYZ: np.ndarray) -> list[System]:
    try:
        import h5py
    except ImportError:
        print("left out: HDF5, because h5py is not installed")
        return []
    folder.mkdir()
    with h5py.File(folder / "run.h5", "w") as file:
        file.create_dataset("bold", data=half_TXYZ, chunks=(1, *half_TXYZ.shape[1:]), compression="gzip")
    stored = h5py.File(folder / "run.h5", "r")["bold"]
    return [System("HDF5, gzip", "dense float16", lambda at: stored[at : at + CONTEXT], folder, rounds=10)]


def tar_of_clips(folder: Path, half_TXYZ: np.ndarray) -> System:
    """webdataset's: clips one after the other. The clip that begins at or before the start is read: a flattery."""
    folder.mkdir()
    with tarfile.open(folder / "run.tar", "w") as archive:
        for start in range(0, len(half_TXYZ) - CONTEXT + 1, CONTEXT):
            content = BytesIO()
            np.save(content, half_TXYZ[start : start + CONTEXT])
            entry = tarfile.TarInfo(f"{start // CONTEXT:04d}.bold.npy")
            entry.size = content.tell()
            archive.addfile(entry, BytesIO(content.getvalue()))

    def clip(start: int) -> object:
        with tarfile.open(folder / "run.tar") as archive:
            for _ in range(start // CONTEXT + 1):
                entry = archive.next()
            return np.load(BytesIO(archive.extractfile(entry).read()))

    return System("tar of .npy clips (webdataset)", "dense float16", clip, folder, rounds=30)


def nifti(folder: Path, bold_TV: np.ndarray, template: Template) -> System:
    folder.mkdir()
    volume = np.moveaxis(dense(template, np.rint(bold_TV).astype(np.int16)), 0, -1)
    nib.save(nib.Nifti1Image(volume, template.affine), folder / "run.nii.gz")

    def clip(start: int) -> object:
        return np.asarray(nib.load(folder / "run.nii.gz").dataobj[..., start : start + CONTEXT])

    return System(".nii.gz, nibabel", "dense", clip, folder, rounds=3)


# --- measurement ---------------------------------------------------------------------------------------------------


def measure(systems: list[System], frames: int) -> dict[str, list[float]]:
    """Milliseconds of each system's reads."""
    rng, flood = np.random.default_rng(1), np.zeros(2**24, np.float32)  # 64 MB, more than the last level of cache
    taken: dict[str, list[float]] = {system.name: [] for system in systems}
    for turn in range(ROUNDS):
        start = int(rng.integers(frames - CONTEXT + 1))
        for place in rng.permutation(len(systems)):
            system = systems[place]
            if turn < system.rounds:
                flood += 1
                before = time.perf_counter()
                system.clip(start)
                taken[system.name].append(1e3 * (time.perf_counter() - before))
    return taken


def table(systems: list[System], taken: dict[str, list[float]]) -> str:
    lines = [
        "| system | gives | ms a clip, best | median | speed of pread: at best | median of pairs | MB on disk |",
        "|---|---|---|---|---|---|---|",
    ]
    for system in systems:
        times, reference = np.array(taken[system.name]), np.array(taken[system.against])
        best, middle = times.min(), np.median(times)
        paired = np.median(reference[: len(times)] / times)
        ratios = f"{reference.min() / best:.2g} | {paired:.2g}"
        size = sum(path.stat().st_size for path in system.path.rglob("*") if path.is_file()) / 1e6
        lines.append(f"| {system.name} | {system.gives} | {best:.2f} | {middle:.2f} | {ratios} | {size:.0f} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--frames", type=int, default=600, help="of the run; 200 frames need a third of the room")
    parser.add_argument("--folder", default=None, help="where the temporary folder is made")
    options = parser.parse_args()
    torch.set_num_threads(1)
    template = build_template(Settings(**SETTINGS))
    bold_TV = simulated_run(template, options.frames)
    with tempfile.TemporaryDirectory(dir=options.folder) as made:
        folder = Path(made)
        systems = [
            system
            for dtype, chunk in (("float16", 8), ("float16", 4), ("int8", 8))
            for system in ours(folder, bold_TV, template, dtype, chunk)
        ]
        systems.append(nifti(folder / "nifti", bold_TV, template))
        half_TXYZ = dense(template, Shard.open(folder / "float16-8").read_stored())
        systems += [frame_files(folder / "frames", half_TXYZ), int8_file(folder / "int8", half_TXYZ)]
        systems += [*hdf5(folder / "hdf5", half_TXYZ), tar_of_clips(folder / "tar", half_TXYZ)]
        del half_TXYZ, bold_TV
        taken = measure(systems, options.frames)
        print(f"{CONTEXT} of {options.frames} frames, {template.voxels} voxels of {template.shape}, {ROUNDS} clips\n")
        print(table(systems, taken))


if __name__ == "__main__":
    main()
