"""Commands on what came out: ``evaluate`` and ``verify``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from jetssl_cli.cli.help import Command, examples
from jetssl_cli.cli.names import TABLE_FORMATS, one_of
from jetssl_cli.cli.options import AsJson
from jetssl_cli.cli.printing import print_json
from jetssl_cli.errors import DataError
from jetssl_cli.progress import print_error

room = typer.Typer()


@room.command(
    cls=Command,
    epilog=examples(
        "jetssl evaluate scores/*.h5",
        "jetssl evaluate scores/*.h5 --out tables --plots plots --report report.html",
        "jetssl evaluate scores/*.h5 --compare frozen random",
        "jetssl evaluate scores/*.h5 --group 'frozen=frozen-*' --group 'full=full-*'",
        "jetssl evaluate scores/frozen.h5 weaver/pred.root",
        "jetssl evaluate cwola-*.h5",
    ),
)
def evaluate(
    scores: Annotated[
        list[Path],
        typer.Argument(
            metavar="SCORES...", help="Score files, also of other tools; or folders of .h5 files."
        ),
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
        bool,
        typer.Option("--confusion", help="Also print the confusion matrices (rich, markdown)."),
    ] = False,
    bootstrap: Annotated[
        int, typer.Option(metavar="N", min=100, help="Replicas of the bootstrap.")
    ] = 1000,
    seed: Annotated[int, typer.Option(metavar="N", min=0, help="Seed of the bootstrap.")] = 0,
    tracking: Annotated[
        bool, typer.Option("--tracking/--no-tracking", help="Record the figures with MLflow.")
    ] = True,
    fmt: Annotated[
        str,
        typer.Option(
            "--format",
            metavar="NAME",
            help="rich, markdown, csv, json or latex.",
            autocompletion=one_of(TABLE_FORMATS),
        ),
    ] = "rich",
    as_json: AsJson = False,
) -> None:
    """Print a row for each run, the best first: accuracy, AUC, calibration, background rejections.

    Runs that differ by their seed alone are averaged; runs on the same jets are compared in pairs.
    Of other tasks: balanced accuracy of tracks, adjusted Rand index of vertices by their number, or
    significance improvement of classifiers without labels.

    Scores of other tools are read from .root (as weaver writes them), .csv and .parquet:
    score_CLASS or score_label_CLASS of each class, with label_CLASS of each (1 for the true one) or
    one column label with names.
    """
    from jetssl_cli.scores.evaluate import EvaluateConfig
    from jetssl_cli.scores.evaluate import evaluate as run
    from jetssl_cli.scores.tables import check_format, render

    fmt = "json" if as_json else fmt
    check_format(fmt)  # before any work
    cfg = EvaluateConfig(
        scores=tuple(scores),
        out=out,
        plots=plots,
        report=report,
        compare=compare,
        groups=tuple(group or ()),
        confusion=confusion,
        replicas=bootstrap,
        seed=seed,
        tracking=tracking,
    )
    table = render(run(cfg), format=fmt, confusion=confusion)
    if isinstance(table, str):
        typer.echo(table, nl=False)
    else:
        Console().print(table)


@room.command(
    cls=Command,
    epilog=examples(
        "jetssl verify train.h5 runs/frozen scores/frozen.h5",
        "jetssl verify data runs scores",
    ),
)
def verify(
    paths: Annotated[
        list[Path],
        typer.Argument(metavar="PATH...", help="Artefacts, or folders that hold them."),
    ],
    as_json: AsJson = False,
) -> None:
    """Read all of any artefact, and say whether it is sound: data, runs, scores, ONNX networks.

    One line for each: formats and versions, counts that fit together, finite values, known labels,
    checksums and hashes, also those of the data and weights that scores were made of where these
    are still there. Exit code 2 if one is damaged. Nothing that is read is executed.
    """
    from jetssl_cli.scores.verify import VerifyConfig
    from jetssl_cli.scores.verify import verify as execute

    findings = []
    for found in execute(VerifyConfig(paths=tuple(paths))):
        findings.append(found)
        if found.error is not None:
            print_error(found.error)
        elif not as_json:
            typer.echo(f"{found.path}: sound: {found.told}")
    if as_json:
        print_json(findings)
    if errors := sum(found.error is not None for found in findings):
        raise DataError(f"{errors} of {len(findings)} artefacts are not sound")
