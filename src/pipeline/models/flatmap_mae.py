"""Flat-map MAE: a plain ViT on patches of cortical flat-map video that sees only the tokens left visible.

Hidden tokens are truly dropped, and so are tokens that hold no pixel of cortex. A small decoder is given the visible
features and a mask token, with its position, for each hidden token, and predicts every second frame of it. Its head
starts at zero, the zero predictor: the authors report that bf16 was unstable, most of all without this.

Source: Lane et al. (2026), ICML (CortexMAE; MAE on video: Feichtenhofer et al., 2022). A patch's values are ordered
frame, row, column, as in the public code, so that its weights go over without being permuted. Its mask ratio of 0.9
counts all 490 places of the raster: 48 stay visible of the 364 that hold cortex, a ratio of 0.87 of those.

Legend: B clip; H W rows and columns of pixels; T frames; h w t places and token times; N tokens, place slowest; V
visible and M hidden tokens; C channels; P values of a patch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.models.description import Description
from pipeline.models.encoder import Encoder
from pipeline.models.learners.reconstruction import Reconstructor
from pipeline.models.parts.transformer import Block

EPS = 1e-6  # of every norm


def flat_patches(clip_B1HWT: Tensor, patch: tuple[int, int, int], stride: int = 1) -> Tensor:
    """Cut clips into patches `(B, h, w, t, P)`; inside one the frame is slowest, then row and column.

    Parameters
    ----------
    patch : rows, columns, frames.
    stride : every so many frames are taken, from the first; it divides the frames of a patch.
    """
    parts = clip_B1HWT[:, 0, :, :, ::stride]
    for axis, size in enumerate((patch[0], patch[1], patch[2] // stride)):
        parts = torch.unflatten(parts, 1 + 2 * axis, (-1, size))
    return parts.permute(0, 1, 3, 5, 6, 2, 4).flatten(4)


class Positions(nn.Module):
    """A learned vector a place and a learned vector a time."""

    def __init__(self, places: int, times: int, channels: int) -> None:
        super().__init__()
        self.weight_spatial = nn.Parameter(nn.init.trunc_normal_(torch.empty(1, places, channels), std=0.02))
        self.weight_temporal = nn.Parameter(nn.init.trunc_normal_(torch.empty(times, 1, channels), std=0.02))

    def forward(self, times: int, token_BV: Tensor | None = None) -> Tensor:
        """Vectors `(N, C)` of all tokens of a clip of `times`, or `(B, V, C)` of chosen ones."""
        if token_BV is None:
            return (self.weight_spatial[0, :, None] + self.weight_temporal[:times, 0]).flatten(0, 1)
        return self.weight_spatial[0][token_BV // times] + self.weight_temporal[:, 0][token_BV % times]


def _initialise(module: nn.Module) -> None:
    """Uniform weights by Glorot and Bengio (2010); query, key and value count as three maps, not as one."""
    if isinstance(module, nn.Linear):
        parts = 3 if module.out_features == 3 * module.in_features else 1
        with torch.no_grad():
            for part in module.weight.chunk(parts):
                nn.init.xavier_uniform_(part)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


class FlatmapViT(Encoder):
    """The encoder.

    Parameters
    ----------
    width, depth, heads : channels, blocks and attention heads.
    raster : rows and columns of pixels, multiples of the patch's.
    patch : rows, columns and frames of a patch.
    context_frames : frames that positions are learned for. A longer clip is cut into parts of that many frames, each
        encoded on its own, as the authors do; a shorter one takes the first positions.
    cortex_HW : pixels on cortex (True), `raster` in shape; None: all. Others are set to 0, and a token without any
        is never computed: its features are 0. Weights saved with a map bring it with them.

    Raises
    ------
    ValueError : sizes that the patch does not tile, heads that do not divide the width, or no pixel on cortex.
    """

    cortex_HW: Tensor | None

    def __init__(
        self,
        width: int,
        depth: int,
        heads: int,
        raster: Sequence[int] = (224, 560),
        patch: Sequence[int] = (16, 16, 4),
        context_frames: int = 16,
        cortex_HW: Tensor | None = None,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        self.raster, self.patch = (raster[0], raster[1]), (patch[0], patch[1], patch[2])
        self.context_frames, self.frames_per_token = context_frames, self.patch[2]
        sizes = (*self.raster, context_frames)
        if any(size % edge for size, edge in zip(sizes, self.patch, strict=True)):
            raise ValueError(f"{sizes} rows, columns and frames, which patches of {self.patch} do not tile")
        self.grid = (self.raster[0] // self.patch[0], self.raster[1] // self.patch[1])
        self.patch_embed = nn.Linear(self.patch[0] * self.patch[1] * self.patch[2], width)
        self.pos_embed = Positions(self.places, self.token_times(context_frames), width)
        self.cls_token = nn.Parameter(nn.init.trunc_normal_(torch.empty(1, 1, width), std=0.02))
        self.blocks = nn.ModuleList(
            Block(width, heads, eps=EPS, drop_path=drop_path * block / max(depth - 1, 1)) for block in range(depth)
        )
        self.norm = nn.LayerNorm(width, eps=EPS)
        self.register_buffer("cortex_HW", None)
        if cortex_HW is not None:
            self.set_cortex(cortex_HW)
        self.apply(_initialise)

    @property
    def channels(self) -> int:
        """Channels of the features."""
        return self.norm.normalized_shape[0]

    @property
    def input_shape(self) -> tuple[int, ...]:
        """`(1, H, W, T)`, with the frames of a clip in pretraining."""
        return 1, *self.raster, self.context_frames

    @property
    def places(self) -> int:
        """Places of the grid, on cortex or not."""
        return self.grid[0] * self.grid[1]

    @property
    def cortical_hw(self) -> Tensor | None:
        """Places that hold a pixel of cortex, `(h, w)`; None: all."""
        if self.cortex_HW is None:
            return None
        return flat_patches(self.cortex_HW[None, None, :, :, None], (*self.patch[:2], 1))[0, :, :, 0].any(-1)

    def set_cortex(self, cortex_HW: Tensor) -> None:
        """Say which pixels are on cortex (True); ValueError where they do not lie on the raster or none is."""
        if tuple(cortex_HW.shape) != self.raster or not cortex_HW.any():
            raise ValueError(f"{int(cortex_HW.sum())} pixels on cortex of {tuple(cortex_HW.shape)}, not {self.raster}")
        self.cortex_HW = cortex_HW.to(self.cls_token.device, torch.bool)

    def token_times(self, frames: int) -> int:
        """Token times of a clip; ValueError where patches do not tile its frames."""
        if frames % self.patch[2]:
            raise ValueError(f"a clip of {frames} frames, which patches of {self.patch[2]} do not tile")
        return frames // self.patch[2]

    def on_cortex(self, clip_B1HWT: Tensor) -> Tensor:
        """A clip whose pixels outside cortex are 0; ValueError where it does not lie on the raster."""
        if tuple(clip_B1HWT.shape[1:4]) != (1, *self.raster):
            raise ValueError(f"clips of {tuple(clip_B1HWT.shape[1:4])}, where the raster is (1, *{self.raster})")
        return clip_B1HWT if self.cortex_HW is None else clip_B1HWT * self.cortex_HW[:, :, None]

    def encode(self, patches_BVP: Tensor, times: int, token_BV: Tensor | None = None) -> Tensor:
        """Features `(B, V, C)` of patches, all of a clip or those that `token_BV` counts in `(h, w, t)` flattened."""
        tokens_BVC = self.patch_embed(patches_BVP) + self.pos_embed(times, token_BV)
        tokens = torch.cat([self.cls_token.expand(len(tokens_BVC), -1, -1), tokens_BVC], dim=1)
        for block in self.blocks:
            tokens = block(tokens)
        return self.norm(tokens)[:, 1:]

    def forward(self, clip_B1HWT: Tensor) -> Tensor:
        """Features `(B, C, h, w, t)` of a clip `(B, 1, H, W, T)`; 0 where a place has no cortex."""
        parts = [self._whole(part) for part in torch.split(self.on_cortex(clip_B1HWT), self.context_frames, dim=-1)]
        return torch.cat(parts, dim=-1)

    def _whole(self, clip_B1HWT: Tensor) -> Tensor:
        times = self.token_times(clip_B1HWT.shape[-1])
        patches_BNP = flat_patches(clip_B1HWT, self.patch).flatten(1, 3)
        cortical_hw = self.cortical_hw
        if cortical_hw is None:
            features_BNC = self.encode(patches_BNP, times)
        else:
            token_V = cortical_hw[..., None].expand(*self.grid, times).flatten().nonzero()[:, 0]
            token_BV = token_V.expand(len(patches_BNP), -1)
            seen_BVC = self.encode(patches_BNP.index_select(1, token_V), times, token_BV)
            features_BNC = seen_BVC.new_zeros(*patches_BNP.shape[:2], self.channels).index_copy(1, token_V, seen_BVC)
        return torch.unflatten(features_BNC.movedim(2, 1), 2, (*self.grid, times))

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        """Weights that were trained on a map of cortex bring it with them."""
        if f"{prefix}cortex_HW" in state_dict:
            self.set_cortex(state_dict[f"{prefix}cortex_HW"])
        super()._load_from_state_dict(state_dict, prefix, *rest)


class FlatmapMae(Reconstructor):
    """The encoder and the decoder of pretraining.

    Parameters
    ----------
    encoder : what is to be trained.
    width, depth : of the decoder; None: two thirds of the encoder's width, in heads of 32 channels, a third of its
        depth.
    stride : every so many frames of a patch are predicted, from its first.
    head_scale : what the start of the last map is multiplied by; at 0, the authors' choice, nothing but that map has a
        gradient in the first step.
    """

    encoder: FlatmapViT

    def __init__(
        self,
        encoder: FlatmapViT,
        width: int | None = None,
        depth: int | None = None,
        stride: int = 2,
        head_scale: float = 0.0,
    ) -> None:
        super().__init__()
        if encoder.patch[2] % stride:
            raise ValueError(f"every {stride} frames of patches of {encoder.patch[2]}: choose a divisor")
        self.encoder, self.stride = encoder, stride
        rows, columns, frames = encoder.patch
        width = width or 32 * max(1, round(encoder.channels / 48))
        depth = depth or max(1, round(len(encoder.blocks) / 3))
        self.proj = nn.Linear(encoder.channels, width)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.mask_token = nn.Parameter(nn.init.trunc_normal_(torch.empty(1, 1, width), std=0.02))
        self.pos_embed = Positions(encoder.places, encoder.token_times(encoder.context_frames), width)
        self.blocks = nn.ModuleList(Block(width, max(1, width // 32), eps=EPS) for _ in range(depth))
        self.norm = nn.LayerNorm(width, eps=EPS)
        self.head = nn.Linear(width, rows * columns * (frames // stride))
        for part in (self.proj, self.blocks, self.head):
            part.apply(_initialise)
        with torch.no_grad():
            self.head.weight.mul_(head_scale)

    def patchify(self, clip: Tensor) -> Tensor:
        """The pixels of each patch in the frames that are predicted, `(B, h, w, t, P)`."""
        return flat_patches(clip, self.encoder.patch, self.stride)

    def predict(self, clip: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Pixels `(M, P)` of the hidden tokens, and features `(B, C, V)` of the visible ones on cortex.

        Raises
        ------
        ValueError : clips of a batch differ in how many tokens are hidden or left visible, or are too long.
        """
        encoder, times = self.encoder, hidden.shape[-1]
        if clip.shape[-1] > encoder.context_frames:
            raise ValueError(f"a clip of {clip.shape[-1]} frames; positions are learned for {encoder.context_frames}")
        cortical_hw, visible = encoder.cortical_hw, ~hidden
        if cortical_hw is not None:
            visible = visible & cortical_hw[..., None]
        seen_BV, hidden_BM = _tokens(visible), _tokens(hidden)
        patches_BNP = flat_patches(encoder.on_cortex(clip), encoder.patch).flatten(1, 3)
        patches_BVP = patches_BNP.gather(1, seen_BV[..., None].expand(-1, -1, patches_BNP.shape[-1]))
        features_BVC = encoder.encode(patches_BVP, times, seen_BV)
        return self.decode(features_BVC, hidden_BM, times).flatten(0, 1), features_BVC.movedim(-1, 1)

    def decode(self, features_BVC: Tensor, hidden_BM: Tensor, times: int) -> Tensor:
        """Pixels `(B, M, P)`; features carry their positions from the encoder and are given none again."""
        masks_BMC = self.mask_token + self.pos_embed(times, hidden_BM)
        cls_token = self.cls_token.expand(len(features_BVC), -1, -1)
        tokens = torch.cat([cls_token, self.proj(features_BVC), masks_BMC], dim=1)
        for block in self.blocks:
            tokens = block(tokens)
        return self.head(self.norm(tokens[:, tokens.shape[1] - hidden_BM.shape[1] :]))


def _tokens(chosen: Tensor) -> Tensor:
    """Numbers of the chosen tokens in each clip, `(B, tokens)`, in rising order."""
    counts = chosen.flatten(1).sum(1)
    if bool((counts != counts[0]).any()):
        raise ValueError(f"clips of one batch with {counts.tolist()} tokens; every clip needs equally many")
    return chosen.flatten(1).nonzero()[:, 1].view(len(chosen), -1)


# Encoder blocks 3 to 15, width 64 a block, heads of 64; the decoder follows from it.
_SIZES = {
    name: {"width": 64 * depth, "depth": depth, "heads": depth}
    for name, depth in (
        ("2m", 3),
        ("13m", 6),
        ("43m", 9),
        ("100m", 12),
        ("193m", 15),
    )
}

DESCRIPTION = Description(
    name="flatmap_mae",
    input="flat map",
    objective="masked reconstruction",
    mixing="attention among all visible tokens of a clip",
    source="Lane et al. (2026), ICML (CortexMAE)",
    build=FlatmapViT,
    sizes=_SIZES,
    default="100m",
    learner=FlatmapMae,
    published={
        "2m": "2 M with decoder",
        "13m": "13 M with decoder",
        "43m": "43 M with decoder",
        "100m": "100 M with decoder",
        "193m": "193 M with decoder",
    },
)
