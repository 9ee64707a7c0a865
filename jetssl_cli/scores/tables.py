"""Rows of figures as tables: for a terminal, Markdown, LaTeX, CSV and JSON."""

from __future__ import annotations

import csv
import io
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from rich import box
from rich.console import Console, ConsoleOptions
from rich.table import Table
from rich.text import Text

from jetssl_cli.errors import ConfigError, DataError, suggest
from jetssl_cli.scores.compare import Difference
from jetssl_cli.scores.metrics import WORKING_POINTS, Estimate, Rejection
from jetssl_cli.scores.rows import Row, figure, figures, half_width, run_names
from jetssl_cli.scores.taskrows import Cell, TaskRow

Rows = Sequence[Row] | Sequence[TaskRow]
"""Of one table."""
FORMATS = ("rich", "markdown", "csv", "json", "latex")

CAPTION = (
    "Uncertainties: 68 % intervals of a bootstrap over the jets, half their width; in closed form "
    "for accuracy (Wilson) and AUC (DeLong). AUC: macro one-vs-one. ECE: expected calibration "
    "error. Rejection: 1 / (QCD efficiency) at the signal efficiency in the header."
)
BOUND_NOTE = "A bound (> x): no QCD jet passes; the rejection is above x at 95 %."
REACHED_NOTE = "†: ties or few jets put the signal efficiency above the one in the header: {}."
OPEN_NOTE = "‡: so few QCD jets pass that the interval is open above; what lies below is given."
BEST_NOTE = (
    "Bold: better than every other row by more than the uncertainty of the difference, on the same "
    "jets of the paired one."
)
SEEDS_NOTE = "Rows of several seeds: mean and standard deviation over the seeds."
COMPARED_NOTE = (
    "On the same jets. Accuracy and AUC: the difference; p of McNemar's exact test and of "
    "DeLong's. Rejections: the ratio; p of a paired bootstrap."
)
LABELS = {"accuracy": "accuracy", "auc": "AUC", "ece": "ECE"}
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
            yield Text(COMPARED_NOTE, style="dim")
        if self._confusion:
            for title, matrix in confusions(self._rows):
                yield Text(f"\n{title}\n")
                yield from _laid_out(matrix, [], options.max_width)


def _laid_out(
    columns: list[list[str]], bold: list[list[bool]], width: int
) -> Iterator[Table | Text]:
    names, *figures = columns
    first = min(max(map(len, names)), max(width // 4, 16))
    flags = iter(bold or [[False] * len(names)] * len(columns))
    next(flags)
    for block in _blocks(figures, width - first):
        table = Table(box=box.SIMPLE_HEAD, padding=(0, 0, 0, 1), pad_edge=False, show_edge=False)
        table.add_column(names[0], overflow="fold", width=first)
        styles = [next(flags) for _ in block]
        for header, *_cells in block:
            table.add_column(header, justify="right", no_wrap=True)
        for place, cells in enumerate(list(zip(names, *block, strict=True))[1:], 1):
            shown = [Text(cells[0])]
            for cell, style in zip(cells[1:], styles, strict=True):
                shown.append(Text(cell, style="bold" if style[place] else ""))
            table.add_row(*shown)
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
    jets, tasks = _of_jets(rows), _of_tasks(rows)
    signals = [name for name in figures(jets) if name in WORKING_POINTS]
    records: list[dict[str, object]] = [_record(row, signals) for row in jets]
    records += [record for row in tasks for record in _records(row)]
    text = io.StringIO()
    writer = csv.DictWriter(text, list(records[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(records)
    return text.getvalue()


def to_markdown(rows: Rows, *, confusion: bool = False) -> str:
    """A pipe table with the caption below; then the comparisons and confusion matrices."""
    parts = [_pipes(columns(rows), bold(rows)), *map(_escape_markdown, notes(rows))]
    if compared := comparisons(rows):
        parts += [_pipes(compared, []), _escape_markdown(COMPARED_NOTE)]
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
        raise DataError(f"{folder}: cannot be written: {err.strerror or err}") from None
    finally:
        if folder.is_dir():
            for path in partial.values():
                path.unlink(missing_ok=True)


def columns(rows: Rows) -> list[list[str]]:
    """The columns of the human tables, headers first; of the rejections, those that any row has."""
    if tasks := _of_tasks(rows):
        return _task_columns(tasks)
    jets = _of_jets(rows)
    return [
        ["run", *run_names(jets)],
        ["jets", *(f"{row.num_jets:,}" for row in jets)],
        *([_header(name), *(_cell(row, name) for row in jets)] for name in figures(jets)),
    ]


def bold(rows: Rows) -> list[list[bool]]:
    """Which cells of ``columns`` are the best of their column."""
    jets = _of_jets(rows)
    if not jets:
        return [[False] * len(column) for column in columns(rows)]
    plain = [[False] * (len(jets) + 1)] * 2
    return plain + [[False, *(name in row.best for row in jets)] for name in figures(jets)]


def notes(rows: Rows) -> list[str]:
    """How to read the human tables: the caption, and the marks that occur in them."""
    if tasks := _of_tasks(rows):
        return list(tasks[0].notes)
    jets = _of_jets(rows)
    cells = " ".join(cell for column in columns(jets)[1:] for cell in column)
    marks = {
        ">": BOUND_NOTE,
        "†": REACHED_NOTE.format(", ".join(_reached(jets))),
        "‡": OPEN_NOTE,
    }
    return [
        CAPTION,
        *(note for mark, note in marks.items() if mark in cells),
        *([SEEDS_NOTE] if any(row.seeds for row in jets) else []),
        *([BEST_NOTE] if any(row.best for row in jets) else []),
    ]


def comparisons(rows: Rows) -> list[list[str]]:
    """The columns of the table of comparisons; none if nothing is compared."""
    jets = _of_jets(rows)
    named = zip(jets, run_names(jets), strict=True)
    names = {row.scores: name for row, name in named if not row.seeds}
    pairs = [found for row in jets for found in row.comparisons]
    if not pairs:
        return []
    signals = [name for name in figures(jets) if name in WORKING_POINTS]
    return [
        ["run", *(names.get(found.scores, found.scores) for found in pairs)],
        ["against", *(names.get(found.to, found.to) for found in pairs)],
        ["accuracy", *(_show_difference(found.accuracy) for found in pairs)],
        ["AUC", *(_show_difference(found.auc) for found in pairs)],
        *(
            [
                _header(name),
                *(_show_difference(found.rejection.get(name), ratio=True) for found in pairs),
            ]
            for name in signals
        ),
    ]


def confusions(rows: Rows) -> list[tuple[str, list[list[str]]]]:
    """For each row a title, and the columns of its confusion matrix in percent."""
    found, jets = [], _of_jets(rows)
    for name, row in zip(run_names(jets), jets, strict=True):
        shares = [[100 * n / max(sum(line), 1) for n in line] for line in row.confusion]
        table = [["true class", *row.classes]]
        table += [
            [answer, *(f"{share:.1f}" for share in column)]
            for answer, column in zip(row.classes, zip(*shares, strict=True), strict=True)
        ]
        found.append((f"{name}: answers to the jets of each class, in percent", table))
    return found


def _of_jets(rows: Rows) -> list[Row]:
    return [row for row in rows if isinstance(row, Row)]


def _of_tasks(rows: Rows) -> list[TaskRow]:
    return [row for row in rows if isinstance(row, TaskRow)]


def _task_columns(rows: Sequence[TaskRow]) -> list[list[str]]:
    named = zip(run_names(rows), rows, strict=True)
    lines = [
        {"run": name} | {k: _task_cell(v) for k, v in x.items()}
        for name, row in named
        for x in row.lines()
    ]
    return [[header, *(line[header] for line in lines)] for header in lines[0]]


def _task_cell(value: Cell) -> str:
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
    record["seeds"] = len(row.seeds) or 1
    estimates = {"accuracy": row.accuracy, "auc": row.auc, "ece": row.calibration.error}
    for name, found in estimates.items():
        record |= {name: found.value, f"{name}_low": found.low, f"{name}_high": found.high}
    for signal in signals:
        cut, name = row.rejection.get(signal), f"rejection_{signal}"
        record[name] = cut and cut.value
        record[f"{name}_low"] = cut and cut.low
        record[f"{name}_high"] = cut and cut.high
        record[f"{name}_efficiency"] = cut and cut.efficiency
        record[f"{name}_bound"] = cut and str(cut.bound).lower()
    return record


def _header(name: str) -> str:
    return LABELS.get(name) or f"{name} {_percent(WORKING_POINTS[name])}"


def _cell(row: Row, name: str) -> str:
    found = figure(row, name)
    if isinstance(found, Rejection):
        return _show_rejection(found, name)
    return _show(found) if found else "–"


def _show(found: Estimate) -> str:
    """Value and half width of the interval, to two significant digits of the latter."""
    if found.value is None:
        return "–"
    if found.low is None or found.high is None or found.low == found.high:
        return f"{found.value:.3f}"
    return _with_error(found.value, half_width(found))


def _show_rejection(found: Rejection, signal: str) -> str:
    mark = "†" if _is_above(found, signal) else ""
    if found.bound:
        return f"> {found.value:.{1 if found.value < 100 else 0}f}{mark}"
    error = half_width(found)
    shown = _with_error(found.value, error) if error else f"{found.value:.3g}"
    return shown + ("‡" if found.high is None else "") + mark


def _is_above(found: Rejection, signal: str) -> bool:
    """Whether the efficiency reached looks other than the one in the header."""
    return _as_in_header(found.efficiency, signal) != _percent(WORKING_POINTS[signal])


def _as_in_header(efficiency: float, signal: str) -> str:
    decimals = len(_percent(WORKING_POINTS[signal]).partition(".")[2].rstrip("%"))
    return f"{efficiency:.{decimals}%}"


def _reached(rows: Sequence[Row]) -> list[str]:
    """The efficiencies that are above those in the header."""
    found = []
    for signal in WORKING_POINTS:
        cuts = [cut for row in rows if (cut := row.rejection.get(signal)) is not None]
        reached = [_as_in_header(cut.efficiency, signal) for cut in cuts if _is_above(cut, signal)]
        ends = dict.fromkeys((min(reached), max(reached))) if reached else ()
        found += [f"{signal} {' to '.join(ends)}"] * bool(reached)
    return found


def _show_difference(found: Difference | None, *, ratio: bool = False) -> str:
    """Value, half width and p; one without a limit by its lower one."""
    if found is None or (found.value is None and found.low is None):
        return "–"
    p = "" if found.p is None else f" (p {_show_p(found.p)})"
    if found.value is None or (ratio and found.high is None):
        return f"> {found.low:.2g}{p}"
    sign = "" if ratio or found.value < 0 else "+"
    if found.low is None or found.high is None or found.low == found.high:
        return (sign + f"{found.value:.3g}{p}").replace("-", "−")
    shown = _with_error(found.value, (found.high - found.low) / 2)
    return (sign + shown + p).replace("-", "−")


def _show_p(p: float) -> str:
    if p < 0.001:
        return "< 0.001"
    return f"{p:.3f}" if p < 0.1 else f"{p:.2f}"


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
