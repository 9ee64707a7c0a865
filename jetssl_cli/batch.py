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
from jaxtyping import Bool, Float, Int
from torch import Tensor


@dataclass(frozen=True)
class Packing:
    """How J jets lie along T rows: jet ``j`` has the rows ``offsets[j]:offsets[j + 1]``."""

    offsets: Int[Tensor, " bounds"]
    total: int
    """T; known on the host, so that no device has to be asked."""
    longest: int
    """No jet has more tokens than this (an upper bound, known on the host)."""

    @classmethod
    def of(cls, sizes: Int[Tensor, " J"]) -> Packing:
        """Pack jets of these sizes; asks the device once, so call it where the data are made."""
        offsets = torch.nn.functional.pad(sizes.cumsum(0), (1, 0))
        return cls(offsets, int(offsets[-1]), int(sizes.max()) if len(sizes) else 0)

    @property
    def num_jets(self) -> int:
        """J."""
        return len(self.offsets) - 1

    @cached_property
    def sizes(self) -> Int[Tensor, " J"]:
        """Tokens of each jet."""
        return self.offsets.diff()

    @cached_property
    def owner(self) -> Int[Tensor, " T"]:
        """The jet that each token belongs to."""
        jets = torch.arange(self.num_jets, device=self.offsets.device)
        return jets.repeat_interleave(self.sizes, output_size=self.total)

    @cached_property
    def rank(self) -> Int[Tensor, " T"]:
        """The place of each token in its own jet, from 0."""
        first = self.offsets.index_select(0, self.owner)
        return torch.arange(self.total, device=self.offsets.device) - first

    def keep(self, chosen: Bool[Tensor, " T"]) -> Packing:
        """The packing of the chosen rows."""
        running = torch.nn.functional.pad(chosen.cumsum(0), (1, 0))
        offsets = running[self.offsets]
        return Packing(offsets, int(offsets[-1]), self.longest)

    def widen(self, extra: int) -> Packing:
        """The packing with ``extra`` more rows in front of each jet."""
        shift = extra * torch.arange(self.num_jets + 1, device=self.offsets.device)
        return Packing(
            self.offsets + shift, self.total + extra * self.num_jets, self.longest + extra
        )

    def to(self, device: torch.device) -> Packing:
        """The same packing on another device."""
        return replace(self, offsets=self.offsets.to(device, non_blocking=True))


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

    def keep(self, chosen: Bool[Tensor, " T"]) -> JetBatch:
        """The same jets with only the chosen constituents."""
        return replace(
            self,
            features=self.features[chosen],
            ids=self.ids[chosen],
            packing=self.packing.keep(chosen),
            subjets=None if self.subjets is None else self.subjets[chosen],
        )

    def to(self, device: torch.device) -> JetBatch:
        """The same batch on another device."""
        return JetBatch(
            features=self.features.to(device, non_blocking=True),
            ids=self.ids.to(device, non_blocking=True),
            jets=self.jets.to(device, non_blocking=True),
            packing=self.packing.to(device),
            labels=self.labels.to(device, non_blocking=True),
            subjets=(None if self.subjets is None else self.subjets.to(device, non_blocking=True)),
        )

    def pin_memory(self) -> JetBatch:
        """The same batch in page-locked memory (what a DataLoader asks for)."""
        return JetBatch(
            features=self.features.pin_memory(),
            ids=self.ids.pin_memory(),
            jets=self.jets.pin_memory(),
            packing=replace(self.packing, offsets=self.packing.offsets.pin_memory()),
            labels=self.labels.pin_memory(),
            subjets=None if self.subjets is None else self.subjets.pin_memory(),
        )
