"""``--json``: standard output holds the report and nothing else, whatever else is said."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from jetssl_cli.cli.main import main
from jetssl_cli.cli.printing import print_json

SMALL = ("encoder.width=16", "encoder.depth=1", "encoder.heads=2", "data.batch_size=50")


@pytest.fixture
def ask(tmp_path, monkeypatch, capsys):
    """Run a command in an empty folder, and read its answer."""
    monkeypatch.chdir(tmp_path)

    def run(*words, code=0):
        monkeypatch.setattr(sys, "argv", ["jetssl", *map(str, words), "--json"])
        with pytest.raises(SystemExit) as end:
            main()
        assert end.value.code == code
        return json.loads(capsys.readouterr().out)

    return run


def test_numbers_that_are_not_finite_are_null(capsys):
    print_json({"loss": float("nan"), "rejection": float("inf"), "path": "é"})
    assert capsys.readouterr().out == '{\n  "loss": null,\n  "rejection": null,\n  "path": "é"\n}\n'


@pytest.mark.slow
def test_one_of_several_tasks_of_a_job_answers_for_itself(ask, jagged, monkeypatch):
    """Only trainings are run by several processes together."""
    monkeypatch.setenv("SLURM_PROCID", "1")
    assert ask("inspect", jagged / "val.h5")["num_jets"]
    monkeypatch.setenv("RANK", "x")
    assert ask("merge", jagged / "val.h5", "--out", "a.h5")["num_jets"]


@pytest.mark.slow
def test_names_that_are_no_text(jagged, tmp_path):
    path = os.fsencode(tmp_path) + b"/n\xff.h5"
    with open(path, "wb") as file:  # noqa: PTH123
        file.write((jagged / "val.h5").read_bytes())
    for words in (("inspect", "--json"), ("verify", "--json"), ("verify",)):
        command = [sys.executable, "-m", "jetssl_cli", words[0], path, *words[1:]]
        strict = os.environ | {"PYTHONIOENCODING": "utf-8:strict"}
        done = subprocess.run(command, env=strict, capture_output=True, check=False)
        assert done.returncode == 0, done.stderr
        assert "n\\udcff.h5" in done.stdout.decode()
        assert "--json" not in words or json.loads(done.stdout)


def test_commands_on_data(ask, samples):
    source = samples / "jetclass" / "val" / "HToBB_120.root"
    found = ask("convert", source, "--recipe", "jetclass", "--out", "each")
    assert found["files"][0]["classes"]["Hbb"] == 20
    assert found["recipe"]["name"] == "jetclass"
    merged = ask("merge", "each", "--out", "a.h5")
    assert merged["num_jets"] == 20
    assert ask("inspect", "a.h5")["classes"]["Hbb"] == 20
    assert ask("tokenize", "a.h5", "--clusters", 5)["clusters"] == 5


def test_what_is_damaged_is_in_the_answer(ask, jagged, tmp_path):
    (tmp_path / "a.h5").write_bytes((jagged / "val.h5").read_bytes()[:1000])
    found = ask("verify", jagged / "val.h5", "a.h5", code=2)
    assert [row["error"] is None for row in found] == [True, False]
    assert "a.h5" in found[1]["error"]


@pytest.mark.slow
def test_the_road_from_training_to_a_table(ask, jagged):
    data = ("--train", jagged / "train.h5", "--val", jagged / "val.h5", "--steps", 1)
    off = ("tracking=false", "data.num_val_jets=20")
    trained = ask(
        "pretrain", "--method", "ssfm", "--size", "tiny", *data, "--out", "a", *SMALL, *off
    )
    assert trained["run"] == "a"
    assert trained["measured"]["step"] == 1
    assert trained["measured"]["val/loss"] > 0
    tuned = ask("finetune", "--backbone", "a", *data, "--out", "b", "--frozen", *off)
    assert 0 <= tuned["measured"]["val/accuracy"] <= 1
    report = ask("export", "b", "--data", jagged / "test.h5", "--out", "s.h5", "--num-jets", 50)
    assert report["files"] == {"--out": "s.h5"}
    assert ask("evaluate", "s.h5")[0]["num_jets"] == 50
    words = ("--num-jets", 4, "--integration-steps", 1)
    made = ask("generate", "a", "--data", jagged / "test.h5", "--out", "g.h5", *words)
    assert made["num_jets"] == 4
