"""The doors: which runs are found, in which order, with which TR."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import builders
import nibabel as nib
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.bold.inputs import find_runs, load_bold, parse_entities, read_participants, repetition_time
from pipeline.config import Study
from pipeline.errors import InputError

LABELS = st.text("abcXYZ0189", min_size=1, max_size=6)
KEYS = ["sub", "ses", "task", "acq", "run", "space", "desc"]


@given(st.dictionaries(st.sampled_from(KEYS), LABELS, min_size=1))
def test_entities_of_a_name_are_those_it_was_made_of(entities: dict[str, str]) -> None:
    name = "_".join([*(f"{key}-{label}" for key, label in entities.items()), "bold.nii.gz"])
    assert parse_entities(name) == entities


@given(LABELS, st.sampled_from(" ./\\'\"é*;$-"), LABELS)
def test_odd_characters_in_a_label_are_refused(before: str, odd: str, after: str) -> None:
    with pytest.raises(InputError, match="letters and digits"):
        parse_entities(f"sub-{before}{odd}{after}_bold.nii.gz")


@pytest.mark.parametrize("name", ["sub-01_sub-02_bold.nii.gz", "sub_bold.nii.gz", "sub-_bold.nii.gz"])
def test_names_that_are_not_bids_are_refused(name: str) -> None:
    with pytest.raises(InputError, match="Rename"):
        parse_entities(name)


def test_fmriprep_runs_are_found_with_mask_confounds_and_tr(study: Study) -> None:
    runs = find_runs(study, "cohort", ["02", "01"])
    assert [(run.subject, run.session, run.run) for run in runs] == [
        ("02", "1", "1"), ("02", "2", "1"), ("01", "1", "1"), ("01", "2", "1"),
    ]  # fmt: skip
    assert all(run.mask and run.mask.is_file() and run.confounds and run.confounds.is_file() for run in runs)
    assert {run.tr_s for run in runs} == {1.5}


def test_runs_are_counted_in_the_order_of_their_numbers(standard: dict[str, str], tmp_path: Path) -> None:
    for session in ("10", "2", "1"):
        builders.write_fmriprep_run(tmp_path, "01", session, builders.bold(2, 0))
    study = builders.make_study(standard, tmp_path)
    assert [run.session for run in find_runs(study, "cohort", ["01"])] == ["1", "2"]


def test_a_person_without_files_is_left_out_and_others_found(study: Study) -> None:
    assert {run.subject for run in find_runs(study, "cohort", ["01", "99"])} == {"01"}


def test_runs_in_another_space_are_named_in_the_message(study: Study) -> None:
    other = study.model_copy(update={"template": study.template.model_copy(update={"space": "MNI305"})})
    with pytest.raises(InputError, match=r"space-MNI152NLin2009aSym.*expected .*space-MNI305"):
        find_runs(other, "cohort", ["01"])


def test_two_files_of_one_run_are_refused(standard: dict[str, str], tmp_path: Path) -> None:
    path = builders.write_fmriprep_run(tmp_path, "01", "1", builders.bold(2, 0))
    shutil.copy(path, path.with_name(path.name.replace("_desc", "_res-2_desc")))
    with pytest.raises(InputError, match="a second file of the run"):
        find_runs(builders.make_study(standard, tmp_path), "cohort", ["01"])


def test_raw_run_is_native_and_has_neither_mask_nor_confounds(standard: dict[str, str], tmp_path: Path) -> None:
    builders.write_raw(tmp_path, builders.bold(2, 0), builders.AFFINE)
    (run,) = find_runs(builders.make_study(standard, tmp_path, {"door": "raw"}), "cohort", ["01"])
    assert (run.space, run.mask, run.confounds, run.tr_s) == (None, None, None, 1.5)


def _run_with(folder: Path, sidecar: float | None, header: float | None) -> Path:
    path = builders.save(folder / "sub-01_bold.nii.gz", np.zeros((2, 2, 2, 3), np.float32), tr_s=header)
    if sidecar is not None:
        (folder / "sub-01_bold.json").write_text(json.dumps({"RepetitionTime": sidecar}))
    return path


@pytest.mark.parametrize(("sidecar", "header"), [(2.0, 2.0), (2.0, None), (None, 2.0), (2.0, 2.0001)])
def test_tr_comes_from_sidecar_or_header(tmp_path: Path, sidecar: float | None, header: float | None) -> None:
    assert repetition_time(_run_with(tmp_path, sidecar, header)) == pytest.approx(2.0, abs=1e-3)


@pytest.mark.parametrize(
    ("sidecar", "header", "says"),
    [
        (None, None, "no TR"),
        (735.0, None, "in ms"),
        (2.0, 1.5, "TR 2 s in the sidecar, 1.5 s in"),
        (0, None, "seconds"),
    ],
)
def test_missing_or_doubtful_tr_is_refused(
    tmp_path: Path, sidecar: float | None, header: float | None, says: str
) -> None:
    with pytest.raises(InputError, match=says):
        repetition_time(_run_with(tmp_path, sidecar, header))


def test_integer_data_are_scaled_as_the_header_says(study: Study, tmp_path: Path) -> None:
    run = find_runs(study, "cohort", ["01"])[0]
    image = nib.load(run.bold)
    stored = nib.Nifti1Image(image.get_fdata(), image.affine, image.header)
    stored.set_data_dtype(np.int16)
    nib.save(stored, tmp_path / run.bold.name)
    moved = type(run)(**{**vars(run), "bold": tmp_path / run.bold.name})
    assert nib.load(moved.bold).get_data_dtype() == np.int16
    assert np.allclose(load_bold(moved).dataobj, image.dataobj, atol=0.03)


def test_participants_lose_their_prefix_and_keep_their_order(study: Study) -> None:
    assert list(read_participants(study, "cohort")["subject"]) == ["01", "02", "03"]
