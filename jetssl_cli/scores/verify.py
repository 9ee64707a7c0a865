"""``jetssl verify``: whether data, runs, scores and networks are what they were when written."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jetssl_cli.config import Strict
from jetssl_cli.data import jagged
from jetssl_cli.data.cache import verify_cache
from jetssl_cli.data.chunks import Rows
from jetssl_cli.data.hdf5 import (
    attributes_of,
    check_attributes,
    open_complete,
    open_foreign,
    read_texts,
    readable,
)
from jetssl_cli.data.verify import verify_data
from jetssl_cli.errors import DataError, JetSSLError, printable
from jetssl_cli.runs import checkpoint, weightfile
from jetssl_cli.runs.verify import is_run, verify_run, verify_weights
from jetssl_cli.scores import onnxfile, scorefile, trackfile, tracks, vertices
from jetssl_cli.scores.provenance import run_id, sha256

CONFIG = "config"
"""The array that is a text."""
HDF5, ONNX, WEIGHTS = ".h5", ".onnx", ".safetensors"
PICKLED = (".ckpt", ".pkl", ".pickle", ".pt", ".pth")

ROWS = 2**16
"""So many rows of a score file are looked at at a time."""

Attributes = Mapping[str, Any]
Tables = Mapping[str, Rows]


class VerifyConfig(Strict):
    """What to look at."""

    paths: tuple[Path, ...]
    """Artefacts, and folders that hold them."""


@dataclass(frozen=True)
class Finding:
    """What was found of one artefact."""

    path: Path
    told: str
    """What it holds; empty where there is an error."""
    error: JetSSLError | None = None


def verify(cfg: VerifyConfig) -> Iterator[Finding]:
    """Read all of each artefact, and say what it is or what is wrong with it, one after the other.

    A folder is that of a run, or is walked for artefacts; hidden files are left out.

    Raises:
        DataError: a path does not exist, or a folder holds no artefact.
    """
    for path in _artefacts(cfg.paths):
        try:
            finding = Finding(path, _verify(path))
        except JetSSLError as err:
            finding = Finding(path, "", err)
        yield finding


def _artefacts(paths: tuple[Path, ...]) -> list[Path]:
    found: dict[Path, Path] = {}
    for path in paths:
        if not path.exists():
            raise DataError(f"{path}: no such file or folder")
        inside = list(_inside(path)) if path.is_dir() else [path]
        if not inside:
            raise DataError(f"{path}: the folder holds no artefact of jetssl")
        found |= {one.resolve(): one for one in inside}
    return list(found.values())


def _inside(folder: Path) -> Iterator[Path]:
    """The artefacts in a folder, in order; links to other folders are not followed."""
    if is_run(folder):
        yield folder
        return
    for path in sorted(folder.iterdir()):
        if path.name.startswith("."):
            continue
        if path.is_dir():
            if not path.is_symlink():
                yield from _inside(path)
        elif path.is_file() and path.suffix in (HDF5, ONNX, WEIGHTS, *PICKLED):
            yield path


def _verify(path: Path) -> str:
    if path.is_dir():
        return verify_run(path)
    if not path.is_file():
        raise DataError(f"{path}: is no file")
    ours = path.suffix in (HDF5, ONNX, WEIGHTS)
    if path.suffix in PICKLED or (ours and weightfile.is_pickle(path)):
        raise DataError(f"{path}: is a pickle, which can run any code and is never opened")
    if path.suffix == WEIGHTS:
        return verify_cache(path) or verify_weights(path)
    if path.suffix == ONNX:
        told, about = onnxfile.verify_onnx(path)
        return f"{told}{_made_of(path, about)}"
    if path.suffix == HDF5:
        return _verify_hdf5(path)
    raise DataError(
        f"{path}: is no artefact of jetssl: its name ends in none of .h5, .onnx, .safetensors"
    )


def _verify_hdf5(path: Path) -> str:
    with open_foreign(path) as file, readable(path):
        kind = str(attributes_of(file).get("format", "none"))
    if kind == jagged.KIND:
        return verify_data(path)
    if kind not in KINDS:
        raise DataError(f"{path}: is of the format {kind!r}, which is none of jetssl")
    version, look = KINDS[kind]
    with open_complete(path, kind, version) as file, readable(path):
        about = attributes_of(file)
        check_attributes(path, about)
        if CONFIG in file:
            _check_config(path, read_texts(file[CONFIG])[0], about)
        told = look(path, about, {name: Rows(file[name]) for name in file if name != CONFIG})
    return f"{told}{_made_of(path, about)}"


def _scores(path: Path, attributes: Attributes, tables: Tables) -> str:
    classes = scorefile.names_of(path, str(attributes.get("classes", "[]")))
    _jets(path, attributes, tables, len(classes), ("scores", "logits"))
    for first, (scores, logits) in _parts(tables["scores"], tables["logits"]):
        scorefile.check_scores(path, scores, classes, before=first)
        _finite(path, "logits", logits, first)
        powers = np.exp(logits - logits.max(axis=1, keepdims=True))
        wanted = powers / powers.sum(axis=1, keepdims=True)
        if not np.allclose(scores, wanted, atol=scorefile.SUM_TOLERANCE):
            jet = first + int(np.abs(scores - wanted).max(axis=1).argmax())
            raise DataError(f"{path}: damaged: jet {jet}: its scores are not those of its logits")
    task = f"of the task {printable(str(attributes['task']))}, " if "task" in attributes else ""
    told = f"{task}{len(tables['scores']):,} jets of {len(classes)} classes"
    return f"score file, version {scorefile.VERSION}, {told}"


def _vectors(path: Path, attributes: Attributes, tables: Tables) -> str:
    classes = scorefile.names_of(path, str(attributes.get("classes", "[]")))
    _jets(path, attributes, tables, len(classes), ("vectors",))
    for first, (vectors,) in _parts(tables["vectors"]):
        _finite(path, "vectors", vectors, first)
    number, width = tables["vectors"].shape
    return (
        f"vectors, version {scorefile.VERSION}, {number:,} jets of {len(classes)} classes, "
        f"{width} numbers each"
    )


def _tracks(path: Path, attributes: Attributes, tables: Tables) -> str:
    task = str(attributes.get("task"))
    names = {tracks.TASK: ("scores",), vertices.TASK: ("vertices",)}.get(task)
    if names is None:
        raise DataError(f"{path}: is of the task {task!r}, which is none with tracks")
    each = {n: tables[n] for n in ("truth", *names, "displaced") if n in tables}
    offsets = trackfile.offsets_of(path, {"offsets": tables["offsets"], **each})
    classes = scorefile.names_of(path, str(attributes.get("jet_classes", "[]")))
    _jets(path, attributes, tables, len(classes), (), num_jets=len(offsets) - 1)
    if task == tracks.TASK:
        origins = scorefile.names_of(path, str(attributes.get("classes", "[]")))
        for first, (scores, *_) in _parts(*(each[name] for name in ("scores", "truth"))):
            scorefile.check_scores(path, scores, origins, before=first)
    else:
        _vertices(path, offsets, each, tables["pairs"])
    return (
        f"score file, version {trackfile.VERSION}, of the task {task}, {len(offsets) - 1:,} jets "
        f"with {len(each['truth']):,} tracks"
    )


def _vertices(path: Path, offsets: NDArray[np.int64], each: Tables, pairs: Rows) -> None:
    """Check vertices and pairs, and read the other arrays that have a row for each track."""
    sizes = np.diff(offsets)
    expected = int((sizes * (sizes - 1) // 2).sum())
    between = (((part >= 0) & (part <= 1)).all() for _, (part,) in _parts(pairs))
    if len(pairs) != expected or not all(between):
        raise DataError(f"{path}: damaged: expected {expected} scores of pairs, from 0 to 1")
    for first, parts in _parts(*each.values()):
        number = parts[list(each).index("vertices")]
        owner = np.searchsorted(offsets, first + np.arange(len(number)), side="right") - 1
        if not ((number >= 0) & (number < sizes[owner])).all():
            raise DataError(
                f"{path}: damaged: a vertex has a number that its jet has no tracks for"
            )


KINDS = {
    scorefile.FORMAT: (scorefile.VERSION, _scores),
    scorefile.VECTORS_FORMAT: (scorefile.VERSION, _vectors),
    trackfile.FORMAT: (trackfile.VERSION, _tracks),
}
"""Format -> its version, and what looks at it."""


def _parts(*tables: Rows) -> Iterator[tuple[int, list[NDArray[Any]]]]:
    """The number of a row, and the rows of each table that begin there."""
    for first in range(0, len(tables[0]), ROWS):
        yield first, [table.read(first, first + ROWS) for table in tables]


def _jets(
    path: Path,
    attributes: Attributes,
    tables: Tables,
    num_classes: int,
    answers: Sequence[str],
    num_jets: int | None = None,
) -> None:
    """Labels, jet features and answers are those of one number of jets; labels may be unknown."""
    lengths = {name: len(tables[name]) for name in ("labels", "jets", *answers)}
    lengths |= {"offsets": num_jets} if num_jets is not None else {}
    if len(set(lengths.values())) > 1:
        listed = ", ".join(f"{name} {length}" for name, length in lengths.items())
        raise DataError(f"{path}: damaged: different numbers of jets: {listed}")
    if lengths["labels"] == 0:
        raise DataError(f"{path}: holds no jets")
    labels = tables["labels"].read()
    if not (labels == -1).all():
        scorefile.check_labels(path, labels, num_classes)
    columns, shape = json.loads(str(attributes.get("jet_columns", "[]"))), tables["jets"].shape
    if len(shape) != 2 or shape[1] != len(columns):
        raise DataError(f"{path}: damaged: jets has the shape {shape} for {len(columns)} names")
    for first, (jets,) in _parts(tables["jets"]):
        _finite(path, "jets", jets, first)


def _finite(path: Path, name: str, table: NDArray[Any], first: int) -> None:
    wrong = np.flatnonzero(~np.isfinite(table).all(axis=1))
    if len(wrong):
        raise DataError(
            f"{path}: damaged: jet {first + wrong[0]}: a number of {name} is not finite"
        )


def _check_config(path: Path, config: str, attributes: Attributes) -> None:
    """Raises DataError if a score file has another configuration than that of its run."""
    wanted = attributes["run_id"]
    if run_id(config, str(attributes["weights_hash"])) != wanted:
        raise DataError(f"{path}: damaged: its configuration is not that of the run {wanted}")


def _made_of(path: Path, attributes: Attributes) -> str:
    """Compare hashes with the data and weights that it was made of, as far as they are there.

    Raises:
        DataError: they are others.
    """
    run, told = Path(str(attributes.get("run", ""))), ""
    weights = [run / name for name in (checkpoint.MODEL, checkpoint.BACKBONE)]
    places = {"data": [Path(str(attributes.get("data", "")))], "weights": weights}
    for what, files in places.items():
        wanted = attributes.get(f"{what}_hash")
        there = [file for file in files if file.is_file()]
        if wanted is None:
            continue
        if not there:
            told += f", {what} not there to compare"
        elif wanted not in map(sha256, there):
            raise DataError(
                f"{path}: was made of other {what} than {there[0]} now holds: expected the "
                f"SHA-256 {wanted}"
            )
        else:
            told += f", {what} unchanged"
    return told
