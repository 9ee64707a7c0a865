"""What ``pretrain`` and ``finetune`` share: options, and how a training ends."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from jetssl_cli.cli.options import COMMAND_LINE
from jetssl_cli.cli.printing import print_dry_run, print_json
from jetssl_cli.config import Layer, last_said, override_layer, to_yaml
from jetssl_cli.errors import ConfigError
from jetssl_cli.progress import number_of_process

if TYPE_CHECKING:
    from jetssl_cli.runs.finetune_config import FinetuneConfig
    from jetssl_cli.runs.pretrain import PretrainConfig

Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[SECTION.KEY=VALUE]...",
        help="Settings of the config, such as optim.lr=1e-3; the last word.",
        show_default=False,
    ),
]
Train = Annotated[
    list[Path] | None,
    typer.Option(
        metavar="FILE",
        help="Jagged HDF5 file to train on; can be given again.",
        show_default=False,
    ),
]
Val = Annotated[
    list[Path] | None,
    typer.Option(
        metavar="FILE",
        help="Jagged HDF5 file to validate on; can be given again.",
        show_default=False,
    ),
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
DryRun = Annotated[
    bool,
    typer.Option(
        "--dry-run",
        help="Train nothing and write nothing: print the resolved config, the size of the network, "
        "and estimates of time and memory from a few steps.",
    ),
]


NEEDED = {
    "method": ("objective", "name"), "backbone": ("backbone",), "train": ("data", "train"),
    "val": ("data", "val"),
}  # fmt: skip
"""Options that a new run needs, and the setting by which a file or an override says the same."""


def run_options(
    out: Path | None,
    resume: Path | None,
    needed: Mapping[str, list[Path] | Path | str | None],
    loop: dict[str, int | str | None],
    words: dict[str, Any],
    data: Mapping[str, object] | None = None,
    *,
    config: Path | None = None,
    overrides: Sequence[str] | None = None,
) -> Layer:
    """What the options say; those that a new run needs may be missing where one goes on.

    They may also be said by the user's file or by overrides.
    """
    from jetssl_cli.runs.checkpoint import is_begun

    for word in overrides or ():
        if "=" not in word and Path(word).exists():  # what a * of the shell becomes
            raise ConfigError(
                f"{word}: stands without an option; of several files each has its own, as in "
                "--train FILE --train FILE"
            )
    folder = out or resume
    if folder is None or (out and resume):
        raise ConfigError("one of --out and --resume is needed, to say where the run is")
    said = [*([Layer.read(config)] if config else []), *map(override_layer, overrides or ())]
    missing = [
        f"--{name}"
        for name, value in needed.items()
        if not value and last_said(said, *NEEDED[name]) is None
    ]
    if missing and not (resume and is_begun(resume)):
        why = f": {resume} holds no run to go on with" if resume else ""
        raise ConfigError(f"{', '.join(missing)}: needed to begin a run{why}")
    files: dict[str, Any] = {
        name: list(map(str, paths)) for name, paths in needed.items() if isinstance(paths, list)
    }
    settings: dict[str, Any] = {"out": str(folder), "resume": resume is not None}
    for section, given in (("data", files | dict(data or {})), ("train", loop)):
        values = {name: value for name, value in given.items() if value is not None}
        settings |= {section: values} if values else {}
    return Layer(COMMAND_LINE, settings | words)


def encoder_options(attention: str | None) -> dict[str, Any]:
    """What the options say of the encoder."""
    return {"encoder": {"attention": attention}} if attention else {}


def train(
    cfg: PretrainConfig | FinetuneConfig, run: Callable[[], Path], *, dry: bool, as_json: bool
) -> None:
    """Run a training, or say what it would be, and print the result, once."""
    if dry:
        if number_of_process():  # the first one measures for all
            return
        from jetssl_cli.runs.dryrun import dry_run

        report = dry_run(cfg)
        if as_json:
            print_json(report)
        else:
            print_dry_run(to_yaml(cfg), report)
        return
    from jetssl_cli.runs.checkpoint import is_complete

    complete = cfg.resume and is_complete(cfg.out)
    out = run()
    if number_of_process():  # the first one tells
        return
    if as_json:
        from jetssl_cli.runs.tracking import latest

        print_json({"run": out, "measured": latest(out)})
    else:
        done = f"{cfg.command.removesuffix('e')}ed"
        typer.echo(f"{out}: was {done} already" if complete else f"{out}: {done}")
