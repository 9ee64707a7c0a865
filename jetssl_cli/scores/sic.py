"""Weak supervision: the score file of ``--task cwola``, and its significance improvement.

SIC = TPR / sqrt(FPR): by how much a cut that keeps the share TPR of the signal and FPR of the
background raises S / sqrt(B) (Gallicchio and Schwartz, arXiv:1107.5325).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from pydantic import ValidationError

from jetssl_cli.config import Strict
from jetssl_cli.data.hdf5 import attributes_of, open_complete, readable
from jetssl_cli.data.jagged import JaggedFile
from jetssl_cli.data.mixed import Mixture
from jetssl_cli.data.stream import to_batch
from jetssl_cli.errors import DataError, RunError, printable
from jetssl_cli.progress import progress
from jetssl_cli.runs.checkpoint import MODEL, match
from jetssl_cli.runs.finetune import load_classifier
from jetssl_cli.scores.auc import auc, placements
from jetssl_cli.scores.metrics import UNDEFINED, Estimate, discriminants
from jetssl_cli.scores.provenance import provenance
from jetssl_cli.scores.scorefile import FORMAT, VERSION, read_scores, write_scores
from jetssl_cli.scores.taskrows import Cell, TaskRow

TASK = "cwola"
LEAST_BACKGROUND = 25
"""A cut that fewer background jets pass says nothing: sqrt(FPR) is uncertain by 10 %."""
REJECTIONS = (10, 30, 100, 1000)
"""1 / FPR at which SIC is told."""
CAPTION = (
    "On jets of known class. S, B: signal and background jets in M1. SIC = TPR / sqrt(FPR), of "
    f"cuts that {LEAST_BACKGROUND} background jets pass at least; without any cut it is 1. 'at x': "
    "at 1 / FPR = x. Uncertainties: DeLong for AUC; binomial for SIC, of these jets alone: another "
    "training gives other numbers."
)


class SICPoint(Strict):
    """One cut."""

    value: Estimate
    signal: float
    """TPR."""
    background: float
    """FPR."""


class SICRow(TaskRow):
    """How well a network without labels finds the signal."""

    notes: ClassVar[tuple[str, ...]] = (CAPTION,)
    signal: str
    background: str
    num_signal: int
    num_background: int
    seed: int
    auc: Estimate
    best: SICPoint
    """The largest."""
    at: dict[int, SICPoint | None]
    """By 1 / FPR; None where too few background jets pass."""

    def lines(self) -> list[dict[str, Cell]]:
        """One line."""
        cells: dict[str, Cell] = {
            "jets": self.num_jets,
            "signal": self.signal,
            "S": self.num_signal,
            "B": self.num_background,
            "AUC": self.auc,
            "max SIC": self.best.value,
            "its FPR": f"{self.best.background:.2g}",
        }
        for rejection, point in self.at.items():
            cells[f"at {rejection}"] = point.value if point else UNDEFINED
        return [cells]

    def headline(self) -> Mapping[str, Estimate]:
        """AUC and the largest SIC."""
        points = {f"sic/{x}": point.value for x, point in self.at.items() if point}
        return {"auc": self.auc, "max_sic": self.best.value, **points}


def export(run: Path, data: Path, out: Path, batch_size: int) -> int:
    """Write the scores of all jets of signal and background: a file of jets with two classes.

    The score of the signal is that of M1. Returns how many jets these are.

    Raises:
        DataError: the data cannot be read or lack one of the classes, or the file not be written.
        RunError: the data do not fit the run, or the network answers with what is not finite.
    """
    cfg, schema, network = load_classifier(run)
    mixture = cfg.data.mixture
    assert mixture is not None
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    network.to(device)
    classes = (mixture.background, mixture.signal)
    with JaggedFile(data) as file:
        match(file.schema, schema, str(data), run)
        labels = file.labels()
        numbers = [_number(file, name, labels) for name in classes]
        about = {"task": TASK, "mixture": mixture.model_dump_json()}
        with (
            write_scores(
                out,
                classes=classes,
                jet_columns=[column.name for column in file.schema.jets],
                jet_units=[column.unit for column in file.schema.jets],
                run=str(run),
                data=str(data),
                origin=provenance(run, MODEL, data, "32"),
                more=about,
            ) as writer,
            progress(f"export {run.name}", file.num_jets, "jets") as advance,
            torch.inference_mode(),
        ):
            for jets in file.chunks(batch_size):
                advance(len(jets))
                chosen = jets.take(
                    np.flatnonzero(np.isin(jets.labels, numbers)), cfg.data.max_constituents
                )
                if not len(chosen):
                    continue
                batch = to_batch(chosen, most=cfg.data.max_constituents)
                logits = network.logits(batch.to(device)).float()
                if not logits.isfinite().all():
                    raise RunError(f"{run}: the network answers with numbers that are not finite")
                writer.append(
                    logits.softmax(-1).cpu().numpy(),
                    logits.cpu().numpy(),
                    (chosen.labels == numbers[1]).astype(np.int64),
                    chosen.jets,
                )
    return int(np.isin(labels, numbers).sum())


def evaluate(path: Path) -> SICRow:
    """All figures of one score file, of jets in the order of p_signal / p_background.

    Raises:
        DataError: it is not one, or has no jets of one of the classes.
    """
    found = read_scores(path)
    with open_complete(path, FORMAT, VERSION) as file, readable(path):
        mixture, background = _mixture(path, attributes_of(file))
    names = mixture.signal, mixture.background
    odds = discriminants(found.scores, found.labels, found.classes, *names)
    if odds is None:
        raise DataError(f"{path}: holds no jets of {names[0]}, or none of {names[1]}")
    best, at = improvements(odds.signal, odds.background)
    ordered = np.concatenate([odds.background, odds.signal])
    is_signal = np.repeat([0, 1], [len(odds.background), len(odds.signal)])
    return SICRow(
        scores=str(path),
        run=found.run,
        num_jets=len(found.labels),
        signal=mixture.signal,
        background=mixture.background,
        num_signal=mixture.num_signal,
        num_background=background,
        seed=mixture.seed,
        auc=auc(placements(np.column_stack([-ordered, ordered]), is_signal)),
        best=best,
        at=at,
    )


def improvements(
    signal: Float[np.ndarray, " S"], background: Float[np.ndarray, " B"]
) -> tuple[SICPoint, dict[int, SICPoint | None]]:
    """The largest SIC, and that at fixed 1 / FPR, where a jet passes if its score is not below.

    Cuts are made at the scores that occur, so that equal ones pass together. At a fixed 1 / FPR the
    loosest cut counts that lets no more background pass. Fewer background jets in all than
    ``LEAST_BACKGROUND``: the one cut that lets all pass is left.
    """
    cuts = np.unique(np.concatenate([signal, background]))[::-1]
    passing = [
        len(x) - np.searchsorted(np.sort(x), cuts, side="left") for x in (signal, background)
    ]
    tpr, fpr = passing[0] / len(signal), passing[1] / len(background)
    enough = passing[1] >= min(LEAST_BACKGROUND, len(background))
    sic = np.where(enough, tpr / np.sqrt(np.maximum(fpr, 1e-300)), -np.inf)

    def point(cut: int) -> SICPoint:
        t, f = float(tpr[cut]), float(fpr[cut])
        relative = (1 - t) / max(t * len(signal), 1) + (1 - f) / (4 * f * len(background))
        value = t / math.sqrt(f)
        error = value * math.sqrt(relative)
        return SICPoint(
            value=Estimate(value, max(value - error, 0.0), value + error), signal=t, background=f
        )

    at: dict[int, SICPoint | None] = {}
    for rejection in REJECTIONS:
        allowed = np.flatnonzero(enough & (fpr <= 1 / rejection))
        at[rejection] = point(int(allowed[-1])) if len(allowed) else None
    return point(int(sic.argmax())), at


def _mixture(path: Path, about: Mapping[str, Any]) -> tuple[Mixture, int]:
    """What the network was trained on, as the score file tells it, and its background jets."""
    try:
        found = Mixture.model_validate_json(str(about.get("mixture", "{}")))
    except ValidationError as err:
        first = err.errors()[0]
        place = ".".join(map(str, first["loc"])) or "not JSON"
        raise DataError(f"{path}: damaged: mixture: {printable(place)}: {first['msg']}") from None
    if found.num_background is None:
        raise DataError(f"{path}: damaged: mixture: num_background: how many is not told")
    return found, found.num_background


def _number(file: JaggedFile, name: str, labels: NDArray[np.int16]) -> int:
    """The label of a class that the file has jets of."""
    if name not in file.schema.classes or not (labels == file.schema.classes.index(name)).any():
        raise DataError(f"{file.path}: has no jets of {name}")
    return file.schema.classes.index(name)
