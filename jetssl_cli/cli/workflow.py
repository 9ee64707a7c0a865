"""The command ``workflow``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from jetssl_cli.cli.options import COMMAND_LINE
from jetssl_cli.config import Layer

if TYPE_CHECKING:
    from jetssl_cli.scores.workflow import RuleTime

room = typer.Typer()


@room.command(
    epilog="Examples:\n\n"
    "jetssl workflow --size tiny\n\n"
    "jetssl workflow --size base --profile slurm --budget 24h --jetclass JetClass "
    "--config site.yaml\n\n"
    "jetssl workflow --methods ssfm,mpm --seeds 1 --budget 100000 --dry-run\n\n"
    "jetssl workflow --dag jobs.svg"
)
def workflow(
    size: Annotated[
        str, typer.Option(metavar="NAME", help="Size of the encoders: tiny, small or base.")
    ] = "tiny",
    profile: Annotated[
        str | None,
        typer.Option(
            metavar="local|slurm|DIR",
            help="Where jobs run: here, on SLURM, or as a Snakemake profile of your own says.",
            show_default="local",
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
        typer.Option(metavar="NAME,...", help="Methods of pretraining.", show_default="all five"),
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
    config: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="YAML file laid over the preset, such as one with your site's SLURM settings.",
            show_default=False,
        ),
    ] = None,
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
    from jetssl_cli.scores.workflow import draw, dry_run, load_config, times
    from jetssl_cli.scores.workflow import workflow as run

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
        typer.echo(f"{dag}: written")
    elif only_say:
        typer.echo(dry_run(cfg), nl=False)
    else:
        report = run(cfg)
        _print_times(times(cfg.out))
        typer.echo(f"{report}: written" if report.exists() else f"{cfg.out}: done")


def _print_times(found: list[RuleTime]) -> None:
    table = Table("", "jobs", "seconds", "of each", box=None)
    for row in found:
        table.add_row(row.rule, f"{row.jobs}", f"{row.seconds:,.0f}", f"{row.mean:,.0f}")
    Console().print(table, highlight=False)
