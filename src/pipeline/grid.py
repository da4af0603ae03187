"""Cells of the grid: which there are, and a cell <-> its slug <-> its path."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import PurePosixPath
from typing import Literal, get_args

from pipeline.config import SLUG_PATTERN, Cells, EvaluatedBlock, Study
from pipeline.errors import InputError, nearest

Block = Literal[EvaluatedBlock, "learning_rate"]
MAIN, RANDOM = "main", "random"

_PATH = re.compile(
    rf"(?P<architecture>{SLUG_PATTERN})/(?P<size>{SLUG_PATTERN})/N(?P<subjects>\d+)-T(?P<frames>\d+)"
    rf"/draw(?P<draw>\d+)-(?P<variant>{SLUG_PATTERN})/seed(?P<seed>\d+)"
)


@dataclass(frozen=True, order=True)
class Cell:
    """One encoder: what it is, whom and how long it saw, and its seed."""

    architecture: str
    size: str
    subjects: int
    frames: int
    draw: int = 0
    variant: str = MAIN
    seed: int = 0

    @property
    def path(self) -> str:
        """Folder of the cell, the same under pretrain/, probe/, benchmark/ and spectral/."""
        run = f"N{self.subjects}-T{self.frames}/draw{self.draw}-{self.variant}/seed{self.seed}"
        return str(PurePosixPath(self.architecture, self.size, run))

    @classmethod
    def parse(cls, path: str) -> Cell:
        """The cell of a path; InputError where it is none."""
        match = _PATH.fullmatch(path)
        if not match:
            form = "<architecture>/<size>/N<n>-T<t>/draw<d>-<variant>/seed<s>"
            raise InputError("--cell", f"'{path}'", form, "`pipeline cells` lists the cells of a study.")
        text = match.groupdict()
        whole = {name: int(text.pop(name)) for name in ("subjects", "frames", "draw", "seed")}
        return cls(**text, **whole)  # type: ignore[arg-type]


def sweep_variant(rate: float) -> str:
    """Variant of a learning-rate cell: `lr-3e-03`."""
    return f"lr-{rate:.0e}"


def sweep_rate(cell: Cell) -> float | None:
    """The learning rate that a sweep cell tries; None for any other cell."""
    return float(cell.variant.removeprefix("lr-")) if cell.variant.startswith("lr-") else None


def block_cells(study: Study, block: Block) -> list[Cell]:
    """Cells of one block, in the order of the configuration."""
    if block == "learning_rate":
        return list(_sweep_cells(study))
    blocks: tuple[Cells, ...] = getattr(study.grid, block)
    random = RANDOM if block == "random_weights" else None
    return list(dict.fromkeys(cell for cells in blocks for cell in _product(study, cells, random or cells.arm)))


def all_cells(study: Study) -> list[Cell]:
    """Every cell of the study once; a cell may serve several blocks."""
    return list(dict.fromkeys(cell for block in get_args(Block) for cell in block_cells(study, block)))


def evaluated_cells(study: Study) -> list[Cell]:
    """Cells that are probed, benchmarked and analysed: all but the learning-rate sweep."""
    return [cell for cell in all_cells(study) if sweep_rate(cell) is None]


def cell_datasets(study: Study, cell: Cell) -> list[str]:
    """Data sets whose people a cell is pretrained on."""
    everyone = study.with_role("pretrain")
    for block in get_args(EvaluatedBlock):
        for cells in getattr(study.grid, block):
            variant = RANDOM if block == "random_weights" else cells.arm
            if cells.datasets and cell in _product(study, cells, variant):
                return [name for name in everyone if name in cells.datasets]
    return everyone


def largest_cells(study: Study) -> list[Cell]:
    """The last cell of the scaling block for each architecture: they alone pay for a second, time-shuffled encoding."""
    return list({cell.architecture: cell for cell in block_cells(study, "scaling")}.values())


def reconstructs(study: Study, cell: Cell) -> bool:
    """Whether a cell lies in one of the blocks whose encoders reconstruct runs for their spectra."""
    return any(cell in block_cells(study, block) for block in study.spectral.blocks)


def require_cell(study: Study, path: str) -> Cell:
    """The cell of a path, or an InputError with the nearest one of the grid."""
    cell = Cell.parse(path)
    known = all_cells(study)
    if cell not in known:
        hint = nearest(path, [other.path for other in known])
        raise InputError("--cell", f"'{path}'", f"one of the {len(known)} cells of '{study.name}'", hint)
    return cell


def _product(study: Study, block: Cells, variant: str) -> Iterator[Cell]:
    for name in block.architectures or study.architectures:
        sizes = block.sizes or tuple(study.architectures[name].sizes)
        for size, (subjects, frames), draw, seed in product(sizes, block.subjects_frames, block.draws, block.seeds):
            yield Cell(name, size, subjects, frames, draw, variant, seed)


def _sweep_cells(study: Study) -> Iterator[Cell]:
    sweep = study.grid.learning_rate
    for name, rate in product(study.architectures, sweep.rates):
        yield Cell(name, sweep.size, sweep.subjects, sweep.frames, 0, sweep_variant(rate), 0)
