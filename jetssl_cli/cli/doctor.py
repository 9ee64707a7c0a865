"""The command ``doctor``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich import box
from rich.table import Table
from rich.text import Text

from jetssl_cli.cli.help import Command, examples
from jetssl_cli.cli.options import AsJson
from jetssl_cli.cli.printing import print_json, print_table

room = typer.Typer()

STYLES = {"works": "green", "absent": "yellow", "broken": "bold red"}


@room.command(
    cls=Command,
    epilog=examples(
        "jetssl doctor",
        "jetssl doctor --folder /scratch --json",
    ),
)
def doctor(
    folder: Annotated[
        Path, typer.Option(metavar="DIR", help="Where data and runs are to be: its disk is tried.")
    ] = Path(),
    as_json: AsJson = False,
) -> None:
    """Say what works on this machine, and what to install or change.

    Exits with 1 if something is broken; what is absent, such as a GPU, is no reason.
    """
    from jetssl_cli.runs.doctor import doctor as run

    findings = run(folder)
    if as_json:
        print_json(findings)
    else:
        table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
        table.add_column(no_wrap=True)
        table.add_column(no_wrap=True)
        table.add_column("found", overflow="fold")
        for one in findings:
            found = Text(one.found + (f"\n-> {one.advice}" if one.advice else ""))
            table.add_row(one.name, Text(one.state, style=STYLES[one.state]), found)
        print_table(table)
    if any(finding.state == "broken" for finding in findings):
        raise typer.Exit(1)
