"""`pipeline inspect`: the contract as text and a picture, from a shard alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from test_quality import GOOD

from pipeline.artefact import write_json
from pipeline.bold.quick_look import describe, find_template, inspect
from pipeline.bold.reader import Shard
from pipeline.bold.shards import voxel_geometry, write_shard
from pipeline.bold.template import Template, save_template
from pipeline.errors import InputError

NAME = {"dataset": "cohort", "subject": "01", "session": "1", "run": "2", "tr_s": 1.5, "denoising": "none"}
MASK = np.array([0x35, 0xC3, 0xF3])


def signal(columns: int, frames: int = 45) -> np.ndarray:
    rng = np.random.default_rng(0)
    return (1000 + 20 * rng.standard_normal((frames, columns))).astype(np.float32)


def shard_in(root: Path, template: Template, measured: bool = True) -> Path:
    """A shard where a study keeps it, with what its job measured."""

    def extras(folder: Path) -> None:
        if measured:
            write_json(folder / "quality.json", {"measures": GOOD.plain(), "reasons": []})

    folder = root / "shards" / "cohort" / "sub-01" / "ses-1_run-2"
    write_shard(folder, signal(template.voxels), NAME, geometry=voxel_geometry(template), extras=extras)
    return folder


def drawn(path: Path) -> np.ndarray:
    with Image.open(path) as picture:
        assert picture.size == (1600, 2000)
        return np.asarray(picture.convert("RGB")).astype(int)


def has_slices(path: Path) -> bool:
    return bool((np.abs(drawn(path) - MASK).max(axis=-1) < 40).sum() > 500)


def test_a_shard_is_told_field_by_field(template: Template, tmp_path: Path) -> None:
    lines = [line.split(maxsplit=1) for line in inspect(shard_in(tmp_path, template)).splitlines()]
    told = {words[0]: words[1] for words in lines if len(words) == 2}
    assert told["subject"] == "01"
    assert told["template"] == template.key
    assert told["tr_s"] == "1.5"
    assert told["software.pipeline"]
    assert told["mean_fd_mm"] == "0.12"
    assert told["filtered"] == "no"
    columns = {
        line.index(told[name])
        for line in inspect(tmp_path / "shards/cohort/sub-01/ses-1_run-2").splitlines()
        for name in ("dataset", "space", "tsnr")
        if line.split()[:1] == [name]
    }
    assert len(columns) == 1, "values stand below each other"


def test_a_measure_that_is_not_known_is_a_dash(template: Template, tmp_path: Path) -> None:
    folder = shard_in(tmp_path, template, measured=False)
    assert "measures" not in describe(Shard.open(folder))
    write_json(folder / "quality.json", {"measures": replace(GOOD, mean_fd_mm=None).plain()})
    assert any(line.split() == ["mean_fd_mm", "–"] for line in describe(Shard.open(folder)).splitlines())


def test_the_template_is_found_in_the_study_that_the_shard_lies_in(template: Template, tmp_path: Path) -> None:
    folder = shard_in(tmp_path, template)
    inspect(folder, output=tmp_path / "blind.png")
    assert not has_slices(tmp_path / "blind.png")
    save_template(template, tmp_path / "template")
    text = inspect(folder, output=tmp_path / "seen.png")
    assert has_slices(tmp_path / "seen.png")
    assert str(tmp_path / "seen.png") in text


def test_a_template_of_another_study_is_refused(template: Template, tmp_path: Path) -> None:
    folder = shard_in(tmp_path, template, measured=False)
    save_template(replace(template, key="another"), tmp_path / "template")
    inspect(folder, output=tmp_path / "blind.png")  # beside it: passed over
    assert not has_slices(tmp_path / "blind.png")
    with pytest.raises(InputError, match=f"found template another; expected template {template.key}"):
        inspect(folder, tmp_path / "template", tmp_path / "no.png")
    assert not (tmp_path / "no.png").exists()


def test_a_shard_of_parcels_needs_no_template(template: Template, tmp_path: Path) -> None:
    write_shard(
        tmp_path / "parcels", signal(7), NAME, geometry={"kind": "parcels", "labels": [f"p{n}" for n in range(7)]}
    )
    shard = Shard.open(tmp_path / "parcels")
    save_template(template, tmp_path / "template")
    assert find_template(shard, tmp_path / "template") is None
    assert "7 values: p0, p1, p2, p3, …" in inspect(tmp_path / "parcels", output=tmp_path / "look.png")
    drawn(tmp_path / "look.png")


def test_a_damaged_shard_is_told_as_such(template: Template, tmp_path: Path) -> None:
    folder = shard_in(tmp_path, template)
    data = next(path for path in folder.rglob("0") if path.stat().st_size > 10_000)
    content = bytearray(data.read_bytes())
    content[5000] ^= 1
    data.write_bytes(bytes(content))
    with pytest.raises(InputError, match="damaged"):
        inspect(folder, output=tmp_path / "look.png")
    assert not (tmp_path / "look.png").exists()
    with pytest.raises(InputError, match="no such file"):
        inspect(tmp_path / "nowhere")
