"""What a header, its content, a sidecar, an archive or the table of people can do wrong, each told in one line.

A file that is damaged costs that run (`Quarantined`); one that somebody has to mend is an `InputError`.
"""

from __future__ import annotations

import gzip
import json
import os
import resource
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import builders
import nibabel as nib
import numpy as np
import pytest
import trees
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.bold.doors import find_runs, read_series
from pipeline.bold.inputs import Run, header_tr_s, open_frames
from pipeline.bold.participants import read_participants
from pipeline.bold.quality import Quarantined
from pipeline.config import Study
from pipeline.errors import InputError

DIM, DATATYPE, PIXDIM, VOX_OFFSET, QFORM_CODE, SROW_X = 40, 70, 76, 108, 252, 280  # bytes of a NIfTI-1 header


def run_of(path: Path, **fields: Any) -> Run:
    return replace(Run("cohort", "01", "1", "1", path, 2.0, None), **fields)


def read(path: Path, **fields: Any) -> None:
    """Everything that reads a run: its header, then every frame."""
    for _ in open_frames(run_of(path, **fields)).blocks(2):
        pass


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A good run."""
    path = trees.write_run(tmp_path / "run.nii.gz", frames=40)
    read(path)
    return path


def unpacked(path: Path) -> bytes:
    return gzip.decompress(path.read_bytes())


def rewrite(path: Path, *patches: tuple[int, str, tuple[float, ...]]) -> None:
    """Other values at some places of the header."""
    content = bytearray(unpacked(path))
    for place, kind, values in patches:
        struct.pack_into(f"<{len(values)}{kind}", content, place, *values)
    path.write_bytes(gzip.compress(bytes(content)))


def with_data(path: Path, data: np.ndarray) -> None:
    builders.save(path, data)


def change_bytes(path: Path, change: Callable[[bytes], bytes]) -> None:
    path.write_bytes(change(path.read_bytes()))


def longer(path: Path, more: bytes) -> None:
    path.write_bytes(gzip.compress(unpacked(path) + more))


DAMAGED: dict[str, tuple[Callable[[Path], Any], str]] = {
    "truncated": (lambda path: change_bytes(path, lambda content: content[:-2000]), "damaged: Compressed file ended"),
    "truncated in its checksum": (lambda path: change_bytes(path, lambda content: content[:-5]), "damaged"),
    "truncated in its header": (lambda path: change_bytes(path, lambda content: content[:100]), "damaged"),
    "zero bytes": (lambda path: path.write_bytes(b""), "damaged: Empty file"),
    "wrong checksum": (
        lambda path: change_bytes(path, lambda content: content[:-8] + bytes([content[-8] ^ 1]) + content[-7:]),
        "damaged: CRC check failed",
    ),
    "one flipped bit": (
        lambda path: change_bytes(path, lambda content: content[:3000] + bytes([content[3000] ^ 4]) + content[3001:]),
        "damaged",
    ),
    "garbage behind": (lambda path: change_bytes(path, lambda content: content + b"garbage"), "damaged"),
    "half a member behind": (lambda path: change_bytes(path, lambda content: content + content[:50]), "damaged"),
    "more than its header says": (lambda path: longer(path, b"x"), "damaged: it goes on after its last frame"),
    "less than its header says": (
        lambda path: path.write_bytes(gzip.compress(unpacked(path)[:-1])),
        "damaged: it ends 1 bytes before",
    ),
    "not gzip": (lambda path: path.write_bytes(unpacked(path)), "damaged"),
    "not NIfTI": (lambda path: path.write_bytes(gzip.compress(b"hello" * 100)), "damaged"),
    "terabytes": (
        lambda path: rewrite(path, (DIM, "h", (4, 32767, 32767, 32767, 32767, 1, 1, 1))),
        r"damaged: \d+ bytes do not hold the 32767x32767x32767x32767 voxels",
    ),
    "one enormous frame": (
        lambda path: rewrite(path, (DIM, "h", (4, 2000, 2000, 2000, 1, 1, 1, 1))),
        "do not hold the 2000x2000x2000x1 voxels",
    ),
    "no voxels": (lambda path: rewrite(path, (DIM, "h", (4, 4, 5, 0, 40, 1, 1, 1))), "damaged"),
    "negative dimensions": (lambda path: rewrite(path, (DIM, "h", (4, 4, -5, 3, 40, 1, 1, 1))), "damaged"),
    "data that begin before the header ends": (lambda path: rewrite(path, (VOX_OFFSET, "f", (10.0,))), "damaged"),
    "data that begin nowhere": (lambda path: rewrite(path, (VOX_OFFSET, "f", (1e9,))), "damaged"),
    "an unknown kind of number": (lambda path: rewrite(path, (DATATYPE, "h", (77,))), "damaged"),
}


@pytest.mark.parametrize("fault", DAMAGED)
def test_a_damaged_file_costs_that_run(fault: str, path: Path) -> None:
    spoil, says = DAMAGED[fault]
    spoil(path)
    with pytest.raises(Quarantined, match=rf"run\.nii\.gz is {says}" if says.startswith("damaged") else says):
        read(path)


@pytest.mark.parametrize("change", [lambda content: content[:-1], lambda content: content + b"x"])
def test_an_uncompressed_file_has_the_size_that_its_header_says(
    change: Callable[[bytes], bytes], path: Path, tmp_path: Path
) -> None:
    plain = tmp_path / "run.nii"
    plain.write_bytes(change(unpacked(path)))
    with pytest.raises(Quarantined, match="do not hold the 4x5x3x40 voxels"):
        read(plain)


def test_a_header_that_asks_for_terabytes_is_refused_in_little_memory(path: Path) -> None:
    rewrite(path, (DIM, "h", (4, 32767, 32767, 32767, 32767, 1, 1, 1)))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(Quarantined):
        read(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000, "kB"


def test_a_damaged_stream_is_told_before_a_spooled_run_is_used(path: Path, tmp_path: Path) -> None:
    change_bytes(path, lambda content: content[:-8] + bytes(8))
    (tmp_path / "scratch").mkdir()
    with pytest.raises(Quarantined, match="damaged"), open_frames(run_of(path)).spooled(tmp_path / "scratch"):
        pytest.fail("a damaged run was handed out")
    assert not list((tmp_path / "scratch").iterdir())


def _sform(affine: np.ndarray) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        rows = np.asarray(affine, np.float32)[:3].ravel()
        rewrite(path, (SROW_X, "f", tuple(rows)))

    return change


def _both(affine: np.ndarray) -> Callable[[Path], None]:
    """The affine as sform alone, so that nothing can disagree with it."""

    def change(path: Path) -> None:
        _sform(affine)(path)
        rewrite(path, (QFORM_CODE, "h", (0,)))

    return change


EIGHT = np.diag([8.0, 8, 8, 1])
FLAT = np.array([[8.0, 8, 0, 0], [0, 0.001, 0, 0], [0, 0, 8, 0], [0, 0, 0, 1]])
MOVED = nib.affines.from_matvec(np.diag([8.0, 8, 8]), [0, 0, 1.0])

TO_MEND: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no affine": (
        lambda path: rewrite(path, (QFORM_CODE, "h", (0, 0))),
        r"no affine \(sform_code = qform_code = 0\).*DICOM",
    ),
    "mirror images": (
        _sform(np.diag([-8.0, 8, 8, 1])),
        r"a sform \(LAS\) and a qform \(RAS\) that are mirror images; expected one that says which side is left",
    ),
    "a shift between the forms": (_sform(MOVED), r"a sform \(RAS\) and a qform \(RAS\) that are 0\.125 voxels apart"),
    "not a number": (_sform(np.diag([8.0, np.nan, 8, 1])), "a sform with values that are not finite"),
    "infinite": (_sform(np.diag([8.0, np.inf, 8, 1])), "a sform with values that are not finite"),
    "voxels of no size": (_both(np.diag([8.0, 0, 8, 1])), "a sform with voxels of 8 x 0 x 8 mm; expected 0.2 to 20"),
    "voxels in metres": (_both(np.diag([0.008, 0.008, 0.008, 1])), "a sform with voxels of 0.008"),
    "voxels in micrometres": (_both(np.diag([8000.0, 8000, 8000, 1])), "a sform with voxels of 8000"),
    "axes in one plane": (_both(FLAT), "a sform whose axes lie in one plane"),
    "a quaternion that is none": (
        lambda path: rewrite(path, (256, "f", (1.0, 1.0, 1.0))),
        "a qform with values that are not finite",
    ),
    "3D": (lambda path: with_data(path, trees.small_run()[..., 0]), "found 3D data of 4x5x3; expected a 4D BOLD run"),
    "5D": (
        lambda path: with_data(path, trees.small_run()[..., None, :]),
        "found 5D data of 4x5x3x1x4; expected a 4D BOLD run",
    ),
    "complex": (lambda path: with_data(path, trees.small_run().astype(np.complex64)), "found complex values"),
    "colour": (
        lambda path: with_data(path, np.zeros((4, 5, 3, 2), [("R", "u1"), ("G", "u1"), ("B", "u1")])),
        "found colour values",
    ),
}


@pytest.mark.parametrize("fault", TO_MEND)
def test_a_header_that_somebody_must_mend_names_the_file_and_what_is_wrong(fault: str, path: Path) -> None:
    spoil, says = TO_MEND[fault]
    spoil(path)
    with pytest.raises(InputError, match=rf"run\.nii\.gz: .*{says}"):
        read(path)


def test_a_run_without_its_warp_is_quarantined_and_one_with_too_few_slice_times_refused(path: Path) -> None:
    with pytest.raises(Quarantined, match=r"no warp\.nii\.gz beside run\.nii\.gz"):
        read(path, warp=path.with_name("warp.nii.gz"))
    with pytest.raises(InputError, match="found 2 slice times for 3 slices"):
        read(path, slice_times_s=(0.0, 1.0))


def test_a_file_that_may_not_be_read_is_no_damaged_run(path: Path) -> None:
    if os.geteuid() == 0:
        path.unlink()  # root may read everything: a file that has gone meets the same message
    else:
        path.chmod(0)
    with pytest.raises(InputError, match=r"run\.nii\.gz: found a file that cannot be read.*permissions"):
        open_frames(run_of(path))


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The bytes of a good run, not compressed."""
    return unpacked(trees.write_run(tmp_path_factory.mktemp("good") / "run.nii.gz"))


@settings(max_examples=200, deadline=None)
@given(patches=st.lists(st.tuples(st.integers(0, 351), st.integers(0, 255)), min_size=1, max_size=12))
def test_any_header_is_read_refused_or_quarantined_and_never_a_crash(
    patches: list[tuple[int, int]], good: bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("fuzz") / "run.nii.gz"
    content = bytearray(good)
    for place, value in patches:
        content[place] = value
    path.write_bytes(gzip.compress(bytes(content)))
    for reader in (header_tr_s, read):
        told = ""
        try:
            reader(path)
        except (InputError, Quarantined) as error:
            told = str(error)
        assert not told or "run.nii.gz" in told


# --- sidecars, names and patterns ---


def study_of(folder: Path, **fields: Any) -> Study:
    dataset = {"door": "bids", "people": 1, "roles": ["spectra"], "labels": {}, "confounds": [], **fields}
    return builders.make_study({}, folder, dataset)


def find(folder: Path, **fields: Any) -> list[Run]:
    return find_runs(study_of(folder, **fields), "cohort", ["01"])


BOLD = "sub-01/func/sub-01_task-rest_run-1_bold.nii.gz"
SIDECAR = "sub-01/func/sub-01_task-rest_run-1_bold.json"

SPOILT_TREES: dict[str, tuple[Callable[[Path], Any], dict[str, Any], str]] = {
    "TR at odds with the header": (
        lambda folder: trees.write_run(folder / BOLD, tr_s=3.0),
        {},
        "TR 2 s in the sidecar, 3 s in the header",
    ),
    "TR at odds with the data-set file": (
        Path.exists,
        {"tr_s": 1.5},
        "TR 2 s in the sidecar, 1.5 s in the data-set file",
    ),
    "TR in milliseconds": (
        lambda folder: trees.write_json(folder / SIDECAR, {"RepetitionTime": 2000}),
        {},
        "a TR of 2000 s in the sidecar.*in ms",
    ),
    "no TR": (lambda folder: (folder / "task-rest_bold.json").unlink(), {}, r"no TR in sidecar, .*RepetitionTime"),
    "a sidecar that is no JSON": (lambda folder: (folder / SIDECAR).write_text("{"), {}, r"bold\.json: .*not JSON"),
    "a sidecar in another encoding": (
        lambda folder: (folder / SIDECAR).write_bytes('{"a": "é"}'.encode("latin-1")),
        {},
        r"bold\.json: .*not JSON",
    ),
    "a sidecar that is a list": (lambda folder: (folder / SIDECAR).write_text("[]"), {}, r"bold\.json: found list"),
    "one echo of several": (
        lambda folder: (folder / BOLD).rename(folder / BOLD.replace("_bold", "_echo-1_bold")),
        {},
        "one echo of a multi-echo run; expected one file a run",
    ),
    "another person's file": (
        lambda folder: (folder / BOLD).rename(folder / BOLD.replace("/sub-01_", "/sub-02_")),
        {},
        "sub-02 in the folder of sub-01",
    ),
    "an accent in a name": (
        lambda folder: (folder / BOLD).rename(folder / BOLD.replace("run-1", "run-é")),
        {},
        "'run-é' in a file name; expected .*letters and digits",
    ),
    "a space in a name": (
        lambda folder: (folder / BOLD).rename(folder / BOLD.replace("run-1", "run-1 copy")),
        {},
        "'run-1 copy' in a file name",
    ),
    "compressed and not": (
        lambda folder: trees.write_run(folder / BOLD.removesuffix(".gz")),
        {},
        r"bold\.nii\.gz: found a second file of session 1, run 1, beside .*bold\.nii;",
    ),
    "no slice times": (Path.exists, {"slice_timing": True}, "SliceTiming None; expected a list of seconds"),
    "slice times in milliseconds": (
        lambda folder: trees.write_json(folder / SIDECAR, {"SliceTiming": [0, 500, 1000]}),
        {"slice_timing": True},
        "a slice 1000 s after the start of a frame of 2 s.*in ms",
    ),
    "slices along another axis": (
        lambda folder: trees.write_json(folder / SIDECAR, {"SliceTiming": [0, 1], "SliceEncodingDirection": "i"}),
        {"slice_timing": True},
        "SliceEncodingDirection 'i'",
    ),
    "another task": (Path.exists, {"task": "nback"}, r"sub-01: found no such run \(there: .*task-nback"),
    "nothing": (
        lambda folder: (folder / BOLD).unlink(),
        {"door": "hcp"},
        "01: found no BOLD run; expected {subject}/MNI",
    ),
}


@pytest.mark.parametrize("fault", SPOILT_TREES)
def test_a_tree_that_somebody_must_mend_is_refused_with_one_message(fault: str, tmp_path: Path) -> None:
    spoil, fields, says = SPOILT_TREES[fault]
    trees.write_bids(tmp_path)
    (tmp_path / "sub-01/anat/sub-01_T1w.nii.gz").unlink()
    spoil(tmp_path)
    with pytest.raises(InputError, match=says):
        find(tmp_path, **fields)


@pytest.mark.parametrize(
    "pattern",
    [
        "../{subject}.nii.gz",
        "a/../../{subject}.nii.gz",
        "/etc/{subject}",
        "{subject}\\x.nii",
        "sub-*/bold.nii.gz",
        "{subject}/{echo}.nii.gz",
        "{subject}/{run.nii.gz",
        "**/{subject}.nii.gz",
    ],
)
def test_a_pattern_stays_below_its_folder_and_knows_three_places(pattern: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"datasets\.cohort\.pattern: found '"):
        find(tmp_path, pattern=pattern)


# --- archives, text, CIFTI ---

SERIES: dict[str, tuple[str, Callable[[Path], Any], str]] = {
    "a truncated archive": ("x.npz", lambda path: change_bytes(path, lambda content: content[:-30]), "damaged"),
    "a flipped bit in an archive": (
        "x.npz",
        lambda path: change_bytes(path, lambda content: content[:200] + bytes([content[200] ^ 1]) + content[201:]),
        "damaged: Bad CRC-32",
    ),
    "no such member": ("x.npz", lambda path: np.savez(path, other=np.zeros((3, 2))), "damaged: no array 'a'"),
    "Python objects": (
        "x.npz",
        lambda path: np.savez(path, a=np.array([[{}]], dtype=object), allow_pickle=True),
        "a.npy holds Python objects, not numbers",
    ),
    "one dimension": ("x.npz", lambda path: np.savez(path, a=np.zeros(5)), r"shape \(5,\), not frames x parcels"),
    "text": ("x.npz", lambda path: np.savez(path, a=np.array([["b"]])), "not frames x parcels"),
    "no frames": ("x.npz", lambda path: np.savez(path, a=np.zeros((0, 3))), "not frames x parcels"),
    "not finite": ("x.npz", lambda path: np.savez(path, a=np.array([[1, np.nan]])), "x.npz/a has values that are not"),
    "ragged text": ("x.csv", lambda path: path.write_text("1,2\n3\n"), "x.csv is damaged"),
    "words": ("x.tsv", lambda path: path.write_text("a\tb\n1\tn/a\n"), "x.tsv is damaged.*n/a"),
    "empty text": ("x.1D", lambda path: path.write_text("# nothing\n"), "x.1D is damaged: no numbers"),
    "bytes": ("x.1D", lambda path: path.write_bytes(b"\xff\xfe\x00"), "x.1D is damaged"),
    "a truncated CIFTI file": (
        "x.ptseries.nii",
        lambda path: change_bytes(path, lambda content: content[:-10]),
        "damaged",
    ),
    "broken XML": (
        "x.ptseries.nii",
        lambda path: change_bytes(path, lambda content: content.replace(b"</CIFTI>", b"</CAFTI>")),
        "damaged: ExpatError",
    ),
}


@pytest.mark.parametrize("fault", SERIES)
def test_a_damaged_series_costs_that_run(fault: str, tmp_path: Path) -> None:
    name, spoil, says = SERIES[fault]
    path = tmp_path / name
    if name.endswith(".npz"):
        np.savez(path, a=np.random.default_rng(0).normal(size=(20, 4)))
    if name.endswith(".ptseries.nii"):
        trees.write_cifti(path, np.ones((6, 4)))
    spoil(path)
    with pytest.raises(Quarantined, match=says):
        read_series(run_of(path, series="a" if name.endswith(".npz") else ""))


def test_a_header_inside_an_archive_allocates_nothing(tmp_path: Path) -> None:
    import zipfile

    header = b"{'descr': '<f8', 'fortran_order': False, 'shape': (1000000000, 1000000), }".ljust(117) + b"\n"
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
        archive.writestr("a.npy", b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + bytes(64))
    with pytest.raises(Quarantined, match="damaged"):
        read_series(run_of(tmp_path / "x.npz", series="a"))


def test_series_that_somebody_must_mend_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"a file of kind '\.mat'"):
        read_series(run_of(tmp_path / "x.mat", series=""))
    (tmp_path / "SITE.npz").write_bytes(b"no archive")
    trees.write_table(tmp_path / "participants.tsv", {"participant_id": ["01"]})
    with pytest.raises(InputError, match=r"SITE\.npz: found a damaged archive"):
        find(tmp_path, door="parcels")
    time = nib.cifti2.SeriesAxis(start=0, step=1, size=3, unit="HERTZ")
    parcel = nib.cifti2.ParcelsAxis(["p"], [np.array([[0, 0, 0]])], [{}], np.eye(4), (1, 1, 1), {})
    for name, axes in {"spectrum": (time, parcel), "square": (parcel, parcel)}.items():
        shape = tuple(len(axis) for axis in axes)
        nib.save(nib.Cifti2Image(np.zeros(shape, np.float32), axes), tmp_path / f"{name}01.ptseries.nii")
    for name, says in {
        "spectrum": "a series in HERTZ",
        "square": "found ParcelsAxis; expected a parcel series",
    }.items():
        with pytest.raises(InputError, match=says):
            find(tmp_path, door="parcels", pattern=f"{name}{{subject}}.ptseries.nii")


# --- the table of people ---

TABLES = {
    "an id twice": ("participant_id\tx\n01\ta\nsub-01\tb\n", "participant '01' twice; expected one row a person"),
    "a space in an id": ("participant_id\n01 b\n", "participant_id '01 b'; expected letters and digits"),
    "an accent in an id": ("participant_id\nsub-é1\n", "'é1'"),
    "a slash in an id": ("participant_id\nsub-../../etc\n", r"'\.\./\.\./etc'"),
    "dots as an id": ("participant_id\n..\n", r"'\.\.'"),
    "an underscore in an id": ("participant_id\nPitt_0050003\n", "'Pitt_0050003'.*name another id_column"),
    "no id": ("participant_id\tx\n\ta\n", "participant_id ''"),
    "digits of another script": ("participant_id\n٣\n", "'٣'"),
    "no column of ids": ("subject_id\n01\n", "no column 'participant_id'"),
    "an empty file": ("", "no column 'participant_id'"),
    "a short row": ("participant_id\tx\n01\ta\n02\n", "1 fields in row 3; expected 2 as in the header"),
    "a long row": ("participant_id\tx\n01\ta\tb\n", "3 fields in row 2; expected 2 as in the header"),
    "a column twice": ("participant_id\tx\tx\n01\ta\tb\n", "column 'x' twice"),
    "an open quote": ('participant_id\tx\n01\t"a\n', "an unreadable table"),
}


@pytest.mark.parametrize("fault", TABLES)
def test_a_bad_table_of_people_is_refused_with_one_message(fault: str, tmp_path: Path) -> None:
    text, says = TABLES[fault]
    (tmp_path / "participants.tsv").write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=rf"participants\.tsv: found .*{says}"):
        read_participants(study_of(tmp_path), "cohort")


def test_a_table_in_another_encoding_is_refused(tmp_path: Path) -> None:
    (tmp_path / "participants.tsv").write_bytes("participant_id\tname\n01\tZoé\n".encode("latin-1"))
    with pytest.raises(InputError, match="tab-separated UTF-8 text"):
        read_participants(study_of(tmp_path), "cohort")


def test_a_message_survives_its_way_out_of_a_worker(tmp_path: Path) -> None:
    import pickle

    (tmp_path / "participants.tsv").write_text("participant_id\n..\n")
    with pytest.raises(InputError) as raised:
        read_participants(study_of(tmp_path), "cohort")
    assert str(pickle.loads(pickle.dumps(raised.value))) == str(raised.value)
    assert json.dumps(raised.value.found)
