"""BrainNetCNN against loops over edges, its count by its layers, its two variants, and training on planted edges."""

from __future__ import annotations

import pytest
import torch
from planted_connectomes import PARCELS, batch_of, connectomes, learn, without_gradient

from pipeline.models.brainnetcnn import DESCRIPTION, BrainNetCNN, EdgeToEdge
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
    assert (layer(edges) - expected).abs().max() < 1e-5


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
