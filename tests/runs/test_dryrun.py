"""A dry run says what a run would be, by the code of the run, and writes nothing."""

from __future__ import annotations

import json
import math
import shutil

import pytest
import torch
import yaml
from reference.jets import random_batch, tiny_config, tiny_encoder
from runs.test_training import data_config, train_config

from jetssl_cli.data import facts, scaling
from jetssl_cli.data.cache import place
from jetssl_cli.data.sample import Sample
from jetssl_cli.encoder.pool import PoolConfig
from jetssl_cli.errors import RunError
from jetssl_cli.objectives.jepa import JEPAConfig
from jetssl_cli.objectives.objective import Objective
from jetssl_cli.objectives.ssfm import SSFMConfig
from jetssl_cli.objectives.supervised import SupervisedConfig
from jetssl_cli.runs import pretrain, trial
from jetssl_cli.runs.dryrun import dry_run
from jetssl_cli.runs.finetune_config import FinetuneConfig
from jetssl_cli.runs.pretrain import PretrainConfig
from jetssl_cli.runs.trial import count_flops


@pytest.fixture
def data(jagged, tmp_path):
    """A folder of its own, which has no scaling yet."""
    for name in ("train.h5", "val.h5"):
        shutil.copy(jagged / name, tmp_path / name)
    return tmp_path


@pytest.fixture(autouse=True)
def few_steps(monkeypatch):
    monkeypatch.setattr(trial, "MOST_STEPS", 2)


def config(data, *, objective=None, encoder=None, settings=None, **train):
    return PretrainConfig(
        out=data / "run",
        objective=objective or SSFMConfig(time_features=4),
        encoder=tiny_config(**(encoder or {})),
        data=data_config(data, **(settings or {})),
        train=train_config(**train),
        tracking=False,
    )


def files(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


def test_it_writes_nothing_and_says_what_the_run_is(data, monkeypatch):
    monkeypatch.setattr(facts, "SECONDS_UNTOUCHED", 0.0)
    before = files(data)
    cfg = config(data)
    report = dry_run(cfg)
    assert files(data) == before
    run = pretrain.pretrain(cfg)
    assert (data / facts.FACTS).exists()
    assert report.config == yaml.safe_load((run / "config.yaml").read_text())
    rows = [json.loads(row) for row in (run / "metrics.jsonl").read_text().splitlines()]
    assert report.steps == max(row["step"] for row in rows)
    assert (report.jets_per_step, report.jets) == (16, 16 * report.steps)
    assert (report.train_jets, report.val_jets) == (1300, 24)
    assert report.epochs == pytest.approx(report.jets / 1300)
    validations = sum("val/loss" in row for row in rows)
    parts = report.steps * report.seconds_per_step, validations * report.seconds_per_validation
    assert report.seconds == pytest.approx(sum(parts))
    assert min(parts) > 0
    assert report.memory > 10 * 2**20
    with pytest.raises(RunError, match="is there already"):
        dry_run(cfg)


def test_time_as_the_budget_gives_the_steps(data):
    report = dry_run(config(data, steps=None, max_time="1h"))
    pace = report.seconds_per_step + report.seconds_per_validation / 3
    assert report.steps == math.ceil(3600 / pace)
    assert report.seconds == pytest.approx(3600, abs=2 * pace + report.seconds_per_validation)


def test_a_teacher_is_not_trained(data):
    objective = JEPAConfig(predictor_width=8)
    parts = {part.name: part for part in dry_run(config(data, objective=objective)).parts}
    assert parts["teacher"].trained == 0
    assert parts["teacher"].parameters >= parts["encoder"].parameters > 0
    assert all(part.trained == part.parameters for name, part in parts.items() if name != "teacher")


@pytest.mark.parametrize("frozen", [True, False])
def test_a_backbone_is_trained_unless_it_is_frozen(data, frozen):
    backbone = pretrain.pretrain(config(data, steps=1))
    report = dry_run(
        FinetuneConfig(
            out=data / "finetuned",
            backbone=backbone,
            encoder=tiny_config(),
            objective=SupervisedConfig(frozen=frozen, pool=PoolConfig(width=8, heads=2)),
            data=data_config(data),
            train=train_config(),
        )
    )
    parts = {part.name: part for part in report.parts}
    assert set(parts) == {"encoder", "pool"}
    assert parts["encoder"].trained == (0 if frozen else parts["encoder"].parameters)
    assert parts["pool"].trained == parts["pool"].parameters > 0
    assert not (data / "finetuned").exists()


def test_a_scaling_that_is_there_is_taken_and_another_is_that_of_few_jets(data, monkeypatch):
    monkeypatch.setattr(scaling, "TRIAL_JETS", 50)
    sample = Sample((data / "train.h5",), max_constituents=12)

    def quantiles(trial):
        encoder = pretrain.prepare(config(data), trial=trial).objective.encoder
        return encoder.scaling.jets.quantiles

    few = quantiles(trial=True)
    kept = place(data / "train.h5", "scaling", scaling.scaling_key(sample))
    assert not kept.exists()
    assert torch.equal(
        few, scaling.fit_scaling(sample.schema, [*sample.first(50).chunks()]).jets.quantiles
    )
    right = quantiles(trial=False)
    assert kept.exists()
    assert torch.equal(quantiles(trial=True), right)
    assert not torch.equal(few, right)


class Squares(Objective):
    """The mean square of all vectors: an encoder, and no other matrix products."""

    def __init__(self, encoder):
        super().__init__()
        self.encoder = encoder

    def loss(self, batch, rng):
        del rng
        return {"squares": self.encoder(batch).tokens.square().mean()}


def test_flops_are_those_of_the_layers():
    """Two for each multiplication; gradients of weights and inputs cost as much again, each."""
    sizes, registers, width, hidden, depth = (6, 6, 14, 6), 2, 8, 16, 3
    encoder = tiny_encoder(
        attention="reference", registers=registers, context=False, width=width, heads=2,
        embedding_width=hidden, depth=depth,
    )  # fmt: skip
    batch = random_batch(sizes)
    rows, constituents = sum(sizes) + registers * len(sizes), sum(sizes)
    features = batch.features.shape[1]
    first = 2 * constituents * features * hidden
    embed = 2 * constituents * (hidden * hidden + hidden * width)
    linear = 2 * rows * width * (3 * width + width + 4 * width + 2 * width)
    attention = sum(2 * 2 * (size + registers) ** 2 * width for size in sizes)
    rest = embed + depth * (linear + attention) + 2 * rows * width * width
    flops = count_flops(Squares(encoder), batch)
    assert flops.forward * len(sizes) == first + rest
    assert flops.step * len(sizes) == 2 * first + 3 * rest


def test_the_first_jets_of_a_batch():
    batch = random_batch((3, 0, 5, 2))
    few = batch.first(3)
    assert few.packing.host.tolist() == [0, 3, 3, 8]
    assert torch.equal(few.features, batch.features[:8])
    assert (len(few.jets), len(few.labels), len(few.ids)) == (3, 3, 8)


@pytest.mark.slow
def test_the_command_prints_json_and_nothing_else(jetssl, data):
    words = ("--method", "ssfm", "--size", "tiny", "--train", "train.h5", "--val", "val.h5")
    more = (
        "--out",
        "run",
        "--steps",
        5,
        "data.batch_size=20",
        "encoder.width=16",
        "encoder.depth=1",
    )
    before = files(data)
    done = jetssl("pretrain", *words, *more, "--dry-run", "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["steps"] == 5
    assert report["config"]["encoder"]["width"] == 16
    assert "scaling" in done.stderr
    assert files(data) == before
