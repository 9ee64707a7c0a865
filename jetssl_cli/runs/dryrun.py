"""A run without its end: ``--dry-run`` of ``jetssl pretrain`` and ``jetssl finetune``.

All is made that a run makes before its first step, by the same code, and nothing is written. Then
the network makes a few steps and validates a batch on this machine; time and memory of the whole
run are estimates from these.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from functools import partial
from statistics import mean, median
from typing import Any

import torch
from pydantic import NonNegativeInt, PositiveInt
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from jetssl_cli.batch import JetBatch
from jetssl_cli.config import Strict
from jetssl_cli.data.memory import JetsInMemory
from jetssl_cli.data.reader import JetReader
from jetssl_cli.data.stream import JetStream
from jetssl_cli.data.workers import peak_memory
from jetssl_cli.encoder.attention import HALF_PRECISION
from jetssl_cli.encoder.blocks import compile_parts
from jetssl_cli.errors import RunError, enough_memory
from jetssl_cli.objectives.objective import Objective
from jetssl_cli.runs import checkpoint, finetune, pretrain, processes
from jetssl_cli.runs.finetune_config import FinetuneConfig
from jetssl_cli.runs.pretrain import PretrainConfig
from jetssl_cli.runs.probe import Probe
from jetssl_cli.runs.processes import Place
from jetssl_cli.runs.run_config import RunConfig
from jetssl_cli.runs.snapshot import Snapshots
from jetssl_cli.runs.training import Prepared, advice, check

COUNTED_JETS = 200
"""FLOPs are counted on so many jets of the first batch."""
SECONDS, MOST_STEPS = 3.0, 20
"""After one that warms up, steps are timed for so long, but at most so many."""


class Part(Strict):
    """One part of what is trained."""

    name: str
    parameters: NonNegativeInt
    trained: NonNegativeInt
    """Those that have gradients; a teacher has none, and follows."""


class Flops(Strict):
    """Floating-point operations for one jet: those of matrix products, which are nearly all.

    Counted on jets of the data, in the attention of a CPU, where short jets are filled up.
    """

    forward: float
    """Of the loss."""
    step: float
    """Of the loss and its gradients."""


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
        return _report(_prepared(cfg), processes.find(cfg.train))


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


def count_flops(objective: Objective, batch: JetBatch) -> Flops:
    """Count the operations of a loss and of its gradients, which are dropped afterwards."""
    with FlopCounterMode(display=False) as counter:
        loss = _total(objective, batch, torch.Generator(batch.features.device).manual_seed(0))
        forward = counter.get_total_flops()
        loss.backward()  # type: ignore[no-untyped-call]
    objective.zero_grad()
    jets = batch.packing.num_jets
    return Flops(forward=forward / jets, step=counter.get_total_flops() / jets)


def _prepared(cfg: PretrainConfig | FinetuneConfig) -> Prepared:
    if isinstance(cfg, PretrainConfig):
        return pretrain.prepare(cfg, trial=True)
    return finetune.prepare(cfg, trial=True)


def _report(prepared: Prepared, place: Place) -> DryRun:
    cfg = prepared.cfg
    reader, val_reader = prepared.readers(place)
    budget = prepared.budget(place, reader)
    trial = _Trial(prepared)
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


class _Trial:
    """The steps of a run, without what records and keeps them."""

    def __init__(self, prepared: Prepared) -> None:
        cfg, objective = prepared.cfg, prepared.objective
        self.cfg, self.objective = cfg, objective
        width, classes = objective.exported().width, len(prepared.schema.classes)
        self.probe = None if objective.downstream else Probe(width, classes)
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._rng = torch.Generator(self.device).manual_seed(cfg.train.seed)

    def steps(self, batches: Iterator[JetBatch], reader: JetReader) -> tuple[Flops, float]:
        """FLOPs per jet, and seconds of a step with what reading adds to it."""
        accumulate = self.cfg.train.accumulate
        waits: list[float] = []
        times: list[float] = []

        def read() -> JetBatch:
            start = time.perf_counter()
            batch = next(batches)
            waits.append(time.perf_counter() - start)
            return batch

        first = read()
        flops = count_flops(_countable(self.cfg, self.objective), first.first(COUNTED_JETS))
        step = self._stepper()
        step([first, *(read() for _ in range(accumulate - 1))])  # warms up
        while not times or (sum(times) < SECONDS and len(times) < MOST_STEPS):
            parts = [read() for _ in range(accumulate)]
            times.append(self._seconds(partial(step, parts)))
        reading = _reading(reader, waits) * accumulate
        if workers := self.cfg.data.workers:
            return flops, max(median(times), reading / workers)  # they read beside the training
        return flops, median(times) + reading

    def validation(self, batch: JetBatch) -> float:
        """Seconds that a jet takes in a validation."""
        self.objective.eval()

        def validate() -> None:
            on_device = batch.to(self.device)
            with torch.inference_mode(), self._autocast():
                if self.objective.classifies:
                    logits = self.objective.logits(on_device)
                    self.objective.loss_of(logits, on_device.labels)
                else:
                    self.objective.loss(on_device, self._rng)
                if self.probe is not None:
                    self.probe(self.objective.exported()(on_device))

        validate()  # warms up
        return self._seconds(validate) / batch.packing.num_jets

    def _stepper(self) -> Callable[[list[JetBatch]], None]:
        """A function that makes an optimizer step on the parts of a batch, as the loop does."""
        cfg, objective = self.cfg, self.objective
        trained = nn.ModuleList([objective] if self.probe is None else [objective, self.probe])
        trained.to(self.device).train()
        if cfg.train.compile:
            compile_parts(objective)
        optimizer = cfg.optim.build(trained, cfg.pace.places(objective.encoder))

        def step(parts: list[JetBatch]) -> None:
            for part in parts:
                with self._autocast():
                    loss = _total(objective, part.to(self.device), self._rng)
                (loss / len(parts)).backward()  # type: ignore[no-untyped-call]
            if not loss.isfinite():
                raise RunError("the loss is not finite in the first steps")
            nn.utils.clip_grad_norm_(objective.parameters(), cfg.optim.clip_norm)
            optimizer.step()
            optimizer.zero_grad()
            objective.after_step(0.0)

        return step

    def _autocast(self) -> torch.autocast:
        half = self.cfg.train.arithmetic == "bf16-mixed"
        return torch.autocast(self.device.type, torch.bfloat16, enabled=half)

    def _seconds(self, work: Callable[[], None]) -> float:
        start = time.perf_counter()
        work()
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - start


def _total(objective: Objective, batch: JetBatch, rng: torch.Generator) -> Tensor:
    return torch.stack(list(objective.loss(batch, rng).values())).sum()


def _countable(cfg: RunConfig, objective: Objective) -> Objective:
    """The same network, on the host, in an attention whose products can be counted."""
    assert isinstance(cfg, PretrainConfig | FinetuneConfig)
    if cfg.encoder.attention not in HALF_PRECISION:
        return objective
    encoder = cfg.encoder.anywhere
    return _prepared(cfg.model_copy(update={"encoder": encoder})).objective


def _reading(reader: JetReader, waits: list[float]) -> float:
    """Seconds that reading a batch takes in the long run.

    Each of the first batches waits for a pool of jets, which serves many batches; of jets in
    memory the first one waits for all.
    """
    if isinstance(reader, JetsInMemory):
        return mean(waits[1:])
    assert isinstance(reader, JetStream)
    return mean(waits) / reader.order.batches_per_pool


def _memory(device: torch.device) -> tuple[int, str]:
    if device.type == "cuda":
        return torch.cuda.max_memory_reserved(), "peak that PyTorch reserved on the GPU"
    return peak_memory(), "peak resident size of this process, Python and libraries included"


def _name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name()
    return f"CPU, {torch.get_num_threads()} threads"
