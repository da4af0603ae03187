"""Cells and their paths."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline import grid
from pipeline.config import Study, load_study
from pipeline.errors import InputError
from pipeline.grid import Cell

REPOSITORY = Path(__file__).resolve().parents[2]
slugs = st.from_regex(r"[A-Za-z0-9_-]+", fullmatch=True)
counts = st.integers(0, 10**6)
cells = st.builds(Cell, slugs, slugs, counts, counts, counts, slugs, counts)


@pytest.fixture(scope="module")
def demo() -> Study:
    return load_study(REPOSITORY / "config/demo.yaml")


@given(cells)
def test_a_cell_and_its_path_are_one(cell: Cell) -> None:
    assert Cell.parse(cell.path) == cell


@given(st.text(max_size=60))
def test_any_other_text_is_refused_or_is_the_path_of_its_cell(text: str) -> None:
    try:
        cell = Cell.parse(text)
    except InputError:
        return
    assert Cell.parse(cell.path) == cell


def test_every_cell_is_listed_once(demo: Study) -> None:
    cells = grid.all_cells(demo)
    assert len(cells) == len(set(cells)) == len({cell.path for cell in cells})


def test_iso_token_cells_hold_the_same_frames(demo: Study) -> None:
    conditions = grid.block_cells(demo, "iso_tokens")
    assert len({(cell.subjects, cell.frames) for cell in conditions}) == 3
    assert len({cell.subjects * cell.frames for cell in conditions}) == 1


def test_off_diagonal_cells_break_the_bond_of_people_and_frames(demo: Study) -> None:
    diagonal = {cell.subjects * cell.frames for cell in grid.block_cells(demo, "iso_tokens")}
    assert all(cell.subjects * cell.frames not in diagonal for cell in grid.block_cells(demo, "off_diagonal"))


def test_sweep_cells_carry_their_rate_and_are_not_evaluated(demo: Study) -> None:
    sweep = grid.block_cells(demo, "learning_rate")
    assert {grid.sweep_rate(cell) for cell in sweep} == set(demo.grid.learning_rate.rates)
    assert not set(sweep) & set(grid.evaluated_cells(demo))


@given(st.floats(0, exclude_min=True, allow_infinity=False))
def test_the_path_of_a_sweep_cell_holds_its_rate_exactly(rate: float) -> None:
    cell = Cell("a", "w", 1, 1, variant=grid.sweep_variant(rate))
    assert grid.sweep_rate(Cell.parse(cell.path)) == rate


def test_rates_that_share_their_first_digit_are_cells_of_their_own() -> None:
    assert [grid.sweep_variant(rate) for rate in (1e-5, 0.001, 0.0012)] == ["lr-1e-05", "lr-0_001", "lr-0_0012"]


def test_an_unknown_cell_is_refused_with_the_nearest(demo: Study) -> None:
    with pytest.raises(InputError, match="Did you mean 'swift_v1/w12/N32-T160/draw0-main/seed1'"):
        grid.require_cell(demo, "swift_v1/w12/N32-T160/draw0-main/seed9")


def test_the_paper_names_the_data_sets_of_its_cells() -> None:
    paper = load_study(REPOSITORY / "config/config.yaml")
    assert grid.cell_datasets(paper, grid.block_cells(paper, "iso_tokens")[0]) == ["hcp"]
    assert grid.cell_datasets(paper, grid.block_cells(paper, "scaling")[0]) == ["ukb"]


def test_no_cell_of_the_paper_mixes_data_sets_of_different_repetition_times() -> None:
    paper = load_study(REPOSITORY / "config/config.yaml")
    assert {tuple(grid.cell_datasets(paper, cell)) for cell in grid.all_cells(paper)} == {("ukb",), ("hcp",)}


def test_the_largest_is_the_last_of_the_ladder_that_the_scaling_block_has() -> None:
    paper = load_study(REPOSITORY / "config/config.yaml")
    assert [(cell.size, cell.seed) for cell in grid.largest(paper, "swift_4d")] == [("w744", 0)]
    assert [(cell.size, cell.seed) for cell in grid.largest(paper, "swift_v2")] == [("w372", 0)]


def test_the_largest_does_not_hang_on_the_order_of_the_configuration() -> None:
    scaling = [{"sizes": ["w18", "w6"], "subjects_frames": [[32, 160]], "seeds": [0, 1]}]
    study = load_study(REPOSITORY / "config/demo.yaml", {"grid": {"scaling": scaling}})
    assert [(cell.size, cell.seed) for cell in grid.largest(study, "swift_v1")] == [("w18", 0), ("w18", 1)]
    shuffled = [cell for cell in grid.all_cells(study) if grid.encodes_shuffled(study, cell)]
    assert [(cell.architecture, cell.size, cell.seed) for cell in shuffled] == [
        ("swift_v1", "w18", 1),
        ("swift_v2", "w18", 1),
    ]
