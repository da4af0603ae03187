"""What a study says of a model: every row of the configurations, and what is refused before a job starts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.config import Architecture, Grid, Study, load_study
from pipeline.errors import InputError
from pipeline.models import create, describe, names
from pipeline.models.mup import rate_factors
from pipeline.pretrain.objectives import build_learner
from pipeline.pretrain.plan import check_architecture, model_spec, try_architecture, width_of, with_base

CONFIG = Path(__file__).resolve().parents[2] / "config"


def paper(**rows: Any) -> Study:
    own = {name: Architecture(**row) for name, row in rows.items()}
    return load_study(CONFIG / "config.yaml").model_copy(update={"architectures": own, "grid": Grid()})


def voxels(study: Study) -> dict[str, Any]:
    return {"volume": [*study.template.shape], "patch": [*study.template.patch, 1], "context_frames": 20}


@pytest.mark.parametrize("file", ["config.yaml", "demo.yaml"])
def test_every_size_of_the_tree_builds_and_muP_finds_its_base(file: str) -> None:
    study = load_study(CONFIG / file)
    for name, row in study.architectures.items():
        check_architecture(study, name)
        base = model_spec(study, name, study.swept_size(name), voxels(study))
        for size in row.sizes:
            spec = model_spec(study, name, size, voxels(study))
            assert width_of(study, name, size) == spec["width"]
            if row.parametrisation == "standard":
                continue
            own, base_spec = with_base(spec, base)
            with torch.device("meta"):
                model, other = build_learner(row.model, own), build_learner(row.model, base_spec)
            ratio = base["width"] / spec["width"]
            factors = rate_factors(model, other)
            assert factors["encoder.layers.0.blocks.0.mlp.linear1.weight"] == pytest.approx(ratio)
            assert factors["encoder.patch_embed.fc.weight"] == 1
            scale = model.encoder.layers[0].blocks[0]
            attention = scale.attn if hasattr(scale, "attn") else scale.spatial_attn
            heads, base_heads = spec["heads"][0], base["heads"][0]
            assert attention.scale == pytest.approx((base["width"] / base_heads) ** 0.5 / (spec["width"] / heads))


ROW = {"model": "swift_v2", "label": "x", "sizes": {"s": {"width": 12, "depths": [1], "heads": [1]}}}


@pytest.mark.parametrize(
    ("change", "where", "text"),
    [
        ({"model": "swift_v22"}, "model", "Did you mean 'swift_v2'"),
        ({"input": "flat map"}, "architectures.x.input", "expected 'voxels'"),
        ({"sizes": {"s": {"widht": 12}}}, "architectures.x.sizes.s", "Did you mean 'width'"),
        ({"sizes": {"s": {"size": "9mm"}}}, "size of swift_v2", "Did you mean '9m'"),
        ({"objective": "JEPA"}, "architectures.x.objective", "expected 'contrastive' or 'masked reconstruction'"),
        (
            {"model": "neurostorm", "sizes": {"s": {}}, "parametrisation": "mup"},
            "parametrisation",
            "mup of 'neurostorm'",
        ),
        ({"model": "tff", "sizes": {"s": {}}, "options": {"variant": "upstream"}}, "sizes.s: variant", "two channels"),
        ({"model": "brainnetcnn", "sizes": {"s": {}}}, "architectures.x.input", "expected 'connectome'"),
    ],
)
def test_what_a_model_cannot_be_is_named(change: dict[str, Any], where: str, text: str) -> None:
    with pytest.raises(InputError) as refused:
        check_architecture(paper(x={**ROW, **change}), "x")
    assert where in str(refused.value)
    assert text in str(refused.value)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"options": {"window": [2, 2, 2, 2]}}, "sizes.s"),
        ({"options": {"variant": "upsteam"}}, "Did you mean 'upstream'"),
        ({"sizes": {"s": {"width": -12, "depths": [1], "heads": [1]}}}, "sizes.s"),
        ({"model": "neurostorm"}, "heads"),
        ({"model": "brainmt", "sizes": {"s": {"width": 8, "stem": [2]}}}, "makes 4^3"),
        ({"objective": "contrastive", "objective_options": {"temprature": 0.1}}, "temprature"),
        ({"objective": "contrastive", "objective_options": {"kind": 4}}, "objective_options"),
    ],
)
def test_a_size_that_does_not_fit_is_found_without_any_data(change: dict[str, Any], text: str) -> None:
    study = paper(x={**ROW, **change})
    with pytest.raises(InputError) as refused:
        try_architecture(study, "x")
    assert "architectures.x.sizes.s" in str(refused.value)
    assert text in str(refused.value)


def test_what_fits_is_counted() -> None:
    parcels = {"input": "parcels", "atlas": "a", "context_frames": 200, "sizes": {"s": {"size": "13m"}}}
    flat = {"input": "flat map", "context_frames": 16, "sizes": {"s": {"size": "2m"}}}
    study = paper(
        x=ROW,
        brainlm={"model": "brainlm", "label": "x", **parcels},
        flat={"model": "flatmap_mae", "label": "x", **flat},
    )
    assert try_architecture(study, "brainlm") == {"s": 8_425_472}
    assert try_architecture(study, "flat") == {"s": 1_626_816}
    own = sum(value.numel() for value in create("swift_v2", **model_spec(study, "x", "s", voxels(study))).parameters())
    assert try_architecture(study, "x") == {"s": own}


def test_a_size_of_the_registry_brings_its_arguments() -> None:
    row = {"model": "brainmt", "label": "x", "sizes": {"paper": {"size": "paper"}}}
    study = paper(x=row)
    spec = model_spec(study, "x", "paper", voxels(study))
    assert (spec["width"], [*spec["patch"]], spec["grid"]) == (512, [16, 16, 16, 1], [6, 6, 6])
    assert width_of(study, "x", "paper") == 512
    with pytest.raises(InputError, match=r"found \[5, 5, 5\].*tiles"):
        model_spec(paper(x={**row, "options": {"patch": [5, 5, 5, 1]}}), "x", "paper", voxels(study))


@pytest.mark.parametrize("name", [name for name in names() if describe(name).objective != "supervised"])
def test_every_size_of_the_registry_has_a_width_for_learning_rates(name: str) -> None:
    study = paper(x={"model": name, "label": "x", "sizes": {size: {"size": size} for size in describe(name).sizes}})
    assert all(width_of(study, "x", size) > 0 for size in describe(name).sizes)
