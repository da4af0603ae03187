"""Systems outside the grid: each finds what was planted for it, from shards to scores, and not what was not."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.linalg import expm, logm, sqrtm
from sklearn.covariance import ledoit_wolf
from sklearn.decomposition import PCA
from small_cohort import CONTRACT, small_template

from pipeline.bold.parcels import parcel_geometry
from pipeline.bold.reader import Shard
from pipeline.bold.shards import voxel_geometry, write_shard
from pipeline.bold.template import parcel_means
from pipeline.config import Boosting, Phenotype, Study, load_study
from pipeline.errors import InputError
from pipeline.evaluate.cohort import Cohort, Task
from pipeline.evaluate.probes.linear import linear_reader
from pipeline.evaluate.splits import TEST, TRAIN, draw_splits, seeded
from pipeline.evaluate.statistics import auroc
from pipeline.evaluate.systems import SYSTEMS, applicable, require
from pipeline.evaluate.systems.boosting import boosting_reader, histogram_trees, xgboost_trees
from pipeline.evaluate.systems.components import components
from pipeline.evaluate.systems.connectome import partial_correlation, pearson, shrunk_covariance
from pipeline.evaluate.systems.material import Material
from pipeline.evaluate.systems.packing import pack, unpack
from pipeline.evaluate.systems.people import columns_of, confound_features
from pipeline.evaluate.systems.tangent import logarithms, tangent_vectors

DEMO = Path(__file__).resolve().parents[2] / "config/demo.yaml"
PEOPLE, PARCELS, FRAMES = 40, 6, 60
FROM_BOLD = [name for name, system in SYSTEMS.items() if system.kind == "simple" and not system.extra]


EVALUATE = {
    "frames": None,
    "identity_frames": 30,
    "penalties": [0.01, 1.0],
    "boosting": {"leaves": [2, 4], "trees": 20},
    "supervised": {"learning_rates": [0.001, 0.003]},
}


def study(**dataset: object) -> Study:
    """The demo with two candidates a system, whose cohort comes as parcel series."""
    made = load_study(DEMO, {"evaluate": EVALUATE})
    series = {"door": "parcels", "simulation": None, "simulated": False, **dataset}
    return made.model_copy(update={"datasets": {"simulated": made.datasets["simulated"].model_copy(update=series)}})


def cohort_of(people: pd.DataFrame, runs: list[dict[str, object]], person_R: np.ndarray, **dataset: object) -> Cohort:
    settings = study(**dataset).datasets["simulated"]
    members = {"simulated": list(people.index)}
    known = {"dataset": "simulated", "settings": settings, "simulated": False, "members": members, "key": "key"}
    return Cohort(people=people, runs=runs, person_R=person_R, excluded=[], tasks=[], **known)


def task_of(target: np.ndarray, name: str = "sex", kind: str = "classes") -> Task:
    people, strata = np.arange(len(target)), (target > np.median(target)).astype(int)
    parts = draw_splits(strata, people, 4, 0.3, 0.1, seeded("systems"))
    return Task(name, kind, people, target, people, np.where(people % 3, "A", "B"), parts, "key")


COUPLED, BRIGHTER = np.arange(PEOPLE) % 2, np.arange(PEOPLE) // 2 % 2
SESSIONS = [(person, session) for person in range(PEOPLE) for session in ("1", "2")[: 2 if person < 5 else 1]]


def series(person: int, rng: np.random.Generator) -> np.ndarray:
    """(T, P) about 100: parcels 0 and 1 are coupled or not, parcel 2 is brighter or not, parcel 5 is dead."""
    signal_TP = rng.normal(0, 1, (FRAMES, PARCELS))
    if COUPLED[person]:
        signal_TP[:, 1] += 1.5 * signal_TP[:, 0]
        signal_TP[:, 1] /= signal_TP[:, 1].std()
    level_P = 100 + rng.normal(0, 1, PARCELS)
    level_P[2] += 10 * BRIGHTER[person]
    signal_TP[:, 5] = 0
    return (level_P + signal_TP).astype(np.float32)


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> Material:
    """People with planted connectomes and mean images; the first five have two sessions."""
    rng, runs, root = np.random.default_rng(0), [], tmp_path_factory.mktemp("shards")
    for person, session in SESSIONS:
        name = {"dataset": "simulated", "subject": f"s{person:02d}", "session": session, "run": "1"}
        geometry = parcel_geometry("small", [f"p{index}" for index in range(PARCELS)])
        entry = write_shard(root / f"{person}-{session}", series(person, rng), {**name, **CONTRACT}, geometry=geometry)
        runs.append({**name, **entry, "mean_fd_mm": 0.1})
    table = pd.DataFrame({"family": np.arange(PEOPLE), "site": "A", "age": 30.0, "sex": COUPLED})
    table.index = [f"s{person:02d}" for person in range(PEOPLE)]
    whose = np.array([person for person, _ in SESSIONS])
    return Material(study(), cohort_of(table, runs, whose))


def found(name: str, material: Material, label: np.ndarray) -> float:
    """Mean AUROC over splits."""
    task, areas = task_of(label), []
    reader = SYSTEMS[name].make(material, task)
    for part in task.parts_SM:
        reading, tested = reader(task.target_M, part), part == TEST
        assert np.isfinite(reading.score_M).all()
        areas.append(auroc(label[tested], reading.score_M[tested]))
    return float(np.mean(areas))


# --- what is planted


@pytest.mark.parametrize(
    "name", ["connectome_logistic", "connectome_ridge", "partial_logistic", "tangent_logistic", "gradient_boosting"]
)
def test_a_planted_coupling_is_found_by_every_system_of_connectomes(name: str, material: Material) -> None:
    assert found(name, material, COUPLED) > 0.9


@pytest.mark.parametrize("name", ["time_averaged", "temporal_sd", "parcel_mean_sd", "pca", "chance"])
def test_a_planted_coupling_is_not_in_mean_and_sd(name: str, material: Material) -> None:
    assert abs(found(name, material, COUPLED) - 0.5) < 0.2


@pytest.mark.parametrize("name", ["time_averaged", "parcel_mean_sd", "pca"])
def test_a_planted_mean_image_is_found_by_every_system_of_means(name: str, material: Material) -> None:
    assert found(name, material, BRIGHTER) > 0.9


@pytest.mark.parametrize("name", ["connectome_logistic", "partial_logistic", "tangent_logistic", "gradient_boosting"])
def test_a_planted_mean_image_is_not_in_the_connectome(name: str, material: Material) -> None:
    assert abs(found(name, material, BRIGHTER) - 0.5) < 0.25


def test_a_number_is_predicted_in_its_own_unit(material: Material) -> None:
    age = 40 + 20.0 * COUPLED + np.random.default_rng(0).normal(0, 1, PEOPLE)
    task = task_of(age, "age", "number")
    for name in ("connectome_logistic", "gradient_boosting"):
        reading = SYSTEMS[name].make(material, task)(age, task.parts_SM[0])
        tested = task.parts_SM[0] == TEST
        assert np.abs(reading.score_M[tested] - age[tested]).mean() < 6
    assert SYSTEMS["connectome_ridge"].make(material, task) is None, "connectome_logistic is ridge already"


def test_networks_learn_on_the_same_connectomes_and_on_clips_of_volumes(material: Material, tmp_path: Path) -> None:
    systems = {"brainnetcnn": {"edges": [4, 8], "graph": 16, "dense": [16, 8]}}
    systems["tff"] = {"width": 16, "hidden": 16, "layers": 1, "heads": 2, "context_frames": 20}
    assert found("brainnetcnn", with_networks(material, systems, epochs=20), COUPLED) > 0.75
    template, rng, runs = small_template(), np.random.default_rng(0), []
    for person in range(12):
        bold_TV = rng.normal(500, 5, (40, template.voxels)).astype(np.float32)
        write_shard(tmp_path / str(person), bold_TV, CONTRACT, geometry=voxel_geometry(template))
        runs.append({"path": tmp_path / str(person), "session": "1", "mean_fd_mm": None})
    people = pd.DataFrame({"family": np.arange(12)}, index=[f"s{person}" for person in range(12)])
    volumes = Material(study(), cohort_of(people, runs, np.arange(12)), template)
    task = task_of(COUPLED[:12])
    reading = SYSTEMS["tff"].make(with_networks(volumes, systems, epochs=1), task)(task.target_M, task.parts_SM[0])
    assert np.isfinite(reading.score_M).all()


def with_networks(material: Material, systems: dict[str, dict[str, object]], epochs: int) -> Material:
    evaluate = material.study.evaluate
    supervised = evaluate.supervised.model_copy(update={"systems": systems, "epochs": epochs})
    evaluate = evaluate.model_copy(update={"supervised": supervised})
    return Material(material.study.model_copy(update={"evaluate": evaluate}), material.cohort, material.template)


def test_sites_are_aligned_before_a_reader_learns_where_the_study_says(material: Material) -> None:
    aligned = material.study.evaluate.model_copy(update={"harmonise": "combat"})
    study, site_M = material.study.model_copy(update={"evaluate": aligned}), np.where(BRIGHTER, "A", "B")
    task = task_of(BRIGHTER)._replace(site_M=site_M)
    for name in ("temporal_sd", "time_averaged", "pca", "gradient_boosting"):
        part = task.parts_SM[0]
        reading = SYSTEMS[name].make(Material(study, material.cohort), task)(BRIGHTER, part)
        assert auroc(BRIGHTER[part == TEST], reading.score_M[part == TEST]) < 0.9, "the label is the site"


# --- features


def test_nothing_is_ever_nan_and_a_dead_parcel_is_zero(material: Material) -> None:
    everything = [*material.runs, material.partial_NE, material.image_NP, material.sd_NP, material.image_products_2NN]
    assert all(np.isfinite(values).all() for values in everything)
    dead = [5 in pair for pair in zip(*np.triu_indices(PARCELS, 1), strict=True)]
    for edges in (material.edges_NE, material.partial_NE, material.runs.short_edges_RE):
        assert (edges[:, dead] == 0).all()
    assert (material.edges_NE[:, np.logical_not(dead)] != 0).all()
    assert (material.sd_NP[:, 5] == 0).all()


def test_a_connectome_is_fisher_z_of_pearson() -> None:
    parcels_TP = np.random.default_rng(1).normal(0, 1, (80, 5)) + 1000
    parcels_TP[:, 1] += parcels_TP[:, 0]
    expected = np.arctanh(np.corrcoef(parcels_TP.T)[np.triu_indices(5, 1)])
    assert np.allclose(pearson(parcels_TP), expected)
    assert np.isfinite(pearson(np.repeat(parcels_TP[:, :1], 3, axis=1))).all()


@pytest.mark.parametrize(("frames", "parcels"), [(40, 60), (300, 10)])
def test_shrinkage_is_that_of_ledoit_and_wolf(frames: int, parcels: int) -> None:
    rng = np.random.default_rng(2)
    parcels_TP = rng.normal(0, 1, (frames, parcels)) @ rng.normal(0, 1, (parcels, parcels)) * 7 + 3
    scaled_TP = (parcels_TP - parcels_TP.mean(0)) / parcels_TP.std(0)
    assert np.allclose(shrunk_covariance(parcels_TP), ledoit_wolf(scaled_TP, assume_centered=True)[0])


def test_partial_correlation_is_that_of_residuals() -> None:
    rng = np.random.default_rng(3)
    parcels_TP = rng.normal(0, 1, (500, 4)) @ rng.normal(0, 1, (4, 4))
    covariance_PP = np.cov(parcels_TP.T)
    centred_TP, expected = parcels_TP - parcels_TP.mean(0), []
    for first, second in zip(*np.triu_indices(4, 1), strict=True):
        others = np.delete(centred_TP, [first, second], axis=1)
        rest = [
            centred_TP[:, each] - others @ np.linalg.lstsq(others, centred_TP[:, each])[0] for each in (first, second)
        ]
        expected.append(np.corrcoef(rest)[0, 1])
    assert np.allclose(np.tanh(partial_correlation(covariance_PP)), expected)


def test_the_closed_form_of_three_parcels() -> None:
    """r_01.2 = (r_01 - r_02 r_12) / sqrt((1 - r_02^2)(1 - r_12^2))."""
    correlation = np.array([[1, 0.5, 0.4], [0.5, 1, 0.3], [0.4, 0.3, 1]])
    expected = (0.5 - 0.4 * 0.3) / np.sqrt((1 - 0.4**2) * (1 - 0.3**2))
    assert np.tanh(partial_correlation(correlation))[0] == pytest.approx(expected)


def covariances(people: int = 12) -> np.ndarray:
    rng = np.random.default_rng(4)
    return np.array(
        [pack(shrunk_covariance(rng.normal(0, 1, (30, 5)) @ rng.normal(0, 1, (5, 5)))) for _ in range(people)]
    )


def test_tangent_vectors_are_whitened_logarithms() -> None:
    covariance_ND, train_N = covariances(), np.arange(12) < 8
    found_ND = tangent_vectors(covariance_ND, logarithms(covariance_ND), train_N)
    reference = expm(np.mean([logm(matrix) for matrix in unpack(covariance_ND[train_N])], axis=0))
    whitening = np.linalg.inv(sqrtm(reference).real)
    for row, matrix in zip(found_ND, unpack(covariance_ND), strict=True):
        expected = logm(whitening @ matrix @ whitening)
        assert np.allclose(row, pack(expected, np.sqrt(2)), atol=1e-4)
        assert (row**2).sum() == pytest.approx((expected**2).sum(), rel=1e-3), "lengths are those of matrices"


def test_the_tangent_space_does_not_know_test_people() -> None:
    covariance_ND, train_N = covariances(), np.arange(12) < 8
    changed_ND = covariance_ND.copy()
    changed_ND[10] = pack(np.eye(5) + 0.5 * (1 - np.eye(5)))
    before, after = (tangent_vectors(each, logarithms(each), train_N) for each in (covariance_ND, changed_ND))
    assert (before != after).any(1).tolist() == [row == 10 for row in range(12)]


def test_principal_components_are_those_of_the_training_part() -> None:
    rng = np.random.default_rng(5)
    features_ND, train_N = rng.normal(5, 1, (30, 8)) * np.arange(1, 9), np.arange(30) < 20
    found_NK = components((features_ND @ features_ND.T)[None], train_N, 3)
    expected_NK = PCA(3).fit(features_ND[train_N]).transform(features_ND)
    for mine, other in zip(found_NK.T, expected_NK.T, strict=True):
        assert abs(np.corrcoef(mine, other)[0, 1]) == pytest.approx(1)
    ratio = found_NK.std(0) / expected_NK.std(0)
    assert np.allclose(ratio, ratio[0])
    assert components(np.ones((1, 30, 30)), train_N, 3).shape == (30, 0), "people who do not differ span nothing"


def test_mean_and_sd_images_do_not_know_the_scanners_unit(tmp_path: Path) -> None:
    rng, geometry = np.random.default_rng(6), parcel_geometry("small", list("abc"))
    bold_TP = rng.normal([100, 110, 120], [1, 2, 3], (FRAMES, 3))
    runs = []
    for name, values_TP in (
        ("raw", bold_TP),
        ("scaled", 37 * bold_TP),
        ("demeaned", bold_TP - 0.999 * bold_TP.mean(0)),
    ):
        write_shard(tmp_path / name, values_TP.astype(np.float32), {**CONTRACT}, geometry=geometry)
        runs.append({"path": tmp_path / name, "session": "1", "mean_fd_mm": None})
    people = pd.DataFrame({"family": list("abc")}, index=list("xyz"))
    material = Material(study(), cohort_of(people, runs, np.arange(3)))
    raw, scaled, demeaned = material.image_NP
    assert np.allclose(raw, bold_TP.mean(0) / bold_TP.mean(), rtol=1e-3)
    assert np.allclose(raw, scaled, rtol=1e-5)
    assert (demeaned == 0).all()
    assert np.allclose(material.sd_NP[0], bold_TP.std(0) / bold_TP.mean(), rtol=2e-3)
    assert np.allclose(material.sd_NP[2], bold_TP.std(0) / bold_TP.std(0).mean(), rtol=2e-3)


def test_voxels_are_read_through_the_templates_parcels(tmp_path: Path) -> None:
    template = small_template()
    bold_TV = np.random.default_rng(7).normal(500, 5, (FRAMES, template.voxels)).astype(np.float32)
    write_shard(tmp_path / "run", bold_TV, CONTRACT, geometry=voxel_geometry(template))
    runs = [{"path": tmp_path / "run", "session": "1", "mean_fd_mm": None}]
    cohort = cohort_of(pd.DataFrame({"family": ["a"]}, index=["x"]), runs, np.zeros(1, int))
    material = Material(study(), cohort, template)
    z_TP = parcel_means((bold_TV - bold_TV.mean(0)) / bold_TV.std(0), template)
    assert np.allclose(material.edges_NE[0], pearson(z_TP), atol=2e-3)
    assert np.allclose(material.sd_NP[0], parcel_means(bold_TV, template).std(0) / bold_TV.mean(), rtol=1e-2)
    with pytest.raises(InputError, match="voxels of the study's template"):
        _ = Material(study(), cohort).runs


def test_identity_is_in_runs_of_two_sessions_whole_and_short(material: Material) -> None:
    for name in ("connectome_logistic", "time_averaged", "temporal_sd", "chance"):
        features = SYSTEMS[name].identity(material)
        assert features is not None
        assert len(features.full_RD) == len(features.short_RKD) == len(SESSIONS)
    (first, _), _ = material.cohort.session_pairs()
    parcels_TP = series(0, np.random.default_rng(0))[:30]
    short = SYSTEMS["connectome_logistic"].identity(material).short_RKD[first[0], 0]
    assert np.allclose(short, pearson(parcels_TP.astype(float)), atol=5e-3)
    assert SYSTEMS["confounds"].identity(material) is None


# --- bad input


def with_run(material: Material, folder: Path) -> Material:
    runs = [*material.cohort.runs[:-1], {**material.cohort.runs[-1], "path": str(folder)}]
    return Material(material.study, replace(material.cohort, runs=runs))


def test_another_number_of_parcels_is_refused(material: Material, tmp_path: Path) -> None:
    seven_TP = np.random.default_rng(0).normal(100, 1, (FRAMES, 7)).astype(np.float32)
    write_shard(tmp_path / "seven", seven_TP, CONTRACT, geometry=parcel_geometry("small", list("abcdefg")))
    with pytest.raises(InputError, match=r"seven: found 7 columns; expected 6, as in "):
        _ = with_run(material, tmp_path / "seven").edges_NE


@pytest.mark.parametrize(("field", "value"), [("atlas", "other"), ("denoising", "icafix")])
def test_one_parcellation_and_one_denoising_an_analysis(
    field: str, value: str, material: Material, tmp_path: Path
) -> None:
    rng, geometry = np.random.default_rng(0), parcel_geometry("small", [f"p{index}" for index in range(PARCELS)])
    contract, geometry = {**CONTRACT, field: value}, {**geometry, **({field: value} if field == "atlas" else {})}
    write_shard(tmp_path / "odd", series(0, rng), contract, geometry=geometry)
    with pytest.raises(InputError, match=f"contract.{field}: found '{value}'"):
        _ = with_run(material, tmp_path / "odd").edges_NE


def test_values_that_are_not_finite_are_refused(material: Material, monkeypatch: pytest.MonkeyPatch) -> None:
    """Such runs are quarantined when they come in; a damaged store is another way."""
    monkeypatch.setattr(Shard, "read", lambda *_: np.full((FRAMES, PARCELS), np.nan, np.float32))
    with pytest.raises(InputError, match=r"0-1: found values that are not finite; .*quarantines"):
        _ = Material(material.study, material.cohort).runs


# --- boosting


def crossed(people: int = 240) -> tuple[np.ndarray, np.ndarray]:
    """Two numbers a person whose signs are alike in class 1 and differ in class 0, and eight of noise."""
    features = np.random.default_rng(8).normal(0, 1, (people, 6))
    return features, (features[:, 0] * features[:, 1] > 0).astype(int)


def boosted_area(trees: object) -> float:
    features, label = crossed()
    part = draw_splits(label, np.arange(len(label)), 1, 0.3, 0.1, seeded("crossed"))[0]
    settings = Boosting(leaves=(4, 8), trees=40)
    reading = boosting_reader(lambda _: features, np.arange(len(label)), settings, "classes", trees)(label, part)
    assert np.isfinite(reading.inner_M).tolist() == (part == TRAIN).tolist()
    assert reading.chosen in ("leaves=4", "leaves=8")
    return float(auroc(label[part == TEST], reading.score_M[part == TEST]))


def test_boosting_finds_an_interaction_that_is_nothing_to_a_linear_reader() -> None:
    features, label = crossed()
    part = draw_splits(label, np.arange(len(label)), 1, 0.3, 0.1, seeded("crossed"))[0]
    linear = linear_reader(features, np.arange(len(label)), [0.01, 1.0])(label, part).score_M[part == TEST]
    assert auroc(label[part == TEST], linear) < 0.7
    assert boosted_area(histogram_trees) > 0.85


def test_xgboost_finds_it_too() -> None:
    pytest.importorskip("xgboost")
    assert boosted_area(xgboost_trees) > 0.85


def test_boosted_scores_are_logits_at_equal_prevalence() -> None:
    rng = np.random.default_rng(9)
    label = (np.arange(600) % 6 == 0).astype(int)
    part = np.where(np.arange(600) % 4 == 0, TEST, TRAIN)
    noise = boosting_reader(
        lambda _: rng.normal(0, 1, (600, 2)), np.arange(600), Boosting(trees=5, leaves=(4,)), "classes", histogram_trees
    )
    assert abs(noise(label, part).score_M.mean()) < 0.2, "without weights it is log(1/5) = -1.6"


def test_a_training_part_of_one_class_has_no_scores() -> None:
    label, part = np.zeros(20, dtype=int), np.full(20, TRAIN)
    reader = boosting_reader(lambda _: np.eye(20), np.arange(20), Boosting(), "classes", histogram_trees)
    assert np.isnan(reader(label, part).score_M).all()


# --- controls


TABLE: dict[str, list[object]] = {
    "age": [30, np.nan, 50, 40],
    "site": ["A", "B", "A", ""],
    "sex": [1, 0, 0, 1],
    "diagnosis": [1, 1, 0, 0],
    "brain_volume": [1.1, 1.2, 1.3, 1.4],
    "DX_GROUP": [2, 2, 1, 1],
}
LABELS = {
    "sex": {"column": "sex", "positive": ["F"], "negative": ["M"]},
    "diagnosis": {"column": "dx", "positive": ["patient"], "negative": ["control"]},
    "years": {"column": "age", "number": True},
}


def small_task(name: str, target: list[float], kind: str = "classes") -> Task:
    rows = np.arange(4)
    return Task(name, kind, rows, np.array(target), rows, np.array(["A", "B", "A", ""]), np.zeros((0, 4)), "key")


def confounds_of(task: Task, named: tuple[str, ...], motion: list[float | None]) -> np.ndarray:
    people = pd.DataFrame({"family": list("abcd"), **TABLE}, index=["s1", "s2", "s3", "s4"])
    runs = [{"mean_fd_mm": value, "session": "1"} for value in motion]
    labels = {name: Phenotype(**label) for name, label in LABELS.items()}
    return confound_features(cohort_of(people, runs, np.arange(4), labels=labels, confounds=named), task)


def test_confounds_are_motion_age_site_sex_and_what_is_named() -> None:
    features = confounds_of(small_task("diagnosis", [1, 1, 0, 0]), ("brain_volume",), [0.1, 0.2, None, 0.4])
    expected = [
        [0.1, 30, 1, 0, 1, 1.1],
        [0.2, np.nan, 0, 1, 0, 1.2],
        [np.nan, 50, 1, 0, 0, 1.3],
        [0.4, 40, np.nan, np.nan, 1, 1.4],
    ]
    assert np.allclose(features, expected, equal_nan=True)


def test_confounds_are_never_the_label_nor_a_copy_of_it() -> None:
    motion: list[float | None] = [0.1, 0.2, 0.3, 0.4]
    assert confounds_of(small_task("sex", [1, 0, 0, 1]), (), motion).shape == (4, 1 + 1 + 2)
    years = small_task("years", [30, 35, 50, 40], "number")
    assert confounds_of(years, (), motion).shape == (4, 1 + 2 + 1), "the column that the ages come from"
    copied = confounds_of(small_task("diagnosis", [1, 1, 0, 0]), ("DX_GROUP", "brain_volume"), motion)
    assert copied.shape == (4, 1 + 1 + 2 + 1 + 1), "DX_GROUP says 2 for patients and 1 for the others"
    assert confounds_of(small_task("state", [1, 0, 1, 0]), (), motion).shape == (4, 1 + 1 + 2 + 1)


def test_text_becomes_levels_and_a_missing_value_stays_missing() -> None:
    values = columns_of(pd.Series(["b", "", "a", None]))
    assert np.allclose(values, [[0, 1], [np.nan] * 2, [1, 0], [np.nan] * 2], equal_nan=True)
    assert np.allclose(columns_of(pd.Series(["1.5", "", "2"])), [[1.5], [np.nan], [2]], equal_nan=True)


def test_a_control_without_anything_to_read_is_left_out(material: Material) -> None:
    task = task_of(COUPLED)
    assert SYSTEMS["site_only"].make(material, task._replace(site_M=np.full(PEOPLE, "A"))) is None
    assert SYSTEMS["site_only"].make(material, task) is not None
    still = replace(material.cohort, runs=[{**run, "mean_fd_mm": None} for run in material.cohort.runs])
    assert SYSTEMS["motion_only"].make(Material(study(), still), task) is None
    assert SYSTEMS["motion_only"].make(material, task) is not None


def test_chance_says_the_same_of_everybody(material: Material) -> None:
    task = task_of(COUPLED)
    reading = SYSTEMS["chance"].make(material, task)(task.target_M, task.parts_SM[0])
    assert np.allclose(reading.score_M, 0, atol=1e-6)


# --- the registry


def test_an_unknown_system_names_the_nearest() -> None:
    with pytest.raises(InputError, match=r"found 'conectome_logistic'.*Did you mean 'connectome_logistic'"):
        require(["conectome_logistic"])


def test_an_optional_system_runs_where_it_is_named_and_its_package_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "xgboost" not in [system.name for system in applicable(study(), "simulated")]
    monkeypatch.setattr("pipeline.evaluate.systems.find_spec", lambda _: None)
    with pytest.raises(InputError, match=r"found no package 'xgboost'.*pip install"):
        require(["xgboost"])
    monkeypatch.setattr("pipeline.evaluate.systems.find_spec", lambda _: object())
    assert [system.name for system in require(["xgboost", "xgboost"])] == ["xgboost"]


def test_parcel_series_have_no_systems_of_voxels() -> None:
    volumes, only_parcels = study(door="fmriprep"), study()
    supervised = volumes.evaluate.supervised.model_copy(update={"systems": {"brainnetcnn": {}, "tff": {}}})
    for each, expected in ((volumes, {"brainnetcnn", "tff"}), (only_parcels, {"brainnetcnn"})):
        evaluate = each.evaluate.model_copy(update={"supervised": supervised})
        names = [system.name for system in applicable(each.model_copy(update={"evaluate": evaluate}), "simulated")]
        assert set(names) == {*FROM_BOLD, "confounds", "motion_only", "site_only", "chance", *expected}


def test_only_networks_are_trained_on_labels_by_name() -> None:
    given = study()
    supervised = given.evaluate.supervised.model_copy(update={"systems": {"confounds": {}}})
    evaluate = given.evaluate.model_copy(update={"supervised": supervised})
    with pytest.raises(InputError, match="found 'confounds'; expected a network trained on labels"):
        applicable(given.model_copy(update={"evaluate": evaluate}), "simulated")


def test_every_system_says_what_it_is_and_can_be_loaded() -> None:
    for name, system in SYSTEMS.items():
        assert system.name == name
        assert system.meaning.endswith(".")
        assert len(system.label) <= 32
    labels = [system.label for system in SYSTEMS.values()]
    assert len(set(labels)) == len(labels)
