"""Which constituents an objective hides."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from pydantic import Field, PositiveFloat
from torch import Tensor

from jetssl_cli.batch import JetBatch, Packing
from jetssl_cli.config import Strict


@dataclass(frozen=True)
class Split:
    """A batch, cut in two."""

    seen: JetBatch
    """With the visible constituents only."""
    unseen: JetBatch
    """With the hidden ones only, in pT order within each jet."""
    hidden_rows: Int[Tensor, " hidden"]
    """Where the hidden constituents stand among all of the batch."""

    @classmethod
    def of(cls, batch: JetBatch, hidden: Bool[Tensor, " T"], unseen: Packing) -> Split:
        """Cut a batch at a mask, given how many constituents of each jet it hides."""
        seen = Packing.of(batch.packing.host_sizes - unseen.host_sizes, unseen.device)
        rows = torch.nonzero_static(hidden, size=unseen.total)[:, 0]
        return cls(batch.keep(~hidden, seen), batch.keep(hidden, unseen), rows)


class RandomMaskConfig(Strict):
    """Constituents are hidden one by one."""

    name: Literal["random"] = "random"
    """Tells the kinds of masks apart."""
    share: float = Field(default=0.5, gt=0, lt=1)
    """Share of the constituents that the encoder does not see."""

    @property
    def subjet_radius(self) -> None:
        """It needs no subjets."""

    def split(self, batch: JetBatch, rng: torch.Generator) -> Split:
        """Cut a batch into what is seen and what is hidden."""
        hidden = random_mask(batch.packing, self.share, rng)
        count = num_hidden(batch.packing, self.share)
        return Split.of(batch, hidden, Packing.of(count, batch.packing.device))


class SubjetMaskConfig(Strict):
    """Subjets are hidden whole. Needs the extra ``subjets`` of the package (FastJet)."""

    name: Literal["subjet"] = "subjet"
    """Tells the kinds of masks apart."""
    share: float = Field(default=0.3, gt=0, lt=1)
    """Share of the subjets that the encoder does not see."""
    radius: PositiveFloat = 0.1
    """Radius of the anti-kT clustering."""

    @property
    def subjet_radius(self) -> float:
        """The reader has to find subjets of this radius."""
        return self.radius

    def split(self, batch: JetBatch, rng: torch.Generator) -> Split:
        """Cut a batch, which must come with its subjets, into what is seen and what is hidden."""
        assert batch.subjets is not None, "the reader was not asked for subjets"
        hidden = group_mask(batch.packing, batch.subjets, self.share, rng)
        return Split.of(batch, hidden, batch.packing.keep(hidden))


MaskConfig = Annotated[RandomMaskConfig | SubjetMaskConfig, Field(discriminator="name")]
"""Settings of any mask."""


def random_mask(packing: Packing, share: float, rng: torch.Generator) -> Bool[Tensor, " T"]:
    """Hide floor(share * n) of the n constituents of each jet, chosen uniformly.

    Returns:
        True where a constituent is hidden.
    """
    device = packing.device
    keys = torch.rand(packing.total, generator=rng, device=device, dtype=torch.float64)
    by_key = _argsort(packing.owner + keys)  # a random order within each jet
    count = num_hidden(packing, share).to(device, non_blocking=True)
    first = packing.rank < count.index_select(0, packing.owner)
    return torch.empty_like(first).scatter_(0, by_key, first)


def num_hidden(packing: Packing, share: float) -> Int[Tensor, " J"]:
    """floor(share * n) of each jet, in the memory of the host."""
    shares = packing.host_sizes.double() * share
    return (shares + 1e-9).long()  # 0.29 * 100 is a little less than 29


def group_mask(
    packing: Packing, groups: Int[Tensor, " T"], share: float, rng: torch.Generator
) -> Bool[Tensor, " T"]:
    """Hide floor(share * n) of the n groups of each jet whole, chosen uniformly.

    Args:
        packing: of the constituents.
        groups: the group of each constituent in its jet; the numbers 0 ... n - 1 all occur.
        share: of the groups, not of the constituents.
        rng: decides which.

    Returns:
        True where a constituent is hidden; nowhere in a jet of one group or without constituents.
    """
    empty = torch.zeros(packing.num_jets, dtype=groups.dtype, device=groups.device)
    count = empty.scatter_reduce(0, packing.owner, groups + 1, "amax")
    of_groups = Packing.of(count)
    hidden = random_mask(of_groups, share, rng)
    return hidden[of_groups.offsets[packing.owner] + groups]


def _argsort(keys: Float[Tensor, " T"]) -> Int[Tensor, " T"]:
    if keys.device.type == "cpu":  # numpy has a vectorised sort
        return torch.from_numpy(np.argsort(keys.numpy()))
    return keys.argsort()
