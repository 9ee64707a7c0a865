"""Origins of tracks: the score file of ``--task track-origin``, and its balanced accuracy."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Float, Int

from jetssl_cli.batch import JetBatch
from jetssl_cli.data.hdf5 import readable
from jetssl_cli.errors import DataError
from jetssl_cli.objectives.track_origin import ORIGINS, TrackOrigin
from jetssl_cli.runs.finetune import load_finetuned
from jetssl_cli.scores.metrics import UNDEFINED, Estimate
from jetssl_cli.scores.scorefile import names_of
from jetssl_cli.scores.taskrows import Cell, TaskRow
from jetssl_cli.scores.trackfile import export_tracks, read_tracks

TASK = "track-origin"
CAPTION = (
    "Of tracks whose origin is known. In the line 'all', recall is the balanced accuracy: the mean "
    "over the origins. 'as x': share of the tracks that are taken for x. Uncertainties: one "
    "standard error, jets counted as independent, not tracks."
)


class TrackRow(TaskRow):
    """How well the tracks of one score file are told apart."""

    notes: ClassVar[tuple[str, ...]] = (CAPTION,)
    classes: tuple[str, ...]
    confusion: tuple[tuple[int, ...], ...]
    """Tracks by true (rows) and by predicted origin."""
    balanced_accuracy: Estimate
    recall: tuple[Estimate, ...]

    def lines(self) -> list[dict[str, Cell]]:
        """All tracks, then those of each origin."""
        table = np.array(self.confusion)
        named = (self.balanced_accuracy, *self.recall)
        parts = (table.sum(axis=0), *table)
        return [
            {
                "origin": name,
                "jets": self.num_jets,
                "tracks": int(part.sum()),
                "recall": recall,
                **{
                    f"as {guess}": f"{count / max(part.sum(), 1):.1%}"
                    for guess, count in zip(self.classes, part, strict=True)
                },
            }
            for name, recall, part in zip(("all", *self.classes), named, parts, strict=True)
        ]

    def headline(self) -> Mapping[str, Estimate]:
        """Balanced accuracy and recalls."""
        return {
            "balanced_accuracy": self.balanced_accuracy,
            **{f"recall/{n}": r for n, r in zip(self.classes, self.recall, strict=True)},
        }


def export(run: Path, data: Path, out: Path, batch_size: int) -> int:
    """Write the scores of every track; see ``export_tracks``."""
    loaded = load_finetuned(run)
    network = loaded[2]
    assert isinstance(network, TrackOrigin)

    def answer(batch: JetBatch) -> dict[str, torch.Tensor]:
        return {"scores": network.track_logits(batch).float().softmax(1)}

    classes = {"classes": json.dumps(ORIGINS)}
    return export_tracks(
        loaded, (run, data, out), answer, batch_size=batch_size, attributes=classes
    )


def evaluate(path: Path) -> TrackRow:
    """All figures of one score file.

    Raises:
        DataError: it is not one, or no track has a known origin.
    """
    found = read_tracks(path, TASK, "scores")
    with readable(path):
        classes = names_of(path, str(found.attributes["classes"]))
    scores, number = found.arrays["scores"], len(classes)
    if scores.ndim != 2 or scores.shape[1] != number or not np.isfinite(scores).all():
        raise DataError(f"{path}: damaged: expected {number} finite scores for each track")
    known = (found.truth >= 0) & (found.truth < number)
    if not known.any():
        raise DataError(f"{path}: no track has a known origin")
    truth, guess = found.truth[known], scores.argmax(axis=1)[known]
    cells = np.bincount(truth * number + guess, minlength=number**2).reshape(number, number)
    owner = found.owner[known]
    balanced, recall = balanced_accuracy(truth, guess, owner, number)
    return TrackRow(
        scores=str(path),
        run=found.run,
        num_jets=found.num_jets,
        classes=classes,
        confusion=tuple(tuple(row) for row in cells.tolist()),
        balanced_accuracy=balanced,
        recall=recall,
    )


def balanced_accuracy(
    truth: Int[np.ndarray, " T"],
    guess: Int[np.ndarray, " T"],
    jet: Int[np.ndarray, " T"],
    classes: int,
) -> tuple[Estimate, tuple[Estimate, ...]]:
    """The mean over classes of the share of their tracks that are recognised, and these shares.

    It equals scikit-learn's ``balanced_accuracy_score``; classes without tracks are left out.
    Tracks of a jet are not independent, jets are: with psi_j the sum over the tracks t of jet j of
    (correct_t - recall of its class) / (tracks of its class), the square of the standard error is
    J / (J - 1) times the sum of psi_j^2 over the J jets with tracks (linearised; Liang and Zeger,
    Biometrika 73 (1986) 13). That of the mean takes the mean of psi over classes.
    """
    number = np.bincount(truth, minlength=classes)
    present = np.flatnonzero(number)
    if len(present) == 0:
        return UNDEFINED, (UNDEFINED,) * classes
    correct = truth == guess
    recall = np.bincount(truth, correct, classes) / np.maximum(number, 1)
    _, jet = np.unique(jet, return_inverse=True)
    influence = (correct - recall[truth]) / number[truth]
    each = np.bincount(jet * classes + truth, influence, (jet.max() + 1) * classes)
    psi = each.reshape(-1, classes)
    estimates = tuple(
        _estimate(recall[c], psi[:, c]) if number[c] else UNDEFINED for c in range(classes)
    )
    return _estimate(recall[present].mean(), psi.sum(axis=1) / len(present)), estimates


def _estimate(value: float, influence: Float[np.ndarray, " J"]) -> Estimate:
    jets = len(influence)
    if jets < 2:
        return Estimate(float(value), None, None)
    error = math.sqrt(jets / (jets - 1) * float((influence**2).sum()))
    return Estimate(float(value), max(float(value) - error, 0.0), min(float(value) + error, 1.0))
