"""What a scan comes to: means over the seeds of each line and number of labelled jets."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from jetssl_cli.config import Strict
from jetssl_cli.scores.scanpoint import Measured


class Summary(Strict):
    """Mean and standard deviation over the seeds (None with a single seed)."""

    line: str
    num_jets: int
    seeds: int
    accuracy: float
    accuracy_std: float | None
    rejection: float | None
    """None where a seed has none, or some of the seeds, but not all, have a bound alone."""
    rejection_std: float | None
    rejection_bound: bool
    """All seeds have a bound alone: it is the smallest of these."""


def summarise(points: Sequence[Measured]) -> list[Summary]:
    """Mean and standard deviation over the seeds of each line and number of labels.

    Of bounds the smallest is one for all seeds; bounds and numbers have no mean.
    """
    groups: dict[tuple[str, int], list[Measured]] = {}
    for point in points:
        groups.setdefault((point.line, point.num_jets), []).append(point)
    found = []
    for (line, num_jets), group in groups.items():
        accuracy, spread = _mean([point.accuracy for point in group])
        rejections = [point.rejection for point in group if point.rejection is not None]
        bounds = sum(point.rejection_bound for point in group)
        bound, whole = bounds == len(group), len(rejections) == len(group)
        rejection, its_spread = _mean(rejections if whole and not bounds else [])
        assert accuracy is not None
        found.append(
            Summary(
                line=line,
                num_jets=num_jets,
                seeds=len(group),
                accuracy=accuracy,
                accuracy_std=spread,
                rejection=min(rejections) if bound else rejection,
                rejection_std=its_spread,
                rejection_bound=bound,
            )
        )
    return found


def _mean(values: Sequence[float]) -> tuple[float | None, float | None]:
    mean = float(np.mean(values)) if values else None
    return mean, float(np.std(values, ddof=1)) if len(values) > 1 else None
