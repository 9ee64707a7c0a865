"""Progress of long work: a bar on a terminal, plain lines elsewhere; warnings and errors."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

Advance = Callable[..., None]
"""``advance(more, note="", earlier=False)``: so many more units are done; those that an earlier run
has done do not count for the rate, beside which ``note`` is shown."""

SECONDS_BETWEEN_LINES = 10.0


class _Log(Console):
    """Standard error; where nobody reads it, rich would end the command."""

    def on_broken_pipe(self) -> None:
        """Write no more."""
        self.quiet = True


def number_of_process() -> int:
    """Number of this process among those that torchrun or srun has started together."""
    number = os.environ.get("RANK") or os.environ.get("SLURM_PROCID") or ""
    return int(number) if number.isdecimal() else 0


def warn(text: str) -> None:
    """Tell the user of what does not stop the work."""
    _say(_Log(stderr=True), f"warning: {text}", "yellow")


def note(text: str) -> None:
    """Tell the user what is good to know, once."""
    _say(_Log(stderr=True, quiet=number_of_process() > 0), f"note: {text}")


def print_error(err: Exception) -> None:
    """Tell the user of a mistake, in one line."""
    number = number_of_process()
    where = f" (process {number})" if number else ""
    _say(_Log(stderr=True), f"error{where}: {err}", "red")


def _say(console: Console, text: str, style: str | None = None) -> None:
    """Print a line as it stands; a log that cannot be written stops no work."""
    with suppress(OSError):
        console.print(text, style=style, highlight=False, markup=False, soft_wrap=True)


@contextmanager
def progress(label: str, total: int | float, unit: str) -> Iterator[Advance]:
    """Show how far ``total`` units of work have come, with the rate and the time left.

    Of work that is measured in seconds (the unit ``s``) there is no rate.

    Writes to standard error, of several processes that train together the first alone. On a
    terminal a live bar; elsewhere (a log file, a batch system) one line every ten seconds and one
    at the end.
    """
    console = _Log(stderr=True, quiet=number_of_process() > 0)
    reporter = _bar if console.is_terminal else _lines
    with reporter(console, label, total, unit) as advance:
        yield advance


@contextmanager
def _bar(console: Console, label: str, total: int | float, unit: str) -> Iterator[Advance]:
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(f"{unit} ·{{task.fields[rate]}}"),
        TimeRemainingColumn(),
        TextColumn("left {task.fields[note]}", markup=False),
    )
    start = time.monotonic()
    here: int | float = 0
    bar = Progress(*columns, console=console)
    with suppress(OSError):  # a terminal may be closed
        bar.start()
    try:
        task = bar.add_task(label, total=total, rate="", note="")

        def advance(more: int | float, note: str = "", *, earlier: bool = False) -> None:
            nonlocal here
            here += 0 if earlier else more
            rate = f" {_rate(here, start, unit)} ·" if unit != "s" else ""
            bar.update(task, advance=more, note=note, rate=rate)

        yield advance
    finally:
        with suppress(OSError):
            bar.stop()


@contextmanager
def _lines(console: Console, label: str, total: int | float, unit: str) -> Iterator[Advance]:
    start = last = time.monotonic()
    done: int | float = 0
    here: int | float = 0
    latest = ""

    def line(ending: str) -> None:
        rate = f"{_rate(here, start, unit)}, " if unit != "s" else ""
        text = f"{label}: {done:,.0f}/{total:,.0f} {unit}, {rate}{ending} {latest}"
        _say(console, text.rstrip())

    def advance(more: int | float, note: str = "", *, earlier: bool = False) -> None:
        nonlocal done, here, last, latest
        done += more
        here += 0 if earlier else more
        latest = note
        now = time.monotonic()
        if now - last >= SECONDS_BETWEEN_LINES and done < total:
            last = now
            line(f"{_clock((total - done) * (now - start) / max(here, 1))} left")

    yield advance
    line(f"done in {_clock(time.monotonic() - start)}")


def _rate(done: int | float, start: float, unit: str) -> str:
    rate = done / max(time.monotonic() - start, 1e-9)
    return f"{rate:,.0f} {unit}/s" if rate >= 99.5 else f"{rate:.2g} {unit}/s"


def _clock(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))
