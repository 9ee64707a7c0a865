"""Low-rank adapters: a frozen linear layer learns a correction of low rank.

    y = W x + b + (alpha / r) B A x          A: (r, in), B: (out, r), zero at first

Hu et al., arXiv:2106.09685, (3). The layer is saved as the plain one that it amounts to, with the
weight W + (alpha / r) B A, so that nothing that reads the weights has to know of adapters.
"""

from __future__ import annotations

import math

import torch
from pydantic import PositiveFloat, PositiveInt
from torch import Tensor, nn
from torch.nn.functional import linear

from jetssl_cli.config import Strict
from jetssl_cli.encoder.encoder import Encoder
from jetssl_cli.encoder.transformer import Linear


class LoRAConfig(Strict):
    """Settings of the adapters."""

    rank: PositiveInt
    """r; the adapters of a layer have r (in + out) parameters."""
    alpha: PositiveFloat = 16.0
    """Weight of the correction, which is divided by the rank."""

    def add_to(self, encoder: Encoder) -> None:
        """Freeze an encoder, and give every linear layer of its blocks an adapter.

        Layers that modulate the blocks by the jet features stay as they are.
        """
        encoder.requires_grad_(False)
        for block in encoder.blocks:
            for parent in list(block.modules()):
                for name, layer in list(parent.named_children()):
                    if type(layer) is Linear:
                        setattr(parent, name, LowRankLinear(self, layer))


class LowRankLinear(nn.Module):
    """A linear layer beside its adapter; see the top of the module."""

    def __init__(self, cfg: LoRAConfig, layer: nn.Linear) -> None:
        super().__init__()
        self.weight, self.bias = layer.weight, layer.bias
        self.scale = cfg.alpha / cfg.rank
        outputs, inputs = layer.weight.shape
        self.down = nn.Parameter(layer.weight.new_empty(cfg.rank, inputs))
        self.up = nn.Parameter(layer.weight.new_zeros(outputs, cfg.rank))
        nn.init.kaiming_uniform_(self.down, a=math.sqrt(5))  # as of a linear layer

    def forward(self, x: Tensor) -> Tensor:
        """Transform the last axis."""
        return linear(x, self.weight, self.bias) + self.scale * linear(
            linear(x, self.down), self.up
        )

    @torch.no_grad()
    def merged(self) -> Tensor:
        """The weight of the plain layer that this one amounts to."""
        return self.weight + self.scale * self.up @ self.down


def plain_state(module: nn.Module) -> dict[str, Tensor]:
    """The weights of a network, of layers with an adapter those of the plain layers."""
    state: dict[str, Tensor] = module.state_dict()
    for name, layer in module.named_modules():
        if isinstance(layer, LowRankLinear):
            state[f"{name}.weight"] = layer.merged()
            del state[f"{name}.down"], state[f"{name}.up"]
    return state
