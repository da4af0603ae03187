"""SwiFT v1 written plainly: the reference of speed and memory in `bench_models.py`. Frozen, never to be made faster.

Attention is materialised as in the public code: scores, mask and softmax are tensors, windows are cut by pad, roll and
a copying permute, and nothing is recomputed. Nothing is slow on purpose: no loop over windows, masks are made once.
It takes the state dict of `pipeline.models.swift_v1` and gives the same features.

Legend: B clip; X Y Z T voxels and frames; x y z t places and token times; C channels; V windows of a clip; W windows of
all clips; N tokens of a window; H heads; D channels of a head.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

AXES = (1, 2, 3, 4)


def cut(tokens_BxyztC: Tensor, window: Sequence[int]) -> Tensor:
    """Windows of all clips `(W, N, C)`."""
    b, x, y, z, t, c = tokens_BxyztC.shape
    i, j, k, m = window
    parts = tokens_BxyztC.view(b, x // i, i, y // j, j, z // k, k, t // m, m, c)
    return parts.permute(0, 1, 3, 5, 7, 2, 4, 6, 8, 9).contiguous().view(-1, i * j * k * m, c)


def uncut(windows_WNC: Tensor, window: Sequence[int], lengths: Sequence[int]) -> Tensor:
    """The inverse of `cut`."""
    i, j, k, m = window
    x, y, z, t = lengths
    parts = windows_WNC.view(-1, x // i, y // j, z // k, t // m, i, j, k, m, windows_WNC.shape[-1])
    return parts.permute(0, 1, 5, 2, 6, 3, 7, 4, 8, 9).contiguous().view(-1, x, y, z, t, windows_WNC.shape[-1])


def shift_mask(lengths: Sequence[int], window: Sequence[int], shift: Sequence[int]) -> Tensor:
    """-100 between tokens of a window that the roll brought together, `(windows, N, N)`."""
    label = torch.zeros(1, *lengths, 1)
    for axis, length, size, step in zip(AXES, lengths, window, shift, strict=True):
        if step:
            place = torch.arange(length)
            band = (place >= length - size).float() + (place >= length - step).float()
            label = 3 * label + band.view([-1 if other == axis else 1 for other in range(6)])
    label_WN = cut(label, window)[..., 0]
    return torch.where(label_WN[:, None] == label_WN[:, :, None], 0.0, -100.0)


class Attention(nn.Module):
    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(channels, 3 * channels)
        self.proj = nn.Linear(channels, channels)

    def forward(self, windows_WNC: Tensor, mask_VNN: Tensor | None) -> Tensor:
        w, n, c = windows_WNC.shape
        q, k, v = self.qkv(windows_WNC).view(w, n, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4)
        scores_WHNN = (q * (c // self.heads) ** -0.5) @ k.transpose(-2, -1)
        if mask_VNN is not None:
            scores = scores_WHNN.view(w // len(mask_VNN), len(mask_VNN), self.heads, n, n)
            scores_WHNN = (scores + mask_VNN[None, :, None]).view(w, self.heads, n, n)
        return self.proj((scores_WHNN.softmax(-1) @ v).transpose(1, 2).reshape(w, n, c))


class Mlp(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.linear1 = nn.Linear(channels, 4 * channels)
        self.linear2 = nn.Linear(4 * channels, channels)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.linear2(functional.gelu(self.linear1(tokens)))


class Block(nn.Module):
    def __init__(self, channels: int, heads: int, window: Sequence[int], odd: bool) -> None:
        super().__init__()
        self.window, self.odd = window, odd
        self.masks: dict[tuple[int, ...], Tensor] = {}
        self.norm1, self.norm2 = nn.LayerNorm(channels), nn.LayerNorm(channels)
        self.attn, self.mlp = Attention(channels, heads), Mlp(channels)

    def attend(self, tokens_BxyztC: Tensor) -> Tensor:
        grid = tokens_BxyztC.shape[1:5]
        window = [min(pair) for pair in zip(grid, self.window, strict=True)]
        shift = [s // 2 if self.odd and length > s else 0 for length, s in zip(grid, self.window, strict=True)]
        missing = [-length % size for length, size in zip(grid, window, strict=True)]
        tokens = functional.pad(tokens_BxyztC, (0, 0, 0, missing[3], 0, missing[2], 0, missing[1], 0, missing[0]))
        lengths, mask = tuple(tokens.shape[1:5]), None
        if any(shift):
            tokens = torch.roll(tokens, [-step for step in shift], AXES)
            if lengths not in self.masks:
                self.masks[lengths] = shift_mask(lengths, window, shift)
            mask = self.masks[lengths]
        tokens = uncut(self.attn(cut(tokens, window), mask), window, lengths)
        if any(shift):
            tokens = torch.roll(tokens, shift, AXES)
        return tokens[:, : grid[0], : grid[1], : grid[2], : grid[3]].contiguous()

    def forward(self, tokens: Tensor) -> Tensor:
        tokens = tokens + self.attend(self.norm1(tokens))
        return tokens + self.mlp(self.norm2(tokens))


class Merging(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(8 * channels)
        self.reduction = nn.Linear(8 * channels, 2 * channels, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        near = [tokens[:, i::2, j::2, k::2] for i in (0, 1) for j in (0, 1) for k in (0, 1)]
        return self.reduction(self.norm(torch.cat(near, -1)))


class Stage(nn.Module):
    def __init__(self, blocks: list[Block], channels: int, last: bool) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.downsample = nn.Identity() if last else Merging(channels)

    def forward(self, tokens: Tensor) -> Tensor:
        for block in self.blocks:
            tokens = block(tokens)
        return self.downsample(tokens)


class Positions(nn.Module):
    def __init__(self, channels: int, places: int, times: int) -> None:
        super().__init__()
        self.pos_embed = nn.Parameter(torch.zeros(1, channels, places, places, places, 1))
        self.time_embed = nn.Parameter(torch.zeros(1, channels, 1, 1, 1, times))

    def forward(self, tokens_BxyztC: Tensor) -> Tensor:
        tokens = tokens_BxyztC + self.pos_embed.movedim(1, -1)
        return tokens + self.time_embed[..., : tokens.shape[4]].movedim(1, -1)


class PatchEmbed(nn.Module):
    def __init__(self, width: int, edge: int) -> None:
        super().__init__()
        self.edge = edge
        self.fc = nn.Linear(edge**3, width)

    def forward(self, clip_B1XYZT: Tensor) -> Tensor:
        b, _, x, y, z, t = clip_B1XYZT.shape
        e = self.edge
        parts = clip_B1XYZT.view(b, x // e, e, y // e, e, z // e, e, t).permute(0, 1, 3, 5, 7, 2, 4, 6)
        return self.fc(parts.reshape(b, x // e, y // e, z // e, t, e**3))


class PlainSwiftV1(nn.Module):
    """`(B, 1, X, Y, Z, T)` to `(B, C, x, y, z, t)`; the defaults are the paper's size."""

    def __init__(
        self,
        width: int = 36,
        depths: Sequence[int] = (2, 2, 6, 2),
        heads: Sequence[int] = (3, 6, 12, 24),
        places: int = 16,
        edge: int = 6,
        times: int = 20,
        window: Sequence[int] = (4, 4, 4, 4),
    ) -> None:
        super().__init__()
        last = len(depths) - 1
        self.patch_embed = PatchEmbed(width, edge)
        self.pos_embeds, self.layers = nn.ModuleList(), nn.ModuleList()
        for i, (depth, count) in enumerate(zip(depths, heads, strict=True)):
            channels, side = width * 2**i, places // 2**i
            size = (side, side, side, window[3]) if i == last else window
            blocks = [Block(channels, count, size, odd=i != last and number % 2 == 1) for number in range(depth)]
            self.pos_embeds.append(Positions(channels, side, times))
            self.layers.append(Stage(blocks, channels, i == last))
        self.norm = nn.LayerNorm(width * 2**last)

    def forward(self, clip_B1XYZT: Tensor) -> Tensor:
        tokens = self.patch_embed(clip_B1XYZT)
        for positions, stage in zip(self.pos_embeds, self.layers, strict=True):
            tokens = stage(positions(tokens))
        return tokens.movedim(-1, 1)
