"""The doors: which runs of each layout are found, in which order, with which TR and what belongs to them."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import builders
import nibabel as nib
import numpy as np
import pytest
import trees
from hypothesis import given
from hypothesis import strategies as st

from pipeline.bold.doors import DOORS, find_runs, read_series
from pipeline.bold.doors.names import inherited_sidecar, parse_entities
from pipeline.bold.doors.patterns import find_files
from pipeline.bold.doors.pcp import band_passed
from pipeline.bold.inputs import Run, open_frames
from pipeline.config import Dataset, Study, read_yaml
from pipeline.errors import InputError

DATASETS = sorted((Path(__file__).resolve().parents[2] / "config/datasets").glob("*.yaml"))
LABELS = st.text("abcXYZ0189", min_size=1, max_size=6)
KEYS = ["sub", "ses", "task", "acq", "run", "space", "desc"]


def study_of(folder: Path, door: str, resolution_mm: float = 8, **fields: Any) -> Study:
    """A study whose only data set lies in `folder`; everything that a door does not look at is left out."""
    dataset = {"door": door, "people": 1, "runs": 4, "roles": ["spectra"], "labels": {}, "confounds": [], **fields}
    study = builders.make_study({}, folder, dataset)
    return study.model_copy(update={"template": study.template.model_copy(update={"resolution_mm": resolution_mm})})


def find(folder: Path, door: str, *subjects: str, **fields: Any) -> list[Run]:
    return find_runs(study_of(folder, door, **fields), "cohort", subjects or ("01",))


def _named(name: str) -> Dataset:
    """One of our data-set files."""
    (path,) = [path for path in DATASETS if path.stem == name]
    return Dataset.model_validate(read_yaml(path))


def labels(runs: list[Run]) -> list[tuple[str, str, str]]:
    return [(run.subject, run.session, run.run) for run in runs]


@pytest.mark.parametrize("path", DATASETS, ids=lambda path: path.stem)
def test_our_data_set_files_are_valid_and_name_a_door(path: Path) -> None:
    assert Dataset.model_validate(read_yaml(path)).door in DOORS


def test_every_door_has_a_data_set_file_to_copy() -> None:
    assert {read_yaml(path)["door"] for path in DATASETS} == {*DOORS}


# --- names ---


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


# --- patterns ---


@given(subject=LABELS, session=LABELS, run=LABELS, other=LABELS)
def test_a_pattern_finds_the_file_that_it_names_and_reads_its_labels(
    subject: str, session: str, run: str, other: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("pattern")
    for person in {subject, f"{subject}0", other}:
        path = folder / f"p{person}/s.{session}/{person}_[x]_{run}_{run}.nii"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    (file,) = find_files(folder, "p{subject}/s.{session}/{subject}_[x]_{run}_{run}.nii", subject)
    assert (file.session, file.run) == (session, run)
    assert file.path == folder / f"p{subject}/s.{session}/{subject}_[x]_{run}_{run}.nii"


def test_a_label_that_stands_twice_must_be_the_same_twice(tmp_path: Path) -> None:
    (tmp_path / "01_a_b.nii").touch()
    assert not find_files(tmp_path, "{subject}_{run}_{run}.nii", "01")
    assert [file.run for file in find_files(tmp_path, "{subject}_{run}_*.nii", "01")] == ["a"]


def test_ids_are_filled_up_with_zeros_where_the_pattern_says_so(tmp_path: Path) -> None:
    for name in ("KKI_0050003.nii", "KKI_1150003.nii"):
        (tmp_path / name).touch()
    (file,) = find_files(tmp_path, "*_{subject:07}.nii", "50003")
    assert file.path.name == "KKI_0050003.nii"


def test_what_macos_leaves_beside_files_is_not_found(tmp_path: Path) -> None:
    trees.write_bids(tmp_path)
    junk = tmp_path / "sub-01/func/._sub-01_task-rest_run-1_bold.nii.gz"
    junk.write_bytes(b"Mac OS X")
    (tmp_path / "sub-01/func/sub-01_task-rest_run-1_bold.nii.gz.part").write_bytes(b"half")
    assert labels(find(tmp_path, "bids")) == [("01", "1", "1")]


def test_a_pattern_of_the_user_s_own_tells_files_apart(tmp_path: Path) -> None:
    for direction in ("AP", "PA"):
        trees.write_run(tmp_path / f"sub-01/func/sub-01_task-rest_dir-{direction}_bold.nii.gz")
    with pytest.raises(InputError, match=r"a second file of session 1, run 1.*datasets\.cohort\.pattern"):
        find(tmp_path, "bids")
    runs = find(tmp_path, "bids", pattern="sub-{subject}/func/*_dir-{run}_bold.nii.gz")
    assert labels(runs) == [("01", "1", "AP"), ("01", "1", "PA")]


# --- what all share ---


def test_a_person_without_files_is_left_out_and_others_found(study: Study) -> None:
    assert {run.subject for run in find_runs(study, "cohort", ["01", "99"])} == {"01"}


def test_runs_are_counted_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    trees.write_bids(tmp_path, sessions=["10", "2", "1"])
    assert [run.session for run in find(tmp_path, "bids", runs=2)] == ["1", "2"]
    trees.write_bids(tmp_path / "b", runs=["10", "9", "x"])
    assert [run.run for run in find(tmp_path / "b", "bids")] == ["9", "10", "x"]


def test_the_data_set_file_states_the_tr_of_files_that_do_not(tmp_path: Path) -> None:
    trees.write_run(tmp_path / "01.nii.gz", tr_s=None)
    assert find(tmp_path, "bids", pattern="{subject}.nii.gz", tr_s=0.8)[0].tr_s == 0.8
    with pytest.raises(InputError, match=r"no TR.*\"RepetitionTime\" in seconds into 01\.json.*cohort\.tr_s"):
        find(tmp_path, "bids", pattern="{subject}.nii.gz")


def test_a_damaged_file_is_found_so_that_it_can_be_quarantined(tmp_path: Path) -> None:
    trees.write_bids(tmp_path, runs=["1", "2"])
    (tmp_path / "sub-01/func/sub-01_task-rest_run-1_bold.nii.gz").write_bytes(b"")
    damaged, good = find(tmp_path, "bids")
    assert np.isnan(damaged.tr_s)
    assert good.tr_s == 2.0


# --- raw BIDS ---


def test_raw_run_is_native_with_its_anatomy(tmp_path: Path) -> None:
    trees.write_bids(tmp_path)
    (run,) = find(tmp_path, "bids")
    assert (run.space, run.mask, run.motion, run.tr_s, run.slice_times_s) == (None, None, None, 2.0, None)
    assert run.t1w == tmp_path / "sub-01/anat/sub-01_T1w.nii.gz"


def test_only_the_task_s_runs_and_no_phase_images_are_taken(tmp_path: Path) -> None:
    trees.write_bids(tmp_path)
    trees.write_bids(tmp_path, task="nback")
    for part in ("mag", "phase"):
        trees.write_run(tmp_path / f"sub-01/func/sub-01_task-rest_run-2_part-{part}_bold.nii.gz", tr_s=None)
    names = [run.bold.name for run in find(tmp_path, "bids")]
    assert names == ["sub-01_task-rest_run-1_bold.nii.gz", "sub-01_task-rest_run-2_part-mag_bold.nii.gz"]


def test_sidecars_are_inherited_and_the_nearest_wins(tmp_path: Path) -> None:
    trees.write_bids(tmp_path, sessions=["1", "2"])
    trees.write_json(tmp_path / "sub-01/sub-01_task-rest_bold.json", {"RepetitionTime": 1.5, "a": 1})
    trees.write_json(tmp_path / "sub-01/ses-2/sub-01_ses-2_task-rest_bold.json", {"RepetitionTime": 0.9, "b": 2})
    trees.write_json(tmp_path / "sub-01/ses-2/sub-01_ses-2_acq-x_task-rest_bold.json", {"RepetitionTime": 7})
    trees.write_json(tmp_path / "sub-01/ses-2/sub-01_ses-2_task-rest_sbref.json", {"RepetitionTime": 8})
    assert [run.tr_s for run in find(tmp_path, "bids")] == [1.5, 0.9]
    path = tmp_path / "sub-01/ses-2/func/sub-01_ses-2_task-rest_run-1_bold.nii.gz"
    assert inherited_sidecar(tmp_path, path) == {"RepetitionTime": 0.9, "a": 1, "b": 2}


def test_of_sidecars_of_the_whole_data_set_the_most_specific_wins(tmp_path: Path) -> None:
    trees.write_bids(tmp_path)
    for name, content in {"bold": {"a": 1, "b": 1}, "task-nback_bold": {"b": 3}, "run-1_bold": {"c": 4}}.items():
        trees.write_json(tmp_path / f"{name}.json", content)
    trees.write_json(tmp_path / "task-rest_run-1_bold.json", {"b": 2, "RepetitionTime": 1.1})
    path = tmp_path / "sub-01/func/sub-01_task-rest_run-1_bold.nii.gz"
    assert inherited_sidecar(tmp_path, path) == {"RepetitionTime": 1.1, "a": 1, "b": 2, "c": 4}


def test_anatomy_of_the_same_session_comes_before_another(tmp_path: Path) -> None:
    trees.write_bids(tmp_path, sessions=["1", "2"])
    of_first = tmp_path / "sub-01/ses-1/anat/sub-01_ses-1_T1w.nii.gz"
    assert [run.t1w for run in find(tmp_path, "bids")] == [of_first, of_first]
    of_second = builders.save(tmp_path / "sub-01/ses-2/anat/sub-01_ses-2_T1w.nii.gz", trees.small_run()[..., 0])
    assert [run.t1w for run in find(tmp_path, "bids")] == [of_first, of_second]


def test_a_brain_mask_is_taken_where_it_lies_on_the_anatomy_s_grid(tmp_path: Path) -> None:
    trees.write_bids(tmp_path)
    derived = tmp_path / "derivatives/tool/sub-01/anat"
    ones = np.ones(trees.SHAPE, np.uint8)
    builders.save(derived / "sub-01_desc-lesion_mask.nii.gz", ones)
    builders.save(derived / "sub-01_space-MNI152NLin6Asym_desc-brain_mask.nii.gz", np.ones((9, 9, 9), np.uint8))
    shifted = builders.AFFINE.copy()
    shifted[0, 3] += 4
    builders.save(derived / "sub-01_run-2_desc-brain_mask.nii.gz", ones, shifted)
    assert find(tmp_path, "bids")[0].t1w_mask is None
    by_tool = builders.save(derived / "sub-01_desc-hdbet_mask.nii.gz", ones)
    assert find(tmp_path, "bids")[0].t1w_mask == by_tool
    brain = builders.save(tmp_path / "sub-01/anat/sub-01_desc-brain_mask.nii.gz", ones)
    assert find(tmp_path, "bids")[0].t1w_mask == brain


def test_slice_times_are_read_where_asked_for(tmp_path: Path) -> None:
    trees.write_bids(tmp_path)
    sidecar = tmp_path / "sub-01/func/sub-01_task-rest_run-1_bold.json"
    trees.write_json(sidecar, {"SliceTiming": [0.0, 1.0, 0.5]})
    assert find(tmp_path, "bids")[0].slice_times_s is None
    assert find(tmp_path, "bids", slice_timing=True)[0].slice_times_s == (0.0, 1.0, 0.5)
    trees.write_json(sidecar, {"SliceTiming": [0.0, 1.0, 0.5], "SliceEncodingDirection": "k-"})
    assert find(tmp_path, "bids", slice_timing=True)[0].slice_times_s == (0.5, 1.0, 0.0)


# --- fMRIPrep ---


def test_fmriprep_runs_are_found_with_mask_motion_and_tr(study: Study) -> None:
    runs = find_runs(study, "cohort", ["02", "01"])
    assert labels(runs) == [("02", "1", "1"), ("02", "2", "1"), ("01", "1", "1"), ("01", "2", "1")]
    assert all(run.mask and run.mask.is_file() and run.motion and run.motion.is_file() for run in runs)
    assert {(run.tr_s, run.space, run.motion_form) for run in runs} == {(1.5, builders.SPACE, "fmriprep")}


def test_fmriprep_s_older_names_of_confounds_are_known(tmp_path: Path) -> None:
    path = builders.write_fmriprep_run(tmp_path, "01", "1", builders.bold(2, 0))
    table = next(path.parent.glob("*_timeseries.tsv"))
    older = table.rename(table.with_name(table.name.replace("timeseries", "regressors")))
    assert find(tmp_path, "fmriprep")[0].motion == older


def test_runs_in_another_space_are_named_in_the_message(study: Study) -> None:
    other = study.model_copy(update={"template": study.template.model_copy(update={"space": "MNI305"})})
    with pytest.raises(InputError, match=r"space-MNI152NLin2009aSym.*expected .*space-MNI305"):
        find_runs(other, "cohort", ["01"])


def test_the_data_set_chooses_among_spaces(tmp_path: Path) -> None:
    stem = tmp_path / "sub-01/func/sub-01_task-rest"
    for space in ("MNI152NLin6Asym_res-2", "MNI152NLin2009cAsym"):
        trees.write_run(Path(f"{stem}_space-{space}_desc-preproc_bold.nii.gz"))
    (run,) = find(tmp_path, "fmriprep", space="MNI152NLin2009cAsym")
    assert (run.space, "2009cAsym" in run.bold.name) == ("MNI152NLin2009cAsym", True)
    (run,) = find(tmp_path, "fmriprep", space="MNI152NLin6Asym")
    assert "NLin6Asym_res-2" in run.bold.name


@pytest.mark.parametrize(("template_mm", "chosen"), [(2, "2"), (1.5, "1"), (3, "2"), (0.8, "1"), (6, "native")])
def test_of_several_resolutions_the_nearest_that_is_fine_enough_is_taken(
    template_mm: float, chosen: str, tmp_path: Path
) -> None:
    for name, edge_mm in {"1": 1.0, "2": 2.0, "native": 3.5}.items():
        path = tmp_path / f"sub-01/func/sub-01_task-rest_space-{builders.SPACE}_res-{name}_desc-preproc_bold.nii.gz"
        trees.write_run(path, voxel_mm=edge_mm)
    (run,) = find(tmp_path, "fmriprep", resolution_mm=template_mm)
    assert parse_entities(run.bold.name)["res"] == chosen


def test_two_files_of_one_run_are_refused(tmp_path: Path) -> None:
    path = builders.write_fmriprep_run(tmp_path, "01", "1", builders.bold(2, 0))
    shutil.copy(path, path.with_name(path.name.replace("_run-1", "_acq-fast_run-1")))
    with pytest.raises(InputError, match="a second file of session 1, run 1, beside"):
        find(tmp_path, "fmriprep")


# --- HCP, UK Biobank ---


def test_hcp_runs_are_found_with_mask_and_movement(tmp_path: Path) -> None:
    runs = find(trees.write_hcp(tmp_path), "hcp", "100307", denoising="ica-fix")
    assert [(run.session, run.run) for run in runs] == [("1", "LR"), ("1", "RL"), ("2", "LR"), ("2", "RL")]
    first = runs[0]
    assert first.bold.name == "rfMRI_REST1_LR_hp2000_clean.nii.gz"
    assert (first.tr_s, first.space, first.motion_form) == (pytest.approx(0.72), "MNI152NLin6Asym", "hcp")
    assert (first.mask, first.motion) == tuple(
        first.bold.with_name(name) for name in ("brainmask_fs.2.nii.gz", "Movement_Regressors.txt")
    )


def test_hcp_s_denoising_says_which_of_two_files_is_meant(tmp_path: Path) -> None:
    trees.write_hcp(tmp_path, cleaned=True)
    trees.write_hcp(tmp_path, cleaned=False)
    assert {"clean" in run.bold.name for run in find(tmp_path, "hcp", "100307", denoising="ica-fix")} == {True}
    assert {"clean" in run.bold.name for run in find(tmp_path, "hcp", "100307")} == {False}


def test_hcp_runs_are_never_a_mix_of_cleaned_and_not(tmp_path: Path) -> None:
    trees.write_hcp(tmp_path, cleaned=True)
    trees.write_hcp(tmp_path, cleaned=False, names=["REST3_LR"])
    with pytest.raises(InputError, match=r"only rfMRI_REST3_LR\.nii\.gz where denoising is 'ica-fix'"):
        find(tmp_path, "hcp", "100307", denoising="ica-fix")
    pattern = DOORS["hcp"].patterns[0]
    assert len(find(tmp_path, "hcp", "100307", denoising="ica-fix", pattern=pattern, runs=9)) == 4


def test_ukb_instances_are_sessions_with_a_warp(tmp_path: Path) -> None:
    for instance in "32":
        trees.write_ukb(tmp_path, instance=instance)
    trees.write_ukb(tmp_path, "10000110")
    runs = find(tmp_path, "ukb", "1000011")
    assert labels(runs) == [("1000011", "2", "1"), ("1000011", "3", "1")]
    folder = runs[0].bold.parent
    assert folder == tmp_path / "1000011_20227_2_0/fMRI/rfMRI.ica"
    assert runs[0].warp == folder / "reg/example_func2standard_warp.nii.gz"
    assert runs[0].motion == folder / "mc/prefiltered_func_data_mcf.par"
    assert (runs[0].motion_form, runs[0].tr_s, runs[0].space) == ("fsl", 0.735, "MNI152NLin6Asym")
    assert open_frames(runs[0]).shape == (*trees.SHAPE, 4)


def test_the_data_set_file_of_ukb_takes_the_first_visit(tmp_path: Path) -> None:
    for instance in "23":
        trees.write_ukb(tmp_path, instance=instance)
    pattern = _named("ukb").pattern
    assert labels(find(tmp_path, "ukb", "1000011", pattern=pattern)) == [("1000011", "2", "1")]


def test_ukb_folders_without_the_field_s_number_are_the_first_visit(tmp_path: Path) -> None:
    run = trees.write_ukb(tmp_path)
    run.parents[1].rename(tmp_path / "1000011")
    assert labels(find(tmp_path, "ukb", "1000011")) == [("1000011", "2", "1")]


# --- preprocessed connectomes ---

ABIDE = {"participants": "phenotypes.csv", "id_column": "SUB_ID", "missing": ["", "-9999"]}


def test_abide_people_are_found_by_their_number_at_any_site(tmp_path: Path) -> None:
    trees.write_abide(tmp_path)
    runs = find(tmp_path, "pcp", "50003", "51201", **ABIDE)
    assert [run.bold.name for run in runs] == ["Pitt_0050003_func_preproc.nii.gz", "UCLA_1_0051201_func_preproc.nii.gz"]
    assert all(run.mask and "func_mask" in run.mask.parent.name for run in runs)
    assert {run.space for run in runs} == {"MNI152NLin6Asym"}


def test_a_tr_of_the_table_fills_in_for_the_header_and_must_agree_with_it(tmp_path: Path) -> None:
    trees.write_abide(tmp_path, tr_s=None)
    assert find(tmp_path, "pcp", "50003", **ABIDE)[0].tr_s == 2.0
    trees.write_abide(tmp_path, tr_s=3.0)
    with pytest.raises(InputError, match="TR 2 s in the table of people, 3 s in the header"):
        find(tmp_path, "pcp", "50003", **ABIDE)


def test_band_passed_files_are_known_by_name_and_never_taken_for_others(tmp_path: Path) -> None:
    trees.write_abide(tmp_path, "filt_noglobal")
    with pytest.raises(InputError, match=r"a run that is band-passed; expected filtered: false.*cohort\.filtered"):
        find(tmp_path, "pcp", "50003", **ABIDE)
    assert len(find(tmp_path, "pcp", "50003", filtered=True, **ABIDE)) == 1
    trees.write_abide(tmp_path, "nofilt_noglobal")
    (run,) = find(tmp_path, "pcp", "50003", **ABIDE)
    assert run.bold.parts[-3] == "nofilt_noglobal"


def test_adhd200_runs_are_found_among_the_maps_beside_them(tmp_path: Path) -> None:
    trees.write_adhd200(tmp_path)
    runs = find(tmp_path, "pcp", "10001", id_column="ScanDir ID")
    assert labels(runs) == [("10001", "1", "1"), ("10001", "1", "2")]
    assert {run.tr_s for run in runs} == {2.5}
    trees.write_adhd200(tmp_path / "filtered", "sfnwmrda")
    with pytest.raises(InputError, match="a run that is band-passed"):
        find(tmp_path / "filtered", "pcp", "10001", id_column="ScanDir ID")


@pytest.mark.parametrize(
    ("path", "filtered"),
    [
        ("Outputs/cpac/filt_global/func_preproc/x.nii.gz", True),
        ("Outputs/cpac/nofilt_noglobal/func_preproc/x.nii.gz", False),
        ("KKI/1/sfnwmrda0000001_session_1_rest_1.nii.gz", True),
        ("KKI/1/snwmrda0000001_session_1_rest_1.nii.gz", False),
        ("filters/x.nii.gz", None),
    ],
)
def test_names_say_whether_a_run_was_band_passed(path: str, filtered: bool | None) -> None:
    assert band_passed(Path(path)) is filtered


# --- nilearn's film watchers ---


def test_development_runs_are_found_with_reduced_confounds(tmp_path: Path) -> None:
    trees.write_development(tmp_path)
    first, second = find(tmp_path, "development_fmri", "pixar001", "pixar123", tr_s=2.0, task="pixar")
    assert (first.subject, second.subject) == ("pixar001", "pixar123")
    assert (first.tr_s, first.space) == (2.0, "MNI152NLin2009cAsym")
    assert first.motion == tmp_path / "sub-pixar001_task-pixar_desc-reducedConfounds_regressors.tsv"


# --- parcels ---


def test_series_of_archives_are_q_times_step_plus_mean(tmp_path: Path) -> None:
    trees.write_archives(tmp_path)
    runs = find(tmp_path, "parcels", "50004", "51201", pattern="*.npz/*_{subject:07}", id_column="SUB_ID")
    assert [(run.bold.name, run.series, run.tr_s) for run in runs] == [
        ("PITT.npz", "Pitt_0050004", 1.5),
        ("UCLA_1.npz", "UCLA_1_0051201", 3.0),
    ]
    parts = trees.quantised()
    series_TR = read_series(runs[0])
    assert np.allclose(series_TR, parts["q"] * parts["step"] + parts["mean"], atol=1e-5)
    assert np.ptp(series_TR[:, 1]) == 0, "a dead parcel stays"
    assert series_TR.dtype == np.float32


def test_an_archive_may_hold_one_array_a_person(tmp_path: Path) -> None:
    series = {name: np.random.default_rng(int(name)).normal(size=(5, 3)) for name in ("01", "02")}
    np.savez(tmp_path / "all.npz", **series)
    trees.write_table(tmp_path / "participants.tsv", {"participant_id": ["01", "02"]})
    runs = find(tmp_path, "parcels", "01", "02", tr_s=2.0)
    for run in runs:
        assert np.allclose(read_series(run), series[run.subject])


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("01.1D", "# made by 3dROIstats\n1.5 2 3\n4  5 6e0\n"),
        ("01.1D", "#1\t#2\t#3\n1.5\t2\t3\n4\t5\t6\n"),
        ("01.csv", "1.5,2,3\n4,5,6\n"),
        ("01.csv", ",a,b,c\n0,1.5,2,3\n1,4,5,6\n"),
        ("01.tsv", "LH_Vis_1\tLH_Vis_2\tRH_Vis_1\n1.5\t2\t3\n4\t5\t6\n\n"),
    ],
)
def test_text_of_any_kind_gives_frames_by_parcels(name: str, text: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text)
    trees.write_table(tmp_path / "participants.tsv", {"participant_id": ["01"]})
    (run,) = find(tmp_path, "parcels", tr_s=2.0)
    assert (run.series, run.tr_s) == ("", 2.0)
    assert np.array_equal(read_series(run), [[1.5, 2, 3], [4, 5, 6]])


@pytest.mark.parametrize("frames_first", [True, False])
def test_cifti_states_its_tr_and_is_read_in_either_orientation(frames_first: bool, tmp_path: Path) -> None:
    series_TR = np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32)
    trees.write_cifti(tmp_path / "sub-01_rest.ptseries.nii", series_TR, 0.72, frames_first)
    trees.write_table(tmp_path / "participants.tsv", {"participant_id": ["01"]})
    (run,) = find(tmp_path, "parcels", pattern="sub-{subject}_*.ptseries.nii")
    assert run.tr_s == pytest.approx(0.72)
    assert np.array_equal(read_series(run), series_TR)


# --- real data ---


@pytest.fixture
def real_data() -> Path:
    """The folder of real data, which is no part of the repository."""
    folder = os.environ.get("PIPELINE_REAL_DATA")
    if not folder:
        pytest.skip("PIPELINE_REAL_DATA is not set")
    return Path(folder)


def test_the_real_raw_run_is_found_with_its_anatomy(real_data: Path) -> None:
    study = study_of(real_data, "bids").model_copy(update={"datasets": {"cohort": _named("studyforrest")}})
    (run,) = find_runs(study, "cohort", ["02"])
    assert (run.tr_s, run.space) == (2.0, None)
    assert run.t1w == real_data / "studyforrest_bids/sub-02/anat/sub-02_T1w.nii.gz"
    assert run.t1w_mask is not None
    assert run.t1w_mask.name == "sub-02_desc-deepbet_mask.nii.gz"
    frames = open_frames(run)
    assert (frames.shape, nib.aff2axcodes(frames.affine)) == ((80, 80, 35, 156), ("L", "A", "S"))
    by_nibabel = nib.load(run.bold).dataobj[..., :2]
    assert np.allclose(frames.scaled(next(frames.blocks(2))), by_nibabel, rtol=1e-6)


def test_a_real_run_outside_bids_comes_in_by_a_pattern(real_data: Path) -> None:
    pattern = "sub-{subject}_task-*_run-{run}_bold_volreg.nii.gz"
    (run,) = find(real_data / "ds000205_sub03", "bids", "ds205s03", pattern=pattern)
    assert (run.run, run.tr_s) == ("01", pytest.approx(2.2))
    assert open_frames(run).shape == (53, 53, 27, 82)


def test_real_series_are_found_by_number_with_the_table_s_tr(real_data: Path) -> None:
    study = study_of(real_data, "parcels").model_copy(update={"datasets": {"cohort": _named("abide_cc200")}})
    runs = find_runs(study, "cohort", ["50003", "50772", "51318"])
    assert [(run.series, run.tr_s) for run in runs] == [
        ("Pitt_0050003", 1.5),
        ("KKI_0050772", 2.5),
        ("MaxMun_a_0051318", 3.0),
    ]
    with np.load(real_data / "abide_cc200/KKI.npz", allow_pickle=False) as archive:
        q, mean, step = (archive[f"KKI_0050772/{part}"] for part in ("q", "mean", "step"))
    series_TR = read_series(runs[1])
    assert series_TR.shape == (152, 200)
    assert np.allclose(series_TR, q.astype(float) * step + mean, rtol=1e-5, atol=1e-3 * step.max())
