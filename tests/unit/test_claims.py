"""Claims: simulated tables drive each to supported, refuted and inconclusive; an edit after the result is shown."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from fake_tables import Tables, demo_study, fake_tables, write_tables

from pipeline.config import Study
from pipeline.errors import InputError
from pipeline.report.claims import TABLES, Verdict, decide, evaluate_claims, load_claims
from pipeline.report.estimates import ESTIMATORS, Estimate

CLAIMS = Path(__file__).parents[2] / "config" / "claims.yaml"


@pytest.fixture(scope="module")
def study() -> Study:
    """The laptop's study with five draws and three seeds, so that claims about draws can be decided; fewer sizes."""
    iso = [{"sizes": ["w12"], "subjects_frames": [[24, 40], [6, 160]], "draws": [0, 1, 2, 3, 4]}]
    scaling = [{"sizes": ["w6", "w24"], "subjects_frames": [[32, 160]], "seeds": [0, 1, 2]}]
    study = demo_study(grid={"iso_tokens": iso, "scaling": scaling, "off_diagonal": []})
    return study.model_copy(update={"claims": CLAIMS})


def verdicts(study: Study, content: Tables, folder: Path) -> dict[str, str]:
    needed = write_tables({name: content[name] for name in TABLES}, folder / "tables")
    table = evaluate_claims(study, needed, needed / "claims.parquet")
    return dict(zip(table["claim"], table["verdict"], strict=True))


def test_a_wall_is_found_where_there_is_one_and_only_there(study: Study, tmp_path: Path) -> None:
    wall = verdicts(study, fake_tables(study, wall=0.3), tmp_path / "wall")
    none = verdicts(study, fake_tables(study, wall=0.0), tmp_path / "none")
    assert (wall["scaling_wall"], none["scaling_wall"]) == ("supported", "refuted")
    assert (wall["smooth_scaling"], none["smooth_scaling"]) == ("supported", "supported")


def test_a_wall_within_the_noise_of_seeds_is_inconclusive(study: Study, tmp_path: Path) -> None:
    content = fake_tables(study)
    at = content["scaling"]["statistic"] == "larger_worse"
    content["scaling"].loc[at, ["value", "low", "high"]] = [0.01, -0.02, 0.04]
    assert verdicts(study, content, tmp_path)["scaling_wall"] == "inconclusive"


def test_collapse_of_every_seed_of_the_largest_is_a_wall(study: Study, tmp_path: Path) -> None:
    content = fake_tables(study)
    pretrain = content["pretrain"]
    for model in ("swift_v1", "swift_v2"):
        largest = (pretrain["architecture"] == model) & (pretrain["size"] == "w24") & (pretrain["variant"] == "main")
        pretrain.loc[largest, ["status", "val_r2"]] = ["diverged", np.nan]
    found = verdicts(study, content, tmp_path)
    assert (found["scaling_wall"], found["smooth_scaling"]) == ("supported", "refuted")


def test_a_claim_on_an_architecture_without_scaling_cells_is_inconclusive(tmp_path: Path) -> None:
    only = [{"architectures": ["swift_v2"], "subjects_frames": [[32, 160]]}]
    study = demo_study(grid={"scaling": only}).model_copy(update={"claims": CLAIMS})
    content = fake_tables(study)
    content["scaling"] = content["scaling"].query("fit != 'collapse' or architecture == 'swift_v2'")
    assert verdicts(study, content, tmp_path)["scaling_wall"] == "inconclusive"


def test_a_trend_is_no_law(study: Study, tmp_path: Path) -> None:
    content = fake_tables(study)
    assert verdicts(study, content, tmp_path / "trend")["data_law"] == "inconclusive"
    content["scaling"]["note"] = "law: 6 sizes, at least 3 repeats"
    assert verdicts(study, content, tmp_path / "law")["data_law"] == "supported"
    content["scaling"]["note"] = "law: 6 sizes, at least 3 repeats, not identified"
    assert verdicts(study, content, tmp_path / "vague")["data_law"] == "inconclusive"


@pytest.mark.parametrize(("frames_matter", "verdict"), [(0.0, "supported"), (2.0, "refuted")])
def test_deep_against_wide_comes_out_either_way(
    study: Study, tmp_path: Path, frames_matter: float, verdict: str
) -> None:
    """Where only people matter the wide condition reconstructs better; where frames matter more, the deep one."""
    content = fake_tables(study, noise=0.001)
    content["pretrain"]["val_r2"] -= frames_matter * content["pretrain"]["frames"].rsub(160) / 160
    assert verdicts(study, content, tmp_path)["wide_beats_deep_reconstruction"] == verdict


def test_two_draws_decide_nothing(tmp_path: Path) -> None:
    study = demo_study().model_copy(update={"claims": CLAIMS})
    found = verdicts(study, fake_tables(study, noise=0.0001), tmp_path)
    assert found["wide_beats_deep_reconstruction"] == "inconclusive"


@pytest.mark.parametrize(("encoder", "verdict"), [(5.0, "supported"), (0.0, "refuted")])
def test_superiority_over_the_connectome_comes_out_either_way(
    study: Study, tmp_path: Path, encoder: float, verdict: str
) -> None:
    found = verdicts(study, fake_tables(study, encoder=encoder), tmp_path)
    assert found["benchmark_superiority/sex"] == verdict
    same = verdicts(study, fake_tables(study, encoder=1.6), tmp_path / "same")
    assert same["benchmark_superiority/diagnosis"] == "inconclusive"


@pytest.mark.parametrize(
    ("betas", "preserved", "whitened"),
    [
        ({"swift_v1": 0.0, "swift_v2": 1.0}, "supported", "supported"),
        ({"swift_v1": 1.0, "swift_v2": 0.3}, "refuted", "refuted"),
        ({"swift_v1": 0.2, "swift_v2": 0.8}, "inconclusive", "inconclusive"),
    ],
)
def test_slopes_preserved_and_whitened(
    study: Study, tmp_path: Path, betas: dict[str, float], preserved: str, whitened: str
) -> None:
    found = verdicts(study, fake_tables(study, model_beta=betas), tmp_path)
    assert (found["beta_preserved_by_factorised"], found["whitened_by_4d"]) == (preserved, whitened)


def test_a_seed_without_an_exponent_decides_nothing(study: Study) -> None:
    content, estimate = fake_tables(study), ESTIMATORS["slope_shift"]
    spectral = content["spectral"]
    gap = spectral["metric"].eq("hurst") & spectral["size"].eq("w24") & spectral["seed"].eq(0)
    spectral.loc[gap, ["value", "low", "high"]] = np.nan
    ((_, found),) = estimate(study, content, model="swift_v2", metric="hurst")
    assert (found.n, found.note) == (0, "no hurst of 1 of 3 seeds")
    assert np.isnan(found.effect)


@pytest.mark.parametrize(
    ("kind", "selectors"), [("difference_of_conditions", {"measure": "sex"}), ("rank_correlation", {"task": "sex"})]
)
def test_a_second_data_set_is_another_estimate_and_no_larger_n(
    study: Study, kind: str, selectors: dict[str, str]
) -> None:
    content = fake_tables(study)
    ((_, alone),) = ESTIMATORS[kind](study, content, **selectors)
    second = content["probe"].assign(dataset="second", value=content["probe"]["value"].to_numpy()[::-1])
    datasets = {**study.datasets, "second": study.datasets["simulated"]}
    both = study.model_copy(update={"datasets": datasets})
    content["probe"] = pd.concat([content["probe"], second], ignore_index=True)
    found = dict(ESTIMATORS[kind](both, content, **selectors))
    assert set(found) == {"simulated", "second"}
    assert found["simulated"].effect == alone.effect
    assert [estimate.n for estimate in found.values()] == [alone.n, alone.n]


def test_every_row_says_what_decided_it(study: Study, tmp_path: Path) -> None:
    folder = write_tables(fake_tables(study), tmp_path / "tables")
    table = evaluate_claims(study, folder, folder / "claims.parquet")
    assert table["simulated"].all()
    assert (table["decided_by"].str.len() > 10).all()
    assert set(table["verdict"]) <= {"supported", "refuted", "inconclusive"}
    assert table.loc[table["verdict"] == "inconclusive", "note"].str.len().gt(0).all()
    assert {"benchmark_superiority/sex", "benchmark_superiority/diagnosis"} <= set(table["claim"])


def test_a_model_that_the_study_lacks_is_inconclusive(tmp_path: Path) -> None:
    path = tmp_path / "claims.yaml"
    entry = claim(estimate={"kind": "slope_shift", "model": "brainlm", "metric": "beta"})
    path.write_text(yaml.safe_dump([entry]))
    study = demo_study().model_copy(update={"claims": path})
    folder = write_tables(fake_tables(study), tmp_path / "tables")
    row = evaluate_claims(study, folder, folder / "claims.parquet").iloc[0]
    assert row["verdict"] == "inconclusive"
    assert "brainlm" in row["decided_by"] + row["note"]


def estimate(low: float, high: float, n: int = 10, p_value: float = np.nan) -> Estimate:
    return Estimate((low + high) / 2, low, high, n, "test", "rows", p_value)


@pytest.mark.parametrize(
    ("direction", "low", "high", "verdict"),
    [
        ("above", 0.1, 0.3, "supported"),
        ("above", -0.3, -0.1, "refuted"),
        ("above", -0.1, 0.3, "inconclusive"),
        ("below", -0.3, -0.1, "supported"),
        ("below", 0.1, 0.3, "refuted"),
        ("within", -0.04, 0.04, "supported"),
        ("within", 0.06, 0.2, "refuted"),
        ("within", -0.2, -0.06, "refuted"),
        ("within", 0.04, 0.2, "inconclusive"),
    ],
)
def test_the_interval_decides(direction: Any, low: float, high: float, verdict: str) -> None:
    threshold = 0.05 if direction == "within" else 0.0
    assert decide(estimate(low, high), Verdict(direction=direction, threshold=threshold, least_n=5)).verdict == verdict


def test_too_few_no_interval_and_a_weak_test_are_inconclusive() -> None:
    rule = Verdict(direction="above", threshold=0.0, least_n=5)
    assert decide(estimate(0.1, 0.3, n=4), rule).note == "n = 4, at least 5 asked"
    assert decide(estimate(np.nan, np.nan), rule).note == "no interval"
    assert decide(estimate(0.1, 0.3, p_value=0.2), rule).verdict == "inconclusive"
    assert decide(estimate(0.1, 0.3, p_value=0.01), rule).verdict == "supported"


def claim(**changes: Any) -> dict[str, Any]:
    base = {
        "claim": "one",
        "figure": "Figure 5",
        "statement": "It is so.",
        "estimate": {"kind": "slope_shift", "model": "swift_v2", "metric": "beta"},
        "verdict": {"direction": "above", "threshold": 0.0, "least_n": 2},
    }
    return {**base, **changes}


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"estimate": {"kind": "slope_shft"}}, r"one: estimate.kind.*slope_shift"),
        ({"estimate": {"kind": "slope_shift", "modle": "x"}}, r"one: estimate.modle.*model"),
        ({"estimate": {"kind": "slope_shift", "model": "x"}}, r"one: estimate.*no 'metric'"),
        ({"estimate": {"kind": "slope_shift", "model": "x", "metric": "bta"}}, r"one: estimate.metric.*beta"),
        ({"verdict": {"direction": "up", "threshold": 0, "least_n": 2}}, r"one: verdict.direction"),
        ({"treshold": 1}, r"one.*treshold"),
    ],
)
def test_a_claim_with_an_unknown_selector_is_refused(tmp_path: Path, changes: dict[str, Any], told: str) -> None:
    path = tmp_path / "claims.yaml"
    path.write_text(yaml.safe_dump([claim(**changes)]))
    with pytest.raises(InputError, match=told) as refused:
        load_claims(path)
    assert "claims.yaml" in str(refused.value)


def test_files_that_are_no_claims_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "claims.yaml"
    for text, told in (("a: 1", "dict"), ("[", "not YAML"), (yaml.safe_dump([claim(), claim()]), "two claims")):
        path.write_text(text)
        with pytest.raises(InputError, match=told):
            load_claims(path)
    with pytest.raises(InputError, match="no such file"):
        load_claims(tmp_path / "none.yaml")


def test_a_claim_edited_or_withdrawn_after_its_result_is_shown(tmp_path: Path) -> None:
    path = tmp_path / "claims.yaml"
    study = demo_study().model_copy(update={"claims": path})
    folder = write_tables(fake_tables(study), tmp_path / "tables")

    def table(claims: list[dict[str, Any]]) -> pd.DataFrame:
        path.write_text(yaml.safe_dump(claims))
        return evaluate_claims(study, folder, folder / "claims.parquet").set_index("claim")

    assert table([claim(), claim(claim="two")]).loc["one", "note"] == ""
    assert table([claim(), claim(claim="two")]).loc["one", "note"] == ""  # the same again
    easier = claim(verdict={"direction": "above", "threshold": -9.0, "least_n": 2})
    edited = table([easier])
    assert "EDITED after its first result" in edited.loc["one", "note"]
    assert edited.loc["two", "verdict"] == "withdrawn"
    assert "EDITED" in table([easier, claim(claim="two")]).loc["one", "note"]  # it is not forgotten
