"""Framewise displacement of preprocessed runs, against sums done by hand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pipeline.bold.inputs import Run
from pipeline.bold.motion import displacement, framewise_displacement
from pipeline.bold.quality import Quarantined
from pipeline.errors import InputError

RUN = Run("cohort", "01", "1", "1", Path("bold.nii.gz"), 2.0, "MNI")


def with_motion(path: Path, form: str) -> Run:
    return replace(RUN, motion=path, motion_form=form)


def test_framewise_displacement_of_a_nod_and_a_step() -> None:
    motion_T6 = np.zeros((4, 6))
    motion_T6[1:, 0] = 0.3  # a step of 0.3 mm along x
    motion_T6[2:, 4] = 0.01  # a nod of 0.01 rad: 0.5 mm on a sphere of 50 mm
    assert np.allclose(framewise_displacement(motion_T6), [0, 0.3, 0.5, 0])


def test_fsl_parameters_are_rotations_in_radians_then_mm(tmp_path: Path) -> None:
    (tmp_path / "mcf.par").write_text("0 0 0 0 0 0\n0.002 0 0  0 0 0\n0.002 0 -0.001  0.1 0 -0.2\n")
    run = with_motion(tmp_path / "mcf.par", "fsl")
    assert np.allclose(displacement(run, 3, 0), [0, 50 * 0.002, 50 * 0.001 + 0.1 + 0.2])


def test_hcp_regressors_are_mm_then_degrees_then_derivatives(tmp_path: Path) -> None:
    rows = ["0 0 0 0 0 0 9 9 9 9 9 9", "0.1 0 0 0 0 0 9 9 9 9 9 9", "0.1 0.2 0 0 0.5 0 -9 9 9 9 9 9"]
    (tmp_path / "Movement_Regressors.txt").write_text("\n".join(rows) + "\n")
    run = with_motion(tmp_path / "Movement_Regressors.txt", "hcp")
    assert np.allclose(displacement(run, 3, 0), [0, 0.1, 0.2 + 50 * np.pi / 360])


def test_fmriprep_s_column_is_taken_as_it_is_and_its_first_value_is_missing(tmp_path: Path) -> None:
    (tmp_path / "c.tsv").write_text("csf\tframewise_displacement\n1\tn/a\n2\t0.25\n3\t0.5\n4\t0.125\n")
    run = with_motion(tmp_path / "c.tsv", "fmriprep")
    assert np.array_equal(displacement(run, 4, 0), [0, 0.25, 0.5, 0.125])
    assert np.array_equal(displacement(run, 4, 2), [0.5, 0.125])


def test_a_run_that_brings_no_motion_has_none() -> None:
    assert displacement(RUN, 4, 0) is None


@pytest.mark.parametrize(
    ("form", "text", "says"),
    [
        ("fmriprep", "framewise_displacement\nn/a\n0.1\n", "has 2 rows, the run 3 frames"),
        ("fmriprep", "framewise_displacement\nn/a\n0.1\nn/a\n", "not finite"),
        ("fmriprep", "framewise_displacement\nn/a\n0.1\nhigh\n", "damaged"),
        ("fmriprep", "", "damaged"),
        ("fsl", "0 0 0 0 0 0\n0 0 0 0 0 0\n", "has 2 rows, the run 3 frames"),
        ("fsl", "0 0 0\n0 0 0\n0 0 0\n", "3 columns"),
        ("fsl", "0 0 0 0 0 0\n0 0 0\n", "damaged"),
        ("fsl", "0 0 0 0 0 0\n0 0 0 0 0 nan\n0 0 0 0 0 0\n", "not finite"),
        ("hcp", "a b c d e f\n", "damaged"),
    ],
)
def test_motion_that_is_not_the_run_s_costs_that_run(form: str, text: str, says: str, tmp_path: Path) -> None:
    (tmp_path / "motion").write_text(text)
    with pytest.raises(Quarantined, match=says):
        displacement(with_motion(tmp_path / "motion", form), 3, 0)


def test_a_table_without_displacement_is_not_fmriprep_s(tmp_path: Path) -> None:
    (tmp_path / "c.tsv").write_text("csf\n1\n")
    with pytest.raises(InputError, match="found columns csf; expected 'framewise_displacement'"):
        displacement(with_motion(tmp_path / "c.tsv", "fmriprep"), 1, 0)
