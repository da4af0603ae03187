"""TFF: a 3D convolutional network makes a vector of every frame, and BERT mixes the vectors in time.

Source: Malkiel et al. (2022), Self-supervised transformers for fMRI representation, MIDL; channels, kernels and rates
as in the public code (GonyRosenman/TFF), which takes its blocks from Myronenko (2018), 3D MRI brain tumor segmentation.

Legend: B clip; F frames of all clips; X Y Z T voxels and frames; C channels; P voxels of a frame.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from pipeline.models.description import Description, Variant
from pipeline.models.encoder import Encoder
from pipeline.models.learners.reconstruction import Reconstructor
from pipeline.models.parts.layers import patchify
from pipeline.models.parts.post_norm import PostNormBlock

Volume = tuple[int, int, int]
Phase = Literal["autoencoder", "transformer"]


def halved(volume: Volume) -> Volume:
    """Voxels after a convolution of stride 2: half, rounded up."""
    x, y, z = volume
    return -(-x // 2), -(-y // 2), -(-z // 2)


class ResidualBlock(nn.Module):
    """Twice a group norm, a leaky ReLU and a convolution; then dropout, beside a residual."""

    def __init__(self, channels: int, dropout: float) -> None:
        super().__init__()
        groups = channels // 4
        self.block = nn.Sequential(*activated(channels, channels, groups), *activated(channels, channels, groups))
        self.dropout = nn.Dropout(dropout)

    def forward(self, voxels_FCXYZ: Tensor) -> Tensor:
        """Same shape out."""
        return voxels_FCXYZ + self.dropout(self.block(voxels_FCXYZ))


def activated(channels_in: int, channels_out: int, groups: int) -> tuple[nn.Module, ...]:
    """Group norm, leaky ReLU (in the norm's memory), 3 x 3 x 3 convolution."""
    convolution = nn.Conv3d(channels_in, channels_out, 3, padding=1)
    return nn.GroupNorm(groups, channels_in), nn.LeakyReLU(inplace=True), convolution


class FrameEncoder(nn.Module):
    """Frames `(F, c, X, Y, Z)` to vectors `(F, C)`: three halvings, then a convolution to few channels, flattened."""

    def __init__(self, volume: Volume, inputs: int, base: int, width: int, dropouts: tuple[float, float]) -> None:
        super().__init__()
        spatial, residual = dropouts
        stages: list[nn.Module] = [nn.Conv3d(inputs, base, 3, padding=1), nn.Dropout3d(spatial)]
        for stage, blocks in enumerate((1, 2, 2)):
            channels = base * 2**stage
            stages += [ResidualBlock(channels, residual) for _ in range(blocks)]
            stages += [nn.Conv3d(channels, 2 * channels, 3, stride=2, padding=1)]
            volume = halved(volume)
        stages += [ResidualBlock(8 * base, residual) for _ in range(4)]
        self.stages = nn.Sequential(*stages, *activated(8 * base, base // 2, 8), nn.Flatten())
        voxels = base // 2 * volume[0] * volume[1] * volume[2]
        # At the published volume 75 x 93 x 81 the flattened voxels are the 2,640 channels, and no linear map follows.
        self.into_width = nn.Identity() if voxels == width else nn.Linear(voxels, width)

    def forward(self, frames_FcXYZ: Tensor) -> Tensor:
        """One vector a frame."""
        return self.into_width(self.stages(frames_FcXYZ))


class FrameDecoder(nn.Module):
    """Vectors `(F, C)` to frames `(F, 1, X, Y, Z)`: the way of the encoder back, with nearest-neighbour upsampling."""

    def __init__(self, volume: Volume, base: int, width: int, dropout: float) -> None:
        super().__init__()
        self.volumes = [volume, halved(volume), halved(halved(volume)), halved(halved(halved(volume)))]
        x, y, z = self.volumes.pop()
        self.base, self.lowest = base, (base // 2, x, y, z)
        self.out_of_width = nn.Linear(width, base // 2 * x * y * z)
        self.expansion = nn.Sequential(*activated(base // 2, 8 * base, 2))
        channels = [8 * base, 4 * base, 2 * base, base]
        self.halving = nn.ModuleList(nn.Conv3d(2 * after, after, 1) for after in channels[1:])
        self.blocks = nn.ModuleList(ResidualBlock(after, dropout) for after in channels[1:])
        self.head = nn.Sequential(nn.Conv3d(base, base, 3, padding=1), nn.Conv3d(base, 1, 1))

    def forward(self, vectors_FC: Tensor) -> Tensor:
        """One frame a vector."""
        voxels = self.expansion(self.out_of_width(vectors_FC).unflatten(1, self.lowest))
        for convolution, block, volume in zip(self.halving, self.blocks, reversed(self.volumes), strict=True):
            voxels = block(functional.interpolate(convolution(voxels), size=volume))
        return self.head(voxels)


class FrameTransformer(nn.Module):
    """BERT on the vectors of a clip's frames: learned positions, then blocks.

    The upstream variant puts a token for the clip before the frames, and carries what BERT has besides: an embedding of
    token types, one of words that nothing reads, and a pooler of the clip's token that only fine-tuning reads.
    """

    def __init__(
        self, width: int, layers: int, heads: int, hidden: int, positions: int, dropout: float, bert: bool
    ) -> None:
        super().__init__()
        self.positions_NC = nn.Parameter(torch.empty(positions, width))
        self.norm = nn.LayerNorm(width, eps=1e-12)
        self.dropout = nn.Dropout(dropout)
        blocks = [PostNormBlock(width, heads, hidden, "gelu", dropout, eps=1e-12) for _ in range(layers)]
        self.blocks = nn.ModuleList(blocks)
        self.clip_token = nn.Sequential(nn.Linear(width, width), nn.LeakyReLU()) if bert else None
        self.token_types = nn.Parameter(torch.empty(2, width)) if bert else None
        self.word_embeddings = nn.Parameter(torch.empty(1, width)) if bert else None
        self.pooler = nn.Linear(width, width) if bert else None
        self._start()

    def _start(self) -> None:
        """BERT's own start: weights from N(0, 0.02), biases at 0."""
        for name, value in self.named_parameters():
            if "norm" in name or name.startswith("clip_token"):
                continue
            if name.endswith("bias"):
                nn.init.zeros_(value)
            else:
                nn.init.normal_(value, std=0.02)

    def forward(self, vectors_BTC: Tensor) -> Tensor:
        """Mixed vectors `(B, T, C)`."""
        tokens_BNC = vectors_BTC
        if self.clip_token is not None and self.token_types is not None:
            half_1C = vectors_BTC.new_full((1, vectors_BTC.shape[-1]), 0.5)
            clip_B1C = self.clip_token(half_1C).expand(len(vectors_BTC), 1, -1)
            tokens_BNC = torch.cat([clip_B1C, vectors_BTC], dim=1) + self.token_types[0]
        tokens = tokens_BNC.shape[1]
        if tokens > len(self.positions_NC):
            raise ValueError(f"{tokens} tokens, but learned positions for {len(self.positions_NC)}; raise `positions`")
        tokens_BNC = self.dropout(self.norm(tokens_BNC + self.positions_NC[:tokens]))
        for block in self.blocks:
            tokens_BNC = block(tokens_BNC)
        return tokens_BNC[:, -vectors_BTC.shape[1] :]


class TFF(Encoder):
    """A convolutional network on frames, then BERT in time: `(B, 1, X, Y, Z, T)` to features `(B, C, 1, 1, 1, T)`.

    Parameters
    ----------
    volume : voxels along x, y, z; 75, 93, 81 is the published crop of the 2 mm MNI grid.
    context_frames : frames of a clip in pretraining.
    base : channels of the first convolution, a multiple of 4; doubled by each of three halvings.
    width : channels of a frame's vector.
    layers, heads, hidden : of BERT, with the channels between the linear maps of its MLPs.
    positions : most tokens of a clip: its frames, and upstream one more.
    dropout, spatial_dropout, block_dropout : rates of BERT, of the first convolution's channels, of residual blocks.
    variant : upstream takes two channels, `(B, 2, X, Y, Z, T)`; see `DESCRIPTION.defects`.
    """

    def __init__(
        self,
        volume: Sequence[int] = (75, 93, 81),
        context_frames: int = 20,
        base: int = 4,
        width: int = 2640,
        layers: int = 2,
        heads: int = 16,
        hidden: int = 3072,
        positions: int = 30,
        dropout: float = 0.1,
        spatial_dropout: float = 0.2,
        block_dropout: float = 0.4,
        variant: Variant = "corrected",
    ) -> None:
        super().__init__()
        x, y, z = volume
        if base % 4:
            raise ValueError(f"{base} channels, which groups of 4 do not tile")
        self.volume, self.patch, self.context_frames = (x, y, z), (x, y, z, 1), context_frames
        self.base, self.width, self.inputs = base, width, 2 if variant == "upstream" else 1
        self.frames = FrameEncoder(self.volume, self.inputs, base, width, (spatial_dropout, block_dropout))
        self.transformer = FrameTransformer(width, layers, heads, hidden, positions, dropout, variant == "upstream")

    @property
    def channels(self) -> int:
        """Channels of the features."""
        return self.width

    @property
    def input_shape(self) -> tuple[int, ...]:
        """`(1, X, Y, Z, T)`, upstream `(2, X, Y, Z, T)`: globally and voxel by voxel z-scored."""
        return self.inputs, *self.volume, self.context_frames

    def embed(self, clip_BcXYZT: Tensor) -> Tensor:
        """A vector a frame `(B, T, C)`, before any frame sees another."""
        clips = len(clip_BcXYZT)
        return self.frames(clip_BcXYZT.movedim(-1, 1).flatten(0, 1)).unflatten(0, (clips, -1))

    def encode(self, vectors_BTC: Tensor) -> Tensor:
        """Features `(B, C, 1, 1, 1, T)` of frames' vectors."""
        return self.transformer(vectors_BTC).mT[:, :, None, None, None]

    def forward(self, clip_BcXYZT: Tensor) -> Tensor:
        """Features `(B, C, 1, 1, 1, T)` of clips; the last axis is time."""
        return self.encode(self.embed(clip_BcXYZT))


class FrameReconstruction(Reconstructor):
    """The encoder and a decoder of frames, which is trained first without the transformer, then with it."""

    encoder: TFF

    def __init__(self, encoder: TFF, dropout: float = 0.2) -> None:
        super().__init__()
        self.encoder = encoder
        self.decoder = FrameDecoder(encoder.volume, encoder.base, encoder.width, dropout)

    def patchify(self, clip: Tensor) -> Tensor:
        """The voxels of each frame, `(B, 1, 1, 1, T, P)`; of the first channel, which is what is rebuilt."""
        return patchify(clip[:, :1], self.encoder.patch)

    def forward(self, clip_BcXYZT: Tensor, phase: Phase = "transformer") -> Tensor:
        """The rebuilt clip `(B, 1, X, Y, Z, T)`."""
        vectors_BTC = self.encoder.embed(clip_BcXYZT)
        if phase == "transformer":
            vectors_BTC = self.encoder.transformer(vectors_BTC)
        return self._decode(vectors_BTC)

    def predict(self, clip: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Voxels `(M, P)` of hidden frames, which come in as zeros for want of a mask token, and features."""
        features_BC111T = self.encoder(clip.masked_fill(hidden[:, None], 0.0))
        found_NP = self.patchify(self._decode(features_BC111T[:, :, 0, 0, 0].mT)).flatten(0, -2)
        return found_NP.index_select(0, hidden.flatten().nonzero()[:, 0]), features_BC111T

    def _decode(self, vectors_BTC: Tensor) -> Tensor:
        frames_F1XYZ = self.decoder(vectors_BTC.flatten(0, 1))
        return frames_F1XYZ.unflatten(0, vectors_BTC.shape[:2]).movedim(1, -1)


DESCRIPTION = Description(
    name="tff",
    input="voxels",
    objective="phases",
    mixing="3D convolutions in each frame, then BERT in time",
    source="Malkiel et al. (2022), MIDL",
    build=TFF,
    sizes={"paper": {"volume": (75, 93, 81), "width": 2640}, "cube": {"volume": (96, 96, 96), "width": 2640}},
    default="paper",
    learner=FrameReconstruction,
    published={"paper": "none; 109,559,023 by the public code's layers, with its decoder"},
    defects={
        "two channels": "the clip comes twice, z-scored globally and voxel by voxel, and only the first is rebuilt; "
        "corrected takes the one clip that every voxel encoder takes",
        "leftovers of BERT": "words, token types, a token for the clip and its pooler, which the features do not need",
    },
    without_gradient={
        "transformer.word_embeddings": "upstream: BERT's words, which nothing reads",
        "transformer.pooler": "upstream: read by fine-tuning alone",
    },
)
