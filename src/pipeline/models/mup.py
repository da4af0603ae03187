"""Maximal update parametrisation: one learning rate, found at a small width, serves every width.

A base model of the same architecture, at the width where the rate was found, says which axes of a weight grow. Where a
linear map has r times as many columns (inputs) as that of the base, Adam needs:

    weight                               spread at the start   learning rate
    hidden map: rows and columns grow    base's / root r       base's / r
    output map: columns alone grow       base's / r            base's / r
    input map, bias, norm, scale,
    position, mask token                 base's                base's

and scores of attention divided by the channels of a head, not by their root (`attention_scale`), because queries and
keys come to agree in training. The maps to voxels are output maps; mergings and splittings are hidden ones.

Source: Yang et al. (2022), Tensor Programs V, Table 8 and section 4; growth is inferred from shapes as in its package.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import nn

TRANSPOSED = nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d  # their weights have inputs as rows
MAPS = nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d | TRANSPOSED


def attention_scale(channels: int, base_channels: int, heads: int, base_heads: int | None = None) -> float:
    """Factor of the scores: falls as 1 / channels of a head, and is the usual 1 / root of them for heads of the base.

    Parameters
    ----------
    channels, base_channels : of a stage, and of the same stage at the base width.
    heads, base_heads : likewise; None: as many at the base width.
    """
    return float((base_channels / (base_heads or heads)) ** 0.5 / (channels / heads))


def attention_scales(
    width: int, heads: Sequence[int], base_width: int | None, base_heads: Sequence[int] | None = None
) -> list[float] | None:
    """`attention_scale` of each stage of a model whose channels double from stage to stage; None without a base width.

    Raises
    ------
    ValueError : `heads` and `base_heads` have different numbers of stages.
    """
    if base_width is None:
        return None
    base_heads = heads if base_heads is None else base_heads
    if len(base_heads) != len(heads):
        raise ValueError(f"base_heads of {len(base_heads)} stages, where heads have {len(heads)}; give one a stage")
    pairs = enumerate(zip(heads, base_heads, strict=True))
    return [attention_scale(width * 2**i, base_width * 2**i, own, base) for i, (own, base) in pairs]


def linear_maps(model: nn.Module) -> dict[str, nn.Module]:
    """The linear maps and convolutions of a model, each under the name of its weight."""
    return {f"{name}.weight".lstrip("."): module for name, module in model.named_modules() if isinstance(module, MAPS)}


def rate_factors(model: nn.Module, base: nn.Module) -> dict[str, float]:
    """By what the learning rate of every parameter is multiplied; 1 throughout where the model is as wide as the base.

    Parameters
    ----------
    model, base : encoder and decoder, the base at the width where the rate was found; both may lie on the meta device.

    Raises
    ------
    ValueError : they are not the same architecture, or a parameter grows in a way that no rule covers.
    """
    growth = _growth(model, base)
    return {name: 1.0 / growth[name].columns if name in growth else 1.0 for name, _ in model.named_parameters()}


@torch.no_grad()
def initialise(model: nn.Module, base: nn.Module) -> None:
    """Rescale the fresh weights of a model, so that their spread is that of a fresh base carried to this width.

    Linear maps and their biases are rescaled; norms, scales, positions and mask tokens start alike at every width.

    Parameters
    ----------
    model, base : both with fresh weights, neither on the meta device. At the base's width nothing changes beyond the
        error of a measured spread, 1 % for a map of 5,000 weights.

    Raises
    ------
    ValueError : as `rate_factors`.
    """
    started, fresh = dict(base.named_parameters()), dict(model.named_parameters())
    for name, growth in _growth(model, base).items():
        narrower = growth.columns**0.5 if growth.rows != 1 else growth.columns
        bias = name.removesuffix("weight") + "bias"
        for part, divisor in ((name, narrower), (bias, 1.0)):
            if part in fresh and (own := _spread(fresh[part])):
                fresh[part].mul_(_spread(started[part]) / divisor / own)


class Growth(NamedTuple):
    """How many times as many rows (outputs) and columns (inputs) a linear map has as that of the base."""

    rows: float
    columns: float


def _growth(model: nn.Module, base: nn.Module) -> dict[str, Growth]:
    """Growth of the weight of every linear map; refuses growth of anything else along two axes."""
    shapes = {name: value.shape for name, value in base.named_parameters()}
    named = dict(model.named_parameters())
    if unpaired := sorted(named.keys() ^ shapes.keys()):
        raise ValueError(f"a base of another architecture: one of the two lacks {unpaired[:3]}")
    maps, found = linear_maps(model), {}
    for name, value in named.items():
        ratios = [size / other for size, other in zip(value.shape, shapes[name], strict=True)]
        if name in maps:
            rows, columns = (1, 0) if isinstance(maps[name], TRANSPOSED) else (0, 1)
            found[name] = Growth(ratios[rows], ratios[columns])
            ratios = ratios[2:]
        if sum(ratio != 1 for ratio in ratios) > (name not in maps):
            raise ValueError(f"'{name}' grows from {tuple(shapes[name])} to {tuple(value.shape)}, which no rule covers")
    return found


def _spread(value: torch.Tensor) -> float:
    """Root mean square of weights that were drawn around 0."""
    return value.double().square().mean().sqrt().item()
