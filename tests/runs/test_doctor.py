"""What works on a machine: told as it is."""

from __future__ import annotations

import json
import re
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
import torch

from jetssl_cli.encoder import attention
from jetssl_cli.runs import doctor as room
from jetssl_cli.runs.doctor import doctor


def found(folder: Path):
    return {finding.name: finding for finding in doctor(folder)}


def test_a_working_machine(tmp_path):
    findings = found(tmp_path)
    assert findings["attention padded"].state == "works"
    assert findings["encoder"].state == "works"
    assert findings["packages"].state == "works"
    assert torch.__version__ in findings["packages"].found
    assert findings[f"disk {tmp_path}"].state == "works"
    assert not list(tmp_path.iterdir())
    assert all(finding.state != "broken" for finding in findings.values())


def test_attention_that_computes_something_else_is_broken(tmp_path, monkeypatch):
    right = room.plan

    def plan(packing, *, causal, backend):
        attend = right(packing, causal=causal, backend=backend)
        wrong = backend == "padded" and causal
        return (lambda q, k, v: attend(q, k, v) + 0.1) if wrong else attend

    monkeypatch.setattr(room, "plan", plan)
    findings = found(tmp_path)
    assert findings["attention padded"].state == "broken"
    assert findings["attention reference"].state == "works"


@pytest.mark.parametrize("wrong", ["values", "gradients"])
def test_an_encoder_that_computes_something_else_is_broken(tmp_path, monkeypatch, wrong):
    right = attention.padded

    def padded(*given):
        attend = right(*given)
        if wrong == "values":
            return lambda q, k, v: attend(q, k, v) + 0.3 * q
        return lambda q, k, v: attend(q, k.detach(), v)

    monkeypatch.setitem(attention._PLANS, "padded", padded)
    findings = found(tmp_path)
    assert findings["encoder"].state == "broken"
    assert findings["attention padded"].state == ("broken" if wrong == "values" else "works")


def test_an_encoder_that_does_not_run_is_broken(tmp_path, monkeypatch):
    def fail(*_):
        raise RuntimeError("no kernel image is available")

    monkeypatch.setitem(attention._PLANS, "padded", fail)
    finding = found(tmp_path)["encoder"]
    assert (finding.state, finding.found) == ("broken", "no kernel image is available")


def test_a_package_that_is_missing(tmp_path, monkeypatch):
    right = room._version
    gone = ("mlflow", "fastjet")
    monkeypatch.setattr(room, "_version", lambda name: None if name in gone else right(name))
    findings = found(tmp_path)
    assert findings["packages"].state == "broken"
    assert findings["packages"].advice == "pip install mlflow"
    assert findings["extra subjets"].state == "absent"
    assert findings["extra subjets"].advice == "pip install 'jetssl[subjets]'"


@pytest.mark.parametrize("there", [False, True])
def test_flash_attention_is_advised_where_there_is_a_gpu(monkeypatch, there):
    monkeypatch.setattr(room, "_version", lambda _: None)
    monkeypatch.setattr("torch.cuda.is_available", lambda: there)
    (flash,) = (finding for finding in room._extras() if finding.name == "extra flash")
    wanted = "pip install --no-build-isolation 'jetssl[flash]'" if there else None
    assert (flash.state, flash.advice) == ("absent", wanted)


class Healthy(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200 if self.path == "/health" else 404)
        self.end_headers()

    def log_message(self, *_):
        pass


def test_the_tracking_server_is_asked(tmp_path, monkeypatch):
    server = HTTPServer(("127.0.0.1", 0), Healthy)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://me:secret@127.0.0.1:{server.server_port}")
    there = found(tmp_path)["MLflow"]
    server.shutdown()
    server.server_close()
    gone = found(tmp_path)["MLflow"]
    assert (there.state, gone.state) == ("works", "absent")
    assert gone.found.endswith(": Connection refused")
    assert "secret" not in there.found + gone.found


@pytest.mark.parametrize(
    ("name", "value", "where", "meant"),
    [
        ("MLFLOW_TRACKING_URL", "http://localhost:5000", "MLFLOW_TRACKING_URL", "_TRACKING_URI?"),
        ("MLFLOW_TRACKING_URI", "htpp://localhost:5000", "MLflow", "'http'?"),
        ("MLFLOW_TRACKING_URI", "http://[::1", "MLflow", "http://host:5000"),
        ("MLFLOW_TRACKING_URI", "sqlite:////no/such/folder/a.db", "MLflow", "is needed"),
    ],
)
def test_a_misspelled_setting_of_mlflow(tmp_path, monkeypatch, name, value, where, meant):
    monkeypatch.setenv(name, value)
    finding = found(tmp_path)[where]
    assert finding.state == "broken"
    assert finding.advice.endswith(meant)


@pytest.mark.slow
@pytest.mark.parametrize("width", [60, 80])
def test_names_and_states_are_whole_on_a_narrow_terminal(jetssl, width):
    said = jetssl("doctor", COLUMNS=f"{width}").stdout
    for one in json.loads(jetssl("doctor", "--json").stdout):
        assert re.search(rf"^ *{re.escape(one['name'])} +{one['state']} ", said, re.MULTILINE)


@pytest.mark.slow
def test_the_command(jetssl, tmp_path):
    done = jetssl("doctor", "--folder", tmp_path, "--json")
    assert {row["name"] for row in json.loads(done.stdout)} == set(found(tmp_path))
    broken = jetssl("doctor", "--folder", tmp_path / "nowhere")
    assert (done.returncode, broken.returncode) == (0, 1)
    assert "No such file or directory" in " ".join(broken.stdout.split())
    assert "broken" in broken.stdout
