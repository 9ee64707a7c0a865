"""How a command prints its result: JSON for scripts, or words and tables."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

import typer
from rich.console import Console
from rich.table import Table

from jetssl_cli.config import to_json

if TYPE_CHECKING:
    from jetssl_cli.runs.dryrun import DryRun


def print_json(report: object) -> None:
    """Print a report as it is; a number that is not finite is null."""
    typer.echo(to_json(report))


def print_table(table: Table) -> None:
    """Print a table as its cells stand: no markup, no colours, no number broken over lines.

    Columns that are to be folded are text.
    """
    if table.show_header:
        for column in table.columns[1:]:
            column.no_wrap = column.overflow != "fold"
    Console(markup=False, highlight=False).print(table)


def print_dry_run(config: str, report: DryRun) -> None:
    """Print what a run would be: its configuration, then sizes and estimates."""
    typer.echo(config)
    parts = Table("part", box=None)
    for header in ("parameters", "trained"):
        parts.add_column(header, justify="right")
    for part in report.parts:
        parts.add_row(part.name, f"{part.parameters:,}", f"{part.trained:,}")
    sums = (sum(getattr(part, name) for part in report.parts) for name in ("parameters", "trained"))
    parts.add_row("all", *(f"{number:,}" for number in sums))
    print_table(parts)
    flops, left = report.flops_per_jet, timedelta(seconds=round(report.seconds))
    lines = Table.grid(padding=(0, 2))
    done = f", {report.steps_done:,} of them done" if report.steps_done else ""
    rows = {
        "FLOPs per jet": f"{flops.forward:.3g} forward, {flops.step:.3g} forward and backward",
        "data": f"{report.train_jets:,} jets to train on, {report.val_jets:,} to validate on",
        "run": f"{report.steps:,} steps{done}, of {report.jets_per_step:,} jets; {report.jets:,} "
        f"jets, {report.epochs:.3g} epochs",
        "time": f"about {left}: {report.seconds_per_step:.3g} s a step, "
        f"{report.seconds_per_validation:.3g} s a validation",
        "memory": f"{report.memory / 2**30:.2f} GiB: {report.memory_of}",
        "measured on": f"{report.device}; {report.arithmetic}",
    }
    for name, value in rows.items():
        lines.add_row(name, value)
    print_table(lines)
    typer.echo("time and memory are estimates from a few steps; nothing was written")
