"""Sums over the calls of a loss, kept on the device and read seldom."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from jetssl_cli.objectives import parallel


class Totals(nn.Module):
    """Named vectors that grow. They are no part of the state of a run."""

    def __init__(self, **widths: int) -> None:
        super().__init__()
        for name, width in widths.items():
            self.register_buffer(name, torch.zeros(width, dtype=torch.float64), persistent=False)

    @torch.no_grad()
    def add(self, **values: Tensor) -> None:
        """Add to some of the sums; asks nothing of the device."""
        for name, value in values.items():
            self.get_buffer(name).add_(value)

    def take(self) -> dict[str, Tensor]:
        """The sums over all processes, in the memory of the host; they begin anew."""
        found = {name: parallel.summed(total).cpu().clone() for name, total in self.named_buffers()}
        for total in self.buffers():
            total.zero_()
        return found
