"""The entry point, which imports nothing before an interrupt is minded: imports take seconds."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

from jetssl_cli.cli import INTERRUPTED, TERMINATED, UNREAD

SECONDS_UNTIL_AGAIN = 0.01
"""After so long a signal comes again that was lost."""


def main() -> None:
    """Run the command; Ctrl-C or SIGTERM ends it in one line, whenever it comes.

    Where nobody reads its output any more, as of ``jetssl verify data | head -1``, it ends in
    silence, as programs do that SIGPIPE kills.
    """
    came: list[int] = []
    try:
        with _losing_none(came), _minding(came):
            from jetssl_cli.cli.app import run

            run()
    except (KeyboardInterrupt, ImportError) as err:
        if not _is_interrupt(err):
            raise
        with suppress(OSError):
            sys.stderr.write("terminated\n" if came else "interrupted\n")
        sys.exit(TERMINATED if came else INTERRUPTED)
    except BrokenPipeError:
        with suppress(OSError):  # what is still to be written is written as Python ends
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(UNREAD)


def _is_interrupt(err: BaseException | None) -> bool:
    """Whether an interrupt is behind it: modules in C tell any failure of theirs as ImportError."""
    return isinstance(err, KeyboardInterrupt) or (
        isinstance(err, ImportError) and _is_interrupt(err.__cause__ or err.__context__)
    )


@contextmanager
def _minding(came: list[int]) -> Iterator[None]:
    """Raise KeyboardInterrupt at the first SIGTERM: it would leave half-written files behind.

    A second one, as batch systems send to the group as well, does not break off the tidying up.
    """

    def end(number: int, _: FrameType | None) -> None:
        came.append(number)
        if len(came) == 1:
            raise KeyboardInterrupt

    if (
        threading.current_thread() is not threading.main_thread()
        or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL
    ):
        yield
        return
    signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


@contextmanager
def _losing_none(came: list[int]) -> Iterator[None]:
    """Send a signal again that came where Python drops every exception, as in a ``__del__``."""
    before = sys.unraisablehook

    def again(told: sys.UnraisableHookArgs) -> None:
        if told.exc_type is not KeyboardInterrupt:
            before(told)
            return
        number = came[0] if came else signal.SIGINT
        came.clear()
        sender = threading.Timer(SECONDS_UNTIL_AGAIN, os.kill, (os.getpid(), number))
        sender.daemon = True
        sender.start()

    sys.unraisablehook = again
    try:
        yield
    finally:
        sys.unraisablehook = before
