"""Writes down where a training stands, and takes it up again from there.

A snapshot holds what the next step depends on: weights, teacher, probe, optimizer, the generators
of random numbers of every process, the steps and seconds of the budget, the place of the reader.
It is made after an optimizer step, before the validation that may follow.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning
import torch
from torch import Tensor

from jetssl_cli import __version__
from jetssl_cli.data.reader import JetReader
from jetssl_cli.errors import RunError
from jetssl_cli.progress import warn
from jetssl_cli.runs import signals
from jetssl_cli.runs.module import JetModule
from jetssl_cli.runs.processes import Hosts
from jetssl_cli.runs.signals import Asked, Stopped
from jetssl_cli.runs.snapshot import Snapshot, Snapshots

MODULE, OPTIMIZER, BEST = "module.", "optimizer.", "best."
GLOBAL, OWN, CUDA = "random.global", "random.own", "random.cuda"
"""Generators: torch's own, that of the method, and that of the GPU; one row for each process."""


class Keeper(lightning.Callback):
    """Keeps the snapshots of one training."""

    def __init__(
        self,
        snapshots: Snapshots,
        readers: tuple[JetReader, JetReader],
        seed: int,
        *,
        asked: Asked,
        hosts: Hosts,
        backbone: str | None,
        start: Snapshot | None,
    ) -> None:
        """Begin where ``start`` was, or at the beginning.

        Args:
            snapshots: where they are written, by the first process.
            readers: of the training jets, and of the validation jets.
            seed: of the reader.
            asked: whether the user, or the batch system, has asked to stop.
            hosts: the other processes.
            backbone: hash of what the backbone gives, if there is one.
            start: where the training goes on.
        """
        self._snapshots, self._readers, self._seed = snapshots, readers, seed
        self._asked, self._hosts, self._start = asked, hosts, start
        self._backbone = backbone

    def on_train_start(  # type: ignore[override]
        self, trainer: lightning.Trainer, module: JetModule
    ) -> None:
        """Put a new module and its optimizer where the training was.

        Raises:
            RunError: the snapshot is one of another network, of other processes, or not that which
                the first process has found.
        """
        del trainer
        start, self._start = self._start, None
        found = start.facts["steps"] if start else 0
        if found != (first := round(self._hosts.first(float(found)))):
            raise RunError(
                f"{self._snapshots.folder}: process {module.global_rank} sees step {found} as the "
                f"last, the first one {first}; do they share this folder?"
            )
        if start is None:
            return
        facts, folder = start.facts, self._snapshots.folder
        arithmetic = module.train_cfg.arithmetic
        if facts.get("arithmetic") not in (None, arithmetic) and not module.global_rank:
            warn(f"{folder}: goes on in {arithmetic}; it was in {facts['arithmetic']}")
        _restore(module, start, folder)
        self._snapshots.count_from(facts["steps"])
        module.budget.steps, module.budget.seconds = facts["steps"], facts["seconds"]
        module.latest = dict(facts["latest"])
        best = module.best
        best.loss, best.step, best.since = facts["best"]
        for name in best.kept:
            best.weights[name] = _under(f"{BEST}{name}.", start.tensors)
        _validated_every(module, facts["steps"])
        module.validation_due = facts["steps"] % module.train_cfg.val_every == 0

    def on_train_batch_end(  # type: ignore[override]
        self,
        trainer: lightning.Trainer,
        module: JetModule,
        outputs: object,
        batch: object,
        batch_idx: int,
    ) -> None:
        """After a step, write a snapshot where one is due, or where the run was asked to stop.

        Raises:
            Stopped: it was asked to.
        """
        del trainer, outputs, batch
        if (batch_idx + 1) % module.train_cfg.accumulate:
            return
        steps = module.budget.steps
        due = float(not module.global_rank and self._snapshots.due(steps))  # the first one writes
        due, number = self._hosts.most([due, float(self._asked.number)])
        if (due or number) and not module.budget.finished:
            self._write(module)
        if number and not module.budget.finished:
            self._stop(module, int(number))

    def on_validation_batch_start(  # type: ignore[override]
        self, trainer: lightning.Trainer, module: JetModule, *batch: object
    ) -> None:
        """Stop, if the run of this only process was asked to."""
        del trainer, batch
        if self._asked.number and self._hosts.alone and not module.budget.finished:
            self._write(module)
            self._stop(module, self._asked.number)

    def _write(self, module: JetModule) -> None:
        """Write a snapshot; what goes wrong costs a warning, since older ones are there."""
        module.divergence.stop()
        found = Snapshot(self._tensors(module), self._facts(module))
        if module.global_rank:
            return
        try:
            self._snapshots.write(found)
        except RunError as err:
            warn(f"no snapshot after step {module.budget.steps}: {err}")

    def _stop(self, module: JetModule, number: int) -> None:
        """End the run, after its snapshot.

        Raises:
            Stopped: always.
        """
        run, steps = self._snapshots.folder.parent, module.budget.steps
        if number == signals.REQUEUE and self._snapshots.cfg.requeue and not module.global_rank:
            signals.requeue()
        self._hosts.most([0.0])  # all wait until the first one has written
        raise Stopped(f"{run}: stopped after step {steps}; --resume {run} goes on", number)

    def _facts(self, module: JetModule) -> dict[str, Any]:
        budget = module.budget
        batches = budget.steps * module.train_cfg.accumulate
        return {
            "code": __version__,
            "steps": budget.steps,
            "seconds": budget.seconds,
            "arithmetic": module.train_cfg.arithmetic,
            "backbone": self._backbone,
            "reader": self._readers[0].origin.state_after(self._seed, batches).to_dict(),
            "val": self._readers[1].origin.files,
            "latest": module.latest,
            "best": [module.best.loss, module.best.step, module.best.since],
        }

    def _tensors(self, module: JetModule) -> dict[str, Tensor]:
        found = {f"{MODULE}{name}": value for name, value in module.state_dict().items()}
        optimizer = module.trainer.optimizers[0]
        for name, parameter in module.named_parameters():
            for key, value in optimizer.state.get(parameter, {}).items():
                found[f"{OPTIMIZER}{key}.{name}"] = value
        for file, weights in module.best.weights.items():
            found |= {f"{BEST}{file}.{name}": value for name, value in weights.items()}
        generators = {GLOBAL: torch.get_rng_state(), OWN: module.rng.get_state()}
        if module.device.type == "cuda":
            generators[CUDA] = torch.cuda.get_rng_state(module.device)
        return found | {
            name: torch.stack(self._hosts.all(state)) for name, state in generators.items()
        }


def _restore(module: JetModule, start: Snapshot, folder: Path) -> None:
    tensors, rank = dict(start.tensors), module.global_rank
    weights = _under(MODULE, tensors)
    try:
        module.load_state_dict(weights)
    except RuntimeError as err:
        raise RunError(
            f"{folder}: of another network: {str(err).splitlines()[-1].strip()}"
        ) from None
    optimizer = module.trainer.optimizers[0]
    state = _under(OPTIMIZER, tensors)
    for name, parameter in module.named_parameters():
        keys = [key for key in ("step", "exp_avg", "exp_avg_sq") if f"{key}.{name}" in state]
        for key in keys:
            value = state[f"{key}.{name}"]
            on_host = key == "step" and parameter.device.type == "cpu"
            optimizer.state[parameter][key] = value if on_host else value.to(parameter.device)
    if len(tensors[GLOBAL]) <= rank:
        raise RunError(f"{folder}: of a run of {len(tensors[GLOBAL])} processes")
    if len(tensors[OWN][rank]) != len(module.rng.get_state()):
        kind = module.device.type
        raise RunError(f"{folder}: its run was on another kind of device than {kind}")
    torch.set_rng_state(tensors[GLOBAL][rank].clone())
    module.rng.set_state(tensors[OWN][rank].clone())
    if CUDA in tensors and module.device.type == "cuda":
        torch.cuda.set_rng_state(tensors[CUDA][rank].clone(), module.device)


def _under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): value for k, value in tensors.items() if k.startswith(prefix)}


def _validated_every(module: JetModule, steps: int) -> None:
    """Let Lightning count the batches on, by which it finds the steps to validate after."""
    total = module.trainer.fit_loop.epoch_loop.batch_progress.total
    batches = steps * module.train_cfg.accumulate
    total.load_state_dict(dict.fromkeys(total.state_dict(), batches))
