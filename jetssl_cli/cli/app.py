"""The command itself: its rooms, and how it ends with a mistake.

Each module beside this one is a room with a group of commands. A command parses, loads the config,
calls one function and prints its result.
"""

from __future__ import annotations

import errno
import io
import sys
from collections.abc import Sequence
from contextlib import suppress
from itertools import pairwise
from typing import Annotated, Any

import typer

from jetssl_cli import __version__
from jetssl_cli.cli import (
    INTERRUPTED,
    data,
    doctor,
    export,
    finetune,
    pretrain,
    results,
    scan,
    simulate,
    sync,
    workflow,
)
from jetssl_cli.errors import ConfigError, JetSSLError
from jetssl_cli.progress import print_error

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)
"""Errors of writing which are not the command's fault."""

USAGE_ERROR: type[Exception] = typer.BadParameter.mro()[1]
"""Of which typer exports this child alone; it would draw a box around each."""

app = typer.Typer(
    name="jetssl",
    help="Self-supervised learning on particle-physics jets: from ROOT files to score tables.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)
ROOMS = (data, pretrain, finetune, scan, sync, export, results, workflow, simulate, doctor)
for _room in ROOMS:
    app.add_typer(_room.room)


@app.callback(invoke_without_command=True)
def root(
    version: Annotated[bool, typer.Option("--version", help="Show the version and exit.")] = False,
) -> None:
    """Options of the command itself."""
    if version:
        typer.echo(f"jetssl {__version__}")
        raise typer.Exit


def run() -> None:
    """Run the command; print a user's mistake in one line and exit with its code.

    Raises:
        KeyboardInterrupt: it was interrupted, which typer had made an exit code of.
        BrokenPipeError: nobody reads its output any more; the same.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        with suppress(OSError):
            sys.stdout.reconfigure(errors="backslashreplace")  # names of files may be no text
    try:
        _refuse_dashes(sys.argv[1:])
        code = app(standalone_mode=False)
    except USAGE_ERROR as err:
        if told := _usage(err):  # nothing where the help was shown
            print_error(JetSSLError(told))
        sys.exit(JetSSLError.code)
    except JetSSLError as err:
        print_error(err)
        sys.exit(err.code)
    except BrokenPipeError:
        raise
    except OSError as err:  # such as a folder that may not be looked into
        if err.strerror is None or (err.filename is None and err.errno not in FULL):
            raise
        print_error(JetSSLError(f"{err.filename or 'standard output'}: {err.strerror}"))
        sys.exit(JetSSLError.code)
    except SystemExit as end:
        if isinstance(end.__context__, BrokenPipeError):
            raise end.__context__ from None
        raise
    if code == INTERRUPTED:
        raise KeyboardInterrupt
    sys.exit(code or 0)


def _usage(err: Any) -> str:
    """What typer says of words that are no command of ours, and which help explains them."""
    told = " ".join(str(err.format_message()).split()).removesuffix(".")
    return f"{told} ({err.ctx.command_path} --help)" if told and err.ctx else told


def _refuse_dashes(words: Sequence[str]) -> None:
    """Refuse a setting that is written as an option, of which none has a dot in its name."""
    for word, following in pairwise([*words, ""]):
        name, _, value = word.partition("=")
        if name.startswith("--") and "." in name:
            setting = f"{name.lstrip('-')}={value or following}"
            raise ConfigError(f"{name}: no such option; a setting has no dashes: {setting}")
