"""The ``jetssl`` command; nothing heavy is imported before a command runs."""

INTERRUPTED, TERMINATED, UNREAD = 130, 143, 141
"""Exit codes after Ctrl-C, SIGTERM and SIGPIPE, as shells have them, and typer of the first."""
