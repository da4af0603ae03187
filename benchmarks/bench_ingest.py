"""From a NIfTI run in MNI space to a shard, beside nilearn's load, resample and save of it: seconds and memory.

    python benchmarks/bench_ingest.py                 # 1,200 frames, up to 10 GB in a temporary folder, ten minutes
    python benchmarks/bench_ingest.py --frames 200

Each measurement is a process of its own, because peak memory is a property of a process. Ours is the whole of what
`pipeline shards` does to a run: stream, lay on the template, measure its quality, z-score, checksum, write; without the
one-page picture, and once more with it. nilearn's is `resample_to_img` and a save as `.nii`; neither result is
compressed. Where nilearn is asked for the grid that the run has, neither of the two resamples, and what remains of
both is mostly gzip; on the template's grid, which is another box of the same lattice, we copy and nilearn interpolates.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from isal import igzip

FSL = {"shape": (91, 109, 91), "edge": 2.0, "origin": (90.0, -126.0, -72.0)}
COARSE = {"shape": (61, 73, 61), "edge": 3.0, "origin": (90.0, -126.0, -72.0)}
SPACE = "MNI152NLin2009aSym"
CASES = {  # name: grid, type of the file, share of the frames, whether nilearn is asked for the grid that the run has
    "2 mm, int16, as it lies": (FSL, np.int16, 1.0, True),
    "2 mm, float32, as it lies": (FSL, np.float32, 1.0, True),
    "2 mm, int16, to the template's grid": (FSL, np.int16, 0.25, False),
    "3 mm, int16, to the template's grid": (COARSE, np.int16, 0.25, False),
}
TEMPLATE = {"space": SPACE, "resolution_mm": 2, "shape": (96, 108, 96)}


def affine_of(grid: dict[str, Any]) -> np.ndarray:
    affine = np.diag([-grid["edge"], grid["edge"], grid["edge"], 1.0])
    affine[:3, 3] = grid["origin"]
    return affine


def write_run(path: Path, grid: dict[str, Any], dtype: type, frames: int) -> None:
    """An MNI152 brain with 2 % of noise, a frame at a time; 20 patterns of noise take turns and signs."""
    from nilearn.datasets import load_mni152_template
    from nilearn.image import resample_img

    affine, rng = affine_of(grid), np.random.default_rng(0)
    whole = load_mni152_template(resolution=2)
    brain = resample_img(whole, affine, grid["shape"], interpolation="linear", force_resample=True).get_fdata()
    mean = np.where(brain > 0.2, 12_000 * brain, 0).astype(np.float32).ravel(order="F")
    noise = 0.02 * mean * rng.standard_normal((20, mean.size), dtype=np.float32)
    header = nib.Nifti1Header()
    header.set_data_dtype(dtype)
    header.set_data_shape((*grid["shape"], frames))
    header.set_zooms((grid["edge"],) * 3 + (0.8,))
    header.set_xyzt_units("mm", "sec")
    header.set_sform(affine, 1)
    header.set_qform(affine, 1)
    header["vox_offset"], header["magic"] = 352, b"n+1"
    with igzip.open(path, "wb", compresslevel=1) as stream:
        stream.write(header.binaryblock + bytes(4))
        for _ in range(frames):
            first, second = rng.choice(20, 2, replace=False)
            values = mean + noise[first] - rng.normal() * noise[second]
            stream.write((np.rint(values) if dtype is np.int16 else values).astype(dtype).tobytes())


# --- what is measured, each in its own process ---------------------------------------------------------------------


def ours(bold: Path, folder: Path, pictures: str) -> None:
    from pipeline.bold.ingest import Standard, ingest_run
    from pipeline.bold.inputs import Run
    from pipeline.bold.placement import standard_on_grid
    from pipeline.bold.template import build_template
    from pipeline.config import Study

    model = {"model": "swift_v2", "label": "SwiFT v2", "sizes": {"s": {"width": 6, "depths": [1], "heads": [1]}}}
    learning_rate = {"size": "s", "subjects": 1, "frames": 20}
    cohort = {"door": "fmriprep", "path": str(folder), "people": 1, "runs": 1, "roles": ["pretrain"]}
    study = Study.model_validate(
        {
            "name": "bench",
            "template": TEMPLATE,
            "shards": {"min_frames": 20},
            "datasets": {"cohort": cohort},
            "quality": {"pictures": pictures},
            "architectures": {"swift_v2": model},
            "grid": {"scaling": [{"subjects_frames": [[1, 20]]}], "learning_rate": learning_rate},
        }
    )
    template = build_template(study.template)
    standard = Standard(template, standard_on_grid(study.template, template))
    start = time.perf_counter(), time.process_time()
    ingest_run(study, standard, folder, Run("cohort", "01", "1", "1", bold, 0.8, SPACE))
    report(*start)


def nilearns(bold: Path, folder: Path, as_it_lies: bool) -> None:
    from nilearn.image import load_img, resample_to_img

    from pipeline.bold.template import build_template
    from pipeline.config import Template

    template = build_template(Template(**TEMPLATE))
    target = nib.Nifti1Image(template.mask_XYZ.astype(np.uint8), template.affine)
    start = time.perf_counter(), time.process_time()
    image = load_img(bold)
    if as_it_lies:
        target = nib.Nifti1Image(np.zeros(image.shape[:3], np.uint8), image.affine)
    on_grid = resample_to_img(image, target, interpolation="linear", force_resample=False)
    on_grid.to_filename(folder / "resampled.nii")
    report(*start)


def report(start: float, cpu_start: float) -> None:
    taken, used = time.perf_counter() - start, time.process_time() - cpu_start
    print(json.dumps({"seconds": taken, "cpu": used, "mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}))


# --- the table -----------------------------------------------------------------------------------------------------


def measure(system: str, bold: Path, folder: Path) -> dict[str, float]:
    """Seconds and peak memory of one process, and MB that it wrote."""
    with tempfile.TemporaryDirectory(dir=folder) as made:
        command = [sys.executable, __file__, "--system", system, "--bold", str(bold), "--into", made]
        outcome = subprocess.run(command, capture_output=True, text=True)
        if outcome.returncode:
            sys.exit(outcome.stderr)
        size = sum(path.stat().st_size for path in Path(made).rglob("*") if path.is_file())
        return {**json.loads(outcome.stdout.splitlines()[-1]), "written": size / 1e6}


def compare(folder: Path, frames: int, rounds: int) -> None:
    print("| input | frames | system | s, best | times nilearn's speed | s of CPU | peak MB | MB written |")
    print("|---|---|---|---|---|---|---|---|")
    for case, (grid, dtype, share, as_it_lies) in CASES.items():
        count, bold = max(40, int(frames * share)), folder / "run.nii.gz"
        write_run(bold, grid, dtype, count)
        systems = ["nilearn, as it lies" if as_it_lies else "nilearn", "ours", "ours, with its picture"]
        rows = [{system: measure(system, bold, folder) for system in systems} for _ in range(rounds)]
        best = {system: min((row[system] for row in rows), key=lambda row: row["seconds"]) for system in systems}
        for system, row in best.items():
            ratio = best[systems[0]]["seconds"] / row["seconds"]
            numbers = f"{row['seconds']:.1f} | {ratio:.1f} | {row['cpu']:.1f} | {row['mb']:.0f} | {row['written']:.0f}"
            print(f"| {case} | {count} | {system.split(', as')[0]} | {numbers} |", flush=True)
        bold.unlink()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--frames", type=int, default=1200)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--folder", type=Path, help="where the temporary folder is made")
    for hidden in ("--system", "--bold", "--into"):
        parser.add_argument(hidden, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if not options.system:
        with tempfile.TemporaryDirectory(dir=options.folder) as made:
            compare(Path(made), options.frames, options.rounds)
    elif options.system.startswith("nilearn"):
        nilearns(Path(options.bold), Path(options.into), options.system.endswith("lies"))
    else:
        ours(Path(options.bold), Path(options.into), "all" if "picture" in options.system else "none")


if __name__ == "__main__":
    main()
