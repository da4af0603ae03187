"""The 4D Swin transformer of the scaling ladder: SwiFT v1's blocks at the depths and heads of SwiFT v2.

The primary arm has patches of one frame, as SwiFT v2 does, and the mask ratio of the study. The sizes whose names end
in "-published" are the published arm: patches of two frames and, in pretraining, a mask ratio of 0.6 (SwiFT v2: 0.8).
Features of that arm have one time for two frames.

Source: CCN 2025 abstract and poster, unified encoder (ver9); blocks of Kim et al. (2023), SwiFT.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pipeline.models.description import Description
from pipeline.models.ladder import WIDTHS, ladder
from pipeline.models.learners.reconstruction import MaskedReconstruction
from pipeline.models.mup import attention_scales
from pipeline.models.swift_v1 import SwiftV1

PLACES = (16, 16, 16)  # patches of 6 voxels in a box of 96
PUBLISHED_WIDTHS = (36, 96, 192, 384, 744)
PUBLISHED_PATCH = (6, 6, 6, 2)


class Swift4D(SwiftV1):
    """The encoder.

    Parameters
    ----------
    base_width : where muP's learning rate was found: scores are scaled as usual there, and by 1 / channels
        of a head elsewhere (`mup.attention_scale`); None: as usual everywhere.
    base_heads : of each stage at the base width; None: as many as `heads`.
    others : see `SwiftV1`.
    """

    def __init__(
        self,
        width: int,
        depths: Sequence[int],
        heads: Sequence[int],
        base_width: int | None = None,
        base_heads: Sequence[int] | None = None,
        **others: Any,
    ) -> None:
        scales = attention_scales(width, heads, base_width, base_heads)
        super().__init__(width, depths, heads, attention_scale=scales, **others)


def _sizes() -> dict[str, dict[str, Any]]:
    """Primary and published arm, by width."""
    primary: dict[int, dict[str, Any]] = {width: {**ladder(width), "grid": PLACES} for width in WIDTHS}
    sizes: dict[str, dict[str, Any]] = {}
    for width, spec in primary.items():
        sizes[f"w{width}"] = spec
        if width in PUBLISHED_WIDTHS:
            sizes[f"w{width}-published"] = {**spec, "patch": PUBLISHED_PATCH}
    return sizes


DESCRIPTION = Description(
    name="swift_4d",
    input="voxels",
    objective="masked reconstruction",
    mixing="4D shifted windows",
    source="CCN 2025 abstract and poster, unified encoder (ver9)",
    build=Swift4D,
    sizes=_sizes(),
    default="w36",
    learner=MaskedReconstruction,
    published={
        "w36-published": "about 5 M, encoder; its depths and width give 7.33 M",
        "w96-published": "about 51 M, encoder",
        "w192-published": "about 202 M, encoder",
        "w384-published": "about 806 M, encoder",
        "w744-published": "about 3 B, encoder",
    },
    without_gradient={"norm.": "SwiFT v1 owns a final norm and never applies it"},
)
