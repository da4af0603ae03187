"""The commands of docs/data.md on real raw BOLD with its T1w: from the scanner to shards and derived stores."""

from __future__ import annotations

import json
import os
import re
import shlex
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from conftest import REPOSITORY, Checkout, check_out
from tiny_models import own_objective
from torch import Tensor

from pipeline.bold.flatmap import load_flatmap
from pipeline.bold.reader import Shard
from pipeline.bold.template import load_template
from pipeline.models import build, describe
from pipeline.models.parts.voxels import Raster
from pipeline.pretrain.engine.optimiser import Optimiser
from pipeline.pretrain.rasters import voxel_raster

pytestmark = [
    pytest.mark.xdist_group("workflow"),
    pytest.mark.skipif("PIPELINE_REAL_DATA" not in os.environ, reason="PIPELINE_REAL_DATA, the real data, is not set"),
]
STORE = "results/studyforrest"


def _documented() -> list[str]:
    blocks = re.findall(r"^```(\w*)\n(.*?)^```$", (REPOSITORY / "docs/data.md").read_text(), re.DOTALL | re.MULTILINE)
    lines = [line.split("  #")[0].strip() for language, block in blocks if not language for line in block.splitlines()]
    return [line for line in lines if line and not line.startswith("export")]


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Checkout, dict[str, str]]:
    """A checkout in which every command has run, and what each printed."""
    checkout, said = check_out(tmp_path_factory.mktemp("real")), {}
    for command in _documented():
        outcome = checkout.run(*shlex.split(command))
        assert outcome.returncode == 0, f"{command}\n{outcome.stdout[-2000:]}{outcome.stderr[-4000:]}"
        said[command] = outcome.stdout
    return checkout, said


def _entry(root: Path, store: str) -> dict[str, object]:
    (entry,) = json.loads((root / STORE / store / "manifest.json").read_text())["runs"]
    return dict(entry)


def test_the_raw_run_lies_on_the_template_with_left_on_the_left(done: tuple[Checkout, dict[str, str]]) -> None:
    checkout, said = done
    quality = _entry(checkout.root, "shards/studyforrest")["quality"]
    assert isinstance(quality, dict)
    assert quality["left_right"] == "as it lies"
    assert quality["overlap"] > 0.9  # cerebellum and brainstem are cut; .84 by an affine without the T1w
    assert quality["similarity"] > 0.45  # .37 where it lies 5 mm off
    assert 0.1 < quality["mean_fd_mm"] < 0.2
    assert quality["filtered"] is False
    assert any("every byte as written" in text for text in said.values())
    assert any("left_right" in text and "MNI152NLin6Asym" in text for text in said.values())
    folder = checkout.root / STORE / "shards/studyforrest/sub-02/ses-1_run-1"
    assert (folder / "quality.png").read_bytes()[:4] == b"\x89PNG"
    assert (checkout.root / "quick_look.png").read_bytes()[:4] == b"\x89PNG"


def test_derived_stores_of_the_real_run_have_signal(done: tuple[Checkout, dict[str, str]]) -> None:
    checkout, _ = done
    parcels = _entry(checkout.root, "parcels/schaefer100/studyforrest")["quality"]
    flat = _entry(checkout.root, "flatmaps/studyforrest")["quality"]
    assert isinstance(parcels, dict)
    assert isinstance(flat, dict)
    assert parcels["dead_columns"] == 0
    assert flat["column_coverage"] > 0.9
    atlas = nib.load(Path(os.environ["PIPELINE_REAL_DATA"]) / "atlases/schaefer_100_7net/atlas.nii.gz")
    assert len(np.unique(np.asarray(atlas.dataobj))) == 101


VOXELS = {"grid": (12, 12, 12), "patch": (8, 8, 8, 1), "context_frames": 8}
STAGES = {"width": 6, "depths": (1, 1), "heads": (1, 2)}
# Every system of the registry at a small size, with the boxes and parcels of this run: 96^3 voxels, 100 parcels.
REAL: dict[str, dict[str, object]] = {
    "swift_v1": {**VOXELS, **STAGES},
    "swift_4d": {**VOXELS, **STAGES},
    "swift_v2": {**VOXELS, **STAGES, "width": 12},
    "neurostorm": {**VOXELS, "width": 6, "depths": (1, 1), "states": 2},
    "brainlm": {"width": 16, "depth": 1, "heads": 2, "parcels": 100, "frames": 40},
    "brain_jepa": {"width": 16, "depth": 1, "heads": 2, "parcels": 100, "frames": 48, "predictor_width": 16},
    "flatmap_mae": {"width": 16, "depth": 1, "heads": 2},
    "brainmt": {"grid": (12, 12, 12), "patch": (8, 8, 8, 1), "context_frames": 8, "stem": (2, 4), "width": 8}
    | {"mamba_depth": 1, "attention_depth": 1, "states": 2},
    "tff": {"volume": (96, 96, 96), "width": 16, "layers": 1, "heads": 2, "hidden": 16, "context_frames": 2},
    "brainnetcnn": {"parcels": 100, "edges": (3, 4), "graph": 8, "dense": (8, 6)},
    "braingnn": {"parcels": 100, "communities": 3, "width": 4, "dense": 8},
    "brainnettf": {"parcels": 100, "heads": 2, "hidden": 16, "clusters": 4},
    "signal_vit": {"width": 16, "depth": 1, "heads": 2, "length": 128},
}


def _two_clips(root: Path, name: str, shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Two clips of the real run as a system sees them, and a target that they differ in."""
    template, target = load_template(root / STORE / "template"), torch.tensor([[0.0], [1.0]])
    kind, frames = describe(name).input, shape[-1]
    if kind == "voxels":
        bold_TV = Shard.open(_entry(root, "shards/studyforrest")["path"]).read(0, 2 * frames)
        return voxel_raster(template).lay(torch.from_numpy(bold_TV).unflatten(0, (2, frames))), target
    if kind == "flat map":
        bold_TV = Shard.open(_entry(root, "flatmaps/studyforrest")["path"]).read(0, 2 * frames)
        mask_HW = load_flatmap(root / STORE / "flatmaps").raster.mask_HW
        raster = Raster(mask_HW.shape, torch.from_numpy(np.flatnonzero(mask_HW)))
        return raster.lay(torch.from_numpy(bold_TV).unflatten(0, (2, frames))), target
    series_TR = torch.from_numpy(Shard.open(_entry(root, "parcels/schaefer100/studyforrest")["path"]).read())
    if kind == "connectome":
        return torch.stack([torch.corrcoef(half_tR.T) for half_tR in series_TR[:156].chunk(2)]), target
    if kind == "signal":
        return series_TR[:frames, :2].T, target
    return series_TR[: 2 * frames].unflatten(0, (2, frames)).mT, target


@pytest.mark.parametrize("name", REAL)
def test_every_system_takes_steps_on_the_real_run(
    done: tuple[Checkout, dict[str, str]], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(done[0].root)
    torch.manual_seed(0)
    learner = describe(name).learner(build(name, dict(REAL[name])))
    clip, target = _two_clips(done[0].root, name, learner.encoder.input_shape)
    optimiser = Optimiser(learner, 0.05)
    losses = []
    for _ in range(2):
        objective, batch = own_objective(name, learner, clip, target)
        loss = objective.loss(batch)
        learner.zero_grad()
        loss.backward()
        optimiser.step(1e-3)
        objective.after_step(0.5)
        losses.append(loss.item())
    assert np.isfinite(losses).all()
    assert len(set(losses)) == len(losses), "each step must change the weights"
    assert learner.encoder(clip).isfinite().all()
