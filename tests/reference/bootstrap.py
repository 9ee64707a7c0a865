"""The plain bootstrap: draw jets with replacement, compute the figure anew, again and again."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np


def replicas(
    labels: np.ndarray, figure: Callable[[np.ndarray], object], number: int, seed: int
) -> np.ndarray:
    """``figure(jets)`` of so many samples of jets, each as large as the data."""
    rng = np.random.default_rng(seed)
    size = len(labels)
    return np.array([figure(rng.integers(size, size=size)) for _ in range(number)])


def stratified(
    labels: np.ndarray, figure: Callable[[np.ndarray], object], number: int, seed: int
) -> np.ndarray:
    """The same, with as many jets of each class as there are in the data."""
    rng = np.random.default_rng(seed)
    members = [np.flatnonzero(labels == c) for c in np.unique(labels)]

    def drawn() -> np.ndarray:
        return np.concatenate([rng.choice(jets, len(jets)) for jets in members])

    return np.array([figure(drawn()) for _ in range(number)])


def num_passing(signal: np.ndarray, background: np.ndarray, needed: int) -> int:
    """Background jets at or above the ``needed``-th highest signal jet."""
    return int((background >= np.sort(signal)[-needed]).sum())


def expected_calibration_error(scores: np.ndarray, labels: np.ndarray, bins: int) -> float:
    """Bin by bin, as it is defined; a bin holds its upper edge."""
    confidence, right = scores.max(axis=1).astype(float), scores.argmax(axis=1) == labels
    error = 0.0
    for k in range(bins):
        inside = (confidence > k / bins) & (confidence <= (k + 1) / bins)
        if inside.any():
            error += inside.mean() * abs(right[inside].mean() - confidence[inside].mean())
    return error
