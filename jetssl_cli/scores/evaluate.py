"""``jetssl evaluate``: score files -> figures with uncertainties -> tables, plots and a report."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePath

from pydantic import Field, NonNegativeInt

from jetssl_cli.config import Strict
from jetssl_cli.data.find import find
from jetssl_cli.data.recipe import load_recipe
from jetssl_cli.errors import ConfigError, DataError, suggest
from jetssl_cli.progress import note, progress
from jetssl_cli.runs.tracking import record
from jetssl_cli.scores.compare import Difference, Pairs
from jetssl_cli.scores.curves import Curves, curves_of
from jetssl_cli.scores.foreign import read_any
from jetssl_cli.scores.groups import grouped
from jetssl_cli.scores.identity import same_jets
from jetssl_cli.scores.metrics import REPLICAS, WORKING_POINTS
from jetssl_cli.scores.rows import Row, figure, figures, mark_best, ordered, run_names
from jetssl_cli.scores.scorefile import ScoreSet
from jetssl_cli.scores.single import Evaluated, evaluate_scores
from jetssl_cli.scores.tables import to_csv, to_json, to_latex, to_markdown, write_all
from jetssl_cli.scores.taskrows import TaskRow
from jetssl_cli.scores.tasks import evaluate_tasks

FEWEST_REPLICAS = 100
"""Of which the ends of an interval can be told."""


PAGES = (".html", ".htm")
"""Ends of the names of a report: no other file is written over."""


class EvaluateConfig(Strict):
    """Which score files to evaluate."""

    scores: tuple[Path, ...] = Field(min_length=1)
    """Score files of ``jetssl export`` or folders of such; ROOT, CSV, parquet of other tools."""
    out: Path | None = None
    """Folder for table.md, table.csv, table.json and table.tex."""
    plots: Path | None = None
    """Folder for plots, as PNG and PDF."""
    report: Path | None = None
    """HTML page with tables and plots."""
    compare: tuple[str, str] | None = None
    """Two runs to compare, by score file or name; else each is compared with the best."""
    groups: tuple[str, ...] = ()
    """``NAME=PATTERN``: runs to average over, by their name or their score file."""
    confusion: bool = False
    """Confusion matrices are wanted; JSON always has them."""
    replicas: int = Field(default=REPLICAS, ge=FEWEST_REPLICAS)
    """Replicas of the bootstrap."""
    seed: NonNegativeInt = 0
    """Seed of the bootstrap."""
    tracking: bool = True
    """Record the tables with MLflow."""


def evaluate(cfg: EvaluateConfig) -> list[Row] | list[TaskRow]:
    """Evaluate score files of one task; of jets a row for each run, the highest accuracy first.

    Runs that differ by their seed alone are averaged, if their files say so or ``groups`` does.

    Raises:
        ConfigError: a group or a run to compare is not there, or the report is to be a folder.
        DataError: a file is named twice or is not a valid score file, the files do not have the
            same classes, or the results cannot be written.
    """
    cfg = cfg.model_copy(update={"scores": tuple(_files_of(cfg.scores))})
    _refuse_repeats(cfg.scores)
    _refuse_places(cfg)
    tasks = evaluate_tasks(cfg.scores)
    if tasks:
        _refuse_what_is_for_jets(cfg)
        _publish(tasks, cfg)
        return tasks
    runs: list[Evaluated] = []
    for path in cfg.scores:
        found = read_any(path)
        found = found.in_order(_classes(found, runs))
        runs.append(_evaluate_one(found, cfg))
    rows = _compared(grouped(runs, cfg.groups), runs, cfg)
    _publish(rows, cfg)
    _draw(rows, {row.scores: runs[_place(row.scores, runs)].curves for row in rows}, cfg)
    return rows


def _files_of(paths: Sequence[Path]) -> Iterator[Path]:
    """The files that are named, and the score files of folders."""
    for path in paths:
        yield from find([path], ".h5") if path.is_dir() else [path]


def _publish(rows: Sequence[Row] | Sequence[TaskRow], cfg: EvaluateConfig) -> None:
    """Write the tables, and record them with MLflow."""
    tables = {
        "table.md": to_markdown(rows),
        "table.csv": to_csv(rows),
        "table.json": to_json(rows),
        "table.tex": to_latex(rows),
    }
    if cfg.out is not None:
        write_all(cfg.out, tables)
    if cfg.tracking:
        named: list[Row | TaskRow] = [*rows]
        values: dict[str, float] = {}
        for name, row in zip(run_names(rows), named, strict=True):
            values |= _metrics(name, row)
        record("evaluate", tables, values)


def _refuse_places(cfg: EvaluateConfig) -> None:
    """Raises ConfigError if an output is to be where something else is."""
    for option, path in (("--out", cfg.out), ("--plots", cfg.plots)):
        if path is not None and path.is_file():
            raise ConfigError(f"{option} {path}: is a file; a folder is needed")
    if cfg.report is not None and cfg.report.suffix not in PAGES:
        raise ConfigError(f"--report {cfg.report}: a page, such as report.html, is needed")
    if cfg.report is not None and cfg.report.is_dir():
        raise ConfigError(f"--report {cfg.report}: is a folder; a file is needed")


def _refuse_what_is_for_jets(cfg: EvaluateConfig) -> None:
    asked = (("--plots", cfg.plots), ("--report", cfg.report), ("--compare", cfg.compare))
    for option, value in (*asked, ("--group", cfg.groups), ("--confusion", cfg.confusion)):
        if value:
            raise ConfigError(f"{option}: is for scores of the classes of jets")


def _draw(rows: Sequence[Row], curves: Mapping[str, Curves | None], cfg: EvaluateConfig) -> None:
    """Write the plots and the page, if they are asked for."""
    if cfg.plots is None and cfg.report is None:
        return
    from jetssl_cli.data.style import save, settings
    from jetssl_cli.scores.plots import draw
    from jetssl_cli.scores.report import write_report

    with settings():
        figures = dict(draw(rows, curves))
        times = (cfg.plots is not None) + (cfg.report is not None)
        with progress("plots", times * len(figures), "figures") as advance:
            if cfg.plots is not None:
                for stem, figure in figures.items():
                    save(figure, cfg.plots / stem)
                    advance(1)
            if cfg.report is not None:
                write_report(rows, figures, cfg.report, advance)


def _evaluate_one(found: ScoreSet, cfg: EvaluateConfig) -> Evaluated:
    row, answers = evaluate_scores(found, replicas=cfg.replicas, seed=cfg.seed)
    wanted = cfg.plots is not None or cfg.report is not None
    curves = curves_of(found, answers.discriminants) if wanted else None
    return Evaluated(row, answers, found.identity(), found.seed, found.group, curves)


def _classes(found: ScoreSet, before: Sequence[Evaluated]) -> tuple[str, ...]:
    """The order of all: that of the project where it knows the classes, else of the first file."""
    if before:
        _require_same_classes(before[0].row, found)
        return before[0].row.classes
    known = load_recipe("jetclass").labels.classes
    return known if set(known) == set(found.classes) else found.classes


def _compared(rows: Sequence[Row], runs: Sequence[Evaluated], cfg: EvaluateConfig) -> list[Row]:
    """The rows in order, with the best marked and runs on the same jets held against each other."""
    answers = {run.row.scores: run.answers for run in runs}
    pairs = Pairs(answers, replicas=cfg.replicas, seed=cfg.seed)
    jets = {run.row.scores: run.jets for run in runs}

    def paired(name: str, row: Row, other: Row) -> Difference | None:
        """Of single runs on the same jets alone."""
        together = same_jets(jets[row.scores], jets[other.scores])
        if name == "ece" or row.seeds or other.seeds or not together:
            return None
        return pairs.difference(name, row.scores, other.scores)

    rows = mark_best(ordered(rows), paired)
    if cfg.compare is not None:
        one, other = (runs[_place(name, runs)].row.scores for name in cfg.compare)
        if not same_jets(jets[one], jets[other]):
            raise DataError(
                f"{one}: its jets are not those of {other}; "
                "only runs on the same jets can be compared"
            )
        wanted = {one: other}
    else:
        best, *others = [row.scores for row in rows if not row.seeds] or [""]
        wanted = {one: best for one in others if same_jets(jets[one], jets[best])}
        if apart := [one for one in others if one not in wanted]:
            note(
                f"{', '.join(apart[:3])}{' and others' * (len(apart) > 3)}: of other jets than "
                f"{best}, as far as the files tell; not compared in pairs"
            )
    made = {one: pairs.comparison(one, other) for one, other in wanted.items()}
    return [
        row.model_copy(update={"comparisons": tuple(made[s] for s in _files(row) if s in made)})
        for row in rows
    ]


def _files(row: Row) -> tuple[str, ...]:
    return row.seeds or (row.scores,)


def _place(name: str, runs: Sequence[Evaluated]) -> int:
    """The run that a user means: by its folder, its name in the table, or its score file."""
    rows = [run.row for run in runs]
    names, files = run_names(rows), [PurePath(row.scores) for row in rows]
    of_files = [[file.name for file in files], [file.stem for file in files]]
    for known in ([row.scores for row in rows], [row.run for row in rows], names, *of_files):
        for meant in (name, str(PurePath(name))):  # ./scores.h5, runs/ssfm/
            if known.count(meant) == 1:
                return known.index(meant)
    raise ConfigError(f"no run {name!r}; {suggest(name, [*names, *of_files[0]])}")


def _metrics(name: str, row: Row | TaskRow) -> dict[str, float]:
    """The defined figures of a row, under names that MLflow takes."""
    if isinstance(row, TaskRow):
        headline = {key: found.value for key, found in row.headline().items()}
    else:
        named = {key: figure(row, key) for key in figures([row])}
        headline = {
            f"{'rejection/' * (key in WORKING_POINTS)}{key}": found.value
            for key, found in named.items()
            if found is not None
        }
    prefix = re.sub(r"[^\w./ -]", "_", name)
    return {f"{prefix}/{key}": value for key, value in headline.items() if value is not None}


def _refuse_repeats(paths: tuple[Path, ...]) -> None:
    seen: set[Path] = set()
    for path in paths:
        if path.resolve() in seen:
            raise DataError(f"{path}: this score file is named twice")
        seen.add(path.resolve())


def _require_same_classes(first: Row, other: ScoreSet) -> None:
    """The order may differ: everything goes by name."""
    missing = sorted(set(first.classes) - set(other.classes))
    extra = sorted(set(other.classes) - set(first.classes))
    if missing or extra:
        differences = [f"lacks {', '.join(missing)}"] * bool(missing)
        differences += [f"adds {', '.join(extra)}"] * bool(extra)
        raise DataError(
            f"{other.path}: its classes are not those of {first.scores}: {'; '.join(differences)}"
        )
