"""Run folders: what is written comes back, and nothing else is believed."""

from __future__ import annotations

from pathlib import Path

import pytest
from reference.jets import schema, tiny_config

from jetssl_cli.config import load, to_yaml
from jetssl_cli.data.schema import Schema
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
