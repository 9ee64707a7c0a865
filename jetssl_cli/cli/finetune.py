"""The command ``finetune``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

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

OF_A_WAY = ("random", "unfreeze_at", "lora", "lora.rank", "objective.frozen")
"""Settings that each of ``--frozen``, ``--full`` and so on says."""
OF_OTHERS = {
    "num_jets": ("data.subset", "data.in_memory"),
    "cache_embeddings": ("cache_embeddings", "data.in_memory"),
    "signal": ("data.mixture.signal",),
    "background": ("data.mixture.background",),
    "num_signal": ("data.mixture.num_signal",),
    "num_background": ("data.mixture.num_background",),
}
"""Settings that other options say, of several the most telling first."""

Task = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="classify, track-origin, vertex or cwola.",
        show_default="classify",
        autocompletion=preset("configs/finetune"),
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


@room.command(
    cls=Command,
    epilog=examples(
        "jetssl finetune --backbone runs/ssfm --train train.h5 --val val.h5 --out "
        "runs/frozen --frozen",
        "jetssl finetune --backbone runs/ssfm --train train.h5 --val val.h5 --out "
        "runs/random --random",
        "jetssl finetune --backbone runs/ssfm --train train.h5 --val val.h5 --out runs/few "
        "--unfreeze-at 500 --num-jets 1000 --patience 5",
        "jetssl finetune --task cwola --signal Tbqq --num-signal 500 --backbone runs/ssfm "
        "--train train.h5 --val val.h5 --out runs/cwola",
    ),
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
    dry_run: DryRun = False,
    as_json: AsJson = False,
    overrides: Overrides = None,
) -> None:
    """Train a pretrained backbone for a task: classify jets, or one that needs other truth.

    classify: the classes of jets. track-origin: where each track comes from. vertex: which tracks
    share a vertex. cwola: tell two mixed samples of jets, without labels.


    The weights at the smallest validation loss are saved. At most one of --frozen, --full,
    --unfreeze-at, --lora, --from-scratch and --random.
    """
    from jetssl_cli.runs.finetune import finetune as run
    from jetssl_cli.runs.finetune_config import load_config, mode

    words: dict[str, Any] = {"backbone": str(backbone)} if backbone else {}
    ways: dict[str, Any] = {"frozen": frozen, "full": full, "from_scratch": from_scratch}
    ways |= {"random": random, "unfreeze_at": unfreeze_at, "lora": lora}
    words |= mode(**ways)
    words |= {"layer_decay": layer_decay} if layer_decay is not None else {}
    words |= {"cache_embeddings": True} if cache_embeddings else {}
    words |= {"rescale": True} if rescale else {}
    loop = {"steps": steps, "jets": jets, "max_time": max_time, "devices": devices, "nodes": nodes}
    needed = {"backbone": backbone, "train": train, "val": val}
    held = {"cache_embeddings": cache_embeddings, "num_jets": num_jets}
    in_memory = num_jets is not None or cache_embeddings
    mixture: dict[str, Any] = {"signal": signal, "background": background}
    mixture |= {"num_signal": num_signal, "num_background": num_background}
    mixture = {name: value for name, value in mixture.items() if value is not None}
    data = {"subset": num_jets, "in_memory": in_memory or None, "mixture": mixture or None}
    loop |= {"patience": patience}
    words |= encoder_options(attention)
    options = run_options(
        out, resume, needed, loop, words, data, config=config, overrides=overrides
    )
    options = replace(options, options=_options(ways | held | mixture))
    cfg = load_config(backbone, options, task=task, config=config, overrides=overrides or [])
    execute(cfg, lambda: run(cfg), dry=dry_run, as_json=as_json)


def _options(given: Mapping[str, object]) -> dict[str, str]:
    """Setting -> the option that says it, of those whose names are not their settings'."""
    return {
        setting: f"--{name.replace('_', '-')}"
        for name, value in given.items()
        if value is not None and value is not False
        for setting in OF_OTHERS.get(name, OF_A_WAY)
    }
