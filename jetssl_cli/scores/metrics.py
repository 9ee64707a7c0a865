"""The figures that JetClass papers report, each with its uncertainty.

The definitions are those of ParT (Qu, Li, Qian, arXiv:2202.03772). Every interval is the central
68.3 % one (one standard deviation). Axes: J jets, C classes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from jetssl_cli.config import Strict

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


@dataclass(frozen=True)
class Estimate:
    """A figure and its 68.3 % central interval; None where it is not defined."""

    value: float | None
    low: float | None
    high: float | None


UNDEFINED = Estimate(None, None, None)


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


class Row(Strict):
    """The figures of one score file."""

    scores: str
    """The score file."""
    run: str
    """The run that made it."""
    num_jets: int
    accuracy: Estimate
    auc: Estimate
    rejection: dict[str, Rejection | None]
    """By signal class; None where the data lack jets of that class or of QCD."""


def accuracy(scores: Float[np.ndarray, "J C"], labels: Int[np.ndarray, " J"]) -> Estimate:
    """Share of the jets whose highest score is that of their own class.

    Of classes that tie for the highest score the first counts as the answer. The interval is
    Wilson's for a binomial share (J. Am. Stat. Assoc. 22 (1927) 209). No jets: undefined.
    """
    if len(labels) == 0:
        return UNDEFINED
    correct = int(np.count_nonzero(scores.argmax(axis=1) == labels))
    low, high = _wilson(correct, len(labels))
    return Estimate(correct / len(labels), low, high)


def auc_ovo(scores: Float[np.ndarray, "J C"], labels: Int[np.ndarray, " J"]) -> Estimate:
    """Macro-averaged one-vs-one area under the ROC curve.

    The mean, over all ordered pairs of classes (a, b), of A(a|b): the probability that a jet of
    class a has a higher score p_a than a jet of class b, ties counting one half (Hand and Till,
    Mach. Learn. 45 (2001) 171). It equals scikit-learn's
    ``roc_auc_score(multi_class="ovo", average="macro")``; with two classes it is the mean of the
    two areas. Classes without jets are left out of the mean; it is undefined with fewer than two.

    The standard error is that of DeLong, DeLong and Clarke-Pearson (Biometrics 44 (1988) 837) for
    this mean: with psi_i the sum of all placements of jet i divided by the number of ordered
    pairs, its square is the sum over classes of var(psi) / (jets of the class). There is no
    interval where that estimate says nothing: when a class has a single jet, or when it is zero
    because psi is the same for all jets of each class (as in perfect separation).
    """
    members = [np.flatnonzero(labels == c) for c in range(scores.shape[1])]
    present = [c for c, jets in enumerate(members) if len(jets)]
    pairs = len(present) * (len(present) - 1)
    if pairs == 0:
        return UNDEFINED
    influence = {c: np.zeros(len(members[c])) for c in present}
    total = 0.0
    for a in present:
        total += _one_vs_others(scores[:, a], {c: members[c] for c in present}, a, influence)
    value = min(total / pairs, 1.0)
    if any(len(members[c]) < 2 for c in present):
        return Estimate(value, None, None)
    spread = [float(psi.var(ddof=1)) / len(psi) for psi in influence.values()]
    error = math.sqrt(sum(spread)) / pairs
    if error < 1e-12:  # zero, up to rounding
        return Estimate(value, None, None)
    return Estimate(value, max(value - error, 0.0), min(value + error, 1.0))


def rejection(
    scores: Float[np.ndarray, "J C"],
    labels: Int[np.ndarray, " J"],
    classes: Sequence[str],
    signal: str,
    *,
    background: str = BACKGROUND,
    efficiency: float = 0.5,
) -> Rejection | None:
    """One over the share of the background that passes a cut which keeps ``efficiency``.

    Only jets of the two classes count. They are ordered by the discriminant
    p_signal / (p_signal + p_background) of ParT. The threshold is the highest one that at least
    the asked share of the signal passes; tied scores enter together.

    The interval comes from the Wilson interval of the share of background that passes (binomial);
    the uncertainty of the threshold itself, which is fixed by the signal jets, is left out. If
    none of the N_B background jets passes, N_B / 3 is a lower bound at 95 % (the rule of three).

    Returns:
        None where either class is unknown or has no jets.
    """
    assert 0 < efficiency <= 1
    if signal not in classes or background not in classes or signal == background:
        return None
    s, b = classes.index(signal), classes.index(background)
    signal_odds = _odds(scores[labels == s], s, b)
    background_odds = _odds(scores[labels == b], s, b)
    if len(signal_odds) == 0 or len(background_odds) == 0:
        return None
    needed = _least_count(efficiency, len(signal_odds))
    threshold = np.partition(signal_odds, -needed)[-needed]
    reached = float(np.mean(signal_odds >= threshold))
    passing = int(np.count_nonzero(background_odds >= threshold))
    if passing == 0:
        limit = len(background_odds) / 3
        return Rejection(limit, limit, None, reached, bound=True)
    low, high = _wilson(passing, len(background_odds))
    return Rejection(len(background_odds) / passing, 1 / high, 1 / low, reached, bound=False)


def _wilson(successes: int, trials: int) -> tuple[float, float]:
    """Wilson's score interval of a binomial share, at one standard deviation."""
    centre = successes + 0.5
    half = math.sqrt(successes * (trials - successes) / trials + 0.25)
    return (centre - half) / (trials + 1), (centre + half) / (trials + 1)


def _least_count(share: float, total: int) -> int:
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


def _one_vs_others(
    score: Float[np.ndarray, " J"],
    members: dict[int, Int[np.ndarray, " _"]],
    a: int,
    influence: dict[int, Float[np.ndarray, " _"]],
) -> float:
    """Sum A(a|b) over the other classes b; add the placement of every jet to its influence."""
    order = {c: np.argsort(score[jets]) for c, jets in members.items()}
    ordered = {c: score[jets][order[c]] for c, jets in members.items()}
    total = 0.0
    for b in members:
        if b == a:
            continue
        above = _share_below(ordered[a], ordered[b])
        influence[a][order[a]] += above
        influence[b][order[b]] += 1 - _share_below(ordered[b], ordered[a])
        total += float(above.mean())
    return total


def _share_below(
    values: Float[np.ndarray, " N"], ordered: Float[np.ndarray, " M"]
) -> Float[np.ndarray, " N"]:
    """For each value, the share of ``ordered`` below it; equal ones count one half."""
    below = np.searchsorted(ordered, values, side="left")
    not_above = np.searchsorted(ordered, values, side="right")
    return (below + not_above) / (2 * len(ordered))
