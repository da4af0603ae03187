"""One dial for size: what follows from a width."""

from __future__ import annotations

import pytest

from pipeline.models.ladder import WIDTHS, ladder


@pytest.mark.parametrize("width", [36, 96, 192, 384, 744])
def test_published_widths_have_the_published_blocks_and_heads(width):
    assert ladder(width) == {"width": width, "depths": (2, 2, 18, 2), "heads": (6, 12, 24, 48)}


def test_small_widths_have_fewer_blocks_and_no_head_too_narrow_for_three_axes():
    assert ladder(24) == {"width": 24, "depths": (2, 2, 2, 2), "heads": (4, 8, 16, 32)}
    assert ladder(6) == {"width": 6, "depths": (2, 2, 2, 2), "heads": (1, 2, 4, 8)}


@pytest.mark.parametrize("width", [*WIDTHS, 6, 12, 18, 30, 48])
def test_heads_divide_every_stage_into_even_channels(width):
    rung = ladder(width)
    for stage, heads in enumerate(rung["heads"]):
        channels, rest = divmod(width * 2**stage, heads)
        assert (rest, channels % 2) == (0, 0)
        assert channels >= 6


@pytest.mark.parametrize("width", [-6, 0, 3, 15, 40, 42])
def test_other_widths_are_refused(width):
    with pytest.raises(ValueError, match=f"width {width}"):
        ladder(width)
