"""People to pretrain on, with a signal planted in their runs, and cells small enough for a test.

Axes: T frames, V in-mask voxels.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from small_cohort import CONTRACT, DEMO, small_template

from pipeline.artefact import read_json, write_json
from pipeline.bold.shards import voxel_geometry, write_shard
from pipeline.bold.template import save_template
from pipeline.config import Study, load_study
from pipeline.grid import Cell
from pipeline.pretrain.stage import run_cell

TEMPLATE = small_template()


def planted(frames: int, rng: np.random.Generator, slow: bool = False) -> np.ndarray:
    """One time course that every voxel follows or opposes, and noise of a quarter of its power: (T, V)."""
    map_V = np.random.default_rng(7).choice((-1.0, 1.0), TEMPLATE.voxels)
    course_T = rng.normal(size=frames)
    if slow:
        course_T = np.sqrt(2) * np.sin(2 * np.pi * (rng.uniform(0.02, 0.08) * np.arange(frames) + rng.uniform()))
    bold_TV = course_T[:, None] * map_V + 0.5 * rng.normal(size=(frames, TEMPLATE.voxels))
    return ((bold_TV - bold_TV.mean(0)) / bold_TV.std(0)).astype(np.float32)


def small_study(compute: dict[str, Any] | None = None, **pretrain: Any) -> Study:
    """The demo with eight steps a cell."""
    changes: dict[str, Any] = {"steps": 8, "batch_clips": 2, "context_frames": 8, "validation_people": 3}
    changes |= {"validations": 1, **pretrain}
    options = {"swift_v1": {"options": {"window": [2, 2, 2, 4]}}, "swift_v2": {"options": {"window": [2, 2, 2]}}}
    # Clips are read when they are trained on, so that a test can interrupt at one.
    return load_study(
        DEMO, {"pretrain": changes, "architectures": options, "compute": {"loaders": 0, **(compute or {})}}
    )


def make_pool(root: Path) -> Path:
    """Six people to pretrain on and three to evaluate, two runs of 24 frames each."""
    rng = np.random.default_rng(1)
    save_template(TEMPLATE, root / "template")
    runs = []
    for person in range(9):
        for session in ("2", "1"):
            name = {"dataset": "simulated", "subject": f"p{person}", "session": session, "run": "1"}
            folder = root / f"shards/sub-p{person}/ses-{session}_run-1"
            entry = write_shard(folder, 100 + planted(24, rng), {**name, **CONTRACT}, geometry=voxel_geometry(TEMPLATE))
            runs.append({**name, **entry, "mean_fd_mm": 0.1, "overlap": 0.9, "content": f"{person}{session}"})
    write_json(root / "manifest.json", {"runs": runs})
    write_json(root / "draws.json", {"0": [f"simulated/p{person}" for person in (3, 1, 0, 5, 2, 4)]})
    write_json(root / "evaluation_set.json", {"people": {"simulated": ["p6", "p7", "p8"]}, "hash": ""})
    return root


def run(root: Path, study: Study, cell: Cell, output: Path, rates: Path | None = None) -> dict[str, Any]:
    run_cell(
        study,
        cell,
        template_folder=root / "template",
        manifests={"simulated": root / "manifest.json"},
        draws=root / "draws.json",
        evaluation_set=root / "evaluation_set.json",
        learning_rate_file=rates,
        output_folder=output,
        state_root=output / "state",
    )
    return read_json(output / "summary.json")
