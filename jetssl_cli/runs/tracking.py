"""Measurements of a run: always to a file in its folder, and to MLflow without waiting for it.

Everything MLflow does happens in a thread of its own, so that a slow or absent server neither
stops nor slows a training. The only importer of mlflow.
"""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from queue import SimpleQueue

from jetssl_cli.progress import warn
from jetssl_cli.runs.signals import Stopped

EXPERIMENT = "jetssl"
DEFAULT_URI = "sqlite:///mlflow.db"
"""Where runs are recorded unless MLFLOW_TRACKING_URI says otherwise."""
SECONDS_TO_FINISH = 30.0
MAX_PARAMS = 100
"""Parameters in one request to MLflow."""
METRICS = "metrics.jsonl"
RUN_ID = "mlflow.txt"
"""In the run folder: MLflow's name of the run, to go on with it."""


class Tracker:
    """Records parameters, metrics and files of one run."""

    def __init__(self, name: str, folder: Path | None, enabled: bool = True) -> None:
        self._folder = folder
        self._sender = _Sender(name, folder) if enabled else None

    def params(self, params: Mapping[str, str]) -> None:
        """Record what defines the run."""
        items = list(params.items())
        for start in range(0, len(items), MAX_PARAMS):
            part = dict(items[start : start + MAX_PARAMS])
            self._send(partial(_Run.params, params=part))

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        """Record measurements made at an optimizer step."""
        now = time.time()
        if self._folder is not None:
            line = json.dumps({"step": step, "time": round(now, 3), **values})
            with (self._folder / METRICS).open("a", encoding="utf-8") as file:
                file.write(line + "\n")
        self._send(lambda run: run.metrics(dict(values), step, int(1000 * now)))

    def text(self, name: str, text: str) -> None:
        """Record a text under the name of a file."""
        self._send(lambda run: run.text(text, name))

    def finish(self, status: str) -> None:
        """Send what is left, for at most half a minute, and close the run."""
        if self._sender is not None:
            self._sender.close(status)

    def _send(self, action: Callable[[_Run], None]) -> None:
        if self._sender is not None:
            self._sender.queue.put(action)


@contextmanager
def track(name: str, folder: Path | None, *, enabled: bool = True) -> Iterator[Tracker]:
    """A tracker that is closed when the block ends, as finished, failed or killed."""
    tracker = Tracker(name, folder, enabled)
    try:
        yield tracker
    except BaseException as err:
        tracker.finish(
            "KILLED" if isinstance(err, KeyboardInterrupt | SystemExit | Stopped) else "FAILED"
        )
        raise
    tracker.finish("FINISHED")


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
        if found["step"] < steps or (found["step"] == steps and not again):
            kept.append(line + "\n")
    partial = path.with_name(f".{METRICS}.partial")
    partial.write_text("".join(kept), encoding="utf-8")
    partial.replace(path)


class _Run:
    """One MLflow run, that of the folder if it has one; used in the thread of the sender alone."""

    def __init__(self, name: str, folder: Path | None) -> None:
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
        from mlflow import MlflowClient

        logging.getLogger("alembic").setLevel(logging.WARNING)
        logging.getLogger("mlflow").setLevel(logging.WARNING)
        self._client = MlflowClient(os.environ.get("MLFLOW_TRACKING_URI") or DEFAULT_URI)
        wanted = os.environ.get("MLFLOW_EXPERIMENT_NAME") or EXPERIMENT
        found = self._client.get_experiment_by_name(wanted)
        number = found.experiment_id if found else self._client.create_experiment(wanted)
        known = folder / RUN_ID if folder else None
        self._goes_on = known is not None and known.is_file()
        if known is not None and self._goes_on:
            self._id = known.read_text(encoding="utf-8").strip()
            self._client.update_run(self._id, status="RUNNING")
            return
        self._id = self._client.create_run(number, run_name=name).info.run_id
        if known is not None:
            known.write_text(self._id + "\n", encoding="utf-8")

    def params(self, params: dict[str, str]) -> None:
        from mlflow.entities import Param

        if self._goes_on:  # they are there, and MLflow does not let them change
            return

        shortened = [Param(key, value[:6000]) for key, value in params.items()]
        self._client.log_batch(self._id, params=shortened)

    def metrics(self, values: dict[str, float], step: int, milliseconds: int) -> None:
        from mlflow.entities import Metric

        entries = [Metric(key, value, milliseconds, step) for key, value in values.items()]
        self._client.log_batch(self._id, metrics=entries)

    def text(self, text: str, name: str) -> None:
        self._client.log_text(self._id, text, name)

    def end(self, status: str) -> None:
        self._client.set_terminated(self._id, status)


class _Sender:
    """A thread that carries out what is queued; after a failure it drops the rest."""

    def __init__(self, name: str, folder: Path | None) -> None:
        self.queue: SimpleQueue[Callable[[_Run], None] | None] = SimpleQueue()
        self._name, self._folder = name, folder
        self._thread = threading.Thread(target=self._work, daemon=True, name="mlflow")
        self._thread.start()

    def close(self, status: str) -> None:
        self.queue.put(lambda run: run.end(status))
        self.queue.put(None)
        self._thread.join(SECONDS_TO_FINISH)
        if self._thread.is_alive():
            warn("MLflow: still sending after half a minute; the rest is in the run folder only")

    def _work(self) -> None:
        try:
            run = _Run(self._name, self._folder)
            while (action := self.queue.get()) is not None:
                action(run)
        except Exception as err:  # tracking must never stop a run, whatever a server does
            reason = " ".join(str(err).split())[:200]
            warn(
                f"MLflow: recording stopped ({reason}); the run goes on, its folder has everything"
            )
