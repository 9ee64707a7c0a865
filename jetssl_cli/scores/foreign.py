"""Scores of other tools: ROOT files as weaver writes them, CSV and parquet.

One column for each class, ``score_label_CLASS`` (weaver's name) or ``score_CLASS``. The truth is
either one flag for each class, ``label_CLASS``, of which exactly one is set, or one column
``label`` with the name of the class; in the ROOT files of ``jetssl export`` its number, with the
names beside the tree. Numeric columns ``jet_*`` say which jets they are. Whatever else there is, is
not read.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jetssl_cli.errors import DataError, reason, suggest
from jetssl_cli.scores.identity import exact_hash_of, hash_of
from jetssl_cli.scores.scorefile import (
    EXPECTED,
    ScoreSet,
    check,
    check_labels,
    read_scores,
)

SCORE, LABEL, JET = "score_", "label_", "jet_"
TRUTH, ABOUT = "label", "about"
CONVENTION = (
    "expected score_CLASS or score_label_CLASS of each class, with label_CLASS of each or one "
    "column label with names"
)

Columns = Mapping[str, NDArray[Any]]


def read_any(path: Path) -> ScoreSet:
    """Read and check scores: ``.root``, ``.csv``, ``.csv.gz``, ``.parquet``, else a file of ours.

    Raises:
        DataError: it cannot be read, has no scores by the convention above, or contradicts itself.
    """
    kind = _kind(path)
    if kind is None:
        return read_scores(path)
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    columns = READERS[kind](path)
    scored = [name for name in columns if name.startswith(SCORE)]
    names = {_class_of(name): name for name in scored}
    for name in scored:
        if names[_class_of(name)] != name:
            raise DataError(f"{path}: {name} and {names[_class_of(name)]} are of the same class")
    if not names:
        raise DataError(f"{path}: has no scores; {CONVENTION}")
    if not len(columns[scored[0]]):
        raise DataError(f"{path}: holds no jets")
    for name in scored:
        if columns[name].dtype == np.float16:
            raise DataError(f"{path}: {name}: {EXPECTED}")
    scores = np.stack([_numbers(path, columns, name) for name in names.values()], axis=1)
    labels = _labels(path, columns, list(names))
    check(path, tuple(names), scores, labels)
    jets = {}
    for name, values in columns.items():
        if name.startswith(JET) and values.dtype.kind in "biuf":
            jets[name] = hash_of(values)
            exact = exact_hash_of(values)
            jets |= {} if exact is None else {f"{name}, exact": exact}
    return ScoreSet(path, "", "", tuple(names), scores, labels, jets)


def is_foreign(path: Path) -> bool:
    """Whether a file is one of another tool, by its name."""
    return _kind(path) is not None


def _kind(path: Path) -> str | None:
    return next((kind for kind in READERS if path.name.endswith(kind)), None)


def _class_of(name: str) -> str:
    return name.removeprefix(SCORE).removeprefix(LABEL)


def _wanted(names: Sequence[str]) -> list[str]:
    return [name for name in names if name == TRUTH or name.startswith((SCORE, LABEL, JET))]


def _labels(path: Path, columns: Columns, classes: list[str]) -> NDArray[np.int64]:
    """The truth, from flags or from names."""
    flags = {name.removeprefix(LABEL): name for name in columns if name.startswith(LABEL)}
    if flags:
        for name in (*classes, *flags):
            if name not in flags:
                raise DataError(f"{path}: has no {LABEL}{name}; {suggest(name, flags)}")
            if name not in classes:
                raise DataError(f"{path}: has no {SCORE}{name}; {suggest(name, classes)}")
        table = np.stack([_numbers(path, columns, flags[name]) for name in classes], axis=1)
        missing = np.flatnonzero(~np.isfinite(table).all(axis=1))
        if len(missing):
            raise DataError(f"{path}: jet {missing[0]}: one of its {LABEL} columns has no number")
        table = table != 0
        wrong = np.flatnonzero(table.sum(axis=1) != 1)
        if len(wrong):
            count = int(table[wrong[0]].sum())
            raise DataError(
                f"{path}: jet {wrong[0]}: {count} of the {LABEL} columns are set, expected one "
                f"({len(wrong)} such jets)"
            )
        return np.asarray(table.argmax(axis=1), np.int64)
    if TRUTH not in columns:
        raise DataError(f"{path}: has no truth; {CONVENTION}")
    names = columns[TRUTH]
    if names.dtype.kind in "biuf":
        raise DataError(
            f"{path}: {TRUTH} has numbers, which other tools order in other ways; "
            "names of classes are needed"
        )
    try:
        found, codes = np.unique(names.astype(str), return_inverse=True)
    except UnicodeDecodeError:
        raise DataError(f"{path}: {TRUTH}: names of classes are expected, not bytes") from None
    found = np.array([name.removeprefix(LABEL) for name in found.tolist()])
    for name in found.tolist():
        if name not in classes:
            jet = int(np.flatnonzero(found[codes] == name)[0])
            raise DataError(f"{path}: jet {jet}: label {name!r}; {suggest(name, classes)}")
    numbers = np.array([classes.index(name) for name in found.tolist()])
    return np.asarray(numbers[codes], np.int64)


def _numbers(path: Path, columns: Columns, name: str) -> NDArray[np.float32]:
    values = columns[name]
    if values.dtype.kind not in "biuf" or values.ndim != 1:
        raise DataError(f"{path}: {name}: expected one number for each jet")
    return values.astype(np.float32)


def _root(path: Path) -> Columns:
    import uproot

    try:
        with uproot.open(path) as file:
            trees = [name for name in file.keys(cycle=False) if hasattr(file[name], "num_entries")]
            for name in trees:
                wanted = _wanted(file[name].keys())
                if any(branch.startswith(SCORE) for branch in wanted):
                    columns = dict(file[name].arrays(wanted, library="np"))
                    about = str(file[ABOUT]) if ABOUT in file.keys(cycle=False) else "{}"
                    return _named(path, columns, json.loads(about).get("classes", []))
    except DataError:
        raise
    except Exception as err:  # uproot raises whatever the bytes lead to
        raise _unreadable(path, "ROOT", err) from None
    raise DataError(f"{path}: no tree ({', '.join(trees) or 'there is none'}) has {SCORE} branches")


def _named(path: Path, columns: dict[str, NDArray[Any]], classes: Sequence[str]) -> Columns:
    """The same with the names of the labels, where there are numbers and the names are known."""
    labels = columns.get(TRUTH)
    if not classes or labels is None or labels.dtype.kind not in "iu":
        return columns
    check_labels(path, labels, len(classes))
    names = np.array(["".join(c if c.isalnum() else "_" for c in name) for name in classes])
    return {**columns, TRUTH: names[labels]}


def _csv(path: Path) -> Columns:
    import pyarrow.csv

    try:
        with pyarrow.csv.open_csv(path) as reader:  # of which the header is read
            wanted = _wanted(reader.schema.names)
        if not wanted:
            return {}
        options = pyarrow.csv.ConvertOptions(include_columns=wanted)
        return _of_arrow(pyarrow.csv.read_csv(path, convert_options=options))
    except (OSError, ValueError, KeyError) as err:  # pyarrow's own errors are of these kinds
        raise _unreadable(path, "CSV", err) from None


def _parquet(path: Path) -> Columns:
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            return _of_arrow(file.read(columns=_wanted(file.schema_arrow.names)))
    except (OSError, ValueError, KeyError) as err:  # pyarrow's own errors are of these kinds
        raise _unreadable(path, "parquet", err) from None


def _of_arrow(table: Any) -> Columns:
    """Numbers as they are, missing ones as NaN; everything else as objects."""
    import pyarrow as pa

    columns = {name: table[name] for name in _wanted(table.column_names)}
    return {
        name: (column.cast(pa.float32()) if pa.types.is_null(column.type) else column).to_numpy()
        for name, column in columns.items()
    }


def _unreadable(path: Path, kind: str, err: Exception) -> DataError:
    return DataError(f"{path}: not a readable {kind} file: {reason(err)[:200]}")


READERS = {".root": _root, ".csv": _csv, ".csv.gz": _csv, ".parquet": _parquet}
"""By the end of the file's name."""
