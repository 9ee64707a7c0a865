"""A teacher that follows its student: an exponential moving average of weights.

    student --gradients--> student'          teacher <- m teacher + (1 - m) student'

The teacher holds everything between the batch and its target: embeddings, registers, encoder, and
the heads of a method that has them. It is always in evaluation, no gradient reaches it, and it
follows once per optimizer step, after it (Tarvainen and Valpola, arXiv:1703.01780, (2)).

In step t it keeps m = (1 - 1/t)^power of itself (Karras et al., arXiv:2312.02696, section 3.1). So
m rises to 1, and the teacher is an average over the same share of the run however long that is: a
constant m that suits 100,000 steps leaves the teacher of a short run where it began.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy

import torch
from jaxtyping import Int
from torch import Tensor, nn

from jetssl_cli.encoder.encoder import Encoder


class Teacher(nn.Module):
    """Copies of parts of a student, under the names that they have there.

    Its weights are a part of the state of the student's objective, so that a run can go on. The
    scaling, which no training changes, is copied too, not shared: what is exported must stand by
    itself.
    """

    steps: Int[Tensor, ""]
    """How often it has followed; counted where the weights are, so that no device is asked."""

    def __init__(self, parts: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self.parts = nn.ModuleDict({name: deepcopy(part) for name, part in parts.items()})
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
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
    def follow(self, student: nn.Module, power: float) -> None:
        """Move all weights towards those of the student; copy the buffers, but the scaling's.

        Args:
            student: has the parts of the teacher as submodules.
            power: the teacher remembers about one ``power``-th of all steps so far.
        """
        self.steps += 1
        share = -torch.expm1(power * torch.log1p(-1 / self.steps.double()))  # 1 in the first step
        originals = [student.get_submodule(name) for name in self.parts]
        ours: list[Tensor] = list(self.parts.parameters())
        ways = torch._foreach_sub([p for part in originals for p in part.parameters()], ours)
        torch._foreach_mul_(ways, share.float())
        torch._foreach_add_(ours, ways)
        copies = [b for part in originals for b in _buffers(part)]
        mine = [b for part in self.parts.values() for b in _buffers(part)]
        for own, copied in zip(mine, copies, strict=True):
            own.copy_(copied)


def _buffers(part: nn.Module) -> list[Tensor]:
    return [buffer for name, buffer in part.named_buffers() if not name.startswith("scaling.")]
