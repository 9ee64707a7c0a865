"""Writing data files: jets in the order in which they come, visible only when all are there.

The format is described in ``jagged.py``, which reads it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

import numpy as np

from jetssl_cli.data.hdf5 import Table, create
from jetssl_cli.data.jagged import JETS_PER_CHUNK, KIND, VERSION, Precision
from jetssl_cli.data.jets import JetArrays, concatenate
from jetssl_cli.data.recipe import Recipe, schema_of
from jetssl_cli.data.schema import Schema


class JaggedWriter:
    """Appends jets to a file that is being written.

    They are written in parts of ``JETS_PER_CHUNK``: in which order the chunks of the arrays lie in
    the file does not depend on how many jets are appended at a time.
    """

    def __init__(self, table: Table, schema: Schema, precision: Precision) -> None:
        self._table, self._schema, self._precision = table, schema, precision
        self._waiting: list[JetArrays] = []
        self._jets = self._rows = 0
        table.append("offsets", np.zeros(1, np.int64), JETS_PER_CHUNK)

    def note_left_out(self, counts: Mapping[str, int]) -> None:
        """Note how many jets and constituents were left out, and why."""
        self._table.describe({"left_out": json.dumps(counts)})

    def note_source(self, identity: str) -> None:
        """Note which file the jets come from, beyond its name."""
        self._table.append_text("identities", [identity])

    def note_checksum(self, checksum: int) -> None:
        """Note the checksum of all jets of the file (``shuffle.checksum``)."""
        self._table.describe({"checksum": f"{checksum:016x}"})

    def append(self, jets: JetArrays) -> None:
        """Write these jets behind those already written."""
        assert jets.features.dtype == self._precision
        first = JETS_PER_CHUNK - self._jets % JETS_PER_CHUNK
        edges = [0, *range(first, len(jets), JETS_PER_CHUNK), len(jets)]
        for start, stop in pairwise(edges):
            self._waiting.append(jets.between(start, stop))
            self._jets += stop - start
            if self._jets % JETS_PER_CHUNK == 0:
                self.flush()

    def flush(self) -> None:
        """Write those that wait for others."""
        if not self._waiting:
            return
        jets = concatenate(self._waiting)
        self._waiting = []
        self._table.append("offsets", self._rows + jets.offsets[1:])
        self._table.append("jets/features", jets.jets, JETS_PER_CHUNK)
        self._table.append("jets/labels", jets.labels, JETS_PER_CHUNK)
        self._table.append("constituents/features", jets.features)
        if self._schema.ids:
            self._table.append("constituents/id", jets.ids)
        if self._schema.truth:
            self._table.append("constituents/truth", jets.truth)
        self._rows += len(jets.ids)


@contextmanager
def write(
    path: Path,
    recipe: Recipe,
    sources: list[str],
    *,
    precision: Precision = "float32",
    verify: Callable[[Path], None] | None = None,
) -> Iterator[JaggedWriter]:
    """Write a data file; it appears under ``path`` only when the block ends without an error.

    ``verify`` is given the complete file before it appears, and may refuse it.
    """
    with create(path, KIND, VERSION, verify) as table:
        table.describe(
            {
                "recipe": recipe.text,
                "schema": schema_of(recipe).model_dump_json(),
                "precision": precision,
            }
        )
        table.append_text("sources", sources)
        writer = JaggedWriter(table, schema_of(recipe), precision)
        yield writer
        writer.flush()
