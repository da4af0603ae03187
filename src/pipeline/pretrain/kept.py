"""Finished cells whose files lie beside their state: published again without training, and found without torch."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path

from pipeline.artefact import digest, read_json, sha256_file
from pipeline.config import Study
from pipeline.grid import RANDOM, Cell, sweep_rate
from pipeline.layout import Layout
from pipeline.stages import stage_settings, stage_version

Inputs = Mapping[str, str | Path | None]


def inputs_of(layout: Layout, cell: Cell) -> dict[str, str | Path | None]:
    """Files that a cell is trained from."""
    manifests = layout.store(cell.architecture, "pretrain")
    rate = layout.learning_rate(cell.architecture)
    return with_manifests(cell, manifests, layout.draws, layout.evaluation_set, rate)


def with_manifests(
    cell: Cell,
    manifests: Mapping[str, str | Path],
    draws: str | Path,
    evaluation_set: str | Path,
    rate: str | Path | None,
) -> dict[str, str | Path | None]:
    """The same by name; cells of the sweep bring their own rate, and untrained ones need none."""
    chosen = None if cell.variant == RANDOM or sweep_rate(cell) is not None else rate
    return {**manifests, "draws": draws, "evaluation_set": evaluation_set, "learning_rate": chosen}


def source_of(study: Study, cell: Cell, inputs: Inputs) -> str:
    """Stands for all that a finished cell depends on, as the workflow sees it: version, settings, bytes of inputs."""
    files = {name: _checksum(Path(path)) for name, path in inputs.items() if path is not None}
    return digest([stage_version("pretrain"), stage_settings(study, "pretrain", cell=cell), files])


@cache
def _checksum(path: Path) -> str | None:
    return sha256_file(path) if path.is_file() else None


def publish_kept(state_root: Path, source: str, output: str | Path) -> bool:
    """Put the files of a finished cell into `output`; False where none of this source is kept, or it is damaged."""
    for record in sorted(state_root.glob("*/result/result.json")):
        kept = read_json(record)
        if kept.get("source") == source:
            from pipeline.pretrain.engine.checkpoint import Store

            return Store(record.parents[1], {}, scored_by=kept["scored_by"]).published(output)
    return False
