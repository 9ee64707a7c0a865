"""Rows of a table: the figures of a run, or of runs that differ by their seed; which is best."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import PurePath

from jetssl_cli.config import Strict
from jetssl_cli.scores.compare import Comparison, Difference
from jetssl_cli.scores.metrics import (
    WORKING_POINTS,
    Calibration,
    Estimate,
    Rejection,
)
from jetssl_cli.scores.taskrows import TaskRow


class Row(Strict):
    """The figures of one score file, or the means of several."""

    scores: str
    """The score file; of several the first."""
    run: str
    """The run that made it."""
    num_jets: int
    accuracy: Estimate
    auc: Estimate
    calibration: Calibration
    rejection: dict[str, Rejection | None]
    """By signal class; None where the data lack jets of that class or of QCD."""
    classes: tuple[str, ...]
    """Names of the rows and columns of ``confusion``."""
    confusion: tuple[tuple[int, ...], ...]
    """Jets by their class (row) and by the answer (column); of several runs the sum."""
    seeds: tuple[str, ...] = ()
    """The score files of runs that differ by their seed, of which this is the mean."""
    best: tuple[str, ...] = ()
    """Figures in which no other row comes as close as the uncertainty of the difference."""
    comparisons: tuple[Comparison, ...] = ()
    """With other runs on the same jets."""


Paired = Callable[[str, Row, Row], Difference | None]
"""``paired(figure, row, other)``: how much better a row is; None if they are not comparable."""


def figures(rows: Sequence[Row]) -> list[str]:
    """The names of all figures that any row has."""
    signals = [name for name in WORKING_POINTS if any(name in row.rejection for row in rows)]
    return ["accuracy", "auc", "ece", *signals]


def figure(row: Row, name: str) -> Estimate | Rejection | None:
    """One figure of a row by its name; None where it is not defined."""
    named = {"accuracy": row.accuracy, "auc": row.auc, "ece": row.calibration.error}
    if name not in named:
        return row.rejection.get(name)
    return named[name] if named[name].value is not None else None


def ordered(rows: Sequence[Row]) -> list[Row]:
    """The highest accuracy first."""
    return sorted(rows, key=lambda row: -(row.accuracy.value or 0.0))


def mark_best(rows: Sequence[Row], paired: Paired) -> list[Row]:
    """Say of each row in which figures it is the best, by more than the uncertainty.

    That is one standard deviation of the difference: on the same jets of the paired difference,
    else that of both uncertainties together. A bound is no match for a number above it.
    """
    best: list[list[str]] = [[] for _ in rows]
    for name in figures(rows) if len(rows) > 1 else []:
        sign = -1.0 if name == "ece" else 1.0
        there = [place for place, row in enumerate(rows) if figure(row, name) is not None]
        if len(there) < 2:
            continue
        first, *others = sorted(there, key=lambda place: -sign * _value(rows[place], name))
        if all(_exceeds(name, rows[first], rows[other], sign, paired) for other in others):
            best[first].append(name)
    return [row.model_copy(update={"best": tuple(b)}) for row, b in zip(rows, best, strict=True)]


def run_names(rows: Sequence[Row | TaskRow]) -> list[str]:
    """What each row is called: its run's folder, with as much more as tells it from the others.

    Rows of one run are told apart by their score files.
    """
    runs = [str(PurePath(row.run or row.scores)) for row in rows]
    short = _shortest_tails(runs)
    names = []
    for run, row in zip(runs, rows, strict=True):
        same = [other.scores for other, its in zip(rows, runs, strict=True) if its == run]
        detail = _shortest_tails(same)[row.scores]
        name = short[run] if len(same) == 1 else f"{short[run]} ({detail})"
        names.append(f"{name} ({len(row.seeds)} seeds)" if row.seeds else name)
    return names


def _shortest_tails(paths: Sequence[str]) -> dict[str, str]:
    """For each different path, its last part, or as many parts as make it unique."""
    parts = {path: PurePath(path).parts for path in paths}
    tails = {}
    for path, own in parts.items():
        others = [other for name, other in parts.items() if name != path]
        depth = 1
        while any(other[-depth:] == own[-depth:] for other in others):
            depth += 1
        tails[path] = str(PurePath(*own[-depth:]))
    return tails


def _value(row: Row, name: str) -> float:
    found = figure(row, name)
    assert found is not None
    assert found.value is not None
    return found.value


def _exceeds(name: str, row: Row, other: Row, sign: float, paired: Paired) -> bool:
    difference = paired(name, row, other)
    if difference is not None:
        equal = 1 if name in WORKING_POINTS else 0  # of rejections there is a ratio
        return difference.low is not None and difference.low > equal
    own, its = figure(row, name), figure(other, name)
    if isinstance(its, Rejection) and its.bound:
        return False
    gap = sign * (_value(row, name) - _value(other, name))
    return gap > math.hypot(half_width(own), half_width(its))


def half_width(found: Estimate | Rejection | Difference | None) -> float:
    """Half of the interval; of one that is open above, what lies below the value."""
    if found is None or found.value is None or found.low is None:
        return 0.0
    return found.value - found.low if found.high is None else (found.high - found.low) / 2
