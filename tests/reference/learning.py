"""A short training with the preset of a method, tiny, on the committed sample."""

from __future__ import annotations

from pathlib import Path

import torch

from jetssl_cli.batch import JetBatch
from jetssl_cli.config import Layer
from jetssl_cli.data.sample import Sample
from jetssl_cli.data.scaling import fitted_scaling
from jetssl_cli.objectives.objective import Objective
from jetssl_cli.runs.prepared import read_schema
from jetssl_cli.runs.pretrain import build_encoder, load_config


def trained(method: str, jagged: Path, steps: int) -> tuple[Objective, JetBatch]:
    """The objective after so many steps, and 300 validation jets that it has not seen."""
    data = {
        "train": str(jagged / "train.h5"),
        "val": str(jagged / "val.h5"),
        "batch_size": 32,
        "max_constituents": 24,
    }
    options = Layer("here", {"data": data, "out": str(jagged / "none"), "optim": {"lr": 1e-3}})
    cfg = load_config(method, "tiny", options)
    schema = read_schema(cfg.data)
    scaling = fitted_scaling(Sample(cfg.data.train, max_constituents=24))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        objective: Objective = cfg.objective.build(build_encoder(cfg.encoder, scaling, schema))
    optimizer = cfg.optim.build(objective)
    batches = iter(cfg.data.endless(cfg.data.train_reader(), seed=0))
    rng = torch.Generator().manual_seed(0)
    for step in range(steps):
        rate = 1e-3 * cfg.optim.factor(step, steps)
        optimizer.param_groups[0]["lr"] = optimizer.param_groups[1]["lr"] = rate
        optimizer.zero_grad()
        terms = objective.loss(next(batches), rng)
        torch.stack(list(terms.values())).sum().backward()
        torch.nn.utils.clip_grad_norm_(objective.parameters(), cfg.optim.clip_norm)
        optimizer.step()
        objective.after_step((step + 1) / steps)
    val = cfg.data.model_copy(update={"batch_size": 300}).val_stream()
    return objective.eval(), next(iter(val))
