"""BrainMT: a convolutional stem for each frame, then Mamba along time and place, then attention among all tokens.

Tokens stand in a row with all frames of a place before the next place, so that the scan follows time first. The authors
trained with labels only and published no pretraining objective; ours is masked reconstruction. Because the stem's
convolutions reach across patches, hidden patches must also be taken out of the clip before it, see `overlapping`.

The corrected network differs from the published one in four points, see `DESCRIPTION.defects`. Its memory grows
linearly with the number of frames: the stem runs on few frames at a time and is run again for the gradient.

Source: Kannan et al. (2025), BrainMT: A hybrid Mamba-transformer architecture for modeling long-range dependencies in
functional MRI data, MICCAI.

Legend: B clip; X Y Z T voxels and frames; x y z t places and token times; S places; N tokens in a row; C channels; F
frames that run through the stem together.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from pipeline.models.description import Description, Variant
from pipeline.models.encoder import VoxelEncoder
from pipeline.models.learners.reconstruction import MaskedReconstruction
from pipeline.models.parts.layers import DropPath, Mlp
from pipeline.models.parts.mamba import Mamba
from pipeline.models.parts.transformer import Attention, sine_positions

# Amplitude of the sines that tell the time. Tokens leave the stem with a standard deviation of 0.5, so that sines of 1
# outshine them: after 160 steps on slow planted courses the masked error is 0.163 of 0.53 at amplitude 1, 0.102 at 0.1.
TIME_AMPLITUDE = 0.1


class ResidualConvolution(nn.Module):
    """Two convolutions, each followed by a norm over channels, with a GELU (tanh form) between, beside a residual."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv3d(channels, channels, 3, padding=1)
        self.norm1 = nn.LayerNorm(channels)
        self.conv2 = nn.Conv3d(channels, channels, 3, padding=1)
        self.norm2 = nn.LayerNorm(channels)

    def forward(self, frames_FCXYZ: Tensor) -> Tensor:
        """Same shape out."""
        inner = self.norm1(self.conv1(frames_FCXYZ).movedim(1, -1))
        inner = self.conv2(functional.gelu(inner, approximate="tanh").movedim(-1, 1))
        return frames_FCXYZ + self.norm2(inner.movedim(1, -1)).movedim(-1, 1)


class Stem(nn.Module):
    """Frames to tokens: convolutions of stride 2, so that n of them map 2^n voxels along each axis to one place.

    Parameters
    ----------
    inner : channels behind each convolution but the last. width : behind the last.
    frames_at_once : frames whose inner volumes exist at one time (at 96^3 voxels, 41 MB each in float32).
    """

    def __init__(self, inner: Sequence[int], width: int, frames_at_once: int) -> None:
        super().__init__()
        self.frames_at_once = frames_at_once
        widths = [1, *inner, width]
        layers: list[nn.Module] = []
        for i in range(len(widths) - 1):
            layers.append(nn.Conv3d(widths[i], widths[i + 1], 3, stride=2, padding=1, bias=False))
            if i < min(2, len(inner)):
                layers.append(nn.ReLU())
            if 0 < i < len(inner):
                layers.append(ResidualConvolution(widths[i + 1]))
        self.layers = nn.Sequential(*layers)

    def forward(self, clip_B1XYZT: Tensor) -> Tensor:
        """Tokens `(B, C, x, y, z, t)`; an axis that 2^n does not divide is rounded up."""
        clips, frames = len(clip_B1XYZT), clip_B1XYZT.shape[-1]
        count = max(1, self.frames_at_once // clips)
        # What a piece keeps for its gradient is a view of the clip, not its frames.
        pieces = [
            checkpoint(self._embed_frames, clip_B1XYZT, first, count, use_reentrant=False, preserve_rng_state=False)
            if torch.is_grad_enabled()
            else self._embed_frames(clip_B1XYZT, first, count)
            for first in range(0, frames, count)
        ]
        return torch.cat(pieces, dim=-1)

    def _embed_frames(self, clip_B1XYZT: Tensor, first: int, count: int) -> Tensor:
        frames_BF1XYZ = clip_B1XYZT[..., first : first + count].movedim(-1, 1)
        tokens = self.layers(frames_BF1XYZ.flatten(0, 1))
        return torch.unflatten(tokens, 0, frames_BF1XYZ.shape[:2]).movedim(1, -1)


class MambaLayer(nn.Module):
    """A norm and a Mamba block beside a residual."""

    def __init__(self, channels: int, states: int, both_directions: bool, drop_path: float) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(channels, eps=1e-5)
        self.mixer = Mamba(channels, states, both_directions=both_directions)
        self.drop_path = DropPath(drop_path)

    def forward(self, tokens_BNC: Tensor) -> Tensor:
        """Same shape out."""
        return tokens_BNC + self.drop_path(self.mixer(self.norm(tokens_BNC)))


class AttentionLayers(nn.Module):
    """Attention among all tokens, then an MLP, as often as there are `drop_paths`.

    With `shared`, all layers have one MLP and one norm, which stands before attention and MLP alike.
    """

    def __init__(self, channels: int, heads: int, drop_paths: Sequence[float], shared: bool) -> None:
        super().__init__()
        own = 1 if shared else len(drop_paths)
        self.attn = nn.ModuleList(Attention(channels, heads) for _ in drop_paths)
        self.norm1 = nn.ModuleList(nn.LayerNorm(channels) for _ in range(own))
        self.norm2 = None if shared else nn.ModuleList(nn.LayerNorm(channels) for _ in range(own))
        self.mlp = nn.ModuleList(Mlp(channels, ratio=2) for _ in range(own))
        self.drop_paths = nn.ModuleList(DropPath(rate) for rate in drop_paths)

    def forward(self, tokens_BNC: Tensor) -> Tensor:
        """Same shape out."""
        for layer, (attn, drop_path) in enumerate(zip(self.attn, self.drop_paths, strict=True)):
            own = layer % len(self.mlp)
            norm1, norm2 = self.norm1[own], (self.norm2 or self.norm1)[own]
            tokens_BNC = tokens_BNC + drop_path(attn(norm1(tokens_BNC)))
            tokens_BNC = tokens_BNC + drop_path(self.mlp[own](norm2(tokens_BNC)))
        return tokens_BNC


class BrainMT(VoxelEncoder):
    """The encoder.

    Parameters
    ----------
    width, grid : channels of a token; places along x, y, z.
    patch : voxels along x, y, z, and frames; follows from the stem, which has one convolution more than `stem` widths.
    context_frames : frames of a clip in pretraining; corrected, clips of any length run.
    stem : channels behind each convolution of the stem but the last.
    mamba_depth, attention_depth, heads, states : layers of either kind, attention heads, states of a scan's channel.
    drop_path : stochastic depth of the last layer; it grows linearly from 0 at the first.
    frames_at_once : frames that run through the stem together.
    variant : "upstream" is the published code, defects included; its clips have `context_frames` frames.
    """

    overlapping = True  # a token depends on voxels of its neighbours' patches

    def __init__(
        self,
        width: int = 512,
        grid: Sequence[int] = (6, 7, 6),
        patch: Sequence[int] = (16, 16, 16, 1),
        context_frames: int = 200,
        stem: Sequence[int] = (64, 128, 256),
        mamba_depth: int = 12,
        attention_depth: int = 8,
        heads: int = 2,
        states: int = 16,
        drop_path: float = 0.0,
        frames_at_once: int = 4,
        variant: Variant = "corrected",
    ) -> None:
        super().__init__(width, [mamba_depth + attention_depth], [heads], grid, patch, context_frames, False)
        del self.patch_embed  # the stem stands in its place
        edge = 2 ** (len(stem) + 1)
        if self.patch != (edge, edge, edge, 1):
            raise ValueError(
                f"patches of {self.patch}, where a stem of {len(stem) + 1} convolutions makes {edge}^3 x 1"
            )
        self.upstream = variant == "upstream"
        self.stem = Stem(stem, width, frames_at_once)
        places = self.grids[0][0] * self.grids[0][1] * self.grids[0][2]
        self.pos_embed = _learned(places, width)
        self.cls_token = _learned(2, width) if self.upstream else None  # the token, and its position in space
        self.time_embed = _learned(context_frames, width) if self.upstream else None
        rates = torch.linspace(0, drop_path, mamba_depth + attention_depth, device="cpu").tolist()
        self.mamba = nn.ModuleList(MambaLayer(width, states, not self.upstream, rate) for rate in rates[:mamba_depth])
        self.norm = nn.RMSNorm(width, eps=1e-5)
        self.attention = AttentionLayers(width, heads, rates[mamba_depth:], shared=self.upstream)

    def embed(self, clip_B1XYZT: Tensor) -> Tensor:
        """Tokens `(B, C, x, y, z, t)` before the first Mamba layer."""
        if not self.upstream:
            return self.stem(clip_B1XYZT)
        return self.stem(clip_B1XYZT.transpose(2, 3)).transpose(2, 3)  # its kernels were learned with y before x

    def encode(self, tokens_BCxyzt: Tensor) -> Tensor:
        """Features `(B, C, x, y, z, t)` of tokens."""
        ordered_BCxyzt = tokens_BCxyzt.transpose(2, 3) if self.upstream else tokens_BCxyzt
        row_BNC = self._mix(ordered_BCxyzt.movedim(1, -1).flatten(1, 3))
        row_BNC = row_BNC[:, 1:] if self.upstream else row_BNC
        features = torch.unflatten(row_BNC, 1, ordered_BCxyzt.shape[2:]).movedim(-1, 1)
        return features.transpose(2, 3) if self.upstream else features

    def summary(self, clip_B1XYZT: Tensor) -> Tensor:
        """What the published classifier reads, `(B, C)`: the first row upstream, the mean over tokens corrected."""
        if not self.upstream:
            return self(clip_B1XYZT).flatten(2).mean(-1)
        ordered_BCxyzt = self.embed(clip_B1XYZT).transpose(2, 3)
        return self._mix(ordered_BCxyzt.movedim(1, -1).flatten(1, 3))[:, 0]

    def _mix(self, tokens_BStC: Tensor) -> Tensor:
        """Positions, then all layers, on a row `(B, N, C)` whose first token upstream is the class token."""
        times, channels = tokens_BStC.shape[2:]
        if self.time_embed is None or self.cls_token is None:
            time_tC = TIME_AMPLITUDE * sine_positions(torch.arange(times, device=tokens_BStC.device), channels)
            row_BNC = (tokens_BStC + self.pos_embed[:, None] + time_tC.to(tokens_BStC.dtype)).flatten(1, 2)
        elif times != self.context_frames:
            raise ValueError(f"a clip of {times} frames, where the published BrainMT takes {self.context_frames}")
        else:
            row_BNC = (tokens_BStC + self.pos_embed[:, None] + self.time_embed).flatten(1, 2)
            class_B1C = self.cls_token.sum(0).expand(len(row_BNC), 1, -1)
            row_BNC = torch.cat([class_B1C.to(row_BNC.dtype), row_BNC], dim=1)
        for layer in self.mamba:
            row_BNC = layer(row_BNC)
        return self.attention(self.norm(row_BNC))


def _learned(number: int, channels: int) -> nn.Parameter:
    return nn.Parameter(nn.init.trunc_normal_(torch.empty(number, channels), std=0.02))


DESCRIPTION = Description(
    name="brainmt",
    input="voxels",
    objective="masked reconstruction",
    mixing="Mamba along time and place, then attention among all tokens",
    source="Kannan et al. (2025), MICCAI",
    build=BrainMT,
    sizes={"paper": {"width": 512, "patch": (16, 16, 16, 1), "drop_path": 0.1}},
    default="paper",
    learner=MaskedReconstruction,
    published={"paper": "39,104,961 upstream, with the linear head of 513; no pretraining objective was published"},
    defects={
        "one direction": "the scan runs forwards only, so that the class token in front sees nothing before attention; "
        "corrected: in both directions, and the mean over tokens instead of a class token",
        "shared MLP": "all attention layers have one MLP and one norm; corrected: one MLP and two norms each",
        "fixed length": "learned times, so that clips have exactly 200 frames; corrected: sines, and any length",
        "axes": "volumes are turned to y, x, z; corrected: x, y, z as everywhere",
    },
)
