"""What ``jetssl inspect`` found, as text: for a terminal, Markdown and JSON."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from rich import box
from rich.console import Console, ConsoleOptions, Group, RenderableType
from rich.table import Table
from rich.text import Text

from jetssl_cli.config import to_json
from jetssl_cli.data.inspect import ColumnReport, InspectReport, TruthReport
from jetssl_cli.data.layout import laid_out
from jetssl_cli.errors import ConfigError, suggest

FORMATS = ("rich", "markdown", "json")
CLASSES_SHOWN = 20
VALUES_SHOWN = 12
NONE = "–"
BAD = "nan/inf"


@dataclass(frozen=True)
class _Part:
    """A title, and a table below it."""

    title: str
    header: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]
    note: str = ""
    words: bool = False
    """Its cells are words, which may be broken over lines."""

    def __rich_console__(self, _: Console, options: ConsoleOptions) -> Iterator[Table | Text]:
        yield Text(self.title, style="bold")
        styles = ["bold red" if self._is_bad(row) else "" for row in self.rows]
        if self.words:
            table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False,
                          show_edge=False, show_header=any(self.header))  # fmt: skip
            for name in self.header:
                table.add_column(name, overflow="fold")
            for row, style in zip(self.rows, styles, strict=True):
                table.add_row(*map(Text, row), style=style)
            yield table
        else:
            columns = list(zip(self.header, *self.rows, strict=True))
            of_cells = [["", *styles]] * len(columns)
            for place, table in enumerate(laid_out(columns, of_cells, options.max_width)):
                yield from [Text()] * bool(place)
                yield table
        yield from [Text(self.note, style="dim")] * bool(self.note)
        yield Text()

    def _is_bad(self, row: tuple[str, ...]) -> bool:
        return (self.header[-1] == BAD and row[-1] != "0") or row[0] == BAD


def check_format(name: str) -> None:
    """Refuse a format that there is not.

    Raises:
        ConfigError: names the nearest.
    """
    if name not in FORMATS:
        raise ConfigError(f"no format {name!r}; {suggest(name, FORMATS)}")


def render(report: InspectReport, *, format: str) -> RenderableType:
    """Render in one of ``FORMATS``; "rich" is for a rich Console to print, others are text.

    Raises:
        ConfigError: there is no such format.
    """
    check_format(format)
    if format == "json":
        return to_json(report) + "\n"
    parts = [part for part in _parts(report) if part.rows]
    return "\n".join(map(_markdown, parts)) if format == "markdown" else Group(*parts)


def _parts(report: InspectReport) -> list[_Part]:
    note = f"min, max, zeros: whole file; percentiles: first {report.sample:,} jets"
    if report.sample == report.num_jets:
        note = "of all jets"
    if any(column.missing for column in report.constituents):
        note += "; missing: of neutral constituents, left out of all other columns"
    header = ("", "min", "1 %", "median", "99 %", "max", "zeros", "missing", BAD)
    total = report.num_constituents
    return [
        _Part(str(report.file), ("", ""), _summary(report), words=True),
        _Part("Storage", ("array", "type", "bytes/jet", "compressed"), _storage(report)),
        _Part("Classes", ("class", "jets", "share"), _classes(report)),
        _Part(
            "Constituent features",
            header,
            [_column(column, total) for column in report.constituents],
            note,
        ),
        _Part("Jet features", header, [_column(column, report.num_jets) for column in report.jets]),
        _Part("Particle classes", ("class", "constituents", "share"), _shares(report.ids, total)),
        _Part(
            "Truth",
            ("column", "distinct values", "constituents by value"),
            _truths(report),
            words=True,
        ),
    ]


def _summary(report: InspectReport) -> list[tuple[str, str]]:
    jets, total = report.num_jets, report.num_constituents
    left_out = [f"{number:,} {reason}" for reason, number in report.left_out.items() if number]
    each = f", {total / jets:.1f} a jet ({report.fewest} to {report.most})" if jets else ""
    size = f"{report.size:,} bytes"
    if jets:
        ratio = report.memory / report.size
        size += f", {report.size / jets:,.0f} a jet, {ratio:.2g} times smaller than in memory"
    rows = [
        ("recipe", f"{report.recipe}: {report.description}"),
        ("format", f"version {report.version}, constituent features in {report.precision}"),
        ("sources", f"{report.sources:,}"),
        ("jets", f"{jets:,}"),
        ("constituents", f"{total:,}{each}"),
        ("left out", ", ".join(left_out) or ("nothing" if report.left_out else "not noted")),
        ("size", size),
    ]
    bad = sum(column.non_finite for column in (*report.constituents, *report.jets))
    rows += [(BAD, f"{bad:,} values")] if bad else []
    return rows + [("plot", str(path)) for path in report.plots]


def _storage(report: InspectReport) -> list[tuple[str, ...]]:
    return [
        (
            name,
            array.type,
            f"{array.stored / report.num_jets:,.1f}",
            f"{array.memory / array.stored:.3g} x" if array.stored else NONE,
        )
        for name, array in report.arrays.items()
        if report.num_jets
    ]


def _classes(report: InspectReport) -> list[tuple[str, str, str]]:
    if len(report.classes) <= CLASSES_SHOWN:
        return _shares(report.classes, report.num_jets)
    largest = sorted(report.classes.items(), key=lambda item: -item[1])
    shown, rest = dict(largest[:CLASSES_SHOWN]), dict(largest[CLASSES_SHOWN:])
    empty = sum(not count for count in rest.values())
    label = f"{len(rest)} classes more" + (f", {empty} without jets" if empty else "")
    return _shares({**shown, label: sum(rest.values())}, report.num_jets)


def _shares(counts: Mapping[str, int], total: int) -> list[tuple[str, str, str]]:
    return [(name, f"{count:,}", _share(count, total)) for name, count in counts.items()]


def _column(column: ColumnReport, total: int) -> tuple[str, ...]:
    unit = "" if column.unit == "1" else f" [{column.unit}]"
    numbers = (column.min, column.p1, column.median, column.p99, column.max)
    return (
        f"{column.name}{unit}",
        *map(_number, numbers),
        _share(column.zeros, 1),
        _share(column.missing, total),
        f"{column.non_finite:,}",
    )


def _truths(report: InspectReport) -> list[tuple[str, str, str]]:
    def counts(column: TruthReport) -> str:
        shown = [f"{value}: {count:,}" for value, count in list(column.values.items())]
        more = len(shown) > VALUES_SHOWN or column.others
        return ", ".join(shown[:VALUES_SHOWN] + ["..."] * bool(more))

    return [
        (
            column.name,
            f"more than {len(column.values):,}" if column.others else f"{len(column.values):,}",
            counts(column),
        )
        for column in report.truth
    ]


def _number(value: float | None) -> str:
    if value is None:
        return NONE
    return f"{value:.4g}" if value == 0 or abs(value) >= 0.01 else f"{value:.1e}"


def _share(count: int | float | None, total: int | float) -> str:
    """A percentage in which nothing is 0 and everything is 100 % only if it is so exactly."""
    if count is None or not total:
        return NONE
    percent = 100 * count / total
    if 0 < percent < 0.05:
        return "< 0.1 %"
    if 99.95 <= percent < 100:
        return "> 99.9 %"
    return "0" if not percent else f"{percent:.1f} %"


def _markdown(part: _Part) -> str:
    lines = [[cell.replace("|", "\\|") for cell in row] for row in (part.header, *part.rows)]
    widths = [max(3, *map(len, column)) for column in zip(*lines, strict=True)]
    rows = [
        "| " + " | ".join(map(str.ljust, line, widths)) + " |"
        for line in (lines[0], ["-" * width for width in widths], *lines[1:])
    ]
    note = f"\n\n{part.note}" if part.note else ""
    return f"## {part.title}\n\n" + "\n".join(rows) + note + "\n"
