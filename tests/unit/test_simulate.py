"""The simulated cohort is readable, reproducible, and carries the truth that it says it carries.

Axes: T frames, V voxels, P parcels.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, NamedTuple

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from pipeline.bold import simulate
from pipeline.bold.simulate import anatomy, derivatives
from pipeline.config import Simulation
from pipeline.errors import InputError

pytestmark = pytest.mark.xdist_group("simulate")  # one cohort for all of them

TR_S, FRAMES = 1.5, 96


class Cohort(NamedTuple):
    tree: Path
    truth: pd.DataFrame
    bold: dict[tuple[str, int], np.ndarray]  # z-scored, (T, V) over the standard mask


@pytest.fixture(scope="module")
def atlas() -> anatomy.Atlas:
    return anatomy.load_atlas(8.0)


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory, atlas: anatomy.Atlas) -> Cohort:
    tree = tmp_path_factory.mktemp("cohort") / "simulated"
    simulate.simulate_cohort(Simulation(people=32, frames=FRAMES, tr_s=TR_S, seed=3), tree, workers=2)
    truth = read_tsv(tree / "truth.tsv")
    bold = {(one, run): z_scored(tree, one, run, atlas) for one in truth.participant_id for run in (1, 2)}
    return Cohort(tree, truth, bold)


def read_tsv(path: Path) -> pd.DataFrame:
    return pd.read_csv(path, sep="\t", na_values=["n/a"])


def run_files(tree: Path, subject: str, session: int) -> dict[str, Path]:
    stem = f"{subject}_ses-{session}_task-rest_run-1"
    grid = f"{stem}_space-MNI152NLin2009aSym_res-8_desc"
    names = {
        "bold": f"{grid}-preproc_bold.nii.gz",
        "sidecar": f"{grid}-preproc_bold.json",
        "mask": f"{grid}-brain_mask.nii.gz",
        "confounds": f"{stem}_desc-confounds_timeseries.tsv",
    }
    return {key: tree / subject / f"ses-{session}" / "func" / name for key, name in names.items()}


def z_scored(tree: Path, subject: str, session: int, atlas: anatomy.Atlas) -> np.ndarray:
    values_VT = np.asarray(nib.load(run_files(tree, subject, session)["bold"]).dataobj)[atlas.mask_XYZ]
    centred_TV = (values_VT - values_VT.mean(axis=1, keepdims=True)).T
    return centred_TV / centred_TV.std(axis=0)


def connectome(bold_TV: np.ndarray, atlas: anatomy.Atlas) -> np.ndarray:
    """Correlations between cubes of 4 x 4 x 4 voxels."""
    cube_V = np.unique(np.argwhere(atlas.mask_XYZ) // 4, axis=0, return_inverse=True)[1].ravel()
    sums_TP = np.stack([bold_TV[:, cube_V == cube].sum(axis=1) for cube in range(cube_V.max() + 1)], axis=1)
    correlation = np.corrcoef(sums_TP.T)
    return correlation[np.triu_indices(len(correlation), 1)]


@pytest.fixture(scope="module")
def connectomes(cohort: Cohort, atlas: anatomy.Atlas) -> dict[tuple[str, int], np.ndarray]:
    return {key: connectome(bold, atlas) for key, bold in cohort.bold.items()}


def auroc(connectomes: dict[tuple[str, int], np.ndarray], truth: pd.DataFrame, label: np.ndarray) -> float:
    features = np.stack([connectomes[one, 1] + connectomes[one, 2] for one in truth.participant_id])
    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.001))
    folds = StratifiedKFold(8, shuffle=True, random_state=0)
    return float(roc_auc_score(label, cross_val_predict(model, features, label, cv=folds, method="decision_function")))


def test_tree_is_fmripreps(cohort: Cohort) -> None:
    description = json.loads((cohort.tree / "dataset_description.json").read_text())
    assert description["DatasetType"] == "derivative"
    assert description["GeneratedBy"][0]["Name"]
    participants = read_tsv(cohort.tree / "participants.tsv")
    assert list(participants) == ["participant_id", "family_id", "sex", "age", "diagnosis", "site"]
    assert list(participants.participant_id) == list(cohort.truth.participant_id)
    assert set(json.loads((cohort.tree / "participants.json").read_text())) == set(participants) - {"participant_id"}
    for subject in participants.participant_id:
        assert all(path.is_file() for path in run_files(cohort.tree, subject, 2).values())


def test_image_has_its_repetition_time_units_and_space(cohort: Cohort, atlas: anatomy.Atlas) -> None:
    files = run_files(cohort.tree, "sub-001", 1)
    image = nib.load(files["bold"])
    assert image.shape == (*atlas.mask_XYZ.shape, FRAMES)
    assert image.header.get_xyzt_units() == ("mm", "sec")
    assert image.header.get_zooms() == (8.0, 8.0, 8.0, TR_S)
    sidecar = json.loads(files["sidecar"].read_text())
    assert (sidecar["RepetitionTime"], sidecar["TaskName"], sidecar["SkullStripped"]) == (TR_S, "rest", False)
    for affine, code in (image.get_sform(coded=True), image.get_qform(coded=True)):
        assert code == 4
        assert affine == pytest.approx(atlas.affine)


def test_images_are_where_the_affine_says(cohort: Cohort, atlas: anatomy.Atlas) -> None:
    image = nib.load(run_files(cohort.tree, "sub-001", 1)["bold"])
    mean = np.asarray(image.dataobj).mean(axis=3)
    assert np.all(mean[~atlas.head_XYZ] == 0)
    assert np.all(mean[atlas.mask_XYZ] > 0)
    assert mean[atlas.grey_XYZ > 0.8].mean() > mean[atlas.white_XYZ > 0.8].mean()


def test_framewise_displacement_is_powers(cohort: Cohort) -> None:
    table = read_tsv(run_files(cohort.tree, "sub-002", 1)["confounds"])
    steps = table[["trans_x", "trans_y", "trans_z", "rot_x", "rot_y", "rot_z"]].diff().abs().to_numpy()
    by_hand = steps[:, :3].sum(axis=1) + 50 * steps[:, 3:].sum(axis=1)
    assert np.isnan(table.framewise_displacement[0])
    assert table.framewise_displacement[1:].to_numpy() == pytest.approx(by_hand[1:], abs=3e-4)  # six decimals are kept
    other = read_tsv(run_files(cohort.tree, "sub-002", 2)["confounds"])
    mean_fd_mm = np.mean([table.framewise_displacement.mean(), other.framewise_displacement.mean()])
    assert cohort.truth.mean_fd_mm[1] == pytest.approx(mean_fd_mm, abs=1e-5)


def test_labels_are_balanced_and_a_few_people_are_siblings(cohort: Cohort) -> None:
    assert cohort.truth.groupby(["sex", "diagnosis"]).size().tolist() == [8, 8, 8, 8]
    families = read_tsv(cohort.tree / "participants.tsv").family_id.value_counts()
    assert (families == 2).sum() == 2
    assert families.max() == 2


def test_brains_differ_between_people_and_not_between_sessions(cohort: Cohort, atlas: anatomy.Atlas) -> None:
    def brain(subject: str, session: int) -> np.ndarray:
        return np.asarray(nib.load(run_files(cohort.tree, subject, session)["mask"]).dataobj) > 0

    assert np.array_equal(brain("sub-001", 1), brain("sub-001", 2))
    assert not np.array_equal(brain("sub-001", 1), brain("sub-002", 1))
    for subject in cohort.truth.participant_id:
        one = brain(subject, 1)
        assert 2 * (one & atlas.mask_XYZ).sum() / (one.sum() + atlas.mask_XYZ.sum()) > 0.9


def test_siblings_have_similar_maps(atlas: anatomy.Atlas) -> None:
    def maps(family: int, person: int) -> np.ndarray:
        streams = [np.random.default_rng([kind, key]) for kind, key in enumerate((family, person, person))]
        return anatomy.make_brain(atlas, 0, 0, *streams).maps_KV.ravel()

    first, second = (np.stack([maps(family, 10 * family + k) for family in range(6)]) for k in (0, 1))
    centre = np.concatenate([first, second]).mean(axis=0)
    alike = np.corrcoef(first - centre, second - centre)[:6, 6:]
    assert np.diag(alike).mean() > alike[~np.eye(6, dtype=bool)].mean() + 0.3


def test_truth_is_consistent(cohort: Cohort) -> None:
    truth = cohort.truth
    explained = json.loads((cohort.tree / "truth.json").read_text())
    assert set(explained["columns"]) == set(truth)
    assert explained["constants"]["simulation"]["seed"] == 3
    assert truth[list(simulate.SHARES)].sum(axis=1).to_numpy() == pytest.approx(1, abs=4e-6)
    assert truth[list(simulate.SHARES)].to_numpy().min() >= 0
    assert truth.beta.to_numpy() == pytest.approx(2 * truth.hurst - 1, abs=2e-6)
    assert truth.hurst.between(0.6, 0.9).all()


def test_measured_spectrum_is_the_closed_form(cohort: Cohort) -> None:
    freqs_hz = np.fft.rfftfreq(FRAMES, TR_S)[1:]
    rows = [(row, cohort.bold[row["participant_id"], run]) for _, row in cohort.truth.iterrows() for run in (1, 2)]
    measured = [2 * TR_S / FRAMES * (np.abs(np.fft.rfft(z, axis=0)[1:]) ** 2).mean(axis=1) for _, z in rows]
    expected = [simulate.expected_spectrum(row, freqs_hz, TR_S) for row, _ in rows]
    measured = np.array(measured) / np.r_[np.ones(len(freqs_hz) - 1), 2]  # the Nyquist bin has no mirror image
    # Averaged before the logarithm: one run's power has few degrees of freedom, and its log is too low on average.
    ratio = np.log(np.mean(measured / np.array(expected), axis=0))
    for part in np.array_split(ratio, 6):
        assert part.mean() == pytest.approx(0, abs=0.08)
    band = (freqs_hz >= 0.01) & (freqs_hz <= 0.1)
    assert np.polyfit(np.log(freqs_hz[band]), ratio[band], 1)[0] == pytest.approx(0, abs=0.06)


def test_expected_slope_between_white_noise_and_the_planted_one() -> None:
    row: dict[str, Any] = {"frames": 2000, "hurst": 0.8, **dict.fromkeys(simulate.SHARES, 0.0)}
    low_hz = (0.001, 0.01)
    assert simulate.expected_slope(row | {"share_noise": 1.0}, TR_S) == pytest.approx(0, abs=1e-9)
    assert simulate.expected_slope(row | {"share_fractional": 1.0}, TR_S, low_hz) == pytest.approx(0.6, abs=0.01)
    diluted = simulate.expected_slope(row | {"share_fractional": 0.5, "share_noise": 0.5}, TR_S)
    assert 0.1 < diluted < 0.5
    assert simulate.expected_slope(row | {"share_events": 1.0}, TR_S) > 0.6


def test_sex_is_in_functional_connectivity(cohort: Cohort, connectomes: dict[tuple[str, int], np.ndarray]) -> None:
    male = (cohort.truth.sex == "M").to_numpy()
    shuffled = [np.random.default_rng(k).permutation(male) for k in range(10)]
    chance = [auroc(connectomes, cohort.truth, label) for label in shuffled]
    measured = auroc(connectomes, cohort.truth, male)
    assert measured > 0.75
    assert measured > max(chance)
    assert 0.3 < np.mean(chance) < 0.65


def test_people_are_recognised_in_another_session(
    cohort: Cohort, connectomes: dict[tuple[str, int], np.ndarray]
) -> None:
    first, second = (np.stack([connectomes[one, run] for one in cohort.truth.participant_id]) for run in (1, 2))
    centre = (first + second).mean(axis=0) / 2
    alike = np.corrcoef(first - centre, second - centre)[:32, 32:]
    assert np.mean(alike.argmax(axis=1) == np.arange(32)) > 0.5  # chance is 1 in 32


def checksums(tree: Path) -> dict[str, str]:
    files = sorted(path for path in tree.rglob("*") if path.is_file())
    return {str(path.relative_to(tree)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_workers_change_no_byte_and_the_seed_does(tmp_path: Path) -> None:
    small = Simulation(people=4, frames=32, tr_s=TR_S, seed=5)
    simulate.simulate_cohort(small, tmp_path / "one", workers=1)
    simulate.simulate_cohort(small, tmp_path / "two", workers=2)
    simulate.simulate_cohort(small.model_copy(update={"seed": 6}), tmp_path / "other")
    one, other = checksums(tmp_path / "one"), checksums(tmp_path / "other")
    assert one == checksums(tmp_path / "two")
    images = [name for name in one if name.endswith("bold.nii.gz")]
    assert len(images) == 8
    assert len({one[name] for name in images} | {other[name] for name in images}) == 16


def test_nothing_half_written_remains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full_disk(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(derivatives, "write_truth", full_disk)
    with pytest.raises(OSError, match="No space"):
        simulate.simulate_cohort(Simulation(people=4, runs=1, frames=32), tmp_path / "tree")
    assert list(tmp_path.iterdir()) == []


def test_a_grid_that_nilearn_cannot_make_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"simulation\.resolution_mm: found 2\.5; expected a whole number"):
        simulate.simulate_cohort(Simulation(people=4, resolution_mm=2.5), tmp_path / "tree")
