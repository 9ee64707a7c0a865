"""Commands that ask a trained network: ``export`` and ``generate``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from jetssl_cli.cli.help import Command, examples
from jetssl_cli.cli.names import PRECISIONS, one_of
from jetssl_cli.cli.options import COMMAND_LINE, AsJson, Attention, Overwrite
from jetssl_cli.cli.printing import print_json, print_table
from jetssl_cli.config import Layer

room = typer.Typer()


@room.command(
    cls=Command,
    epilog=examples(
        "jetssl export runs/frozen --data test.h5 --out scores/frozen.h5",
        "jetssl export runs/frozen --data test.h5 --onnx frozen.onnx",
        "jetssl export runs/ssfm --data test.h5 --embeddings vectors.h5",
    ),
)
def export(
    run: Annotated[
        Path,
        typer.Argument(
            metavar="RUN",
            help="Folder of a finetuning run, or, for embeddings, of a pretraining run.",
        ),
    ],
    data: Annotated[Path, typer.Option(metavar="FILE", help="Jagged HDF5 file of the jets.")],
    out: Annotated[
        Path | None, typer.Option(metavar="FILE.h5", help="Score file.", show_default=False)
    ] = None,
    embeddings: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.h5", help="Mean backbone vector of each jet.", show_default=False
        ),
    ] = None,
    root: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.root", help="Scores as a TTree, to be a friend.", show_default=False
        ),
    ] = None,
    onnx: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.onnx",
            help="The network itself, from physical units to scores (extra 'onnx').",
            show_default=False,
        ),
    ] = None,
    num_jets: Annotated[
        int | None,
        typer.Option(metavar="N", min=1, help="The first N jets only.", show_default=False),
    ] = None,
    batch_size: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=1,
            help="Jets at a time in the network; 48 on a CPU, 1000 on a GPU.",
            show_default=False,
        ),
    ] = None,
    precision: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Arithmetic: auto, 32 or bf16-mixed; like that of the run if not given.",
            show_default=False,
            autocompletion=one_of(PRECISIONS),
        ),
    ] = None,
    attention: Attention = None,
    unlabelled: Annotated[
        bool,
        typer.Option(
            "--unlabelled", help="The data have other classes than the network: labels are -1."
        ),
    ] = False,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Write scores or embeddings of jets (HDF5, ROOT), or the network as ONNX.

    Scores are float32, in the order of the data file, whatever the arithmetic. Those of other tasks
    go to --out alone: of tracks (track-origin), of pairs of tracks (vertex), of the jets of two
    classes (cwola).
    """
    from jetssl_cli.config import load
    from jetssl_cli.scores.export import ExportConfig
    from jetssl_cli.scores.export import export as execute

    files = {"run": run, "data": data, "out": out, "embeddings": embeddings, "root": root}
    numbers = {"onnx": onnx, "num_jets": num_jets, "batch_size": batch_size}
    how = {"precision": precision, "attention": attention, "unlabelled": unlabelled}
    given = {**files, **numbers, **how, "overwrite": overwrite}
    given = {name: value for name, value in given.items() if value is not None}
    report = execute(load(ExportConfig, [Layer(COMMAND_LINE, given)]))
    if as_json:
        print_json(report)
        return
    for option, path in report.files.items():
        if option == "--onnx":
            told = f"network; scores as PyTorch's within {report.onnx_difference:.1g}"
        else:
            what = "vectors" if option == "--embeddings" else "scores"
            arithmetic = "float32" if report.precision == "32" else report.precision
            told = f"{what} of {report.num_jets:,} jets, computed in {arithmetic}"
        typer.echo(f"{path}: {told}")


@room.command(
    cls=Command,
    epilog=examples(
        "jetssl generate runs/ssfm --data test.h5 --out generated.h5",
        "jetssl generate runs/gpt --data test.h5 --out generated.h5 --num-jets 1000 "
        "--temperature 0.9",
    ),
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
    integration_steps: Annotated[
        int | None,
        typer.Option(
            metavar="N", min=1, help="Steps from noise to jets (ssfm); else 50.", show_default=False
        ),
    ] = None,
    temperature: Annotated[
        float | None,
        typer.Option(
            metavar="T",
            help="Below 1, likely constituents become likelier (gpt); else 1.",
            show_default=False,
        ),
    ] = None,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Generate jets: ssfm fills in the hidden half of each, gpt writes whole ones.

    GPT is given the jet features. Prints Wasserstein distances to the true jets.
    """
    from jetssl_cli.config import load
    from jetssl_cli.scores.generate import GenerateConfig
    from jetssl_cli.scores.generate import generate as execute

    settings: dict[str, object] = {"num_jets": num_jets, "seed": seed, "steps": integration_steps}
    settings |= {"temperature": temperature}
    files = {"run": run, "data": data, "out": out, "overwrite": overwrite}
    report = execute(load(GenerateConfig, [Layer(COMMAND_LINE, settings | files)]))
    if as_json:
        print_json(report)
        return
    table = Table("", "distance", "by chance", "standard deviation", box=None)
    for row in report.distances:
        name = row.name if row.unit == "1" else f"{row.name} [{row.unit}]"
        numbers = (row.distance, row.floor, row.spread)
        table.add_row(name, *("–" if x is None else f"{x:.3g}" for x in numbers))
    print_table(table)
    typer.echo(
        f"{report.out}: {report.num_jets:,} jets, {report.num_constituents:,} constituents "
        f"generated; Wasserstein distances to the truth, of {report.num_compared:,} jets; by "
        "chance: between two halves of the truth"
    )
