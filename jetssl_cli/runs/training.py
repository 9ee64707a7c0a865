"""What pretraining and finetuning share: one run, from its config to its folder.

Lightning takes seconds to import, so it is imported when a training begins: a wrong setting is
told at once, and an export does without it.
"""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.utils.data import DataLoader

from jetssl_cli.batch import JetBatch
from jetssl_cli.data.facts import keep_known
from jetssl_cli.data.jagged import JaggedFile
from jetssl_cli.data.reader import JetReader
from jetssl_cli.data.sample import Sample, look
from jetssl_cli.data.schema import Schema
from jetssl_cli.data.state import require_same_files
from jetssl_cli.encoder.blocks import compile_parts
from jetssl_cli.errors import ConfigError, RunError, enough_memory
from jetssl_cli.objectives.objective import Objective
from jetssl_cli.progress import note, progress
from jetssl_cli.runs import checkpoint, processes, weightfile
from jetssl_cli.runs.budget import Budget
from jetssl_cli.runs.diverged import Divergence
from jetssl_cli.runs.launch import together
from jetssl_cli.runs.loaders import DataConfig, reading
from jetssl_cli.runs.lock import locked
from jetssl_cli.runs.processes import Hosts, Place
from jetssl_cli.runs.run_config import RunConfig
from jetssl_cli.runs.signals import listening
from jetssl_cli.runs.snapshot import Snapshots
from jetssl_cli.runs.tracking import rewind, track

if TYPE_CHECKING:
    import lightning

    from jetssl_cli.runs.keeper import Keeper
    from jetssl_cli.runs.module import JetModule


def read_schema(data: DataConfig) -> Schema:
    """What the columns of the data mean.

    Raises:
        DataError: a file cannot be read, or files do not fit together.
    """
    schema, _ = look([*data.train, *data.val], apart=False)
    return schema


def note_single_class(sample: Sample) -> None:
    """Tell the user if the first jets of the files, which have more, are all of one class.

    So it is where files that hold one class each have not been merged.

    Raises:
        DataError: a file cannot be read.
    """
    if sample.is_all or len(sample.schema.classes) == 1:
        return
    if (name := sample.only_class()) is not None:
        note(
            f"{sample.name}: the first {sample.num_jets:,} jets, which alone are used here, are "
            f"all {name}; jetssl merge mixes the classes"
        )


def check(cfg: RunConfig) -> None:
    """Check what can be checked before anything is read.

    Raises:
        ConfigError: the devices are not there, or cannot share a batch evenly.
        RunError: the folder holds a run already.
    """
    place = processes.find(cfg.train)
    place.jets_at_a_time(cfg.data.batch_size, cfg.train.accumulate)
    if place.first and not cfg.resume:
        checkpoint.require_free(cfg.out)


Readers = tuple[JetReader, JetReader]
"""Of the training jets, and of the validation jets."""


@dataclass(frozen=True)
class Prepared:
    """A run before its first step; nothing of it is written."""

    cfg: RunConfig
    schema: Schema
    """What the columns of its data mean."""
    objective: Objective
    """What is trained."""
    weights: Mapping[str, nn.Module]
    """What is saved in the end: file name -> module."""
    through: Callable[[Readers], Readers] | None = None
    """The readers go through this function, if there is one."""
    backbone: str | None = None
    """Hash of what its backbone gives, if it has one."""

    @property
    def reads_classes(self) -> bool:
        """The classes of the data matter: for a probe, or a classifier of them."""
        mixed = self.cfg.data.mixture is not None
        return (self.objective.classifies and not mixed) or not self.objective.downstream

    def readers(self, place: Place) -> Readers:
        """The jets of one process.

        Raises:
            DataError: the data cannot be read, or lack what the objective needs.
        """
        data, train, objective = self.cfg.data, self.cfg.train, self.objective
        reader = data.train_reader(
            objective.subjet_radius,
            truth=objective.truth,
            batch_size=place.jets_at_a_time(data.batch_size, train.accumulate),
            seed=train.seed,
            rank=place.rank,
            ranks=place.ranks,
        )
        readers = reader, data.val_stream(objective.subjet_radius, objective.truth)
        return readers if self.through is None else self.through(readers)

    def budget(
        self, place: Place, reader: JetReader, agree: Callable[[float], float] = float
    ) -> Budget:
        """How long the run goes on; ``agree`` as in ``Budget``.

        Raises:
            ConfigError: the backbone is to be trained from a step on that does not come.
        """
        parts = self.cfg.train.accumulate
        size = place.jets_at_a_time(self.cfg.data.batch_size, parts)
        jets = min(size, reader.num_jets // place.ranks) * place.ranks * parts
        budget = Budget(self.cfg.train, jets, agree=agree)
        late, last = self.cfg.pace.unfreeze_at, budget.last_step
        if last is not None and late >= last:
            raise ConfigError(f"unfreeze_at = {late}: the run ends after step {last}")
        return budget


def run(prepared: Prepared) -> Path:
    """Train in a new run folder, and save the weights there.

    Of several processes the first one writes.

    Raises:
        OutOfMemoryError: the memory does not suffice; says which settings need less.
        ConfigError: the objective needs a package that is not installed, or settings contradict
            the number of jets.
        DataError: the data cannot be read.
        RunError: the folder holds a run already, the loss became non-finite, or another process
            failed.
        Stopped: it was asked to stop by a signal; a snapshot was written.
        KeyboardInterrupt: the user has asked twice.
    """
    with enough_memory(advice(prepared.cfg)):
        return _run(prepared)


def advice(cfg: RunConfig) -> str:
    """What to do where the memory does not suffice."""
    ways = [
        f"train.accumulate={2 * cfg.train.accumulate} (the same batch in smaller parts)",
        "encoder.recompute=true",
        f"a data.batch_size below {cfg.data.batch_size}",
    ]
    ways += ["data.in_memory=false"] * cfg.data.in_memory
    ways += ["fewer data.workers"] * (cfg.data.workers > 0)
    return f"{', '.join(ways)} need less"


def _run(prepared: Prepared) -> Path:
    from jetssl_cli.runs.keeper import Keeper
    from jetssl_cli.runs.module import JetModule

    cfg, schema, weights = prepared.cfg, prepared.schema, prepared.weights
    place = processes.find(cfg.train)
    readers = reader, val_reader = prepared.readers(place)
    hosts = Hosts(place.ranks)
    budget = prepared.budget(place, reader, hosts.first)
    with JaggedFile(reader.files[0]) as file:
        recipe = file.recipe.name
    with ExitStack() as stack:
        if place.first:
            keep_known([*cfg.data.train, *cfg.data.val])
            if prepared.reads_classes:
                note_single_class(Sample(cfg.data.val, num_jets=cfg.data.num_val_jets))
            stack.enter_context(locked(cfg.out))
            if not (cfg.resume and checkpoint.is_begun(cfg.out)):
                checkpoint.begin(cfg.out, cfg.model_copy(update={"resume": False}), schema)
            checkpoint.read_schema(cfg.out)  # whole, where a run goes on
        snapshots = Snapshots(cfg.out, cfg.checkpoint)
        start = snapshots.latest() if cfg.resume else None
        if start is not None:
            require_same_files(val_reader.files, val_reader.origin.files, start.facts["val"])
            start.require_backbone(prepared.backbone, snapshots.folder)
        folder = cfg.out if place.first else None
        if place.first and cfg.resume:
            steps = start.facts["steps"] if start else 0
            rewind(cfg.out, steps, validated=steps % cfg.train.val_every != 0)
        tracker = stack.enter_context(track(folder, enabled=cfg.tracking))
        asked = stack.enter_context(listening())
        module = JetModule(
            prepared.objective,
            num_classes=len(schema.classes),
            optim=cfg.optim,
            train=cfg.train,
            budget=budget,
            tracker=tracker,
            divergence=Divergence(
                cfg.out,
                readers,
                seed=cfg.train.seed,
                parts=cfg.train.accumulate,
                rank=place.rank,
                hosts=hosts,
            ),
            pace=cfg.pace,
            keep=weights if cfg.train.keep == "best" else None,
            agree=hosts.first,
        )
        keeper = Keeper(
            snapshots,
            readers,
            cfg.train.seed,
            asked=asked,
            hosts=hosts,
            backbone=prepared.backbone,
            start=start,
        )
        if cfg.train.compile:
            compile_parts(prepared.objective)
        lost = enough_memory(advice(cfg))  # told before the others are waited for
        with together(cfg, place, lambda: tracker.finish("FAILED")), lost:
            begin = None if start is None else start.reader
            batches = cfg.data.endless(reader, cfg.train.seed, begin), cfg.data.once(val_reader)
            _fit(module, keeper, place, cfg, batches)
        if place.first:
            if cfg.train.keep == "best":
                tracker.metrics({"best/loss": module.best.loss}, module.best.step)
            about = checkpoint.facts_of(cfg.out, schema, recipe) | {
                "train": reader.origin.files,
                "val": val_reader.origin.files,
                **({} if prepared.backbone is None else {"backbone": prepared.backbone}),
            }
            for name in sorted(weights, key=lambda name: name == checkpoint.MODEL):
                trained = weights[name]
                weightfile.save(cfg.out / name, module.best.weights.get(name) or trained, about)
            snapshots.clear()
    return cfg.out


def _fit(
    module: JetModule,
    keeper: Keeper,
    place: Place,
    cfg: RunConfig,
    batches: tuple[DataLoader[JetBatch], DataLoader[JetBatch]],
) -> None:
    import lightning

    train, budget = cfg.train, module.budget
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="lightning")  # advice about workers and loggers
        for name in ("lightning", "lightning.pytorch", "lightning.fabric"):
            logging.getLogger(name).setLevel(logging.ERROR)
        trainer = lightning.Trainer(
            max_epochs=-1,  # the budget ends the run
            callbacks=keeper,
            accelerator="cuda" if torch.cuda.is_available() else "cpu",
            devices=place.devices,
            num_nodes=place.nodes,
            strategy=processes.strategy(place),
            plugins=processes.cluster(place) if place.ranks == 1 else None,
            accumulate_grad_batches=train.accumulate,
            precision=train.arithmetic,
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
        label = f"{cfg.command} {cfg.out.name}"
        with progress(label, budget.total, budget.unit) as module.advance:
            _train(trainer, module, *batches)
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
        with reading():
            trainer.fit(module, train, val)
    except SystemExit:
        if trainer.interrupted:
            raise KeyboardInterrupt from None
        raise
