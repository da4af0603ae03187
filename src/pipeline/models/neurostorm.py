"""NeuroSTORM: the skeleton of SwiFT with a Mamba block where SwiFT attends, so that a window is scanned token by token.

Inside a window the scan runs in raster order, x slowest and the frame fastest, in one direction. Published windows are
rolled as SwiFT's, but without the mask that keeps apart what the roll brought together: a scan has no scores to mask.
So tokens of opposite faces of the volume, and of the first and last frames, run into each other, and so do the zeros
that fill up the last windows. Corrected windows end at the faces: the shorter pieces there are scanned as windows of
their own, which costs no more, since the number of tokens is the same.

Source: Wang et al. (2026), Towards a general-purpose foundation model for fMRI analysis, Nature Biomedical Engineering.
Keys are those of its public code; what it calls `mask_token` has one vector for each token of a window.

Legend: B clip; x y z t places and token times; C channels; M places and times of a window or windows of one length; N
tokens of a window; P voxels of a patch.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from math import prod
from typing import NamedTuple

import torch
from torch import Tensor, nn

from pipeline.models.description import Description, Variant
from pipeline.models.encoder import VoxelEncoder
from pipeline.models.learners.reconstruction import Reconstructor
from pipeline.models.parts.layers import Grid, Mlp, Stage, patchify
from pipeline.models.parts.mamba import Mamba
from pipeline.models.parts.windows import Lengths, fill_up, fit_window, pad_end
from pipeline.models.swift_v1 import Positions


class Windows(NamedTuple):
    """Tokens of a grid ordered window by window: windows of one length after those of another, raster order inside.

    `groups` has the number of windows and their length, in that order; `back` undoes `order`; `place` (tokens, 4) has
    the x, y, z, t of each ordered token inside its window.
    """

    order: Tensor
    back: Tensor
    place: Tensor
    groups: list[tuple[int, int]]


@lru_cache(maxsize=64)
@torch.inference_mode(False)  # what is first made in inference mode could not serve training later
def cut_windows(grid: Lengths, window: Lengths, shift: Lengths, wraps: bool, device: torch.device) -> Windows:
    """Cut a grid into windows that begin `shift` behind its corner; the rest wraps round, or makes shorter windows."""
    number, within = [], []
    for length, size, step in zip(grid, window, shift, strict=True):
        along = torch.arange(length, device="cpu")
        moved = (along - step) % length if wraps else along + (size - step) % size
        number.append(moved // size)
        within.append(moved % size)
    window_N = _raster(number, [int(axis.max()) + 1 for axis in number])
    within_4N = torch.stack(torch.meshgrid(*within, indexing="ij")).flatten(1)
    count_W = window_N.bincount()
    order = _raster(within, window).argsort(stable=True)
    for key in (window_N, count_W[window_N]):
        order = order[key[order].argsort(stable=True)]
    lengths, numbers = torch.unique(count_W[count_W > 0], return_counts=True)
    groups = list(zip(numbers.tolist(), lengths.tolist(), strict=True))
    return Windows(order.to(device), order.argsort().to(device), within_4N.T[order].to(device), groups)


def _raster(coordinates: Sequence[Tensor], spans: Sequence[int]) -> Tensor:
    """One number for each cell of a grid, from its coordinate along each axis; the last axis counts fastest."""
    code = torch.zeros((), dtype=torch.int64, device="cpu")
    for coordinate, span in zip(coordinates, spans, strict=True):
        code = (code * span).unsqueeze(-1) + coordinate
    return code.flatten()


class Block(nn.Module):
    """Every window scanned, then an MLP, each behind a norm and beside a residual.

    Parameters
    ----------
    window : longest window along x, y, z, t; shorter axes are one window.
    shifted : move the windows by half their length along the axes that are longer than they are.
    wraps : see the head of this file.
    states : of the scan, for each of its channels.
    redundancy : neighbourhoods of `drop_redundant`, None for no such dropout.
    """

    def __init__(
        self,
        channels: int,
        window: Sequence[int],
        shifted: bool,
        wraps: bool,
        states: int = 16,
        redundancy: tuple[int, int] | None = None,
    ) -> None:
        super().__init__()
        self.window, self.shifted, self.wraps, self.redundancy = tuple(window), shifted, wraps, redundancy
        self.norm1 = nn.LayerNorm(channels)
        self.mamba = Mamba(channels, states)
        self.norm2 = nn.LayerNorm(channels)
        self.mlp = Mlp(channels)

    def forward(self, tokens_BxyztC: Tensor) -> Tensor:
        """Same shape out."""
        tokens = tokens_BxyztC + self._scan_windows(self.norm1(tokens_BxyztC))
        return tokens + self.mlp(self.norm2(tokens))

    def _scan_windows(self, tokens_BxyztC: Tensor) -> Tensor:
        x, y, z, t = tokens_BxyztC.shape[1:5]
        window, shift = fit_window((x, y, z, t), self.window, self.shifted)
        grid = fill_up((x, y, z, t), window) if self.wraps else (x, y, z, t)
        plan = cut_windows(grid, window, shift, self.wraps, tokens_BxyztC.device)
        ordered_BNC = pad_end(tokens_BxyztC, grid).flatten(1, 4).index_select(1, plan.order)
        tokens = [number * length for number, length in plan.groups]
        pieces = torch.split(ordered_BNC, tokens, dim=1)
        places = torch.split(plan.place, tokens)
        scanned = []
        for piece_BNC, place_N4, group in zip(pieces, places, plan.groups, strict=True):
            piece_MNC = self.mamba(torch.unflatten(piece_BNC, 1, group).flatten(0, 1))
            if self.redundancy is not None and self.training:
                piece_MNC = drop_redundant(piece_MNC, torch.unflatten(place_N4, 0, group), *self.redundancy)
            scanned.append(piece_MNC.reshape(piece_BNC.shape))
        joined_BNC = torch.cat(scanned, dim=1).index_select(1, plan.back)
        return torch.unflatten(joined_BNC, 1, grid)[:, :x, :y, :z, :t]


def drop_redundant(tokens_MNC: Tensor, place_WN4: Tensor, across: int, along: int) -> Tensor:
    """Set tokens to 0 that their neighbours repeat, at random, each with the probability that its redundancy gives.

    Similarities within a window are softmax(h h^T / sqrt C). Neighbours in space lie in a cube of edge `across` and in
    the same frame, those in time at the same place within `along` frames. Each similarity is weighted by half of
    (largest to a neighbour in time) / (sum over those in space) plus the same with space and time exchanged, and their
    sum over the number of neighbours is the probability.

    Source: Spatiotemporal Redundancy Dropout of NeuroSTORM, equations 1-3, as its public code applies it to a scan.
    """
    similar_MNN = torch.softmax(tokens_MNC @ tokens_MNC.transpose(1, 2) * tokens_MNC.shape[-1] ** -0.5, dim=-1)
    apart_WNN4 = (place_WN4[:, :, None] - place_WN4[:, None]).abs()
    same = (apart_WNN4 == 0).all(-1)
    in_space = (apart_WNN4[..., :3] <= across // 2).all(-1) & (apart_WNN4[..., 3] == 0) & ~same
    in_time = (apart_WNN4[..., :3] == 0).all(-1) & (apart_WNN4[..., 3] <= along // 2) & ~same
    clips = len(tokens_MNC) // len(place_WN4)
    near = [part.repeat(clips, 1, 1) for part in (in_space, in_time)]
    (sum_space, most_space), (sum_time, most_time) = (
        ((similar_MNN * part).sum(-1), (similar_MNN * part).amax(-1)) for part in near
    )
    share_space = torch.where(near[0].any(-1), most_time / (sum_space + 1e-8), 0)
    share_time = torch.where(near[1].any(-1), most_space / (sum_time + 1e-8), 0)
    redundancy_MNN = (0.5 * similar_MNN * (share_space + share_time).unsqueeze(-1)).clamp(0, 1)
    neighbours_MN = (near[0].sum(-1) + near[1].sum(-1)).clamp(min=1)
    kept_MN = 1 - torch.bernoulli((redundancy_MNN.sum(-1) / neighbours_MN).clamp(0, 1))
    return tokens_MNC * kept_MN.unsqueeze(-1)


class NeuroStorm(VoxelEncoder):
    """The encoder.

    Parameters
    ----------
    width, depths, grid, patch : see `VoxelEncoder`.
    context_frames : longest clip; shorter ones take the first of the learned times.
    window, first_window : windows along x, y, z, t, and those of the first stage where they differ.
    full_last_stage : windows of the last stage span all of space and are not shifted.
    states : of a scan, for each of its channels.
    redundancy_dropout : in training, drop tokens that their neighbours repeat (`drop_redundant`).
    neighbourhood : edge in places and length in token times of the neighbours that dropout compares.
    variant : "upstream" lets tokens wrap round, see the head of this file.
    """

    def __init__(
        self,
        width: int,
        depths: Sequence[int],
        grid: Sequence[int],
        patch: Sequence[int] = (6, 6, 6, 1),
        context_frames: int = 20,
        window: Sequence[int] = (4, 4, 4, 4),
        first_window: Sequence[int] | None = None,
        full_last_stage: bool = True,
        states: int = 16,
        redundancy_dropout: bool = False,
        neighbourhood: tuple[int, int] = (5, 5),
        variant: Variant = "corrected",
    ) -> None:
        super().__init__(width, depths, [1] * len(depths), grid, patch, context_frames, embedding_norm=False)
        self.depths, self.window, self.wraps, self.states = tuple(depths), tuple(window), variant == "upstream", states
        last = len(depths) - 1
        windows = [tuple(first_window or window), *[self.window] * last]
        if full_last_stage:
            windows[last] = (*self.grids[last], self.window[3])
        self.pos_embeds, self.layers = nn.ModuleList(), nn.ModuleList()
        for i, channels in enumerate(self.widths):
            shifts = [block % 2 == 1 and not (full_last_stage and i == last) for block in range(depths[i])]
            redundancy = neighbourhood if redundancy_dropout else None
            blocks = [Block(channels, windows[i], shifted, self.wraps, states, redundancy) for shifted in shifts]
            self.pos_embeds.append(Positions(channels, self.grids[i], context_frames // self.patch[3]))
            self.layers.append(Stage(blocks, channels, i == last))

    def encode(self, tokens_BCxyzt: Tensor) -> Tensor:
        """Features `(B, C, x, y, z, t)` of tokens."""
        tokens = tokens_BCxyzt.movedim(1, -1)
        for positions, stage in zip(self.pos_embeds, self.layers, strict=True):
            tokens = stage(positions(tokens))
        return tokens.movedim(-1, 1)


class Expanding(nn.Module):
    """Each place becomes 2 x 2 x 2 places of half the channels: a linear map, a pixel shuffle, a norm."""

    def __init__(self, channels: int, grid: Grid) -> None:
        super().__init__()
        self.grid = grid
        self.expand = nn.Linear(channels, 4 * channels, bias=False)
        self.norm = nn.LayerNorm(channels // 2)

    def forward(self, tokens_BxyztC: Tensor) -> Tensor:
        """Tokens on `grid`, the finer one; inside a place x is slowest."""
        x, y, z = self.grid
        parts = torch.unflatten(self.expand(tokens_BxyztC), -1, (2, 2, 2, -1)).permute(0, 1, 5, 2, 6, 3, 7, 4, 8)
        return self.norm(parts.flatten(5, 6).flatten(3, 4).flatten(1, 2)[:, :x, :y, :z])


class UpStage(nn.Module):
    """Blocks of one resolution, then expansion unless it is the finest."""

    def __init__(self, blocks: list[Block], upsample: nn.Module) -> None:
        super().__init__()
        self.blocks, self.upsample = nn.ModuleList(blocks), upsample

    def forward(self, tokens_BxyztC: Tensor) -> Tensor:
        """Tokens of the next finer stage."""
        for block in self.blocks:
            tokens_BxyztC = block(tokens_BxyztC)
        return self.upsample(tokens_BxyztC)


class NeuroStormMae(Reconstructor):
    """The encoder with its mask tokens and the decoder that mirrors it; the published loss is the squared error."""

    encoder: NeuroStorm

    def __init__(self, encoder: NeuroStorm) -> None:
        super().__init__()
        self.encoder = encoder
        widths, grids, last = encoder.widths, encoder.grids, len(encoder.widths) - 1
        self.mask_token = nn.Parameter(torch.zeros(prod(encoder.window), widths[0]))
        self.first_patch_expanding = Expanding(widths[last], grids[last - 1]) if last else nn.Identity()
        self.layers_up = nn.ModuleList()
        for i in reversed(range(last)):
            shifts = [block % 2 == 1 for block in range(encoder.depths[i])]
            blocks = [Block(widths[i], encoder.window, shifted, encoder.wraps, encoder.states) for shifted in shifts]
            self.layers_up.append(UpStage(blocks, Expanding(widths[i], grids[i - 1]) if i else nn.Identity()))
        self.norm_up = nn.LayerNorm(widths[0])
        self.decoder_pred = nn.Linear(widths[0], prod(encoder.patch))

    def patchify(self, clip: Tensor) -> Tensor:
        """The voxels of each patch, `(B, x, y, z, t, P)`."""
        return patchify(clip, self.encoder.patch)

    def predict(self, clip: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Voxels `(M, P)` of the hidden tokens, and features `(B, C, x, y, z, t)`."""
        tokens_BCxyzt = self.encoder.embed(clip)
        masked_BCxyzt = torch.where(hidden[:, None], self._mask_tokens(hidden.shape[1:]), tokens_BCxyzt)
        features_BCxyzt = self.encoder.encode(masked_BCxyzt)
        tokens_BxyztC = self.first_patch_expanding(features_BCxyzt.movedim(1, -1))
        for stage in self.layers_up:
            tokens_BxyztC = stage(tokens_BxyztC)
        token_M = hidden.flatten().nonzero()[:, 0]
        return self.decoder_pred(self.norm_up(tokens_BxyztC.flatten(0, 4).index_select(0, token_M))), features_BCxyzt

    def _mask_tokens(self, lengths: Sequence[int]) -> Tensor:
        """The token that stands at each hidden place, `(C, x, y, z, t)`: that of its place inside its window."""
        window = self.encoder.window
        along = [
            torch.arange(length, device=self.mask_token.device) % size
            for length, size in zip(lengths, window, strict=True)
        ]
        tokens_xyztC = torch.unflatten(self.mask_token, 0, window)[torch.meshgrid(*along, indexing="ij")]
        return tokens_xyztC.movedim(-1, 0)


DESCRIPTION = Description(
    name="neurostorm",
    input="voxels",
    objective="masked reconstruction",
    mixing="Mamba in 4D shifted windows",
    source="Wang et al. (2026), Nature Biomedical Engineering",
    build=NeuroStorm,
    sizes={"paper": {"width": 36, "depths": (2, 2, 6, 2), "grid": (16, 16, 16)}},
    default="paper",
    learner=NeuroStormMae,
    published={"paper": "7,712,892 with the decoder and the mask tokens of a window"},
    defects={
        "wrap-around": "shifted windows are rolled without a mask, so that tokens of opposite faces of the volume, and "
        "of the first and last frames, are scanned together; the zeros that fill up a window are scanned too",
    },
)
