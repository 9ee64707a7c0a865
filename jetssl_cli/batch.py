"""The packed batch: jets laid end to end, with no padding anywhere.

Axes, in every annotation of the package:
    J jets   T tokens, summed over jets   F features of a token   G features of a jet
    D width   H heads   K width of a head   C classes   bounds = J + 1
A mask means one thing everywhere: True = keep, real, chosen.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

CPU = torch.device("cpu")
STRAYS = 32
"""Rows that belong to no token count as so many further jets, where every row must have one."""


@dataclass(frozen=True)
class Owners:
    """Whose the rows are that what belongs to jets is spread over."""

    rows: Int[Tensor, " rows"]
    """The jet of each row; those that are no tokens count for the first jet."""
    bounds: Int[Tensor, " more_bounds"]
    """The rows of each jet, and behind them all others: ``Packing.bounds``."""


@dataclass(frozen=True)
class Packing:
    """How J jets lie along T rows: jet ``j`` has the rows ``offsets[j]:offsets[j + 1]``.

    The host knows all sizes, so that no device has to be asked for them.
    """

    host: Int[Tensor, " bounds"]
    """The offsets, in the memory of the host."""
    device: torch.device = CPU
    """Where the rows are."""
    exact: bool = False
    """Tensors have no rows behind the tokens."""

    @classmethod
    def of(cls, sizes: Int[Tensor, " J"], device: torch.device | None = None) -> Packing:
        """Pack jets of these sizes; sizes that lie on a device are fetched from it."""
        host = torch.nn.functional.pad(sizes.cpu().cumsum(0), (1, 0))
        return cls(host, device or sizes.device)

    @property
    def num_jets(self) -> int:
        """J."""
        return len(self.host) - 1

    @cached_property
    def total(self) -> int:
        """T."""
        return int(self.host[-1])

    @cached_property
    def longest(self) -> int:
        """Tokens of the longest jet."""
        return int(self.host_sizes.max()) if self.num_jets else 0

    @cached_property
    def host_sizes(self) -> Int[Tensor, " J"]:
        """Tokens of each jet, in the memory of the host."""
        return self.host.diff()

    @cached_property
    def offsets(self) -> Int[Tensor, " bounds"]:
        """The offsets, where the rows are."""
        return self.host.to(self.device, non_blocking=True)

    @cached_property
    def sizes(self) -> Int[Tensor, " J"]:
        """Tokens of each jet."""
        return self.offsets.diff()

    @cached_property
    def owner(self) -> Int[Tensor, " T"]:
        """The jet that each token belongs to."""
        jets = torch.arange(self.num_jets, device=self.device)
        return jets.repeat_interleave(self.sizes, output_size=self.total)

    @cached_property
    def rank(self) -> Int[Tensor, " T"]:
        """The place of each token in its own jet, from 0."""
        first = self.offsets.index_select(0, self.owner)
        return torch.arange(self.total, device=self.device) - first

    @cached_property
    def rows(self) -> int:
        """Rows of the tensors inside a network: a few more than tokens.

        Sizes come in steps, 16 for each power of two: a CPU takes milliseconds to prepare a matrix
        product of a new size, and a GPU can be sent again what it did for batches of this one.
        """
        step = 1 if self.exact else 1 << max(self.total.bit_length() - 5, 0)
        return -(-self.total // step) * step

    @cached_property
    def owners(self) -> Owners:
        """Whose the rows are."""
        return Owners(self.pad(self.owner), self.bounds)

    @cached_property
    def bounds(self) -> Int[Tensor, " more_bounds"]:
        """The offsets in 32 bits, and those of ``STRAYS`` further jets: every row has a jet."""
        strays = self.total + self._stray * torch.arange(1, STRAYS + 1)
        host = torch.cat([self.host, strays.clamp_max(self.rows)]).int()
        return host.to(self.device, non_blocking=True)

    @cached_property
    def tile(self) -> int:
        """Length of the longest jet of ``bounds``, to the next power of two and at least 16."""
        return 1 << (max(self.longest, self._stray, 16) - 1).bit_length()

    @cached_property
    def _stray(self) -> int:
        return -(-(self.rows - self.total) // STRAYS)

    def pad(self, x: Shaped[Tensor, "T ..."], value: int = 0) -> Shaped[Tensor, "rows ..."]:
        """What belongs to the tokens, and this value in the rows behind them."""
        more = self.rows - self.total
        sides = 2 * (x.ndim - 1) * [0]
        return torch.nn.functional.pad(x, (*sides, 0, more), value=value) if more else x

    def keep(self, chosen: Bool[Tensor, " T"]) -> Packing:
        """The packing of the chosen rows; asks the device how many they are."""
        running = torch.nn.functional.pad(chosen.cumsum(0), (1, 0))
        return Packing(running[self.offsets].cpu(), self.device)

    def join(self, other: Packing) -> tuple[Packing, Int[Tensor, " T"], Int[Tensor, " other_rows"]]:
        """Lay the rows of two packings of the same jets together, in each jet those of self first.

        Returns:
            The packing of both; the new places of the rows of self; those of other.
        """
        both = Packing.of(self.host_sizes + other.host_sizes, self.device)
        first = torch.arange(self.total, device=self.device)
        first = first + other.offsets.index_select(0, self.owner)
        second = torch.arange(other.total, device=self.device)
        second = second + self.offsets.index_select(0, other.owner + 1)
        return both, first, second

    def to(self, device: torch.device) -> Packing:
        """The same packing on another device."""
        return Packing(self.host, device, self.exact)


@dataclass(frozen=True)
class JetBatch:
    """J jets in physical units; the columns of the features are those of the data file."""

    features: Float[Tensor, "T F"]
    """Constituent features, in descending pT within each jet."""
    ids: Int[Tensor, " T"]
    """Particle class of each constituent; all 0 where the data set has none."""
    jets: Float[Tensor, "J G"]
    """Jet features."""
    packing: Packing
    labels: Int[Tensor, " J"]
    """Class of each jet."""
    subjets: Int[Tensor, " T"] | None = None
    """Subjet of each constituent, counted in its jet from 0; only where it was asked for."""
    most: int | None = None
    """The reader took the first so many constituents of a jet: one that has them may go on."""
    truth: Int[Tensor, "T truths"] | None = None
    """Truth about each constituent, the columns that were asked for; negative where unknown."""

    def keep(self, chosen: Bool[Tensor, " T"], packing: Packing | None = None) -> JetBatch:
        """The same jets with only the chosen constituents.

        Args:
            chosen: True for those to keep.
            packing: of the chosen ones, if it is known; otherwise the device is asked.
        """
        packing = packing or self.packing.keep(chosen)
        rows = torch.nonzero_static(chosen, size=packing.total)[:, 0]
        return replace(
            self,
            features=self.features.index_select(0, rows),
            ids=self.ids.index_select(0, rows),
            packing=packing,
            subjets=None if self.subjets is None else self.subjets.index_select(0, rows),
            truth=None if self.truth is None else self.truth.index_select(0, rows),
        )

    def first(self, num_jets: int) -> JetBatch:
        """The first jets of the batch."""
        packing = Packing(self.packing.host[: num_jets + 1], self.packing.device)
        rows = packing.total
        return replace(
            self,
            features=self.features[:rows],
            ids=self.ids[:rows],
            jets=self.jets[:num_jets],
            packing=packing,
            labels=self.labels[:num_jets],
            subjets=None if self.subjets is None else self.subjets[:rows],
            truth=None if self.truth is None else self.truth[:rows],
        )

    def to(self, device: torch.device) -> JetBatch:
        """The same batch on another device."""
        return replace(
            self,
            features=self.features.to(device, non_blocking=True),
            ids=self.ids.to(device, non_blocking=True),
            jets=self.jets.to(device, non_blocking=True),
            packing=self.packing.to(device),
            labels=self.labels.to(device, non_blocking=True),
            subjets=(None if self.subjets is None else self.subjets.to(device, non_blocking=True)),
            truth=None if self.truth is None else self.truth.to(device, non_blocking=True),
        )

    def pin_memory(self) -> JetBatch:
        """The same batch in page-locked memory (what a DataLoader asks for)."""
        return replace(
            self,
            features=self.features.pin_memory(),
            ids=self.ids.pin_memory(),
            jets=self.jets.pin_memory(),
            packing=Packing(self.packing.host.pin_memory(), self.packing.device),
            labels=self.labels.pin_memory(),
            subjets=None if self.subjets is None else self.subjets.pin_memory(),
            truth=None if self.truth is None else self.truth.pin_memory(),
        )
