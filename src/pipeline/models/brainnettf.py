"""Brain Network Transformer: attention among the rows of a connectome, read out by soft clusters.

Source: Kan et al. (2022), Brain Network Transformer, NeurIPS; equation 3 is the readout.

Legend: B clip; R parcels, which are tokens and channels both; K clusters; C channels.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from pipeline.models.description import Description, Variant
from pipeline.models.encoder import ConnectomeEncoder
from pipeline.models.learners.supervised import Supervised
from pipeline.models.parts.post_norm import PostNormBlock


def orthonormal_centres(clusters: int, channels: int) -> Tensor:
    """Gram-Schmidt on Xavier-uniform rows: `(K, channels)`, each of length 1 and at right angles to the others.

    Raises
    ------
    ValueError : more clusters than channels, among which no so many directions are orthogonal.
    """
    if clusters > channels:
        raise ValueError(
            f"{clusters} clusters, but at most {channels} directions of {channels} channels are orthogonal"
        )
    start_KC = nn.init.xavier_uniform_(torch.empty(clusters, channels))
    directions_CK, lengths_KK = torch.linalg.qr(start_KC.T)
    return (directions_CK * lengths_KK.diagonal().sign()).T.contiguous()


class ClusterReadout(nn.Module):
    """Nodes are softly assigned to fixed orthonormal centres and summed cluster by cluster.

    Parameters
    ----------
    bottleneck : 0: the nodes themselves are assigned and summed. Otherwise what is assigned and summed is rebuilt from
        so many numbers a connectome, and the similarity is squared, as the public code does.
    """

    centres_KC: Tensor

    def __init__(self, parcels: int, channels: int, clusters: int, bottleneck: int) -> None:
        super().__init__()
        self.squared = bool(bottleneck)
        self.register_buffer("centres_KC", orthonormal_centres(clusters, channels))
        self.rewrite: nn.Module = nn.Identity()
        if bottleneck:
            self.rewrite = nn.Sequential(
                nn.Flatten(),
                nn.Linear(parcels * channels, bottleneck),
                nn.LeakyReLU(),
                nn.Linear(bottleneck, bottleneck),
                nn.LeakyReLU(),
                nn.Linear(bottleneck, parcels * channels),
                nn.Unflatten(1, (parcels, channels)),
            )

    def assign(self, nodes_BRC: Tensor) -> Tensor:
        """Share of each node in each cluster, `(B, R, K)`; 1 a node."""
        likeness_BRK = nodes_BRC @ self.centres_KC.T
        return (likeness_BRK.square() if self.squared else likeness_BRK).softmax(-1)

    def forward(self, nodes_BRC: Tensor) -> Tensor:
        """Clusters `(B, K, C)`."""
        nodes_BRC = self.rewrite(nodes_BRC)
        return self.assign(nodes_BRC).mT @ nodes_BRC

    def own_flops(self, nodes_BRC: Tensor) -> int:
        """Operations of the likeness and of the sums."""
        clips, parcels, channels = nodes_BRC.shape
        return 4 * clips * parcels * channels * len(self.centres_KC)


class BrainNetTF(ConnectomeEncoder):
    """Transformer layers on the rows of a connectome, the readout, and dense layers: `(B, R, R)` to `(B, C)`.

    Parameters
    ----------
    parcels : R; each parcel is a token, and its row of the connectome its channels, so that heads must divide R.
    depth, heads, hidden : transformer layers, their attention heads, and channels inside their MLPs.
    clusters : K of the readout.
    reduced, dense : channels of a cluster after reduction; channels of the dense layers, the last the features.
    dropout : rate in the transformer layers.
    variant : upstream reads out through a bottleneck of 32 numbers; see `DESCRIPTION.defects`.
    """

    def __init__(
        self,
        parcels: int = 200,
        depth: int = 2,
        heads: int = 4,
        hidden: int = 1024,
        clusters: int = 100,
        reduced: int = 8,
        dense: tuple[int, ...] = (256, 32),
        dropout: float = 0.1,
        variant: Variant = "corrected",
    ) -> None:
        super().__init__(parcels, dense[-1])
        self.blocks = nn.ModuleList(PostNormBlock(parcels, heads, hidden, "relu", dropout) for _ in range(depth))
        for block in self.blocks:
            nn.init.xavier_uniform_(block.get_parameter("qkv.weight"))
        self.readout = ClusterReadout(parcels, parcels, clusters, bottleneck=32 if variant == "upstream" else 0)
        self.reduction = nn.Linear(parcels, reduced)
        widths = (clusters * reduced, *dense)
        self.dense = nn.ModuleList(nn.Linear(before, after) for before, after in zip(widths, dense, strict=False))

    def forward(self, connectome_BRR: Tensor) -> Tensor:
        """Features `(B, C)` of connectomes."""
        nodes_BRC = connectome_BRR
        for block in self.blocks:
            nodes_BRC = block(nodes_BRC)
        features_BC = functional.leaky_relu(self.reduction(self.readout(nodes_BRC))).flatten(1)
        for linear in self.dense:
            features_BC = functional.leaky_relu(linear(features_BC))
        return features_BC


DESCRIPTION = Description(
    name="brainnettf",
    input="connectome",
    objective="supervised",
    mixing="attention among parcels, soft clusters",
    source="Kan et al. (2022), NeurIPS",
    build=BrainNetTF,
    sizes={"paper": {"parcels": 200}},
    default="paper",
    learner=Supervised,
    published={
        "paper": "3,980,890 by the public code's layers, with its head of two outputs, at 200 parcels; 20,000 of "
        "them are the frozen centres, a buffer here"
    },
    defects={
        "bottleneck": "the pooled nodes are rebuilt from 32 numbers a connectome by an MLP that the paper lacks",
        "squared likeness": "nodes are assigned by the square of their product with a centre, so that opposite ones "
        "share a cluster; the paper has the product",
    },
)
