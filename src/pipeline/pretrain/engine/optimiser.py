"""AdamW, alone or beside Muon, whose state is plain tensors under the names of the parameters, ready for a checkpoint.

AdamW calls torch's own kernel, Muon is written out. The classes of torch.optim import the whole of torch's compiler
when they are made, 1.4 s a process, a third of the time that a small cell trains.

Legend: M maps that one weight holds; R C rows (outputs) and columns (inputs) of a map.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import sqrt
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw

from pipeline.models.mup import linear_maps
from pipeline.pretrain.engine.state import local, part_of

Kind = Literal["adamw", "muon"]
Tensors = dict[str, Tensor]

BETAS, EPSILON = (0.9, 0.95), 1e-8
MOMENTUM, NORM_FLOOR = 0.95, 1e-7
NEWTON_SCHULZ = ((3.4445, -4.7750, 2.0315),) * 5  # of x, x^3, x^5; steepest at 0, and five of them reach 0.7 to 1.2
MATCHED_RMS = 0.2  # root mean square of an update of AdamW, over that of its learning rate


class Optimiser:
    """Decays linear maps and convolutions, but no norms, biases, positions or scales.

    With `muon`, the hidden maps (`hidden_maps`) move along their momentum with all singular values made equal, and
    everything else by AdamW. Such an update is scaled to the root mean square that AdamW's have, 0.2 of the rate, so
    that one learning rate and one decay serve both (`match_rms_adamw` of torch.optim.Muon).

    Parameters
    ----------
    learner : its parameters may be sharded (DTensor); their state is then sharded alike.
    weight_decay : a step takes `learning_rate * weight_decay` of a decayed weight, whatever its own factor: else
        the hidden maps of a wide model, whose factors are small, would hardly decay.
    rate_factors : by what the learning rate of each parameter is multiplied under AdamW (`models.mup.rate_factors`);
        None: by 1. Muon multiplies by the root: what must not change with the width is the largest singular value of
        an update, and that of a hidden map r times as wide grows by root r where its root mean square stays.

    Raises
    ------
    ValueError : a parameter without a factor, or another kind.

    Source: Loshchilov and Hutter (2019), Decoupled weight decay regularization; Kosson et al. (2025), Weight decay may
    matter more than muP for learning rate transfer in practice, on decay that the factor leaves alone; Jordan et al.
    (2024), Muon; Liu et al. (2025), Muon is scalable for LLM training, on the scale of its updates; Yang, Simon and
    Bernstein (2023), A spectral condition for feature learning, on widths.
    """

    def __init__(
        self,
        learner: nn.Module,
        weight_decay: float,
        rate_factors: Mapping[str, float] | None = None,
        kind: Kind = "adamw",
    ) -> None:
        if kind not in get_args(Kind):
            raise ValueError(f"optimiser '{kind}', where {get_args(Kind)} are known")
        self.weight_decay = weight_decay
        self.parameters = {name: value for name, value in learner.named_parameters() if value.requires_grad}
        self.factors = dict.fromkeys(self.parameters, 1.0) if rate_factors is None else rate_factors
        if missing := sorted(self.parameters.keys() - self.factors.keys()):
            raise ValueError(f"no learning-rate factor for {missing[:3]}")
        hidden, decayed = hidden_maps(learner) if kind == "muon" else {}, linear_maps(learner)
        self.hidden = {name: count for name, count in hidden.items() if name in self.parameters}
        self.groups: dict[tuple[bool, float], list[str]] = {}  # of AdamW: (whether decayed, factor) -> names
        self.state: Tensors = {}
        for name, value in self.parameters.items():
            if name in self.hidden:
                self.state[f"momentum.{name}"] = torch.zeros_like(value)
                continue
            self.groups.setdefault((name in decayed, self.factors[name]), []).append(name)
            self.state[f"mean.{name}"], self.state[f"square.{name}"] = torch.zeros_like(value), torch.zeros_like(value)
            self.state[f"steps.{name}"] = torch.zeros((), device=value.device)

    @torch.no_grad()
    def step(self, learning_rate: float, scale: float = 1.0) -> None:
        """Move every parameter that has a gradient, as if that had been `scale` times what it is.

        AdamW's kernel scales on its way, which saves a pass over all gradients.
        """
        divisor = None if scale == 1 else torch.tensor(1 / scale, device=next(iter(self.parameters.values())).device)
        for (decayed, factor), members in self.groups.items():
            names = [name for name in members if self.parameters[name].grad is not None]
            if not names:
                continue
            adamw(
                [local(self.parameters[name]) for name in names],
                [local(gradient) for name in names if (gradient := self.parameters[name].grad) is not None],
                [local(self.state[f"mean.{name}"]) for name in names],
                [local(self.state[f"square.{name}"]) for name in names],
                [],
                [self.state[f"steps.{name}"] for name in names],
                fused=True,
                amsgrad=False,
                beta1=BETAS[0],
                beta2=BETAS[1],
                lr=learning_rate * factor,
                weight_decay=self.weight_decay / factor if decayed else 0.0,
                eps=EPSILON,
                maximize=False,
                grad_scale=divisor,
            )
        for name in self.hidden:
            if (gradient := self.parameters[name].grad) is not None:
                self._move(name, gradient.mul_(scale), learning_rate)

    def _move(self, name: str, gradient: Tensor, learning_rate: float) -> None:
        """One step of Muon: along Nesterov's momentum, each map of which is made orthogonal as a whole."""
        parameter, momentum = self.parameters[name], self.state[f"momentum.{name}"]
        momentum.lerp_(gradient, 1 - MOMENTUM)
        ahead = gathered(gradient.lerp(momentum, MOMENTUM))
        maps_MRC = ahead.reshape(self.hidden[name], -1, ahead[0].numel())
        rms = MATCHED_RMS * sqrt(max(maps_MRC.shape[1:]))  # that of an orthogonal map is 1 / root of its longer side
        update = orthogonal(maps_MRC).reshape(ahead.shape).to(ahead.dtype)
        local(parameter).mul_(1 - learning_rate * self.weight_decay).add_(
            part_of(update, parameter), alpha=-learning_rate * sqrt(self.factors[name]) * rms
        )


def hidden_maps(learner: nn.Module) -> dict[str, int]:
    """The weights that Muon moves, and how many maps each holds: 3 where queries, keys and values are one weight.

    They are the linear maps and convolutions inside the blocks of a learner (members of `nn.ModuleList`). Embeddings
    and heads stand outside of blocks; what reads or writes one channel, as a depthwise convolution does, is a set of
    vectors and has no singular values worth making equal.

    Source: Jordan et al. (2024), Muon, on embeddings, heads and separate queries, keys and values.
    """
    lists = [f"{name}.".lstrip(".") for name, module in learner.named_modules() if isinstance(module, nn.ModuleList)]
    found = {}
    for name, module in linear_maps(learner).items():
        matrix = min(learner.get_parameter(name).shape[:2]) > 1 and getattr(module, "groups", 1) == 1
        if matrix and name.startswith(tuple(lists)):
            found[name] = 3 if name.endswith("qkv.weight") else 1
    return found


def orthogonal(maps_MRC: Tensor) -> Tensor:
    """Each map with its singular values moved to about 1 (0.7 to 1.2), by five Newton-Schulz iterations of degree 5.

    In bfloat16 on CUDA, as torch.optim.Muon; in float32 on a CPU, where the same gradient summed by another number of
    processes then moves a weight alike to 1e-6, and not to the 1/256 to which bfloat16 rounds.

    Source: Jordan et al. (2024), Muon: An optimizer for hidden layers in neural networks.
    """
    maps = maps_MRC.bfloat16() if maps_MRC.is_cuda else maps_MRC.float()
    tall = maps.shape[1] > maps.shape[2]
    maps = maps.mT if tall else maps
    maps = maps / maps.norm(dim=(1, 2), keepdim=True).clamp(min=NORM_FLOOR)
    for linear, cubic, quintic in NEWTON_SCHULZ:
        gram = maps @ maps.mT
        maps = torch.baddbmm(maps, torch.baddbmm(gram, gram, gram, beta=cubic, alpha=quintic), maps, beta=linear)
    return maps.mT if tall else maps


def gathered(tensor: Tensor) -> Tensor:
    """All of a tensor on every process; whoever shares a sharded one must call this together."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
