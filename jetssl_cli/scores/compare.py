"""Two runs on the same jets: is one better than the other?

The jets are the same, so what is common to both runs cancels: McNemar's test for the accuracy,
DeLong's error of a difference for the AUC, a bootstrap in which both runs see the same drawn jets
for the rejections.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool

from jetssl_cli.config import Strict
from jetssl_cli.scores.auc import Placements, delong
from jetssl_cli.scores.metrics import (
    NONE_PASSES,
    ONE_SIGMA,
    WORKING_POINTS,
    Discriminants,
    least_count,
)
from jetssl_cli.scores.resampling import passing


@dataclass(frozen=True)
class Answers:
    """What is kept of a run, to compare it with others."""

    correct: Bool[np.ndarray, " J"]
    placements: Placements
    discriminants: Mapping[str, Discriminants | None]
    """By signal class."""


@dataclass(frozen=True)
class Difference:
    """How much better a run is, with its 68.3 % interval; None where there is no limit."""

    value: float | None
    low: float | None
    high: float | None
    p: float | None
    """The chance of such a difference, or a larger one, between runs that are equally good."""


class Comparison(Strict):
    """A run held against another on the same jets."""

    scores: str
    """The score file of this run."""
    to: str
    """The score file of the other."""
    only_this: int
    """Jets that only this run gets right."""
    only_other: int
    """Jets that only the other gets right."""
    accuracy: Difference
    """This accuracy less the other; p of McNemar's exact test."""
    auc: Difference
    """This AUC less the other; p of DeLong's test."""
    rejection: dict[str, Difference | None]
    """This rejection over the other; p of the bootstrap."""


class Pairs:
    """Runs on the same jets in pairs; each difference is computed once."""

    def __init__(self, answers: Mapping[str, Answers], *, replicas: int, seed: int) -> None:
        """``answers`` are those of each score file."""
        self._answers, self._replicas, self._seed = answers, replicas, seed
        self._found: dict[tuple[str, str, str], Difference | None] = {}

    def difference(self, figure: str, scores: str, to: str) -> Difference | None:
        """How much better the accuracy, the auc, or the rejection of a signal is."""
        key = figure, scores, to
        if key not in self._found:
            one, other = self._answers[scores], self._answers[to]
            if figure == "accuracy":
                found: Difference | None = compare_accuracy(one.correct, other.correct)
            elif figure == "auc":
                found = compare_auc(one.placements, other.placements)
            else:
                settings = {"replicas": self._replicas, "seed": self._seed}
                found = compare_rejection(one, other, figure, **settings)
            self._found[key] = found
        return self._found[key]

    def comparison(self, scores: str, to: str) -> Comparison:
        """All differences of two runs."""
        one, other = self._answers[scores], self._answers[to]
        accuracy, auc = (self.difference(name, scores, to) for name in ("accuracy", "auc"))
        assert accuracy is not None
        assert auc is not None
        return Comparison(
            scores=scores,
            to=to,
            only_this=int(np.count_nonzero(one.correct & ~other.correct)),
            only_other=int(np.count_nonzero(other.correct & ~one.correct)),
            accuracy=accuracy,
            auc=auc,
            rejection={name: self.difference(name, scores, to) for name in one.discriminants},
        )


def compare_accuracy(one: Bool[np.ndarray, " J"], other: Bool[np.ndarray, " J"]) -> Difference:
    """The difference of two accuracies, with McNemar's exact test (Psychometrika 12 (1947) 153).

    Only jets count that one of the two gets right; if both are equally good, each of them falls to
    either with probability one half.
    """
    from scipy.stats import binom

    wins, losses = int(np.count_nonzero(one & ~other)), int(np.count_nonzero(other & ~one))
    value = (wins - losses) / len(one)
    error = math.sqrt((wins + losses) / len(one) - value**2) / math.sqrt(len(one))
    p = min(1.0, 2 * float(binom.cdf(min(wins, losses), wins + losses, 0.5)))
    return Difference(value, value - error, value + error, p)


def compare_auc(one: Placements, other: Placements) -> Difference:
    """The difference of two AUC, with the error of DeLong, DeLong and Clarke-Pearson."""
    if one.auc is None or other.auc is None:
        return Difference(None, None, None, None)
    value, error = one.auc - other.auc, delong(one.psi - other.psi, one.labels)
    if error is None:
        return Difference(value, None, None, None)
    if error < 1e-12:  # zero, up to rounding
        return Difference(value, value, value, 1.0 if abs(value) < 1e-12 else None)
    return Difference(value, value - error, value + error, math.erfc(abs(value / error) / 2**0.5))


def compare_rejection(
    one: Answers, other: Answers, signal: str, *, replicas: int, seed: int
) -> Difference | None:
    """The ratio of two rejections, both from the same drawn jets in each replica.

    Where no background jet passes in one of the runs, the ratio has a limit at 95 % instead, from
    the bound that its rejection has then (``metrics.rejection``); where none passes in either,
    there is nothing to compare. p is twice the share of the replicas in which the worse run is at
    least as good, at the least 2 / (replicas + 1).
    """
    both = one.discriminants[signal], other.discriminants[signal]
    if both[0] is None or both[1] is None:
        return None
    needed = least_count(WORKING_POINTS[signal], len(both[0].signal))
    passed = [
        int(np.count_nonzero(x.background >= np.partition(x.signal, -needed)[-needed]))
        for x in (both[0], both[1])
    ]
    if not any(passed):
        return None
    drawn = passing(
        np.stack([x.signal for x in (both[0], both[1])]),
        np.stack([x.background for x in (both[0], both[1])]),
        needed,
        replicas=replicas,
        rng=generator(seed, signal),
    )
    ratios = np.where(drawn[0] == drawn[1], 1.0, np.inf)
    np.divide(drawn[1], drawn[0], out=ratios, where=drawn[0] > 0)
    ends = np.quantile(ratios, ONE_SIGMA, method="nearest").tolist()
    low, high = (end if math.isfinite(end) else None for end in ends)
    tails = [
        int(np.count_nonzero(drawn[0] >= drawn[1])),
        int(np.count_nonzero(drawn[0] <= drawn[1])),
    ]
    p = min(1.0, 2 * (min(tails) + 1) / (replicas + 1))
    if not passed[0]:
        return Difference(None, passed[1] / NONE_PASSES, None, p)
    if not passed[1]:
        return Difference(None, None, NONE_PASSES / passed[0], p)
    return Difference(passed[1] / passed[0], low, high, p)


def generator(seed: int, signal: str) -> np.random.Generator:
    """Random numbers of the replicas of a rejection; of each class its own."""
    return np.random.default_rng([seed, list(WORKING_POINTS).index(signal)])
