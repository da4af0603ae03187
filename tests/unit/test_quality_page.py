"""The picture of a run: complete, readable on coarse and fine grids, and the same twice."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from builders import volume
from PIL import Image
from test_quality import GOOD

from pipeline.bold.placement import standard_on_grid
from pipeline.bold.quality import Traces, Watch
from pipeline.bold.quality_page import HEIGHT, WIDTH, Page, draw_page, spoken, write_quality
from pipeline.bold.slices import field_of, mosaic, spaced_cuts, white_level
from pipeline.bold.template import Template
from pipeline.config import Quality, Study

RED, GREEN = np.array([0xB3, 0x20, 0x2C]), np.array([0x00, 0x66, 0x4A])
OUTLINES = {"mask": (0x35, 0xC3, 0xF3), "tissue": (0xFF, 0xB0, 0x00), "brain": (0xFF, 0x4F, 0xA0)}


def traces_of(columns: int, frames: int = 40) -> Traces:
    watch, rng = Watch(columns, 1.5), np.random.default_rng(0)
    bold_TV = (1000 + 20 * rng.standard_normal((frames, columns))).astype(np.float32)
    watch.update(bold_TV)
    return watch.traces(bold_TV.mean(0), bold_TV.std(0))


def fine_template() -> Template:
    """A ball of 2 mm voxels on a grid of 60 x 72 x 60."""
    shape = (60, 72, 60)
    affine = np.diag([2.0, 2, 2, 1])
    affine[:3, 3] = [-59, -71, -59]
    centred = np.moveaxis(np.indices(shape), 0, -1) - (np.array(shape) - 1) / 2
    mask_XYZ = np.sum((centred / [24, 30, 22]) ** 2, axis=-1) < 1
    index_V = np.flatnonzero(mask_XYZ)
    return Template("MNI", 2.0, affine, mask_XYZ, (6, 6, 6), index_V, np.zeros(len(index_V), int), "fine")


@pytest.fixture(params=["coarse", "fine"])
def page(request: pytest.FixtureRequest, study: Study, template: Template) -> Page:
    """A kept run with an own T1w, on the 8 mm or on a 2 mm grid."""
    if request.param == "coarse":
        standard_XYZ = standard_on_grid(study.template, template)
    else:
        template = fine_template()
        standard_XYZ = np.where(template.mask_XYZ, volume(template.shape, template.affine), 0)
    brain_XYZ = np.roll(template.mask_XYZ, 1, axis=1)
    return Page(
        title="cohort: sub-01, session 1, run 1",
        traces=traces_of(template.voxels),
        measures=GOOD,
        settings=Quality(max_mean_fd_mm=0.5),
        images={"mean BOLD": 1000 * standard_XYZ + 10, "T1w": 300 * standard_XYZ},
        template=template,
        standard_XYZ=standard_XYZ,
        brain_XYZ=brain_XYZ,
        fd_mm_T=np.abs(np.random.default_rng(1).normal(0.1, 0.2, 40)),
    )


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as picture:
        assert picture.size == (WIDTH, HEIGHT) == (1600, 2000)
        return np.asarray(picture.convert("RGB")).astype(int)


def near(image: np.ndarray, colour: np.ndarray | tuple[int, ...], within: int = 40) -> np.ndarray:
    return np.abs(image - np.array(colour)).max(axis=-1) < within


def drawn_parts(image: np.ndarray, parts: int = 20) -> np.ndarray:
    """Which of so many bands from top to bottom hold something."""
    dark = (image.max(axis=-1) < 128).reshape(parts, -1)
    return dark.any(axis=1)


def test_every_part_of_the_page_is_drawn(page: Page, tmp_path: Path) -> None:
    draw_page(tmp_path / "page.png", page)
    image = pixels(tmp_path / "page.png")
    assert drawn_parts(image).all()
    for colour in OUTLINES.values():
        assert near(image, colour).sum() > 500
    assert near(image[:90, 1300:], GREEN).sum() > 500, "the verdict is kept, in green"
    assert not near(image[:90, 1300:], RED).any()


def test_a_quarantined_run_says_so_in_red_with_every_reason(page: Page, tmp_path: Path) -> None:
    bad = replace(page, measures=replace(GOOD, mean_fd_mm=0.8, overlap=0.3))
    for name, each in (("good", page), ("bad", bad)):
        draw_page(tmp_path / f"{name}.png", each)
    good, image = pixels(tmp_path / "good.png"), pixels(tmp_path / "bad.png")
    assert near(image[:90, 1300:], RED).sum() > 500
    for band in (image[76:98], image[98:120]):
        assert near(band, RED, 90).sum() > 300, "one line of red a reason"
    assert near(image[1000:, 1080:], RED, 90).sum() > near(good[1000:, 1080:], RED, 90).sum() + 200, "and in the table"


def test_the_worst_of_runs_has_room_for_its_reasons(page: Page, tmp_path: Path) -> None:
    worst = {"zero_frames": 9, "coverage": 0.1, "overlap": 0.1, "similarity": 0.1, "tsnr": 1.0, "mean_fd_mm": 3.0}
    odd = {"moved": 0.9, "left_right": "mirrored", "filtered": True}
    strict = Quality(min_similarity=0.3, min_tsnr=20, max_mean_fd_mm=0.5, max_moved=0.2, refuse_filtered=True)
    bad = replace(page, measures=replace(GOOD, **worst, **odd), settings=strict)
    assert len(bad.reasons) == 9
    draw_page(tmp_path / "page.png", bad)
    assert drawn_parts(pixels(tmp_path / "page.png")).all()


def test_the_same_run_gives_the_same_bytes(page: Page, tmp_path: Path) -> None:
    for name in ("first", "second"):
        draw_page(tmp_path / f"{name}.png", page)
    assert (tmp_path / "first.png").read_bytes() == (tmp_path / "second.png").read_bytes()
    assert b"matplotlib" not in (tmp_path / "first.png").read_bytes().lower()


def test_a_run_without_motion_t1w_or_brain_is_drawn_too(page: Page, tmp_path: Path) -> None:
    bare = replace(page, images={"mean": page.images["T1w"]}, brain_XYZ=None, standard_XYZ=None, fd_mm_T=None)
    draw_page(tmp_path / "bare.png", bare)
    image = pixels(tmp_path / "bare.png")
    assert near(image, OUTLINES["mask"]).sum() > 500
    assert not near(image, OUTLINES["brain"], 20).any()


@pytest.mark.parametrize("columns", [1, 200])
def test_parcels_have_a_page_without_slices(columns: int, tmp_path: Path) -> None:
    page = Page("parcels", traces_of(columns), replace(GOOD, overlap=None, similarity=None), Quality(), {})
    draw_page(tmp_path / "page.png", page)
    image = pixels(tmp_path / "page.png")
    assert drawn_parts(image).all()
    assert not near(image, OUTLINES["mask"], 20).any()


def test_a_run_of_nothing_is_drawn(page: Page, tmp_path: Path) -> None:
    assert page.template is not None
    watch = Watch(page.template.voxels, 1.5)
    watch.update(np.zeros((30, page.template.voxels), np.float32))
    traces = watch.traces(np.zeros(page.template.voxels), np.zeros(page.template.voxels))
    empty = replace(page, traces=traces, images={"mean": np.zeros(page.template.shape)}, fd_mm_T=np.zeros(30))
    draw_page(tmp_path / "page.png", empty)
    pixels(tmp_path / "page.png")


def test_measures_and_picture_are_written_as_asked(page: Page, tmp_path: Path) -> None:
    write_quality(tmp_path, replace(page, measures=replace(GOOD, overlap=0.3)), picture=False)
    assert [path.name for path in tmp_path.iterdir()] == ["quality.json"]
    content = json.loads((tmp_path / "quality.json").read_text())
    assert content["measures"]["overlap"] == 0.3
    assert content["reasons"] == ["overlap 0.3 with the template, less than quality.min_overlap = 0.8"]
    write_quality(tmp_path, page)
    assert json.loads((tmp_path / "quality.json").read_text())["reasons"] == []
    pixels(tmp_path / "quality.png")


def test_measures_are_spoken() -> None:
    assert [spoken(None), spoken(True), spoken(False), spoken(1), spoken(0.5, "{:.2f} mm")] == [
        "–",
        "yes",
        "no",
        "1",
        "0.50 mm",
    ]


# --- slices --------------------------------------------------------------------------------------------------------


def test_the_left_of_a_slice_is_the_left_of_the_person() -> None:
    template = fine_template()
    field = field_of(template)
    mm_XYZ3 = np.moveaxis(np.indices(template.shape), 0, -1) @ template.affine[:3, :3].T + template.affine[:3, 3]
    for axis, across, up in ((2, 0, 1), (1, 0, 2), (0, 1, 2)):
        cuts = spaced_cuts(field, axis, 7)
        for coordinate, picture_axis in ((across, 1), (up, 0)):
            image_UA, starts = mosaic(mm_XYZ3[..., coordinate][field.box], cuts[:1])
            tall, wide = (field.mask_xyz.shape[place] for place in (up, across))
            drawn = image_UA[:tall, starts[0] : starts[0] + wide]
            assert (np.diff(drawn, axis=picture_axis) > 0).all(), "rises to the right and upwards (origin: lower)"


def test_the_drawn_part_holds_the_mask_and_its_surroundings() -> None:
    template = fine_template()
    field = field_of(template)
    assert field.mask_xyz.sum() == template.voxels
    assert not field.mask_xyz[:4].any(), "8 mm around it"
    first = np.argwhere(template.mask_XYZ).min(axis=0) - 4
    np.testing.assert_allclose(field.affine[:3, 3], template.affine[:3, 3] + 2.0 * first)


def test_slices_pass_through_the_mask_and_off_its_middle() -> None:
    field = field_of(fine_template())
    for axis in (0, 1, 2):
        for count in (1, 2, 3, 7):
            cuts = spaced_cuts(field, axis, count)
            assert len({index for _, index in cuts}) == count
            assert all(field.mask_xyz.take(index, axis).any() for _, index in cuts)
    middle = field.mask_xyz.shape[0] / 2
    assert all(abs(index - middle) > 3 for _, index in spaced_cuts(field, 0, 2))


def test_the_level_lies_between_grey_and_white_matter() -> None:
    rng = np.random.default_rng(0)
    tissue = np.concatenate([rng.normal(mean, 4, 3000) for mean in (30, 70, 110)])
    assert white_level(tissue) == pytest.approx(90, abs=1)
    assert white_level(np.zeros(9)) == np.inf
