"""Tables of figures in five formats: for a terminal, Markdown, LaTeX, CSV and JSON."""

from __future__ import annotations

import csv
import io
import json
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from rich.console import Console, ConsoleOptions
from rich.table import Table
from rich.text import Text

from jetssl_cli.data.layout import laid_out
from jetssl_cli.errors import ConfigError, DataError, reason, suggest
from jetssl_cli.scores.cells import (
    Rows,
    bold,
    columns,
    comparison_notes,
    comparisons,
    confusions,
    notes,
    records,
)

FORMATS = ("rich", "markdown", "csv", "json", "latex")
LATEX_SPECIAL = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "±": r"$\pm$",
    ">": "$>$",
    "<": "$<$",
    "†": r"$^\dagger$",
    "‡": r"$^\ddagger$",
    "−": r"$-$",
    "–": "--",
    "[": "{[}",
    **{char: f"\\{char}" for char in "_%&#${}"},
}


class ScoreTable:
    """Tables for a terminal, split into as many blocks of columns as its width demands."""

    def __init__(self, rows: Rows, *, confusion: bool = False) -> None:
        self._rows, self._confusion = rows, confusion

    def __rich_console__(self, _: Console, options: ConsoleOptions) -> Iterator[Table | Text]:
        """Lay out the blocks; each repeats the names of the runs."""
        yield from _laid_out(columns(self._rows), bold(self._rows), options.max_width)
        yield from (Text(note, style="dim") for note in notes(self._rows))
        if compared := comparisons(self._rows):
            yield Text()
            yield from _laid_out(compared, [], options.max_width)
            yield from (Text(note, style="dim") for note in comparison_notes(compared))
        if self._confusion:
            for title, matrix in confusions(self._rows):
                yield Text(f"\n{title}\n")
                yield from _laid_out(matrix, [], options.max_width)


def _laid_out(
    columns: list[list[str]], bold: list[list[bool]], width: int
) -> Iterator[Table | Text]:
    flags = bold or [[False] * len(columns[0])] * len(columns)
    styles = [["bold" * flag for flag in column] for column in flags]
    for table in laid_out(columns, styles, width):
        yield table
        yield Text()


def check_format(name: str) -> None:
    """Refuse a format that there is not.

    Raises:
        ConfigError: names the nearest.
    """
    if name not in FORMATS:
        raise ConfigError(f"no table format {name!r}; {suggest(name, FORMATS)}")


def render(rows: Rows, *, format: str, confusion: bool = False) -> str | ScoreTable:
    """Render rows in one of ``FORMATS``; "rich" gives something for a rich Console to print.

    JSON always has the confusion matrix, CSV and LaTeX never.

    Raises:
        ConfigError: there is no such format.
    """
    check_format(format)
    if format == "rich":
        return ScoreTable(rows, confusion=confusion)
    if format == "markdown":
        return to_markdown(rows, confusion=confusion)
    return {"csv": to_csv, "json": to_json, "latex": to_latex}[format](rows)


def to_json(rows: Rows) -> str:
    """All figures in full precision; what is undefined is null."""
    dumped = [row.model_dump(mode="json") for row in rows]
    return json.dumps(dumped, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def to_csv(rows: Rows) -> str:
    """All figures in full precision, one line a row; what is undefined is empty."""
    found, text = records(rows), io.StringIO()
    writer = csv.DictWriter(text, list(found[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(found)
    return text.getvalue()


def to_markdown(rows: Rows, *, confusion: bool = False) -> str:
    """A pipe table with the caption below; then the comparisons and confusion matrices."""
    parts = [_pipes(columns(rows), bold(rows)), *map(_escape_markdown, notes(rows))]
    if compared := comparisons(rows):
        parts += [_pipes(compared, []), *map(_escape_markdown, comparison_notes(compared))]
    for title, matrix in confusions(rows) if confusion else []:
        parts += [_escape_markdown(title), _pipes(matrix, [])]
    return "\n\n".join(parts) + "\n"


def _pipes(columns: list[list[str]], bold: list[list[bool]]) -> str:
    escaped = [[_escape_markdown(cell) for cell in column] for column in columns]
    for column, flags in zip(escaped, bold, strict=False):
        column[:] = [f"**{cell}**" if b else cell for cell, b in zip(column, flags, strict=True)]
    widths = [max(3, *map(len, column)) for column in escaped]
    lines = list(zip(*escaped, strict=True))
    rule = ("-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:]))
    padded = [
        [line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]
        for line in (lines[0], rule, *lines[1:])
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in padded)


def to_latex(rows: Rows) -> str:
    r"""A booktabs tabular with the caption below; it needs \usepackage{booktabs}."""
    shown = [[_escape_latex(cell) for cell in column] for column in columns(rows)]
    for column, flags in zip(shown, bold(rows), strict=True):
        column[:] = [
            rf"\textbf{{{cell}}}" if b else cell for cell, b in zip(column, flags, strict=True)
        ]
    head, *body = (" & ".join(line) + r" \\" for line in zip(*shown, strict=True))
    caption = " ".join(map(_escape_latex, notes(rows)))
    text = [
        r"% needs \usepackage{booktabs}",
        rf"\begin{{tabular}}{{l{'r' * (len(columns(rows)) - 1)}}}",
        r"\toprule",
        head,
        r"\midrule",
        *body,
        r"\bottomrule",
        r"\end{tabular}",
        r"\par\smallskip",
        rf"{{\footnotesize {caption}\par}}",
    ]
    return "\n".join(text) + "\n"


def write_all(folder: Path, texts: Mapping[str, str]) -> None:
    """Write files under temporary names, then put all of them in place.

    Raises:
        DataError: the folder cannot be written.
    """
    partial = {name: folder / f".{name}.{os.getpid()}.partial" for name in texts}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in texts.items():
            partial[name].write_text(text, encoding="utf-8", newline="")
        for name, path in partial.items():
            path.replace(folder / name)
    except OSError as err:
        raise DataError(f"{folder}: cannot be written: {reason(err)}") from None
    finally:
        if folder.is_dir():
            for path in partial.values():
                path.unlink(missing_ok=True)


def _escape_markdown(text: str) -> str:
    return re.sub(r"([\\|*`])", r"\\\1", text)


def _escape_latex(text: str) -> str:
    return "".join(LATEX_SPECIAL.get(char, char) for char in text)
