"""MLflow has what the run folder has, in the end: whatever its server does meanwhile, and once."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from runs.test_tracking import begun, lines, mlflow_threads

from jetssl_cli.errors import RunError
from jetssl_cli.runs import tracking
from jetssl_cli.runs.lock import locked
from jetssl_cli.runs.sync import SyncConfig
from jetssl_cli.runs.sync import sync as sync_runs
from jetssl_cli.runs.tracking import rewind, track

pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.slow]
ABSENT = "http://127.0.0.1:9"


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


class Server:
    """A real server of MLflow, that can be killed and started again."""

    def __init__(self, folder):
        self.folder, self.port = folder, free_port()
        self.uri = f"http://127.0.0.1:{self.port}"
        self.start()

    def start(self):
        words = ["--host", "127.0.0.1", "--port", str(self.port), "--workers", "1"]
        words += ["--backend-store-uri", f"sqlite:///{self.folder}/mlflow.db"]
        words += ["--artifacts-destination", str(self.folder / "artifacts")]
        with (self.folder / "server.log").open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "mlflow", "server", *words],
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        deadline = time.monotonic() + 240
        while time.monotonic() < deadline:
            assert self.process.poll() is None, (self.folder / "server.log").read_text()
            with contextlib.suppress(OSError, http.client.HTTPException):
                asked = http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)
                asked.request("GET", "/health")
                if asked.getresponse().status == http.client.OK:
                    return
            time.sleep(0.2)
        pytest.fail("the server does not start")

    def kill(self):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    made = Server(tmp_path_factory.mktemp("server"))
    yield made
    made.kill()


@pytest.fixture(autouse=True)
def quick(tmp_path, monkeypatch):
    """Tries again at once; no sender outlives its test."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tracking, "SECONDS_BETWEEN", 0.05)
    monkeypatch.setattr(tracking, "MOST_SECONDS", 0.2)
    monkeypatch.setattr(tracking, "SECONDS_TO_FINISH", 120.0)
    monkeypatch.setattr(tracking, "SECONDS_IF_FAILING", 120.0)
    monkeypatch.delenv("MLFLOW_EXPERIMENT_NAME", raising=False)
    yield
    for thread in mlflow_threads():
        thread.join(60)
    assert not mlflow_threads()


@pytest.fixture
def at(monkeypatch):
    return lambda uri: monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)


def sync(*runs):
    return list(sync_runs(SyncConfig(runs=runs)))


def measure(tracker, first, last):
    for step in range(first, last + 1):
        tracker.metrics({"train/loss": 1 / step, "train/lr": 0.1}, step)


def wait_until_sent(folder, step):
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        with contextlib.suppress(FileNotFoundError):
            if json.loads((folder / "sent.json").read_text())["steps"].get("train/lr") == step:
                return
        time.sleep(0.02)
    pytest.fail("nothing arrives")


def assert_all_is_there(server, folder, status, rows=None):
    """Every measurement of the folder is there, once, with parameters and status."""
    from mlflow import MlflowClient

    client = MlflowClient(server.uri)
    experiment = client.get_experiment_by_name("jetssl").experiment_id
    (run,) = [r for r in client.search_runs([experiment]) if r.info.run_name == folder.name]
    assert (run.info.status, run.data.params) == (status, {"command": "pretrain"})
    assert [file.path for file in client.list_artifacts(run.info.run_id)] == ["config.yaml"]
    for key in ("train/loss", "train/lr"):
        history = client.get_metric_history(run.info.run_id, key)
        wanted = [
            (row["step"], row[key], round(1000 * row["time"])) for row in rows or lines(folder)
        ]
        assert sorted((m.step, m.value, m.timestamp) for m in history) == wanted
    assert (folder / "mlflow.txt").read_text().strip() == run.info.run_id


def test_what_an_absent_server_has_missed_is_sent_once(server, tmp_path, at):
    at(ABSENT)
    folder = begun(tmp_path / "absent")
    with track(folder) as tracker:
        measure(tracker, 1, 250)  # more than one request takes
    (folder / "model.safetensors").touch()  # as of a run that has come to its end
    with pytest.raises(RunError, match=r"absent: MLflow at http://127.0.0.1:9: .*refused"):
        sync(folder)
    at(server.uri)
    (report,) = sync(folder)
    assert (report.made, report.parameters, report.measurements) == (True, True, 500)
    assert report.status == "FINISHED"
    assert_all_is_there(server, folder, "FINISHED")
    (report,) = sync(folder)
    assert (report.made, report.parameters, report.measurements) == (False, False, 0)
    assert report.status is None
    assert_all_is_there(server, folder, "FINISHED")


def test_a_server_that_is_killed_and_comes_back_in_the_middle(server, tmp_path, at, capsys):
    at(server.uri)
    folder = begun(tmp_path / "killed")
    with track(folder) as tracker:
        measure(tracker, 1, 20)
        wait_until_sent(folder, 20)
        server.kill()
        measure(tracker, 21, 40)
        time.sleep(1)
        server.start()
        measure(tracker, 41, 50)
    assert_all_is_there(server, folder, "FINISHED")
    assert capsys.readouterr().err.count("warning") == 1
    (report,) = sync(folder)
    assert (report.measurements, report.status) == (0, "KILLED")  # it has no weights


@contextlib.contextmanager
def proxy(server, before):
    """Passes requests on; ``before(path)`` may wait, and says whether the answer gets lost."""

    class Handler(BaseHTTPRequestHandler):
        def passed_on(self):
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            lost = before(self.path)
            there = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
            there.request(self.command, self.path, body, dict(self.headers))
            answer = there.getresponse()
            content = answer.read()
            if lost:
                self.close_connection = True
                return
            self.send_response(answer.status)
            self.send_header("Content-Type", answer.headers.get("Content-Type", "text/plain"))
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST = do_PUT = passed_on  # noqa: N815

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as between:
        threading.Thread(target=between.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{between.server_address[1]}"
        between.shutdown()


def test_answers_that_get_lost_make_nothing_twice(server, tmp_path, at):
    """Of each kind of request the first is carried out, and its answer never comes."""
    seen = set()

    def first(path):
        kind = path.split("?")[0]
        return kind not in seen and not seen.add(kind)

    folder = begun(tmp_path / "lost")
    with proxy(server, first) as uri:
        at(uri)
        with track(folder) as tracker:
            measure(tracker, 1, 30)
            wait_until_sent(folder, 30)
    assert any("runs/create" in path for path in seen)
    at(server.uri)
    (folder / "model.safetensors").touch()
    sync(folder)
    assert_all_is_there(server, folder, "FINISHED")


def test_a_slow_server_gets_all_in_few_requests(server, tmp_path, at):
    times = []

    def slowly(path):
        times.append(path)
        time.sleep(0.5)
        return False

    folder = begun(tmp_path / "slow")
    with proxy(server, slowly) as uri:
        at(uri)
        with track(folder) as tracker:
            start = time.monotonic()
            measure(tracker, 1, 2000)
            assert time.monotonic() - start < 0.5 * 2000 / 20
    assert_all_is_there(server, folder, "FINISHED")
    assert len(times) < 60


def test_a_run_that_went_back_sends_no_step_twice(server, tmp_path, at):
    at(server.uri)
    folder = begun(tmp_path / "back")
    with track(folder) as tracker:
        measure(tracker, 1, 8)
    first = lines(folder)
    rewind(folder, 5, validated=True)
    with track(folder) as tracker:
        measure(tracker, 6, 12)
    assert [row["step"] for row in lines(folder)] == list(range(1, 13))
    assert_all_is_there(server, folder, "FINISHED", rows=first + lines(folder)[8:])


def test_a_killed_run_is_sent_as_such_and_its_half_line_is_not(server, tmp_path, at):
    folder = begun(tmp_path / "sigkill")
    with track(folder, enabled=False) as tracker:
        measure(tracker, 1, 3)
    whole = (folder / "metrics.jsonl").read_text()
    (folder / "metrics.jsonl").write_text(whole + '{"step": 4, "ti')
    at(server.uri)
    (report,) = sync(folder)
    assert (report.status, report.measurements) == ("KILLED", 6)
    (folder / "metrics.jsonl").write_text(whole)
    assert_all_is_there(server, folder, "KILLED")


def test_a_run_that_the_server_does_not_know_is_not_made_again(server, tmp_path, at):
    folder = begun(tmp_path / "elsewhere")
    (folder / "mlflow.txt").write_text("0123456789abcdef0123456789abcdef\n")
    at(server.uri)
    with pytest.raises(RunError, match="has no run 0123456789abcdef0123456789abcdef; set MLFLOW"):
        sync(folder)
    (folder / "mlflow.txt").unlink()
    (report,) = sync(folder)
    assert report.made


def test_a_training_that_is_running_and_no_run_are_refused(tmp_path, at):
    at(ABSENT)
    folder = begun(tmp_path / "run")
    with locked(folder), pytest.raises(RunError, match="a training is running here"):
        sync(folder)
    with pytest.raises(RunError, match="no such run folder"):
        sync(tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_the_command(server, tmp_path, jetssl):
    folder = begun(tmp_path / "command")
    with track(folder, enabled=False) as tracker:
        measure(tracker, 1, 2)
    done = jetssl("sync", "command", MLFLOW_TRACKING_URI=ABSENT)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line == (f"error: command: MLflow at {ABSENT}: Connection refused")
    done = jetssl("sync", "command", MLFLOW_TRACKING_URI=server.uri)
    assert done.returncode == 0, done.stderr
    name = (folder / "mlflow.txt").read_text().strip()
    sent = "parameters, 4 measurements, status KILLED sent to"
    assert done.stdout == f"command: {sent} {server.uri} (run {name}, new)\n"
    done = jetssl("sync", "command", MLFLOW_TRACKING_URI=server.uri)
    assert done.stdout == f"command: nothing to send, all is at {server.uri} (run {name})\n"
