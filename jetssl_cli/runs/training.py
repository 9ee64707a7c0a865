"""What pretraining and finetuning share: one run, from its config to its folder.

Lightning takes seconds to import, so it is imported when a training begins: a wrong setting is
told at once, and an export does without it.
"""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from jetssl_cli.batch import JetBatch
from jetssl_cli.data.facts import keep_known
from jetssl_cli.data.jagged import JaggedFile
from jetssl_cli.data.reader import JetReader
from jetssl_cli.data.sample import Sample
from jetssl_cli.data.state import require_same_files
from jetssl_cli.encoder.blocks import compile_parts
from jetssl_cli.errors import RunError, enough_memory
from jetssl_cli.progress import progress
from jetssl_cli.runs import checkpoint, processes, weightfile
from jetssl_cli.runs.diverged import Divergence
from jetssl_cli.runs.launch import together
from jetssl_cli.runs.loaders import reading
from jetssl_cli.runs.lock import locked
from jetssl_cli.runs.prepared import Prepared, Readers, note_single_class
from jetssl_cli.runs.processes import Hosts, Place
from jetssl_cli.runs.run_config import RunConfig
from jetssl_cli.runs.signals import listening
from jetssl_cli.runs.snapshot import Snapshot, Snapshots
from jetssl_cli.runs.tracking import rewind, track

if TYPE_CHECKING:
    import lightning

    from jetssl_cli.runs.keeper import Keeper
    from jetssl_cli.runs.module import JetModule


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

    cfg, seed = prepared.cfg, prepared.cfg.train.seed
    place = processes.find(cfg.train)
    readers = reader, val_reader = prepared.readers(place)
    hosts = Hosts(place.ranks)
    budget = prepared.budget(place, reader, hosts.first)
    with JaggedFile(reader.files[0]) as file:
        recipe = file.recipe.name
    with ExitStack() as stack:
        if place.first:
            stack.enter_context(_begun(prepared))
        snapshots = Snapshots(cfg.out, cfg.checkpoint)
        start = _start(prepared, place, snapshots, val_reader) if cfg.resume else None
        folder = cfg.out if place.first else None
        tracker = stack.enter_context(track(folder, enabled=cfg.tracking))
        asked = stack.enter_context(listening())
        parts, rank = cfg.train.accumulate, place.rank
        module = JetModule(
            prepared.objective,
            num_classes=len(prepared.schema.classes),
            optim=cfg.optim,
            train=cfg.train,
            budget=budget,
            tracker=tracker,
            divergence=Divergence(cfg.out, readers, seed=seed, parts=parts, rank=rank, hosts=hosts),
            pace=cfg.pace,
            keep=prepared.weights if cfg.train.keep == "best" else None,
            agree=hosts.first,
        )
        backbone = prepared.backbone
        keeper = Keeper(
            snapshots, readers, seed, asked=asked, hosts=hosts, backbone=backbone, start=start
        )
        if cfg.train.compile:
            compile_parts(prepared.objective)
        lost = enough_memory(advice(cfg))  # told before the others are waited for
        with together(cfg, place, lambda: tracker.finish("FAILED")), lost:
            begin = None if start is None else start.reader
            batches = cfg.data.endless(reader, seed, begin), cfg.data.once(val_reader)
            _fit(module, keeper, place, cfg, batches)
        if place.first:
            if cfg.train.keep == "best":
                tracker.metrics({"best/loss": module.best.loss}, module.best.step)
            _save(prepared, readers, recipe, module.best.weights)
            snapshots.clear()
    return cfg.out


@contextmanager
def _begun(prepared: Prepared) -> Iterator[None]:
    """Lock the folder of the run, which begins there or goes on."""
    cfg = prepared.cfg
    keep_known([*cfg.data.train, *cfg.data.val])
    if prepared.reads_classes:
        note_single_class(Sample(cfg.data.val, num_jets=cfg.data.num_val_jets))
    with locked(cfg.out):
        if not (cfg.resume and checkpoint.is_begun(cfg.out)):
            checkpoint.begin(cfg.out, cfg.model_copy(update={"resume": False}), prepared.schema)
        checkpoint.read_schema(cfg.out)  # whole, where a run goes on
        yield


def _start(
    prepared: Prepared, place: Place, snapshots: Snapshots, val: JetReader
) -> Snapshot | None:
    """Where a run goes on, if it has come anywhere; what it has measured later is forgotten."""
    start = snapshots.latest()
    if start is not None:
        require_same_files(val.files, val.origin.files, start.facts["val"])
        start.require_backbone(prepared.backbone, snapshots.folder)
    if place.first:
        steps = start.facts["steps"] if start else 0
        every = prepared.cfg.train.val_every
        rewind(prepared.cfg.out, steps, validated=steps % every != 0)
    return start


def _save(
    prepared: Prepared, readers: Readers, recipe: str, best: Mapping[str, Mapping[str, Tensor]]
) -> None:
    """Save the best weights where those were kept, else the last ones; the model behind all."""
    out, weights = prepared.cfg.out, prepared.weights
    about = checkpoint.facts_of(out, prepared.schema, recipe) | {
        "train": readers[0].origin.files,
        "val": readers[1].origin.files,
        **({} if prepared.backbone is None else {"backbone": prepared.backbone}),
    }
    for name in sorted(weights, key=lambda name: name == checkpoint.MODEL):
        weightfile.save(out / name, best.get(name) or weights[name], about)


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
