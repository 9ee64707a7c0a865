"""The entry point, which imports nothing before an interrupt is minded: imports take seconds."""

from __future__ import annotations

import sys
from contextlib import suppress

from jetssl_cli.cli import INTERRUPTED


def main() -> None:
    """Run the command; Ctrl-C ends it in one line, whenever it comes."""
    try:
        from jetssl_cli.cli.app import run

        run()
    except KeyboardInterrupt:
        with suppress(OSError):
            sys.stderr.write("interrupted\n")
        sys.exit(INTERRUPTED)
