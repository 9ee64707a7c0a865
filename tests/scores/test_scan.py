"""Scans: which trainings there are, that they go on where they were, and what comes out."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest
from reference.jets import tiny_config
from reference.numbered import RECIPE, jets_of

from jetssl_cli.config import Layer, load
from jetssl_cli.data.hdf5 import attributes_of, open_complete
from jetssl_cli.data.write import write
from jetssl_cli.errors import ConfigError, DataError, RunError
from jetssl_cli.objectives.ssfm import SSFMConfig
from jetssl_cli.runs import checkpoint, weightfile
from jetssl_cli.runs.finetune import finetune
from jetssl_cli.runs.loaders import DataConfig
from jetssl_cli.runs.pretrain import PretrainConfig, pretrain
from jetssl_cli.runs.run_config import TrainConfig
from jetssl_cli.runs.sources import hash_of_backbone, require_same_sources
from jetssl_cli.scores import scanpoint
from jetssl_cli.scores.provenance import sha256
from jetssl_cli.scores.scan import ScanConfig, plan, scan
from jetssl_cli.scores.scanplot import plot
from jetssl_cli.scores.scanpoint import Measured
from jetssl_cli.scores.scansummary import summarise
from jetssl_cli.scores.scorefile import FORMAT, VERSION

OVERRIDES = (
    "objective.pool.width=8", "objective.pool.heads=2", "objective.pool.depth=1",
    "data.num_val_jets=24", "train.precision=32",
)  # fmt: skip


@pytest.fixture(scope="module")
def backbones(jagged, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    files = {"train": (jagged / "train.h5",), "val": (jagged / "val.h5",)}
    data = DataConfig(**files, batch_size=16, max_constituents=12, num_val_jets=24)
    pretrain(
        PretrainConfig(
            out=folder / "one",
            objective=SSFMConfig(time_features=4),
            encoder=tiny_config(depth=1),
            data=data,
            train=TrainConfig(steps=1),
            tracking=False,
        )
    )
    for name in ("two", "causal"):
        shutil.copytree(folder / "one", folder / name)
    settings = folder / "causal" / "config.yaml"
    settings.write_text(settings.read_text().replace("causal: false", "causal: true"))
    return folder


def config(jagged, out, *backbones, **settings):
    usual = {"num_jets": "20,10", "seeds": 2, "modes": "frozen,random", "steps": 4, "patience": 2}
    files = {split: [str(jagged / f"{split}.h5")] for split in ("train", "val")}
    files["test"] = str(jagged / "test.h5")
    words = {"backbones": list(map(str, backbones)), "out": str(out), "overrides": OVERRIDES}
    return load(ScanConfig, [Layer("the test", usual | files | words | settings)])


@pytest.mark.slow
def test_several_files(jetssl, jagged, backbones, tmp_path):
    files = [jagged / "train.h5", tmp_path / "more.h5"]
    shutil.copy(jagged / "test.h5", files[1])
    named = list(map(str, files))
    (point, *_) = plan(config(jagged, tmp_path, backbones / "one", train=named, num_jets="1800"))
    assert point.cfg.data.train == tuple(files)
    with pytest.raises(DataError, match=r"more\.h5: 1801 jets are wanted, there are 1800"):
        plan(config(jagged, tmp_path, backbones / "one", train=named, num_jets="1801"))
    words = ["--backbone", backbones / "one", "--test", files[1], "--num-jets", 10, "--out", "s"]
    each = ["--train", files[0], "--val", files[1]]
    for option in ("--train", "--val"):
        done = jetssl("scan", *words, option, "no.h5", *each)
        assert done.returncode == 2
        assert "no.h5: no such file" in done.stderr


@pytest.mark.slow
def test_the_trainings_of_a_scan(jagged, backbones, tmp_path):
    """Baselines are made once for backbones of one architecture."""

    def lines(*names):
        cfg = config(jagged, tmp_path, *(backbones / name for name in names))
        return [(point.line, point.num_jets, point.cfg.train.seed) for point in plan(cfg)]

    each = [(num_jets, seed) for num_jets in (10, 20) for seed in (0, 1)]
    for names, wanted in (
        (["one"], ["one frozen", "random"]),
        (["one", "two"], ["one frozen", "random", "two frozen"]),
        (["one", "causal"], ["one frozen", "one random", "causal frozen", "causal random"]),
    ):
        assert lines(*names) == [(line, *more) for line in wanted for more in each]
    points = plan(config(jagged, tmp_path, backbones / "one", modes="full,from-scratch,full"))
    assert len({point.cfg.out for point in points} | {point.scores for point in points}) == 16
    full, scratch = points[0].cfg, points[-1].cfg
    assert (full.random, scratch.random) == (False, True)
    assert not full.objective.frozen
    assert not full.cache_embeddings
    assert (full.data.subset, scratch.data.subset, scratch.train.seed) == (10, 20, 1)
    assert (full.train.steps, full.train.val_every, full.train.patience) == (4, 1, 2)
    assert full.train.keep == "best"


@pytest.mark.slow
def test_a_scan_goes_on_where_it_was(jagged, backbones, tmp_path, monkeypatch):
    made = []
    right = scanpoint.finetune
    monkeypatch.setattr(scanpoint, "finetune", lambda cfg: made.append(cfg.out.name) or right(cfg))
    cfg = config(jagged, tmp_path / "scan", backbones / "one", rejection="Hbb", seeds=1)
    report = scan(cfg)
    assert len(made) == len(report.points) == 4
    assert len(report.summary) == 4
    rows = list(csv.DictReader((tmp_path / "scan" / "scan.csv").read_text().splitlines()))
    assert [row["line"] for row in rows] == ["one frozen"] * 2 + ["random"] * 2
    assert all(0 <= float(row["accuracy"]) <= 1 and row["rejection"] for row in rows)
    written = json.loads((tmp_path / "scan" / "scan.json").read_text())
    assert written["points"] == json.loads(report.model_dump_json())["points"]
    assert {file.name for file in report.files} == {
        "scan.csv", "scan.json", "scan.png", "scan.pdf",
    }  # fmt: skip
    assert all(file.stat().st_size > 0 for file in report.files)

    made.clear()
    stopped = tmp_path / "scan" / "runs" / "random-10-0"
    (stopped / "model.safetensors").unlink()
    (tmp_path / "scan" / "scores" / "random-20-0.h5").unlink()
    assert scan(cfg).points == report.points
    assert made == ["random-10-0"]
    more = scan(cfg.model_copy(update={"num_jets": (10, 20, 30)}))
    assert made[1:] == ["one-frozen-30-0", "random-30-0"]
    assert len(more.points) == 6
    replaced = cfg.model_copy(update={"test": tmp_path / "test.h5"})
    shutil.copy(jagged / "val.h5", tmp_path / "test.h5")
    other = scan(replaced)
    shutil.copy(jagged / "test.h5", tmp_path / "test.h5")
    back = scan(replaced)
    assert [x.accuracy for x in back.points] == [x.accuracy for x in report.points]
    assert [x.accuracy for x in back.points] != [x.accuracy for x in other.points]
    with pytest.raises(ConfigError, match=r"train\.steps = 5: the run in .* has 4"):
        scan(cfg.model_copy(update={"steps": 5}))


@pytest.mark.parametrize("way", ["frozen", "random"])
def test_numbers_of_other_data_or_another_backbone_are_not_taken_for_these(
    jagged, backbones, tmp_path, way
):
    """The names are the same: of a folder, or a file, that was made anew."""
    source, train = tmp_path / "one", tmp_path / "train.h5"
    shutil.copytree(backbones / "one", source)
    shutil.copy(jagged / "train.h5", train)
    cfg = config(jagged, tmp_path / "scan", source, num_jets="10", seeds=1, modes=way)
    cfg = cfg.model_copy(update={"train": (train,)})
    (point,) = plan(cfg)
    measured = scanpoint.measure(point, None)
    shutil.copytree(backbones / "one", source, dirs_exist_ok=True)  # the same, written again
    assert scanpoint.measure(point, None) == measured

    retrained(source, "registers" if way == "frozen" else "scaling")
    made = rf"the run in {point.cfg.out} was made with"
    with pytest.raises(ConfigError, match=f"{made} another backbone than the one in {source}"):
        scanpoint.measure(point, None)
    with pytest.raises(ConfigError, match="another backbone"):
        finetune(point.cfg.model_copy(update={"resume": True}))
    shutil.copytree(backbones / "one", source, dirs_exist_ok=True)
    shutil.copy(jagged / "val.h5", train)
    with pytest.raises(ConfigError, match=f"{made} other jets than those in {train}"):
        scanpoint.measure(point, None)
    both = point.cfg.data.model_copy(update={"val": (train, train)})
    shutil.copy(jagged / "train.h5", train)
    with pytest.raises(ConfigError, match=f"{made} 1 files in the place of {train}, not 2"):
        require_same_sources(point.cfg.out, both)

    model = point.cfg.out / checkpoint.MODEL
    assert hash_of_weights(point.scores) == sha256(model)
    weights, facts = weightfile.read_weights(model)
    kept = {key: facts[key] for key in ("recipe", "classes")}
    retrained(source, "scaling")
    weightfile.save(model, weights, kept)  # as an earlier version did
    assert hash_of_weights(point.scores) != sha256(model)
    scanpoint.measure(point, None)
    assert hash_of_weights(point.scores) == sha256(model)
    weightfile.save(model, weights, {**kept, "train": 3})
    with pytest.raises(RunError, match=r"do not tell what it was made of: train"):
        scanpoint.measure(point, None)


def test_baselines_are_of_the_scaling_alone(jagged, backbones, tmp_path):
    source = tmp_path / "one"
    shutil.copytree(backbones / "one", source)
    (point,) = plan(config(jagged, tmp_path, source, num_jets="10", seeds=1, modes="random"))
    known = hash_of_backbone(point.cfg.backbone, random=True)
    retrained(source, "registers")
    assert hash_of_backbone(point.cfg.backbone, random=True) == known
    retrained(source, "scaling")
    assert hash_of_backbone(point.cfg.backbone, random=True) != known


def hash_of_weights(scores):
    with open_complete(scores, FORMAT, VERSION) as file:
        return attributes_of(file)["weights_hash"]


def retrained(run, part):
    """Change some of the weights of a backbone, as another training would."""
    path = run / checkpoint.BACKBONE
    weights, facts = weightfile.read_weights(path)
    found = {name: value + 1 if name.startswith(part) else value for name, value in weights.items()}
    assert any(name.startswith(part) for name in weights), sorted(weights)
    weightfile.save(path, found, {key: facts[key] for key in ("recipe", "classes")})


@pytest.mark.slow
def test_trainings_in_several_processes_come_to_the_same(jagged, backbones, tmp_path, capfd):
    settings = {"seeds": 1, "num_jets": "10"}
    one, two = (
        scan(config(jagged, tmp_path / f"{jobs}", backbones / "one", jobs=jobs, **settings))
        for jobs in (1, 2)
    )
    told = capfd.readouterr().err
    assert "scan 2: 2/2 trainings" in told
    for point, other in zip(one.points, two.points, strict=True):
        assert point.model_copy(update={"run": other.run}) == other


@pytest.mark.slow
def test_interrupted_trainings_stop_and_no_others_begin(jagged, backbones, tmp_path):
    files = [f"--{name}={jagged / name}.h5" for name in ("train", "val", "test")]
    words = ["--backbone", backbones / "one", *files, "--out", "scan", "--num-jets", "10,20,30"]
    words += ["--modes", "full", "--seeds", "1", "--steps", "1000000", "--patience", "1000000"]
    process = subprocess.Popen(
        [sys.executable, "-m", "jetssl_cli", "scan", *map(str, words), "--jobs", "2", *OVERRIDES],
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),  # noqa: PLW1509
    )
    runs, deadline = tmp_path / "scan" / "runs", time.monotonic() + 200
    while len(list(runs.glob("*/metrics.jsonl"))) < 2:
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGINT)
    _, said = process.communicate(timeout=100)
    assert process.returncode == 130
    assert said.splitlines()[-1] == "interrupted"
    assert "Traceback" not in said
    assert len(list(runs.iterdir())) == 2
    assert len(list(runs.glob("*/snapshots/*.safetensors"))) == 2


def test_means_and_standard_deviations(tmp_path):
    values = [(0.1, 5.0), (0.3, 6.0), (0.2, 7.0)]
    points = [
        Measured(
            line="a",
            num_jets=10,
            seed=seed,
            best_step=1,
            accuracy=value,
            auc=None,
            rejection=rejection,
            rejection_bound=False,
            run="x",
        )
        for seed, (value, rejection) in enumerate(values)
    ]
    (row,) = summarise(points)
    assert (row.seeds, row.rejection, row.rejection_std, row.rejection_bound) == (3, 6, 1, False)
    assert row.accuracy == pytest.approx(0.2)
    assert row.accuracy_std == pytest.approx(0.1)
    (alone,) = summarise(points[:1])
    assert alone.accuracy_std is None
    none = points[0].model_copy(update={"rejection": None})
    bound = points[0].model_copy(update={"rejection": 100.0, "rejection_bound": True})
    (row,) = summarise([none, *points])
    assert (row.rejection, row.rejection_std) == (None, None)
    (mixed,) = summarise([bound, *points])
    assert (mixed.rejection, mixed.rejection_std, mixed.rejection_bound) == (None, None, False)
    (row,) = summarise([bound, bound.model_copy(update={"rejection": 90.0})])
    assert (row.rejection, row.rejection_std, row.rejection_bound) == (90, None, True)
    assert all(
        path.stat().st_size for path in plot([row, mixed], tmp_path / "s", note="", rejection="b")
    )


@pytest.mark.parametrize(
    ("override", "name", "option"),
    [
        ("train.seed=5", "train.seed", "--seeds"),
        ("train={seed: 5}", "train.seed", "--seeds"),
        ("data.subset=null", "data.subset", "--num-jets"),
        ("data.train=[val.h5]", "data.train", "--train"),
        ("data.val=val.h5", "data.val", "--val"),
        ("out=elsewhere", "out", "--out"),
        ("backbone=other", "backbone", "--backbone"),
        ("random=true", "random", "--modes"),
        ("lora.rank=4", "lora", "--modes"),
        ("unfreeze_at=2", "unfreeze_at", "--modes"),
        ("objective.frozen=true", "objective.frozen", "--modes"),
        ("cache_embeddings=false", "cache_embeddings", "--modes"),
        ("train.steps=3", "train.steps", "--steps"),
        ("train.patience=3", "train.patience", "--patience"),
    ],
)
def test_what_a_scan_varies_is_not_overridden(jagged, backbones, tmp_path, override, name, option):
    overrides = (*OVERRIDES, override)
    told = re.escape(f"override {override}: a scan sets {name} itself; use {option}")
    with pytest.raises(ConfigError, match=told):
        plan(config(jagged, tmp_path, backbones / "one", overrides=overrides))


def test_other_settings_are_those_of_all_trainings(jagged, backbones, tmp_path):
    words = ("train.keep=last", "data.batch_size=8", "embeddings_memory=1GiB", "tracking=true")
    points = plan(config(jagged, tmp_path, backbones / "one", overrides=(*OVERRIDES, *words)))
    found = {(x.cfg.train.keep, x.cfg.data.batch_size, x.cfg.embeddings_memory) for x in points}
    assert found == {("last", 8, 2**30)}
    with pytest.raises(ConfigError, match="a scan is of classifiers of jets"):
        plan(config(jagged, tmp_path, backbones / "one", overrides=("objective.name=vertex",)))


@pytest.mark.parametrize(("last", "step"), [({}, 8), ({"best/loss": 1.0, "step": 4}, 4)])
def test_the_step_of_the_weights_that_are_kept(tmp_path, last, step):
    rows = [{"step": 4, "val/loss": 1.0}, {"step": 8, "val/loss": 2.0}, *([last] if last else [])]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert scanpoint._best_step(tmp_path) == step


def test_mistakes_are_told_before_any_training(jagged, backbones, tmp_path, monkeypatch):
    monkeypatch.setattr(scanpoint, "finetune", lambda _: pytest.fail("it trained"))
    one = backbones / "one"
    told = "modes = 'froze': no such choice; did you mean 'frozen'"
    with pytest.raises(ConfigError, match=told):
        config(jagged, tmp_path, one, modes="froze")
    with pytest.raises(ConfigError, match="num_jets = 'x'"):
        config(jagged, tmp_path, one, num_jets="10,x")
    with pytest.raises(ConfigError, match="two backbones are called 'one'"):
        scan(config(jagged, tmp_path, one, one))
    with pytest.raises(DataError, match="100000 jets are wanted"):
        scan(config(jagged, tmp_path, one, num_jets="100000"))
    with pytest.raises(ConfigError, match="no rejection of 'Hbc'; did you mean"):
        scan(config(jagged, tmp_path, one, rejection="Hbc"))
    with pytest.raises(RunError, match="no such run folder"):
        scan(config(jagged, tmp_path, tmp_path / "none"))
    other_jets = tmp_path / "signal.h5"
    with write(other_jets, RECIPE, []) as writer:
        writer.append(jets_of(1, 1))
    with pytest.raises(ConfigError, match=rf"no rejection of 'Hbb'; {other_jets} has none"):
        plan(config(jagged, tmp_path, one, rejection="Hbb", test=str(other_jets)))
    other = RECIPE.model_copy(update={"jets": dict(list(RECIPE.jets.items())[1:])})
    with write(other_jets, other, [], precision="float32") as writer:
        writer.append(replace(jets_of(1, 1), jets=jets_of(1, 1).jets[:, 1:]))
    with pytest.raises(DataError, match=rf"{other_jets}: has other columns than .*train\.h5"):
        plan(config(jagged, tmp_path, one, test=str(other_jets)))
    other_jets.unlink()
    assert not list(tmp_path.iterdir())
