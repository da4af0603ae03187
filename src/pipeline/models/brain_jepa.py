"""Brain-JEPA: a transformer on patches of one parcel and 16 frames, placed by functional gradients.

A parcel's position is a linear map of its coordinates on 30 functional gradients, in one half of the channels; the
token time is sines in the other half. `corrected` takes any number of patches and keeps the gradients' geometry.

Source: Dong et al. (2024), Brain-JEPA: brain dynamics foundation model with gradient positioning and spatiotemporal
masking, NeurIPS.

Legend: R parcels; T frames; t token times; N = R t tokens; C channels; K gradients.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pipeline.models.description import Description, Variant
from pipeline.models.learners.joint_embedding import EPS, JointEmbedding, Predictor
from pipeline.models.parts.token_encoder import DecoderShape, Positions, Table, TokenEncoder, as_table
from pipeline.models.parts.transformer import Block, sine_positions

START = 0.02


def functional_gradients(connectome_RR: Tensor, gradients: int = 30, kept: float = 0.1, alpha: float = 0.5) -> Tensor:
    """Coordinates `(R, K)` of parcels on the functional gradients of a group, by diffusion maps.

    Each row keeps its strongest connections, rows are compared by the cosine of their angle, and the comparisons become
    a random walk: parcels are near each other if the walk mixes them fast. Gradients are its slowest modes, summed over
    all diffusion times; the largest entry of each is positive. A parcel without a positive connection, such as one
    without signal, lies at the origin.

    Parameters
    ----------
    connectome_RR : mean correlation of the group, symmetric; the diagonal is ignored.
    gradients : how many, fewer than connected parcels.
    kept : share of the connections of a row that is kept, at least one; doubled until the walk reaches every parcel.
    alpha : 0.5 is the Fokker-Planck normalisation, which weakens the density of parcels.

    Raises
    ------
    ValueError : too few connected parcels.

    Source: Margulies et al. (2016), PNAS 113, 12574; Coifman and Lafon (2006); defaults of the BrainSpace toolbox.
    """
    weights_RR = connectome_RR.double().clone().fill_diagonal_(0).clamp_min(0)
    connected_R = weights_RR.any(1)
    parcels = int(connected_R.sum())
    if gradients >= parcels:
        raise ValueError(f"{gradients} gradients of {parcels} connected parcels, which have at most {parcels - 1}")
    weights_RR = weights_RR[connected_R][:, connected_R]
    shares_R, modes_RR = _walk(weights_RR, kept, alpha)
    while shares_R[1] > 1 - 1e-6 and kept < 1:
        kept *= 2
        shares_R, modes_RR = _walk(weights_RR, kept, alpha)
    share_K, mode_RK = shares_R[1 : gradients + 1], modes_RR[:, 1 : gradients + 1]
    # Groups of parcels that nothing but negative correlations join stay apart: as far as a mixing of 1,000 steps.
    gradient_RK = mode_RK * (share_K / (1 - share_K).clamp_min(1e-3))
    largest_1K = gradient_RK.gather(0, gradient_RK.abs().argmax(0, keepdim=True))
    found_RK = connectome_RR.new_zeros(len(connectome_RR), gradients, dtype=torch.float32)
    found_RK[connected_R] = (gradient_RK * largest_1K.sign()).float()
    return found_RK


def _walk(weights_RR: Tensor, kept: float, alpha: float) -> tuple[Tensor, Tensor]:
    """Eigenvalues of the walk, largest first, and its modes in the columns, of variance 1 where the walk dwells."""
    count = min(len(weights_RR) - 1, max(1, round(kept * (len(weights_RR) - 1))))
    strong_RR = weights_RR * (weights_RR >= weights_RR.topk(count, dim=1).values[:, -1:])
    row_RR = strong_RR / strong_RR.norm(dim=1, keepdim=True)
    affinity_RR = row_RR @ row_RR.T
    density_R = affinity_RR.sum(1)
    affinity_RR = affinity_RR / (density_R[:, None] * density_R).pow(alpha)
    degree_R = affinity_RR.sum(1)
    # The symmetric form of the walk has its eigenvalues, and its eigenvectors times sqrt(degree).
    shares_R, mode_RR = torch.linalg.eigh(affinity_RR / (degree_R[:, None] * degree_R).sqrt())
    return shares_R.flip(0), mode_RR.flip(1) * (degree_R.sum() / degree_R).sqrt()[:, None]


def counted_places(parcels: int, gradients: int) -> Tensor:
    """Stand-in for functional gradients `(R, K)`: sines of the parcel's number, which tell parcels apart, no more."""
    return sine_positions(torch.arange(parcels), gradients)


class GradientPositions(Positions):
    """Sines of the token time, then a linear map of the parcel's gradients, each half of the channels.

    Parameters
    ----------
    times : where the published form is wanted, the only number of token times that it takes; else None.
    """

    def __init__(self, gradients: int, width: int, times: int | None) -> None:
        super().__init__()
        if width % 4:
            raise ValueError(f"{width} channels, where positions need a multiple of 4")
        self.width, self.times = width, times
        self.place = nn.Linear(gradients, width // 2)

    def forward(self, table_RK: Tensor, grid: tuple[int, int]) -> Tensor:
        """`(N, width)`."""
        if self.times not in (None, grid[1]):
            raise ValueError(f"{grid[1]} token times, where the published positions take {self.times}")
        if self.times is None:
            # One scale for all gradients: distances between parcels stay what the diffusion made them.
            centred_RK = table_RK - table_RK.mean(0)
            place_RC = self.place(centred_RK / centred_RK.square().mean().sqrt().clamp_min(1e-6))
        else:
            place_RC = self.place(table_RK)
            place_RC = 2 * (place_RC - place_RC.min()) / (place_RC.max() - place_RC.min()) - 1
        times_tC = sine_positions(torch.arange(grid[1], device=table_RK.device), self.width // 2)
        both = times_tC.expand(grid[0], -1, -1), place_RC[:, None].expand(-1, grid[1], -1)
        return torch.cat(both, dim=-1).flatten(0, 1)


class BrainJepa(TokenEncoder):
    """The encoder.

    Parameters
    ----------
    width, depth, heads, ratio : channels, blocks, attention heads, and how much wider the MLP is.
    predictor_width, predictor_depth, predictor_heads : of the predictor that its learner adds; heads None: as many.
    patch : frames of a token.
    parcels, frames : of a clip in pretraining.
    gradients : how many functional gradients place a parcel.
    table : `(R, K)`, the parcels' coordinates on them, see `functional_gradients`; None: `counted_places`.
    variant : `upstream` is the published form, `DESCRIPTION.defects` says in what it differs.
    """

    def __init__(
        self,
        width: int,
        depth: int,
        heads: int,
        ratio: int = 4,
        predictor_width: int = 384,
        predictor_depth: int = 6,
        predictor_heads: int | None = None,
        patch: int = 16,
        parcels: int = 450,
        frames: int = 160,
        gradients: int = 30,
        table: Table | None = None,
        variant: Variant = "corrected",
    ) -> None:
        self.variant = variant
        predictor = DecoderShape(predictor_width, predictor_depth, predictor_heads or heads, ratio)
        blocks = [Block(width, heads, ratio, eps=EPS) for _ in range(depth)]
        table_RK = counted_places(parcels, gradients) if table is None else as_table(table, parcels, gradients)
        super().__init__(width, blocks, patch, frames, table_RK, predictor, summary=0, eps=EPS)
        start(self, variant)

    def new_positions(self, width: int) -> Positions:
        """Positions of another width for the same parcels."""
        times = self.frames // self.patch if self.variant == "upstream" else None
        return GradientPositions(self.table.shape[1], width, times)


@torch.no_grad()
def start(model: nn.Module, variant: Variant) -> None:
    """Give linear maps the weights they start from: normal, without bias; of standard deviation 0.02 upstream.

    Corrected: 0.55 / sqrt(channels that come in), which is 0.02 for the 768 of base, smaller by sqrt(2 i) for the two
    maps back into the residual stream of block i. Patches of variance 1 and gradients become channels of variance 1 and
    1/2, as sines have. With 0.02 they would have 0.006 and 0.012, and a teacher's features would tell the position and
    nothing else: the loss of a planted signal then falls to 0.001 within 200 steps, shuffled or not.
    """
    for name, module in model.named_modules():
        if not isinstance(module, nn.Linear):
            continue
        nn.init.zeros_(module.bias)
        spread = START
        if variant == "corrected":
            share = 1.0 if name.endswith("patch_embed") else 0.5**0.5 if name.endswith("place") else START * 768**0.5
            spread = share * module.in_features**-0.5
        nn.init.trunc_normal_(module.weight, std=spread, a=-2, b=2)
    if variant == "corrected":
        blocks = [module for module in model.modules() if isinstance(module, Block)]
        for number, block in enumerate(blocks, start=1):
            block.attn.proj.weight /= (2 * number) ** 0.5
            block.mlp.linear2.weight /= (2 * number) ** 0.5


def joint_embedding(encoder: BrainJepa) -> JointEmbedding:
    """An encoder with its teacher and the predictor between them."""
    predictor = Predictor(encoder)
    start(predictor, encoder.variant)
    return JointEmbedding(encoder, predictor)


DESCRIPTION = Description(
    name="brain_jepa",
    input="parcels",
    objective="JEPA",
    mixing="attention among visible tokens of parcel and time",
    source="Dong et al. (2024), NeurIPS",
    build=BrainJepa,
    sizes={
        "small": {"width": 384, "depth": 12, "heads": 6},
        "base": {"width": 768, "depth": 12, "heads": 12},
        "large": {"width": 1024, "depth": 24, "heads": 16},
    },
    default="base",
    learner=joint_embedding,
    published={
        "small": "22 M, encoder; 21.31 M trained, 22.17 M with the fixed sines that the public code counts",
        "base": "86 M, encoder; 85.08 M trained, 86.81 M with the fixed sines",
        "large": "307 M, encoder, the name of the image model; 302.34 M trained, 304.65 M with the fixed sines",
    },
    defects={
        "length": "positions are laid out for 160 frames; any other length fails",
        "positions": "mapped gradients are stretched to -1 and 1 by the extremes of all parcels and channels together:"
        " coordinates of one parcel move all the others",
        "start": "all linear maps start at 0.02: tokens hold their position and hardly any signal, and the smaller"
        " start of deep residual maps is overwritten",
    },
)
