"""The server of MLflow, or its database: how it is reached, and why it is not.

Its place is that of MLFLOW_TRACKING_URI, where that is set.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from jetssl_cli import errors
from jetssl_cli.errors import RunError

if TYPE_CHECKING:
    from mlflow import MlflowClient

EXPERIMENT = "jetssl"
DEFAULT_URI = "sqlite:///mlflow.db"
"""Where runs are recorded unless MLFLOW_TRACKING_URI says otherwise."""
SECONDS_PER_REQUEST = 60
RUNNING, FINISHED, KILLED = "RUNNING", "FINISHED", "KILLED"
"""What MLflow calls the states of a run."""


def connect() -> MlflowClient:
    """MLflow, without attempts of its own: the callers try again."""
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", str(SECONDS_PER_REQUEST))
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    from mlflow import MlflowClient

    logging.getLogger("alembic").setLevel(logging.WARNING)
    logging.getLogger("mlflow").setLevel(logging.WARNING)
    logging.getLogger("mlflow.store").setLevel(logging.CRITICAL)  # it raises what it tells
    uri = os.environ.get("MLFLOW_TRACKING_URI") or DEFAULT_URI
    _require_writable(uri)
    return MlflowClient(uri)


def shown_uri() -> str:
    """Where MLflow is, without a password."""
    uri = os.environ.get("MLFLOW_TRACKING_URI") or DEFAULT_URI
    return re.sub(r"//[^/@]*@", "//", uri)


def experiment_id(client: MlflowClient) -> str:
    """The number of the experiment that runs belong to; it is made if it is not there."""
    wanted = os.environ.get("MLFLOW_EXPERIMENT_NAME") or EXPERIMENT
    found = client.get_experiment_by_name(wanted)
    return str(found.experiment_id if found else client.create_experiment(wanted))


def new_run(name: str, texts: Mapping[str, str], values: Mapping[str, float]) -> None:
    """Record results that belong to no run folder.

    Raises:
        MlflowException: MLflow does not answer, or refuses.
    """
    client = connect()
    run = client.create_run(experiment_id(client), run_name=name).info.run_id
    for file, text in texts.items():
        client.log_text(run, text, file)
    for key, value in values.items():
        client.log_metric(run, key, value)
    client.set_terminated(run, FINISHED)


def reason(err: Exception) -> str:
    """What went wrong, in one short line: of a connection that fails, why; no statement of SQL."""
    root: BaseException = err
    while inner := root.__cause__ or root.__context__:
        root = inner
    shown = root if isinstance(root, OSError) and not isinstance(err, RunError) else err
    return errors.reason(shown).partition(" [SQL: ")[0][:200]


def _require_writable(uri: str) -> None:
    """Refuse at once a database in a file that may not be written: MLflow would try for minutes.

    Raises:
        RunError: names the file.
    """
    kind, _, place = uri.partition(":///")
    if kind != "sqlite" or place.startswith(":memory:"):
        return
    path = Path(place.partition("?")[0])
    folder = next(folder for folder in path.absolute().parents if folder.exists())
    if not os.access(folder, os.W_OK) or (path.exists() and not os.access(path, os.W_OK)):
        raise RunError(f"{path}: cannot be written; MLFLOW_TRACKING_URI says where to record runs")
