"""The figures that JetClass papers report, each with its uncertainty.

The definitions are those of ParT (Qu, Li, Qian, arXiv:2202.03772). Every interval is the central
68.3 % one (one standard deviation) of a bootstrap over the jets. Where a closed form is equal to it
that is used: Wilson's interval for the accuracy, DeLong's for the AUC. Axes: J jets, C classes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray

from jetssl_cli.scores.resampling import passing

WORKING_POINTS: dict[str, float] = {
    "Hbb": 0.5,
    "Hcc": 0.5,
    "Hgg": 0.5,
    "H4q": 0.5,
    "Hqql": 0.99,
    "Zqq": 0.5,
    "Wqq": 0.5,
    "Tbqq": 0.5,
    "Tbl": 0.995,
}
"""The signal efficiency at which each class is held against QCD, in the order of ParT's table."""

BACKGROUND = "QCD"
REPLICAS = 1000
BINS = 15
"""Of the confidence, in the calibration."""
THREADS = 2
"""Sorts run beside each other in so many; each takes 40 bytes a jet."""
ONE_SIGMA = (0.1587, 0.8413)
"""The share of a normal distribution below -1 and below 1."""


@dataclass(frozen=True)
class Estimate:
    """A figure and its 68.3 % central interval; None where it is not defined."""

    value: float | None
    low: float | None
    high: float | None


UNDEFINED = Estimate(None, None, None)
NONE_PASSES = 3.0
"""Where no jet passes, fewer than so many are expected to, at 95 %: the rule of three."""


@dataclass(frozen=True)
class Rejection:
    """A background rejection at one working point."""

    value: float
    low: float
    high: float | None
    """None where there is only a lower bound."""
    efficiency: float
    """The signal efficiency actually reached; ties and few jets put it above the one asked for."""
    bound: bool
    """No background jet passes: ``value`` is a 95 % lower bound."""


@dataclass(frozen=True)
class Calibration:
    """How often the answer is right, by the score that it was given with (its confidence).

    Bins of equal width from 0 to 1; None where a bin is empty.
    """

    error: Estimate
    """Expected calibration error."""
    num_jets: tuple[int, ...]
    confidence: tuple[float | None, ...]
    """Mean in each bin."""
    accuracy: tuple[float | None, ...]


@dataclass(frozen=True)
class Placements:
    """What the AUC is the mean of, jet by jet."""

    auc: float | None
    psi: Float[np.ndarray, " J"]
    """Sum of the placements of each jet, over the number of ordered pairs of classes."""
    labels: Int[np.ndarray, " J"]


def accuracy(correct: Bool[np.ndarray, " J"]) -> Estimate:
    """Share of the jets whose highest score is that of their own class.

    The interval is Wilson's for a binomial share (J. Am. Stat. Assoc. 22 (1927) 209), which is what
    a bootstrap gives for many jets; it is one for few as well. No jets: undefined.
    """
    if len(correct) == 0:
        return UNDEFINED
    right = int(np.count_nonzero(correct))
    low, high = wilson(right, len(correct))
    return Estimate(right / len(correct), low, high)


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
    small = labels.astype(np.min_scalar_type(len(counts)))

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
    return Placements(total / pairs, psi, labels)


@dataclass(frozen=True)
class Discriminants:
    """What the jets of a signal class and of the background are ordered by."""

    signal: Float[np.ndarray, " S"]
    background: Float[np.ndarray, " B"]


def discriminants(
    scores: Float[np.ndarray, "J C"],
    labels: Int[np.ndarray, " J"],
    classes: Sequence[str],
    signal: str,
    background: str = BACKGROUND,
) -> Discriminants | None:
    """Order the jets of both classes as p_signal / (p_signal + p_background) of ParT does.

    Returns:
        None where either class is unknown or has no jets.
    """
    if signal not in classes or background not in classes or signal == background:
        return None
    s, b = classes.index(signal), classes.index(background)
    found = Discriminants(_odds(scores[labels == s], s, b), _odds(scores[labels == b], s, b))
    return found if len(found.signal) and len(found.background) else None


def rejection(
    found: Discriminants, efficiency: float, *, replicas: int, rng: np.random.Generator
) -> Rejection:
    """One over the share of the background that passes a cut which keeps ``efficiency``.

    The threshold is the highest one that at least the asked share of the signal passes; tied scores
    enter together. If none of the N_B background jets passes, N_B / 3 is a lower bound at 95 % (the
    rule of three). The interval is that of a bootstrap of signal and background; it is open above
    where one replica in six has no background jet that passes.
    """
    assert 0 < efficiency <= 1
    needed = least_count(efficiency, len(found.signal))
    threshold = np.partition(found.signal, -needed)[-needed]
    reached = float(np.mean(found.signal >= threshold))
    passed, total = int(np.count_nonzero(found.background >= threshold)), len(found.background)
    if passed == 0:
        return Rejection(total / NONE_PASSES, total / NONE_PASSES, None, reached, bound=True)
    drawn = passing(found.signal[None], found.background[None], needed, replicas=replicas, rng=rng)
    least, most = np.quantile(drawn[0], ONE_SIGMA).tolist()
    value = total / passed
    low, high = min(total / most, value) if most else value, None
    if least >= 1:
        high = max(total / least, value)
    return Rejection(value, low, high, reached, bound=False)


def confusion(
    answers: Int[np.ndarray, " J"], labels: Int[np.ndarray, " J"], num_classes: int
) -> Int[np.ndarray, "C C"]:
    """How many jets of each class (row) got each class (column) as the answer."""
    codes = labels * num_classes + answers
    return np.bincount(codes, minlength=num_classes**2).reshape(num_classes, num_classes)


def calibration(
    confidence: Float[np.ndarray, " J"],
    correct: Bool[np.ndarray, " J"],
    *,
    replicas: int = REPLICAS,
    rng: np.random.Generator,
) -> Calibration:
    """The confidence of the answers held against how often they are right.

    The expected calibration error is the mean, over jets, of the absolute difference of accuracy
    and mean confidence in the bin of the jet (Guo et al., arXiv:1706.04599, eq. 3). A bin holds its
    upper edge. The interval is one standard deviation of replicas on both sides: the error of a
    replica is biased upwards. In a replica the jets of a bin that are right, or wrong, have their
    mean confidence.
    """
    inner = np.arange(1, BINS) / BINS
    cells = 2 * np.searchsorted(inner, confidence) + correct
    counts = np.bincount(cells, minlength=2 * BINS)
    sums = np.bincount(cells, confidence, minlength=2 * BINS)
    means = np.divide(sums, counts, out=np.zeros(2 * BINS), where=counts > 0)
    gap = np.tile([0.0, 1.0], BINS) - means  # of a jet in each cell
    total = len(confidence)
    drawn = rng.multinomial(total, counts / max(total, 1), size=replicas)

    def error(numbers: NDArray[np.int64]) -> NDArray[np.float64]:
        each: NDArray[np.float64] = (numbers * gap).reshape(*numbers.shape[:-1], BINS, 2)
        return np.asarray(np.abs(each.sum(axis=-1)).sum(axis=-1) / total)

    each = counts.reshape(BINS, 2).sum(axis=1)
    return Calibration(
        _around(float(error(counts)), float(error(drawn).std())) if total else UNDEFINED,
        tuple(each.tolist()),
        tuple(_share(sums.reshape(BINS, 2).sum(axis=1), each)),
        tuple(_share(counts[1::2].astype(np.float64), each)),
    )


def _around(value: float, error: float) -> Estimate:
    return Estimate(value, max(value - error, 0.0), min(value + error, 1.0))


def _share(sums: NDArray[np.float64], counts: NDArray[np.int64]) -> list[float | None]:
    return [float(s / n) if n else None for s, n in zip(sums, counts, strict=True)]


def wilson(successes: int, trials: int) -> tuple[float, float]:
    """Wilson's score interval of a binomial share, at one standard deviation."""
    centre = successes + 0.5
    half = math.sqrt(successes * (trials - successes) / trials + 0.25)
    return (centre - half) / (trials + 1), (centre + half) / (trials + 1)


def least_count(share: float, total: int) -> int:
    """The smallest count whose share of the total, as a float, is not below the asked one."""
    count = max(math.ceil(share * total), 1)  # the product may be rounded up past an integer
    return count - 1 if count > 1 and (count - 1) / total >= share else count


def _odds(
    scores: Float[np.ndarray, "N C"], signal: int, background: int
) -> Float[np.ndarray, " N"]:
    """p_s / p_b: the order of p_s / (p_s + p_b), without the ties that rounding to 1 makes.

    Where both are 0 the jet favours neither: 1, that is a discriminant of one half.
    """
    s, b = scores[:, signal].astype(np.float64), scores[:, background].astype(np.float64)
    odds = np.full(len(s), np.inf)
    np.divide(s, b, out=odds, where=b > 0)
    odds[(s == 0) & (b == 0)] = 1.0
    return odds


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
