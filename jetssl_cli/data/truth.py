"""Which truth about constituents a task needs, and whether the data have it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from jetssl_cli.data.jagged import JaggedFile
from jetssl_cli.errors import DataError

Wanted = Mapping[str, Sequence[str] | None]
"""Column of the truth -> names of its numbers 0, 1, 2, ... where they are classes."""


def columns_of(files: Sequence[Path], wanted: Wanted) -> tuple[int, ...]:
    """Where the wanted columns are in the truth of these files, which have one schema.

    Raises:
        DataError: a file has no such column, or its numbers mean something else.
    """
    places: list[int] = []
    for path in files if wanted else ():
        with JaggedFile(path) as file:
            has, described = file.schema.truth, file.recipe.constituents.truth
        for name, classes in wanted.items():
            if name not in has:
                only = f"; it has {', '.join(has)}" if has else ""
                raise DataError(
                    f"{path}: has no truth {name!r} about constituents, which this task needs{only}"
                )
            meant = described[name].values if name in described else None
            needed = {known: number for number, known in enumerate(classes or ())}
            if classes is not None and meant != needed:
                raise DataError(
                    f"{path}: the truth {name!r} means {_told(meant)}; this task needs "
                    f"{_told(needed)}"
                )
        places = [has.index(name) for name in wanted]
    return tuple(places)


def _told(values: Mapping[str, int] | None) -> str:
    if values is None:
        return "nothing that its recipe names"
    return ", ".join(f"{number} {name}" for name, number in values.items())
