"""What all commands share: examples that can be pasted, flags without a type, no option twice."""

from __future__ import annotations

import textwrap
from typing import Any

import typer
from typer.core import TyperCommand

from jetssl_cli.errors import ConfigError

WIDEST = 76
"""Characters of a line of an example, which no terminal of 80 breaks."""


class Command(TyperCommand):
    """A command whose examples are printed as they stand, and which refuses an option given twice.

    typer would fill their lines with spaces, behind which a backslash does not continue a line, and
    of several values take the last alone.
    """

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the words, of which an option that takes one value may be there once.

        Raises:
            ConfigError: an option was given twice.
        """
        words = [*args]  # the first parser takes them away
        left = super().parse_args(ctx, args)
        if not ctx.resilient_parsing:
            _, _, order = self.make_parser(ctx).parse_args(args=words)
            _refuse_twice(order)
        return left

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


def _refuse_twice(parameters: list[Any]) -> None:
    """Refuse an option that is there twice, but for flags and options that take several values."""
    seen: set[str] = set()
    for parameter in parameters:
        more = getattr(parameter, "is_flag", False) or getattr(parameter, "multiple", False)
        if parameter.param_type_name == "option" and not more:
            if parameter.name in seen:
                raise ConfigError(f"{parameter.opts[0]} was given twice")
            seen.add(parameter.name)


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
