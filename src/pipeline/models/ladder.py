"""The size ladder of both SwiFT families: one dial, the width, from which blocks and heads follow."""

from __future__ import annotations

from typing import TypedDict

WIDTHS = (24, 36, 60, 96, 144, 192, 372, 384, 744)
HEADS, HEAD_CHANNELS = 6, 6  # heads of the first stage; channels that a head has at least: two for each axis of space
FULL_WIDTH = 36  # from here on the third stage has 18 blocks, below 2


class Rung(TypedDict):
    """Arguments of an encoder that its width decides."""

    width: int
    depths: tuple[int, ...]
    heads: tuple[int, ...]


def ladder(width: int) -> Rung:
    """Blocks and heads of a width.

    From width 36 on a model has 2, 2, 18, 2 blocks and 6, 12, 24, 48 heads, as published: wider models have wider
    heads. Below, the third stage has two blocks, and the first as many heads as have 6 channels each, the
    least that rotary positions along three axes can turn.

    Raises
    ------
    ValueError : the width is no multiple of 6, or above 36 of 12, so that heads have no even number of channels.
    """
    heads = min(HEADS, width // HEAD_CHANNELS)
    if heads < 1 or width % (2 * heads):
        raise ValueError(f"width {width}, where the ladder knows 6, 12, ... 36, 48, 60, ...")
    depths = (2, 2, 18, 2) if width >= FULL_WIDTH else (2, 2, 2, 2)
    return {"width": width, "depths": depths, "heads": (heads, 2 * heads, 4 * heads, 8 * heads)}
