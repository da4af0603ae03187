"""Parcel series are nilearn's, whatever labels and grid; dead voxels do not count, and dead parcels are told."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import builders
import nibabel as nib
import numpy as np
import pytest
from nilearn.maskers import NiftiLabelsMasker

from pipeline import artefact
from pipeline.bold.batches import collect_batches
from pipeline.bold.derive import open_parent, parcels_batch, project
from pipeline.bold.parcels import label_table, load_parcellation, parcel_geometry, read_label_table
from pipeline.bold.reader import Shard
from pipeline.bold.shards import verify_shard, voxel_geometry, write_shard
from pipeline.bold.template import Template, build_template, pack
from pipeline.config import Study
from pipeline.config import Template as TemplateSettings
from pipeline.errors import InputError

CODES = (3, 130, 300, 2001, 9170)  # beyond int8, beyond uint8, AAL's thousands
REAL = os.environ.get("PIPELINE_REAL_DATA")
needs_real_data = pytest.mark.skipif(REAL is None, reason="PIPELINE_REAL_DATA, the folder of real data, is not set")


def atlas_data(shape: tuple[int, int, int], affine: np.ndarray) -> np.ndarray:
    """Five slabs from left to right, with a gap of no label behind."""
    places_XYZ3 = nib.affines.apply_affine(affine, np.moveaxis(np.indices(shape), 0, -1))
    slab_XYZ = np.clip(np.floor((places_XYZ3[..., 0] + 46.1) / 18), 0, 4).astype(int)
    return np.where(places_XYZ3[..., 1] > -25.3, np.array(CODES)[slab_XYZ], 0).astype(np.int32)


def write_atlas(folder: Path) -> Path:
    return builders.save(folder / "atlas.nii.gz", atlas_data(builders.SHAPE, builders.AFFINE))


def on_grid(packed_TV: np.ndarray, template: Template) -> nib.Nifti1Image:
    """Packed voxels as an image on the template's grid, for nilearn."""
    volume = np.zeros((*template.shape, len(packed_TV)), np.float32)
    volume[tuple(template.coordinates_V3.T)] = packed_TV.T
    return nib.Nifti1Image(volume, template.affine)


def by_nilearn(packed_TV: np.ndarray, atlas: Path, template: Template, alive_V: np.ndarray | None = None) -> np.ndarray:
    """(T, R) by `NiftiLabelsMasker`, of the voxels in `alive_V`, columns in the order of the codes."""
    inside = np.ones((1, template.voxels)) if alive_V is None else alive_V[None]
    mask = on_grid(inside, template).slicer[..., 0]
    masker = NiftiLabelsMasker(
        nib.load(atlas), mask_img=mask, standardize=None, resampling_target="data", keep_masked_labels=False
    )
    return np.asarray(masker.fit_transform(on_grid(packed_TV, template)))


def run_of(template: Template, frames: int = 30, seed: int = 1) -> np.ndarray:
    """(T, V) of the made-up brain: every voxel has its own mean and SD."""
    grid = builders.volume(template.shape, template.affine)[..., None]
    noise = np.random.default_rng(seed).standard_normal((*template.shape, frames))
    return pack((1000 * (grid + 0.1) * (1 + 0.02 * noise)).astype(np.float32), template)


def write_batch(folder: Path, runs: dict[str, np.ndarray], template: Template) -> Path:
    """Voxel shards of these people, beside the list of them, as the shard job writes it."""
    entries = []
    for subject, bold_TV in runs.items():
        name = {"dataset": "cohort", "subject": subject, "session": "1", "run": "1"}
        contract = {**name, "tr_s": 1.5, "dropped": 2, "denoising": "none", "resampling": "none"}
        path = folder / f"sub-{subject}" / "ses-1_run-1"
        entry = write_shard(path, bold_TV, contract, geometry=voxel_geometry(template))
        entries.append({**name, **entry, "mean_fd_mm": 0.1, "content": subject, "quality": {"coverage": 1.0}})
    lost = [{"dataset": "cohort", "subject": "09", "session": "1", "run": "1", "reason": "too short"}]
    artefact.write_json(folder / "batch-0000.json", {"runs": entries, "quarantined": lost, "provenance": {}})
    return folder / "batch-0000.json"


@pytest.fixture
def atlas(tmp_path: Path) -> Path:
    return write_atlas(tmp_path / "atlas")


@pytest.fixture
def with_atlas(study: Study, atlas: Path) -> Study:
    return study.model_copy(update={"atlases": {"slabs": atlas}})


@pytest.mark.parametrize("edge_mm", [8.0, 5.0, 3.0])
def test_raw_parcel_means_are_those_of_nilearn_on_any_grid(template: Template, tmp_path: Path, edge_mm: float) -> None:
    affine = np.diag([edge_mm, edge_mm, edge_mm, 1.0])
    affine[:3, 3] = [-52, -60, -44] if edge_mm == 8 else [-53.3, -61.7, -45.9]
    shape = builders.SHAPE if edge_mm == 8 else tuple(int(110 // edge_mm) + 14 for _ in range(3))
    atlas = builders.save(tmp_path / "atlas.nii.gz", atlas_data(shape, affine), affine)
    bold_TV = run_of(template)
    parcellation = load_parcellation("slabs", atlas, template)
    assert tuple(parcellation.codes_R) == CODES
    assert np.allclose((parcellation.weights_RV @ bold_TV.T).T, by_nilearn(bold_TV, atlas, template), rtol=1e-5)


def test_stored_series_are_nilearns_z_scored(
    with_atlas: Study, template: Template, template_folder: Path, atlas: Path, tmp_path: Path
) -> None:
    bold_TV = run_of(template)
    batch = write_batch(tmp_path / "shards", {"01": bold_TV}, template)
    parcels_batch(with_atlas, "cohort", "slabs", batch, template_folder, tmp_path / "parcels" / "batch-0000.json")
    shard = Shard.open(tmp_path / "parcels" / "sub-01" / "ses-1_run-1", {"kind": "parcels", "atlas": "slabs"})
    expected_TR = by_nilearn(bold_TV, atlas, template)
    assert np.allclose(shard.mean, expected_TR.mean(axis=0), rtol=1e-5)
    assert np.allclose(shard.std, expected_TR.std(axis=0), rtol=2e-3)
    z_TR = (expected_TR - expected_TR.mean(axis=0)) / expected_TR.std(axis=0)
    assert np.allclose(shard.read(), z_TR, atol=5e-3)


def test_a_derived_shard_says_what_it_is_and_comes_from(
    with_atlas: Study, template: Template, template_folder: Path, atlas: Path, tmp_path: Path
) -> None:
    batch = write_batch(tmp_path / "shards", {"01": run_of(template)}, template)
    output = tmp_path / "parcels" / "batch-0000.json"
    parcels_batch(with_atlas, "cohort", "slabs", batch, template_folder, output)
    listing, parent = artefact.read_json(output), artefact.read_json(batch)["runs"][0]
    (entry,) = listing["runs"]
    contract = Shard.open(entry["path"]).contract
    assert contract["atlas_sha256"] == artefact.sha256_file(atlas)
    assert contract["parent"] == {"template": template.key, "manifest": parent["manifest"]}
    assert contract["labels"] == [f"parcel-{code}" for code in CODES]
    assert contract["coverage"] == [1.0] * len(CODES)
    assert (contract["tr_s"], contract["dropped"], contract["subject"]) == (1.5, 2, "01")
    assert "affine" not in contract
    assert entry["quality"] == {"coverage": 1.0, "column_coverage": 1.0, "dead_columns": 0}
    assert (entry["mean_fd_mm"], entry["frames"]) == (0.1, 30)
    assert entry["manifest"] == artefact.sha256_file(Path(entry["path"]) / "manifest.json")
    assert [lost["subject"] for lost in listing["quarantined"]] == ["09"]
    assert verify_shard(entry["path"]) > 0


def test_derived_batches_are_collected_like_those_of_shards(
    with_atlas: Study, template: Template, template_folder: Path, tmp_path: Path
) -> None:
    small = with_atlas.model_copy(update={"shards": with_atlas.shards.model_copy(update={"dtype": "int8"})})
    batch = write_batch(tmp_path / "shards", {"01": run_of(template), "02": run_of(template, seed=2)}, template)
    output = tmp_path / "parcels" / "batch-0000.json"
    parcels_batch(small, "cohort", "slabs", batch, template_folder, output)
    collect_batches([output], tmp_path / "parcels" / "manifest.json")
    manifest = artefact.read_json(tmp_path / "parcels" / "manifest.json")
    assert [entry["subject"] for entry in manifest["runs"]] == ["01", "02"]
    assert [entry["reason"] for entry in manifest["quarantined"]] == ["too short"]
    assert {Shard.open(entry["path"]).contract["dtype"] for entry in manifest["runs"]} == {"int8"}


def test_voxels_without_signal_do_not_count_and_parcels_without_voxels_are_constant(
    with_atlas: Study, template: Template, template_folder: Path, atlas: Path, tmp_path: Path
) -> None:
    bold_TV = run_of(template)
    x_V = nib.affines.apply_affine(template.affine, template.coordinates_V3)[:, 0]
    bold_TV[:, x_V < -20] = 0  # the whole first slab and a part of the second lie outside the field of view
    bold_TV[:, np.flatnonzero(x_V > 0)[::7]] = 500
    batch = write_batch(tmp_path / "shards", {"01": bold_TV}, template)
    parcels_batch(with_atlas, "cohort", "slabs", batch, template_folder, tmp_path / "parcels" / "batch-0000.json")
    (entry,) = artefact.read_json(tmp_path / "parcels" / "batch-0000.json")["runs"]
    shard = Shard.open(entry["path"])
    coverage_R = np.array(shard.contract["coverage"])
    assert coverage_R[0] == 0
    assert shard.std[0] == 0
    assert np.all(shard.read()[:, 0] == 0)
    assert np.all((coverage_R[1:] > 0) & (coverage_R[1:] < 1))
    assert entry["quality"]["dead_columns"] == 1
    expected_TR = by_nilearn(bold_TV, atlas, template, bold_TV.std(axis=0) > 0)
    assert expected_TR.shape[1] == 4
    assert np.allclose(shard.mean[1:], expected_TR.mean(axis=0), rtol=1e-5)


def test_a_run_without_signal_in_any_parcel_is_quarantined_and_the_rest_goes_on(
    with_atlas: Study, template: Template, template_folder: Path, tmp_path: Path
) -> None:
    empty_TV = run_of(template)
    y_V = nib.affines.apply_affine(template.affine, template.coordinates_V3)[:, 1]
    empty_TV[:, y_V > -25.3] = 0
    batch = write_batch(tmp_path / "shards", {"01": empty_TV, "02": run_of(template)}, template)
    output = tmp_path / "parcels" / "batch-0000.json"
    parcels_batch(with_atlas, "cohort", "slabs", batch, template_folder, output, workers=2)
    listing = artefact.read_json(output)
    assert [entry["subject"] for entry in listing["runs"]] == ["02"]
    assert listing["quarantined"][1]["reason"] == "no column of the parcels has a voxel with signal"


def test_projection_of_a_large_mean_keeps_the_small_fluctuation() -> None:
    from scipy import sparse

    generator = np.random.default_rng(2)
    std_V, mean_V = np.full(100, 0.5, np.float32), generator.uniform(1e4, 2e4, 100).astype(np.float32)
    z_TV = generator.standard_normal((50, 100)).astype(np.float32)
    weights_CV = sparse.csr_array(np.full((1, 100), 0.01, np.float32))
    projection = project(mean_V, std_V, weights_CV)
    found_T = (projection.weights_CV @ z_TV.T).T[:, 0]
    assert np.allclose(found_T, 0.5 * z_TV.mean(axis=1), atol=1e-6)
    assert np.allclose(projection.offset_C, mean_V.mean(dtype=np.float64), rtol=1e-7)


@pytest.mark.parametrize("damage", ["missing", "truncated", "flipped"])
def test_a_missing_or_damaged_parent_stops_the_job_by_name(
    with_atlas: Study, template: Template, template_folder: Path, tmp_path: Path, damage: str
) -> None:
    batch = write_batch(tmp_path / "shards", {"01": run_of(template)}, template)
    data = tmp_path / "shards" / "sub-01" / "ses-1_run-1" / "shard.zarr" / "bold" / "c" / "0" / "0"
    content = bytearray(data.read_bytes())
    data.unlink()
    if damage == "truncated":
        data.write_bytes(content[: len(content) // 2])
    if damage == "flipped":
        content[len(content) // 3] ^= 4
        data.write_bytes(content)
    with pytest.raises(InputError, match="sub-01"):
        parcels_batch(with_atlas, "cohort", "slabs", batch, template_folder, tmp_path / "parcels" / "batch-0000.json")
    assert not (tmp_path / "parcels" / "batch-0000.json").exists()


def test_a_parent_that_was_written_anew_or_is_of_another_template_is_refused(
    template: Template, standard: dict[str, str], tmp_path: Path
) -> None:
    batch = write_batch(tmp_path, {"01": run_of(template)}, template)
    (entry,) = artefact.read_json(batch)["runs"]
    write_batch(tmp_path, {"01": run_of(template, seed=5)}, template)
    with pytest.raises(InputError, match=r"sub-01.*other bytes"):
        open_parent(entry, template)
    other = TemplateSettings(space=builders.SPACE, resolution_mm=8, shape=(12, 12, 12), patch=(6, 6, 6), **standard)
    with pytest.raises(InputError, match=r"sub-01.*contract\.template"):
        open_parent(entry, build_template(other))


def test_parcel_series_cannot_be_parcelled_again(
    with_atlas: Study, template: Template, template_folder: Path, tmp_path: Path
) -> None:
    batch = write_batch(tmp_path / "shards", {"01": run_of(template)}, template)
    once, twice = tmp_path / "once" / "batch-0000.json", tmp_path / "twice" / "batch-0000.json"
    parcels_batch(with_atlas, "cohort", "slabs", batch, template_folder, once)
    with pytest.raises(InputError, match=r"contract\.kind"):
        parcels_batch(with_atlas, "cohort", "slabs", once, template_folder, twice)


def test_an_unknown_atlas_or_another_data_set_is_refused_with_a_hint(
    with_atlas: Study, template: Template, template_folder: Path, tmp_path: Path
) -> None:
    batch = write_batch(tmp_path / "shards", {"01": run_of(template)}, template)
    with pytest.raises(InputError, match="Did you mean 'slabs'"):
        parcels_batch(with_atlas, "cohort", "slab", batch, template_folder, tmp_path / "out.json")
    with pytest.raises(InputError, match="runs of cohort"):
        parcels_batch(with_atlas, "others", "slabs", batch, template_folder, tmp_path / "out.json")


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (lambda labels: labels[..., None] * np.ones(3, np.int32), "4 dimensions"),
        (lambda labels: labels / 7, "not finite"),
        (lambda labels: -labels, "negative"),
        (lambda labels: np.where(labels == 3, np.nan, labels), "not finite"),
        (lambda labels: labels * 0, "an image of zeros"),
    ],
)
def test_what_is_no_image_of_labels_is_refused(template: Template, tmp_path: Path, change: Any, found: str) -> None:
    data = change(atlas_data(builders.SHAPE, builders.AFFINE))
    path = builders.save(tmp_path / "atlas.nii.gz", data.astype(np.float32))
    with pytest.raises(InputError, match=found):
        load_parcellation("slabs", path, template)


def test_an_atlas_that_lies_elsewhere_nowhere_or_is_no_file_is_refused(template: Template, tmp_path: Path) -> None:
    away = builders.AFFINE.copy()
    away[0, 3] += 500
    path = builders.save(tmp_path / "atlas.nii.gz", atlas_data(builders.SHAPE, builders.AFFINE), away)
    with pytest.raises(InputError, match="no label on the template"):
        load_parcellation("slabs", path, template)
    image = nib.Nifti1Image(atlas_data(builders.SHAPE, builders.AFFINE), None)
    nib.save(image, path)
    with pytest.raises(InputError, match="no affine"):
        load_parcellation("slabs", path, template)
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(InputError, match=r"atlas\.nii\.gz"):
        load_parcellation("slabs", path, template)
    path.unlink()
    with pytest.raises(InputError, match=r"atlas\.nii\.gz"):
        load_parcellation("slabs", path, template)


def test_a_table_beside_the_atlas_names_its_parcels(template: Template, atlas: Path) -> None:
    atlas.with_name("labels.tsv").write_text("index\tname\n3\tfar left\n300\tmiddle\n77\tunused\n")
    labels = load_parcellation("slabs", atlas, template).labels
    assert labels == ("far left", "parcel-130", "middle", "parcel-2001", "parcel-9170")


@pytest.mark.parametrize(
    ("atlas_name", "table"),
    [
        ("atlas.nii.gz", "labels.csv"),
        ("cc200_roi_atlas.nii.gz", "CC200_ROI_labels.csv"),
        ("atlas-AAL_dseg.nii.gz", "atlas-AAL_dseg.tsv"),
        ("schaefer400.nii", "schaefer400.csv"),
    ],
)
def test_the_table_is_found_by_the_atlas_name(tmp_path: Path, atlas_name: str, table: str) -> None:
    (tmp_path / "other_labels.csv").write_text("index,name\n1,not me\n")
    (tmp_path / table).write_text("index,name\n1,me\n")
    assert label_table(tmp_path / atlas_name) == tmp_path / table
    assert label_table(tmp_path / "third.nii.gz") is None


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("index,name\n1,Precentral_L\n2,Precentral_R\n", {1: "Precentral_L", 2: "Precentral_R"}),
        ("index,name\n1,Background\n2,Vis_1\n3,Vis_2\n", {0: "Background", 1: "Vis_1", 2: "Vis_2"}),
        ("index,name\n0,Background\n7,Vis_1\n", {0: "Background", 7: "Vis_1"}),
        ("Index, Label\n2001, Precentral_L\n", {2001: "Precentral_L"}),
        ("ROI number, volume, AAL\n1, 162, x\n2, 269, y\n", {}),
    ],
)
def test_tables_of_labels_in_their_forms(tmp_path: Path, text: str, expected: dict[int, str]) -> None:
    (tmp_path / "labels.csv").write_text(text)
    assert read_label_table(tmp_path / "labels.csv") == expected


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("index,name\n1,a\n1,b\n", "label 1 more than once"),
        ("index,name\none,a\n", "one"),
        ("colour,shade\nred,dark\n", "columns colour, shade"),
        ("", "labels.csv"),
        ("index,name\n1,a\n2,b\n", "none of the atlas's labels"),
    ],
)
def test_a_table_that_cannot_be_right_is_refused(template: Template, atlas: Path, text: str, found: str) -> None:
    atlas.with_name("labels.csv").write_text(text)
    with pytest.raises(InputError, match=found):
        load_parcellation("slabs", atlas, template)


def test_two_tables_for_one_atlas_are_refused(template: Template, atlas: Path) -> None:
    for name in ("labels.csv", "labels.tsv"):
        atlas.with_name(name).write_text("index\n3\n")
    with pytest.raises(InputError, match="2 tables of labels"):
        load_parcellation("slabs", atlas, template)


def test_series_that_a_user_gives_have_a_geometry_too() -> None:
    geometry = parcel_geometry("CC200", ["a", "b"])
    assert geometry["kind"] == "parcels"
    assert geometry["labels"] == ["a", "b"]
    assert geometry["atlas_sha256"] is None


@needs_real_data
@pytest.mark.parametrize(
    ("folder", "parcels", "left", "right", "first"),
    [
        ("schaefer_400_7net", 400, "_LH_", "_RH_", "7Networks_LH_Vis_1"),
        ("schaefer_100_7net", 100, "_LH_", "_RH_", "7Networks_LH_Vis_1"),
        ("aal_116", 116, "_L", "_R", "Precentral_L"),
    ],
)
def test_names_of_real_atlases_agree_with_where_parcels_lie(
    folder: str, parcels: int, left: str, right: str, first: str
) -> None:
    # Were Schaefer's table, which counts the background as row 1, taken as it stands, Vis_1 would be label 2, and the
    # first parcel on the right would carry the name of the last one on the left.
    settings = TemplateSettings(space="MNI152NLin6Asym", resolution_mm=4, shape=(48, 54, 48), patch=(6, 6, 6))
    template = build_template(settings)
    parcellation = load_parcellation(folder, Path(str(REAL)) / "atlases" / folder / "atlas.nii.gz", template)
    assert len(parcellation.labels) == parcels
    assert parcellation.labels[0] == first
    x_V = nib.affines.apply_affine(template.affine, template.coordinates_V3)[:, 0]
    x_R = parcellation.weights_RV @ x_V
    filled = parcellation.voxels_R > 0
    for label, x in zip(np.array(parcellation.labels)[filled], x_R[filled], strict=True):
        if label.endswith(left) or "_LH_" in label:
            assert x < 0, label
        if label.endswith(right) or "_RH_" in label:
            assert x > 0, label


@needs_real_data
def test_cc200_has_its_200_parcels_and_a_table_without_names() -> None:
    settings = TemplateSettings(space="MNI152NLin6Asym", resolution_mm=4, shape=(48, 54, 48), patch=(6, 6, 6))
    atlas = Path(str(REAL)) / "atlases" / "cc200_roi_atlas.nii.gz"
    parcellation = load_parcellation("cc200", atlas, build_template(settings))
    assert parcellation.labels[:2] == ("parcel-1", "parcel-2")
    assert np.all(parcellation.voxels_R > 0)
    assert len(parcellation.labels) == 200
