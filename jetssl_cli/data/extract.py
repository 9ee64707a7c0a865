"""From the branches of a TTree to the columns of a recipe, a range of entries at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import awkward as ak
import numpy as np
import uproot
from numpy.typing import NDArray

from jetssl_cli.data.jagged import JetArrays
from jetssl_cli.data.recipe import Column, OneHotLabels, Recipe
from jetssl_cli.errors import DataError, suggest
from jetssl_cli.physics import FORMULAS, NEUTRAL_CLASSES, NO_CLASS

Array = NDArray[Any]


@dataclass(frozen=True)
class Extracted:
    """Jets of one range of entries, and what was left out."""

    jets: JetArrays
    dropped: int
    """Constituents that fit no particle class."""
    cut: int
    """Constituents beyond the recipe's ``max_constituents``."""


@dataclass(frozen=True)
class Branches:
    """Branches of J jets as flat arrays: one value per jet, or one per constituent."""

    source: str
    first: int
    """Entry of the first jet in its file; for messages."""
    sizes: NDArray[np.int64]
    of_jets: Mapping[str, Array]
    of_constituents: Mapping[str, Array]

    def per_constituent(self, name: str) -> NDArray[np.float64]:
        """A branch with one value per constituent; one of the jet is repeated."""
        if name in self.of_constituents:
            return self.of_constituents[name].astype(np.float64)
        return np.repeat(self.of_jets[name].astype(np.float64), self.sizes)

    def per_jet(self, name: str) -> NDArray[np.float64]:
        """A branch with one value per jet.

        Raises:
            DataError: it has one per constituent.
        """
        if name in self.of_constituents:
            raise DataError(f"{self.source}: branch {name!r} is a list; expected one value per jet")
        return self.of_jets[name].astype(np.float64)

    def where(self, jet: int) -> str:
        """Name a jet by file and entry."""
        return f"{self.source}: jet {self.first + jet}"


def read_tree(path: Path, recipe: Recipe, step: int) -> Iterator[Branches]:
    """Read what the recipe needs, ``step`` entries at a time.

    Raises:
        DataError: no such file, not ROOT, truncated, no such tree or branch, no entries.
    """
    with _open(path) as file:
        tree = _tree(file, path, recipe.tree)
        missing = [name for name in recipe.branches if name not in tree]
        if missing:
            raise DataError(
                f"{path}: tree {recipe.tree!r} has no branch {missing[0]!r}; "
                f"{suggest(missing[0], tree.keys())}"
            )
        if tree.num_entries == 0:
            raise DataError(f"{path}: tree {recipe.tree!r} has no entries")
        for start in range(0, tree.num_entries, step):
            try:
                arrays = tree.arrays(
                    recipe.branches, entry_start=start, entry_stop=start + step, how=dict
                )
            except Exception as err:  # uproot raises whatever a damaged byte leads to
                raise DataError(f"{path}: damaged: {_reason(err)}") from None
            yield _flatten(arrays, f"{path}", start, recipe)


def extract(branches: Branches, recipe: Recipe) -> Extracted:
    """Compute the columns of the recipe; sort, drop and cut the constituents.

    Raises:
        DataError: a value is not finite, or a jet has not exactly one label.
    """
    features = recipe.constituents.features
    columns = {name: _column(branches, column, True) for name, column in features.items()}
    owner = np.repeat(np.arange(len(branches.sizes)), branches.sizes)
    inputs = recipe.constituents.ids.inputs
    flags = {name: branches.per_constituent(branch) for name, branch in inputs.items()}
    _finite(flags, branches, owner)
    ids = FORMULAS[recipe.constituents.ids.formula](**flags)
    neutral = np.isin(ids, NEUTRAL_CLASSES)
    for name, column in features.items():
        if column.charged_only:
            columns[name][neutral] = 0.0
    table = _finite(columns, branches, owner)
    rows, sizes, cut = _select(columns[recipe.constituents.order_by], ids, owner, branches, recipe)
    jets = {name: _column(branches, column, False) for name, column in recipe.jets.items()}
    arrays = JetArrays(
        table[rows],
        ids[rows],
        sizes,
        _finite(jets, branches, np.arange(len(branches.sizes))),
        _labels(branches, recipe),
    )
    return Extracted(arrays, dropped=int((ids == NO_CLASS).sum()), cut=cut)


def _open(path: Path) -> Any:
    if not path.exists():
        raise DataError(f"{path}: no such file")
    try:
        return uproot.open(path)
    except Exception as err:  # uproot raises whatever the bytes lead to
        raise DataError(f"{path}: not a readable ROOT file: {_reason(err)}") from None


def _tree(file: Any, path: Path, name: str) -> Any:
    try:
        present = file.keys(cycle=False, filter_classname="TTree")
        if name in present:
            return file[name]
    except Exception as err:  # uproot raises whatever the bytes lead to
        raise DataError(f"{path}: damaged: {_reason(err)}") from None
    if not present:
        raise DataError(f"{path}: no tree {name!r}; the file has no TTree at all")
    raise DataError(f"{path}: no tree {name!r}; {suggest(name, present)}")


def _flatten(arrays: Mapping[str, Any], source: str, first: int, recipe: Recipe) -> Branches:
    of_jets: dict[str, Array] = {}
    of_constituents: dict[str, Array] = {}
    sizes: NDArray[np.int64] | None = None
    for name, array in arrays.items():
        try:
            if array.ndim == 1:
                of_jets[name] = _numbers(array)
                continue
            of_constituents[name] = _numbers(ak.flatten(array, axis=1))
            counts = ak.num(array, axis=1).to_numpy()
        except (TypeError, ValueError):
            raise DataError(
                f"{source}: branch {name!r} has the type {array.type.content}; expected numbers "
                "or lists of numbers"
            ) from None
        if sizes is None:
            sizes = counts
        elif not np.array_equal(sizes, counts):
            jet = int(np.flatnonzero(sizes != counts)[0])
            raise DataError(
                f"{source}: jet {first + jet}: branch {name!r} has {counts[jet]} constituents, "
                f"{next(iter(of_constituents))!r} has {sizes[jet]}"
            )
    if sizes is None:
        raise DataError(f"{source}: no branch of recipe {recipe.name!r} has lists of constituents")
    return Branches(source, first, sizes, of_jets, of_constituents)


def _numbers(array: Any) -> Array:
    values: Array = ak.to_numpy(array, allow_missing=False)
    if values.dtype.kind not in "biuf":
        raise TypeError(values.dtype)
    return values


def _column(branches: Branches, column: Column, constituents: bool) -> NDArray[np.float64]:
    read = branches.per_constituent if constituents else branches.per_jet
    if column.branch is not None:
        values = read(column.branch)
    else:
        assert column.formula is not None
        inputs = {name: read(branch) for name, branch in column.inputs.items()}
        with np.errstate(all="ignore"):  # what is not finite is reported with the jet it is in
            values = FORMULAS[column.formula](**inputs)
    if column.clip is None:
        return values
    clipped = np.clip(values, -column.clip, column.clip)
    return np.where(np.isfinite(values), clipped, values)  # infinity must not pass for the limit


def _finite(
    columns: Mapping[str, NDArray[np.float64]], branches: Branches, owner: NDArray[np.int64]
) -> NDArray[np.float32]:
    with np.errstate(over="ignore"):
        table = np.stack(list(columns.values()), axis=1).astype(np.float32)
    bad = ~np.isfinite(table)
    if bad.any():
        row, place = np.argwhere(bad)[0]
        name = list(columns)[place]
        raise DataError(
            f"{branches.where(int(owner[row]))}: {name} is {table[row, place]}; "
            "every feature must be finite"
        )
    return table


def _select(
    order_by: NDArray[np.float64],
    ids: NDArray[np.uint8],
    owner: NDArray[np.int64],
    branches: Branches,
    recipe: Recipe,
) -> tuple[NDArray[np.int64], NDArray[np.int64], int]:
    """Rows to store, in descending order within each jet; sizes of the jets; rows cut."""
    rows = np.flatnonzero(ids != NO_CLASS)
    values, jets = order_by[rows], owner[rows]
    if ((values[1:] > values[:-1]) & (jets[1:] == jets[:-1])).any():
        rows = rows[np.lexsort((-values, jets))]
    sizes = np.bincount(owner[rows], minlength=len(branches.sizes))
    rank = np.arange(len(rows)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    inside = rank < recipe.max_constituents
    sizes = np.minimum(sizes, recipe.max_constituents)
    return rows[inside], sizes, len(rows) - int(inside.sum())


def _labels(branches: Branches, recipe: Recipe) -> NDArray[np.int16]:
    labels = recipe.labels
    if isinstance(labels, OneHotLabels):
        names = list(labels.branches.values())
        flags = np.stack([branches.per_jet(name) for name in names], axis=1)  # (J, C)
        _check(branches, ((flags == 0) | (flags == 1)).all(axis=1), "labels must be 0 or 1", flags)
        rule = f"exactly one of {', '.join(names)} must be set; so many are:"
        _check(branches, flags.sum(axis=1) == 1, rule, flags.sum(axis=1).astype(int))
        return np.asarray(flags.argmax(axis=1), np.int16)
    found = branches.per_jet(labels.branch)
    index_of = {value: index for index, value in enumerate(labels.value_of.values())}
    chosen = np.array([index_of.get(value, -1) for value in found.tolist()], np.int16)
    _check(branches, chosen >= 0, f"{labels.branch} is not the label of any class:", found)
    return chosen


def _check(branches: Branches, fine: Any, rule: str, values: Array) -> None:
    bad = np.flatnonzero(~np.asarray(fine))
    if len(bad):
        raise DataError(f"{branches.where(int(bad[0]))}: {rule} {values[bad[0]]}")


def _reason(err: Exception) -> str:
    text = " ".join(str(err).split())
    return text[:200] or type(err).__name__
