"""AdamW with a learning-rate factor for each parameter, and Muon, against torch's own; both on sharded parameters."""

from __future__ import annotations

import subprocess
import sys
from math import sqrt
from pathlib import Path

import pytest
import torch
from tiny_models import tiny
from torch import Tensor, distributed, multiprocessing, nn

from pipeline.errors import InputError
from pipeline.models import describe
from pipeline.pretrain.engine.optimiser import NEWTON_SCHULZ, Optimiser, gathered, hidden_maps, orthogonal
from pipeline.pretrain.engine.state import fill


class Net(nn.Module):
    """A convolution, a norm, positions, two linear maps and a matrix that is no map."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(3, 4, 3, padding=1)
        self.norm = nn.LayerNorm(4)
        self.positions = nn.Parameter(torch.randn(1, 6, 4))
        self.rates = nn.Parameter(torch.randn(4, 4))
        self.hidden, self.head = nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, signal: torch.Tensor) -> torch.Tensor:
        tokens = self.norm(self.conv(signal).movedim(1, 2)) + self.positions
        return self.head(self.hidden(tokens).tanh() * self.rates.sum(0))


DECAYED = {"conv.weight", "hidden.weight", "head.weight"}
FACTORS = {"hidden.weight": 0.25, "head.weight": 0.25, "hidden.bias": 2.0}


def nets() -> tuple[Net, Net, dict[str, float]]:
    torch.manual_seed(0)
    ours, other = Net(), Net()
    other.load_state_dict(ours.state_dict())
    return ours, other, {name: FACTORS.get(name, 1.0) for name, _ in ours.named_parameters()}


def test_equals_torch_with_a_group_for_each_parameter():
    ours, other, factors = nets()
    optimiser = Optimiser(ours, 0.3, factors)
    groups = [
        {"params": [value], "lr": 0.01 * factors[name], "weight_decay": 0.3 / factors[name] * (name in DECAYED)}
        for name, value in other.named_parameters()
    ]
    reference = torch.optim.AdamW(groups, betas=(0.9, 0.95))
    for _ in range(5):
        signal = torch.randn(2, 3, 6)
        for net in (ours, other):
            net.zero_grad()
            net(signal).square().mean().backward()
        optimiser.step(0.01)
        reference.step()
    for (name, value), expected in zip(ours.named_parameters(), other.parameters(), strict=True):
        assert torch.allclose(value, expected, atol=1e-7), name


def test_decay_is_the_same_for_every_factor():
    """With a gradient of zero only decay is left: learning_rate * weight_decay of the weight, whatever its factor."""
    ours, other, factors = nets()
    for value in ours.parameters():
        value.grad = torch.zeros_like(value)
    Optimiser(ours, 0.3, factors).step(0.01)
    for (name, value), before in zip(ours.named_parameters(), other.parameters(), strict=True):
        assert torch.allclose(value, before * (1 - 0.01 * 0.3 if name in DECAYED else 1.0), rtol=1e-6), name


def test_first_step_of_a_parameter_is_the_rate_times_its_factor():
    """Adam's first step has the length of the rate, whatever the gradient."""
    ours, other, factors = nets()
    for value in ours.parameters():
        value.grad = torch.randn_like(value).sign() * 3.0
    Optimiser(ours, 0.0, factors).step(0.01)
    for (name, value), before in zip(ours.named_parameters(), other.parameters(), strict=True):
        assert torch.allclose((value - before).abs(), torch.full_like(value, 0.01 * factors[name]), rtol=1e-3), name


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_a_scale_is_that_of_the_gradients(kind):
    ours, other = blocks(), blocks()
    for net, optimiser, scale in (
        (ours, Optimiser(ours, 0.3, kind=kind), 0.125),
        (other, Optimiser(other, 0.3, kind=kind), 1),
    ):
        for step in range(3):
            net.zero_grad()
            (loss_of(net, step) * (1 if scale < 1 else 0.125)).backward()
            optimiser.step(0.01, scale)
    for one, two in zip(ours.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(one, two, rtol=0, atol=1e-6)


def test_what_has_no_gradient_stays():
    ours, other, factors = nets()
    ours.head.weight.grad = torch.ones_like(ours.head.weight)
    Optimiser(ours, 0.3, factors).step(0.01)
    same = {n for (n, v), b in zip(ours.named_parameters(), other.parameters(), strict=True) if torch.equal(v, b)}
    assert same == factors.keys() - {"head.weight"}


def test_a_parameter_without_factor_is_refused():
    ours, _, factors = nets()
    del factors["hidden.weight"]
    with pytest.raises(ValueError, match=r"hidden\.weight"):
        Optimiser(ours, 0.3, factors)


def test_state_resumes_under_the_names_of_the_parameters():
    """Factors leave the names in a checkpoint as they were."""
    ours, other, factors = nets()
    one, two = Optimiser(ours, 0.3, factors), Optimiser(other, 0.3, factors)
    names = {f"{kind}.{name}" for kind in ("mean", "square", "steps") for name in factors}
    assert one.state.keys() == names
    signal = torch.randn(2, 3, 6)
    for step in range(2):
        ours.zero_grad()
        ours(signal).square().mean().backward()
        one.step(0.01)
        if step == 0:
            other.load_state_dict(ours.state_dict())
            fill(two.state, one.state)
    other(signal).square().mean().backward()
    two.step(0.01)
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), other.parameters(), strict=True))
    with pytest.raises(InputError, match="the names of this cell's learner and optimiser"):
        fill(two.state, {})


def test_an_unknown_kind_is_refused():
    with pytest.raises(ValueError, match="sgd"):
        Optimiser(nn.Linear(2, 2), 0.1, kind="sgd")


# --- Muon ----------------------------------------------------------------------------------------------------------


class Attention(nn.Module):
    """What Muon must tell apart: three maps in one weight, wide and tall ones, a convolution, vectors and a norm."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.qkv, self.wide, self.tall = nn.Linear(width, 3 * width), nn.Linear(3 * width, width), nn.Linear(width, 8)
        self.conv, self.depthwise = nn.Conv1d(8, width, 3, padding=1), nn.Conv1d(width, width, 3, 1, 1, groups=width)
        self.gate, self.norm = nn.Linear(width, 1), nn.LayerNorm(width)
        self.rates = nn.Parameter(torch.ones(width, width))

    def forward(self, tokens_BNC: Tensor) -> Tensor:
        inner = self.wide(self.qkv(self.norm(tokens_BNC) @ self.rates).tanh())
        inner = self.depthwise(self.conv(self.tall(inner).mT)).mT
        return tokens_BNC + inner * self.gate(tokens_BNC)


MATRICES = {"qkv.weight", "wide.weight", "tall.weight", "conv.weight"}


class Blocks(nn.Module):
    """Two of them between an embedding and a head."""

    def __init__(self, width: int = 5) -> None:
        super().__init__()
        self.embed, self.head = nn.Linear(5, width), nn.Linear(width, 4)
        self.blocks = nn.ModuleList(Attention(width) for _ in range(2))

    def forward(self, signal_BNC: Tensor) -> Tensor:
        tokens = self.embed(signal_BNC)
        for block in self.blocks:
            tokens = block(tokens)
        return self.head(tokens)


def blocks(width: int = 5) -> Blocks:
    torch.manual_seed(0)
    return Blocks(width)


def loss_of(net: nn.Module, step: int) -> Tensor:
    signal = torch.randn(4, 7, 5, generator=torch.Generator().manual_seed(step))
    return net(signal).square().mean()


def as_maps(weight: Tensor) -> Tensor:
    return weight.unflatten(0, (3, -1)) if len(weight) == 15 else weight.flatten(1)[None]


def test_muon_moves_the_maps_of_blocks_and_nothing_else():
    assert hidden_maps(blocks()).keys() == {f"blocks.{i}.{name}" for i in (0, 1) for name in MATRICES}
    assert {name: maps for name, maps in hidden_maps(blocks()).items() if maps > 1} == {
        "blocks.0.qkv.weight": 3,
        "blocks.1.qkv.weight": 3,
    }


@pytest.mark.parametrize("name", ["swift_v2", "brainlm", "neurostorm"])
def test_muon_leaves_embeddings_and_heads_of_the_registry_to_adamw(name):
    learner = describe(name).learner(tiny(name))
    moved = hidden_maps(learner)
    assert len(moved) >= 4
    assert not [each for each in moved if "embed" in each or "head" in each or "conv1d" in each or "norm" in each]
    assert all(maps == (3 if each.endswith("qkv.weight") else 1) for each, maps in moved.items())


def test_muon_equals_torch_on_the_maps_and_adamw_on_the_rest(monkeypatch):
    """torch rounds each iteration to bfloat16, we on a CPU do not; its own code without the rounding is ours."""
    monkeypatch.setattr(Tensor, "bfloat16", Tensor.float)
    ours, other = blocks(), blocks()
    optimiser = Optimiser(ours, 0.3, kind="muon")
    mapped = {
        name: as_maps(value.detach()).clone() for name, value in other.named_parameters() if name in optimiser.hidden
    }
    flat = {name: [nn.Parameter(each) for each in maps] for name, maps in mapped.items()}
    matrices = [each for maps in flat.values() for each in maps]
    muon = torch.optim.Muon(matrices, lr=0.01, weight_decay=0.3, adjust_lr_fn="match_rms_adamw")
    rest = {name: value for name, value in other.named_parameters() if name not in flat}
    decayed = {"embed.weight", "head.weight"} | {name for name in rest if "gate.w" in name or "depthwise.w" in name}
    groups = [{"params": [value], "weight_decay": 0.3 * (name in decayed)} for name, value in rest.items()]
    adamw = torch.optim.AdamW(groups, lr=0.01, betas=(0.9, 0.95))
    for step in range(4):
        for net in (ours, other):
            net.zero_grad()
        loss_of(ours, step).backward()
        for (name, value), twin in zip(ours.named_parameters(), other.parameters(), strict=True):
            twin.grad = value.grad.clone()
            if name in flat:
                for part, gradient in zip(flat[name], as_maps(value.grad), strict=True):
                    part.grad = gradient.clone()
        optimiser.step(0.01)
        muon.step()
        adamw.step()
    for name, value in ours.named_parameters():
        if name in flat:
            assert torch.allclose(as_maps(value), torch.stack([*flat[name]]), atol=1e-6), name
        else:
            assert torch.allclose(value, rest[name], atol=1e-6), name


@pytest.mark.parametrize("shape", [(1, 6, 6), (3, 4, 9), (2, 9, 4)])
def test_orthogonal_applies_its_polynomial_to_singular_values(shape):
    maps = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    u, s, v = torch.linalg.svd(maps, full_matrices=False)
    s = s / s.norm(dim=-1, keepdim=True)
    for linear, cubic, quintic in NEWTON_SCHULZ:
        s = linear * s + cubic * s**3 + quintic * s**5
    found = orthogonal(maps.float())
    assert torch.allclose(found.double(), u @ (s[..., None] * v), atol=1e-5)
    assert (torch.linalg.svdvals(found) > 0.68).all()
    assert (torch.linalg.svdvals(found) < 1.21).all()
    assert torch.equal(orthogonal(torch.zeros(shape)), torch.zeros(shape))


def moves(width: int, factor: float | None) -> tuple[dict[str, Tensor], float]:
    """How a first step of Muon, without decay, moves each weight of the blocks, by random gradients; and its rate."""
    net = blocks(width)
    factors = None if factor is None else {name: factor for name, _ in net.named_parameters()}
    optimiser = Optimiser(net, 0.0, factors, kind="muon")
    before = {name: value.detach().clone() for name, value in net.named_parameters()}
    for value in net.parameters():
        value.grad = torch.randn_like(value)
    optimiser.step(0.01)
    moved = {name: value.detach() - before[name] for name, value in net.named_parameters() if name in optimiser.hidden}
    return moved, 0.01


def test_muon_steps_are_as_long_as_those_of_adamw():
    """.2 of the rate, the root mean square that Liu et al. (2025) found of AdamW, whatever the shape of a map."""
    moved, rate = moves(48, None)
    for name, step in moved.items():
        assert step.square().mean().sqrt().item() == pytest.approx(0.2 * rate, rel=0.15), name


def test_muon_under_mup_has_one_largest_singular_value_at_every_width():
    """Of square hidden maps; a map four times as wide has the factor 1 / 4."""
    narrow, wide = moves(12, 1.0)[0], moves(48, 1 / 4)[0]
    largest = [
        [torch.linalg.matrix_norm(part, 2).item() for part in m["blocks.0.qkv.weight"].chunk(3)] for m in (narrow, wide)
    ]
    assert largest[0] == pytest.approx([0.01 * 0.2 * sqrt(12)] * 3, rel=0.25)
    assert largest[1] == pytest.approx(largest[0], rel=0.3)


def test_muon_resumes_under_the_names_of_the_parameters():
    ours, other = blocks(), blocks()
    one, two = Optimiser(ours, 0.3, kind="muon"), Optimiser(other, 0.3, kind="muon")
    names = {name for name, _ in ours.named_parameters()}
    rest = names - one.hidden.keys()
    adamw = {f"{kind}.{name}" for kind in ("mean", "square", "steps") for name in rest}
    assert one.state.keys() == adamw | {f"momentum.{name}" for name in one.hidden}
    for step in range(4):
        if step == 2:
            other.load_state_dict(ours.state_dict())
            fill(two.state, one.state)
        for net, optimiser in ((ours, one), (other, two))[: 1 if step < 2 else 2]:
            net.zero_grad()
            loss_of(net, step).backward()
            optimiser.step(0.01)
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), other.parameters(), strict=True))
    with pytest.raises(InputError, match="the names of this cell's learner and optimiser"):
        fill(two.state, Optimiser(other, 0.3).state)


def test_neither_kind_imports_the_compiler():
    """It takes longer than a small cell trains."""
    code = "from torch import nn; from pipeline.pretrain.engine.optimiser import Optimiser; net = nn.Module()\n"
    code += "net.blocks = nn.ModuleList([nn.Linear(2, 2)]); net.blocks[0].weight.sum().backward()\n"
    code += "for kind in ('adamw', 'muon'): Optimiser(net, 0.1, kind=kind).step(0.1)\n"
    code += "import sys; sys.exit('torch._dynamo' in sys.modules or 'torch.distributed.tensor' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# --- sharded parameters --------------------------------------------------------------------------------------------


def train_sharded(rank: int, folder: Path, processes: int) -> None:
    """Five steps of each kind, all processes on the same batch; the first writes whole weights and state."""
    from torch.distributed.fsdp import fully_shard

    torch.set_num_threads(1)
    distributed.init_process_group("gloo", f"file://{folder}/meet", rank=rank, world_size=processes)
    mesh = distributed.init_device_mesh("cpu", (processes,))
    for kind in ("adamw", "muon"):
        net = blocks()
        for block in net.blocks:
            fully_shard(block, mesh=mesh)
        fully_shard(net, mesh=mesh)
        found = trained(net, kind)
        if rank == 0:
            torch.save(found, folder / f"{kind}.pt")
    distributed.destroy_process_group()


def trained(net: nn.Module, kind: str) -> dict[str, Tensor]:
    optimiser = Optimiser(net, 0.3, kind=kind)
    for step in range(5):
        net.zero_grad()
        loss_of(net, step).backward()
        optimiser.step(0.01)
    named = dict(net.named_parameters()) | optimiser.state
    return {name: gathered(value.detach()).clone() for name, value in named.items()}


def test_sharded_parameters_move_as_whole_ones(tmp_path):
    """The second of two processes has no row of a gate, and of most maps fewer rows than the first."""
    multiprocessing.spawn(train_sharded, (tmp_path, 2), nprocs=2)
    for kind in ("adamw", "muon"):
        expected, found = trained(blocks(), kind), torch.load(tmp_path / f"{kind}.pt", weights_only=True)
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            assert torch.allclose(found[name], value, atol=1e-5), name
