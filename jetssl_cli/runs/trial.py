"""The first steps of a run, timed: without what records and keeps them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import partial
from statistics import mean, median

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from jetssl_cli.batch import JetBatch
from jetssl_cli.config import Strict
from jetssl_cli.data.memory import JetsInMemory
from jetssl_cli.data.reader import JetReader
from jetssl_cli.data.stream import JetStream
from jetssl_cli.encoder.attention import HALF_PRECISION
from jetssl_cli.encoder.blocks import compile_parts
from jetssl_cli.errors import RunError
from jetssl_cli.objectives.objective import Objective
from jetssl_cli.runs import finetune, pretrain
from jetssl_cli.runs.finetune_config import FinetuneConfig
from jetssl_cli.runs.prepared import Prepared
from jetssl_cli.runs.pretrain import PretrainConfig
from jetssl_cli.runs.probe import Probe
from jetssl_cli.runs.run_config import RunConfig

COUNTED_JETS = 200
"""FLOPs are counted on so many jets of the first batch."""
SECONDS, MOST_STEPS = 3.0, 20
"""After one that warms up, steps are timed for so long, but at most so many."""


class Flops(Strict):
    """Floating-point operations for one jet: those of matrix products, which are nearly all.

    Counted on jets of the data, in the attention of a CPU, where short jets are filled up.
    """

    forward: float
    """Of the loss."""
    step: float
    """Of the loss and its gradients."""


def prepare(cfg: PretrainConfig | FinetuneConfig) -> Prepared:
    """The run of a config, of which nothing is to be written."""
    if isinstance(cfg, PretrainConfig):
        return pretrain.prepare(cfg, trial=True)
    return finetune.prepare(cfg, trial=True)


def count_flops(objective: Objective, batch: JetBatch) -> Flops:
    """Count the operations of a loss and of its gradients, which are dropped afterwards."""
    with FlopCounterMode(display=False) as counter:
        loss = _total(objective, batch, torch.Generator(batch.features.device).manual_seed(0))
        forward = counter.get_total_flops()
        loss.backward()  # type: ignore[no-untyped-call]
    objective.zero_grad()
    jets = batch.packing.num_jets
    return Flops(forward=forward / jets, step=counter.get_total_flops() / jets)


class Trial:
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
    return prepare(cfg.model_copy(update={"encoder": encoder})).objective


def _reading(reader: JetReader, waits: list[float]) -> float:
    """Seconds that reading a batch takes in the long run.

    Each of the first batches waits for a pool of jets, which serves many batches; of jets in
    memory the first one waits for all.
    """
    if isinstance(reader, JetsInMemory):
        return mean(waits[1:])
    assert isinstance(reader, JetStream)
    return mean(waits) / reader.order.batches_per_pool
