"""Commands on what comes out: ``export``, ``generate``, ``evaluate`` and ``verify``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from jetssl_cli.cli.options import COMMAND_LINE, Overwrite
from jetssl_cli.config import Layer
from jetssl_cli.errors import DataError
from jetssl_cli.progress import print_error

room = typer.Typer()


@room.command(
    epilog="Examples:\n\n"
    "jetssl export runs/frozen --data test.h5 --out scores/frozen.h5\n\n"
    "jetssl export runs/frozen --data test.h5 --onnx frozen.onnx\n\n"
    "jetssl export runs/ssfm --data test.h5 --embeddings vectors.h5"
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
        Path | None, typer.Option(metavar="SCORES.h5", help="Score file.", show_default=False)
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
        typer.Option(metavar="N", help="The first N jets only.", show_default=False),
    ] = None,
    batch_size: Annotated[
        int | None,
        typer.Option(
            metavar="N",
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
        ),
    ] = None,
    attention: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Attention back end: auto, flash-attn, varlen, padded or reference.",
            show_default=False,
        ),
    ] = None,
    unlabelled: Annotated[
        bool,
        typer.Option(
            "--unlabelled", help="The data have other classes than the network: labels are -1."
        ),
    ] = False,
    overwrite: Overwrite = False,
) -> None:
    """Write scores or embeddings of jets (HDF5, ROOT), or the network as ONNX.

    Scores are float32, in the order of the data file, whatever the arithmetic. Of a task other than
    classification they are those of tracks or pairs of tracks, and go to --out alone.
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
    for option, path in report.files.items():
        if option == "--onnx":
            told = f"network; scores as PyTorch's within {report.onnx_difference:.1g}"
        else:
            what = "vectors" if option == "--embeddings" else "scores"
            told = f"{what} of {report.num_jets:,} jets, computed in {report.precision}"
        typer.echo(f"{path}: {told}")


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
    "jetssl evaluate scores/frozen.h5 weaver/pred.root\n\n"
    "jetssl evaluate cwola-*.h5"
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
    Of other tasks: balanced accuracy of tracks, adjusted Rand index of vertices by their number, or
    significance improvement of classifiers without labels.

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


@room.command(
    epilog="Examples:\n\n"
    "jetssl verify train.h5 runs/frozen scores/frozen.h5\n\n"
    "jetssl verify data runs scores"
)
def verify(
    paths: Annotated[
        list[Path],
        typer.Argument(metavar="PATH...", help="Artefacts, or folders that hold them."),
    ],
) -> None:
    """Read all of any artefact, and say whether it is sound: data, runs, scores, ONNX networks.

    One line for each: formats and versions, counts that fit together, finite values, known labels,
    checksums and hashes, also those of the data and weights that scores were made of where these
    are still there. Exit code 2 if one is damaged. Nothing that is read is executed.
    """
    from jetssl_cli.scores.verify import VerifyConfig
    from jetssl_cli.scores.verify import verify as execute

    errors = total = 0
    for found in execute(VerifyConfig(paths=tuple(paths))):
        total += 1
        if found.error is None:
            typer.echo(f"{found.path}: sound: {found.told}")
        else:
            errors += 1
            print_error(found.error)
    if errors:
        raise DataError(f"{errors} of {total} artefacts are not sound")
