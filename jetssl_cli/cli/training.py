"""Commands that train: ``pretrain`` and ``finetune``."""

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
    jets: Jets = None,
    max_time: MaxTime = None,
    devices: Devices = None,
    nodes: Nodes = None,
    attention: Attention = None,
    overrides: Overrides = None,
) -> None:
    """Train a classifier on top of a pretrained backbone."""
    from jetssl_cli.runs.finetune import finetune as run
    from jetssl_cli.runs.finetune import load_config

    words: dict[str, Any] = {"backbone": str(backbone)} if backbone else {}
    words |= {"random": True} if random else {}
    words |= {"objective": {"frozen": True}} if frozen or random else {}
    loop = {"steps": steps, "jets": jets, "max_time": max_time, "devices": devices, "nodes": nodes}
    needed = {"backbone": backbone, "train": train, "val": val}
    options = _options(out, resume, needed, loop, words | _encoder(attention))
    cfg = load_config(backbone, options, config=config, overrides=overrides or [])
    _tell(f"{run(cfg)}: finetuned")


def _options(
    out: Path | None,
    resume: Path | None,
    needed: Mapping[str, Path | str | None],
    loop: dict[str, int | str | None],
    words: dict[str, Any],
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
    files = {name: [str(needed[name])] for name in ("train", "val") if needed[name] is not None}
    settings = {"out": str(folder), "resume": resume is not None}
    for section, given in (("data", files), ("train", loop)):
        values = {name: value for name, value in given.items() if value is not None}
        settings |= {section: values} if values else {}
    return Layer(COMMAND_LINE, settings | words)


def _encoder(attention: str | None) -> dict[str, Any]:
    return {"encoder": {"attention": attention}} if attention else {}


def _tell(text: str) -> None:
    """Print the result, once."""
    if number_of_process() == 0:
        typer.echo(text)
