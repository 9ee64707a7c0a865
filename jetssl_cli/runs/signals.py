"""Signals that ask a training to stop: it finishes its step, writes a snapshot, and ends."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from jetssl_cli.errors import JetSSLError, reason
from jetssl_cli.progress import warn

ASKED = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
REQUEUE = signal.SIGUSR1
"""SLURM sends it some time before the end, where it is asked to."""


class Stopped(JetSSLError):  # noqa: N818
    """A training was asked to stop, and has done so; it exits with 128 + number of the signal."""

    def __init__(self, text: str, number: int) -> None:
        super().__init__(text)
        self.code = 128 + number

    def __reduce__(self) -> tuple[type[Stopped], tuple[str, int]]:
        """Another process may have to be told."""
        return Stopped, (self.args[0], self.code - 128)


class Asked:
    """The signal that came, if one did."""

    number: int = 0


@contextmanager
def listening() -> Iterator[Asked]:
    """Remember signals while the block runs; a second Ctrl-C stops at once.

    Elsewhere than in the main thread, where signals cannot be handled, nothing is remembered.
    """
    asked = Asked()

    def remember(number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and asked.number == signal.SIGINT:
            signal.default_int_handler(number, frame)
        asked.number = number

    if threading.current_thread() is not threading.main_thread():
        yield asked
        return
    before = {number: signal.signal(number, remember) for number in ASKED}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def requeue() -> None:
    """Put the SLURM job that this process belongs to, if any, back into the queue."""
    job = os.environ.get("SLURM_JOB_ID")
    if job is None:
        return
    try:
        subprocess.run(["scontrol", "requeue", job], check=True, capture_output=True, timeout=60)
    except (OSError, subprocess.SubprocessError) as err:
        warn(f"job {job} could not be put back into the queue by scontrol: {reason(err)}")
