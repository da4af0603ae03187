"""The Mamba block: a gated selective scan along a row of tokens, in one direction or in both.

The names of its parameters are those of `Mamba` in the package mamba-ssm, so that published weights load.

Source: Gu and Dao (2023), Mamba: Linear-time sequence modeling with selective state spaces, figure 3; both directions
as in Zhu et al. (2024), Vision Mamba.

Legend: B row; L steps; C channels of a token; D inner channels; N states of a channel; R rank of the step widths.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from pipeline.models.parts.scan import scan_flops, selective_scan

SHORTEST_STEP, LONGEST_STEP, SMALLEST_STEP = 1e-3, 1e-1, 1e-4  # step widths at the start of training


def _step_bias(channels: int) -> Tensor:
    """Inverse softplus of step widths drawn evenly in log space between the shortest and the longest."""
    span = math.log(LONGEST_STEP) - math.log(SHORTEST_STEP)
    steps_D = torch.exp(torch.rand(channels) * span + math.log(SHORTEST_STEP)).clamp(min=SMALLEST_STEP)
    return steps_D + torch.log(-torch.expm1(-steps_D))


class SelectiveStates(nn.Module):
    """What one direction owns: the causal convolution, and the scan whose step widths, B and C depend on the token."""

    def __init__(self, inner: int, states: int, kernel: int, rank: int) -> None:
        super().__init__()
        self.rank, self.states = rank, states
        self.conv1d = nn.Conv1d(inner, inner, kernel, groups=inner, padding=kernel - 1)
        self.x_proj = nn.Linear(inner, rank + 2 * states, bias=False)
        self.dt_proj = nn.Linear(rank, inner)
        nn.init.uniform_(self.dt_proj.weight, -(rank**-0.5), rank**-0.5)
        with torch.no_grad():
            self.dt_proj.bias.copy_(_step_bias(inner))
        # A starts at -1, -2, ..., -N in every channel (the real S4D start) and is learned as a logarithm.
        self.A_log = nn.Parameter(torch.log(torch.arange(1, states + 1, dtype=torch.float32)).repeat(inner, 1))
        self.D = nn.Parameter(torch.ones(inner))

    def scan(self, signal_BLD: Tensor, reverse: bool = False) -> Tensor:
        """Same shape out; what comes out at a step depends on no later one, or in reverse on no earlier one."""
        if reverse:
            signal_BLD = signal_BLD.flip(1)
        steps = signal_BLD.shape[1]
        signal_BLD = functional.silu(self.conv1d(signal_BLD.transpose(1, 2))[..., :steps]).transpose(1, 2)
        step_BLR, b_BLN, c_BLN = self.x_proj(signal_BLD).split([self.rank, self.states, self.states], dim=-1)
        delta_BLD = functional.softplus(self.dt_proj(step_BLR).float())
        scanned_BLD = selective_scan(signal_BLD, delta_BLD, -torch.exp(self.A_log.float()), b_BLN, c_BLN, self.D)
        return scanned_BLD.flip(1) if reverse else scanned_BLD


class Mamba(SelectiveStates):
    """The block: one linear map to the signal and its gate, the scan, one linear map back.

    Parameters
    ----------
    channels : of a token. states, kernel, expand : states of an inner channel, steps that the convolution sees, and
        inner channels for each one of a token.
    both_directions : the same signal is also scanned from its end to its start and the two results are added. The
        linear maps in and out and the gate are shared, each direction has its own convolution, step widths, A, B, C, D.
    """

    def __init__(
        self, channels: int, states: int = 16, kernel: int = 4, expand: int = 2, both_directions: bool = False
    ) -> None:
        inner, rank = expand * channels, -(-channels // 16)
        super().__init__(inner, states, kernel, rank)
        self.in_proj = nn.Linear(channels, 2 * inner, bias=False)
        self.out_proj = nn.Linear(inner, channels, bias=False)
        self.backwards = SelectiveStates(inner, states, kernel, rank) if both_directions else None

    def forward(self, tokens_BLC: Tensor) -> Tensor:
        """Same shape out."""
        signal_BLD, gate_BLD = self.in_proj(tokens_BLC).chunk(2, dim=-1)
        mixed_BLD = self.scan(signal_BLD)
        if self.backwards is not None:
            mixed_BLD = mixed_BLD + self.backwards.scan(signal_BLD, reverse=True)
        return self.out_proj(mixed_BLD * functional.silu(gate_BLD))

    def own_flops(self, tokens_BLC: Tensor) -> int:
        """Operations beside those of its linear maps and convolutions: the scan of each direction."""
        rows, steps = tokens_BLC.shape[:2]
        directions = 1 if self.backwards is None else 2
        return directions * scan_flops(rows, steps, len(self.D), self.states)
