"""``jetssl finetune``: train a classifier on top of a pretrained backbone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch

from jetssl_cli.config import Layer, load, shipped_file
from jetssl_cli.data.recipe import Schema
from jetssl_cli.data.scaling import Scaling
from jetssl_cli.encoder.encoder import EncoderConfig
from jetssl_cli.objectives.supervised import Supervised, SupervisedConfig
from jetssl_cli.runs import budget, checkpoint
from jetssl_cli.runs.optim import OptimConfig
from jetssl_cli.runs.pretrain import PretrainConfig, build_encoder, load_backbone
from jetssl_cli.runs.training import RunConfig, TrainConfig, check, read_schema, run


class FinetuneConfig(RunConfig):
    """Everything that defines a finetuning run."""

    command: Literal["finetune"] = "finetune"
    optim: OptimConfig = OptimConfig(weight_decay=0.01)
    train: TrainConfig = TrainConfig(steps=20_000)
    backbone: Path
    """Folder of the pretraining run whose encoder is used."""
    random: bool = False
    """Take the architecture and the scaling of the backbone, but not its weights."""
    encoder: EncoderConfig
    """The encoder of the backbone."""
    objective: SupervisedConfig = SupervisedConfig()


def load_config(
    backbone: Path | None,
    options: Layer,
    *,
    config: Path | None = None,
    overrides: Sequence[str] = (),
) -> FinetuneConfig:
    """Lay the preset, what the backbone fixes, the user's file, options and overrides in order.

    Raises:
        ConfigError: a setting is not valid.
        RunError: ``backbone`` is not a pretraining run.
    """
    run = checkpoint.resumed(options)
    if run is not None:
        return checkpoint.continued(FinetuneConfig, run, options, overrides)
    assert backbone is not None
    source = checkpoint.read_config(backbone, PretrainConfig)
    inherited = {
        "encoder": source.encoder.model_dump(mode="json", exclude={"attention"}),
        "data": {
            "batch_size": source.data.batch_size,
            "max_constituents": source.data.max_constituents,
        },
    }
    layers = [
        Layer.read(shipped_file("configs/finetune", "classify", "task")),
        Layer(str(backbone / checkpoint.CONFIG), inherited),
    ]
    layers += [Layer.read(config)] if config else []
    return load(FinetuneConfig, budget.latest([*layers, options], overrides))


def finetune(cfg: FinetuneConfig) -> Path:
    """Finetune, and return the folder of the run; there is nothing to do for a complete one.

    Raises:
        ConfigError: the devices are not there, or cannot share a batch evenly.
        DataError: the data cannot be read.
        RunError: the data do not fit the backbone, the folder holds a run already, or the
            training had to stop.
    """
    check(cfg)
    if cfg.resume and checkpoint.is_complete(cfg.out):
        return cfg.out
    schema = read_schema(cfg.data)
    expected = checkpoint.read_schema(cfg.backbone)
    checkpoint.match(schema, expected, str(cfg.data.train[0]), cfg.backbone)
    torch.manual_seed(cfg.train.seed)
    encoder = load_backbone(cfg.backbone, cfg.encoder, schema, trained=not cfg.random)
    objective = cfg.objective.build(encoder, len(schema.classes))
    return run(cfg, objective, schema, {checkpoint.MODEL: objective})


def load_classifier(run: Path) -> tuple[FinetuneConfig, Schema, Supervised]:
    """The classifier of a finetuning run, ready to predict.

    Raises:
        RunError: not a finetuning run, or one without weights.
    """
    cfg = checkpoint.read_config(run, FinetuneConfig)
    schema = checkpoint.read_schema(run)
    anywhere = cfg.encoder.model_copy(update={"attention": "auto"})
    encoder = build_encoder(anywhere, Scaling.unfitted(schema), schema)
    classifier = cfg.objective.build(encoder, len(schema.classes))
    checkpoint.restore(run / checkpoint.MODEL, classifier)
    return cfg, schema, classifier.eval()
