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
from typing import TYPE_CHECKING, Annotated, Literal

import torch
from pydantic import BeforeValidator, Field, PositiveInt
from torch import nn
from torch.utils.data import DataLoader

from jetssl_cli.batch import JetBatch
from jetssl_cli.config import Strict, to_yaml
from jetssl_cli.data.recipe import Schema
from jetssl_cli.data.stream import JetReader, look
from jetssl_cli.encoder.attention import has_fast_bf16
from jetssl_cli.encoder.transformer import compile_parts
from jetssl_cli.errors import RunError
from jetssl_cli.objectives.objective import Objective
from jetssl_cli.progress import progress
from jetssl_cli.runs import checkpoint, processes
from jetssl_cli.runs.budget import Budget, BudgetConfig
from jetssl_cli.runs.launch import together
from jetssl_cli.runs.loaders import DataConfig
from jetssl_cli.runs.optim import OptimConfig
from jetssl_cli.runs.processes import DeviceConfig, Place
from jetssl_cli.runs.tracking import track

if TYPE_CHECKING:
    import lightning

    from jetssl_cli.runs.module import JetModule


def _word(value: object) -> object:
    return str(value) if value == 32 else value


class TrainConfig(BudgetConfig, DeviceConfig):
    """Settings of the training loop."""

    val_every: PositiveInt = 1000
    """Steps between validations."""
    log_every: PositiveInt = 10
    """Steps between two records of the training loss."""
    probe_every: PositiveInt = 50
    """Steps between two steps of the probe (pretraining only)."""
    precision: Annotated[Literal["auto", "32", "bf16-mixed"], BeforeValidator(_word)] = "auto"
    """Arithmetic; auto is bf16-mixed on GPUs since Ampere and on CPUs with bf16 instructions, 32
    elsewhere."""
    compile: bool = False
    """Compile the blocks of the network with torch.compile: a minute or more at the start, then
    faster steps. Needs a C++ compiler on a CPU."""
    seed: int = Field(default=0, ge=0, lt=2**63)
    """Seed of the weights, the order of the data and all randomness of the method; process number
    r of several draws masks, noise and dropout from seed + r."""


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


def check(cfg: RunConfig) -> None:
    """Check what can be checked before anything is read.

    Raises:
        ConfigError: the devices are not there, or cannot share a batch evenly.
        RunError: the folder holds a run already.
    """
    place = processes.find(cfg.train)
    place.jets_at_a_time(cfg.data.batch_size, cfg.train.accumulate)
    if place.first:
        checkpoint.require_free(cfg.out)


def run(
    cfg: RunConfig, objective: Objective, schema: Schema, weights: Mapping[str, nn.Module]
) -> Path:
    """Train an objective in a new run folder, and save ``weights`` (file name -> module) there.

    Of several processes the first one writes.

    Raises:
        ConfigError: the objective needs a package that is not installed.
        DataError: the data cannot be read.
        RunError: the folder holds a run already, the loss became non-finite, or another process
            failed.
        KeyboardInterrupt: the user interrupted the training.
    """
    from jetssl_cli.runs.module import JetModule

    place = processes.find(cfg.train)
    radius, truth, accumulate = objective.subjet_radius, objective.truth, cfg.train.accumulate
    size = place.jets_at_a_time(cfg.data.batch_size, accumulate)
    reader = cfg.data.train_reader(
        radius, truth=truth, batch_size=size, rank=place.rank, ranks=place.ranks
    )
    val_reader = cfg.data.val_stream(radius, truth)
    jets_per_step = min(size, reader.num_jets // place.ranks) * place.ranks * accumulate
    if place.first:
        checkpoint.begin(cfg.out, cfg, schema)
    folder = cfg.out if place.first else None
    with track(cfg.out.name, folder, enabled=cfg.tracking and place.first) as tracker:
        tracker.params(checkpoint.plain(cfg))
        tracker.text(checkpoint.CONFIG, to_yaml(cfg))
        module = JetModule(
            objective,
            num_classes=len(schema.classes),
            optim=cfg.optim,
            train=cfg.train,
            budget=Budget(
                cfg.train, jets_per_step, agree=processes.agreement() if place.ranks > 1 else float
            ),
            tracker=tracker,
        )
        if cfg.train.compile:
            compile_parts(objective)
        with together(cfg, place, lambda: tracker.finish("FAILED")):
            _fit(module, place, cfg, (reader, val_reader))
        if place.first:
            for name, trained in weights.items():
                checkpoint.save(cfg.out / name, trained)
    return cfg.out


def _fit(
    module: JetModule, place: Place, cfg: RunConfig, readers: tuple[JetReader, JetReader]
) -> None:
    import lightning

    train, data, budget = cfg.train, cfg.data, module.budget
    precision = train.precision
    if precision == "auto":
        precision = "bf16-mixed" if has_fast_bf16() else "32"
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="lightning")  # advice about workers and loggers
        for name in ("lightning", "lightning.pytorch", "lightning.fabric"):
            logging.getLogger(name).setLevel(logging.ERROR)
        trainer = lightning.Trainer(
            max_epochs=-1,  # the budget ends the run
            accelerator="cuda" if torch.cuda.is_available() else "cpu",
            devices=place.devices,
            num_nodes=place.nodes,
            strategy=processes.strategy(place),
            plugins=processes.cluster(place) if place.ranks == 1 else None,
            accumulate_grad_batches=train.accumulate,
            precision=precision,
            val_check_interval=train.val_every * train.accumulate,
            check_val_every_n_epoch=None,
            num_sanity_val_steps=0,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            use_distributed_sampler=False,
        )
        processes.let_run_ahead(trainer)
        batches, val = data.endless(readers[0], train.seed), data.once(readers[1])
        label = f"{cfg.command} {cfg.out.name}"
        with progress(label, budget.total, budget.unit) as module.advance:
            _train(trainer, module, batches, val)
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
