"""The figures that JetClass papers report, each with its uncertainty.

The definitions are those of ParT (Qu, Li, Qian, arXiv:2202.03772). Every interval is the central
68.3 % one (one standard deviation) of a bootstrap over the jets. Where a closed form is equal to it
that is used: Wilson's interval for the accuracy, DeLong's for the AUC; of the calibration error one
standard deviation on both sides. Axes: J jets, C classes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
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
