"""BrainNetCNN: filters that cross a connectome along a whole row and a whole column.

Source: Kawahara et al. (2017), NeuroImage 146, 1038-1049; sizes as in the code of Brain Network Transformer (Wayfear).

Legend: B clip; R parcels; C channels.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn
from torch.nn import functional

from pipeline.models.description import Description
from pipeline.models.encoder import ConnectomeEncoder
from pipeline.models.learners.supervised import Supervised

SLOPE = 0.33  # of the leaky ReLU below 0


class EdgeToEdge(nn.Module):
    """Every edge (i, j) becomes a weighted sum of the edges of parcel i plus one of the edges of parcel j."""

    def __init__(self, parcels: int, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.row = nn.Conv2d(channels_in, channels_out, (1, parcels))
        self.column = nn.Conv2d(channels_in, channels_out, (parcels, 1))

    def forward(self, edges_BCRR: Tensor) -> Tensor:
        """`(B, C', R, R)`: one number a row plus one a column, spread by broadcasting instead of R copies."""
        return self.row(edges_BCRR) + self.column(edges_BCRR)


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
        self.edge_to_edge = nn.ModuleList(
            EdgeToEdge(parcels, before, after) for before, after in zip(widths, edges, strict=False)
        )
        self.edge_to_node = nn.Conv2d(edges[-1], 1, (1, parcels))
        self.node_to_graph = nn.Conv2d(1, graph, (parcels, 1))
        inputs = (graph, *dense)
        self.dense = nn.ModuleList(nn.Linear(before, after) for before, after in zip(inputs, dense, strict=False))

    def forward(self, connectome_BRR: Tensor) -> Tensor:
        """Features `(B, C)` of connectomes."""
        edges_BCRR = connectome_BRR[:, None]
        for layer in self.edge_to_edge:
            edges_BCRR = functional.leaky_relu(layer(edges_BCRR), SLOPE)
        nodes_B1R1 = functional.leaky_relu(self.edge_to_node(edges_BCRR), SLOPE)
        features_BC = self._drop(functional.leaky_relu(self.node_to_graph(nodes_B1R1), SLOPE).flatten(1))
        for linear in self.dense:
            features_BC = self._drop(functional.leaky_relu(linear(features_BC), SLOPE))
        return features_BC

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
