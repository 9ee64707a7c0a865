"""AdamW with weight decay on matrices only; warm-up, then a cosine; a backbone's own pace."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, NamedTuple

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat
from torch import nn
from torch.optim import AdamW

from jetssl_cli.config import Strict
from jetssl_cli.encoder.encoder import Encoder
from jetssl_cli.encoder.transformer import Linear

Decay = Annotated[float, Field(ge=0, lt=1)]


class Place(NamedTuple):
    """How a group of parameters learns beside the others."""

    share: float = 1.0
    """Its learning rate is so many times that of the schedule."""
    late: bool = False
    """It belongs to a backbone that is frozen at first."""


@dataclass(frozen=True)
class Pace:
    """How a backbone learns beside what is trained on top of it."""

    unfreeze_at: int = 0
    """The backbone is frozen before this step."""
    catch_up_steps: int = 1000
    """Then its learning rate rises from 0 to that of the head, linearly over so many steps, but at
    most a tenth of those that are left."""
    layer_decay: float = 1.0
    """The rate of block k of n (from 0) is multiplied by this to the power n - k, that of the
    embeddings by n + 1 (Clark et al., arXiv:2003.10555, appendix B)."""

    def places(self, backbone: Encoder) -> dict[int, Place]:
        """How each parameter of the backbone, known by its id, learns."""
        late = self.unfreeze_at > 0
        found = {id(p): Place(late=late) for p in backbone.parameters()}
        levels = backbone.levels()
        for level, parameters in enumerate(levels):
            share = self.layer_decay ** (len(levels) - level)
            found |= {id(p): Place(share, late) for p in parameters}
        return found

    def frozen(self, step: int) -> bool:
        """Whether the backbone is left alone in this step."""
        return step < self.unfreeze_at

    def factor(self, step: int, steps: int | float) -> float:
        """Share of the rate of the schedule that a late backbone has at a step of ``steps``."""
        catch_up = math.floor(min(self.catch_up_steps, (steps - self.unfreeze_at) / 10))
        done = step - self.unfreeze_at + 1
        return min(max(done, 0) / max(catch_up + 1, 1), 1.0)


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

    def build(self, module: nn.Module, places: Mapping[int, Place] | None = None) -> AdamW:
        """An optimizer of all parameters of ``module`` that want gradients.

        ``places`` says which of them, known by their ids, do not learn as the others do.
        """
        decayed = {
            id(layer.weight)
            for layer in module.modules()
            if type(layer) in (nn.Linear, Linear) and layer.weight.requires_grad
        }
        parts: dict[tuple[Place, bool], list[nn.Parameter]] = {}
        for p in module.parameters():
            if p.requires_grad:
                place = (places or {}).get(id(p), Place())
                parts.setdefault((place, id(p) in decayed), []).append(p)
        groups = [
            {"params": part, "weight_decay": self.weight_decay * decays, "place": place}
            for (place, decays), part in sorted(parts.items(), key=lambda item: not item[0][1])
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
