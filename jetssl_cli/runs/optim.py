"""AdamW with weight decay on matrices only; linear warm-up, then a cosine."""

from __future__ import annotations

import math
from typing import Annotated

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat
from torch import nn
from torch.optim import AdamW

from jetssl_cli.config import Strict

Decay = Annotated[float, Field(ge=0, lt=1)]


class OptimConfig(Strict):
    """Settings of the optimizer and its schedule."""

    lr: PositiveFloat = 5e-4
    """Learning rate after warm-up."""
    betas: tuple[Decay, Decay] = (0.9, 0.95)
    """Decay rates of AdamW's running averages."""
    weight_decay: NonNegativeFloat = 0.1
    """Decoupled weight decay, on the matrices of linear layers only."""
    warmup_steps: NonNegativeInt = 1000
    """Steps of linear warm-up, but at most a tenth of the run."""
    final_lr: float = Field(default=0.05, ge=0, le=1)
    """Share of ``lr`` at which the cosine ends."""
    clip_norm: PositiveFloat = 1.0
    """Gradients are scaled down to this norm."""

    def build(self, module: nn.Module) -> AdamW:
        """An optimizer of all parameters of ``module`` that want gradients."""
        decayed = {
            id(layer.weight)
            for layer in module.modules()
            if type(layer) is nn.Linear and layer.weight.requires_grad
        }
        trained = [p for p in module.parameters() if p.requires_grad]
        groups = [
            {
                "params": [p for p in trained if id(p) in decayed],
                "weight_decay": self.weight_decay,
            },
            {"params": [p for p in trained if id(p) not in decayed], "weight_decay": 0.0},
        ]
        return AdamW(groups, lr=self.lr, betas=self.betas, fused=True)

    def factor(self, step: int, steps: int | float) -> float:
        """Share of ``lr`` at a step of a run of ``steps`` steps.

        Where time ends a run, its steps are those to be expected at the pace so far, infinitely
        many at its start: the warm-up ends after ``warmup_steps`` or a tenth of the time, and the
        cosine runs over the time that is left.
        """
        warmup = math.floor(min(self.warmup_steps, steps / 10))
        if step < warmup:
            return (step + 1) / (warmup + 1)
        if math.isinf(steps):
            return 1.0
        progress = min((step - warmup) / max(steps - warmup, 1), 1.0)
        return self.final_lr + (1 - self.final_lr) * 0.5 * (1 + math.cos(math.pi * progress))
