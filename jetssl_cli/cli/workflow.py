"""The command ``workflow``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from jetssl_cli.cli.help import Command, examples
from jetssl_cli.cli.names import one_of, preset, some_of
from jetssl_cli.cli.options import COMMAND_LINE, AsJson
from jetssl_cli.cli.printing import print_json, print_table
from jetssl_cli.cli.training import OwnConfig
from jetssl_cli.config import Layer, shipped_names

if TYPE_CHECKING:
    from jetssl_cli.scores.workflow import RuleTime

room = typer.Typer()


@room.command(
    cls=Command,
    epilog=examples(
        "jetssl workflow --size tiny",
        "jetssl workflow --size base --profile slurm --budget 24h --jetclass JetClass "
        "--config site.yaml",
        "jetssl workflow --methods ssfm,mpm --seeds 1 --budget 100000 --dry-run",
        "jetssl workflow --dag jobs.svg",
    ),
)
def workflow(
    size: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="Size of the encoder: tiny, small or base.",
            autocompletion=preset("configs/workflow"),
        ),
    ] = "tiny",
    profile: Annotated[
        str | None,
        typer.Option(
            metavar="local|slurm|DIR",
            help="Where jobs run: here, on SLURM, or as a Snakemake profile of your own says.",
            show_default="local",
            autocompletion=one_of(("local", "slurm")),
        ),
    ] = None,
    budget: Annotated[
        str | None,
        typer.Option(
            metavar="JETS|TIME",
            help="Of each pretraining: jets seen, or a time such as 24h.",
            show_default="as the size says",
        ),
    ] = None,
    methods: Annotated[
        str | None,
        typer.Option(
            metavar="NAME,...",
            help="Methods of pretraining.",
            show_default="all five",
            autocompletion=some_of(shipped_names("configs/pretrain")),
        ),
    ] = None,
    seeds: Annotated[
        int | None,
        typer.Option(metavar="N", help="Trainings of each kind.", show_default="3"),
    ] = None,
    jetclass: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Folder of JetClass, with train_100M, val_5M and test_20M; else jets are "
            "simulated.",
            show_default=False,
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Folder of all that is made.", show_default="workflow"),
    ] = None,
    jobs: Annotated[
        int | None,
        typer.Option(
            "--jobs",
            "--cores",
            metavar="N",
            help="Cores to use, or SLURM jobs at a time.",
            show_default="all cores; 50 jobs",
        ),
    ] = None,
    config: OwnConfig = None,
    only_say: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be run, and run nothing.")
    ] = False,
    dag: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Draw all jobs as .png, .svg (with Graphviz) or .dot, and run nothing.",
            show_default=False,
        ),
    ] = None,
    as_json: AsJson = False,
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[SECTION.KEY=VALUE]...",
            help="Settings, such as finetune.budget=50000 or slurm.partition=gpu.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Make the headline table from nothing: all methods, frozen and finetuned, beside baselines.

    Simulates (or takes JetClass), converts, merges, pretrains each method with several seeds,
    finetunes with a frozen and a free backbone, trains the same from scratch and on a random
    backbone, and writes tables, plots and report.html. What is done is kept, what failed or was
    stopped goes on. Needs the extra "workflow".
    """
    from jetssl_cli.scores.workflow import draw, dry_run
    from jetssl_cli.scores.workflow import workflow as run
    from jetssl_cli.scores.workflow_config import load_config

    given = {
        "profile": profile,
        "pretrain": {"budget": budget} if budget is not None else None,
        "methods": methods,
        "seeds": seeds,
        "jetclass": str(jetclass) if jetclass else None,
        "out": str(out) if out else None,
        "jobs": jobs,
    }
    settings = {name: value for name, value in given.items() if value is not None}
    layer = Layer(COMMAND_LINE, settings)
    cfg = load_config(size, layer, config=config, overrides=overrides or [])
    if dag is not None:
        draw(cfg, dag)
        print_json(dag) if as_json else typer.echo(f"{dag}: written")
    elif only_say:
        planned = dry_run(cfg)
        print_json(planned) if as_json else _print_jobs(planned)
    else:
        report = run(cfg)
        print_json(report) if as_json else _print_times(report.times)
        if not as_json:
            typer.echo(f"{report.report}: written" if report.report else f"{cfg.out}: done")


def _print_jobs(planned: Mapping[str, int]) -> None:
    table = Table("", "jobs", box=None)
    for rule, number in planned.items():
        table.add_row(rule, f"{number:,}")
    print_table(table)
    typer.echo(f"{sum(planned.values()):,} jobs would be run; nothing was written")


def _print_times(found: Sequence[RuleTime]) -> None:
    table = Table("", "jobs", "seconds", "of each", box=None)
    for row in found:
        table.add_row(row.rule, f"{row.jobs}", f"{row.seconds:,.0f}", f"{row.mean:,.0f}")
    print_table(table)
