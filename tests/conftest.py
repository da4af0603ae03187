"""Fixtures shared by the tests; what they build is in `builders.py`."""

from __future__ import annotations

import os
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import builders
import pytest

from pipeline.bold.template import Template, build_template, save_template
from pipeline.config import Study


@pytest.fixture(scope="session")
def standard(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Paths of a small standard space: `mask` and `brain`."""
    return builders.write_standard(tmp_path_factory.mktemp("standard"))


@pytest.fixture(scope="session")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An fMRIPrep tree of three people with two sessions of 24 frames; not to be changed."""
    return builders.write_fmriprep(tmp_path_factory.mktemp("cohort"))


@pytest.fixture(scope="session")
def study(standard: dict[str, str], cohort: Path) -> Study:
    """A study of that cohort."""
    return builders.make_study(standard, cohort)


@pytest.fixture(scope="session")
def template(study: Study) -> Template:
    """The study's template: 12 x 12 x 12 voxels of 8 mm in patches of 4 x 4 x 4."""
    return build_template(study.template)


@pytest.fixture(scope="session")
def template_folder(template: Template, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """That template on disk."""
    folder = tmp_path_factory.mktemp("template")
    save_template(template, folder)
    return folder
