"""Random jets with truth about their tracks, and plain definitions on them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise

import torch
from reference.jets import random_batch

from jetssl_cli.batch import JetBatch


def true_batch(sizes: Sequence[int], most: int = 3, seed: int = 0) -> JetBatch:
    """Random jets whose truth is -1 (unknown), 0, ... most."""
    rng = torch.Generator().manual_seed(seed + 100)
    truth = torch.randint(-1, most + 1, (sum(sizes), 1), generator=rng)
    return replace(random_batch(sizes, seed), truth=truth)


def rows_of(batch: JetBatch) -> list[range]:
    """The rows of each jet."""
    bounds = batch.packing.host.tolist()
    return [range(first, last) for first, last in pairwise(bounds)]


def pairs_of(batch: JetBatch) -> list[tuple[int, int]]:
    """All pairs of each jet, by loops."""
    return [(i, j) for rows in rows_of(batch) for j in rows for i in rows if i < j]


def grouped(joined: Mapping[tuple[int, int], bool], total: int) -> list[int]:
    """Connected components, by merging sets; each named after its smallest row."""
    groups = [{row} for row in range(total)]
    for (i, j), together in joined.items():
        if together:
            both = groups[i] | groups[j]
            for row in both:
                groups[row] = both
    return [min(group) for group in groups]
