"""What features are fitted on: the first jets of some files, and what these jets are known by."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache, cached_property
from pathlib import Path

import numpy as np

from jetssl_cli.data import order
from jetssl_cli.data.cache import digest
from jetssl_cli.data.facts import known
from jetssl_cli.data.jagged import JaggedFile
from jetssl_cli.data.jets import JetArrays
from jetssl_cli.data.schema import Schema
from jetssl_cli.errors import DataError

JETS_PER_READ = 10_000
PROBES = 32
JETS_PER_PROBE = 64
"""Of each file, the constituents of so many times so many jets enter the fingerprint."""


def look(files: Sequence[Path], *, apart: bool = True) -> tuple[Schema, list[int]]:
    """The schema that the files share, and the number of jets in each.

    Raises:
        DataError: a file cannot be read, has other columns or classes than the first, or, where
            they are to be ``apart``, is named twice: its jets would count twice.
    """
    schema: Schema | None = None
    sizes = []
    seen: set[Path] = set()
    for path in files:
        if apart and path.resolve() in seen:
            raise DataError(f"{path}: is named twice")
        seen.add(path.resolve())
        found, num_jets = _header(path)
        if schema is not None and found != schema:
            raise DataError(f"{path}: has other columns or classes than {files[0]}")
        schema = found
        sizes.append(num_jets)
    if schema is None:
        raise DataError("no data file was given")
    return schema, sizes


class Sample:
    """The first jets of the files taken together, with the first constituents of each."""

    def __init__(
        self,
        files: Sequence[Path],
        *,
        num_jets: int | None = None,
        max_constituents: int | None = None,
    ) -> None:
        """Look at the files.

        Args:
            files: jagged files of one schema.
            num_jets: take at most so many jets; all if None.
            max_constituents: take at most so many constituents of a jet; all if None.

        Raises:
            DataError: a file cannot be read, they do not fit together, or hold no jets.
        """
        self.files = tuple(files)
        self.max_constituents = max_constituents
        self.schema, sizes = look(self.files)
        self.sizes = order.clamp(sizes, num_jets)
        self.is_all = self.sizes == sizes
        if self.num_jets == 0:
            raise DataError(f"{self.name}: holds no jets")

    def first(self, num_jets: int) -> Sample:
        """The first jets of the sample."""
        return Sample(
            self.files,
            num_jets=min(num_jets, self.num_jets),
            max_constituents=self.max_constituents,
        )

    @property
    def name(self) -> str:
        """The files, as an error message calls them."""
        more = len(self.files) - 1
        return f"{self.files[0]}{f' and {more} more' if more else ''}"

    @property
    def num_jets(self) -> int:
        """Jets of the sample."""
        return sum(self.sizes)

    def only_class(self) -> str | None:
        """The class of all jets of the sample, where they have one.

        Raises:
            DataError: a file cannot be read.
        """
        found: set[int] = set()
        for file, part in self._parts():
            found.update(np.unique(file.labels(part.start, part.stop)).tolist())
            if len(found) > 1:
                return None
        return self.schema.classes[found.pop()]

    @cached_property
    def num_constituents(self) -> int:
        """Constituents of the sample."""
        most = self.max_constituents
        total = 0
        for file, part in self._parts():
            sizes, _ = file.read_jets(part.start, part.stop)
            total += int((sizes if most is None else np.minimum(sizes, most)).sum())
        return total

    def chunks(self) -> Iterator[JetArrays]:
        """The jets of the sample in order, ``JETS_PER_READ`` at a time."""
        for file, part in self._parts():
            jets = file.read(part.start, part.stop)
            yield jets if self.max_constituents is None else jets.first(self.max_constituents)

    @cached_property
    def fingerprint(self) -> str:
        """A digest that tells samples apart by what is in them, not by name or date of the files.

        It covers what the columns mean, the size and the jet features of every jet, and the
        constituents, their truth and the labels of jets spread evenly over each file. So it is
        cheap, yet the same jets converted in another way, by a mended formula for example, have
        another one.
        """
        probes: list[str] = []
        jets: list[str] = []
        for path, size in zip(self.files, self.sizes, strict=True):
            found = _digests(path, size)
            of_jets = len(found) - len(_starts(size))
            probes += found[:of_jets]
            jets += found[of_jets:]
        return digest(str(self.max_constituents), *probes, *jets)

    def _parts(self) -> Iterator[tuple[JaggedFile, order.Range]]:
        for index, (path, size) in enumerate(zip(self.files, self.sizes, strict=True)):
            with JaggedFile(path) as file:
                for start in _starts(size):
                    yield file, order.Range(index, start, min(start + JETS_PER_READ, size))


def _starts(size: int) -> range:
    """Where the parts begin that are read of the first ``size`` jets of a file."""
    return range(0, size, JETS_PER_READ)


def _header(path: Path) -> tuple[Schema, int]:
    """The schema of a file and its number of jets."""

    def find() -> list[str]:
        with JaggedFile(path) as file:
            return [file.schema.model_dump_json(), str(file.num_jets)]

    schema, num_jets = known(path, "header", find)
    return _schema(schema), int(num_jets)


@cache
def _schema(text: str) -> Schema:
    return Schema.model_validate_json(text)


def _digests(path: Path, size: int) -> list[str]:
    """Digests of the first ``size`` jets of a file: its header and its probes, then all jets."""

    def find() -> list[str]:
        with JaggedFile(path) as file:
            schema = file.schema.model_dump_json()
            header = digest(schema, file.recipe_text, file.precision, size)
            parts = [(start, min(start + JETS_PER_READ, size)) for start in _starts(size)]
            jets = [digest(*file.read_jets(*part)) for part in parts]
            return [header, *_probes(file, size), *jets]

    return known(path, f"digests {size} {PROBES} {JETS_PER_PROBE} {JETS_PER_READ}", find)


def _probes(file: JaggedFile, size: int) -> Iterator[str]:
    """Digests of the constituents of jets spread evenly over the first ``size`` of a file."""
    last = max(size - JETS_PER_PROBE, 0)
    for start in sorted({last * index // (PROBES - 1) for index in range(PROBES)}):
        jets = file.read(start, min(start + JETS_PER_PROBE, size))
        truth = [jets.truth] if file.schema.truth else []
        yield digest(jets.features, jets.ids, jets.labels, *truth)
