"""The score file of a task on constituents: what a network answers for each of them or each pair.

Layout (HDF5, format "jetssl-track-scores", version 1)::

    /         attrs: task, jet_classes, jet_columns (JSON lists), and what ``provenance.py`` tells
    /offsets  (J + 1,) int64    jet j has the rows offsets[j]:offsets[j + 1]
    /truth    (T,)     int32    negative where unknown
    /labels   (J,)     int64    index into ``jet_classes``
    /jets     (J, G)   float32  jet features, in the order of ``jet_columns``
    of track-origin:            attrs: classes (JSON list of names)
    /scores   (T, C)   float32  softmax, in the order of ``classes``
    of vertex:                  attrs: threshold
    /vertices (T,)     int32    number of the vertex in its jet; that of the first track is 0
    /pairs    (P,)     float32  score of the pairs (0, 1), (0, 2), (1, 2), (0, 3), ... of each jet
    /displaced  (T,)   uint8    1 where |d0| > 3 d0_err; where the data have both
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from jetssl_cli.batch import JetBatch
from jetssl_cli.data.chunks import Rows
from jetssl_cli.data.hdf5 import attributes_of, create, open_complete, readable
from jetssl_cli.data.schema import Schema
from jetssl_cli.data.stream import JetStream
from jetssl_cli.errors import DataError, RunError, printable
from jetssl_cli.objectives.downstream import Downstream
from jetssl_cli.progress import progress
from jetssl_cli.runs.checkpoint import MODEL, match
from jetssl_cli.runs.finetune_config import FinetuneConfig
from jetssl_cli.scores.provenance import provenance

FORMAT = "jetssl-track-scores"
VERSION = 1
TYPES = {
    "offsets": "int64",
    "truth": "int32",
    "scores": "float32",
    "vertices": "int32",
    "displaced": "uint8",
}
"""Of the arrays that are evaluated."""


@dataclass(frozen=True, eq=False)
class TrackSet:
    """What is evaluated of one score file."""

    path: Path
    run: str
    offsets: NDArray[np.int64]
    truth: NDArray[np.int32]
    arrays: Mapping[str, NDArray[Any]]
    """The arrays of the task."""
    attributes: Mapping[str, Any]

    @property
    def num_jets(self) -> int:
        """Number of jets."""
        return len(self.offsets) - 1

    @property
    def owner(self) -> NDArray[np.int64]:
        """The jet of each row, (T,)."""
        return np.repeat(np.arange(self.num_jets), np.diff(self.offsets))


def export_tracks(
    loaded: tuple[FinetuneConfig, Schema, Downstream],
    files: tuple[Path, Path, Path],
    answer: Callable[[JetBatch], Mapping[str, torch.Tensor]],
    *,
    batch_size: int,
    attributes: Mapping[str, str],
) -> int:
    """Write what ``answer`` says of every batch, with the truth; returns how many jets these are.

    Args:
        loaded: what ``load_finetuned`` returns.
        files: folder of the run, file of the jets, the file to write.
        answer: array of the file -> rows.
        batch_size: jets at a time.
        attributes: those of the task.

    Raises:
        DataError: the data cannot be read or lack the truth, or the file not be written.
        RunError: the data do not fit the run, or the network answers with what is not finite.
    """
    (cfg, schema, network), (run, data, out) = loaded, files
    stream = JetStream(
        [data],
        batch_size=batch_size,
        max_constituents=cfg.data.max_constituents,
        truth=network.truth,
    )
    match(stream.schema, schema, str(data), run)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    network.to(device)
    described = {
        "task": cfg.objective.name,
        **provenance(run, MODEL, data, "32").attributes(),
        "jet_classes": json.dumps(stream.schema.classes),
        "jet_columns": json.dumps([column.name for column in stream.schema.jets]),
    }
    with (
        create(out, FORMAT, VERSION) as table,
        progress(f"export {run.name}", stream.num_jets, "jets") as advance,
        torch.inference_mode(),
    ):
        table.describe({**described, **attributes})
        table.append("offsets", np.zeros(1, np.int64))
        rows = 0
        for batch in stream:
            assert batch.truth is not None
            found = answer(batch.to(device))
            if not all(value.isfinite().all() for value in found.values()):
                raise RunError(f"{run}: the network answers with numbers that are not finite")
            table.append("offsets", rows + batch.packing.host.numpy()[1:])
            table.append("truth", batch.truth[:, 0].numpy().astype(np.int32))
            table.append("labels", batch.labels.numpy())
            table.append("jets", batch.jets.numpy())
            for name, value in found.items():
                table.append(name, value.cpu().numpy())
            rows += batch.packing.total
            advance(batch.packing.num_jets)
    return stream.num_jets


def read_tracks(path: Path, task: str, *names: str, optional: tuple[str, ...] = ()) -> TrackSet:
    """Read the score file of a task, and these arrays with a row for each track.

    Raises:
        DataError: it is not a whole score file of this task, or its content contradicts itself.
    """
    with open_complete(path, FORMAT, VERSION) as file, readable(path):
        about = attributes_of(file)
        tables = {n: Rows(file[n]) for n in ("offsets", "truth", *names, *optional) if n in file}
        if about.get("task") != task or not tables.keys() >= set(names):
            raise DataError(f"{path}: holds no scores of the task {task}")
        offsets = offsets_of(path, tables)
        truth = tables["truth"].read()
        arrays = {n: tables[n].read() for n in (*names, *optional) if n in tables}
        run = printable(str(about["run"]))
    return TrackSet(path, run, offsets, truth, arrays, about)


def offsets_of(path: Path, tables: Mapping[str, Rows]) -> NDArray[np.int64]:
    """Read the offsets of the jets, and check that arrays of tracks have their types and lengths.

    Raises:
        DataError: they do not.
    """
    for name, table in tables.items():
        if table.dtype != TYPES[name] or len(table.shape) != 1 + (name == "scores"):
            raise DataError(
                f"{path}: damaged: {name} is {table.dtype} {table.shape}, expected a row of "
                f"{TYPES[name]} for each track"
            )
    offsets: NDArray[np.int64] = tables["offsets"].read()
    if len(offsets) == 1 and not len(tables["truth"]):
        raise DataError(f"{path}: holds no jets")
    if len(offsets) < 2 or offsets[0] != 0 or (np.diff(offsets) < 0).any():
        raise DataError(f"{path}: damaged: its offsets are not those of any jets")
    for name, table in tables.items():
        if name != "offsets" and len(table) != offsets[-1]:
            raise DataError(
                f"{path}: damaged: {len(table)} tracks have {name}, expected {offsets[-1]}"
            )
    return offsets
