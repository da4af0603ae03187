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
from conftest import REPOSITORY, Checkout, check_out

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
