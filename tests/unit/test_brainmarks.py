"""Our encoders inside brainmarks: the same run must give the same features by their way and by ours."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from small_cohort import CONTRACT

from pipeline.bold.normalise import Gridding, zscore
from pipeline.bold.parcels import parcel_geometry
from pipeline.bold.reader import Shard
from pipeline.bold.resample import resample_in_time
from pipeline.bold.shards import voxel_geometry, write_shard
from pipeline.bold.template import Template, save_template
from pipeline.errors import InputError
from pipeline.evaluate.features import encode_runs, pool
from pipeline.evaluate.release.brainmarks import (
    ENCODER,
    MASK,
    MNI_AFFINE,
    MNI_SHAPE,
    MNI_VOXELS,
    PARCELS,
    SPACE,
    Transform,
    brain_mask,
    columns_to_voxels,
    model_pair,
)
from pipeline.pretrain.engine.checkpoint import load_cell, save_model
from pipeline.pretrain.objectives import build_learner
from pipeline.pretrain.rasters import parcel_raster, voxel_raster

FRAMES, CONTEXT, TR_S = 22, 8, 1.5


def ball() -> np.ndarray:
    """A mask of as many voxels as brainmarks has, those nearest to the middle of the grid."""
    centred_3N = np.indices(MNI_SHAPE).reshape(3, -1) - (np.array(MNI_SHAPE)[:, None] - 1) / 2
    nearest = np.argsort((centred_3N**2).sum(0), kind="stable")[:MNI_VOXELS]
    mask_N = np.zeros(centred_3N.shape[1], bool)
    mask_N[nearest] = True
    return mask_N.reshape(MNI_SHAPE)


def cube(resolution_mm: float, edge: int, corner_mm: float = -16.0) -> Template:
    """A template of `edge`^3 voxels in the middle of the brain, patches of 3^3."""
    affine = np.diag([resolution_mm] * 3 + [1.0])
    affine[:3, 3] = [corner_mm, corner_mm - 18, corner_mm + 18]  # from the middle of the grid of brainmarks
    mask_XYZ = np.ones((edge,) * 3, dtype=bool)
    order = np.random.default_rng(0).permutation(edge**3)
    return Template("MNI152NLin6Asym", resolution_mm, affine, mask_XYZ, (3, 3, 3), order, order * 0, f"cube{edge}")


def sample(bold_TV: np.ndarray, tr_s: float = TR_S) -> dict[str, Any]:
    """A run as brainmarks gives it."""
    z_TV, mean_V, std_V = zscore(bold_TV)
    columns = {"bold": z_TV, "mean": mean_V[None], "std": std_V[None]}
    return {name: torch.from_numpy(values) for name, values in columns.items()} | {"tr": tr_s, "target": 1}


def write_voxel_encoder(folder: Path, template: Template, space: str = "MNI152NLin6Asym") -> Path:
    places = template.shape[0] // 3
    spec = {"width": 6, "depths": [1], "heads": [1], "grid": [places] * 3, "patch": [3, 3, 3, 1]}
    contract = {"kind": "voxels", "space": space, "template": template.key, "tr_s": TR_S}
    return write_encoder(folder, "swift_v1", spec | {"context_frames": CONTEXT}, contract, template)


def write_parcel_encoder(folder: Path, parcels: int) -> Path:
    spec = {"parcels": parcels, "width": 8, "depth": 1, "heads": 2, "patch": 4, "frames": CONTEXT}
    spec |= {"decoder_width": 8, "decoder_depth": 1, "decoder_heads": 2}
    return write_encoder(folder, "brainlm", spec, {"kind": "parcels", "atlas": "an-atlas", "tr_s": TR_S})


def write_encoder(folder: Path, model: str, spec: Any, contract: Any, template: Template | None = None) -> Path:
    torch.manual_seed(0)
    save_model(
        folder / "encoder.safetensors",
        build_learner(model, spec),
        {"model": model, "spec": spec, "contract": contract},
    )
    if template is not None:
        save_template(template, folder)
    return folder


@pytest.fixture(scope="module")
def mask_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("mask") / "mask.nii.gz"
    nib.save(nib.Nifti1Image(ball().astype(np.uint8), MNI_AFFINE), path)
    return path


def by_their_way(pair: tuple[Any, Any], run: dict[str, Any]) -> np.ndarray:
    """(C,) as `brainmarks.main_logistic` extracts the representation `patch`."""
    transform, model = pair
    batch = torch.utils.data.default_collate([transform(run), transform(run)])
    nothing, neither, tokens_BLC = model(batch)
    assert nothing is None
    assert neither is None
    assert batch["target"].tolist() == [1, 1]  # what brainmarks has put there before is left in place
    means_BC = tokens_BLC.mean(1).numpy()
    np.testing.assert_array_equal(means_BC[0], means_BC[1])
    return means_BC[0]


@pytest.mark.parametrize("resolution_mm", [2.0, 5.0])
def test_a_volume_gives_the_features_of_our_own_shard(tmp_path: Path, mask_file: Path, resolution_mm: float) -> None:
    template, rng = cube(resolution_mm, 6), np.random.default_rng(1)  # 2 mm: the lattice of brainmarks
    volume_XYZT = rng.normal(1000, 10, (*MNI_SHAPE, FRAMES)).astype(np.float32)
    bold_TV = Gridding.of(MNI_SHAPE, MNI_AFFINE, template)(np.asfortranarray(volume_XYZT), lambda values: values)
    write_shard(tmp_path / "shard", bold_TV, {**CONTRACT, "tr_s": TR_S}, geometry=voxel_geometry(template))
    folder = write_voxel_encoder(tmp_path / "encoder", template)
    learner, _ = load_cell(folder)
    clips = encode_runs(learner.encoder, [Shard.open(tmp_path / "shard")], voxel_raster(template), CONTEXT)
    # Columns of brainmarks: the mask of a volume (Z, Y, X) in C order.
    theirs = sample(volume_XYZT.transpose(3, 2, 1, 0)[:, ball().transpose(2, 1, 0)])
    found_C = by_their_way(model_pair(folder, mask=mask_file), theirs)
    np.testing.assert_allclose(found_C, pool(clips, CONTEXT, CONTEXT).full_RD[0], rtol=0, atol=2e-3)  # float16 shards


def test_parcels_give_the_features_of_our_own_shard(tmp_path: Path) -> None:
    parcels = PARCELS["schaefer400"]
    series_TR = np.random.default_rng(2).normal(50, 3, (FRAMES, parcels)).astype(np.float32)
    geometry = parcel_geometry("an-atlas", [str(parcel) for parcel in range(parcels)])
    write_shard(tmp_path / "shard", series_TR, {**CONTRACT, "tr_s": TR_S}, geometry=geometry)
    folder = write_parcel_encoder(tmp_path / "encoder", parcels)
    learner, _ = load_cell(folder)
    clips = encode_runs(learner.encoder, [Shard.open(tmp_path / "shard")], parcel_raster(parcels), CONTEXT)
    pair = model_pair(folder, space="schaefer400")
    assert pair[1].__space__ == "schaefer400"
    expected_C = pool(clips, CONTEXT, CONTEXT).full_RD[0]
    np.testing.assert_allclose(by_their_way(pair, sample(series_TR)), expected_C, rtol=0, atol=2e-3)


def test_runs_of_another_repetition_time_are_brought_to_the_encoders() -> None:
    bold_TV = np.random.default_rng(3).normal(100, 5, (40, 4)).astype(np.float32)
    found = Transform(CONTEXT, TR_S)(sample(bold_TV, tr_s=2.0))
    frames = int(39 * 2.0 / TR_S) + 1
    expected_TV = zscore(resample_in_time(zscore(bold_TV)[0], 2.0, TR_S))[0]
    assert found["bold"].shape == (frames // CONTEXT, CONTEXT, 4)
    np.testing.assert_allclose(found["bold"].flatten(0, 1), expected_TV[: frames // CONTEXT * CONTEXT], atol=1e-6)
    assert found["tr"] == TR_S
    assert Transform(CONTEXT, TR_S, clips=2)(sample(bold_TV))["bold"].shape == (2, CONTEXT, 4)


def test_a_run_shorter_than_a_clip_is_filled_up_with_its_mean() -> None:
    bold_TV = np.random.default_rng(4).normal(100, 5, (5, 3)).astype(np.float32)
    clips_KTV = Transform(CONTEXT, TR_S)(sample(bold_TV))["bold"]
    assert clips_KTV.shape == (1, CONTEXT, 3)
    np.testing.assert_allclose(clips_KTV[0, :5], zscore(bold_TV)[0], atol=1e-5)
    assert not clips_KTV[0, 5:].any()


def test_a_linear_field_is_sampled_exactly_and_the_unknown_is_zero() -> None:
    mask_XYZ, template = ball(), cube(5.0, 6)
    column_V3 = np.argwhere(mask_XYZ.transpose(2, 1, 0))[:, ::-1]
    field_V = nib.affines.apply_affine(MNI_AFFINE, column_V3) @ [1.0, 10.0, 100.0]
    centres_v3 = nib.affines.apply_affine(template.affine, template.coordinates_V3)
    found_v = columns_to_voxels(template, mask_XYZ) @ field_V
    np.testing.assert_allclose(found_v, centres_v3 @ [1.0, 10.0, 100.0], rtol=1e-5, atol=1e-3)
    outside = cube(5.0, 6, corner_mm=300.0)
    assert not (columns_to_voxels(outside, mask_XYZ) @ field_V).any()


def test_what_brainmarks_cannot_feed_is_refused(tmp_path: Path, mask_file: Path, monkeypatch: Any) -> None:
    for name in (ENCODER, SPACE, MASK):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(InputError, match=f"no encoder.*{ENCODER}"):
        model_pair()
    parcels = write_parcel_encoder(tmp_path / "parcels", 400)
    with pytest.raises(InputError, match="400 parcels of an-atlas, and space None; expected space schaefer400"):
        model_pair(parcels)
    with pytest.raises(InputError, match="and space a424"):
        model_pair(parcels, space="a424")
    odd = write_parcel_encoder(tmp_path / "odd", 7)
    with pytest.raises(InputError, match="expected one of schaefer400, "):
        model_pair(odd, space="schaefer400")
    other = write_voxel_encoder(tmp_path / "other", cube(2.0, 6), space="MNI152NLin2009aSym")
    with pytest.raises(InputError, match="'MNI152NLin2009aSym'; expected 'MNI152NLin6Asym'"):
        model_pair(other, mask=mask_file)
    moved = write_voxel_encoder(tmp_path / "moved", cube(2.0, 6))
    save_template(cube(2.0, 9), moved)
    with pytest.raises(InputError, match="key cube9; expected cube6"):
        model_pair(moved, mask=mask_file)
    flat = write_encoder(tmp_path / "flat", "brainlm", load_cell(odd)[1]["spec"], {"kind": "flatmap"})
    with pytest.raises(InputError, match="an encoder of flatmap; expected one of voxels or parcels"):
        model_pair(flat)


def test_another_mask_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "mask.nii.gz"
    nib.save(nib.Nifti1Image(np.ones(MNI_SHAPE, np.uint8), MNI_AFFINE), path)
    with pytest.raises(InputError, match=r"902629 voxels of a grid of .* expected 228483"):
        brain_mask(path)
    with pytest.raises(InputError, match=MASK):
        brain_mask(tmp_path / "none.nii.gz")


def theirs() -> Path | None:
    """brainmarks' own smoke test; only the namespace is there where it is not installed."""
    spec = find_spec("brainmarks.models.test_models") if find_spec("brainmarks") else None
    return Path(spec.origin) if spec is not None and spec.origin else None


@pytest.mark.skipif(theirs() is None, reason="brainmarks is not in this environment: `make brainmarks-test` has one")
@pytest.mark.parametrize("kind", ["voxels", "parcels"])
def test_its_own_smoke_test_passes(tmp_path: Path, mask_file: Path, kind: str) -> None:
    template = cube(8.0, 12, corner_mm=-44.0)
    folder = write_voxel_encoder(tmp_path, template) if kind == "voxels" else write_parcel_encoder(tmp_path, 400)
    environment = {**os.environ, ENCODER: str(folder), SPACE: "schaefer400", MASK: str(mask_file)}
    command = [sys.executable, "-m", "pytest", str(theirs()), "-k", "fmri_blueprint", "-p", "no:cacheprovider"]
    ran = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)
    print(ran.stdout)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "2 passed" in ran.stdout  # 16 and 160 frames
