"""Rows of figures as tables: for a terminal, Markdown, LaTeX, CSV and JSON."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import PurePath

from rich import box
from rich.console import Console, ConsoleOptions
from rich.table import Table
from rich.text import Text

from jetssl_cli.errors import ConfigError, suggest
from jetssl_cli.scores.metrics import WORKING_POINTS, Estimate, Rejection, Row
from jetssl_cli.scores.rows import Cell, TaskRow

FORMATS = ("rich", "markdown", "csv", "json", "latex")

CAPTION = (
    "Uncertainties: 68 % intervals, half their width; Wilson for accuracy and rejections "
    "(threshold held fixed), DeLong for AUC. AUC: macro one-vs-one. Rejection: 1 / (QCD "
    "efficiency) at the signal efficiency in the header."
)
BOUND_NOTE = "A bound (> x): no QCD jet passes; the rejection is above x at 95 %."
REACHED_NOTE = "†: ties or few jets put the signal efficiency above the one in the header."
LATEX_SPECIAL = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "±": r"$\pm$",
    ">": "$>$",
    "<": "$<$",
    "†": r"$^\dagger$",
    "–": "--",
    "[": "{[}",
    **{char: f"\\{char}" for char in "_%&#${}"},
}


class ScoreTable:
    """A table for a terminal, split into as many blocks of columns as its width demands."""

    def __init__(self, rows: Sequence[Row | TaskRow]) -> None:
        self._names, *self._figures = columns(rows)
        self._notes = notes(rows)

    def __rich_console__(self, _: Console, options: ConsoleOptions) -> Iterator[Table | Text]:
        """Lay out the blocks; each repeats the names of the runs."""
        names = min(max(map(len, self._names)), max(options.max_width // 4, 16))
        for block in _blocks(self._figures, options.max_width - names):
            table = Table(
                box=box.SIMPLE_HEAD, padding=(0, 0, 0, 1), pad_edge=False, show_edge=False
            )
            table.add_column(self._names[0], overflow="fold", width=names)
            for header, *_cells in block:
                table.add_column(header, justify="right", no_wrap=True)
            for cells in list(zip(self._names, *block, strict=True))[1:]:
                table.add_row(*map(Text, cells))
            yield table
            yield Text()
        yield from (Text(note, style="dim") for note in self._notes)


def check_format(name: str) -> None:
    """Refuse a format that there is not.

    Raises:
        ConfigError: names the nearest.
    """
    if name not in FORMATS:
        raise ConfigError(f"no table format {name!r}; {suggest(name, FORMATS)}")


def render(rows: Sequence[Row | TaskRow], *, format: str) -> str | ScoreTable:
    """Render rows in one of ``FORMATS``; "rich" gives something for a rich Console to print.

    Raises:
        ConfigError: there is no such format.
    """
    check_format(format)
    if format == "rich":
        return ScoreTable(rows)
    writers = {"markdown": to_markdown, "csv": to_csv, "json": to_json, "latex": to_latex}
    return writers[format](rows)


def to_json(rows: Sequence[Row | TaskRow]) -> str:
    """All figures in full precision; what is undefined is null."""
    dumped = [row.model_dump(mode="json") for row in rows]
    return json.dumps(dumped, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def to_csv(rows: Sequence[Row | TaskRow]) -> str:
    """All figures in full precision, one line a row; what is undefined is empty."""
    jets, tasks = of_jets(rows), of_tasks(rows)
    records = [_record(row, _signals(jets)) for row in jets]
    records += [record for row in tasks for record in _records(row)]
    text = io.StringIO()
    writer = csv.DictWriter(text, list(records[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(records)
    return text.getvalue()


def to_markdown(rows: Sequence[Row | TaskRow]) -> str:
    """A pipe table with the caption below."""
    lines = [[_escape_markdown(cell) for cell in line] for line in zip(*columns(rows), strict=True)]
    widths = [max(3, *map(len, column)) for column in zip(*lines, strict=True)]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    padded = [
        [line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]
        for line in (lines[0], rule, *lines[1:])
    ]
    table = "\n".join(f"| {' | '.join(line)} |" for line in padded)
    return "\n\n".join([table, *map(_escape_markdown, notes(rows))]) + "\n"


def to_latex(rows: Sequence[Row | TaskRow]) -> str:
    r"""A booktabs tabular with the caption below; it needs \usepackage{booktabs}."""
    lines = zip(*columns(rows), strict=True)
    head, *body = (" & ".join(map(_escape_latex, line)) + r" \\" for line in lines)
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


def columns(rows: Sequence[Row | TaskRow]) -> list[list[str]]:
    """The columns of the human tables, headers first; of the rejections, those that any row has."""
    tasks = of_tasks(rows)
    if tasks:
        return _task_columns(tasks)
    rows = of_jets(rows)
    return [
        ["run", *run_names(rows)],
        ["jets", *(f"{row.num_jets:,}" for row in rows)],
        ["accuracy", *(_show(row.accuracy) for row in rows)],
        ["AUC", *(_show(row.auc) for row in rows)],
        *(
            [
                f"{signal} {_percent(WORKING_POINTS[signal])}",
                *(_show_rejection(row.rejection.get(signal), signal) for row in rows),
            ]
            for signal in _signals(rows)
        ),
    ]


def notes(rows: Sequence[Row | TaskRow]) -> list[str]:
    """How to read the human tables: the caption, and the marks that occur in them."""
    tasks = of_tasks(rows)
    if tasks:
        return list(tasks[0].notes)
    cells = " ".join(cell for column in columns(rows)[1:] for cell in column)
    marks = ((">", BOUND_NOTE), ("†", REACHED_NOTE))
    return [CAPTION, *(note for mark, note in marks if mark in cells)]


def run_names(rows: Sequence[Row | TaskRow]) -> list[str]:
    """What each row is called: its run's folder, with as much more as tells it from the others.

    Rows of one run are told apart by their score files.
    """
    runs = [str(PurePath(row.run or row.scores)) for row in rows]
    short = _shortest_tails(runs)
    names = []
    for run, row in zip(runs, rows, strict=True):
        same = [other.scores for other, its in zip(rows, runs, strict=True) if its == run]
        detail = _shortest_tails(same)[row.scores]
        names.append(short[run] if len(same) == 1 else f"{short[run]} ({detail})")
    return names


def of_jets(rows: Sequence[Row | TaskRow]) -> list[Row]:
    """The rows of the classification of jets."""
    return [row for row in rows if isinstance(row, Row)]


def of_tasks(rows: Sequence[Row | TaskRow]) -> list[TaskRow]:
    """The rows of another task."""
    return [row for row in rows if isinstance(row, TaskRow)]


def _task_columns(rows: Sequence[TaskRow]) -> list[list[str]]:
    named = zip(run_names(rows), rows, strict=True)
    lines = [
        {"run": name} | {k: _cell(v) for k, v in x.items()}
        for name, row in named
        for x in row.lines()
    ]
    return [[header, *(line[header] for line in lines)] for header in lines[0]]


def _cell(value: Cell) -> str:
    if isinstance(value, Estimate):
        return _show(value)
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.3g}"
    return "–" if value is None else value


def _records(row: TaskRow) -> Iterator[dict[str, object]]:
    for line in row.lines():
        record: dict[str, object] = {"scores": row.scores, "run": row.run}
        for name, value in line.items():
            if isinstance(value, Estimate):
                record |= {name: value.value, f"{name}_low": value.low, f"{name}_high": value.high}
            else:
                record[name] = value
        yield record


def _shortest_tails(paths: Sequence[str]) -> dict[str, str]:
    """For each different path, its last part, or as many parts as make it unique."""
    parts = {path: PurePath(path).parts for path in paths}
    tails = {}
    for path, own in parts.items():
        others = [other for name, other in parts.items() if name != path]
        depth = 1
        while any(other[-depth:] == own[-depth:] for other in others):
            depth += 1
        tails[path] = str(PurePath(*own[-depth:]))
    return tails


def _signals(rows: Sequence[Row]) -> list[str]:
    return [name for name in WORKING_POINTS if any(name in row.rejection for row in rows)]


def _blocks(figures: Sequence[list[str]], width: int) -> list[list[list[str]]]:
    """Cut the columns into runs that fit into a width."""
    blocks: list[list[list[str]]] = []
    left = 0
    for column in figures:
        needed = max(map(len, column)) + 2
        if needed > left or not blocks:
            blocks.append([])
            left = width
        blocks[-1].append(column)
        left -= needed
    return blocks


def _record(row: Row, signals: Sequence[str]) -> dict[str, object]:
    record: dict[str, object] = {"scores": row.scores, "run": row.run, "num_jets": row.num_jets}
    for name, figure in (("accuracy", row.accuracy), ("auc", row.auc)):
        record |= {name: figure.value, f"{name}_low": figure.low, f"{name}_high": figure.high}
    for signal in signals:
        found, name = row.rejection.get(signal), f"rejection_{signal}"
        record[name] = found and found.value
        record[f"{name}_low"] = found and found.low
        record[f"{name}_high"] = found and found.high
        record[f"{name}_efficiency"] = found and found.efficiency
        record[f"{name}_bound"] = found and str(found.bound).lower()
    return record


def _show(figure: Estimate) -> str:
    """Value and half width of the interval, to two significant digits of the latter."""
    if figure.value is None:
        return "–"
    if figure.low is None or figure.high is None:
        return f"{figure.value:.3f}"
    return _with_error(figure.value, (figure.high - figure.low) / 2)


def _show_rejection(figure: Rejection | None, signal: str) -> str:
    if figure is None:
        return "–"
    asked = _percent(WORKING_POINTS[signal])
    decimals = len(asked.partition(".")[2].rstrip("%"))
    mark = "" if f"{figure.efficiency:.{decimals}%}" == asked else "†"
    if figure.high is None:
        return f"> {figure.value:.{1 if figure.value < 100 else 0}f}{mark}"
    return _with_error(figure.value, (figure.high - figure.low) / 2) + mark


def _with_error(value: float, error: float) -> str:
    exponent = int(f"{error:.1e}".partition("e")[2])  # of the error once it is rounded
    decimals = 1 - exponent
    shown = f".{max(decimals, 0)}f"
    return f"{round(value, decimals):{shown}} ± {round(error, decimals):{shown}}"


def _percent(share: float) -> str:
    return f"{100 * share:g}%"


def _escape_markdown(text: str) -> str:
    return re.sub(r"([\\|*`])", r"\\\1", text)


def _escape_latex(text: str) -> str:
    return "".join(LATEX_SPECIAL.get(char, char) for char in text)
