"""What a finetuning does with its backbone: every mode, the weights it keeps, cached embeddings."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from reference.jets import SIZES, random_batch, tiny_config, tiny_encoder
from safetensors.torch import load_file

from jetssl_cli.data.convert import ConvertConfig, convert
from jetssl_cli.data.jagged import JaggedFile
from jetssl_cli.data.merge import MergeConfig, merge
from jetssl_cli.data.recipe import load_recipe
from jetssl_cli.data.stream import JetStream
from jetssl_cli.data.write import write
from jetssl_cli.encoder.lora import LoRAConfig, plain_state
from jetssl_cli.encoder.pool import PoolConfig
from jetssl_cli.errors import ConfigError, DataError, JetSSLError, RunError
from jetssl_cli.objectives.ssfm import SSFMConfig
from jetssl_cli.objectives.supervised import Supervised, SupervisedConfig
from jetssl_cli.runs import checkpoint
from jetssl_cli.runs import finetune as finetune_module
from jetssl_cli.runs.finetune import finetune, load_classifier
from jetssl_cli.runs.finetune_config import FinetuneConfig, mode
from jetssl_cli.runs.loaders import DataConfig
from jetssl_cli.runs.module import JetModule
from jetssl_cli.runs.optim import OptimConfig
from jetssl_cli.runs.pretrain import PretrainConfig, pretrain
from jetssl_cli.runs.run_config import TrainConfig
from jetssl_cli.runs.tracking import METRICS

STEPS = 6
CLOCK = ("time", "train/jets_per_second")


def data_config(jagged, **settings):
    usual = {"batch_size": 16, "max_constituents": 12, "num_val_jets": 24}
    files = {"train": (jagged / "train.h5",), "val": (jagged / "val.h5",)}
    return DataConfig(**(files | usual | settings))


@pytest.fixture(scope="module")
def backbone(jagged, tmp_path_factory):
    return pretrain(
        PretrainConfig(
            out=tmp_path_factory.mktemp("runs") / "pretrained",
            objective=SSFMConfig(time_features=4),
            encoder=tiny_config(),
            data=data_config(jagged),
            optim=OptimConfig(lr=3e-2, warmup_steps=0),
            train=TrainConfig(steps=4, precision="32"),
            tracking=False,
        )
    )


def config(jagged, out, backbone, *, frozen=False, data=None, train=None, **settings):
    train = {"steps": STEPS, "log_every": 1, "val_every": 3, "precision": "32"} | (train or {})
    usual = {
        "objective": SupervisedConfig(
            frozen=frozen, pool=PoolConfig(width=8, heads=2), label_smoothing=0
        ),
        "optim": OptimConfig(lr=3e-3, weight_decay=0.5),
        "data": data_config(jagged, **(data or {})),
        "train": TrainConfig(**train),
        "encoder": tiny_config(),
    }
    fixed = {"out": out, "backbone": backbone, "tracking": False}
    return FinetuneConfig(**(usual | settings | fixed))


def run(jagged, out, backbone, **settings):
    return finetune(config(jagged, out, backbone, **settings))


def metrics(folder, prefix=""):
    rows = [json.loads(line) for line in (folder / METRICS).read_text().splitlines()]
    rows = [{k: v for k, v in row.items() if k not in CLOCK} for row in rows]
    return [row for row in rows if any(key.startswith(prefix) for key in row)]


def encoder_of(folder):
    weights = load_file(folder / "model.safetensors")
    return {k.removeprefix("encoder."): v for k, v in weights.items() if k.startswith("encoder.")}


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


# --- modes ---


class Watch:
    """What every training step finds, and what it leaves."""

    def __init__(self, monkeypatch):
        self.graphs, self.rates, self.weights = [], [], []
        loss, step = Supervised.loss, JetModule.optimizer_step

        def watched_loss(objective, batch, rng):
            if objective.training:
                self.graphs.append(objective.encoder(batch).rows.requires_grad)
            return loss(objective, batch, rng)

        def watched_step(module, *args, **more):
            step(module, *args, **more)
            groups = module.trainer.optimizers[0].param_groups
            self.rates.append({tuple(g["place"]): g["lr"] for g in groups})
            encoder = module.objective.encoder.state_dict()
            self.weights.append({key: value.clone() for key, value in encoder.items()})

        monkeypatch.setattr(Supervised, "loss", watched_loss)
        monkeypatch.setattr(JetModule, "optimizer_step", watched_step)


@pytest.mark.slow
def test_a_backbone_that_is_unfrozen_late(jagged, backbone, tmp_path, monkeypatch):
    """Until then nothing goes back through it and nothing decays it; then it catches up."""
    watch = Watch(monkeypatch)
    run(jagged, tmp_path / "run", backbone, unfreeze_at=2, train={"steps": 22, "val_every": 50})
    before = load_file(backbone / "backbone.safetensors")
    assert watch.graphs == [False] * 2 + [True] * 20
    assert all(same(weights, before) for weights in watch.weights[:2])
    moved = [key for key in before if not torch.equal(watch.weights[2][key], before[key])]
    assert set(before) - set(moved) == {key for key in before if "scaling." in key}
    shares = [rates[1.0, True] / rates[1.0, False] for rates in watch.rates]
    rising = [1 / 3, 2 / 3]  # over a tenth of the 20 steps that are left
    assert shares == pytest.approx([0.0, 0.0, *rising, *[1.0] * 18])


def test_until_it_is_unfrozen_the_run_is_a_frozen_one(jagged, backbone, tmp_path):
    late = run(jagged, tmp_path / "late", backbone, unfreeze_at=4)
    frozen = run(jagged, tmp_path / "frozen", backbone, frozen=True)
    rows = [metrics(folder, "train/") for folder in (late, frozen)]
    assert rows[0][:5] == rows[1][:5]
    assert rows[0][5] != rows[1][5]


def test_from_scratch_and_random(jagged, backbone, tmp_path, monkeypatch):
    """New weights with the scaling of the backbone; the one trains them, the other does not."""
    before = load_file(backbone / "backbone.safetensors")
    for frozen in (False, True):
        watch = Watch(monkeypatch)
        run(jagged, tmp_path / f"{frozen}", backbone, random=True, frozen=frozen)
        monkeypatch.undo()
        assert watch.graphs == [not frozen] * STEPS
        for key, value in before.items():
            assert torch.equal(watch.weights[0][key], value) == ("scaling." in key), key
            trained = not torch.equal(watch.weights[-1][key], watch.weights[0][key])
            assert trained == (not frozen and "scaling." not in key), key


def test_the_rate_falls_from_block_to_block(jagged, backbone, tmp_path, monkeypatch):
    watch = Watch(monkeypatch)
    run(jagged, tmp_path / "run", backbone, layer_decay=0.5, train={"steps": 1})
    shares = sorted(share for share, _ in watch.rates[0])
    assert shares == [0.125, 0.25, 0.5, 1.0]  # embeddings, two blocks, the rest
    rates = [watch.rates[0][share, False] for share in shares]
    assert rates == pytest.approx([3e-3 * share for share in shares])


def test_adapters(jagged, backbone, tmp_path, monkeypatch):
    """The blocks move by matrices of low rank, nothing else does; the saved network is plain."""
    answers = []
    finish = JetModule.on_validation_epoch_end

    def ask(module):
        finish(module)
        answers.append(module.objective.logits(random_batch(SIZES)))

    monkeypatch.setattr(JetModule, "on_validation_epoch_end", ask)
    folder = run(jagged, tmp_path / "run", backbone, lora=LoRAConfig(rank=2), train={"steps": 3})
    before, after = load_file(backbone / "backbone.safetensors"), encoder_of(folder)
    assert before.keys() == after.keys()
    moved = {key for key in before if not torch.equal(before[key], after[key])}
    linear = ("qkv.weight", "layer.out.weight", "gate_and_value.weight")
    assert moved == {key for key in before if "blocks." in key and key.endswith(linear)}
    for key in moved:
        assert torch.linalg.matrix_rank((after[key] - before[key]).double(), tol=1e-6) <= 2
    _, _, classifier = load_classifier(folder)
    torch.testing.assert_close(classifier.logits(random_batch(SIZES)), answers[0])


def test_new_adapters_change_nothing():
    encoder, other = tiny_encoder(), tiny_encoder()
    LoRAConfig(rank=3).add_to(other)
    batch = random_batch(SIZES)
    torch.testing.assert_close(other(batch).tokens, encoder(batch).tokens)
    trained = [name for name, p in other.named_parameters() if p.requires_grad]
    assert len(trained) == 2 * 4 * encoder.cfg.depth
    assert all(name.endswith((".up", ".down")) for name in trained)
    assert same(plain_state(other), encoder.state_dict())


def test_at_most_one_mode():
    assert mode() == {}
    assert mode(full=True)["objective"] == {"frozen": False}
    assert mode(random=True) == {
        "random": True, "unfreeze_at": None, "lora": None, "objective": {"frozen": True},
    }  # fmt: skip
    with pytest.raises(ConfigError, match="--frozen and --lora are both given"):
        mode(frozen=True, lora=4)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"frozen": True, "unfreeze_at": 3}, "unfreeze_at = 3: .*objective.frozen"),
        ({"frozen": True, "lora": LoRAConfig(rank=1)}, "lora = .*objective.frozen"),
        ({"frozen": True, "layer_decay": 0.5}, "layer_decay = 0.5"),
        ({"random": True, "unfreeze_at": 3}, "random backbone is either frozen or trained"),
        ({"random": True, "lora": LoRAConfig(rank=1)}, "adapters are for a trained backbone"),
        ({"unfreeze_at": 3, "lora": LoRAConfig(rank=1)}, "with lora the backbone itself"),
        ({"unfreeze_at": STEPS}, f"unfreeze_at = {STEPS}: the run ends after step {STEPS}"),
        (
            {"unfreeze_at": 5, "train": {"steps": None, "jets": 40}, "data": {"num_jets": 8}},
            "unfreeze_at = 5: the run ends after step 5",  # 8 jets are half a batch
        ),
        ({"cache_embeddings": True}, "the backbone has to be frozen"),
        ({"cache_embeddings": True, "frozen": True}, r"needs data\.in_memory"),
        (
            {"cache_embeddings": True, "frozen": True, "data": {"in_memory": True, "workers": 1}},
            r"data\.workers = 0",
        ),
    ],
)
def test_settings_that_contradict_each_other(jagged, backbone, tmp_path, settings, told):
    with pytest.raises(ConfigError, match=told):
        run(jagged, tmp_path / "run", backbone, **settings)
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_an_epoch_of_less_than_a_batch_is_a_step(jagged, backbone, tmp_path):
    few = {"train": {"steps": None, "jets": 40}, "data": {"num_jets": 8}}
    found = run(jagged, tmp_path / "run", backbone, unfreeze_at=4, **few)
    assert metrics(found, "train/")[-1]["step"] == 5


# --- few labels ---


@pytest.mark.slow
def test_fewer_labels_than_a_batch(jagged, backbone, tmp_path, monkeypatch):
    """Every batch holds all of them; the same ones for the same seed."""
    seen = []
    right = Supervised.loss

    def loss(self, batch, rng):
        if self.training:
            seen.append(sorted(zip(batch.labels.tolist(), batch.jets[:, 0].tolist(), strict=True)))
        return right(self, batch, rng)

    monkeypatch.setattr(Supervised, "loss", loss)
    for in_memory in (False, True):
        data = {"subset": 10, "in_memory": in_memory}
        run(jagged, tmp_path / f"{in_memory}", backbone, frozen=True, data=data)
    assert all(jets == seen[0] for jets in seen)
    assert [label for label, _ in seen[0]] == list(range(10))
    run(jagged, tmp_path / "more", backbone, frozen=True, data={"subset": 14}, train={"steps": 1})
    assert len(seen[-1]) == 14
    assert set(seen[0]) < set(seen[-1])
    run(jagged, tmp_path / "seed", backbone, frozen=True, data={"subset": 10}, train={"seed": 1})
    assert seen[-1] != seen[0]


# --- what is kept, and when it ends ---


def scripted(monkeypatch, losses):
    """Validations that find these losses; returns the weights at each."""
    weights, right = [], Supervised.loss_of

    def loss_of(self, logits, labels):
        if self.training:
            return right(self, logits, labels)
        weights.append({key: value.clone() for key, value in self.state_dict().items()})
        return {"cross_entropy": torch.tensor(losses[len(weights) - 1])}

    monkeypatch.setattr(Supervised, "loss_of", loss_of)
    return weights


@pytest.mark.slow
def test_the_weights_of_the_best_validation_are_saved(jagged, backbone, tmp_path, monkeypatch):
    data = {"batch_size": 24}  # a validation is one batch
    train = {"steps": 5, "val_every": 1, "keep": "best"}
    weights = scripted(monkeypatch, [3.0, 1.0, 2.0, 1.0, 1.5])
    folder = run(jagged, tmp_path / "best", backbone, data=data, train=train)
    assert same(load_file(folder / "model.safetensors"), weights[1])
    assert not same(weights[1], weights[-1])
    assert metrics(folder, "best/") == [{"step": 2, "best/loss": 1.0}]
    weights = scripted(monkeypatch, [3.0, 1.0, 2.0, 1.0, 1.5])
    folder = run(jagged, tmp_path / "last", backbone, data=data, train=train | {"keep": "last"})
    assert same(load_file(folder / "model.safetensors"), weights[-1])
    assert not metrics(folder, "best/")


def test_a_run_ends_when_validations_do_not_get_better(jagged, backbone, tmp_path, monkeypatch):
    train = {"steps": 50, "val_every": 2, "keep": "best", "patience": 3}
    weights = scripted(monkeypatch, [3.0, 2.0, 2.5, 1.0, 1.0, 4.0, 1.1, 0.0])
    folder = run(jagged, tmp_path / "run", backbone, data={"batch_size": 24}, train=train)
    assert [row["step"] for row in metrics(folder, "val/")] == [2, 4, 6, 8, 10, 12, 14]
    assert metrics(folder, "best/") == [{"step": 8, "best/loss": 1.0}]
    assert same(load_file(folder / "model.safetensors"), weights[3])


@pytest.mark.slow
@pytest.mark.parametrize("settings", [{"unfreeze_at": 2}, {"lora": LoRAConfig(rank=2)}])
def test_two_processes_are_one(jagged, backbone, tmp_path, settings):
    """Gradients of a backbone that has none at first, patience, and the best weights."""
    still = PoolConfig(width=8, heads=2, dropout=0.0)
    settings = settings | {
        "objective": SupervisedConfig(pool=still),
        "data": {"batch_size": 64, "num_jets": 64},
        "optim": OptimConfig(lr=0.02),
    }
    train = {"steps": 20, "val_every": 1, "keep": "best", "patience": 2}
    folders = [
        run(jagged, tmp_path / f"{n}", backbone, train=train | {"devices": n}, **settings)
        for n in (1, 2)
    ]
    one, two = map(metrics, folders)
    assert len(one) == len(two)
    for row, wanted in zip(two, one, strict=True):
        assert row == pytest.approx(wanted, rel=1e-3)
    assert len(metrics(folders[0], "val/")) < 20
    weights, expected = (load_file(folder / "model.safetensors") for folder in folders[::-1])
    for key, value in expected.items():
        torch.testing.assert_close(weights[key], value, rtol=1e-2, atol=1e-3)


# --- cached embeddings ---


@pytest.mark.parametrize("precision", ["32", "bf16-mixed"])
def test_cached_embeddings_give_the_same_run(jagged, backbone, tmp_path, precision):
    train = {"steps": 9, "val_every": 4, "precision": precision}
    data = {"in_memory": True, "batch_size": 32}
    how = {"frozen": True, "data": data, "train": train}
    plain = run(jagged, tmp_path / "plain", backbone, **how)
    cached = run(jagged, tmp_path / "cached", backbone, cache_embeddings=True, **how)
    for row, wanted in zip(metrics(cached), metrics(plain), strict=True):
        assert row == pytest.approx(wanted, rel=2e-3)
    weights, expected = (load_file(f / "model.safetensors") for f in (cached, plain))
    assert weights.keys() == expected.keys()
    assert same(encoder_of(cached), encoder_of(plain))
    if precision == "bf16-mixed":  # which float16 holds
        assert same(weights, expected)
    for key, value in expected.items():  # a gradient of 0 may be one of either sign for AdamW
        assert (weights[key] - value).norm() < 1e-2 * value.norm(), key


def test_embeddings_that_do_not_fit(jagged, backbone, tmp_path, monkeypatch):
    how = {"frozen": True, "data": {"in_memory": True}, "cache_embeddings": True}
    with pytest.raises(RunError, match=r"embeddings of .* jets take .* fewer jets"):
        run(jagged, tmp_path / "run", backbone, embeddings_memory=10_000, **how)
    monkeypatch.setattr("jetssl_cli.runs.embeddings.LARGEST", 1e-6)
    with pytest.raises(RunError, match="do not fit float16"):
        run(jagged, tmp_path / "run", backbone, **how)
    assert not (tmp_path / "run").exists()


# --- bad backbones ---


def test_bad_backbones_are_one_clear_line(jagged, backbone, tmp_path):
    def spoiled(name, content):
        folder = tmp_path / f"bad{len(list(tmp_path.iterdir()))}"
        folder.mkdir()
        for file in backbone.iterdir():
            (folder / file.name).write_bytes(file.read_bytes())
        (folder / name).write_bytes(content)
        return folder

    def refuse(folder, told):
        with pytest.raises(JetSSLError, match=told) as error:
            run(jagged, tmp_path / "run", folder)
        assert "\n" not in str(error.value)
        assert not (tmp_path / "run").exists()

    whole = (backbone / checkpoint.BACKBONE).read_bytes()
    refuse(spoiled(checkpoint.BACKBONE, whole[:-9]), "not a readable safetensors file")
    other = whole.replace(b'\\"layout\\": \\"1\\"', b'\\"layout\\": \\"7\\"')
    refuse(spoiled(checkpoint.BACKBONE, other), "layout 7, expected 1.*another version")
    torch.save({"weights": torch.zeros(2)}, tmp_path / "a.ckpt")
    refuse(spoiled(checkpoint.BACKBONE, (tmp_path / "a.ckpt").read_bytes()), "is a pickle")
    refuse(spoiled("schema.yaml", b"columns: [pt]"), "another version of jetssl")
    with pytest.raises(RunError, match=r"a\.ckpt: is a file; the folder of a run is needed"):
        checkpoint.read_config(tmp_path / "a.ckpt", PretrainConfig)
    with pytest.raises(RunError, match=f"is a file; the folder of a run is needed, {backbone}$"):
        checkpoint.read_config(backbone / checkpoint.BACKBONE, PretrainConfig)
    folder = spoiled("config.yaml", (backbone / "config.yaml").read_bytes() + b"flavour: 3\n")
    with pytest.raises(
        ConfigError, match=r"flavour = 3: no such setting.*another version"
    ) as error:
        checkpoint.read_config(folder, PretrainConfig)
    assert "\n" not in str(error.value)


# --- other data than the backbone was trained on ---


@pytest.fixture(scope="module")
def other_data(samples, tmp_path_factory):
    """Jets without impact parameters, classes of particles and one jet feature; a new one."""
    folder = tmp_path_factory.mktemp("other")
    recipe = load_recipe("jetclass")
    gone = ("d0", "d0_err", "dz", "dz_err")
    features = {k: v for k, v in recipe.constituents.features.items() if k not in gone}
    of = recipe.constituents.model_copy(update={"features": features, "ids": None})
    jets = {f"{name}2" if name == "jet_sdmass" else name: c for name, c in recipe.jets.items()}
    other = recipe.model_copy(update={"constituents": of, "jets": jets})
    for split in ("train", "val"):
        source = samples / "jetclass" / split
        convert(ConvertConfig(sources=(source,), recipe=other, out=folder / "each" / split))
        merge(MergeConfig(sources=(folder / "each" / split,), out=folder / f"{split}.h5"))
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("rescale", [False, True])
def test_other_data(other_data, backbone, tmp_path, capsys, rescale):
    folder = run(other_data, tmp_path / "run", backbone, rescale=rescale)
    assert (
        "train.h5: missing: d0, d0_err, dz, dz_err, jet_sdmass; unknown to the backbone: "
        "jet_sdmass2; no particle classes"
    ) in capsys.readouterr().err
    before, after = load_file(backbone / "backbone.safetensors"), encoder_of(folder)
    assert after["embed.0.weight"].shape[1] == 3
    key = "scaling.constituents.quantiles"
    # here the new data are the old ones, and so is their scaling
    torch.testing.assert_close(after[key], before[key][:3])
    key = "scaling.jets.quantiles"
    torch.testing.assert_close(after[key], before[key])
    _, schema, classifier = load_classifier(folder)
    assert [feature.name for feature in schema.constituents] == ["pt", "deta", "dphi"]
    (batch,) = JetStream([other_data / "val.h5"], batch_size=24, num_jets=24, max_constituents=12)
    assert classifier.logits(batch).isfinite().all()


def test_jets_of_one_class(jagged, backbone, tmp_path, capsys):
    """Nothing is learned from them; to validate on they are told."""
    for name in ("train", "val"):
        with JaggedFile(jagged / f"{name}.h5") as file:
            jets, recipe, schema = file.read(), file.recipe, file.schema
        with write(tmp_path / f"{name}.h5", recipe, []) as writer:
            writer.append(jets.take(np.flatnonzero(jets.labels == 3)))
    only = {name: (tmp_path / f"{name}.h5",) for name in ("train", "val")}
    with pytest.raises(DataError, match=f"jets to train on are all {schema.classes[3]}; a class"):
        run(jagged, tmp_path / "run", backbone, data=only)
    assert not (tmp_path / "run").exists()
    run(jagged, tmp_path / "run", backbone, data={"val": only["val"], "num_val_jets": None})
    assert f"the jets to validate on are all {schema.classes[3]}" in capsys.readouterr().err


def test_rescaling_takes_the_scaling_of_the_new_data(jagged, backbone, tmp_path, monkeypatch):
    monkeypatch.setattr(finetune_module, "SCALING_JETS", 30)
    folder = run(jagged, tmp_path / "run", backbone, rescale=True, train={"steps": 1})
    before, after = load_file(backbone / "backbone.safetensors"), encoder_of(folder)
    for part in ("constituents", "jets"):
        key = f"scaling.{part}.quantiles"
        assert not torch.equal(after[key], before[key])
