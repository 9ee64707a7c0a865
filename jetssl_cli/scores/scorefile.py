"""The score file: what a network answers for every jet, with the names of its classes.

Layout (HDF5, format "jetssl-scores", version 1)::

    /        attrs: classes, jet_columns (JSON lists of names), jet_units (JSON list), and what
             ``provenance.py`` tells: run (its folder), data (the file), run_id, weights_hash,
             data_hash, group (equal for runs that differ by the seed alone), seed, precision
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
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from numpy.typing import NDArray

from jetssl_cli.data.chunks import Rows
from jetssl_cli.data.hdf5 import Table, attributes_of, create, open_complete, readable
from jetssl_cli.errors import DataError, printable
from jetssl_cli.scores.identity import HASH_OF_DATA, HASH_OF_LABELS, hash_of
from jetssl_cli.scores.provenance import Provenance

FORMAT = "jetssl-scores"
VECTORS_FORMAT = "jetssl-embeddings"
VERSION = 1
SUM_TOLERANCE = 1e-3
"""How far the scores of one jet may sum from 1."""
EXPECTED = "expected a float32 for each jet and class"
"""Of scores; float16 ties what differs, and loses the smallest."""


@dataclass(frozen=True, eq=False)
class ScoreSet:
    """What is evaluated of one score file."""

    path: Path
    run: str
    data: str
    classes: tuple[str, ...]
    scores: Float[np.ndarray, "J C"]
    labels: Int[np.ndarray, " J"]
    jets: Mapping[str, str] = field(default_factory=dict)
    """Hashes of the jets: of the file they come from, and of each jet feature by its name."""
    seed: int | None = None
    group: str | None = None
    """Equal for runs that differ by the seed alone."""

    def in_order(self, classes: Sequence[str]) -> ScoreSet:
        """The same scores with the classes in another order."""
        if tuple(classes) == self.classes:
            return self
        order = [self.classes.index(name) for name in classes]
        labels = np.argsort(order)[self.labels]
        return replace(self, classes=tuple(classes), scores=self.scores[:, order], labels=labels)

    def identity(self) -> dict[str, str]:
        """What says which jets they are: ``jets``, and a hash of the labels by their names."""
        ranks = np.argsort(np.argsort(self.classes))
        return {**self.jets, HASH_OF_LABELS: hash_of(ranks[self.labels])}


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
        about = attributes_of(file)
        classes = names_of(path, str(about.get("classes", "[]")))
        arrays = {name: Rows(file[name]) for name in ("scores", "logits", "labels", "jets")}
        run, data = (printable(str(about[name])) for name in ("run", "data"))
        scores, labels = arrays["scores"].read(), arrays["labels"].read()
        jets = _hashes(arrays["jets"], json.loads(about.get("jet_columns", "[]")))
    lengths = {name: len(rows) for name, rows in arrays.items()}
    if len(set(lengths.values())) > 1:
        listed = ", ".join(f"{name} {length}" for name, length in lengths.items())
        raise DataError(f"{path}: the arrays have different numbers of jets: {listed}")
    if HASH_OF_DATA in about:
        jets[HASH_OF_DATA] = str(about[HASH_OF_DATA])
    check(path, classes, scores, labels)
    found = ScoreSet(path, run, data, classes, scores, labels, jets)
    seed, group = about.get("seed"), about.get("group")
    if seed is not None and group is not None:
        with readable(path):
            return replace(found, seed=int(seed), group=str(group))
    return found


def check(path: Path, classes: Sequence[str], scores: NDArray[Any], labels: NDArray[Any]) -> None:
    """Look at every label and every score.

    Raises:
        DataError: no jets, a label that is none of the classes, or scores that do not sum to 1.
    """
    check_labels(path, labels, len(classes))
    check_scores(path, scores, classes)


def _hashes(jets: Rows, columns: Sequence[str]) -> dict[str, str]:
    table = jets.read()
    return {name: hash_of(column) for name, column in zip(columns, table.T, strict=False)}


def names_of(path: Path, text: str) -> tuple[str, ...]:
    """The class names in a JSON list.

    Raises:
        DataError: it is none, is empty, or has a name twice.
    """
    try:
        names = json.loads(text)
    except ValueError:
        names = None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise DataError(f"{path}: classes = {text!r}: expected a JSON list of names")
    names = tuple(map(printable, names))
    if not names:
        raise DataError(f"{path}: has no class names")
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise DataError(f"{path}: the class {twice[0]!r} is named twice")
    return names


def check_labels(path: Path, labels: NDArray[Any], num_classes: int) -> None:
    """Labels are whole numbers from 0 on, one for each of at least one jet.

    Raises:
        DataError: they are not.
    """
    if labels.ndim != 1 or labels.dtype.kind != "i":
        raise DataError(f"{path}: labels: expected one integer for each jet")
    if len(labels) == 0:
        raise DataError(f"{path}: holds no jets")
    if (labels == -1).all():
        raise DataError(f"{path}: has no labels (it was exported with --unlabelled)")
    outside = np.flatnonzero((labels < 0) | (labels >= num_classes))
    if len(outside):
        jet = outside[0]
        raise DataError(f"{path}: jet {jet}: label {labels[jet]} is not in 0..{num_classes - 1}")


def check_scores(
    path: Path, scores: NDArray[Any], classes: Sequence[str], *, before: int = 0
) -> None:
    """There are a score of each class for each jet, finite, not negative, and they sum to 1.

    ``before`` says how many jets of the file come before these, which are at least one.

    Raises:
        DataError: they are not.
    """
    if scores.ndim != 2 or scores.dtype.kind != "f" or scores.dtype.itemsize < 4:
        raise DataError(f"{path}: scores: {EXPECTED}")
    if scores.shape[1] != len(classes):
        raise DataError(
            f"{path}: {scores.shape[1]} scores a jet for {len(classes)} classes: "
            f"{', '.join(classes)}"
        )
    with np.errstate(invalid="ignore"):
        total: NDArray[Any] = scores @ np.ones(scores.shape[1], scores.dtype)
    found = {"a score is not finite": ~np.isfinite(total)}
    if scores.min() < 0:
        found["a score is negative"] = scores.min(axis=1) < 0
    found[f"the scores do not sum to 1 within {SUM_TOLERANCE:g}"] = abs(total - 1) > SUM_TOLERANCE
    for problem, broken in found.items():
        jets = np.flatnonzero(broken)
        if len(jets):
            listed = ", ".join(f"{score:.6g}" for score in scores[jets[0]])
            raise DataError(
                f"{path}: jet {before + jets[0]}: {problem} ({len(jets)} such jets among "
                f"{len(scores)}): {listed}"
            )
