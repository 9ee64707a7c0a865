"""The term that keeps jets apart, pair by pair."""

from __future__ import annotations

import torch
from torch import Tensor


def koleo_loss(vectors: list[Tensor]) -> Tensor:
    """The mean of -log(distance to the nearest other), of vectors of length 1."""
    directions = [v / length(v) for v in vectors]
    losses = []
    for i, one in enumerate(directions):
        others = [other for j, other in enumerate(directions) if j != i]
        losses.append(-torch.log(min(length(one - other) for other in others) + 1e-8))
    return torch.stack(losses).mean()


def length(v: Tensor) -> Tensor:
    """Euclidean length."""
    return torch.sqrt((v**2).sum())
