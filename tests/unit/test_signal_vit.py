"""The signal ViT: each way to embed and to place is what it says, and a known parameter is learned."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from pipeline.models.learners.supervised import Supervised
from pipeline.models.signal_vit import DESCRIPTION, RotaryAttention, SignalViT

SMALL = {"width": 16, "depth": 1, "heads": 2, "patch": 8, "length": 64}
EMBEDDINGS, POSITIONS = ("linear", "convolution", "window"), ("learned", "sine", "rotary", "none")


def small(**over: object) -> SignalViT:
    torch.manual_seed(0)
    return SignalViT(**{**SMALL, **over})


@pytest.mark.parametrize(("embedding", "positions"), itertools.product(EMBEDDINGS, POSITIONS))
def test_features_have_time_last_and_a_gradient_reaches_every_parameter(embedding, positions):
    model = Supervised(small(embedding=embedding, positions=positions))
    signal = torch.randn(3, 64)
    assert model.encoder(signal).shape == (3, 16, 8)
    model(signal).square().mean().backward()
    assert [key for key, value in model.named_parameters() if value.grad is None or not value.grad.any()] == []


@pytest.mark.parametrize(("embedding", "tokens"), [("linear", [3]), ("window", [2, 3, 4]), ("convolution", [3, 4])])
@torch.no_grad()
def test_a_patch_moves_its_token_and_those_whose_embedding_reaches_it(embedding, tokens):
    """Samples 24 to 31 are patch 3. Three convolutions look back 1 + 2 + 4 samples, and not beyond their patch."""
    encoder, signal = small(embedding=embedding), torch.randn(1, 64)
    other = signal.clone()
    other[:, 24:32] += torch.randn(8)
    changed = (encoder.embed(other) - encoder.embed(signal)).abs().amax(dim=(0, 2)) > 0
    assert changed.nonzero()[:, 0].tolist() == tokens


@torch.no_grad()
def test_embeddings_equal_their_naive_writing():
    signal = torch.randn(2, 64)
    padded = torch.cat([torch.zeros(2, 4), signal, torch.zeros(2, 4)], dim=1)
    linear, window = (small(embedding=each, positions="none") for each in ("linear", "window"))
    for token in range(8):
        one = linear.patch_embed.fc.weight @ signal[1, 8 * token : 8 * token + 8] + linear.patch_embed.fc.bias
        two = window.patch_embed.conv.weight[:, 0] @ padded[1, 8 * token : 8 * token + 16]
        assert torch.allclose(linear.embed(signal)[1, token], one, atol=1e-6)
        assert torch.allclose(window.embed(signal)[1, token], two + window.patch_embed.conv.bias, atol=1e-6)
    assert small(embedding="window", patch=5, length=60).embed(torch.randn(1, 60)).shape == (1, 12, 16)


@torch.no_grad()
def test_rotary_attention_equals_complex_rotation():
    """Channels d and d + D/2 are a complex number, turned by place * 10000^(-2d/D)."""
    torch.manual_seed(0)
    attention, tokens = RotaryAttention(12, 3), torch.randn(2, 7, 12)
    q, k, v = attention.qkv(tokens).double().chunk(3, dim=-1)
    turn = torch.polar(torch.ones(7, 2).double(), torch.arange(7)[:, None] / torch.tensor([1.0, 100.0]).double())
    mixed = torch.empty(2, 7, 12, dtype=torch.float64)
    for clip, head in itertools.product(range(2), range(3)):
        own = slice(4 * head, 4 * head + 4)
        first, second = (torch.complex(*each[clip, :, own].chunk(2, dim=1)) * turn for each in (q, k))
        score = (first @ second.conj().T).real / 2  # the root of four channels
        mixed[clip, :, own] = score.softmax(dim=1) @ v[clip, :, own]
    assert torch.allclose(attention(tokens), attention.proj(mixed.float()), atol=1e-6)


@pytest.mark.parametrize("positions", POSITIONS)
@torch.no_grad()
def test_only_without_positions_is_order_invisible(positions):
    encoder, signal = small(positions=positions), torch.randn(1, 64)
    turned = signal.unflatten(1, (8, 8)).flip(1).flatten(1)
    same = torch.allclose(encoder(signal), encoder(turned).flip(2), atol=1e-5)
    assert same == (positions == "none")


@torch.no_grad()
def test_all_but_learned_positions_reach_any_length():
    for positions in ("sine", "rotary", "none"):
        assert small(positions=positions)(torch.randn(1, 128)).shape == (1, 16, 16)
    assert small()(torch.randn(1, 32)).shape == (1, 16, 4)
    with pytest.raises(ValueError, match="learned for 8"):
        small()(torch.randn(1, 128))


def test_what_does_not_fit_is_refused():
    for wrong in ({"length": 60}, {"heads": 3}, {"embedding": "fourier"}, {"positions": "relative"}):
        with pytest.raises(ValueError, match=r"tile|divide|choices"):
            small(**wrong)
    with pytest.raises(ValueError, match="power of two"):
        small(embedding="convolution", patch=6, length=60)
    with pytest.raises(ValueError, match="even number"):
        small(positions="rotary", width=18)


def test_parameters_are_counted_by_hand():
    """A block has 12 C^2 + 13 C; beside them a patch's map, 1024 / 16 positions, the last norm and one output."""
    width = 256
    with torch.device("meta"):
        model = DESCRIPTION.learner(DESCRIPTION.build(**DESCRIPTION.sizes["4.8m"]))
    blocks, rest = 6 * (12 * width**2 + 13 * width), 17 * width + 64 * width + 2 * width + width + 1
    assert sum(each.numel() for each in model.parameters()) == blocks + rest == 4_760_065


@torch.no_grad()
def test_bf16_is_close_to_fp32():
    for positions in POSITIONS:
        encoder, signal = small(positions=positions), torch.randn(2, 64)
        exact = encoder(signal)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert (encoder(signal) - exact).norm() < 0.02 * exact.norm()


def sines(count: int, generator: torch.Generator, shuffled: bool) -> tuple[Tensor, Tensor]:
    """Sines of 1 to 5 turns in 64 samples at any phase, and where between the two they lie, from -1 to 1."""
    place, phase = 2 * torch.rand(2, count, 1, generator=generator) - torch.tensor(1.0)
    signal = (2 * torch.pi * ((3 + 2 * place) * torch.arange(64) / 64 + phase)).sin()
    if shuffled:
        signal = signal.gather(1, torch.rand(signal.shape, generator=generator).argsort(dim=1))
    return signal, place


def held_out_error(shuffled: bool) -> float:
    """Squared error of new signals after training, as a share of the variance of what is asked."""
    generator = torch.Generator().manual_seed(1)
    model = Supervised(small())
    optimiser = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for _ in range(200):
        signal, place = sines(32, generator, shuffled)
        optimiser.zero_grad()
        (model(signal) - place).square().mean().backward()
        optimiser.step()
    signal, place = sines(256, generator, shuffled)
    with torch.no_grad():
        return float((model(signal) - place).square().mean() / place.var())


def test_the_frequency_of_a_sine_is_learned_and_not_from_shuffled_samples():
    found, shuffled = held_out_error(shuffled=False), held_out_error(shuffled=True)
    assert found < 0.05
    assert shuffled > 0.5  # what is left in the values alone: slow sines have fewer turns, and so means beside 0
