"""``jetssl evaluate``: score files -> figures with uncertainties -> tables."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from pydantic import Field

from jetssl_cli.config import Strict
from jetssl_cli.errors import DataError
from jetssl_cli.runs.tracking import track
from jetssl_cli.scores.metrics import (
    BACKGROUND,
    WORKING_POINTS,
    Row,
    accuracy,
    auc_ovo,
    rejection,
)
from jetssl_cli.scores.rows import TaskRow
from jetssl_cli.scores.scorefile import ScoreSet, read_scores
from jetssl_cli.scores.tables import run_names, to_csv, to_json, to_latex, to_markdown
from jetssl_cli.scores.tasks import evaluate_tasks


class EvaluateConfig(Strict):
    """Which score files to evaluate."""

    scores: tuple[Path, ...] = Field(min_length=1)
    """Score files, as written by ``jetssl export``."""
    out: Path | None = None
    """Folder for table.md, table.csv, table.json and table.tex."""
    tracking: bool = True
    """Record the tables with MLflow."""


def evaluate(cfg: EvaluateConfig) -> Sequence[Row | TaskRow]:
    """Evaluate score files of one task: one row each, in the order given.

    Raises:
        DataError: a file is named twice or is not a valid score file, the files do not have the
            same classes, or the tables cannot be written.
    """
    _refuse_repeats(cfg.scores)
    rows: Sequence[Row | TaskRow] = evaluate_tasks(cfg.scores) or evaluate_jets(cfg.scores)
    tables = {
        "table.md": to_markdown(rows),
        "table.csv": to_csv(rows),
        "table.json": to_json(rows),
        "table.tex": to_latex(rows),
    }
    if cfg.out is not None:
        _write_all(cfg.out, tables)
    with track("evaluate", None, enabled=cfg.tracking) as tracker:
        for name, text in tables.items():
            tracker.text(name, text)
        for name, row in zip(run_names(rows), rows, strict=True):
            tracker.metrics(_figures(name, row), step=0)
    return rows


def evaluate_jets(paths: Sequence[Path]) -> list[Row]:
    """All figures of score files with the classes of jets."""
    rows: list[Row] = []
    first: ScoreSet | None = None
    for path in paths:
        found = read_scores(path)
        first = first or found
        _require_same_classes(first, found)
        rows.append(evaluate_scores(found))
    return rows


def evaluate_scores(found: ScoreSet) -> Row:
    """All figures of one score file.

    A class with a working point that the file does not name has no rejection; one that it names
    but has no jets of has an undefined one.
    """
    named = [name for name in WORKING_POINTS if name in found.classes]
    return Row(
        scores=str(found.path),
        run=found.run,
        num_jets=len(found.labels),
        accuracy=accuracy(found.scores, found.labels),
        auc=auc_ovo(found.scores, found.labels),
        rejection={
            name: rejection(
                found.scores, found.labels, found.classes, name, efficiency=WORKING_POINTS[name]
            )
            for name in named
            if BACKGROUND in found.classes
        },
    )


def _figures(name: str, row: Row | TaskRow) -> dict[str, float]:
    """The defined figures of a row, under names that MLflow takes."""
    if isinstance(row, TaskRow):
        values = {key: figure.value for key, figure in row.headline().items()}
    else:
        values = {"accuracy": row.accuracy.value, "auc": row.auc.value}
        for signal, found in row.rejection.items():
            values[f"rejection/{signal}"] = found.value if found else None
    prefix = re.sub(r"[^\w./ -]", "_", name)
    return {f"{prefix}/{key}": value for key, value in values.items() if value is not None}


def _refuse_repeats(paths: tuple[Path, ...]) -> None:
    seen: set[Path] = set()
    for path in paths:
        if path.resolve() in seen:
            raise DataError(f"{path}: this score file is named twice")
        seen.add(path.resolve())


def _require_same_classes(first: ScoreSet, other: ScoreSet) -> None:
    """The order may differ: everything goes by name."""
    missing = sorted(set(first.classes) - set(other.classes))
    extra = sorted(set(other.classes) - set(first.classes))
    if missing or extra:
        differences = [f"lacks {', '.join(missing)}"] * bool(missing)
        differences += [f"adds {', '.join(extra)}"] * bool(extra)
        raise DataError(
            f"{other.path}: its classes are not those of {first.path}: {'; '.join(differences)}"
        )


def _write_all(folder: Path, tables: Mapping[str, str]) -> None:
    """Write all tables under temporary names, then put them in place."""
    partial = {name: folder / f".{name}.{os.getpid()}.partial" for name in tables}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in tables.items():
            partial[name].write_text(text, encoding="utf-8", newline="")
        for name, path in partial.items():
            path.replace(folder / name)
    except OSError as err:
        raise DataError(f"{folder}: the tables cannot be written: {err.strerror or err}") from None
    finally:
        if folder.is_dir():
            for path in partial.values():
                path.unlink(missing_ok=True)
