"""Jets in memory: numpy arrays, the constituents of all jets end to end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

OF_CONSTITUENTS = ("features", "ids", "truth")
OF_JETS = ("sizes", "jets", "labels")
FIELDS = OF_CONSTITUENTS + OF_JETS
"""The arrays that jets consist of."""


@dataclass(frozen=True)
class JetArrays:
    """J jets with T constituents; those of jet ``j`` are the rows ``offsets[j]:offsets[j + 1]``."""

    features: NDArray[np.float32] | NDArray[np.float16]
    """Constituent features, (T, F)."""
    ids: NDArray[np.uint8]
    """Particle classes, (T,); all 0 where the data set has none."""
    truth: NDArray[np.int32]
    """Truth about each constituent, (T, K); K is 0 where the data set has none."""
    sizes: NDArray[np.int64]
    """Constituents of each jet, (J,)."""
    jets: NDArray[np.float32]
    """Jet features, (J, G)."""
    labels: NDArray[np.int16]
    """Class of each jet, (J,)."""

    def __len__(self) -> int:
        return len(self.sizes)

    @cached_property
    def offsets(self) -> NDArray[np.int64]:
        """(J + 1,): where each jet begins."""
        return np.concatenate([[0], np.cumsum(self.sizes)])

    @property
    def rank(self) -> NDArray[np.int64]:
        """(T,): the place of each constituent in its jet, from 0."""
        return np.arange(len(self.ids)) - np.repeat(self.offsets[:-1], self.sizes)

    def take(self, order: NDArray[np.int64], most: int | None = None) -> JetArrays:
        """The chosen jets, in this order; of each at most the first ``most`` constituents."""
        sizes = self.sizes[order]
        if most is not None:
            sizes = np.minimum(sizes, most)
        ends = np.cumsum(sizes)
        rows = np.arange(sizes.sum()) + np.repeat(self.offsets[order] - (ends - sizes), sizes)
        return replace(self._pick(rows, order), sizes=sizes)

    def between(self, start: int, stop: int) -> JetArrays:
        """The jets ``start:stop``, without a copy."""
        return self._pick(slice(self.offsets[start], self.offsets[stop]), slice(start, stop))

    def first(self, most: int) -> JetArrays:
        """The same jets with at most the first ``most`` constituents of each."""
        if not len(self) or self.sizes.max() <= most:
            return self
        return self.keep(self.rank < most)

    def single(self) -> JetArrays:
        """The same jets with features in float32."""
        return replace(self, features=self.features.astype(np.float32, copy=False))

    def keep(self, chosen: NDArray[np.bool_]) -> JetArrays:
        """The same jets with only the chosen constituents, (T,)."""
        running = np.concatenate([[0], np.cumsum(chosen)])
        kept = self._pick(chosen, slice(None))
        return replace(kept, sizes=np.diff(running[self.offsets]))

    def reorder(self, rows: NDArray[np.int64]) -> JetArrays:
        """The same jets with their constituents in another order within each jet."""
        return self._pick(rows, slice(None))

    def _pick(
        self,
        rows: slice | NDArray[np.int64] | NDArray[np.bool_],
        jets: slice | NDArray[np.int64],
    ) -> JetArrays:
        return JetArrays(
            *(getattr(self, name)[rows] for name in OF_CONSTITUENTS),
            *(getattr(self, name)[jets] for name in OF_JETS),
        )


def concatenate(parts: Sequence[JetArrays]) -> JetArrays:
    """All jets of the parts, one part after the other."""
    if len(parts) == 1:
        return parts[0]
    return JetArrays(*(np.concatenate([getattr(part, name) for part in parts]) for name in FIELDS))
