"""What stands in the tables: columns of cells, marks, notes, and what is compared."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from jetssl_cli.scores.compare import Difference
from jetssl_cli.scores.metrics import BACKGROUND, WORKING_POINTS, Estimate, Rejection
from jetssl_cli.scores.rows import Row, figure, figures, half_width, run_names
from jetssl_cli.scores.taskrows import Cell, TaskRow

Rows = Sequence[Row] | Sequence[TaskRow]
"""Of one table."""
CAPTION = (
    "Uncertainties: 68 % intervals of a bootstrap over the jets, half their width; in closed form "
    "for accuracy (Wilson) and AUC (DeLong). AUC: macro one-vs-one. ECE: expected calibration "
    "error."
)
REJECTION_NOTE = "Rejection: 1 / (QCD efficiency) at the signal efficiency in the header."
NO_REJECTION_NOTE = "No class is called QCD: there are no rejections."
BOUND_NOTE = "A bound (> x): no QCD jet passes; the rejection is above x at 95 %."
REACHED_NOTE = "†: ties or few jets put the signal efficiency above the one in the header: {}."
OPEN_NOTE = "‡: so few QCD jets pass that the interval is open above; what lies below is given."
BEST_NOTE = (
    "Bold: better than every other row by more than the uncertainty of the difference, on the same "
    "jets of the paired one."
)
SEEDS_NOTE = "Rows of several seeds: mean and standard deviation over the seeds."
NO_MEAN_NOTE = (
    "A dash in such a row: not all seeds have the figure, or some of them, but not all, as a "
    "bound. A bound there is the smallest of the seeds."
)
COMPARED_NOTE = (
    "On the same jets. Accuracy and AUC: the difference; p of McNemar's exact test and of "
    "DeLong's. Rejections: the ratio, or its limit at 95 % where no background jet passes in one "
    "of the two; p of a paired bootstrap."
)
LABELS = {"accuracy": "accuracy", "auc": "AUC", "ece": "ECE"}


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
    caption = [CAPTION]
    if any(row.rejection for row in jets):
        caption = [f"{CAPTION} {REJECTION_NOTE}"]
    elif BACKGROUND not in jets[0].classes:
        caption.append(NO_REJECTION_NOTE)
    return [
        *caption,
        *(note for mark, note in marks.items() if mark in cells),
        *([SEEDS_NOTE] if any(row.seeds for row in jets) else []),
        *([NO_MEAN_NOTE] if any(row.seeds and not _all_known(row) for row in jets) else []),
        *([BEST_NOTE] if any(row.best for row in jets) else []),
    ]


def _all_known(row: Row) -> bool:
    """Whether a row has all rejections, and no bound."""
    return all(found is not None and not found.bound for found in row.rejection.values())


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


def comparison_notes(compared: list[list[str]]) -> list[str]:
    """How to read the columns of ``comparisons``."""
    is_open = any("‡" in cell for column in compared for cell in column)
    return [COMPARED_NOTE, *([OPEN_NOTE] if is_open else [])]


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


def records(rows: Rows) -> list[dict[str, object]]:
    """All figures in full precision, by the name of their column in a CSV; None is undefined."""
    jets, tasks = _of_jets(rows), _of_tasks(rows)
    signals = [name for name in figures(jets) if name in WORKING_POINTS]
    found: list[dict[str, object]] = [_record(row, signals) for row in jets]
    return found + [record for row in tasks for record in _records(row)]


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
        reached = [cut.efficiency for cut in cuts if _is_above(cut, signal)]
        both = (min(reached), max(reached)) if reached else ()
        ends = dict.fromkeys(_as_in_header(efficiency, signal) for efficiency in both)
        found += [f"{signal} {' to '.join(ends)}"] * bool(reached)
    return found


def _show_difference(found: Difference | None, *, ratio: bool = False) -> str:
    """Value, half width and p; of one with a limit alone, that."""
    if found is None or (found.value, found.low, found.high) == (None, None, None):
        return "–"
    p = "" if found.p is None else f" (p {_show_p(found.p)})"
    if found.value is None and found.low is not None:
        return f"> {found.low:.2g}{p}"
    if found.value is None:
        return f"< {found.high:.2g}{p}"
    sign = "" if ratio or found.value < 0 else "+"
    error = half_width(found)
    shown = _with_error(found.value, error) if error else f"{found.value:.3g}"
    mark = "‡" if found.low is not None and found.high is None else ""
    return (sign + shown + mark + p).replace("-", "−")


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
