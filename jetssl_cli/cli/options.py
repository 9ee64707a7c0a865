"""Options that commands in several rooms share."""

from __future__ import annotations

from typing import Annotated

import typer

COMMAND_LINE = "the command line"
"""What an error message calls the source of an option."""

Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what is there already.")]
