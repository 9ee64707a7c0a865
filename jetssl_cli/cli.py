"""The ``jetssl`` command: parse, load the config, call one function, print its result.

Nothing heavy is imported before a command runs, so that ``--help`` answers at once.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from jetssl_cli import __version__
from jetssl_cli.config import Layer
from jetssl_cli.errors import ConfigError, JetSSLError

if TYPE_CHECKING:
    from jetssl_cli.data.convert import ConvertReport
    from jetssl_cli.data.simulation.simulate import SimulateReport

CLASSES_SHOWN = 20
BAD_SHOWN = 5
INTERRUPTED = 130
"""Exit code after Ctrl-C, as shells and typer have it."""

app = typer.Typer(
    name="jetssl",
    help="Self-supervised learning on particle-physics jets: from ROOT files to score tables.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)
simulate = typer.Typer(
    name="simulate",
    help="Simulate jets with Pythia 8 and a detector like CMS, in the format of a data set.",
    no_args_is_help=True,
)
app.add_typer(simulate)

Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[SECTION.KEY=VALUE]...",
        help="Settings of the config, such as optim.lr=1e-3; the last word.",
        show_default=False,
    ),
]
Sources = Annotated[
    list[Path], typer.Argument(metavar="SOURCE...", help="Files, or folders that hold them.")
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what is there already.")]
Train = Annotated[Path, typer.Option(metavar="FILE", help="Jagged HDF5 file to train on.")]
Val = Annotated[Path, typer.Option(metavar="FILE", help="Jagged HDF5 file to validate on.")]
Run = Annotated[Path, typer.Option(metavar="RUN", help="Folder of the new run.")]
OwnConfig = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="YAML file laid over the presets.", show_default=False),
]
Split = Annotated[str, typer.Option(metavar="NAME", help="train, val or test; they share no seed.")]
Jobs = Annotated[int, typer.Option(metavar="N", min=1, help="Processes that share the work.")]
Seed = Annotated[
    int, typer.Option(metavar="N", min=0, help="The same jets with any number of jobs.")
]
Steps = Annotated[
    int | None, typer.Option(metavar="N", help="Optimizer steps.", show_default=False)
]


@app.callback(invoke_without_command=True)
def root(
    version: Annotated[bool, typer.Option("--version", help="Show the version and exit.")] = False,
) -> None:
    """Options of the command itself."""
    if version:
        typer.echo(f"jetssl {__version__}")
        raise typer.Exit


@simulate.command(
    epilog="Examples:\n\n"
    "jetssl simulate jetclass --jets 1000 --out JetClass --jobs 4\n\n"
    "jetssl simulate jetclass --jets 200 --split val --processes HToBB,ZJetsToNuNu --out JetClass"
)
def jetclass(
    jets: Annotated[int, typer.Option(metavar="N", min=1, help="Jets of EACH process.")],
    out: Annotated[
        Path, typer.Option(metavar="DIR", help="Folder for train_100M, val_5M and test_20M.")
    ],
    split: Split = "train",
    processes: Annotated[
        str,
        typer.Option(metavar="NAME,...", help="Some of the ten processes.", show_default="all"),
    ] = "",
    jobs: Jobs = 1,
    seed: Seed = 0,
    overwrite: Overwrite = False,
) -> None:
    """Simulate jets of the ten classes of JetClass, into ROOT files of its schema and names.

    A run that was stopped goes on where it was; finished files are kept. Needs the extra
    "simulate".
    """
    more = {"split": split, "jobs": jobs, "seed": seed, "overwrite": overwrite}
    _simulate({"dataset": "jetclass", "jets": jets, "out": out, **more}, processes)


@simulate.command(
    epilog="Examples:\n\n"
    "jetssl simulate btag --jets 3000 --out btag --jobs 4\n\n"
    "jetssl simulate btag --jets 600 --split val --processes TTBar --out btag"
)
def btag(
    jets: Annotated[
        int,
        typer.Option(
            metavar="N",
            min=1,
            help="Jets of EACH process: of TTBar a third bottom, charm and light; of ZprimeToBB, "
            "ZprimeToCC and ZprimeToQQ all bottom, charm and light.",
        ),
    ],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder for train, val and test.")],
    split: Split = "train",
    processes: Annotated[
        str,
        typer.Option(metavar="NAME,...", help="Some of the four processes.", show_default="all"),
    ] = "",
    jobs: Jobs = 1,
    seed: Seed = 0,
    overwrite: Overwrite = False,
) -> None:
    """Simulate jets for b-tagging with the truth about every track, into ROOT files.

    A run that was stopped goes on where it was; finished files are kept. Needs the extra
    "simulate".
    """
    more = {"split": split, "jobs": jobs, "seed": seed, "overwrite": overwrite}
    _simulate({"dataset": "btag", "jets": jets, "out": out, **more}, processes)


@app.command(
    epilog="Examples:\n\n"
    "jetssl convert JetClass/val_5M --recipe jetclass --out data/val --jobs 8\n\n"
    "jetssl convert my.root --recipe my_recipe.yaml --out data"
)
def convert(
    sources: Sources,
    recipe: Annotated[
        str, typer.Option(metavar="NAME|FILE", help="Shipped recipe, or a YAML file of your own.")
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
    _print_conversion(run(cfg))


@app.command(
    epilog="Examples:\n\n"
    "jetssl merge data/train --out data/train.h5\n\n"
    "jetssl merge data/train --out small.h5 --num-jets 100000 --balance --memory 500MiB"
)
def merge(
    sources: Sources,
    out: Annotated[Path, typer.Option(metavar="FILE", help="The merged file.")],
    seed: Annotated[int, typer.Option(metavar="N", min=0, help="Seed of the shuffle.")] = 0,
    memory: Annotated[
        str, typer.Option(metavar="SIZE", help="Most memory to use, such as 500MiB.")
    ] = "2GiB",
    num_jets: Annotated[
        int | None,
        typer.Option(
            metavar="N", min=1, help="Keep so many jets, drawn at random.", show_default=False
        ),
    ] = None,
    balance: Annotated[
        bool, typer.Option("--balance", help="Keep equally many jets of each class.")
    ] = False,
    overwrite: Overwrite = False,
) -> None:
    """Merge jagged files into one, its jets in random order; the files may exceed the memory."""
    from jetssl_cli.config import load
    from jetssl_cli.data.merge import MergeConfig
    from jetssl_cli.data.merge import merge as run

    settings = {"seed": seed, "memory": memory, "num_jets": num_jets, "balance": balance}
    files = {"sources": sources, "out": out, "overwrite": overwrite}
    report = run(load(MergeConfig, [Layer("the command line", settings | files)]))
    typer.echo(
        f"{report.out}: {report.num_jets:,} jets of {report.num_files} files, shuffled in "
        f"{report.buckets} parts, checksum {report.checksum}"
    )


@app.command(
    epilog="Examples:\n\n"
    "jetssl inspect train.h5\n\n"
    "jetssl inspect train.h5 --plots plots/train --format markdown"
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
        str, typer.Option("--format", metavar="NAME", help="rich, markdown or json.")
    ] = "rich",
) -> None:
    """Report what is in a data file: jets, classes, every column and its values, storage."""
    from jetssl_cli.data.inspect import InspectConfig
    from jetssl_cli.data.inspect import inspect as run
    from jetssl_cli.data.report import check_format, render

    check_format(fmt)  # before any work
    report = render(run(InspectConfig(file=file, sample=sample, plots=plots)), format=fmt)
    if isinstance(report, str):
        typer.echo(report, nl=False)
    else:
        Console().print(report)


@app.command(
    epilog="Examples:\n\n"
    "jetssl tokenize train.h5\n\n"
    "jetssl tokenize train.h5 --clusters 10000 --num-jets 200000"
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
) -> None:
    """Fit the k-means tokens of next-particle prediction, and show what they lose.

    The result is kept beside the first file, and found there again.
    """
    from jetssl_cli.data.tokenizer import TokenizeConfig
    from jetssl_cli.data.tokenizer import tokenize as run

    report = run(
        TokenizeConfig(
            files=tuple(files),
            clusters=clusters,
            num_jets=num_jets,
            max_constituents=max_constituents,
            seed=seed,
        )
    )
    table = Table("feature", "mean error", "90 % below", "of a single token", box=None)
    for error in report.errors:
        unit = "" if error.unit == "1" else f" [{error.unit}]"
        shown = [f"{value:.3g}" for value in (error.mean, error.p90, error.spread)]
        table.add_row(escape(error.name + unit), *shown)
    Console().print(table, highlight=False)
    typer.echo(
        f"{report.used:,} of {report.clusters:,} tokens are used by "
        f"{report.num_constituents:,} constituents"
    )


@app.command(
    epilog="Examples:\n\n"
    "jetssl pretrain --method ssfm --train train.h5 --val val.h5 --out runs/ssfm --size tiny\n\n"
    "jetssl pretrain --method ssfm --train train.h5 --val val.h5 --out runs/a --steps 500 "
    "optim.lr=1e-3 encoder.depth=2"
)
def pretrain(
    method: Annotated[str, typer.Option(metavar="NAME", help="Method: ssfm, mpm or gpt.")],
    train: Train,
    val: Val,
    out: Run,
    size: Annotated[
        str, typer.Option(metavar="NAME", help="Size of the encoder: tiny, small or base.")
    ] = "base",
    config: OwnConfig = None,
    steps: Steps = None,
    overrides: Overrides = None,
) -> None:
    """Pretrain an encoder without labels."""
    from jetssl_cli.runs.pretrain import load_config
    from jetssl_cli.runs.pretrain import pretrain as run

    options = _options(train, val, out, steps)
    cfg = load_config(method, size, options, config=config, overrides=overrides or [])
    typer.echo(f"{run(cfg)}: pretrained")


@app.command(
    epilog="Examples:\n\n"
    "jetssl finetune --backbone runs/ssfm --train train.h5 --val val.h5 --out runs/frozen "
    "--frozen\n\n"
    "jetssl finetune --backbone runs/ssfm --train train.h5 --val val.h5 --out runs/random --random"
)
def finetune(
    backbone: Annotated[Path, typer.Option(metavar="RUN", help="Folder of the pretraining run.")],
    train: Train,
    val: Val,
    out: Run,
    frozen: Annotated[
        bool, typer.Option("--frozen", help="Keep the backbone as it is; train the head alone.")
    ] = False,
    random: Annotated[
        bool,
        typer.Option(
            "--random", help="Baseline: the same architecture, untrained, and frozen as well."
        ),
    ] = False,
    config: OwnConfig = None,
    steps: Steps = None,
    overrides: Overrides = None,
) -> None:
    """Train a classifier on top of a pretrained backbone."""
    from jetssl_cli.runs.finetune import finetune as run
    from jetssl_cli.runs.finetune import load_config

    words: dict[str, Any] = {"backbone": str(backbone)}
    words |= {"random": True} if random else {}
    words |= {"objective": {"frozen": True}} if frozen or random else {}
    options = _options(train, val, out, steps, words)
    cfg = load_config(backbone, options, config=config, overrides=overrides or [])
    typer.echo(f"{run(cfg)}: finetuned")


@app.command(epilog="Example:\n\njetssl export runs/frozen --data test.h5 --out scores/frozen.h5")
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


@app.command(
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
    report = execute(load(GenerateConfig, [Layer("the command line", settings | files)]))
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


@app.command(
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


def main() -> None:
    """Run the command; print a user's mistake in plain words and exit with 2."""
    try:
        app()
    except JetSSLError as err:
        Console(stderr=True).print(
            f"error: {err}", style="red", highlight=False, markup=False, soft_wrap=True
        )
        sys.exit(2)
    except SystemExit as end:
        if end.code == INTERRUPTED:
            Console(stderr=True).print("interrupted", style="yellow")
        raise


def _options(
    train: Path, val: Path, out: Path, steps: int | None, words: dict[str, Any] | None = None
) -> Layer:
    if steps is not None and steps < 1:
        raise ConfigError(f"--steps = {steps}: must be at least 1")
    settings = {"out": str(out), "data": {"train": [str(train)], "val": [str(val)]}}
    schedule = {"train": {"steps": steps}} if steps is not None else {}
    return Layer("the command line", settings | schedule | (words or {}))


def _simulate(settings: dict[str, object], processes: str) -> None:
    from jetssl_cli.config import load
    from jetssl_cli.data.simulation.simulate import SimulateConfig
    from jetssl_cli.data.simulation.simulate import simulate as run

    names = [name.strip() for name in processes.split(",") if name.strip()]
    layer = Layer("the command line", {**settings, "processes": names})
    _print_simulation(run(load(SimulateConfig, [layer])))


def _print_simulation(report: SimulateReport) -> None:
    kept = sum(file.skipped for file in report.files)
    folders = ", ".join(dict.fromkeys(str(file.path.parent) for file in report.files))
    rate = report.simulated / max(report.seconds, 1e-9)
    typer.echo(
        f"{folders}: {report.num_jets:,} jets in {len(report.files):,} files, {kept:,} kept as "
        f"they were; {report.simulated:,} simulated in {report.seconds:.1f} s, {rate:,.0f} jets/s"
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
    Console().print(table, highlight=False)
