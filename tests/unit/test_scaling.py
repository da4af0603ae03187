"""Scaling fits against planted laws: parameters, coverage, held-out sizes, few cells, and the table of the stage."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.artefact import read_table, write_table
from pipeline.config import load_study
from pipeline.grid import all_cells
from pipeline.scaling import fit_power_law, fit_surface, predict_largest
from pipeline.scaling.collapse import larger_worse, rises
from pipeline.scaling.stage import fit_scaling
from pipeline.tables import PRETRAIN_SCHEMA, cell_columns

DEMO = Path(__file__).resolve().parents[2] / "config/demo.yaml"
SIZES = np.repeat(np.geomspace(1.5e6, 2.64e8, 7), 3)

LADDER = np.repeat(np.geomspace(7e3, 1e5, 4), 2)


def law(x, irreducible=0.6, amplitude=30.0, exponent=0.3):
    return irreducible + amplitude * x**-exponent


def noisy(y, sd, rng):
    return y * np.exp(sd * rng.standard_normal(np.shape(y)))


@settings(max_examples=20, deadline=None)
@given(
    irreducible=st.floats(0.1, 2.0), share=st.floats(0.1, 2.0), exponent=st.floats(0.15, 0.8), scale=st.floats(-3, 12)
)
def test_a_law_without_noise_is_found_whatever_its_units(irreducible, share, exponent, scale):
    x = 10**scale * np.geomspace(1, 200, 7)
    amplitude = share * irreducible * x[0] ** exponent  # so much of the loss can still be reduced at the smallest size
    found = fit_power_law(x, law(x, irreducible, amplitude, exponent), bootstrap=0)
    assert found.exponent.value == pytest.approx(exponent, rel=0.01)
    assert found.irreducible.value == pytest.approx(irreducible, rel=0.01)
    assert found.amplitude.value == pytest.approx(amplitude, rel=0.15)  # a power of ten per unit of the exponent
    np.testing.assert_allclose(found.predict(10 * x), law(10 * x, irreducible, amplitude, exponent), rtol=0.005)


@pytest.mark.parametrize(("sizes", "sd"), [(SIZES, 0.005), (SIZES, 0.02), (LADDER, 0.003)])
def test_intervals_cover_the_planted_law(sizes, sd):
    rng, covered, simulations = np.random.default_rng(0), [], 30
    for seed in range(simulations):
        y = noisy(law(sizes), sd, rng)
        found = fit_power_law(sizes, y, bootstrap=150, confidence=0.9, rng=np.random.default_rng(seed))
        pairs = ((found.exponent, 0.3), (found.irreducible, 0.6), (found.amplitude, 30.0))
        covered += [interval.low <= true <= interval.high for interval, true in pairs]
    assert 0.75 < np.mean(covered) <= 0.985  # 90 % nominal; 30 simulations have a standard error of 5 %


def test_one_bad_cell_does_not_bend_the_law():
    y = noisy(law(SIZES), 0.003, np.random.default_rng(1))
    y[10] *= 1.3
    assert fit_power_law(SIZES, y, bootstrap=0).exponent.value == pytest.approx(0.3, abs=0.03)


def test_the_same_seed_gives_the_same_interval():
    y = noisy(law(SIZES), 0.01, np.random.default_rng(2))
    first, second = (fit_power_law(SIZES, y, bootstrap=50, rng=np.random.default_rng(3)) for _ in range(2))
    assert first.exponent == second.exponent
    assert first.predict_interval(1e9) == second.predict_interval(1e9)


def test_cells_of_one_group_are_one_observation():
    rng = np.random.default_rng(4)
    draws = np.tile([0, 1, 2], 7)
    y = law(SIZES) * np.exp(0.02 * rng.standard_normal(3)[draws]) * np.exp(0.001 * rng.standard_normal(21))
    alone, together = (fit_power_law(SIZES, y, groups, rng=np.random.default_rng(0)) for groups in (None, draws))
    assert not np.isfinite(together.irreducible.high)  # three draws cannot pay for three parameters
    assert np.isfinite(alone.irreducible.high)


def test_few_sizes_say_that_they_say_nothing():
    three = fit_power_law(SIZES[::9], law(SIZES[::9]), bootstrap=100)
    assert not three.identified
    flat = fit_power_law(SIZES, noisy(np.ones(21), 0.01, np.random.default_rng(5)), bootstrap=200)
    assert not flat.identified
    assert fit_power_law(SIZES, noisy(law(SIZES), 0.003, np.random.default_rng(6)), bootstrap=200).identified
    with pytest.raises(ValueError, match="at least 2"):
        fit_power_law([1e6], [0.5])
    with pytest.raises(ValueError, match="positive finite"):
        fit_power_law([1e6, 1e7], [0.5, np.nan])


@pytest.mark.parametrize(
    ("truth", "best"),
    [
        (lambda x: law(x), "saturating"),
        (lambda x: 30 * x**-0.3, "power"),
        (lambda x: np.where(x < 2e7, (x / 2e7) ** -0.3, (x / 2e7) ** 0.1), "broken"),
        (lambda x: 0.8 + 0 * x, "constant"),
    ],
)
def test_the_largest_size_is_predicted_best_by_the_form_that_made_it(truth, best):
    found = predict_largest(SIZES, truth(SIZES))
    assert found[best].x == pytest.approx(2.64e8)
    assert found[best].observed == pytest.approx(truth(SIZES[-1:])[0])
    assert abs(found[best].error) < 0.02
    assert abs(found[best].error) <= min(abs(form.error) for form in found.values()) + 1e-3


def test_the_surface_and_its_exchange_rate_are_recovered():
    subjects, frames = (grid.ravel() for grid in np.meshgrid([50, 100, 200, 400, 800], [75, 150, 300, 600, 1200]))
    y = noisy(0.5 + 3 * subjects**-0.3 + 4 * frames**-0.4, 0.002, np.random.default_rng(7))
    surface = fit_surface(subjects, frames, y, bootstrap=300)
    truth = {"exponent_subjects": 0.3, "exponent_frames": 0.4, "irreducible": 0.5}
    for name, planted in truth.items():
        interval = getattr(surface, name)
        assert interval.low <= planted <= interval.high
        assert interval.value == pytest.approx(planted, rel=0.2)
    assert surface.identified
    gained = 3 * 200**-0.3 * (1 - 2**-0.3)
    frames_needed = ((4 * 300**-0.4 - gained) / 4) ** (-1 / 0.4)
    rate = surface.exchange_rate(200, 300)
    assert rate.value == pytest.approx(frames_needed / 300, rel=0.1)
    assert rate.low <= frames_needed / 300 <= rate.high
    # That many frames do give the loss of twice the people.
    assert surface.predict(200, 300 * rate.value) == pytest.approx(surface.predict(400, 300), rel=1e-6)


def test_people_can_be_beyond_any_price_in_frames():
    subjects, frames = (grid.ravel() for grid in np.meshgrid([10, 20, 40, 80], [300, 600, 1200, 2400]))
    y = 0.5 + 3 * subjects**-0.5 + 0.5 * frames**-0.5
    assert fit_surface(subjects, frames, y, bootstrap=0).exchange_rate(20, 1200).value == np.inf


def test_a_diagonal_alone_is_refused():
    with pytest.raises(ValueError, match="one line of N and T"):
        fit_surface([1000, 500, 250], [300, 600, 1200], [0.7, 0.72, 0.75])


def test_a_wall_is_told_from_noise():
    def cells(losses):
        rows = [(size, loss) for size, seeds in losses.items() for loss in seeds]
        return pd.DataFrame(rows, columns=["parameters", "unexplained"])

    wall = cells({1e6: [0.80, 0.81], 1e7: [0.70, 0.71], 1e8: [0.90, 0.91]})
    assert larger_worse(wall, 0.95).low > 0
    assert rises(wall) == 1
    smooth = cells({1e6: [0.80, 0.81], 1e7: [0.70, 0.71], 1e8: [0.65, 0.66]})
    assert larger_worse(smooth, 0.95).high < 0
    assert rises(smooth) == 0
    unsure = larger_worse(cells({1e6: [0.8, 0.9], 1e7: [0.7, 0.8], 1e8: [0.72, 0.81]}), 0.95)
    assert unsure.low < 0 < unsure.high
    assert np.isnan(larger_worse(cells({1e6: [0.8], 1e7: [0.7]}), 0.95).low)


# --- the stage -----------------------------------------------------------------------------------------------------


def write_pretrain(study, path, spoil=lambda _, row: row):
    rng, rows = np.random.default_rng(0), []
    blank = {field.name: 0 if str(field.type) in ("int64", "double", "bool") else "" for field in PRETRAIN_SCHEMA}
    for cell in all_cells(study):
        parameters = 200 * int(cell.size[1:]) ** 2
        unexplained = 0.4 + 7 * parameters**-0.4 + 0.4 * cell.subjects**-0.3 + 0.4 * cell.frames**-0.4
        row = {
            **blank,
            **cell_columns(cell),
            "status": "completed",
            "parameters": parameters,
            "train_flops": 1e6 * parameters,
            "unique_frames": 2 * cell.subjects * cell.frames,
            "val_r2": 1 - noisy(unexplained, 0.004, rng),
            "simulated": True,
            "cell_hash": cell.path,
        }
        rows.append(spoil(cell, row))
    frame = pd.DataFrame([row for row in rows if row]).astype({"val_r2": float, "simulated": bool})
    floats = {field.name: float for field in PRETRAIN_SCHEMA if str(field.type) == "double"}
    write_table(path, frame.astype(floats), PRETRAIN_SCHEMA)


@pytest.fixture
def study():
    return load_study(DEMO, {"scaling": {"bootstrap": 100}})


def test_the_stage_writes_every_fit_with_n_and_an_honest_note(study, tmp_path):
    write_pretrain(study, tmp_path / "pretrain.parquet")
    fit_scaling(study, tmp_path / "pretrain.parquet", tmp_path / "scaling.parquet")
    table = read_table(tmp_path / "scaling.parquet")
    fits = {"loss_parameters", "loss_flops", "loss_frames", "surface", "collapse"}
    assert {tuple(pair) for pair in table[["architecture", "fit"]].to_numpy()} == {
        (architecture, fit) for architecture in study.architectures for fit in fits
    }
    assert table["note"].str.startswith("trend").all()  # four sizes and two seeds are no law
    rows = table[(table["fit"] == "loss_parameters") & (table["architecture"] == "swift_v1")].set_index("statistic")
    assert rows.loc["exponent", "low"] < 0.4 < rows.loc["exponent", "high"]
    assert rows.loc["exponent", "n"] == 8
    held_out = rows.loc["heldout_predicted"]
    assert held_out["value"] == pytest.approx(rows.loc["heldout_observed", "value"], rel=0.03)
    assert rows.loc["heldout_error_saturating", "value"] == pytest.approx(
        np.log(held_out["value"] / rows.loc["heldout_observed", "value"]), abs=0.01
    )
    curve = rows[rows.index.str.startswith("predicted@")]
    assert len(curve) == 12
    assert (curve["low"] <= curve["value"]).all()
    assert (np.diff(curve["value"]) < 0).all()

    fit_scaling(study, tmp_path / "pretrain.parquet", tmp_path / "again.parquet")
    assert table.equals(read_table(tmp_path / "again.parquet"))


def test_the_surface_counts_conditions_of_one_arm(tmp_path):
    """Cells of another arm lie beside the diagonal at the same N and T: they must not bend its surface."""
    whole = load_study(DEMO, {"scaling": {"bootstrap": 20}})
    blocks = [cells.model_dump(mode="json") for cells in whole.grid.off_diagonal]
    twice = {"off_diagonal": [*blocks, {**blocks[0], "arm": "other"}]}
    with_arm = load_study(DEMO, {"scaling": {"bootstrap": 20}, "grid": twice})
    found = []
    for name, study in (("one", whole), ("two", with_arm)):

        def spoil(cell, row):
            return {**row, "val_r2": 0.01} if cell.variant == "other" else row

        write_pretrain(study, tmp_path / f"{name}.parquet", spoil)
        fit_scaling(study, tmp_path / f"{name}.parquet", tmp_path / f"{name}-fits.parquet")
        table = read_table(tmp_path / f"{name}-fits.parquet")
        found.append(table[table["fit"] == "surface"])
    for surface in found:
        assert surface["note"].str.startswith("trend: 8 conditions").all(), surface["note"].unique()
        assert (surface["n"] == 11).all()


def test_failed_and_missing_cells_are_counted_and_left_out(study, tmp_path):
    def spoil(cell, row):
        if cell.architecture == "swift_v1" and cell.size == "w24":
            return {**row, "status": "diverged", "val_r2": np.nan}
        return row if cell.architecture == "swift_v1" or cell.size == "w12" else None

    write_pretrain(study, tmp_path / "pretrain.parquet", spoil)
    fit_scaling(study, tmp_path / "pretrain.parquet", tmp_path / "scaling.parquet")
    table = read_table(tmp_path / "scaling.parquet").set_index(["architecture", "fit", "statistic"])
    assert table.loc[("swift_v1", "collapse", "diverged"), "value"] == 2
    assert table.loc[("swift_v1", "loss_parameters", "exponent"), "n"] == 6
    assert "too few sizes" in table.loc[("swift_v2", "loss_parameters", "cells"), "note"]
    assert "not identified" in table.loc[("swift_v1", "loss_parameters", "exponent"), "note"]
