"""Sums and means over the batches of all processes; with a single process, over its own.

Each process sees a part of the global batch, and gradients are averaged over processes. Where the
parts differ in size, as numbers of hidden constituents do, the average of the means is not the mean
of all: these functions give what a single device with the global batch would find.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, distributed


def world_size() -> int:
    """Number of processes that train together."""
    return distributed.get_world_size() if distributed.is_initialized() else 1


def summed(x: Tensor) -> Tensor:
    """The sum over processes, without a gradient."""
    x = x.detach()
    if world_size() > 1:
        x = x.clone()
        distributed.all_reduce(x)
    return x


def mean(errors: Float[Tensor, " *shape"]) -> Float[Tensor, ""]:
    """The mean of all numbers of all processes, for a loss whose gradients are averaged.

    What one process returns is its own sum, over the global count and times the number of
    processes: the average of these over processes is the global mean. Of nothing it is 0.
    """
    count = errors.numel()
    if world_size() > 1:
        numbers = torch.full((), float(count), dtype=torch.float64, device=errors.device)
        return errors.sum() * (world_size() / summed(numbers).clamp_min(1)).to(errors.dtype)
    return errors.sum() / max(count, 1)


def weighted_mean(errors: Float[Tensor, " N"], weights: Float[Tensor, " N"]) -> Float[Tensor, ""]:
    """The same with weights: their sum takes the place of the count. Without any it is 0."""
    total = weights.sum(dtype=torch.float64)
    if world_size() > 1:
        total = summed(total) / world_size()
    none = total == 0
    return (errors * weights).sum() / torch.where(none, 1, total).to(errors.dtype)
