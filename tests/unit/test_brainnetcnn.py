"""BrainNetCNN against loops over edges, its count by its layers, its two variants, and training on planted edges."""

from __future__ import annotations

import pytest
import torch
from planted_connectomes import PARCELS, batch_of, connectomes, learn, without_gradient

from pipeline.models.brainnetcnn import DESCRIPTION, SLOPE, BrainNetCNN, EdgeToEdge, crossed
from pipeline.pretrain.objectives.supervised import SupervisedObjective

TINY = {"parcels": PARCELS, "edges": (4, 8), "graph": 32, "dense": (16, 8)}


def test_an_edge_becomes_the_sum_of_its_row_and_its_column():
    torch.manual_seed(0)
    layer = EdgeToEdge(5, 2, 3)
    edges = torch.randn(2, 2, 5, 5)
    row, column = layer.row.weight[:, :, 0, :], layer.column.weight[:, :, :, 0]
    expected = torch.zeros(2, 3, 5, 5)
    for i in range(5):
        for j in range(5):
            expected[:, :, i, j] = layer.row.bias + layer.column.bias
            for k in range(5):
                expected[:, :, i, j] += edges[:, :, i, k] @ row[:, :, k].T + edges[:, :, k, j] @ column[:, :, k].T
    lines = layer(edges)
    assert (lines.row_BCR[..., None] + lines.column_BCR[..., None, :] - expected).abs().max() < 1e-5


@pytest.mark.parametrize("ties", [False, True])
def test_sums_by_sorting_and_their_gradients_are_those_over_all_edges(ties):
    torch.manual_seed(0)
    row, column, weight = (torch.randn(shape, dtype=torch.float64) for shape in ((3, 4, 9), (3, 4, 9), (5, 4, 9)))
    if ties:  # equal columns, and edges of exactly 0
        row, column = row.round(), column.round()
        row[0], column[0] = 1.0, -1.0
        row[1], column[1] = 5.0, 1.0  # none is negative
        row[2] = -5.0  # all are
    given = [each.requires_grad_() for each in (row, column, weight)]
    edges = torch.nn.functional.leaky_relu(row[..., :, None] + column[..., None, :], SLOPE)
    expected, found = torch.einsum("bcij,ocj->boi", edges, weight), crossed(*given)
    assert (found - expected).abs().max() < 1e-12
    upstream = torch.randn_like(expected)
    first, second = (torch.autograd.grad(each, given, upstream) for each in (expected, found))
    for one, other in zip(first, second, strict=True):
        assert (one - other).abs().max() < 1e-12


def test_nodes_are_the_same_with_and_without_edges():
    torch.manual_seed(0)
    model, (clip, _) = BrainNetCNN(**TINY).double(), connectomes(0, 4)
    by_lines, by_edges = (model.nodes(clip.double(), each) for each in (True, False))
    assert by_lines.shape == by_edges.shape == (4, 1, PARCELS)
    assert (by_lines - by_edges).abs().max() < 1e-12


def test_the_paper_size_has_the_parameters_of_its_layers():
    r = 200
    edges = 2 * (32 * r + 32) + 2 * (64 * 32 * r + 64)
    rest = (64 * r + 1) + (256 * r + 256) + (256 * 128 + 128) + (128 * 30 + 30) + (30 * 2 + 2)
    with torch.device("meta"):
        learner = DESCRIPTION.learner(BrainNetCNN(**DESCRIPTION.sizes["paper"]), outputs=2)
    assert sum(value.numel() for value in learner.parameters()) == edges + rest == 933_277


@pytest.mark.parametrize("variant", ["corrected", "upstream"])
def test_only_upstream_drops_when_it_is_applied(variant):
    torch.manual_seed(0)
    model = BrainNetCNN(**TINY, variant=variant).eval()
    clip, _ = connectomes(0, 4)
    assert torch.equal(model(clip), model(clip)) == (variant == "corrected")


def test_only_upstream_shrinks_negative_logits():
    torch.manual_seed(0)
    for variant, slope in (("corrected", 1.0), ("upstream", 0.33)):
        learner = DESCRIPTION.learner(BrainNetCNN(**TINY, variant=variant)).eval()
        features = torch.randn(6, 8)
        linear = learner.head if variant == "corrected" else learner.head[0]
        plain = features @ linear.weight.T + linear.bias
        assert (plain < 0).any()
        assert torch.allclose(learner.read(features), torch.where(plain < 0, slope * plain, plain))


def test_every_parameter_gets_a_gradient():
    torch.manual_seed(0)
    learner = DESCRIPTION.learner(BrainNetCNN(**TINY))
    SupervisedObjective(learner).loss(batch_of(*connectomes(0, 8))).backward()
    assert without_gradient(learner) == []


def test_bf16_stays_close():
    torch.manual_seed(0)
    model = BrainNetCNN(**TINY).eval()
    clip, _ = connectomes(0, 4)
    exact = model(clip)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = model(clip).float()
    assert (rounded - exact).norm() < 0.02 * exact.norm()


def test_it_learns_planted_edges():
    found = learn(lambda: DESCRIPTION.learner(BrainNetCNN(**TINY)))
    assert found.losses[-1] < found.losses[0] / 2
    assert found.told > 0.85
    assert found.guessed < 0.65, "edges in another order must tell nothing"
