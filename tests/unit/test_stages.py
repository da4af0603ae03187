"""A stage's rerun parameter moves with every setting that the stage reads, and with no other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pipeline import grid
from pipeline.config import Study, load_study
from pipeline.errors import InputError
from pipeline.stages import stage_settings, stage_version

DEMO = Path(__file__).resolve().parents[2] / "config/demo.yaml"
INLINE = load_study(DEMO).model_dump(mode="json")["datasets"]["simulated"]


def _digest(stage: str, changes: dict[str, Any]) -> str:
    study = load_study(DEMO, changes)
    return stage_settings(study, stage, **_subject(study, stage))


def _subject(study: Study, stage: str) -> dict[str, Any]:
    if stage in ("people", "shards", "simulate", "manifest"):
        return {"dataset": "simulated"}
    return {"cell": grid.block_cells(study, "scaling")[2]} if stage in ("pretrain", "evaluate") else {}


def _dataset(**changes: Any) -> dict[str, Any]:
    return {"datasets": {"simulated": {**INLINE, **changes}}}


CONFIDENCE = {"evaluate": {"confidence": 0.9}}
WIDER = {"architectures": {"swift_v1": {"sizes": {"w12": {"width": 18}}}}}


@pytest.mark.parametrize(
    ("stage", "changes"),
    [
        ("spectral", CONFIDENCE),
        ("spectral", _dataset(simulated=True, simulation=None, denoising="x", roles=["evaluate"])),
        ("scaling", CONFIDENCE),
        ("evaluate", CONFIDENCE),
        ("evaluate", {"spectral": {"blocks": ["random_weights"]}}),
        ("evaluate", _dataset(confounds=["age"])),
        ("baselines", _dataset(confounds=["age"])),
        ("learning_rate", WIDER),
        ("pretrain", WIDER),
        ("pretrain", {"pretrain": {"steps": 111}}),
        ("people", _dataset(family_column=None)),
        ("shards", _dataset(denoising="ica")),
        ("shards", {"shards": {"drop_frames": 2}}),
        ("split", {"seed": 1}),
        ("truths", {"architectures": {"swift_v1": {"label": "other"}}}),
        ("figures", {"figures": {"dpi": 99}}),
    ],
)
def test_a_setting_that_a_stage_reads_moves_its_parameter(stage: str, changes: dict[str, Any]) -> None:
    assert _digest(stage, changes) != _digest(stage, {})


@pytest.mark.parametrize(
    ("stage", "changes"),
    [
        ("pretrain", CONFIDENCE),
        ("pretrain", {"pretrain": {"checkpoint_every_s": 1}}),
        ("pretrain", {"architectures": {"swift_v1": {"label": "other"}}}),
        ("pretrain", {"architectures": {"swift_v2": {"compute": {"w12": {"gpus": 8}}}}}),
        ("pretrain", {"architectures": {"swift_v2": {"mask_ratio": 0.7}}}),
        ("evaluate", {"compute": {"threads": 2}}),
        ("shards", _dataset(confounds=["age"])),
        ("shards", _dataset(people=79)),
        ("scaling", {"architectures": {"swift_v1": {"label": "other"}}}),
    ],
)
def test_a_setting_that_it_does_not_read_leaves_it(stage: str, changes: dict[str, Any]) -> None:
    assert _digest(stage, changes) == _digest(stage, {})


def test_an_unknown_stage_is_refused_with_the_nearest() -> None:
    assert stage_version("probe", "benchmark") == "probe2-benchmark2"
    with pytest.raises(InputError, match="Did you mean 'probe'"):
        stage_version("prob")
