"""A cohort of shards a few voxels large, with planted labels, for the tests of evaluation."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.artefact import digest, write_json
from pipeline.bold.shards import voxel_geometry, write_shard
from pipeline.bold.template import Template, save_template
from pipeline.config import Study, load_study
from pipeline.grid import Cell, all_cells
from pipeline.pretrain.engine.checkpoint import save_model
from pipeline.pretrain.objectives import build_learner

DEMO = Path(__file__).resolve().parents[2] / "config/demo.yaml"
EDGE, FRAMES, TR_S = 6, 40, 1.5
CONTRACT = {"tr_s": TR_S, "dropped": 0, "censoring": "none", "denoising": "none", "resampling": "none"}


def small_template() -> Template:
    """A 6 x 6 x 6 grid without its corners, patches and parcels of 3 x 3 x 3 voxels."""
    mask_XYZ = np.ones((EDGE,) * 3, dtype=bool)
    mask_XYZ[::5, ::5, ::5] = False
    voxels_V3 = np.argwhere(mask_XYZ)
    parcel_V = np.ravel_multi_index(tuple((voxels_V3 // 3).T), (2, 2, 2))
    order = np.argsort(parcel_V, kind="stable")  # a patch is a parcel here
    index_V = np.flatnonzero(mask_XYZ)[order]
    return Template("MNI", 8.0, np.eye(4) * 8, mask_XYZ, (3, 3, 3), index_V, parcel_V[order], "small")


@dataclass(frozen=True)
class SmallCohort:
    """Paths as the stages take them."""

    study: Study
    root: Path

    @property
    def inputs(self) -> dict[str, Any]:
        return {
            "template_folder": self.root / "template",
            "manifests": {"simulated": self.root / "manifest.json"},
            "participants": {"simulated": self.root / "participants.tsv"},
            "evaluation_set": self.root / "split/evaluation_set.json",
        }

    def outputs(self, name: str) -> dict[str, Path]:
        folder = self.root / name
        return {"probe_out": folder / "probe.parquet", "benchmark_out": folder / "benchmark.parquet"}


def make_cohort(root: Path, people: int = 24) -> SmallCohort:
    """People e000... in pairs of siblings; sex scales the coupling of parcels 0 and 1, and everybody has a pattern."""
    changes = {
        "evaluate": {
            **{"splits": 10, "bootstrap": 100, "permutations": 5, "low_shot": [3, 50], "low_shot_draws": 5},
            **{"declared_splits": 10, "supervised": {"tasks": []}},
        }
    }
    study, template, rng = load_study(DEMO, changes), small_template(), np.random.default_rng(0)
    save_template(template, root / "template")
    runs, table = [], ["subject\tfamily\tsite\tage\tsex\tdiagnosis"]
    for person in range(people):
        subject, sex = f"e{person:03d}", person % 2
        own_P = rng.normal(0, 1, template.parcels)
        table.append(f"{subject}\tfam{person // 2}\t{'AB'[person % 3 == 0]}\t{20 + person}\t{sex}\t{rng.integers(2)}")
        for session in ("1", "2"):
            signal_TP = rng.normal(0, 1, (FRAMES, template.parcels)) + rng.normal(0, 1, (FRAMES, 1)) * own_P
            signal_TP[:, 1] = sex * 2 * signal_TP[:, 0] + signal_TP[:, 1]
            bold_TV = 1000 + 10 * signal_TP[:, template.parcel_V] + rng.normal(0, 3, (FRAMES, template.voxels))
            name = {"dataset": "simulated", "subject": subject, "session": session, "run": "1"}
            folder = root / f"shards/sub-{subject}/ses-{session}_run-1"
            entry = write_shard(
                folder, bold_TV.astype(np.float32), {**name, **CONTRACT}, geometry=voxel_geometry(template)
            )
            runs.append({**name, **entry, "mean_fd_mm": 0.1 + 0.01 * person, "overlap": 0.95, "content": ""})
    pool = [f"p{person:03d}" for person in range(32)]
    table += [f"{subject}\tpool{subject}\tA\t30\t0\t1" for subject in pool]
    (root / "participants.tsv").write_text("\n".join(table) + "\n")
    subjects = sorted({run["subject"] for run in runs})
    write_json(root / "manifest.json", {"runs": runs, "quarantined": [], "provenance": {}})
    write_json(root / "split/evaluation_set.json", {"people": {"simulated": subjects}, "hash": digest(subjects)})
    write_json(root / "split/draws.json", {"0": [f"simulated/{subject}" for subject in pool]})
    return SmallCohort(study, root)


def small_cell(study: Study) -> Cell:
    """A cell of the demo that is given no control input."""
    return next(cell for cell in all_cells(study) if cell.size == "w6" and cell.draw == 0)


def write_cell(cell: Cell, folder: Path, contract: dict[str, Any], broken: bool = False) -> None:
    """A finished cell with fresh weights; `broken`: weights that are not numbers, as after a divergence."""
    spec = {"width": 6, "depths": [1], "heads": [1], "grid": [2, 2, 2], "patch": [3, 3, 3, 1], "context_frames": 20}
    model = build_learner("swift_v1", spec)
    if broken:
        for weight in model.parameters():
            weight.data.fill_(np.nan)
    save_model(folder / "encoder.safetensors", model, {"model": "swift_v1", "spec": spec, "contract": contract})
    draws = [f"simulated/p{person:03d}" for person in range(cell.subjects)]
    status = "diverged" if broken else "completed"
    write_json(folder / "summary.json", {"status": status, "people_hash": digest(draws)})
