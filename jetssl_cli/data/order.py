"""Which jets are read, and when: a pure function of sizes, seed, epoch and rank.

The files are cut into blocks of consecutive jets, the blocks are shuffled anew in every epoch, and
the resulting line of jets is cut into equally long shares, one for each rank. A share is cut into
pools, whose jets are permuted in memory; batches are slices of pools, and within a round of
``LANES`` pools they are taken from each pool in turn:

    pool 0   batch 0   batch 16  ...
    pool 1   batch 1   batch 17  ...
    ...
    pool 15  batch 15  batch 31  ...        then the next 16 pools

So batch number k of an epoch is the same however many processes read. Process w of W makes the
batches w, w + W, ..., and where W divides ``LANES`` no two processes need the same pool (in the
last round of an epoch, which may have fewer pools, they may).
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

JETS_PER_BLOCK = 1_000
"""Jets read at once from one place."""
JETS_PER_POOL = 8_000
"""Jets shuffled in memory: the largest multiple of the batch size up to this, or one batch."""
LANES = 16
"""Pools that are held at the same time, by all reading processes of a rank together."""


class Range(NamedTuple):
    """Consecutive jets ``start:stop`` of one file."""

    file: int
    start: int
    stop: int

    @property
    def size(self) -> int:
        """Number of jets."""
        return self.stop - self.start


class Slice(NamedTuple):
    """The jets ``start:stop`` of a pool, counted after its permutation."""

    pool: int
    start: int
    stop: int


class Line:
    """Ranges laid end to end."""

    def __init__(self, ranges: Iterable[Range]) -> None:
        self.ranges = tuple(ranges)
        self._starts = [0, *accumulate(part.size for part in self.ranges)]

    def __len__(self) -> int:
        return self._starts[-1]

    def cut(self, first: int, last: int) -> list[Range]:
        """The jets ``first:last`` of the line; a range that lies across a cut is split."""
        part = []
        index = bisect_right(self._starts, first) - 1
        while first < last:
            file, start, stop = self.ranges[index]
            low = start + first - self._starts[index]
            high = min(stop, low + last - first)
            part.append(Range(file, low, high))
            first += high - low
            index += 1
        return part


@dataclass(frozen=True)
class Pools:
    """The order in which one rank streams through files of these sizes."""

    sizes: tuple[int, ...]
    batch_size: int
    rank: int = 0
    ranks: int = 1
    jets_per_block: int = JETS_PER_BLOCK
    jets_per_pool: int = JETS_PER_POOL
    lanes: int = LANES

    @property
    def num_batches(self) -> int:
        """Batches of an epoch."""
        return num_batches(self.sizes, self.batch_size, self.ranks)

    @property
    def batches_per_pool(self) -> int:
        """Batches of each pool but the last, which may have fewer."""
        return max(1, self.jets_per_pool // self.batch_size)

    def where(self, batch: int) -> Slice:
        """Where the batch with this number within its epoch comes from."""
        depth = self.batches_per_pool
        turns = depth * self.lanes
        done, turn = divmod(batch, turns)
        whole, rest = divmod(min(turns, self.num_batches - done * turns), depth)
        with_rest = rest * (whole + 1)  # turns until a last, shorter pool is exhausted
        if turn < with_rest:
            row, lane = divmod(turn, whole + 1)
        else:
            row, lane = divmod(turn - with_rest, whole)
            row += rest
        pool = done * self.lanes + lane
        first, last = self._bounds(pool)
        start = row * self.batch_size
        return Slice(pool, start, min(start + self.batch_size, last - first))

    def line(self, seed: int, epoch: int) -> Line:
        """All jets, the blocks in the order of this epoch; the same for all ranks."""
        return Line(shuffled(blocks(self.sizes, self.jets_per_block), seed, epoch))

    def ranges(self, line: Line, pool: int) -> list[Range]:
        """What to read for a pool, given the line of the epoch."""
        first, last = self._bounds(pool)
        begin, _ = share(len(line), self.rank, self.ranks)
        return line.cut(begin + first, begin + last)

    def permutation(self, seed: int, epoch: int, pool: int) -> NDArray[np.int64]:
        """The order of the jets of a pool; batches are slices of it."""
        first, last = self._bounds(pool)
        return generator(seed, epoch, self.rank, pool).permutation(last - first)

    def _bounds(self, pool: int) -> tuple[int, int]:
        """First and last jet of a pool within the share of the rank."""
        size = self.batches_per_pool * self.batch_size
        return pool * size, min((pool + 1) * size, sum(self.sizes) // self.ranks)


def num_batches(sizes: Sequence[int], batch_size: int, ranks: int) -> int:
    """Full batches of an epoch on each rank; one where a rank has fewer jets than a batch."""
    return max(1, sum(sizes) // ranks // batch_size)


def generator(seed: int, *key: int) -> np.random.Generator:
    """Random numbers for this purpose alone.

    The key is kept apart from the seed: as ``default_rng((seed, epoch, 0, 0))`` is
    ``default_rng((seed, epoch))``, keys of different lengths could not be told apart otherwise.
    """
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=key))


def blocks(sizes: Sequence[int], block: int) -> list[Range]:
    """Cut files of these sizes into blocks of ``block`` jets (the last may be shorter)."""
    return [
        Range(file, start, min(start + block, size))
        for file, size in enumerate(sizes)
        for start in range(0, size, block)
    ]


def clamp(sizes: Sequence[int], num_jets: int | None) -> list[int]:
    """Sizes of the files when only their first ``num_jets`` jets, taken together, are used."""
    left = sum(sizes) if num_jets is None else num_jets
    clamped = []
    for size in sizes:
        clamped.append(min(size, left))
        left -= clamped[-1]
    return clamped


def shuffled(ranges: Sequence[Range], seed: int, epoch: int) -> list[Range]:
    """The ranges in the order of this epoch."""
    return [ranges[index] for index in generator(seed, epoch).permutation(len(ranges))]


def share(jets: int, index: int, count: int) -> tuple[int, int]:
    """First and last jet of the part number ``index`` of ``count`` equally long parts of a line.

    The parts are disjoint; up to ``count - 1`` jets at the end of the line belong to none.
    """
    size = jets // count
    return index * size, (index + 1) * size
