"""The ``jetssl`` command; nothing heavy is imported before a command runs."""

INTERRUPTED = 130
"""Exit code after Ctrl-C, as shells and typer have it."""
