"""Whether a data file is sound: all of it is read."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jetssl_cli.data.jagged import VERSION, JaggedFile
from jetssl_cli.data.jets import JetArrays
from jetssl_cli.data.recipe import schema_of
from jetssl_cli.data.schema import Feature, Schema
from jetssl_cli.data.shuffle import checksum
from jetssl_cli.errors import DataError
from jetssl_cli.progress import progress

JETS_PER_READ = 10_000


def verify_data(path: Path) -> str:
    """Read every chunk of a data file, look at every value, and say what it holds.

    Raises:
        DataError: not a whole data file, parts that do not fit together, a label or particle class
            that is none of the schema, a value that is not finite, or jets with another checksum
            than the file tells.
        ConfigError: its recipe is none.
    """
    with JaggedFile(path) as file:
        file.check_attributes()
        schema, recipe, sources = file.schema, file.recipe, file.sources
        if schema_of(recipe) != schema:
            raise DataError(f"{path}: damaged: its schema is not that of its recipe {recipe.name}")
        total = first = 0
        with progress(f"verify {path.name}", file.num_jets, "jets") as advance:
            for jets in file.chunks(JETS_PER_READ):
                _look(path, schema, jets, first)
                total = (total + checksum(jets)) % 2**64
                first += len(jets)
                advance(len(jets))
        found = f"{total:016x}"
        if file.checksum not in (None, found):
            raise DataError(
                f"{path}: damaged: its jets have the checksum {found}, expected {file.checksum}"
            )
        return (
            f"data file, version {VERSION}, recipe {recipe.name}: {file.num_jets:,} jets of "
            f"{len(schema.classes)} classes, {file.num_constituents:,} constituents, "
            f"{len(sources):,} sources, checksum {found}"
            f"{' as merged' if file.checksum else ''}"
        )


def _look(path: Path, schema: Schema, jets: JetArrays, first: int) -> None:
    """Look at every value of some jets, the first of which has this number in the file."""
    owner = np.repeat(np.arange(len(jets)), jets.sizes)
    each = np.arange(len(jets))
    for name, numbers, count, of in (
        ("label", jets.labels, len(schema.classes), each),
        ("particle class", jets.ids, max(len(schema.ids), 1), owner),
    ):
        wrong = np.flatnonzero((numbers < 0) | (numbers >= count))
        if len(wrong):
            raise DataError(
                f"{path}: damaged: jet {first + of[wrong[0]]}: {name} {numbers[wrong[0]]} is not "
                f"in 0..{count - 1}"
            )
    _finite(path, schema.constituents, jets.features, first + owner)
    _finite(path, schema.jets, jets.jets, first + each)


def _finite(
    path: Path, columns: Sequence[Feature], table: NDArray[Any], jet_of: NDArray[np.int64]
) -> None:
    wrong = np.argwhere(~np.isfinite(table))
    if len(wrong):
        row, column = wrong[0]
        raise DataError(
            f"{path}: damaged: jet {jet_of[row]}: {columns[column].name} = {table[row, column]} is "
            "not finite"
        )
