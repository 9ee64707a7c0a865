"""Options that commands in several rooms share; a name means one thing everywhere."""

from __future__ import annotations

from typing import Annotated

import typer

from jetssl_cli.cli.names import ATTENTION, one_of

COMMAND_LINE = "the command line"
"""What an error message calls the source of an option."""

Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what is there already.")]
AsJson = Annotated[
    bool, typer.Option("--json", help="Print the result as JSON, and nothing else there.")
]
Attention = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="Attention back end: auto, triton, flash-attn, varlen, padded or reference.",
        show_default=False,
        autocompletion=one_of(ATTENTION),
    ),
]
