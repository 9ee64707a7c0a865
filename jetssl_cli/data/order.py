"""Which jets are read, and when: a pure function of sizes, seed, epoch and shard.

The files are cut into blocks of consecutive jets, the blocks are shuffled anew in every epoch, and
the resulting line of jets is cut into equally long shards, one for each worker of each rank. A
shard is read in pools of several blocks, and the jets of a pool are shuffled in memory.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np


class Range(NamedTuple):
    """Consecutive jets ``start:stop`` of one file."""

    file: int
    start: int
    stop: int

    @property
    def size(self) -> int:
        """Number of jets."""
        return self.stop - self.start


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
    order = np.random.default_rng((seed, epoch)).permutation(len(ranges))
    return [ranges[index] for index in order]


def shard(ranges: Iterable[Range], index: int, count: int) -> list[Range]:
    """The part number ``index`` of ``count`` equally long parts of the line of jets.

    The parts are disjoint; up to ``count - 1`` jets at the end of the line belong to none.
    """
    line = list(ranges)
    share = sum(r.size for r in line) // count
    first, last = index * share, (index + 1) * share
    part = []
    position = 0
    for file, start, stop in line:
        low = max(first - position, 0)
        high = min(last - position, stop - start)
        if low < high:
            part.append(Range(file, start + low, start + high))
        position += stop - start
    return part


def pools(ranges: Iterable[Range], jets: int) -> list[list[Range]]:
    """Group consecutive ranges until a group has at least ``jets`` jets."""
    groups: list[list[Range]] = [[]]
    size = 0
    for item in ranges:
        if size >= jets:
            groups.append([])
            size = 0
        groups[-1].append(item)
        size += item.size
    return groups
