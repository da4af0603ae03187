"""BrainLM: a masked autoencoder on parcels, one token for each parcel and 20 frames.

`corrected` keeps the tokens of the first BrainLM at all three sizes: the signal of one parcel over one patch of frames,
placed by a linear map of the parcel's coordinates and by sines of the token time, so that any set of parcels and any
number of patches will do. The encoder sees the visible tokens alone; a narrower decoder gets the hidden ones back as a
learned vector. `upstream` builds what was published, see `pipeline.models.brainlm_upstream`.

Source: Ortega Caro et al. (2024), BrainLM: a foundation model for brain activity recordings, ICLR.

Legend: B clip; R parcels; T frames; t token times; N = R t tokens; V visible and M hidden tokens; C channels, D of the
decoder; K coordinates; P frames of a patch.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil, floor

import torch
from torch import Tensor, nn

from pipeline.models.brainlm_upstream import DROPOUT, EPS, ImageBrainLM, PostNormBlock, RowBrainLM, upstream_decoder
from pipeline.models.description import Description, Variant
from pipeline.models.learners.autoencoder import Decoder, MaskedAutoencoder
from pipeline.models.parts.token_encoder import DecoderShape, Positions, Table, TokenEncoder, as_table
from pipeline.models.parts.transformer import Block, sine_positions


def spread_places(parcels: int) -> Tensor:
    """Stand-in for the coordinates of parcels `(R, 3)`: points spread evenly over a sphere, without any anatomy.

    They tell parcels apart, nothing more. Source: Gonzalez (2010), Measurement of areas on a sphere using Fibonacci
    lattices.
    """
    number_R = torch.arange(parcels, dtype=torch.float32)
    height_R = 1 - (2 * number_R + 1) / parcels
    turn_R = number_R * torch.pi * (3 - 5**0.5)
    ring_R = (1 - height_R.square()).sqrt()
    return torch.stack([ring_R * turn_R.cos(), ring_R * turn_R.sin(), height_R], dim=1)


def robust_statistics(clips: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Median and interquartile range `(R,)` of each parcel over all frames of runs `(R, T)`, each less its own mean.

    Raises
    ------
    ValueError : half of a parcel's values or more are equal, so that its range is 0.
    """
    # torch.quantile takes no more than 16 M values.
    sorted_RT = torch.cat([clip_RT - clip_RT.mean(1, keepdim=True) for clip_RT in clips], dim=1).sort(dim=1).values
    last = sorted_RT.shape[1] - 1
    low_R, median_R, high_R = (
        torch.lerp(sorted_RT[:, floor(share * last)], sorted_RT[:, ceil(share * last)], share * last % 1)
        for share in (0.25, 0.5, 0.75)
    )
    if not bool((high_R > low_R).all()):
        raise ValueError(f"parcels {(high_R <= low_R).nonzero()[:, 0].tolist()} hardly vary; leave them out")
    return median_R, high_R - low_R


def robust_scaling(clip_RT: Tensor, median_R: Tensor, iqr_R: Tensor, variant: Variant = "corrected") -> Tensor:
    """A run less its own mean, then scaled by the median and interquartile range of the training set.

    Parameters
    ----------
    clip_RT : one run, in any unit.
    median_R, iqr_R : of `robust_statistics`, in that unit.
    variant : `upstream` divides the median alone, as the public toolkit does, so amplitudes stay in their unit.
    """
    centred_RT = clip_RT - clip_RT.mean(1, keepdim=True)
    if variant == "upstream":
        return centred_RT - (median_R / iqr_R)[:, None]
    return (centred_RT - median_R[:, None]) / iqr_R[:, None]


class ParcelPositions(Positions):
    """A linear map of the parcel's coordinates, and sines of the token time."""

    def __init__(self, coordinates: int, width: int) -> None:
        super().__init__()
        self.width = width
        self.place = nn.Linear(coordinates, width)

    def forward(self, table_RK: Tensor, grid: tuple[int, int]) -> Tensor:
        """`(N, width)`. Coordinates come centred and scaled: whatever their unit, all axes count alike."""
        scaled_RK = (table_RK - table_RK.mean(0)) / table_RK.std(0, correction=0).clamp_min(1e-6)
        times_tC = sine_positions(torch.arange(grid[1], device=table_RK.device), self.width)
        return (self.place(scaled_RK)[:, None] + times_tC).flatten(0, 1)


class BrainLM(TokenEncoder):
    """The corrected encoder; `table_RK` are the coordinates."""

    def new_positions(self, width: int) -> Positions:
        """Positions of another width for the same parcels."""
        return ParcelPositions(self.table.shape[1], width)


def brainlm(
    width: int,
    depth: int,
    heads: int,
    ratio: int = 4,
    decoder_width: int = 512,
    decoder_depth: int = 8,
    decoder_heads: int = 16,
    decoder_ratio: int = 4,
    patch: int = 20,
    image_patch: int | None = None,
    parcels: int = 424,
    frames: int = 200,
    coordinates: Table | None = None,
    variant: Variant = "corrected",
) -> TokenEncoder:
    """Build an encoder.

    Parameters
    ----------
    width, depth, heads, ratio : channels, blocks, attention heads, and how much wider the MLP is.
    decoder_width, decoder_depth, decoder_heads, decoder_ratio : the same of the decoder that its learner adds.
    patch : frames of a token.
    image_patch : edge of the patches of the published image model; None: its row of tokens. Corrected has no image.
    parcels, frames : of a clip in pretraining.
    coordinates : `(R, 3)`, x, y and z of the parcels' centres in millimetres; None: `spread_places`.
    variant : see the head of the file.
    """
    table_RK = spread_places(parcels) if coordinates is None else as_table(coordinates, parcels, 3)
    decoder = DecoderShape(decoder_width, decoder_depth, decoder_heads, decoder_ratio)
    if variant == "corrected":
        blocks = [Block(width, heads, ratio) for _ in range(depth)]
        return BrainLM(width, blocks, patch, frames, table_RK, decoder)
    if image_patch is None:
        rows = [PostNormBlock(width, heads, ratio) for _ in range(depth)]
        return RowBrainLM(width, rows, patch, frames, table_RK, decoder, eps=EPS, dropout=DROPOUT)
    blocks = [Block(width, heads, ratio, eps=EPS) for _ in range(depth)]
    return ImageBrainLM(width, blocks, image_patch, frames, table_RK, decoder, eps=EPS)


def autoencoder(encoder: TokenEncoder) -> MaskedAutoencoder:
    """An encoder of `brainlm` with the decoder that belongs to it."""
    if not isinstance(encoder, BrainLM):
        return MaskedAutoencoder(encoder, upstream_decoder(encoder))
    width, depth, heads, ratio = encoder.decoder_shape
    # Start near the zero predictor, as the decoder of voxel encoders does.
    head = nn.Linear(width, encoder.patch)
    nn.init.trunc_normal_(head.weight, std=0.02)
    nn.init.zeros_(head.bias)
    return MaskedAutoencoder(encoder, Decoder(encoder, width, [Block(width, heads, ratio) for _ in range(depth)], head))


DESCRIPTION = Description(
    name="brainlm",
    input="parcels",
    objective="masked reconstruction",
    mixing="attention among visible tokens of parcel and time",
    source="Ortega Caro et al. (2024), ICLR",
    build=brainlm,
    sizes={
        "13m": {
            "width": 512,
            "depth": 4,
            "heads": 4,
            "ratio": 2,
            "decoder_width": 512,
            "decoder_depth": 2,
            "decoder_heads": 4,
            "decoder_ratio": 2,
        },
        "111m": {"width": 768, "depth": 12, "heads": 12, "image_patch": 16},
        "650m": {"width": 1280, "depth": 32, "heads": 16, "image_patch": 14},
    },
    default="111m",
    learner=autoencoder,
    published={
        "13m": "13 M, with decoder; 13,035,308 upstream, without 0.39 M of an inherited head that is never called",
        "111m": "111 M, with decoder; 111,655,680 upstream",
        "650m": "650 M, with decoder; 656,613,964 upstream",
    },
    defects={
        "image": "111m, 650m: patches mix 16 or 14 parcels that are neighbours along Y alone, in three equal channels;"
        " 378 of 729 tokens (496 of 961) hold nothing but padding; positions of a clip depend on its length",
        "convolution": "13m: a convolution along the row of visible tokens mixes those that happen to be kept together",
        "coordinates": "13m: millimetres enter the map to positions unscaled",
        "robust scaling": "the median alone is divided by the interquartile range, see `robust_scaling`",
    },
)
