"""Tables of numbers for a terminal: no number is broken over lines, however narrow it is."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich import box
from rich.table import Table
from rich.text import Text

NARROWEST = 16
"""Least width of the first column."""


def laid_out(
    columns: Sequence[Sequence[str]], styles: Sequence[Sequence[str]], width: int
) -> Iterator[Table]:
    """The columns, header first, in as many tables as a width demands; each begins with the first.

    Args:
        columns: names, then figures.
        styles: of each cell of the columns.
        width: of the terminal. Names are folded only where not one column would stand beside them.
    """
    names, *figures = columns
    widest = max((_width(column) for column in figures), default=0)
    first = min(max(map(len, names)), max(width - widest, NARROWEST))
    paired = list(zip(figures, styles[1:], strict=True))
    for block in _blocks(paired, width - first):
        table = Table(box=box.SIMPLE_HEAD, padding=(0, 0, 0, 1), pad_edge=False, show_edge=False)
        table.add_column(names[0], overflow="fold", width=first)
        for column, _ in block:
            table.add_column(column[0], justify="right", no_wrap=True)
        for place in range(1, len(names)):
            cells = [Text(column[place], style=style[place]) for column, style in block]
            table.add_row(Text(names[place], style=styles[0][place]), *cells)
        yield table


Styled = tuple[Sequence[str], Sequence[str]]
"""A column, and the style of each of its cells."""


def _blocks(figures: Sequence[Styled], width: int) -> list[list[Styled]]:
    """Cut the columns into runs that fit into a width."""
    blocks: list[list[Styled]] = []
    left = 0
    for column, styles in figures:
        needed = _width(column)
        if needed > left or not blocks:
            blocks.append([])
            left = width
        blocks[-1].append((column, styles))
        left -= needed
    return blocks


def _width(column: Sequence[str]) -> int:
    """What a column takes, with what separates it from the one before."""
    return max(map(len, column)) + 2
