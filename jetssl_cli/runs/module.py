"""The one training loop: any objective, any data, through Lightning."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import Any

import lightning
import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel
from torchmetrics.classification import MulticlassAccuracy

from jetssl_cli.batch import JetBatch
from jetssl_cli.objectives import parallel
from jetssl_cli.objectives.objective import Objective
from jetssl_cli.progress import Advance
from jetssl_cli.runs.best import Best
from jetssl_cli.runs.budget import Budget
from jetssl_cli.runs.diverged import Divergence
from jetssl_cli.runs.optim import OptimConfig, Pace
from jetssl_cli.runs.probe import Probe, effective_rank, feature_std, jet_vectors
from jetssl_cli.runs.run_config import TrainConfig
from jetssl_cli.runs.tracking import Tracker

JETS_FOR_RANK = 5_000
"""Signs of collapse are measured on so many validation jets."""
JETS = "number of jets"
"""Beside the sums of the terms of a loss, which have one word."""
SEEDS_APART = 1_000_003
"""Between the seeds of two processes, so that runs with the next seeds share none."""


class JetModule(lightning.LightningModule):
    """Trains an objective; beside it, in pretraining, a probe that watches the encoder."""

    def __init__(  # noqa: PLR0913
        self,
        objective: Objective,
        *,
        num_classes: int,
        optim: OptimConfig,
        train: TrainConfig,
        budget: Budget,
        tracker: Tracker,
        divergence: Divergence,
        pace: Pace | None = None,
        keep: Mapping[str, nn.Module] | None = None,
        agree: Callable[[float], float] = float,
    ) -> None:
        """Put an objective into the loop.

        Args:
            objective: what is trained.
            num_classes: classes of the data.
            optim: settings of the optimizer.
            train: settings of the loop.
            budget: how long the run goes on.
            tracker: takes the measurements.
            divergence: stops a training that is no longer finite.
            pace: how the encoder learns beside the rest.
            keep: modules whose weights at the best validation are kept, by name.
            agree: what all processes take for a number that each of them has found.
        """
        super().__init__()
        self.objective = objective
        self.pace = pace or Pace()
        width = objective.exported().width
        self.probe = None if objective.downstream else Probe(width, num_classes)
        self._seldom: list[nn.Parameter] = []
        """Parameters without gradients in some steps; DDP does not know them."""
        if self.probe is not None:
            self._seldom += self.probe.parameters()
        if self.pace.unfreeze_at:
            self._seldom += objective.encoder.parameters()
        known = set(map(id, self._seldom))
        names = [name for name, p in self.named_parameters() if id(p) in known]
        ignore = DistributedDataParallel._set_params_and_buffers_to_ignore_for_model
        ignore(self, names)  # type: ignore[no-untyped-call]
        self.accuracy = MulticlassAccuracy(num_classes, average="micro", sync_on_compute=False)
        self.optim, self.train_cfg = optim, train
        self.tracker, self.divergence, self.budget = tracker, divergence, budget
        self.advance: Advance = lambda *_, **__: None
        self.validation_due = False
        """A validation comes before the first step, as the run goes on from before it."""
        self.latest: dict[str, float] = {}
        self._frozen = False
        """The encoder is left alone at the moment."""
        self.best = Best(keep or {}, agree)
        self._sums: dict[str, float] = defaultdict(float)
        self._vectors: list[Tensor] = []
        self._clock = (0, time.monotonic())
        self._jets = 0
        self._terms: dict[str, Tensor] = {}

    def setup(self, stage: str) -> None:
        """Seed the generators, on the device they draw for; each process draws other numbers."""
        del stage
        seed = (self.train_cfg.seed + self.global_rank * SEEDS_APART) % 2**63
        self.rng = torch.Generator(self.device).manual_seed(seed)
        if self.global_rank:
            torch.manual_seed(seed)

    def transfer_batch_to_device(
        self, batch: JetBatch, device: torch.device, dataloader_idx: int
    ) -> JetBatch:
        """Move a batch."""
        del dataloader_idx
        return batch.to(device)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """One optimizer for the objective and the probe: neither sees the other's gradients."""
        return self.optim.build(self, self.pace.places(self.objective.encoder))

    def on_train_start(self) -> None:
        """Start the clock, all with the same probe."""
        if self.probe is not None and parallel.world_size() > 1:
            for parameter in self.probe.parameters():
                distributed.broadcast(parameter.detach(), 0)
        self.budget.start()
        self.advance(self.budget.done, self._note(), earlier=True)
        if self.validation_due:
            self._validate()

    def training_step(self, batch: JetBatch, batch_idx: int) -> Tensor:
        """Loss of a batch, with that of the probe when it is its turn."""
        step, part = self.budget.steps, batch_idx % self.train_cfg.accumulate + 1
        if self._frozen != self.pace.frozen(step):
            self._frozen = self.pace.frozen(step)
            self.objective.encoder.requires_grad_(not self._frozen)
        terms = self.objective.loss(batch, self.rng)
        total = torch.stack(list(terms.values())).sum()
        self.divergence.note(~total.isfinite(), step)
        self._jets += batch.packing.num_jets
        if (step + 1) % self.train_cfg.log_every == 0 or step == 0:
            for name, value in terms.items():
                self._terms[name] = self._terms.get(name, 0) + value.detach()
            if part == self.train_cfg.accumulate:
                self._record(step)
        if self.probe is not None and step % self.train_cfg.probe_every == 0:
            total = total + self.probe.loss(self.objective.exported(), batch)
        return total

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip the objective and the probe each by itself, so that neither slows the other."""
        del optimizer, gradient_clip_val, gradient_clip_algorithm
        self._average_seldom()
        norm = nn.utils.clip_grad_norm_(self.objective.parameters(), self.optim.clip_norm)
        self.divergence.note(~norm.isfinite(), self.budget.steps)
        if self.probe is not None:
            nn.utils.clip_grad_norm_(self.probe.parameters(), self.optim.clip_norm)

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Step at the rate of the schedule, then let the objective follow (EMA teachers)."""
        late = self.pace.factor(self.budget.steps, self.budget.expected_steps)
        for group in self.trainer.optimizers[0].param_groups:
            place = group["place"]
            group["lr"] = self.rate * place.share * (late if place.late else 1.0)
        super().optimizer_step(*args, **kwargs)
        before = self.budget.done
        self.budget.step()
        self.objective.after_step(self.budget.progress)
        self.advance(self.budget.done - before, self._note())
        self.trainer.should_stop = self.budget.finished or self._is_enough()

    @property
    def rate(self) -> float:
        """The learning rate of the step to come."""
        return self.optim.lr * self.optim.factor(self.budget.steps, self.budget.expected_steps)

    def on_validation_start(self) -> None:
        """The same masks and noise in every validation."""
        self.divergence.stop()
        self.objective.diagnostics()  # begins anew
        self._sums.clear()
        self._vectors.clear()
        self._val_rng = torch.Generator(self.device).manual_seed(self.train_cfg.seed)

    def validation_step(self, batch: JetBatch, batch_idx: int) -> None:
        """Loss, accuracy, and vectors in which a collapse would show."""
        del batch_idx
        num = batch.packing.num_jets
        if self.objective.classifies:
            logits = self.objective.logits(batch)
            terms = self.objective.loss_of(logits, batch.labels)
            self.accuracy.update(logits, batch.labels)
        else:
            terms = self.objective.loss(batch, self._val_rng)
        for name, value in terms.items():
            self._sums[name] += float(value) * num
        self._sums[JETS] += num
        if self.probe is not None:
            encoded = self.objective.exported()(batch)
            self.accuracy.update(self.probe(encoded), batch.labels)
            if sum(map(len, self._vectors)) < JETS_FOR_RANK:
                self._vectors.append(jet_vectors(encoded))

    def on_validation_epoch_end(self) -> None:
        """Record what the validation found."""
        jets = self._sums.pop(JETS)
        found = {f"val/{name}": value / jets for name, value in self._sums.items()}
        found["val/loss"] = sum(found.values())
        found |= {f"val/{name}": value for name, value in self.objective.diagnostics().items()}
        if self.objective.classifies or self.probe is not None:
            watched = "accuracy" if self.probe is None else "probe_accuracy"
            found[f"val/{watched}"] = float(self.accuracy.compute())
            self.accuracy.reset()
        if self._vectors:
            vectors = torch.cat(self._vectors).float()
            found["val/effective_rank"] = effective_rank(vectors)
            found["val/feature_std"] = feature_std(vectors)
        self.latest |= found
        self.tracker.metrics(found, self.budget.steps)
        self.divergence.stop_at_validation(found, self.budget.steps)
        self.best.look(found["val/loss"], self.budget.steps, write=self.global_rank == 0)
        self.trainer.should_stop |= self._is_enough()
        self.advance(0, self._note())

    def _validate(self) -> None:
        """Validate now, as Lightning does after a step."""
        loop = self.trainer.fit_loop.epoch_loop.val_loop
        self.trainer.validating = True
        loop.run()
        self.trainer.training = True

    def _is_enough(self) -> bool:
        """Validations have not become better for long enough."""
        patience = self.train_cfg.patience
        return patience is not None and self.best.since >= patience

    def _average_seldom(self) -> None:
        """Average the gradients of what has some in few steps over the processes."""
        grads = [p.grad for p in self._seldom if p.grad is not None]
        if grads and parallel.world_size() > 1:
            total = parallel.summed(torch.cat([grad.flatten() for grad in grads]))
            mean = total / parallel.world_size()
            parts = torch.split(mean, [grad.numel() for grad in grads])
            for grad, part in zip(grads, parts, strict=True):
                grad.copy_(part.view_as(grad))

    def _record(self, step: int) -> None:
        """Record the means over all processes, and over the parts of the batch."""
        self.divergence.stop()
        then, now = self._clock[1], time.monotonic()
        world = parallel.world_size()
        values = torch.stack(list(self._terms.values())) / self.train_cfg.accumulate
        values = parallel.summed(values) / world
        found = {
            f"train/{name}": value for name, value in zip(self._terms, values.tolist(), strict=True)
        }
        self._terms.clear()
        found["train/loss"] = values.sum().item()
        found["train/lr"] = self.rate
        found["train/jets"] = (step + 1) * self.budget.jets_per_step
        jets = (self._jets - self._clock[0]) * world
        found["train/jets_per_second"] = jets / max(now - then, 1e-9)
        self._clock = (self._jets, now)
        self.latest |= found
        self.tracker.metrics(found, step + 1)

    def _note(self) -> str:
        shown = {"train/loss": "loss", "val/loss": "val", "val/probe_accuracy": "probe"}
        shown |= {"val/accuracy": "accuracy", "val/balanced_accuracy": "balanced accuracy"}
        shown["val/adjusted_rand"] = "ARI"
        parts = [
            f"{word} {self.latest[key]:.4f}" for key, word in shown.items() if key in self.latest
        ]
        timed = self.budget.unit == "s"
        return "  ".join([f"{self.budget.steps:,} steps"] * timed + parts)
