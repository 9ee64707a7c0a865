"""The file format: jets end to end in HDF5, without padding. Version 1.

/                       attributes: format, version, recipe (YAML), schema (JSON), precision,
/                       dropped and cut (constituents left out), complete (written last)
/offsets                (J + 1,) int64; jet j has the rows offsets[j]:offsets[j + 1]
/jets/features          (J, G) float32          /jets/labels  (J,) int16
/constituents/features  (T, F) float32          /constituents/id  (T,) uint8
/sources                names of the files that the jets come from
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jetssl_cli.config import to_yaml
from jetssl_cli.data.hdf5 import Table, create, open_complete, readable
from jetssl_cli.data.recipe import Recipe, Schema, parse_recipe, schema_of
from jetssl_cli.errors import DataError

KIND = "jetssl-jagged"
VERSION = 1
FIELDS = ("features", "ids", "sizes", "jets", "labels")
"""The arrays that jets consist of."""


@dataclass(frozen=True)
class JetArrays:
    """J jets as numpy arrays; the constituents of all jets lie end to end."""

    features: NDArray[np.float32]
    """Constituent features, (T, F)."""
    ids: NDArray[np.uint8]
    """Particle classes, (T,)."""
    sizes: NDArray[np.int64]
    """Constituents of each jet, (J,)."""
    jets: NDArray[np.float32]
    """Jet features, (J, G)."""
    labels: NDArray[np.int16]
    """Class of each jet, (J,)."""

    def __len__(self) -> int:
        return len(self.sizes)

    @cached_property
    def offsets(self) -> NDArray[np.int64]:
        """(J + 1,): where each jet begins."""
        return np.concatenate([[0], np.cumsum(self.sizes)])

    def take(self, order: NDArray[np.int64]) -> JetArrays:
        """The chosen jets, in this order."""
        sizes = self.sizes[order]
        ends = np.cumsum(sizes)
        rows = np.arange(sizes.sum()) + np.repeat(self.offsets[order] - (ends - sizes), sizes)
        return JetArrays(
            self.features[rows], self.ids[rows], sizes, self.jets[order], self.labels[order]
        )

    def slice(self, start: int, stop: int) -> JetArrays:
        """The jets ``start:stop``, without a copy."""
        rows = slice(self.offsets[start], self.offsets[stop])
        jets = slice(start, stop)
        return JetArrays(
            self.features[rows],
            self.ids[rows],
            self.sizes[jets],
            self.jets[jets],
            self.labels[jets],
        )

    def first(self, most: int) -> JetArrays:
        """The same jets with at most the first ``most`` constituents of each."""
        if not len(self) or self.sizes.max() <= most:
            return self
        rank = np.arange(len(self.ids)) - np.repeat(self.offsets[:-1], self.sizes)
        keep = rank < most
        sizes = np.minimum(self.sizes, most)
        return JetArrays(self.features[keep], self.ids[keep], sizes, self.jets, self.labels)


def concatenate(parts: Sequence[JetArrays]) -> JetArrays:
    """All jets of the parts, one part after the other."""
    if len(parts) == 1:
        return parts[0]
    return JetArrays(*(np.concatenate([getattr(part, name) for part in parts]) for name in FIELDS))


class JaggedWriter:
    """Appends jets to a file that is being written."""

    def __init__(self, table: Table) -> None:
        self._table = table
        self._rows = 0
        table.append("offsets", np.zeros(1, np.int64))

    def describe(self, counts: Mapping[str, int]) -> None:
        """Note numbers about how the file was made."""
        self._table.describe(counts)

    def append(self, jets: JetArrays) -> None:
        """Write these jets behind those already written."""
        self._table.append("offsets", self._rows + jets.offsets[1:])
        self._table.append("jets/features", jets.jets)
        self._table.append("jets/labels", jets.labels)
        self._table.append("constituents/features", jets.features)
        self._table.append("constituents/id", jets.ids)
        self._rows += len(jets.ids)


@contextmanager
def write(
    path: Path,
    recipe: Recipe,
    sources: list[str],
    verify: Callable[[Path], None] | None = None,
) -> Iterator[JaggedWriter]:
    """Write a data file; it appears under ``path`` only when the block ends without an error.

    ``verify`` is given the complete file before it appears, and may refuse it.
    """
    with create(path, KIND, VERSION, verify) as table:
        table.describe(
            {
                "recipe": to_yaml(recipe),
                "schema": schema_of(recipe).model_dump_json(),
                "precision": "float32",
            }
        )
        table.append_text("sources", sources)
        yield JaggedWriter(table)


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
                self.num_jets = len(self._file["offsets"]) - 1
                self._check_lengths()
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
        return parse_recipe(self._attribute("recipe"), str(self.path))

    @cached_property
    def schema(self) -> Schema:
        """What the columns mean."""
        try:
            return Schema.model_validate_json(self._attribute("schema"))
        except ValueError:
            raise DataError(f"{self.path}: damaged: its schema cannot be read") from None

    @property
    def sources(self) -> list[str]:
        """The files that the jets come from."""
        with readable(self.path):
            return [str(name) for name in self._file["sources"].asstr()[:]]

    @property
    def num_bytes(self) -> int:
        """Bytes that all jets take in memory."""
        with readable(self.path):
            names = ("constituents/features", "constituents/id", "jets/features", "jets/labels")
            return 8 * self.num_jets + sum(int(self._file[name].nbytes) for name in names)

    def counts(self, *names: str) -> dict[str, int]:
        """Numbers noted when the file was made; 0 where there is none."""
        return {name: int(self._file.attrs.get(name, 0)) for name in names}

    def labels(self) -> NDArray[np.int16]:
        """The class of every jet.

        Raises:
            DataError: a label is not the index of a class.
        """
        with readable(self.path):
            labels: NDArray[np.int16] = self._file["jets/labels"][:]
        if len(labels) and not 0 <= labels.min() <= labels.max() < len(self.schema.classes):
            raise DataError(f"{self.path}: damaged: a label is not the index of a class")
        return labels

    def read(self, start: int = 0, stop: int | None = None) -> JetArrays:
        """Read the jets ``start:stop`` (one contiguous slice per array)."""
        stop = self.num_jets if stop is None else min(stop, self.num_jets)
        with readable(self.path):
            offsets: NDArray[np.int64] = self._file["offsets"][start : stop + 1]
            sizes = np.diff(offsets)
            if (sizes < 0).any():
                raise DataError(f"{self.path}: damaged: offsets decrease after jet {start}")
            rows = slice(int(offsets[0]), int(offsets[-1]))
            return JetArrays(
                self._file["constituents/features"][rows],
                self._file["constituents/id"][rows],
                sizes,
                self._file["jets/features"][start:stop],
                self._file["jets/labels"][start:stop],
            )

    def chunks(self, size: int) -> Iterator[JetArrays]:
        """All jets in order, at most ``size`` at a time."""
        for start in range(0, self.num_jets, size):
            yield self.read(start, start + size)

    def _attribute(self, name: str) -> str:
        value: Any = self._file.attrs.get(name)
        if not isinstance(value, str):
            raise DataError(f"{self.path}: damaged: the attribute {name!r} is missing")
        return value

    def _check_lengths(self) -> None:
        if self._file["offsets"][0] != 0:
            raise DataError(f"{self.path}: damaged: offsets do not begin at 0")
        shapes = {
            "jets/features": (self.num_jets, len(self.schema.jets)),
            "jets/labels": (self.num_jets,),
            "constituents/features": (
                int(self._file["offsets"][-1]),
                len(self.schema.constituents),
            ),
            "constituents/id": (int(self._file["offsets"][-1]),),
        }
        for name, shape in shapes.items():
            if self._file[name].shape != shape:
                raise DataError(
                    f"{self.path}: damaged: {name} has the shape {self._file[name].shape}, "
                    f"expected {shape}"
                )


def find(sources: Sequence[Path], pattern: str) -> list[Path]:
    """All files that the sources name, each once, sorted by their full path.

    Raises:
        DataError: no source, one that is missing, or a folder that holds no such file.
    """
    if not sources:
        raise DataError("no source was given")
    found: dict[Path, Path] = {}
    for source in sources:
        if not source.exists():
            raise DataError(f"{source}: no such file or folder")
        files = list(source.rglob(pattern)) if source.is_dir() else [source]
        if not files:
            raise DataError(f"{source}: the folder holds no {pattern} file")
        found.update({file.resolve(): file for file in files})
    return [found[key] for key in sorted(found)]
