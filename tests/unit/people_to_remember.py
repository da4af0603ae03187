"""People of a few voxels with signals of their own, and learners that remember them or do not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from small_cohort import CONTRACT, DEMO, small_template

from pipeline.artefact import write_json
from pipeline.bold.shards import voxel_geometry, write_shard
from pipeline.bold.template import save_template
from pipeline.config import Study, load_study
from pipeline.grid import Cell
from pipeline.pretrain.objectives import build_learner, objective_of
from pipeline.pretrain.rasters import voxel_raster

TEMPLATE = small_template()
RASTER = voxel_raster(TEMPLATE)
CONTEXT, FRAMES = 8, 17  # two clips a person
SPEC = {"width": 16, "depths": [2], "heads": [2], "grid": [2, 2, 2], "patch": [3, 3, 3, 1], "context_frames": CONTEXT}
METADATA: dict[str, Any] = {
    "model": "swift_v1",
    "spec": SPEC,
    "objective": "masked reconstruction",
    "masks": {"ratio": 0.5, "kind": "random", "loss": "mse"},
    "contract": {"kind": "voxels", "template": TEMPLATE.key, "space": TEMPLATE.space, "tr_s": CONTRACT["tr_s"]},
}


def study_of(**dataset: Any) -> Study:
    changes = {"pretrain": {"context_frames": CONTEXT}, "evaluate": {"bootstrap": 200}}
    study = load_study(DEMO, changes)
    changed = study.datasets["simulated"].model_copy(update=dataset)
    return study.model_copy(update={"datasets": {**study.datasets, "simulated": changed}})


def cell_of(people: int) -> Cell:
    return Cell("swift_v1", "w6", people, FRAMES)


def write_people(root: Path, trained: int, others: int, copies: int = 0, siblings: int = 0) -> dict[str, Any]:
    """Files as the stages write them; the first `copies` others have the run of somebody trained on, under a new name,
    and the last `siblings` are of the family of somebody trained on.
    """
    runs, table = [], ["subject\tfamily\tsite\tage\tsex"]
    names = [*(f"t{person}" for person in range(trained)), *(f"h{person}" for person in range(others))]
    for person, subject in enumerate(names):
        held_out = person - trained
        draw = held_out if 0 <= held_out < copies else person
        related = held_out - (others - siblings)
        table.append(f"{subject}\tfam{related if related >= 0 else person}\tA\t30\t0")
        rng = np.random.default_rng([12, draw])
        maps_2V, course_T2 = rng.normal(size=(2, TEMPLATE.voxels)), rng.normal(size=(FRAMES, 2))
        bold_TV = 100 + course_T2 @ maps_2V + 0.3 * rng.normal(size=(FRAMES, TEMPLATE.voxels))
        name = {"dataset": "simulated", "subject": subject, "session": "1", "run": "1"}
        folder = root / f"shards/{subject}"
        entry = write_shard(folder, bold_TV.astype(np.float32), {**name, **CONTRACT}, geometry=voxel_geometry(TEMPLATE))
        runs.append({**name, **entry})
    write_json(root / "manifest.json", {"runs": runs})
    write_json(root / "draws.json", {"0": [f"simulated/{name}" for name in names[:trained]]})
    (root / "participants.tsv").write_text("\n".join(table) + "\n")
    save_template(TEMPLATE, root)
    return {
        "manifests": {"simulated": root / "manifest.json"},
        "participants": {"simulated": root / "participants.tsv"},
        "draws": root / "draws.json",
    }


def fresh(objective: str = "masked reconstruction") -> Any:
    torch.manual_seed(0)
    return build_learner("swift_v1", SPEC, objective)


def overfitted(runs_TV: list[np.ndarray], steps: int = 150) -> Any:
    """A learner trained on the clips of these runs and nothing else, again and again."""
    learner = fresh()
    clips = torch.stack([torch.from_numpy(run[at : at + CONTEXT]) for run in runs_TV for at in (0, FRAMES - CONTEXT)])
    clip, draw = RASTER.lay(clips), torch.Generator().manual_seed(0)
    optimiser = torch.optim.Adam(learner.parameters(), 3e-3)
    true = learner.patchify(clip)
    for _ in range(steps):
        hidden = torch.rand(true.shape[:-1], generator=draw) < 0.5
        predicted, _ = learner.predict(clip, hidden)
        loss = (predicted - true[hidden]).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return learner


def contrastive() -> tuple[Any, dict[str, Any]]:
    """A learner whose loss is of a whole batch, and its metadata."""
    learner = fresh("contrastive")
    assert objective_of("contrastive", learner, None, "mse", {}, CONTEXT) is not None
    return learner, {**METADATA, "objective": "contrastive"}
