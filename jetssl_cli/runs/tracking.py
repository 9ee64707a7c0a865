"""Measurements of a run: always to a file in its folder, and to MLflow without waiting for it.

A thread brings MLflow up to what the folder holds, every few seconds; a server that does not answer
is tried again, and what it never got is sent by ``jetssl sync``. So a slow or absent server neither
stops nor slows a training, and nothing piles up in memory.
"""

from __future__ import annotations

import json
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from jetssl_cli.progress import warn
from jetssl_cli.runs.checkpoint import METRICS
from jetssl_cli.runs.server import FINISHED, KILLED, RUNNING, new_run, reason
from jetssl_cli.runs.signals import Stopped
from jetssl_cli.runs.sync import STATUS, Mirror

SECONDS_BETWEEN = 5.0
"""Between two looks at what is new; after failures longer and longer, up to MOST_SECONDS."""
MOST_SECONDS = 60.0
SECONDS_TO_FINISH = 30.0
SECONDS_IF_FAILING = 5.0
"""The end of a run waits so long for MLflow, where it has answered last and where it has not."""
MOST_WAITING = 10_000
"""Measurements held in memory while the disk is full."""


class Tracker:
    """Records the measurements of one run."""

    def __init__(self, folder: Path | None, enabled: bool = True) -> None:
        """Into a folder, if there is one, and to MLflow where it is enabled."""
        self._folder = folder
        self._waiting: deque[str] = deque(maxlen=MOST_WAITING)
        if folder is not None:
            (folder / STATUS).unlink(missing_ok=True)
        self._sender = _Sender(folder) if enabled and folder is not None else None

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        """Record measurements made at an optimizer step; a full disk costs a warning."""
        if self._folder is None:
            return
        row = {"step": step, "time": round(time.time(), 3), **values}
        self._waiting.append(json.dumps(row) + "\n")
        self._write()

    def finish(self, status: str) -> None:
        """Write down how the run ended, and let MLflow have what is left, for half a minute."""
        self._write()
        if self._folder is not None and status != FINISHED:
            try:
                (self._folder / STATUS).write_text(status + "\n", encoding="utf-8")
            except OSError as err:
                warn(f"{self._folder / STATUS}: cannot be written: {reason(err)}")
        if self._sender is not None:
            self._sender.close(status)

    def _write(self) -> None:
        if self._folder is None or not self._waiting:
            return
        fresh = len(self._waiting) == 1
        try:
            _append(self._folder / METRICS, "".join(self._waiting).encode())
        except OSError as err:
            if fresh:
                told = f"cannot be written, will be tried again: {reason(err)}"
                warn(f"{self._folder / METRICS}: {told}")
        else:
            self._waiting.clear()


@contextmanager
def track(folder: Path | None, *, enabled: bool = True) -> Iterator[Tracker]:
    """A tracker that is closed when the block ends, as finished, failed or killed."""
    tracker = Tracker(folder, enabled)
    try:
        yield tracker
    except BaseException as err:
        stopped = isinstance(err, KeyboardInterrupt | SystemExit | Stopped)
        tracker.finish(KILLED if stopped else "FAILED")
        raise
    tracker.finish(FINISHED)


def record(name: str, texts: Mapping[str, str], values: Mapping[str, float]) -> None:
    """Let MLflow have results that belong to no run folder; a failure costs a warning."""

    def work() -> None:
        try:
            new_run(name, texts, values)
        except Exception as err:  # as in ``_Sender``
            warn(f"MLflow: {name} was not recorded ({reason(err)})")

    thread = threading.Thread(target=work, daemon=True, name="mlflow")
    thread.start()
    thread.join(SECONDS_TO_FINISH)
    if thread.is_alive():
        warn(f"MLflow: has not answered within half a minute; {name} may not be recorded")


def rewind(folder: Path, steps: int, *, validated: bool) -> None:
    """Drop the measurements of a run that lie behind the step where it goes on.

    Args:
        folder: of the run.
        steps: it goes on after so many.
        validated: the validation after this step is not made again.
    """
    path = folder / METRICS
    if not path.exists():
        return
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            found = json.loads(line)
        except ValueError:  # the run was killed while it wrote
            continue
        again = not validated and any(name.startswith("val/") for name in found)
        if any(name.startswith("best/") for name in found):  # written at the end of a run
            continue
        if found["step"] < steps or (found["step"] == steps and not again):
            kept.append(line + "\n")
    partial = path.with_name(f".{METRICS}.partial")
    partial.write_text("".join(kept), encoding="utf-8")
    partial.replace(path)


def latest(folder: Path) -> dict[str, int | float]:
    """The last of each measurement of a run that has come to its end."""
    path = folder / METRICS
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    rows = map(json.loads, text.splitlines())
    return {name: value for row in rows for name, value in row.items() if name != "time"}


class _Sender:
    """A thread that brings MLflow up to what is in a run folder, until it is closed."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._status = folder, RUNNING
        self._closing = threading.Event()
        self._failing = self._warned = False
        self._thread = threading.Thread(target=self._work, daemon=True, name="mlflow")
        self._thread.start()

    def close(self, status: str) -> None:
        self._status = status
        self._closing.set()
        self._thread.join(SECONDS_IF_FAILING if self._failing else SECONDS_TO_FINISH)
        if self._thread.is_alive() or self._failing:
            warn(f"MLflow: not all of the run was sent; jetssl sync {self._folder} sends the rest")

    def _work(self) -> None:
        mirror, wait, last = None, SECONDS_BETWEEN, False
        while not last:
            last = self._closing.is_set()
            try:
                mirror = mirror or Mirror(self._folder)
                mirror.update(self._status)
                self._failing, wait = False, SECONDS_BETWEEN
            except Exception as err:  # tracking must never stop a run, whatever a server does
                self._failing, wait = True, min(2 * wait, MOST_SECONDS)
                if not self._warned:
                    self._warned = True
                    warn(f"MLflow: {reason(err)}; the run goes on, and this is tried again")
            if not last:
                self._closing.wait(wait)


def _append(path: Path, data: bytes) -> None:
    """Add all of it to a file, or nothing.

    Raises:
        OSError: it cannot be written.
    """
    with path.open("ab", buffering=0) as file:
        size = file.seek(0, 2)
        try:
            while data:
                data = data[file.write(data) :]
        except OSError:
            file.truncate(size)
            raise
