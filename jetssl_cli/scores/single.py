"""All figures of one score file."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from jetssl_cli.scores.auc import THREADS, auc, placements
from jetssl_cli.scores.compare import Answers, generator
from jetssl_cli.scores.curves import Curves
from jetssl_cli.scores.metrics import (
    BACKGROUND,
    REPLICAS,
    WORKING_POINTS,
    Discriminants,
    Rejection,
    accuracy,
    calibration,
    confusion,
    discriminants,
    rejection,
)
from jetssl_cli.scores.rows import Row
from jetssl_cli.scores.scorefile import ScoreSet


@dataclass(frozen=True)
class Evaluated:
    """All that is kept of one score file; the scores themselves are let go."""

    row: Row
    answers: Answers
    jets: Mapping[str, str]
    """Which jets they are."""
    seed: int | None
    group: str | None
    curves: Curves | None


def evaluate_scores(
    found: ScoreSet, *, replicas: int = REPLICAS, seed: int = 0
) -> tuple[Row, Answers]:
    """All figures of one score file, and what comparing it with another needs.

    A class with a working point that the file does not name has no rejection; one that it names
    but has no jets of has an undefined one.
    """
    scores, labels, classes = found.scores, found.labels, found.classes
    answers = scores.argmax(axis=1)
    correct = answers == labels
    placed = placements(scores, labels)
    signals = [name for name in WORKING_POINTS if {name, BACKGROUND} <= set(classes)]

    def cut(name: str) -> tuple[Discriminants | None, Rejection | None]:
        odds = discriminants(scores, labels, classes, name)
        rng, asked = generator(seed, name), WORKING_POINTS[name]
        found = rejection(odds, asked, replicas=replicas, rng=rng) if odds else None
        return odds, found

    with ThreadPoolExecutor(THREADS) as pool:
        cuts = dict(zip(signals, pool.map(cut, signals), strict=True))
    row = Row(
        scores=str(found.path),
        run=found.run,
        num_jets=len(labels),
        accuracy=accuracy(correct),
        auc=auc(placed),
        calibration=calibration(
            scores.max(axis=1), correct, replicas=replicas, rng=np.random.default_rng(seed)
        ),
        rejection={name: found for name, (_, found) in cuts.items()},
        classes=classes,
        confusion=tuple(map(tuple, confusion(answers, labels, len(classes)).tolist())),
    )
    return row, Answers(correct, placed, {name: odds for name, (odds, _) in cuts.items()})
