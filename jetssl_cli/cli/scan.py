"""The command ``scan``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from jetssl_cli.cli.help import Command, examples
from jetssl_cli.cli.names import MODES, some_of
from jetssl_cli.cli.options import COMMAND_LINE, AsJson
from jetssl_cli.cli.printing import print_json, print_table
from jetssl_cli.cli.training import Overrides
from jetssl_cli.config import Layer

room = typer.Typer()


@room.command(
    cls=Command,
    epilog=examples(
        "jetssl scan --backbone runs/ssfm --num-jets 100,1000,10000 --train train.h5 --val "
        "val.h5 --test test.h5 --out scan",
        "jetssl scan --backbone runs/ssfm --backbone runs/mpm --num-jets 100,1000 --modes "
        "frozen,random --seeds 5 --jobs 2 --train train.h5 --val val.h5 --test test.h5 "
        "--out scan data.num_val_jets=5000",
    ),
)
def scan(
    backbone: Annotated[
        list[Path],
        typer.Option(metavar="RUN", help="Folder of a pretraining run; can be given again."),
    ],
    num_jets: Annotated[
        str, typer.Option(metavar="N,N,...", help="Numbers of labelled jets to train on.")
    ],
    train: Annotated[
        list[Path],
        typer.Option(metavar="FILE", help="Jagged HDF5 file to train on; can be given again."),
    ],
    val: Annotated[
        list[Path],
        typer.Option(metavar="FILE", help="Jagged HDF5 file to validate on; can be given again."),
    ],
    test: Annotated[Path, typer.Option(metavar="FILE", help="Jagged HDF5 file to measure on.")],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder of all that is made.")],
    modes: Annotated[
        str,
        typer.Option(
            metavar="NAME,...",
            help="What becomes of the backbone.",
            autocompletion=some_of(MODES),
        ),
    ] = "frozen,full,from-scratch,random",
    seeds: Annotated[
        int, typer.Option(metavar="N", help="Trainings of each kind, with other jets and weights.")
    ] = 3,
    steps: Annotated[int, typer.Option(metavar="N", help="Most steps of a training.")] = 2000,
    patience: Annotated[
        int, typer.Option(metavar="N", help="End it after N of 40 validations without a gain.")
    ] = 8,
    rejection: Annotated[
        str | None,
        typer.Option(
            metavar="CLASS", help="Also plot the rejection of this class.", show_default=False
        ),
    ] = None,
    jobs: Annotated[int, typer.Option(metavar="N", min=1, help="Trainings at a time.")] = 1,
    as_json: AsJson = False,
    overrides: Overrides = None,
) -> None:
    """Plot accuracy against the number of labelled jets, for backbones and baselines.

    What is done already is kept, so that a scan that was stopped goes on.
    """
    from rich.table import Table

    from jetssl_cli.config import load
    from jetssl_cli.scores.scan import ScanConfig
    from jetssl_cli.scores.scan import scan as run

    settings = {
        "backbones": [str(path) for path in backbone],
        "num_jets": num_jets,
        "train": list(map(str, train)),
        "val": list(map(str, val)),
        "test": str(test),
        "out": str(out),
        "modes": modes,
        "seeds": seeds,
        "steps": steps,
        "patience": patience,
        "rejection": rejection,
        "jobs": jobs,
        "overrides": overrides or [],
    }
    report = run(load(ScanConfig, [Layer(COMMAND_LINE, settings)]))
    if as_json:
        print_json(report)
        return
    table = Table("", "jets", "accuracy", box=None)
    for row in report.summary:
        spread = "" if row.accuracy_std is None else f" ± {row.accuracy_std:.4f}"
        table.add_row(row.line, f"{row.num_jets:,}", f"{row.accuracy:.4f}{spread}")
    print_table(table)
    typer.echo(f"{', '.join(map(str, report.files))}: written")
