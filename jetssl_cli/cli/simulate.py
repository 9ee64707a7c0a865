"""``jetssl simulate``: jets from nothing."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from jetssl_cli.cli.help import Command, examples
from jetssl_cli.cli.names import SPLITS, one_of, process
from jetssl_cli.cli.options import COMMAND_LINE, AsJson, Overwrite
from jetssl_cli.cli.printing import print_json
from jetssl_cli.config import Layer, load

if TYPE_CHECKING:
    from jetssl_cli.data.simulation.simulate import SimulateReport


room = typer.Typer(
    name="simulate",
    help="Simulate jets with Pythia 8 and a detector like CMS, in the format of a data set.",
    no_args_is_help=True,
)

Split = Annotated[
    str,
    typer.Option(
        metavar="NAME",
        help="train, val or test; each has seeds of its own.",
        autocompletion=one_of(SPLITS),
    ),
]
Jobs = Annotated[int, typer.Option(metavar="N", min=1, help="Processes that share the work.")]
Seed = Annotated[
    int, typer.Option(metavar="N", min=0, help="Seed of the jets; the same ones with any --jobs.")
]


@room.command(
    cls=Command,
    epilog=examples(
        "jetssl simulate jetclass --num-jets 1000 --out JetClass --jobs 4",
        "jetssl simulate jetclass --num-jets 200 --split val --processes HToBB,ZJetsToNuNu "
        "--out JetClass",
    ),
)
def jetclass(
    num_jets: Annotated[int, typer.Option(metavar="N", min=1, help="Jets of EACH process.")],
    out: Annotated[
        Path, typer.Option(metavar="DIR", help="Folder for train_100M, val_5M and test_20M.")
    ],
    split: Split = "train",
    processes: Annotated[
        str,
        typer.Option(
            metavar="NAME,...",
            help="Some of the ten processes.",
            show_default="all",
            autocompletion=process("jetclass"),
        ),
    ] = "",
    jobs: Jobs = 1,
    seed: Seed = 0,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Simulate jets of the ten classes of JetClass, into ROOT files of its schema and names.

    A run that was stopped goes on where it was; finished files are kept. Needs the extra
    "simulate".
    """
    more = {"split": split, "jobs": jobs, "seed": seed, "overwrite": overwrite}
    _simulate({"dataset": "jetclass", "jets": num_jets, "out": out, **more}, processes, as_json)


@room.command(
    cls=Command,
    epilog=examples(
        "jetssl simulate btag --num-jets 3000 --out btag --jobs 4",
        "jetssl simulate btag --num-jets 600 --split val --processes TTBar --out btag",
    ),
)
def btag(
    num_jets: Annotated[
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
        typer.Option(
            metavar="NAME,...",
            help="Some of the four processes.",
            show_default="all",
            autocompletion=process("btag"),
        ),
    ] = "",
    jobs: Jobs = 1,
    seed: Seed = 0,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Simulate jets for b-tagging with the truth about every track, into ROOT files.

    A run that was stopped goes on where it was; finished files are kept. Needs the extra
    "simulate".
    """
    more = {"split": split, "jobs": jobs, "seed": seed, "overwrite": overwrite}
    _simulate({"dataset": "btag", "jets": num_jets, "out": out, **more}, processes, as_json)


def _simulate(settings: dict[str, object], processes: str, as_json: bool) -> None:
    from jetssl_cli.data.simulation.simulate import SimulateConfig
    from jetssl_cli.data.simulation.simulate import simulate as run

    names = [name.strip() for name in processes.split(",") if name.strip()]
    layer = Layer(COMMAND_LINE, {**settings, "processes": names})
    report = run(load(SimulateConfig, [layer]))
    if as_json:
        print_json(report)
    else:
        _print_simulation(report)


def _print_simulation(report: SimulateReport) -> None:
    kept = sum(file.skipped for file in report.files)
    folders = ", ".join(dict.fromkeys(str(file.path.parent) for file in report.files))
    rate = report.simulated / max(report.seconds, 1e-9)
    typer.echo(
        f"{folders}: {report.num_jets:,} jets in {len(report.files):,} files, {kept:,} kept as "
        f"they were; {report.simulated:,} simulated in {report.seconds:.1f} s, {rate:,.0f} jets/s"
    )
