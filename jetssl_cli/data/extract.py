"""From the branches of a file to the columns of a recipe: formulas, labels, order and limits."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jetssl_cli.data.branches import Branches, Place, read_branches
from jetssl_cli.data.jagged import Precision
from jetssl_cli.data.jets import JetArrays
from jetssl_cli.data.kinds import kind_of
from jetssl_cli.data.padded import read_padded
from jetssl_cli.data.recipe import Column, OneHotLabels, Recipe
from jetssl_cli.errors import DataError
from jetssl_cli.physics import FORMULAS, NEUTRAL_CLASSES, NO_CLASS

Array = NDArray[Any]
ENTRIES_PER_STEP = 10_000
"""Entries held in memory at a time."""
IS_NEUTRAL = np.isin(np.arange(256), NEUTRAL_CLASSES)
CONSTITUENTS_PER_STEP = 50_000
"""Constituents worked on at a time: what fits in a processor's cache."""


DROPPED, UNKNOWN = -1, -2
"""What stands for the label of a jet that the recipe leaves out, and for one it does not know."""
Extracted = tuple[JetArrays, Counter[str]]
"""Jets, and how many others and constituents were left out, by the reason."""


def extract(path: Path, recipe: Recipe, precision: Precision) -> Iterator[Extracted]:
    """The jets of a file, a piece at a time: selected, sorted, cut, every number finite.

    Raises:
        DataError: the file is not what the recipe expects.
    """
    kind = kind_of(path)
    if kind is None:
        raise DataError(f"{path}: is no ROOT, parquet or HDF5 file of jets")
    if kind == "HDF5":
        for first, jets in read_padded(path, recipe, ENTRIES_PER_STEP):
            yield _finish(jets, recipe, precision, Place(str(path), first))
        return
    for branches in read_branches(path, kind, recipe, ENTRIES_PER_STEP):
        for part in branches.split(CONSTITUENTS_PER_STEP):
            yield _finish(columns(part, recipe), recipe, precision, part.place)


def columns(branches: Branches, recipe: Recipe) -> JetArrays:
    """Compute the columns of the recipe, in the order of the file.

    Raises:
        DataError: a value is not finite, or a jet has not exactly one label.
    """
    of = recipe.constituents
    ids = _ids(branches, recipe)
    charged = ~IS_NEUTRAL[ids]
    table = np.empty((len(ids), len(of.stored)), np.float32)
    for place, column in enumerate(of.stored.values()):
        values = _column(branches, column, True)
        with np.errstate(over="ignore"):
            table[:, place] = np.where(charged, values, 0) if column.charged_only else values
    _check_finite(list(of.stored), table, branches, branches.jet_of)
    truth = {name: _column(branches, column, True) for name, column in of.stored_truth.items()}
    return JetArrays(
        table,
        ids,
        _integers(truth, branches, len(ids)),
        branches.sizes,
        _of_jets(branches, recipe),
        _labels(branches, recipe),
    )


def _finish(jets: JetArrays, recipe: Recipe, precision: Precision, place: Place) -> Extracted:
    """Leave out what the recipe does not want, sort in descending order, cut, and convert."""
    left_out: Counter[str] = Counter()
    wanted = jets.labels != DROPPED
    left_out["jets of a label to drop"] = int(np.count_nonzero(~wanted))
    for name, limits in recipe.select.items():
        values = jets.jets[:, list(recipe.jet_features).index(name)]
        inside = np.ones(len(jets), bool)
        inside &= True if limits.min is None else values >= limits.min
        inside &= True if limits.max is None else values <= limits.max
        left_out[f"jets outside the limits of {name}"] = int(np.count_nonzero(wanted & ~inside))
        wanted &= inside
    if not wanted.all():
        jets = jets.take(np.flatnonzero(wanted))
    fits = jets.ids != NO_CLASS
    left_out["constituents of no particle class"] = len(fits) - int(np.count_nonzero(fits))
    if not fits.all():
        jets = jets.keep(fits)
    jets = _sorted(jets, list(recipe.constituents.stored).index(recipe.constituents.order_by))
    kept = jets.first(recipe.max_constituents)
    left_out[f"constituents beyond {recipe.max_constituents}"] = len(jets.ids) - len(kept.ids)
    if precision == "float16":
        kept = _half(kept, place, np.flatnonzero(wanted))
    return kept, left_out


def _half(jets: JetArrays, place: Place, entries: NDArray[np.int64]) -> JetArrays:
    with np.errstate(over="ignore"):
        half = jets.features.astype(np.float16)
    if not np.isfinite(half).all():
        row = int(np.flatnonzero(~np.isfinite(half).all(axis=1))[0])
        jet = int(np.searchsorted(jets.offsets, row, side="right")) - 1
        raise DataError(
            f"{place.of(int(entries[jet]))}: {np.abs(jets.features[row]).max():g} is too large for "
            "float16; convert without --half"
        )
    return replace(jets, features=half)


def _sorted(jets: JetArrays, order_by: int) -> JetArrays:
    values = jets.features[:, order_by]
    rising = np.flatnonzero(values[1:] > values[:-1]) + 1
    rising = rising[~np.isin(rising, jets.offsets)]  # a jet may begin with more than the last ended
    if not len(rising):
        return jets
    owner = np.repeat(np.arange(len(jets)), jets.sizes)
    rows = np.lexsort((-values, owner))
    return jets.reorder(rows)


def _column(branches: Branches, column: Column, constituents: bool) -> Array:
    read = branches.per_constituent if constituents else branches.per_jet
    values: Array
    if column.branch is not None:
        values = branches.stored(column.branch) if constituents else read(column.branch)
    else:
        assert column.formula is not None
        inputs = {
            name: branches.table_per_constituent(branch) if column.is_list(name) else read(branch)
            for name, branch in column.inputs.items()
        }
        with np.errstate(all="ignore"):  # what is not finite is reported with the jet it is in
            values = FORMULAS[column.formula](**inputs)
    if column.clip is None:
        return values
    clipped = np.clip(values, -column.clip, column.clip)
    return np.where(np.isfinite(values), clipped, values)  # infinity must not pass for the limit


def _ids(branches: Branches, recipe: Recipe) -> NDArray[np.uint8]:
    ids = recipe.constituents.ids
    if ids is None:
        return np.zeros(int(branches.sizes.sum()), np.uint8)
    inputs = {name: branches.stored(branch) for name, branch in ids.inputs.items()}
    for name, values in inputs.items():
        if values.dtype.kind == "f":
            _check_finite([name], values[:, None], branches, branches.jet_of)
    found: NDArray[np.uint8] = FORMULAS[ids.formula](**inputs)
    return found


def _of_jets(branches: Branches, recipe: Recipe) -> NDArray[np.float32]:
    columns = recipe.jet_features
    table = np.empty((len(branches.sizes), len(columns)), np.float32)
    with np.errstate(over="ignore"):
        for place, column in enumerate(columns.values()):
            table[:, place] = _column(branches, column, False)
    _check_finite(list(columns), table, branches, int)
    return table


def _check_finite(
    names: list[str], table: Array, branches: Branches, jet_of: Callable[[int], int]
) -> None:
    fine = np.isfinite(table)
    if not fine.all():
        row, place = np.argwhere(~fine)[0]
        raise DataError(
            f"{branches.place.of(jet_of(int(row)))}: {names[place]} is {table[row, place]}; "
            "every feature must be finite"
        )


def _integers(named: Mapping[str, Array], branches: Branches, count: int) -> NDArray[np.int32]:
    table = np.empty((count, len(named)), np.int32)
    for place, (name, values) in enumerate(named.items()):
        fine = (values == np.rint(values)) & (np.abs(values) < 2**31)
        if not fine.all():
            row = int(np.flatnonzero(~fine)[0])
            raise DataError(
                f"{branches.place.of(branches.jet_of(row))}: {name} is {values[row]}; truth must "
                "be an integer"
            )
        table[:, place] = values
    return table


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
    index_of |= dict.fromkeys(labels.drop, DROPPED)
    chosen = np.array([index_of.get(value, UNKNOWN) for value in found.tolist()], np.int16)
    _check(branches, chosen != UNKNOWN, f"{labels.branch} is not the label of any class:", found)
    return chosen


def _check(branches: Branches, fine: Any, rule: str, values: Array) -> None:
    bad = np.flatnonzero(~np.asarray(fine))
    if len(bad):
        raise DataError(f"{branches.place.of(int(bad[0]))}: {rule} {values[bad[0]]}")
