"""Whole runs through Python, on the committed sample: what they repeat, keep apart and refuse."""

from __future__ import annotations

import json
import math
import shutil
from unittest.mock import create_autospec

import h5py
import numpy as np
import pytest
import torch
from reference.jets import SIZES, random_batch, tiny_config, tiny_encoder
from safetensors.torch import load_file

from jetssl_cli.config import Layer
from jetssl_cli.data.convert import ConvertConfig, convert
from jetssl_cli.data.jagged import JaggedFile
from jetssl_cli.data.recipe import load_recipe
from jetssl_cli.data.scaling import fitted_scaling
from jetssl_cli.data.write import write
from jetssl_cli.encoder.encoder import Encoder
from jetssl_cli.encoder.pool import PoolConfig
from jetssl_cli.errors import ConfigError, DataError, OutOfMemoryError, RunError
from jetssl_cli.objectives.masking import RandomMaskConfig, SubjetMaskConfig
from jetssl_cli.objectives.ssfm import SSFM, SSFMConfig
from jetssl_cli.objectives.supervised import Supervised, SupervisedConfig
from jetssl_cli.runs import checkpoint, training
from jetssl_cli.runs import pretrain as pretrain_module
from jetssl_cli.runs.budget import Budget
from jetssl_cli.runs.diverged import Divergence
from jetssl_cli.runs.finetune import finetune, load_classifier
from jetssl_cli.runs.finetune_config import FinetuneConfig
from jetssl_cli.runs.loaders import DataConfig
from jetssl_cli.runs.module import JetModule
from jetssl_cli.runs.optim import OptimConfig
from jetssl_cli.runs.pretrain import PretrainConfig, load_config, pretrain
from jetssl_cli.runs.run_config import TrainConfig
from jetssl_cli.runs.tracking import METRICS, Tracker

STEPS = 6


def data_config(jagged, **settings):
    usual = {"batch_size": 16, "max_constituents": 12, "num_val_jets": 24}
    files = {"train": (jagged / "train.h5",), "val": (jagged / "val.h5",)}
    return DataConfig(**(files | usual | settings))


def train_config(**settings):
    return TrainConfig(**({"steps": STEPS, "log_every": 1, "val_every": 3} | settings))


def run_pretrain(jagged, out, *, encoder=None, data=None, objective=None, **train):
    return pretrain(
        PretrainConfig(
            out=out,
            objective=objective or SSFMConfig(time_features=4),
            encoder=tiny_config(**(encoder or {})),
            data=data_config(jagged, **(data or {})),
            optim=OptimConfig(lr=3e-3),
            train=train_config(**train),
            tracking=False,
        )
    )


def run_finetune(jagged, out, backbone, *, random=False, frozen=True, data=None, **train):
    return finetune(
        FinetuneConfig(
            out=out,
            backbone=backbone,
            random=random,
            encoder=tiny_config(),
            objective=SupervisedConfig(frozen=frozen, pool=PoolConfig(width=8, heads=2)),
            data=data_config(jagged, **(data or {})),
            optim=OptimConfig(lr=3e-3, weight_decay=0.01),
            train=train_config(**train),
            tracking=False,
        )
    )


def test_a_run_that_hides_subjets(jagged, tmp_path):
    """The reader is told the radius; each jet loses whole subjets, in training and validation."""
    objective = SSFMConfig(mask=SubjetMaskConfig(share=0.5, radius=0.05), time_features=4)
    run = run_pretrain(jagged, tmp_path / "subjets", objective=objective)
    assert all(row["val/flow"] > 0 for row in metrics(run, "val/flow"))
    assert checkpoint.read_config(run, PretrainConfig).objective == objective


@pytest.fixture(scope="module")
def backbone(jagged, tmp_path_factory):
    return run_pretrain(jagged, tmp_path_factory.mktemp("runs") / "pretrained")


def metrics(run, prefix=""):
    """The measurements of a run, without the clock."""
    lines = (run / METRICS).read_text().splitlines()
    clock = ("time", "train/jets_per_second")
    rows = [{k: v for k, v in json.loads(line).items() if k not in clock} for line in lines]
    return [row for row in rows if any(key.startswith(prefix) for key in row)]


def same_weights(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def weights(run, name="model"):
    return load_file(run / f"{name}.safetensors")


def scaling_of(run, name="backbone"):
    return {key: value for key, value in weights(run, name).items() if "scaling." in key}


# --- pretraining ---


def test_the_folder_of_a_run(backbone):
    names = {"config.yaml", "schema.yaml", "model.safetensors", "backbone.safetensors"}
    assert {file.name for file in backbone.iterdir()} == names | {"metrics.jsonl"}
    training, validation = metrics(backbone, "train/"), metrics(backbone, "val/")
    assert [row["step"] for row in training] == list(range(1, STEPS + 1))
    assert [row["step"] for row in validation] == [3, 6]
    collapse = {"val/effective_rank", "val/feature_std"}
    assert {"val/flow", "val/loss", "val/probe_accuracy"} | collapse <= validation[0].keys()
    assert all(row["train/loss"] == row["train/flow"] for row in training)
    rates = [3e-3 * OptimConfig().factor(step, STEPS) for step in range(STEPS)]
    assert [row["train/lr"] for row in training] == pytest.approx(rates)


def test_the_backbone_is_the_encoder_of_the_model(backbone):
    model = weights(backbone)
    inside = {k.removeprefix("encoder."): v for k, v in model.items() if k.startswith("encoder.")}
    assert same_weights(weights(backbone, "backbone"), inside)
    assert any(key.startswith("decoder.") for key in model)
    assert not any("probe" in key for key in model)


def test_one_seed_gives_one_run_bit_for_bit(jagged, backbone, tmp_path):
    torch.manual_seed(99)
    again = run_pretrain(jagged, tmp_path / "again")
    assert metrics(again) == metrics(backbone)
    assert same_weights(weights(again), weights(backbone))


def test_another_seed_gives_another_run(jagged, backbone, tmp_path):
    other = run_pretrain(jagged, tmp_path / "other", seed=1, steps=2)
    one, two = (metrics(run, "train/")[0]["train/loss"] for run in (backbone, other))
    assert one != two
    assert not same_weights(weights(other), weights(backbone))
    assert same_weights(scaling_of(other), scaling_of(backbone))


def test_training_moves_every_parameter_and_no_scaling(jagged, tmp_path, monkeypatch):
    """What comes out of six steps is no longer what went in, except the scaling."""
    start = {}

    def remember(self, cfg, encoder):
        init(self, cfg, encoder)
        start.update({key: value.clone() for key, value in self.state_dict().items()})

    init = SSFM.__init__
    monkeypatch.setattr(SSFM, "__init__", remember)
    after = weights(run_pretrain(jagged, tmp_path / "again"))
    still = {key for key, value in after.items() if torch.equal(value, start[key])}
    assert still == {key for key in after if "scaling." in key}


@pytest.mark.slow
def test_the_probe_never_touches_the_encoder(jagged, backbone, tmp_path):
    often = run_pretrain(jagged, tmp_path / "often", probe_every=1)
    never = run_pretrain(jagged, tmp_path / "never", probe_every=1_000_000)
    assert same_weights(weights(often), weights(never))
    assert same_weights(weights(often), weights(backbone))
    losses = [[row["train/loss"] for row in metrics(run, "train/")] for run in (often, never)]
    assert losses[0] == losses[1]


@pytest.mark.slow
def test_a_short_run_still_validates_at_its_end(jagged, tmp_path):
    run = run_pretrain(jagged, tmp_path / "run", steps=2, val_every=1000, log_every=1000)
    assert [row["step"] for row in metrics(run, "val/")] == [2]
    run = run_pretrain(jagged, tmp_path / "uneven", steps=5, val_every=2)
    assert [row["step"] for row in metrics(run, "val/")] == [2, 4, 5]


@pytest.mark.slow
def test_validation_is_repeatable_and_leaves_training_alone(jagged, tmp_path):
    """How often a run validates changes nothing of what it learns."""
    often = run_pretrain(jagged, tmp_path / "often", val_every=1)
    seldom = run_pretrain(jagged, tmp_path / "seldom", val_every=STEPS)
    assert same_weights(weights(often), weights(seldom))
    assert metrics(often, "val/")[-1] == metrics(seldom, "val/")[-1]


def test_a_validation_jet_that_is_not_finite_ends_the_run_at_once(jagged, tmp_path):
    """And says that it is one of those, before hours of training are lost at the end."""
    spoiled = tmp_path / "val.h5"
    shutil.copy(jagged / "val.h5", spoiled)
    with h5py.File(spoiled, "r+") as file:
        file["constituents/features"][5, 0] = math.nan
    with pytest.raises(RunError, match=r"val/.* is not finite after step 3; .* of .*val\.h5 sound"):
        run_pretrain(jagged, tmp_path / "run", data={"val": (spoiled,)})


def test_validation_jets_of_one_class_are_told(jagged, tmp_path, capsys):
    with JaggedFile(jagged / "val.h5") as opened:
        jets, recipe = opened.read(), opened.recipe
    with write(tmp_path / "val.h5", recipe, []) as writer:
        writer.append(jets.take(np.argsort(jets.labels, kind="stable")))
    few = {"val": (tmp_path / "val.h5",), "num_val_jets": 5}
    run_pretrain(jagged, tmp_path / "run", data=few, steps=1)
    assert "the first 5 jets, which alone are used here, are all QCD" in capsys.readouterr().err


def test_a_validation_of_a_classifier_encodes_each_jet_once(
    jagged, backbone, tmp_path, monkeypatch
):
    encoded, right = [], Encoder.encode
    monkeypatch.setattr(
        Encoder,
        "encode",
        lambda self, batch, **more: (
            encoded.append(batch.packing.num_jets) or right(self, batch, **more)
        ),
    )
    run_finetune(jagged, tmp_path / "run", backbone, steps=1)
    assert sum(encoded) == 16 + 24


def test_a_run_that_time_ends(jagged, tmp_path, monkeypatch, capsys):
    """It takes a second a step, and a second to validate; the end is validated as well."""
    now = [0.0]
    told = []

    def tick(*_):
        now[0] += 1.0

    right = Budget.__init__
    monkeypatch.setattr(
        Budget,
        "__init__",
        lambda self, *args, **more: right(self, *args, clock=lambda: now[0], **more),
    )
    monkeypatch.setattr(JetModule, "on_train_batch_start", tick)
    monkeypatch.setattr(JetModule, "on_validation_end", tick)
    monkeypatch.setattr(SSFM, "after_step", lambda _, progress: told.append(progress))
    run = run_pretrain(jagged, tmp_path / "run", steps=None, max_time="10s", val_every=3)
    assert told == pytest.approx([0.1, 0.2, 0.3, 0.5, 0.6, 0.7, 0.9, 1.0])
    assert [row["step"] for row in metrics(run, "val/")] == [3, 6, 8]
    optim = OptimConfig()
    steps = [math.inf, math.inf, 10, 10, 7.75, 8.2, 8.5, 7.75]  # the first says nothing of the pace
    rates = [3e-3 * optim.factor(step, of) for step, of in enumerate(steps)]
    assert [row["train/lr"] for row in metrics(run, "train/")] == pytest.approx(rates)
    assert "10/10 s, done in" in capsys.readouterr().err


@pytest.mark.slow
def test_a_run_that_ends_after_so_many_jets(jagged, tmp_path):
    """It is the run of so many steps."""
    jets = run_pretrain(jagged, tmp_path / "jets", steps=None, jets=5 * 16 + 1)
    steps = run_pretrain(jagged, tmp_path / "steps")
    assert metrics(jets) == metrics(steps)
    assert same_weights(weights(jets), weights(steps))


def test_fewer_jets_than_a_batch(jagged, tmp_path):
    data = {"num_jets": 5, "num_val_jets": 3, "batch_size": 1000}
    run = run_pretrain(jagged, tmp_path / "run", data=data, steps=2)
    assert len(metrics(run, "train/")) == 2


def test_the_scaling_is_fitted_on_the_jets_of_the_training(jagged, tmp_path, monkeypatch):
    seen = []

    def spy(sample, *, trial):
        assert not trial
        seen.append((sample.num_jets, max(int(jets.sizes.max()) for jets in sample.chunks())))
        return fitted_scaling(sample)

    monkeypatch.setattr(pretrain_module, "fitted_scaling", spy)
    run_pretrain(jagged, tmp_path / "run", data={"num_jets": 20}, steps=1)
    assert seen == [(20, 12)]


def diverge_at(monkeypatch, kind, first, value=math.nan, steps=None):
    """Make the loss of training ``value`` from the given call on."""
    calls = []
    right = kind.loss

    def loss(self, batch, rng):
        terms = right(self, batch, rng)
        if not self.training:
            return terms
        calls.append(1)
        wrong = len(calls) > first and (steps is None or len(calls) <= first + steps)
        return {key: term * 0 + value if wrong else term for key, term in terms.items()}

    monkeypatch.setattr(kind, "loss", loss)


@pytest.mark.slow
@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize(
    "train",
    [
        {"log_every": 1, "val_every": 6},
        {"log_every": 100, "val_every": 6},
        {"log_every": 100, "val_every": 1},
        {"log_every": 100, "val_every": 100},
    ],
)
def test_a_loss_that_is_not_finite_stops_the_run(jagged, tmp_path, monkeypatch, train, value):
    """At one step only, so that nothing else gives it away."""
    diverge_at(monkeypatch, SSFM, 4, value, steps=1)
    with pytest.raises(RunError, match="non-finite at step 4; nothing was saved") as error:
        run_pretrain(jagged, tmp_path / "run", **train)
    aside = tmp_path / "run" / "diverged" / "step-4.h5"
    assert f"{aside} holds its 16 jets ({jagged / 'train.h5'}: " in str(error.value)
    assert not list((tmp_path / "run").glob("*.safetensors*"))
    assert not list((tmp_path / "run").glob(".*"))
    rows = metrics(tmp_path / "run")
    assert all(math.isfinite(value) for row in rows for value in row.values())


@pytest.mark.parametrize("accumulate", [1, 2])
def test_jets_that_make_the_loss_infinite_are_set_aside(jagged, tmp_path, monkeypatch, accumulate):
    """They are those that the objective was given at that step, in all parts of it."""
    seen = []
    right = SSFM.loss

    def loss(self, batch, rng):
        terms = right(self, batch, rng)
        if not self.training:
            return terms
        seen.append(batch.jets)
        bad = len(seen) > 3 * accumulate
        return {key: term / 0 if bad else term for key, term in terms.items()}

    monkeypatch.setattr(SSFM, "loss", loss)
    with pytest.raises(RunError, match="non-finite at step 3"):
        run_pretrain(jagged, tmp_path / "run", log_every=100, accumulate=accumulate)
    with JaggedFile(tmp_path / "run" / "diverged" / "step-3.h5") as file:
        found = file.read().jets
    wanted = torch.cat(seen[3 * accumulate : 4 * accumulate]).numpy()
    assert sorted(found.tolist()) == sorted(wanted.tolist())
    assert len(found) == 16


@pytest.mark.parametrize("share", [0, 1])
def test_a_gradient_that_is_not_finite_is_told_at_its_own_step(
    jagged, tmp_path, monkeypatch, share
):
    """The loss is finite there, and would be none only with the next, innocent jets.

    The derivative of the root is infinite, and no number times a share of zero.
    """
    calls = []
    right = SSFM.loss

    def loss(self, batch, rng):
        terms = right(self, batch, rng)
        calls.append(1)
        if len(calls) == 3:
            weight = next(iter(self.parameters())).flatten()[0]
            terms["root"] = (weight - weight.detach()).sqrt() * share
        return terms

    monkeypatch.setattr(SSFM, "loss", loss)
    with pytest.raises(RunError, match="its gradient became non-finite at step 2; nothing"):
        run_pretrain(jagged, tmp_path / "run", log_every=100)
    assert (tmp_path / "run" / "diverged" / "step-2.h5").is_file()


def allocate(self, batch, rng):
    """More than any machine has."""
    del self, batch, rng
    return {"flow": torch.empty(2**50)}


def test_memory_that_does_not_suffice_is_one_clear_line(jagged, backbone, tmp_path, monkeypatch):
    """The allocator of PyTorch itself says so."""
    monkeypatch.setattr(SSFM, "loss", allocate)
    with pytest.raises(OutOfMemoryError) as error:
        run_pretrain(jagged, tmp_path / "run", data={"in_memory": True})
    told = str(error.value)
    assert told.startswith("out of memory (can't allocate memory: you tried to allocate 45")
    for way in ("train.accumulate=2", "encoder.recompute=true", "batch_size below 16", "in_memory"):
        assert way in told
    assert "\n" not in told
    monkeypatch.setattr(Supervised, "loss", allocate)
    with pytest.raises(OutOfMemoryError, match=r"out of memory \(.*data.batch_size below 16"):
        run_finetune(jagged, tmp_path / "tune", backbone)


def test_weights_that_are_not_finite_are_not_saved(jagged, tmp_path, monkeypatch):
    """The last loss is finite, but not the step taken on it."""
    right = JetModule.optimizer_step

    def step(self, *args, **kwargs):
        right(self, *args, **kwargs)
        if self.budget.steps == STEPS:
            with torch.no_grad():
                self.objective.encoder.out.bias += torch.nan

    monkeypatch.setattr(JetModule, "optimizer_step", step)
    with pytest.raises(RunError, match="not finite after step 6; nothing was saved"):
        run_pretrain(jagged, tmp_path / "run")
    assert not list((tmp_path / "run").glob("*.safetensors*"))


def test_after_step_is_called_once_per_step_and_rises_to_one(jagged, tmp_path, monkeypatch):
    calls = []

    def after_step(self, progress):
        weight = self.encoder.out.weight.detach().clone()
        calls.append((progress, weight))

    monkeypatch.setattr(SSFM, "after_step", after_step)
    run = run_pretrain(jagged, tmp_path / "run")
    found = [progress for progress, _ in calls]
    assert found == pytest.approx([(step + 1) / STEPS for step in range(STEPS)])
    assert torch.equal(calls[-1][1], weights(run, "backbone")["out.weight"])
    assert not any(torch.equal(calls[i][1], calls[i + 1][1]) for i in range(STEPS - 1))


def test_objective_and_probe_are_clipped_each_by_itself():
    module = JetModule(
        SSFMConfig().build(tiny_encoder()),
        num_classes=10,
        optim=OptimConfig(clip_norm=0.5),
        train=train_config(),
        budget=Budget(train_config(), 16),
        tracker=Tracker(None),
        divergence=create_autospec(Divergence, instance=True),
    )
    small = 1e-3
    for p in module.objective.parameters():
        p.grad = torch.full_like(p, 100.0)
    for p in module.probe.parameters():
        p.grad = torch.full_like(p, small / 100)
    before = [p.grad.clone() for p in module.probe.parameters()]
    module.configure_gradient_clipping(torch.optim.SGD(module.parameters()))
    norm = torch.stack([p.grad.norm() for p in module.objective.parameters()]).norm()
    assert norm == pytest.approx(0.5, rel=1e-3)
    assert all(
        torch.equal(p.grad, b) for p, b in zip(module.probe.parameters(), before, strict=True)
    )


def test_one_step_of_training_is_one_step_of_adamw(jagged, tmp_path, monkeypatch):
    """The loop adds nothing: the same by hand gives the same weights."""
    batches, start = [], {}
    right = SSFM.loss

    def loss(self, batch, rng):
        if self.training:
            batches.append(batch)
            start.update({key: value.clone() for key, value in self.state_dict().items()})
        return right(self, batch, rng)

    with monkeypatch.context() as patch:
        patch.setattr(SSFM, "loss", loss)
        run = run_pretrain(jagged, tmp_path / "run", steps=1, seed=5, precision="32")
    cfg = checkpoint.read_config(run, PretrainConfig)
    scaling = pretrain_module.Scaling.unfitted(checkpoint.read_schema(run))
    objective = cfg.objective.build(cfg.encoder.build(scaling, 7, 8, 5))
    objective.load_state_dict(start)
    optimizer = cfg.optim.build(objective)
    objective.loss(batches[0], torch.Generator().manual_seed(5))["flow"].backward()
    torch.nn.utils.clip_grad_norm_(objective.parameters(), cfg.optim.clip_norm)
    optimizer.step()
    for key, value in weights(run).items():
        torch.testing.assert_close(value, objective.state_dict()[key], rtol=1e-5, atol=2e-6)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["32", "bf16-mixed"])
def test_either_precision_trains(jagged, tmp_path, precision):
    run = run_pretrain(jagged, tmp_path / "run", steps=30, precision=precision)
    losses = [row["train/loss"] for row in metrics(run) if "train/loss" in row]
    assert losses[-1] < losses[0]
    assert {value.dtype for key, value in weights(run).items() if "encoder.blocks" in key} == {
        torch.float32
    }


def test_train_and_validation_data_must_agree(jagged, samples, tmp_path):
    recipe = load_recipe("jetclass")
    jets = {name: column for name, column in recipe.jets.items() if name != "jet_sdmass"}
    other = recipe.model_copy(update={"jets": jets})
    source = samples / "jetclass" / "val" / "HToBB_120.root"
    convert(ConvertConfig(sources=(source,), recipe=other, out=tmp_path))
    data = DataConfig(train=jagged / "train.h5", val=tmp_path / "HToBB_120.h5")
    cfg = PretrainConfig(out=tmp_path / "run", objective=SSFMConfig(), data=data)
    with pytest.raises(DataError, match=r"HToBB_120\.h5: has other columns .*train\.h5"):
        pretrain(cfg)
    assert not (tmp_path / "run").exists()


# --- finetuning ---


def test_a_frozen_finetuning_keeps_the_backbone(jagged, backbone, tmp_path):
    run = run_finetune(jagged, tmp_path / "run", backbone)
    model = weights(run)
    inside = {k.removeprefix("encoder."): v for k, v in model.items() if k.startswith("encoder.")}
    assert same_weights(inside, weights(backbone, "backbone"))
    assert [row["step"] for row in metrics(run, "val/")] == [3, 6]
    assert {"val/accuracy", "val/loss", "val/cross_entropy"} <= metrics(run, "val/")[0].keys()


def test_a_finetuning_that_is_not_frozen_begins_at_the_backbone(jagged, backbone, tmp_path):
    run = run_finetune(jagged, tmp_path / "run", backbone, frozen=False)
    before, after = weights(backbone, "backbone"), weights(run)
    moved = {key: (after[f"encoder.{key}"] - value).abs().max() for key, value in before.items()}
    assert all(
        0 < step <= 3e-3 * STEPS * 1.1 for key, step in moved.items() if "scaling" not in key
    )
    assert all(step == 0 for key, step in moved.items() if "scaling" in key)


def test_a_random_backbone_keeps_the_scaling_alone(jagged, backbone, tmp_path):
    run = run_finetune(jagged, tmp_path / "run", backbone, random=True, steps=1)
    before, after = weights(backbone, "backbone"), weights(run)
    for key, value in before.items():
        assert torch.equal(after[f"encoder.{key}"], value) == ("scaling." in key), key
    other = weights(run_finetune(jagged, tmp_path / "2", backbone, random=True, steps=1, seed=3))
    assert not torch.equal(other["encoder.out.weight"], after["encoder.out.weight"])


@pytest.mark.slow
def test_finetuning_is_repeatable(jagged, backbone, tmp_path):
    """Dropout included, which draws from the global generator."""
    one = run_finetune(jagged, tmp_path / "one", backbone)
    torch.rand(3)
    two = run_finetune(jagged, tmp_path / "two", backbone)
    three = run_finetune(jagged, tmp_path / "three", backbone, seed=1)
    assert metrics(one) == metrics(two)
    assert same_weights(weights(one), weights(two))
    assert not same_weights(weights(one), weights(three))


def test_a_finetuning_that_diverges_saves_nothing(jagged, backbone, tmp_path, monkeypatch):
    diverge_at(monkeypatch, Supervised, 2)
    with pytest.raises(RunError, match="non-finite at step 2"):
        run_finetune(jagged, tmp_path / "run", backbone)
    assert not list((tmp_path / "run").glob("*.safetensors*"))


def test_data_that_do_not_fit_the_backbone_are_refused(jagged, backbone, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    for file in backbone.iterdir():
        (other / file.name).write_bytes(file.read_bytes())
    schema = (other / "schema.yaml").read_text()
    (other / "schema.yaml").write_text(schema.replace("unit: mm", "unit: cm"))
    with pytest.raises(RunError, match=r"train\.h5: d0 is in mm, .*other was trained with cm"):
        run_finetune(jagged, tmp_path / "run", other)
    assert not (tmp_path / "run").exists()


def test_a_classifier_comes_back_ready_to_predict(jagged, backbone, tmp_path):
    run = run_finetune(jagged, tmp_path / "run", backbone, frozen=False)
    cfg, schema, classifier = load_classifier(run)
    assert cfg.out == run
    assert len(schema.classes) == 10
    assert not any(module.training for module in classifier.modules())
    assert same_weights(classifier.state_dict(), weights(run))
    assert classifier.logits(random_batch(SIZES)).isfinite().all()


def test_other_kinds_of_runs_are_refused(jagged, backbone, tmp_path):
    with pytest.raises(RunError, match="is a pretrain run; a finetune run is needed here"):
        load_classifier(backbone)
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "schema.yaml").write_text((backbone / "schema.yaml").read_text())
    with pytest.raises(RunError, match="no such file; did the run come to its end"):
        run_finetune(jagged, tmp_path / "run", tmp_path / "b")


def test_a_folder_in_use_is_refused_before_training(jagged, backbone, monkeypatch):
    monkeypatch.setattr(training, "_fit", lambda *_: pytest.fail("it trained"))
    before = {file: file.read_bytes() for file in backbone.iterdir()}
    with pytest.raises(RunError, match="is there already"):
        run_pretrain(jagged, backbone)
    assert {file: file.read_bytes() for file in backbone.iterdir()} == before


def test_another_mask_by_one_override_has_its_own_share(tmp_path):
    files = {"out": str(tmp_path), "data": {"train": "a.h5", "val": "b.h5"}}
    layer = Layer("the test", files)
    plain = load_config("ssfm", "tiny", layer)
    subjet = load_config("ssfm", "tiny", layer, overrides=["objective.mask.name=subjet"])
    assert plain.objective.mask == RandomMaskConfig(share=0.5)
    assert subjet.objective.mask == SubjetMaskConfig(share=0.3, radius=0.1)
    with pytest.raises(ConfigError, match=r"objective\.mask\.radius = 0\.1: no such setting"):
        load_config("ssfm", "tiny", layer, overrides=["objective.mask.radius=0.1"])


def test_single_precision_may_be_given_as_a_number():
    assert TrainConfig(precision=32).precision == "32"
