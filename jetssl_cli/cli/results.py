"""Commands on trained networks: ``export`` and ``evaluate``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from jetssl_cli.cli.options import Overwrite

room = typer.Typer()


@room.command(epilog="Example:\n\njetssl export runs/frozen --data test.h5 --out scores/frozen.h5")
def export(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a finetuning run.")],
    data: Annotated[Path, typer.Option(metavar="FILE", help="Jagged HDF5 file of the jets.")],
    out: Annotated[Path, typer.Option(metavar="SCORES.h5", help="The score file.")],
    overwrite: Overwrite = False,
) -> None:
    """Write the scores of a finetuned network on a data set."""
    from jetssl_cli.scores.export import ExportConfig
    from jetssl_cli.scores.export import export as execute

    typer.echo(f"{execute(ExportConfig(run=run, data=data, out=out, overwrite=overwrite))}: scores")


@room.command(
    epilog="Examples:\n\n"
    "jetssl evaluate scores/*.h5\n\n"
    "jetssl evaluate scores/*.h5 --out tables --format markdown"
)
def evaluate(
    scores: Annotated[list[Path], typer.Argument(metavar="SCORES...", help="Score files.")],
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Also write the table there in every format.", show_default=False
        ),
    ] = None,
    fmt: Annotated[
        str,
        typer.Option("--format", metavar="NAME", help="rich, markdown, csv, json or latex."),
    ] = "rich",
) -> None:
    """Print one row per score file: accuracy, AUC and background rejections."""
    from jetssl_cli.scores.evaluate import EvaluateConfig
    from jetssl_cli.scores.evaluate import evaluate as run
    from jetssl_cli.scores.tables import check_format, render

    check_format(fmt)  # before any work
    table = render(run(EvaluateConfig(scores=tuple(scores), out=out)), format=fmt)
    if isinstance(table, str):
        typer.echo(table, nl=False)
    else:
        Console().print(table)
