"""Commands that train, and what MLflow has of it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from jetssl_cli.cli.options import COMMAND_LINE
from jetssl_cli.config import Layer
from jetssl_cli.errors import ConfigError
from jetssl_cli.progress import number_of_process

room = typer.Typer()

Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[SECTION.KEY=VALUE]...",
        help="Settings of the config, such as optim.lr=1e-3; the last word.",
        show_default=False,
    ),
]
Train = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="Jagged HDF5 file to train on.", show_default=False),
]
Val = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="Jagged HDF5 file to validate on.", show_default=False),
]
Out = Annotated[
    Path | None, typer.Option(metavar="RUN", help="Folder of the new run.", show_default=False)
]
Resume = Annotated[
    Path | None,
    typer.Option(
        metavar="RUN",
        help="Go on with the run in this folder, with its own settings; begin it, if there is none "
        "(--out and --resume exclude each other).",
        show_default=False,
    ),
]
OwnConfig = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="YAML file laid over the presets.", show_default=False),
]
Task = Annotated[
    str | None,
    typer.Option(
        metavar="NAME", help="classify, track-origin, vertex or cwola.", show_default="classify"
    ),
]
Signal = Annotated[
    str | None,
    typer.Option(metavar="CLASS", help="cwola: class hidden in M1.", show_default=False),
]
Background = Annotated[
    str | None,
    typer.Option(metavar="CLASS", help="cwola: class of all other jets.", show_default="QCD"),
]
NumSignal = Annotated[
    int | None,
    typer.Option(metavar="N", min=0, help="cwola: signal jets in M1.", show_default=False),
]
NumBackground = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        min=1,
        help="cwola: background jets in M1, and as many others in M2.",
        show_default="half of all",
    ),
]
Steps = Annotated[
    int | None,
    typer.Option(metavar="N", help="End after so many optimizer steps.", show_default=False),
]
Jets = Annotated[
    int | None,
    typer.Option(
        metavar="N", help="Or after so many jets, counted in each epoch.", show_default=False
    ),
]
MaxTime = Annotated[
    str | None,
    typer.Option(
        metavar="TIME", help="Or after so much time, such as 24h, 90m or 1h30m.", show_default=False
    ),
]
Devices = Annotated[
    str | None,
    typer.Option(
        metavar="N|auto",
        help="GPUs of each machine (or processes without one), or all; 1 if not given.",
        show_default=False,
    ),
]
Nodes = Annotated[
    int | None,
    typer.Option(
        metavar="N", help="Machines; torchrun or srun starts the command.", show_default=False
    ),
]
Attention = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="Attention back end: auto, flash-attn, varlen, padded or reference.",
        show_default=False,
    ),
]


@room.command(
    epilog="Examples:\n\n"
    "jetssl pretrain --method ssfm --train train.h5 --val val.h5 --out runs/ssfm --size tiny\n\n"
    "jetssl pretrain --method ssfm --train train.h5 --val val.h5 --out runs/a --steps 500 "
    "optim.lr=1e-3 encoder.depth=2\n\n"
    "jetssl pretrain --method ssfm --train train.h5 --val val.h5 --out runs/b --devices auto "
    "--max-time 24h\n\n"
    "jetssl pretrain --resume runs/b"
)
def pretrain(
    method: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="Method: ssfm, mpm, gpt, dino or jepa.", show_default=False
        ),
    ] = None,
    train: Train = None,
    val: Val = None,
    out: Out = None,
    resume: Resume = None,
    size: Annotated[
        str, typer.Option(metavar="NAME", help="Size of the encoder: tiny, small or base.")
    ] = "base",
    config: OwnConfig = None,
    steps: Steps = None,
    jets: Jets = None,
    max_time: MaxTime = None,
    devices: Devices = None,
    nodes: Nodes = None,
    attention: Attention = None,
    overrides: Overrides = None,
) -> None:
    """Pretrain an encoder without labels."""
    from jetssl_cli.runs.pretrain import load_config
    from jetssl_cli.runs.pretrain import pretrain as run

    loop = {"steps": steps, "jets": jets, "max_time": max_time, "devices": devices, "nodes": nodes}
    needed = {"method": method, "train": train, "val": val}
    options = _options(out, resume, needed, loop, _encoder(attention))
    cfg = load_config(method, size, options, config=config, overrides=overrides or [])
    _tell(f"{run(cfg)}: pretrained")


@room.command(
    epilog="Examples:\n\n"
    "jetssl finetune --backbone runs/ssfm --train train.h5 --val val.h5 --out runs/frozen "
    "--frozen\n\n"
    "jetssl finetune --backbone runs/ssfm --train train.h5 --val val.h5 --out runs/random --random"
    "\n\njetssl finetune --backbone runs/ssfm --train train.h5 --val val.h5 --out runs/few "
    "--unfreeze-at 500 --num-jets 1000 --patience 5"
    "\n\njetssl finetune --task cwola --signal Tbqq --num-signal 500 --backbone runs/ssfm "
    "--train train.h5 --val val.h5 --out runs/cwola"
)
def finetune(
    backbone: Annotated[
        Path | None,
        typer.Option(metavar="RUN", help="Folder of the pretraining run.", show_default=False),
    ] = None,
    train: Train = None,
    val: Val = None,
    out: Out = None,
    resume: Resume = None,
    task: Task = None,
    frozen: Annotated[
        bool, typer.Option("--frozen", help="Keep the backbone as it is; train the head alone.")
    ] = False,
    random: Annotated[
        bool,
        typer.Option(
            "--random", help="Baseline: the same architecture, untrained, and frozen as well."
        ),
    ] = False,
    full: Annotated[
        bool, typer.Option("--full", help="Train the backbone from the first step (the default).")
    ] = False,
    from_scratch: Annotated[
        bool,
        typer.Option("--from-scratch", help="The same architecture, new weights; train them all."),
    ] = False,
    unfreeze_at: Annotated[
        int | None,
        typer.Option(
            metavar="STEP", help="Frozen before this step, then trained.", show_default=False
        ),
    ] = None,
    lora: Annotated[
        int | None,
        typer.Option(
            metavar="RANK",
            help="Train low-rank adapters of the backbone, and the head.",
            show_default=False,
        ),
    ] = None,
    layer_decay: Annotated[
        float | None,
        typer.Option(
            metavar="F",
            help="Multiply the learning rate by F from block to block, downwards.",
            show_default=False,
        ),
    ] = None,
    num_jets: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="Train on N labelled jets, equally many of each class; held in memory.",
            show_default=False,
        ),
    ] = None,
    cache_embeddings: Annotated[
        bool,
        typer.Option(
            "--cache-embeddings",
            help="Encode all jets once, with a frozen backbone, and hold the answers in memory.",
        ),
    ] = False,
    rescale: Annotated[
        bool,
        typer.Option("--rescale", help="Fit the scaling of the features to the new data."),
    ] = False,
    patience: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="End after N validations without a smaller loss.",
            show_default=False,
        ),
    ] = None,
    signal: Signal = None,
    background: Background = None,
    num_signal: NumSignal = None,
    num_background: NumBackground = None,
    config: OwnConfig = None,
    steps: Steps = None,
    jets: Jets = None,
    max_time: MaxTime = None,
    devices: Devices = None,
    nodes: Nodes = None,
    attention: Attention = None,
    overrides: Overrides = None,
) -> None:
    """Train a pretrained backbone for a task: classify jets, or one that needs other truth.

    classify: the classes of jets. track-origin: where each track comes from. vertex: which tracks
    share a vertex. cwola: tell two mixed samples of jets, without labels.


    The weights at the smallest validation loss are saved. At most one of --frozen, --full,
    --unfreeze-at, --lora, --from-scratch and --random.
    """
    from jetssl_cli.runs.finetune import finetune as run
    from jetssl_cli.runs.finetune import load_config, mode

    words: dict[str, Any] = {"backbone": str(backbone)} if backbone else {}
    words |= mode(
        frozen=frozen,
        full=full,
        from_scratch=from_scratch,
        random=random,
        unfreeze_at=unfreeze_at,
        lora=lora,
    )
    words |= {"layer_decay": layer_decay} if layer_decay is not None else {}
    words |= {"cache_embeddings": True} if cache_embeddings else {}
    words |= {"rescale": True} if rescale else {}
    loop = {"steps": steps, "jets": jets, "max_time": max_time, "devices": devices, "nodes": nodes}
    needed = {"backbone": backbone, "train": train, "val": val}
    held = num_jets is not None or cache_embeddings
    mixture: dict[str, Any] = {"signal": signal, "background": background}
    mixture |= {"num_signal": num_signal, "num_background": num_background}
    mixture = {name: value for name, value in mixture.items() if value is not None}
    data = {"subset": num_jets, "in_memory": True if held else None, "mixture": mixture or None}
    options = _options(
        out, resume, needed, loop | {"patience": patience}, words | _encoder(attention), data
    )
    cfg = load_config(backbone, options, task=task, config=config, overrides=overrides or [])
    _tell(f"{run(cfg)}: finetuned")


@room.command(
    epilog="Examples:\n\n"
    "jetssl scan --backbone runs/ssfm --num-jets 100,1000,10000 --train train.h5 --val val.h5 "
    "--test test.h5 --out scan\n\n"
    "jetssl scan --backbone runs/ssfm --backbone runs/mpm --num-jets 100,1000 --modes "
    "frozen,random --seeds 5 --jobs 2 --train train.h5 --val val.h5 --test test.h5 --out scan "
    "data.num_val_jets=5000"
)
def scan(
    backbone: Annotated[
        list[Path],
        typer.Option(metavar="RUN", help="Folder of a pretraining run; can be given again."),
    ],
    num_jets: Annotated[
        str, typer.Option(metavar="N,N,...", help="Numbers of labelled jets to train on.")
    ],
    train: Annotated[Path, typer.Option(metavar="FILE", help="Jagged HDF5 file to train on.")],
    val: Annotated[Path, typer.Option(metavar="FILE", help="Jagged HDF5 file to validate on.")],
    test: Annotated[Path, typer.Option(metavar="FILE", help="Jagged HDF5 file to measure on.")],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder of all that is made.")],
    modes: Annotated[
        str, typer.Option(metavar="NAME,...", help="What becomes of the backbone.")
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
    jobs: Annotated[int, typer.Option(metavar="N", help="Trainings at a time.")] = 1,
    overrides: Overrides = None,
) -> None:
    """Plot accuracy against the number of labelled jets, for backbones and baselines.

    What is done already is kept, so that a scan that was stopped goes on.
    """
    from rich.console import Console
    from rich.table import Table

    from jetssl_cli.config import load
    from jetssl_cli.scores.scan import ScanConfig
    from jetssl_cli.scores.scan import scan as run

    settings = {
        "backbones": [str(path) for path in backbone],
        "num_jets": num_jets,
        "train": str(train),
        "val": str(val),
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
    table = Table("", "jets", "accuracy", box=None)
    for row in report.summary:
        spread = "" if row.accuracy_std is None else f" ± {row.accuracy_std:.4f}"
        table.add_row(row.line, f"{row.num_jets:,}", f"{row.accuracy:.4f}{spread}")
    Console().print(table, highlight=False)
    typer.echo(f"{', '.join(map(str, report.files))}: written")


@room.command(
    epilog="Examples:\n\n"
    "jetssl sync runs/ssfm\n\n"
    "MLFLOW_TRACKING_URI=http://localhost:5000 jetssl sync runs/*"
)
def sync(
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUN...", help="Folders of trainings that have ended.")
    ],
) -> None:
    """Send to MLflow what it lacks of trainings: it was absent, slow, or switched off.

    Parameters, measurements and how the training ended. What MLflow has is not sent again.
    """
    from jetssl_cli.runs.sync import SyncConfig
    from jetssl_cli.runs.sync import sync as run

    for report in run(SyncConfig(runs=tuple(runs))):
        told = ["parameters"] * report.parameters
        told += [f"{report.measurements:,} measurements"] * bool(report.measurements)
        told += [f"status {report.status}"] * bool(report.status)
        what = f"{', '.join(told)} sent to" if told else "nothing to send, all is at"
        new = ", new" if report.made else ""
        typer.echo(f"{report.run}: {what} {report.uri} (run {report.run_id}{new})")


def _options(
    out: Path | None,
    resume: Path | None,
    needed: Mapping[str, Path | str | None],
    loop: dict[str, int | str | None],
    words: dict[str, Any],
    data: Mapping[str, object] | None = None,
) -> Layer:
    """What the options say; those that a new run needs may be missing where one goes on."""
    from jetssl_cli.runs.checkpoint import is_begun

    folder = out or resume
    if folder is None or (out and resume):
        raise ConfigError("one of --out and --resume is needed, to say where the run is")
    missing = [f"--{name}" for name, value in needed.items() if value is None]
    if missing and not (resume and is_begun(resume)):
        why = f": {resume} holds no run to go on with" if resume else ""
        raise ConfigError(f"{', '.join(missing)}: needed to begin a run{why}")
    files: dict[str, Any] = {
        name: [str(needed[name])] for name in ("train", "val") if needed[name] is not None
    }
    settings: dict[str, Any] = {"out": str(folder), "resume": resume is not None}
    for section, given in (("data", files | dict(data or {})), ("train", loop)):
        values = {name: value for name, value in given.items() if value is not None}
        settings |= {section: values} if values else {}
    return Layer(COMMAND_LINE, settings | words)


def _encoder(attention: str | None) -> dict[str, Any]:
    return {"encoder": {"attention": attention}} if attention else {}


def _tell(text: str) -> None:
    """Print the result, once."""
    if number_of_process() == 0:
        typer.echo(text)
