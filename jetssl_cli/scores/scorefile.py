"""The score file: what a network answers for every jet, with the names of its classes.

Layout (HDF5, format "jetssl-scores", version 1)::

    /        attrs: classes, jet_columns (JSON lists of names), jet_units (JSON list), and what
             ``provenance.py`` tells: run (its folder), data (the file), run_id, weights_hash,
             data_hash, group, seed, precision
    /scores  (J, C) float32   softmax, in the order of ``classes``
    /logits  (J, C) float32
    /labels  (J,)   int64     index into ``classes``; -1 where the class is not known
    /jets    (J, G) float32   jet features, in the order of ``jet_columns``
    /config  (1,)   string    resolved configuration of the run, YAML

A file of vectors (format "jetssl-embeddings", version 1) has /vectors (J, D) float32 in the place
of scores and logits: the mean of what the backbone makes of a jet's constituents and registers.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from numpy.typing import NDArray

from jetssl_cli.data.hdf5 import Table, create, open_complete, readable
from jetssl_cli.errors import DataError
from jetssl_cli.scores.provenance import Provenance

FORMAT = "jetssl-scores"
VECTORS_FORMAT = "jetssl-embeddings"
VERSION = 1
SUM_TOLERANCE = 1e-3
"""How far the scores of one jet may sum from 1."""


@dataclass(frozen=True, eq=False)
class ScoreSet:
    """What is evaluated of one score file."""

    path: Path
    run: str
    data: str
    classes: tuple[str, ...]
    scores: Float[np.ndarray, "J C"]
    labels: Int[np.ndarray, " J"]


class ScoreWriter:
    """Takes the jets chunk by chunk; made by ``write_scores``."""

    def __init__(self, table: Table, num_classes: int, num_jet_columns: int) -> None:
        self._table = table
        no_jets = np.zeros((0, num_classes)), np.zeros((0, num_jet_columns))
        self.append(no_jets[0], no_jets[0], np.zeros(0, np.int64), no_jets[1])

    def append(
        self,
        scores: Float[np.ndarray, "J C"],
        logits: Float[np.ndarray, "J C"],
        labels: Int[np.ndarray, " J"],
        jets: Float[np.ndarray, "J G"],
    ) -> None:
        """Add a chunk of jets; numbers are kept in float32, labels in int64."""
        assert len(scores) == len(logits) == len(labels) == len(jets)
        self._table.append("scores", scores.astype(np.float32, copy=False))
        self._table.append("logits", logits.astype(np.float32, copy=False))
        self._table.append("labels", labels.astype(np.int64, copy=False))
        self._table.append("jets", jets.astype(np.float32, copy=False))


class VectorWriter:
    """Takes the jets chunk by chunk; made by ``write_vectors``."""

    def __init__(self, table: Table) -> None:
        self._table = table

    def append(
        self,
        vectors: Float[np.ndarray, "J D"],
        labels: Int[np.ndarray, " J"],
        jets: Float[np.ndarray, "J G"],
    ) -> None:
        """Add a chunk of jets; numbers are kept in float32, labels in int64."""
        assert len(vectors) == len(labels) == len(jets)
        self._table.append("vectors", vectors.astype(np.float32, copy=False))
        self._table.append("labels", labels.astype(np.int64, copy=False))
        self._table.append("jets", jets.astype(np.float32, copy=False))


@contextmanager
def write_scores(  # noqa: PLR0913
    path: Path,
    *,
    classes: Sequence[str],
    jet_columns: Sequence[str],
    run: str,
    data: str,
    jet_units: Sequence[str] = (),
    origin: Provenance | None = None,
    more: Mapping[str, str] = MappingProxyType({}),
) -> Iterator[ScoreWriter]:
    """Write a score file that appears under its name only when it is complete.

    ``more`` are attributes of the task.

    Raises:
        DataError: the file cannot be written.
    """
    with create(path, FORMAT, VERSION) as table:
        _describe(table, classes, jet_columns, jet_units)
        table.describe({"run": run, "data": data, **more})
        if origin is not None:
            _tell(table, origin)
        yield ScoreWriter(table, len(classes), len(jet_columns))


@contextmanager
def write_vectors(
    path: Path,
    *,
    classes: Sequence[str],
    jet_columns: Sequence[str],
    jet_units: Sequence[str],
    origin: Provenance,
) -> Iterator[VectorWriter]:
    """Write a file of vectors that appears under its name only when it is complete.

    Raises:
        DataError: the file cannot be written.
    """
    with create(path, VECTORS_FORMAT, VERSION) as table:
        _describe(table, classes, jet_columns, jet_units)
        _tell(table, origin)
        yield VectorWriter(table)


def _describe(
    table: Table, classes: Sequence[str], jet_columns: Sequence[str], jet_units: Sequence[str]
) -> None:
    names = {"classes": classes, "jet_columns": jet_columns, "jet_units": jet_units}
    table.describe({key: json.dumps(list(value)) for key, value in names.items()})


def _tell(table: Table, origin: Provenance) -> None:
    table.append_text("config", [origin.config])
    table.describe(origin.attributes())


def read_scores(path: Path) -> ScoreSet:
    """Read and check the scores and labels of a score file.

    Raises:
        DataError: it is not a whole score file, or its content contradicts itself.
    """
    with open_complete(path, FORMAT, VERSION) as file, readable(path):
        classes = _names(path, str(file.attrs.get("classes", "[]")))
        lengths = {name: len(file[name]) for name in ("scores", "logits", "labels", "jets")}
        run, data = str(file.attrs["run"]), str(file.attrs["data"])
        scores, labels = file["scores"][()], file["labels"][()]
    if len(set(lengths.values())) > 1:
        listed = ", ".join(f"{name} {length}" for name, length in lengths.items())
        raise DataError(f"{path}: the arrays have different numbers of jets: {listed}")
    _check_labels(path, labels, len(classes))
    _check_scores(path, scores, classes)
    return ScoreSet(path, run, data, classes, scores, labels)


def _names(path: Path, text: str) -> tuple[str, ...]:
    try:
        names = json.loads(text)
    except ValueError:
        names = None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise DataError(f"{path}: classes = {text!r}: expected a JSON list of names")
    if not names:
        raise DataError(f"{path}: has no class names")
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise DataError(f"{path}: the class {twice[0]!r} is named twice")
    return tuple(names)


def _check_labels(path: Path, labels: NDArray[Any], num_classes: int) -> None:
    if labels.ndim != 1 or labels.dtype.kind != "i":
        raise DataError(f"{path}: labels: expected one integer for each jet")
    if len(labels) == 0:
        raise DataError(f"{path}: holds no jets")
    outside = np.flatnonzero((labels < 0) | (labels >= num_classes))
    if len(outside):
        jet = outside[0]
        raise DataError(f"{path}: jet {jet}: label {labels[jet]} is not in 0..{num_classes - 1}")


def _check_scores(path: Path, scores: NDArray[Any], classes: Sequence[str]) -> None:
    if scores.ndim != 2 or scores.dtype.kind != "f" or scores.dtype.itemsize < 4:
        raise DataError(f"{path}: scores: expected a float32 for each jet and class")
    if scores.shape[1] != len(classes):
        raise DataError(
            f"{path}: {scores.shape[1]} scores a jet for {len(classes)} classes: "
            f"{', '.join(classes)}"
        )
    _refuse(path, scores, ~np.isfinite(scores).all(axis=1), "a score is not finite")
    _refuse(path, scores, scores.min(axis=1) < 0, "a score is negative")
    total: NDArray[np.float64] = scores.sum(axis=1, dtype=np.float64)
    problem = f"the scores do not sum to 1 within {SUM_TOLERANCE:g}"
    _refuse(path, scores, np.abs(total - 1) > SUM_TOLERANCE, problem)


def _refuse(path: Path, scores: NDArray[Any], broken: NDArray[np.bool_], problem: str) -> None:
    jets = np.flatnonzero(broken)
    if len(jets):
        listed = ", ".join(f"{score:.6g}" for score in scores[jets[0]])
        raise DataError(f"{path}: jet {jets[0]}: {problem} ({len(jets)} such jets): {listed}")
