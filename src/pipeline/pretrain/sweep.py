"""The stage that chooses an architecture's learning rate from the cells of its sweep."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from pipeline.artefact import provenance, read_json, write_json
from pipeline.config import Study
from pipeline.errors import InputError
from pipeline.pretrain.plan import width_of
from pipeline.stages import VERSIONS


def choose_learning_rate(study: Study, architecture: str, summaries: Iterable[str | Path], output: str | Path) -> None:
    """Write lr.json: the rate of the sweep cell with the lowest held-out loss, or the configured one without a sweep.

    Raises
    ------
    InputError : no cell of the sweep completed.
    """
    paths = [Path(path) for path in summaries]
    cells = [read_json(path) for path in paths]
    rates = [cell["learning_rate"] for cell in cells]
    losses = [cell["val_loss"] if cell["status"] == "completed" else None for cell in cells]
    ranked = sorted((loss, rate) for loss, rate in zip(losses, rates, strict=True) if loss is not None)
    if cells and not ranked:
        found = ", ".join(f"{rate:g}: {cell['status']}" for rate, cell in zip(rates, cells, strict=True))
        hint = "Add lower rates."
        raise InputError("grid.learning_rate.rates", found, f"a rate at which {architecture} trains", hint)
    chosen = {
        "architecture": architecture,
        "rate": ranked[0][1] if ranked else study.pretrain.learning_rate,
        "decided_by": "sweep" if ranked else "pretrain.learning_rate, because grid.learning_rate.rates is empty",
        "at_width": width_of(study, architecture, study.swept_size(architecture)),
        "rates": rates,
        "losses": losses,
        "statuses": [cell["status"] for cell in cells],
    }
    record = provenance("learning_rate", VERSIONS["learning_rate"], rates, {str(path.parent): path for path in paths})
    write_json(output, chosen | {"provenance": record})
