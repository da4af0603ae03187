"""Cells of the grid: which there are, and a cell <-> its slug <-> its path."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Literal, get_args

from pipeline.config import CELL_PATH, MAIN, SLUG_PATTERN, SWEEP, Cells, EvaluatedBlock, Study
from pipeline.config import RANDOM as RANDOM
from pipeline.errors import InputError, nearest

Block = Literal[EvaluatedBlock, "learning_rate"]

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
        return CELL_PATH.format(**vars(self))

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
    """Variant of a learning-rate cell, every digit of the rate in it: `lr-0_003`, `lr-1e-05`."""
    return SWEEP + repr(float(rate)).replace(".", "_").replace("+", "")


def sweep_rate(cell: Cell) -> float | None:
    """The learning rate that a sweep cell tries; None for any other cell."""
    if not cell.variant.startswith(SWEEP):
        return None
    return float(cell.variant.removeprefix(SWEEP).replace("_", "."))


def block_cells(study: Study, block: Block) -> list[Cell]:
    """Cells of one block, in the order of the configuration."""
    if block == "learning_rate":
        return list(_sweep_cells(study))
    parts = (cells.members(study.architectures, variant) for _, cells, variant in study.grid.parts([block]))
    return list(dict.fromkeys(Cell(**fields) for part in parts for fields in part))


def all_cells(study: Study) -> list[Cell]:
    """Every cell of the study once; a cell may serve several blocks."""
    return list(dict.fromkeys(cell for block in get_args(Block) for cell in block_cells(study, block)))


def evaluated_cells(study: Study) -> list[Cell]:
    """Cells that are probed, benchmarked and analysed: all but the learning-rate sweep."""
    return [cell for cell in all_cells(study) if sweep_rate(cell) is None]


def cell_datasets(study: Study, cell: Cell) -> list[str]:
    """Data sets whose people a cell is pretrained on; blocks that name the same cell agree on them."""
    if sweep_rate(cell) is not None:
        return study.pretrained_on(study.grid.learning_rate.datasets)
    naming = (cells.datasets for _, cells, variant in study.grid.parts() if _names(study, cells, variant, cell))
    return study.pretrained_on(next(naming, ()))


def largest(study: Study, architecture: str) -> list[Cell]:
    """Cells (seeds) of an architecture's largest size in the scaling block: the last of its ladder that is there."""
    cells = [cell for cell in block_cells(study, "scaling") if cell.architecture == architecture]
    there = {cell.size for cell in cells}
    last = [size for size in study.architectures[architecture].sizes if size in there][-1:]
    return [cell for cell in cells if cell.size in last]


def encodes_shuffled(study: Study, cell: Cell) -> bool:
    """Whether a cell is also given its frames in random order: the last of the largest, because that costs as much."""
    return cell in largest(study, cell.architecture)[-1:]


def first_of_largest(study: Study, cell: Cell, blocks: Sequence[EvaluatedBlock]) -> bool:
    """Whether a cell is the first (draw, seed) of its architecture's largest size in one of these blocks."""
    for block in blocks:
        cells = [other for other in block_cells(study, block) if other.architecture == cell.architecture]
        there = {other.size for other in cells}
        last = [size for size in study.architectures[cell.architecture].sizes if size in there][-1:]
        if cell in [other for other in cells if other.size in last][:1]:
            return True
    return False


def reconstructs(study: Study, cell: Cell) -> bool:
    """Whether a cell sees voxels and lies in one of the blocks whose encoders reconstruct runs for their spectra."""
    if study.architectures[cell.architecture].input != "voxels":
        return False
    parts = study.grid.parts(study.spectral.blocks)
    return any(_names(study, cells, variant, cell) for _, cells, variant in parts)


def require_cell(study: Study, path: str) -> Cell:
    """The cell of a path, or an InputError with the nearest one of the grid."""
    cell = Cell.parse(path)
    known = all_cells(study)
    if cell not in known:
        hint = nearest(path, [other.path for other in known])
        raise InputError("--cell", f"'{path}'", f"one of the {len(known)} cells of '{study.name}'", hint)
    return cell


def _names(study: Study, cells: Cells, variant: str, cell: Cell) -> bool:
    """Whether a part of a block holds a cell; asked once a cell and part, so nothing is listed for it."""
    return (
        cell.variant == variant
        and cell.architecture in (cells.architectures or study.architectures)
        and cell.size in (cells.sizes or study.architectures[cell.architecture].sizes)
        and (cell.subjects, cell.frames) in cells.subjects_frames
        and cell.draw in cells.draws
        and cell.seed in cells.seeds
    )


def _sweep_cells(study: Study) -> Iterator[Cell]:
    sweep = study.grid.learning_rate
    for name, rate in product(study.architectures, sweep.rates):
        yield Cell(name, study.swept_size(name), sweep.subjects, sweep.frames, 0, sweep_variant(rate), 0)
