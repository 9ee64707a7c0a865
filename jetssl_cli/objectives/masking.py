"""Which constituents an objective hides."""

from __future__ import annotations

import torch
from jaxtyping import Bool
from torch import Tensor

from jetssl_cli.batch import Packing


def random_mask(packing: Packing, share: float, rng: torch.Generator) -> Bool[Tensor, " T"]:
    """Hide floor(share * n) of the n constituents of each jet, chosen uniformly.

    Returns:
        True where a constituent is hidden.
    """
    device = packing.offsets.device
    keys = torch.rand(packing.total, generator=rng, device=device, dtype=torch.float64)
    by_key = (packing.owner + keys).argsort()  # a random order within each jet
    count = (packing.sizes.double() * share + 1e-9).floor()  # 0.29 * 100 is a little less than 29
    hidden = torch.zeros(packing.total, dtype=torch.bool, device=device)
    hidden[by_key] = packing.rank < count[packing.owner]
    return hidden
