"""Commands on data files: ``convert``, ``merge``, ``inspect`` and ``tokenize``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from jetssl_cli.cli.help import Command, examples
from jetssl_cli.cli.names import REPORT_FORMATS, one_of, preset
from jetssl_cli.cli.options import COMMAND_LINE, AsJson, Overwrite
from jetssl_cli.cli.printing import print_json, print_table
from jetssl_cli.config import Layer, load

if TYPE_CHECKING:
    from jetssl_cli.data.convert import ConvertReport


CLASSES_SHOWN = 20
BAD_SHOWN = 5

room = typer.Typer()

Sources = Annotated[
    list[Path], typer.Argument(metavar="SOURCE...", help="Files, or folders that hold them.")
]


@room.command(
    cls=Command,
    epilog=examples(
        "jetssl convert JetClass/val_5M --recipe jetclass --out data/val --jobs 8",
        "jetssl convert my.root --recipe my_recipe.yaml --out data",
    ),
)
def convert(
    sources: Sources,
    recipe: Annotated[
        str,
        typer.Option(
            metavar="NAME|FILE",
            help="Shipped recipe, or a YAML file of your own.",
            autocompletion=preset("data_recipes"),
        ),
    ],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder for the converted files.")],
    jobs: Annotated[int, typer.Option(metavar="N", min=1, help="Files converted at a time.")] = 1,
    half: Annotated[
        bool, typer.Option("--half", help="Store constituent features as float16.")
    ] = False,
    max_constituents: Annotated[
        int | None,
        typer.Option(
            metavar="N", min=1, help="Store at most so many of a jet.", show_default=False
        ),
    ] = None,
    skip_bad: Annotated[
        bool,
        typer.Option("--skip-bad", help="Go on after unreadable files; name them in DIR."),
    ] = False,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Convert ROOT, parquet or JetSSL-Lite files to jagged HDF5, one for each.

    Finished ones are kept, so that a conversion that was stopped continues.
    """
    from jetssl_cli.data.convert import ConvertConfig
    from jetssl_cli.data.convert import convert as run
    from jetssl_cli.data.recipe import load_recipe

    cfg = ConvertConfig(
        sources=tuple(sources),
        recipe=load_recipe(recipe),
        out=out,
        jobs=jobs,
        half=half,
        max_constituents=max_constituents,
        skip_bad=skip_bad,
        overwrite=overwrite,
    )
    report = run(cfg)
    if as_json:
        print_json(report)
    else:
        _print_conversion(report)


@room.command(
    cls=Command,
    epilog=examples(
        "jetssl merge data/train --out data/train.h5",
        "jetssl merge data/train --out small.h5 --num-jets 100000 --balance --memory 500MiB",
    ),
)
def merge(
    sources: Sources,
    out: Annotated[Path, typer.Option(metavar="FILE.h5", help="The merged file.")],
    seed: Annotated[int, typer.Option(metavar="N", min=0, help="Seed of the shuffle.")] = 0,
    memory: Annotated[
        str, typer.Option(metavar="SIZE", help="Most memory to use, such as 500MiB.")
    ] = "2GiB",
    num_jets: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=1,
            help="Keep so many jets, drawn at random; with --balance at most so many.",
            show_default=False,
        ),
    ] = None,
    balance: Annotated[
        bool, typer.Option("--balance", help="Keep equally many jets of each class.")
    ] = False,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Merge jagged files into one, its jets in random order; the files may exceed the memory."""
    from jetssl_cli.data.merge import MergeConfig
    from jetssl_cli.data.merge import merge as run

    settings = {"seed": seed, "memory": memory, "num_jets": num_jets, "balance": balance}
    files = {"sources": sources, "out": out, "overwrite": overwrite}
    report = run(load(MergeConfig, [Layer(COMMAND_LINE, settings | files)]))
    if as_json:
        print_json(report)
        return
    typer.echo(
        f"{report.out}: {report.num_jets:,} jets of {report.num_files} files, shuffled in "
        f"{report.buckets} parts, checksum {report.checksum}"
    )


@room.command(
    cls=Command,
    epilog=examples(
        "jetssl inspect train.h5",
        "jetssl inspect train.h5 --plots plots/train --format markdown",
    ),
)
def inspect(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Jagged HDF5 file.")],
    plots: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Also plot every feature by class there, as PNG and PDF.",
            show_default=False,
        ),
    ] = None,
    sample: Annotated[
        int,
        typer.Option(
            metavar="N", min=1, help="Percentiles and plots are those of the first N jets."
        ),
    ] = 100_000,
    fmt: Annotated[
        str,
        typer.Option(
            "--format",
            metavar="NAME",
            help="rich, markdown or json.",
            autocompletion=one_of(REPORT_FORMATS),
        ),
    ] = "rich",
    as_json: AsJson = False,
) -> None:
    """Report what is in a data file: jets, classes, every column and its values, storage."""
    from jetssl_cli.data.inspect import InspectConfig
    from jetssl_cli.data.inspect import inspect as run
    from jetssl_cli.data.report import check_format, render

    fmt = "json" if as_json else fmt
    check_format(fmt)  # before any work
    report = render(run(InspectConfig(file=file, sample=sample, plots=plots)), format=fmt)
    if isinstance(report, str):
        typer.echo(report, nl=False)
    else:
        Console().print(report)


@room.command(
    cls=Command,
    epilog=examples(
        "jetssl tokenize train.h5",
        "jetssl tokenize train.h5 --clusters 10000 --num-jets 200000",
    ),
)
def tokenize(
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="Jagged HDF5 files.")],
    clusters: Annotated[
        int,
        typer.Option(metavar="N", min=1, help="Tokens: 1,000 for tiny networks, 10,000 for base."),
    ] = 1000,
    num_jets: Annotated[
        int, typer.Option(metavar="N", min=1, help="Fit on the first N jets.")
    ] = 20_000,
    max_constituents: Annotated[
        int, typer.Option(metavar="N", min=1, help="And the first N constituents of each.")
    ] = 64,
    seed: Annotated[int, typer.Option(metavar="N", min=0, help="Seed of the clustering.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Fit the k-means tokens of next-particle prediction, and show what they lose.

    The result is kept beside the first file, and found there again.
    """
    from jetssl_cli.data.tokenizer import TokenizeConfig
    from jetssl_cli.data.tokenizer import tokenize as run

    settings = {
        "files": list(map(str, files)),
        "clusters": clusters,
        "num_jets": num_jets,
        "max_constituents": max_constituents,
        "seed": seed,
    }
    report = run(load(TokenizeConfig, [Layer(COMMAND_LINE, settings)]))
    if as_json:
        print_json(report)
        return
    table = Table("feature", "mean error", "90 % below", "of a single token", box=None)
    for error in report.errors:
        unit = "" if error.unit == "1" else f" [{error.unit}]"
        shown = [f"{value:.3g}" for value in (error.mean, error.p90, error.spread)]
        table.add_row(error.name + unit, *shown)
    print_table(table)
    typer.echo(
        f"{report.used:,} of {report.clusters:,} tokens are used by "
        f"{report.num_constituents:,} constituents"
    )


def _print_conversion(report: ConvertReport) -> None:
    files, jets = report.files, report.num_jets
    kept = sum(file.skipped for file in files)
    size = sum(file.output.stat().st_size for file in files) / max(jets, 1)
    classes = report.classes
    shown = [f"{name} {count:,}" for name, count in list(classes.items())[:CLASSES_SHOWN]]
    if len(classes) > CLASSES_SHOWN:
        shown.append(f"and {len(classes) - CLASSES_SHOWN} classes more")
    table = Table.grid(padding=(0, 2))
    done = [f"{len(files) - kept:,} converted", f"{kept:,} kept as they were"]
    table.add_row("files", ", ".join(done + [f"{len(report.bad):,} bad"] * bool(report.bad)))
    table.add_row("jets", f"{jets:,}, {size:,.0f} bytes each")
    table.add_row("classes", ", ".join(shown))
    table.add_row("constituents", f"{sum(file.constituents for file in files):,} stored")
    left_out = [f"{number:,} {reason}" for reason, number in report.left_out.items() if number]
    table.add_row("left out", ", ".join(left_out) or "nothing")
    for bad in report.bad[:BAD_SHOWN]:
        table.add_row("bad", bad.reason)
    if len(report.bad) > BAD_SHOWN:
        table.add_row("", f"and {len(report.bad) - BAD_SHOWN} files more")
    rate = sum(file.num_jets for file in files if not file.skipped) / max(report.seconds, 1e-9)
    table.add_row("time", f"{report.seconds:.1f} s, {rate:,.0f} jets/s")
    print_table(table)
