"""``jetssl sync``: MLflow gets what a run folder has and it has not. Nothing else sends to it.

    mlflow.txt   MLflow's name of the run, to go on with it
    sent.json    what MLflow has: whether the parameters, and each measurement up to which step
    status.txt   how the training ended, where it has not come to its end

The folder is all that is waiting to be sent, so nothing waits in memory. While a training runs, a
thread of ``tracking.py`` does the same again and again.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from itertools import islice, takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from pydantic import Field, ValidationError

from jetssl_cli.config import Strict
from jetssl_cli.errors import RunError
from jetssl_cli.runs import checkpoint
from jetssl_cli.runs.lock import locked
from jetssl_cli.runs.server import (
    FINISHED,
    KILLED,
    RUNNING,
    connect,
    experiment_id,
    reason,
    shown_uri,
)

if TYPE_CHECKING:
    from mlflow.entities import Metric

MAX_PARAMS, MAX_METRICS, MAX_LENGTH = 100, 1000, 6000
"""Parameters and measurements in one request to MLflow, and characters of a parameter."""
LINES_AT_A_TIME = 100
TAG = "jetssl.token"
"""By this tag a run is found that MLflow has made while its answer was lost."""
RUN_ID = "mlflow.txt"
SENT = "sent.json"
STATUS = "status.txt"


class SyncConfig(Strict):
    """What to send."""

    runs: tuple[Path, ...]
    """Run folders."""


class SyncReport(Strict):
    """What was sent of a run."""

    run: Path
    uri: str
    """Where to, without a password."""
    run_id: str
    """MLflow's name of the run."""
    made: bool
    """MLflow had no such run before."""
    parameters: bool
    """Parameters and configuration were sent."""
    measurements: int
    status: str | None
    """How the run ended, if MLflow did not know."""


class _Sent(Strict):
    """What MLflow has of a run folder."""

    token: str
    run: str = ""
    parameters: bool = False
    steps: dict[str, int] = Field(default_factory=dict)
    """The last step of each measurement."""
    status: str = ""


def sync(cfg: SyncConfig) -> Iterator[SyncReport]:
    """Send what MLflow lacks of some runs, one after the other; a second time sends nothing.

    A run that is neither complete nor running was killed, unless its folder says otherwise.

    Raises:
        ConfigError: the configuration of a run cannot be read.
        RunError: not a run folder, a training is running in it, or MLflow does not answer.
    """
    for run in cfg.runs:
        checkpoint.settings(run)
        with locked(run):
            try:
                yield Mirror(run).update(_status(run))
            except RunError:
                raise
            except Exception as err:  # whatever a server does
                raise RunError(f"{run}: MLflow at {shown_uri()}: {reason(err)}") from None


class Mirror:
    """Brings one run of MLflow up to what a run folder holds."""

    def __init__(self, folder: Path) -> None:
        """Nothing is asked yet."""
        self._folder, self._client = folder, connect()
        self._place = 0
        """Bytes of the measurements that have been looked at."""
        self._time: int | None = None
        """Of the last measurement, in milliseconds."""
        self._met = False
        """MLflow is known to have the run."""
        self._sent = _read(folder)

    def update(self, status: str) -> SyncReport:
        """Send what is new; ``status`` is how the run is.

        Raises:
            MlflowException: MLflow does not answer, or refuses.
            RunError: it does not have the run that the folder names, or the folder is damaged.
            OSError: the folder cannot be read or written.
        """
        before = self._sent
        if not before.run:
            self._make()
        elif not self._met:
            self._meet()
        self._met = True
        if not before.parameters:
            self._send_parameters()
        number = self._send_measurements()
        changed = status != self._sent.status
        if changed:
            if status == RUNNING:
                self._client.update_run(self._sent.run, status=status)
            else:
                self._client.set_terminated(self._sent.run, status, end_time=self._time)
            self._note(status=status)
        return SyncReport(
            run=self._folder,
            uri=shown_uri(),
            run_id=self._sent.run,
            made=not before.run,
            parameters=not before.parameters,
            measurements=number,
            status=status if changed else None,
        )

    def _make(self) -> None:
        """Make the run, unless an earlier attempt has done so."""
        experiment, token = experiment_id(self._client), self._sent.token
        self._note()
        found = self._client.search_runs([experiment], f"tags.`{TAG}` = '{token}'")
        run = found[0] if found else None
        if run is None:
            name = self._folder.resolve().name
            run = self._client.create_run(experiment, tags={TAG: token}, run_name=name)
        _replace(self._folder / RUN_ID, run.info.run_id + "\n")
        self._note(run=run.info.run_id, status=RUNNING)

    def _meet(self) -> None:
        from mlflow.exceptions import MlflowException

        try:
            self._client.get_run(self._sent.run)
        except MlflowException as err:
            if err.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            raise RunError(
                f"{self._folder}: MLflow at {shown_uri()} has no run {self._sent.run}; set "
                f"MLFLOW_TRACKING_URI, or remove {self._folder / RUN_ID} to make a new run"
            ) from None

    def _send_parameters(self) -> None:
        from mlflow.entities import Param

        items = checkpoint.settings(self._folder).items()
        params = [Param(key, value[:MAX_LENGTH]) for key, value in items]
        for start in range(0, len(params), MAX_PARAMS):
            self._client.log_batch(self._sent.run, params=params[start : start + MAX_PARAMS])
        text = (self._folder / checkpoint.CONFIG).read_text(encoding="utf-8")
        self._client.log_text(self._sent.run, text, checkpoint.CONFIG)
        self._note(parameters=True)

    def _send_measurements(self) -> int:
        """Send those that were not sent before; how many."""
        number, path = 0, self._folder / checkpoint.METRICS
        if not path.exists():
            return number
        with path.open("rb") as file:
            file.seek(self._place)
            while lines := _whole_lines(file):
                rows = [_row(line, path) for line in lines]
                new = [metric for row in rows for metric in self._new(row)]
                for start in range(0, len(new), MAX_METRICS):
                    part = new[start : start + MAX_METRICS]
                    self._client.log_batch(self._sent.run, metrics=part)
                if new:
                    last = {metric.key: metric.step for metric in new}
                    self._note(steps=self._sent.steps | last)
                number += len(new)
                self._place += sum(map(len, lines))
                self._time = _milliseconds(rows[-1])
        return number

    def _new(self, row: Mapping[str, Any]) -> Iterator[Metric]:
        """What a line measured, but for what was sent before the run went back to a snapshot."""
        from mlflow.entities import Metric

        step, sent = row["step"], self._sent.steps
        for key, value in row.items():
            if key not in ("step", "time") and step > sent.get(key, -1):
                yield Metric(key, value, _milliseconds(row), step)

    def _note(self, **new: Any) -> None:
        """Write down what MLflow has."""
        self._sent = self._sent.model_copy(update=new)
        _replace(self._folder / SENT, self._sent.model_dump_json() + "\n")


def _status(run: Path) -> str:
    """How a run has ended."""
    said = run / STATUS
    if checkpoint.is_complete(run):
        return FINISHED
    return said.read_text(encoding="utf-8").strip() if said.is_file() else KILLED


def _read(folder: Path) -> _Sent:
    """What MLflow has of the run that the folder names, as far as the folder knows."""
    named = folder / RUN_ID
    run = named.read_text(encoding="utf-8").strip() if named.is_file() else ""
    try:
        sent = _Sent.model_validate_json((folder / SENT).read_text(encoding="utf-8"))
    except (FileNotFoundError, ValidationError):
        return _Sent(token=uuid4().hex, run=run)
    if sent.run and sent.run != run:
        return _Sent(token=uuid4().hex, run=run)
    return sent.model_copy(update={"run": run})


def _whole_lines(file: Any) -> list[bytes]:
    """The next lines; one that has no end yet is being written, or its writer was killed."""
    return list(takewhile(lambda line: line.endswith(b"\n"), islice(file, LINES_AT_A_TIME)))


def _row(line: bytes, path: Path) -> dict[str, Any]:
    try:
        row: dict[str, Any] = json.loads(line)
    except ValueError:
        raise RunError(f"{path}: damaged: {line[:40]!r}... is not a measurement") from None
    return row


def _milliseconds(row: Mapping[str, Any]) -> int:
    return round(1000 * row["time"])


def _replace(path: Path, text: str) -> None:
    """Write a file that is whole at any moment."""
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)
