"""Train a cell in this process: a laptop's way, and what each process of a SLURM job does."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import NoReturn

from pipeline.errors import Unfinished
from pipeline.pretrain.engine.processes import SIGNALS


def use_threads(count: int) -> None:
    """Threads of linear algebra; call before numpy and torch are imported, where OpenMP reads it once."""
    os.environ["OMP_NUM_THREADS"] = str(count)
    import torch

    torch.set_num_threads(count)


def stop_by_signal() -> None:
    """Signals before and after the training itself, which has its own way with them, end this process in good order."""

    def stop(number: int, _: object) -> NoReturn:
        raise Unfinished(f"stopped by {signal.Signals(number).name} before or after training.")

    for number in SIGNALS:
        signal.signal(number, stop)


def train_here(config: Path, cell: str, output: Path, threads: int) -> None:
    """Pretrain one cell of the study of `config`; results lie beside `output`, training state in `state/` beside it.

    Raises
    ------
    InputError : the configuration, the cell or its data are wrong.
    Unfinished : a signal came, or somebody else trains the cell; the same call goes on.
    """
    use_threads(threads)
    from pipeline import grid
    from pipeline.config import load_study
    from pipeline.layout import Layout
    from pipeline.pretrain.stage import run_cell

    study = load_study(config)
    layout, trained = Layout(study), grid.require_cell(study, cell)
    run_cell(
        study,
        trained,
        template_folder=layout.template,
        manifests=layout.store(trained.architecture, "pretrain"),
        draws=layout.draws,
        evaluation_set=layout.evaluation_set,
        learning_rate_file=layout.learning_rate(trained.architecture),
        output_folder=output.parent,
        state_root=output.parent / "state",
        flatmap_folder=layout.flatmap.parent,
    )
