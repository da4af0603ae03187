"""Operations are those of torch's own counter, and memory is what the gradient keeps."""

from __future__ import annotations

import pytest
import torch
from tiny_models import TINY, tiny
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from pipeline.models.cost import activation_bytes, count_flops
from pipeline.models.learners.reconstruction import MaskedReconstruction
from pipeline.models.parts.transformer import Attention

# torch's counter knows no scans, and counts the products of a graph's pooling that are no layer's.
COUNTED_BY_TORCH = [name for name in TINY if name not in ("neurostorm", "brainmt")]


@pytest.mark.parametrize("name", COUNTED_BY_TORCH)
def test_operations_of_encoding_are_those_of_torchs_counter(name):
    with torch.device("meta"):
        encoder = tiny(name).eval()
        clip = torch.empty(2, *encoder.input_shape)
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            encoder(clip)
    with torch.no_grad():
        assert count_flops(encoder, lambda: encoder(clip)).forward == counter.get_total_flops()


@pytest.mark.parametrize("name", ["swift_v1", "swift_v2"])
def test_operations_of_a_step_are_those_of_torchs_counter(name):
    with torch.device("meta"):
        model = MaskedReconstruction(tiny(name))
        clip, hidden = torch.empty(1, 1, 6, 6, 6, 8), torch.empty(1, 2, 2, 2, 8, dtype=torch.bool)
        token_M = torch.empty(20, dtype=torch.int64)
        with FlopCounterMode(display=False) as counter:
            model.patches(model.features(clip, hidden), token_M).sum().backward()
    assert (
        sum(count_flops(model, lambda: model.patches(model.features(clip, hidden), token_M)))
        == counter.get_total_flops()
    )


def test_a_frozen_part_costs_its_forward_pass_alone():
    frozen, learned = nn.Linear(4, 4).requires_grad_(False), nn.Linear(4, 4)
    model, rows = nn.Sequential(frozen, learned), torch.randn(3, 4)
    assert count_flops(model, lambda: model(rows)) == (2 * 96, 96)


def test_attention_keeps_what_a_fused_kernel_keeps():
    with torch.device("meta"):
        attention, tokens = Attention(8, 2), torch.empty(3, 50, 8)
    kept = 4 * 3 * 50 * (8 + 24 + 8 + 8)  # input; queries, keys, values in one; what it gives; that, heads side by side
    assert activation_bytes(attention, lambda: attention(tokens)) == kept


def test_memory_is_what_the_gradient_keeps_each_storage_once():
    model, rows = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 2)), torch.randn(5, 8)
    kept = 4 * 5 * (8 + 16 + 16)  # the input of each map, and that of the GELU
    assert activation_bytes(model, lambda: model(rows)) == kept
    twice = activation_bytes(model, lambda: (rows * rows, model(rows)))
    assert twice == kept, "an input without a gradient is kept for no product"
