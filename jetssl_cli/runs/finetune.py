"""``jetssl finetune``: train a classifier on top of a pretrained backbone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch

from jetssl_cli.config import Layer, Strict, load, shipped_file, to_yaml
from jetssl_cli.data.recipe import Schema
from jetssl_cli.data.scaling import Scaling
from jetssl_cli.data.stream import look
from jetssl_cli.encoder.encoder import EncoderConfig
from jetssl_cli.errors import RunError
from jetssl_cli.objectives.supervised import Supervised, SupervisedConfig
from jetssl_cli.runs import checkpoint
from jetssl_cli.runs.loaders import DataConfig
from jetssl_cli.runs.module import JetModule, TrainConfig, fit
from jetssl_cli.runs.optim import OptimConfig
from jetssl_cli.runs.pretrain import PretrainConfig, build_encoder, load_backbone
from jetssl_cli.runs.tracking import track


class FinetuneConfig(Strict):
    """Everything that defines a finetuning run."""

    command: Literal["finetune"] = "finetune"
    """Tells the kinds of runs apart."""
    out: Path
    """Folder of the run."""
    backbone: Path
    """Folder of the pretraining run whose encoder is used."""
    random: bool = False
    """Take the architecture and the scaling of the backbone, but not its weights."""
    encoder: EncoderConfig
    """The encoder of the backbone."""
    objective: SupervisedConfig = SupervisedConfig()
    data: DataConfig
    optim: OptimConfig = OptimConfig(weight_decay=0.01)
    train: TrainConfig = TrainConfig(steps=20_000)
    tracking: bool = True
    """Record the run with MLflow."""


def load_config(
    backbone: Path,
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
    source = checkpoint.read_config(backbone, PretrainConfig)
    inherited = {
        "encoder": source.encoder.model_dump(mode="json"),
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
    return load(FinetuneConfig, [*layers, options], overrides)


def finetune(cfg: FinetuneConfig) -> Path:
    """Finetune, and return the folder of the run.

    Raises:
        DataError: the data cannot be read.
        RunError: the data do not fit the backbone, the folder holds a run already, or the
            training had to stop.
    """
    schema, _ = look(cfg.data.train)
    if look(cfg.data.val)[0] != schema:
        raise RunError(f"{cfg.data.val[0]}: has other columns or classes than {cfg.data.train[0]}")
    expected = checkpoint.read_schema(cfg.backbone)
    checkpoint.match(schema, expected, str(cfg.data.train[0]), cfg.backbone)
    torch.manual_seed(cfg.train.seed)
    encoder = load_backbone(cfg.backbone, cfg.encoder, schema, trained=not cfg.random)
    objective = cfg.objective.build(encoder, len(schema.classes))
    checkpoint.begin(cfg.out, cfg, schema)
    with track(cfg.out.name, cfg.out, enabled=cfg.tracking) as tracker:
        tracker.params(checkpoint.plain(cfg))
        tracker.text(checkpoint.CONFIG, to_yaml(cfg))
        module = JetModule(
            objective,
            num_classes=len(schema.classes),
            optim=cfg.optim,
            train=cfg.train,
            tracker=tracker,
        )
        fit(module, cfg.data, f"finetune {cfg.out.name}")
        checkpoint.save(cfg.out / checkpoint.MODEL, objective)
    return cfg.out


def load_classifier(run: Path) -> tuple[FinetuneConfig, Schema, Supervised]:
    """The classifier of a finetuning run, ready to predict.

    Raises:
        RunError: not a finetuning run, or one without weights.
    """
    cfg = checkpoint.read_config(run, FinetuneConfig)
    schema = checkpoint.read_schema(run)
    encoder = build_encoder(cfg.encoder, Scaling.unfitted(schema), schema)
    classifier = cfg.objective.build(encoder, len(schema.classes))
    checkpoint.restore(run / checkpoint.MODEL, classifier)
    return cfg, schema, classifier.eval()
