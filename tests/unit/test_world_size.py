"""A cell of two processes is the cell of one to rounding, and of two processes again bitwise, interrupted or not.

The cells of two processes are trained by `rank_cells.py`.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pandas as pd
import pytest
import torch
from rank_cells import CELL, WAYS, study_of
from small_training import make_pool, run
from spawned import started

from pipeline.artefact import read_json, read_table
from pipeline.errors import InputError
from pipeline.pretrain.engine.checkpoint import read_tensors

pytestmark = pytest.mark.xdist_group("distributed")
ROUNDING = 1e-6
RESULT = "encoder.safetensors"


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_pool(tmp_path_factory.mktemp("cohort"))


@pytest.fixture(scope="module")
def two(cohort: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Cells of two processes, by the way in which they were trained."""
    folder = tmp_path_factory.mktemp("two")
    ranks = started(2, [str(Path(__file__).parent / "rank_cells.py"), str(cohort), str(folder)], grace_s=10)
    assert ranks.wait(timeout=300) == 0
    return folder


@pytest.fixture(scope="module", params=WAYS)
def way(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def one(way: str, cohort: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same cell of one process."""
    folder = tmp_path_factory.mktemp("one")
    run(cohort, study_of(way), CELL, folder)
    return folder


def trained(cell: Path) -> dict[str, torch.Tensor]:
    """Weights of a cell without the biases of keys.

    The loss does not depend on those: they add the same to all that a query attends to. Their gradient is rounding
    noise, which Adam scales up to steps of another size in each run.
    """
    tensors, _ = read_tensors(cell / RESULT)
    for name, value in tensors.items():
        if name.endswith("qkv.bias"):
            query, _, values = value.chunk(3)
            tensors[name] = torch.cat([query, values])
    return tensors


def apart(one: Path, other: Path) -> float:
    """Largest difference between the weights of two cells."""
    left, right = trained(one), trained(other)
    assert left.keys() == right.keys()
    return max((left[name] - right[name]).abs().max().item() for name in left)


def course(cell: Path) -> pd.DataFrame:
    columns = ["branch", "step", "loss", "grad_norm", "learning_rate", "tokens", "val_loss", "val_r2"]
    return read_table(cell / "history.parquet")[columns]


def test_two_processes_learn_what_one_learns(one, two, way):
    assert apart(one, two / way / "through") < ROUNDING
    pd.testing.assert_frame_equal(course(one), course(two / way / "through"), rtol=ROUNDING, atol=0)


def test_a_cell_says_how_many_processes_trained_it(one, two, way):
    assert read_json(one / "summary.json")["processes"] == 1
    assert read_json(two / way / "through/summary.json")["processes"] == 2


def test_an_interruption_leaves_no_trace_at_the_same_number_of_processes(two, way):
    """A signal to the second process alone stops both after the same step; then they go on to the same bits."""
    reasons = {(two / way / f"{rank}.reason").read_text() for rank in range(2)}
    assert len(reasons) == 1
    assert "stopped by a signal after step 4" in reasons.pop()
    assert (two / way / "resumed" / RESULT).read_bytes() == (two / way / "through" / RESULT).read_bytes()


def test_another_number_of_processes_is_refused_with_the_reason(cohort, two, way, tmp_path):
    shutil.copytree(two / way / "stopped", tmp_path / "cell")
    with pytest.raises(InputError, match=r"processes: 2; expected.*processes: 1.*not bitwise equal.*any_world_size"):
        run(cohort, study_of(way), CELL, tmp_path / "cell")


def test_another_number_of_processes_agrees_where_it_is_allowed(cohort, one, two, way, tmp_path):
    shutil.copytree(two / way / "stopped", tmp_path / "cell")
    run(cohort, study_of(way, any_world_size=True), CELL, tmp_path / "cell")
    assert apart(one, tmp_path / "cell") < ROUNDING
    pd.testing.assert_frame_equal(course(one), course(tmp_path / "cell"), rtol=ROUNDING, atol=0)
