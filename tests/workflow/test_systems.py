"""Every system that learns without labels is a cell of the grid, whatever it sees: voxels, parcels or flat maps."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import yaml
from conftest import Checkout

from pipeline.artefact import read_json, read_table
from pipeline.bold.template import load_template
from pipeline.cli import main
from pipeline.pretrain import lesson

pytestmark = pytest.mark.xdist_group("workflow")

STAGES = {"width": 6, "depths": [1, 1], "heads": [1, 2]}
FACTORISED = {"width": 12, "depths": [1, 1], "heads": [1, 2]}
PARCELS = {"input": "parcels", "atlas": "blocks", "context_frames": 40}
# What a cell of each system says in the configuration; the demo trains swift_v1 and swift_v2 by their own objective.
SYSTEMS: dict[str, dict[str, Any]] = {
    "swift_v1": {"objective": "contrastive", "objective_options": {"kind": "both"}, "sizes": {"tiny": STAGES}},
    "swift_4d": {"parametrisation": "mup", "mask": "window", "sizes": {"tiny": STAGES}},
    "swift_v2": {"parametrisation": "mup", "mask": "tube", "sizes": {"tiny": FACTORISED}},
    "neurostorm": {
        "options": {"redundancy_dropout": True},
        "sizes": {"tiny": {"width": 6, "depths": [1, 1], "states": 2}},
    },
    "brainmt": {
        "options": {"patch": [8, 8, 8, 1], "stem": [2, 4], "drop_path": 0.3},
        "sizes": {"tiny": {"width": 8, "mamba_depth": 1, "attention_depth": 1, "heads": 2, "states": 2}},
    },
    "tff": {"sizes": {"tiny": {"base": 4, "width": 16, "layers": 1, "heads": 2, "hidden": 16}}},
    "brainlm": {**PARCELS, "sizes": {"tiny": {"width": 16, "depth": 1, "heads": 2, "decoder_width": 16}}}
    | {"options": {"decoder_depth": 1, "decoder_heads": 2, "patch": 10}},
    "brain_jepa": {**PARCELS, "sizes": {"tiny": {"width": 16, "depth": 1, "heads": 2, "predictor_width": 16}}}
    | {"options": {"predictor_depth": 1, "patch": 10}},
    "flatmap_mae": {"input": "flat map", "mask": "tube", "context_frames": 16, "options": {"patch": [8, 8, 4]}}
    | {"sizes": {"tiny": {"width": 16, "depth": 1, "heads": 2}}},
}
WITHOUT_R2 = {"swift_v1", "brain_jepa", "tff"}
RECONSTRUCTED = {"swift_4d", "swift_v2", "neurostorm", "brainmt"}  # whole runs, for their spectra


@pytest.fixture(scope="module")
def study(built: Checkout) -> Path:
    """A study of all of them on the shards of the tiny one, and the stores that are derived from those."""
    tiny = yaml.safe_load((built.root / "study/tiny.yaml").read_text())
    tiny["architectures"] = {name: {"model": name, "label": name, **row} for name, row in SYSTEMS.items()}
    tiny["grid"] = {"scaling": [{"subjects_frames": [[6, 140]]}]}
    tiny |= {"atlases": {"blocks": str(_atlas(built.root))}, "flatmap": {"height": 32, "width": 80}}
    tiny["evaluate"] |= {"frames": 40}
    tiny["pretrain"] |= {"steps": 3, "batch_clips": 4, "collapsed_rank": 0.5}
    tiny["compute"] = {"loaders": 0}  # clips are read when they are trained on, so that a test can interrupt at one
    path = built.root / "study/systems.yaml"
    path.write_text(yaml.safe_dump(tiny))
    return path


def _atlas(root: Path) -> Path:
    """Parcels that are blocks of 6 x 6 x 6 voxels of the tiny template."""
    template = load_template(root / "results/tiny/template")
    block_XYZ = np.ravel_multi_index(tuple(np.indices(template.shape) // 6), (4, 4, 4)) + 1
    nib.save(nib.Nifti1Image(block_XYZ.astype(np.int32), template.affine), root / "study/blocks.nii.gz")
    return root / "study/blocks.nii.gz"


@pytest.fixture(scope="module")
def stores(built: Checkout, study: Path) -> Path:
    """Parcel series and flat maps of every shard."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(built.root)
        template = ["--template", "results/tiny/template/template.json"]
        common = ["--config", str(study)]
        assert main(["flatmap", *common, *template, "--output", "results/tiny/flatmaps/flatmap.npz"]) == 0
        for verb, store, more in (
            ("parcels", "parcels/blocks", ["--atlas", "blocks"]),
            ("flatmaps", "flatmaps", []),
        ):
            for batch in sorted(Path("results/tiny/shards/cohort").glob("batch-*.json")):
                output = Path("results/tiny") / store / "cohort" / batch.name
                rest = ["--dataset", "cohort", "--input", str(batch), "--output", str(output)]
                assert main([verb, *common, *template, *rest, *more]) == 0
            manifest = f"results/tiny/{store}/cohort/manifest.json"
            assert main(["manifest", *common, "--dataset", "cohort", "--output", manifest]) == 0
    return study


def _interrupt_after(position: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A signal arrives while the sample at that position is read."""
    place = lesson.clip_position

    def interrupted(seed: int, at: int, *rest: Any) -> tuple[int, int]:
        if at == position:
            os.kill(os.getpid(), signal.SIGUSR2)
        return place(seed, at, *rest)

    monkeypatch.setattr(lesson, "clip_position", interrupted)


@pytest.mark.parametrize("name", SYSTEMS)
def test_a_cell_of_every_system_is_trained_scored_and_evaluated(
    built: Checkout, stores: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(built.root)
    cell = f"{name}/tiny/N6-T140/draw0-main/seed0"
    verdict = f"results/tiny/learning_rate/{name}/lr.json"
    assert main(["learning-rate", "--config", str(stores), "--architecture", name, "--output", verdict]) == 0
    command = ["--config", str(stores), "--cell", cell, "--output"]
    folder = Path("results/tiny/pretrain") / cell
    assert main(["pretrain", *command, str(folder / "summary.json")]) == 0
    summary = read_json(folder / "summary.json")
    assert (summary["status"], summary["steps"], summary["skipped_steps"]) == ("completed", 3, 0)
    assert np.isfinite(summary["val_loss"])
    assert summary["effective_rank"] > 1
    assert (summary["val_r2"] is None) == (name in WITHOUT_R2)
    assert 0 < summary["flops_per_clip"] < summary["train_flops"]
    first = (folder / "encoder.safetensors").read_bytes()
    shutil.rmtree(folder / "state")  # else the finished files are published again
    _interrupt_after(6, monkeypatch)
    assert main(["pretrain", *command, str(folder / "summary.json")]) == 75
    monkeypatch.undo()
    monkeypatch.chdir(built.root)
    assert main(["pretrain", *command, str(folder / "summary.json")]) == 0
    assert (folder / "encoder.safetensors").read_bytes() == first, "an interrupted cell is bitwise the one that was not"
    probe = Path("results/tiny/probe") / cell / "probe.parquet"
    assert main(["evaluate", *command, str(probe)]) == 0
    rows = read_table(probe)
    assert rows[rows["metric"] == "auroc"]["value"].between(0, 1).all()
    assert (len(read_table(Path("results/tiny/spectral") / cell / "spectral.parquet")) > 0) == (name in RECONSTRUCTED)


def test_the_plan_asks_for_the_store_that_a_system_reads(built: Checkout, study: Path) -> None:
    targets = [f"results/tiny/pretrain/{name}/tiny/N6-T140/draw0-main/seed0/summary.json" for name in SYSTEMS]
    done = built.run("snakemake", "--dry-run", "--cores", "1", *targets, "--configfile", str(study))
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert "parcels_batch" in done.stdout
    assert "flatmaps_batch" in done.stdout
