"""Rows of the tables of tasks other than the classification of jets: one or more lines each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from jetssl_cli.config import Strict
from jetssl_cli.scores.metrics import Estimate

Cell = str | int | float | Estimate | None
"""What stands in a table; None is not defined."""


class TaskRow(Strict):
    """The figures of one score file of a task other than the classification of jets."""

    notes: ClassVar[tuple[str, ...]] = ()
    """How to read the table."""
    seeds: ClassVar[tuple[str, ...]] = ()
    """Runs of other tasks are not averaged."""
    scores: str
    """The score file."""
    run: str
    """The run that made it."""
    num_jets: int

    def lines(self) -> list[dict[str, Cell]]:
        """The lines of the table: header -> cell."""
        raise NotImplementedError(type(self).__name__)

    def headline(self) -> Mapping[str, Estimate]:
        """The figures that are tracked."""
        raise NotImplementedError(type(self).__name__)
