"""Run folders: what is written comes back, and nothing else is believed."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch
from reference.jets import schema, tiny_config, tiny_encoder
from safetensors.torch import load_file, save_file
from torch import nn

from jetssl_cli import __version__
from jetssl_cli.config import load, to_yaml
from jetssl_cli.data.recipe import Schema
from jetssl_cli.errors import ConfigError, RunError
from jetssl_cli.objectives.masking import RandomMaskConfig
from jetssl_cli.objectives.ssfm import SSFMConfig
from jetssl_cli.runs import checkpoint
from jetssl_cli.runs.finetune_config import FinetuneConfig
from jetssl_cli.runs.loaders import DataConfig
from jetssl_cli.runs.pretrain import PretrainConfig


def pretrain_config(out):
    return PretrainConfig(
        out=out,
        objective=SSFMConfig(mask=RandomMaskConfig(share=0.31)),
        encoder=tiny_config(context=False),
        data=DataConfig(train=(Path("a.h5"), Path("b c.h5")), val=(Path("v.h5"),), num_jets=7),
    )


def finetune_config(out):
    return FinetuneConfig(
        out=out,
        backbone=Path("pretrained"),
        encoder=tiny_config(),
        data=DataConfig(train=(Path("a.h5"),), val=(Path("v.h5"),)),
    )


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "model.safetensors"
    checkpoint.save(path, tiny_encoder(seed=1))
    return path


def refuse(path, module, *words):
    """Restoring fails with a message that names the file, and leaves the module as it was."""
    before = {name: value.clone() for name, value in module.state_dict().items()}
    with pytest.raises(RunError) as error:
        checkpoint.restore(path, module)
    assert all(word in str(error.value) for word in (str(path), *words)), error.value
    assert all(torch.equal(before[name], value) for name, value in module.state_dict().items())


def test_weights_come_back_bit_for_bit(saved):
    source, target = tiny_encoder(seed=1), tiny_encoder(seed=2)
    checkpoint.restore(saved, target)
    for name, value in source.state_dict().items():
        assert torch.equal(target.state_dict()[name], value)
        assert target.state_dict()[name].dtype == value.dtype
    assert [file.name for file in saved.parent.iterdir()] == [saved.name]


def test_the_scaling_comes_back_in_double_precision(saved):
    assert load_file(saved)["scaling.jets.quantiles"].dtype == torch.float64


def test_views_and_transposed_weights_are_saved_whole(tmp_path):
    layer = nn.Linear(3, 3)
    layer.weight = nn.Parameter(torch.arange(9.0).view(3, 3).t())
    checkpoint.save(tmp_path / "w", layer)
    assert torch.equal(load_file(tmp_path / "w")["weight"], layer.weight)


def test_a_wrong_shape_is_refused(saved):
    refuse(saved, tiny_encoder(embedding_width=9), "embed", "expected", "shape")


def test_missing_and_unexpected_weights_are_refused(saved):
    refuse(saved, tiny_encoder(depth=3), "lacks", "blocks.2")
    refuse(saved, tiny_encoder(depth=1), "unexpected", "blocks.1")
    weights = load_file(saved)
    weights.pop("out.bias")
    checkpoint.save(saved, weights)
    refuse(saved, tiny_encoder(), "lacks", "out.bias")


@pytest.mark.parametrize("length", [0, 5, 100, -1])
def test_a_truncated_file_is_refused(saved, length):
    saved.write_bytes(saved.read_bytes()[:length])
    refuse(saved, tiny_encoder(), "not a readable safetensors file")


def test_weights_tell_where_they_come_from(saved):
    facts = {"recipe": "jetclass", "classes": ["QCD", "Tbqq"]}
    checkpoint.save(saved, tiny_encoder(seed=1), facts)
    first = saved.read_bytes()
    weights, found = checkpoint.read_weights(saved)
    assert found.items() >= {"layout": "1", "code": __version__, **facts}.items()
    checkpoint.save(saved, weights, facts)
    assert saved.read_bytes() == first  # the same, byte for byte


def test_what_was_changed_is_refused(saved):
    """Of the weights, and of what they tell."""
    whole = saved.read_bytes()
    for place in (whole.index(__version__.encode()), len(whole) // 2, len(whole) - 1):
        changed = bytearray(whole)
        changed[place] ^= 1
        saved.write_bytes(changed)
        refuse(saved, tiny_encoder(), "is damaged: its hash is not that of its content")


def test_weights_of_no_known_version_are_refused(saved):
    save_file(load_file(saved), saved)
    refuse(saved, tiny_encoder(), "layout None, expected 1", "another version of jetssl")


def test_a_head_as_long_as_a_pickle_begins_is_no_pickle(tmp_path):
    """Safetensors begin with the length of their head, pickles with the bytes of 640."""
    path, length = tmp_path / "w", 0
    for more in range(600):
        checkpoint.save(path, {"x": torch.ones(1)}, {"more": "m" * more})
        length = int.from_bytes(path.read_bytes()[:8], "little")
        if length >= 640:
            break
    assert length == 640
    assert not checkpoint.is_pickle(path)
    assert torch.equal(checkpoint.read_weights(path)[0]["x"], torch.ones(1))


class Bomb:
    def __reduce__(self):
        return (Path.touch, (Path("exploded"),))


def test_a_pickle_is_not_even_opened(saved, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    saved.write_bytes(pickle.dumps(Bomb()))
    refuse(saved, tiny_encoder(), "not a readable safetensors file")
    torch.save(tiny_encoder().state_dict() | {"bomb": Bomb()}, saved)
    refuse(saved, tiny_encoder(), "not a readable safetensors file")
    assert not Path("exploded").exists()


def test_no_file_and_a_folder_are_refused(tmp_path):
    refuse(tmp_path / "none", tiny_encoder(), "no such file")
    refuse(tmp_path, tiny_encoder(), "not a readable safetensors file")


def test_a_failed_save_leaves_what_was_there(saved, monkeypatch):
    old = saved.read_bytes()

    def breaks(weights, path, metadata):
        del weights, metadata
        path.write_bytes(b"half")
        raise OSError("no space left on device")

    monkeypatch.setattr(checkpoint, "save_file", breaks)
    with pytest.raises(RunError, match="cannot be written: no space left") as error:
        checkpoint.save(saved, tiny_encoder())
    assert str(saved) in str(error.value)
    with pytest.raises(RunError, match="cannot be written"):
        checkpoint.save(saved.with_name("new"), tiny_encoder())
    assert [file.name for file in saved.parent.iterdir()] == [saved.name]
    assert saved.read_bytes() == old


def test_an_interrupted_save_leaves_nothing(tmp_path, monkeypatch):
    def interrupted(weights, path, metadata):
        del weights, metadata
        path.write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint, "save_file", interrupted)
    with pytest.raises(KeyboardInterrupt):
        checkpoint.save(tmp_path / "new", tiny_encoder())
    assert list(tmp_path.iterdir()) == []


def test_saving_where_there_is_no_folder(tmp_path):
    with pytest.raises(RunError, match="cannot be written"):
        checkpoint.save(tmp_path / "none" / "w", tiny_encoder())


@pytest.mark.parametrize("make", [pretrain_config, finetune_config])
def test_a_configuration_comes_back_equal(tmp_path, make):
    cfg = make(tmp_path / "deep" / "run")
    checkpoint.begin(cfg.out, cfg, schema())
    assert checkpoint.read_config(cfg.out, type(cfg)) == cfg
    assert checkpoint.read_schema(cfg.out) == schema()


def test_runs_of_another_kind_are_refused(tmp_path):
    cfg = pretrain_config(tmp_path / "run")
    checkpoint.begin(cfg.out, cfg, schema())
    with pytest.raises(RunError, match="is a pretrain run; a finetune run is needed here"):
        checkpoint.read_config(cfg.out, FinetuneConfig)


def test_folders_that_are_no_runs_are_refused(tmp_path):
    with pytest.raises(RunError, match="no such run folder"):
        checkpoint.read_config(tmp_path / "none", PretrainConfig)
    with pytest.raises(RunError, match="is not a run folder"):
        checkpoint.read_config(tmp_path, PretrainConfig)
    (tmp_path / "config.yaml").write_text("command: pretrain\nworkers: 3\n")
    with pytest.raises(ConfigError, match=r"config\.yaml: workers = 3: no such setting"):
        checkpoint.read_config(tmp_path, PretrainConfig)


def test_a_folder_in_use_is_refused(tmp_path):
    cfg = pretrain_config(tmp_path / "run")
    cfg.out.mkdir()
    (cfg.out / "schema.yaml").touch()  # what one left that was killed as it began
    (cfg.out / ".config.yaml.partial").touch()
    assert not checkpoint.is_begun(cfg.out)
    checkpoint.begin(cfg.out, cfg, schema())  # an empty folder is fine
    assert {file.name for file in cfg.out.iterdir()} == {"config.yaml", "schema.yaml"}
    assert checkpoint.read_schema(cfg.out) == schema()
    written = {file: file.read_bytes() for file in cfg.out.iterdir()}
    with pytest.raises(RunError, match="is there already"):
        checkpoint.begin(cfg.out, cfg, schema())
    assert {file: file.read_bytes() for file in cfg.out.iterdir()} == written
    with pytest.raises(RunError, match="is there already"):
        checkpoint.begin(cfg.out / "config.yaml", cfg, schema())
    with pytest.raises(RunError, match="cannot be written"):
        checkpoint.begin(cfg.out / "config.yaml" / "below", cfg, schema())


def changed_schema(part, index, **changes):
    raw = schema().model_dump()
    raw[part][index].update(changes)
    return Schema.model_validate(raw)


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (changed_schema("constituents", 0, name="energy"), ("constituents", "energy")),
        (changed_schema("constituents", 0, unit="MeV"), ("constituents", "MeV")),
        (changed_schema("constituents", 0, charged_only=True), ("constituents", "charged")),
        (changed_schema("jets", 3, name="mass"), ("jets", "mass")),
        (schema().model_copy(update={"ids": ("photon",)}), ("ids", "photon")),
    ],
)
def test_data_with_other_columns_are_refused(found, words):
    with pytest.raises(RunError) as error:
        checkpoint.match(found, schema(), "jets.h5", Path("run"))
    found_side, _, expected_side = str(error.value).partition(";")
    assert all(word in found_side for word in ("jets.h5", *words))
    assert found_side.split(" are ")[1] != expected_side.split(" on ")[1]


def test_other_classes_are_no_other_columns():
    other = schema().model_copy(update={"classes": ("light", "charm", "bottom")})
    checkpoint.match(other, schema(), "jets.h5", Path("run"))


def test_a_config_as_flat_text(tmp_path):
    (tmp_path / checkpoint.CONFIG).write_text(to_yaml(pretrain_config(tmp_path)))
    flat = checkpoint.settings(tmp_path)
    assert flat["encoder.width"] == "16"
    assert flat["objective.mask.share"] == "0.31"
    assert flat["command"] == "pretrain"
    assert all(isinstance(value, str) for value in flat.values())


def test_yaml_of_a_config_is_enough_to_build_it_again():
    cfg = tiny_config()
    text = to_yaml(cfg)
    layer = checkpoint.Layer("text", checkpoint.yaml.safe_load(text))
    assert load(type(cfg), [layer]) == cfg
