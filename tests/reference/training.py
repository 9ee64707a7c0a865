"""A short training of an objective, and the losses it is known to have."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from jetssl_cli.batch import JetBatch
from jetssl_cli.objectives.objective import Objective
from jetssl_cli.runs.optim import OptimConfig


def generator(seed: int = 0) -> torch.Generator:
    """A seeded generator."""
    return torch.Generator().manual_seed(seed)


def train(
    objective: Objective,
    steps: int,
    batches: Sequence[JetBatch],
    *,
    lr: float = 1e-3,
    seed: int | None = None,
) -> list[float]:
    """Losses of a short training; with a seed, the same masks and noise in each step."""
    optimizer = OptimConfig(lr=lr).build(objective)
    rng = generator()
    losses = []
    for step in range(steps):
        optimizer.zero_grad()
        rng = rng if seed is None else generator(seed)
        loss = torch.stack([*objective.loss(batches[step % len(batches)], rng).values()]).sum()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses


def assert_golden(losses: list[float], path: Path, name: str) -> None:
    """Compare with the losses of this name in a file.

    To write them anew, after a change that is meant to change them, run the test with
    JETSSL_REGENERATE=1.
    """
    known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    if os.environ.get("JETSSL_REGENERATE"):
        known[name] = losses
        path.write_text(json.dumps(known, indent=2) + "\n", encoding="utf-8")
    assert losses == pytest.approx(known[name], rel=1e-4)
