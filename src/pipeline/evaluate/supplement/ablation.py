"""What of an encoder its features need: parts of a trained network taken out, and what memory a longer clip takes.

A part is taken out of a finished network, without training it again: what remains is read by a probe of its own. That
tells what the features rest on, not what a network without the part could have learnt.

Legend: B clip; C channels; N tokens; x y z t places and token times.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.models import build, describe, names, swift_v1, swift_v2, takes
from pipeline.models.brainmt import AttentionLayers, BrainMT, MambaLayer
from pipeline.models.cost import activation_bytes
from pipeline.models.encoder import Encoder
from pipeline.models.neurostorm import Block as ScannedBlock
from pipeline.models.parts import token_encoder, transformer
from pipeline.models.parts.windows import WindowAttention
from pipeline.models.tff import TFF

MEANING = {
    "time": "no token sees another time: temporal attention out, or windows cut to one time",
    "space": "no token of a stage sees another place: spatial attention out, or windows cut to one place",
    "attention": "attention out, its residual branch alone",
    "scan": "selective scans out",
    "mlp": "the maps of single tokens out",
    "position": "no token knows where or when it is",
}


class Silent(nn.Module):
    """In the place of a residual branch: adds nothing."""

    def forward(self, tokens: Tensor) -> Tensor:
        """Zeros."""
        return torch.zeros_like(tokens)


class Nowhere(token_encoder.Positions):
    """In the place of positions on a row of tokens: all the same."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width

    def forward(self, table_RK: Tensor, grid: tuple[int, int]) -> Tensor:
        """Zeros."""
        return table_RK.new_zeros(grid[0] * grid[1], self.width)


def parts(encoder: Encoder) -> list[str]:
    """Parts that can be taken out of an encoder, in the order of `MEANING`."""
    return [part for part in MEANING if any(True for _ in _changes(encoder, part))]


def without(encoder: Encoder, part: str) -> Encoder:
    """A copy of an encoder without a part.

    Raises
    ------
    ValueError : the encoder has no such part.
    """
    changed = deepcopy(encoder)
    changes = list(_changes(changed, part))
    if not changes:
        raise ValueError(f"found no '{part}' in {type(encoder).__name__}; it has {', '.join(parts(encoder))}")
    for change in changes:
        change()
    return changed


Change = Callable[[], object]


def _changes(encoder: Encoder, part: str) -> Iterator[Change]:
    """What has to be done to the modules of an encoder; nothing is changed yet."""
    find = {
        "time": _time,
        "space": _space,
        "attention": _attention,
        "scan": _scan,
        "mlp": _mlp,
        "position": _position,
    }[part]
    for module in encoder.modules():
        yield from find(module)


def _silence(module: nn.Module, *children: str) -> Iterator[Change]:
    for child in children:
        yield lambda child=child: setattr(module, child, Silent())  # type: ignore[misc]


def _time(module: nn.Module) -> Iterator[Change]:
    if isinstance(module, swift_v2.Block):
        yield from _silence(module, "temporal_attn")
    elif isinstance(module, swift_v1.Block):
        yield from _cut(module.attn, slice(3, 4))
    elif isinstance(module, ScannedBlock):
        yield from _cut(module, slice(3, 4))


def _space(module: nn.Module) -> Iterator[Change]:
    if isinstance(module, swift_v2.Block):
        yield from _silence(module, "spatial_attn")
    elif isinstance(module, swift_v1.Block):
        yield from _cut(module.attn, slice(0, 3))
    elif isinstance(module, ScannedBlock):
        yield from _cut(module, slice(0, 3))


def _cut(module: Any, axes: slice) -> Iterator[Change]:
    window = list(module.window)
    window[axes] = [1] * len(window[axes])
    yield lambda: setattr(module, "window", tuple(window))


def _attention(module: nn.Module) -> Iterator[Change]:
    if isinstance(module, swift_v1.Block | transformer.Block):
        yield from _silence(module, "attn")
    elif isinstance(module, swift_v2.Block):
        yield from _silence(module, "temporal_attn", "spatial_attn")
    elif isinstance(module, AttentionLayers):
        yield lambda: setattr(module, "attn", nn.ModuleList(Silent() for _ in module.attn))


def _scan(module: nn.Module) -> Iterator[Change]:
    if isinstance(module, ScannedBlock):
        yield from _silence(module, "mamba")
    elif isinstance(module, MambaLayer):
        yield from _silence(module, "mixer")


def _mlp(module: nn.Module) -> Iterator[Change]:
    if isinstance(module, swift_v1.Block | swift_v2.Block | ScannedBlock | transformer.Block):
        yield from _silence(module, "mlp")
    elif isinstance(module, AttentionLayers):
        yield lambda: setattr(module, "mlp", nn.ModuleList(Silent() for _ in module.mlp))


def _position(module: nn.Module) -> Iterator[Change]:
    if isinstance(module, swift_v1.Positions):
        yield lambda: (module.pos_embed.data.zero_(), module.time_embed.data.zero_())
    elif isinstance(module, WindowAttention) and module.rotary is not None:
        yield lambda: setattr(module, "rotary", None)
    elif isinstance(module, token_encoder.TokenEncoder):
        yield lambda: setattr(module, "positions", Nowhere(module.width))
    elif isinstance(module, BrainMT):  # its sines of time stay: they are no weights
        yield lambda: module.pos_embed.data.zero_()
    elif isinstance(module, TFF):
        yield lambda: module.transformer.positions_NC.data.zero_()


# --- memory ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Memory:
    """What a clip's gradient keeps in training, MB in float32, at a number of frames."""

    name: str
    size: str
    frames: int
    activations_mb: float


def voxel_models() -> list[str]:
    """Architectures of the registry that see voxels."""
    return [name for name in names() if describe(name).input == "voxels"]


def memory_of(name: str, frames: int, size: str | None = None) -> Memory:
    """Counted on the meta device, where nothing is computed, with fused attention (`models.cost`).

    `benchmarks/bench_memory.py` measures the peak of a real process at small sizes.
    """
    description = describe(name)
    size = size or description.default
    spec = {**description.sizes[size], "context_frames": frames}
    if "positions" in takes(name):
        spec["positions"] = frames + 1
    with torch.device("meta"):
        encoder = build(name, spec)
        clip = torch.empty(1, *encoder.input_shape)
    encoder.eval()
    return Memory(name, size, frames, activation_bytes(encoder, lambda: encoder(clip)) / 1e6)
