"""What is plotted of one score file, in as many points as a figure shows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray

from jetssl_cli.scores.metrics import BACKGROUND, Discriminants
from jetssl_cli.scores.scorefile import ScoreSet

POINTS = 400
BINS = 40


@dataclass(frozen=True)
class Roc:
    """A ROC curve in POINTS efficiencies of the signal."""

    efficiency: Float[np.ndarray, " P"]
    passed: Float[np.ndarray, " P"]
    """Share of the background that passes."""
    num_background: int


@dataclass(frozen=True)
class Curves:
    """Curves of one score file."""

    background: str
    """What the signals are held against."""
    roc: Mapping[str, Roc]
    """By signal class."""
    edges: Float[np.ndarray, " _"]
    """Of the bins of the scores."""
    scores: Mapping[str, Mapping[str, Float[np.ndarray, " B"]]]
    """By class: the share of jets in each bin of the score of the class; of jets of that class, of
    the background and of the others."""


def curves_of(found: ScoreSet, odds: Mapping[str, Discriminants | None]) -> Curves:
    """Curves of each signal against QCD; where there is none, of each class against all others."""
    scores, labels, classes = found.scores, found.labels, found.classes
    edges = np.linspace(0, 1, BINS + 1)
    pairs = (  # one at a time: of all classes they would be as large as the scores
        ((name, cut.signal, cut.background) for name, cut in odds.items() if cut)
        if odds
        else (
            (name, scores[labels == c, c], scores[labels != c, c]) for c, name in enumerate(classes)
        )
    )
    shares: dict[str, dict[str, NDArray[np.float64]]] = {}
    for c, name in enumerate(classes):
        own = labels == c
        kinds = {name: own}
        if odds and name != BACKGROUND:
            kinds[BACKGROUND] = labels == classes.index(BACKGROUND)
        kinds["others"] = ~np.logical_or.reduce(list(kinds.values()))
        shares[name] = {kind: _shares(scores[chosen, c], edges) for kind, chosen in kinds.items()}
    return Curves(
        background=BACKGROUND if odds else "all others",
        roc={name: _roc(*pair) for name, *pair in pairs if all(map(len, pair))},
        edges=edges,
        scores=shares,
    )


def _roc(signal: NDArray[np.floating], background: NDArray[np.floating]) -> Roc:
    """At POINTS numbers of signal jets; tied ones enter together."""
    signal, background = np.sort(signal), np.sort(background)
    needed = np.unique(np.linspace(1, len(signal), POINTS).round().astype(np.int64))
    cuts = signal[len(signal) - needed]
    kept = len(signal) - np.searchsorted(signal, cuts)
    passed = len(background) - np.searchsorted(background, cuts)
    return Roc(kept / len(signal), passed / len(background), len(background))


def _shares(values: NDArray[np.floating], edges: NDArray[np.float64]) -> NDArray[np.float64]:
    counts = np.histogram(values, edges)[0]
    return np.asarray(counts / max(len(values), 1))
