"""Truths: recovered from tables that hold them, failed by tables of noise, each by the fault that it guards against."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from fake_tables import Tables, demo_study, fake_tables, write_tables, write_truth

from pipeline.bold.simulate import expected_slope
from pipeline.config import Study
from pipeline.errors import InputError
from pipeline.report.truths import PERSON, check_truths, planted_people, print_truths, required


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    """The laptop's study, its cohort's record in a folder of its own."""
    folder = tmp_path_factory.mktemp("simulated")
    write_truth(folder)
    study = demo_study()
    simulated = study.datasets["simulated"].model_copy(update={"path": str(folder)})
    return study.model_copy(update={"datasets": {**study.datasets, "simulated": simulated}})


def planted(study: Study) -> dict[str, tuple[float, float]]:
    return {
        str(person): (row["beta"], row["hurst"]) for person, row in planted_people(study, "simulated", 1.5).iterrows()
    }


@pytest.fixture(scope="module")
def content(study: Study) -> Tables:
    return fake_tables(study, planted=planted(study))


def truths(study: Study, content: Tables, folder: Path) -> pd.DataFrame:
    return check_truths(study, write_tables(content, folder), folder / "truths.parquet").set_index("truth")


def test_planted_truths_are_recovered(
    study: Study, content: Tables, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    table = truths(study, content, tmp_path)
    missed = required(table)[~required(table)["passed"]]
    assert missed.empty, missed["statement"].tolist()
    assert print_truths(tmp_path / "truths.parquet") == 0
    told = capsys.readouterr().out
    assert f"{len(required(table))} of {len(required(table))} truths recovered." in told
    assert "FAILED" not in told
    assert table.loc[PERSON, "planted"].nunique() == 48
    identity = table.loc["probe_identity_swift_v1"]
    assert identity["found"] > 0
    assert "probe_identity_swift_v1" not in required(table).index


def test_people_without_an_exponent_are_left_out_of_n(study: Study, content: Tables, tmp_path: Path) -> None:
    spectral = content["spectral"].copy()
    people = spectral.index[spectral["metric"].eq("hurst") & spectral["split"].str.startswith("person-")]
    spectral.loc[people[:3], "value"] = np.nan
    table = truths(study, {**content, "spectral": spectral}, tmp_path)
    assert table.loc["planted_hurst", "n"] == 45
    assert table.loc["planted_hurst", "passed"]


def test_what_is_planted_is_the_closed_form_of_the_simulation(study: Study) -> None:
    truth = pd.read_csv(study.data_path("simulated") / "truth.tsv", sep="\t")
    expected = [expected_slope(row, 1.5) for row in truth.to_dict("records")]
    np.testing.assert_allclose(planted_people(study, "simulated", 1.5)["beta"], expected, atol=0.03)


def test_pure_noise_passes_nothing_that_matters(study: Study, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """Noise for signals, for scores and for encoders: no truth about signal may stand."""
    content = fake_tables(study, signal=0.0, planted=dict.fromkeys(planted(study), (0.0, 0.5)))
    rng = np.random.default_rng(1)
    pretrain = content["pretrain"]
    noise = rng.normal(0, 0.01, len(pretrain))
    for column, shift in (("val_r2", 0.0), ("val_r2_low", -0.01), ("val_r2_high", 0.01)):
        pretrain[column] = noise + shift
    pretrain["train_loss"] = pretrain["first_loss"] + rng.normal(0, 0.01, len(pretrain))
    slope = content["spectral"]["metric"].eq("beta") & content["spectral"]["split"].eq("all")
    content["spectral"].loc[slope, "value"] = 0.0
    table = truths(study, content, tmp_path)
    for name in ("planted_beta", "planted_hurst", "order_beta", "order_hurst", "known_slope_beta", "sex_connectome"):
        assert not table.loc[name, "passed"], name
    for name in ("sex_encoder", "identity_encoder", "reconstruction", "loss_falls", "trained_swift_v1"):
        assert not table.loc[name, "passed"], name
    assert print_truths(tmp_path / "truths.parquet") == 1
    assert "NOT RECOVERED" in capsys.readouterr().out


def _one_loss_rises(content: Tables) -> None:
    content["pretrain"].loc[3, "train_loss"] = content["pretrain"].loc[3, "first_loss"] + 0.01


def _one_cell_below_zero(content: Tables) -> None:
    content["pretrain"].loc[0, "val_r2_low"] = -0.001


def _one_cell_diverged(content: Tables) -> None:
    content["pretrain"].loc[3, "status"] = "diverged"


def _one_cell_missing(content: Tables) -> None:
    content["pretrain"] = content["pretrain"].drop(index=3)


def _leak(content: Tables) -> None:
    leaks = content["benchmark"]["split"].eq("permuted") & content["benchmark"]["system"].eq("connectome_logistic")
    content["benchmark"].loc[leaks, ["value", "low", "high"]] = [0.75, 0.6, 0.9]


def _coloured_noise(content: Tables) -> None:
    spectral = content["spectral"]
    spectral.loc[spectral["system"].eq("white_noise") & spectral["metric"].eq("beta"), "value"] = 0.4


def _no_encoder_scores(content: Tables) -> None:
    content["probe"] = content["probe"][content["probe"]["architecture"] == ""]


@pytest.mark.parametrize(
    ("fault", "truth"),
    [
        (_one_loss_rises, "loss_falls"),
        (_one_cell_below_zero, "reconstruction"),
        (_one_cell_diverged, "cells_completed"),
        (_one_cell_missing, "cells_completed"),
        (_leak, "permuted_sex_connectome"),
        (_coloured_noise, "white_noise_beta"),
        (_no_encoder_scores, "sex_encoder"),
    ],
)
def test_each_fault_fails_its_truth(
    study: Study, content: Tables, tmp_path: Path, fault: Callable[[Tables], None], truth: str
) -> None:
    broken = {name: frame.copy() for name, frame in content.items()}
    fault(broken)
    table = truths(study, broken, tmp_path)
    assert not table.loc[truth, "passed"]


def test_a_cohort_without_its_record_is_bad_input(study: Study, content: Tables, tmp_path: Path) -> None:
    lost = study.datasets["simulated"].model_copy(update={"path": str(tmp_path / "nowhere")})
    study = study.model_copy(update={"datasets": {"simulated": lost}})
    with pytest.raises(InputError, match=r"truth\.tsv"):
        truths(study, content, tmp_path)
