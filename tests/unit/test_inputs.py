"""A run's file: every kind of number as nibabel reads it, one block at a time, in the geometry of its header."""

from __future__ import annotations

import gzip
import tracemalloc
from dataclasses import replace
from pathlib import Path

import builders
import nibabel as nib
import numpy as np
import pytest
import trees
from hypothesis import given
from hypothesis import strategies as st

from pipeline.bold.inputs import Frames, Run, header_tr_s, open_frames, repetition_time
from pipeline.errors import InputError

NUMBERS = ["i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", "f4", "f8"]


def run_of(path: Path, **fields: object) -> Run:
    return replace(Run("cohort", "01", "1", "1", path, 2.0, None), **fields)


def save(path: Path, data: np.ndarray, order: str = "<", slope: float = 1, intercept: float = 0) -> Path:
    """A file of our bytes: `data` as stored, whatever nibabel would make of them."""
    header = nib.Nifti1Header(endianness=order)
    header.set_data_dtype(data.dtype.newbyteorder(order))
    header.set_data_shape(data.shape)
    header.set_sform(builders.AFFINE, 1)
    header["scl_slope"], header["scl_inter"] = slope, intercept
    header["magic"], header["vox_offset"] = b"n+1", 352
    content = header.binaryblock + bytes(4) + data.astype(data.dtype.newbyteorder(order)).tobytes(order="F")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


def whole(frames: Frames, size: int = 16) -> np.ndarray:
    return np.concatenate([frames.scaled(block) for block in frames.blocks(size)], axis=3)


@pytest.mark.parametrize("ending", ["nii", "nii.gz"])
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("kind", NUMBERS)
def test_every_kind_of_number_comes_out_as_nibabel_reads_it(kind: str, order: str, ending: str, tmp_path: Path) -> None:
    data = np.random.default_rng(0).integers(0, 120, (3, 4, 2, 5)).astype(kind)
    path = save(tmp_path / f"run.{ending}", data, order, slope=0.25, intercept=-3)
    frames = open_frames(run_of(path))
    assert (frames.shape, frames.tr_s) == ((3, 4, 2, 5), 2.0)
    assert np.array_equal(frames.affine, builders.AFFINE)
    assert np.allclose(whole(frames), nib.load(path).get_fdata(), atol=1e-5)
    assert whole(frames).dtype == np.float32


def test_stored_values_come_as_stored_and_in_the_file_s_order(tmp_path: Path) -> None:
    data = trees.small_run(frames=5)
    frames = open_frames(run_of(save(tmp_path / "run.nii.gz", data, ">", slope=2.0)))
    blocks = list(frames.blocks(2))
    assert [block.shape[3] for block in blocks] == [2, 2, 1]
    assert all(block.flags.f_contiguous and block.dtype == ">i2" for block in blocks)
    assert np.array_equal(np.concatenate(blocks, axis=3), data)


def test_large_integers_keep_their_differences_through_the_scaling(tmp_path: Path) -> None:
    data = np.arange(24, dtype=np.int32).reshape(2, 3, 2, 2) + 2**30
    frames = open_frames(run_of(save(tmp_path / "run.nii", data, intercept=-(2.0**30))))
    assert np.array_equal(whole(frames), data - 2**30)


@given(total=st.integers(1, 9), size=st.integers(1, 12))
def test_blocks_of_any_size_hold_every_frame_once(
    total: int, size: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    data = trees.small_run(total)
    path = save(tmp_path_factory.mktemp("any") / "run.nii.gz", data)
    assert np.array_equal(whole(open_frames(run_of(path)), size), data)


def test_a_file_of_several_gzip_members_is_one_stream(tmp_path: Path) -> None:
    data = trees.small_run()
    content = save(tmp_path / "run.nii", data).read_bytes()
    path = tmp_path / "run.nii.gz"
    path.write_bytes(gzip.compress(content[:400]) + gzip.compress(content[400:]))
    assert np.array_equal(whole(open_frames(run_of(path))), data)


def test_zeros_that_pad_a_gzip_file_are_no_part_of_it(tmp_path: Path) -> None:
    path = save(tmp_path / "run.nii.gz", trees.small_run())
    path.write_bytes(path.read_bytes() + bytes(512))
    assert np.array_equal(whole(open_frames(run_of(path))), trees.small_run())


def test_a_long_run_never_has_more_than_a_few_blocks_in_memory(tmp_path: Path) -> None:
    shape, total = (32, 32, 16), 512
    frames = open_frames(run_of(save(tmp_path / "run.nii.gz", trees.small_run(total, shape=shape))))
    block_bytes = 16 * 32 * 32 * 16 * 2
    tracemalloc.start()
    for block in frames.blocks():
        frames.scaled(block)
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    # The last block, the one at work and the next, one of them as float32, and the decoder's buffers make 6.2 of 32.
    assert peak_bytes < 8 * block_bytes


def test_stopping_early_leaves_nothing_open(tmp_path: Path) -> None:
    blocks = open_frames(run_of(save(tmp_path / "run.nii.gz", trees.small_run(60)))).blocks(2)
    assert next(blocks).shape[3] == 2
    blocks.close()
    assert not any(Path(link).resolve() == tmp_path / "run.nii.gz" for link in Path("/proc/self/fd").iterdir())


@pytest.mark.parametrize("ending", ["nii", "nii.gz"])
def test_a_spooled_run_can_be_read_again_and_leaves_no_file(ending: str, tmp_path: Path) -> None:
    data = trees.small_run(20)
    frames = open_frames(run_of(save(tmp_path / f"data/run.{ending}", data)))
    (tmp_path / "scratch").mkdir()
    with frames.spooled(tmp_path / "scratch") as stored:
        assert np.array_equal(stored, data)
        assert np.array_equal(stored[..., 7], data[..., 7])
        assert not stored.flags.writeable
        assert not list((tmp_path / "scratch").iterdir())


@pytest.mark.parametrize("axes", ["LAS", "RPI", "SAR", "PIL", "ASR"])
def test_permuted_and_flipped_axes_keep_every_voxel_where_it_was(axes: str, tmp_path: Path) -> None:
    data = trees.small_run(3)
    wanted = nib.orientations.axcodes2ornt(tuple(axes))
    image = nib.Nifti1Image(data, builders.AFFINE).as_reoriented(
        nib.orientations.ornt_transform(nib.orientations.axcodes2ornt("RAS"), wanted)
    )
    path = builders.save(tmp_path / "run.nii.gz", np.asarray(image.dataobj), image.affine)
    frames = open_frames(run_of(path))
    (block,) = frames.blocks()
    for voxel in [(0, 0, 0), (3, 4, 2), (1, 3, 0)]:
        point_mm = nib.affines.apply_affine(builders.AFFINE, voxel)
        there = np.rint(nib.affines.apply_affine(np.linalg.inv(frames.affine), point_mm)).astype(int)
        assert np.array_equal(block[tuple(there)], data[voxel])


def test_a_form_without_a_code_does_not_count(tmp_path: Path) -> None:
    path = builders.save(tmp_path / "run.nii.gz", trees.small_run())
    image = nib.load(path)
    image.set_qform(np.diag([1.0, 1, 1, 1]), code=0)
    nib.save(image, path)
    assert np.allclose(open_frames(run_of(path)).affine, builders.AFFINE)


def test_rounding_between_sform_and_qform_is_no_disagreement(tmp_path: Path) -> None:
    turned = nib.affines.from_matvec(nib.eulerangles.euler2mat(3.1, 0.02, -0.3) @ np.diag([2, 2, 2.2]), [80, -90, 40])
    data = trees.small_run(2, shape=(90, 100, 60))
    assert open_frames(run_of(builders.save(tmp_path / "run.nii", data, turned))).shape[:3] == (90, 100, 60)


@pytest.mark.parametrize(
    ("stated", "tr_s"),
    [
        ({"sidecar": 2.0, "header": 2.0001}, 2.0),
        ({"sidecar": 2, "header": None}, 2.0),
        ({"sidecar": None, "header": 1.5}, 1.5),
        ({"sidecar": None, "data-set file": 0.72, "header": None}, 0.72),
        ({"sidecar": 2.0, "header": 1.0}, 2.0),  # fMRIPrep 23.2.0 wrote 1 into every header
        ({"sidecar": None, "header": 1.0}, 1.0),
    ],
)
def test_tr_is_what_all_agree_on(stated: dict[str, float | None], tr_s: float) -> None:
    assert repetition_time(Path("bold.nii.gz"), stated, "") == tr_s


@pytest.mark.parametrize(
    ("stated", "says"),
    [
        ({"sidecar": None, "header": None}, "found no TR in sidecar, header; expected a repetition time. Write it."),
        ({"sidecar": 735.0}, "a TR of 735 s in the sidecar; .*in ms"),
        ({"sidecar": None, "header": 2000.0}, "a TR of 2000 s in the header; .*in ms"),
        ({"sidecar": 0.000735}, "0.000735 s"),
        ({"sidecar": 2.0, "header": 1.5}, "TR 2 s in the sidecar, 1.5 s in the header"),
        ({"data-set file": 2.0, "header": 1.5}, "TR 2 s in the data-set file, 1.5 s in the header"),
        ({"sidecar": 1.0, "data-set file": 2.0}, "TR 1 s in the sidecar, 2 s in the data-set file"),
        ({"sidecar": 0}, "RepetitionTime 0 in the sidecar; expected a number of seconds"),
        ({"sidecar": "2 s"}, "'2 s'"),
        ({"sidecar": True}, "True"),
        ({"sidecar": [2.0]}, r"\[2.0\]"),
        ({"sidecar": float("nan")}, "nan"),
    ],
)
def test_missing_or_doubtful_tr_is_refused(stated: dict[str, object], says: str) -> None:
    with pytest.raises(InputError, match=says):
        repetition_time(Path("bold.nii.gz"), stated, "Write it.")


@pytest.mark.parametrize(
    ("number", "unit", "tr_s"), [(2.0, "sec", 2.0), (735, "msec", 0.735), (2e6, "usec", 2.0), (1.0, 0, None)]
)
def test_header_states_a_tr_in_its_own_unit_or_none(
    number: float, unit: str | int, tr_s: float | None, tmp_path: Path
) -> None:
    path = builders.save(tmp_path / "run.nii.gz", trees.small_run())
    image = nib.load(path)
    image.header.set_zooms((8, 8, 8, number))
    image.header.set_xyzt_units("mm", unit)
    nib.save(image, path)
    assert header_tr_s(path) == (None if tr_s is None else pytest.approx(tr_s))
