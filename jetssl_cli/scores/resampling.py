"""The bootstrap of a rejection: of the jets that are drawn anew, only a few have to be drawn.

In a replica as many jets are drawn, with replacement, as there are of each class. The threshold is
then the k-th highest value among the drawn signal jets. It lies within a few sqrt(S) ranks of the
threshold of the data, so jets far from it need not be told apart: how many of them are drawn
follows a multinomial distribution over groups, by the runs in which they lie above. Only the jets
near the threshold are drawn one by one. The same holds for the background, where the lowest and the
highest threshold of all replicas say what is near. The counts are distributed as if every jet had
been drawn; a test compares them with those of a plain bootstrap.

Axes: R runs on the same jets, S signal jets, B background jets, N replicas, K jets near the
threshold, G groups of others.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

SIGMAS = 6.0
"""How far the window of ranks reaches: two thresholds in 10^9 lie outside, and are put on its edge.
"""
MOST_COUNTS = 2**23
"""How many counts of drawn jets are held at a time."""


def passing(
    signal: Float[np.ndarray, "R S"],
    background: Float[np.ndarray, "R B"],
    needed: int,
    *,
    replicas: int,
    rng: np.random.Generator,
) -> Int[np.ndarray, "R N"]:
    """How many background jets pass the cut that ``needed`` signal jets pass, in each replica.

    The drawn jets are the same for all runs, so that two runs can be compared as a pair.
    """
    thresholds = _thresholds(signal, needed, replicas, rng)
    low, high = thresholds.min(axis=1, keepdims=True), thresholds.max(axis=1, keepdims=True)
    cells = _split(background >= high, background >= low)
    found = np.empty(thresholds.shape, np.int64)
    for part, counts, groups in _draw(cells, replicas, rng):
        for run, values in enumerate(background[:, cells.near]):
            order = np.argsort(-values)
            drawn = np.zeros((len(counts), len(values) + 1), np.int64)
            np.cumsum(counts[:, order], axis=1, out=drawn[:, 1:])
            places = np.searchsorted(-values[order], -thresholds[run, part], side="right")
            near = np.take_along_axis(drawn, places[:, None], axis=1)[:, 0]
            found[run, part] = near + groups @ cells.above[run]
    return found


def _thresholds(
    signal: Float[np.ndarray, "R S"], needed: int, replicas: int, rng: np.random.Generator
) -> Float[np.ndarray, "R N"]:
    """The ``needed``-th highest value among the drawn jets of each replica."""
    size = signal.shape[1]
    reach = math.ceil(SIGMAS * math.sqrt(needed * (size - needed) / size)) + 10
    first, last = max(needed - reach, 1), min(needed + reach, size)  # ranks, of the highest 1
    above = np.zeros(signal.shape, np.bool_)
    not_below = np.zeros(signal.shape, np.bool_)
    for run, values in enumerate(signal):
        order = np.argpartition(values, (size - last, size - first))
        above[run, order[size - first + 1 :]] = True
        not_below[run, order[size - last :]] = True
    cells = _split(above, not_below)
    found = np.empty((len(signal), replicas))
    for part, counts, groups in _draw(cells, replicas, rng):
        for run, values in enumerate(signal[:, cells.near]):
            order = np.argsort(-values)
            missing = needed - groups @ cells.above[run]
            drawn = np.cumsum(counts[:, order], axis=1)
            places = np.count_nonzero(drawn < missing[:, None], axis=1)
            found[run, part] = values[order][np.minimum(places, len(values) - 1)]
    return found


@dataclass(frozen=True)
class _Cells:
    """Jets that are drawn one by one, and groups of jets that need not be told apart."""

    near: Int[np.ndarray, " K"]
    """Their numbers."""
    sizes: Int[np.ndarray, " G"]
    """Jets of each group."""
    above: Int[np.ndarray, "R G"]
    """1 for the groups that lie above in a run, else 0."""


def _split(above: Bool[np.ndarray, "R J"], not_below: Bool[np.ndarray, "R J"]) -> _Cells:
    """Jets between the edges in any run are near; the others are grouped by where they lie."""
    is_near = (not_below & ~above).any(axis=0)
    codes = np.zeros(above.shape[1], np.int64)
    for run, row in enumerate(above):
        codes |= row.astype(np.int64) << run
    groups = np.arange(2 ** len(above))
    sizes = np.bincount(codes[~is_near], minlength=len(groups))
    bits = groups >> np.arange(len(above))[:, None] & 1
    return _Cells(np.flatnonzero(is_near), sizes, bits)


def _draw(
    cells: _Cells, replicas: int, rng: np.random.Generator
) -> Iterator[tuple[slice, Int[np.ndarray, "_ K"], Int[np.ndarray, "_ G"]]]:
    """How often each near jet and each group was drawn, some replicas at a time."""
    shares = np.array([len(cells.near), *cells.sizes])
    drawn = rng.multinomial(shares.sum(), shares / shares.sum(), size=replicas)
    width = max(len(cells.near), 1)
    step = max(1, MOST_COUNTS // width)
    for start in range(0, replicas, step):
        part = drawn[start : start + step]
        jets = rng.integers(width, size=part[:, 0].sum())
        jets += np.repeat(np.arange(len(part)) * width, part[:, 0])
        counts = np.bincount(jets, minlength=len(part) * width).reshape(len(part), width)
        yield slice(start, start + len(part)), counts[:, : len(cells.near)], part[:, 1:]
