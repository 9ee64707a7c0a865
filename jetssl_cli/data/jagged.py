"""The file format: jets end to end in HDF5, without padding. Version 1.

/                       attributes: format, version, recipe (YAML), schema (JSON), precision,
/                       left_out (JSON: reason -> number), checksum (of a merged file),
/                       attributes_hash, complete (written last)
/offsets                (J + 1,) int64; jet j has the rows offsets[j]:offsets[j + 1]
/jets/features          (J, G) float32          /jets/labels  (J,) int16
/constituents/features  (T, F) float32 or float16, as ``precision`` says
/constituents/id        (T,) uint8      where the data set has particle classes
/constituents/truth     (T, K) int32    where it has truth about each constituent
/sources                names of the files that the jets come from
/identities             (1,) size of the converted file, and a hash of its ends
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from jetssl_cli.data.chunks import Rows
from jetssl_cli.data.hdf5 import (
    attributes_of,
    check_attributes,
    open_complete,
    read_texts,
    readable,
)
from jetssl_cli.data.jets import JetArrays, concatenate
from jetssl_cli.data.recipe import Recipe, parse_recipe
from jetssl_cli.data.schema import Schema
from jetssl_cli.errors import ConfigError, DataError

KIND = "jetssl-jagged"
VERSION = 1
JETS_PER_CHUNK = 1_000
"""As many as a shuffling reader takes at once."""
TYPES = {
    "offsets": "int64",
    "jets/features": "float32",
    "jets/labels": "int16",
    "constituents/id": "uint8",
    "constituents/truth": "int32",
}
"""Of the arrays but the constituent features, of which ``precision`` tells it."""
JETS_BETWEEN = 32
"""Single jets that are not further from each other are read in one go."""
Precision = Literal["float32", "float16"]
"""Type of the constituent features in the file."""


@dataclass(frozen=True)
class StoredArray:
    """How one array is stored."""

    type: str
    memory: int
    """Bytes without compression."""
    stored: int
    """Bytes in the file."""


class JaggedFile:
    """A data file open for reading; a context manager.

    Raises:
        DataError: not a complete file of this format, or its parts do not fit together.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = open_complete(path, KIND, VERSION)
        try:
            with readable(path):
                self._offsets = Rows(self._file["offsets"])
                self.num_jets = len(self._offsets) - 1
                self._arrays = {name: Rows(self._file[name]) for name in self._shapes}
                self._check_arrays()
        except DataError:
            self._file.close()
            raise

    def __enter__(self) -> JaggedFile:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    @cached_property
    def recipe(self) -> Recipe:
        """The recipe by which the file was made."""
        try:
            return parse_recipe(self.recipe_text, f"{self.path}: damaged: its recipe")
        except ConfigError as err:
            raise DataError(str(err).partition("\n")[0]) from None

    @property
    def recipe_text(self) -> str:
        """The YAML text of that recipe."""
        return self._attribute("recipe")

    @cached_property
    def schema(self) -> Schema:
        """What the columns mean."""
        try:
            return Schema.model_validate_json(self._attribute("schema"))
        except ValueError:
            raise DataError(f"{self.path}: damaged: its schema cannot be read") from None

    @property
    def precision(self) -> Precision:
        """Type of the constituent features."""
        return "float16" if self._attribute("precision") == "float16" else "float32"

    @property
    def sources(self) -> list[str]:
        """The files that the jets come from."""
        with readable(self.path):
            return read_texts(self._file["sources"])

    @property
    def source_identity(self) -> str | None:
        """What tells the file that the jets come from from others of its name, if noted."""
        with readable(self.path):
            return read_texts(self._file["identities"])[0] if "identities" in self._file else None

    @property
    def num_constituents(self) -> int:
        """Constituents of all jets."""
        return self._shapes["constituents/features"][0]

    @property
    def num_bytes(self) -> int:
        """Bytes that all jets take in memory."""
        return 8 * self.num_jets + sum(array.num_bytes for array in self._arrays.values())

    @property
    def arrays(self) -> dict[str, StoredArray]:
        """How each array is stored."""
        with readable(self.path):
            return {
                name: StoredArray(
                    type=str(array.dtype), memory=array.num_bytes, stored=array.stored
                )
                for name, array in {"offsets": self._offsets, **self._arrays}.items()
            }

    @property
    def left_out(self) -> dict[str, int]:
        """What was left out when the file was made: reason -> number."""
        with readable(self.path):
            found = json.loads(self._about.get("left_out", "{}"))
            return {str(reason): int(number) for reason, number in found.items()}

    def check_attributes(self) -> None:
        """Raises DataError if the attributes are not those that were written."""
        with readable(self.path):
            check_attributes(self.path, self._about)

    @property
    def checksum(self) -> str | None:
        """That of all jets (``shuffle.checksum``), in a file that a merge has made."""
        return self._attribute("checksum") if "checksum" in self._about else None

    def labels(self, start: int = 0, stop: int | None = None) -> NDArray[np.int16]:
        """The class of each of the jets ``start:stop``; of all jets if nothing is said.

        Raises:
            DataError: a label is not the index of a class.
        """
        with readable(self.path):
            labels: NDArray[np.int16] = self._arrays["jets/labels"].read(start, stop)
        if len(labels) and not 0 <= labels.min() <= labels.max() < len(self.schema.classes):
            raise DataError(f"{self.path}: damaged: a label is not the index of a class")
        return labels

    def read(self, start: int = 0, stop: int | None = None, *, truth: bool = True) -> JetArrays:
        """Read the jets ``start:stop`` (one contiguous slice per array), with or without truth."""
        stop = self.num_jets if stop is None else min(stop, self.num_jets)
        with readable(self.path):
            offsets: NDArray[np.int64] = self._offsets.read(start, stop + 1)
            sizes = np.diff(offsets)
            if (sizes < 0).any():
                raise DataError(f"{self.path}: damaged: offsets decrease after jet {start}")
            rows, jets = (int(offsets[0]), int(offsets[-1])), (start, stop)
            count = rows[1] - rows[0]
            absent = np.zeros((count, 0), np.int32)
            return JetArrays(
                self._arrays["constituents/features"].read(*rows),
                self._read("constituents/id", rows, np.zeros(count, np.uint8)),
                self._read("constituents/truth", rows, absent) if truth else absent,
                sizes,
                self._arrays["jets/features"].read(*jets),
                self._arrays["jets/labels"].read(*jets),
            )

    def take(self, jets: NDArray[np.int64], *, truth: bool = False) -> JetArrays:
        """Read the jets with these ascending numbers; others only where they lie among them."""
        if not len(jets):
            return self.read(0, 0, truth=truth)
        parts = np.split(jets, np.flatnonzero(np.diff(jets) > JETS_BETWEEN) + 1)
        spans = ((p, self.read(int(p[0]), int(p[-1]) + 1, truth=truth)) for p in parts)
        return concatenate([found.take(p - p[0]) for p, found in spans])

    def read_jets(self, start: int, stop: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Sizes (J,) and jet features (J, G) of the jets ``start:stop``, nothing else."""
        with readable(self.path):
            sizes: NDArray[np.int64] = np.diff(self._offsets.read(start, stop + 1))
            return sizes, self._arrays["jets/features"].read(start, stop)

    def chunks(self, size: int) -> Iterator[JetArrays]:
        """All jets in order, at most ``size`` at a time."""
        for start in range(0, self.num_jets, size):
            yield self.read(start, start + size)

    @cached_property
    def _about(self) -> dict[str, Any]:
        with readable(self.path):
            return attributes_of(self._file)

    def _attribute(self, name: str) -> str:
        value: Any = self._about.get(name)
        if not isinstance(value, str):
            raise DataError(f"{self.path}: damaged: the attribute {name!r} is missing")
        return value

    def _read(self, name: str, rows: tuple[int, int], absent: NDArray[Any]) -> NDArray[Any]:
        """These rows of an array that not every data set has."""
        return self._arrays[name].read(*rows) if name in self._arrays else absent

    @cached_property
    def _shapes(self) -> dict[str, tuple[int, ...]]:
        """The arrays that the file must have, beside its offsets."""
        constituents, schema = int(self._offsets.read(self.num_jets)[-1]), self.schema
        shapes: dict[str, tuple[int, ...]] = {
            "jets/features": (self.num_jets, len(schema.jets)),
            "jets/labels": (self.num_jets,),
            "constituents/features": (constituents, len(schema.constituents)),
        }
        if schema.ids:
            shapes["constituents/id"] = (constituents,)
        if schema.truth:
            shapes["constituents/truth"] = (constituents, len(schema.truth))
        return shapes

    def _check_arrays(self) -> None:
        if self._offsets.read(0, 1)[0] != 0:
            raise DataError(f"{self.path}: damaged: offsets do not begin at 0")
        for name, shape in self._shapes.items():
            if self._arrays[name].shape != shape:
                raise DataError(
                    f"{self.path}: damaged: {name} has the shape {self._arrays[name].shape}, "
                    f"expected {shape}"
                )
        types = {**TYPES, "constituents/features": self.precision}
        for name, array in {"offsets": self._offsets, **self._arrays}.items():
            if array.dtype != types[name]:
                raise DataError(
                    f"{self.path}: damaged: {name} is {array.dtype}, expected {types[name]}"
                )
