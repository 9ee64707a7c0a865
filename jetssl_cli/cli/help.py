"""What the help of a command looks like: examples that can be pasted, and flags without a type."""

from __future__ import annotations

import textwrap
from typing import Any

import typer
from typer.core import TyperCommand

WIDEST = 76
"""Characters of a line of an example, which no terminal of 80 breaks."""


class Command(TyperCommand):
    """A command whose examples are printed as they stand.

    typer would fill their lines with spaces, behind which a backslash does not continue a line.
    """

    def format_help(self, *args: Any) -> None:
        """Print the help, then the examples."""
        shown, self.epilog = self.epilog, None
        try:
            super().format_help(*args)
        finally:
            self.epilog = shown
        typer.echo(f"{shown}\n")

    def get_params(self, *args: Any) -> list[Any]:
        """All arguments and options; a flag takes no value, and shows no type."""
        found = [*super().get_params(*args)]
        for parameter in found:
            if getattr(parameter, "is_flag", False):
                parameter.metavar = ""
        return found


def examples(*commands: str) -> str:
    """The last part of a help: commands, those that are long over several lines."""
    wrapped = (
        textwrap.wrap(
            command,
            WIDEST - len(" \\"),
            subsequent_indent="    ",
            break_long_words=False,
            break_on_hyphens=False,
        )
        for command in commands
    )
    return "\n\n".join(["Examples:", *(" \\\n".join(lines) for lines in wrapped)])
