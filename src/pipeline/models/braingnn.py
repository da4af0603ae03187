"""BrainGNN: graph convolution whose weights depend on the parcel, and pooling that keeps the parcels that matter.

Graphs are dense here: a connectome's edges are one matrix, and 0 means no edge. The public code takes partial
correlations for the edges and correlations for the nodes; here both come from the one matrix, edges as its absolute
values off the diagonal.

Source: Li et al. (2021), BrainGNN, Medical Image Analysis 74, 102233.

Legend: B clip; R parcels of the atlas; N parcels still in the graph; I, O channels in and out; C channels.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from pipeline.models.description import Description, Variant
from pipeline.models.encoder import ConnectomeEncoder, Encoder
from pipeline.models.learners.supervised import RegularisedEncoder, Supervised
from pipeline.models.parts.token_encoder import take

EPSILON = 1e-10  # of the logarithms


class Graph(NamedTuple):
    """What is left of a batch of graphs after pooling, and how it was chosen."""

    nodes_BNC: Tensor
    edges_BNN: Tensor
    kept_BN: Tensor  # which of the nodes before pooling
    score_BR: Tensor  # of every node before pooling, in its own place


class ParcelConvolution(nn.Module):
    """Nodes are mapped by weights of their own parcel and summed over neighbours by a softmax of the edges.

    A parcel's weights are a base and a non-negative mixture of those of `communities`: parcels of one community are
    treated alike.
    """

    def __init__(self, parcels: int, communities: int, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.shape = (channels_in, channels_out)
        self.membership_RK = nn.Parameter(torch.empty(parcels, communities).uniform_(-(parcels**-0.5), parcels**-0.5))
        self.basis = nn.Linear(communities, channels_in * channels_out)
        self.bias = nn.Parameter(torch.empty(channels_out).uniform_(-(channels_in**-0.5), channels_in**-0.5))

    def forward(self, nodes_BNI: Tensor, edges_BNN: Tensor, parcel: Tensor) -> Tensor:
        """Nodes `(B, N, O)`; `parcel` says which each is: `(N,)`, where all clips have the same, or `(B, N)`."""
        weights_RIO = self.basis(self.membership_RK.relu()).unflatten(-1, self.shape)
        if parcel.ndim == 1:
            messages_BNO = torch.einsum("bni,nio->bno", nodes_BNI, weights_RIO[parcel])
        else:
            messages_BNO = torch.einsum("bni,bnio->bno", nodes_BNI, weights_RIO[parcel])
        return attention(edges_BNN) @ messages_BNO + self.bias

    def own_flops(self, nodes_BNI: Tensor, edges_BNN: Tensor, parcel: Tensor) -> int:  # noqa: ARG002
        """Operations of the maps of the parcels and of the sums over neighbours; `basis` is counted as a linear map."""
        clips, nodes, channels_in = nodes_BNI.shape
        return 2 * clips * nodes * self.shape[1] * (channels_in + nodes)


def attention(edges_BNN: Tensor) -> Tensor:
    """Softmax of each node's edges, its own of 1 among them; where there is no edge (0) nothing comes through."""
    own_NN = torch.eye(edges_BNN.shape[-1], dtype=torch.bool, device=edges_BNN.device)
    scores_BNN = edges_BNN.masked_fill(edges_BNN == 0, -torch.inf).masked_fill(own_NN, 1.0)
    return scores_BNN.softmax(-1)


class TwoSteps(nn.Module):
    """Edges along one or two steps, without those that return: (A + I)^2 with a diagonal of 0."""

    def forward(self, edges_BNN: Tensor) -> Tensor:
        """Same shape out."""
        own_NN = torch.eye(edges_BNN.shape[-1], dtype=edges_BNN.dtype, device=edges_BNN.device)
        edges_BNN = edges_BNN + own_NN
        return edges_BNN @ edges_BNN * (1 - own_NN)

    def own_flops(self, edges_BNN: Tensor) -> int:
        """Operations of the product."""
        return 2 * edges_BNN.numel() * edges_BNN.shape[-1]


class TopNodes(nn.Module):
    """Keep the `ratio` of nodes with the highest scores, each scaled by its score.

    Source: Gao and Ji (2019), Graph U-Nets; Cangea et al. (2018).
    """

    def __init__(self, channels: int, ratio: float) -> None:
        super().__init__()
        self.ratio = ratio
        self.weight_C = nn.Parameter(torch.empty(channels).uniform_(-(channels**-0.5), channels**-0.5))

    def forward(self, nodes_BNC: Tensor, edges_BNN: Tensor) -> Graph:
        """The pooled graph; its nodes are ordered by score."""
        score_BN = (nodes_BNC @ self.weight_C / self.weight_C.norm()).sigmoid()
        chosen, kept_BN = score_BN.topk(math.ceil(self.ratio * score_BN.shape[1]), dim=1)
        nodes_BNC = take(nodes_BNC, kept_BN) * chosen[..., None]
        edges_BNN = take(take(edges_BNN, kept_BN).mT, kept_BN).mT
        return Graph(nodes_BNC, edges_BNN, kept_BN, score_BN)


def unit_loss(weight_C: Tensor) -> Tensor:
    """Squared distance of the pooling direction's length from 1."""
    return (weight_C.norm() - 1).square()


def top_loss(score_BN: Tensor, ratio: float) -> Tensor:
    """Push the scores of the nodes that are kept to 1 and those of the others to 0: mean of their binary entropies."""
    ordered_BN = score_BN.sort(dim=1, descending=True).values
    kept = math.ceil(ratio * ordered_BN.shape[1])
    low_BN = torch.cat([ordered_BN[:, :kept], 1 - ordered_BN[:, kept:]], dim=1)
    return -(low_BN + EPSILON).log().mean()


def top_loss_of_kept(kept_score_BM: Tensor, ratio: float) -> Tensor:
    """The public code's: of the kept nodes alone, whose lower half is pushed to 0; scores pass a second sigmoid."""
    ordered_BM = kept_score_BM.sigmoid().sort(dim=1).values
    part = int(min(ratio, 1 - ratio) * ordered_BM.shape[1])
    low, high = ordered_BM[:, :part], ordered_BM[:, -part:]
    return -(high + EPSILON).log().mean() - (1 - low + EPSILON).log().mean()


def group_loss(score_BR: Tensor, class_B: Tensor) -> Tensor:
    """Scores of a parcel should agree within a class: its variance, summed over parcels and classes.

    Equal to the paper's trace of S^T L S over M^2, for the M graphs of a class and L the Laplacian of all their pairs.
    """
    groups = [score_BR[class_B == number] for number in sorted({*class_B.tolist()} - {-1})]
    return sum((group.var(0, correction=0).sum() for group in groups), score_BR.new_zeros(()))


class BrainGNN(ConnectomeEncoder, RegularisedEncoder):
    """Two convolutions with pooling, readouts by maximum and mean, two dense layers: `(B, R, R)` to `(B, C)`.

    Parameters
    ----------
    parcels : R; each is a node, and its row of the connectome its channels.
    communities : of the parcels' weights.
    width : channels of the nodes, and of the first dense layer.
    dense : channels of the features.
    ratio : share of nodes that each pooling keeps.
    dropout : rate after the first dense layer; the learner has the one after the second.
    unit, top, group : weights of the losses on the pooling direction, on its scores, and on their agreement in a class.
        None: 1, 0.1 and 0.1; upstream 0, 0.1 and 0, which its public code trains with.
    variant : upstream has the losses of the public code; see `DESCRIPTION.defects`.
    """

    def __init__(
        self,
        parcels: int = 200,
        communities: int = 8,
        width: int = 32,
        dense: int = 512,
        ratio: float = 0.5,
        dropout: float = 0.5,
        unit: float | None = None,
        top: float = 0.1,
        group: float | None = None,
        variant: Variant = "corrected",
    ) -> None:
        super().__init__(parcels, dense)
        self.variant = variant
        corrected = variant == "corrected"
        self.unit = float(corrected) if unit is None else unit
        self.top, self.group = top, (0.1 if corrected else 0.0) if group is None else group
        self.convolution1 = ParcelConvolution(parcels, communities, parcels, width)
        self.pooling1 = TopNodes(width, ratio)
        self.two_steps = TwoSteps()
        self.convolution2 = ParcelConvolution(parcels, communities, width, width)
        self.pooling2 = TopNodes(width, ratio)
        self.dense1, self.norm1 = nn.Linear(4 * width, width), nn.BatchNorm1d(width)
        self.dense2, self.norm2 = nn.Linear(width, dense), nn.BatchNorm1d(dense)
        self.dropout = nn.Dropout(dropout)

    def pool(self, connectome_BRR: Tensor) -> tuple[Graph, Graph]:
        """The graphs after the first and the second pooling."""
        parcel_R = torch.arange(self.parcels, device=connectome_BRR.device)
        edges_BRR = connectome_BRR.abs() * (1 - torch.eye(self.parcels, device=parcel_R.device)).to(
            connectome_BRR.dtype
        )
        first = self.pooling1(self.convolution1(connectome_BRR, edges_BRR, parcel_R), edges_BRR)
        edges_BNN = self.two_steps(first.edges_BNN)
        return first, self.pooling2(self.convolution2(first.nodes_BNC, edges_BNN, first.kept_BN), edges_BNN)

    def read(self, graphs: tuple[Graph, Graph]) -> Tensor:
        """Features `(B, C)` of pooled graphs."""
        nodes = [graph.nodes_BNC for graph in graphs]
        features = torch.cat([part for tokens in nodes for part in (tokens.amax(1), tokens.mean(1))], dim=1)
        features = self.dropout(self.norm1(functional.relu(self.dense1(features))))
        return self.norm2(functional.relu(self.dense2(features)))

    def forward(self, connectome_BRR: Tensor) -> Tensor:
        """Features `(B, C)` of connectomes."""
        return self.read(self.pool(connectome_BRR))

    def regularised(self, clip: Tensor, class_B: Tensor | None) -> tuple[Tensor, Tensor]:
        """Features `(B, C)`, and the weighted sum of the losses of both poolings and of the agreement in a class."""
        graphs = self.pool(clip)
        loss = self.dense1.weight.new_zeros(())
        for pooling, graph in zip((self.pooling1, self.pooling2), graphs, strict=True):
            loss = loss + self.unit * unit_loss(pooling.weight_C)
            if self.variant == "corrected":
                loss = loss + self.top * top_loss(graph.score_BR, pooling.ratio)
            else:
                loss = loss + self.top * top_loss_of_kept(graph.score_BR.gather(1, graph.kept_BN), pooling.ratio)
        if class_B is not None and self.group:
            score_BR = graphs[0].score_BR
            if self.variant == "upstream":  # by rank, and through the second and third sigmoid
                score_BR = score_BR.gather(1, graphs[0].kept_BN).sigmoid().sigmoid()
            loss = loss + self.group * group_loss(score_BR, class_B)
        return self.read(graphs), loss


def learner(encoder: Encoder, outputs: int = 1) -> Supervised:
    """The encoder, dropout and its linear head."""
    return Supervised(encoder, outputs, dropout=0.5)


DESCRIPTION = Description(
    name="braingnn",
    input="connectome",
    objective="supervised",
    mixing="graph convolution with weights a parcel, pooling of parcels",
    source="Li et al. (2021), Medical Image Analysis",
    build=BrainGNN,
    sizes={"paper": {"parcels": 200}},
    default="paper",
    learner=learner,
    published={"paper": "93,282 by the public code's layers, with its head of two outputs, at 200 parcels"},
    defects={
        "second sigmoid": "the losses see scores that passed the sigmoid twice, so that they lie between 0.5 and 0.73 "
        "and none can reach 0 or 1",
        "losses of kept nodes": "the loss on the scores takes the nodes that were kept and pushes the lower half of "
        "them towards 0; nodes that were dropped are never pushed",
        "agreement of ranks": "scores of a class are compared by rank, not by parcel (weighted 0 as published)",
    },
)
