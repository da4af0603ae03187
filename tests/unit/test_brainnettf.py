"""BrainNetTF against torch's transformer layer, loops over clusters and Gram-Schmidt; and on planted edges."""

from __future__ import annotations

import pytest
import torch
from planted_connectomes import PARCELS, batch_of, connectomes, learn, without_gradient
from torch import nn

from pipeline.models.brainnettf import DESCRIPTION, BrainNetTF, ClusterReadout, orthonormal_centres
from pipeline.models.parts.post_norm import PostNormBlock
from pipeline.pretrain.objectives.supervised import SupervisedObjective

TINY = {"parcels": PARCELS, "hidden": 24, "clusters": 6, "dense": (16, 8)}


@pytest.mark.parametrize("activation", ["relu", "gelu"])
def test_the_block_is_torchs_transformer_layer(activation):
    torch.manual_seed(0)
    reference = nn.TransformerEncoderLayer(12, 4, 20, activation=activation, batch_first=True).train()
    reference.dropout.p = reference.dropout1.p = reference.dropout2.p = reference.self_attn.dropout = 0.0
    block = PostNormBlock(12, 4, 20, activation, dropout=0.0)
    names = {"qkv.weight": "self_attn.in_proj_weight", "qkv.bias": "self_attn.in_proj_bias"}
    state = reference.state_dict()
    block.load_state_dict({k: state[names.get(k, k.replace("proj", "self_attn.out_proj"))] for k in block.state_dict()})
    tokens = torch.randn(2, 7, 12)
    assert (block(tokens) - reference(tokens)).abs().max() < 1e-5


def test_centres_are_gram_schmidt_on_the_start():
    torch.manual_seed(3)
    start = nn.init.xavier_uniform_(torch.empty(5, 9))
    expected = []
    for row in start:
        for done in expected:
            row = row - (row @ done) * done
        expected.append(row / row.norm())
    torch.manual_seed(3)
    centres = orthonormal_centres(5, 9)
    assert (centres - torch.stack(expected)).abs().max() < 1e-5
    assert (centres @ centres.T - torch.eye(5)).abs().max() < 1e-6


def test_more_clusters_than_directions_are_refused():
    with pytest.raises(ValueError, match="13 clusters, but at most 12"):
        BrainNetTF(**{**TINY, "clusters": 13})


@torch.no_grad()
def test_the_readout_sums_nodes_by_their_share():
    torch.manual_seed(0)
    readout = ClusterReadout(5, 8, 3, bottleneck=0)
    nodes = torch.randn(2, 5, 8)
    expected = torch.zeros(2, 3, 8)
    for clip in range(2):
        for node in nodes[clip]:
            weights = [float((node @ centre).exp()) for centre in readout.centres_KC]
            for cluster in range(3):
                expected[clip, cluster] += weights[cluster] / sum(weights) * node
    assert (readout(nodes) - expected).abs().max() < 1e-5


def test_upstream_squares_the_likeness_and_pools_what_32_numbers_can_hold():
    torch.manual_seed(0)
    nodes = torch.randn(1, 8, 8)
    ranks = {}
    for bottleneck in (0, 32):
        readout = ClusterReadout(8, 8, 8, bottleneck)
        opposite_alike = torch.allclose(readout.assign(nodes), readout.assign(-nodes))
        assert opposite_alike == bool(bottleneck)
        jacobian = torch.autograd.functional.jacobian(readout, nodes).reshape(64, 64)
        ranks[bottleneck] = int(torch.linalg.matrix_rank(jacobian, rtol=1e-5))
    assert ranks[32] <= 32 < ranks[0]


def test_only_upstream_depends_on_the_order_of_the_rows():
    """A row names its parcel by what it is connected to; nothing else may say where it stands."""
    torch.manual_seed(0)
    clip, _ = connectomes(0, 3)
    order = torch.randperm(PARCELS)
    for variant in ("corrected", "upstream"):
        model = BrainNetTF(**TINY, variant=variant).eval()
        assert torch.allclose(model(clip), model(clip[:, order]), atol=1e-5) == (variant == "corrected")
        assert not torch.allclose(model(clip), model(clip[:, :, order]), atol=1e-5)


def test_the_paper_size_has_the_parameters_of_its_layers():
    r, hidden, k = 200, 1024, 100
    layer = 4 * (r * r + r) + (r * hidden + hidden) + (hidden * r + r) + 4 * r
    head = (r * 8 + 8) + (8 * k * 256 + 256) + (256 * 32 + 32) + (32 * 2 + 2)
    bottleneck = (r * r * 32 + 32) + (32 * 32 + 32) + (32 * r * r + r * r)
    with torch.device("meta"):
        counts = [
            sum(value.numel() for value in DESCRIPTION.learner(BrainNetTF(variant=variant), outputs=2).parameters())
            for variant in ("corrected", "upstream")
        ]
    assert counts == [2 * layer + head, 2 * layer + head + bottleneck]
    assert counts[1] + k * r == 3_980_890


@pytest.mark.parametrize("variant", ["corrected", "upstream"])
def test_every_parameter_gets_a_gradient(variant):
    torch.manual_seed(0)
    learner = DESCRIPTION.learner(BrainNetTF(**TINY, variant=variant))
    SupervisedObjective(learner).loss(batch_of(*connectomes(0, 8))).backward()
    assert without_gradient(learner) == []


def test_applying_it_is_deterministic_and_bf16_stays_close():
    torch.manual_seed(0)
    model = BrainNetTF(**TINY).eval()
    clip, _ = connectomes(0, 4)
    exact = model(clip)
    assert torch.equal(exact, model(clip))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = model(clip).float()
    assert (rounded - exact).norm() < 0.03 * exact.norm()


def test_it_learns_planted_edges():
    found = learn(lambda: DESCRIPTION.learner(BrainNetTF(**TINY)))
    assert found.losses[-1] < found.losses[0] / 2
    assert found.told > 0.85
    assert found.guessed < 0.65, "edges in another order must tell nothing"
