"""The area under the ROC curve of many classes, its error, and what each jet contributes to it."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from numpy.typing import NDArray

from jetssl_cli.scores.metrics import UNDEFINED, Estimate

THREADS = 2
"""Sorts run beside each other in so many; each takes 40 bytes a jet."""


@dataclass(frozen=True)
class Placements:
    """What the AUC is the mean of, jet by jet."""

    auc: float | None
    psi: Float[np.ndarray, " J"]
    """Sum of the placements of each jet, over the number of ordered pairs of classes."""
    labels: Int[np.ndarray, " J"]


def auc(found: Placements) -> Estimate:
    """The macro-averaged one-vs-one area under the ROC curve, with DeLong's interval.

    There is no interval where the estimate of the error says nothing: when a class has a single
    jet, or when it is zero because the jets of each class have equal placements (as in perfect
    separation).
    """
    if found.auc is None:
        return UNDEFINED
    value, error = min(found.auc, 1.0), delong(found.psi, found.labels)
    if error is None or error < 1e-12:  # zero, up to rounding
        return Estimate(value, None, None)
    return Estimate(value, max(value - error, 0.0), min(value + error, 1.0))


def delong(psi: Float[np.ndarray, " J"], labels: Int[np.ndarray, " J"]) -> float | None:
    """The standard error of an AUC; None where a class has a single jet.

    That of DeLong, DeLong and Clarke-Pearson (Biometrics 44 (1988) 837) for the mean over pairs of
    classes: its square is the sum over classes of var(psi) / (jets of the class). It is what a
    bootstrap gives, but for terms smaller by the number of jets of a class. With the differences of
    the placements of two runs it is the error of the difference of their AUC.
    """
    counts = np.bincount(labels)
    there = counts > 0
    if (counts == 1).any():
        return None
    counts = counts[there]
    means = np.bincount(labels, psi)[there] / counts
    centred = psi - means[np.cumsum(there)[labels] - 1]
    squares = np.bincount(labels, centred**2)[there]
    return math.sqrt((squares / (counts - 1) / counts).sum())


def placements(scores: Float[np.ndarray, "J C"], labels: Int[np.ndarray, " J"]) -> Placements:
    """The macro-averaged one-vs-one AUC, and what each jet contributes to it.

    The AUC is the mean, over all ordered pairs of classes (a, b), of A(a|b): the probability that a
    jet of class a has a higher score p_a than a jet of class b, ties counting one half (Hand and
    Till, Mach. Learn. 45 (2001) 171). It equals scikit-learn's
    ``roc_auc_score(multi_class="ovo", average="macro")``; with two classes it is the mean of the
    two areas. Classes without jets are left out of the mean; it is undefined with fewer than two.

    One sort for each class: in the order of p_a, a jet of class a is placed by the share of each
    other class below it, and a jet of another class by the share of class a above it. Both are sums
    that run along the order, and tied jets get the mean of the sums before and behind the tie.
    """
    counts = np.bincount(labels, minlength=scores.shape[1])
    present = np.flatnonzero(counts).tolist()
    pairs = len(present) * (len(present) - 1)
    psi = np.zeros(len(labels))
    if pairs == 0:
        return Placements(None, psi, labels)
    share = 1 / np.maximum(counts, 1)
    small = labels.astype(np.min_scalar_type(-len(counts)))

    def placed_by(a: int) -> tuple[NDArray[np.uint32], NDArray[np.float64], float]:
        """The order of p_a, the placements in it, and the sum over b of A(a|b)."""
        order, ties = _order(scores[:, a])
        kinds = small[order]
        own, others = np.zeros(len(counts)), share.copy()
        own[a], others[a] = share[a], 0.0
        placed = _below(others[kinds], ties)
        above = _below(own[kinds], ties)
        np.subtract(1, above, out=above)
        mine = kinds == a
        total = float(placed[mine].mean())
        np.copyto(placed, above, where=~mine)
        return order, placed, total

    total = 0.0
    with ThreadPoolExecutor(THREADS) as pool:
        for start in range(0, len(present), THREADS):  # no more at a time, to hold few of them
            for order, placed, part in pool.map(placed_by, present[start : start + THREADS]):
                psi[order] += placed
                total += part
    psi /= pairs
    return Placements(total / pairs, psi, small)


@dataclass(frozen=True)
class _Ties:
    """Sets of equal values in an order."""

    places: NDArray[np.int64]
    """Of all values that have an equal one."""
    first: NDArray[np.int64]
    """The place of the first of each set, and below of the last."""
    last: NDArray[np.int64]


def _order(values: Float[np.ndarray, " J"]) -> tuple[NDArray[np.uint32], _Ties]:
    """The jets by rising value, and which of them tie.

    A float32 that is not negative is ordered as its bits are; with the number of the jet below them
    they are sorted several times as fast as by argsort.
    """
    if values.dtype == np.float32:
        bits = (values + np.float32(0)).view(np.uint32)  # +0 for -0
        keys = bits.astype(np.uint64)
        keys <<= np.uint64(32)
        keys |= np.arange(len(values), dtype=np.uint64)
        keys.sort()
        order = keys.astype(np.uint32)  # the lower half
        keys >>= np.uint64(32)
        equal = keys[1:] == keys[:-1]
    else:
        order = np.argsort(values).astype(np.uint32)
        equal = values[order[1:]] == values[order[:-1]]
    before, behind = np.append(False, equal), np.append(equal, False)
    return order, _Ties(
        np.flatnonzero(before | behind),
        np.flatnonzero(~before & behind),
        np.flatnonzero(before & ~behind),
    )


def _below(weights: Float[np.ndarray, " J"], ties: _Ties) -> Float[np.ndarray, " J"]:
    """For each place in an order the sum of the weights below it, those of equal ones halved.

    The weights are used up: new memory costs as much time as the sums.
    """
    sums = np.cumsum(weights)
    middle = (sums[ties.first] - weights[ties.first] + sums[ties.last]) / 2
    weights /= 2
    sums -= weights
    sums[ties.places] = np.repeat(middle, ties.last - ties.first + 1)
    return sums
