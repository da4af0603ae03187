"""Blocks that are recomputed or compiled give the same gradients; bfloat16 gives nearly the same, and keeps float32."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest
import torch
from tiny_models import TINY, clips, own_objective
from torch import Tensor, nn

from pipeline.models import describe
from pipeline.pretrain.engine.blocks import blocks_of, checkpoint_blocks, compile_blocks, keep_float32, precision
from pipeline.pretrain.objectives import build_learner

CPU = torch.device("cpu")
NORMS = (nn.LayerNorm, nn.RMSNorm, nn.GroupNorm)
LABEL_FREE = [name for name in TINY if describe(name).objective != "supervised"]


def learner_of(name: str, **over: Any) -> nn.Module:
    torch.manual_seed(0)
    return build_learner(name, {**TINY[name], **over}).train()


def backward(name: str, learner: nn.Module, kind: str = "float32") -> tuple[float, dict[str, Tensor]]:
    """Loss of a batch, dropout drawn from seed 1, and the gradients that it leaves."""
    objective, batch = own_objective(name, learner, clips(learner.encoder))
    learner.zero_grad()
    torch.manual_seed(1)
    with precision(kind, CPU):
        loss = objective.loss(batch)
    assert loss.dtype == torch.float32
    loss.backward()
    return loss.item(), {key: value.grad for key, value in learner.named_parameters() if value.grad is not None}


def names(learner: nn.Module) -> list[str]:
    of_module = {module: key for key, module in learner.named_modules()}
    return [of_module[block] for block in blocks_of(learner)]


def test_blocks_are_what_lists_of_modules_hold_down_to_the_last_list():
    assert names(learner_of("swift_v2", depths=(2, 1))) == [
        "encoder.layers.0.blocks.0",
        "encoder.layers.0.blocks.1",
        "encoder.layers.1.blocks.0",
        "decoder.stages.0",
    ]
    assert names(learner_of("brainlm")) == ["encoder.blocks.0", "decoder.blocks.0"]
    assert names(learner_of("brainmt")) == [
        "encoder.mamba.0",
        "encoder.attention.attn.0",
        "encoder.attention.mlp.0",
    ]


# --- recomputed ----------------------------------------------------------------------------------------------------


def kept(name: str, learner: nn.Module) -> int:
    """Bytes of different tensors that a forward pass keeps for its gradient, weights aside."""
    objective, batch = own_objective(name, learner, clips(learner.encoder, 4))
    weights, found = {value.data_ptr() for value in learner.parameters()}, {}

    def pack(tensor: Tensor) -> Tensor:
        if tensor.data_ptr() not in weights:
            found[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = objective.loss(batch)  # the graph lives on, so that no address is given twice
    del loss
    return sum(found.values())


@pytest.mark.parametrize("name", LABEL_FREE)
def test_recomputed_blocks_give_the_same_gradients_bit_for_bit(name):
    """Also where blocks drop units out: TFF's decoder, residual branches of BrainMT."""
    over = {"drop_path": 0.5} if name == "brainmt" else {}
    plain, recomputed = learner_of(name, **over), learner_of(name, **over)
    checkpoint_blocks(recomputed)
    assert [key for key, _ in recomputed.named_parameters()] == [key for key, _ in plain.named_parameters()]
    expected, found = backward(name, plain), backward(name, recomputed)
    assert found[0] == expected[0]
    assert found[1].keys() == expected[1].keys()
    assert all(torch.equal(found[1][key], value) for key, value in expected[1].items())


@pytest.mark.parametrize("name", ["swift_v2", "brainlm"])
def test_recomputed_blocks_keep_less(name):
    """With four blocks in a row, a third at most."""
    over = {"depths": (4, 4)} if name == "swift_v2" else {"depth": 4, "decoder_depth": 4}
    plain, recomputed = learner_of(name, **over), learner_of(name, **over)
    checkpoint_blocks(recomputed)
    assert kept(name, recomputed) < kept(name, plain) / 3


def test_a_copy_of_a_recomputed_block_computes_with_its_own_weights():
    learner = learner_of("brainlm")
    checkpoint_blocks(learner)
    block = blocks_of(learner)[0]
    twin, tokens = deepcopy(block), torch.randn(1, 3, 16)
    with torch.no_grad():
        twin.mlp.linear2.bias.add_(1.0)
    assert not torch.allclose(twin(tokens), block(tokens))
    assert torch.allclose(twin(tokens) - 1.0, block(tokens), atol=1e-6)


# --- compiled ------------------------------------------------------------------------------------------------------


def test_compiled_blocks_give_the_same_gradients_recomputed_or_not():
    """By the backend that traces forward and backward passes and generates no code; importing it takes seconds."""
    expected = backward("brainlm", learner_of("brainlm", depth=2))
    for again in (False, True):
        learner = learner_of("brainlm", depth=2)
        before = [key for key, _ in learner.named_parameters()]
        if again:
            checkpoint_blocks(learner)
        compile_blocks(learner, "aot_eager")
        assert [key for key, _ in learner.named_parameters()] == before
        loss, gradients = backward("brainlm", learner)
        assert loss == pytest.approx(expected[0], rel=1e-6)
        assert gradients.keys() == expected[1].keys()
        for key, value in expected[1].items():
            assert torch.allclose(gradients[key], value, atol=1e-6), key


# --- bfloat16 ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", LABEL_FREE)
def test_bfloat16_rounds_products_alone(name):
    """Loss within 2 %, gradients along those of float32; weights, gradients, norms and residuals are float32."""
    whole, rounded = learner_of(name), learner_of(name)
    keep_float32(rounded, CPU)
    entering: set[torch.dtype] = set()
    products: set[torch.dtype] = set()
    rounded.encoder.register_forward_pre_hook(lambda _, arguments: entering.add(arguments[0].dtype))
    for module in [*blocks_of(rounded), *(each for each in rounded.modules() if isinstance(each, NORMS))]:
        module.register_forward_hook(lambda _, arguments, __: entering.add(arguments[0].dtype))
    for module in rounded.modules():
        if isinstance(module, nn.Linear):
            module.register_forward_hook(lambda _, __, output: products.add(output.dtype))
    expected, found = backward(name, whole), backward(name, rounded, "bfloat16")
    assert (entering, products) == ({torch.float32}, {torch.bfloat16})
    assert found[0] == pytest.approx(expected[0], rel=0.02)
    assert found[1].keys() == expected[1].keys()
    assert {value.dtype for value in rounded.parameters()} == {torch.float32}
    assert {value.dtype for value in found[1].values()} == {torch.float32}
    one, other = (torch.cat([value.flatten() for value in each[1].values()]).double() for each in (expected, found))
    assert (one - other).norm() < 0.05 * one.norm()


def test_bfloat16_norms_subtract_means_in_float32():
    """Of numbers around 1,000, whose differences bfloat16 cannot hold."""
    norm, linear = nn.LayerNorm(64), nn.Linear(64, 64)
    signal = 1000 + torch.randn(8, 64)
    with precision("bfloat16", CPU):
        found = norm(signal)
        assert linear(found).dtype == torch.bfloat16
    assert found.dtype == torch.float32
    assert torch.equal(found, norm(signal))


def test_bfloat16_gradients_of_norms_add_up_all_tokens():
    """In bfloat16 256 and 1 make 256; torch's layer norm on a CPU would add up the gradients of 2,000 tokens so."""
    norm = nn.LayerNorm(4)
    rounded = nn.Sequential(deepcopy(norm))
    keep_float32(rounded, CPU)
    tokens = torch.randn(2000, 4).bfloat16()
    norm(tokens.float()).sum().backward()
    rounded(tokens).sum().backward()
    assert torch.equal(rounded[0].bias.grad, torch.full((4,), 2000.0))
    assert torch.allclose(rounded[0].weight.grad, norm.weight.grad)


def test_convolutions_on_maps_smaller_than_their_kernel_have_true_gradients_on_a_cpu():
    """In bfloat16 oneDNN leaves the gradient of taps that never meet a place unwritten."""
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Conv3d(16, 16, 3, padding=1))
    rounded = deepcopy(plain)
    keep_float32(rounded, CPU)
    maps = torch.randn(4, 16, 2, 2, 2)
    plain(maps).square().sum().backward()
    with precision("bfloat16", CPU):
        loss = rounded(maps).square().sum()
    loss.backward()
    assert torch.allclose(rounded[0].weight.grad, plain[0].weight.grad, rtol=1e-5, atol=1e-5)


def test_float32_changes_nothing():
    with precision("float32", CPU):
        assert not torch.is_autocast_enabled("cpu")
