"""Train a cell in this process: a laptop's way, and what each process of a SLURM job does."""

from __future__ import annotations

import os
from pathlib import Path


def use_threads(count: int) -> None:
    """Threads of linear algebra; call before numpy and torch are imported, where OpenMP reads it once."""
    os.environ["OMP_NUM_THREADS"] = str(count)
    import torch

    torch.set_num_threads(count)


def train_here(config: Path, cell: str, output: Path, threads: int) -> None:
    """Pretrain one cell of the study of `config`; results lie beside `output`, training state where the layout says.

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
        state_root=layout.cell("pretrain", trained) / "state",
        flatmap_folder=layout.flatmap.parent,
    )
