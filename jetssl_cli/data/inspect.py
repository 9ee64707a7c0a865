"""``jetssl inspect``: what is in a data file.

The file is read once, a chunk at a time. Smallest and largest values and all counts are those of
the whole file; percentiles, and plots, are those of a sample: its first jets.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import PositiveInt

from jetssl_cli.config import Strict
from jetssl_cli.data.jagged import VERSION, JaggedFile, StoredArray
from jetssl_cli.data.jets import JetArrays, concatenate
from jetssl_cli.data.schema import Feature, Schema
from jetssl_cli.errors import DataError
from jetssl_cli.progress import progress

JETS_PER_READ = 10_000
PERCENTS = (1, 50, 99)
MOST_DISTINCT = 1000
"""So many distinct values of truth are told apart."""


class InspectConfig(Strict):
    """What to look at."""

    file: Path
    """A data file."""
    sample: PositiveInt = 100_000
    """Percentiles and plots are those of the first so many jets, which are held in memory."""
    plots: Path | None = None
    """Folder for plots."""


class ColumnReport(Strict):
    """One feature; min, percentiles and max leave out missing and non-finite values."""

    name: str
    unit: str
    min: float | None
    p1: float | None
    median: float | None
    p99: float | None
    max: float | None
    zeros: float | None
    """Share of exact zeros among the values that are there."""
    missing: int
    """Values that neutral constituents do not have."""
    non_finite: int
    """Values that are not numbers, or infinite."""


class TruthReport(Strict):
    """One column of truth about each constituent."""

    name: str
    values: dict[int, int]
    """Value -> number of constituents."""
    others: int
    """Constituents with values beyond the first 1000 distinct ones."""


class InspectReport(Strict):
    """What is in a data file."""

    file: Path
    size: int
    """Bytes on disk."""
    version: int
    recipe: str
    description: str
    precision: str
    sources: int
    num_jets: int
    num_constituents: int
    fewest: int | None
    """Constituents in the smallest jet."""
    most: int | None
    """Constituents in the largest jet."""
    classes: dict[str, int]
    """Class -> number of jets."""
    left_out: dict[str, int]
    """Reason -> how many were left out when the file was made."""
    arrays: dict[str, StoredArray]
    sample: int
    """Jets that the percentiles are taken of."""
    constituents: tuple[ColumnReport, ...]
    jets: tuple[ColumnReport, ...]
    ids: dict[str, int]
    """Particle class -> number of constituents."""
    truth: tuple[TruthReport, ...]
    plots: tuple[Path, ...] = ()

    @property
    def memory(self) -> int:
        """Bytes of all arrays without compression."""
        return sum(array.memory for array in self.arrays.values())


class _Columns:
    """Counts and extremes of some columns, over all chunks."""

    def __init__(self, features: Sequence[Feature]) -> None:
        self._features = features
        count = len(features)
        self._low, self._high = np.full(count, np.inf), np.full(count, -np.inf)
        self._zeros, self._present, self._missing, self._bad = np.zeros((4, count), np.int64)

    def add(self, values: NDArray[Any], missing: NDArray[np.bool_]) -> None:
        """Take in more rows."""
        for index, (spread, absent) in enumerate(zip(values.T, missing.T, strict=True)):
            column = np.ascontiguousarray(spread)  # in which numpy is several times as fast
            finite = np.isfinite(column)
            present = finite & ~absent
            there = column if present.all() else column[present]
            self._low[index] = there.min(initial=self._low[index])
            self._high[index] = there.max(initial=self._high[index])
            self._zeros[index] += len(there) - np.count_nonzero(there)
            self._present[index] += len(there)
            self._missing[index] += np.count_nonzero(finite & absent)
            self._bad[index] += len(column) - np.count_nonzero(finite)

    def reports(self, sample: NDArray[Any], missing: NDArray[np.bool_]) -> tuple[ColumnReport, ...]:
        """One report per column; percentiles are those of the sample."""
        present = np.isfinite(sample) & ~missing
        return tuple(
            self._report(index, feature, sample[present[:, index], index])
            for index, feature in enumerate(self._features)
        )

    def _report(self, index: int, feature: Feature, sample: NDArray[Any]) -> ColumnReport:
        count = int(self._present[index])
        found = np.percentile(sample.astype(np.float64), PERCENTS) if len(sample) else ()
        p1, median, p99 = map(float, found) if len(sample) else (None, None, None)
        return ColumnReport(
            name=feature.name,
            unit=feature.unit,
            min=float(self._low[index]) if count else None,
            p1=p1,
            median=median,
            p99=p99,
            max=float(self._high[index]) if count else None,
            zeros=int(self._zeros[index]) / count if count else None,
            missing=int(self._missing[index]),
            non_finite=int(self._bad[index]),
        )


class _Pass:
    """What is gathered while the file is read."""

    def __init__(self, schema: Schema, path: Path) -> None:
        self._schema, self._path = schema, path
        self.constituents, self.jets = _Columns(schema.constituents), _Columns(schema.jets)
        self.classes = np.zeros(len(schema.classes), np.int64)
        self.ids = np.zeros(max(len(schema.ids), 1), np.int64)
        self.truth: list[Counter[int | None]] = [Counter() for _ in schema.truth]
        self.fewest, self.most = math.inf, -math.inf

    def add(self, jets: JetArrays) -> None:
        """Take in a chunk."""
        self.classes += self._counts(jets.labels, self.classes, "label is not that of a class")
        self.ids += self._counts(jets.ids, self.ids, "particle class is none of the schema")
        self.fewest = min(self.fewest, int(jets.sizes.min()))
        self.most = max(self.most, int(jets.sizes.max()))
        self.constituents.add(jets.features, self._schema.missing(jets.ids))
        self.jets.add(jets.jets, np.zeros(jets.jets.shape, np.bool_))
        for counter, column in zip(self.truth, jets.truth.T, strict=True):
            values, counts = np.unique(column, return_counts=True)
            for value, count in zip(values.tolist(), counts.tolist(), strict=True):
                known = value in counter or len(counter) < MOST_DISTINCT
                counter[value if known else None] += count

    def _counts(
        self, numbers: NDArray[Any], counts: NDArray[np.int64], problem: str
    ) -> NDArray[np.int64]:
        if len(numbers) and not 0 <= numbers.min() <= numbers.max() < len(counts):
            raise DataError(f"{self._path}: damaged: a {problem}")
        return np.bincount(numbers, minlength=len(counts))


def inspect(cfg: InspectConfig) -> InspectReport:
    """Look through a data file, and plot it if ``cfg.plots`` names a folder.

    Raises:
        DataError: not a whole data file, or the plots cannot be written.
    """
    with JaggedFile(cfg.file) as file:
        found = _Pass(file.schema, cfg.file)
        sample, held = [file.read(0, 0)], 0
        with progress("inspect", file.num_jets, "jets") as advance:
            for chunk in file.chunks(JETS_PER_READ):
                found.add(chunk)
                if held < cfg.sample:
                    sample.append(chunk.between(0, min(cfg.sample - held, len(chunk))))
                    held += len(sample[-1])
                advance(len(chunk))
        jets = concatenate(sample)
        report = _report(cfg.file, file, found, jets)
    if cfg.plots is None or not len(jets):
        return report
    from jetssl_cli.data.plots import plot

    note = f"{report.file.name}: first {report.sample:,} of {report.num_jets:,} jets"
    plots = plot(file.schema, jets, cfg.plots, classes=report.classes, note=note)
    return report.model_copy(update={"plots": tuple(plots)})


def _report(path: Path, file: JaggedFile, found: _Pass, sample: JetArrays) -> InspectReport:
    schema = file.schema
    return InspectReport(
        file=path,
        size=path.stat().st_size,
        version=VERSION,
        recipe=file.recipe.name,
        description=file.recipe.description,
        precision=file.precision,
        sources=len(file.sources),
        num_jets=file.num_jets,
        num_constituents=file.num_constituents,
        fewest=int(found.fewest) if file.num_jets else None,
        most=int(found.most) if file.num_jets else None,
        classes=dict(zip(schema.classes, found.classes.tolist(), strict=True)),
        left_out=file.left_out,
        arrays=file.arrays,
        sample=len(sample),
        constituents=found.constituents.reports(sample.features, schema.missing(sample.ids)),
        jets=found.jets.reports(sample.jets, np.zeros(sample.jets.shape, np.bool_)),
        ids=dict(zip(schema.ids, found.ids.tolist(), strict=False)),
        truth=tuple(map(_truth, schema.truth, found.truth)),
    )


def _truth(name: str, counter: Counter[int | None]) -> TruthReport:
    values = {value: count for value, count in counter.items() if value is not None}
    return TruthReport(name=name, values=dict(sorted(values.items())), others=counter[None])
