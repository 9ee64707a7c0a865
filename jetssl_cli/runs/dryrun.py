"""A run without its end: ``--dry-run`` of ``jetssl pretrain`` and ``jetssl finetune``.

All is made that a run makes before its first step, by the same code, and nothing is written. Then
the network makes a few steps and validates a batch on this machine; time and memory of the whole
run are estimates from these.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from pydantic import NonNegativeInt, PositiveInt
from torch import nn

from jetssl_cli.config import Strict
from jetssl_cli.data.workers import peak_memory
from jetssl_cli.errors import RunError, enough_memory
from jetssl_cli.objectives.objective import Objective
from jetssl_cli.runs import checkpoint, processes
from jetssl_cli.runs.finetune_config import FinetuneConfig
from jetssl_cli.runs.prepared import Prepared
from jetssl_cli.runs.pretrain import PretrainConfig
from jetssl_cli.runs.processes import Place
from jetssl_cli.runs.snapshot import Snapshots
from jetssl_cli.runs.training import advice, check
from jetssl_cli.runs.trial import Flops, Trial, prepare


class Part(Strict):
    """One part of what is trained."""

    name: str
    parameters: NonNegativeInt
    trained: NonNegativeInt
    """Those that have gradients; a teacher has none, and follows."""


class DryRun(Strict):
    """What a run would be; times and memory are estimates from a few steps on this machine."""

    config: dict[str, Any]
    """The resolved configuration, as the run would write it."""
    device: str
    arithmetic: str
    parts: tuple[Part, ...]
    flops_per_jet: Flops
    train_jets: PositiveInt
    """Jets of an epoch."""
    val_jets: PositiveInt
    jets_per_step: PositiveInt
    """In all processes together."""
    steps: NonNegativeInt
    """Optimizer steps of the whole run; an estimate where time ends it."""
    steps_done: NonNegativeInt
    """Those of a run that goes on."""
    jets: NonNegativeInt
    epochs: float
    seconds_per_step: float
    """Reading included."""
    seconds_per_validation: float
    seconds: float
    """Of the steps that are left, with their validations, if nothing ends the run before."""
    memory: NonNegativeInt
    """Bytes."""
    memory_of: str
    """What these bytes are."""


def dry_run(cfg: PretrainConfig | FinetuneConfig) -> DryRun:
    """Make all of a run but the run; of several processes this one measures its own share.

    Raises:
        ConfigError: the devices are not there, or settings contradict each other.
        DataError: the data cannot be read, or lack what the run needs.
        OutOfMemoryError: the memory does not suffice; says which settings need less.
        RunError: the folder holds a run already, or the first loss is not finite.
    """
    check(cfg)
    if cfg.resume and checkpoint.is_complete(cfg.out):
        raise RunError(f"{cfg.out}: the run has come to its end; nothing is left to do")
    with enough_memory(advice(cfg)):
        return _report(prepare(cfg), processes.find(cfg.train))


def parts_of(objective: Objective, probe: nn.Module | None) -> tuple[Part, ...]:
    """The parameters of an objective by its parts, and of the probe beside it."""
    modules = dict(objective.named_children())
    if probe is not None:
        modules["probe"] = probe
    groups = {name: list(module.parameters()) for name, module in modules.items()}
    groups["other"] = list(objective.parameters(recurse=False))
    return tuple(
        Part(
            name=name,
            parameters=sum(p.numel() for p in group),
            trained=sum(p.numel() for p in group if p.requires_grad),
        )
        for name, group in groups.items()
        if group
    )


def _report(prepared: Prepared, place: Place) -> DryRun:
    cfg = prepared.cfg
    reader, val_reader = prepared.readers(place)
    budget = prepared.budget(place, reader)
    trial = Trial(prepared)
    parts = parts_of(prepared.objective, trial.probe)
    read = cfg.data.model_copy(update={"workers": 0}).endless(reader, cfg.train.seed)
    flops, seconds_per_step = trial.steps(iter(read), reader)
    per_validation = trial.validation(next(iter(val_reader))) * val_reader.num_jets
    memory, memory_of = _memory(trial.device)
    start = Snapshots(cfg.out, cfg.checkpoint).latest() if cfg.resume else None
    done = int(start.facts["steps"]) if start else 0
    every = cfg.train.val_every
    steps = budget.last_step
    if steps is None:
        left = budget.total - (float(start.facts["seconds"]) if start else 0.0)
        steps = done + math.ceil(left / (seconds_per_step + per_validation / every))
    validations = math.ceil(steps / every) - done // every
    return DryRun(
        config=cfg.model_dump(mode="json"),
        device=_name(trial.device),
        arithmetic=cfg.train.arithmetic,
        parts=parts,
        flops_per_jet=flops,
        train_jets=reader.num_jets,
        val_jets=val_reader.num_jets,
        jets_per_step=budget.jets_per_step,
        steps=steps,
        steps_done=done,
        jets=steps * budget.jets_per_step,
        epochs=steps * budget.jets_per_step / reader.num_jets,
        seconds_per_step=seconds_per_step,
        seconds_per_validation=per_validation,
        seconds=(steps - done) * seconds_per_step + validations * per_validation,
        memory=memory,
        memory_of=memory_of,
    )


def _memory(device: torch.device) -> tuple[int, str]:
    if device.type == "cuda":
        return torch.cuda.max_memory_reserved(), "peak that PyTorch reserved on the GPU"
    return peak_memory(), "peak resident size of this process, Python and libraries included"


def _name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name()
    return f"CPU, {torch.get_num_threads()} threads"
