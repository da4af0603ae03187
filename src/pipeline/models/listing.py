"""The table of `pipeline models`: every architecture at every size, counted on the meta device."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass

import torch

from pipeline.models import build, describe
from pipeline.models.cost import activation_bytes, count_flops


@dataclass(frozen=True)
class Counted:
    """One architecture at one size.

    Attributes
    ----------
    clip : shape of one input.
    parameters, trained_parameters : of the encoder; of it and what its objective adds (decoder, predictor or head).
    gflops : operations of encoding one clip, 10^9; a product and a sum are two.
    activations_mb : memory that training keeps a clip for the encoder's gradient, MB in float32.
    """

    name: str
    size: str
    input: str
    clip: tuple[int, ...]
    parameters: int
    trained_parameters: int
    gflops: float
    activations_mb: float
    objective: str
    published: str
    source: str

    def as_dict(self) -> dict[str, object]:
        """Plain values."""
        return asdict(self)


def count_all(names: Iterable[str]) -> Iterator[Counted]:
    """Every size of these architectures."""
    for name in names:
        for size in describe(name).sizes:
            yield count(name, size)


def count(name: str, size: str) -> Counted:
    """One size of an architecture."""
    description = describe(name)
    with torch.device("meta"):
        encoder = build(name, dict(description.sizes[size]))
        learner = description.learner(encoder)
        clip = torch.empty(1, *encoder.input_shape)
    encoder.eval()
    with torch.no_grad():
        flops = count_flops(encoder, lambda: encoder(clip))
    return Counted(
        name=name,
        size=size,
        input=description.input,
        clip=encoder.input_shape,
        parameters=sum(value.numel() for value in encoder.parameters()),
        trained_parameters=sum(value.numel() for value in learner.parameters() if value.requires_grad),
        gflops=flops.forward / 1e9,
        activations_mb=activation_bytes(encoder, lambda: encoder(clip)) / 1e6,
        objective=description.objective,
        published=description.published.get(size, ""),
        source=description.source,
    )


HEADINGS = ("name", "size", "input", "clip", "parameters", "trained", "GFLOPs", "MB", "objective")
LEGEND = """
parameters: of the encoder; trained: with what its objective adds (decoder, predictor or head).
GFLOPs: 10^9 operations of encoding one clip, forward, a product and a sum being two.
MB: what the gradient of one clip keeps, in float32, with fused attention."""


def as_table(rows: Iterable[Counted]) -> Iterator[str]:
    """Lines of text, columns aligned."""
    cells = [HEADINGS, *(_cells(row) for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for line in cells:
        parts = (
            text.rjust(width) if 4 <= column <= 7 else text.ljust(width)
            for column, (text, width) in enumerate(zip(line, widths, strict=True))
        )
        yield "  ".join(parts).rstrip()


def _cells(row: Counted) -> tuple[str, ...]:
    clip = " x ".join(map(str, row.clip))
    gflops = f"{row.gflops:,.1f}" if row.gflops >= 1 else f"{row.gflops:.3f}"
    counts = f"{row.parameters:,}", f"{row.trained_parameters:,}", gflops, f"{row.activations_mb:,.0f}"
    return row.name, row.size, row.input, clip, *counts, row.objective
