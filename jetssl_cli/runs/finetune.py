"""``jetssl finetune``: train a pretrained backbone, and a head on top of it, for a task."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch
from pydantic import model_validator

from jetssl_cli.config import Layer, load, read_yaml, shipped_file
from jetssl_cli.data.mixed import SAMPLES
from jetssl_cli.data.recipe import Schema
from jetssl_cli.data.scaling import Scaling
from jetssl_cli.data.stream import JetStream
from jetssl_cli.encoder.encoder import EncoderConfig
from jetssl_cli.errors import RunError
from jetssl_cli.objectives import TaskConfig
from jetssl_cli.objectives.downstream import Downstream, JetClassifier
from jetssl_cli.objectives.supervised import SupervisedConfig
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
    objective: TaskConfig = SupervisedConfig()
    """The task."""

    @model_validator(mode="after")
    def _mixture_of_cwola(self) -> FinetuneConfig:
        if (self.objective.name == "cwola") != (self.data.mixture is not None):
            raise ValueError(
                "the task cwola, and no other, needs data.mixture (--signal and --num-signal)"
            )
        return self


def load_config(
    backbone: Path,
    options: Layer,
    *,
    task: str | None = None,
    config: Path | None = None,
    overrides: Sequence[str] = (),
) -> FinetuneConfig:
    """Lay the preset, what the backbone fixes, the user's file, options and overrides in order.

    The preset is that of the task, which is that of the user's file or classification if not given.

    Raises:
        ConfigError: no such task, or a setting that is not valid.
        RunError: ``backbone`` is not a pretraining run.
    """
    source = checkpoint.read_config(backbone, PretrainConfig)
    inherited = {
        "encoder": source.encoder.model_dump(mode="json", exclude={"attention"}),
        "data": {
            "batch_size": source.data.batch_size,
            "max_constituents": source.data.max_constituents,
        },
    }
    task = task or _task_of(config)
    layers = [
        Layer.read(shipped_file("configs/finetune", task, "task")),
        Layer(str(backbone / checkpoint.CONFIG), inherited),
    ]
    layers += [Layer.read(config)] if config else []
    return load(FinetuneConfig, budget.latest([*layers, options], overrides))


def finetune(cfg: FinetuneConfig) -> Path:
    """Finetune, and return the folder of the run.

    Raises:
        ConfigError: the devices are not there, or cannot share a batch evenly.
        DataError: the data cannot be read, or lack the truth or the classes that the task needs.
        RunError: the data do not fit the backbone, the folder holds a run already, or the
            training had to stop.
    """
    check(cfg)
    schema = read_schema(cfg.data)
    expected = checkpoint.read_schema(cfg.backbone)
    checkpoint.match(schema, expected, str(cfg.data.train[0]), cfg.backbone)
    if cfg.data.mixture is not None:
        jets = JetStream(cfg.data.train, batch_size=1, num_jets=cfg.data.num_jets)
        data = cfg.data.model_copy(update={"mixture": cfg.data.mixture.of(jets)})
        cfg = cfg.model_copy(update={"data": data})
        schema = schema.model_copy(update={"classes": SAMPLES})
    torch.manual_seed(cfg.train.seed)
    encoder = load_backbone(cfg.backbone, cfg.encoder, schema, trained=not cfg.random)
    objective = cfg.objective.build(encoder, len(schema.classes))
    return run(cfg, objective, schema, {checkpoint.MODEL: objective})


def load_finetuned(run: Path) -> tuple[FinetuneConfig, Schema, Downstream]:
    """The network of a finetuning run, ready to predict.

    Raises:
        RunError: not a finetuning run, or one without weights.
    """
    cfg = checkpoint.read_config(run, FinetuneConfig)
    schema = checkpoint.read_schema(run)
    anywhere = cfg.encoder.model_copy(update={"attention": "auto"})
    encoder = build_encoder(anywhere, Scaling.unfitted(schema), schema)
    network = cfg.objective.build(encoder, len(schema.classes))
    checkpoint.restore(run / checkpoint.MODEL, network)
    return cfg, schema, network.eval()


def load_classifier(run: Path) -> tuple[FinetuneConfig, Schema, JetClassifier]:
    """The classifier of jets of a finetuning run, ready to predict.

    Raises:
        RunError: not a finetuning run, one without weights, or one of another task.
    """
    cfg, schema, network = load_finetuned(run)
    if not isinstance(network, JetClassifier):
        raise RunError(f"{run}: was trained for {cfg.objective.name}, not to classify jets")
    return cfg, schema, network


def _task_of(config: Path | None) -> str:
    """The task of a user's file; classification where it names none."""
    objective = read_yaml(config).get("objective") if config else None
    name = objective.get("name", "supervised") if isinstance(objective, dict) else "supervised"
    return "classify" if name == "supervised" else str(name)
