"""All pairs of constituents of each jet, partitions made from them, and how well these agree.

A partition is told by one number for each constituent: those of one group have the same one.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from jetssl_cli.batch import Packing


@dataclass(frozen=True)
class Pairs:
    """The P pairs of two different constituents of one jet: in each jet (0, 1), (0, 2), (1, 2), ...

    ordered by the second, then by the first.
    """

    first: Int[Tensor, " P"]
    """Row of the constituent that comes first in its jet."""
    second: Int[Tensor, " P"]
    """Row of the other."""
    jet: Int[Tensor, " P"]
    """The jet of both."""
    num_jets: int
    """J."""
    total: int
    """T."""

    @classmethod
    def of(cls, packing: Packing) -> Pairs:
        """All pairs of a packing; the device is not asked how many there are."""
        sizes = packing.host_sizes
        number = int((sizes * (sizes - 1) // 2).sum())
        rows = torch.arange(packing.total, device=packing.device)
        second = rows.repeat_interleave(packing.rank, output_size=number)
        begins = packing.rank.cumsum(0) - packing.rank
        place = torch.arange(number, device=packing.device) - begins.index_select(0, second)
        jet = packing.owner.index_select(0, second)
        first = packing.offsets.index_select(0, jet) + place
        return cls(first, second, jet, packing.num_jets, packing.total)

    def same(self, group: Int[Tensor, " T"]) -> Bool[Tensor, " P"]:
        """Whether both constituents of a pair are in one group."""
        return group.index_select(0, self.first) == group.index_select(0, self.second)

    def both(self, chosen: Bool[Tensor, " T"]) -> Bool[Tensor, " P"]:
        """Whether both constituents of a pair are chosen."""
        return chosen.index_select(0, self.first) & chosen.index_select(0, self.second)

    def components(self, joined: Bool[Tensor, " P"]) -> Int[Tensor, " T"]:
        """The finest partition that has joined pairs in one group (connected components).

        A group has the number of its first row. Numbers spread along joined pairs, and leap to
        where the number of a number already is, until nothing changes.
        """
        first, second = self.first[joined], self.second[joined]
        group = torch.arange(self.total, device=first.device)
        while True:
            low = torch.minimum(group.index_select(0, first), group.index_select(0, second))
            new = group.scatter_reduce(0, first, low, "amin").scatter_reduce(0, second, low, "amin")
            new = new.index_select(0, new)
            if torch.equal(new, group):
                return group
            group = new

    def adjusted_rand(
        self,
        one: Bool[Tensor, " P"],
        other: Bool[Tensor, " P"],
        counted: Bool[Tensor, " P"] | None = None,
    ) -> Float[Tensor, " J"]:
        """Adjusted Rand index of two partitions of each jet, told by which pairs are in one group.

        With the pairs that are together in both (a), in one (b), in the other (c), in none (d),

            ARI = 2 (a d - b c) / ((a + b) (b + d) + (a + c) (c + d)),

        and 1 where the partitions are equal (Hubert and Arabie, J. Classif. 2 (1985) 193; Steinley,
        Psychol. Methods 9 (2004) 386). Pairs that are not counted do not exist.
        """
        kinds = one.long() * 2 + other.long()
        kinds = kinds if counted is None else kinds.where(counted, 4)
        table = torch.zeros(self.num_jets * 5, dtype=torch.float64, device=kinds.device)
        cells = self.jet * 5 + kinds
        table = table.index_add(0, cells, torch.ones_like(cells, dtype=torch.float64))
        d, c, b, a, _ = table.view(-1, 5).unbind(1)
        below = (a + b) * (b + d) + (a + c) * (c + d)
        equal = (b == 0) & (c == 0)
        return torch.where(equal, 1.0, 2 * (a * d - b * c) / below.where(below > 0, 1.0))
