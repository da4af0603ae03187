"""BrainGNN against loops over nodes and edges, its losses against their formulas, and training on planted edges."""

from __future__ import annotations

import math

import pytest
import torch
from planted_connectomes import PARCELS, batch_of, connectomes, learn, without_gradient

from pipeline.models.braingnn import (
    DESCRIPTION,
    BrainGNN,
    ParcelConvolution,
    TopNodes,
    TwoSteps,
    group_loss,
    top_loss,
    top_loss_of_kept,
    unit_loss,
)
from pipeline.pretrain.objectives.supervised import SupervisedObjective

TINY = {"parcels": PARCELS, "communities": 4, "width": 8, "dense": 16}


def some_edges(clips: int, nodes: int) -> torch.Tensor:
    """Symmetric, not negative, half of them missing, none from a node to itself."""
    edges = torch.rand(clips, nodes, nodes).triu(1)
    edges = edges * (torch.rand_like(edges) > 0.5)
    return edges + edges.mT


@torch.no_grad()
def test_convolution_sums_mapped_neighbours_by_a_softmax_of_edges():
    torch.manual_seed(0)
    layer = ParcelConvolution(6, 3, 4, 2)
    nodes, edges, parcel = (
        torch.randn(2, 5, 4),
        some_edges(2, 5),
        torch.stack([torch.randperm(6)[:5] for _ in range(2)]),
    )
    for clip in range(2):
        for i in range(5):
            neighbours = [j for j in range(5) if j == i or edges[clip, i, j] > 0]
            weights = [math.exp(1.0 if j == i else float(edges[clip, i, j])) for j in neighbours]
            expected = layer.bias.clone()
            for j, weight in zip(neighbours, weights, strict=True):
                community = layer.membership_RK[parcel[clip, j]].clamp(min=0)
                kernel = (layer.basis.weight @ community + layer.basis.bias).view(4, 2)
                expected = expected + weight / sum(weights) * (nodes[clip, j] @ kernel)
            assert (layer(nodes, edges, parcel)[clip, i] - expected).abs().max() < 1e-5


def test_convolution_knows_which_parcel_a_node_is():
    """In another order, the same nodes give the same sums if all parcels are of one community, and else do not."""
    torch.manual_seed(0)
    layer = ParcelConvolution(5, 3, 4, 2)
    nodes, edges, parcel, order = torch.randn(1, 5, 4), some_edges(1, 5), torch.arange(5), torch.tensor([3, 0, 4, 1, 2])
    reordered = (nodes[:, order], edges[:, order][:, :, order])
    assert not torch.allclose(layer(*reordered, parcel), layer(nodes, edges, parcel)[:, order], atol=1e-3)
    assert torch.allclose(layer(*reordered, parcel[order]), layer(nodes, edges, parcel)[:, order], atol=1e-6)
    layer.membership_RK.data[:] = layer.membership_RK.data[0]
    assert torch.allclose(layer(*reordered, parcel), layer(nodes, edges, parcel)[:, order], atol=1e-6)


@torch.no_grad()
def test_pooling_keeps_the_best_nodes_with_their_edges():
    torch.manual_seed(0)
    pooling = TopNodes(4, 0.5)
    nodes, edges = torch.randn(2, 7, 4), some_edges(2, 7)
    graph = pooling(nodes, edges)
    length = math.sqrt(sum(value**2 for value in pooling.weight_C.tolist()))
    for clip in range(2):
        scores = [1 / (1 + math.exp(-float(node @ pooling.weight_C) / length)) for node in nodes[clip]]
        best = sorted(range(7), key=lambda n: -scores[n])[:4]
        assert graph.kept_BN[clip].tolist() == best
        assert torch.allclose(graph.score_BR[clip], torch.tensor(scores))
        for place, node in enumerate(best):
            assert torch.allclose(graph.nodes_BNC[clip, place], scores[node] * nodes[clip, node])
            for other, neighbour in enumerate(best):
                assert graph.edges_BNN[clip, place, other] == edges[clip, node, neighbour]


def test_two_steps_are_summed_over_the_node_between():
    torch.manual_seed(0)
    edges = some_edges(1, 5)
    direct = edges[0] + torch.eye(5)
    for i in range(5):
        for j in range(5):
            paths = sum(float(direct[i, k] * direct[k, j]) for k in range(5)) if i != j else 0.0
            assert TwoSteps()(edges)[0, i, j] == pytest.approx(paths, abs=1e-6)


def test_losses_are_those_of_the_paper():
    torch.manual_seed(0)
    scores, classes = torch.rand(5, 6), torch.tensor([0, 1, 0, 0, 1])
    assert float(unit_loss(torch.tensor([3.0, 4.0]))) == pytest.approx(16)
    entropy = 0.0
    for row in scores:
        ranked = sorted(row.tolist())
        entropy -= sum(math.log(s) for s in ranked[3:]) + sum(math.log(1 - s) for s in ranked[:3])
    assert float(top_loss(scores, 0.5)) == pytest.approx(entropy / 30, rel=1e-5)
    apart = 0.0
    for number in (0, 1):
        rows = scores[classes == number]
        pairs = sum(float((a - b).square().sum()) for n, a in enumerate(rows) for b in rows[n + 1 :])
        apart += pairs / len(rows) ** 2
    assert float(group_loss(scores, classes)) == pytest.approx(apart, rel=1e-5)
    assert float(group_loss(scores, torch.full((5,), -1))) == 0  # nobody's class is known


def test_upstream_losses_are_those_of_the_public_code():
    kept = torch.tensor([[0.9, 0.8, 0.4, 0.1]])
    twice = sorted(1 / (1 + math.exp(-s)) for s in kept[0].tolist())
    high, low = sum(math.log(s) for s in twice[2:]) / 2, sum(math.log(1 - s) for s in twice[:2]) / 2
    assert float(top_loss_of_kept(kept, 0.5)) == pytest.approx(-high - low, rel=1e-5)
    clip, target = connectomes(0, 6)
    torch.manual_seed(0)
    model = BrainGNN(**TINY, variant="upstream").eval()
    parts = [top_loss_of_kept(g.score_BR.gather(1, g.kept_BN), 0.5) for g in model.pool(clip)]
    assert torch.allclose(model.regularised(clip, target.long())[1], 0.1 * sum(parts))


def test_its_losses_join_those_of_both_poolings_and_of_the_classes():
    torch.manual_seed(0)
    clip, target = connectomes(0, 6)
    model = BrainGNN(**TINY).eval()
    graphs = model.pool(clip)
    tops = sum(top_loss(graph.score_BR, 0.5) for graph in graphs)
    units = unit_loss(model.pooling1.weight_C) + unit_loss(model.pooling2.weight_C)
    own = units + 0.1 * tops + 0.1 * group_loss(graphs[0].score_BR, target.long())
    features, loss = model.regularised(clip, target.long())
    assert torch.allclose(loss, own)
    assert torch.equal(features, model(clip))
    assert [graph.nodes_BNC.shape[1] for graph in graphs] == [6, 3]


def test_the_paper_size_has_the_parameters_of_its_layers():
    r, k, width = 200, 8, 32
    first = r * k + (k * r * width + r * width) + width
    second = r * k + (k * width * width + width * width) + width
    dense = (4 * width * width + width) + 2 * width + (width * 512 + 512) + 2 * 512 + (512 * 2 + 2)
    with torch.device("meta"):
        learner = DESCRIPTION.learner(BrainGNN(), outputs=2)
    assert sum(value.numel() for value in learner.parameters()) == first + second + 2 * width + dense == 93_282


@pytest.mark.parametrize("variant", ["corrected", "upstream"])
def test_every_parameter_gets_a_gradient(variant):
    torch.manual_seed(0)
    learner = DESCRIPTION.learner(BrainGNN(**TINY, variant=variant))
    SupervisedObjective(learner).loss(batch_of(*connectomes(0, 8))).backward()
    assert without_gradient(learner) == []


def test_applying_it_is_deterministic_and_bf16_stays_close():
    torch.manual_seed(0)
    model = BrainGNN(**TINY).eval()
    clip, _ = connectomes(0, 4)
    exact = model(clip)
    assert torch.equal(exact, model(clip))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = model(clip).float()
    assert (rounded - exact).norm() < 0.05 * exact.norm()


def test_it_learns_planted_edges():
    found = learn(lambda: DESCRIPTION.learner(BrainGNN(**TINY)))
    assert found.losses[-1] < found.losses[0] / 2
    assert found.told > 0.85
    assert found.guessed < 0.65, "edges in another order must tell nothing"
