"""A few jets of many: equally many of each class, and those of a smaller number among the larger.

The jets of each class stand in a random order of their own, and are dealt out in turns, one of each
class that has any left. The first N of them are the subset of N. Only labels are read for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from jetssl_cli.data.jagged import JaggedFile
from jetssl_cli.data.order import clamp, generator
from jetssl_cli.errors import DataError

CLASSES, JETS = 0, 1
"""What the random numbers are for: the order of the classes, and that of the jets of each."""


def draw(
    files: Sequence[Path], num_jets: int, seed: int, among: int | None = None
) -> list[NDArray[np.int64]]:
    """Which jets of each file belong to the subset of ``num_jets``, ascending.

    Args:
        files: jagged files of one schema.
        num_jets: jets of the subset.
        seed: other seeds give other subsets.
        among: only the first so many jets of the files, taken together, are drawn from.

    Raises:
        DataError: a file cannot be read, or there are fewer jets.
    """
    found, num_classes = [], 0
    for path in files:
        with JaggedFile(path) as file:
            found.append(file.labels())
            num_classes = len(file.schema.classes)
    sizes = clamp([len(labels) for labels in found], among)
    labels = np.concatenate([part[:size] for part, size in zip(found, sizes, strict=True)])
    if num_jets > len(labels):
        raise DataError(f"{files[0]}: {num_jets} jets are wanted, there are {len(labels)}")
    chosen = balanced(labels, num_classes, num_jets, seed)
    ends = np.cumsum(sizes)
    parts = np.split(chosen, np.searchsorted(chosen, ends[:-1]))
    return [part - start for part, start in zip(parts, ends - sizes, strict=True)]


def balanced(
    labels: NDArray[np.int16], num_classes: int, num_jets: int, seed: int
) -> NDArray[np.int64]:
    """The subset of ``num_jets`` of jets with these labels, as ascending indices."""
    counts = np.bincount(labels, minlength=num_classes)
    turns = generator(seed, CLASSES, 0).permutation(num_classes)
    parts = []
    for label, share in zip(turns.tolist(), deal(counts[turns], num_jets), strict=True):
        own = generator(seed, JETS, label).permutation(counts[label])[:share]
        parts.append(np.flatnonzero(labels == label)[own])
    return np.sort(np.concatenate(parts))


def deal(counts: NDArray[np.int64], cards: int) -> NDArray[np.int64]:
    """How many of each pile are dealt out, one of each in turns until it is empty."""
    assert 0 < cards <= counts.sum()
    dealt = np.zeros_like(counts)
    while cards:
        left = counts > dealt
        if cards < left.sum():
            dealt[np.flatnonzero(left)[:cards]] += 1
            break
        rounds = min(cards // left.sum(), (counts - dealt)[left].min())
        dealt[left] += rounds
        cards -= rounds * left.sum()
    return dealt
