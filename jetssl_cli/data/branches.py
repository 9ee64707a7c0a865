"""Branches of the tables that physicists keep, TTrees and parquet files, as flat numpy arrays."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import awkward as ak
import numpy as np
import pyarrow.parquet
import uproot
from numpy.typing import NDArray

from jetssl_cli.data.recipe import Recipe
from jetssl_cli.errors import DataError, reason, suggest

Array = NDArray[Any]
# ISA-L decompresses twice as fast as zlib; what reads is a private twin of uproot.ZLIB
getattr(uproot.compression, "_decompress_ZLIB", uproot.ZLIB).library = "isal"


@dataclass(frozen=True)
class Lists:
    """A branch with a list of numbers in each of J jets."""

    values: Array
    """All lists end to end."""
    sizes: NDArray[np.int64]
    """Length of each list, (J,)."""

    def table(self) -> NDArray[np.float64]:
        """(J, M): the lists side by side, filled up with NaN."""
        longest = int(self.sizes.max(initial=0))
        filled = np.arange(longest) < self.sizes[:, None]
        table = np.full(filled.shape, np.nan)
        table[filled] = self.values
        return table


class Place(NamedTuple):
    """Where jets come from; for messages."""

    source: str
    first: int
    """Entry of the first of them in its file."""

    def of(self, jet: int) -> str:
        """Name a jet by file and entry."""
        return f"{self.source}: jet {self.first + jet}"


@dataclass(frozen=True)
class Branches:
    """Branches of J jets: one number per jet, or a list."""

    place: Place
    sizes: NDArray[np.int64]
    """Constituents of each jet, (J,)."""
    numbers: Mapping[str, Array]
    lists: Mapping[str, Lists]
    computed: dict[str, NDArray[np.float64]] = field(default_factory=dict)
    """Branches that formulas have asked for already."""

    def stored(self, name: str) -> Array:
        """A branch per constituent, in the type of the file; one of the jet is repeated."""
        if name in self.lists:
            return self.lists[name].values
        return np.repeat(self.numbers[name], self.sizes)

    def per_constituent(self, name: str) -> NDArray[np.float64]:
        """A branch per constituent, in the type that formulas compute in."""
        if name not in self.computed:
            self.computed[name] = self.stored(name).astype(np.float64)
        return self.computed[name]

    def table_per_constituent(self, name: str) -> NDArray[np.float64]:
        """(T, M): the whole list of the jet at each of its constituents; NaN where it is shorter.

        Raises:
            DataError: it is no list.
        """
        if name not in self.lists:
            raise DataError(f"{self.place.source}: branch {name!r} is no list")
        return np.repeat(self.lists[name].table(), self.sizes, axis=0)

    def per_jet(self, name: str) -> NDArray[np.float64]:
        """A branch with one value per jet.

        Raises:
            DataError: it is a list.
        """
        if name in self.lists:
            raise DataError(
                f"{self.place.source}: branch {name!r} is a list; expected one value per jet"
            )
        return self.numbers[name].astype(np.float64)

    def jet_of(self, row: int) -> int:
        """The jet that a constituent belongs to."""
        return int(np.searchsorted(np.cumsum(self.sizes), row, side="right"))

    def split(self, most: int) -> Iterator[Branches]:
        """The same jets, about ``most`` constituents at a time."""
        total = int(self.sizes.sum())
        cuts = np.searchsorted(np.cumsum(self.sizes), np.arange(most, total, most))
        starts = {name: _offsets(column.sizes) for name, column in self.lists.items()}
        for start, stop in pairwise(np.unique([0, *cuts, len(self.sizes)]).tolist()):
            yield Branches(
                Place(self.place.source, self.place.first + start),
                self.sizes[start:stop],
                {name: values[start:stop] for name, values in self.numbers.items()},
                {
                    name: Lists(
                        column.values[starts[name][start] : starts[name][stop]],
                        column.sizes[start:stop],
                    )
                    for name, column in self.lists.items()
                },
            )


def read_branches(path: Path, kind: str, recipe: Recipe, step: int) -> Iterator[Branches]:
    """Read what the recipe needs of a file, ROOT or parquet as ``kind`` says, in steps of entries.

    Raises:
        DataError: not of its kind, truncated, no such tree or branch, no entries.
    """
    read = _read_parquet if kind == "parquet" else _read_tree
    start = 0
    for arrays in read(path, recipe, step):
        part = _flatten(arrays, str(path), start, recipe)
        yield part
        start += len(part.sizes)
    if start == 0:
        raise DataError(f"{path}: has no entries")


def _read_tree(path: Path, recipe: Recipe, step: int) -> Iterator[Mapping[str, Any]]:
    try:
        file = uproot.open(path)
    except Exception as err:  # uproot raises whatever the bytes lead to
        raise DataError(f"{path}: not a readable ROOT file: {reason(err)[:200]}") from None
    with file:
        tree = _tree(file, path, recipe.tree)
        _present(recipe, tree.keys(), f"{path}: tree {recipe.tree!r}")
        try:
            # iterate keeps a basket that two steps share; `how` gives one array per branch
            yield from tree.iterate(recipe.branches, step_size=step, how=dict)
        except DataError:
            raise
        except Exception as err:  # uproot raises whatever a damaged byte leads to
            raise DataError(f"{path}: damaged: {reason(err)[:200]}") from None


def _tree(file: Any, path: Path, name: str) -> Any:
    try:
        present = file.keys(cycle=False, filter_classname="TTree")
        if name in present:
            return file[name]
    except Exception as err:  # uproot raises whatever the bytes lead to
        raise DataError(f"{path}: damaged: {reason(err)[:200]}") from None
    if not present:
        raise DataError(f"{path}: no tree {name!r}; the file has no TTree at all")
    raise DataError(f"{path}: no tree {name!r}; {suggest(name, present)}")


def _read_parquet(path: Path, recipe: Recipe, step: int) -> Iterator[Mapping[str, Any]]:
    try:
        file = pyarrow.parquet.ParquetFile(path)
    except (OSError, ValueError) as err:  # pyarrow's own errors are of these kinds
        raise DataError(f"{path}: not a readable parquet file: {reason(err)[:200]}") from None
    with file:
        _present(recipe, file.schema_arrow.names, str(path))
        try:
            for batch in file.iter_batches(batch_size=step, columns=recipe.branches):
                yield {name: ak.from_arrow(batch.column(name)) for name in recipe.branches}
        except (OSError, ValueError) as err:
            raise DataError(f"{path}: damaged: {reason(err)[:200]}") from None


def _present(recipe: Recipe, found: list[str], where: str) -> None:
    known = set(found)
    missing = [name for name in recipe.branches if name not in known]
    if missing:
        raise DataError(f"{where} has no branch {missing[0]!r}; {suggest(missing[0], found)}")


def _flatten(arrays: Mapping[str, Any], source: str, first: int, recipe: Recipe) -> Branches:
    numbers: dict[str, Array] = {}
    lists: dict[str, Lists] = {}
    for name, array in arrays.items():
        try:
            if array.ndim == 1:
                numbers[name] = _numbers(array)
            else:
                lists[name] = _lists(array)
        except (TypeError, ValueError):
            raise DataError(
                f"{source}: branch {name!r} has the type {array.type.content}; expected numbers "
                "or lists of numbers"
            ) from None
    entries = {name: len(values) for name, values in numbers.items()}
    entries |= {name: len(column.sizes) for name, column in lists.items()}
    if len(set(entries.values())) > 1:
        raise DataError(f"{source}: damaged: branches have {sorted(set(entries.values()))} entries")
    of_constituents = [name for name in recipe.constituent_branches if name in lists]
    if not of_constituents:
        raise DataError(f"{source}: no branch of recipe {recipe.name!r} has lists of constituents")
    sizes = lists[of_constituents[0]].sizes
    for name in of_constituents:
        counts = lists[name].sizes
        if not np.array_equal(sizes, counts):
            jet = int(np.flatnonzero(sizes != counts)[0])
            raise DataError(
                f"{source}: jet {first + jet}: branch {name!r} has {counts[jet]} constituents, "
                f"{of_constituents[0]!r} has {sizes[jet]}"
            )
    return Branches(Place(source, first), sizes, numbers, lists)


def _lists(array: Any) -> Lists:
    layout = array.layout
    if isinstance(layout, ak.contents.ListOffsetArray) and layout.content.is_numpy:
        offsets = np.asarray(layout.offsets)
        values = layout.content.data[offsets[0] : offsets[-1]]
        if values.ndim == 1 and values.dtype.kind in "biuf":
            return Lists(values, np.diff(offsets).astype(np.int64))
    sizes = ak.to_numpy(ak.num(array, axis=1), allow_missing=False)
    return Lists(_numbers(ak.flatten(array, axis=1)), sizes)


def _numbers(array: Any) -> Array:
    values: Array = ak.to_numpy(array, allow_missing=False)
    if values.ndim != 1 or values.dtype.kind not in "biuf":
        raise TypeError(f"{values.ndim} axes of {values.dtype}")
    return values


def _offsets(sizes: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.concatenate([[0], np.cumsum(sizes)])
