"""Measurements reach the run folder always, and MLflow where it can be reached."""

from __future__ import annotations

import json
import os
import resource
import socket
import sys
import threading
import time
import tracemalloc
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path

import pytest

from jetssl_cli.runs import tracking
from jetssl_cli.runs.tracking import METRICS, record, track

pytestmark = pytest.mark.filterwarnings("ignore")
"""MLflow and sqlalchemy warn of their own affairs, and in a thread."""


def mlflow_threads():
    return [thread for thread in threading.enumerate() if thread.name == "mlflow"]


@pytest.fixture(autouse=True)
def alone(tmp_path, monkeypatch):
    """A tracking server of its own; requests fail quickly; no sender outlives its test.

    MLflow is there already: to import it takes a loaded machine longer than an end of a run waits.
    """
    import_module("mlflow")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "2")
    monkeypatch.delenv("MLFLOW_EXPERIMENT_NAME", raising=False)
    yield
    for thread in mlflow_threads():
        thread.join(60)
    assert not mlflow_threads()


@pytest.fixture(scope="module")
def database(tmp_path_factory):
    """One database for all tests of the module: to make one takes MLflow seconds."""
    return f"sqlite:///{tmp_path_factory.mktemp('mlflow')}/mlflow.db"


@pytest.fixture
def client(database, monkeypatch):
    from mlflow import MlflowClient

    monkeypatch.setenv("MLFLOW_TRACKING_URI", database)
    monkeypatch.setattr(tracking, "SECONDS_TO_FINISH", 120.0)
    return MlflowClient(database)


def found_run(client, name, experiment="jetssl"):
    number = client.get_experiment_by_name(experiment).experiment_id
    (run,) = [run for run in client.search_runs([number]) if run.info.run_name == name]
    return run


def lines(folder):
    return [json.loads(line) for line in (folder / METRICS).read_text().splitlines()]


def begun(folder, text="command: pretrain\n"):
    """A folder in which a run has begun."""
    folder.mkdir(exist_ok=True)
    (folder / "config.yaml").write_text(text)
    return folder


@pytest.mark.slow
def test_a_run_arrives(client, tmp_path, capsys):
    params = {f"section.key{i}": str(i) for i in range(250)} | {"long": "x" * 7000}
    settings = [f"  key{i}: {i}" for i in range(250)]
    text = "\n".join(["section:", *settings, f"long: {'x' * 7000}"])
    folder = begun(tmp_path / "first", text)
    with track(folder) as tracker:
        for step in range(3):
            tracker.metrics({"train/loss": 2.0 / (step + 1), "train/lr": 0.1}, step + 1)
        tracker.metrics({"val/loss": 0.25}, 3)
    run = found_run(client, "first")
    assert run.info.status == "FINISHED"
    assert run.data.params == params | {"long": "x" * 6000}
    assert run.data.metrics == pytest.approx(
        {"train/loss": 2 / 3, "train/lr": 0.1, "val/loss": 0.25}
    )
    history = client.get_metric_history(run.info.run_id, "train/loss")
    assert [(point.step, point.value) for point in history] == [(1, 2), (2, 1), (3, 2 / 3)]
    assert abs(history[0].timestamp / 1000 - time.time()) < 300
    saved = client.download_artifacts(run.info.run_id, "config.yaml", str(tmp_path))
    assert Path(saved).read_text(encoding="utf-8") == text
    assert [row["step"] for row in lines(folder)] == [1, 2, 3, 3]
    assert "warning" not in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize(
    ("error", "status"),
    [(ValueError, "FAILED"), (KeyboardInterrupt, "KILLED"), (SystemExit, "KILLED")],
)
def test_how_a_run_ended_arrives(client, tmp_path, monkeypatch, error, status):
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "mine")
    folder = begun(tmp_path / f"{status}{error.__name__}")

    def run_that_ends():
        with track(folder) as tracker:
            tracker.metrics({"train/loss": 2.0}, 1)
            raise error

    with pytest.raises(error):
        run_that_ends()
    run = found_run(client, folder.name, "mine")
    assert run.info.status == status
    assert run.data.metrics == {"train/loss": 2.0}


@pytest.mark.slow
def test_results_without_a_folder_arrive(client):
    record("evaluate", {"table.md": "| a |"}, {"frozen/auc": 0.9})
    run = found_run(client, "evaluate")
    assert (run.info.status, run.data.metrics) == ("FINISHED", {"frozen/auc": 0.9})
    assert [file.path for file in client.list_artifacts(run.info.run_id)] == ["table.md"]


def test_results_that_do_not_arrive_cost_a_warning(capsys):
    record("evaluate", {"table.md": "| a |"}, {"frozen/auc": 0.9})
    assert "warning: MLflow: evaluate was not recorded (" in capsys.readouterr().err


def test_a_server_that_is_not_there_is_told_once_and_at_the_end(tmp_path, capsys):
    folder = begun(tmp_path / "absent")
    start = time.monotonic()
    with track(folder) as tracker:
        for step in range(50):
            tracker.metrics({"train/loss": 1.0}, step)
        training = time.monotonic() - start
    assert training < 2  # nothing waits for the server while the training runs
    assert time.monotonic() - start < 30
    first, last = capsys.readouterr().err.splitlines()
    assert first.startswith("warning: MLflow: Connection refused; the run goes on")
    assert last.endswith(f"not all of the run was sent; jetssl sync {folder} sends the rest")
    assert [row["step"] for row in lines(folder)] == list(range(50))


@pytest.mark.parametrize("there", [False, True])
def test_a_database_that_may_not_be_written_is_told_at_once(tmp_path, monkeypatch, capsys, there):
    """MLflow would try for minutes, and print its own warnings or a traceback."""
    place = tmp_path / "mlflow.db"
    if there:
        place.touch()
    monkeypatch.setattr(os, "access", lambda path, _: Path(path) != (place if there else tmp_path))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{place}")
    start = time.monotonic()
    with track(begun(tmp_path / "run")):
        pass
    assert time.monotonic() - start < 30
    first, last = capsys.readouterr().err.splitlines()
    assert first.startswith(f"warning: MLflow: {place}: cannot be written; MLFLOW_TRACKING_URI")
    assert "not all of the run was sent" in last
    assert place.exists() == there


def test_what_mlflow_says_of_its_database_is_told_by_us_alone(tmp_path, monkeypatch, capfd):
    (tmp_path / "mlflow.db").mkdir()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.setattr("mlflow.store.db.utils.MAX_RETRY_COUNT", 2)
    record("evaluate", {}, {})
    told = capfd.readouterr().err.splitlines()
    assert len(told) == 1, told
    assert told[0].startswith("warning: MLflow: ")


@contextmanager
def silent_server():
    """Takes connections and never answers."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen(8)
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


def test_a_server_that_does_not_answer_is_not_waited_for(tmp_path, monkeypatch, capsys):
    """Nor does what it was not sent pile up in memory."""
    monkeypatch.setattr(tracking, "SECONDS_TO_FINISH", 0.2)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "60")
    folder = begun(tmp_path / "silent")
    with silent_server() as address:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
        start = time.monotonic()
        with track(folder) as tracker:
            tracker.metrics({"train/loss": 1.0}, 1)
            tracemalloc.start()
            for step in range(2, 3000):
                tracker.metrics({f"val/{i}": 1.0 for i in range(20)}, step)
            ours = tracemalloc.Filter(True, tracking.__file__)
            held = tracemalloc.take_snapshot().filter_traces([ours]).statistics("filename")
            tracemalloc.stop()
            end = time.monotonic()
        assert sum(of_file.size for of_file in held) < (folder / METRICS).stat().st_size / 20
        assert time.monotonic() - end < 10
        assert end - start < 30
        assert "jetssl sync" in capsys.readouterr().err
    for thread in mlflow_threads():
        thread.join(60)
    assert lines(folder)[0]["train/loss"] == 1


def test_without_tracking_there_is_only_the_folder(tmp_path):
    with track(tmp_path, enabled=False) as tracker:
        assert not mlflow_threads()
        tracker.metrics({"train/loss": 1.5}, 4)
    (row,) = lines(tmp_path)
    assert (row["step"], row["train/loss"]) == (4, 1.5)
    assert abs(row["time"] - time.time()) < 60
    assert [file.name for file in tmp_path.iterdir()] == [METRICS]


def test_a_full_disk_costs_a_warning_and_no_measurement(tmp_path, capsys, monkeypatch):
    """A limit on the size of files does what a full disk does: a write ends in the middle."""
    monkeypatch.setattr(sys, "dont_write_bytecode", True)  # of which half a module would stay
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    with track(tmp_path, enabled=False) as tracker:
        tracker.metrics({"train/loss": 1.0}, 0)
        room = (tmp_path / METRICS).stat().st_size + 10
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, before[1]))
        try:
            for step in range(1, 5):
                tracker.metrics({"train/loss": 1.0}, step)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        assert [row["step"] for row in lines(tmp_path)] == [0]
    assert [row["step"] for row in lines(tmp_path)] == list(range(5))
    (line,) = capsys.readouterr().err.splitlines()
    told = "cannot be written, will be tried again: File too large"
    assert line == f"warning: {tmp_path / METRICS}: {told}"


def test_the_error_of_the_run_is_not_swallowed(tmp_path):
    with pytest.raises(ZeroDivisionError), track(tmp_path, enabled=False):
        _ = 1 / 0
    assert (tmp_path / "status.txt").read_text() == "FAILED\n"
