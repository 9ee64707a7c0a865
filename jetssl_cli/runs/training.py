"""What pretraining and finetuning share: one run, from its config to its folder.

Lightning takes seconds to import, so it is imported when a training begins: a wrong setting is
told at once, and an export does without it.
"""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch
from pydantic import Field, PositiveInt
from torch import nn
from torch.utils.data import DataLoader

from jetssl_cli.batch import JetBatch
from jetssl_cli.config import Strict, to_yaml
from jetssl_cli.data.recipe import Schema
from jetssl_cli.data.stream import JetReader, JetStream, look
from jetssl_cli.encoder.attention import has_flash_attention
from jetssl_cli.errors import RunError
from jetssl_cli.objectives.objective import Objective
from jetssl_cli.progress import progress
from jetssl_cli.runs import checkpoint
from jetssl_cli.runs.budget import Budget, BudgetConfig
from jetssl_cli.runs.loaders import DataConfig
from jetssl_cli.runs.optim import OptimConfig
from jetssl_cli.runs.tracking import track

if TYPE_CHECKING:
    import lightning

    from jetssl_cli.runs.module import JetModule


class TrainConfig(BudgetConfig):
    """Settings of the training loop."""

    val_every: PositiveInt = 1000
    """Steps between validations."""
    log_every: PositiveInt = 10
    """Steps between two records of the training loss."""
    probe_every: PositiveInt = 50
    """Steps between two steps of the probe (pretraining only)."""
    precision: Literal["auto", "32", "bf16-mixed"] = "auto"
    """Arithmetic; auto is bf16-mixed on GPUs since Ampere, 32 elsewhere."""
    seed: int = Field(default=0, ge=0, lt=2**63)
    """Seed of the weights, the order of the data and all randomness of the method."""


class RunConfig(Strict):
    """What every training run is defined by."""

    command: str
    """Tells the kinds of runs apart."""
    out: Path
    """Folder of the run."""
    data: DataConfig
    optim: OptimConfig = OptimConfig()
    train: TrainConfig = TrainConfig()
    tracking: bool = True
    """Record the run with MLflow."""


def read_schema(data: DataConfig) -> Schema:
    """What the columns of the data mean.

    Raises:
        DataError: a file cannot be read, or files do not fit together.
    """
    schema, _ = look([*data.train, *data.val])
    return schema


def run(
    cfg: RunConfig, objective: Objective, schema: Schema, weights: Mapping[str, nn.Module]
) -> Path:
    """Train an objective in a new run folder, and save ``weights`` (file name -> module) there.

    Raises:
        ConfigError: the objective needs a package that is not installed.
        DataError: the data cannot be read.
        RunError: the folder holds a run already, or the loss became non-finite.
        KeyboardInterrupt: the user interrupted the training.
    """
    from jetssl_cli.runs.module import JetModule

    radius = objective.subjet_radius
    readers = cfg.data.train_reader(radius), cfg.data.val_stream(radius)
    checkpoint.begin(cfg.out, cfg, schema)
    with track(cfg.out.name, cfg.out, enabled=cfg.tracking) as tracker:
        tracker.params(checkpoint.plain(cfg))
        tracker.text(checkpoint.CONFIG, to_yaml(cfg))
        module = JetModule(
            objective,
            num_classes=len(schema.classes),
            optim=cfg.optim,
            train=cfg.train,
            budget=Budget(cfg.train, min(cfg.data.batch_size, readers[0].num_jets)),
            tracker=tracker,
        )
        _fit(module, cfg.data, readers, f"{cfg.command} {cfg.out.name}")
        for name, trained in weights.items():
            checkpoint.save(cfg.out / name, trained)
    return cfg.out


def _fit(
    module: JetModule, data: DataConfig, readers: tuple[JetReader, JetStream], label: str
) -> None:
    import lightning

    train = module.train_cfg
    train_reader, val_stream = readers
    precision = train.precision
    if precision == "auto":
        precision = "bf16-mixed" if has_flash_attention() else "32"
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="lightning")  # advice about workers and loggers
        for name in ("lightning", "lightning.pytorch", "lightning.fabric"):
            logging.getLogger(name).setLevel(logging.ERROR)
        trainer = lightning.Trainer(
            max_epochs=-1,  # the budget ends the run
            accelerator="cuda" if torch.cuda.is_available() else "cpu",
            devices=1,
            precision=precision,
            val_check_interval=train.val_every,
            check_val_every_n_epoch=None,
            num_sanity_val_steps=0,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            use_distributed_sampler=False,
        )
        batches, budget = data.endless(train_reader, train.seed), module.budget
        with progress(label, budget.total, budget.unit) as module.advance:
            _train(trainer, module, batches, data.once(val_stream))
    if not all(map(math.isfinite, module.latest.values())):
        raise RunError(f"the loss is not finite after step {budget.steps}; nothing was saved")


def _train(
    trainer: lightning.Trainer,
    module: JetModule,
    train: DataLoader[JetBatch],
    val: DataLoader[JetBatch],
) -> None:
    """Fit; an interrupted trainer exits by itself, which is turned back into the interrupt."""
    try:
        trainer.fit(module, train, val)
    except SystemExit:
        if trainer.interrupted:
            raise KeyboardInterrupt from None
        raise
