"""The command ``pretrain``."""

from __future__ import annotations

from typing import Annotated

import typer

from jetssl_cli.cli.help import Command, examples
from jetssl_cli.cli.names import preset
from jetssl_cli.cli.options import AsJson, Attention
from jetssl_cli.cli.training import (
    Devices,
    DryRun,
    Jets,
    MaxTime,
    Nodes,
    Out,
    Overrides,
    OwnConfig,
    Resume,
    Steps,
    Train,
    Val,
    encoder_options,
    run_options,
)
from jetssl_cli.cli.training import train as execute

room = typer.Typer()


@room.command(
    cls=Command,
    epilog=examples(
        "jetssl pretrain --method ssfm --train train.h5 --val val.h5 --out runs/ssfm --size tiny",
        "jetssl pretrain --method ssfm --train train.h5 --val val.h5 --out runs/a --steps "
        "500 optim.lr=1e-3 encoder.depth=2",
        "jetssl pretrain --method ssfm --train train.h5 --val val.h5 --out runs/b --devices "
        "auto --max-time 24h",
        "jetssl pretrain --resume runs/b",
    ),
)
def pretrain(
    method: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Method: ssfm, mpm, gpt, dino or jepa.",
            show_default=False,
            autocompletion=preset("configs/pretrain"),
        ),
    ] = None,
    train: Train = None,
    val: Val = None,
    out: Out = None,
    resume: Resume = None,
    size: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Size of the encoder: tiny, small or base.",
            show_default="base",
            autocompletion=preset("configs/size"),
        ),
    ] = None,
    config: OwnConfig = None,
    steps: Steps = None,
    jets: Jets = None,
    max_time: MaxTime = None,
    devices: Devices = None,
    nodes: Nodes = None,
    attention: Attention = None,
    dry_run: DryRun = False,
    as_json: AsJson = False,
    overrides: Overrides = None,
) -> None:
    """Pretrain an encoder without labels."""
    from jetssl_cli.runs.pretrain import load_config
    from jetssl_cli.runs.pretrain import pretrain as run

    loop = {"steps": steps, "jets": jets, "max_time": max_time, "devices": devices, "nodes": nodes}
    needed = {"method": method, "train": train, "val": val}
    words = encoder_options(attention)
    options = run_options(out, resume, needed, loop, words, config=config, overrides=overrides)
    cfg = load_config(method, size, options, config=config, overrides=overrides or [])
    execute(cfg, lambda: run(cfg), dry=dry_run, as_json=as_json)
