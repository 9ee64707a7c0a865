"""``jetssl workflow``: the right jobs, in real processes; nothing twice, nothing lost."""

from __future__ import annotations

import csv
import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from jetssl_cli.config import Layer, load, to_yaml
from jetssl_cli.errors import ConfigError
from jetssl_cli.runs import checkpoint, finetune_config, pretrain
from jetssl_cli.scores import workflow as module
from jetssl_cli.scores.budgets import spent
from jetssl_cli.scores.groups import common_name
from jetssl_cli.scores.provenance import group
from jetssl_cli.scores.workflow_config import WorkflowConfig, load_config

Run = Callable[..., subprocess.CompletedProcess[str]]
needs_snakemake = pytest.mark.skipif(
    importlib.util.find_spec("snakemake") is None, reason="Snakemake is not installed"
)
SHORT = (
    "finetune.budget=60", "threads=1",
    "pretrain.settings=[data.batch_size=20,train.val_every=5,tracking=false,encoder.depth=1]",
    "finetune.settings=[data.batch_size=20,train.val_every=2,tracking=false]",
)  # fmt: skip
SIMULATED = ("simulate.train=4", "simulate.val=2", "simulate.test=3")


def options(**settings: object) -> Layer:
    return Layer("the command line", settings)


@pytest.fixture
def jetclass(samples: Path, tmp_path: Path) -> Path:
    """The sample, with the folders of JetClass."""
    folder = tmp_path / "JetClass"
    folder.mkdir()
    for split, name in (("train", "train_100M"), ("val", "val_5M"), ("test", "test_20M")):
        (folder / name).symlink_to(samples / "jetclass" / split)
    return folder


@needs_snakemake
def test_the_jobs_are_those_of_the_table(jetssl: Run, tmp_path: Path) -> None:
    done = jetssl("workflow", "--dry-run", "--json")
    assert done.returncode == 0, done.stderr
    planned = json.loads(done.stdout)
    assert planned == {
        "simulate": 3, "convert": 3, "merge": 3, "pretrain": 15, "finetune": 30, "baseline": 6,
        "export": 36, "evaluate": 1, "budgets": 1,
    }  # fmt: skip
    assert tuple(planned) == module.RULES
    assert not (tmp_path / "workflow").exists()


@needs_snakemake
def test_given_data_are_not_simulated_and_each_training_has_the_same_budget(
    jetclass: Path, tmp_path: Path
) -> None:
    given = options(
        methods="gpt,ssfm", seeds=2, jetclass=str(jetclass), out=str(tmp_path / "w"),
        pretrain={"budget": "1h30m"},
    )  # fmt: skip
    cfg = load_config("tiny", given)
    assert "simulate" not in module.dry_run(cfg)
    told = module._asked(cfg, "--dry-run", "--printshellcmds")
    commands = re.findall(r"^.* (pretrain|finetune) (.*) > logs", told, re.MULTILINE)
    budgets = [(kind, *re.findall(r"--(?:jets|max-time) \S+", said)) for kind, said in commands]
    assert set(budgets) == {("pretrain", "--max-time 1h30m"), ("finetune", "--jets 6000")}
    seeds = [found for _, said in commands for found in re.findall(r"train.seed=(\d)", said)]
    assert sorted(seeds) == ["0"] * 8 + ["1"] * 8


@needs_snakemake
def test_the_jobs_can_be_drawn(jetssl: Run, tmp_path: Path) -> None:
    done = jetssl("workflow", "--dag", "a/jobs.dot", "--seeds", "1", "--methods", "mpm")
    assert done.returncode == 0, done.stderr
    drawn = (tmp_path / "a" / "jobs.dot").read_text()
    assert drawn.startswith("digraph")
    assert drawn.count("[label = ") == 21
    done = jetssl("workflow", "--dag", "jobs.png", PATH="")
    assert done.returncode == 2
    assert "--dag jobs.png: needs Graphviz" in done.stderr
    done = jetssl("workflow", "--dag", "jobs.pdf")
    assert done.returncode == 2
    assert ".dot, .png or .svg is needed" in done.stderr


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"methods": "mpm,sfm"}, "no method 'sfm'; did you mean 'ssfm'?"),
        ({"methods": "mpm, mpm"}, "a method is named twice"),
        ({"size": "huge"}, "no size 'huge'"),
        ({"baselines_of": "sfm"}, "no method 'sfm'; did you mean 'ssfm'?"),
        ({"size": "small"}, "size = small: say --size small"),
        ({"pretrain": {"budget": "24 hours"}}, "a time such as 2d, 24h, 1h30m, 90m or 45s"),
        ({"pretrain": {"budget": "0"}}, "Input should be greater than 0"),
        ({"slurm": {"acount": "a"}}, "slurm.acount = 'a': no such setting; did you mean 'account'"),
    ],
)
def test_mistakes_are_told(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config("tiny", options(**settings))
    assert message in str(caught.value)


def test_what_is_missing_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    cfg = load_config("tiny", options(out=str(tmp_path / "w")))
    own = cfg.model_copy(update={"profile": "slrum"})
    with monkeypatch.context() as patch:
        patch.setattr(module.importlib.util, "find_spec", lambda _: True)
        with pytest.raises(ConfigError, match="no such profile; local, slurm, or a folder"):
            module.workflow(own)
        patch.setenv("PATH", "")
        with pytest.raises(ConfigError, match="there is no SLURM on this machine"):
            module.workflow(cfg.model_copy(update={"profile": "slurm"}))
        with pytest.raises(ConfigError, match="container = image: needs Apptainer"):
            module.workflow(cfg.model_copy(update={"container": "image"}))
        given = cfg.model_copy(update={"jetclass": tmp_path, "out": tmp_path / "made"})
        with pytest.raises(ConfigError, match="has no folder train_100M"):
            module.workflow(given)
        (given.out / "data").mkdir(parents=True)
        for split in ("train", "val", "test"):
            (given.out / "data" / f"{split}.h5").touch()
        module._require(given)  # the jets are there already
        for kind, wrong in (("pretrain", "optim.lrr=3"), ("finetune", "optim.lrr=3")):
            typed = load_config(
                "tiny", options(out=str(tmp_path / "w"), **{kind: {"settings": [wrong]}})
            )
            with pytest.raises(ConfigError, match=r"optim\.lrr = 3: no such setting"):
                module.workflow(typed)
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(ConfigError, match=r"pip install 'jetssl\[workflow\]'"):
        module.workflow(cfg)
    assert not cfg.out.exists()


def test_a_folder_belongs_to_one_workflow_that_can_grow(tmp_path: Path) -> None:
    cfg = load_config("tiny", options(out=str(tmp_path), seeds=2, methods="ssfm"))
    assert cfg.plain == module._as_begun(cfg).baselines_of == "ssfm"
    (tmp_path / module.CONFIG).write_text(to_yaml(cfg))
    grown = load_config("tiny", options(out=str(tmp_path), jobs=3, slurm={"partition": "p"}))
    assert grown.plain == "dino"
    assert module._as_begun(grown).plain == "ssfm"  # its baselines stay
    other = load_config(
        "tiny", options(out=str(tmp_path), pretrain={"budget": "7"}, jetclass="elsewhere")
    )
    assert module._as_begun(other).pretrain == other.pretrain  # nothing is made yet
    (tmp_path / "data").mkdir()
    with pytest.raises(ConfigError, match=r"jetclass = .*elsewhere: .* has None; choose"):
        module._as_begun(other)
    other = other.model_copy(update={"jetclass": None})
    module._as_begun(other)  # data alone
    (tmp_path / "runs" / "ssfm-seed0").mkdir(parents=True)
    (tmp_path / "runs" / "ssfm-seed0" / "config.yaml").touch()
    with pytest.raises(ConfigError, match=r"pretrain.budget = 7: .* has 15000; choose"):
        module._as_begun(other)
    alone = load_config("tiny", options(out=str(tmp_path), methods="mpm"))
    assert module._as_begun(alone).plain == "ssfm"
    with pytest.raises(ConfigError, match=r"baselines_of = mpm: .* has ssfm"):
        module._as_begun(alone.model_copy(update={"baselines_of": "mpm"}))


def test_the_config_that_snakemake_gets_is_the_same(tmp_path: Path) -> None:
    cfg = load_config("base", options(pretrain={"budget": "24h"}, jetclass="JetClass"))
    (tmp_path / "c.yaml").write_text(to_yaml(cfg))
    assert load(WorkflowConfig, [Layer.read(tmp_path / "c.yaml")]) == cfg
    assert cfg.jetclass is not None
    assert cfg.jetclass.is_absolute()


def test_baselines_have_an_architecture_that_is_no_method_s_own() -> None:
    def plain(methods: str) -> str:
        return load_config("tiny", options(methods=methods)).plain

    assert (plain("gpt,ssfm"), plain("mpm,gpt"), plain("gpt")) == ("ssfm", "mpm", "gpt")


def test_runs_of_the_workflow_differ_by_their_seed_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As ``evaluate`` decides it, so that its table averages over them."""
    monkeypatch.chdir(tmp_path)
    data = {"train": ["data/train.h5"], "val": ["data/val.h5"]}
    for method, seed in (("ssfm", 0), ("ssfm", 1), ("mpm", 0)):
        run = Path(f"runs/{method}-seed{seed}")
        run.mkdir(parents=True)
        words = options(out=str(run), data=data, train={"seed": seed}, resume=True)
        cfg = pretrain.load_config(method, "tiny", words)
        (run / checkpoint.CONFIG).write_text(to_yaml(cfg))
        for mode, ways in (("frozen", {"frozen": True}), ("random", {"random": True})):
            own = Path(f"runs/{method}-{mode}-seed{seed}")
            own.mkdir()
            more = {"out": str(own), "backbone": str(run), **finetune_config.mode(**ways)}
            tuned = finetune_config.load_config(run, Layer("words", {**words.settings, **more}))
            (own / checkpoint.CONFIG).write_text(to_yaml(tuned))
    assert group(Path("runs/ssfm-frozen-seed0")) == group(Path("runs/ssfm-frozen-seed1"))
    assert group(Path("runs/ssfm-frozen-seed0")) != group(Path("runs/mpm-frozen-seed0"))
    assert group(Path("runs/ssfm-random-seed1")) == group(Path("runs/mpm-random-seed0"))
    assert common_name(["ssfm-frozen-seed0", "ssfm-frozen-seed1"]) == "ssfm-frozen"


def test_what_a_training_has_used_up_is_read_from_its_folder(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(
        "command: pretrain\ndata: {batch_size: 50}\ntrain: {seed: 3}\n"
    )
    rate = "train/jets_per_second"
    for seen, jets, seconds in ((None, 350, 4.0), (20, 140, 1.6)):  # 50 a step, or fewer there are
        rows = [{"step": 1, rate: 25}, {"step": 5, rate: 100}, {"step": 7, "val/loss": 1}]
        for row in rows[:2] if seen else []:
            row["train/jets"] = seen * row["step"]
        (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        found = spent(tmp_path)
        assert (found.seed, found.steps, found.jets, found.seconds) == (3, 7, jets, seconds)


def most_at_a_time(runs: Path) -> int:
    """Of the trainings, by the clock: from their first step to their last file."""
    begun = [
        json.loads(rows.read_text().splitlines()[0])["time"]
        for rows in runs.glob("*/metrics.jsonl")
    ]
    ended = [path.stat().st_mtime for path in runs.glob("*/model.safetensors")]
    return max(sum(b <= at for b in begun) - sum(e < at for e in ended) for at in begun)


@needs_snakemake
@pytest.mark.slow
def test_from_nothing_to_the_report(tmp_path: Path, tracking_uri: str) -> None:
    """With a part that fails at first; what is there is kept, and nothing is done twice."""
    out = tmp_path / "w"
    words = ("--methods=mpm", "--seeds=1", "--out=w", "--jobs=2", *SHORT, *SIMULATED)
    command = [sys.executable, "-m", "jetssl_cli", "workflow", *words, "--budget=100", "--json"]
    environment = os.environ | {"MLFLOW_TRACKING_URI": tracking_uri}

    def run() -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )

    in_the_way = out / "runs" / "mpm-full-seed0" / "notes.txt"
    in_the_way.parent.mkdir(parents=True)
    in_the_way.touch()
    done = run()
    assert done.returncode == 2, done.stdout + done.stderr
    assert "w: a part has failed" in done.stderr
    assert "runs/mpm-full-seed0: is there already" in done.stderr
    assert not (out / "report.html").exists()
    made = {path: path.stat().st_mtime_ns for path in out.glob("runs/*/model.safetensors")}
    assert {path.parent.name for path in made} == {
        f"{kind}-seed0" for kind in ("mpm", "mpm-frozen", "from-scratch", "random")
    }

    in_the_way.unlink()
    done = run()
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads(done.stdout)
    assert {row["rule"]: row["jobs"] for row in report["times"]}["finetune"] == 2
    assert report["report"] == "w/report.html"
    assert "data:image/svg+xml" in (out / "report.html").read_text()
    assert {path: path.stat().st_mtime_ns for path in made} == made
    with (out / "tables" / "table.csv").open() as file:
        names = {Path(row["run"]).name for row in csv.DictReader(file)}
    kinds = ("mpm-frozen", "mpm-full", "from-scratch", "random")
    assert names == {f"{kind}-seed0" for kind in kinds}
    with (out / "tables" / "budgets.csv").open() as file:
        used = [(row["command"], row["jets"]) for row in csv.DictReader(file)]
    assert used == [("pretrain", "100"), *[("finetune", "60")] * 4]

    assert most_at_a_time(out / "runs") <= 2

    before = {path: path.stat().st_mtime_ns for path in out.rglob("*.h5")}
    done = run()
    assert done.returncode == 0
    assert "Nothing to be done" in done.stderr
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*.h5")} == before


@pytest.fixture
def interruptible() -> Iterator[None]:
    """What is ignored here (under nohup, SIGINT is) the processes begun here ignore as well."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@needs_snakemake
@pytest.mark.slow
@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda n: n.name)
def test_a_signal_ends_all_jobs_which_keep_what_they_have(
    number: signal.Signals, jetclass: Path, tmp_path: Path
) -> None:
    run = tmp_path / "w" / "runs" / "mpm-seed0"
    words = ("--methods=mpm", "--seeds=1", f"--jetclass={jetclass}", "--out=w", "--jobs=2", *SHORT)
    command = [sys.executable, "-m", "jetssl_cli", "workflow", *words, "--budget=20m"]
    with (tmp_path / "told").open("w") as told:
        process = subprocess.Popen(command, cwd=tmp_path, stdout=told, stderr=told)
        deadline = time.monotonic() + 900
        while not (run / "metrics.jsonl").exists() and process.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.1)
        owner = json.loads((tmp_path / "w" / ".lock").read_text())["pid"]
        assert owner != process.pid  # Snakemake, which would go on if it were killed
        process.send_signal(number)
        code = process.wait(300)
    said = (tmp_path / "told").read_text()
    assert code == 128 + number, said
    assert f"w: stopped by {number.name}; the same command goes on with it" in said
    assert list((run / "snapshots").iterdir())
    assert not (run / ".lock").exists()
    assert not (tmp_path / "w" / ".lock").exists()
