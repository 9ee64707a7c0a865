"""Commands on trained networks: ``export``, ``generate`` and ``evaluate``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from jetssl_cli.cli.options import COMMAND_LINE, Overwrite
from jetssl_cli.config import Layer

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
    "jetssl generate runs/ssfm --data test.h5 --out generated.h5\n\n"
    "jetssl generate runs/gpt --data test.h5 --out generated.h5 --num-jets 1000 --temperature 0.9"
)
def generate(
    run: Annotated[
        Path, typer.Argument(metavar="RUN", help="Folder of a pretraining run of ssfm or gpt.")
    ],
    data: Annotated[Path, typer.Option(metavar="FILE", help="Jagged HDF5 file of true jets.")],
    out: Annotated[
        Path, typer.Option(metavar="FILE.h5", help="Jagged HDF5 file of the generated jets.")
    ],
    num_jets: Annotated[
        int | None,
        typer.Option(metavar="N", min=1, help="The first N jets only.", show_default=False),
    ] = None,
    seed: Annotated[int, typer.Option(metavar="N", min=0, help="Seed of all that is drawn.")] = 0,
    steps: Annotated[
        int, typer.Option(metavar="N", min=1, help="Steps of the integration (ssfm).")
    ] = 50,
    temperature: Annotated[
        float, typer.Option(metavar="T", help="Below 1, likely constituents become likelier (gpt).")
    ] = 1.0,
    overwrite: Overwrite = False,
) -> None:
    """Generate jets: ssfm fills in the hidden half of each, gpt writes whole ones.

    GPT is given the jet features. Prints Wasserstein distances to the true jets.
    """
    from jetssl_cli.config import load
    from jetssl_cli.scores.generate import GenerateConfig
    from jetssl_cli.scores.generate import generate as execute

    settings = {"num_jets": num_jets, "seed": seed, "steps": steps, "temperature": temperature}
    files = {"run": run, "data": data, "out": out, "overwrite": overwrite}
    report = execute(load(GenerateConfig, [Layer(COMMAND_LINE, settings | files)]))
    table = Table("", "distance", "by chance", "standard deviation", box=None)
    for row in report.distances:
        name = row.name if row.unit == "1" else f"{row.name} [{row.unit}]"
        numbers = (row.distance, row.floor, row.spread)
        table.add_row(escape(name), *("–" if x is None else f"{x:.3g}" for x in numbers))
    Console().print(table, highlight=False)
    typer.echo(
        f"{report.out}: {report.num_jets:,} jets, {report.num_constituents:,} constituents "
        f"generated; Wasserstein distances to the truth, of {report.num_compared:,} jets; by "
        "chance: between two halves of the truth"
    )


@room.command(
    epilog="Examples:\n\n"
    "jetssl evaluate scores/*.h5\n\n"
    "jetssl evaluate scores/*.h5 --out tables --plots plots --report report.html\n\n"
    "jetssl evaluate scores/*.h5 --compare frozen random\n\n"
    "jetssl evaluate scores/*.h5 --group 'frozen=frozen-*' --group 'full=full-*'\n\n"
    "jetssl evaluate scores/frozen.h5 weaver/pred.root"
)
def evaluate(
    scores: Annotated[
        list[Path], typer.Argument(metavar="SCORES...", help="Score files, also of other tools.")
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Also write the table there in every format.", show_default=False
        ),
    ] = None,
    plots: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Also plot ROC curves, confusion, scores and calibration there, as PNG and PDF.",
            show_default=False,
        ),
    ] = None,
    report: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.html",
            help="Also write one page with the tables and plots.",
            show_default=False,
        ),
    ] = None,
    compare: Annotated[
        tuple[str, str] | None,
        typer.Option(
            metavar="A B",
            help="Compare these two runs on the same jets; else each with the best.",
            show_default=False,
        ),
    ] = None,
    group: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=PATTERN",
            help="Average over the runs whose name or file matches, with their spread.",
            show_default=False,
        ),
    ] = None,
    confusion: Annotated[
        bool, typer.Option("--confusion", help="Also print the confusion matrices.")
    ] = False,
    bootstrap: Annotated[
        int, typer.Option(metavar="N", min=100, help="Replicas of the bootstrap.")
    ] = 1000,
    seed: Annotated[int, typer.Option(metavar="N", min=0, help="Seed of the bootstrap.")] = 0,
    fmt: Annotated[
        str,
        typer.Option("--format", metavar="NAME", help="rich, markdown, csv, json or latex."),
    ] = "rich",
) -> None:
    """Print a row for each run, the best first: accuracy, AUC, calibration, background rejections.

    Runs that differ by their seed alone are averaged; runs on the same jets are compared in pairs.

    Scores of other tools are read from .root (as weaver writes them), .csv and .parquet:
    score_CLASS or score_label_CLASS of each class, with label_CLASS of each (1 for the true one) or
    one column label with names.
    """
    from jetssl_cli.scores.evaluate import EvaluateConfig
    from jetssl_cli.scores.evaluate import evaluate as run
    from jetssl_cli.scores.tables import check_format, render

    check_format(fmt)  # before any work
    cfg = EvaluateConfig(
        scores=tuple(scores),
        out=out,
        plots=plots,
        report=report,
        compare=compare,
        groups=tuple(group or ()),
        replicas=bootstrap,
        seed=seed,
    )
    table = render(run(cfg), format=fmt, confusion=confusion)
    if isinstance(table, str):
        typer.echo(table, nl=False)
    else:
        Console().print(table)
