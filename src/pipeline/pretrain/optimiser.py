"""AdamW whose state is plain tensors under the names of the parameters, ready for a checkpoint.

It calls torch's own kernel. The class around it in torch.optim imports the whole of torch's compiler when it is made,
1.4 s a process, a third of the time that a small cell trains.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw

from pipeline.models.mup import linear_maps

BETAS, EPSILON = (0.9, 0.95), 1e-8
Tensors = dict[str, Tensor]


class AdamW:
    """Decays linear maps and convolutions, but no norms, biases, positions or scales.

    Parameters
    ----------
    weight_decay : a step takes `learning_rate * weight_decay` of a decayed weight, whatever its own factor: else
        the hidden maps of a wide model, whose factors are small, would hardly decay.
    rate_factors : by what the learning rate of each parameter is multiplied (`models.mup.rate_factors`); None: by 1.

    Source: Loshchilov and Hutter (2019), Decoupled weight decay regularization; Kosson et al. (2025), Weight decay may
    matter more than muP for learning rate transfer in practice, on decay that the factor leaves alone.
    """

    def __init__(self, model: nn.Module, weight_decay: float, rate_factors: Mapping[str, float] | None = None) -> None:
        self.weight_decay = weight_decay
        self.parameters = {name: value for name, value in model.named_parameters() if value.requires_grad}
        factors = dict.fromkeys(self.parameters, 1.0) if rate_factors is None else rate_factors
        if missing := sorted(self.parameters.keys() - factors.keys()):
            raise ValueError(f"no learning-rate factor for {missing[:3]}")
        decayed = linear_maps(model)
        self.groups: dict[tuple[bool, float], list[str]] = {}  # (whether decayed, factor) -> names
        for name in self.parameters:
            self.groups.setdefault((name in decayed, factors[name]), []).append(name)
        self.state: Tensors = {}
        for name, value in self.parameters.items():
            self.state[f"mean.{name}"], self.state[f"square.{name}"] = torch.zeros_like(value), torch.zeros_like(value)
            self.state[f"steps.{name}"] = torch.zeros((), device=value.device)

    @torch.no_grad()
    def step(self, learning_rate: float) -> None:
        """Move every parameter that has a gradient."""
        for (decayed, factor), members in self.groups.items():
            names = [name for name in members if self.parameters[name].grad is not None]
            if not names:
                continue
            adamw(
                [self.parameters[name] for name in names],
                [gradient for name in names if (gradient := self.parameters[name].grad) is not None],
                [self.state[f"mean.{name}"] for name in names],
                [self.state[f"square.{name}"] for name in names],
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
            )

    def load(self, state: Tensors) -> None:
        """Take over a saved state of the same parameters."""
        if state.keys() != self.state.keys():
            raise ValueError("a state of other parameters")
        self.state = {name: value.to(self.state[name].device) for name, value in state.items()}
