"""Attention inside shifted windows of a 4D grid of tokens; a window of length 1 along an axis does not mix it.

Legend: B clip; x y z t places and token times; C channels; W windows; N tokens of a window; H heads; D channels of a
head; K query, key; R pairs of channels of a head.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from math import prod

import torch
from torch import Tensor, nn
from torch.nn import functional

from pipeline.models.parts import pieces

Lengths = tuple[int, int, int, int]  # along x, y, z, t
Rotary = Callable[[Lengths, int, torch.device], Tensor]  # window, channels of a head -> rotation_NR
AXES = (1, 2, 3, 4)  # of x, y, z, t in `tokens_BxyztC`


def fit_window(grid: Sequence[int], window: Sequence[int], shifted: bool) -> tuple[Lengths, Lengths]:
    """Window and shift on a grid: an axis no longer than its window is one window and is not shifted."""
    sizes = [min(length, size) for length, size in zip(grid, window, strict=True)]
    shifts = [size // 2 if shifted and length > size else 0 for length, size in zip(grid, window, strict=True)]
    return (sizes[0], sizes[1], sizes[2], sizes[3]), (shifts[0], shifts[1], shifts[2], shifts[3])


def fill_up(grid: Sequence[int], window: Lengths) -> Lengths:
    """The grid lengthened to a multiple of the window."""
    x, y, z, t = (-(-length // size) * size for length, size in zip(grid, window, strict=True))
    return x, y, z, t


def pad_end(tokens_BxyztC: Tensor, lengths: Lengths) -> Tensor:
    """Zeros behind the end of each axis, up to `lengths`."""
    missing = [length - tokens_BxyztC.shape[axis] for axis, length in zip(AXES, lengths, strict=True)]
    if not any(missing):
        return tokens_BxyztC
    return functional.pad(tokens_BxyztC, [0, 0, *(number for size in reversed(missing) for number in (0, size))])


def roll(tokens_BxyztC: Tensor, steps: Sequence[int]) -> Tensor:
    """Cyclic shift along x, y, z, t."""
    return tokens_BxyztC.roll(tuple(steps), dims=AXES) if any(steps) else tokens_BxyztC


def partition(tokens_BxyztC: Tensor, window: Lengths) -> Tensor:
    """Cut tokens into windows `(B, W, N, C)`; windows, and tokens inside one, in raster order x, y, z, t."""
    parts = tokens_BxyztC
    for axis, size in enumerate(window):
        parts = torch.unflatten(parts, 1 + 2 * axis, (-1, size))
    return parts.permute(0, 1, 3, 5, 7, 2, 4, 6, 8, 9).flatten(5, 8).flatten(1, 4)


def join(windows_BWNC: Tensor, lengths: Lengths, window: Lengths) -> Tensor:
    """Put windows back on a grid of `lengths`; the inverse of `partition`."""
    counts = [length // size for length, size in zip(lengths, window, strict=True)]
    parts = torch.unflatten(torch.unflatten(windows_BWNC, 2, window), 1, counts).permute(0, 1, 5, 2, 6, 3, 7, 4, 8, 9)
    for axis in AXES:
        parts = parts.flatten(axis, axis + 1)
    return parts


@lru_cache(maxsize=32)
@torch.inference_mode(False)  # what is first made in inference mode could not serve training later
def window_mask(
    grid: Lengths, window: Lengths, shift: Lengths, see_padding: bool, device: torch.device
) -> Tensor | None:
    """What is added to attention scores, `(W, 1, N, N)`, so that tokens that the shift wrapped round stay apart.

    With `see_padding` the zeros that fill up the last windows count as tokens and the mask is -100 (SwiFT v1); without,
    nobody sees them and the mask is minus infinity. None where nothing is to be masked.
    """
    lengths = fill_up(grid, window)
    if not any(shift) and (see_padding or lengths == grid):
        return None
    label = torch.zeros(1, *lengths, 1, dtype=torch.int64, device=device)
    for axis, length, size, step in zip(AXES, lengths, window, shift, strict=True):
        band = torch.arange(length, device=device)
        bands = (band >= length - size).long() + (band >= length - step).long() if step else torch.zeros_like(band)
        label = 3 * label + bands.view([-1 if other == axis else 1 for other in range(6)])
    if not see_padding:
        real = pad_end(torch.ones(1, *grid, 1, dtype=torch.int64, device=device), lengths)
        label = torch.where(roll(real, [-step for step in shift]) == 1, label, -1)
    label_WN = partition(label, window)[0, :, :, 0]
    apart_WNN = label_WN[:, :, None] != label_WN[:, None, :]
    scores_WNN = torch.zeros(apart_WNN.shape, device=device)
    return scores_WNN.masked_fill_(apart_WNN, -100.0 if see_padding else -torch.inf).unsqueeze(1)


@lru_cache(maxsize=32)
@torch.inference_mode(False)
def window_places(lengths: Lengths, window: Lengths, shift: Lengths, clips: int) -> Tensor:
    """Which of all clips' tokens, in raster order, stands where in which window: `(clips * W, N)`."""
    place = torch.arange(clips * prod(lengths)).view(clips, *lengths, 1)
    return partition(roll(place, [-step for step in shift]), window).flatten(0, 1)[..., 0]


def rotate(heads_BWNKHD: Tensor, rotation_NR: Tensor) -> Tensor:
    """Turn each pair of channels by the angle of a complex number of modulus 1, in float32."""
    pairs = torch.view_as_complex(torch.unflatten(heads_BWNKHD.float(), -1, (-1, 2)))
    return torch.view_as_real(pairs * rotation_NR[:, None, None]).flatten(-2).to(heads_BWNKHD.dtype)


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float, multiple: int) -> Tensor:
    """Attention `(..., N, D)` through the fused kernel, inside which heads are filled up to a multiple of channels.

    Zeros change neither scores nor values, so the result is exact; CUDA's kernels ask for multiples of 8, and SwiFT's
    heads have 12 or 6 channels.
    """
    channels = q.shape[-1]
    if missing := -channels % multiple:
        q, k, v = (functional.pad(part, (0, missing)) for part in (q, k, v))
    return functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale)[..., :channels]


class WindowAttention(nn.Module):
    """Multi-head attention among the tokens of one window.

    `head_multiple` is what heads are filled up to inside the kernel, None: what the device needs.

    Parameters
    ----------
    window : longest window along x, y, z, t; shorter axes are one window (`fit_window`).
    shifted : move the windows by half their length, so that they bridge those of the block before.
    see_padding : see `window_mask`.
    rotary : gives the angles by which queries and keys are turned, for a window and a head's channels.
    qk_norm : a LayerNorm over the channels of a head for queries and one for keys, before they are turned.
    scale : factor of the scores; None: one over the root of a head's channels.
    """

    head_multiple: int | None = None

    def __init__(
        self,
        channels: int,
        heads: int,
        window: Sequence[int],
        shifted: bool,
        see_padding: bool = True,
        rotary: Rotary | None = None,
        qk_norm: bool = False,
        scale: float | None = None,
    ) -> None:
        super().__init__()
        self.heads, self.window, self.shifted = heads, tuple(window), shifted
        self.see_padding, self.rotary, self.qk_norm = see_padding, rotary, qk_norm
        self.scale = (channels // heads) ** -0.5 if scale is None else scale
        self.qkv = nn.Linear(channels, 3 * channels)
        self.q_norm = nn.LayerNorm(channels // heads) if qk_norm else nn.Identity()
        self.k_norm = nn.LayerNorm(channels // heads) if qk_norm else nn.Identity()
        self.proj = nn.Linear(channels, channels)

    def forward(self, tokens_BxyztC: Tensor) -> Tensor:
        """Same shape out."""
        x, y, z, t = tokens_BxyztC.shape[1:5]
        window, shift = fit_window((x, y, z, t), self.window, self.shifted)
        lengths = fill_up((x, y, z, t), window)
        mask = window_mask((x, y, z, t), window, shift, self.see_padding, tokens_BxyztC.device)
        head_channels = self.proj.in_features // self.heads
        rotation = self.rotary(window, head_channels, tokens_BxyztC.device) if self.rotary else None
        tokens = pad_end(tokens_BxyztC, lengths)
        if rotation is None and not self.qk_norm and pieces.serve(tokens, self.qkv, self.proj):
            place_WN = window_places(lengths, window, shift, len(tokens))
            weights = pieces.Weights(self.qkv.weight, self.qkv.bias, self.proj.weight, self.proj.bias)
            mixed = pieces.mix_windows(tokens.flatten(0, 4), place_WN, mask, self.heads, self.scale, weights)
            return mixed.view(tokens.shape)[:, :x, :y, :z, :t]
        windows_BWNC = partition(roll(tokens, [-step for step in shift]), window)
        mixed_BWNC = self.proj(self._attend(windows_BWNC, mask, rotation))
        return roll(join(mixed_BWNC, lengths, window), shift)[:, :x, :y, :z, :t]

    def own_flops(self, tokens_BxyztC: Tensor) -> int:
        """Operations beside those of its linear maps: scores and their product with the values."""
        window, _ = fit_window(tokens_BxyztC.shape[1:5], self.window, self.shifted)
        tokens = prod(fill_up(tokens_BxyztC.shape[1:5], window))
        return 4 * len(tokens_BxyztC) * tokens * prod(window) * tokens_BxyztC.shape[-1]

    def _attend(self, windows_BWNC: Tensor, mask_W1NN: Tensor | None, rotation_NR: Tensor | None) -> Tensor:
        clips, windows = windows_BWNC.shape[:2]
        heads_BWNKHD = torch.unflatten(self.qkv(windows_BWNC), -1, (3, self.heads, -1))
        qk, v = heads_BWNKHD[:, :, :, :2], heads_BWNKHD[:, :, :, 2]
        if self.qk_norm:
            qk = torch.stack([self.q_norm(qk[:, :, :, 0]), self.k_norm(qk[:, :, :, 1])], dim=3)
        if rotation_NR is not None:
            qk = rotate(qk, rotation_NR)
        q, k = qk.unbind(3)
        if self.head_multiple is None and pieces.serve(q):
            return self._attend_in_pieces(q * self.scale, k, v, mask_W1NN)
        multiple = self.head_multiple or (8 if v.is_cuda else 1)
        if mask_W1NN is None:
            q, k, v = (part.flatten(0, 1).transpose(1, 2) for part in (q, k, v))  # (B W, H, N, D), a view
            mixed = attend(q, k, v, None, self.scale, multiple)
            return torch.unflatten(mixed.transpose(1, 2).flatten(2), 0, (clips, windows))
        # Windows first and clips among the heads: one mask then serves all clips and heads without a copy.
        q, k, v = (part.permute(1, 0, 3, 2, 4).flatten(1, 2) for part in (q, k, v))
        mixed = attend(q, k, v, mask_W1NN.to(q.dtype), self.scale, multiple)
        return torch.unflatten(mixed, 1, (clips, self.heads)).permute(1, 0, 3, 2, 4).flatten(3)

    def _attend_in_pieces(self, q: Tensor, k: Tensor, v: Tensor, mask_W1NN: Tensor | None) -> Tensor:
        clips, windows = q.shape[:2]
        q, k, v = (part.permute(0, 1, 3, 4, 2).flatten(0, 2).contiguous() for part in (q, k, v))  # (B W H, D, N)
        mixed = pieces.attend(q, k, v, mask_W1NN, self.heads)
        return torch.unflatten(mixed, 0, (clips, windows, -1)).flatten(2, 3).transpose(2, 3)
