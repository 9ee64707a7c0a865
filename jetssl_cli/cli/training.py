"""Commands that train: ``pretrain`` and ``finetune``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from jetssl_cli.cli.options import COMMAND_LINE
from jetssl_cli.config import Layer
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
Train = Annotated[Path, typer.Option(metavar="FILE", help="Jagged HDF5 file to train on.")]
Val = Annotated[Path, typer.Option(metavar="FILE", help="Jagged HDF5 file to validate on.")]
Run = Annotated[Path, typer.Option(metavar="RUN", help="Folder of the new run.")]
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
    "--max-time 24h"
)
def pretrain(
    method: Annotated[
        str, typer.Option(metavar="NAME", help="Method: ssfm, mpm, gpt, dino or jepa.")
    ],
    train: Train,
    val: Val,
    out: Run,
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
    options = _options(train, val, out, loop, _encoder(attention))
    cfg = load_config(method, size, options, config=config, overrides=overrides or [])
    _tell(f"{run(cfg)}: pretrained")


@room.command(
    epilog="Examples:\n\n"
    "jetssl finetune --backbone runs/ssfm --train train.h5 --val val.h5 --out runs/frozen "
    "--frozen\n\n"
    "jetssl finetune --backbone runs/ssfm --train train.h5 --val val.h5 --out runs/random --random"
    "\n\njetssl finetune --task cwola --signal Tbqq --num-signal 500 --backbone runs/ssfm "
    "--train train.h5 --val val.h5 --out runs/cwola"
)
def finetune(
    backbone: Annotated[Path, typer.Option(metavar="RUN", help="Folder of the pretraining run.")],
    train: Train,
    val: Val,
    out: Run,
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
    """
    from jetssl_cli.runs.finetune import finetune as run
    from jetssl_cli.runs.finetune import load_config

    words: dict[str, Any] = {"backbone": str(backbone), **_encoder(attention)}
    words |= {"random": True} if random else {}
    words |= {"objective": {"frozen": True}} if frozen or random else {}
    loop = {"steps": steps, "jets": jets, "max_time": max_time, "devices": devices, "nodes": nodes}
    mixture: dict[str, Any] = {"signal": signal, "background": background}
    mixture |= {"num_signal": num_signal, "num_background": num_background}
    mixture = {name: value for name, value in mixture.items() if value is not None}
    options = _options(train, val, out, loop, words)
    if mixture:
        options.settings["data"]["mixture"] = mixture
    cfg = load_config(backbone, options, task=task, config=config, overrides=overrides or [])
    _tell(f"{run(cfg)}: finetuned")


def _options(
    train: Path,
    val: Path,
    out: Path,
    loop: dict[str, int | str | None],
    words: dict[str, Any] | None = None,
) -> Layer:
    settings = {"out": str(out), "data": {"train": [str(train)], "val": [str(val)]}}
    given = {name: value for name, value in loop.items() if value is not None}
    return Layer(COMMAND_LINE, settings | ({"train": given} if given else {}) | (words or {}))


def _encoder(attention: str | None) -> dict[str, Any]:
    return {"encoder": {"attention": attention}} if attention else {}


def _tell(text: str) -> None:
    """Print the result, once."""
    if number_of_process() == 0:
        typer.echo(text)
