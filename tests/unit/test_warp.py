"""Ways to a run that it brings itself: FNIRT fields and ITK transforms, against closed forms."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import builders
import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk

from pipeline.bold.doors import Run
from pipeline.bold.inputs import open_frames
from pipeline.bold.warp import fnirt_way, fsl_mm, itk_way, way_to_run
from pipeline.config import Dataset
from pipeline.errors import InputError

POINTS_M3 = np.array([[0.0, 0, 0], [10, -20, 8], [-15, 6, -11]])
STANDARD = np.array([[-4.0, 0, 0, 40], [0, 4, 0, -50], [0, 0, 4, -30], [0, 0, 0, 1]])  # LAS, as FSL's own template
SHAPE = (21, 26, 16)
# Where a point of the standard space lies in the run, both in mm: turned, scaled, moved.
TO_RUN = np.array([[0.98, 0.05, 0, 3], [-0.04, 1.02, 0.03, -5], [0, -0.02, 0.95, 2], [0, 0, 0, 1]])


def _field(run_shape: tuple[int, ...], run_affine: np.ndarray, absolute: bool) -> np.ndarray:
    """What FNIRT would write for the affine TO_RUN."""
    voxels = np.moveaxis(np.indices(SHAPE), 0, -1)
    place = nib.affines.apply_affine(
        fsl_mm(run_shape, run_affine) @ np.linalg.inv(run_affine) @ TO_RUN @ STANDARD, voxels
    )
    own = nib.affines.apply_affine(fsl_mm(SHAPE, STANDARD), voxels)
    return (place if absolute else place - own).astype(np.float32)


def _write_field(path: Path, values: np.ndarray, intent: int = 2006) -> Path:
    image = nib.Nifti1Image(values, STANDARD)
    image.header["intent_code"] = intent
    nib.save(image, path)
    return path


@pytest.mark.parametrize("absolute", [False, True])
@pytest.mark.parametrize("side", [-1, 1])
def test_a_fnirt_field_leads_to_the_run_however_both_are_stored(side: int, absolute: bool, tmp_path: Path) -> None:
    run_shape, run_affine = (30, 32, 20), np.diag([side * 3.0, 3, 3, 1])
    run_affine[:3, 3] = [-side * 44, -46, -28]
    path = _write_field(tmp_path / "warp.nii.gz", _field(run_shape, run_affine, absolute))
    found = fnirt_way(path, run_shape, run_affine)(POINTS_M3)
    assert np.allclose(found, nib.affines.apply_affine(TO_RUN, POINTS_M3), atol=1e-3)


def test_coefficients_are_refused_with_the_way_to_convert_them(tmp_path: Path) -> None:
    path = _write_field(tmp_path / "coef.nii.gz", np.zeros((5, 6, 7, 3), np.float32), intent=2007)
    with pytest.raises(InputError, match=r"intent 2007.*fnirtfileutils"):
        fnirt_way(path, (30, 32, 20), np.eye(4))


@pytest.mark.parametrize("ending", [".h5", ".mat", ".txt"])
def test_an_itk_transform_is_read_in_its_own_world(ending: str, tmp_path: Path) -> None:
    flip = np.diag([-1.0, -1.0, 1.0])
    affine = sitk.AffineTransform(3)
    affine.SetMatrix((flip @ TO_RUN[:3, :3] @ flip).ravel().tolist())
    affine.SetTranslation((flip @ TO_RUN[:3, 3]).tolist())
    transform: Any = sitk.CompositeTransform([affine]) if ending == ".h5" else affine
    sitk.WriteTransform(transform, str(tmp_path / f"xfm{ending}"))
    found = itk_way(tmp_path / f"xfm{ending}")(POINTS_M3)
    assert np.allclose(found, nib.affines.apply_affine(TO_RUN, POINTS_M3), atol=1e-4)


def test_a_file_that_is_no_transform_is_refused(tmp_path: Path) -> None:
    (tmp_path / "xfm.h5").write_text("hello")
    with pytest.raises(InputError, match="a file that ITK does not read"):
        itk_way(tmp_path / "xfm.h5")
    with pytest.raises(InputError, match="no such file"):
        itk_way(tmp_path / "other.h5")


def test_a_run_in_another_space_needs_a_transform(tmp_path: Path) -> None:
    path = builders.save(tmp_path / "run.nii.gz", builders.bold(3, 0), tr_s=2.0)
    run = Run("cohort", "01", "1", "1", path, 2.0, "MNI152NLin2009cAsym")
    dataset = Dataset(door="fmriprep", path="x", people=1, runs=1, roles=())
    frames = open_frames(run)
    assert way_to_run(run, frames, "MNI152NLin2009cAsym", dataset) is None
    with pytest.raises(
        InputError, match=r"datasets\.cohort\.to_template: found a run in MNI152NLin2009cAsym.*TemplateFlow"
    ):
        way_to_run(run, frames, "MNI152NLin6Asym", dataset)
    sitk.WriteTransform(sitk.TranslationTransform(3, [-1.0, 2.0, 3.0]), str(tmp_path / "xfm.txt"))
    other = dataset.model_copy(
        update={"to_template": str(tmp_path / "tpl-MNI152NLin2009cAsym_from-MNI152NLin6Asym_x.h5")}
    )
    with pytest.raises(InputError, match=r"expected tpl-MNI152NLin6Asym_from-MNI152NLin2009cAsym"):
        way_to_run(run, frames, "MNI152NLin6Asym", other)
    with_way = dataset.model_copy(update={"to_template": str(tmp_path / "xfm.txt")})
    way = way_to_run(run, frames, "MNI152NLin6Asym", with_way)
    assert way is not None
    assert np.allclose(way(POINTS_M3), POINTS_M3 + np.array([1, -2, 3]))
