"""A teacher that follows its student: an exponential moving average of weights.

    student --gradients--> student'          teacher <- m teacher + (1 - m) student'

The teacher holds everything between the batch and its target: embeddings, registers, encoder, and
the heads of a method that has them. It is always in evaluation, no gradient reaches it, and it
follows once per optimizer step, after it (Tarvainen and Valpola, arXiv:1703.01780, (2)).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from copy import deepcopy

import torch
from torch import Tensor, nn

from jetssl_cli.encoder.encoder import Encoder


class Teacher(nn.Module):
    """Copies of parts of a student, under the names that they have there.

    Its weights are a part of the state of the student's objective, so that a run can go on. The
    scaling is copied too, not shared: what is exported must stand by itself.
    """

    def __init__(self, parts: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self.parts = nn.ModuleDict({name: deepcopy(part) for name, part in parts.items()})
        self.requires_grad_(False)
        self.train(False)

    @property
    def encoder(self) -> Encoder:
        """The teacher's encoder, which is the one worth keeping."""
        encoder = self.parts["encoder"]
        assert isinstance(encoder, Encoder)
        return encoder

    def train(self, mode: bool = True) -> Teacher:
        """Stay in evaluation, whatever the student does."""
        del mode
        return super().train(False)

    @torch.no_grad()
    def follow(self, student: nn.Module, momentum: float) -> None:
        """Move all weights towards those of the student; copy the buffers.

        Args:
            student: has the parts of the teacher as submodules.
            momentum: the share of itself that the teacher keeps.
        """
        originals = [student.get_submodule(name) for name in self.parts]
        ours: list[Tensor] = list(self.parameters())
        theirs: list[Tensor] = [p for part in originals for p in part.parameters()]
        torch._foreach_lerp_(ours, theirs, 1 - momentum)
        copies: list[Tensor] = list(self.buffers())
        if copies:
            torch._foreach_copy_(copies, [b for part in originals for b in part.buffers()])


def cosine_momentum(start: float, progress: float) -> float:
    """1 - (1 - start) (cos(pi progress) + 1) / 2: from ``start`` to 1 over a run.

    Grill et al., arXiv:2006.07733, section 3.3.
    """
    return 1 - (1 - start) * (math.cos(math.pi * progress) + 1) / 2
