"""Flat maps: what nilearn samples on the surface, at the right pixel, left on the left; dead voxels do not count."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from nilearn.surface import vol_to_surf
from scipy.ndimage import label

from pipeline import artefact
from pipeline.bold.derive import flatmaps_batch
from pipeline.bold.flatmap import (
    DEPTHS,
    MNI305_TO_MNI152,
    Flatmap,
    build_flatmap,
    load_flatmap,
    load_surface,
    rasterise,
    sample_surface,
    save_flatmap,
    to_picture,
    vertices_to_raster,
)
from pipeline.bold.reader import Shard
from pipeline.bold.shards import verify_shard, voxel_geometry, write_shard
from pipeline.bold.template import Template, build_template, save_template
from pipeline.config import Flatmap as FlatmapSettings
from pipeline.config import Study
from pipeline.config import Template as TemplateSettings
from pipeline.errors import InputError

SETTINGS = FlatmapSettings(height=56, width=140)
VERTICES = 10242  # of a hemisphere of fsaverage5


def whole_brain(edge_mm: int) -> Template:
    """The MNI brain inside nilearn on a coarse grid."""
    shape = {4: (48, 54, 48), 8: (24, 30, 24)}[edge_mm]
    return build_template(
        TemplateSettings(space="MNI152NLin2009aSym", resolution_mm=edge_mm, shape=shape, patch=(6, 6, 6))
    )


@pytest.fixture(scope="module")
def mni() -> Template:
    return whole_brain(8)


@pytest.fixture(scope="module")
def flatmap(mni: Template) -> Flatmap:
    return build_flatmap(SETTINGS, mni)


def millimetres(template: Template) -> np.ndarray:
    return nib.affines.apply_affine(template.affine, template.coordinates_V3)


def smooth(points_mm: np.ndarray) -> np.ndarray:
    """A field that varies over some 60 mm in every direction."""
    return np.sin(points_mm[..., 0] / 21) + np.cos(points_mm[..., 1] / 17) + np.sin(points_mm[..., 2] / 14 + 1)


def test_the_surface_is_sampled_as_nilearn_samples_it() -> None:
    template = whole_brain(4)
    volume = smooth(nib.affines.apply_affine(template.affine, np.moveaxis(np.indices(template.shape), 0, -1)))
    (white_N3, faces), (pial_N3, _) = load_surface("white"), load_surface("pial")
    meshes = [[nib.affines.apply_affine(MNI305_TO_MNI152, points_N3), faces] for points_N3 in (pial_N3, white_N3)]
    image = nib.Nifti1Image(volume.astype(np.float32), template.affine)
    # nilearn counts depth from the outer surface inwards, we from the inner outwards: these depths are symmetrical.
    theirs_N = vol_to_surf(image, meshes[0], inner_mesh=meshes[1], depth=list(DEPTHS), interpolation="linear")
    weights_NV = sample_surface(template)
    whole_N = weights_NV.sum(axis=1) > 0.999999  # all of the vertex lies inside the brain mask
    ours_N = weights_NV @ volume[tuple(template.coordinates_V3.T)]
    assert whole_N.mean() > 0.85
    assert np.allclose(ours_N[whole_N], theirs_N[whole_N], atol=1e-4)
    partly_N = weights_NV.sum(axis=1) > 0.5
    scaled_N = ours_N[partly_N] / weights_NV.sum(axis=1)[partly_N]
    assert np.corrcoef(scaled_N, theirs_N[partly_N])[0, 1] > 0.99


def test_a_linear_function_of_the_flat_mesh_comes_out_exactly_at_pixel_centres() -> None:
    height, width = 112, 280
    raster, flat_N3 = rasterise(height, width), load_surface("flat")[0]
    rows_P, columns_P = np.nonzero(raster.mask_HW)
    for side, columns in (("left", slice(0, width // 2)), ("right", slice(width // 2, None))):
        here_P = np.isin(columns_P, np.arange(width)[columns])
        x_T, y_T = vertices_to_raster(flat_N3[:, :2].T, raster)[:, here_P]
        assert np.ptp(x_T - raster.pixel_mm * columns_P[here_P]) < 1e-3, side  # x grows with the column
        assert np.ptp(y_T + raster.pixel_mm * rows_P[here_P]) < 1e-3, side  # y falls with the row: row 0 is dorsal


def test_each_hemisphere_is_one_piece_as_large_as_the_raster_allows() -> None:
    for height, width in ((224, 560), (100, 101), (300, 80)):
        raster = rasterise(height, width)
        pieces, count = label(raster.mask_HW)
        left, right = pieces[:, : width // 2], pieces[:, width // 2 :]
        sizes = np.sort(np.bincount(pieces.ravel())[1:])[::-1]
        assert sizes[:2].sum() > 0.999 * raster.mask_HW.sum(), count
        assert len({*np.unique(left)} & {*np.unique(right)} - {0}) == 0
        filled = np.argwhere(raster.mask_HW)
        room = np.array([height, width]) - np.ptp(filled, axis=0) - 1
        assert room.min() <= 3  # one of the two directions is full
        area_mm2 = raster.mask_HW.sum() * raster.pixel_mm**2
        assert area_mm2 == pytest.approx(116_500, rel=0.02)  # of both flat meshes, 58,095 and 58,446 mm2


def test_pixels_are_means_of_three_vertices_of_their_own_hemisphere() -> None:
    raster = rasterise(56, 140)
    assert np.all(raster.shares_P3 >= -1e-6)
    assert np.allclose(raster.shares_P3.sum(axis=1), 1)
    left_P = np.nonzero(raster.mask_HW)[1] < 70
    assert np.array_equal(raster.vertices_P3 < VERTICES, np.repeat(left_P[:, None], 3, axis=1))


def test_left_is_left(flatmap: Flatmap, mni: Template) -> None:
    x_V = millimetres(mni)[:, 0]
    picture = to_picture((flatmap.weights_PV @ (x_V < 0).astype(float))[None], flatmap.raster)[0]
    assert np.nanmean(picture[:, :70]) > 0.93  # 8 mm voxels blur the midline
    assert np.nanmean(picture[:, 70:]) < 0.07


def test_frontal_poles_lie_outside_occipital_ones_meet_and_the_top_is_dorsal(flatmap: Flatmap, mni: Template) -> None:
    _, y_P, z_P = (flatmap.weights_PV @ millimetres(mni)).T  # where each pixel's cortex lies, mm
    row_P, column_P = np.nonzero(flatmap.raster.mask_HW)
    assert y_P[column_P < column_P.min() + 10].mean() > 20
    assert y_P[column_P > column_P.max() - 10].mean() > 20
    assert y_P[(column_P >= 60) & (column_P < 80)].mean() < -60
    central_P = np.abs(np.abs(column_P - 69.5) - 35) < 20  # away from the medial wall's corners
    assert z_P[central_P & (row_P >= 8) & (row_P < 20)].mean() > 30
    assert z_P[central_P & (row_P > 41) & (row_P < 52)].mean() < -5


def test_every_pixel_is_a_mean_of_voxels_or_nothing(flatmap: Flatmap) -> None:
    total_P = flatmap.weights_PV.sum(axis=1)
    assert np.allclose(total_P[total_P > 0], 1, atol=1e-5)
    assert np.mean(total_P > 0) > 0.99
    assert flatmap.weights_PV.data.min() > 0


def test_a_flat_map_is_saved_and_read_whole_and_damage_is_told(flatmap: Flatmap, tmp_path: Path) -> None:
    save_flatmap(flatmap, tmp_path)
    again = load_flatmap(tmp_path)
    assert again.geometry == flatmap.geometry
    assert again.template == flatmap.template
    assert np.array_equal(again.raster.mask_HW, flatmap.raster.mask_HW)
    assert np.array_equal(again.weights_PV.toarray(), flatmap.weights_PV.toarray())
    summary = artefact.read_json(tmp_path / "flatmap.json")
    assert summary["raster"] == [56, 140]
    path = tmp_path / "flatmap.npz"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(InputError, match=r"flatmap\.npz: found a damaged file"):
        load_flatmap(tmp_path)
    path.unlink()
    with pytest.raises(InputError, match="no such file"):
        load_flatmap(tmp_path)


def test_the_key_follows_raster_and_template(flatmap: Flatmap, mni: Template) -> None:
    assert build_flatmap(SETTINGS, mni).key == flatmap.key
    assert build_flatmap(FlatmapSettings(height=57, width=140), mni).key != flatmap.key
    assert build_flatmap(SETTINGS, whole_brain(4)).key != flatmap.key


def test_a_mask_without_cortex_is_refused(mni: Template) -> None:
    middle = np.zeros_like(mni.mask_XYZ)
    middle[tuple(np.array(mni.shape) // 2)] = True
    index_V = np.flatnonzero(middle.ravel())
    nowhere = Template(
        mni.space, 8.0, mni.affine, middle, mni.patch, index_V, np.zeros(len(index_V), np.int64), "small"
    )
    with pytest.raises(InputError, match="no cortex"):
        build_flatmap(SETTINGS, nowhere)


def test_a_raster_too_small_is_refused() -> None:
    with pytest.raises(InputError, match="flatmap"):
        rasterise(1, 1)


def test_surface_series_go_onto_the_raster_and_other_meshes_are_refused() -> None:
    raster = rasterise(56, 140)
    series_TN = np.concatenate([np.full((2, VERTICES), 3.0), np.full((2, VERTICES), 5.0)], axis=1)
    pictures = to_picture(vertices_to_raster(series_TN, raster), raster)
    assert pictures.shape == (2, 56, 140)
    assert np.allclose(pictures[:, :, :70][:, raster.mask_HW[:, :70]], 3)
    assert np.allclose(pictures[:, :, 70:][:, raster.mask_HW[:, 70:]], 5)
    assert np.isnan(pictures[:, ~raster.mask_HW]).all()
    with pytest.raises(ValueError, match="20484"):
        vertices_to_raster(series_TN[:, :VERTICES], raster)


def write_run(folder: Path, template: Template, dead_V: np.ndarray | None = None) -> tuple[Path, np.ndarray]:
    """A shard of one person, beside the list of it, and what it holds: two smooth fields of changing strength."""
    points = millimetres(template)
    first_T, second_T = np.random.default_rng(4).standard_normal((2, 24))
    bold_TV = 1000 + 50 * (first_T[:, None] * smooth(points) + second_T[:, None] * smooth(points[:, ::-1]))
    if dead_V is not None:
        bold_TV[:, dead_V] = 0
    name = {"dataset": "cohort", "subject": "01", "session": "1", "run": "1"}
    path = folder / "sub-01" / "ses-1_run-1"
    entry = write_shard(path, bold_TV.astype(np.float32), {**name, "tr_s": 1.5}, geometry=voxel_geometry(template))
    artefact.write_json(folder / "batch-0000.json", {"runs": [{**name, **entry}], "quarantined": []})
    return folder / "batch-0000.json", bold_TV


@pytest.fixture(scope="module")
def folders(mni: Template, flatmap: Flatmap, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Template and flat map on disk."""
    folder = tmp_path_factory.mktemp("flat")
    save_template(mni, folder / "template")
    save_flatmap(flatmap, folder / "flatmap")
    return folder / "template", folder / "flatmap"


def test_a_stored_flat_map_is_the_projected_run(
    study: Study, folders: tuple[Path, Path], mni: Template, flatmap: Flatmap, tmp_path: Path
) -> None:
    batch, bold_TV = write_run(tmp_path / "shards", mni)
    output = tmp_path / "flatmaps" / "batch-0000.json"
    flatmaps_batch(study, "cohort", batch, *folders, output)
    (entry,) = artefact.read_json(output)["runs"]
    shard = Shard.open(entry["path"], {"kind": "flatmap", "flatmap": flatmap.key, "raster": [56, 140]})
    expected_TP = (flatmap.weights_PV @ bold_TV.T).T
    covered_P = np.diff(flatmap.weights_PV.indptr) > 0
    found_TP = shard.read() * shard.std + shard.mean
    assert np.allclose(found_TP[:, covered_P], expected_TP[:, covered_P], atol=0.3)  # of SDs of some 50
    assert np.all(shard.std[~covered_P] == 0)
    assert entry["quality"]["dead_columns"] == np.sum(~covered_P)
    assert shard.tr_s == 1.5
    assert shard.contract["space"] == "MNI152NLin2009aSym"
    assert verify_shard(entry["path"]) > 0


def test_voxels_without_signal_do_not_darken_the_pixels_beside_them(
    study: Study, folders: tuple[Path, Path], mni: Template, tmp_path: Path
) -> None:
    x_mm, _, z_mm = millimetres(mni).T
    scattered_V = (x_mm < 0) & (np.arange(mni.voxels) % 9 == 0)
    batch, _ = write_run(tmp_path / "shards", mni, scattered_V | (z_mm < -20))
    flatmaps_batch(study, "cohort", batch, *folders, tmp_path / "flatmaps" / "batch-0000.json")
    (entry,) = artefact.read_json(tmp_path / "flatmaps" / "batch-0000.json")["runs"]
    shard = Shard.open(entry["path"])
    alive_P = shard.std > 0
    assert 0.7 < alive_P.mean() < 0.95  # the lower temporal lobe is gone
    assert np.all(np.abs(shard.mean[alive_P] - 1000) < 60)  # a mean with zeros among its voxels would lie at 880
    assert np.all(shard.mean[~alive_P] == 0)
    assert np.isfinite(shard.read()).all()


def test_a_flat_map_of_another_template_is_refused(
    study: Study, folders: tuple[Path, Path], template: Template, template_folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="a flat map of template"):
        flatmaps_batch(study, "cohort", tmp_path / "none.json", template_folder, folders[1], tmp_path / "out.json")
    assert template.voxels
