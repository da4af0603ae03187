"""BrainNetCNN: filters that cross a connectome along a whole row and a whole column.

What an edge-to-edge layer gives is a number of the row plus a number of the column, so on a CPU the R x R edges of a
layer are never made: `crossed` sums over them by sorting. At 200 parcels and a batch of 16 on one core, a training step
with edges (4, 8) takes 0.03 s instead of 0.14, with the published (32, 64) 0.5 s instead of 1.7.

Source: Kawahara et al. (2017), NeuroImage 146, 1038-1049; sizes as in the code of Brain Network Transformer (Wayfear).

Legend: B clip; R parcels; C channels, O those of the next layer.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from pipeline.models.description import Description
from pipeline.models.encoder import ConnectomeEncoder
from pipeline.models.learners.supervised import Supervised

SLOPE = 0.33  # of the leaky ReLU below 0


def crossed(row_BCR: Tensor, column_BCR: Tensor, weight_OCR: Tensor) -> Tensor:
    """Sum over c and j of `weight[o, c, j] * leaky_relu(row[b, c, i] + column[b, c, j])`, `(B, O, R)`, at O(R log R).

    leaky_relu(s) is SLOPE s + (1 - SLOPE) max(s, 0). The first part is linear. In the second, the columns that count
    for a row are those above minus its number: with columns sorted they are the first so many, and running sums of
    their weights, and of weights times columns, hold the answer for every row.
    """
    with torch.autocast(row_BCR.device.type, enabled=False):
        row_BCR, column_BCR = row_BCR.to(weight_OCR.dtype), column_BCR.to(weight_OCR.dtype)
        clips, channels, parcels = row_BCR.shape
        first_C = torch.arange(clips * channels, device=row_BCR.device).view(clips, channels, 1) * parcels
        negative_BCR, order_BCR = (-column_BCR).contiguous().sort(dim=-1, stable=True)
        count_BCR = torch.searchsorted(negative_BCR.detach(), row_BCR.detach().contiguous())
        weight_NO = weight_OCR.permute(1, 2, 0).flatten(0, 1)
        sorted_BCRO = functional.embedding(first_C[:1] + order_BCR, weight_NO)
        place_BCR, any_BCR = first_C + (count_BCR - 1).clamp(min=0), (count_BCR > 0).to(row_BCR.dtype)

        def above(values_BCRO: Tensor, factor_BCR: Tensor) -> Tensor:
            sums_BCRO = functional.embedding(place_BCR, values_BCRO.cumsum(2).flatten(0, 2))
            return torch.einsum("bci,bcio->boi", factor_BCR * any_BCR, sums_BCRO)

        above_BOR = above(sorted_BCRO, row_BCR) - above(sorted_BCRO * negative_BCR[..., None], torch.ones_like(row_BCR))
        linear_BOR = torch.einsum("bci,oc->boi", row_BCR, weight_OCR.sum(-1))
        linear_BOR = linear_BOR + torch.einsum("bcj,ocj->bo", column_BCR, weight_OCR)[..., None]
        return SLOPE * linear_BOR + (1 - SLOPE) * above_BOR


class Lines(NamedTuple):
    """Edges that are the leaky ReLU of a number of their row plus one of their column."""

    row_BCR: Tensor
    column_BCR: Tensor

    def edges(self) -> Tensor:
        """All of them, `(B, C, R, R)`."""
        return functional.leaky_relu(self.row_BCR[..., :, None] + self.column_BCR[..., None, :], SLOPE)


class EdgeToEdge(nn.Module):
    """Every edge (i, j) becomes a weighted sum of the edges of parcel i plus one of the edges of parcel j."""

    def __init__(self, parcels: int, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.row = nn.Conv2d(channels_in, channels_out, (1, parcels))
        self.column = nn.Conv2d(channels_in, channels_out, (parcels, 1))

    def forward(self, edges: Tensor | Lines) -> Lines:
        """One number a row and one a column, instead of R copies of each; edges are `(B, C, R, R)` or `Lines`."""
        if not isinstance(edges, Lines):
            return Lines(self.row(edges)[..., 0], self.column(edges)[:, :, 0])
        return Lines(
            shifted(crossed(*edges, self.row.weight[:, :, 0]), self.row),
            shifted(crossed(edges.column_BCR, edges.row_BCR, self.column.weight[..., 0]), self.column),
        )


def shifted(lines_BCR: Tensor, layer: nn.Conv2d) -> Tensor:
    """With the bias of a layer added to its channels."""
    assert layer.bias is not None
    return lines_BCR + layer.bias[:, None]


class BrainNetCNN(ConnectomeEncoder):
    """Edge-to-edge twice, edge-to-node, node-to-graph, two dense layers: `(B, R, R)` to features `(B, C)`.

    Parameters
    ----------
    parcels : R, rows of the connectome.
    edges : channels after each edge-to-edge layer.
    graph : channels of the whole graph.
    dense : channels of the dense layers; the last are the features.
    dropout : rate after the graph and each dense layer.
    variant : upstream drops in evaluation too, so that its features are random.
    """

    def __init__(
        self,
        parcels: int = 200,
        edges: tuple[int, ...] = (32, 64),
        graph: int = 256,
        dense: tuple[int, ...] = (128, 30),
        dropout: float = 0.5,
        variant: Literal["corrected", "upstream"] = "corrected",
    ) -> None:
        super().__init__(parcels, dense[-1])
        self.dropout, self.variant = dropout, variant
        widths = (1, *edges)
        layers = [EdgeToEdge(parcels, before, after) for before, after in zip(widths, edges, strict=False)]
        self.edge_to_edge = nn.ModuleList(layers)
        self.edge_to_node = nn.Conv2d(edges[-1], 1, (1, parcels))
        self.node_to_graph = nn.Conv2d(1, graph, (parcels, 1))
        inputs = (graph, *dense)
        self.dense = nn.ModuleList(nn.Linear(before, after) for before, after in zip(inputs, dense, strict=False))

    def forward(self, connectome_BRR: Tensor) -> Tensor:
        """Features `(B, C)` of connectomes."""
        nodes_B1R = functional.leaky_relu(self.nodes(connectome_BRR, connectome_BRR.device.type == "cpu"), SLOPE)
        features_BC = self._drop(functional.leaky_relu(self.node_to_graph(nodes_B1R[..., None]), SLOPE).flatten(1))
        for linear in self.dense:
            features_BC = self._drop(functional.leaky_relu(linear(features_BC), SLOPE))
        return features_BC

    def nodes(self, connectome_BRR: Tensor, by_lines: bool) -> Tensor:
        """A number a parcel, `(B, 1, R)`, before its leaky ReLU; with or without making edges, which is the same."""
        edges: Tensor | Lines = connectome_BRR[:, None]
        for layer in self.edge_to_edge:
            lines: Lines = layer(edges)
            edges = lines if by_lines else lines.edges()
        if isinstance(edges, Lines):
            return shifted(crossed(*edges, self.edge_to_node.weight[:, :, 0]), self.edge_to_node)
        nodes_B1R1: Tensor = self.edge_to_node(edges)
        return nodes_B1R1[..., 0]

    def _drop(self, features_BC: Tensor) -> Tensor:
        return functional.dropout(features_BC, self.dropout, self.training or self.variant == "upstream")


def learner(encoder: BrainNetCNN, outputs: int = 1) -> Supervised:
    """The encoder with its linear head; the encoder's last dropout is the head's."""
    supervised = Supervised(encoder, outputs)
    if encoder.variant == "upstream":
        supervised.head = nn.Sequential(supervised.head, nn.LeakyReLU(SLOPE))
    return supervised


DESCRIPTION = Description(
    name="brainnetcnn",
    input="connectome",
    objective="supervised",
    mixing="rows and columns of the connectome",
    source="Kawahara et al. (2017), NeuroImage",
    build=BrainNetCNN,
    sizes={"paper": {"parcels": 200}},
    default="paper",
    learner=learner,
    published={"paper": "933,277 by the public code's layers, with its head of two outputs, at 200 parcels"},
    defects={
        "dropout in evaluation": "half of the dense channels are dropped when a trained model is applied, too",
        "leaky logits": "a leaky ReLU follows the last linear map, so that negative logits are shrunk to a third",
    },
)
