"""Find a data set's people and runs, and refuse what cannot be used, naming the file and what to do.

Two doors: `fmriprep` reads preprocessed runs in the template's space, with their masks and confounds; `raw` reads BIDS
runs in native space.
"""

from __future__ import annotations

import gzip
import re
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import nibabel as nib
import numpy as np

from pipeline import artefact
from pipeline.bold.quality import Quarantined
from pipeline.config import Study
from pipeline.errors import InputError, nearest

if TYPE_CHECKING:
    import pandas as pd

LABEL = r"[A-Za-z0-9]+"
TIME_UNITS_S = {"sec": 1.0, "msec": 1e-3, "usec": 1e-6}
LONGEST_TR_S = 30.0  # a larger number is milliseconds
TR_TOLERANCE = 1e-3  # of TR; headers hold float32, sidecars a few decimals

DAMAGE = (
    OSError,
    EOFError,
    ValueError,
    zlib.error,
    nib.filebasedimages.ImageFileError,
    nib.spatialimages.HeaderDataError,
)

# Door -> (end of the BOLD file's name, whether the name carries the template's space)
_DOORS = {"fmriprep": ("_desc-preproc_bold", True), "raw": ("_bold", False)}


@dataclass(frozen=True)
class Run:
    """One BOLD run on disk; `space` is None for native space."""

    dataset: str
    subject: str
    session: str
    run: str
    bold: Path
    mask: Path | None
    confounds: Path | None
    tr_s: float
    space: str | None

    @property
    def folder(self) -> str:
        """Folder of its shard, below the data set's."""
        return f"sub-{self.subject}/ses-{self.session}_run-{self.run}"


def parse_entities(name: str) -> dict[str, str]:
    """BIDS entities of a file name, `sub-01_task-rest_bold.nii.gz` -> {"sub": "01", "task": "rest"}.

    Raises
    ------
    InputError : a part is not `key-label` with a label of letters and digits, or a key stands twice.
    """
    entities: dict[str, str] = {}
    for part in name.split("_")[:-1]:
        match = re.fullmatch(rf"([a-z]+)-({LABEL})", part)
        if not match or match[1] in entities:
            form = "parts like 'sub-01', letters and digits after the dash, each key once"
            raise InputError(name, f"'{part}' in a file name", form, "Rename the file as BIDS asks.")
        entities[match[1]] = match[2]
    return entities


def read_participants(study: Study, dataset: str) -> pd.DataFrame:
    """The data set's participants.tsv, every value as text, with a column `subject` (without `sub-`).

    Raises
    ------
    InputError : no folder, no table, no `participant_id`, an id that is not letters and digits or stands twice.
    """
    import pandas as pd

    folder = require_folder(study, dataset)
    path = folder / "participants.tsv"
    if not path.is_file():
        hint = "BIDS data sets have one; a single column 'participant_id' will do."
        raise InputError(path, "no such file", "a participants table", hint)
    try:
        table = pd.read_csv(path, sep="\t", dtype=str, keep_default_na=False, encoding="utf-8-sig")
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        raise InputError(path, f"an unreadable table ({error})", "tab-separated UTF-8 text", "Mend it.") from error
    if "participant_id" not in table:
        found = f"columns {', '.join(table.columns)}"
        raise InputError(path, found, "a column 'participant_id'", "Rename the column that names the people.")
    table["subject"] = table["participant_id"].str.removeprefix("sub-")
    for subject in table["subject"]:
        if not re.fullmatch(LABEL, subject):
            hint = "Rename the person in the table and the files."
            raise InputError(path, f"participant_id '{subject}'", "letters and digits after 'sub-'", hint)
    twice = table["subject"][table["subject"].duplicated()]
    if len(twice):
        raise InputError(path, f"participant '{twice.iloc[0]}' twice", "one row a person", "Delete one of the rows.")
    return table


def require_folder(study: Study, dataset: str) -> Path:
    """The data set's folder, or an InputError that names the key to change."""
    folder = study.data_path(dataset)
    if not folder.is_dir():
        hint = f"Set datasets.{dataset}.path in its data-set file, or make the data there."
        raise InputError(folder, "no such folder", f"the data of '{dataset}'", hint)
    return folder


def find_runs(study: Study, dataset: str, subjects: Iterable[str]) -> list[Run]:
    """Runs of these people in the order of person, session and run, at most `runs` a person.

    A person without files has no runs here; that none of them has any is an InputError.
    """
    folder, settings, subjects = require_folder(study, dataset), study.datasets[dataset], list(subjects)
    found = []
    for subject in subjects:
        files = sorted(_bold_files(study, dataset, folder / f"sub-{subject}"), key=_natural_order)
        for (*run, path), (*other, second) in pairwise(files):
            if run == other:
                hint = "Keep one of them, or move the other out of the data set."
                raise InputError(second, f"a second file of the run, beside {path.name}", "one file a run", hint)
        found += [_run(study, dataset, subject, *file) for file in files[: settings.runs]]
    if subjects and not found:
        raise _nothing_found(study, dataset, folder / f"sub-{subjects[0]}")
    return found


def _natural_order(file: tuple[str, str, Path]) -> list[tuple[int, str]]:
    """Numbers by value before words: runs 1, 2, 10."""
    *labels, path = file
    numbered = [(int(label), "") if label.isdecimal() else (2**31, label) for label in labels]
    return [*numbered, (0, path.name)]


def _bold_files(study: Study, dataset: str, folder: Path) -> Iterator[tuple[str, str, Path]]:
    """(session, run, path) of a person's runs of the task, in the template's space where the door has one."""
    end, spaced = _DOORS[study.datasets[dataset].door]
    wanted = (study.datasets[dataset].task, study.template.space if spaced else None)
    for path in [*folder.glob(f"func/*{end}.nii*"), *folder.glob(f"ses-*/func/*{end}.nii*")]:
        entities = parse_entities(path.name)
        if (entities.get("task"), entities.get("space")) == wanted:
            yield entities.get("ses", "1"), entities.get("run", "1"), path


def _nothing_found(study: Study, dataset: str, folder: Path) -> InputError:
    settings = study.datasets[dataset]
    end, spaced = _DOORS[settings.door]
    others = sorted(path.name for path in folder.glob("**/*_bold.nii*"))
    found = f"no such run (there: {', '.join(others[:4])})" if others else "no BOLD run"
    space = f"_space-{study.template.space}" if spaced else ""
    hint = f"Check door, task and path of '{dataset}'" + (" and template.space." if spaced else ".")
    return InputError(folder, found, f"func/*_task-{settings.task}*{space}*{end}.nii.gz", hint)


def _run(study: Study, dataset: str, subject: str, session: str, run: str, bold: Path) -> Run:
    spaced = _DOORS[study.datasets[dataset].door][1]
    mask = bold.with_name(bold.name.replace("_desc-preproc_bold", "_desc-brain_mask"))
    stem = re.sub(r"(_space-[^_]+)?(_res-[^_]+)?_desc-preproc_bold$", "", _stem(bold))
    confounds = bold.with_name(f"{stem}_desc-confounds_timeseries.tsv")
    return Run(
        dataset=dataset,
        subject=subject,
        session=session,
        run=run,
        bold=bold,
        mask=mask if spaced and mask.is_file() else None,
        confounds=confounds if spaced and confounds.is_file() else None,
        tr_s=repetition_time(bold),
        space=study.template.space if spaced else None,
    )


def _stem(path: Path) -> str:
    return path.name.removesuffix(".gz").removesuffix(".nii")


def open_image(path: Path) -> Any:
    """A NIfTI image whose data are not read yet; quarantined where the file is damaged."""
    try:
        return nib.load(path)
    except DAMAGE as error:
        raise Quarantined(f"{path.name} is unreadable: {error}") from error


def repetition_time(bold: Path) -> float:
    """TR in seconds, from the JSON sidecar and the header, which must agree.

    Raises
    ------
    InputError : neither states a TR, it looks like milliseconds, or the two differ.
    """
    sidecar = bold.with_name(f"{_stem(bold)}.json")
    stated = artefact.read_json(sidecar).get("RepetitionTime") if sidecar.is_file() else None
    header = _header_tr_s(bold)
    hint = f'Write "RepetitionTime" in seconds into {sidecar.name}.'
    if stated is not None and (not isinstance(stated, int | float) or stated <= 0):
        raise InputError(sidecar, f"RepetitionTime {stated!r}", "a number of seconds", hint)
    tr_s = float(stated) if stated is not None else header
    if tr_s is None:
        raise InputError(bold, "no TR, in the header or a JSON sidecar", "a repetition time", hint)
    if tr_s > LONGEST_TR_S:
        raise InputError(bold, f"a TR of {tr_s:g} s", f"at most {LONGEST_TR_S:g} s; is it in ms?", hint)
    if header is not None and abs(header - tr_s) > TR_TOLERANCE * tr_s:
        found = f"TR {tr_s:g} s in the sidecar, {header:g} s in the header"
        raise InputError(bold, found, "one TR", "Correct the one that is wrong.")
    return tr_s


def _header_tr_s(bold: Path) -> float | None:
    """TR of the header; None where it is 0 or has no unit, since writers leave 1.0 there for 'unknown'."""
    try:
        image = open_image(bold)
    except Quarantined:
        return None  # `load_bold` will say so, with the run
    _require_4d(bold, image)
    header = image.header
    unit = TIME_UNITS_S.get(header.get_xyzt_units()[1])
    zooms = header.get_zooms()
    return float(zooms[3]) * unit if unit and len(zooms) > 3 and zooms[3] > 0 else None


def _require_4d(path: Path, image: Any) -> None:
    if len(image.shape) != 4:
        found = f"{len(image.shape)}D data of {'x'.join(map(str, image.shape))}"
        raise InputError(path, found, "a 4D BOLD run (x, y, z, time)", "Is it a mask, or one volume of a run?")


def load_bold(run: Run) -> Any:
    """The run as a 4D nibabel image with float32 data in memory.

    Raises
    ------
    InputError : not 4D, or no affine (`sform_code` and `qform_code` both 0).
    Quarantined : damaged file, or values that are not finite.
    """
    image = open_image(run.bold)
    _require_4d(run.bold, image)
    if not (int(image.header["sform_code"]) or int(image.header["qform_code"])):
        hint = "Convert it from DICOM again, or remove it: where the voxels lie cannot be guessed."
        raise InputError(run.bold, "no affine (sform_code = qform_code = 0)", "a NIfTI affine", hint)
    try:
        # Whole, because nibabel stops before the checksum at the end of a gzip stream.
        content = run.bold.read_bytes()
        content = gzip.decompress(content) if run.bold.suffix == ".gz" else content
        volume_XYZT = type(image).from_bytes(content).get_fdata(dtype=np.float32, caching="unchanged")
    except DAMAGE as error:
        raise Quarantined(f"{run.bold.name} is damaged: {error}") from error
    if not np.isfinite(volume_XYZT).all():
        raise Quarantined(f"{run.bold.name} has values that are not finite")
    return nib.Nifti1Image(volume_XYZT, image.affine, image.header)


def require_columns(table: pd.DataFrame, columns: Iterable[str], path: Path) -> None:
    """An InputError for the first column that the table lacks."""
    for column in columns:
        if column not in table:
            raise InputError(
                path, f"no column '{column}'", "a column named in the data set", nearest(column, list(table.columns))
            )
