"""Mistakes a user can make and mend: the command prints them in one line, and exits with 2."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class JetSSLError(Exception):
    """Base of every error that is reported without a traceback."""

    code = 2
    """Exit code of the command."""


class ConfigError(JetSSLError):
    """A preset, an override or an option does not describe a valid run."""


class DataError(JetSSLError):
    """A file or its content is not what it should be."""


class RunError(JetSSLError):
    """A run cannot start, or had to stop."""


def suggest(name: str, choices: Iterable[str], shown: int = 12) -> str:
    """Say which valid choice is nearest to ``name``, or else which choices there are."""
    valid = [str(choice) for choice in choices]
    near = get_close_matches(name, valid, n=1)
    if near:
        return f"did you mean {near[0]!r}?"
    more = f", ... ({len(valid)} in all)" if len(valid) > shown else ""
    return f"valid: {', '.join(valid[:shown])}{more}"
